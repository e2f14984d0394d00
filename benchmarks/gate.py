"""A worker's side of the benchmark: it works while a window is open, and sleeps on its input in between.

    driver                          worker
                                    {"ready": true}
    window 8 3                  ->  works until 8 CPU seconds and 3 units of work are spent (or MOST seconds)
                                    {"rows": 122880, "units": 30, "cpu": 8.1, "wall": 8.2}
    quit                        ->  ends

A unit is a batch of training, or a whole pass of anything else. Standard library only: peers' environments run it too.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

CORES = os.cpu_count() or 1
MOST = 26.0              # CPU seconds after which a window ends, however few units it has seen


def cpu_seconds() -> float:
    """User and system time of this process with all its threads, and of every process below it, ended or not."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime + _below(os.getpid())


def _below(pid: int) -> float:
    """Of processes still running below `pid`, and of those they waited for."""
    total = 0.0
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = task.read_text().split()
        except OSError:
            continue                                    # the thread has ended since
        for child in children:
            try:
                said = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            total += sum(map(int, said[11:15])) / os.sysconf("SC_CLK_TCK") + _below(int(child))
    return total


class Gate:
    """Called at the start of each unit of work; returns when that may go on."""

    def __init__(self):
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)                                   # what libraries print is no answer
        self._open = False
        self.notes: dict[str, Any] = {}                 # said with the next answer

    def __call__(self, rows: int = 0) -> None:
        """`rows` of the unit that has just ended."""
        if self._open:
            self._rows, self._units = self._rows + rows, self._units + 1
            if time.perf_counter() < self._early:
                return
            spent = cpu_seconds() - self._cpu           # asking costs a part of a short batch's time
            if spent < self._seconds or (self._units < self._least and spent < MOST):
                self._early = time.perf_counter() + (self._seconds - spent) / CORES
                return
            self._tell(rows=self._rows, units=self._units, cpu=spent, wall=time.perf_counter() - self._wall)
        else:
            self._tell(ready=True)
        words = sys.stdin.readline().split()
        if not words or words[0] == "quit":
            raise SystemExit
        self._open, self._seconds, self._least = True, float(words[1]), int(words[2])
        self._rows = self._units = 0
        self._cpu, self._wall = cpu_seconds(), time.perf_counter()
        self._early = self._wall + self._seconds / CORES             # no earlier can so much have been spent

    def batches(self, epochs: Iterable[Iterable[Any]], rows: Callable[[Any], int]) -> Iterator[Any]:
        """The batches of one epoch after the other. A window holds as many loads as steps."""
        done = 0
        for epoch in epochs:
            for batch in epoch:
                self(done)
                yield batch
                done = rows(batch)

    def passes(self, work: Callable[[], int]) -> None:
        """Calls `work`, which returns its rows, for ever."""
        rows = 0
        while True:
            self(rows)
            rows = work()

    def _tell(self, **said: Any) -> None:
        said, self.notes = {**said, **self.notes}, {}
        self._answers.write(json.dumps(said) + "\n")
        self._answers.flush()


class GatedLoader:
    """A torch DataLoader that an unchanged trainer walks through, epoch after epoch, while the gate is open."""

    def __init__(self, gate: Gate, loader: Any):
        self.gate, self.loader = gate, loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        return self.gate.batches(iter(lambda: self.loader, None), lambda batch: len(batch[1]))
