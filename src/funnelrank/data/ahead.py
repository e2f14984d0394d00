"""Units of a source worked on by several threads, their results in the units' own order.

What comes out is the same, error included, as from one unit after another: the first unit that fails is the one whose
sentence is raised. Units that are a whole part of a file are read where they are worked on. Slices of a part share one
stream, so they are read here, in order, while others are worked on. A unit whose rows prove too wide comes as several.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import pyarrow as pa

from funnelrank.data.source import TooWide, halves

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
            yield from _each(source, unit, columns, work)
        return

    def begin(unit: Unit) -> Future[Result]:
        if source.is_part(unit):
            return pool.submit(lambda: work(source.read(unit, columns), unit))
        table = source.read(unit, columns)
        return pool.submit(work, table, unit)

    def finish() -> Iterator[tuple[Unit, Result]]:
        unit, future = pending.popleft()
        try:
            result = future.result()
        except TooWide:
            yield from _each(source, unit, columns, work)
            return
        yield unit, result

    with ThreadPoolExecutor(most, "funnelrank-encode") as pool:
        pending: deque[tuple[Unit, Future[Result]]] = deque()
        try:
            for unit in source.units:
                if len(pending) == most:
                    yield from finish()
                try:
                    pending.append((unit, begin(unit)))
                except TooWide:
                    while pending:
                        yield from finish()
                    yield from _each(source, unit, columns, work)
                except Exception:
                    while pending:                    # what failed before it is said before it
                        yield from finish()
                    raise
            while pending:
                yield from finish()
        finally:
            for _, future in pending:
                future.cancel()


def each(source: Source, columns: list[str]) -> Iterator[tuple[Unit, pa.Table]]:
    """Every unit and its rows, in order."""
    return in_order(source, columns, lambda table, unit: table, 1)


def _each(source: Source, unit: Unit, columns: list[str],
          work: Callable[[pa.Table, Unit], Result]) -> Iterator[tuple[Unit, Result]]:
    """One unit, or its halves, and theirs, where its rows are too wide to be held together."""
    try:
        table = source.read(unit, columns)
    except TooWide:
        if not (parts := halves(unit)):
            raise
        for part in parts:
            yield from _each(source, part, columns, work)
        return
    yield unit, work(table, unit)
