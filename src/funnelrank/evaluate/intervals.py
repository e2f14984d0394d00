"""How far a metric would move on another draw of users: structural components for ranking, resampling for the rest.

Rows of one user are no independent witnesses, so users are what is drawn. A metric's Spread holds either

    linear      the influence of each group of users: value' - value ~ sum of the influences of the users drawn
    resampled   the metric on each of R resamples, in which every group of users is drawn Poisson(1) times

All resamples of one split use the same draws, whatever the task, the scenario or the model: a difference of two
spreads is the spread of the difference, which is what makes comparisons paired.

AUC       components of DeLong, DeLong and Clarke-Pearson (1988), summed within users as by Obuchowski (1997); where
          every row is a user of its own this is DeLong's variance exactly
PR-AUC    the first-order influence of a row on average precision, summed within users (infinitesimal jackknife)
Spearman  the same of the correlation of ranks, and of normalised Gini
others    ratios of sums over users, so a resample is one row of (weights [R, G] @ sums [G, M])

Above MOST_GROUPS users, users are dealt at random into so many groups: sums over groups are independent as those over
users are, and the standard error loses below 1 % of precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from funnelrank.evaluate.metrics import (
    NULL_USER,
    Z95,
    Ranking,
    Undefined,
    gini,
    packed,
    positive,
    positive_groups,
    spearman,
    twice_wins,
)

MOST_GROUPS = 10_000
MOST_SUMS = 512             # columns of one product, so that memory stays bounded
BITS = 16                   # of one Poisson draw


@dataclass(frozen=True)
class Spread:
    """How one value moves with the users. Spreads of one split, of one kind, may be added and scaled."""

    value: float
    draws: np.ndarray               # [G] influences of groups, or [R] the value on each resample
    linear: bool
    own_error: float | None = None  # known more exactly than from groups

    def error(self) -> float:
        """Standard error; NaN where nothing varies."""
        if self.own_error is not None:
            return self.own_error
        if self.linear:
            return float(np.sqrt(np.square(self.draws).sum()))
        known = self.draws[np.isfinite(self.draws)]
        return float(known.std(ddof=1)) if len(known) > 1 else float("nan")

    def interval(self, shape: str) -> tuple[float, float]:
        """95 % interval. shape: 'logit' keeps inside 0 and 1, 'fisher' inside -1 and 1 (it is his transformation of a
        correlation), 'quantiles' of the resamples, or 'normal'.
        """
        if shape == "quantiles" and not self.linear:
            low, high = np.quantile(self.draws[np.isfinite(self.draws)], (0.025, 0.975))
            return float(low), float(high)
        half = Z95 * self.error()
        if shape == "logit" and 0 < self.value < 1:
            z, half = np.log(self.value / (1 - self.value)), half / (self.value * (1 - self.value))
            return float(1 / (1 + np.exp(half - z))), float(1 / (1 + np.exp(-half - z)))
        if shape == "fisher" and -1 < self.value < 1:
            z, half = np.arctanh(self.value), half / (1 - self.value**2)
            return float(np.tanh(z - half)), float(np.tanh(z + half))
        return self.value - half, self.value + half


def combined(spreads: Sequence[Spread], factors: Sequence[float]) -> Spread:
    """sum_i factor_i x spread_i, of one split and one kind: a mean over tasks, a difference of two runs."""
    return Spread(sum(f * s.value for f, s in zip(factors, spreads)),
                  sum(f * s.draws for f, s in zip(factors, spreads)), spreads[0].linear)


class Clusters(NamedTuple):
    """Which rows belong together."""

    code: np.ndarray      # [n] int, 0 <= code < count; a row of an unknown user is a cluster of its own
    count: int


def clusters(user: np.ndarray | None, rows: int) -> Clusters:
    """user int [n], -1 = unknown; None: every row for itself."""
    if user is None:
        return Clusters(np.arange(rows), rows)
    user = np.asarray(user)
    if not rows:
        return Clusters(user, 0)
    unknown = user == NULL_USER
    if not unknown.any():
        return Clusters(*_dense(user))
    known, count = _dense(user[~unknown])
    code = np.empty(rows, np.int64)
    code[~unknown], code[unknown] = known, count + np.arange(rows - len(known))
    return Clusters(code, count + rows - len(known))


def _dense(user: np.ndarray) -> tuple[np.ndarray, int]:
    """Codes from 0 to below the count, which may leave a few unused."""
    if not len(user):
        return user, 0
    if user.min() < 0 or int(user.max()) >= 4 * len(user) + 1024:
        user = np.unique(user, return_inverse=True)[1]
    return user, int(user.max()) + 1


class Resamples:
    """R draws of users, the same for whatever is asked of one split: Poisson(1) weights [R, G] of groups of users."""

    def __init__(self, clusters: Clusters, resamples: int, seed: int = 0):
        rng = np.random.default_rng(seed)
        self.groups = min(clusters.count, MOST_GROUPS)
        self.of_cluster = rng.permutation(clusters.count) % max(self.groups, 1)        # [K]
        self.group = self.of_cluster[clusters.code]                                    # [n]
        draws = rng.integers(0, 2**BITS, (resamples, self.groups), dtype=np.uint16)
        self.weights = _POISSON[draws]                                                 # [R, G] float32

    def __len__(self) -> int:
        return len(self.weights)

    def sums(self, group: np.ndarray, columns: Sequence[np.ndarray]) -> np.ndarray:
        """[R, M] float64: on each resample the sum of each column [m], whose rows belong to groups `group` [m]."""
        return self.products(np.stack([np.bincount(group, c, self.groups) for c in columns], 1))

    def products(self, by_group: np.ndarray) -> np.ndarray:
        """weights [R, G] @ by_group [G, M], over the groups that have any."""
        present = np.flatnonzero((by_group != 0).any(1))
        weights = self.weights if len(present) > 0.8 * self.groups else self.weights[:, present]
        by_group = by_group if weights is self.weights else by_group[present]
        return np.concatenate([weights @ by_group[:, a:a + MOST_SUMS].astype(np.float32)
                               for a in range(0, by_group.shape[1], MOST_SUMS)], 1).astype(np.float64)

    def linear(self, value: float, influence: np.ndarray, at: np.ndarray) -> Spread:
        """A Spread of influences of clusters `at` (codes of the split), with their own standard error."""
        by_group = np.bincount(self.of_cluster[at], influence, self.groups)
        return Spread(value, by_group, True, float(np.sqrt(np.square(influence).sum())))

    def resampled(self, value: float, draws: np.ndarray) -> Spread:
        return Spread(value, draws, False)


def _poisson_table() -> np.ndarray:
    """Poisson(1) as a table over a uniform 16-bit number, its mean exactly 1."""
    k = np.arange(12)
    share = np.exp(-1.0) / np.concatenate([[1], np.cumprod(k[1:].astype(float))])
    counts = np.rint(share * 2**BITS).astype(int)
    counts[0] += 2**BITS - counts.sum()
    table = np.repeat(k, counts).astype(np.float32)
    return table / table.mean()


_POISSON = _poisson_table()


# ---- ranking

class Influence(NamedTuple):
    """A ranking metric, and what each cluster that has rows contributes to its error: variance = sum of squares."""

    value: float
    psi: np.ndarray       # [C]
    at: np.ndarray        # [C] the clusters' codes


def auc_influence(score: np.ndarray, label: np.ndarray, clusters: Clusters) -> Influence:
    """AUC and its structural components by cluster, from one sort.

        psi_k = c_P (A_k - m_k AUC) / P + c_N (B_k - n_k AUC) / N

    over the m_k positives and n_k negatives of cluster k: A_k sums the share of negatives that a positive beats, B_k
    the share of positives that beat a negative, ties half. c = sqrt(I / (I - 1)), I the clusters with a positive (or
    negative). Raises Undefined where a class is absent.
    """
    code, at = _local(clusters)
    keys, user = packed(score, label, code)                    # by score, then label
    ones = (keys & 1) != 0
    P = int(np.count_nonzero(ones))
    N = len(keys) - P
    if not P or not N:
        raise Undefined("only one class")
    groups = positive_groups(keys)
    auc = int(twice_wins(groups).sum()) / (2 * P * N)
    beaten = np.repeat((groups.start - groups.before + groups.negatives / 2) / N, groups.positives)    # [P]
    zeros = np.flatnonzero(~ones)
    beating = P - (zeros - np.arange(N, dtype=np.float64))     # [N] positives of equal or higher score
    tied = groups.negatives > 0
    if tied.any():                                             # a run's negatives stand first in it
        size = groups.negatives[tied]
        place = np.repeat(groups.start[tied] - groups.before[tied] - np.cumsum(size) + size, size) + np.arange(
            size.sum())
        beating[place] -= np.repeat(groups.positives[tied] / 2, size)
    K = len(at)
    of_positive, of_negative = user[ones], user[zeros]
    m, n = np.bincount(of_positive, minlength=K), np.bincount(of_negative, minlength=K)
    psi = _widened(m) * (np.bincount(of_positive, beaten, K) - m * auc) / P
    psi += _widened(n) * (np.bincount(of_negative, beating, K) / P - n * auc) / N
    return Influence(auc, psi, at)


def pr_auc_influence(score: np.ndarray, label: np.ndarray, clusters: Clusters) -> Influence:
    """Average precision and its first-order influence by cluster.

    With T and n the positives and rows at or above a score, AP = sum over positives of (T / n) / P, so a row of score
    s and label y moves it by

        [y (T(s) / n(s) - AP) + sum over positives i with s_i <= s of (y / n_i - T_i / n_i^2)] / P
    """
    code, at = _local(clusters)
    keys, user = packed(score, label, code)
    y = (keys & 1).astype(np.float64)
    P = int(y.sum())
    if not P:
        raise Undefined("no positives")
    groups = positive_groups(keys)
    T, n = (P - groups.before).astype(np.float64), (len(keys) - groups.start).astype(np.float64)
    value = float(np.dot(groups.positives, T / n)) / P
    run = np.searchsorted(groups.start, np.arange(len(keys)), side="right")        # runs at or below the row
    below = np.concatenate([[0], np.cumsum(groups.positives / n)])[run]
    worse = np.concatenate([[0], np.cumsum(groups.positives * T / n**2)])[run]
    own = np.concatenate([[0], T / n])[run]
    psi = (y * (own - value) + y * below - worse) / P
    return Influence(value, np.bincount(user, psi, len(at)), at)


def spearman_influence(mean: np.ndarray, label: np.ndarray, clusters: Clusters) -> Influence:
    """The correlation of ranks and its first-order influence by cluster.

    With weights w, F_i = sum_j w_j ([x_j < x_i] + [x_j = x_i] / 2) / sum w is row i's place among x, G_i among y; both
    have mean 1/2 whatever w. With a = F - 1/2, b = G - 1/2:   rho = C / sqrt(A B),   C = sum w a b, A = sum w a a,
    B = sum w b b. A row k moves F_i by ([x_k < x_i] + [x_k = x_i] / 2 - F_i) / n, so

        dC / dw_k = a_k b_k + (above_x(b)_k - C) / n + (above_y(a)_k - C) / n
        dA / dw_k = a_k^2 + 2 (above_x(a)_k - A) / n              above_x(v)_k = sum of v over rows with x above x_k,
        dB / dw_k = b_k^2 + 2 (above_y(b)_k - B) / n                             and half of those with x = x_k

    Raises Undefined as metrics.spearman does.
    """
    code, at = _local(clusters)
    value, n = spearman(mean, label), len(label)
    x, y = _Places(mean), _Places(label)
    a, b = x.place - 0.5, y.place - 0.5
    C, A, B = a @ b, a @ a, b @ b
    dC = a * b + (x.above(b) + y.above(a) - 2 * C) / n
    dA, dB = a * a + 2 * (x.above(a) - A) / n, b * b + 2 * (y.above(b) - B) / n
    psi = dC / np.sqrt(A * B) - value / 2 * (dA / A + dB / B)
    return Influence(value, np.bincount(code, psi, len(at)), at)


def gini_influence(mean: np.ndarray, label: np.ndarray, clusters: Clusters) -> Influence:
    """Normalised Gini and its first-order influence by cluster.

    G(s) = sum_j y_j F_j / sum y - 1/2 with F as in spearman_influence, among scores s; a row k moves it by

        dG / dw_k = y_k (F_k - 1/2 - G) / sum y + (above_s(y)_k / sum y - G - 1/2) / n

    and G(mean) / G(y) as a ratio does. Raises Undefined as metrics.gini does.
    """
    code, at = _local(clusters)
    value, n, y = gini(mean, label), len(label), np.asarray(label, np.float64)
    total = y.sum()

    def moved(score: np.ndarray) -> tuple[float, np.ndarray]:
        s = _Places(score)
        G = float(y @ s.place / total - 0.5)
        return G, y * (s.place - 0.5 - G) / total + (s.above(y) / total - G - 0.5) / n

    (_, of_mean), (best, of_label) = moved(mean), moved(label)
    psi = (of_mean - value * of_label) / best
    return Influence(value, np.bincount(code, psi, len(at)), at)


class _Places:
    """Where each value of x [n] stands among all: `place` [n], the share of rows below it, and half of its equals."""

    def __init__(self, x: np.ndarray):
        _, self._group, self._size = np.unique(np.asarray(x, np.float64), return_inverse=True, return_counts=True)
        self.place = ((np.cumsum(self._size) - self._size / 2) / len(x))[self._group]

    def above(self, v: np.ndarray) -> np.ndarray:
        """[n]: the sum of v [n] over rows with a higher x, and half of that over rows with the same."""
        held = np.bincount(self._group, v, len(self._size))
        return (held.sum() - np.cumsum(held) + held / 2)[self._group]


def auc_ovr_influence(log_p: np.ndarray, label: np.ndarray, clusters: Clusters) -> Influence:
    """The mean over classes of AUC against all others, log_p [n, C], and its structural components by cluster."""
    present = [k for k in range(log_p.shape[1]) if 0 < np.sum(label == k) < len(label)]
    if not present:
        raise Undefined("only one class")
    found = [auc_influence(log_p[:, k], label == k, clusters) for k in present]
    return Influence(float(np.mean([f.value for f in found])), np.mean([f.psi for f in found], 0), found[0].at)


def delong(score: np.ndarray, label: np.ndarray) -> tuple[float, float]:
    """AUC and its standard error of independent rows (DeLong, DeLong and Clarke-Pearson 1988)."""
    return clustered(score, label, None)


def clustered(score: np.ndarray, label: np.ndarray, user: np.ndarray | None) -> tuple[float, float]:
    """AUC and its standard error where rows of one user [n] (-1 = unknown) go together (Obuchowski 1997)."""
    found = auc_influence(score, label, clusters(user, len(score)))
    return found.value, float(np.sqrt(np.square(found.psi).sum()))


def ece_noise(p: np.ndarray, label: np.ndarray, bins: int) -> float:
    """The ECE to expect of these p [n] in equal-mass bins if labels were drawn from them: what chance alone leaves.

        sum_b (n_b / n) sqrt(2 v_b / pi) / n_b,      v_b = sum of p (1 - p) over the bin's rows
    """
    edges = Ranking(p, positive(label)).cuts(bins)
    at = bin_of(p, edges)
    variance = np.bincount(at, p * (1.0 - p), len(edges))
    return float(np.sqrt(2 / np.pi * variance).sum()) / len(p)


def bin_of(score: np.ndarray, cuts: np.ndarray) -> np.ndarray:
    """The bin of each row: cuts [K] are the lowest scores of the bins, rising."""
    return np.maximum(np.searchsorted(cuts, np.asarray(score, np.float32), side="right") - 1, 0)


def _local(clusters: Clusters) -> tuple[np.ndarray, np.ndarray]:
    """Codes for arrays as long as needed [n], and the split's code of each: a scenario has few of the split's users."""
    if clusters.count <= 4 * len(clusters.code) + 1024:
        return clusters.code, np.arange(clusters.count)
    at, code = np.unique(clusters.code, return_inverse=True)
    return code, at


def _widened(counts: np.ndarray) -> float:
    """sqrt(I / (I - 1)) for I clusters that have any; 1 for a single one, whose error nothing shows."""
    some = int(np.count_nonzero(counts))
    return float(np.sqrt(some / (some - 1))) if some > 1 else 1.0
