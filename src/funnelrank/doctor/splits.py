"""Rows, splits, order and labels: what makes a measured number one of other rows than it seems."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, product

import numpy as np

from funnelrank.data.labels import contradictions
from funnelrank.data.vocab import splitmix64
from funnelrank.doctor.finding import Finding, percent
from funnelrank.doctor.log import Log, Split
from funnelrank.doctor.relate import LEAST, auc_error, carried, relations
from funnelrank.evaluate import metrics

SAME = 0.9              # of a split's rows that stand in another one, too
REPEATED = 0.001        # of a split's rows
CLASH = 0.02            # share of a step's positives without the step before, that a funnel may well have
MIXED = 0.25            # share of held-out rows before the latest twentieth of train
BLOCKS = 0.25           # changes from row to row, by those of rows in random order
SHIFT = 2.0             # of a label's odds between splits
UNSEEN = 0.2            # share of rows with a label, below which a label that is mostly 1 lacks its 0s
RIPE = 0.5              # rate of the last rows by that of the others
KNOWN = 0.05            # share of a held-out split's rows whose user train knows, below which it has other users
SILENT = 100            # rows of the rarer class to expect of a scenario that has none
TELLS = 0.4             # distance from .5 of the AUC of a weight
FELL = 0.12             # of the AUC of all columns together, from train to a held-out split


def same_rows(log: Log) -> Iterator[Finding]:
    """Rows of one split that stand in another one, too; at worst a split that is another one."""
    for a, b in combinations(log.splits.values(), 2):
        both = set(log.files[a.name]) & set(log.files[b.name])
        inside = np.isin(b.key, a.key)
        share, count = float(inside.mean()), int(inside.sum())
        if (share > SAME or np.isin(a.key, b.key).mean() > SAME) and not _coincidence(log, b, count):
            yield Finding(
                "same_rows", "error", f"data.{b.name}",
                f"{percent(share)} of the rows of {b.name} stand in {a.name}, too"
                + (f"; both read {sorted(both)[0]}" if both else ""),
                "A number measured on rows that were learnt from, or chosen by, says nothing about others; give each "
                "split "
                "rows of its own.", {"of": b.name, "in": a.name, "share": share, "rows": count})
        elif count and not _coincidence(log, b, count):
            first = int(inside.argmax())
            yield Finding(
                "same_rows", "error" if share > 0.01 else "warning", f"data.{b.name}",
                f"{count:,} rows of {b.name} ({percent(share)}) stand in {a.name}, too (first: row {first})",
                "Cut splits by time, or by user, and write each row once.",
                {"of": b.name, "in": a.name, "share": share, "rows": count, "first": first})
        elif log.identified and (twice := int(np.isin(_events(b), _events(a)).sum())) > max(2, REPEATED * len(b)):
            yield Finding(
                "same_rows", "error" if twice > 0.01 * len(b) else "warning", f"data.{b.name}",
                f"{twice:,} events of {b.name} ({percent(twice / len(b))}: same user, time and ids) stand in "
                f"{a.name}, too, "
                "with other "
                "columns", "An event belongs to one split; its copies must not be told apart by a rewritten column.",
                {"of": b.name, "in": a.name, "events": twice})


def repeated_rows(log: Log) -> Iterator[Finding]:
    """Rows that stand twice in one split."""
    for split in log.splits.values():
        values, first, counts = np.unique(split.key, return_index=True, return_counts=True)
        more = int((counts - 1).sum())
        if more > max(2, REPEATED * len(split)) and not _coincidence(log, split, more):
            at = int(first[counts > 1].min())
            yield Finding(
                "repeated_rows",
                "warning" if log.identified or more < 0.5 * len(split) else "note", f"data.{split.name}",
                f"{more:,} rows of {split.name} ({percent(more / len(split))}) repeat another one exactly (first: "
                f"row {at})",
                "Write each event once: repeats weigh double, and make intervals too narrow.",
                {"split": split.name, "rows": more, "share": more / len(split), "first": at})


def rows_that_disagree(log: Log) -> Iterator[Finding]:
    """Rows that are alike in all that is read, and have other labels."""
    for split in log.splits.values():
        order = np.argsort(split.asked, kind="stable")
        same = split.asked[order][1:] == split.asked[order][:-1]
        if not same.any() or _coincidence(log, split, int(same.sum())):
            continue
        y = split.labels[order]
        for t, task in log.binary:
            a, b = y[:-1, t], y[1:, t]
            other = same & (np.abs(a - b) == 1)
            count = int(other.sum())
            if count > max(5, 0.001 * len(split)) and count > 0.1 * same.sum():
                yield Finding(
                    "rows_that_disagree", "warning", f"tasks.{task}",
                    f"{count:,} times a row of {split.name} is as another one in all that is read, and '{task}' "
                    "differs "
                    f"(first: row {int(order[int(other.argmax())])})",
                    "Join labels by one key for each event, and write one row with the final label.",
                    {"split": split.name, "task": task, "pairs": count, "alike": int(same.sum())})


def broken_funnel(log: Log) -> Iterator[Finding]:
    """Steps that happened though the step before did not."""
    for split in log.splits.values():
        for found in contradictions(split.labels, log.schema):
            share = found.rows / max(found.positives, 1)
            if found.rows:
                grave = log.config.settings.data.contradictions == "raise" or share > 0.5
                yield Finding(
                    "broken_funnel", "error" if grave else "warning" if share > CLASH else "note",
                    f"tasks.{found.child}.after",
                    f"{found.rows:,} of {found.positives:,} positives of '{found.child}' in {split.name} have "
                    f"'{found.parent}' = 0 ({percent(share)}; first: row {found.first})",
                    "Correct the labels, or the tree of tasks; data.contradictions says what is done to such rows.",
                    {"split": split.name, "child": found.child, "parent": found.parent, "rows": found.rows,
                     "positives": found.positives, "first": found.first})


def odd_labels(log: Log) -> Iterator[Finding]:
    """Labels of one class, of hardly any positives, missing where they would be 0, or equal to another task's."""
    for split in log.splits.values():
        for t, task in enumerate(log.schema.tasks):
            y = split.labels[:, t]
            seen, where = y[~np.isnan(y)], f"tasks.{task.name}"
            if not len(seen):
                yield Finding("odd_labels", "error", where, f"no row of {split.name} has the label '{task.label}'",
                              "Nothing can be learnt or measured; fill the column, or drop the task.",
                              {"split": split.name})
                continue
            if task.kind != "binary":
                if len(np.unique(seen[:100_000])) == 1:
                    yield Finding("odd_labels", "error", where, f"label '{task.label}' is {seen[0]:g} on every row of "
                                  f"{split.name}", "Nothing can be learnt of it.", {"split": split.name})
                continue
            positives = int((seen == 1).sum())
            if positives in (0, len(seen)):
                missing = f", and {percent(1 - len(seen) / len(y))} of the rows have none" if len(seen) < len(y) else ""
                yield Finding(
                    "odd_labels", "error", where,
                    f"every label '{task.label}' of {split.name} is {1 if positives else 0}{missing}",
                    "A label that is missing where it should be 0 teaches that all are 1; write "
                    "0." if positives and missing
                    else "Nothing can be learnt or ranked; find out where the other class went.",
                    {"split": split.name, "positives": positives, "observed": len(seen), "rows": len(y)})
            elif len(seen) < UNSEEN * len(y) and positives > 0.5 * len(seen) and log.schema.parents[t] is None:
                yield Finding("odd_labels", "warning", where,
                              f"'{task.label}' is observed on {percent(len(seen) / len(y))} of {split.name}, and is 1 "
                              f"on {percent(positives / len(seen))} of these rows",
                              "Is it null where it should be 0, as in an export of positive events? A model then "
                              "learns that most are 1; write 0.",
                              {"split": split.name, "positives": positives, "observed": len(seen), "rows": len(y)})
            elif min(positives, len(seen) - positives) < LEAST:
                yield Finding("odd_labels", "note", where,
                              f"{split.name} has {positives} positives of {len(seen):,} labels of '{task.label}'",
                              "Too few for a number with an interval worth reading; take more rows.",
                              {"split": split.name, "positives": positives, "observed": len(seen)})
    shares = {s.name: (~np.isnan(s.labels)).mean(0) for s in log.splits.values()}
    for split in log.held_out:
        for t, task in enumerate(log.schema.tasks):
            a, b = float(shares["train"][t]), float(shares[split.name][t])
            if 0 < b < a - 0.3:
                yield Finding("odd_labels", "warning", f"tasks.{task.name}",
                              f"'{task.label}' is observed on {percent(a)} of train and {percent(b)} of {split.name}",
                              "Metrics are of the observed rows only; are these like the others?",
                              {"train": a, split.name: b})
    y = log.train.labels
    fill = log.config.settings.data.fill_implied
    for t, parent in enumerate(log.schema.parents):
        if parent is None or (log.schema.nested if fill is None else fill):
            continue
        without, after = (y[y[:, parent] == v, t] for v in (0, 1))
        if min(len(without), len(after)) >= LEAST and np.isnan(without).mean() > 0.95 and np.isnan(after).mean() < 0.5:
            task, before = log.schema.tasks[t].name, log.schema.tasks[parent].name
            yield Finding("odd_labels", "warning", f"tasks.{task}",
                          f"'{task}' is observed on {percent(1 - float(np.isnan(without).mean()))} of the train rows "
                          f"with '{before}' = 0, and on {percent(1 - float(np.isnan(after).mean()))} of those with 1",
                          f"The joint reading then learns its rate given '{before}', and serves it as that of all "
                          "rows. Set data.fill_implied: true, or model.reading: conditional.",
                          {"task": task, "after": before})
    for (t, a), (u, b) in combinations(log.binary, 2):
        both = ~np.isnan(y[:, t]) & ~np.isnan(y[:, u])
        if both.sum() >= LEAST and (y[both, t] == 1).any() and (y[both, t] == y[both, u]).all():
            yield Finding("odd_labels", "warning", f"tasks.{b}",
                          f"labels of '{b}' and '{a}' are equal on every train row",
                          "One task is enough, or one of the labels is read from the wrong column.", {"tasks": [a, b]})


def time_runs_back(log: Log) -> Iterator[Finding]:
    """Splits that mix times: rows to be measured on that are not later than those learnt from."""
    said = f"'{log.time}'" + ("" if log.schema.time else " (not declared as data.time)")
    timed = [s for s in log.splits.values() if s.time is not None and np.isfinite(s.time).any()]
    for a, b in combinations(timed, 2):
        ta, tb = (x.time[np.isfinite(x.time)] for x in (a, b))
        if ta.min() == ta.max() or tb.min() == tb.max():
            continue
        early = float((tb < np.quantile(ta, 0.95)).mean())
        if np.median(tb) < ta.min():
            yield Finding(
                "time_runs_back", "error", f"data.{b.name}",
                f"by {said}, {b.name} lies before {a.name}: a model of {a.name} has seen the future of these rows",
                "Learn from earlier rows than those measured on.", {"of": b.name, "before": a.name})
        elif a.name == "train" and early > MIXED:
            dealt = early > SAME and _share_users(a, b)
            yield Finding(
                "time_runs_back", "error" if dealt else "warning", f"data.{b.name}",
                f"by {said}, {percent(early)} of {b.name} are earlier than the latest twentieth of {a.name}: the split "
                "mixes times",
                "Users, items and days of the measured rows then stand in train, too, and later rows tell of earlier "
                "ones; "
                "cut by time.", {"of": b.name, "with": a.name, "early": early})
        elif a.name == "train" and (late := int((ta > np.quantile(tb, 0.05)).sum())) > max(9, REPEATED * len(ta)):
            yield Finding(
                "time_runs_back", "warning", f"data.{b.name}",
                f"by {said}, {late:,} rows of train ({percent(late / len(ta))}) are later than the earliest twentieth "
                f"of {b.name}",
                "Rows that came late, or of another day's file? Cut train where the next split begins.",
                {"of": b.name, "late": late, "share": late / len(ta)})


def rows_in_blocks(log: Log) -> Iterator[Finding]:
    """Train rows sorted by user, or with labels or scenarios in blocks."""
    split = log.train
    if len(split) < 1000:
        return
    start = np.zeros(len(split), bool)
    start[split.blocks] = True
    inner = ~start[1:]
    for what, where, codes in (("users", "data.user", split.user), ("scenarios", "data.scenario", split.scenario)):
        if codes is None:
            continue
        _, at, counts = np.unique(codes, return_inverse=True, return_counts=True)
        expected = 1 - float(np.square(counts / len(codes)).sum())
        changes = float((at[1:] != at[:-1])[inner].mean())
        if expected < 0.02 or counts.mean() < 1.5:
            continue
        # sorted rows change once a value; that is few changes only where values have several rows
        if what == "users":
            runs = int((at[1:] != at[:-1]).sum()) + 1
            again = (counts >= 2).sum()
            block = again >= 100 and runs < len(counts) + 0.25 * (len(codes) - len(counts))
        else:
            block = changes < BLOCKS * expected
        if block:
            yield _blocked(what, where, changes, expected)
    for t, task in log.binary:
        y = split.labels[:, t]
        both = inner & ~np.isnan(y[1:]) & ~np.isnan(y[:-1])
        rate = _rate(y)
        expected = 2 * rate * (1 - rate)
        if min(rate, 1 - rate) * len(y) < LEAST or not both.any():
            continue
        changes = float((y[1:] != y[:-1])[both].mean())
        place = np.arange(len(y), dtype=np.float32)
        seen = ~np.isnan(y)
        by_place = metrics.auc(place[seen], y[seen])
        # labels follow the user they are of: what stands in blocks of single users is told of users
        if changes < BLOCKS * expected or abs(by_place - 0.5) > 0.2:
            yield _blocked(f"labels of '{task}'", f"tasks.{task}", changes, expected, by_place)


def users_apart(log: Log) -> Iterator[Finding]:
    """A user's id as a feature where held-out rows are of users that train does not have."""
    schema = log.schema
    named = [n for n, f in schema.of_kind("id").items() if f.column == schema.user]
    if not schema.user:
        return
    train = np.unique(log.train.user[log.train.user != 0])
    if len(train) < 20 or len(train) > 0.8 * len(log.train):
        return
    for split in log.held_out:
        mine = split.user[split.user != 0]
        if len(mine) < 200:
            continue
        known = float(np.isin(mine, train).mean())
        if known < KNOWN:
            yield Finding(
                "users_apart",
                "warning" if named else "note", f"features.{named[0]}" if named else f"data.{split.name}",
                f"{percent(known)} of the rows of {split.name} are of a user that train has"
                + (f", and '{named[0]}' is a feature: there it is always unknown" if named else ""),
                "Such a split measures new users only. If the service knows its users, cut by time; if not, leave the "
                "user's id out.", {"split": split.name, "known": known})


def rates_move(log: Log) -> Iterator[Finding]:
    """Labels that are far more, or less, often 1 in a held-out split, or at the end of train."""
    sampled = log.schema.negatives_kept
    for t, task in log.binary:
        y = log.train.labels[:, t]
        rate, positives = _rate_before_sampling(log, log.train, t), int(np.nansum(y))
        if not LEAST <= positives < (~np.isnan(y)).sum() - LEAST:
            continue
        for split in log.held_out:
            other = split.labels[:, t]
            n, k = int((~np.isnan(other)).sum()), int(np.nansum(other))
            if n < 200 or max(k, rate * n) < LEAST:
                continue
            there = min(max(_rate_before_sampling(log, split, t), 0.5 / (n + 1)), 1 - 0.5 / (n + 1))
            odds = there / (1 - there) * (1 - rate) / rate
            if max(odds, 1 / odds) > SHIFT and abs(np.log(odds)) > 5 / np.sqrt(max(min(k, n - k), 1)):
                yield Finding(
                    "rates_move", "warning", f"tasks.{task}",
                    f"'{task}' is 1 on {percent(rate)} of train and {percent(there)} of {split.name}" + (
                        f", if negatives were sampled as data.negatives_kept says ({sampled.rate:g} of them kept in "
                        f"{', '.join(sampled.splits)})" if sampled else ""),
                    "Is the declared rate that of the files, and of these splits?" if sampled else
                    "Were negatives sampled in one split only (data.negatives_kept), or are late labels not yet in?",
                    {"task": task, "train": rate, split.name: there})
        if log.train.time is not None:
            yield from _unripe(log, t, task, y)


def train_does_not_carry(log: Log) -> Iterator[Finding]:
    """All columns together: what train teaches is not so in a held-out split, or train teaches nothing."""
    for t, task in log.binary:
        names = [n for (n, at), r in relations(log).items() if at == t and r.auc > 0.505]
        y = log.train.label(t)
        P, N = int((y == 1).sum()), int((y == 0).sum())
        if min(P, N) < 100:
            continue
        if not names or max(relations(log)[n, t].auc for n in names) - 0.5 < 3 * auc_error(0.5, P, N):
            yield Finding("train_does_not_carry", "warning", f"tasks.{task}",
                          f"no column ranks '{task}' better than chance on {len(y):,} sampled rows of train",
                          "Were labels and rows joined in one order?", {"task": task})
            continue
        score = np.nansum([relations(log)[n, t].score for n in names], 0)
        seen = ~np.isnan(y)
        train = metrics.auc(score[seen].astype(np.float32), y[seen])
        for split in log.held_out:
            parts = [s for n in names if (s := carried(log, split, n, t)) is not None]
            z = split.label(t)
            ok = ~np.isnan(z)
            P, N = int((z == 1).sum()), int((z == 0).sum())
            if not parts or min(P, N) < LEAST:
                continue
            there = metrics.auc(np.nansum([s for _, s in parts], 0)[ok].astype(np.float32), z[ok])
            fell, error = train - there, auc_error(max(there, 0.5), P, N)
            # a share of what train shows above chance, so that weak and strong logs are asked alike
            above = train - 0.5
            if fell > max(5 * error, 0.6 * above, 0.05) or fell > max(5 * error, 0.4 * above, FELL):
                yield Finding(
                    "train_does_not_carry", "error" if there < 0.5 else "warning", f"data.{split.name}",
                    f"all columns together rank '{task}' with AUC {train:.3f} in train and {there:.3f} in {split.name}",
                    "Are labels turned round, rows shuffled against them, or features written another way in this "
                    "split?",
                    {"task": task, "train": train, split.name: there})


def heavy_weights(log: Log) -> Iterator[Finding]:
    """Row weights that leave few rows to learn from."""
    w = log.train.weight
    if w is None or not len(w):
        return
    total = float(w.sum())
    if total == 0:
        yield Finding("heavy_weights", "error", "data.weight", "every row of train has weight 0",
                      "Nothing can be learnt.")
        return
    top = float(np.sort(w)[-max(1, len(w) // 100):].sum() / total)
    effective = total**2 / float(np.square(w, dtype=np.float64).sum())
    if log.train.scenario is not None:
        codes, at, counts = np.unique(log.train.scenario, return_inverse=True, return_counts=True)
        silent = codes[(np.bincount(at, w) == 0) & (counts >= LEAST)]
        if len(silent):
            names = [log.scenarios.get(int(c), "null") for c in silent[:5]]
            yield Finding("heavy_weights", "warning", "data.weight",
                          f"every train row of scenario {', '.join(names)} has weight 0",
                          "Nothing is learnt of it, though it is measured and served.", {"scenarios": names})
    for t, task in log.binary:
        y = log.train.labels[:, t]
        seen = ~np.isnan(y)
        if min((y == 1).sum(), (y == 0).sum()) >= LEAST and abs(
                (auc := metrics.auc(w[seen].astype(np.float32), y[seen])) - 0.5) > TELLS:
            yield Finding("heavy_weights", "note", "data.weight",
                          f"the weight alone ranks '{task}' with AUC {auc:.3f}",
                          "Weights that follow a label move what is predicted for it: probabilities are those of the "
                          "weighted rows. To undo a sampling, see data.negatives_kept.", {"task": task, "auc": auc})
    if top > 0.5 or effective < 0.1 * len(w):
        yield Finding("heavy_weights", "warning", "data.weight",
                      f"the heaviest hundredth of the train rows has {percent(top)} of all weight; the whole weighs as "
                      f"{effective:,.0f} rows of {len(w):,}", "Cap or rescale the weights.",
                      {"top": top, "effective": effective, "rows": len(w)})


def odd_scenarios(log: Log) -> Iterator[Finding]:
    """Scenarios that held-out rows have and train does not, one scenario for all, or one for nearly every row."""
    s = log.train.scenario
    if s is None:
        return
    known, counts = np.unique(s, return_counts=True)
    column = log.schema.scenario
    if len(known) == 1:
        yield Finding("odd_scenarios", "warning", "data.scenario",
                      f"column '{column}' holds one value on all train rows",
                      "There is one scenario; leave data.scenario out, or name the column that tells them apart.")
    elif len(known) > 0.2 * len(s) and len(s) > 200:
        yield Finding("odd_scenarios", "warning", "data.scenario",
                      f"column '{column}' has {len(known):,} values on {len(s):,} train "
                      "rows", "It names rows rather than "
                      "scenarios; choose a column of few values.", {"values": len(known)})
    for (t, task), code in product(log.binary, known[counts >= LEAST]):
        y = log.train.labels[s == code, t]
        seen, base = y[~np.isnan(y)], _rate(log.train.labels[:, t])
        if not len(seen) or seen.min() != seen.max():
            continue
        expected = min(base, 1 - base) * len(seen)
        others = [x for x in log.held_out if expected > LEAST and _of_scenario(x, code, t, 1 - seen[0]) >= 3]
        if others:
            yield Finding("odd_scenarios", "warning", f"tasks.{task}",
                          f"every one of {len(seen):,} labels of '{task}' in scenario "
                          f"{log.scenarios.get(int(code), '?')} of train is {seen[0]:.0f}, where {expected:,.0f} "
                          f"others are to be expected and {others[0].name} has some",
                          "Was the step not logged there at first? Write null where it was not.",
                          {"task": task, "scenario": log.scenarios.get(int(code)), "rows": len(seen)})
        elif expected > SILENT:
            yield Finding("odd_scenarios", "warning", "data.scenario",
                          f"every one of {len(seen):,} labels of '{task}' in scenario "
                          f"{log.scenarios.get(int(code), '?')} is "
                          f"{seen[0]:.0f}; elsewhere {percent(base)} are 1",
                          "Is the step logged there at all? Write null where it cannot happen.",
                          {"task": task, "scenario": log.scenarios.get(int(code)), "rows": len(seen)})
    for split, (code, count) in product(log.held_out, zip(known, counts)):
        if code and count / len(s) * len(split) >= SILENT and not (split.scenario == code).any():
            yield Finding(
                "odd_scenarios", "warning", "data.scenario",
                f"{split.name} has no row of scenario {log.scenarios.get(int(code), '?')}, which is "
                f"{percent(count / len(s))} of train",
                "What is chosen or measured there says nothing of it; is it written in another way?",
                {"split": split.name, "scenario": log.scenarios.get(int(code)), "share": count / len(s)})
    for split in log.held_out:
        new = ~np.isin(split.scenario, known)
        share = float(new.mean())
        if share > 0.01 and len(known) > 1:
            names = [log.scenarios.get(int(c), "?") for c in np.unique(split.scenario[new])[:5]]
            yield Finding(
                "odd_scenarios", "error" if share > 0.5 else "warning", "data.scenario",
                f"{percent(share)} of the rows of {split.name} are of a scenario that train does not have "
                f"({', '.join(names)})",
                "Is it written in the same way in both? New scenarios are scored as unseen ones.",
                {"split": split.name, "share": share, "scenarios": names})


def odd_users(log: Log) -> Iterator[Finding]:
    """A column of users that names rows, or one user who is a large part of the log."""
    if log.train.user is None:
        return
    codes = log.train.user[log.train.user != 0]
    _, counts = np.unique(codes, return_counts=True)
    if len(codes) >= 1000 and len(counts) > 0.95 * len(codes):
        yield Finding("odd_users", "warning", "data.user",
                      f"column '{log.schema.user}' has {len(counts):,} values on {len(codes):,} train rows: hardly "
                      "one comes "
                      "twice",
                      "GAUC and intervals by user need users with several rows; name the column that says who.",
                      {"users": len(counts), "rows": len(codes)})
    elif len(counts) >= 100 and counts.max() > 0.1 * len(codes):
        yield Finding("odd_users", "warning", "data.user",
                      f"one user has {percent(counts.max() / len(codes))} of the train rows",
                      "A robot, or a value that stands for unknown users: write null for these, or leave them out.",
                      {"rows": int(counts.max()), "of": len(codes)})
    empty = float((log.train.user == 0).mean())
    if empty > 0.5:
        yield Finding("odd_users", "warning", "data.user",
                      f"column '{log.schema.user}' is null on {percent(empty)} of the train rows",
                      "GAUC is of the others only.", {"null": empty})


# ---- parts

def _rate(y: np.ndarray) -> float:
    """Mean of the observed labels; 0 where there is none."""
    seen = y[~np.isnan(y)]
    return float(seen.mean()) if len(seen) else 0.0


def _rate_before_sampling(log: Log, split: Split, t: int) -> float:
    """The rate of a label; where negatives of a task were sampled, each that is left stands for 1 / rate of them."""
    y, sampled = split.labels[:, t], log.schema.negatives_kept
    if sampled is None or split.name not in sampled.splits:
        return _rate(y)
    of = split.labels[:, log.schema.task_names.index(sampled.task)]
    weight = np.where(of == 0, 1 / sampled.rate, 1.0)
    seen = ~np.isnan(y)
    return float(np.average(y[seen], weights=weight[seen])) if seen.any() else 0.0


def _share_users(a: Split, b: Split) -> bool:
    """Whether most rows of b are of users of a, so that later rows of a user tell of his earlier ones."""
    return a.user is not None and b.user is not None and float(np.isin(b.user, a.user[a.user != 0]).mean()) > 0.5


def _of_scenario(split: Split, code: int, t: int, label: float) -> int:
    return 0 if split.scenario is None else int((split.labels[split.scenario == code, t] == label).sum())


def _events(split: Split) -> np.ndarray:
    """A hash of user, time and ids of each row that has user and time."""
    whole = split.user ^ splitmix64(np.ascontiguousarray(split.time).view(np.uint64))
    for codes in split.keys.values():
        whole = splitmix64(whole) ^ codes
    return whole[(split.user != 0) & np.isfinite(split.time)]


def _coincidence(log: Log, split: Split, count: int) -> bool:
    """Whether rows alike may well be different events: nothing in the log tells events apart, and most rows that
    repeat do so many times over, as small combinations do."""
    if log.identified:
        return False
    _, counts = np.unique(split.asked, return_counts=True)
    return bool(counts.max() > 3 and (counts == 1).mean() < 0.9)


def _blocked(what: str, where: str, changes: float, expected: float, by_place: float | None = None) -> Finding:
    place = "" if by_place is None else f"; the row's place alone ranks them with AUC {by_place:.2f}"
    return Finding(
        "rows_in_blocks", "warning", where,
        f"{what} stand in blocks in train: from row to row they change {percent(changes)} of the time, in random "
        "order they "
        f"would {percent(expected)}{place}",
        "Rows that fit data.memory are shuffled whole, and larger splits within windows, where blocks stay; write "
        "rows by "
        "time, or shuffled.", {"of": what, "changes": changes, "expected": expected})


def _unripe(log: Log, t: int, task: str, y: np.ndarray) -> Iterator[Finding]:
    """Whether the label is rarer on the last rows of train by time, as one that takes days to be known is."""
    time = log.train.time
    ok = ~np.isnan(y) & np.isfinite(time)
    order = np.argsort(time[ok], kind="stable")
    z, n = y[ok][order], int(ok.sum())
    if n < 2000:
        return
    last, others = z[-n // 20:], z[:-n // 5]
    a, b = float(last.mean()), float(others.mean())
    parts = [float(part.mean()) for part in np.array_split(others, 16)]
    k, expected = float(last.sum()), b * len(last)
    sure = expected > 0 and 2 * ((k * np.log(k / expected) if k else 0.0) - (k - expected)) > 25        # 5 sigma
    if sure and a < RIPE * b and a < 0.8 * min(parts):
        yield Finding(
            "rates_move", "warning", f"tasks.{task}",
            f"'{task}' is 1 on {percent(a)} of the latest twentieth of train, and on {percent(b)} of the rows before",
            "A label that takes time to be known is 0 where it is not known yet; leave the last days out, or write "
            "null.",
            {"task": task, "last": a, "before": b})
