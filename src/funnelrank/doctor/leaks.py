"""Leakage: what a model sees of the answer, or of a time that was not yet there when it is asked."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from funnelrank.doctor.finding import Finding, percent, some
from funnelrank.doctor.log import DERIVED, EPOCHS, About, Column, Log
from funnelrank.doctor.relate import (
    LEAST,
    PRIOR,
    Relation,
    auc_error,
    carried,
    cells,
    distinct,
    each_column,
    relations,
    within,
)
from funnelrank.evaluate import metrics
from funnelrank.schema import table_of

SURE = 0.985            # AUC of one column alone
APART = 0.35            # of the error 1 - AUC of the best column that is no suspect
TIMES = 2.5             # what a suspect has of AUC above .5, by what the next one has
PURE = 0.9              # share of positives within one value
LIFT = 5.0              # by the mean
COVERED = 0.05          # share of all positives that a pure value holds
RARE = (0.5, 20.0, 0.3)     # the same three of a value of a rare label, which need not be pure
NEVER = 100             # positives to expect of a value that has none
NULL = (0.6, 1.5)       # AUC of whether there is a value; its part above .5, by that of the best other column
WHOLE = 0.95            # AUC within one scenario of a column that says far less elsewhere
DROP = {"number": 0.06, "match": 0.06, "pair": 0.06, "id": 0.1, "list": 0.1}    # of AUC to a held-out split; ids age
CHANCE = 0.75           # dispersion of entities' rates around what a statistic says of them; 1 is chance alone
COUNTS = 0.3            # rank correlation with how often an entity is in the log
KNOWS = 0.35            # rank correlation with an entity's label rate
WITHIN = 0.35           # distance from .5 of an AUC within entities, where between them there is none to speak of


def one_column_says_it_all(log: Log) -> Iterator[Finding]:
    """A column that tells a label apart nearly without fault, or far better than all others do."""
    for t, task in log.binary:
        ranked = sorted(((r.auc, name) for (name, at), r in relations(log).items() if at == t), reverse=True)
        ranked = [(a, name) for a, name in ranked if log.about[name].source != log.schema.scenario]
        suspects = {name: a for a, name in ranked if a >= SURE}
        for i in range(min(4, len(ranked) - 1)):
            (a, _), (b, _) = ranked[i], ranked[i + 1]
            if (a >= 0.9 and 1 - a < APART * (1 - b)) or (a >= 0.78 and a - 0.5 > TIMES * (b - 0.5)):
                suspects |= {name: a for a, name in ranked[:i + 1]}
        others = next((f"; the best of the others reaches {a:.3f}" for a, n in ranked if n not in suspects), "")
        for name, a in suspects.items():
            about = log.about[name]
            yield Finding(
                "one_column_says_it_all", "error" if a >= SURE else "warning", about.where,
                f"{about.told} alone ranks '{task}' with an AUC of {a:.3f} on rows it was not fitted "
                f"on{others}",
                "Is it known before the impression is shown? An outcome (a time watched, an amount paid, a later step) "
                "must not be a feature; remove it.",
                {"column": about.source, "task": task, "auc": a, "next": [[n, x] for x, n in ranked[:5]]})


def a_value_means_yes(log: Log) -> Iterator[Finding]:
    """A value (or that there is one) on which nearly every row is positive, of a label that is rare elsewhere; or a 0
    on which none is."""
    for (name, t), r in relations(log).items():
        about, task = log.about[name], log.schema.tasks[t].name
        if r.auc >= SURE:
            continue                                       # said already
        if (found := _null_says(log, name, t, r) or _zero_says(log, name, r, task)) is not None:
            yield found
        shares = [("one value", r.rates, r.rows)]
        known = r.rows[:-1].sum()
        if known and r.rows[-1]:
            shares.append(("any value at all", *_together(r, np.ones(len(r.rows) - 1, bool))))
        if about.kind == "number" and (zero := _zero(log, name)) is not None:
            rest = np.arange(len(r.rows) - 1) != zero
            if r.rows[:-1][rest].sum():
                shares.append(("anything but 0", *_together(r, rest)))
        least = 3.0 if about.kind in DERIVED else LIFT
        for what, rates, rows in shares:
            positives = rates * rows
            odd = (rates >= PURE) & (rates >= least * r.base) & (positives >= COVERED * r.positives) & (rows >= LEAST)
            odd |= (rates >= RARE[0]) & (rates >= RARE[1] * r.base) & (positives >= RARE[2] * r.positives) & (
                rows >= LEAST)
            if about.kind == "match":
                odd |= (rates >= 0.95) & (rates >= 1.5 * r.base) & (positives >= 0.2 * r.positives) & (rows >= LEAST)
            if odd.any():
                k = int(np.argmax(np.where(odd, positives, -1)))
                value = f"{what} of it" if len(rates) == 1 else _value(log, name, k)
                if about.source == log.schema.scenario:
                    yield Finding(
                        "a_value_means_yes", "error", f"tasks.{task}",
                        f"in scenario {value}, '{task}' is 1 on {percent(rates[k])} of {int(rows[k]):,} sampled rows; "
                        f"on the whole on {percent(r.base)}",
                        "Is the label coded the other way round there, or are only positives logged?",
                        {"task": task, "scenario": value, "rate": float(rates[k]), "rows": int(rows[k]),
                         "base": r.base})
                    break
                yield Finding(
                    "a_value_means_yes", "error" if about.kind != "match" else "warning", about.where,
                    f"column '{about.source}': {value} means '{task}' = 1 on {percent(rates[k])} of {int(rows[k]):,} "
                    "sampled "
                    f"rows, which are {percent(positives[k] / r.positives)} of all positives; elsewhere it is rare "
                    f"({percent(r.base)} on the whole)",
                    "It looks written after the outcome. A history must hold what was before the row, a column what "
                    "was "
                    "known then; write it as of the impression, or remove it.",
                    {"column": about.source, "task": task, "rate": float(rates[k]), "rows": int(rows[k]),
                     "base": r.base})
                break


def tells_in_one_scenario(log: Log) -> Iterator[Finding]:
    """A column that tells a label apart in one scenario, where it is written from the outcome, and hardly elsewhere."""
    if log.schema.scenario is None or log.train.scenario is None:
        return
    codes = log.train.scenario[log.train.sample]
    half = np.random.default_rng(1).random(len(codes)) < 0.5
    for code in np.unique(codes[codes != 0]):
        mine = np.flatnonzero(codes == code)
        for t, task in log.binary:
            y = log.train.label(t)[mine]
            if min((y == 1).sum(), (y == 0).sum()) < NEVER / 2:
                continue
            found = {}
            for name, about, _ in each_column(log, "number", "id", *DERIVED):
                r = relations(log).get((name, t))
                if r is None or r.auc >= 0.9 or about.source == log.schema.scenario:
                    continue
                a = _by_halves(cells(log, log.train, name)[mine], y, half[mine])
                if a >= WHOLE and a - 0.5 > 2 * (r.auc - 0.5):
                    found[name] = a, r.auc
            for name, (a, whole) in found.items():
                about, place = log.about[name], log.scenarios.get(int(code), "?")
                yield Finding(
                    "tells_in_one_scenario", "warning", about.where,
                    f"in scenario {place}, {about.told} alone ranks '{task}' with an AUC of {a:.3f} on rows "
                    f"it was not fitted on; over all rows with {whole:.3f}",
                    "Is it written from the outcome there? Write it as of the impression, or remove it.",
                    {"column": about.source, "task": task, "scenario": place, "auc": a, "whole": whole})


def history_holds_the_row(log: Log) -> Iterator[Finding]:
    """A list whose latest element is the row's own item: it was written after the row."""
    for _, about, column in each_column(log, "match"):
        known = column.values[~column.missing]
        if len(known) < LEAST:
            continue
        latest, inside = float((known == 2).mean()), float((known >= 1).mean())
        if latest > 0.2 and latest > 0.5 * inside:
            yield Finding(
                "history_holds_the_row", "error", about.where,
                f"the latest element of list '{about.source}' is the row's own item on {percent(latest)} of "
                f"{len(known):,} "
                "sampled rows",
                "Histories must end before the row; shift them by one event. When served, the row itself is not yet in "
                "them.", {"column": about.source, "latest": latest, "inside": inside, "rows": len(known)})
        elif (labels := _by_label(log, column)) is not None:
            task, yes, no = labels
            yield Finding(
                "history_holds_the_row", "warning", about.where,
                f"the row's own item is in list '{about.source}' on {percent(yes)} of the rows with '{task}' = 1, "
                "and on "
                f"{percent(no)} of the others",
                "Such a list seems to be of the whole period, and to hold what the row was about to do; build it of "
                "events strictly before the row.",
                {"column": about.source, "task": task, "positives": yes, "negatives": no})
        elif (labels := _by_label(log, column, latest=True)) is not None:
            task, yes, no = labels
            yield Finding(
                "history_holds_the_row", "warning", about.where,
                f"the latest element of list '{about.source}' is the row's own item on {percent(yes)} of the rows with "
                f"'{task}' = 1, and on {percent(no)} of the others",
                "Some lists were written after their row, as of events that came late; end each strictly before it.",
                {"column": about.source, "task": task, "positives": yes, "negatives": no})


def from_the_future(log: Log) -> Iterator[Finding]:
    """Times, or gaps, that lie behind the row's own time."""
    split = log.train
    if split.time is None or log.time is None:
        return
    now = split.time[split.sample]
    for _name, about, column in each_column(log, "number", "id"):
        if about.source == log.time or column.values is None:
            continue
        values = column.values
        known = ~np.isnan(values) & ~np.isnan(now)
        if known.sum() < LEAST:
            continue
        scale = _same_clock(values[known], now[known])
        if scale is None:
            continue
        late = values[known] * scale > now[known]
        share = float(late.mean())
        if share > 0.01:
            yield Finding(
                "from_the_future", "error", about.where,
                f"column '{about.source}' is a time, and lies behind the row's own ('{log.time}') on "
                f"{percent(share)} of "
                f"{int(known.sum()):,} sampled rows",
                "What happens later is not known when the row is served; use the time of the event before.",
                {"column": about.source, "share": share})
    for name, f in log.schema.of_kind("gap").items():
        column = split.columns.get(name)
        if column is None or log.time is None:
            continue
        known = column.values[~column.missing]
        if f.since == log.time and len(known) >= LEAST and (known > 0).mean() > 0.01:
            yield Finding(
                "from_the_future", "error", f"features.{name}",
                f"the gap from '{f.since}' to '{f.until}' is above 0 on {percent(float((known > 0).mean()))} of the "
                "sampled rows: it runs from the row's own time to a later one",
                "A gap that is known when the row is served ends at its own time, as in {since: last_ms, until: "
                f"{log.time}}}.", {"since": f.since, "until": f.until, "share": float((known > 0).mean())})
        elif f.until == log.time and len(known) >= LEAST and (known < 0).mean() > 0.01:
            yield Finding(
                "from_the_future", "error", f"features.{name}",
                f"the gap from '{f.since}' to '{f.until}' is below 0 on {percent(float((known < 0).mean()))} of the "
                f"sampled rows: '{f.since}' lies behind the row's own time",
                "What happens later is not known when the row is served; use the time of the event before.",
                {"since": f.since, "until": f.until, "share": float((known < 0).mean())})
        elif f.until != log.time and f.since != log.time and len(known) >= LEAST and _later(log, f.until):
            yield Finding(
                "from_the_future", "error", f"features.{name}",
                f"the gap ends at '{f.until}', which lies behind the row's own time",
                f"End it at '{log.time}'.", {"since": f.since, "until": f.until})


def statistic_of_the_whole_period(log: Log) -> Iterator[Finding]:
    """A number that stands still for each user or item and moves with how often it is in the log, or with its labels,
    in a way that attributes do not: it was counted over the period that the log covers."""
    found: dict[tuple[str, str], list[tuple]] = {}
    for name, about, column in each_column(log, "number", "id"):
        if column.values is None or (about.kind == "id" and not table_of(about.source)):
            continue
        for entity in _entities(log, name, about):
            if (said := _counted_over(log, name, entity)) is not None:
                found.setdefault((about.source.split(".")[0] if table_of(about.source) else "", entity), []).append(
                    (about, *said))
                break
    for (table, entity), columns in found.items():
        sure = [c for c in columns if c[1] == "error"]
        for severity, some_ in (("error", sure), ("warning", [c for c in columns if c not in sure])):
            if some_:
                names = [f"'{c[0].source}' ({c[2]})" for c in some_]
                yield Finding(
                    "statistic_of_the_whole_period", severity, f"data.tables.{table}" if table else some_[0][0].where,
                    f"for each value of '{entity}', {some(names, 6)} says more than was known before the rows"
                    if severity == "error" else
                    f"for each value of '{entity}', {some(names, 6)}, more than attributes do",
                    ("It was counted over the log's own period, held-out days included. Count"
                     if severity == "error" else "If it was counted over the log's own period, and not known before, "
                     "count") + " it up to the day before each row, or leave it out (funnelrank reads such numbers off "
                    "histories by itself).",
                    {"entity": entity, "columns": {c[0].source: c[3] for c in some_}})


def fits_train_too_well(log: Log) -> Iterator[Finding]:
    """A column that ranks train far better than later rows, where the others hold: made from train's own labels, or
    another thing in the later split; or the other way round, so that train lacks what it is there."""
    for split in log.held_out:
        drops: dict[int, list[tuple[float, str, float]]] = {}
        for (name, t), r in relations(log).items():
            got, y = carried(log, split, name, t), split.label(t)
            P, N = int((y == 1).sum()), int((y == 0).sum())
            if got and min(P, N) >= LEAST:
                drops.setdefault(t, []).append((r.auc - got[0], name, auc_error(max(got[0], 0.5), P, N)))
        for t, each in drops.items():
            usual, task = float(np.median([d for d, *_ in each])) if len(each) > 2 else 0.0, log.schema.tasks[t].name
            for drop, name, error in each:
                about, r = log.about[name], relations(log)[name, t]
                there = r.auc - drop
                if drop - max(usual, 0) > max(DROP[about.kind], 4 * error):
                    yield Finding(
                        "fits_train_too_well", "warning", about.where,
                        f"{about.told} ranks '{task}' with AUC {r.auc:.3f} in train and {there:.3f} in "
                        f"{split.name}; others lose {max(usual, 0):.3f}",
                        "A mean of labels that counts the row's own label does so: encode with earlier days only. If "
                        "it is "
                        "none, it is another thing in this split: joined in another order, or coded anew.",
                        {"column": about.source, "task": task, "train": r.auc, split.name: there, "usual": usual})
                elif about.kind != "list" and (own := within(log, split, name, t)) is not None and (
                        own - there > max(DROP[about.kind], 5 * error)):
                    yield Finding(
                        "fits_train_too_well", "warning", about.where,
                        f"{about.told} ranks '{task}' with AUC {own:.3f} in {split.name} when fitted "
                        "there, and "
                        f"with {there:.3f} when fitted in train",
                        "What it says in train is not what it says there: joined in another order, or coded anew?",
                        {"column": about.source, "task": task, "own": own, "of_train": there})


def encodes_the_rows_own_label(log: Log) -> Iterator[Finding]:
    """A number that orders the rows of one user or item by their labels, against or with them, though between users or
    items it does not: a mean that leaves the row out, or counts it twice."""
    split = log.train
    for name, about, column in each_column(log, "number"):
        if column.values is None:
            continue
        for entity, codes in split.keys.items():
            if about.by == entity or about.source == entity:
                continue
            code = codes[split.sample]
            for t, task in log.binary:
                y = split.label(t)
                ok = ~np.isnan(y) & ~column.missing & (code != 0)
                if (y[ok] == 1).sum() < LEAST:
                    continue
                by = metrics.auc_by_user(column.values[ok].astype(np.float32), y[ok] == 1,
                                         np.unique(code[ok], return_inverse=True)[1])
                if len(by.auc) < LEAST:
                    continue
                inner = float(np.average(by.auc, weights=by.rows))
                if abs(inner - 0.5) > WITHIN and abs(relations(log)[name, t].auc - 0.5) < abs(inner - 0.5) - 0.1:
                    yield Finding(
                        "encodes_the_rows_own_label", "error", about.where,
                        f"within values of '{entity}', column '{about.source}' ranks '{task}' with AUC {inner:.3f} "
                        f"({len(by.auc):,} values with both classes), over all rows only with "
                        f"{relations(log)[name, t].auc:.3f}",
                        "A mean of the other rows' labels is lower where the row's own is 1, and a model reads that. "
                        "Use "
                        "rows of earlier days only.",
                        {"column": about.source, "entity": entity, "task": task, "within": inner})
                    return


# ---- parts

def _together(r: Relation, which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rate and rows [1] of some cells [K - 1] as one."""
    n = r.rows[:-1][which].sum()
    return np.array([(r.rates[:-1] * r.rows[:-1])[which].sum() / n]), np.array([n])


def _null_says(log: Log, name: str, t: int, r: Relation) -> Finding | None:
    """Where it tells more that a column is null than what any other column holds."""
    about, y = log.about[name], log.train.label(t)
    if about.kind not in ("number", "id") or r.rows[-1] < LEAST or r.rows[:-1].sum() < LEAST:
        return None
    missing = log.train.columns[name].missing
    yes, no = (float(missing[y == v].mean()) for v in (1, 0))
    auc, error = 0.5 + abs(no - yes) / 2, auc_error(0.5, r.positives, int((y == 0).sum()))
    best = max((x.auc for (other, at), x in relations(log).items() if at == t and other != name), default=0.5)
    if auc < NULL[0] or auc - 0.5 < max(NULL[1] * (best - 0.5), 5 * error):
        return None
    task = log.schema.tasks[t].name
    return Finding(
        "a_value_means_yes", "warning", about.where,
        f"column '{about.source}' is null on {percent(yes)} of the sampled rows with '{task}' = 1 and on {percent(no)} "
        f"of the others; that alone ranks '{task}' with AUC {auc:.3f}, the best other column with {best:.3f}",
        "Is it filled from what happened after the impression? Fill it for all rows alike, or remove it.",
        {"column": about.source, "task": task, "positives": yes, "negatives": no, "auc": auc, "next": best})


def _zero_says(log: Log, name: str, r: Relation, task: str) -> Finding | None:
    """Where a number is at least the label: of its many rows of 0 none is positive, of those of its next value some."""
    about, zero = log.about[name], _zero(log, name)
    if about.kind != "number" or zero != 0:
        return None
    ones = (r.rates[0] * (r.rows[0] + PRIOR) - PRIOR * r.base) if r.rows[0] else 0.0
    if ones > 0.5 or r.base * r.rows[0] < NEVER or len(r.rows) < 3 or r.rates[1] < r.base:
        return None
    return Finding(
        "a_value_means_yes", "warning", about.where,
        f"column '{about.source}' is 0 on {int(r.rows[0]):,} sampled rows, and '{task}' is 1 on none of them, where "
        f"{r.base * r.rows[0]:,.0f} are to be expected",
        "Does it count the row itself, or what came after it? Count what was before the row.",
        {"column": about.source, "task": task, "rows": int(r.rows[0]), "expected": float(r.base * r.rows[0])})


def _by_halves(at: np.ndarray, y: np.ndarray, half: np.ndarray) -> float:
    """AUC of each half of rows, in cells `at`, by the rates of the other."""
    seen, score, base = ~np.isnan(y), np.zeros(len(y)), float(np.nanmean(y))
    for mine in (half, ~half):
        n, k = (np.bincount(at[seen & ~mine], w, at.max() + 1) for w in (None, y[seen & ~mine] == 1))
        score[mine] = ((k + PRIOR * base) / (n + PRIOR))[at[mine]]
    return metrics.auc(score[seen].astype(np.float32), y[seen])


def _zero(log: Log, name: str) -> int | None:
    edges = log.once(("edges", name), lambda: np.empty(0))
    at = np.flatnonzero(edges == 0)
    return int(at[0]) if len(at) else None


def _value(log: Log, name: str, k: int) -> str:
    """The k-th cell in words."""
    edges, about = log.once(("edges", name), lambda: np.empty(0)), log.about[name]
    if k == len(edges):
        return "no value"
    if about.kind == "pair":
        return f"being the row's '{about.other}'" if edges[k] else f"being another than the row's '{about.other}'"
    if about.kind == "match":
        return {0: "not holding the row's item", 1: "holding the row's item", 2: "ending with the row's item"}.get(
            int(edges[k]), "holding the row's item")
    column = log.train.columns[name]
    if column.codes is not None:
        return repr(column.texts[int(np.flatnonzero(column.codes == edges[k])[0])].as_py())
    upper = f" to {edges[k + 1]:.6g}" if k + 1 < len(edges) else " and above"
    return f"{'a length of ' if column.lengths is not None else ''}{edges[k]:.6g}{upper}"


def _by_label(log: Log, column: Column, latest: bool = False) -> tuple[str, float, float] | None:
    """The task whose positives have their item in the list several times as often, and in most rows; or have it as the
    latest element far more often than others do."""
    least, times, share = (2, 8, 0.05) if latest else (1, 4, 0.6)
    for t, task in log.binary:
        y = log.train.label(t)
        yes, no = ((y == v) & ~column.missing for v in (1, 0))
        if min(yes.sum(), no.sum()) < LEAST:
            continue
        a, b = (float((column.values[rows] >= least).mean()) for rows in (yes, no))
        if a > share and a > times * b and a * yes.sum() >= LEAST:
            return task, a, b
    return None


def _same_clock(values: np.ndarray, now: np.ndarray) -> float | None:
    """What brings values to the unit of the row's own time, where both are times of one era; else None."""
    def unit(x: np.ndarray) -> int | None:
        middle = float(np.median(x))
        return next((i for i, (low, high) in enumerate(EPOCHS) if low < middle < high), None)
    a, b = unit(values), unit(now)
    return None if a is None or b is None else 1000.0 ** (b - a)


def _later(log: Log, column: str) -> bool:
    about = next((a for a in log.about.values() if a.source == column), None)
    if about is None:
        return False
    values, now = log.train.columns[about.name].values, log.train.time[log.train.sample]
    known = ~np.isnan(values) & ~np.isnan(now)
    return bool(known.any() and (values[known] > now[known]).mean() > 0.01)


def _entities(log: Log, name: str, about: About) -> Iterator[str]:
    """Columns of ids for each of whose values this column has one value in all sampled rows."""
    if table_of(about.source):
        yield about.by
        return
    column, split = log.train.columns[name], log.train
    if distinct(log, name) < 20:
        return
    for entity, codes in split.keys.items():
        if entity == about.source:
            continue
        code = codes[split.sample]
        ok = (code != 0) & ~column.missing
        order = np.lexsort((column.values[ok], code[ok]))
        c, v = code[ok][order], column.values[ok][order]
        same = c[1:] == c[:-1]
        if same.sum() > 500 and len(c) - same.sum() >= 100 and (v[1:] == v[:-1])[same].mean() > 0.999:
            yield entity


def _counted_over(log: Log, name: str, entity: str) -> tuple[str, str, dict] | None:
    """Why this number of each value of `entity` says more than was known: severity, in words, evidence."""
    table = log.once(("entity", entity), lambda: _per_entity(log, entity))
    if table is None:
        return None
    keys, n, later, ones, seen = table
    s = _statistic(log, name, entity, keys)
    ok = ~np.isnan(s)
    if ok.sum() < 100 or len(np.unique(s[ok])) < 20:
        return None
    count = max(_ranks_agree(s[ok], n[ok]), _ranks_agree(s[ok], (n + later)[ok]))
    evidence: dict = {"with_rows": count}
    for t, task in log.binary:
        k, m = ones[t], seen[t]
        for x in (s, s / np.maximum(m, 1)):                # a rate, or a count
            fine = ok & (m >= 1) & np.isfinite(x)
            phi = _dispersion(x[fine], k[fine], m[fine])
            if phi is not None and phi < CHANCE:
                evidence |= {"dispersion": phi, "task": task}
                return "error", f"fits the rates of '{task}' closer than chance allows: {phi:.2f} of it", evidence
        rich = ok & (m >= 10)
        if rich.sum() >= 100 and min(k[rich].sum(), (m - k)[rich].sum()) > 300:
            known = _ranks_agree(s[rich], k[rich] / m[rich])
            evidence[f"with_{task}"] = known
            if abs(known) > KNOWS and count > COUNTS / 2:
                return "warning", (f"agrees with the rate of '{task}' by {known:+.2f} and with the number of rows by "
                                   f"{count:+.2f}"), evidence
    return ("warning", f"agrees with the number of rows by {count:+.2f}", evidence) if count > COUNTS else None


def _per_entity(log: Log, entity: str) -> tuple | None:
    """Of each value of a column of ids: its code, rows in train and later, positives and observed labels [T, K]."""
    if any(entity not in split.keys for split in log.splits.values()):
        return None
    keys = np.unique(np.concatenate([np.unique(split.keys[entity]) for split in log.splits.values()]))
    keys = keys[keys != 0]
    if len(keys) < 100:
        return None
    n = np.zeros((2, len(keys)))
    ones, seen = np.zeros((2, len(log.schema.tasks), len(keys)))
    for split in log.splits.values():
        code = split.keys[entity]
        ok = code != 0
        at = np.searchsorted(keys, code[ok])
        n[0 if split.name == "train" else 1] += np.bincount(at, minlength=len(keys))
        for t, _ in log.binary:
            y = split.labels[ok, t]
            ones[t] += np.bincount(at[y == 1], minlength=len(keys))
            seen[t] += np.bincount(at[~np.isnan(y)], minlength=len(keys))
    return keys, n[0], n[1], ones, seen


def _statistic(log: Log, name: str, entity: str, keys: np.ndarray) -> np.ndarray:
    """The column's value for each key [K], NaN where no sampled row shows it."""
    s = np.full(len(keys), np.nan)
    for split in log.splits.values():
        column, code = split.columns[name], split.keys[entity][split.sample]
        ok = ~column.missing & (code != 0)
        s[np.searchsorted(keys, code[ok])] = column.values[ok]
    return s


def _ranks_agree(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's rank correlation."""
    def ranks(a: np.ndarray) -> np.ndarray:
        _, at, count = np.unique(a, return_inverse=True, return_counts=True)
        return (np.cumsum(count) - (count - 1) / 2)[at]
    a, b = ranks(x), ranks(y)
    if a.std() == 0 or b.std() == 0:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def _dispersion(x: np.ndarray, k: np.ndarray, m: np.ndarray) -> float | None:
    """Chi-square by degrees of freedom of entities' positives k of m, around the rate of their neighbours by x.

    What is known of an entity explains its true rate, never the chance in its own labels, so this is 1 or more: unless
    x was made from those labels. Entities whose neighbours hold no chance (rates of 0 or 1) are left out.
    """
    if len(x) < 100 or k.sum() < 200:
        return None
    order = np.argsort(x, kind="stable")
    x, k, m = x[order], k[order], m[order]
    bins = np.minimum(np.arange(len(x)) * min(200, len(x) // 10) // len(x), len(x))
    _, first = np.unique(x, return_index=True)
    bins = bins[np.repeat(first, np.diff(np.append(first, len(x))))]             # equal values stay together
    K, N, size = (np.bincount(bins, w) for w in (k, m, None))
    p = np.divide(K, N, out=np.zeros(len(K)), where=N > 0)[bins]
    use = (m * p * (1 - p) >= 0.5) & (size[bins] >= 5)
    groups = len(np.unique(bins[use]))
    if use.sum() - groups < 60:
        return None
    chi = float((np.square(k - m * p)[use] / (m * p * (1 - p))[use]).sum())
    free = float(use.sum() - groups)
    return chi / free if chi / free + 4 * np.sqrt(2 / free) < 1 else 1.0
