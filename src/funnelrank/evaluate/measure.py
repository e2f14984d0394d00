"""Measuring: every metric of every task with its interval, over all rows and in each scenario, and the means.

The rows that come out are those of table.py. Intervals are of users drawn anew (intervals.py); where rows are too few
for one, `low` and `high` are None and the note says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from funnelrank import settings
from funnelrank.errors import listing
from funnelrank.evaluate import intervals, metrics
from funnelrank.evaluate.intervals import Clusters, Influence, Resamples, Spread, combined
from funnelrank.evaluate.metrics import Z95, Ranking, Undefined
from funnelrank.evaluate.table import COLUMNS

NULL, UNSEEN = "(null)", "(unseen)"
# of intervals; quantiles for all others
SHAPES = {"auc": "logit", "pr_auc": "logit", "auc_positive": "logit", "auc_ovr": "logit", "ece": "normal",
          "spearman": "fisher", "gini": "fisher"}
SIGNED = ("spearman", "gini")        # others are never below 0
APART = 0.01            # of GAUC on live and on frozen histories that is worth a note
Place = tuple[str | None, str | None, str]                         # task, scenario, metric


@dataclass(frozen=True)
class Scores:
    """What a model says about n rows and T tasks, beside what happened. Arrays may be memory-mapped."""

    tasks: Sequence[str]
    kinds: Sequence[str]                 # as in Funnel
    parents: Sequence[int | None]        # position of the task that comes before
    log_p: np.ndarray                    # [n, T] of binary tasks, over all impressions; others are not read
    log_not_p: np.ndarray                # [n, T]
    mean: np.ndarray                     # [n, T] of regressions and counts, on rows where the label is observed
    labels: np.ndarray                   # [n, T], NaN = not observed
    scenario: np.ndarray | None = None   # int [n]: 0 null, 1 unseen in train, s + 2 = names[s]
    user: np.ndarray | None = None       # int [n], -1 = null
    classes: Mapping[str, np.ndarray] = field(default_factory=dict)    # task -> log p [n, C], given what it comes after


class Said(NamedTuple):
    """One metric's answer, before it is told where it belongs."""

    metric: str
    value: float | None
    note: str | None = None
    users: int | None = None
    valid_users: int | None = None
    spread: Spread | None = None


def measure(split: str, scores: Scores, evaluate: settings.Evaluate, scenarios: Sequence[str] | None = None,
            frozen: Scores | None = None, truth: Mapping[str, np.ndarray] | None = None,
            spreads: dict[Place, Spread] | None = None) -> list[dict[str, Any]]:
    """All rows of one split, in the order task, scenario, metric; means over tasks last.

    scenarios  names of scenario codes 2, 3, ...; None or empty where the data has none
    frozen     the same rows scored with each user's lists held as at his first row; adds gauc_frozen
    truth      task -> its true probabilities [n]; adds auc_oracle, logloss_oracle and pcoc_oracle
    spreads    a dict that receives what the intervals were made of, for comparisons
    """
    order, edges = by_scenario(scores, scenarios)
    users = None if scores.user is None else intervals.clusters(np.asarray(scores.user), len(scores.labels))
    draw = Drawing(users, len(scores.labels), evaluate)
    cluster = ordered(draw.clusters.code, order)
    user = None if users is None else ordered(np.where(np.asarray(scores.user) == metrics.NULL_USER,
                                                        metrics.NULL_USER, users.code), order)
    rows, spreads = [], {} if spreads is None else spreads
    for t, (task, kind, parent) in enumerate(zip(scores.tasks, scores.kinds, scores.parents)):
        columns = {"user": user, "cluster": cluster, "label": ordered(scores.labels[:, t], order)}
        child_and_parent = ()
        if kind == "multiclass":
            columns["classes"] = ordered(scores.classes[task], order)
        elif kind != "binary":
            columns["mean"] = ordered(scores.mean[:, t], order)
        else:
            columns["log_p"] = ordered(scores.log_p[:, t], order)
            columns["log_not_p"] = ordered(scores.log_not_p[:, t], order)
            columns["frozen"] = None if frozen is None else ordered(frozen.log_p[:, t], order)
            columns["truth"] = ordered(truth[task], order) if truth and task in truth else None
            if parent is not None:
                child_and_parent = columns["log_p"], ordered(scores.log_p[:, parent], order)
        seen = ~np.isnan(columns["label"])
        kept = np.concatenate([[0], np.cumsum(seen)])
        columns = {k: v for k, v in columns.items() if v is not None}
        if not seen.all():
            columns = {k: v[seen] for k, v in columns.items()}
        for scenario, (a, b) in edges.items():
            part = {k: v[kept[a]:kept[b]] for k, v in columns.items()}
            n = len(part["label"])
            empty = None if n else "no observed labels" if b > a else "no rows"
            place = {"split": split, "task": task, "scenario": scenario,
                     "positives": int(np.count_nonzero(part["label"])) if kind == "binary" else None}
            answers = list(_binary(part, evaluate, empty, draw) if kind == "binary" else
                           _classes(part, empty, draw) if kind == "multiclass" else _value(part, kind, empty, draw))
            if child_and_parent:
                answers.append(_violations(*(x[a:b] for x in (*child_and_parent, cluster)), draw))
            for said in answers:
                if said.spread:
                    spreads[task, scenario, said.metric] = said.spread
                rows.append(metric_row(said, rows=b - a if said.metric == "violation_rate" else n, **place))
    return rows + list(_means(split, rows, list(edges), spreads))


def reliability(scores: Scores, evaluate: settings.Evaluate) -> dict[str, dict[str, list]]:
    """Per binary task with observed labels, its reliability diagram as lists: p, y, count, low, high."""
    diagrams = {}
    for t, task in enumerate(scores.tasks):
        if scores.kinds[t] != "binary":
            continue
        try:
            label, log_p = metrics.observed(scores.labels[:, t], scores.log_p[:, t])
            bins = Ranking(log_p, label).bins(evaluate.bins, np.exp)
        except Undefined:
            continue
        diagrams[task] = {k: v.tolist() for k, v in bins._asdict().items()}
    return diagrams


# ---- intervals

class Drawing:
    """The draws of one split, made when first asked for; of users, or of single rows if there are no users."""

    def __init__(self, users: Clusters | None, rows: int, evaluate: settings.Evaluate):
        self.off = evaluate.intervals == "none" or rows == 0
        by_user = users is not None and evaluate.intervals == "user"
        self.clusters = users if by_user else intervals.clusters(None, rows)
        self.of = "users" if by_user else "rows"
        self.least = evaluate.min_positives
        make = lambda clusters: cache(lambda: Resamples(clusters, evaluate.resamples))
        self.resamples = make(self.clusters)
        self.of_users = self.resamples if by_user or users is None else make(users)

    def scarce(self, y: np.ndarray | None, cluster: np.ndarray) -> str | None:
        """Why an interval over rows of these clusters, and of these classes, would mean nothing; None if it means."""
        if y is None:
            return f"too few {self.of} for an interval" if _fewer(cluster, self.least) else None
        classes = {"positives": y, "negatives": ~y}
        for name, rows in classes.items():
            if np.count_nonzero(rows) < self.least:
                return f"too few {name} for an interval"
        for name, rows in classes.items():
            if _fewer(cluster[rows], self.least):
                return f"{name} of too few {self.of} for an interval"
        return None


def _fewer(codes: np.ndarray, least: int) -> bool:
    """Whether these rows are of fewer than `least` clusters; a look at the first rows mostly knows."""
    return all(len(np.unique(some)) < least for some in (codes[:1000], codes))


def _ratios(draw: Drawing, part: Mapping[str, np.ndarray], y: np.ndarray | None, values: Mapping[str, float],
            evaluate: settings.Evaluate | None = None) -> dict[str, Spread]:
    """Spreads of everything that is a function of sums over rows, from one product. `values` are those measured."""
    resamples = draw.resamples()
    group = resamples.of_cluster[part["cluster"]]
    if y is None:
        error = np.subtract(part["mean"], part["label"], dtype=np.float64)
        n, squares, sizes, said, seen = resamples.sums(group, [
            np.ones(len(group)), np.square(error), np.abs(error), part["mean"], part["label"]]).T
        draws = {"rmse": lambda: np.sqrt(squares / n), "mae": lambda: sizes / n, "pcoc": lambda: said / seen}
    else:
        log_p, log_not_p = part["log_p"], part["log_not_p"]
        p = np.exp(log_p.astype(np.float64))
        cuts = Ranking(log_p, y).cuts(evaluate.bins)
        cell = group * len(cuts) + intervals.bin_of(log_p, cuts)
        gaps = np.bincount(cell, p - y, resamples.groups * len(cuts)).reshape(resamples.groups, -1)
        sums = resamples.products(np.concatenate([np.stack([
            np.bincount(group, column, resamples.groups)
            for column in (None, y, p, -np.where(y, log_p, log_not_p))], 1), gaps], 1))
        n, ones, said, nats = sums[:, :4].T
        def entropy():
            rate = ones / n
            return -(rate * np.log(rate) + (1 - rate) * np.log1p(-rate))
        draws = {"logloss": lambda: nats / n, "ne": lambda: nats / n / entropy(), "pcoc": lambda: said / ones,
                 "ece": lambda: np.abs(sums[:, 4:]).sum(1) / n}
    with np.errstate(divide="ignore", invalid="ignore"):
        return {name: resamples.resampled(values[name], draws[name]()) for name in draws if name in values}


def gauc_spreads(draw: Drawing, by: metrics.ByUser, names: Sequence[str]) -> dict[str, Spread]:
    """Of GAUC weighted by rows and unweighted, under these names; users are drawn, whatever else is."""
    resamples = draw.of_users()
    sums = resamples.sums(resamples.of_cluster[by.code], [by.auc * by.rows, by.rows, by.auc, np.ones(len(by.auc))])
    found = metrics.gauc_of(by)
    with np.errstate(divide="ignore", invalid="ignore"):
        pairs = ((found.weighted, sums[:, 0] / sums[:, 1]), (found.unweighted, sums[:, 2] / sums[:, 3]))
    return {name: resamples.resampled(value, draws) for name, (value, draws) in zip(names, pairs)}


def _violations(child: np.ndarray, parent: np.ndarray, cluster: np.ndarray, draw: Drawing) -> Said:
    said = _said("violation_rate", None, metrics.violation_rate, child, parent)
    if draw.off or said.value is None:
        return said
    if note := draw.scarce(None, cluster):
        return said._replace(note=note)
    resamples = draw.resamples()
    sums = resamples.sums(resamples.of_cluster[cluster], [child > parent, np.ones(len(child))])
    return said._replace(spread=resamples.resampled(said.value, sums[:, 0] / sums[:, 1]))


# ---- from rows to metrics

def _binary(part: Mapping[str, np.ndarray], evaluate: settings.Evaluate, empty: str | None,
            draw: Drawing) -> Iterator[Said]:
    """Metrics of one binary task on its observed rows."""
    log_p, log_not_p, y = part["log_p"], part["log_not_p"], part["label"] == 1
    positives, negatives = int(np.count_nonzero(y)), int(np.count_nonzero(~y))
    few = empty or ("too few positives" if positives < evaluate.min_positives else
                    "too few negatives" if negatives < evaluate.min_positives else None)
    scarce = empty or draw.off or draw.scarce(y, part["cluster"])
    clusters = Clusters(part["cluster"], draw.clusters.count)
    ranking = cache(lambda: Ranking(log_p, y))

    def ranked(name: str, influence: Callable[..., Influence], plain: Callable[[], float], *given: np.ndarray) -> Said:
        if few or scarce:
            return _said(name, few, plain)._replace(spread=None)
        try:
            found = influence(*given, y, clusters)
        except Undefined as why:
            return Said(name, None, str(why))
        return Said(name, found.value, spread=draw.resamples().linear(*found))

    answers = [ranked("auc", intervals.auc_influence, lambda: ranking().auc(), log_p),
               *_by_user(("gauc", "gauc_unweighted"), few, log_p, y, part.get("user"), draw)]
    if "frozen" in part:
        answers += _by_user(("gauc_frozen",), few, part["frozen"], y, part.get("user"), draw)
        answers[1:4] = _held_against(answers[1], answers[2], answers[3])
    answers.append(ranked("pr_auc", intervals.pr_auc_influence, lambda: ranking().pr_auc(), log_p))
    sums = [_said("logloss", empty, metrics.logloss, log_p, log_not_p, y),
            _said("ne", empty, metrics.ne, log_p, log_not_p, y), _said("pcoc", empty, metrics.pcoc, np.exp(log_p), y),
            _said("ece", empty, lambda: ranking().bins(evaluate.bins, np.exp).ece())]
    values = {said.metric: said.value for said in sums if said.value is not None}
    found = _ratios(draw, part, y, values, evaluate) if values and not scarce else {}
    answers += [said._replace(spread=found.get(said.metric)) for said in sums]
    answers.append(_said("ece_noise", empty, lambda: intervals.ece_noise(np.exp(log_p), y, evaluate.bins)))
    if "truth" in part:
        p = part["truth"]
        with np.errstate(divide="ignore"):      # log 0 is -inf, which is what such a truth says
            log_p, log_not_p = np.log(p), np.log1p(-p)
        answers += [_said("auc_oracle", few, metrics.auc, p, y),
                    _said("logloss_oracle", empty, metrics.logloss, log_p, log_not_p, y),
                    _said("pcoc_oracle", empty, metrics.pcoc, p, y)]
    for said in answers:
        missing = said.spread is None and said.metric in ("auc", "pr_auc", *values)
        yield said._replace(note=scarce) if said.value is not None and isinstance(scarce, str) and missing else said


def _by_user(names: Sequence[str], few: str | None, score: np.ndarray, y: np.ndarray, user: np.ndarray | None,
             draw: Drawing) -> Iterator[Said]:
    """GAUC under one or two names; users are counted even where positives are too few for a value."""
    if user is None:
        yield from (Said(name, None, "data.user is not set") for name in names)
        return
    try:
        by = metrics.auc_by_user(score, y, user)
    except Undefined as why:
        yield from (Said(name, None, few or str(why)) for name in names)
        return
    found = metrics.gauc_of(by)
    note = few or (None if found.valid_users else "no user has both classes")
    spreads = {}
    if not note and not draw.off:
        if found.valid_users < draw.least:
            yield from (Said(n, v, "too few valid users for an interval", found.users, found.valid_users)
                        for n, v in zip(names, found))
            return
        spreads = gauc_spreads(draw, by, names)
    for name, value in zip(names, found):
        yield Said(name, None if note else value, note, found.users, found.valid_users, spreads.get(name))


def _held_against(live: Said, unweighted: Said, frozen: Said) -> list[Said]:
    """GAUC on live histories says so where it is another number than on frozen ones, beyond what chance does."""
    if live.spread and frozen.spread:
        apart = combined([live.spread, frozen.spread], [1, -1])
        if abs(apart.value) > max(APART, Z95 * apart.error()):
            note = f"lists change within users and move it by {apart.value:+.3f}; read gauc_frozen"
            return [live._replace(note=note), unweighted, frozen]
    return [live, unweighted, frozen]


def _value(part: Mapping[str, np.ndarray], kind: str, empty: str | None, draw: Drawing) -> Iterator[Said]:
    """Metrics of a value on its observed rows; of a regression, which may be below 0, without those of amounts."""
    answers = [_said(name, empty, metric, part["mean"], part["label"]) for name, metric in
               (("rmse", metrics.rmse), ("mae", metrics.mae), ("pcoc", metrics.pcoc))]
    values = {said.metric: said.value for said in answers if said.value is not None}
    answers.append(_said("spearman", empty, metrics.spearman, part["mean"], part["label"]))
    if kind != "regression":
        answers.append(_said("gini", empty, metrics.gini, part["mean"], part["label"]))
    if draw.off or not values:
        yield from answers
    elif note := draw.scarce(None, part["cluster"][part["label"] != 0]):
        yield from (said if said.value is None else said._replace(note=note) for said in answers)
    else:
        found = _ratios(draw, part, None, values)
        given, clusters = (part["mean"], part["label"]), Clusters(part["cluster"], draw.clusters.count)
        found |= {said.metric: draw.resamples().linear(*influence(*given, clusters)) for said, influence in zip(
            answers[3:], (intervals.spearman_influence, intervals.gini_influence)) if said.value is not None}
        yield from (said._replace(spread=found.get(said.metric)) for said in answers)
    if kind != "regression":
        yield _above_zero(part, empty, draw)


def _classes(part: Mapping[str, np.ndarray], empty: str | None, draw: Drawing) -> Iterator[Said]:
    """Metrics of a multiclass task on its observed rows."""
    log_p, label, cluster = part["classes"], part["label"], part["cluster"]
    answers = [_said(name, empty, metric, log_p, label) for name, metric in (
        ("accuracy", metrics.accuracy), ("logloss", metrics.class_logloss), ("auc_ovr", metrics.auc_ovr))]
    notes = [None if draw.off or empty else draw.scarce(None, cluster)] * 2 + [
        None if draw.off or empty else next(filter(None, (
            draw.scarce(label == k, cluster) for k in range(log_p.shape[1]) if (label == k).any())), None)]
    spreads: dict[str, Spread] = {}
    if not draw.off and not empty and not notes[0]:
        resamples = draw.resamples()
        at = label.astype(np.int64)
        n, right, nats = resamples.sums(resamples.of_cluster[cluster], [
            np.ones(len(label)), log_p.argmax(1) == at, -log_p[np.arange(len(label)), at]]).T
        draws = {"accuracy": right, "logloss": nats}
        with np.errstate(divide="ignore", invalid="ignore"):
            spreads = {said.metric: resamples.resampled(said.value, draws[said.metric] / n) for said in answers[:2]
                       if said.value is not None}
    if answers[2].value is not None and not draw.off and not notes[2]:
        spreads["auc_ovr"] = draw.resamples().linear(*intervals.auc_ovr_influence(
            log_p, label, Clusters(cluster, draw.clusters.count)))
    for said, note in zip(answers, notes):
        yield said if said.value is None else said._replace(note=note, spread=spreads.get(said.metric))


def _above_zero(part: Mapping[str, np.ndarray], empty: str | None, draw: Drawing) -> Said:
    """AUC of an amount above 0 by its expected value."""
    y, few = part["label"] > 0, empty
    if not few:
        few = next((f"too few amounts {what}" for what, n in (("above 0", y.sum()), ("of 0", (~y).sum()))
                    if n < draw.least), None)
    if few or draw.off or draw.scarce(y, part["cluster"]):
        return _said("auc_positive", few, metrics.auc, part["mean"], y)
    found = intervals.auc_influence(part["mean"], y, Clusters(part["cluster"], draw.clusters.count))
    return Said("auc_positive", found.value, spread=draw.resamples().linear(*found))


def _said(metric: str, known: str | None, ask: Callable[..., float], *args: Any) -> Said:
    """The metric's value, or why it has none; `known` is a reason found earlier."""
    if known is not None:
        return Said(metric, None, known)
    try:
        return Said(metric, ask(*args))
    except Undefined as why:
        return Said(metric, None, str(why))


def metric_row(said: Said, **place: Any) -> dict[str, Any]:
    said = said._asdict()
    spread = said.pop("spread")
    row = {**dict.fromkeys(COLUMNS), **place, **said}
    if spread is not None:
        low, high = spread.interval(SHAPES.get(row["metric"], "quantiles"))
        row["low"], row["high"] = low if row["metric"] in SIGNED else max(low, 0.0), high
    assert row["note"] if row["value"] is None else np.isfinite(row["value"]), row
    return row


def _means(split: str, rows: Sequence[dict], scenarios: Sequence[str | None],
           spreads: dict[Place, Spread]) -> Iterator[dict]:
    """Means over tasks. A task without a value is left out, and the note says so."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        if row["positives"] is not None:        # of a binary task; errors in different units have no mean
            groups.setdefault((row["scenario"], row["metric"]), []).append(row)
    for (scenario, metric), group in sorted(groups.items(), key=lambda g: scenarios.index(g[0][0])):
        with_value = [r for r in group if r["value"] is not None]
        without = [r["task"] for r in group if r["value"] is None]
        if with_value:
            note = f"without {listing(without)}" if without else None
            said = Said(metric, sum(r["value"] for r in with_value) / len(with_value), note)
            each = [spreads.get((r["task"], scenario, metric)) for r in with_value]
            if all(each):
                said = said._replace(spread=combined(each, [1 / len(each)] * len(each)))
                spreads[None, scenario, metric] = said.spread
        else:
            reasons = dict.fromkeys(r["note"] for r in group)
            said = Said(metric, None, "; ".join(reasons))
        counted = with_value or group
        yield metric_row(said, split=split, scenario=scenario, rows=sum(r["rows"] for r in counted),
                   positives=sum(r["positives"] for r in counted))


def by_scenario(scores: Scores, names: Sequence[str] | None) -> tuple[np.ndarray | None, dict]:
    """An order [n] in which scenarios stand together (None = as they are), and name -> (start, end) in it."""
    n = len(scores.labels)
    edges: dict[str | None, tuple[int, int]] = {None: (0, n)}
    if not names or scores.scenario is None:
        return None, edges
    code = np.asarray(scores.scenario)
    assert not n or (code.min() >= 0 and code.max() < len(names) + 2), "a scenario code has no name"
    narrow = np.uint16 if len(names) + 2 < 2**16 else np.int32      # 16 bits are sorted by radix
    order = np.argsort(code.astype(narrow), kind="stable")
    ends = np.cumsum(np.bincount(code, minlength=len(names) + 2))
    for s, name in [*enumerate(names, 2), (0, NULL), (1, UNSEEN)]:
        a, b = int(ends[s - 1]) if s else 0, int(ends[s])
        if s > 1 or b > a:
            edges[str(name)] = a, b
    return order, edges


def ordered(column: np.ndarray, order: np.ndarray | None) -> np.ndarray:
    return np.asarray(column if order is None else column[order])
