"""The tables of a run's report, from rows of metrics.json with their places there as `at`; each a section's HTML."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from funnelrank.evaluate.page import (
    FORMATS,
    MANY,
    Number,
    duration,
    elsewhere,
    h,
    integer,
    is_number,
    name_of,
    nothing,
    share,
    table_of,
)
from funnelrank.evaluate.pictures import shortened
from funnelrank.evaluate.table import NO_INTERVAL

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
COUNTS = {"nulls": "null", "oov": "not in vocabulary", "empty": "empty list", "nonfinite": "not finite",
          "missing_keys": "key not in table", "ids": "ids", "dropped": "dropped", "cut": "cut"}
WIDE = ("gauc_unweighted", "pr_auc", "ne")      # not in the page's first table, which must fit its width
MOST_LINES = 120         # of one split's metrics; metrics.json has all
MEAN = '<span class="whole" title="rows and positives are sums over these tasks">mean over tasks</span>'
MOST_SCENARIOS = 12      # columns of a table
MOST_DRIFT = 25          # features of the drift table
MOST_PLACE = 200         # of where a row stands: a path and a number


def results(rows: Sequence[Mapping], splits: Sequence[str]) -> str:
    parts = []
    for split in reversed(splits):
        mine = [r for r in rows if r["split"] == split and r["scenario"] is None and r["metric"] not in WIDE]
        text = _metric_tables(mine, with_scenario=False)
        parts.append(f"<h3>{h(split)}</h3>{text}" if split == splits[-1] else
                     f"<details><summary>{h(split)}</summary>{text}</details>")
    return "".join(parts) or nothing("Nothing was measured: the run had neither a valid nor a test split.")


def metrics(rows: Sequence[Mapping], splits: Sequence[str]) -> str:
    if not any(r["scenario"] is not None for r in rows):
        return nothing("The data has no scenarios; the results above are all there is." if rows else
                        "Nothing was measured.")
    parts = []
    for split in reversed(splits):
        text = _metric_tables([r for r in rows if r["split"] == split], with_scenario=True)
        parts.append(f"<h3>{h(split)}</h3>{text}" if split == splits[-1] else
                     f"<details><summary>{h(split)}</summary>{text}</details>")
    used = dict.fromkeys(r["metric"] for r in rows)
    legend = "".join(f"<dt>{h(m)}</dt><dd>{h(METRICS[m])}</dd>" for m in METRICS if m in used)
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
        body.append([MEAN if task is None else name_of(task),
                     *(["<b>all</b>" if scenario is None else name_of(scenario)] if with_scenario else []),
                     Number(first, "rows", "integer").html(),
                     *([Number(first, "positives", "integer").html()] if positives else []),
                     *([_users(gauc)] if users else []),
                     *(_noted(line[m], notes) if m in line else "" for m in names)])
    head = ["task", *(["scenario"] if with_scenario else []), "rows", *(["positives"] if positives else []),
            *(["valid users"] if users else []), *names]
    below = [f"<sup>{i}</sup> {h(note)}" for note, i in notes.items()]
    for m in every:
        if m not in known:
            why = dict.fromkeys(r["note"] for r in rows if r["metric"] == m and r["note"])
            below.append(f"{h(m)} has no value: {h('; '.join(why))}")
    if any(task is None for task, _ in lines):
        below.append("Rows and positives of a mean over tasks are sums over these tasks.")
    if len(lines) > len(body):
        below.append(f"{len(lines) - len(body):,} more lines are in metrics.json.")
    return (table_of(head, body, texts=2 if with_scenario else 1, meanings=METRICS)
            + (f'<p class="note below">{"<br>".join(below)}</p>' if below else ""))


def _users(gauc: Mapping[str, Any]) -> str:
    if not is_number(gauc.get("valid_users")) or not is_number(gauc.get("users")):
        return "-"
    valid, every = (Number(gauc, k, "integer").html() for k in ("valid_users", "users"))
    return f"{valid} <small>of {every}</small>"


def given(rows: Sequence[Mapping], split: str) -> list[tuple[str, str]]:
    """Each step given the one before, beside the same step over all impressions; a section, if there is any."""
    whole = {(r["task"], r["metric"]): r for r in rows if r["scenario"] is None}
    body = []
    for task in dict.fromkeys(t for t, m in whole if m == "auc_given" and t):
        given, over, size = (whole.get((task, m)) for m in ("auc_given", "violation_rate", "violation_size"))
        cell = lambda metric, task=task: _noted(whole[task, metric], {}) if (task, metric) in whole else ""
        body.append([name_of(task), Number(given, "rows", "integer").html(),
                     Number(given, "positives", "integer").html(), cell("auc_given"), cell("pcoc_given"),
                     cell("logloss_given"), cell("auc"), cell("pcoc"),
                     Number(over, how="rate").html() if over else "-", Number(size).html() if size else "-"])
    if not body:
        return []
    text = (f'<p class="note">On {h(split)}. Given: p(step | the step before) on the rows where that happened. Others: '
            "p(step) on all rows. Violations: rows where a step is said to be likelier than the one before, and by how "
            "much on average.</p>"
            + table_of(["step", "rows given", "positives", "auc_given", "pcoc_given", "logloss_given", "auc", "pcoc",
                      "violations", "size"], body, texts=1, meanings=METRICS))
    return [("Steps given the one before", text)]


def cold(rows: Sequence[Mapping]) -> str:
    """Metrics by how often train had a row's value of a column."""
    lines: dict[tuple, dict[str, Mapping]] = {}
    for r in rows:
        if "@" in r["metric"]:
            metric, place = r["metric"].split("@", 1)
            lines.setdefault((*place.rsplit(":", 1), r["task"]), {})[metric] = r
    if not lines:
        return ""
    names, notes = ("auc", "logloss", "pcoc"), {}
    body = [[name_of(column), h(bucket), MEAN if task is None else name_of(task),
             *(Number(next(iter(line.values())), k, "integer").html() for k in ("rows", "positives")),
             *(_noted(line[m], notes) if m in line else "" for m in names)]
            for (column, bucket, task), line in list(lines.items())[:MOST_LINES]]
    below = "<br>".join(f"<sup>{i}</sup> {h(note)}" for note, i in notes.items())
    return ('<p class="note">By the number of train rows with the same value of a column; new: none.</p>'
            + table_of(["column", "rows in train", "task", "rows", "positives", *names], body, texts=3,
                       meanings=METRICS)
            + (f'<p class="note below">{below}</p>' if below else ""))


def drift(rows: Sequence[Mapping], splits: Sequence[str]) -> str:
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
    body = [[f"score of {name_of(task)}" if task else name_of(name),
             *(f"{Number(of[s]).html()} <small>noise {Number(of[s], 'noise').html()}</small>" if s in of else ""
               for s in splits)] for (name, task), of in (*scores, *features[:MOST_DRIFT])]
    left = len(features) - min(len(features), MOST_DRIFT)
    return ('<p class="note">Population stability index of what the model reads, from train to each split; of scores, '
            "from valid to test. 0: nothing moved; by custom .1 is little, .25 much. Noise: what chance alone gives. "
            "Lengths of histories grow with any log.</p>"
            + table_of(["", *splits], body, texts=1)
            + (f'<p class="note below">{left:,} more that moved less are in metrics.json.</p>' if left else ""))


def _noted(row: Mapping[str, Any], notes: dict[str, int]) -> str:
    """The value with half its interval, and with the number that its note has, or now gets, below the table."""
    text, note = Number(row).html(), row["note"]
    if is_number(row.get("low")) and is_number(row.get("high")):
        ends = " to ".join(FORMATS["figure"](row, k) for k in ("low", "high"))
        text = f'<span title="95 %: {ends}">{text} <small>±{Number(row, how="half").html()}</small></span>'
    if not note or (row["value"] is not None and note.endswith(NO_INTERVAL)):
        return text
    number = notes.setdefault(note, len(notes) + 1)
    return f'<span title="{h(note)}">{text}<sup>{number}</sup></span>'


def labels(rows: Sequence[Mapping]) -> str:
    body = [[h(r["split"]), name_of(r["task"]), Number(r, "of", "integer").html(), Number(r, "rows", "integer").html(),
             Number(r, "rows", "of_rows").html(), Number(r, "positives", "integer").html(),
             Number(r, how="rate").html()] for r in rows if r["metric"] == "label:rate"]
    if not body:
        return nothing("No labels were counted.")
    return table_of(["split", "task", "rows", "observed", "of rows", "positives", "of observed"], body, texts=2)


def contradictions(rows: Sequence[Mapping]) -> str:
    did = [f"{h(r['split'])}: {Number(r, how='integer').html()} {what}." for r in rows
           if (what := {"label:dropped": "rows dropped", "label:repaired": "rows repaired",
                        "label:filled": "implied labels filled"}.get(r["metric"]))]
    body = [[h(r["split"]), f"{name_of(r['task'])} = 1 where {name_of(r['after'])} = 0",
             Number(r, how="integer").html(), Number(r, how="of").html(),
             elsewhere(escape(shortened(r.get("first") or "", MOST_PLACE)), "metrics.json")]
            for r in rows if r["metric"] == "label:contradicts"]
    text = "<h3>Contradictions of the funnel</h3>" + (f'<p class="note">{" ".join(did)}</p>' if did else "")
    if not body:
        return text + nothing("No task comes after another, or no contradiction was found.")
    return text + table_of(["split", "contradiction", "rows", "of positives", "first"], body, texts=2,
                           last_is_text=True)


def skipped(found: Mapping[str, Mapping]) -> str:
    body = [[h(split), *(integer(said.get(k)) for k in ("files", "groups", "group_rows", "rows"))]
            for split, said in found.items() if said]
    samples = [sentence for said in found.values() for sentence in (said or {}).get("samples", ())]
    return ('<p class="note">Left out by <code>data.on_error: skip</code>, in no count below.</p>' +
            table_of(["split", "files", "row groups", "rows of these", "single rows"], body, texts=1) +
            "<ul>" + "".join(f"<li>{escape(shortened(s, 400))}</li>" for s in samples) + "</ul>")


def features(rows: Sequence[Mapping]) -> str:
    """What each feature lacks in each split, the worst in the first measured column on top."""
    found: dict[str, dict[str, dict[str, Mapping]]] = {}
    for r in rows:
        if r["metric"].startswith("feature:"):
            name, what = r["metric"].removeprefix("feature:").rsplit(":", 1)
            found.setdefault(r["split"], {}).setdefault(name, {})[what] = r
    parts, lists = [], False
    for split, features in found.items():
        names = dict.fromkeys(k for c in features.values() for k in c)
        names = [*(k for k in COUNTS if k in names), *(k for k in names if k not in COUNTS)]
        lists |= "ids" in names
        worst = lambda item: -max((r["value"] / r["of"] for k, r in item[1].items() if k != "ids" and r.get("of")),
                                  default=0.0)
        body = [[name_of(feature), Number(next(iter(c.values())), "rows", "integer").html(),
                 *(_count(c[k], k) if k in c else "" for k in names)]
                for feature, c in sorted(features.items(), key=worst)]
        table = table_of(["feature", "rows", *(COUNTS.get(k, k) for k in names)], body, texts=1)
        parts.append(f"<h3>{h(split)}</h3>{table}" if split == next(iter(found)) else
                     f"<details><summary>{h(split)}</summary>{table}</details>")
    said = ("Shares are of rows. In lists they are of elements: not in vocabulary of the ids that the model sees, "
            "dropped and cut of all; null and empty list are of rows there too." if lists else "Shares are of rows.")
    return f'<p class="note">{said}</p>{"".join(parts)}' if parts else nothing("No features were counted.")


def _count(r: Mapping[str, Any], what: str) -> str:
    """One count of a feature beside its share, or for ids how many a row has."""
    if what == "ids":
        return Number(r, how="per_row").html()
    text = Number(r, how="integer").html()
    if r["value"] and r.get("of"):
        text += f" <small>{Number(r, how='of').html()}</small>"
    return f"<mark>{text}</mark>" if r.get("of") and r["value"] > MANY * r["of"] else text


def kept(rows: Sequence[Mapping]) -> str:
    """How much of each feature the model keeps, the most first; nothing where no part has learned that."""
    found = sorted((r for r in rows if r["metric"].startswith("kept:")), key=lambda r: -r["value"])
    body = [[name_of(r["metric"].removeprefix("kept:")), Number(r, how="percent").html()] for r in found]
    said = ("A feature near 0 was not worth its price: leave it out of the config, or lower the price that "
            "<code>variational_dropout</code> sets.")
    return f'<p class="note">{said}</p>{table_of(["feature", "kept"], body, texts=1)}' if body else ""


def gates(rows: Sequence[Mapping], sliced: str = "by scenario") -> str:
    """A table a gate: a line for each view, a column for each candidate, coloured by its share."""
    gates: dict[str, dict[tuple, dict[str, Mapping]]] = {}
    for r in rows:
        if r["metric"].startswith("gate:"):
            _, gate, candidate = r["metric"].split(":", 2)
            gates.setdefault(gate, {}).setdefault((r["scenario"], r.get("view") or ""), {})[candidate] = r
    if not gates:
        return nothing("The model has no gates and no attention between tasks, experts or scenarios.")
    parts = []
    for gate, lines in gates.items():
        candidates = list(dict.fromkeys(c for line in lines.values() for c in line))
        opening = candidates == ["opening"]
        whole, part = ({k: v for k, v in lines.items() if (k[0] is None) == over} for over in (True, False))
        head = ["mean opening", "between rows"] if opening else candidates

        def cells(line: Mapping[str, Mapping], opening=opening, candidates=candidates) -> list[str]:
            found = [f'<span class="heat" style="--s:{line[c]["value"]:.3f}">{Number(line[c], how="percent").html()}'
                     "</span>" if c in line else "" for c in candidates]
            return [*found, f"±{Number(line['opening'], 'spread').html()}"] if opening else found
        text = table_of(["", *head], [[name_of(view) or "all", *cells(line)] for (_, view), line in whole.items()],
                        texts=1) if whole else ""
        if part:
            body = [[name_of(scenario), name_of(view), *cells(line)] for (scenario, view), line in part.items()]
            text += (f"<details><summary>{h(sliced)}</summary>" + table_of(["", "", *head], body[:MOST_LINES], texts=2)
                     + "</details>")
        parts.append(f"<h3>{name_of(gate)}</h3>{text}")
    return ('<p class="note">What each view (a task, or a scenario) listens to, the mean over rows; and of gates that '
            "open and close, how far they are open and how far that moves between rows.</p>" + "".join(parts))


def cost(rows: Sequence[Mapping], events: Sequence[Mapping], about: Mapping[str, Any]) -> str:
    cost = {r["metric"].removeprefix("cost:"): r for r in rows if r["metric"].startswith("cost:")}
    training = about.get("training") if isinstance(about.get("training"), Mapping) else {}
    lines = []
    if "parameters" in cost:
        lines.append(["parameters", Number(cost["parameters"], how="integer").html(),
                      f"of them {Number(cost['parameters'], 'tables', 'integer').html()} in tables of vectors"])
    if "multiply_adds" in cost:
        lines.append(["multiply-adds", Number(cost["multiply_adds"], how="integer").html(),
                      "of matrix products, a row, forward"])
    for said, meaning in zip(speed(training), ("learnt, in all; evaluations are not counted", "")):
        lines.append(["training", elsewhere(h(said), "artefact/manifest.json"), meaning])
    if seconds := duration(about.get("seconds")):
        lines.append(["the whole run", elsewhere(seconds, "artefact/manifest.json"), "reading and measuring included"])
    text = table_of(["", "", ""], lines, texts=1, last_is_text=True) if lines else nothing("No cost was counted.")
    return text + _where_time_goes([e for e in events if e.get("event") == "profile"])


def speed(training: Mapping[str, Any]) -> list[str]:
    rows, seconds = training.get("rows"), training.get("seconds")
    if not is_number(rows) or not is_number(seconds) or not seconds:
        return []
    return [f"{rows / seconds:,.0f} rows per second"]


def _where_time_goes(profiles: Sequence[Mapping]) -> str:
    if not profiles or not (whole := sum(profiles[-1].get("ms", {}).values())):
        return nothing("Where a step's time goes was not measured.")
    found = profiles[-1]
    bars = "".join(f'<span class="part" style="--w:{100 * ms / whole:.3g}%;--k:{k}" title="{h(part)}"></span>'
                   for k, (part, ms) in enumerate(found["ms"].items()))
    body = [[f'<span class="key" style="--k:{k}"></span>{h(part)}', f"{ms:.3f}", share(ms, whole)]
            for k, (part, ms) in enumerate(found["ms"].items())]
    note = (f"Milliseconds of {h(found.get('clock'))} time a step of {integer(found.get('rows'))} rows, the mean of "
            f"{integer(found.get('steps'))} steps.")
    if found.get("share"):
        note += f" {share(found['share'], 1)} of the rate that this machine could reach."
    return ("<h3>Where a step's time goes</h3>" + elsewhere(
        f'<span class="note">{note}</span><span class="parts">{bars}</span>'
        + table_of(["", "ms", "share"], body, texts=1), "events.jsonl"))


def fingerprints(about: Mapping[str, Any]) -> str:
    """Which rows, which code, which machine: what must be equal for the numbers to be."""
    files, body = about.get("data"), []
    for name, said in (files.items() if isinstance(files, Mapping) else ()):
        listed = said.get("files") if isinstance(said, Mapping) else said
        listed = [f for f in listed or () if isinstance(f, Mapping)] if isinstance(listed, list) else []
        mark = hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()[:12]
        body.append([h(name), integer(len(listed)) if listed else "-",
                     integer(sum(f.get("size") or 0 for f in listed)) if listed else "-", f"<code>{mark}</code>",
                     escape(shortened(listed[0].get("path") or "", MOST_PLACE)) if listed else "given by hand"])
    text = "<h3>Data</h3>" + (elsewhere(table_of(
        ["", "files", "bytes", "fingerprint", "first file"], body, texts=1, last_is_text=True),
        "artefact/manifest.json") if body else nothing("No files were recorded."))
    versions, machine = (about.get(k) if isinstance(about.get(k), Mapping) else {} for k in ("versions", "machine"))
    lines = [[h(k), h(v)] for k, v in (*versions.items(), *machine.items()) if v is not None]
    text += "<h3>Environment</h3>" + (elsewhere(table_of(["", ""], lines, texts=2), "artefact/manifest.json")
                                      if lines else nothing("No versions were recorded."))
    return text + ('<p class="note">A fingerprint covers paths, sizes and times of change. The same config, data, '
                   "code, seed and threads give the same bits on the same machine: <code>funnelrank reproduce</code>."
                   "</p>")
