"""A training step with the kernel of small layers and without, the two taking turns every ten steps in one process.

    python benchmarks/turns.py --model aitm --net small --ids 100000 --steps 300

One thread; CPU milliseconds of the trainer's own thread (the loader's is not in them), median and lowest tenth of each
side. Runs on the log of bench.py, which is made at the first call.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from ours import FOLDER, train_config

from funnelrank import flow
from funnelrank.data.loader import Loader
from funnelrank.nn import small

TURN, SKIPPED = 10, 2               # steps of a turn, of which the first are not counted


class Enough(Exception):
    """The steps that were asked for are done."""


class Turns:
    """A Loader's batches; between them the kernel is switched and the clock is read."""

    def __init__(self, loader: Loader, steps: int):
        self.loader, self.steps, self.took = loader, steps, {False: [], True: []}

    def __len__(self) -> int:
        return len(self.loader)

    def state(self) -> dict:
        return self.loader.state()

    def epoch(self, number: int) -> Iterator:
        began = None
        for k, batch in enumerate(self.loader.epoch(number)):
            if began is not None and (k - 1) % TURN >= SKIPPED:
                self.took[small.kernels.on].append(1e3 * (time.thread_time() - began))
            if k == self.steps:
                raise Enough
            small.kernels.on = bool(k // TURN % 2)
            began = time.thread_time()
            yield batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="aitm", choices=("aitm", "mmoe", "deepfm", "din"))
    parser.add_argument("--net", default="small", choices=("small", "large"))
    parser.add_argument("--ids", type=int, default=100_000)
    parser.add_argument("--steps", type=int, default=300)
    said = parser.parse_args()
    torch.set_num_threads(1)
    FOLDER.mkdir(exist_ok=True)
    turns = []
    flow.Loader = lambda *a, **k: turns.append(Turns(Loader(*a, **k), said.steps)) or turns[-1]
    with tempfile.TemporaryDirectory(dir=FOLDER) as out:
        config = train_config({"model": said.model, "net": said.net, "ids": said.ids, "batch": 4096,
                               "norm": "batch"}, Path(out))
        data = flow.open_data(config)
        encoder = flow.prepare(config, data)
        splits = flow.encode(config, data, encoder)
        with suppress(Enough):
            flow.fit(config, flow.build(config, encoder, splits), encoder, splits, folder=Path(out))
    without, with_it = (turns[0].took[side] for side in (False, True))
    for name, of in (("by the libraries", without), ("small layers by the kernel", with_it)):
        print(f"{name:<28} median {np.median(of):6.2f} ms, lowest tenth {np.quantile(of, 0.1):6.2f} ms")
    print(f"{'ratio':<28} median {np.median(without) / np.median(with_it):6.3f},    lowest tenth "
          f"{np.quantile(without, 0.1) / np.quantile(with_it, 0.1):6.3f}")


if __name__ == "__main__":
    main()
