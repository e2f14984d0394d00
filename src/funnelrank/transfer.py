"""What learning together is worth: one joint model against a model of each task alone, and of each scenario alone.

    runs/shop-transfer/joint/                        the config as it is
    runs/shop-transfer/task-buy/, scenario-home/     the same config, of one task, or of one scenario's rows
    runs/shop-transfer/transfer.json, .md

Each is a run of its own, or several, of seeds in `joint/seed-0` and so on: given again, the command goes on with those
that have not finished. A task alone has the same parts without a transfer; its joint counterpart is measured on the
same rows. Differences are paired by user, have the spread between seeds in their error, and are corrected by Holm over
all of them, as in evaluate/compare.py.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from funnelrank.api import train, write_text
from funnelrank.config import Config, plain
from funnelrank.config import load as load_config
from funnelrank.data.only import Only, counted
from funnelrank.errors import ConfigError, did_you_mean, listing
from funnelrank.evaluate import compare as comparing
from funnelrank.evaluate.compare import Contestant
from funnelrank.evaluate.kept import Kept, open_scores, rows_of
from funnelrank.evaluate.table import Shown
from funnelrank.evaluate.views import part
from funnelrank.flow import open_data, silent
from funnelrank.train.events import Report

LARGEST = 8             # scenarios, those with the most rows in train


@dataclass(frozen=True)
class Transfer:
    """rows: differences of the joint model from the separate ones; `of` is 'task' or 'scenario', `apart` its name."""

    folder: Path
    split: str
    rows: list[dict[str, Any]]
    notes: list[str]
    seeds: int = 1

    def to_json(self) -> dict[str, Any]:
        return {"split": self.split, "seeds": self.seeds, "rows": self.rows, "words": words(self), "notes": self.notes}


def transfer(config: Config, *, tasks: Sequence[str] | None = None, scenarios: Sequence[str] | None = None,
             metrics: Sequence[str] | None = None, seeds: int = 1, report: Report = silent) -> Transfer:
    """Train what is missing of the joint and the separate models, and compare them on the last split measured.

    tasks, scenarios   which to train apart; default all tasks, and the LARGEST scenarios; [] none
    seeds              trainings of each, from train.seed on

    Raises ConfigError where there is nothing to take apart, or a name is not there.
    """
    settings, schema = config.settings, config.schema
    if seeds < 1:
        raise ConfigError(f"seeds: {seeds} asked for; there is 1 or more")
    if not settings.evaluate.keep_scores:
        raise ConfigError("evaluate.keep_scores: 0 keeps nothing that models could be compared by; leave it out")
    names = schema.task_names
    tasks = (names if len(names) > 1 else []) if tasks is None else list(tasks)
    if unknown := [t for t in tasks if t not in names]:
        raise ConfigError(f"tasks: no task '{unknown[0]}'; tasks are {listing(names)}"
                          + did_you_mean(unknown[0], names))
    sources, there = {}, []
    if schema.scenario and scenarios != []:
        if settings.data.on_error == "skip":
            raise ConfigError("data.on_error: rows of one scenario are taken from files without faults; mend them and "
                              "set it to raise, or leave scenarios out")
        sources = open_data(config).sources
        counts = [counted(s, schema.scenario) for s in sources.values()]
        there = [s for s, _ in counts[0].most_common() if all(s in c for c in counts)]
        if unknown := [s for s in scenarios or () if s not in there]:
            raise ConfigError(f"scenarios: '{unknown[0]}' is not in every split; there are {listing(there)}"
                              + did_you_mean(unknown[0], there))
    apart = list(scenarios) if scenarios is not None else there[:LARGEST] if len(there) > 1 else []
    if not tasks and not apart:
        raise ConfigError("transfer: one task and one scenario have nothing to learn from each other")
    folder = Path(f"{settings.train.out}-transfer")
    cache = settings.data.cache or str(folder / ".funnelrank-cache")

    def kept(name: str, one: Config, **given: Any) -> list[Kept]:
        found = []
        for seed in range(settings.train.seed, settings.train.seed + seeds):
            out = folder / name / f"seed-{seed}" if seeds > 1 else folder / name
            report({"event": "part", "name": name, "folder": str(out)})
            moved = one.settings.model_copy(update={
                "data": one.settings.data.model_copy(update={"cache": cache}),
                "train": one.settings.train.model_copy(update={"out": str(out), "seed": seed})})
            train(dataclasses.replace(one, settings=moved, name=name), report=report, **given)
            found.append(open_scores(out / "scores"))
        return found

    joint, rows, split = kept("joint", config), [], None
    pairs = [("task", t, lambda t=t: kept(f"task-{t}", alone(config, t)), lambda: joint) for t in tasks]
    pairs += [("scenario", s, lambda s=s: kept(f"scenario-{_folder(s)}", config, **{
        name: Only(source, schema.scenario, s) for name, source in sources.items()}),
        lambda s=s: [of_scenario(k, s) for k in joint]) for s in apart]
    for of, name, separate, together in pairs:
        found = comparing.compare([Contestant("separate", separate()), Contestant("joint", together())],
                                  metrics or (), by_scenario=False)
        rows += [{"of": of, "apart": name, **r} for r in found.rows if r["task"]]
        split = found.split
    comparing.judge([r for r in rows if r["p"] is not None])
    notes = ["Differences are the joint model's value less that of the model trained apart, on the same rows of "
             f"{split}; +- is half of a 95 % interval. P values are corrected by Holm over all lines.",
             "One training each: what is shown is of these trained models." if seeds == 1 else
             f"Means over {seeds} seeds; the spread between seeds is part of the intervals."]
    found = Transfer(folder, split, rows, notes, seeds)
    write_text(folder / "transfer.json", json.dumps(found.to_json(), indent=1, ensure_ascii=False, allow_nan=False)
               + "\n")
    write_text(folder / "transfer.md", markdown(found))
    return found


def alone(config: Config, task: str) -> Config:
    """The config with one task, which comes after nothing: the same parts, without a transfer between tasks."""
    said = plain(config.settings)
    said["tasks"] = {task: said["tasks"][task] | {"after": None}}
    said["model"] = {k: v for k, v in said["model"].items()
                     if k in ("prepare", "represent", "predict", "side") and v} | {"reading": "joint"}
    said["train"]["early_stopping"]["metric"] = "valid/" + said["train"]["early_stopping"]["metric"].rsplit("/", 1)[-1]
    if said["tasks"][task].get("kind", "binary") != "binary":
        said["train"]["early_stopping"]["metric"] = f"valid/{task}/rmse"
    said["evaluate"]["truth"] = {t: c for t, c in said["evaluate"]["truth"].items() if t == task}
    if (sampled := said["data"].get("negatives_kept")) and sampled["task"] != task:
        raise ConfigError(f"data.negatives_kept: negatives of '{sampled['task']}' were sampled, so '{task}' alone "
                          "would learn other rates; leave it out of --tasks")
    return load_config(said, allow_code=config.allow_code)


def of_scenario(kept: Kept, name: str) -> Kept:
    """What a run kept, of one scenario's rows only."""
    mine = np.asarray(kept.scores.scenario) == kept.scenarios.index(name) + 2
    scores = part(kept.scores, mine)
    return replace(kept, scores=scores, frozen=kept.frozen and part(kept.frozen, mine),
                   rows_of=rows_of(scores, kept.scenarios) | {"of": int(mine.sum())})


def words(found: Transfer) -> list[str]:
    """What is shown to help or to hurt, a sentence each."""
    said = []
    for r in found.rows:
        if r["better"] is None:
            continue
        place = f"'{r['task']}'" + (f" in {r['apart']}" if r["of"] == "scenario" else "")
        with_whom = "other scenarios" if r["of"] == "scenario" else "other tasks"
        ends = f"{r['metric']} {r['difference']:+.4f}, 95 %: {r['low']:+.4f} to {r['high']:+.4f}"
        said.append(f"Shown: {place} gains from {with_whom} ({ends})." if r["better"] == "joint" else
                    f"Shown: negative transfer: {place} loses to {with_whom} ({ends}).")
    return said or ["Not shown: neither gains nor losses; see how large they may still be in the intervals."]


def shown(found: Transfer) -> Shown:
    """A line a difference."""
    figure = lambda v: "-" if v is None else f"{v:.4f}"
    return Shown(["of", "apart", "task", "metric", "separate", "joint", "difference", "p", "verdict"], [
        [r["of"], r["apart"], r["task"], r["metric"], figure(r["base_value"]), figure(r["value"]),
         "-" if r["difference"] is None else f"{r['difference']:+.4f} +-{(r['high'] - r['low']) / 2:.4f}",
         figure(r["p_corrected"]), {"joint": "gains", "separate": "negative transfer"}.get(r["better"]) or r["note"]
         or "not shown"] for r in found.rows])


def markdown(found: Transfer) -> str:
    head, lines = shown(found)
    cell = lambda text: str(text).replace("|", "\\|").replace("\n", " ")
    table = [head, ["---"] * len(head), *lines]
    return "\n".join([f"# Learning together, on {found.split}", "", *(f"- {w}" for w in words(found)), "",
                      *("| " + " | ".join(map(cell, line)) + " |" for line in table), "",
                      *(f"- {n}" for n in found.notes), ""])


def _folder(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in name) or "_"
