"""Detectors of a trained run: what its model does with rows, what in it learns, whether it is served as measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from funnelrank.doctor.finding import Finding, percent, some
from funnelrank.doctor.patient import Patient
from funnelrank.evaluate.measure import measure
from funnelrank.evaluate.score import score
from funnelrank.nn.linear import Linear
from funnelrank.train.health import LARGE, largest, odd_weights

SAME = 1e-3             # log-odds: answers that differ by less are the same
ALONE = 48              # rows that are also asked alone
DEAD = 0.5              # share of a layer's units
DEAD_ONE = 0.75         # the same of one of several layers side by side
STILL = 1e-3            # of a parameter's largest number: it moved by less
UNMOVED = 0.01          # share of a table's rows that may have moved all the same, as an unseen scenario's
CLOSED = 0.3            # share of what a gate lets through for no row
FEW = 30                # rows of a scenario
ONE = 0.99              # mean share of a candidate that all others are nothing beside
NOTHING = 0.002         # mean share of a candidate that nobody listens to
SATURATED = 0.95        # share of a gate's answers at one of its ends
IGNORED = 1e-5          # log-odds: the largest change when a feature's values are dealt anew
OFF = 1.5               # predicted over observed
PRECISE = 1e-6          # of metrics measured again on the same scores


def depends_on_its_batch(p: Patient) -> Iterator[Finding]:
    """A row's answer that changes with the rows it is asked beside."""
    n = len(p.batch)
    which = np.unique(np.linspace(0, n - 1, ALONE).astype(int))
    together = p.answers(p.said)[which]
    alone = torch.cat([p.answers(p.says(p.rows(np.array([i])))) for i in which])
    turned = p.answers(p.says(p.rows(np.arange(n)[::-1][:n // 2])))
    there = p.answers(p.said).flip(0)[:n // 2]
    apart = max(float((together - alone).abs().max()), float((turned - there).abs().max()))
    if apart > SAME or not np.isfinite(apart):
        yield Finding(
            "depends_on_its_batch", "error", "model",
            f"a row asked alone, or beside other rows, gets log-odds that differ by up to {apart:.3g}",
            "Metrics then depend on evaluate.batch_size, and a served row on who else asks; use running statistics at "
            "evaluation, and no operation across rows.", {"log_odds": apart if np.isfinite(apart) else None})


def says_no_number(p: Patient) -> Iterator[Finding]:
    """Answers or weights that are not finite, and tables that have grown without end."""
    answers = p.answers(p.said)
    bad = ~answers.isfinite().all(1)
    if bad.any():
        yield Finding("says_no_number", "error", "model",
                      f"{int(bad.sum())} of {len(bad):,} rows get an answer that is not finite",
                      "Find the weights below, or the feature, that is not; train again.", {"rows": int(bad.sum())})
    if odd := odd_weights(p.model):
        yield Finding("says_no_number", "error", "model", f"weights of {some(odd)} are not finite",
                      "Lower the learning rate, or set train.clip_norm.", {"weights": odd})
    for name, table in p.model.embedding.tables.items():
        if (size := largest(table.weight)) > LARGE:
            yield Finding("says_no_number", "warning", "embedding.optimiser",
                          f"table {name} holds weights up to {size:.3g}",
                          "Lower embedding.optimiser.lr, or set its l2.", {"table": name, "largest": size})


def never_learnt(p: Patient) -> Iterator[Finding]:
    """Parameters that no loss reaches, or that stand where they started."""
    gradients, spaces, _ = p.gradients
    out = [n for n, g in gradients.items() if g is None or not bool(g.any())]
    if out:
        yield Finding(
            "never_learnt", "warning", "model",
            f"no loss reaches {len(out)} of {len(gradients)} parameters ({some(out, 4)}) on {len(p.batch):,} rows",
            "They are not part of any answer, or are cut off from it; take them out, or let a gradient through.",
            {"parameters": out})
    if still := [s for s, size in spaces.items() if size == 0]:
        yield Finding("never_learnt", "warning", "embedding",
                      f"no loss reaches the vectors of id space {some(still)}",
                      "No part reads them, or what reads them passes nothing on.", {"spaces": still})
    if p.fresh is None:
        return
    start = dict(p.fresh.named_parameters())
    tables = {id(t.weight) for t in p.model.embedding.tables.values()}
    moved = [n for n, w in p.model.named_parameters() if n not in out and w.dim() > 1 and (
        w.requires_grad and id(w) not in tables and _moved(w, start[n]) == 0
        or id(w) in tables and _moved(w, start[n]) <= UNMOVED)]
    if moved:
        yield Finding("never_learnt", "warning", "train",
                      f"{len(moved)} parameters stand where they started ({some(moved, 4)}): hardly a number in them "
                      f"moved by {STILL:g} of the largest",
                      "Were they in the optimiser? A run that was stopped at once, or a rate near 0, does so too.",
                      {"parameters": moved})


def dead_units(p: Patient) -> Iterator[Finding]:
    """Layers of which most units pass nothing on, whatever the row; layers side by side that are copies."""
    gradients, _, model = p.gradients
    for name, module in model.named_modules():
        if not isinstance(module, Linear) or (g := gradients.get(f"{name}.weight")) is None or not bool(g.any()):
            continue
        lit = g.abs().amax(-1) > 0                                              # [out] or [n, out]
        if lit.dim() == 2:
            if len(alike := _alike(module.weight)) > 1:
                yield Finding("dead_units", "warning", f"model: {name}",
                              f"layers {some([str(i) for i in alike])} of {len(lit)} side by side in {name} are copies "
                              "of one another",
                              "Experts or towers that start and learn alike are one; start each at random.",
                              {"layer": name, "alike": alike})
            first = p.first_gradients.get(f"{name}.weight")
            asked = lit.any(1) if first is None else lit.any(1) | (first.abs().amax(-1) > 0).any(1)
            shares = (~lit).float().mean(1)                # what no row of these asks for is no dead unit
            dark = [i for i in range(len(lit)) if asked[i] and float(shares[i]) > DEAD_ONE]
            lit = lit[asked]
            if dark and lit.shape[1] >= 4 and float((~lit).float().mean()) <= DEAD:
                yield Finding(
                    "dead_units", "warning", f"model: {name}",
                    f"{percent(float(shares[dark].mean()))} of the units of {some([str(i) for i in dark])} (from 0) of "
                    f"{len(shares)} layers side by side in {name} pass nothing on for any of {len(p.batch):,} rows",
                    "A lower learning rate, another activation, or fewer of them.", {"layer": name, "which": dark})
        dead = float((~lit).float().mean())
        if lit.numel() >= 4 and dead > DEAD:
            yield Finding(
                "dead_units", "warning", f"model: {name}",
                f"{int((~lit).sum())} of {lit.numel()} units of {name} pass nothing on for any of {len(p.batch):,} "
                "rows",
                "A lower learning rate, another activation, or fewer units.", {"layer": name, "dead": dead})


def gates_collapsed(p: Patient) -> Iterator[Finding]:
    """Experts or inputs that one gate takes alone, or that no gate takes; gates that say the same for every row."""
    for gate in p.gates:
        if gate.kind == "sigmoid":
            ends = float(((gate.share < 0.02) | (gate.share > 0.98)).float().mean())
            moves = float(gate.share.std(0).mean()) if len(gate.share) > 1 else 1.0
            closed = float((gate.share.amax(0) < 0.02).float().mean())
            if closed > CLOSED and ends <= SATURATED:
                yield Finding(
                    "gates_collapsed", "warning", f"model: {gate.name}",
                    f"gate {gate.name} is closed for every row on {percent(closed)} of what it gates",
                    "What it closes costs time and says nothing; a lower rate, or fewer features in its group.",
                    {"gate": gate.name, "closed": closed})
            elif ends > SATURATED or moves < 1e-4:
                yield Finding(
                    "gates_collapsed", "warning", f"model: {gate.name}",
                    f"gate {gate.name} is at one of its ends on {percent(ends)} of its answers" if ends > SATURATED else
                    f"gate {gate.name} says the same for every row (they differ by {moves:.2g})",
                    "It gates nothing then; does its group hold what tells rows apart? A lower rate keeps it from "
                    "its ends.",
                    {"gate": gate.name, "at_ends": ends, "spread": moves})
            continue
        mean = gate.share.mean(0)                                               # [V, N]
        by_scenario = {name: _rounded(gate.share[torch.from_numpy(mine)].mean(0)) for name, mine in p.scenarios()}
        evidence = {"gate": gate.name, "shares": _rounded(mean), "by_scenario": by_scenario}
        alone = [v for v, shares in enumerate(mean) if float(shares.max()) > ONE]
        unused = [] if gate.masked else [k for k in range(mean.shape[1]) if float(mean[:, k].max()) < NOTHING]
        if alone:
            views = "all views" if len(alone) == len(mean) else f"view {', '.join(map(str, alone[:5]))}"
            yield Finding(
                "gates_collapsed", "warning", f"model: {gate.name}",
                f"in {gate.name}, {views} of {len(mean)} {'listen' if len(alone) == len(mean) else 'listens'} to one "
                "of "
                f"{mean.shape[1]} candidates only ({percent(float(mean[alone[0]].max()))} of the weight)",
                "What it does not listen to costs time and learns nothing; fewer experts, dropout, or a lower rate.",
                evidence)
        elif unused:
            yield Finding(
                "gates_collapsed", "warning", f"model: {gate.name}",
                f"in {gate.name}, candidates {', '.join(map(str, unused[:8]))} of {mean.shape[1]} (from 0) get less "
                "than "
                f"{percent(NOTHING)} of the weight from everybody",
                "Fewer experts would do the same; dropout or a lower rate may keep them in use.", evidence)
        elif not gate.masked and len(gate.share) > 1 and float(gate.share.std(0).max()) < 1e-5:
            yield Finding(
                "gates_collapsed", "warning", f"model: {gate.name}",
                f"{gate.name} weighs its {mean.shape[1]} candidates alike for every row",
                "It gates nothing then: did its weights go to 0, or does it read what is the same for all rows?",
                evidence)


def task_says_nothing(p: Patient) -> Iterator[Finding]:
    """A task that is told the same for every row, the same as another one, or no better than chance."""
    answers = p.answers(p.said).double()
    flat = [t for t in range(answers.shape[1]) if float(answers[:, t].std()) < SAME]
    for t in flat:
        yield Finding("task_says_nothing", "error", f"tasks.{p.model.tasks[t]}",
                      f"task '{p.model.tasks[t]}' gets one answer on all of {len(answers):,} rows",
                      "Its features or labels say nothing, its weight is 0, or its weights are gone.",
                      {"task": p.model.tasks[t], "spread": float(answers[:, t].std())})
    for t in range(answers.shape[1]):
        for u in range(t):
            if t not in flat and u not in flat and p.model.funnel.kinds[t] == p.model.funnel.kinds[u] and (
                    float((answers[:, t] - answers[:, u]).abs().max()) < SAME):
                yield Finding("task_says_nothing", "warning", f"tasks.{p.model.tasks[t]}",
                              f"tasks '{p.model.tasks[t]}' and '{p.model.tasks[u]}' get equal answers on every row",
                              "Do they read one label?", {"tasks": [p.model.tasks[u], p.model.tasks[t]]})
    for name, mine in p.scenarios():
        if mine.sum() >= FEW and (still := [
                p.model.tasks[t] for t in range(answers.shape[1])
                if t not in flat and float(answers[torch.from_numpy(mine), t].std()) < SAME]):
            yield Finding("task_says_nothing", "warning", "data.scenario",
                          f"in scenario {name}, {some(still)} get one answer on all of {int(mine.sum()):,} rows",
                          "Its own weights are gone, or it has no rows in train.", {"scenario": name, "tasks": still})
    for r in _whole(p, "auc"):
        if r["low"] < 0.5:
            yield Finding("task_says_nothing", "note" if r["high"] > 0.5 else "warning", f"tasks.{r['task']}",
                          f"AUC of '{r['task']}' on {r['split']} is {r['value']:.3f} "
                          f"({r['low']:.3f} to {r['high']:.3f}): "
                          "it is not shown to rank better than chance",
                          "More rows, other features, or no such task.", {"task": r["task"], "auc": r["value"]})


def inputs_ignored(p: Patient) -> Iterator[Finding]:
    """Features and scenarios that no answer depends on."""
    if len(p.batch) < 100:
        return
    before, dead = p.answers(p.said), []
    names = list(dict.fromkeys([*p.layout.ids, *p.layout.feature.values()]))
    for name in names:
        changed = p.changed(name)
        same = changed is None or all(torch.equal(getattr(changed, k), getattr(p.batch, k)) for k in ("ids", "numbers"))
        if not same and float((p.answers(p.says(changed)) - before).abs().max()) < IGNORED:
            dead.append(name)
    if dead:
        yield Finding("inputs_ignored", "warning", "features",
                      f"no answer changes when the values of {some(dead)} are dealt to other rows",
                      "No part of the model reads them, or their vectors are all alike.", {"features": dead})
    if not p.schema.scenario or len(p.layout.scenarios) < 2:
        return
    crossed = [name for name in p.schema.of_kind("cross")
               if p.schema.scenario in p.schema.reads(name)]
    ids, shift = p.batch.ids.clone(), torch.from_numpy(np.random.default_rng(1).permutation(len(p.batch)))
    read = [n for n, f in p.schema.of_kind("id").items() if f.column == p.schema.scenario]
    for name in read:
        ids[:, p.layout.ids.index(name)] = ids[shift, p.layout.ids.index(name)]
    other = replace(p.batch, ids=ids, scenario=p.batch.scenario[shift])
    if not crossed and float((p.answers(p.says(other)) - before).abs().max()) < IGNORED:
        yield Finding("inputs_ignored", "warning", "data.scenario",
                      f"no answer changes with the scenario: neither a feature nor a part reads '{p.schema.scenario}'"
                      if not read else f"no answer changes with the scenario, though {some(read)} is a feature",
                      "Add the column as a feature, or a part with parameters for each scenario; else scenarios are "
                      "only "
                      "measured apart.", {"column": p.schema.scenario})


def served_otherwise(p: Patient) -> Iterator[Finding]:
    """Raw rows that get other answers when they are predicted than they got when they were measured."""
    kept = p.kept
    if kept is None or kept.rows_of["of"] != kept.rows_of["rows"]:
        yield from _as_measured(p)
        return
    sampled = p.schema.negatives_kept
    source = p.source(kept.split)
    if source is None or (sampled and kept.split in sampled.splits):
        return
    if source.rows != kept.rows_of["of"]:
        yield Finding("served_otherwise", "error", f"data.{kept.split}",
                      f"{kept.split} has {source.rows:,} rows now, and had {kept.rows_of['of']:,} when it was measured",
                      "The files changed; metrics are of others. Measure again.",
                      {"rows": source.rows, "measured": kept.rows_of["of"]})
        return
    columns = list(dict.fromkeys([*p.ranker._columns(labels=False), *([p.schema.scenario] if p.schema.scenario else []),
                                  *(t.label for t in p.schema.tasks)]))
    start, asked = 0, {0, len(source.units) - 1}
    for i, unit in enumerate(source.units):
        if i in asked:
            yield from _as_kept(p, source.read(unit, columns), slice(start, start + unit.rows), source.where(unit))
        start += unit.rows


def _as_kept(p: Patient, table, rows: slice, where: str) -> Iterator[Finding]:
    kept = p.kept
    size = min(table.num_rows, 20_000)
    table, rows = table.slice(0, size), slice(rows.start, rows.start + size)
    served = p.ranker.predict(table)
    for t, task in enumerate(kept.scores.tasks):
        if kept.scores.kinds[t] != "binary":
            continue
        with np.errstate(divide="ignore"):
            now = np.log(served[task].to_numpy().astype(np.float64))
        apart = np.abs(now - kept.scores.log_p[rows, t])
        if (worst := float(apart.max(initial=0.0))) > SAME:
            at = int(apart.argmax())
            yield Finding(
                "served_otherwise", "error", f"data.{kept.split}",
                f"{int((apart > SAME).sum()):,} of {size:,} rows of {where} are predicted otherwise than they were "
                "measured: "
                f"p({task}) of row {at} is {np.exp(now[at]):.4g}, and was {np.exp(kept.scores.log_p[rows, t][at]):.4g}",
                "Rows, tables or weights changed since, or a row is read in two ways; metrics are not of what is "
                "served.",
                {"task": task, "rows": int((apart > SAME).sum()), "of": size, "row": at, "largest": worst})
            return
    labels = p.ranker.encoder.encode(table, where).labels if p.schema.user is None else None
    if labels is not None and not np.array_equal(labels, kept.scores.labels[rows], equal_nan=True):
        yield Finding("served_otherwise", "error", f"data.{kept.split}", f"labels of {where} are not those measured",
                      "The files changed; measure again.", {})


def _as_measured(p: Patient) -> Iterator[Finding]:
    """Without scores: metrics of the rows looked at, against those of the whole split in metrics.json."""
    sampled = p.schema.negatives_kept
    source = p.source(p.split)
    if source is None or (sampled and p.split in sampled.splits):
        return
    scores = score(p.model, p.schema, [p.batch], p.split)
    now = {(r["task"], r["metric"]): r for r in measure(p.split, scores, p.config.settings.evaluate)
           if r["scenario"] is None and r["metric"] in ("auc", "pcoc") and r["low"] is not None}
    for r in p.ranker.rows:
        if (r["split"], r["scenario"]) != (p.split, None) or (r["task"], r["metric"]) not in now or not r["task"]:
            continue
        here = now[r["task"], r["metric"]]
        # all rows give the same number; of a part, which is of some stretches only, one far from it is another model's
        apart = 1e-3 if source.rows == len(p.batch) else 2 * (here["high"] - here["low"])
        if r["value"] is not None and abs(here["value"] - r["value"]) > apart:
            yield Finding(
                "served_otherwise", "error", "metrics.json",
                f"{r['metric']} of '{r['task']}' is {here['value']:.4f} on {len(p.batch):,} of {source.rows:,} rows of "
                f"{p.split}; metrics.json says {r['value']:.4f}",
                "Weights, encoder or calibrator changed after they were measured, or the rows did; metrics are not of "
                "what is served.", {"task": r["task"], "metric": r["metric"], "measured": r["value"],
                                    "now": here["value"], "rows": len(p.batch)})


def _moved(now: torch.Tensor, start: torch.Tensor) -> float:
    """Share of rows with a number that moved by more than STILL of the largest."""
    apart = (now.detach() - start.detach()).abs().flatten(1).amax(1)
    return float((apart > STILL * float(start.detach().abs().max())).float().mean())


def _alike(weight: torch.Tensor) -> list[int]:
    """The first slices of weight [n, out, in] that are equal, and not 0."""
    seen: dict[bytes, list[int]] = {}
    for i, w in enumerate(weight.detach()):
        if bool(w.any()):
            seen.setdefault(w.numpy().tobytes(), []).append(i)
    return next((found for found in seen.values() if len(found) > 1), [])


def numbers_of_another_model(p: Patient) -> Iterator[Finding]:
    """metrics.json against what the kept scores give."""
    kept = p.kept
    if kept is None or kept.rows_of["of"] != kept.rows_of["rows"]:
        return
    settings = kept.evaluate.model_copy(update={"intervals": "none"})
    again = {(r["task"], r["scenario"], r["metric"]): r["value"]
             for r in measure(kept.split, kept.scores, settings, kept.scenarios or None, frozen=kept.frozen)}
    other = [(r, again[key]) for r in p.ranker.rows if r["split"] == kept.split
             and (key := (r["task"], r["scenario"], r["metric"])) in again
             and (r["value"] is None) != (again[key] is None) or (
                 r["split"] == kept.split and key in again and r["value"] is not None
                 and abs(r["value"] - again[key]) > PRECISE * max(1, abs(r["value"])))]
    if other:
        row, value = other[0]
        yield Finding("numbers_of_another_model", "error", "metrics.json",
                      f"{len(other)} numbers are not those of the scores that the run kept: {row['metric']} of "
                      f"{row['task'] or 'the mean'} is {row['value']}, the scores give {value}",
                      "Scores and metrics are of two trainings; evaluate again.", {"rows": len(other)})


def probabilities_off(p: Patient) -> Iterator[Finding]:
    """Predicted over observed far from 1, by more than chance."""
    for r in _whole(p, "pcoc"):
        if r["low"] > OFF or r["high"] < 1 / OFF:
            yield Finding("probabilities_off", "warning", f"tasks.{r['task']}",
                          f"'{r['task']}' is predicted {r['value']:.2f} times as often as it happens on {r['split']} "
                          f"({r['low']:.2f} to {r['high']:.2f})",
                          "Were negatives sampled (data.negatives_kept)? Else calibrate.method fits a map on valid.",
                          {"task": r["task"], "pcoc": r["value"]})


def _whole(p: Patient, metric: str) -> list[dict]:
    """Each task's row of a metric over all rows of the split, where it has an interval."""
    return [r for r in p.ranker.rows if (r["metric"], r["scenario"], r["split"]) == (metric, None, p.split)
            and r["task"] and r["low"] is not None]


def _rounded(shares: torch.Tensor) -> list[list[float]]:
    return [[round(float(x), 4) for x in view] for view in shares]
