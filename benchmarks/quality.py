"""What a config reaches on its test split: mean and standard deviation over seeds, one thread.

    python benchmarks/quality.py examples/kuairand/aitm.yaml --seeds 5 --set data.dir=LOGS/kuairand_pure
    python benchmarks/quality.py ... --split valid        to choose between settings; never choose on test

Prints one line per task and metric, the CPU seconds of training alone, and the config's differences from the file.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import torch

from funnelrank import api, load_config, wide

METRICS = ("auc", "gauc", "gauc_frozen", "pcoc", "ece", "logloss", "rmse", "gini", "auc_positive")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--split", default="test", choices=("valid", "test"))
    parser.add_argument("--set", dest="sets", action="append", default=[])
    parser.add_argument("--cache", help="keep encoded rows here between calls")
    said = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, list[float]] = {}
    seconds, epochs = [], []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(said.seeds):
            config = load_config(said.config, [f"data.cache={said.cache or folder}", *said.sets, "train.threads=1",
                                               f"train.seed={seed}", f"train.out={folder}/{seed}"])
            run = api.train(config)
            seconds.append(run.trained.cpu_seconds)
            epochs.append(run.trained.epochs)
            for name, value in wide(run.rows, said.split).items():
                if value is not None:
                    found.setdefault(name, []).append(value)
    tasks = [*config.schema.task_names, "macro"]
    print(f"{said.config} {' '.join(said.sets)}: {said.split}, {said.seeds} seeds")
    print(f"{'task':<18}" + "".join(f"{m:>20}" for m in METRICS))
    for task in tasks:
        cells = []
        for metric in METRICS:
            values = found.get(f"{metric}_{task}")
            cells.append(f"{statistics.mean(values):.4f} +- {statistics.stdev(values) if len(values) > 1 else 0:.4f}"
                         if values else "-")
        print(f"{task:<18}" + "".join(f"{c:>20}" for c in cells))
    print(f"training: {statistics.mean(seconds):.1f} CPU s (most {max(seconds):.1f}), epochs {sorted(set(epochs))}")


if __name__ == "__main__":
    main()
