"""Every multi-task and multi-scenario model on the public logs, beside LightGBM and torch-rechub: docs/quality.md.

    python benchmarks/contest.py LOGS                      LOGS: the folder of the public logs
    python benchmarks/contest.py LOGS --only kuairand --seeds 5 --trials 1 --models auto,aitm,lightgbm
    python benchmarks/contest.py --show                    the page from what was measured so far

One cell is one model, with one of its settings, trained with one seed on one log: a minute or so. Measured cells stay
in --out (.contest); the command goes on where it stopped, --minutes ends it between two cells, and a cell whose
config, encoder or worker's code differs is measured anew. Features, rows and their encoding are the same for all models
of a log: the example's config, with only `model` changed. Each model, those of others too, may try four settings with
seed 0 (TRIALS); the best on valid (mean AUC) is trained with the other seeds, and only its test figures are shown. One
thread, one training at a time. Networks of one task, one for each, take part on one log (NETWORKS), torch-rechub's on
KuaiRand.

Two models have features besides (MORE): `auto-te`, which is `auto` with rates of earlier days' labels, and `wide_deep`,
which needs crosses. `fnn` starts from an `fm` of the same setting and seed (START), whose time counts. Recipes that
read what a log does not have are written as they ask (OTHERWISE). `lightgbm-te` has the usual encodings of labels by
five random folds. LightGBM and torch-rechub run in .bench-env (see the Makefile), on the encoded rows of this package.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from funnelrank import api, load_config
from funnelrank.data.cache import EncodedSplit
from funnelrank.data.encode import Encoder
from funnelrank.data.loader import Loader
from funnelrank.errors import ConfigError
from funnelrank.evaluate import table
from funnelrank.evaluate.compare import Contestant, compare
from funnelrank.evaluate.kept import keep_scores, open_scores
from funnelrank.evaluate.measure import Scores, measure
from funnelrank.evaluate.score import score
from funnelrank.flow import build, encode, fit, keep_encoder, open_data, prepare

ROOT = Path(__file__).parents[1]
LOGS = {     # example, folder, settings beside the example's
    "kuairand": ("kuairand/auto.yaml", "kuairand_pure", ["train.epochs=1"]),      # a second one lowers valid
    "hillstrom": ("hillstrom/aitm.yaml", "hillstrom", []),
    "census": ("census/aitm.yaml", "census_income", []),
    "globo": ("globo/aitm.yaml", "globo_news", []),
}
HEAD = {"globo": 300_000}        # train rows that are used: the latest so many
SYSTEMS = ("auto", "auto-te", "shared_bottom", "single_task", "mmoe", "omoe", "cgc", "ple", "esmm", "dbmtl", "aitm",
           "star", "hmoe", "pepnet", "apg", "m2m")
NETWORKS = {          # one for each task, and where they take part: 126 features of KuaiRand are 7,875 pairs
    **dict.fromkeys(("lr", "fm", "fnn", "pnn", "nfm", "deepfm", "dcn_v2", "din", "wide_deep"), "kuairand"),
    **dict.fromkeys(("afm", "autoint"), "census")}
OURS = (*SYSTEMS, *NETWORKS)
THEIRS = ("lightgbm", "lightgbm-te", *(f"rechub-{m}" for m in (
    "shared_bottom", "mmoe", "ple", "aitm", "esmm", "deepfm", "dcn_v2", "din", "wide_deep")))
TRIALS = {
    "ours": ([], ["embedding.optimiser.lr=0.02"], ["train.optimiser.lr=0.0005"], ["train.batch_size=512"]),
    **dict.fromkeys(("lr", "fm", "fnn", "nfm", "deepfm"), (          # sums over all features: docs/models/deepfm.md
        [], ["embedding.optimiser.lr=0.02"], ["embedding.optimiser.lr=0.01"],
        ["embedding.optimiser.lr=0.01", "train.batch_size=512"])),
    "lightgbm": ({}, {"num_leaves": 31}, {"min_data_in_leaf": 20}, {"most_values": 10**9}),
    "lightgbm-te": ({}, {"num_leaves": 31}, {"min_data_in_leaf": 20}, {"learning_rate": 0.1}),
    "rechub": ({}, {"lr": 3e-3}, {"lr": 3e-4}, {"batch": 512})}
MOST_TRIALS = 4
MORE = {"kuairand": {             # edits that give a model features beside the example's
    "auto-te": [f"features.{task}_rate_{of}={{kind: rate, of: {of}, task: {task}, period: 86400000}}"
                for task in ("is_click", "long_view", "is_like")
                for of in ("video_id", "author", "tag", "music", "duration_band")],
    "wide_deep": [f"features.{one}_x_{other}={{kind: cross, of: [{one}, {other}]{way}}}" for one, other, way in (
        ("tab", "video_id", ""), ("tab", "author", ""), ("active_degree", "author", ""),
        ("tab", "duration_band", ", hash_buckets: 10000"), ("author", "duration_band", ", hash_buckets: 100000"))]}}
OTHERWISE = {                     # a recipe reads what a log does not have, and says what instead, or the example does
    **{(log, "m2m"): "{name: m2m, prepare: [scenario_view]}" for log in ("hillstrom", "census", "globo")},
    **{(log, "pepnet"): f"{{name: pepnet, predict: {{groups: [{group}]}}}}" for log, group in (
        ("hillstrom", "context"), ("census", "context"), ("globo", "user"))},
    **{("census", m): f"{{name: {m}, relations: {{y_college: y_never_married, y_income_50k: "
                      "[y_never_married, y_college]}}" for m in ("aitm", "dbmtl")}}
START = {"fnn": "fm"}              # whose tables a model starts from
BASE, BEST = "shared_bottom", "auto"
BEGIN, END = "<!-- contest: begin -->", "<!-- contest: end -->"


@dataclasses.dataclass
class Log:
    """A public log, encoded once for all models."""

    name: str
    example: Path
    sets: list[str]
    encoder: Encoder
    splits: dict[str, EncodedSplit]
    config: Any

    def load(self, model: str, trial: Sequence[str], seed: int, folder: Path | str):
        model = OTHERWISE.get((self.name, model), model.removesuffix("-te"))
        return load_config(self.example, [*self.sets, f"model={model}", *trial, f"train.seed={seed}",
                                          f"train.out={folder}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("logs", type=Path, nargs="?")
    parser.add_argument("--only", default=",".join(LOGS))
    parser.add_argument("--models", default=",".join((*OURS, *THEIRS)))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=MOST_TRIALS)
    parser.add_argument("--minutes", type=float, help="begin no cell after so many")
    parser.add_argument("--out", type=Path, default=ROOT / ".contest")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "quality.md")
    parser.add_argument("--peers", type=Path, default=ROOT / ".bench-env", help="the peers' environment")
    parser.add_argument("--show", action="store_true", help="measure nothing; write the page")
    said = parser.parse_args()
    torch.set_num_threads(1)
    if not said.show:
        if not said.logs:
            parser.error("name the folder of the public logs")
        until = time.monotonic() + 60 * said.minutes if said.minutes is not None else None
        for name in said.only.split(","):
            contest(name, said, until)
    write_page(said.out, said.page)


def contest(name: str, said: argparse.Namespace, until: float | None) -> None:
    logs: dict[tuple[str, ...], Log] = {}
    edits = MORE.get(name, {})
    models = [m for m in said.models.split(",") if NETWORKS.get(m, name) == name
              and (name == "kuairand" or "rechub" not in m) and (name in MORE or m != "auto-te")]
    for seed in range(said.seeds):                     # all models with one seed before the next: parts are even
        for model in models:
            ours = model in OURS
            more = tuple(edits.get(model.removeprefix("rechub-"), ()))
            if more not in logs:
                logs[more] = opened(name, said.logs, said.out / name, more)
            log = logs[more]
            for trial in range(said.trials if seed == 0 else 1):
                if until is not None and time.monotonic() > until:
                    return
                if seed:
                    trial = best_trial(said.out / name / model, said.trials)
                folder = said.out / name / model / f"trial-{trial}" / f"seed-{seed}"
                if done(folder, key(log, model, trial)) or (        # or the example says what this setting says
                        key(log, model, trial) in [key(log, model, t) for t in range(trial)]):
                    continue
                print(f"{time.strftime('%H:%M:%S')} {name} {model} trial {trial} seed {seed}", flush=True)
                try:
                    if ours:
                        measure_ours(log, model, trial, seed, folder)
                    else:
                        measure_theirs(log, model, trial, seed, folder, said.peers)
                except ConfigError as refused:
                    write(folder, {"key": key(log, model, trial), "refused": str(refused).split("\n")[0]})


def opened(name: str, logs: Path, out: Path, more: tuple[str, ...]) -> Log:
    """`more`: edits of the example, such as further features."""
    example, folder, sets = LOGS[name]
    sets = [*more, f"data.dir={logs / folder}", f"data.cache={out / 'cache'}", "train.threads=1", *sets]
    config = load_config(ROOT / "examples" / example, sets)
    given = {}
    if name in HEAD:
        import pyarrow.parquet as pq
        rows = pq.read_table(logs / folder / "train.parquet")
        given = {s: pq.read_table(logs / folder / f"{s}.parquet") for s in ("valid", "test")}
        given["train"] = rows.slice(max(0, len(rows) - HEAD[name]))
    data = open_data(config, **given)
    encoder = prepare(config, data)
    keep_encoder(config, data, encoder)                # the next call goes on at once
    return Log(name, ROOT / "examples" / example, sets, encoder, encode(config, data, encoder), config)


def key(log: Log, model: str, trial: int) -> str:
    """What a cell was made of."""
    try:
        said = log.load(model, trials(model)[trial], 0, "run").settings.model_dump(mode="json", include={
            "model", "embedding", "train", "tasks"}) if model in OURS else (
            ROOT / "benchmarks" / "peers" / ("trees.py" if "lightgbm" in model else "tabular.py")).read_text() + str(
            trials(model)[trial] or "")
    except ConfigError as refused:
        said = str(refused)
    what = [log.encoder.hash(), model, said, *([START[model]] if model in START else [])]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


def trials(model: str) -> tuple:
    return TRIALS[model if model in TRIALS else "ours" if model in OURS else model.split("-")[0]]


def done(folder: Path, key: str) -> bool:
    cell = folder / "cell.json"
    return cell.exists() and json.loads(cell.read_text())["key"] == key


def best_trial(folder: Path, trials: int) -> int:
    """The trial whose seed 0 has the highest mean AUC on valid."""
    found = {t: json.loads(cell.read_text()) for t in range(trials)
             if (cell := folder / f"trial-{t}" / "seed-0" / "cell.json").exists()}
    return max(found, key=lambda t: found[t].get("valid", 0.0), default=0)


def measure_ours(log: Log, model: str, trial: int, seed: int, folder: Path) -> None:
    with tempfile.TemporaryDirectory() as place:
        sets, seconds = list(trials(model)[trial]), 0.0
        if model in START:
            before = log.load(START[model], [*sets, "evaluate.intervals=none"], seed, f"{place}/before")
            seconds = api.train(before).trained.cpu_seconds
            sets.append(f"embedding.init_from={place}/before")
        config = log.load(model, sets, seed, place)
        net = build(config, log.encoder, log.splits)
        trained = fit(config, net, log.encoder, {s: log.splits[s] for s in ("train", "valid")}, folder=Path(place))
        rows = lambda split: Loader(log.splits[split], log.encoder.layout, 8192, shuffle=False, seed=0).epoch(0)
        scores = {s: score(net, config.schema, rows(s), s.split("/")[0]) for s in log.splits if s != "train"}
    keep(log, model, trial, seed, folder, scores, seconds + trained.cpu_seconds, {
        "epochs": trained.epochs, "parameters": sum(p.numel() for p in net.parameters())})


def measure_theirs(log: Log, model: str, trial: int, seed: int, folder: Path, peers: Path) -> None:
    """A worker in the peers' environment reads arrays from files and writes probabilities."""
    if not (peers / "bin" / "python").exists():
        sys.exit(f"{peers}: there is no such environment; `make .bench-env/installed` makes it")
    with tempfile.TemporaryDirectory() as place:
        arrays(log, Path(place))
        worker = "trees.py" if "lightgbm" in model else "tabular.py"
        command = [peers / "bin" / "python", ROOT / "benchmarks" / "peers" / worker, place, model, str(seed),
                   json.dumps(trials(model)[trial])]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True,
                              env=os.environ | {"OMP_NUM_THREADS": "1"})
        answer, about = np.load(Path(place) / "scores.npz"), json.loads(done.stdout.strip().splitlines()[-1])
    scores = {}
    for split in (s for s in log.splits if s != "train"):
        p = np.clip(answer[split.replace("/", "_")].astype(np.float64), 1e-7, 1 - 1e-7)
        rows, schema = log.splits[split], log.config.schema
        scores[split] = Scores(schema.task_names, ["binary"] * len(schema.tasks), schema.parents,
                               np.log(p).astype(np.float32), np.log1p(-p).astype(np.float32), p.astype(np.float32),
                               np.asarray(rows.labels), np.asarray(rows.scenario) if schema.scenario else None,
                               np.asarray(rows.user) if schema.user else None)
    keep(log, model, trial, seed, folder, scores, about.pop("cpu_seconds"), about)


def arrays(log: Log, place: Path) -> None:
    """The encoded rows of all splits as npz files, and meta.json: what other packages are given."""
    lay = log.encoder.layout
    for split, rows in log.splits.items():
        lists = {f"list{i}.{part}": np.asarray(getattr(one, part)) for i, one in enumerate(rows.lists)
                 for part in ("values", "offsets")}
        np.savez(place / f"{split.replace('/', '_')}.npz", ids=rows.ids, numbers=rows.numbers, labels=rows.labels,
                 **lists)
    (place / "meta.json").write_text(json.dumps({
        "ids": lay.ids, "numbers": lay.numbers, "lists": lay.lists, "tasks": lay.tasks, "space": dict(lay.space),
        "size": dict(lay.size), "crosses": [*log.config.schema.of_kind("cross")],
        "splits": [s.replace("/", "_") for s in log.splits]}))


def keep(log: Log, model: str, trial: int, seed: int, folder: Path, scores: dict[str, Scores], seconds: float,
         about: dict[str, Any]) -> None:
    evaluate = log.config.settings.evaluate
    names = list(log.encoder.layout.scenarios) if log.config.schema.scenario else []
    plain = evaluate.model_copy(update={"intervals": "none"})
    valid = table.value(measure("valid", scores["valid"], plain, None), "valid/auc")
    rows = measure("test", scores["test"], plain, names or None, frozen=scores.get("test/frozen"))
    shutil.rmtree(folder, ignore_errors=True)
    keep_scores(folder / "scores", "test", scores["test"], scores.get("test/frozen"), names, evaluate,
                {"name": model, "seed": seed})
    write(folder, {"key": key(log, model, trial), "model": model, "trial": trials(model)[trial], "seed": seed,
                   "valid": valid, "cpu_seconds": round(seconds, 1), "measured": time.strftime("%Y-%m-%d"), **about,
                   "test": {f"{r['metric']}_{r['task'] or 'mean'}": r["value"] for r in rows if not r["scenario"]}})


def write(folder: Path, cell: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cell.json").write_text(json.dumps(cell, indent=1) + "\n")


# ---- the page

def write_page(out: Path, page: Path) -> None:
    parts = [section(name, out / name) for name in LOGS if (out / name).is_dir()]
    made = f"{BEGIN}\n" + "\n\n".join(parts) + f"\n{END}"
    text = page.read_text() if page.exists() else f"{BEGIN}\n{END}"
    page.write_text(text[:text.index(BEGIN)] + made + text[text.index(END) + len(END):])


def section(name: str, folder: Path) -> str:
    """One log's tables: the best on valid first; differences on the same test rows, paired."""
    cells = {model: list(chosen(folder / model)) for model in (*OURS, *THEIRS)}
    cells = {m: [x for x in c if "refused" not in x] or c for m, c in cells.items()}
    refused = {m: c[0]["refused"] for m, c in cells.items() if c and "refused" in c[0]}
    cells = {m: c for m, c in cells.items() if c and m not in refused}
    tasks = [k[4:] for k in next(iter(cells.values()))[0]["test"] if k.startswith("auc_") and k != "auc_mean"]
    less, ranks = against(BASE, cells), sorted(cells, key=lambda m: -np.mean([x["valid"] for x in cells[m]]))
    held = any(x["test"].get(f"gauc_frozen_{t}") is not None for c in cells.values() for x in c for t in tasks)
    figures = lambda model, metric, digits: [figure([x["test"].get(f"{metric}_{t}") for x in cells[model]], digits)
                                             for t in tasks]
    days = sorted({x["measured"] for c in cells.values() for x in c})
    said = [f"### {name}", "", f"Measured {' to '.join(dict.fromkeys((days[0], days[-1])))}. Sorted by mean AUC on "
            "valid; everything else is of test.", ""]
    said += lines(["model", "seeds", *(f"AUC {t}" for t in tasks), *(f"less {BASE}, {t}" for t in tasks), "CPU s"], [
        [m, str(len(cells[m])), *figures(m, "auc", 4), *(less.get((m, t), "-") for t in tasks),
         f"{np.mean([x['cpu_seconds'] for x in cells[m]]):.0f}"] for m in ranks])
    said += ["", f"GAUC{' with histories held' if held else ''}, and predicted over observed:", ""]
    said += lines(["model", *(f"GAUC {t}" for t in tasks), *(f"PCOC {t}" for t in tasks)], [
        [m, *figures(m, "gauc_frozen" if held else "gauc", 4), *figures(m, "pcoc", 3)] for m in ranks])
    peers = [(m, against(m, {n: cells[n] for n in (m, BEST)})) for m in THEIRS if m in cells and BEST in cells]
    if peers:
        said += ["", f"`{BEST}` less each of the others, AUC:", ""]
        said += lines(["less", *tasks], [[m, *(found.get((BEST, t), "-") for t in tasks)] for m, found in peers])
    pairs = [(m, against(theirs, {n: cells[n] for n in (m, theirs)}), theirs) for theirs in THEIRS
             if (m := theirs.removeprefix("rechub-")) != theirs and theirs in cells and m in cells]
    if pairs:
        cpu = lambda m: np.mean([x["cpu_seconds"] for x in cells[m]])
        said += ["", "Each of ours less torch-rechub's of that name, AUC, and how many times as long theirs takes:", ""]
        said += lines(["model", *tasks, "time"], [[m, *(found.get((m, t), "-") for t in tasks),
                                                   f"{cpu(theirs) / cpu(m):.1f}"] for m, found, theirs in pairs])
    return "\n".join(said + [f"\n`{m}` does not apply: {why}" for m, why in refused.items()])


def lines(head: list[str], rows: list[list[str]]) -> list[str]:
    """A table in markdown."""
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]


def chosen(folder: Path) -> Iterator[dict[str, Any]]:
    """The cells of a model's best trial, in the order of seeds."""
    if not any(folder.glob("trial-*")):
        return
    trial = best_trial(folder, MOST_TRIALS)
    for cell in sorted((folder / f"trial-{trial}").glob("seed-*/cell.json")):
        yield json.loads(cell.read_text()) | {"folder": str(cell.parent)}


def against(base: str, cells: dict[str, list[dict[str, Any]]]) -> dict[tuple[str, str], str]:
    """(model, task) -> difference of test AUC to `base`, +- half its 95 % interval; * where that excludes zero."""
    if base not in cells or len(cells) == 1:
        return {}
    kept = lambda model: Contestant(model, [open_scores(Path(c["folder"]) / "scores") for c in cells[model]])
    found = compare([kept(base), *(kept(m) for m in cells if m != base)], ("auc",), by_scenario=False)
    return {(r["run"], r["task"]): f"{r['difference']:+.4f} ± {(r['high'] - r['low']) / 2:.4f}"
            + (" *" if r["low"] > 0 or r["high"] < 0 else "") for r in found.rows if r["task"] and r["error"]}


def figure(values: list[float | None], digits: int) -> str:
    known = [v for v in values if v is not None]
    if not known:
        return "-"
    return f"{np.mean(known):.{digits}f}" + (f" ± {np.std(known, ddof=1):.{digits}f}" if len(known) > 1 else "")


if __name__ == "__main__":
    sys.exit(main())
