"""The rows of metrics.json: every metric of every task, over all rows and in each scenario, and their means.

One row is a dict of COLUMNS. Fields that a metric does not have are None; a value that is None has a note.

scenario None   all rows of the split
task None       the mean over the binary tasks that have the metric; rows and positives are sums over these tasks

`wide` puts a split on one line, `value` finds the number that early stopping watches, `show` is for a console.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from funnelrank import settings
from funnelrank.errors import ConfigError, did_you_mean, listing
from funnelrank.evaluate import metrics
from funnelrank.evaluate.metrics import Ranking, Undefined

COLUMNS = ("split", "task", "scenario", "metric", "value", "low", "high", "rows", "positives", "users",
           "valid_users", "note")
BINARY = {"auc": 1, "gauc": 1, "gauc_unweighted": 1, "gauc_frozen": 1, "pr_auc": 1, "logloss": -1, "ne": -1,
          "pcoc": 0, "ece": -1, "violation_rate": -1}     # 1 = higher is better; pcoc is best at 1
OTHER = {"rmse": -1, "mae": -1, "pcoc": 0}
NULL, UNSEEN = "(null)", "(unseen)"


@dataclass(frozen=True)
class Scores:
    """What a model says about n rows and T tasks, beside what happened. Arrays may be memory-mapped."""

    tasks: Sequence[str]
    kinds: Sequence[str]                 # binary | regression | count
    parents: Sequence[int | None]        # position of the task that comes before
    log_p: np.ndarray                    # [n, T] of binary tasks, over all impressions; others are not read
    log_not_p: np.ndarray                # [n, T]
    mean: np.ndarray                     # [n, T] of regressions and counts, on rows where the label is observed
    labels: np.ndarray                   # [n, T], NaN = not observed
    scenario: np.ndarray | None = None   # int [n]: 0 null, 1 unseen in train, s + 2 = names[s]
    user: np.ndarray | None = None       # int [n], -1 = null


class Said(NamedTuple):
    """One metric's answer, before it is told where it belongs."""

    metric: str
    value: float | None
    note: str | None = None
    users: int | None = None
    valid_users: int | None = None


def measure(split: str, scores: Scores, evaluate: settings.Evaluate, scenarios: Sequence[str] | None = None,
            frozen: Scores | None = None, truth: Mapping[str, np.ndarray] | None = None) -> list[dict[str, Any]]:
    """All rows of one split, in the order task, scenario, metric; means over tasks last.

    scenarios  names of scenario codes 2, 3, ...; None or empty where the data has none
    frozen     the same rows scored with each user's lists held as at his first row; adds gauc_frozen
    truth      task -> its true probabilities [n]; adds auc_oracle, logloss_oracle and pcoc_oracle
    """
    order, edges = _by_scenario(scores, scenarios)
    user = None if scores.user is None else _ordered(metrics.dense_users(np.asarray(scores.user)), order)
    rows = []
    for t, (task, kind, parent) in enumerate(zip(scores.tasks, scores.kinds, scores.parents)):
        columns = {"user": user, "label": _ordered(scores.labels[:, t], order)}
        child_and_parent = ()
        if kind != "binary":
            columns["mean"] = _ordered(scores.mean[:, t], order)
        else:
            columns["log_p"] = _ordered(scores.log_p[:, t], order)
            columns["log_not_p"] = _ordered(scores.log_not_p[:, t], order)
            columns["frozen"] = None if frozen is None else _ordered(frozen.log_p[:, t], order)
            columns["truth"] = _ordered(truth[task], order) if truth and task in truth else None
            if parent is not None:
                child_and_parent = columns["log_p"], _ordered(scores.log_p[:, parent], order)
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
            answers = (_binary if kind == "binary" else _other)(part, evaluate, empty)
            rows += [_row(said, rows=n, **place) for said in answers]
            if child_and_parent:
                said = _said("violation_rate", None, metrics.violation_rate, *(x[a:b] for x in child_and_parent))
                rows.append(_row(said, rows=b - a, **place))
    return rows + list(_means(split, rows, list(edges)))


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


def to_json(rows: Sequence[Mapping[str, Any]]) -> str:
    """The text of metrics.json, one row a line, without NaN or Infinity."""
    return "[\n" + ",\n".join(json.dumps(r, ensure_ascii=False, allow_nan=False) for r in rows) + "\n]\n"


# ---- reading the rows

def wide(rows: Sequence[Mapping[str, Any]], split: str, scenario: str | None = None) -> dict[str, Any]:
    """One split on one line: auc_click, gauc_click, valid_users_click, ..., auc_macro, gauc_macro, ..."""
    line: dict[str, Any] = {}
    for r in rows:
        if r["split"] == split and r["scenario"] == scenario:
            of = r["task"] or "macro"
            line[f"{r['metric']}_{of}"] = r["value"]
            if r["metric"] == "gauc" and r["task"]:
                line[f"valid_users_{of}"] = r["valid_users"]
    return line


def direction(metric: str, where: str = "train.early_stopping.metric") -> int:
    """+1 where higher is better, -1 where lower is. Takes 'auc' or 'valid/buy/auc'. ConfigError for others."""
    known, name = BINARY | OTHER, metric.rsplit("/", 1)[-1]
    if name not in known:
        raise ConfigError(f"{where}: no metric '{name}'; metrics are {listing(known, 20)}" + did_you_mean(name, known))
    if not known[name]:
        raise ConfigError(f"{where}: '{name}' is best at 1, not when high or low; watch logloss instead")
    return known[name]


def check_name(name: str, tasks: Mapping[str, str], splits: Iterable[str] = ("valid",),
               where: str = "train.early_stopping.metric") -> tuple[str, str | None, str]:
    """'valid/buy/auc' -> (split, task, metric), 'valid/auc' -> the mean over tasks. tasks: name -> kind.

    ConfigError for a split, a task or a metric that there is not.
    """
    split, *middle, metric = name.split("/") if name.count("/") in (1, 2) else ("", name)
    if not split:
        raise ConfigError(f"{where}: '{name}' is no metric's name; write 'valid/auc' for the mean over tasks, or "
                          f"'valid/{next(iter(tasks), 'click')}/auc'")
    task = middle[0] if middle else None
    if split not in splits:
        raise ConfigError(f"{where}: no split '{split}' in '{name}'; use {listing(splits)}")
    if task is not None and task not in tasks:
        raise ConfigError(f"{where}: no task '{task}' in '{name}'; tasks are {listing(tasks)}"
                          + did_you_mean(task, tasks))
    if task is None and metric in tasks:
        raise ConfigError(f"{where}: '{name}' names a task but no metric; write '{name}/auc' or '{name}/logloss'")
    known = BINARY | OTHER
    if metric not in known:
        raise ConfigError(f"{where}: no metric '{metric}' in '{name}'; metrics are {listing(known, 20)}"
                          + did_you_mean(metric, known))
    if task is None and (metric not in BINARY or "binary" not in tasks.values()):
        raise ConfigError(f"{where}: '{name}' has no mean over tasks; name one task, as in "
                          f"'{split}/{next(iter(tasks), 'click')}/{metric}'")
    if task is not None and metric not in (fits := BINARY if tasks[task] == "binary" else OTHER):
        raise ConfigError(f"{where}: '{task}' is a {tasks[task]} and has no '{metric}'; it has {listing(fits, 20)}")
    return split, task, metric


def value(rows: Sequence[Mapping[str, Any]], name: str, where: str = "train.early_stopping.metric") -> float | None:
    """The value over all rows of 'valid/buy/auc' or 'valid/auc'; None where its row says, in `note`, why not.

    ConfigError for a name that no row has.
    """
    kinds = {r["task"]: "regression or count" if r["positives"] is None else "binary" for r in rows if r["task"]}
    wanted = check_name(name, kinds, list(dict.fromkeys(r["split"] for r in rows)), where)
    for r in rows:
        if (r["split"], r["task"], r["metric"]) == wanted and r["scenario"] is None:
            return r["value"]
    raise ConfigError(f"{where}: '{name}' was not measured in this run")


class Shown(NamedTuple):
    """A table of texts."""

    columns: list[str]
    rows: list[list[str]]


def show(rows: Sequence[Mapping[str, Any]], split: str) -> Shown:
    """One line per task x scenario, then the means: ranking, log loss, calibration and counts, for a person."""
    lines: dict[tuple, dict[str, Mapping]] = {}
    for r in rows:
        if r["split"] == split:
            lines.setdefault((r["task"], r["scenario"]), {})[r["metric"]] = r
    measured = {m for line in lines.values() for m, r in line.items() if r["value"] is not None}
    columns = [m for m in ("auc", "gauc", "gauc_frozen", "auc_oracle", "logloss", "rmse", "mae", "pcoc")
               if m in measured or m in ("auc", "logloss", "pcoc")]
    table = []
    for (task, scenario), line in lines.items():
        said = [_figure(line[m]["value"]) if m in line else "" for m in columns]
        first = next(iter(line.values()))       # auc or rmse: both are of all observed rows
        notes = dict.fromkeys(line[m]["note"] for m in columns if m in line and line[m]["note"])
        table.append([task or "mean", "all" if scenario is None else scenario, *said, f"{first['rows']:,}",
                      "" if first["positives"] is None else f"{first['positives']:,}", "; ".join(notes)])
    if not any(line[-1] for line in table):
        return Shown(["task", "scenario", *columns, "rows", "positives"], [line[:-1] for line in table])
    return Shown(["task", "scenario", *columns, "rows", "positives", "note"], table)


def _figure(number: float | None) -> str:
    return "-" if number is None else f"{number:.4f}" if abs(number) < 100 else f"{number:,.1f}"


# ---- from rows to metrics

def _by_scenario(scores: Scores, names: Sequence[str] | None) -> tuple[np.ndarray | None, dict]:
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


def _ordered(column: np.ndarray, order: np.ndarray | None) -> np.ndarray:
    return np.asarray(column if order is None else column[order])


def _binary(part: Mapping[str, np.ndarray], evaluate: settings.Evaluate, empty: str | None) -> Iterator[Said]:
    """Metrics of one binary task on its observed rows."""
    log_p, log_not_p, user, y = part["log_p"], part["log_not_p"], part.get("user"), part["label"] == 1
    positives, negatives = int(np.count_nonzero(y)), int(np.count_nonzero(~y))
    few = empty or ("too few positives" if positives < evaluate.min_positives else
                    "too few negatives" if negatives < evaluate.min_positives else None)
    ranking = cache(lambda: Ranking(log_p, y))
    yield _said("auc", few, lambda: ranking().auc())
    yield from _by_user(("gauc", "gauc_unweighted"), few, log_p, y, user)
    if "frozen" in part:
        yield from _by_user(("gauc_frozen",), few, part["frozen"], y, user)
    yield _said("pr_auc", few, lambda: ranking().pr_auc())
    yield _said("logloss", empty, metrics.logloss, log_p, log_not_p, y)
    yield _said("ne", empty, metrics.ne, log_p, log_not_p, y)
    yield _said("pcoc", empty, metrics.pcoc, np.exp(log_p), y)
    yield _said("ece", empty, lambda: ranking().bins(evaluate.bins, np.exp).ece())
    if "truth" in part:
        p = part["truth"]
        with np.errstate(divide="ignore"):      # log 0 is -inf, which is what such a truth says
            log_p, log_not_p = np.log(p), np.log1p(-p)
        yield _said("auc_oracle", few, metrics.auc, p, y)
        yield _said("logloss_oracle", empty, metrics.logloss, log_p, log_not_p, y)
        yield _said("pcoc_oracle", empty, metrics.pcoc, p, y)


def _by_user(names: Sequence[str], few: str | None, score: np.ndarray, y: np.ndarray,
             user: np.ndarray | None) -> Iterator[Said]:
    """GAUC under one or two names; users are counted even where positives are too few for a value."""
    values, users, valid, note = (None, None), None, None, "data.user is not set"
    if user is not None:
        try:
            *values, valid, users = metrics.gauc(score, y, user)
            note = few or (None if valid else "no user has both classes")
        except Undefined as why:
            note = few or str(why)
    for name, value in zip(names, values):
        yield Said(name, None if note else value, note, users, valid)


def _other(part: Mapping[str, np.ndarray], evaluate: settings.Evaluate, empty: str | None) -> Iterator[Said]:
    """Metrics of a regression or a count on its observed rows."""
    for name, metric in (("rmse", metrics.rmse), ("mae", metrics.mae), ("pcoc", metrics.pcoc)):
        yield _said(name, empty, metric, part["mean"], part["label"])


def _said(metric: str, known: str | None, ask: Callable[..., float], *args: Any) -> Said:
    """The metric's value, or why it has none; `known` is a reason found earlier."""
    if known is not None:
        return Said(metric, None, known)
    try:
        return Said(metric, ask(*args))
    except Undefined as why:
        return Said(metric, None, str(why))


def _row(said: Said, **place: Any) -> dict[str, Any]:
    row = {**dict.fromkeys(COLUMNS), **place, **said._asdict()}
    assert row["note"] if row["value"] is None else np.isfinite(row["value"]), row
    return row


def _means(split: str, rows: Sequence[dict], scenarios: Sequence[str | None]) -> Iterator[dict]:
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
        else:
            reasons = dict.fromkeys(r["note"] for r in group)
            said = Said(metric, None, "; ".join(reasons))
        counted = with_value or group
        yield _row(said, split=split, scenario=scenario, rows=sum(r["rows"] for r in counted),
                   positives=sum(r["positives"] for r in counted))
