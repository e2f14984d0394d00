"""report.html: one file that shows a run to a person. It loads nothing from anywhere and runs no script.

Every section says so where it has nothing to show. Every text that came from a config, a file or a log is escaped.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from funnelrank.evaluate.pictures import (
    Picture,
    auc_by_scenario,
    learning_curves,
    printable,
    ranking_by_task,
    reliability_diagrams,
    shortened,
)
from funnelrank.evaluate.table import NO_INTERVAL, is_view

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
    "ece_noise": "the ECE that perfect probabilities would have on these rows, by chance",
    "violation_rate": "share of rows where a step is said to be likelier than the step before it",
    "auc_given": "AUC of p(step | the step before), on the rows where that happened",
    "pcoc_given": "predicted over observed of p(step | the step before), there",
    "logloss_given": "log loss of p(step | the step before), there",
    "rmse": "root of the mean squared error",
    "spearman": "correlation of ranks",
    "gini": "normalised Gini: how much of all amounts lies with the rows told the most, 1 at best",
    "auc_positive": "AUC of an amount above 0",
    "accuracy": "share of rows whose likeliest class is theirs",
    "auc_ovr": "AUC of each class against the others, the mean over classes",
    "mae": "mean absolute error",
    "auc_oracle": "AUC of the true probabilities: no model can do better",
    "logloss_oracle": "log loss of the true probabilities",
    "pcoc_oracle": "predicted over observed of the true probabilities: how far chance alone goes",
}
STEPS = ("auc_given", "logloss_given", "pcoc_given", "ece_given", "violation_size")     # in a section of their own
COUNTS = {"nulls": "null", "oov": "not in vocabulary", "empty": "empty list", "nonfinite": "not finite",
          "missing_keys": "key not in table", "ids": "ids", "dropped": "dropped", "cut": "cut"}
MANY = 0.5               # a share that deserves a second look
MOST_LINES = 120         # of one split's metrics; metrics.json has all
MEAN = '<span class="whole" title="rows and positives are sums over these tasks">mean over tasks</span>'
MOST_DRIFT = 25          # features of the drift table
MOST_NAME = 60           # characters of a name out of a log or a config
MOST_PLACE = 200         # of where a row stands: a path and a number


def page(run: Mapping[str, Any]) -> str:
    """The text of the page of one run. Any key of `run` may be missing or empty.

    name, config       texts
    metrics            rows of metrics.json
    events             of the run's log; those named step and evaluate are drawn
    counts             split -> feature -> {rows, nulls, oov, nonfinite, missing_keys}, and {empty, ids, dropped,
                       cut} of lists
    coverage           split -> task -> {rows, observed, positives}
    contradictions     split -> a list of {child, parent, rows, positives, first}, or {policy, edges: that list, ...}
    skipped            split -> {files, groups, group_rows, rows, samples}
    reliability        task -> {p, y, count, low, high} as lists, of the last split in `metrics`
    about              model, reading, parameters, seed, started, seconds, versions, training
    """
    name = run.get("name") or "run"
    every = [r for r in run.get("metrics") or [] if r.get("metric")]
    rows = [r for r in every if not is_view(r["metric"]) and r["metric"] not in STEPS]
    splits = list(dict.fromkeys(r["split"] for r in rows))
    last = splits[-1] if splits else ""
    on_last = f"On {_h(last)}. " if last else ""
    sections = [
        ("Results", _results(rows, splits)),
        ("Ranking by task", _pictures(ranking_by_task(rows, last), "No binary task was measured.",
                                      f"{on_last}Bars are 95 % intervals of users drawn anew (of rows, where the log "
                                      "has no users). Two models are compared by <code>funnelrank compare</code>, not "
                                      "by whether their bars overlap.")),
        ("Learning curves", _pictures(learning_curves(run.get("events") or []), "No steps were logged.")),
        ("Calibration", _pictures(reliability_diagrams(run.get("reliability") or {}),
                                  "No binary task with observed labels was measured.",
                                  f"{on_last}Each dot is a bin of rows with similar predictions; on the dashed line, "
                                  "what was predicted is what happened. Bars are 95 % intervals.")),
        ("AUC by scenario", _pictures(auc_by_scenario(rows, last), "The data has no scenarios.",
                                      f"{on_last}The number behind a scenario is its rows; the dashed line is the AUC "
                                      "over all rows. Bars are 95 % intervals of users drawn anew (of rows, where the "
                                      "log has no users); a dot without one has too few positives.")),
        ("Metrics per task and scenario", _metrics(rows, splits)),
        *([("Funnel", text)] if (text := _funnel([r for r in every if r["split"] == last])) else []),
        *([("Cold starts", text)] if (text := _cold([r for r in every if r["split"] == last])) else []),
        *([("Drift", text)] if (text := _drift(every, splits)) else []),
        ("Labels", _labels(run.get("coverage") or {}) + _contradictions(run.get("contradictions") or {})),
        *([("Skipped", _skipped(run["skipped"]))] if any((run.get("skipped") or {}).values()) else []),
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
    versions = about.get("versions") if isinstance(about.get("versions"), Mapping) else {}
    facts = [("model", about.get("model")), ("reading", about.get("reading")),
             ("parameters", _whole(about["parameters"]) if about.get("parameters") is not None else None),
             ("seed", about.get("seed")), ("started", about.get("started")), ("took", _duration(about.get("seconds"))),
             ("training", _duration(training.get("seconds"))), ("steps", training.get("steps")),
             *versions.items()]
    said = [f"{_h(key)} <b>{_name(value)}</b>" for key, value in facts if value is not None]
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
    """Binary tasks and their means; what the true probabilities reach; regressions and counts."""
    valued = {r["task"] for r in rows if r["positives"] is None}
    binary, oracle, other = [], [], []
    for r in rows:
        (other if r["task"] in valued else oracle if r["metric"].endswith("_oracle") else binary).append(r)
    texts = [_metric_table(some, with_scenario) if some else "" for some in (binary, oracle, other)]
    if oracle:
        texts[1] = '<p class="note">What a model would reach that says the true probabilities:</p>' + texts[1]
    return "".join(texts)


def _metric_table(rows: Sequence[Mapping], with_scenario: bool) -> str:
    """One line per task and scenario. A value without a number, or with a note, points to a line below the table."""
    lines: dict[tuple, dict[str, Mapping]] = {}
    for r in rows:
        lines.setdefault((r["task"], r["scenario"]), {})[r["metric"]] = r
    every, known = dict.fromkeys(r["metric"] for r in rows), {r["metric"] for r in rows if r["value"] is not None}
    names = [m for m in every if m in known]
    positives = any(r["positives"] is not None for r in rows)
    users = any(line.get("gauc", {}).get("users") is not None for line in lines.values())
    body, notes = [], {}
    for (task, scenario), line in list(lines.items())[:MOST_LINES]:
        first = next(iter(line.values()))
        gauc = line.get("gauc", {})
        body.append([MEAN if task is None else _name(task),
                     *(["<b>all</b>" if scenario is None else _name(scenario)] if with_scenario else []),
                     _whole(first["rows"]), *([_whole(first["positives"])] if positives else []),
                     *([_of(gauc.get("valid_users"), gauc.get("users"))] if users else []),
                     *(_noted(line[m], notes) if m in line else "" for m in names)])
    head = ["task", *(["scenario"] if with_scenario else []), "rows", *(["positives"] if positives else []),
            *(["valid users"] if users else []), *names]
    below = [f"<sup>{i}</sup> {_h(note)}" for note, i in notes.items()]
    for m in every:
        if m not in known:
            why = dict.fromkeys(r["note"] for r in rows if r["metric"] == m and r["note"])
            below.append(f"{_h(m)} has no value: {_h('; '.join(why))}")
    if any(task is None for task, _ in lines):
        below.append("Rows and positives of a mean over tasks are sums over these tasks.")
    if len(lines) > len(body):
        below.append(f"{len(lines) - len(body):,} more lines are in metrics.json.")
    return (_table(head, body, texts=2 if with_scenario else 1)
            + (f'<p class="note below">{"<br>".join(below)}</p>' if below else ""))


def _funnel(rows: Sequence[Mapping]) -> str:
    """Each step given the one before, beside the same step over all impressions."""
    whole = {(r["task"], r["metric"]): r for r in rows if r["scenario"] is None}
    body = []
    for task in dict.fromkeys(t for t, m in whole if m == "auc_given" and t):
        given, over, size = (whole.get((task, m)) for m in ("auc_given", "violation_rate", "violation_size"))
        cell = lambda metric, task=task: _noted(whole[task, metric], {}) if (task, metric) in whole else ""
        body.append([_name(task), _whole(given["rows"]), _whole(given["positives"]), cell("auc_given"),
                     cell("pcoc_given"), cell("logloss_given"), cell("auc"), cell("pcoc"),
                     _share(over and over["value"], 1, digits=2), _figure(size and size["value"])])
    if not body:
        return ""
    return ('<p class="note">Given: p(step | the step before) on the rows where that happened. Others: p(step) on all '
            "rows. Violations: rows where a step is said to be likelier than the one before, and by how much on "
            "average.</p>"
            + _table(["step", "rows given", "positives", "auc_given", "pcoc_given", "logloss_given", "auc", "pcoc",
                      "violations", "size"], body, texts=1))


def _cold(rows: Sequence[Mapping]) -> str:
    """Metrics by how often train had a row's value of a column."""
    lines: dict[tuple, dict[str, Mapping]] = {}
    for r in rows:
        if "@" in r["metric"]:
            metric, place = r["metric"].split("@", 1)
            lines.setdefault((*place.rsplit(":", 1), r["task"]), {})[metric] = r
    if not lines:
        return ""
    names, notes = ("auc", "logloss", "pcoc"), {}
    body = [[_name(column), _h(bucket), MEAN if task is None else _name(task),
             *(_whole(next(iter(line.values()))[k]) for k in ("rows", "positives")),
             *(_noted(line[m], notes) if m in line else "" for m in names)]
            for (column, bucket, task), line in list(lines.items())[:MOST_LINES]]
    below = "<br>".join(f"<sup>{i}</sup> {_h(note)}" for note, i in notes.items())
    return ('<p class="note">By the number of train rows with the same value of a column; new: none.</p>'
            + _table(["column", "rows in train", "task", "rows", "positives", *names], body, texts=3)
            + (f'<p class="note below">{below}</p>' if below else ""))


def _drift(rows: Sequence[Mapping], splits: Sequence[str]) -> str:
    """Features and scores by how far they moved, the farthest first."""
    moved: dict[tuple, dict[str, Mapping]] = {}
    for r in rows:
        if r["metric"].startswith("psi:") and r["value"] is not None:
            moved.setdefault((r["metric"].removeprefix("psi:"), r["task"]), {})[r["split"]] = r
    if not moved:
        return ""
    far = sorted(moved.items(), key=lambda m: -max(r["value"] for r in m[1].values()))
    scores = [m for m in far if m[0][1] is not None]
    features = [m for m in far if m[0][1] is None]
    body = [[f"score of {_name(task)}" if task else _name(name),
             *(f"{_figure(of[s]['value'])} <small>noise {_figure(of[s].get('noise'))}</small>" if s in of else ""
               for s in splits)] for (name, task), of in (*scores, *features[:MOST_DRIFT])]
    left = len(features) - min(len(features), MOST_DRIFT)
    return ('<p class="note">Population stability index of what the model reads, from train to each split; of scores, '
            "from valid to test. 0: nothing moved; by custom .1 is little, .25 much. Noise: what chance alone gives. "
            "Lengths of histories grow with any log.</p>"
            + _table(["", *splits], body, texts=1)
            + (f'<p class="note below">{left:,} more that moved less are in metrics.json.</p>' if left else ""))


def _noted(row: Mapping[str, Any], notes: dict[str, int]) -> str:
    """The value with half its interval, and with the number that its note has, or now gets, below the table."""
    text, note = _figure(row["value"]), row["note"]
    if _number(row.get("low")) and _number(row.get("high")):
        ends, half = f"{_figure(row['low'])} to {_figure(row['high'])}", _figure((row["high"] - row["low"]) / 2)
        text = f'<span title="95 %: {ends}">{text} <small>±{half}</small></span>'
    if not note or (row["value"] is not None and note.endswith(NO_INTERVAL)):
        return text
    number = notes.setdefault(note, len(notes) + 1)
    return f'<span title="{_h(note)}">{text}<sup>{number}</sup></span>'


def _labels(coverage: Mapping[str, Mapping]) -> str:
    body = []
    for split, tasks in coverage.items():
        for task, c in (tasks or {}).items():
            rows, observed, positives = (c.get(k) for k in ("rows", "observed", "positives"))
            body.append([_h(split), _name(task), _whole(rows), _whole(observed), _share(observed, rows),
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
        for e in edges or []:
            body.append([_h(split), f"{_name(e.get('child'))} = 1 where {_name(e.get('parent'))} = 0",
                         _whole(e.get("rows")), _share(e.get("rows"), e.get("positives")),
                         escape(shortened(e.get("first") or "", MOST_PLACE))])
    text = "<h3>Contradictions of the funnel</h3>" + "".join(f'<p class="note">{p}</p>' for p in policies)
    if not body:
        return text + _nothing("No task comes after another, or none was checked.")
    return text + _table(["split", "contradiction", "rows", "of positives", "first"], body, texts=2, last_is_text=True)


def _skipped(found: Mapping[str, Mapping]) -> str:
    body = [[_h(split), *(_whole(said.get(k)) for k in ("files", "groups", "group_rows", "rows"))]
            for split, said in found.items() if said]
    samples = [sentence for said in found.values() for sentence in (said or {}).get("samples", ())]
    return ('<p class="note">Left out by <code>data.on_error: skip</code>, in no count below.</p>' +
            _table(["split", "files", "row groups", "rows of these", "single rows"], body, texts=1) +
            "<ul>" + "".join(f"<li>{escape(shortened(s, 400))}</li>" for s in samples) + "</ul>")


def _features(counts: Mapping[str, Mapping]) -> str:
    parts, lists = [], False
    for split, features in counts.items():
        names = dict.fromkeys(k for c in (features or {}).values() for k in c if k != "rows")
        names = [*(k for k in COUNTS if k in names), *(k for k in names if k not in COUNTS)]
        lists |= "ids" in names
        body = [[_name(feature), _whole(c.get("rows")), *(_count(c, k) for k in names)]
                for feature, c in (features or {}).items()]
        if body:
            parts.append(f"<h3>{_h(split)}</h3>" + _table(["feature", "rows", *(COUNTS.get(k, k) for k in names)],
                                                          body, texts=1))
    said = ("Shares are of rows. In lists they are of elements: not in vocabulary of the ids that the model sees, "
            "dropped and cut of all; null and empty list are of rows there too." if lists else "Shares are of rows.")
    return f'<p class="note">{said}</p>{"".join(parts)}' if parts else _nothing("No features were counted.")


def _count(c: Mapping[str, Any], key: str) -> str:
    """One count of a feature beside its share, or for ids how many a row has. Only lists have `ids`."""
    part, rows, ids = c.get(key), c.get("rows"), c.get("ids")
    if key == "ids":
        return f"{part / rows:,.1f} per row" if _number(part) and _number(rows) and rows else _counted(part, None)
    if ids is None or key not in ("oov", "dropped", "cut", "missing_keys"):
        return _counted(part, rows)
    if key == "missing_keys":       # of rows or of elements, as the list is looked up; the counts do not say
        return _counted(part, None)
    return _counted(part, ids if key == "oov" else ids + (c.get("dropped") or 0) + (c.get("cut") or 0))


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
        svg = p.svg.replace("<svg ", f'<svg aria-label="{_name(p.title)}" ', 1)
        figures.append(f"<figure><figcaption><b>{_name(p.title)}</b>{note}</figcaption>{svg}</figure>")
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


def _name(value: Any) -> str:
    return escape(shortened(value, MOST_NAME))


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
