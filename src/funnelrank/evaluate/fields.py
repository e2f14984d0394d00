"""Calibration within the values of a column: field-wise calibration error, and the values that are worst off.

    field_ece = sum over values v of | sum of (p - y) over its rows | / n

A model may be calibrated on the whole and wrong about each country. The column need not be a feature.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from funnelrank.evaluate.measure import Scores
from funnelrank.evaluate.metrics import Z95, Undefined, observed
from funnelrank.evaluate.table import COLUMNS, Shown

WORST = 5


def field_rows(split: str, scores: Scores, column: str, code: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    """Per binary task its `field_ece:COLUMN`, as a row of metrics.json, with `noise` and the worst `values` beside it.

    code int [n] numbers the values, names their texts. `noise` is what perfect probabilities would have by chance. A
    value's z is its gap by the standard deviation that chance gives it, its rows taken as independent.
    """
    rows = []
    for t, task in enumerate(scores.tasks):
        if scores.kinds[t] != "binary":
            continue
        row = {**dict.fromkeys(COLUMNS), "split": split, "task": task, "metric": f"field_ece:{column}", "rows": 0,
               "positives": 0, "noise": None, "values": []}
        try:
            y, log_p, at = observed(scores.labels[:, t], scores.log_p[:, t], code)
        except Undefined as why:
            rows.append(row | {"note": str(why)})
            continue
        p = np.exp(log_p.astype(np.float64))
        if not np.isfinite(p).all():
            rows.append(row | {"rows": len(y), "positives": int(y.sum()), "note": "predictions are NaN"})
            continue
        n, said, seen, chance = (np.bincount(at, w, len(names)) for w in (None, p, y, p * (1 - p)))
        gap, sd = said - seen, np.sqrt(chance)
        z = np.divide(gap, sd, out=np.zeros_like(gap), where=sd > 0)
        worst = [int(v) for v in np.argsort(-np.abs(z), kind="stable")[:WORST] if n[v]]
        rows.append(row | {
            "value": float(np.abs(gap).sum() / len(y)), "rows": len(y), "positives": int(y.sum()),
            "noise": float(np.sqrt(2 / np.pi) * sd.sum() / len(y)),
            "values": [{"name": str(names[v]), "rows": int(n[v]), "p": float(said[v] / n[v]),
                        "y": float(seen[v] / n[v]), "z": float(z[v])} for v in worst]})
    return rows


def show_fields(rows: Sequence[dict[str, Any]]) -> Shown:
    """A line per task and column, and one for each value that departs by more than chance (|z| > 1.96)."""
    lines = []
    for r in rows:
        column = r["metric"].split(":", 1)[1]
        lines.append([r["task"], column, "all values", f"{r['rows']:,}", "", "", r["note"] or f"{r['value']:.4f}",
                      "" if r["noise"] is None else f"{r['noise']:.4f}", ""])
        lines += [[r["task"], column, v["name"], f"{v['rows']:,}", f"{v['p']:.4f}", f"{v['y']:.4f}", "", "",
                   f"{v['z']:+.1f}"] for v in r["values"] if abs(v["z"]) > Z95]
    return Shown(["task", "column", "value", "rows", "p", "y", "field_ece", "noise", "z"], lines)
