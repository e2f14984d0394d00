"""Looks at the same scores from other sides: each step given the one before, cold starts, GAUC within other groups,
drift. What comes out are rows of metrics.json:

    auc_given             auc, logloss, pcoc and ece of p(t | parent), on the rows where the parent happened
    violation_size        mean of p(t) - p(parent) where p(t) is the larger
    auc@user_id:new       a metric on the rows whose value of a column train had never, 1-9, 10-99, or 100 times or more
    gauc_by:request_id    gauc within the values of another column than data.user
    psi:price, psi:score  how far a feature, or a task's score, moved (drift.py); task null where it is of a feature
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from funnelrank import settings
from funnelrank.batch import Layout
from funnelrank.data.encoded import Encoded
from funnelrank.evaluate import intervals, metrics
from funnelrank.evaluate.drift import psi, psi_noise
from funnelrank.evaluate.measure import Drawing, Said, Scores, gauc_spreads, measure, metric_row
from funnelrank.evaluate.table import COLUMNS

GIVEN = ("auc", "logloss", "pcoc", "ece")
COLD = ("auc", "logloss", "pcoc")
BUCKETS = {"new": (0, 0), "1-9": (1, 9), "10-99": (10, 99), "100+": (100, np.iinfo(np.int64).max)}
MOST = 200_000          # rows of a split that drift is measured on, evenly spaced
BINS = 20               # of a number's, a length's or a score's values, of equal mass before


def funnel_rows(split: str, scores: Scores, evaluate: settings.Evaluate,
                scenarios: Sequence[str] | None) -> list[dict[str, Any]]:
    """Each binary step given the one before, per scenario; and how large violations are."""
    found = []
    for t, parent in enumerate(scores.parents):
        if parent is None or scores.kinds[t] != "binary" or scores.kinds[parent] != "binary":
            continue
        happened = np.asarray(scores.labels[:, parent]) == 1
        step = np.minimum(np.asarray(scores.log_p[happened, t], np.float64) - scores.log_p[happened, parent], -1e-7)
        only = Scores([scores.tasks[t]], ["binary"], [None], step[:, None].astype(np.float32),
                      np.log(-np.expm1(step))[:, None].astype(np.float32), step[:, None],
                      scores.labels[happened, t:t + 1],
                      None if scores.scenario is None else np.asarray(scores.scenario)[happened],
                      None if scores.user is None else np.asarray(scores.user)[happened])
        found += [r | {"metric": f"{r['metric']}_given"} for r in measure(split, only, evaluate, scenarios)
                  if r["metric"] in GIVEN and r["task"]]
        child, before = (np.exp(np.asarray(scores.log_p[:, i], np.float64)) for i in (t, parent))
        over = child - before
        over = over[over > 0]
        found.append(_plain(split, scores.tasks[t], "violation_size", float(over.mean()) if len(over) else None,
                            len(scores.labels), note=None if len(over) else "no violations"))
    return found


def cold_rows(split: str, scores: Scores, evaluate: settings.Evaluate,
              seen: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Metrics on rows by how often train had their value of a column. seen: column -> rows of train [n], -1 null."""
    found = []
    binary = [t for t, kind in enumerate(scores.kinds) if kind == "binary"]
    scores = replace(scores, tasks=[scores.tasks[t] for t in binary], kinds=["binary"] * len(binary),
                     parents=[None] * len(binary), **{k: np.asarray(getattr(scores, k))[:, binary]
                                                      for k in ("log_p", "log_not_p", "mean", "labels")})
    for column, counts in seen.items():
        for bucket, (low, high) in BUCKETS.items():
            mine = (counts >= low) & (counts <= high)
            if mine.any() and binary:
                found += [r | {"metric": f"{r['metric']}@{column}:{bucket}"} for r in measure(
                    split, part(scores, mine), evaluate) if r["metric"] in COLD]
    return found


def gauc_rows(split: str, scores: Scores, evaluate: settings.Evaluate, column: str,
              group: np.ndarray) -> list[dict[str, Any]]:
    """GAUC within groups [n] (-1: none) of rows, over all rows; users are what is drawn for its interval."""
    users = None if scores.user is None else intervals.clusters(np.asarray(scores.user), len(scores.labels))
    draw = Drawing(users if users is not None else intervals.clusters(group, len(group)), len(scores.labels), evaluate)
    found = []
    for t, task in enumerate(scores.tasks):
        if scores.kinds[t] != "binary":
            continue
        seen = ~np.isnan(scores.labels[:, t])
        label, log_p, code = (np.asarray(x)[seen] for x in (scores.labels[:, t], scores.log_p[:, t], group))
        positives = int((label == 1).sum())
        place = {"split": split, "task": task, "scenario": None, "rows": len(label), "positives": positives}
        name = f"gauc_by:{column}"
        if not len(label):
            found.append(metric_row(Said(name, None, "no observed labels"), **place))
            continue
        by = metrics.auc_by_user(log_p, label == 1, code)
        value = metrics.gauc_of(by)
        if value.weighted is None:
            note = f"no value of '{column}' has both classes"
            found.append(metric_row(Said(name, None, note, value.users, 0), **place))
            continue
        spread, note = None, None
        if not draw.off and value.valid_users < draw.least:
            note = "too few valid groups for an interval"
        elif not draw.off:
            # a group's draw is that of the user of its first row
            first = np.full(int(group.max()) + 1, -1)
            first[group[::-1]] = np.arange(len(group))[::-1]
            clusters = users if users is not None else draw.clusters
            by = by._replace(code=clusters.code[first[by.code.astype(np.int64)]])
            spread = gauc_spreads(draw, by, [name])[name]
        found.append(metric_row(Said(name, value.weighted, note, value.users, value.valid_users, spread), **place))
    return found


def drift_rows(split: str, train: Encoded, later: Encoded, layout: Layout) -> list[dict[str, Any]]:
    """`psi:FEATURE` of every column that the model reads, from train to a split; `noise` is what chance would give."""
    a, b = (slice(None, None, max(1, len(x) // MOST)) for x in (train, later))
    counts = {}
    for i, name in enumerate(layout.ids):
        counts[name] = [np.bincount(np.asarray(x.ids[s, i])) for x, s in ((train, a), (later, b))]
    for i, name in enumerate(layout.numbers):
        counts[name] = _binned(np.asarray(train.numbers[a, i]), np.asarray(later.numbers[b, i]))
    for i, name in enumerate(layout.lists):
        counts[name] = _binned(*(np.diff(np.asarray(x.lists[i].offsets))[s].astype(np.float64)
                                 for x, s in ((train, a), (later, b))))
    return [_plain(split, None, f"psi:{name}", psi(*c), int(c[1].sum())) | {"noise": psi_noise(*c)}
            for name, c in counts.items()]


def score_drift_rows(split: str, before: Scores, after: Scores) -> list[dict[str, Any]]:
    """`psi:score` of each binary task, from one measured split to a later one."""
    found = []
    for t, task in enumerate(after.tasks):
        if after.kinds[t] == "binary" and len(before.labels) and len(after.labels):
            c = _binned(*(np.asarray(s.log_p[:, t] - s.log_not_p[:, t], np.float64) for s in (before, after)))
            found.append(_plain(split, task, "psi:score", psi(*c), int(c[1].sum())) | {"noise": psi_noise(*c)})
    return found


def part(scores: Scores, rows: np.ndarray) -> Scores:
    """Some rows [n] bool of them."""
    arrays = ("log_p", "log_not_p", "mean", "labels", "scenario", "user")
    return replace(scores, **{k: np.asarray(v)[rows] for k in arrays if (v := getattr(scores, k)) is not None})


def _binned(before: np.ndarray, after: np.ndarray) -> list[np.ndarray]:
    edges = np.unique(np.quantile(before, np.arange(1, BINS) / BINS)) if len(before) else np.empty(0)
    return [np.bincount(np.searchsorted(edges, x, side="right"), minlength=len(edges) + 1) for x in (before, after)]


def _plain(split: str, task: str | None, metric: str, value: float | None, rows: int,
           note: str | None = None) -> dict[str, Any]:
    return {**dict.fromkeys(COLUMNS), "split": split, "task": task, "metric": metric, "value": value, "rows": rows,
            "note": note}
