"""explain.html: what answers come from, on one page: importances per task and scenario, gates, and fewer features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from funnelrank.evaluate import sections
from funnelrank.evaluate.page import figures, frame, h, integer, is_number, name_of, nothing, table_of
from funnelrank.evaluate.pictures import importance_by_task

MOST_FEATURES = 40          # of the table by scenario


def page(found: Mapping[str, Any], selected: Mapping[str, Any] | None = None, verdict: Sequence[str] = ()) -> str:
    """The text of the page. `found` and `selected` as Explained.to_json() and Selected.to_json() give them; `verdict`:
    sentences about the latter."""
    kinds, rows = found["kinds"], found["importance"]
    of = lambda kind: [r for r in rows if kinds[r["feature"]] == kind]
    lead = ("How much a task's AUC falls when a feature's values are dealt to other rows (of tasks that are no yes or "
            "no, how much its loss rises). Bars are 95 % intervals of users drawn anew. A feature is dealt together "
            "with the numbers that are read off it; two that say the same hide each other.")
    parts = [("Importance", figures(importance_by_task(of("feature")), "No task could be measured.", lead)),
             ("Roles", figures(importance_by_task(of("role")), "All features are of one role each.",
                               "The same of all features of a role at once.")),
             ("By scenario", _by_scenario(of("feature"))),
             ("Gates", sections.gates([g for g in found["gates"] if not g.get("by")]) + _by_column(found["gates"])),
             *([("Fewer features", _fewer(selected, verdict))] if selected else [])]
    head = (f'<p class="facts">on <b>{integer(found["looked"])}</b> rows of <b>{h(found["split"])}</b> · all numbers: '
            "explain.json</p>")
    return frame(f"{found['name']}: what its answers come from", head, parts)


def markdown(found: Mapping[str, Any], columns: Sequence[str], lines: Sequence[Sequence[str]],
             verdict: Sequence[str] = ()) -> str:
    cell = lambda text: str(text).replace("|", "\\|").replace("\n", " ")
    table = [columns, ["---"] * len(columns), *lines]
    return "\n".join([f"# What answers of {cell(found['name'])} come from", "",
                      f"AUC (or loss) that it costs to deal a feature's values to other rows, on {found['looked']:,}"
                      f" rows of {cell(found['split'])}; +- is half of a 95 % interval of users drawn anew.", "",
                      *("| " + " | ".join(map(cell, line)) + " |" for line in table), "",
                      *(f"- {cell(said)}" for said in verdict), *([""] if verdict else [])])


def _by_scenario(rows: Sequence[Mapping]) -> str:
    """A table a task: features by scenarios, coloured by how much of the largest importance there each has."""
    text = []
    for task in dict.fromkeys(r["task"] for r in rows):
        metric = "auc" if any(r["task"] == task and r["metric"] == "auc" for r in rows) else "loss"
        mine = [r for r in rows if (r["task"], r["metric"]) == (task, metric)]
        scenarios = sorted({r["scenario"] for r in mine if r["scenario"] is not None and is_number(r["value"])},
                           key=lambda s: -max(r["rows"] for r in mine if r["scenario"] == s))[:sections.MOST_SCENARIOS]
        if not scenarios:
            continue
        at = {(r["feature"], r["scenario"]): r for r in mine}
        top = {s: max((at[f, x]["value"] for f, x in at if x == s and is_number(at[f, x]["value"])), default=0.0)
               for s in [None, *scenarios]}
        names = sorted({f for f, _ in at}, key=lambda f: -(at[f, None]["value"] or 0.0))[:MOST_FEATURES]
        cell = lambda f, s, at=at, top=top: _heat(at.get((f, s)), top[s])
        text.append(f"<h3>{name_of(task)} ({metric})</h3>" + table_of(
            ["feature", "all", *map(str, scenarios)],
            [[name_of(f), cell(f, None), *(cell(f, s) for s in scenarios)] for f in names], texts=1))
    note = '<p class="note">Darker: more of the most there. Small: the interval holds 0.</p>'
    return note + "".join(text) if text else nothing("The data has no scenarios, or too few positives in each.")


def _heat(row: Mapping[str, Any] | None, top: float) -> str:
    if row is None or not is_number(row["value"]):
        return "-"
    share = max(row["value"], 0.0) / top if top > 0 else 0.0
    sure = row["low"] is None or row["low"] > 0 or row["high"] < 0
    text = f"{row['value']:+.4f}"
    return f'<span class="heat" style="--s:{min(share, 1.0):.2f}">{text if sure else f"<small>{text}</small>"}</span>'


def _by_column(gates: Sequence[Mapping]) -> str:
    columns = dict.fromkeys(g["by"] for g in gates if g.get("by"))
    return "".join(f"<h3>By {name_of(column)}</h3>" + sections.gates(
        [g for g in gates if g.get("by") == column], sliced="by value") for column in columns)


def _fewer(selected: Mapping[str, Any], verdict: Sequence[str]) -> str:
    body = []
    for step in selected["steps"]:
        each = {r["task"]: r for r in step["rows"] if r["task"]}
        body.append([str(step["features"]), *(
            f"{r['difference']:+.4f} <small>({r['low']:+.4f} to {r['high']:+.4f})</small>"
            if r["difference"] is not None else "-" for r in each.values()), h(", ".join(step["removed"]))])
    tasks = list(dict.fromkeys(r["task"] for s in selected["steps"] for r in s["rows"] if r["task"]))
    return ("<ul>" + "".join(f"<li>{h(said)}</li>" for said in verdict) + "</ul>"
            + table_of(["features", *map(str, tasks), "left out"], body, texts=1, last_is_text=True))
