"""Does an ensemble help, and does one model that learned from it keep the gain? On a config of your own.

    python benchmarks/distil.py examples/kuairand/auto.yaml --set data.dir=LOGS/kuairand_pure

Trains --teachers models with seeds 100, 101, ..., and says what the mean of their logits reaches. Then, for each of
--shares, models that learn from labels mixed with what the teachers say of the rows of train:

    y' = (1 - share) y + share * sigmoid(mean of the teachers' logits)             0: the labels alone

Mean and standard deviation of AUC over --seeds students, on valid unless --split says test; one thread. Binary tasks.
"""

import argparse
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from funnelrank import flow, load_config
from funnelrank.data.cache import EncodedSplit
from funnelrank.data.loader import Loader
from funnelrank.evaluate.metrics import auc
from funnelrank.evaluate.score import score

TEACHERS = 100           # the first one's seed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--teachers", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--shares", default="0,0.5,0.9")
    parser.add_argument("--split", default="valid", choices=("valid", "test"))
    parser.add_argument("--set", dest="sets", action="append", default=[])
    parser.add_argument("--cache", help="keep encoded rows here between calls")
    said = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        load = lambda seed: load_config(said.config, [f"data.cache={said.cache or folder}", *said.sets,
                                                      "train.threads=1", f"train.seed={seed}"])
        config = load(0)
        if any(task.kind != "binary" for task in config.schema.tasks):
            parser.error("binary tasks only")
        data = flow.open_data(config)
        encoder = flow.prepare(config, data)
        splits = flow.encode(config, data, encoder)
        held = splits[said.split]

        def trained(seed: int, train: EncodedSplit, *asked: EncodedSplit) -> list[np.ndarray]:
            """What a model that learned from `train` says of each of `asked`: logits [rows, T]."""
            config = load(seed)
            model = flow.build(config, encoder, splits)
            with tempfile.TemporaryDirectory() as place:
                flow.fit(config, model, encoder, {**splits, "train": train}, folder=Path(place))
            rows = lambda split: Loader(split, encoder.layout, 8192, shuffle=False, seed=0).epoch(0)
            return [(found := score(model, config.schema, rows(split), said.split)).log_p - found.log_not_p
                    for split in asked]

        names = config.schema.task_names
        print(f"{said.config} {' '.join(said.sets)}: {said.split}, {said.teachers} teachers, {said.seeds} students")
        print(f"{'':<24}" + "".join(f"{name:>20}" for name in [*names, "mean"]))
        of_train, of_held = zip(*(trained(TEACHERS + k, splits["train"], splits["train"], held)
                                  for k in range(said.teachers)))
        show("a teacher", [reached(held, z) for z in of_held])
        show("their mean", [reached(held, np.mean(of_held, 0))])
        labels = np.asarray(splits["train"].labels)
        soft = 1 / (1 + np.exp(-np.mean(of_train, 0)))
        for share in map(float, said.shares.split(",")):
            mixed = np.where(np.isnan(labels), labels, (1 - share) * labels + share * soft).astype(np.float32)
            show(f"a student, share {share:g}", [reached(held, trained(seed, replace(
                splits["train"], labels=mixed), held)[0]) for seed in range(said.seeds)])


def reached(split: EncodedSplit, z: np.ndarray) -> list[float]:
    """AUC of each task, and their mean."""
    y = np.asarray(split.labels)
    each = [auc(z[seen, t], y[seen, t]) for t in range(y.shape[1]) for seen in [~np.isnan(y[:, t])]]
    return [*each, statistics.mean(each)]


def show(name: str, runs: list[list[float]]) -> None:
    cells = [f"{statistics.mean(x):.4f}" + (f" +- {statistics.stdev(x):.4f}" if len(x) > 1 else "")
             for x in zip(*runs)]
    print(f"{name:<24}" + "".join(f"{cell:>20}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
