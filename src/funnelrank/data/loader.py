"""Batches of a split, in an order that (seed, epoch) alone decides, from any position on.

The one place where numpy becomes torch. A thread packs the next batch while the trainer works on this one.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from funnelrank import ranks
from funnelrank.batch import Batch, Layout
from funnelrank.data.encoded import Encoded
from funnelrank.data.order import Order
from funnelrank.data.take import COLUMNS, Taken, take
from funnelrank.errors import TrainingError


class Loader:
    """Cuts a split into batches of `batch_size` rows; the last one is smaller, or left out with `drop_last`.

    shuffle   every epoch is a permutation of all rows, drawn from (seed, epoch); otherwise the split's own order
    apart     of several ranks each gets its own share of every batch; together they get what one process would, so that
              positions mean the same to any number of ranks, and none has a batch more than another
    memory    bytes that rows may take: a larger split is shuffled by blocks and within windows of them (order.py)
    """

    def __init__(self, split: Encoded, layout: Layout, batch_size: int, shuffle: bool, seed: int = 0,
                 drop_last: bool = False, memory: int | None = None, apart: bool = False):
        assert batch_size >= 1 and seed >= 0
        widths = (split.ids.shape[1], split.numbers.shape[1], len(split.lists), split.labels.shape[1])
        assert widths == (len(layout.ids), len(layout.numbers), len(layout.lists), len(layout.tasks)), widths
        self.split, self.batch_size, self.shuffle, self.seed = split, batch_size, shuffle, seed
        self.drop_last, self.apart = drop_last, apart
        self._order = Order(len(split), split.nbytes, seed, memory) if shuffle else None
        self._epoch, self._batch = 0, 0                 # the next batch to hand out
        self._resume: tuple[int, int] | None = None

    def __len__(self) -> int:
        """Batches of an epoch."""
        rows, size = len(self.split), self.batch_size
        return rows // size if self.drop_last else -(-rows // size)

    def epoch(self, n: int) -> Iterator[Batch]:
        """The batches of epoch n, from its first; or, just after `restore`, from where the restored epoch stood.

        Leaving the loop early ends the packing thread; what went wrong in it is raised here.
        """
        start = self._resume[1] if self._resume and self._resume[0] == n else 0
        self._resume = None
        self._epoch, self._batch = n, start
        return self._batches(n, start)

    def order(self, n: int) -> np.ndarray:
        """Rows [n] of an epoch as they are drawn; a batch hands its own out sorted."""
        rows = len(self.split)
        return self._order.rows(n, 0, rows) if self._order else np.arange(rows)

    def state(self) -> dict[str, Any]:
        """The position behind the last batch handed out, and what it is a position in; JSON can hold it."""
        epoch, batch = (self._epoch, self._batch) if self._batch < len(self) else (self._epoch + 1, 0)
        return {"epoch": epoch, "batch": batch, **self._place()}

    def restore(self, state: dict[str, Any]) -> None:
        """Makes the next `epoch(state["epoch"])` go on behind that position: exactly the batches that were left.

        Raises TrainingError where this loader does not make the same batches.
        """
        changed = [f"{key} was {state.get(key)}, now it is {value}" for key, value in self._place().items()
                   if state.get(key) != value]
        if changed:
            raise TrainingError(f"cannot go on where the run stood in its data: {'; '.join(changed)}")
        self._epoch, self._batch = self._resume = state["epoch"], state["batch"]

    def _place(self) -> dict[str, Any]:
        return {"seed": self.seed, "rows": len(self.split), "batch_size": self.batch_size, "shuffle": self.shuffle,
                "drop_last": self.drop_last, **(self._order.place() if self._order else {})}

    def _batches(self, n: int, start: int) -> Iterator[Batch]:
        batches, size = len(self), self.batch_size
        if start >= batches:
            return

        def make(b: int) -> Batch:
            first, end = b * size, min((b + 1) * size, len(self.split))
            low, high = ranks.share(end - first) if self.apart else (0, end - first)
            if self._order is None:
                return pack(self.split, slice(first + low, first + high))
            # which rows is drawn; among themselves they are read in the order in which they lie in memory
            return pack(self.split, np.sort(self._order.rows(n, first, end))[low:high])

        with ThreadPoolExecutor(1, "funnelrank-loader") as thread:      # its end waits for the batch being packed
            ahead = thread.submit(make, start)
            for b in range(start, batches):
                batch = ahead.result()
                if b + 1 < batches:
                    ahead = thread.submit(make, b + 1)
                self._epoch, self._batch = n, b + 1
                yield batch


def pack(encoded: Encoded, rows: np.ndarray | slice) -> Batch:
    """Some rows as a Batch in memory of its own: positions [B] int64 in any order, or a slice in steps of one."""
    taken = _slice(encoded, rows) if isinstance(rows, slice) else take(encoded, rows)
    return Batch(
        **{name: torch.from_numpy(array) for name, array in taken.columns.items()},
        values=torch.from_numpy(taken.values), offsets=torch.from_numpy(taken.offsets),
        value_weights=None if taken.weights is None else torch.from_numpy(taken.weights))


def _slice(encoded: Encoded, rows: slice) -> Taken:
    """What `take` gives for neighbours: every array is one piece."""
    start, stop, _ = rows.indices(len(encoded))
    weighted = any(listed.weights is not None for listed in encoded.lists)
    values, weights, offsets, end = [np.empty(0, np.int32)], [np.empty(0, np.float32)], [np.zeros(1, np.int64)], 0
    for listed in encoded.lists:
        starts = listed.offsets[start:stop + 1]
        values.append(listed.values[starts[0]:starts[-1]])
        offsets.append(starts[1:] + (end - starts[0]))
        end += len(values[-1])
        if weighted:
            weights.append(np.ones(len(values[-1]), np.float32) if listed.weights is None
                           else listed.weights[starts[0]:starts[-1]])
    return Taken({name: getattr(encoded, name)[rows].copy() for name in COLUMNS}, np.concatenate(values),
                 np.concatenate(offsets), np.concatenate(weights) if weighted else None)
