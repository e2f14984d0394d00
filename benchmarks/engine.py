"""The embedding alone: 23 id fields and 3 lists (13, 13 and 5 ids long in the mean), batch 4096, width 16, Zipf ids.

    python benchmarks/engine.py [--sizes 1e5 1e7] [--optimisers adagrad adam] [--threads 1] [--average]

Prints medians of CPU milliseconds: forward, then backward with the rows' update, native against torch. The native
engine moves rows inside backward, the torch engine after it, as training does.
"""

import argparse
import statistics
import time

import numpy as np
import torch

from funnelrank.batch import Batch, Layout
from funnelrank.embedding.tables import Embedding
from funnelrank.settings import Embedding as Settings
from funnelrank.settings import RowOptimiser
from funnelrank.train.optim import Average, RowUpdates

FIELDS, ROWS, WIDTH = 23, 4096, 16
LISTS = {4: 13, 5: 13, 6: 5}             # the field whose ids a list holds -> mean length


def sizes(size: int) -> list[int]:
    """How many ids each field has: each 1.4 times the next, as real logs have few wide fields and many narrow ones."""
    shares = 1.4 ** -np.arange(FIELDS)
    return [max(int(size * s / shares.sum()), 4) for s in shares]


def layout(size: int) -> Layout:
    """The lists share the spaces of three of the fields."""
    ids, lists = tuple(f"f{i}" for i in range(FIELDS)), tuple(f"h{k}" for k in range(len(LISTS)))
    space = {f: f for f in ids} | {h: f"f{f}" for f, h in zip(LISTS, lists)}
    return Layout(ids=ids, numbers=tuple(f"n{i}" for i in range(8)), lists=lists, tasks=("click", "buy"), space=space,
                  size=dict(zip(ids, sizes(size))), role={f: "context" for f in (*ids, *lists)}
                  | {f"n{i}": "context" for i in range(8)}, pool={h: "mean" for h in lists}, target={}, feature={},
                  scenarios=())


class Draws:
    """Batches of ids from Zipf's law (exponent 1), scattered over their space."""

    def __init__(self, size: int, seed: int = 0):
        self.random = np.random.default_rng(seed)
        self.fields = [(np.cumsum(1 / np.arange(1, n - 1)), self.random.permutation(n - 2).astype(np.int32) + 2)
                       for n in sizes(size)]

    def ids(self, field: int, n: int) -> np.ndarray:
        share, scatter = self.fields[field]
        return scatter[np.searchsorted(share, self.random.random(n) * share[-1])]

    def batch(self) -> Batch:
        lengths = [self.random.poisson(m, ROWS) for m in LISTS.values()]
        offsets = np.concatenate([[0], np.concatenate(lengths).cumsum()])
        values = np.concatenate([self.ids(f, int(n.sum())) for f, n in zip(LISTS, lengths)])
        zeros = torch.zeros(ROWS)
        return Batch(ids=torch.from_numpy(np.stack([self.ids(f, ROWS) for f in range(FIELDS)], 1)),
                     numbers=torch.randn(ROWS, 8), values=torch.from_numpy(values), offsets=torch.from_numpy(offsets),
                     scenario=zeros.int(), labels=zeros.view(-1, 1), weight=zeros, user=zeros.long())


class Timed:
    """One engine's step, split in two."""

    def __init__(self, size: int, optimiser: str, engine: str, average: bool):
        torch.manual_seed(0)
        self.embedding = Embedding(layout(size), Settings(width=WIDTH, engine=engine)).train()
        self.updates = RowUpdates(self.embedding, RowOptimiser(name=optimiser))
        self.average = Average(self.embedding, self.embedding, 0.99) if average else None
        self.forward: list[float] = []
        self.backward: list[float] = []

    def step(self, batch: Batch, gradient: torch.Tensor) -> None:
        start = time.process_time()
        flat = self.embedding(batch).flat
        middle = time.process_time()
        self.updates.fuse(1.0, self.average)
        flat.backward(gradient)
        gradients = self.embedding.take_gradients()
        self.updates.apply(gradients)
        if self.average:
            self.average.update(gradients)
        self.forward.append(1e3 * (middle - start))
        self.backward.append(1e3 * (time.process_time() - middle))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=float, default=[1e5, 1e7])
    parser.add_argument("--optimisers", nargs="+", default=["adagrad", "adam"])
    parser.add_argument("--engines", nargs="+", default=["native", "torch"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--average", action="store_true")
    said = parser.parse_args()
    torch.set_num_threads(said.threads)
    print(f"{'ids':>9}  {'optimiser':<16}{'engine':<8}{'forward ms':>11}{'backward + update ms':>22}")
    for size in map(int, said.sizes):
        draws = Draws(size)
        batches = [draws.batch() for _ in range(8)]
        gradient = torch.randn(ROWS, (FIELDS + len(LISTS)) * WIDTH + 8) / ROWS
        for optimiser in said.optimisers:
            engines = {e: Timed(size, optimiser, e, said.average) for e in said.engines}
            for i in range(said.steps + 5):                         # in turn, so that a noisy moment meets both
                for timed in engines.values():
                    timed.step(batches[i % len(batches)], gradient)
            for name, timed in engines.items():
                print(f"{size:>9}  {optimiser:<16}{name:<8}{statistics.median(timed.forward[5:]):>11.2f}"
                      f"{statistics.median(timed.backward[5:]):>22.2f}", flush=True)


if __name__ == "__main__":
    main()
