"""What each balance of tasks costs and reaches: rows per CPU second, and AUC on valid, over seeds, on your config.

    python benchmarks/balance.py examples/kuairand/aitm.yaml --seeds 5 --set data.dir=LOGS/kuairand_pure

One thread. Rows are encoded once. Differences are to `fixed`, paired by seed; a balance is written as in a config, with
--balance '{name: dwa, every: 50}' as often as wanted (default: each, with its defaults). Finished runs are printed as
they come.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import torch

from funnelrank import flow, load_config
from funnelrank.settings import AnyBalance

NAMES = ["fixed", *(c.model_fields["name"].default for c in AnyBalance.__origin__.__args__
                    if c.model_fields["name"].default not in ("fixed", "equal"))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--set", dest="sets", action="append", default=[])
    parser.add_argument("--balance", action="append", help="default: " + ", ".join(NAMES))
    said = parser.parse_args()
    torch.set_num_threads(1)
    names = list(dict.fromkeys(["fixed", *(said.balance or NAMES)]))
    found: dict[str, list[dict[str, float]]] = {n: [] for n in names}
    with tempfile.TemporaryDirectory() as folder:
        load = lambda *sets: load_config(said.config, [
            "train.epochs=1", "evaluate.frozen=false", f"data.cache={folder}",
            *said.sets, "train.threads=1", f"train.out={folder}/run", *sets])
        config = load()
        data = flow.open_data(config)
        encoder = flow.prepare(config, data)
        splits = flow.encode(config, data, encoder)
        splits = {s: splits[s] for s in ("train", "valid")}
        for seed in range(said.seeds):
            for name in names:
                config = load(f"train.seed={seed}", f"train.balance={name}")
                model = flow.build(config, encoder, splits)
                trained = flow.fit(config, model, encoder, splits, folder=Path(folder) / f"{seed}")
                rows = flow.measure_split(config, model, encoder, splits["valid"], "valid", intervals=False)
                wide = flow.table.wide(rows, "valid")
                one = {t: wide[f"auc_{t}"] for t in config.schema.task_names if wide.get(f"auc_{t}") is not None}
                found[name].append(one | {"rows_per_s": trained.rows / trained.cpu_seconds})
                print(f"seed {seed} {name}:", *(f"{k} {v:.4f}" for k, v in found[name][-1].items()), flush=True)
    tasks = [k for k in found["fixed"][0] if k != "rows_per_s"]
    print(f"\n{said.config} {' '.join(said.sets)}: valid, {said.seeds} seeds")
    print(f"{'balance':<30}" + "".join(f"{t:>20}{'to fixed':>20}" for t in tasks), "  rows/CPU s  of fixed")
    for name in names:
        line = f"{name:<30}"
        for task in tasks:
            values = [r[task] for r in found[name]]
            line += _spread(values) + _spread([v - r[task] for v, r in zip(values, found["fixed"])])
        speed, plain = (statistics.median(r["rows_per_s"] for r in found[n]) for n in (name, "fixed"))
        print(f"{line}{speed:>13,.0f}{speed / plain:>10.2f}")


def _spread(values: list[float]) -> str:
    return f"{statistics.mean(values):>11.4f} +- {statistics.stdev(values) if len(values) > 1 else 0:.4f}"


if __name__ == "__main__":
    main()
