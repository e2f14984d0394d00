"""Rates of values: how often something good came of a value in train, and never of the row that asks.

    rate = (good + strength * mean) / (seen + strength)
    number = log-odds(rate) - log-odds(mean)          0 for a value that was never seen

lists    Seen are a value's elements in the list of each user's first train row, good those that also stand in the
         other list. What a list holds was over before its row, so that no train row's outcome is counted anywhere.
labels   Seen are a value's train rows of periods strictly before the asking row's, good those with label 1; the mean is
         that of the same periods. A row of the first period, or without a time, gets 0.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from funnelrank.data.saved import read_saved, write_saved
from funnelrank.errors import DataError

ALWAYS = 0                          # the period of what is not ordered in time
COLUMNS = pa.schema([("value", pa.uint64()), ("period", pa.int64()), ("good", pa.float64()), ("seen", pa.float64())])
BYTES = 32                          # a line


class Lines(NamedTuple):
    """Counts of a value in a period, each pair once, in their order. All [k]."""

    value: np.ndarray               # uint64 codes
    period: np.ndarray
    good: np.ndarray
    seen: np.ndarray


class Tally:
    """Counts of values and periods as they come; lines of one pair are added up."""

    def __init__(self, old: Lines | None = None):
        self._waiting: list[Lines] = [old] if old is not None else []
        self._merged = 0

    @property
    def nbytes(self) -> int:
        return BYTES * sum(len(part.value) for part in self._waiting)

    def add(self, value: np.ndarray, period: np.ndarray, good: np.ndarray) -> None:
        """Values [m] seen in periods [m], and whether each was good [m]."""
        if len(value):
            self._waiting.append(summed_lines(Lines(value, period, good.astype(np.float64), np.ones(len(value)))))
        if self.nbytes > 2 * max(self._merged, 1 << 20):         # as much waits as there is: n log n in all
            self.result()

    def add_lines(self, lines: Lines) -> None:
        """Counts that were made elsewhere."""
        self._waiting.append(lines)

    def result(self) -> Lines:
        if len(self._waiting) != 1:
            parts = self._waiting or [Lines(*(np.empty(0, kind) for kind in (np.uint64, np.int64, float, float)))]
            self._waiting = [summed_lines(Lines(*map(np.concatenate, zip(*parts))))]
        self._merged = self.nbytes
        return self._waiting[0]


def summed_lines(lines: Lines) -> Lines:
    """Each value and period once, in their order."""
    order = np.lexsort((lines.period, lines.value))
    value, period = lines.value[order], lines.period[order]
    if not len(value):
        return lines
    first = np.flatnonzero(np.append(True, (value[1:] != value[:-1]) | (period[1:] != period[:-1])))
    return Lines(value[first], period[first], *(np.add.reduceat(a[order], first) for a in (lines.good, lines.seen)))


class Rates:
    """The rates of one feature's values, fitted. `lines` are what was counted."""

    def __init__(self, lines: Lines, strength: float):
        self.lines, self.strength = lines, strength
        self._values, self._start = np.unique(lines.value, return_index=True)
        self._periods = np.unique(lines.period)
        at = np.searchsorted(self._periods, lines.period)
        code = np.searchsorted(self._values, lines.value)
        self._keys = self._key(code, at)
        self._good, self._seen = (np.concatenate([[0.0], np.cumsum(a)]) for a in (lines.good, lines.seen))
        each = lambda a: np.concatenate([[0.0], np.cumsum(np.bincount(at, a, len(self._periods)))])
        good, seen = each(lines.good), each(lines.seen)              # before each period, and at the end of all
        mean = (good + 0.5) / (seen + 1)                             # never 0 or 1
        self._mean = np.where(seen > 0, mean, 0.5)

    def numbers(self, value: np.ndarray, known: np.ndarray, offsets: np.ndarray | None,
                period: np.ndarray | None) -> np.ndarray:
        """The number of each row [n]. value [m] codes, known [m] false where there is none; offsets [n + 1] where a row
        has several; period [n], or None for all that was counted."""
        rows = len(value) if offsets is None else len(offsets) - 1
        before = np.full(rows, len(self._periods)) if period is None else np.searchsorted(self._periods, period)
        asked = before if offsets is None else np.repeat(before, np.diff(offsets))
        code = np.minimum(np.searchsorted(self._values, value), max(len(self._values) - 1, 0))
        known = known & (self._values[code] == value) if len(self._values) else np.zeros(len(value), bool)
        code = np.where(known, code, 0)
        start = self._start[code] if len(self._start) else code
        stop = np.where(known, np.searchsorted(self._keys, self._key(code, asked)), start)
        good, seen = self._good[stop] - self._good[start], self._seen[stop] - self._seen[start]
        if offsets is not None:
            good, seen = (_sums(a, offsets) for a in (good, seen))
        mean = self._mean[before]
        rate = (good + self.strength * mean) / (seen + self.strength)
        return np.where(seen > 0, _log_odds(rate) - _log_odds(mean), 0.0)

    def _key(self, code: np.ndarray, period: np.ndarray) -> np.ndarray:
        return code * (len(self._periods) + 1) + period

    def save(self, path: Path) -> None:
        table = pa.table(dict(zip(COLUMNS.names, self.lines)), schema=COLUMNS)
        write_saved(table.replace_schema_metadata({"funnelrank.strength": repr(self.strength)}), path)

    @classmethod
    def load(cls, path: Path) -> Rates:
        """What `save` wrote. Raises DataError for another file, and for counts that cannot be."""
        table = read_saved(path)
        if table.schema.remove_metadata() != COLUMNS or b"funnelrank.strength" not in (table.schema.metadata or {}):
            raise DataError(f"{path}: is an Arrow file, but no saved rates")
        if any(table[c].null_count for c in COLUMNS.names):
            raise DataError(f"{path}: holds nulls among its counts")
        lines = Lines(*(table[c].to_numpy() for c in COLUMNS.names))
        wrong = ~((lines.good >= 0) & (lines.good <= lines.seen) & np.isfinite(lines.seen))
        rises = (lines.value[1:] > lines.value[:-1]) | (
            (lines.value[1:] == lines.value[:-1]) & (lines.period[1:] > lines.period[:-1]))
        strength = float(table.schema.metadata[b"funnelrank.strength"])
        if wrong.any() or not rises.all() or not 0 < strength < np.inf:
            raise DataError(f"{path}: its counts are no counts of values in rising order")
        return cls(lines, strength)

    def digest(self, update: Callable[[bytes], Any]) -> None:
        update(repr(self.strength).encode())
        for array in self.lines:
            update(np.ascontiguousarray(array).tobytes())


def periods(times: np.ndarray, length: float) -> np.ndarray:
    """The period [n] int64 of each time [n]; the numbers of periods rise with time."""
    return np.floor_divide(times, length if times.dtype == np.float64 or length % 1 else int(length)).astype(np.int64)


def _sums(values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    total = np.concatenate([[0.0], np.cumsum(values)])
    return total[offsets[1:]] - total[offsets[:-1]]


def _log_odds(p: np.ndarray) -> np.ndarray:
    return np.log(p) - np.log1p(-p)
