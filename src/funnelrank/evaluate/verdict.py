"""What a run's numbers come to, in sentences: the first thing in its report, and what a pull request shows.

A sentence is a list of texts and Numbers (page.py), so that each number in it says where it stands in metrics.json.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from funnelrank.errors import listing
from funnelrank.evaluate.page import Number, Sentence
from funnelrank.evaluate.table import NO_INTERVAL

Mark = Literal["good", "look", "bad", "plain"]
OFF = 0.1                # predicted over observed, from 1, that is worth a look where chance does not explain it
MOVED = 0.25             # population stability index: much, by custom
BROKEN = 0.01            # share of rows whose step is likelier than the one before
WORST = 3                # scenarios, features and warnings that are named


class Point(NamedTuple):
    mark: Mark
    said: Sentence


class Verdict(NamedTuple):
    """headline: one sentence. tasks: a point each. look: what deserves a second look."""

    headline: Sentence
    tasks: list[Point]
    look: list[Point]


def verdict(rows: Sequence[Mapping[str, Any]], split: str, events: Sequence[Mapping[str, Any]] = (),
            about: Mapping[str, Any] | None = None) -> Verdict:
    """Of one split's rows of metrics.json, each with its place there as `at`."""
    mine = [r for r in rows if r["split"] == split]
    whole = {(r["task"], r["metric"]): r for r in mine if r["scenario"] is None}
    binary = [t for t, metric in whole if metric == "auc" and t]
    others = list(dict.fromkeys(t for t, metric in whole if metric in ("rmse", "accuracy") and t))
    calibrated = any(e.get("event") == "calibrate" for e in events)
    points = {t: _binary(t, whole, calibrated) for t in binary} | {t: _other(t, whole) for t in others}
    look = [*_scenarios(mine, whole, binary), *_violations(whole), *_histories(whole, binary), *_drift(mine),
            *_training(events, about or {})]
    return Verdict(_headline(split, binary, points, whole), list(points.values()), look)


def _headline(split: str, binary: Sequence[str], points: Mapping[str, Point], whole: Mapping) -> Sentence:
    if not points:
        return ["Nothing was measured: the run had neither a valid nor a test split."]
    ranked = [t for t in binary if _ranks(whole[t, "auc"])]
    fits = [t for t in ranked if points[t].mark == "good"]
    unsure = [t for t in binary if t not in ranked]
    if not binary:
        return [f"On {split}, values are told as the points below say."]
    said = f"On {split}, the model ranks {_names(ranked, binary)} better than guessing"
    if unsure:
        said += f", and is not shown to for {listing(unsure)}"
    if not ranked:
        said = f"On {split}, the model is not shown to rank anything better than guessing"
    if ranked and fits == ranked:
        said += ". What it predicts is what happened, within noise"
    elif ranked:
        said += f". Its probabilities need a look for {listing([t for t in ranked if t not in fits])}"
    return [said + "."]


def _names(some: Sequence[str], every: Sequence[str]) -> str:
    return "every step" if list(some) == list(every) and len(every) > 1 else listing(some)


def _ranks(auc: Mapping[str, Any]) -> bool:
    return auc["value"] is not None and auc.get("low") is not None and auc["low"] > 0.5


def _binary(task: str, whole: Mapping[tuple, Mapping], calibrated: bool) -> Point:
    auc, pcoc, best = whole[task, "auc"], whole.get((task, "pcoc")), whole.get((task, "auc_oracle"))
    if auc["value"] is None:
        return Point("look", [f"{task}: cannot be judged, {auc['note']} (", Number(auc, "positives", "integer"),
                              " positives)."])
    said: list[str | Number] = [f"{task}: of a row where it happened and one where it did not, the first gets the "
                                "higher score in ", Number(auc, how="hundredths"), " of 100 pairs"]
    if auc.get("low") is not None:
        said += [" (95 %: ", Number(auc, "low", "hundredths"), " to ", Number(auc, "high", "hundredths"), ")"]
    if best and best["value"] is not None:
        said += ["; the true probabilities would reach ", Number(best, how="hundredths")]
    said.append(". ")
    mark: Mark = "good" if _ranks(auc) else "look" if auc.get("low") is None else "bad"
    if mark == "bad":
        said.append("Guessing, which gives 50, is not ruled out. ")
    elif mark == "look":
        said.append(f"How sure that is cannot be said ({auc['note'] or 'no interval'}). ")
    if pcoc and pcoc["value"] is not None:
        sure = pcoc.get("low") is not None and not pcoc["low"] <= 1 <= pcoc["high"]
        off = abs(pcoc["value"] - 1) > OFF
        said += ["It is predicted ", Number(pcoc, how="short"), " times as often as it happened"]
        if sure and off:
            said.append(", more than chance explains; " + (
                "its calibrator does not know what changed since the rows it was fitted on." if calibrated else
                "calibrate.method mends that."))
            mark = "look" if mark == "good" else mark
        else:
            said.append(", which chance explains." if not sure else ", close enough.")
    return Point(mark, said)


def _other(task: str, whole: Mapping[tuple, Mapping]) -> Point:
    if (task, "accuracy") in whole:
        row = whole[task, "accuracy"]
        return Point("plain", [f"{task}: the likeliest class is the right one on ", Number(row, how="percent"),
                               " of rows."])
    rmse, pcoc, order = (whole.get((task, m)) for m in ("rmse", "pcoc", "spearman"))
    said: list[str | Number] = [f"{task}: root mean squared error ", Number(rmse)]
    if pcoc and pcoc["value"] is not None:
        said += ["; all together it is told ", Number(pcoc, how="short"), " times what it was"]
    if order and order["value"] is not None:
        said += ["; rank correlation ", Number(order, how="short")]
    return Point("plain", [*said, "."])


def _scenarios(mine: Sequence[Mapping], whole: Mapping, binary: Sequence[str]) -> list[Point]:
    """Scenarios that a task ranks worse than it does over all rows, beyond chance."""
    weak = [r for r in mine if r["metric"] == "auc" and r["task"] in binary and r["scenario"] is not None
            and r["value"] is not None and r.get("high") is not None
            and (over := whole[r["task"], "auc"])["value"] is not None and r["high"] < (
                over["low"] if over.get("low") is not None else over["value"])]
    weak.sort(key=lambda r: r["value"] - whole[r["task"], "auc"]["value"])
    return [Point("look", [f"{r['task']} in scenario {r['scenario']}: AUC ", Number(r), ", below its ",
                           Number(whole[r["task"], "auc"]), " over all rows by more than chance."])
            for r in weak[:WORST]]


def _violations(whole: Mapping) -> list[Point]:
    return [Point("look", [f"{task}: on ", Number(row, how="rate"), " of rows it is said to be likelier than the step "
                           "before it; model.reading: conditional or ordinal rules that out."])
            for (task, metric), row in whole.items()
            if metric == "violation_rate" and row["value"] is not None and row["value"] > BROKEN]


def _histories(whole: Mapping, binary: Sequence[str]) -> list[Point]:
    noted = [whole[t, "gauc"] for t in binary if (whole.get((t, "gauc")) or {}).get("note")
             and whole[t, "gauc"]["value"] is not None and not whole[t, "gauc"]["note"].endswith(NO_INTERVAL)]
    return [Point("look", [f"{r['task']}: GAUC is ", Number(r), f", but {r['note']}."]) for r in noted[:WORST]]


def _drift(mine: Sequence[Mapping]) -> list[Point]:
    lists = {r["metric"].split(":")[1] for r in mine if r["metric"].startswith("feature:")
             and r["metric"].endswith(":ids")}
    grows = lambda name: name in lists or name.startswith("length(")        # histories grow with any log
    moved = sorted((r for r in mine if r["metric"].startswith("psi:") and r["value"] is not None
                    and not grows(r["metric"].removeprefix("psi:"))
                    and r["value"] > MOVED and r["value"] > 2 * (r.get("noise") or 0.0)), key=lambda r: -r["value"])
    points = []
    for r in moved[:WORST]:
        of = f"the score of {r['task']}" if r["task"] else r["metric"].removeprefix("psi:")
        points.append(Point("look", [f"{of} moved since it was learnt: population stability index ", Number(r), "."]))
    return points


def _training(events: Sequence[Mapping], about: Mapping[str, Any]) -> list[Point]:
    points = [Point("look", [f"While training: {e['said']}."])
              for e in [e for e in events if e.get("event") == "warning" and e.get("said")][:WORST]]
    training = about.get("training")
    training = training if isinstance(training, Mapping) else {}
    evaluations = sum(e.get("event") == "evaluate" for e in events)
    if evaluations > 1 and training.get("best_step") and training.get("best_step") == training.get("steps"):
        points.append(Point("look", ["Training ended at its best evaluation: more epochs, or more patience, may give "
                                     "more."]))
    return points
