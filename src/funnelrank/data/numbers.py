"""Numbers: their statistics, gathered in one pass over train, and how they become model inputs.

    t = sign(x) log(1 + |x|)  where `log`, else x
    y = clip((t - centre) / spread)                missing (null, NaN, +-inf) becomes 0 after scaling

Statistics are of the finite values, in float64, and do not depend on how a split is cut into units.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from funnelrank.data.vocab import splitmix64
from funnelrank.errors import DataError
from funnelrank.settings import Number, Vector

BLOCK = 1 << 16           # values reduced at once
SAMPLE = 1 << 21          # values kept for quantiles; up to so many they are exact
LARGEST = float(np.finfo(np.float32).max)
UNIFORM = Number()        # how lengths and gaps are scaled


class Moments:
    """Count, mean and variance of a stream, merged block by block (Chan et al.): no sum of squares to cancel."""

    def __init__(self):
        self.count = 0
        self.low, self.high = np.inf, -np.inf
        self._mean = self._m2 = 0.0
        self._waiting: list[np.ndarray] = []
        self._pending = 0

    def add(self, values: np.ndarray) -> None:
        """Finite values [n] float64, in the order of the log."""
        if not len(values):
            return
        self.count += len(values)
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
        self._waiting.append(values)
        self._pending += len(values)
        if self._pending >= BLOCK:
            values = np.concatenate(self._waiting)
            whole = len(values) // BLOCK * BLOCK
            for start in range(0, whole, BLOCK):
                self._mean, self._m2 = self._merged(self.count - self._pending, values[start:start + BLOCK])
                self._pending -= BLOCK
            self._waiting = [values[whole:].copy()]

    def result(self) -> tuple[float, float]:
        """Mean and standard deviation; a stream of one value has exactly that mean, and 0."""
        if not self.count or self.low == self.high:
            return (self.low if self.count else 0.0), 0.0
        mean, m2 = self._merged(self.count - self._pending, np.concatenate(self._waiting))
        return mean, float(np.sqrt(m2 / self.count))

    def _merged(self, count: int, block: np.ndarray) -> tuple[float, float]:
        if not len(block):
            return self._mean, self._m2
        mean = float(block.mean())
        m2 = float(np.square(block - mean).sum())
        share = len(block) / (count + len(block))
        apart = mean - self._mean
        return self._mean + apart * share, self._m2 + m2 + apart * apart * count * share


@dataclass(frozen=True)
class Summary:
    """What Moments gather, as somebody else counted it."""

    count: int
    low: float
    high: float
    mean: float
    deviation: float

    def result(self) -> tuple[float, float]:
        return (self.low, 0.0) if self.low == self.high else (self.mean, self.deviation)


class Sample:
    """At most SAMPLE values of a stream, uniform and always the same: all of them at first; then those whose place in
    the stream hashes into a share that is halved each time the sample is full.
    """

    def __init__(self):
        self._values, self._hashes = np.zeros(0), np.zeros(0, np.uint64)
        self._seen, self._halvings = 0, 0

    def add(self, values: np.ndarray) -> None:
        hashes = splitmix64(np.arange(self._seen, self._seen + len(values), dtype=np.uint64))
        self._seen += len(values)
        kept = self._kept(hashes)
        self._values = np.concatenate([self._values, values[kept]])
        self._hashes = np.concatenate([self._hashes, hashes[kept]])
        while len(self._values) > SAMPLE:
            self._halvings += 1
            kept = self._kept(self._hashes)
            self._values, self._hashes = self._values[kept], self._hashes[kept]

    def _kept(self, hashes: np.ndarray) -> np.ndarray:
        return hashes >> np.uint64(64 - self._halvings) == 0 if self._halvings else np.ones(len(hashes), bool)

    def boundaries(self, buckets: int) -> list[float]:
        """Those of `boundaries`, of the sample."""
        return boundaries(*np.unique(self._values, return_counts=True), buckets)


def boundaries(values: np.ndarray, counts: np.ndarray, buckets: int) -> list[float]:
    """Rising cuts, at most buckets - 1 of them, of distinct values [k] that rise and how often each is there [k].

    A value that is there as often as a bucket would be has one of its own; the others are cut into parts of about equal
    count (`OwnBuckets`).
    """
    if not len(values):
        return []
    heavy = np.lexsort((values, -counts))[:buckets]
    own = OwnBuckets(values[heavy], counts[heavy], np.append(values[1:], np.nan)[heavy], int(counts.sum()),
                     float(values[0]), buckets)
    rest = ~np.isin(values, own.values)
    return own.with_cuts(at_ranks(values[rest], np.cumsum(counts[rest]), own.left))


class OwnBuckets:
    """Which values have a bucket of their own, and how many buckets are left for the others.

    The most frequent value has one if it is there at least as often as each of `buckets` would be filled on average;
    then the next, of what is left, and so on, as long as there are buckets.

    values, counts, following   [k]: the most frequent first; how often; the next larger value, NaN behind the last
    known, low                  how many numbers there are, and the smallest
    """

    def __init__(self, values: np.ndarray, counts: np.ndarray, following: np.ndarray, known: int, low: float,
                 buckets: int):
        self.values: list[float] = []
        self.cuts: set[float] = set()               # where these buckets begin and end
        self._low, self._buckets = low, buckets
        for value, count, after in zip(values.tolist(), counts.tolist(), following.tolist()):
            ends = {cut for cut in (value, after) if cut > low} - self.cuts
            if count * (buckets - len(self.values)) < known or len(self.cuts) + len(ends) >= buckets:
                break
            self.values.append(value)
            self.cuts |= ends
            known -= count

    @property
    def left(self) -> int:
        return self._buckets - len(self.cuts)

    def with_cuts(self, cuts: np.ndarray) -> list[float]:
        """All cuts together in order, without those that nothing lies below."""
        return sorted(cut for cut in self.cuts.union(cuts.tolist()) if cut > self._low)


def at_ranks(values: np.ndarray, upto: np.ndarray, buckets: int) -> np.ndarray:
    """The quantiles of numpy's method "higher", of distinct values [k] that rise and how many of all numbers are not
    above each [k]. Values between two that a quantile falls on may be left out.
    """
    if not len(values):
        return values
    ranks = np.ceil((upto[-1] - 1) * (np.arange(1, buckets) / buckets)).astype(np.int64)
    return values[np.searchsorted(upto, ranks, "right")]


@dataclass(frozen=True)
class Scaler:
    """How one column of numbers becomes one model input, and maybe a second that says where it is missing.

    Of a vector, centre and spread are lists: of each place its own.
    """

    log: bool
    centre: float | list[float]
    spread: float | list[float]
    clip: float | None
    indicator: bool

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """[n], or [n, size], float64 with NaN for missing -> the same in float32 without."""
        limit = min(self.clip or LARGEST, LARGEST)
        centre, spread = np.asarray(self.centre, np.float64), np.asarray(self.spread, np.float64)
        with np.errstate(over="ignore"):
            y = np.clip((logged(values) if self.log else values) - centre, -LARGEST, LARGEST) / spread
        return np.nan_to_num(np.clip(y, -limit, limit), nan=0.0).astype(np.float32)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def together(cls, each: list[Scaler], indicator: bool) -> Scaler:
        """Those of a vector's places as one."""
        return cls(each[0].log, [s.centre for s in each], [s.spread for s in each], each[0].clip, indicator)

    @classmethod
    def from_json(cls, said: dict[str, Any]) -> Scaler:
        """Raises ValueError or TypeError for what `to_json` never gives."""
        scaler = cls(**said)
        centre, spread = (n if isinstance(n, list) else [n] for n in (scaler.centre, scaler.spread))
        numbers = (*centre, *spread, 1.0 if scaler.clip is None else scaler.clip)
        if len(centre) != len(spread) or {type(scaler.log), type(scaler.indicator)} != {bool} or any(
                type(n) not in (int, float) for n in numbers):
            raise ValueError("a scaler whose numbers are none")
        if not (np.isfinite(centre).all() and np.isfinite(spread).all() and min(spread) > 0):
            raise ValueError(f"a scaler of centre {scaler.centre} and spread {scaler.spread}")
        return scaler


class NumberStatistics:
    """What train says about one column of numbers: becomes a Scaler, or the boundaries of its buckets."""

    def __init__(self, settings: Number | Vector):
        self.settings = settings
        self._moments: Moments | Summary = Moments()
        self._missing = 0
        self._sample = Sample() if getattr(settings, "buckets", None) else None
        self._cuts: list[float] | None = None

    @classmethod
    def known(cls, settings: Number, summary: Summary, missing: int, cuts: list[float]) -> NumberStatistics:
        """Of a column that somebody else counted: after log where `settings` have it, and with cuts for its buckets."""
        made = cls(settings)
        made._moments, made._missing, made._cuts = summary, missing, cuts
        return made

    def add(self, values: np.ndarray) -> None:
        """[n] float64 with NaN for missing."""
        known = values[~np.isnan(values)]
        self._missing += len(values) - len(known)
        if self._sample is not None:
            self._sample.add(known)
        else:
            self._moments.add(logged(known) if self.settings.log else known)

    def add_times(self, values: np.ndarray, times: np.ndarray, rows: int) -> None:
        """Instead of `add`: values [k], each as often as `times` [k] says, of `rows` in all. NaN and infinities are
        missing, and so are rows that have none of the values.
        """
        used = np.isfinite(values) & (times > 0)
        values, times = values[used], times[used]
        count = int(times.sum())
        self._missing = rows - count
        if not count:
            return
        y = logged(values) if self.settings.log else values
        mean = float(y @ times / count)
        self._moments = Summary(count, float(y.min()), float(y.max()), mean,
                                float(np.sqrt(np.square(y - mean) @ times / count)))
        if self.settings.buckets:
            values, place = np.unique(values, return_inverse=True)
            self._cuts = boundaries(values, np.bincount(place, times).astype(np.int64), self.settings.buckets)

    def boundaries(self) -> list[float]:
        if self._cuts is not None and self.settings.buckets:
            return self._cuts
        return self._sample.boundaries(self.settings.buckets) if self._sample else list(self.settings.boundaries)

    def scaler(self, where: str) -> Scaler:
        """Raises DataError where the values are too large for float64 statistics."""
        s = self.settings
        centre, spread = 0.0, 1.0
        if s.scale == "standard":
            with np.errstate(over="ignore", invalid="ignore"):
                centre, spread = self._moments.result()
        elif s.scale == "minmax" and self._moments.count:
            centre, spread = self._moments.low, self._moments.high - self._moments.low
        if not np.isfinite(centre) or not np.isfinite(spread):
            raise DataError(f"{where}: values from {self._moments.low:g} to {self._moments.high:g} are too large to "
                            "scale; leave `log` on, or bring them below 1e150")
        indicator = self._missing > 0 if s.indicator == "auto" else s.indicator
        return Scaler(s.log, centre, spread or 1.0, s.clip, indicator)


def logged(values: np.ndarray) -> np.ndarray:
    """sign(x) log(1 + |x|)."""
    return np.copysign(np.log1p(np.abs(values)), values)


def bucket_ids(values: np.ndarray, boundaries: list[float], first: int) -> np.ndarray:
    """[n] float64 with NaN for missing -> [n] int32: 0 where missing, else first + how many boundaries are <= x."""
    ids = first + np.searchsorted(np.asarray(boundaries), values, "right")
    return np.where(np.isnan(values), 0, ids).astype(np.int32)
