"""Does speed cost quality, and which row optimiser is best: two tables over seeds, on a config of your own.

    python benchmarks/optimisers.py dense examples/kuairand/aitm.yaml --set data.dir=LOGS/kuairand_pure
    python benchmarks/optimisers.py rows  examples/kuairand/aitm.yaml --set data.dir=LOGS/kuairand_pure

dense   rows moved inside backward, against the same model with an nn.Embedding for each id space, whose gradients are
        as large as the table and go to torch.optim; the same start, order, optimiser and rate, without weight averages
rows    every row optimiser (FTRL without L1 is Adagrad): its learning rate chosen on valid over RATES with TUNING
        seeds, then measured on test with the other seeds; differences to Adagrad are paired by seed

One thread. Finished runs are kept in --out as one line of JSON each, and not done again.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from funnelrank import load_config, wide
from funnelrank.batch import Batch
from funnelrank.config import Config
from funnelrank.embedding.reference import bag_offsets
from funnelrank.embedding.tables import Embedding
from funnelrank.flow import build, encode, fit, measure_split, open_data, prepare
from funnelrank.inputs import Inputs
from funnelrank.settings import RowOptimiser

TUNING = (100, 101)                   # seeds that only choose
RATES = {"adagrad": (0.05, 0.1, 0.2, 0.4, 0.8), "rowwise_adagrad": (0.05, 0.1, 0.2, 0.4, 0.8),
         "adam": (0.001, 0.003, 0.01, 0.03, 0.1), "sgd": (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)}


class PerSpace(nn.Module):
    """The same lookups, one nn.Embedding a space, moved by torch.optim on gradients as large as the tables.

    Weights are buffers that want gradients: in the state of the model, but not among what its own optimiser moves.
    """

    native, runs_native = None, False

    def __init__(self, of: Embedding, settings: RowOptimiser):
        super().__init__()
        assert not (of.histories or of.needs.fields or of.needs.linear or of.needs.groups), "flat models only"
        self.layout, self.pieces, self.slices, self.needs = of.layout, of.pieces, of.slices, of.needs
        self.flat_width, self.histories, self.width_of = of.flat_width, of.histories, of.width_of
        self.tables = nn.ModuleDict()
        self.spaces = list(of.layout.size)
        for i, (space, size) in enumerate(of.layout.size.items()):
            table = next(t for t in of.tables.values() if space in t.offset)
            rows = slice(table.offset[space], table.offset[space] + size)
            self.register_buffer(f"space_{i}", table.weight[rows].detach().clone().requires_grad_())
        kinds = {"adagrad": lambda w: torch.optim.Adagrad(w, lr=settings.lr, eps=settings.eps),
                 "adam": lambda w: torch.optim.Adam(w, lr=settings.lr, betas=settings.betas, eps=settings.eps),
                 "sgd": lambda w: torch.optim.SGD(w, lr=settings.lr)}
        self.optimiser = kinds[settings.name](list(self.buffers()))

    def weight(self, feature: str) -> Tensor:
        return getattr(self, f"space_{self.spaces.index(self.layout.space[feature])}")

    def forward(self, batch: Batch) -> Inputs:
        columns = []
        for p in self.pieces:
            if p.source == "numbers":
                columns.append(batch.numbers[:, p.position:p.position + 1])
            elif p.source == "ids":
                columns.append(F.embedding(batch.ids[:, p.position], self.weight(p.name), padding_idx=0))
            else:
                start, end = (int(batch.offsets[(p.position + i) * len(batch)]) for i in (0, 1))
                offsets = bag_offsets(batch, p.position)
                weights = None if batch.value_weights is None else batch.value_weights[start:end]
                bag = F.embedding_bag(batch.values[start:end], self.weight(p.name), offsets[:-1], mode="sum",
                                      per_sample_weights=weights, padding_idx=0)
                total = offsets.diff().float() if weights is None else bag.new_zeros(len(batch)).index_add(
                    0, torch.repeat_interleave(offsets.diff()), weights)
                mean = self.layout.pool[p.name] == "mean"
                columns.append(bag / torch.where(total > 0, total, 1.0).unsqueeze(1) if mean else bag)
        return Inputs(torch.cat(columns, 1), scenario=batch.scenario.long())

    def take_gradients(self) -> list:
        """Moves its own weights; none are left to hand over."""
        self.optimiser.step()
        self.optimiser.zero_grad()
        return []


class Runs:
    """Trains configs on data that are encoded once, and remembers what each run reached."""

    def __init__(self, config: Path, sets: list[str], out: Path):
        self.path, self.sets, self.log = config, sets, out / "runs.jsonl"
        out.mkdir(parents=True, exist_ok=True)
        self.scratch = out / "scratch"
        first = self.config([])
        self.data = open_data(first)
        self.encoder = prepare(first, self.data)
        self.splits = encode(first, self.data, self.encoder)
        self.done = {}
        for line in self.log.read_text().splitlines() if self.log.exists() else ():
            record = json.loads(line)
            self.done[json.dumps(record["key"])] = record

    def config(self, sets: list[str]) -> Config:
        return load_config(self.path, ["train.threads=1", "evaluate.frozen=false", f"train.out={self.scratch}/run",
                                       *self.sets, *sets])

    def run(self, sets: list[str], split: str, plain: bool = False) -> dict[str, Any]:
        key = [str(self.path), self.sets, sets, split, plain]
        if json.dumps(key) in self.done:
            return self.done[json.dumps(key)]
        config = self.config(sets)
        torch.set_num_threads(1)
        model = build(config, self.encoder, self.splits)
        if plain:
            model.embedding = PerSpace(model.embedding, config.settings.embedding.optimiser)
        with tempfile.TemporaryDirectory() as folder:
            trained = fit(config, model, self.encoder, self.splits, folder=Path(folder))
        found = wide(measure_split(config, model, self.encoder, self.splits[split], split), split)
        auc = {k.removeprefix("auc_"): v for k, v in found.items() if k.startswith("auc_") and v is not None}
        record = {"key": key, "auc": auc, "cpu_s": trained.cpu_seconds, "epochs": trained.epochs}
        with self.log.open("a") as log:
            log.write(json.dumps(record) + "\n")
        self.done[json.dumps(key)] = record
        print(f"{' '.join(sets)} {'plain ' if plain else ''}{split}: "
              + "  ".join(f"{t} {v:.4f}" for t, v in auc.items()), flush=True)
        return record


def shown(label: str, tasks: list[str], runs: list[dict[str, Any]], other: list[dict[str, Any]] | None) -> str:
    """Means and standard deviations; with `other`, paired differences to it with their standard errors."""
    cells = []
    for task in tasks:
        values = [r["auc"][task] for r in runs]
        cell = f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}"
        if other is not None:
            differences = [r["auc"][task] - o["auc"][task] for r, o in zip(runs, other)]
            error = statistics.stdev(differences) / len(differences) ** 0.5
            cell += f" | {statistics.mean(differences):+.4f} ± {error:.4f}"
        else:
            cell += " | -"
        cells.append(cell)
    return f"| {label} | " + " | ".join(cells) + f" | {statistics.mean(r['cpu_s'] for r in runs):.1f} |"


def head(first: str, tasks: list[str], difference: str) -> str:
    return (f"| {first} | " + " | ".join(f"{t} AUC | {difference}" for t in tasks) + " | training CPU s |\n|"
            + "---|" * (2 * len(tasks) + 2))


def dense(runs: Runs, seeds: range, say: Callable[[str], None]) -> None:
    keys = [[f"train.seed={s}", "train.average=null"] for s in seeds]
    fused = [runs.run(k, "test") for k in keys]
    plain = [runs.run(k, "test", plain=True) for k in keys]
    tasks = list(fused[0]["auc"])
    say(head(f"{len(keys)} seeds, test", tasks, "difference ± standard error"))
    say(shown("one nn.Embedding a space, dense gradients", tasks, plain, None))
    say(shown("rows moved inside backward", tasks, fused, plain))


def rows(runs: Runs, seeds: range, say: Callable[[str], None]) -> None:
    best: dict[str, float] = {}
    for name, rates in RATES.items():
        def reached(rate: float, name: str = name) -> float:
            return statistics.mean(runs.run([f"embedding.optimiser.name={name}", f"embedding.optimiser.lr={rate}",
                                             f"train.seed={s}"], "valid")["auc"]["macro"] for s in TUNING)
        found = {rate: reached(rate) for rate in rates}
        best[name] = max(found, key=found.get)
        say(f"valid, {name}: " + ", ".join(f"{rate}: {value:.4f}" for rate, value in found.items()))
    measured = {name: [runs.run([f"embedding.optimiser.name={name}", f"embedding.optimiser.lr={best[name]}",
                                 f"train.seed={s}"], "test") for s in seeds] for name in RATES}
    tasks = list(measured["adagrad"][0]["auc"])
    say(head(f"{len(seeds)} seeds, test", tasks, "difference ± standard error"))
    for name, found in measured.items():
        say(shown(f"{name}, lr {best[name]}", tasks, found, None if name == "adagrad" else measured["adagrad"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=("dense", "rows"))
    parser.add_argument("config", type=Path)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--set", dest="sets", action="append", default=[])
    parser.add_argument("--out", type=Path, default=Path("runs/optimisers"))
    said = parser.parse_args()
    runs = Runs(said.config, said.sets, said.out)
    lines: list[str] = []
    {"dense": dense, "rows": rows}[said.table](runs, range(said.seeds), lines.append)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
