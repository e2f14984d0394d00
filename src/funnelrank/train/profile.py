"""Where a training step's time goes, and how near it is to the least that this machine could need.

A clock is read between the parts of a step; whatever passed since the last reading belongs to the part that ends.

    loading      until the next batch is there; on one CPU thread, what the loader's own thread computed
    gather       rows looked up and pooled
    forward      network and losses
    backward     of both, without the rows
    row update   row gradients, row optimiser and the rows' averages; inside backward where nothing looks at them first
    dense step   optimiser and averages of all other weights
    other        the loop: moving losses out, logs, zeroing gradients
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from funnelrank.batch import Batch
from funnelrank.ranker import RankingModel
from funnelrank.train.floor import floor_ms, measure_machine, work_of
from funnelrank.train.optim import Average, RowUpdates

PARTS = ("loading", "gather", "forward", "backward", "row update", "dense step", "other")


class Profile:
    """Seconds by part of the steps since `begin`.

    On a CPU with one thread they are CPU seconds; elsewhere seconds by the wall, and a GPU is waited for.

    most    look at so many steps, and then get out of the way; None: at all, and hold them against the machine's floor
    """

    def __init__(self, model: RankingModel, most: int | None = None):
        self.model, self.most = model, most
        self.device = next(iter(model.funnel.buffers())).device
        self.cpu = self.device.type == "cpu" and torch.get_num_threads() == 1
        self.spent = dict.fromkeys(PARTS, 0.0)
        self.steps = self.rows = 0
        self.batch: Batch | None = None      # the largest, whose work stands for all
        self._last = self._from = self._process = 0.0
        self._undo: list[Callable[[], None]] = []

    def __enter__(self) -> Profile:
        """Read the clock inside the embedding too."""
        embedding = self.model.embedding
        self._undo = [embedding.register_forward_pre_hook(lambda *_: self.ends("forward")).remove,
                      embedding.register_forward_hook(lambda *_: self.ends("gather")).remove]
        if embedding.native is not None:
            reduce = embedding.native.reduce

            def timed(*given: Any) -> None:
                self.ends("backward")
                reduce(*given)
                self.ends("row update")
            embedding.native.reduce = timed
            self._undo.append(lambda: delattr(embedding.native, "reduce"))
        self.begin()
        return self

    def __exit__(self, *_: object) -> None:
        while self._undo:
            self._undo.pop()()

    @property
    def over(self) -> bool:
        return self.most is not None and self.steps >= self.most

    def begin(self) -> None:
        """Whatever passed until now belongs to no step: an evaluation, a checkpoint."""
        self._last, self._process = self._now(), time.process_time()
        self._from = self._last

    def ends(self, part: str) -> None:
        if self.over:
            return
        now = self._now()
        self.spent[part] += now - self._last
        self._last = now

    def step_ends(self, batch: Batch) -> None:
        if self.over:
            return
        self.ends("other")
        self.steps, self.rows = self.steps + 1, self.rows + len(batch)
        if self.batch is None or len(batch) > len(self.batch):
            self.batch = batch
        if self.cpu:                         # what this thread did not compute, the loader's did
            self.spent["loading"] += max(time.process_time() - self._process - (self._last - self._from), 0.0)
        self.begin()
        if self.over:
            self.__exit__()

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.thread_time() if self.cpu else time.perf_counter()

    def result(self, updates: RowUpdates, average: Average | None) -> dict[str, Any]:
        """Milliseconds a step by part; on a CPU the floor of such a step, and the share of the floor's rate reached."""
        steps = max(self.steps, 1)
        ms = {part: 1e3 * s / steps for part, s in self.spent.items()}
        found: dict[str, Any] = {"steps": self.steps, "rows": self.rows / steps, "ms": ms,
                                 "clock": "CPU" if self.cpu else "wall"}
        if self.most is None and self.device.type == "cpu" and self.batch is not None:
            work = work_of(self.model, self.batch, updates, average)
            least = floor_ms(work, measure_machine(work.products)) * found["rows"] / work.rows
            found |= {"floor_ms": least, "share": least / sum(ms.values()),
                      "multiply_adds": work.multiply_adds / work.rows, "bytes": work.bytes / work.rows}
        return found
