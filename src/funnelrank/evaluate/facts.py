"""What else a run's metrics.json holds, so that every number of its report stands there: facts about rows and cost.

    label:rate              of every split and task: positives of those observed; `of` is all rows, `given` the rate
                            among rows with the step before it, which is `after`
    label:contradicts       of every split and step: rows with a 1 where the step before, `after`, has a 0
    label:dropped           of every split: rows that data.contradictions dropped; repaired, filled
    feature:price:nulls     of every split and feature: a count that is not 0, beside `of`, what it is a share of
    bin:07                  of every binary task of the last split: observed rate of a bin of equal mass, `predicted`
    gate:NAME:expert 2      of the last split: what a gate weighs (gates.py)
    kept:price              of the last split: the share of a feature that the model has learned to keep
    cost:parameters         of the model: `tables` of them in tables; cost:multiply_adds a row, forward

Rows of a fact have all of table.COLUMNS, and what else is named here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from funnelrank.evaluate.table import COLUMNS

OF_ELEMENTS = ("oov", "dropped", "cut")      # counts of a list that are of its elements


def label_rows(coverage: Mapping[str, Mapping[str, Mapping[str, Any]]],
               parents: Mapping[str, str | None] | None = None) -> list[dict[str, Any]]:
    """split -> task -> {rows, observed, positives}, and the task that each comes after."""
    found = []
    for split, tasks in coverage.items():
        rate = {t: c["positives"] / c["observed"] for t, c in (tasks or {}).items()
                if c and c.get("positives") is not None and c["observed"]}
        for task, c in (tasks or {}).items():
            if c:
                row = _row(split=split, task=task, metric="label:rate", value=rate.get(task), rows=c["observed"],
                           positives=c.get("positives"), of=c["rows"])
                if before := (parents or {}).get(task):
                    given = rate[task] / rate[before] if task in rate and rate.get(before) else None
                    row |= {"after": before, "given": given}
                found.append(row)
    return found


def contradiction_rows(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """split -> {policy, dropped, repaired, filled, edges: [{child, parent, rows, positives, first}, ...]}."""
    rows = []
    for split, said in found.items():
        if not said:
            continue
        for what in ("dropped", "repaired"):
            if said.get(what):
                rows.append(_row(split=split, metric=f"label:{what}", value=said[what]))
        if filled := sum((said.get("filled") or {}).values()):
            rows.append(_row(split=split, metric="label:filled", value=filled))
        rows += [_row(split=split, task=e["child"], metric="label:contradicts", value=e["rows"], of=e["positives"],
                      after=e["parent"], first=e.get("first")) for e in said.get("edges") or ()]
    return rows


def feature_rows(counts: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """split -> feature -> {rows, nulls, oov, nonfinite, missing_keys}, and {empty, ids, dropped, cut} of lists."""
    found = []
    for split, features in counts.items():
        for name, c in (features or {}).items():
            for what, n in c.items():
                if what == "rows" or not n and what != "nulls":
                    continue
                of = c["rows"]
                if c.get("ids") is not None and what in OF_ELEMENTS:
                    of = c["ids"] + (0 if what == "oov" else c.get("dropped", 0) + c.get("cut", 0))
                found.append(_row(split=split, metric=f"feature:{name}:{what}", value=n, rows=c["rows"],
                                  # of rows or of elements, as the list is looked up; the counts do not say
                                  of=None if what == "missing_keys" and c.get("ids") is not None else of))
    return found


def kept_rows(split: str, shares: Mapping[str, float] | None) -> list[dict[str, Any]]:
    """feature -> how much of it is kept, where a part of the model has learned that."""
    return [_row(split=split, metric=f"kept:{name}", value=share) for name, share in (shares or {}).items()]


def bin_rows(split: str, reliability: Mapping[str, Mapping[str, Sequence[float]]]) -> list[dict[str, Any]]:
    """task -> {p, y, count, low, high} as lists."""
    return [_row(split=split, task=task, metric=f"bin:{i:02d}", value=b["y"][i], low=b["low"][i], high=b["high"][i],
                 rows=int(b["count"][i]), predicted=b["p"][i])
            for task, b in reliability.items() for i in range(len(b["p"]))]


def cost_rows(parameters: int, tables: int, multiply_adds: float | None) -> list[dict[str, Any]]:
    """multiply_adds: of a row, forward; None where they were not counted."""
    return [_row(metric="cost:parameters", value=parameters, tables=tables),
            *([_row(metric="cost:multiply_adds", value=multiply_adds)] if multiply_adds is not None else [])]


def _row(**said: Any) -> dict[str, Any]:
    return {**dict.fromkeys(COLUMNS), **said}
