"""Several trainings of one config side by side, and several runs in one list. Reads rows of metrics.json only."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from funnelrank.errors import ConfigError, did_you_mean, listing
from funnelrank.evaluate.table import Shown, direction, is_fact

SHOWN = ("auc", "gauc", "gauc_frozen", "logloss", "pcoc", "ece", "rmse")


def summary(runs: Sequence[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """One row a split, task, scenario and metric: over the seeds the mean, sd, least and most of its value.

    sd is None with fewer than two values; `half` is the mean half width of the values' own intervals: what users drawn
    anew would do, where sd is what training anew does.
    """
    found: dict[tuple, list[Mapping]] = {}
    for rows in runs:
        for r in (r for r in rows if not is_fact(r["metric"])):
            found.setdefault((r["split"], r["task"], r["scenario"], r["metric"]), []).append(r)
    out = []
    for (split, task, scenario, metric), some in found.items():
        values = [r["value"] for r in some if r["value"] is not None]
        halves = [(r["high"] - r["low"]) / 2 for r in some if r["low"] is not None]
        out.append({"split": split, "task": task, "scenario": scenario, "metric": metric, "seeds": len(values),
                    "mean": statistics.fmean(values) if values else None,
                    "sd": statistics.stdev(values) if len(values) > 1 else None,
                    "least": min(values, default=None), "most": max(values, default=None),
                    "half": statistics.fmean(halves) if halves else None, "values": values,
                    "rows": some[0]["rows"], "positives": some[0]["positives"],
                    "note": next((r["note"] for r in some if r["note"]), None)})
    return out


def show(rows: Sequence[Mapping[str, Any]], split: str) -> Shown:
    """A line a task over all rows: mean, sd and range over seeds of each metric."""
    mine = [r for r in rows if r["split"] == split and r["scenario"] is None]
    metrics = [m for m in SHOWN if any(r["metric"] == m and r["mean"] is not None for r in mine)]
    lines = []
    for task in dict.fromkeys(r["task"] for r in mine):
        of = {r["metric"]: r for r in mine if r["task"] == task}
        lines.append([task or "mean", *(_cell(of.get(m)) for m in metrics)])
    return Shown(["task", *metrics], lines)


def markdown(name: str, rows: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> str:
    """summary.md."""
    text = [f"# {name}, seeds {', '.join(map(str, seeds))}", "",
            "Mean, standard deviation over seeds, and in brackets the least and the most."]
    for split in dict.fromkeys(r["split"] for r in rows):
        head, lines = show(rows, split)
        table = (head, ["---"] * len(head), *lines)
        text += ["", f"## {split}", "", *("| " + " | ".join(line) + " |" for line in table)]
    return "\n".join(text) + "\n"


def leaderboard(runs: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]], metric: str) -> Shown:
    """Runs by one number, the best first. runs: name -> rows of metrics.json of each of its seeds.

    metric: 'test/auc', 'test/buy/logloss'. Means over seeds, with their sd, and half the interval over users.
    """
    parts = metric.split("/")
    if len(parts) not in (2, 3):
        raise ConfigError(f"metric: '{metric}' is no metric's name; write 'test/auc' for the mean over tasks, or "
                          "'test/buy/auc'")
    split, task, name = parts[0], parts[1] if len(parts) == 3 else None, parts[-1]
    way = direction(name, "metric")
    lines = []
    for run, seeds in runs.items():
        found = [r for r in summary(seeds) if (r["split"], r["task"], r["scenario"], r["metric"]) == (
            split, task, None, name)]
        lines.append((run, found[0] if found else None))
    if not any(r for _, r in lines):
        there = {"/".join(filter(None, (r["split"], r["task"], r["metric"]))) for all_seeds in runs.values()
                 for rows in all_seeds for r in rows if r["scenario"] is None}
        raise ConfigError(f"metric: none of {listing(runs)} has '{metric}'{did_you_mean(metric, sorted(there))}")
    key = lambda line: math.inf if line[1] is None or line[1]["mean"] is None else -way * line[1]["mean"]
    table = [[str(i), run, *(["-"] * 4 if r is None or r["mean"] is None else [
        f"{r['mean']:.4f}", f"+-{r['half']:.4f}" if r["half"] is not None else "-",
        f"{r['sd']:.4f}" if r["sd"] is not None else "-", str(r["seeds"])])]
        for i, (run, r) in enumerate(sorted(lines, key=key), 1)]
    return Shown(["", "run", metric, "users", "sd of seeds", "seeds"], table)


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None or row["mean"] is None:
        return "-"
    if row["sd"] is None:
        return f"{row['mean']:.4f}"
    return f"{row['mean']:.4f} sd {row['sd']:.4f} [{row['least']:.4f} {row['most']:.4f}]"
