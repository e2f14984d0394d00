"""Units of a source worked on by several threads, their results in the units' own order.

What comes out is the same, error included, as from one unit after another: the first unit that fails is the one whose
sentence is raised. Units that are a whole part of a file are read where they are worked on. Slices of a part share one
stream, so they are read here, in order, while others are worked on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import pyarrow as pa

if TYPE_CHECKING:
    from funnelrank.data.source import Source, Unit

Result = TypeVar("Result")


def in_order(source: Source, columns: list[str], work: Callable[[pa.Table, Unit], Result],
             threads: int) -> Iterator[tuple[Unit, Result]]:
    """Each unit and `work(its rows, unit)`, with as many units in memory at once as threads and budget allow.

    Close it (contextlib.closing) where its loop may end early: threads end with what they are at, nothing more begins.
    """
    most = source.at_once(threads)
    if most == 1:
        for unit in source.units:
            yield unit, work(source.read(unit, columns), unit)
        return

    def begin(unit: Unit) -> Future[Result]:
        if source.is_part(unit):
            return pool.submit(lambda: work(source.read(unit, columns), unit))
        table = source.read(unit, columns)
        return pool.submit(work, table, unit)

    with ThreadPoolExecutor(most, "funnelrank-encode") as pool:
        pending: deque[tuple[Unit, Future[Result]]] = deque()
        try:
            for unit in source.units:
                if len(pending) == most:
                    yield _next(pending)
                try:
                    pending.append((unit, begin(unit)))
                except Exception:
                    while pending:                    # what failed before it is said before it
                        yield _next(pending)
                    raise
            while pending:
                yield _next(pending)
        finally:
            for _, future in pending:
                future.cancel()


def _next(pending: deque[tuple[Unit, Future[Result]]]) -> tuple[Unit, Result]:
    unit, future = pending.popleft()
    return unit, future.result()
