"""What `train.compile: true` gains in a step, and what its first step takes.

    python benchmarks/compiled.py [--nets aitm-small aitm-large mmoe-small] [--ids 1e5] [--steps 20]

Both trainers take turns with the same batches of 4096 rows of the generated log, one thread. Prints medians of CPU
milliseconds a step, and CPU seconds of the first step, without the C++ compiler that it waits for.
"""

import argparse
import statistics
import tempfile
import time
from itertools import islice
from pathlib import Path

import torch
from ours import train_config

from funnelrank import flow
from funnelrank.data.loader import Loader
from funnelrank.kernels import keep_freed_memory
from funnelrank.train.optim import Average, row_updates
from funnelrank.train.trainer import Trainer


def trainers(model: str, net: str, ids: int, folder: Path) -> tuple[list[Trainer], list]:
    """The same training twice, the second time compiled; and batches for it."""
    config = train_config({"model": model, "net": net, "ids": ids, "batch": 4096,
                           "norm": None if model == "mmoe" else "batch"}, folder)
    data = flow.open_data(config)
    encoder = flow.prepare(config, data)
    splits = flow.encode(config, data, encoder)
    batches = list(islice(Loader(splits["train"], encoder.layout, 4096, shuffle=True).epoch(0), 8))
    made = []
    for compiled in (False, True):
        built = flow.build(config, encoder, splits)
        trainer = Trainer(built, config.settings.train, torch.ones(len(built.tasks)), folder=folder, report=flow.silent)
        trainer.updates = row_updates(built.embedding, config.settings.embedding)
        trainer.average = Average(built, built.embedding, config.settings.train.average)
        if compiled:
            built.slots.compile()
        made.append(trainer)
    return made, batches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", default=["aitm-small", "aitm-large", "mmoe-small"])
    parser.add_argument("--ids", type=float, default=1e5)
    parser.add_argument("--steps", type=int, default=20)
    said = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    for net in said.nets:
        with tempfile.TemporaryDirectory() as folder:
            pair, batches = trainers(*net.split("-"), int(said.ids), Path(folder))
        spent: list[list[float]] = [[], []]
        for i in range(said.steps + 4):
            for seconds, trainer in zip(spent, pair):
                start = time.process_time()
                trainer._train_step(batches[i % len(batches)], None, 0)
                seconds.append(time.process_time() - start)
        eager, compiled = (1e3 * statistics.median(s[4:]) for s in spent)
        print(f"{net:<12} eager {eager:.1f} ms, compiled {compiled:.1f} ms ({eager / compiled:.2f}x); first step "
              f"{spent[0][0]:.1f} s, {spent[1][0]:.1f} s", flush=True)


if __name__ == "__main__":
    main()
