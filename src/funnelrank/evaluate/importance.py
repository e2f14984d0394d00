"""Permutation importance: how much worse a trained model does when some columns' values are dealt to other rows.

    importance = metric(as it is) - metric(dealt)          of AUC
               = mean loss(dealt) - mean loss(as it is)    of a task's own loss, in its own units

Both sides are of the same rows, so the interval is that of a paired difference: influences of users, summed within
users (intervals.py). It says how far other users would move the number, for this trained model and this deal.

A value is dealt by one permutation of all rows, so a row may get the value of another scenario's row. What other
columns know of the same thing stays: two features that say the same hide each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from funnelrank import settings
from funnelrank.batch import Layout
from funnelrank.data.derive import gather
from funnelrank.data.encoded import Encoded, List
from funnelrank.evaluate import intervals
from funnelrank.evaluate.intervals import Clusters
from funnelrank.evaluate.measure import Drawing, Scores, by_scenario, ordered
from funnelrank.evaluate.metrics import Z95, Undefined


class Columns(NamedTuple):
    """What is dealt together."""

    ids: tuple[int, ...] = ()
    numbers: tuple[int, ...] = ()
    lists: tuple[int, ...] = ()
    scenario: bool = False            # which scenario a row is of, as parts of a model read it


def columns_of(layout: Layout, names: Sequence[str], scenario: bool = False) -> Columns:
    """Of features by name."""
    wanted = set(names)
    return Columns(tuple(i for i, n in enumerate(layout.ids) if n in wanted),
                   tuple(i for i, n in enumerate(layout.numbers) if layout.feature[n] in wanted),
                   tuple(i for i, n in enumerate(layout.lists) if n in wanted), scenario)


def dealt(rows: Encoded, columns: Columns, at: np.ndarray) -> Encoded:
    """The rows with these columns taken from rows `at` [n] instead."""
    ids, numbers, lists = rows.ids, rows.numbers, list(rows.lists)
    if columns.ids:
        ids = ids.copy()
        ids[:, columns.ids] = rows.ids[np.ix_(at, columns.ids)]
    if columns.numbers:
        numbers = numbers.copy()
        numbers[:, columns.numbers] = rows.numbers[np.ix_(at, columns.numbers)]
    for k in columns.lists:
        places, starts = gather(rows.lists[k].offsets, at)
        weights = rows.lists[k].weights
        lists[k] = List(rows.lists[k].values[places], starts, None if weights is None else weights[places])
    scenario = rows.scenario[at] if columns.scenario else rows.scenario
    return replace(rows, ids=ids, numbers=numbers, lists=lists, scenario=scenario)


def importances(rows: Encoded, what: Mapping[str, Columns], scored: Callable[[Encoded], Scores],
                evaluate: settings.Evaluate, scenarios: Sequence[str] | None, repeats: int = 1, seed: int = 0,
                progress: Callable[[int], None] = lambda done: None) -> list[dict[str, Any]]:
    """Rows {feature, task, scenario, metric, value, low, high, base, rows, positives, note}, metric auc or loss.

    scored    what the model says of some rows; labels, users and scenarios are those of `rows`
    repeats   deals of each, averaged
    """
    base = scored(rows)
    judge = _Judge(base, rows, evaluate, scenarios)
    found, rng = [], np.random.default_rng(seed)
    deals = [rng.permutation(len(rows)) for _ in range(repeats)]
    for done, (name, columns) in enumerate(what.items(), 1):
        changed = [scored(dealt(rows, columns, at)) for at in deals]
        found += [{"feature": name, **row} for row in judge.held_against(changed)]
        progress(done)
    return found


class _Judge:
    """One task after another, over all rows and in each scenario, as the model is and as it is changed."""

    def __init__(self, base: Scores, rows: Encoded, evaluate: settings.Evaluate, scenarios: Sequence[str] | None):
        self.base, self.least = base, evaluate.min_positives
        self.order, self.edges = by_scenario(base, scenarios)
        users = None if base.user is None else intervals.clusters(np.asarray(base.user), len(base.labels))
        self.draw = Drawing(users, len(base.labels), evaluate)
        self.cluster = ordered(self.draw.clusters.code, self.order)
        self.parts = [list(self._parts(t)) for t in range(len(base.tasks))]

    def _parts(self, t: int) -> Iterator[tuple[str | None, np.ndarray, np.ndarray]]:
        """(scenario, places of its observed rows, their labels)."""
        labels = ordered(self.base.labels[:, t], self.order)
        places = np.arange(len(labels)) if self.order is None else self.order
        for scenario, (a, b) in self.edges.items():
            seen = np.flatnonzero(~np.isnan(labels[a:b])) + a
            yield scenario, places[seen], labels[seen]

    def held_against(self, changed: Sequence[Scores]) -> Iterator[dict[str, Any]]:
        code = self.draw.clusters.code
        for t, (task, kind) in enumerate(zip(self.base.tasks, self.base.kinds)):
            for scenario, rows, label in self.parts[t]:
                y = label == 1 if kind == "binary" else None
                positives = int(y.sum()) if y is not None else None
                place = {"task": task, "scenario": scenario, "rows": len(rows), "positives": positives}
                clusters = Clusters(code[rows], self.draw.clusters.count)
                scarce = self.draw.off or self.draw.scarce(y, clusters.code)
                if y is not None:
                    yield {**place, "metric": "auc", **self._auc(t, rows, y, clusters, scarce, changed)}
                yield {**place, "metric": "loss", **self._loss(t, kind, rows, label, clusters, scarce, changed)}

    def _auc(self, t: int, rows: np.ndarray, y: np.ndarray, clusters: Clusters, scarce: Any,
             changed: Sequence[Scores]) -> dict[str, Any]:
        if min(int(y.sum()), int((~y).sum())) < self.least:
            return _nothing("too few positives" if y.sum() < self.least else "too few negatives")
        try:
            was, *now = (intervals.auc_influence(s.log_p[rows, t], y, clusters) for s in (self.base, *changed))
        except Undefined as why:
            return _nothing(str(why))
        psi = was.psi - sum(n.psi for n in now) / len(now)
        return _said(was.value - sum(n.value for n in now) / len(now), psi, was.value, scarce)

    def _loss(self, t: int, kind: str, rows: np.ndarray, label: np.ndarray, clusters: Clusters, scarce: Any,
              changed: Sequence[Scores]) -> dict[str, Any]:
        if not len(rows):
            return _nothing("no observed labels")
        was, *now = (_losses(s, t, kind, rows, label) for s in (self.base, *changed))
        rise = sum(now) / len(now) - was
        if not np.isfinite(rise).all():
            return _nothing("a loss is not finite")
        mean = float(rise.mean())
        psi = np.bincount(np.unique(clusters.code, return_inverse=True)[1], (rise - mean) / len(rise))
        return _said(mean, psi, float(was.mean()), scarce)


def _losses(scores: Scores, t: int, kind: str, rows: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Of each row [n]: nats of a binary or multiclass label, the squared error of a value."""
    if kind == "binary":
        return -np.where(label == 1, scores.log_p[rows, t], scores.log_not_p[rows, t]).astype(np.float64)
    if kind == "multiclass":
        log_p = scores.classes[scores.tasks[t]][rows]
        return -log_p[np.arange(len(rows)), label.astype(np.int64)].astype(np.float64)
    return np.square(scores.mean[rows, t].astype(np.float64) - label)


def _said(value: float, psi: np.ndarray, base: float, scarce: Any) -> dict[str, Any]:
    if isinstance(scarce, str) or scarce is True:
        return {"value": value, "low": None, "high": None, "base": base, "note": scarce if scarce is not True else None}
    half = Z95 * float(np.sqrt(np.square(psi).sum()))
    return {"value": value, "low": value - half, "high": value + half, "base": base, "note": None}


def _nothing(note: str) -> dict[str, Any]:
    return {"value": None, "low": None, "high": None, "base": None, "note": note}
