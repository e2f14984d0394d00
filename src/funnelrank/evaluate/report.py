"""report.html: one file that shows a run to a person. It loads nothing from anywhere and runs no script.

Every section says so where it has nothing to show. Every text that came from a config, a file or a log is escaped.
"""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from funnelrank.evaluate.pictures import (
    Picture,
    auc_by_scenario,
    learning_curves,
    printable,
    reliability_diagrams,
)

METRICS = {
    "auc": "chance that a positive row gets a higher score than a negative one; 0.5 is guessing",
    "gauc": "AUC within each user, weighted by the user's rows",
    "gauc_unweighted": "AUC within each user, every user alike",
    "gauc_frozen": "GAUC with each user's lists held as at his first row of the split",
    "pr_auc": "average precision; guessing gives the rate of positives",
    "logloss": "mean cross entropy in nats; lower is better",
    "ne": "log loss divided by that of always saying the mean; below 1 is better than nothing",
    "pcoc": "predicted over observed; 1 is calibrated on the whole",
    "ece": "mean distance of predicted and observed rates over bins of equal mass",
    "violation_rate": "share of rows where a step is said to be likelier than the step before it",
    "rmse": "root of the mean squared error",
    "mae": "mean absolute error",
    "auc_oracle": "AUC of the true probabilities: no model can do better",
    "logloss_oracle": "log loss of the true probabilities",
    "pcoc_oracle": "predicted over observed of the true probabilities: how far chance alone goes",
}
COUNTS = {"nulls": "null", "oov": "not in vocabulary", "empty": "empty list", "nonfinite": "not finite",
          "missing_keys": "key not in table"}
MANY = 0.5               # a share of rows that deserves a second look
MOST_LINES = 120         # of one split's metrics; metrics.json has all


def write_report(path: Path, run: Mapping[str, Any]) -> None:
    """Writes the page of one run to `path`, whole or not at all. Any key of `run` may be missing or empty.

    name, config       texts
    metrics            rows of metrics.json
    events             of the run's log; those named step and evaluate are drawn
    counts             split -> feature -> {rows, nulls, oov, empty, nonfinite, missing_keys}
    coverage           split -> task -> {rows, observed, positives}
    contradictions     split -> a list of {child, parent, rows, positives, first}, or {policy, edges: that list, ...}
    reliability        task -> {p, y, count, low, high} as lists
    about              seed, started, seconds, versions, training
    """
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with new.open("w", encoding="utf-8") as file:
            file.write(page(run))
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


def page(run: Mapping[str, Any]) -> str:
    """The text of the page; see write_report."""
    name = run.get("name") or "run"
    rows = [r for r in run.get("metrics") or [] if r.get("metric")]
    splits = list(dict.fromkeys(r["split"] for r in rows))
    last = splits[-1] if splits else ""
    sections = [
        ("Results", _results(rows, splits)),
        ("Learning curves", _pictures(learning_curves(run.get("events") or []), "No steps were logged.")),
        ("Calibration", _pictures(reliability_diagrams(run.get("reliability") or {}),
                                  "No binary task with observed labels was measured.",
                                  "Each dot is a bin of rows with similar predictions; on the dashed line, what was "
                                  "predicted is what happened. Bars are 95 % intervals.")),
        ("AUC by scenario", _pictures(auc_by_scenario(rows, last), "The data has no scenarios.",
                                      f"On {_h(last)}. The number behind a scenario is its rows; the dashed line is "
                                      "the AUC over all rows.")),
        ("Metrics per task and scenario", _metrics(rows, splits)),
        ("Labels", _labels(run.get("coverage") or {}) + _contradictions(run.get("contradictions") or {})),
        ("Features", _features(run.get("counts") or {})),
        ("Config", f"<pre>{_h(run['config'])}</pre>" if run.get("config") else _nothing("No config was given.")),
        ("Versions", _versions(run.get("about") or {})),
    ]
    ids = {title: title.lower().replace(" ", "-") for title, _ in sections}
    links = " ".join(f'<a href="#{ids[title]}">{title}</a>' for title in ids)
    body = "\n".join(f'<section id="{ids[title]}"><h2>{title}</h2>\n{text}\n</section>' for title, text in sections)
    css = files(__package__).joinpath("report.css").read_text(encoding="utf-8")
    return (f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f'<meta name="color-scheme" content="light dark">\n'
            f"<title>{_h(name)} - funnelrank</title>\n<style>\n{css}</style>\n</head>\n<body>\n"
            f"<header><h1>{_h(name)}</h1>\n{_facts(run.get('about') or {})}\n<nav>{links}</nav></header>\n"
            f"<main>\n{body}\n</main>\n</body>\n</html>\n")


# ---- sections

def _facts(about: Mapping[str, Any]) -> str:
    training = about.get("training") if isinstance(about.get("training"), Mapping) else {}
    facts = [("started", about.get("started")), ("took", _duration(about.get("seconds"))),
             ("training", _duration(training.get("seconds"))), ("steps", training.get("steps")),
             ("seed", about.get("seed"))]
    said = [f"{key} <b>{_h(value)}</b>" for key, value in facts if value is not None]
    return f'<p class="facts">{" · ".join(said)}</p>' if said else ""


def _results(rows: Sequence[Mapping], splits: Sequence[str]) -> str:
    parts = []
    for split in splits:
        whole = [r for r in rows if r["split"] == split and r["scenario"] is None
                 and r["metric"] != "gauc_unweighted"]      # the page's first table must fit its width
        parts.append(f"<h3>{_h(split)}</h3>" + _metric_tables(whole, with_scenario=False))
    return "".join(parts) or _nothing("Nothing was measured: the run had neither a valid nor a test split.")


def _metrics(rows: Sequence[Mapping], splits: Sequence[str]) -> str:
    if not any(r["scenario"] is not None for r in rows):
        return _nothing("The data has no scenarios; the results above are all there is." if rows else
                        "Nothing was measured.")
    parts = []
    for split in reversed(splits):
        text = _metric_tables([r for r in rows if r["split"] == split], with_scenario=True)
        parts.append(f"<h3>{_h(split)}</h3>{text}" if split == splits[-1] else
                     f"<details><summary>{_h(split)}</summary>{text}</details>")
    used = dict.fromkeys(r["metric"] for r in rows)
    legend = "".join(f"<dt>{_h(m)}</dt><dd>{_h(METRICS[m])}</dd>" for m in METRICS if m in used)
    return ("".join(parts) + "<details><summary>What the metrics mean</summary>"
            f'<dl class="legend">{legend}</dl></details>')


def _metric_tables(rows: Sequence[Mapping], with_scenario: bool) -> str:
    """Binary tasks and their means in one table, regressions and counts, which have other metrics, in a second."""
    valued = {r["task"] for r in rows if r["positives"] is None}
    return "".join(_metric_table(some, with_scenario) for some in
                   ([r for r in rows if r["task"] not in valued], [r for r in rows if r["task"] in valued]) if some)


def _metric_table(rows: Sequence[Mapping], with_scenario: bool) -> str:
    lines: dict[tuple, dict[str, Mapping]] = {}
    for r in rows:
        lines.setdefault((r["task"], r["scenario"]), {})[r["metric"]] = r
    names = [m for m in dict.fromkeys(r["metric"] for r in rows)
             if any(r["value"] is not None for r in rows if r["metric"] == m)]
    positives = any(r["positives"] is not None for r in rows)
    users = any(line.get("gauc", {}).get("users") is not None for line in lines.values())
    body, noted = [], False
    for (task, scenario), line in list(lines.items())[:MOST_LINES]:
        first = next(iter(line.values()))
        values = [_figure(line[m]["value"]) if m in line else "" for m in names]
        gauc = line.get("gauc", {})
        notes = dict.fromkeys(r["note"] for r in line.values() if r["note"])
        noted |= bool(notes)
        body.append([_h("mean over tasks" if task is None else task),
                     *(["<b>all</b>" if scenario is None else _h(scenario)] if with_scenario else []),
                     _whole(first["rows"]), *([_whole(first["positives"])] if positives else []),
                     *([_of(gauc.get("valid_users"), gauc.get("users"))] if users else []),
                     *values, _h("; ".join(notes))])
    head = ["task", *(["scenario"] if with_scenario else []), "rows", *(["positives"] if positives else []),
            *(["valid users"] if users else []), *names, *(["note"] if noted else [])]
    body = body if noted else [line[:-1] for line in body]
    more = len(lines) - len(body)
    return (_table(head, body, texts=2 if with_scenario else 1, last_is_text=noted)
            + (f'<p class="note">{more:,} more lines are in metrics.json.</p>' if more > 0 else ""))


def _labels(coverage: Mapping[str, Mapping]) -> str:
    body = []
    for split, tasks in coverage.items():
        for task, c in (tasks or {}).items():
            rows, observed, positives = (c.get(k) for k in ("rows", "observed", "positives"))
            body.append([_h(split), _h(task), _whole(rows), _whole(observed), _share(observed, rows),
                         _whole(positives), _share(positives, observed, digits=3)])
    if not body:
        return _nothing("No labels were counted.")
    return _table(["split", "task", "rows", "observed", "of rows", "positives", "of observed"], body, texts=2)


def _contradictions(found: Mapping[str, Any]) -> str:
    body, policies = [], []
    for split, report in found.items():
        edges = report.get("edges") if isinstance(report, Mapping) else report
        if isinstance(report, Mapping) and report.get("policy"):
            did = [f"{_whole(report[k])} rows {k}" for k in ("dropped", "repaired") if report.get(k)]
            filled = sum((report.get("filled") or {}).values())
            did += [f"{_whole(filled)} implied labels filled"] if filled else []
            policies.append(f"{_h(split)}: policy <b>{_h(report['policy'])}</b>{''.join(f', {d}' for d in did)}.")
        body += [[_h(split), f"{_h(e.get('child'))} = 1 where {_h(e.get('parent'))} = 0", _whole(e.get("rows")),
                  _share(e.get("rows"), e.get("positives")), _h(e.get("first") or "")] for e in edges or []]
    text = "<h3>Contradictions of the funnel</h3>" + "".join(f'<p class="note">{p}</p>' for p in policies)
    if not body:
        return text + _nothing("No task comes after another, or none was checked.")
    return text + _table(["split", "contradiction", "rows", "of positives", "first"], body, texts=2, last_is_text=True)


def _features(counts: Mapping[str, Mapping]) -> str:
    parts = []
    for split, features in counts.items():
        names = dict.fromkeys(k for c in (features or {}).values() for k in c if k not in ("rows", "values"))
        names = [*(k for k in COUNTS if k in names), *(k for k in names if k not in COUNTS)]
        body = []
        for feature, c in (features or {}).items():
            # unseen ids of a list are counted among its values, everything else among rows
            of = {k: c.get("values", c.get("rows")) if k == "oov" else c.get("rows") for k in names}
            body.append([_h(feature), _whole(c.get("rows")), *(_counted(c.get(k), of[k]) for k in names)])
        if body:
            parts.append(f"<h3>{_h(split)}</h3>"
                         + _table(["feature", "rows", *(COUNTS.get(k, k) for k in names)], body, texts=1))
    return "".join(parts) or _nothing("No features were counted.")


def _versions(about: Mapping[str, Any]) -> str:
    versions = about.get("versions")
    if not versions or not isinstance(versions, Mapping):
        return _nothing("No versions were recorded.")
    return _table(["package", "version"], [[_h(k), _h(v)] for k, v in versions.items()], texts=2)


def _pictures(pictures: Sequence[Picture], otherwise: str, lead: str = "") -> str:
    if not pictures:
        return _nothing(otherwise)
    figures = []
    for p in pictures:
        note = f"<p>{_h(p.note)}</p>" if p.note else ""
        svg = p.svg.replace("<svg ", f'<svg aria-label="{_h(p.title)}" ', 1)
        figures.append(f"<figure><figcaption><b>{_h(p.title)}</b>{note}</figcaption>{svg}</figure>")
    return (f'<p class="note">{lead}</p>' if lead else "") + f'<div class="pictures">{"".join(figures)}</div>'


# ---- cells

def _table(head: Sequence[str], body: Iterable[Sequence[str]], texts: int, last_is_text: bool = False) -> str:
    """A table of cells that are already HTML; `head` is not. The first `texts` columns are texts, others numbers."""
    def kind(i: int) -> str:
        return ' class="t"' if i < texts or (last_is_text and i == len(head) - 1) else ""

    def title(name: str) -> str:
        text = _h(name).replace("_", "_<wbr>")
        return f'<abbr title="{_h(METRICS[name])}">{text}</abbr>' if name in METRICS else text

    titles = "".join(f"<th{kind(i)}>{title(name)}</th>" for i, name in enumerate(head))
    lines = "\n".join("<tr>" + "".join(f"<td{kind(i)}>{cell}</td>" for i, cell in enumerate(line)) + "</tr>"
                      for line in body)
    return f'<div class="scroll"><table><thead><tr>{titles}</tr></thead>\n<tbody>\n{lines}\n</tbody></table></div>'


def _h(value: Any) -> str:
    return escape(printable(value))


def _nothing(sentence: str) -> str:
    return f'<p class="note">{sentence}</p>'


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _figure(value: Any) -> str:
    if not _number(value):
        return "-"
    return f"{value:.4f}" if abs(value) < 100 else f"{value:,.1f}"


def _whole(value: Any) -> str | None:
    return f"{value:,.0f}" if _number(value) else "-" if value is None else _h(value)


def _of(part: Any, whole: Any) -> str:
    return f"{_whole(part)} <small>of {_whole(whole)}</small>" if _number(part) and _number(whole) else "-"


def _share(part: Any, whole: Any, digits: int = 1) -> str:
    if not _number(part) or not _number(whole) or not whole:
        return "-"
    percent, least = 100 * part / whole, 10**-digits
    return f"&lt;{least} %" if 0 < percent < least / 2 else f"{percent:.{digits}f} %"


def _counted(part: Any, whole: Any) -> str:
    if not _number(part):
        return "" if part is None else _h(part)
    if not part or not _number(whole) or not whole:
        return _whole(part)
    text = f"{_whole(part)} <small>{_share(part, whole)}</small>"
    return f"<mark>{text}</mark>" if part > MANY * whole else text


def _duration(seconds: Any) -> str | None:
    if not _number(seconds):
        return None
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
