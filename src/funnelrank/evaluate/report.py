"""report.html: one file that shows a run to a person, the verdict first; and report.md, the same for a pull request.

It loads nothing from anywhere and runs no script. Every section says so where it has nothing to show. Numbers say
where they come from (page.py); those of quality, rows and cost are all in metrics.json.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from funnelrank.evaluate import sections
from funnelrank.evaluate.page import (
    FORMATS,
    Number,
    duration,
    elsewhere,
    figures,
    frame,
    h,
    html_of,
    integer,
    is_number,
    name_of,
    nothing,
    plain_of,
)
from funnelrank.evaluate.pictures import auc_by_scenario, learning_curves, ranking_by_task, reliability_diagrams
from funnelrank.evaluate.table import is_view
from funnelrank.evaluate.verdict import verdict

STEPS = ("auc_given", "logloss_given", "pcoc_given", "ece_given", "violation_size")     # in a section of their own
STEPS = ("auc_given", "logloss_given", "pcoc_given", "ece_given", "violation_size")     # in a section of their own
MARKS = {"good": "\N{CHECK MARK}", "look": "!", "bad": "\N{MULTIPLICATION X}", "plain": "\N{BULLET}"}
WORDS = {"good": "good", "look": "look at this", "bad": "not shown", "plain": ""}


def page(run: Mapping[str, Any]) -> str:
    """The text of the page of one run. Any key of `run` may be missing or empty.

    name, config       texts
    metrics            rows of metrics.json, in its order
    events             of the run's log; steps, evaluations, warnings and the profile are shown
    skipped            split -> {files, groups, group_rows, rows, samples}
    about              model, reading, seed, started, seconds, versions, training, machine, data
    """
    name, about = run.get("name") or "run", run.get("about") or {}
    events = run.get("events") or []
    every, rows, splits, last = _rows(run)
    on_last = f"On {h(last)}. " if last else ""
    drawn = "95 % intervals of users drawn anew (of rows, where the log has no users)"
    parts = [
        ("Verdict", _verdict(every, last, events, about)),
        ("Funnel", _funnel(every, last)),
        ("Quality", figures(ranking_by_task(rows, last), "No binary task was measured.",
                            f"{on_last}Bars are {drawn}. Two models are compared by <code>funnelrank compare</code>, "
                            "not by whether their bars overlap.") + sections.results(rows, splits)),
        ("Scenarios", figures(auc_by_scenario(rows, last), "The data has no scenarios.",
                              f"{on_last}AUC. The number behind a scenario is its rows; the dashed line is the AUC "
                              f"over all rows. Bars are {drawn}; a dot without one has too few positives.")),
        ("Calibration", figures(reliability_diagrams(_bins(every)),
                                "No binary task with observed labels was measured.",
                                f"{on_last}Each dot is a bin of rows with similar predictions; on the dashed line, "
                                "what was predicted is what happened. Bars are 95 % intervals.")),
        ("Learning curves", figures(learning_curves(events), "No steps were logged.")),
        ("Metrics per task and scenario", sections.metrics(rows, splits)),
        *sections.given([r for r in every if r["split"] == last], last),
        *([("Cold starts", text)] if (text := sections.cold([r for r in every if r["split"] == last])) else []),
        *([("Drift", text)] if (text := sections.drift(every, splits)) else []),
        ("Labels", sections.labels(every) + sections.contradictions(every)),
        *([("Skipped", sections.skipped(run["skipped"]))] if any((run.get("skipped") or {}).values()) else []),
        ("Features", sections.features(every)),
        *([("Feature selection", text)] if (text := sections.kept(every)) else []),
        ("Gates", sections.gates(every)),
        ("Cost", sections.cost(every, events, about)),
        ("Fingerprints", sections.fingerprints(about)),
        ("Config", f"<pre>{h(run['config'])}</pre>" if run.get("config") else nothing("No config was given.")),
    ]
    return frame(name, _facts(about), parts)


def markdown(run: Mapping[str, Any]) -> str:
    """report.md: the verdict, quality and calibration per task, the funnel, cost. Takes what `page` does."""
    about, events = run.get("about") or {}, run.get("events") or []
    every, rows, _, last = _rows(run)
    cell = lambda text: str(text).replace("|", "\\|").replace("\n", " ")
    found = verdict(every, last, events, about)
    marked = {"good": "\N{WHITE HEAVY CHECK MARK} ", "look": "\N{WARNING SIGN} ", "bad": "\N{CROSS MARK} ",
              "plain": ""}
    lines = [f"# {cell(run.get('name') or 'run')}", "", cell(plain_of(found.headline)), "",
             *(f"- {marked[p.mark]}{cell(plain_of(p.said))}" for p in (*found.tasks, *found.look)), ""]
    whole = [r for r in rows if r["split"] == last and r["scenario"] is None and not r["metric"].endswith("_oracle")]
    shown = [m for m in ("auc", "gauc", "gauc_frozen", "logloss", "pcoc", "ece", "rmse", "accuracy")
             if any(r["metric"] == m and r["value"] is not None for r in whole)]
    by_task: dict[str | None, dict[str, Mapping]] = {}
    for r in whole:
        by_task.setdefault(r["task"], {})[r["metric"]] = r
    if shown:
        lines += ["| task | rows | positives | " + " | ".join(shown) + " |", "| --- " * (len(shown) + 3) + "|"]
        for task, of in by_task.items():
            first = next(iter(of.values()))
            values = [_with_half(of[m]) if m in of else "" for m in shown]
            lines.append("| " + " | ".join([cell(task or "mean"), integer(first["rows"]), integer(first["positives"]),
                                            *values]) + " |")
        lines += ["", f"On {cell(last)}; +- is half of a 95 % interval.", ""]
    if steps := _steps(every, last):
        lines += ["| step | happened | of rows | of the step before |", "| --- | --- | --- | --- |"]
        lines += ["| " + " | ".join([cell(r["task"]), FORMATS["integer"](r, "positives"), FORMATS["rate"](r, "value"),
                                     FORMATS["percent"](r, "given")]) + " |" for _, r in steps]
        lines.append("")
    training = about.get("training") if isinstance(about.get("training"), Mapping) else {}
    facts = [*(f"{r['metric'].removeprefix('cost:').replace('_', '-')} {integer(r['value'])}" for r in every
               if r["metric"].startswith("cost:")), *sections.speed(training)]
    return "\n".join([*lines, *([f"Cost: {', '.join(facts)}."] if facts else []), ""])


def _rows(run: Mapping[str, Any]) -> tuple[list[dict], list[dict], list[str], str]:
    """All rows with their places, those of metrics over whole splits, the measured splits, and the last of them."""
    every = [{**r, "at": i} for i, r in enumerate(run.get("metrics") or []) if r.get("metric")]
    rows = [r for r in every if not is_view(r["metric"]) and r["metric"] not in STEPS]
    splits = list(dict.fromkeys(r["split"] for r in rows))
    return every, rows, splits, splits[-1] if splits else ""


# ---- sections

def _verdict(rows: Sequence[Mapping], split: str, events: Sequence[Mapping], about: Mapping[str, Any]) -> str:
    found = verdict(rows, split, events, about)
    point = lambda p: (f'<li class="{p.mark}"><span class="mark" title="{WORDS[p.mark]}">{MARKS[p.mark]}</span>'
                       f"<span>{html_of(p.said)}</span></li>")
    text = f'<p class="headline">{html_of(found.headline)}</p>'
    if found.tasks:
        text += f'<ul class="points">{"".join(map(point, found.tasks))}</ul>'
    if found.look:
        text += f'<h3>Look at</h3><ul class="points">{"".join(map(point, found.look))}</ul>'
    return text


def _steps(rows: Sequence[Mapping], split: str) -> list[tuple[int, Mapping]]:
    """(depth, row of label:rate) of every binary task, each behind the one that it comes after."""
    mine = {r["task"]: r for r in rows if r["metric"] == "label:rate" and r["split"] == split
            and r["value"] is not None}
    found: list[tuple[int, Mapping]] = []

    def under(parent: str | None, depth: int) -> None:
        for task, r in mine.items():
            if (r.get("after") if r.get("after") in mine else None) == parent:
                found.append((depth, r))
                under(task, depth + 1)
    under(None, 0)
    return found


def _funnel(rows: Sequence[Mapping], split: str) -> str:
    steps = _steps(rows, split)
    if not steps:
        return nothing("No binary label was observed.")
    off = {r["task"]: r for r in rows if (r["split"], r["metric"], r["scenario"]) == (split, "pcoc", None)}
    whole = max((r for _, r in steps), key=lambda r: r["of"] or 0)
    lines = ['<div class="step"><span class="label">rows</span><span class="track"><span class="bar" '
             f'style="--w:100%"></span></span><span class="said">{Number(whole, "of", "integer").html()}</span></div>']
    for depth, r in steps:
        said = [Number(r, "positives", "integer").html(), f"<b>{Number(r, how='rate').html()}</b> of rows"]
        if is_number(r.get("given")):
            said.append(f"<b>{Number(r, 'given', 'percent').html()}</b> of {name_of(r['after'])}")
        if r["task"] in off and off[r["task"]]["value"] is not None:
            said.append(f"predicted \N{MULTIPLICATION SIGN}{Number(off[r['task']], how='short').html()}")
        lines.append(f'<div class="step"><span class="label" style="--d:{depth}">{name_of(r["task"])}</span>'
                     f'<span class="track"><span class="bar" style="--w:{max(100 * r["value"], 0.15):.3g}%"></span>'
                     f'</span><span class="said">{" · ".join(said)}</span></div>')
    return (f'<p class="note">On {h(split)}, what happened: how often each step was taken, of all rows and of those '
            "with the step before it; and how often the model says it would be.</p>"
            f'<div class="funnel">{"".join(lines)}</div>')


def _bins(rows: Sequence[Mapping]) -> dict[str, dict[str, list]]:
    """task -> its reliability diagram, as bin_rows wrote it."""
    found: dict[str, dict[str, list]] = {}
    for r in rows:
        if r["metric"].startswith("bin:"):
            b = found.setdefault(r["task"], {k: [] for k in ("p", "y", "low", "high", "count")})
            for key, value in zip(b, (r["predicted"], r["value"], r["low"], r["high"], r["rows"])):
                b[key].append(value)
    return found


def _facts(about: Mapping[str, Any]) -> str:
    training = about.get("training") if isinstance(about.get("training"), Mapping) else {}
    facts = [("model", about.get("model")), ("reading", about.get("reading")), ("seed", about.get("seed")),
             ("started", about.get("started")), ("took", duration(about.get("seconds"))),
             ("steps", training.get("steps"))]
    said = [f"{h(key)} <b>{elsewhere(name_of(value), 'artefact/manifest.json')}</b>" for key, value in facts
            if value is not None]
    return f'<p class="facts">{" · ".join(said)}</p>' if said else ""


def _with_half(row: Mapping[str, Any]) -> str:
    """The value as text, with half of its interval."""
    half = FORMATS["half"](row, "value")
    return FORMATS["figure"](row, "value") + (f" +-{half}" if half != "-" else "")
