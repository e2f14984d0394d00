"""Comparing trained models on the same test rows: paired differences, corrected for how many are asked, in words.

The first run is what the others are held against. A difference and its error come from subtracted spreads
(intervals.py), so what both models find easy or hard in the same users cancels. Of a run with several seeds, the mean
over its seeds is compared, and the spread between seeds is part of the error:

    error^2 = error over users^2 + sd_a^2 / seeds_a + sd_b^2 / seeds_b

with Student's t where seeds are few (Welch and Satterthwaite). P values are corrected by Holm (1979) within two
families: all differences over all rows, and all differences within scenarios.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from funnelrank.errors import ConfigError, DataError, did_you_mean, listing
from funnelrank.evaluate.intervals import Spread, combined
from funnelrank.evaluate.kept import Kept
from funnelrank.evaluate.measure import Scores, measure
from funnelrank.evaluate.metrics import Z95
from funnelrank.evaluate.table import BINARY, OTHER, Shown

ALPHA = 0.05
DIRECTION = {m: d for m, d in (BINARY | OTHER).items() if d}
# what is compared unless metrics are named; GAUC only where there are users
DEFAULT = {"binary": ("auc", "gauc_frozen", "logloss"), "regression": ("rmse",), "count": ("rmse",), "ziln": ("gini",),
           "multiclass": ("accuracy", "logloss")}


@dataclass(frozen=True)
class Contestant:
    """A run, or the seeds of one config."""

    name: str
    seeds: list[Kept]


@dataclass(frozen=True)
class Comparison:
    """What came out. `rows` are plain dicts, one a difference; `notes` what every reader should know."""

    base: str
    split: str
    rows: list[dict[str, Any]]
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        return {"base": self.base, "split": self.split, "alpha": ALPHA, "rows": self.rows, "notes": self.notes,
                "words": words(self)}


def compare(contestants: Sequence[Contestant], metrics: Sequence[str] = (), by_scenario: bool = True) -> Comparison:
    """Each contestant against the first, per task, over all rows and in each scenario; in DEFAULT without `metrics`.

    Raises ConfigError for an unknown metric or fewer than two runs, DataError where runs were not measured on the
    same rows.
    """
    for metric in metrics:
        if metric not in DIRECTION:
            raise ConfigError(f"metrics: no metric '{metric}' that has a better and a worse; there are "
                              f"{listing(DIRECTION, 20)}" + did_you_mean(metric, DIRECTION))
    if len(contestants) < 2:
        raise ConfigError("compare: one run has nothing to be compared with; name two or more")
    tasks = _same_rows(contestants)
    base, *others = contestants
    evaluate = base.seeds[0].evaluate
    if evaluate.intervals == "none":
        evaluate = evaluate.model_copy(update={"intervals": "user"})
    spreads = [[_spreads(kept, tasks, evaluate) for kept in c.seeds] for c in contestants]
    asked = dict.fromkeys([*tasks, None], metrics) if metrics else _default(base.seeds[0], tasks, spreads[0][0])
    places = [(t, s, m) for t, s, m in spreads[0][0] if m in asked[t] and (by_scenario or s is None)]
    places.sort(key=lambda place: place[1] is not None)         # all rows first
    rows = [_difference(place, base.name, other.name, [s.get(place) for s in spreads[0]],
                        [s.get(place) for s in theirs])
            for other, theirs in zip(others, spreads[1:]) for place in places]
    for family in (lambda r: r["scenario"] is None, lambda r: r["scenario"] is not None):
        judge([r for r in rows if family(r) and r["p"] is not None])
    return Comparison(base.name, base.seeds[0].split, rows, _notes(contestants, evaluate, tasks))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down p values: p_(i) x (m - i + 1), never falling, at most 1."""
    out, most = [0.0] * len(p), 0.0
    for place, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        most = max(most, min(p[i] * (len(p) - place), 1.0))
        out[i] = most
    return out


def words(comparison: Comparison) -> list[str]:
    """What the differences over all rows show, and what they do not; then scenarios that stand out."""
    said = []
    for r in comparison.rows:
        task, place = r["task"] or "the mean over tasks", "" if r["scenario"] is None else f" in {r['scenario']}"
        if r["p_corrected"] is None:
            if r["scenario"] is None:
                said.append(f"{r['run']}, {r['metric']} of {task}: {r['note']}.")
        elif r["better"]:
            worse = comparison.base if r["better"] == r["run"] else r["run"]
            said.append(f"Shown: {r['better']} is better than {worse} in {r['metric']} of {task}{place}, by "
                        f"{abs(r['difference']):.4f} ({_ends(r, signed=False)}; p {_p(r['p_corrected'])} after "
                        "correction).")
        elif r["scenario"] is None:
            said.append(f"Not shown: any difference of {r['run']} from {comparison.base} in {r['metric']} of {task} "
                        f"({r['difference']:+.4f}, {_ends(r)}; p {_p(r['p_corrected'])}). This is no proof that they "
                        f"are equal: differences up to {max(abs(r['low']), abs(r['high'])):.4f} remain possible.")
    return said


def shown(comparison: Comparison) -> Shown:
    """A table for a console or for markdown."""
    lines = [[r["run"], r["task"] or "mean", "all" if r["scenario"] is None else r["scenario"], r["metric"],
              _figure(r["base_value"]), _figure(r["value"]), "-" if r["difference"] is None else
              f"{r['difference']:+.4f} +-{(r['high'] - r['low']) / 2:.4f}", _p(r["p_corrected"]),
              f"{r['better']} better" if r["better"] else r["note"] or "not shown"] for r in comparison.rows]
    return Shown(["run", "task", "scenario", "metric", comparison.base, "run's", "difference", "p", "verdict"], lines)


def markdown(comparison: Comparison) -> str:
    """The comparison as a page: words first, then the table."""
    head, lines = shown(comparison)
    cell = lambda text: str(text).replace("|", "\\|").replace("\n", " ")
    table = [head, ["---"] * len(head), *lines]
    return "\n".join([f"# Compared with {comparison.base}, on {comparison.split}", "",
                      *(f"- {s}" for s in words(comparison)), "",
                      *("| " + " | ".join(map(cell, line)) + " |" for line in table), "",
                      *(f"- {n}" for n in comparison.notes), ""])


# ---- from scores to differences

def _same_rows(contestants: Sequence[Contestant]) -> list[str]:
    """The tasks that all have. Raises DataError where rows differ, saying in what."""
    first, base = contestants[0].seeds[0], contestants[0].name
    tasks = [t for t in first.scores.tasks if all(t in k.scores.tasks for c in contestants for k in c.seeds)]
    for c in contestants:
        for kept in c.seeds:
            a, b = first.rows_of, kept.rows_of
            same = "so their difference would not be of the models alone; measure both on the same rows"
            if kept.split != first.split:
                raise DataError(f"{c.name}: was measured on {kept.split}, {base} on {first.split}, {same}")
            if (a["of"], a["rows"]) != (b["of"], b["rows"]):
                raise DataError(f"{c.name}: {b['rows']:,} of {b['of']:,} {kept.split} rows were kept, of "
                                f"{contestants[0].name} {a['rows']:,} of {a['of']:,}, {same}")
            for what in ("user", "scenario"):
                if a[what] != b[what] and a[what] and b[what]:
                    raise DataError(f"{c.name}: its {kept.split} rows have other {what}s than those of "
                                    f"{contestants[0].name}, or stand in another order, {same}")
            for task in tasks:
                if a["labels"][task] != b["labels"][task]:
                    raise DataError(f"{c.name}: label '{task}' differs from that of {contestants[0].name} on the "
                                    f"{kept.split} rows, {same}")
    if not tasks:
        raise DataError(f"{contestants[-1].name}: shares no task with {base}, so nothing can be compared")
    return tasks


def _spreads(kept: Kept, tasks: Sequence[str], evaluate: Any) -> dict[tuple, tuple[dict, Spread | None]]:
    """(task, scenario, metric) -> its row of metrics.json, and its Spread where it has an interval."""
    found: dict[tuple, Spread] = {}
    rows = measure(kept.split, _only(kept.scores, tasks), evaluate, kept.scenarios or None,
                   frozen=kept.frozen and _only(kept.frozen, tasks), spreads=found)
    places = ((r, (r["task"], r["scenario"], r["metric"])) for r in rows)
    return {place: (r, found.get(place)) for r, place in places}


def _default(kept: Kept, tasks: Sequence[str], places: Iterable[tuple]) -> dict[str | None, Sequence[str]]:
    """The metrics of each task, and under None those of the mean over tasks, which is of binary ones."""
    gauc = () if kept.scores.user is None else ("gauc_frozen",) if any(m == "gauc_frozen" for _, _, m in places) else (
        "gauc",)
    kinds = dict(zip(kept.scores.tasks, kept.scores.kinds)) | {None: "binary"}
    return {t: [n for m in DEFAULT[kinds[t]] for n in (gauc if m == "gauc_frozen" else (m,))] for t in (*tasks, None)}


def _only(scores: Scores, tasks: Sequence[str]) -> Scores:
    at = [list(scores.tasks).index(t) for t in tasks]
    parents = [scores.parents[t] for t in at]
    return replace(scores, tasks=list(tasks), kinds=[scores.kinds[t] for t in at],
                   parents=[at.index(p) if p in at else None for p in parents],
                   **{k: getattr(scores, k)[:, at] for k in ("log_p", "log_not_p", "mean", "labels")})


def _difference(place: tuple, base: str, run: str, ours: Sequence, theirs: Sequence) -> dict[str, Any]:
    task, scenario, metric = place
    first = ours[0][0]
    row = {"run": run, "base": base, "task": task, "scenario": scenario, "metric": metric, "base_value": None,
           "value": None, "difference": None, "low": None, "high": None, "error": None, "p": None,
           "p_corrected": None, "better": None, "rows": first["rows"], "positives": first["positives"],
           "seeds": [len(ours), len(theirs)], "note": None}
    found = [x for x in (*ours, *theirs)]
    if any(x is None or x[1] is None for x in found):
        notes = [x[0]["note"] for x in found if x is not None and x[0]["note"]]
        return row | {"note": notes[0] if notes else "not measured in both runs"}
    a, b = (_mean([x[1] for x in some]) for some in (ours, theirs))
    spread = combined([b, a], [1, -1])
    parts = [(spread.error() ** 2, math.inf)]
    for some in (ours, theirs):
        if len(some) > 1:
            values = [x[1].value for x in some]
            parts.append((float(np.var(values, ddof=1)) / len(values), len(values) - 1))
    error = math.sqrt(sum(v for v, _ in parts))
    doubt = sum(v * v / f for v, f in parts)                # 0 where no seeds are averaged
    freedom = error**4 / doubt if doubt else math.inf
    t = spread.value / error if error else 0.0
    half = t_quantile(freedom) * error
    return row | {"base_value": a.value, "value": b.value, "difference": spread.value, "error": error,
                  "low": spread.value - half, "high": spread.value + half, "p": t_p_value(t, freedom)}


def _mean(spreads: Sequence[Spread]) -> Spread:
    return combined(spreads, [1 / len(spreads)] * len(spreads))


def judge(family: Sequence[dict[str, Any]]) -> None:
    """Corrected p values, and who is better where one is below ALPHA, written into the rows."""
    for row, p in zip(family, holm([r["p"] for r in family])):
        row["p_corrected"], row["better"] = p, None
        if p < ALPHA:
            row["better"] = row["run"] if row["difference"] * DIRECTION[row["metric"]] > 0 else row["base"]


def t_quantile(freedom: float) -> float:
    """The 97.5 % quantile of Student's t: where t_p_value is .05. From 2 degrees on, 0 to 4 % above the exact one."""
    if math.isinf(freedom):
        return Z95
    f = max(freedom, 1.0)
    return math.sqrt(f * math.expm1((Z95 * (8 * f + 3) / (8 * f + 1)) ** 2 / f))


def t_p_value(t: float, freedom: float) -> float:
    """Two-sided p of Student's t, by Wallace's transformation to a normal (1959); exact for infinite freedom."""
    t = abs(t)
    z = t if math.isinf(freedom) else (
        (8 * freedom + 1) / (8 * freedom + 3) * math.sqrt(freedom * math.log1p(t * t / freedom)))
    return math.erfc(z / math.sqrt(2))


def _notes(contestants: Sequence[Contestant], evaluate: Any, tasks: Sequence[str]) -> list[str]:
    first = contestants[0].seeds[0]
    rows = first.rows_of
    drawn = "users" if rows["user"] and evaluate.intervals == "user" else "rows"
    notes = [f"Differences are the run's value less that of {contestants[0].name}, on the same {rows['rows']:,} rows "
             f"of {first.split}" + (f" (of {rows['of']:,})" if rows["of"] != rows["rows"] else "")
             + f"; +- is half of a 95 % interval of {drawn} drawn anew.",
             "P values are corrected by Holm, over all differences of all rows and, apart, over those in scenarios."]
    if single := [c.name for c in contestants if len(c.seeds) == 1]:
        notes.append(f"One training each of {listing(single)}: what is shown is of these trained models. Whether the "
                     "same config would be better when trained again, several seeds say (funnelrank train --seeds 5).")
    left = [t for c in contestants for k in c.seeds for t in k.scores.tasks if t not in tasks]
    if left:
        notes.append(f"Not compared, because not every run has them: {listing(dict.fromkeys(left))}.")
    return notes


def _ends(row: dict[str, Any], signed: bool = True) -> str:
    """The interval of a difference; not `signed`: of by how much the better one is better."""
    low, high = row["low"], row["high"]
    if signed:
        return f"95 %: {low:+.4f} to {high:+.4f}"
    low, high = sorted((low, high) if row["difference"] > 0 else (-low, -high))
    return f"95 %: {low:.4f} to {high:.4f}"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _p(p: float | None) -> str:
    return "-" if p is None else "<0.0001" if p < 1e-4 else f"{p:.4f}"
