"""Exact metrics of scores and labels, by sorting packed integer keys: numpy only, one thread, no sampling.

A score and its label become one integer whose order is the score's, with the label as the lowest bit. One
sort of plain integers (no argsort) then answers AUC, average precision and every equal-mass bin; with the
user's code in front, one sort answers GAUC for all users at once.

Scores are read as float32 and may be any but NaN: logits, log p or p. Prefer log p: probabilities near 1 or 0
tie where their logs still differ. Labels are 0 and 1. A metric that its rows cannot define raises Undefined
and never returns NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from funnelrank.kernels import sort_keys

Z95 = 1.959963984540054
TOP = np.uint32(0x80000000)
NULL_USER = -1


class Undefined(ValueError):
    """These rows do not define the metric; the message says why, short enough for a table."""


class Gauc(NamedTuple):
    """AUC within each user, averaged over valid users: those who have both classes."""

    weighted: float | None      # by each valid user's rows; None without a valid user
    unweighted: float | None
    valid_users: int
    users: int                  # with at least one row; a null user is none


class Bins(NamedTuple):
    """Rows in bins of about equal size, by rising probability; rows with one probability share a bin."""

    p: np.ndarray        # [K] mean probability
    y: np.ndarray        # [K] mean label
    count: np.ndarray    # [K] rows
    low: np.ndarray      # [K] Wilson 95 % interval of the mean label
    high: np.ndarray     # [K]

    def ece(self) -> float:
        """Mean over rows of their bin's |mean p - mean label|."""
        return float(np.average(np.abs(self.p - self.y), weights=self.count))


# ---- rows and labels

def observed(label: np.ndarray, *others: np.ndarray) -> tuple[np.ndarray, ...]:
    """The rows whose label is not NaN: (label, *others), each cut to them. Raises Undefined where none is."""
    seen = ~np.isnan(label)
    if not seen.any():
        raise Undefined("no observed labels")
    return (label, *others) if seen.all() else (label[seen], *(x[seen] for x in others))


def positive(label: np.ndarray) -> np.ndarray:
    """Labels [n] of 0 and 1 as bool [n]. Raises Undefined without rows and ValueError for any other label."""
    label = np.asarray(label)
    if not len(label):
        raise Undefined("no rows")
    if label.dtype == bool:
        return label
    y = label == 1
    if not (y | (label == 0)).all():
        raise ValueError("labels must be 0 or 1; drop unobserved rows first, as observed() does")
    return y


# ---- order

class Ranking:
    """Rows sorted by score, as integer keys: (the order of the float's bits) << 1 | label."""

    def __init__(self, score: np.ndarray, label: np.ndarray):
        y = positive(label)
        self._sort(*ordered_bits(score), y)

    @classmethod
    def merged(cls, parts: Sequence[Ranking]) -> Ranking:
        """Of all rows of `parts`, as batches or processes have ranked them: exactly as if ranked at once."""
        lowest = min(part.lowest for part in parts)
        whole = cls.__new__(cls)
        whole._sort(np.concatenate([(p.keys >> 1).astype(np.uint32) + (p.lowest - lowest) for p in parts]), lowest,
                    np.concatenate([(p.keys & 1).astype(bool) for p in parts]))
        return whole

    def _sort(self, bits: np.ndarray, lowest: np.uint32, y: np.ndarray) -> None:
        self.rows, self.positives, self.lowest = len(y), int(np.count_nonzero(y)), lowest
        # 31 bits hold all floats of one sign, as log p and p are: half the bytes, so a faster sort
        self.keys = bits.astype(np.uint32 if int(bits.max()) < 2**31 else np.uint64) << 1
        self.keys |= y
        sort_keys(self.keys)

    def auc(self) -> float:
        """P(score of a positive > score of a negative) + P(equal) / 2, over all pairs of the two."""
        P, N = self.positives, self.rows - self.positives
        if not P or not N:
            raise Undefined("only one class")
        groups = positive_groups(self.keys)
        return int(twice_wins(groups).sum()) / (2 * P * N)

    def pr_auc(self) -> float:
        """Average precision: over falling scores, sum of (gain in recall) x precision; ties are one step."""
        if not self.positives:
            raise Undefined("no positives")
        groups = positive_groups(self.keys)
        precision = (self.positives - groups.before) / (self.rows - groups.start)
        return float(np.dot(groups.positives, precision)) / self.positives

    def bins(self, most: int, probability: Callable[[np.ndarray], np.ndarray] = np.asarray) -> Bins:
        """At most `most` bins of equal mass; `probability` makes p of the scores [n] (np.exp for log p)."""
        edges = self._edges(most)
        count = np.diff(edges, append=self.rows)
        p = np.add.reduceat(probability(self._scores()), edges, dtype=np.float64) / count
        ones = np.add.reduceat(self.keys & 1, edges, dtype=np.int64)
        return Bins(p, ones / count, count, *wilson(ones, count))

    def cuts(self, most: int) -> np.ndarray:
        """The lowest score of each of those bins, rising, as float32 [K]."""
        return self._scores(self._edges(most))

    def _edges(self, most: int) -> np.ndarray:
        """Where each bin begins among the sorted rows."""
        cuts = self.keys[np.arange(1, most) * self.rows // most] >> 1 << 1
        return np.unique(np.concatenate([[0], np.searchsorted(self.keys, cuts)]))

    def _scores(self, at: np.ndarray | slice = slice(None)) -> np.ndarray:
        bits = (self.keys[at] >> 1).astype(np.uint32)
        bits += self.lowest
        return np.where(bits >= TOP, bits ^ TOP, ~bits).view(np.float32)


class Groups(NamedTuple):
    """Runs of equal scores that hold a positive, by rising score."""

    start: np.ndarray        # [G] where the run starts among the sorted rows
    before: np.ndarray       # [G] positives that stand before the run
    positives: np.ndarray    # [G]
    negatives: np.ndarray    # [G]


def positive_groups(keys: np.ndarray) -> Groups:
    """Of sorted keys. Within a run negatives come first, because the label is the lowest bit."""
    at = np.flatnonzero((keys & 1) != 0)    # every positive's place
    first = run_starts(keys[at])
    size = np.diff(first, append=len(at))
    start = at[first]
    tied = start > 0
    tied[tied] = keys[start[tied] - 1] == keys[start[tied]] - 1
    ties = np.zeros(len(start), np.int64)
    ties[tied] = start[tied] - np.searchsorted(keys, keys[start[tied]] - 1)
    return Groups(start - ties, first, size, ties)


def run_starts(values: np.ndarray) -> np.ndarray:
    """Where each run of equal values begins."""
    new = np.ones(len(values), bool)
    np.not_equal(values[1:], values[:-1], out=new[1:])
    return np.flatnonzero(new)


def twice_wins(groups: Groups) -> np.ndarray:
    """[G] int64: 2 x pairs that a run's positives win against negatives of lower score + pairs they tie."""
    return groups.positives * (2 * (groups.start - groups.before) + groups.negatives)


def ordered_bits(score: np.ndarray) -> tuple[np.ndarray, np.uint32]:
    """uint32 [n] in the order of the float32 scores, counted from the lowest; and the lowest's own bits."""
    score = np.asarray(score, np.float32) + np.float32(0)       # -0 becomes 0, for they are equal
    if np.isnan(score).any():
        raise Undefined(f"{np.count_nonzero(np.isnan(score))} predictions are NaN")
    bits = score.view(np.uint32)
    bits ^= np.where(bits >= TOP, np.uint32(0xFFFFFFFF), TOP)
    lowest = bits.min()
    bits -= lowest
    return bits, lowest


def auc(score: np.ndarray, label: np.ndarray) -> float:
    """Area under the ROC curve, exact, ties counted half. score [n], label [n] of 0 and 1."""
    return Ranking(score, label).auc()


def pr_auc(score: np.ndarray, label: np.ndarray) -> float:
    """Average precision, exact; rows of one score enter together. score [n], label [n]."""
    return Ranking(score, label).pr_auc()


class ByUser(NamedTuple):
    """AUC within each valid user."""

    code: np.ndarray     # [V] the users, as they were given
    auc: np.ndarray      # [V]
    rows: np.ndarray     # [V]
    users: int           # all that have a row


def auc_by_user(score: np.ndarray, label: np.ndarray, user: np.ndarray) -> ByUser:
    """score [n], label [n], user int [n], -1 where unknown (skipped)."""
    y, user = positive(label), np.asarray(user)
    known = user != NULL_USER
    if not known.all():
        score, y, user = np.asarray(score)[known], y[known], user[known]
    if not len(user):
        return ByUser(*np.zeros((3, 0)), 0)
    bits, _ = ordered_bits(score)
    width = int(bits.max()).bit_length() + 1
    values = None
    if not (user.min() >= 0 and int(user.max()) < 2 ** (64 - width)):
        values, user = np.unique(user, return_inverse=True)
    keys = user.astype(np.uint64) << np.uint64(width)
    keys |= bits.astype(np.uint64) << np.uint64(1)
    keys |= y
    sort_keys(keys)
    code = keys >> np.uint64(width)
    begin = run_starts(code)                                        # [U]
    rows = np.diff(begin, append=len(keys))
    groups = positive_groups(keys)
    of = np.searchsorted(begin, groups.start, side="right") - 1     # [G] the run's user
    P = np.bincount(of, groups.positives, len(begin)).astype(np.int64)
    # places and counts above are over all users; what stands before the user's own rows is no win
    earlier = begin - (np.cumsum(P) - P)
    wins = twice_wins(groups) - 2 * groups.positives * earlier[of]
    valid = (P > 0) & (rows > P)
    pairs = 2 * P[valid] * (rows[valid] - P[valid])
    found = code[begin[valid]].astype(np.int64)
    return ByUser(found if values is None else values[found], np.bincount(of, wins, len(begin))[valid] / pairs,
                  rows[valid], len(begin))


def gauc(score: np.ndarray, label: np.ndarray, user: np.ndarray) -> Gauc:
    """AUC within each user, averaged. score [n], label [n], user int [n], -1 where unknown (skipped)."""
    return gauc_of(auc_by_user(score, label, user))


def gauc_of(by: ByUser) -> Gauc:
    if not len(by.auc):
        return Gauc(None, None, 0, by.users)
    return Gauc(float(np.average(by.auc, weights=by.rows)), float(by.auc.mean()), len(by.auc), by.users)


def packed(score: np.ndarray, label: np.ndarray, code: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows by score, then label: keys uint64 [n], (order of the score) << 1 | label, and the codes [n] that go along.

    code int [n], from 0 and below 2**31.
    """
    y = positive(label)
    bits, _ = ordered_bits(score)
    width = np.uint64(max(int(code.max()).bit_length(), 1))
    keys = bits.astype(np.uint64) << np.uint64(1)
    keys |= y
    keys <<= width
    keys |= code.astype(np.uint64)
    sort_keys(keys)
    code = (keys & ((np.uint64(1) << width) - np.uint64(1))).astype(np.int64)
    keys >>= width
    return keys, code


# ---- probabilities

def logloss(log_p: np.ndarray, log_not_p: np.ndarray, label: np.ndarray) -> float:
    """Mean of -(y log p + (1 - y) log(1 - p)), in nats. log_p, log_not_p [n] <= 0, label [n]."""
    value = -float(np.where(positive(label), log_p, log_not_p).mean(dtype=np.float64))
    if not np.isfinite(value):
        raise Undefined("infinite: a label was given probability 0" if value > 0 else "predictions are NaN")
    return value + 0.0


def ne(log_p: np.ndarray, log_not_p: np.ndarray, label: np.ndarray) -> float:
    """Normalised entropy: log loss divided by that of predicting the mean label everywhere."""
    y = positive(label)
    rate = np.count_nonzero(y) / len(y)
    if rate in (0, 1):
        raise Undefined("only one class")
    return logloss(log_p, log_not_p, y) / -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate)).item()


def pcoc(mean: np.ndarray, label: np.ndarray) -> float:
    """Predicted over observed: sum of predictions / sum of labels. mean [n], label [n], any kind of task."""
    if not len(label):
        raise Undefined("no rows")
    total = float(np.sum(label, dtype=np.float64))
    if total == 0:
        raise Undefined("labels sum to 0")
    return _finite(float(np.sum(mean, dtype=np.float64)) / total)


def ece(p: np.ndarray, label: np.ndarray, bins: int = 20) -> float:
    """Expected calibration error over equal-mass bins. p [n] in 0..1, label [n]."""
    return reliability(p, label, bins).ece()


def reliability(p: np.ndarray, label: np.ndarray, bins: int = 20) -> Bins:
    """Mean p against mean label in equal-mass bins. p [n] in 0..1, label [n]."""
    return Ranking(p, label).bins(bins)


def wilson(ones: np.ndarray, count: np.ndarray, z: float = Z95) -> tuple[np.ndarray, np.ndarray]:
    """Wilson score interval (low, high) of a rate: ones of count, count > 0."""
    rate, z2 = np.asarray(ones) / count, z * z
    centre = (rate + z2 / (2 * count)) / (1 + z2 / count)
    half = z / (1 + z2 / count) * np.sqrt((rate * (1 - rate) + z2 / (4 * count)) / count)
    return np.clip(centre - half, 0, rate), np.clip(centre + half, rate, 1)


def violation_rate(p_child: np.ndarray, p_parent: np.ndarray) -> float:
    """Share of rows where a step is given a higher probability than the step it comes after. p, or log p."""
    if not len(p_child):
        raise Undefined("no rows")
    if np.isnan(p_child).any() or np.isnan(p_parent).any():
        raise Undefined("predictions are NaN")
    return float(np.count_nonzero(p_child > p_parent)) / len(p_child)


# ---- values

def rmse(mean: np.ndarray, label: np.ndarray) -> float:
    """Root of the mean squared error, in the label's unit."""
    if not len(label):
        raise Undefined("no rows")
    return _finite(float(np.sqrt(np.mean(np.square(np.subtract(mean, label, dtype=np.float64))))))


def mae(mean: np.ndarray, label: np.ndarray) -> float:
    """Mean absolute error, in the label's unit."""
    if not len(label):
        raise Undefined("no rows")
    return _finite(float(np.mean(np.abs(np.subtract(mean, label, dtype=np.float64)))))


def gini(mean: np.ndarray, label: np.ndarray) -> float:
    """Normalised Gini: how much of all amounts lies with the rows told the most, 1 as by the amounts themselves.

        G(s) = mean over k of (share of y in the k rows of highest s) - (n + 1) / 2n;   G(mean) / G(y)

    Rows told the same share what they have. Raises Undefined for amounts below 0, and where all are the same.
    """
    if not len(label):
        raise Undefined("no rows")
    if label.min() < 0:
        raise Undefined("a label is below 0")
    best = _lorenz(label, label)
    if best == 0:
        raise Undefined("all labels are the same")
    return _finite(_lorenz(mean, label) / best)


def _lorenz(score: np.ndarray, y: np.ndarray) -> float:
    _, group, size = np.unique(-np.asarray(score, np.float64), return_inverse=True, return_counts=True)
    held = np.bincount(group, np.asarray(y, np.float64))                 # amounts by score, the highest first
    n, before, total = size.sum(), np.cumsum(held) - held, held.sum()
    if not total:
        return 0.0
    return float((size * before + held * (size + 1) / 2).sum() / (n * total) - (n + 1) / (2 * n))


def spearman(mean: np.ndarray, label: np.ndarray) -> float:
    """Correlation of the ranks, equal values at their mean rank. Raises Undefined where all are the same."""
    if not len(label):
        raise Undefined("no rows")
    ranks = []
    for values, what in ((mean, "predictions"), (label, "labels")):
        _, group, size = np.unique(values, return_inverse=True, return_counts=True)
        if len(size) == 1:
            raise Undefined(f"all {what} are the same")
        ranks.append((np.cumsum(size) - (size - 1) / 2)[group])
    return _finite(float(np.corrcoef(*ranks)[0, 1]))


# ---- classes

def accuracy(log_p: np.ndarray, label: np.ndarray) -> float:
    """Share of rows whose likeliest class, log_p [n, C], is theirs."""
    if not len(label):
        raise Undefined("no rows")
    return float(np.mean(log_p.argmax(1) == label))


def class_logloss(log_p: np.ndarray, label: np.ndarray) -> float:
    """Mean of -log p of each row's class, in nats."""
    if not len(label):
        raise Undefined("no rows")
    return _finite(float(-np.mean(log_p[np.arange(len(label)), label.astype(np.int64)], dtype=np.float64)))


def auc_ovr(log_p: np.ndarray, label: np.ndarray) -> float:
    """AUC of each class against all others, by its own probability: the mean over classes that some rows are of."""
    if not len(label):
        raise Undefined("no rows")
    found = [auc(log_p[:, k], label == k) for k in range(log_p.shape[1]) if 0 < np.sum(label == k) < len(label)]
    if not found:
        raise Undefined("only one class")
    return float(np.mean(found))


def _finite(value: float) -> float:
    if not np.isfinite(value):
        raise Undefined("predictions are not finite")
    return value
