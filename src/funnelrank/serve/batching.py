"""One thread that scores: whatever waits when it is free goes through the model together.

Requests wait in a bounded queue. One that does not fit is refused at once, one whose deadline passes while it waits is
not computed. What is wrong with one request of a batch is that one's error alone.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from funnelrank.errors import DataError
from funnelrank.serve.protocol import RequestError
from funnelrank.serve.requests import Rows
from funnelrank.serve.servable import Counts, Scored, Servable, Told, counted


@dataclass
class Done:
    """A request's answer, which version gave it, and where its time went (seconds)."""

    scored: Scored
    version: str
    waited: float
    encode: float
    score: float
    together: int                     # rows that went through the model at once
    counts: Counts


@dataclass
class _Waiting:
    servable: Servable            # the version it was read for: another may have other columns
    rows: Rows
    alone: bool
    deadline: float
    future: Future
    since: float = field(default_factory=time.perf_counter)


class Batcher:
    """The model thread of one name. `current` is the version that new requests are read for; setting it is the switch.

    most_rows    of one batch, beside the first request's own
    wait         seconds that a request may wait for others to come
    queue_rows   that may wait
    told         is called with each batch's counts and outputs
    """

    def __init__(self, servable: Servable, *, most_rows: int = 2048, wait: float = 0.0, queue_rows: int = 20_000,
                 told: Callable[[Servable, Done, Sequence[Scored]], None] | None = None):
        self.current = servable
        self.most_rows, self.wait, self.queue_rows, self.told = most_rows, wait, queue_rows, told
        self.waiting_rows = 0
        self._queue: deque[_Waiting] = deque()
        self._changed, self._closing = threading.Condition(), False
        self._thread = threading.Thread(target=self._run, name=f"model-{servable.name}", daemon=True)
        self._thread.start()

    def submit(self, servable: Servable, rows: Rows, deadline: float, alone: bool = False) -> Future[Done]:
        """`deadline` by time.perf_counter(). RequestError 503 where the queue is full or closed."""
        one = _Waiting(servable, rows, alone, deadline, Future())
        with self._changed:
            if self._closing:
                raise RequestError("the server is stopping", 503)
            if self.waiting_rows and self.waiting_rows + rows.rows > self.queue_rows:
                raise RequestError(f"{self.waiting_rows} rows are waiting already; try again", 503)
            self._queue.append(one)
            self.waiting_rows += rows.rows
            self._changed.notify()
        return one.future

    def close(self) -> None:
        """Answers what waits, then ends."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while batch := self._next():
            self._score(batch)

    def _next(self) -> list[_Waiting]:
        """Requests to score together, at least one; none when all is done."""
        with self._changed:
            while not self._queue and not self._closing:
                self._changed.wait()
            if self.wait and self._queue and not self._closing:
                until = self._queue[0].since + self.wait
                while self.waiting_rows < self.most_rows and not self._closing and (
                        left := until - time.perf_counter()) > 0:
                    self._changed.wait(left)
            batch: list[_Waiting] = []
            rows = 0
            while self._queue and (not batch or self._fits(batch[0], self._queue[0], rows)):
                one = self._queue.popleft()
                self.waiting_rows -= one.rows.rows
                batch.append(one)
                rows += one.rows.rows
            return batch

    def _fits(self, first: _Waiting, one: _Waiting, rows: int) -> bool:
        return (not (first.alone or one.alone) and first.servable is one.servable
                and rows + one.rows.rows <= self.most_rows)

    def _score(self, batch: list[_Waiting]) -> None:
        now = time.perf_counter()
        live = []
        for one in batch:
            if not one.future.set_running_or_notify_cancel():    # whoever asked has gone
                continue
            if now > one.deadline:
                one.future.set_exception(RequestError("its deadline passed while it waited", 504))
            else:
                live.append(one)
        if not live:
            return
        for together in [live] if len(live) == 1 else [live, *([one] for one in live)]:
            servable, told = together[0].servable, Told()
            try:
                scored = servable.score([one.rows for one in together], told)
                done = self._done(servable, together, scored, told, now)
                if self.told:
                    self.told(servable, done[0], scored)
            except Exception as error:                # nothing that a request does may end the thread
                if len(together) == 1:
                    said = RequestError(str(error)) if isinstance(error, DataError) else error
                    together[0].future.set_exception(said)
            else:
                for one, answer in zip(together, done):
                    one.future.set_result(answer)
                if together is live:                  # else each by itself, to find out whose fault it is
                    return

    @staticmethod
    def _done(servable: Servable, live: list[_Waiting], scored: Sequence[Scored], told: Told, now: float) -> list[Done]:
        together, counts = sum(one.rows.rows for one in live), counted(told.counts)
        return [Done(answer, servable.version, now - one.since, told.encode, told.score, together, counts)
                for one, answer in zip(live, scored)]
