"""`funnelrank explain`: what a trained model's answers come from, and how few features would do.

    explain   permutation importance of each feature of the config, per task and scenario, with intervals of users; and
              what gates weigh, per scenario and per value of any column
    select    the config trained again on fewer and fewer features, the least important left out first, each held
              against all of them on the same rows of valid

A feature of the config is dealt together with the numbers that are read off it (`lists: auto`). Features are judged on
valid, so that test stays for the end.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from funnelrank.api import Ranker, train, write_text
from funnelrank.config import Config, plain
from funnelrank.config import load as load_config
from funnelrank.data.encode import joined
from funnelrank.data.encoded import Encoded
from funnelrank.data.loader import pack
from funnelrank.document import write as yaml
from funnelrank.errors import ConfigError, DataError
from funnelrank.evaluate import compare as comparing
from funnelrank.evaluate.compare import Contestant
from funnelrank.evaluate.gates import gate_rows, gates_of
from funnelrank.evaluate.importance import Columns, columns_of, importances
from funnelrank.evaluate.kept import Kept, open_scores
from funnelrank.evaluate.score import score
from funnelrank.evaluate.table import Shown
from funnelrank.flow import silent, values_of
from funnelrank.schema import Schema
from funnelrank.train.events import Report

ROWS = 50_000           # of a split that are looked at
GATE_ROWS = 4096
KEPT = (0.75, 0.5, 0.35, 0.25, 0.15, 0.1)      # shares of the features that `select` keeps, one training each
SCENARIO = "(scenario)"                        # what parts know of a row's scenario where no feature reads it


@dataclass(frozen=True)
class Explained:
    """What was found on `looked` rows of `split`; `rows` as importances() gives them, `gates` as rows of metrics.json.

    `kinds` says of each of `rows`' names whether it is a feature or a role, a whole group of them."""

    name: str
    split: str
    looked: int
    rows: list[dict[str, Any]]
    gates: list[dict[str, Any]]
    kinds: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "split": self.split, "looked": self.looked, "kinds": self.kinds,
                "importance": self.rows, "gates": self.gates}


@dataclass(frozen=True)
class Selected:
    """Trainings on fewer features. steps: {features, removed, folder, rows of the comparison with all}."""

    folder: Path
    steps: list[dict[str, Any]]
    needed: list[str]                 # features that cannot be left out: others, or parts of the model, read them

    def to_json(self) -> dict[str, Any]:
        return {"steps": self.steps, "needed": self.needed}


def explain(artefact: str | Path, rows: Any = None, *, split: str | None = None, by: Sequence[str] = (),
            most: int = ROWS, repeats: int = 1, report: Report = silent, allow_code: bool = False) -> Explained:
    """Importances and gates of an artefact on labelled rows: its config's valid rows, or those given.

    by        columns of the rows whose values gates are also told for
    most      look at so many rows, drawn at random of more
    repeats   deals of each feature, averaged
    """
    if most < 1 or repeats < 1:
        raise ConfigError(f"explain: found rows {most} and repeats {repeats}; both are at least 1")
    ranker = Ranker.load(artefact, allow_code)
    schema, evaluate = ranker.config.schema, ranker.config.settings.evaluate
    if split is None:
        split = "valid" if rows is not None or ranker.config.settings.data.valid is not None else "test"
    source = ranker._with_histories(ranker._source(rows, split), None)
    ranker.require(source, labels=True)
    source.require(by, dict.fromkeys(by, "by"))
    chosen = np.sort(np.random.default_rng(0).permutation(source.rows)[:most])
    encoded = _encoded(ranker, source, chosen, report)
    scenarios = ranker.encoder.layout.scenarios if schema.scenario else None
    what, kinds = _what(ranker.config, ranker.encoder.layout)

    def scored(some: Encoded) -> Any:
        return score(ranker.model, schema, ranker._packed(some), split, corrected=True)
    found = importances(encoded, what, scored, evaluate, scenarios, repeats, progress=lambda done: report(
        {"event": "progress", "stage": "explain", "rows": done * len(encoded), "total": len(what) * len(encoded)}))
    looked = np.unique(np.linspace(0, len(encoded) - 1, min(GATE_ROWS, len(encoded))).astype(np.int64))
    batch = pack(encoded, looked)
    gates = gates_of(ranker.model, batch, ranker.encoder.layout.scenarios)
    shares = gate_rows(split, gates, ranker.model.tasks, scenarios or (), batch.scenario.numpy() if scenarios else None)
    for column in by:
        codes, names = values_of(source, column)
        shares += [r | {"by": column} for r in gate_rows(split, gates, ranker.model.tasks, names,
                                                         codes[chosen][looked] + 2) if r["scenario"] is not None]
    return Explained(ranker.about.get("name", ranker.config.name), split, len(encoded), found, shares, kinds)


def _encoded(ranker: Ranker, source: Any, chosen: np.ndarray, report: Report) -> Encoded:
    """Rows number `chosen` (rising) of a source, encoded."""
    parts, start = [], 0
    columns = ranker._columns(labels=True)
    for unit in source.units:
        a, b = np.searchsorted(chosen, [start, start + unit.rows])
        if a < b:
            table = source.read(unit, columns).take(chosen[a:b] - start)
            parts.append(ranker.encoder.encode(table, source.where(unit)))
        start += unit.rows
        report({"event": "progress", "stage": "read", "rows": start, "total": source.rows})
    if not parts:
        raise DataError(f"data.{source.split}: no rows to look at")
    return joined(parts)


def _what(config: Config, layout: Any) -> tuple[dict[str, Columns], dict[str, str]]:
    """Features of the config, each with the numbers read off it; then roles, each with all of its features."""
    schema = config.schema
    members: dict[str, list[str]] = {name: [name] for name in config.settings.features.columns}
    for name in schema.features:
        if name not in members:
            members[_owner(schema, name, members)].append(name)
    reads = {name for name, f in schema.of_kind("id").items() if f.column == schema.scenario}
    what, kinds = {}, {}
    for name, names in members.items():
        columns = columns_of(layout, names, scenario=bool(schema.scenario) and name in reads)
        if columns != Columns():
            what[name], kinds[name] = columns, "feature"
    if schema.scenario and not reads:
        what[SCENARIO], kinds[SCENARIO] = Columns(scenario=True), "feature"
    roles: dict[str, list[str]] = {}
    for column, role in layout.role.items():
        roles.setdefault(role, []).append(layout.feature.get(column, column))
    for role, names in roles.items():
        label = f"all of role {role}"
        if len(set(names)) > 1:
            what[label], kinds[label] = columns_of(layout, names, scenario=bool(reads & set(names))), "role"
    return what, kinds


def _owner(schema: Schema, name: str, members: Mapping[str, Any]) -> str:
    """The feature of the config that an automatic number is read off: the list."""
    f = schema.features[name]
    read = [getattr(f, key, None) for key in ("within", "of", "among", "since", "until")]
    mine = [r for r in read if r in members]
    return next((r for r in mine if schema.features[r].kind in ("sequence", "history", "bag")), mine[0] if mine else
                next(iter(members)))


# ---- features that would do

def select(artefact: str | Path, found: Explained, *, report: Report = silent, allow_code: bool = False) -> Selected:
    """Train again on the most important features alone, fewer and fewer, into <run>-select; stopped, it goes on.

    Features are ordered by the mean over tasks of what their deal costs in AUC over all rows. Each training is held
    against the one with all features on the rows of valid, which also stopped both: test is not read.
    """
    ranker = Ranker.load(artefact, allow_code)
    config = ranker.config
    if config.settings.data.valid is None:
        raise ConfigError("data.valid: features are chosen by valid rows, and the config names none")
    rank: dict[str, list[float]] = {}
    for r in found.rows:
        if (r["metric"], r["scenario"]) == ("auc", None) and found.kinds[r["feature"]] == "feature" and (
                r["value"] is not None):
            rank.setdefault(r["feature"], []).append(r["value"])
    if not rank:
        raise ConfigError("explain: no task has an AUC, so nothing says which features matter")
    order = sorted((f for f in rank if f in config.settings.features.columns), key=lambda f: np.mean(rank[f]))
    folder = Path(f"{_run_of(Path(artefact))}-select")
    base = plain(config.settings)
    whole = list(base["features"].keys() - {"lists"})
    removable, needed, gone = [], [], []
    for name in order:
        if _without(base, [*gone, name], allow_code) is None:
            needed.append(name)
        else:
            gone.append(name)
    removable = gone
    cache = config.settings.data.cache or str(folder / ".funnelrank-cache")

    def kept(name: str, removed: Sequence[str]) -> Kept:
        one = _without(base, removed, allow_code)
        out = folder / name
        report({"event": "part", "name": name, "folder": str(out)})
        settings = one.settings.model_copy(update={
            "data": one.settings.data.model_copy(update={"cache": cache, "test": None}),
            "train": one.settings.train.model_copy(update={"out": str(out), "track": []})})
        train(dataclasses.replace(one, settings=settings, name=name), report=report)
        return open_scores(out / "scores")

    everything = Contestant("all", [kept("all", [])])
    steps = []
    for left in dict.fromkeys(max(len(whole) - len(removable), round(len(whole) * share), 1) for share in KEPT):
        removed = removable[:len(whole) - left]
        if not removed:
            continue
        name = f"keep-{left}"
        against = comparing.compare([everything, Contestant(name, [kept(name, removed)])], ("auc",), False)
        steps.append({"features": left, "removed": removed, "folder": str(folder / name), "rows": against.rows})
    result = Selected(folder, steps, needed)
    if best := cheapest(result):
        chosen = plain(_without(base, best["removed"], allow_code).settings)
        chosen["train"]["out"] = f"{_run_of(Path(artefact))}-selected"
        write_text(folder / "selected.yaml", f"# {best['features']} of {len(whole)} features: the fewest that are not "
                                             f"shown to rank worse on valid\n{yaml(chosen)}\n")
    return result


def cheapest(found: Selected) -> dict[str, Any] | None:
    """The step with the fewest features of which no task is shown to rank worse than with all."""
    fine = [s for s in found.steps if not any(r["better"] == "all" for r in s["rows"])]
    return min(fine, key=lambda s: s["features"], default=None)


def _without(said: Mapping[str, Any], removed: Sequence[str], allow_code: bool) -> Config | None:
    """The config without some features; None where something else reads one of them."""
    value = json.loads(json.dumps(said))
    for name in removed:
        value["features"].pop(name)
    spaces = {f.get("space") or n for n, f in value["features"].items() if isinstance(f, dict)}
    value["embedding"]["spaces"] = {k: v for k, v in value["embedding"]["spaces"].items() if k in spaces}
    try:
        return load_config(value, allow_code=allow_code)
    except ConfigError:
        return None


def _run_of(artefact: Path) -> Path:
    return artefact.parent if artefact.name == "artefact" else artefact


# ---- for a console

def shown(found: Explained, most: int = 25) -> Shown:
    """A line a feature, the most important first by the mean over tasks: what a deal costs in AUC, or in loss."""
    tasks = list(dict.fromkeys(r["task"] for r in found.rows))
    whole = {(r["feature"], r["task"], r["metric"]): r for r in found.rows if r["scenario"] is None}
    of = {t: "auc" if any((f, t, "auc") in whole for f in found.kinds) else "loss" for t in tasks}
    cost = lambda f: [whole[f, t, of[t]]["value"] for t in tasks if whole[f, t, of[t]]["value"] is not None]
    scaled = lambda f: np.mean([whole[f, t, of[t]]["value"] / (abs(whole[f, t, of[t]]["base"]) or 1.0) for t in tasks
                                if whole[f, t, of[t]]["value"] is not None]) if cost(f) else -np.inf
    lines = []
    for kind in ("role", "feature"):
        names = sorted((f for f, k in found.kinds.items() if k == kind), key=scaled, reverse=True)
        for f in names[:most]:
            lines.append([f, *(_cell(whole[f, t, of[t]]) for t in tasks)])
    return Shown(["feature", *(f"{t} ({of[t]})" for t in tasks)], lines)


def words(found: Selected) -> list[str]:
    """What fewer features cost, a sentence each."""
    said = []
    for s in found.steps:
        each = [f"{r['task']} {r['difference']:+.4f} ({r['low']:+.4f} to {r['high']:+.4f})" for r in s["rows"]
                if r["task"] and r["difference"] is not None]
        shown = [r["task"] for r in s["rows"] if r["task"] and r["better"] == "all"]
        said.append(f"{s['features']} features: AUC {', '.join(each)}" + (
            f"; shown to be worse: {', '.join(shown)}" if shown else "; not shown to be worse"))
    if found.needed:
        said.append(f"cannot be left out, since others read them: {', '.join(found.needed)}")
    return said


def _cell(row: Mapping[str, Any]) -> str:
    if row["value"] is None:
        return "-"
    return f"{row['value']:+.4f}" + (f" +-{(row['high'] - row['low']) / 2:.4f}" if row["low"] is not None else "")
