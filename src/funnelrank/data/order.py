"""The order in which an epoch hands out rows: (seed, epoch) alone decides it, and any part of it is made on its own.

    fits in memory    one permutation of all rows
    does not          blocks of neighbouring rows are permuted; as many as fit make a window; rows are permuted
                      within it. What is read lies together, and a window is read once
"""

from __future__ import annotations

import numpy as np

from funnelrank.data.take import shuffled

RULE = 3                     # another rule makes another order, in which no older position means anything
BLOCK_BYTES = 1 << 20        # a disk reads so much at once about as fast as any more
WINDOWS = 2                  # that memory has room for: one is handed out while pages of the next come in


class Order:
    """Shuffled rows of a split: `rows` of them, `size` bytes together, to be held in `memory` bytes (None: any)."""

    def __init__(self, rows: int, size: int, seed: int, memory: int | None = None):
        self.total, self.seed = rows, seed
        self.block = self.window = None                           # in rows; None: all at once
        if memory is not None and size > memory:
            window = memory // WINDOWS
            self.block = max(1, min(BLOCK_BYTES, window) * rows // size)
            self.window = max(1, window * rows // size // self.block) * self.block
        self._kept: tuple[tuple[int, int], np.ndarray] | None = None

    def place(self) -> dict[str, int | None]:
        """What must be the same for positions to mean the same."""
        return {"order": RULE, "block": self.block, "window": self.window}

    def rows(self, epoch: int, start: int, stop: int) -> np.ndarray:
        """Rows number start .. stop - 1 of an epoch's order, int64."""
        step = self.window or self.total
        parts = []
        while start < stop:
            w = start // step
            until = min(stop, (w + 1) * step)
            parts.append(self._window(epoch, w)[start - w * step:until - w * step])
            start = until
        return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, np.int64), *parts])

    def _window(self, epoch: int, w: int) -> np.ndarray:
        if self._kept is None or self._kept[0] != (epoch, w):
            self._kept = None                                     # never two at a time
            self._kept = (epoch, w), self._made(epoch, w)
        return self._kept[1]

    def _made(self, epoch: int, w: int) -> np.ndarray:
        if self.window is None:
            return shuffled(self.total, np.random.SeedSequence(self.seed, spawn_key=(epoch,)))
        # The shorter last block stands last, or every window behind it would begin elsewhere.
        whole, each = self.total // self.block, self.window // self.block
        blocks = shuffled(whole, np.random.SeedSequence(self.seed, spawn_key=(epoch,)))[w * each:(w + 1) * each]
        rows = (blocks[:, None] * self.block + np.arange(self.block)).ravel()
        if (w + 1) * self.window >= self.total:
            rows = np.append(rows, np.arange(whole * self.block, self.total))
        return rows[shuffled(len(rows), np.random.SeedSequence(self.seed, spawn_key=(epoch, w)))]
