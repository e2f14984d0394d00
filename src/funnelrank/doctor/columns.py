"""Columns that say nothing, or not what their kind makes of them; and columns whose meaning moves between splits."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from funnelrank.doctor.finding import Finding, percent, some
from funnelrank.doctor.log import DERIVED, LATEST, Column, Log, Split
from funnelrank.doctor.relate import cells, distinct, each_column, numeric
from funnelrank.evaluate.drift import psi
from funnelrank.schema import DEFAULT_MIN_COUNT, table_of

ROW_ID = 0.9            # distinct values by rows: hardly one comes twice
NULLS = 0.2             # of a split's rows, more than train's
DRIFTED = 0.5           # population stability index
GROWN = 2.0             # the same of a list's length: histories grow with the log
SHIFTED = (0.25, 10.0)  # the same, where train's own stretches of time differ by less than a tenth of it
OUTSIDE = 0.5           # share of a held-out split's numbers that lie outside of all that train has
BEYOND = (0.01, 10.0)   # the same, where ten times fewer of a stretch of train lie outside of the rest of it
STRETCHES = 5           # of train, by time, that are held against the rest
LOST = 0.1              # share of train's rows whose key a table does not have
UNSEEN = 0.9            # share of a held-out split's ids that train does not have
TOO_RARE = 0.8          # share of train's rows whose value is rarer than min_count
FEW = 1000              # sampled rows below which nothing is said
MEET = 50               # values of each of two columns that ought to share one
FEW_PAIRS = 20          # rows of one user, of which the later one has a longer history


def dead_columns(log: Log) -> Iterator[Finding]:
    """Columns that hold one value, or nothing at all, on every row of train."""
    for _, about, column in each_column(log):
        if about.kind in DERIVED:
            continue
        if column.missing.all() or (column.lengths is not None and not column.lengths.any()):
            what = "empty" if column.lengths is not None else "null"
            keys = (f"; table '{about.source.split('.')[0]}' lacks {percent(column.lost / len(column.missing))} of the "
                    "keys") if column.lost else ""
            yield Finding("dead_columns", "warning", about.where,
                          f"column '{about.source}' is {what} on all of {len(column.missing):,} sampled train "
                          f"rows{keys}",
                          "Remove the feature, or find out why the column is not filled"
                          + (" (are the keys of one type, and of one time?)." if keys else "."),
                          {"column": about.source, "missing": 1.0, "missing_keys": column.lost})
            continue
        if column.lengths is not None:
            continue
        values = column.codes if column.codes is not None else column.values
        if len(np.unique(values[~column.missing])) == 1 and not column.missing.any():
            yield Finding("dead_columns", "warning", about.where,
                          f"column '{about.source}' holds one value on all of {len(values):,} sampled train rows",
                          "It cannot help; remove the feature, or find out why the column stands still.",
                          {"column": about.source})


def row_ids(log: Log) -> Iterator[Finding]:
    """An id of which nearly every row has its own, a number that counts rows, or a number that is a name."""
    schema, n = log.schema, len(log.train)
    ids = {schema.user: "data.user", **{t.key: f"the key of table '{k}'" for k, t in schema.tables.items()}}
    for name, about, column in each_column(log, "id", "number"):
        known = int((~column.missing).sum())
        if known < FEW or table_of(about.source):
            continue
        many = distinct(log, name) / known
        if about.kind == "id" and many > ROW_ID and not _comes_again(log, about.source):
            yield Finding(
                "row_ids", "error", about.where,
                f"nearly every row has a value of its own in column '{about.source}' ({distinct(log, name):,} of "
                f"{known:,} sampled)",
                "Such an id names the row, and a model can only learn rows by heart: remove it, or give its parts.",
                {"column": about.source, "distinct": distinct(log, name), "rows": known})
        elif about.kind == "id" and (held := _never_again(log, about.source)) is not None:
            yield Finding(
                "row_ids", "warning", about.where,
                f"values of column '{about.source}' do not come again: {percent(held[0])} of the latest tenth of "
                f"train, and {percent(held[1])} of {held[2]}, have one that was not there before",
                "It names a request, a session or a day, and what is learnt of it serves no later row; remove it.",
                {"column": about.source, "train": held[0], held[2]: held[1]})
        elif about.kind == "number" and column.values is not None:
            v = column.values[~column.missing]
            steps = np.diff(v)
            if many > ROW_ID and len(v) == len(log.train.sample) and ((steps > 0).all() or (steps < 0).all()) and (
                    about.source != log.time) and n > FEW:
                yield Finding(
                    "row_ids", "warning", about.where,
                    f"number '{about.source}' rises from row to row through all of train: it counts rows, or tells the "
                    "time",
                    "In later rows it has values that no model has seen; remove it.", {"column": about.source})
            elif about.source in ids:
                yield Finding(
                    "row_ids", "warning", about.where,
                    f"column '{about.source}' is {ids[about.source]}, and is read as a number",
                    "Names have no size: make it an id.", {"column": about.source})


def values_too_rare(log: Log) -> Iterator[Finding]:
    """An id whose values are nearly all rarer than min_count, so that a model sees one value."""
    for name, about, column in each_column(log, "id"):
        f = log.schema.features.get(about.name)
        if f is None or column.codes is None or about.source not in log.train.keys:
            continue
        space = log.schema.spaces[f.space]
        if space.made != "fitted" or table_of(about.source):
            continue
        codes = log.train.keys[about.source]
        if len(log.train) < log.train.rows:
            continue                                       # counts of a part say little
        _, counts = np.unique(codes[codes != 0], return_counts=True)
        rare = counts[counts < space.min_count].sum() / max(counts.sum(), 1)
        if rare > TOO_RARE and len(codes) >= FEW and distinct(log, name) / max((~column.missing).sum(), 1) <= ROW_ID:
            yield Finding(
                "values_too_rare", "warning", about.where,
                f"{percent(rare)} of the train rows have a value of '{about.source}' that is rarer than min_count "
                f"({space.min_count}), and are all read as unknown",
                f"Lower min_count (default {DEFAULT_MIN_COUNT}), or remove the feature.",
                {"column": about.source, "rare": float(rare), "min_count": space.min_count})


def same_columns(log: Log) -> Iterator[Finding]:
    """Two columns that say the same on every row."""
    seen: dict[bytes, str] = {}
    pairs = []
    for name, about, _ in each_column(log, "id", "number"):
        if distinct(log, name) < 2:
            continue
        _, first, at = np.unique(cells(log, log.train, name), return_index=True, return_inverse=True)
        order = np.argsort(np.argsort(first))              # numbered by first appearance: names do not matter
        mark = order[at].astype(np.int32).tobytes()
        if mark in seen and log.about[seen[mark]].source != about.source and distinct(log, name) > 2:
            pairs.append((log.about[seen[mark]].source, about.source))
        seen.setdefault(mark, name)
    if pairs:
        yield Finding("same_columns", "note", "features",
                      f"{some([f'{a} and {b}' for a, b in pairs])} say the same on every sampled row",
                      "One of each is enough.", {"pairs": pairs})


def spellings(log: Log) -> Iterator[Finding]:
    """Texts that differ in case or white space only, each of which gets a vector of its own."""
    for _name, about, column in each_column(log, "id"):
        if column.texts is None or column.values is not None or not 1 < distinct(log, _name) <= 20_000:
            continue
        groups: dict[str, set[str]] = {}
        for text in column.texts.unique().drop_null().to_pylist():
            groups.setdefault(" ".join(text.casefold().split()), set()).add(text)
        several = [sorted(g) for g in groups.values() if len(g) > 1]
        if several:
            yield Finding("spellings", "warning", about.where,
                          f"column '{about.source}' spells {len(several):,} values in several ways, as "
                          f"{some([repr(x) for x in several[0]], 3)}",
                          "Write each value in one way before it becomes an id.",
                          {"column": about.source, "values": several[:20]})


def codes_for_missing(log: Log) -> Iterator[Finding]:
    """A number far from all others on many rows, as -1 or 9999 where nothing is known; and infinities."""
    for _name, about, column in each_column(log, "number"):
        v = column.values[~column.missing]
        if len(v) < FEW:
            continue
        for end in (v.min(), v.max()):
            rest = v[v != end]
            share = 1 - len(rest) / len(v)
            if share < 0.005 or len(rest) < FEW // 2 or len(np.unique(rest)) < 10:
                continue
            low, high = rest.min(), rest.max()
            apart = (low - end if end < low else end - high) / max(high - low, 1e-12)
            nines = abs(end) >= 99 and f"{abs(end):.0f}".strip("9") == "" and end == np.round(end)
            if (end < 0 <= low and (apart > 0.5 or end == -1)) or (nines and apart > 1):
                yield Finding("codes_for_missing", "warning", about.where,
                              f"number '{about.source}' is {end:g} on {percent(share)} of the sampled rows, and from "
                              f"{low:.6g} to {high:.6g} on the others",
                              "If it stands for 'not known', write null: a missing number has an indicator of its own.",
                              {"column": about.source, "value": float(end), "share": share})


def nulls_explode(log: Log) -> Iterator[Finding]:
    """A column that is filled in train and empty later, or the other way round; a table that lacks many keys."""
    lost: dict[str, float] = {}
    for _, about, column in each_column(log, "number", "id"):
        if table_of(about.source) and not column.missing.all():
            lost[about.source.split(".")[0]] = column.lost / len(column.missing)
    for table, share in lost.items():
        if share > LOST:
            yield Finding(
                "nulls_explode", "warning", f"data.tables.{table}",
                f"table '{table}' lacks the keys of {percent(share)} of the sampled train rows",
                "All that it holds is missing there; is it older than the log, or are keys written in another way?",
                {"table": table, "share": share})
    for split in log.held_out:
        for name, about, column in each_column(log):
            other = split.columns.get(name)
            if about.kind in DERIVED or other is None or min(len(column.missing), len(other.missing)) < 200:
                continue
            a, b, late = _empty(column), _empty(other), _empty(column, _stretches(log)[-1])
            # a log that warms up has fewer nulls from day to day: its last days are asked, too
            if all(abs(b - x) > NULLS and (b > 2 * x or x > 2 * b or abs(b - x) > 0.4) for x in (a, late)):
                lost = (f"; {percent(other.lost / len(other.missing))} of the keys are not in the table"
                        if other.lost else "")
                yield Finding(
                    "nulls_explode", "error" if abs(b - a) > 0.5 else "warning", about.where,
                    f"column '{about.source}' is missing on {percent(a)} of train and {percent(b)} of "
                    f"{split.name}{lost}",
                    "What a model learnt of it does not hold where it is empty; find the step that fills it in one "
                    "split "
                    "only.", {"column": about.source, "train": a, split.name: b})


def drift(log: Log) -> Iterator[Finding]:
    """A column whose values are others in a later split: numbers out of range, ids never seen, shares that moved."""
    for split in log.held_out:
        for name, about, column in each_column(log):
            other = split.columns.get(name)
            if about.kind in DERIVED or other is None or min(len(column.missing), len(other.missing)) < 200:
                continue
            said = _moved(log, split, name, column, other)
            if said:
                severity, sentence, evidence = said
                yield Finding("drift", severity, about.where, f"column '{about.source}': {sentence}",
                              "Was its unit, its coding or its source changed? What grows with time has no place in a "
                              "model that is asked "
                              "tomorrow.", {"column": about.source, "split": split.name, **evidence})


# ---- parts

def history_runs_back(log: Log) -> Iterator[Finding]:
    """Histories whose latest end is the other one: a user's later rows have the same elements there, and new ones at
    the end that is said to be the oldest."""
    for split in log.splits.values():
        if split.user is not None:
            yield from _runs_back(log, split)


def nothing_in_common(log: Log) -> Iterator[Finding]:
    """Two columns of one id space that share no value, so that no vector is learnt by both."""
    for name, f in log.schema.of_kind("sequence").items():
        listed, one = log.train.columns.get(name), log.train.columns.get(f.target or "")
        if listed is None or one is None or one.codes is None or listed.tokens is None:
            continue
        a, b = np.unique(listed.tokens), np.unique(one.codes[one.codes != 0])
        if min(len(a), len(b)) >= MEET and not np.isin(a, b).any():
            yield Finding(
                "nothing_in_common", "warning", log.about[name].where,
                f"none of {len(a):,} values of list '{f.column}' is one of {len(b):,} values of '{f.target}', though "
                f"both are of the id space '{f.space}'",
                "Are ids of two systems, or of two types, put in one space? Then nothing of a history tells of the "
                "candidate; write both as the same ids, or give them spaces of their own.",
                {"list": f.column, "target": f.target, "values": [len(a), len(b)]})


def _runs_back(log: Log, split: Split) -> Iterator[Finding]:
    user, now = split.user[split.sample], split.sample if split.time is None else split.time[split.sample]
    order = np.lexsort((now, user))
    same = (user[order[1:]] == user[order[:-1]]) & (user[order[1:]] != 0)
    before, after = order[:-1][same], order[1:][same]
    for name, about, _ in each_column(log, "list"):
        f, column = log.schema.features[about.name], split.columns.get(name)
        if f.kind != "sequence" or column is None:
            continue
        ends = _latest(column, f.latest)                                        # [m, LATEST], the latest at the right
        grown = column.lengths[after] - column.lengths[before]
        two = (grown > 0) & (column.lengths[before] > 1)
        a, b, by = ends[before[two]], ends[after[two]], grown[two]
        stood = _alike(a, b)
        at = np.arange(LATEST) + by[:, None]
        moved = _alike(np.where(at < LATEST, np.take_along_axis(a, np.minimum(at, LATEST - 1), 1), 0), b)
        right, wrong = int((moved & ~stood).sum()), int((stood & ~moved).sum())
        if wrong >= FEW_PAIRS and wrong > 4 * right:
            other = "first" if f.latest == "last" else "last"
            yield Finding(
                "history_runs_back", "warning", about.where,
                f"the {f.latest} entries of '{about.source}' are said to be the latest, and in {wrong:,} of "
                f"{wrong + right:,} pairs of a user's rows of {split.name} they stay while others come at the other "
                "end",
                f"Set latest: {other}; else max_len keeps the oldest entries, and recency counts from the wrong end.",
                {"split": split.name, "stood": wrong, "moved": right, "latest": f.latest})


def _latest(column: Column, latest: str) -> np.ndarray:
    """Hashes of each row's latest elements [m, LATEST], the latest at the right; 0 where there is none."""
    kept = np.diff(column.offsets)
    out = np.zeros((len(kept), LATEST), np.uint64)
    row = np.repeat(np.arange(len(kept)), kept)
    place = np.arange(len(row)) - np.repeat(column.offsets[:-1], kept)
    out[row, LATEST - kept[row] + place if latest == "last" else LATEST - 1 - place] = column.tokens
    return out


def _alike(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Whether all that a [m, K] has stands in b at the same places, and it has any."""
    there = a != 0
    return ((a == b) | ~there).all(1) & there.any(1)


def _empty(column: Column, rows: np.ndarray | slice = slice(None)) -> float:
    empty = column.missing if column.lengths is None else column.missing | (column.lengths == 0)
    return float(empty[rows].mean()) if len(empty[rows]) else 0.0


def _comes_again(log: Log, column: str) -> bool:
    """Whether values of the column repeat over all rows, though hardly in the sample."""
    codes = log.train.keys.get(column)
    return codes is not None and len(np.unique(codes)) < ROW_ID * len(codes)


def _never_again(log: Log, column: str) -> tuple[float, float, str] | None:
    """Shares of the latest tenth of train, and of a held-out split, whose value stood nowhere before, where both are
    nearly all."""
    codes = log.train.keys.get(column)
    if codes is None or len(log.train) < log.train.rows or len(codes) < FEW:
        return None
    cut = len(codes) * 9 // 10
    order = np.arange(len(codes)) if log.train.time is None else np.argsort(log.train.time, kind="stable")
    before, late = codes[order[:cut]], codes[order[cut:]]
    if (within := float((~np.isin(late, before)).mean())) < UNSEEN:
        return None
    for split in log.held_out:
        other = split.keys.get(column)
        if other is not None and (unseen := float((~np.isin(other, codes)).mean())) > UNSEEN:
            return within, unseen, split.name
    return None


def _moved(log: Log, split: Split, name: str, column: Column, other: Column) -> tuple | None:
    about = log.about[name]
    if about.kind == "id":
        at = cells(log, split, name)
        known = other.codes != 0
        K = len(log.once(("edges", name), lambda: np.empty(0)))
        unseen = float((at[known] == K + 1).mean()) if known.any() else 0.0
        if column.codes is not None and known.sum() >= 200:
            inner = _unseen_within(log, name)
            if unseen > UNSEEN and unseen > 2 * inner:
                return "error", (f"{percent(unseen)} of the rows of {split.name} have a value that train's sample does "
                                 f"not have (within train: {percent(inner)})"), {"unseen": unseen, "within": inner}
            if K > 200:
                return None                                # of so many, shares are noise
    else:
        a, b = numeric(column), numeric(other)
        a, b = a[~np.isnan(a)], b[~np.isnan(b)]
        if about.kind == "number" and min(len(a), len(b)) >= 200 and len(np.unique(a)) > 5:
            outside = float(((b < a.min()) | (b > a.max())).mean())
            if outside > OUTSIDE:
                return "error", (f"{percent(outside)} of {split.name} lie outside of all of train ({a.min():.6g} to "
                                 f"{a.max():.6g}; here {b.min():.6g} to {b.max():.6g})"), {"outside": outside}
            if outside > BEYOND[0] and outside * len(b) >= 30 and outside > BEYOND[1] * _outside_within(log, column):
                return "warning", (f"{percent(outside)} of {split.name} lie outside of all of train ({a.min():.6g} to "
                                   f"{a.max():.6g}; here {b.min():.6g} to {b.max():.6g})"), {"outside": outside}
    K = len(log.once(("edges", name), lambda: np.empty(0))) + 2
    here, there = (np.bincount(cells(log, s, name), minlength=K) for s in (log.train, split))
    found = psi(here, there)
    if column.lengths is None:
        usual = max((psi(here - part, part) for part in (np.bincount(cells(log, log.train, name)[rows], minlength=K)
                                                         for rows in _stretches(log))), default=0.0)
        moved = found > max(DRIFTED, 2 * usual) or found > max(SHIFTED[0], SHIFTED[1] * usual)
    else:
        moved = found > GROWN
    if moved:
        return "warning", (f"its values are others in {split.name} than in train (population stability index "
                           f"{found:.2f})"), {"psi": found}
    return None


def _stretches(log: Log) -> list[np.ndarray]:
    """The train sample cut by time, or else by place: how much a column moves without a fault."""
    def make() -> list[np.ndarray]:
        split = log.train
        order = np.arange(len(split.sample)) if split.time is None else np.argsort(
            split.time[split.sample], kind="stable")
        return np.array_split(order, STRETCHES)
    return log.once(("stretches",), make)


def _outside_within(log: Log, column: Column) -> float:
    """The largest share of a stretch of train's numbers that lie outside of all that the other stretches have."""
    values, shares = numeric(column), []
    for rows in _stretches(log):
        mine = np.zeros(len(values), bool)
        mine[rows] = True
        a, b = values[~mine & ~np.isnan(values)], values[mine & ~np.isnan(values)]
        if len(a) and len(b):
            shares.append(float(((b < a.min()) | (b > a.max())).mean()))
    return max(shares, default=0.0)


def _unseen_within(log: Log, name: str) -> float:
    """What share of the last tenth of train's sample has a value that the rest does not have."""
    codes = log.train.columns[name].codes
    cut = len(codes) * 9 // 10
    late = codes[cut:][codes[cut:] != 0]
    return float((~np.isin(late, codes[:cut])).mean()) if len(late) else 0.0
