"""How one column goes together with one label, out of sample: what several detectors ask, made once.

A column becomes cells (its values, or equal-mass intervals of a number), a cell's rate is fitted on some rows and its
AUC is measured on others: two halves of the train sample, or train against a held-out split. So a column of as many
values as rows says nothing, however well it would fit the rows it was fitted on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from funnelrank.doctor.log import About, Column, Log, Split
from funnelrank.evaluate import metrics

CELLS = 64              # of a number
PRIOR = 5.0             # rows of the mean rate that every cell starts with
LEAST = 30              # positives, and negatives, below which nothing is said


@dataclass(frozen=True)
class Relation:
    """A column and a binary task, on the train sample.

    auc          of each half's rows by the rates of the other half
    rates, rows  [K] of cells over the whole sample; the last cell is of missing values
    base         mean label
    score        float32 [m] the half's rates as log-odds above the mean, NaN where the label is not observed
    """

    auc: float
    rates: np.ndarray
    rows: np.ndarray
    base: float
    positives: int
    score: np.ndarray


def relations(log: Log) -> dict[tuple[str, int], Relation]:
    """Of every column with every binary task that has both classes often enough."""
    return log.once(("relations",), lambda: {
        (name, t): found for name in log.train.columns for t, _ in log.binary
        if (found := _relation(log, name, t)) is not None})


def carried(log: Log, split: Split, name: str, t: int) -> tuple[float, np.ndarray] | None:
    """AUC on a held-out split of the rates that the whole train sample has, and the scores [m]; None where rows do not
    define it."""
    def make() -> tuple[float, np.ndarray] | None:
        relation, column = relations(log).get((name, t)), split.columns.get(name)
        if relation is None or column is None:
            return None
        odds = _log_odds(relation.rates, relation.base)
        if column.offsets is not None:
            score = _token_scores(column, *log.once(("tokens", name, t), lambda: _token_rates(
                log.train.columns[name], log.train.label(t), np.ones(len(log.train.sample), bool))))
        else:
            score = np.append(odds, 0.0)[cells(log, split, name)]
        y = split.label(t)
        return _auc(score, y), np.where(np.isnan(y), np.nan, score)
    return log.once(("carried", split.name, name, t), make)


def within(log: Log, split: Split, name: str, t: int) -> float | None:
    """AUC of each half of a held-out split's sample by the rates of the other; None of many values, or few rows."""
    at, y = cells(log, split, name), split.label(t)
    K = len(log.once(("edges", name), lambda: np.empty(0))) + 2
    seen = ~np.isnan(y)
    if K > 4 * CELLS or min((y == 1).sum(), (y == 0).sum()) < LEAST:
        return None
    base, score = float(y[seen].mean()), np.full(len(y), np.nan)
    half = np.random.default_rng(1).random(len(y)) < 0.5
    for mine in (half, ~half):
        n, k = (np.bincount(at[seen & ~mine], w, K) for w in (None, y[seen & ~mine] == 1))
        score[mine] = _log_odds((k + PRIOR * base) / (n + PRIOR), base)[at[mine]]
    return _auc(score, y)


def cells(log: Log, split: Split, name: str) -> np.ndarray:
    """The cell of each sampled row [m]: 0 .. K - 1, K - 1 for missing, K for a value that train's sample lacks."""
    return log.once(("cells", split.name, name), lambda: _cells(
        split.columns[name], log.once(("edges", name), lambda: _edges(log.train.columns[name]))))


def numeric(column: Column) -> np.ndarray | None:
    """float64 [m], NaN where missing; the length of a list. None for texts."""
    if column.lengths is not None:
        return np.where(column.missing, np.nan, column.lengths.astype(np.float64))
    return column.values


def distinct(log: Log, name: str) -> int:
    """Values of a column in the train sample, without missing ones; of lists, of their elements."""
    column = log.train.columns[name]
    values = column.tokens if column.tokens is not None else column.codes if column.codes is not None else (
        column.values[~column.missing])
    return log.once(("distinct", name), lambda: len(np.unique(values[values != 0] if values.dtype == np.uint64
                                                              else values)))


def each_column(log: Log, *kinds: str) -> Iterator[tuple[str, About, Column]]:
    for name, column in log.train.columns.items():
        if not kinds or log.about[name].kind in kinds:
            yield name, log.about[name], column


# ---- cells

def _edges(column: Column) -> np.ndarray:
    """What cells begin at: known codes [K - 1], or the lower ends of intervals [K - 1]."""
    if column.codes is not None:
        return np.unique(column.codes[column.codes != 0])
    values = numeric(column)
    known = values[~np.isnan(values)]
    every, counts = np.unique(known, return_counts=True)
    if len(every) > CELLS:
        heavy = counts > len(known) / CELLS                # as 0 of an amount: a cell of its own, or it holds them all
        rest = known[~heavy[np.searchsorted(every, known)]]
        parts = max(4, -(-CELLS * len(rest) // len(known)))
        every = np.unique(np.concatenate([every[heavy], every[1:][heavy[:-1]], np.quantile(
            rest, np.arange(parts) / parts, method="lower")]))
    return every


def _cells(column: Column, edges: np.ndarray) -> np.ndarray:
    K = len(edges) + 1
    if column.codes is not None:
        at = np.minimum(np.searchsorted(edges, column.codes), max(len(edges) - 1, 0))
        known = (edges[at] == column.codes) if len(edges) else np.zeros(len(column.codes), bool)
        return np.where(column.codes == 0, K - 1, np.where(known, at, K))
    values = numeric(column)
    at = np.maximum(np.searchsorted(edges, values, side="right") - 1, 0)
    return np.where(np.isnan(values), K - 1, at)


def _relation(log: Log, name: str, t: int) -> Relation | None:
    y = log.train.label(t)
    seen = ~np.isnan(y)
    positives = int((y == 1).sum())
    if min(positives, int(seen.sum()) - positives) < LEAST:
        return None
    column = log.train.columns[name]
    half = log.once(("half",), lambda: np.random.default_rng(1).random(len(log.train.sample)) < 0.5)
    base = positives / int(seen.sum())
    at = cells(log, log.train, name)
    K = len(log.once(("edges", name), lambda: None)) + 1
    rows, ones = (np.bincount(at[seen], w, K + 1)[:K] for w in (None, y[seen] == 1))
    score = np.full(len(y), np.nan)
    for mine in (half, ~half):
        fit = seen & ~mine
        if column.offsets is not None:
            score[mine] = _token_scores(column, *_token_rates(column, y, fit))[mine]
        else:
            n, k = (np.bincount(at[fit], w, K + 1) for w in (None, y[fit] == 1))
            score[mine] = _log_odds((k + PRIOR * base) / (n + PRIOR), base)[at[mine]]
    score[~seen] = np.nan
    auc = _auc(score, y)
    return Relation(auc, (ones + PRIOR * base) / (rows + PRIOR), rows, base, positives, score.astype(np.float32))


def _token_rates(column: Column, y: np.ndarray, fit: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Distinct tokens, the log-odds of rows that hold each, above the mean, and that of rows that hold none."""
    rows = np.repeat(np.arange(len(y)), np.diff(column.offsets))
    fit = fit & ~np.isnan(y)
    base = float((y[fit] == 1).mean()) if fit.any() else 0.5
    use = fit[rows]
    values, at = np.unique(column.tokens[use], return_inverse=True)
    n, k = (np.bincount(at, w, len(values)) for w in (None, y[rows[use]] == 1))
    empty = fit & (np.diff(column.offsets) == 0)
    none = (np.sum(y[empty] == 1) + PRIOR * base) / (empty.sum() + PRIOR)
    return values, _log_odds((k + PRIOR * base) / (n + PRIOR), base), float(_log_odds(np.array([none]), base)[0])


def _token_scores(column: Column, values: np.ndarray, odds: np.ndarray, none: float) -> np.ndarray:
    """Each row's [m] mean over its tokens."""
    lengths = np.diff(column.offsets)
    if not len(values):
        return np.full(len(lengths), none)
    at = np.minimum(np.searchsorted(values, column.tokens), len(values) - 1)
    found = np.where(values[at] == column.tokens, odds[at], 0.0)
    sums = np.bincount(np.repeat(np.arange(len(lengths)), lengths), found, len(lengths))
    return np.where(lengths > 0, sums / np.maximum(lengths, 1), none)


def _log_odds(rate: np.ndarray, base: float) -> np.ndarray:
    rate, base = np.clip(rate, 1e-6, 1 - 1e-6), min(max(base, 1e-6), 1 - 1e-6)
    return np.log(rate / (1 - rate)) - np.log(base / (1 - base))


def _auc(score: np.ndarray, y: np.ndarray) -> float:
    seen = ~np.isnan(y)
    if not 0 < (y[seen] == 1).sum() < seen.sum():
        return 0.5
    return metrics.auc(score[seen].astype(np.float32), y[seen])


def auc_error(auc: float, positives: int, negatives: int) -> float:
    """About the standard error of an AUC of independent rows (Hanley and McNeil 1982)."""
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    return float(np.sqrt(max(auc * (1 - auc) + (positives - 1) * (q1 - auc**2) + (negatives - 1) * (q2 - auc**2), 1e-12)
                         / (positives * negatives)))
