"""Funnels whose truth is known: which head comes nearest, per step, and on the rows where a step was not taken.

    python benchmarks/truth.py                      all worlds and models, 8 seeds; the tables of docs/truth.md
    python benchmarks/truth.py --worlds unseen --models ESMM,DCMT --seeds 2 --rows 8000

Each world is `funnelrank simulate` with other arguments; each seed is another world of its kind and other first
weights, the same for all models. Everybody has the same features, the same network (an MLP of 32 and 16 a task, unless
the model says otherwise) and the same epochs; early stopping looks at valid's mean AUC. Measured on test against the
true probabilities p, as an average over all that could happen there, so that chance has no part in it; p^ are the
model's:

    AUC       of a step over all rows: how far below that of p itself it is
    p^ / p    ratio of means, over all rows
    given the step before, on rows weighted by their true probability to have taken that, or not to: the same ratio, and
              KL, the mean of p log(p / p^) + (1 - p) log((1 - p) / (1 - p^)), in thousandths

Intervals are 95 % ones over seeds (Student's t). One thread.
"""

import argparse
import json
import shutil
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from funnelrank import load_config
from funnelrank.data.loader import Loader
from funnelrank.evaluate.score import score
from funnelrank.flow import build, encode, fit, open_data, prepare
from funnelrank.simulate import simulate

WORLDS = {                            # arguments of `simulate`; a funnel has two steps where none is said
    "independent": {"alike": 0.0},
    "known": {"alike": 1.0},
    "known, strong": {"alike": 3.0},
    "unseen": {"mood": 0.7},
    "unseen, strong": {"mood": 1.5},
    "sparse": {"next_rate": 0.03},
    "three steps": {"funnel": ("click", "cart", "buy"), "next_rate": 0.5},
}
STEPS = ("click", "buy")
TAKEN = {"click": ("clicked", "unclicked"), "cart": ("carted", "not carted")}
BODY = {"represent": {"name": "mlp", "per": "task", "hidden": [32, 16]}}
SHARED = {"represent": {"hidden": [32]}, "predict": {"hidden": [16]}}
MODELS = {
    "clicks alone": {"name": "single_task", **BODY},
    "shared bottom": {"name": "shared_bottom", **SHARED},
    "... conditional": {"name": "shared_bottom", **SHARED, "reading": "conditional"},
    "... ordinal": {"name": "shared_bottom", **SHARED, "reading": "ordinal"},
    "AITM": {"name": "aitm", **BODY},
    "DBMTL": {"name": "dbmtl", "represent": {"hidden": [32]}, "transfer": {"tower": [16]}},
    "ESMM": {"name": "esmm", **BODY},
    "ESCM2-IPS": {"name": "escm2_ips", **BODY},
    "ESCM2-DR": {"name": "escm2_dr", **BODY},
    "... imputing labels": {"name": "escm2_dr", **BODY, "debias": {"imputes": "label"}},
    "DCMT": {"name": "dcmt", **BODY},
}
BASE = "clicks alone"
T975 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}      # Student's t, by seeds


def steps(name: str) -> tuple[str, ...]:
    return WORLDS[name].get("funnel", STEPS)


def settings(model: str, log: Path, seed: int, funnel: tuple[str, ...]) -> dict:
    """`clicks alone` is what the field does without any of this: p(buy | click) learned on clicks, and on them only."""
    later = {s: {"label": f"seen_{s}"} if model == BASE else {"after": before} for before, s in pairwise(funnel)}
    return {
        "data": {"dir": str(log), **{s: f"{s}.parquet" for s in ("train", "valid", "test")}, "scenario": "scenario",
                 "cache": str(log / "cache"),
                 "tables": {"items": {"path": "items.parquet", "key": "item_id"},
                            "users": {"path": "users.parquet", "key": "user_id"}}},
        "features": {
            "user_id": "id", "item_id": "id", "scenario": "id", "device": "id", "price": "number",
            "badges": {"kind": "bag", "separator": "|"}, "hour": {"num_buckets": 24},
            "level": {"column": "users.level"}, "age": {"column": "users.age_band"}, "city": {"column": "users.city"},
            "rating": {"kind": "number", "column": "items.rating"}, "category": {"column": "items.category"},
            "brand": {"column": "items.brand"},
            "clicked": {"kind": "sequence", "column": "hist_click", "space": "item_id", "max_len": 20}},
        "tasks": {funnel[0]: {}, **later},
        "embedding": {"width": 8}, "model": MODELS[model], "evaluate": {"intervals": "none", "frozen": False},
        "train": {"out": str(log / "run"), "seed": seed, "threads": 1, "batch_size": 512, "epochs": 3,
                  "early_stopping": {"patience": 2}, "log_every": 10**6, "checkpoint_seconds": None}}


def kl(p: np.ndarray, q: np.ndarray, weight: np.ndarray) -> float:
    """Mean divergence of q from the truth p, in thousandths: what q loses in log loss by not being p."""
    q = q.clip(1e-7, 1 - 1e-7)
    return float(1000 * np.average(p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)), weights=weight))


def auc(p: np.ndarray, q: np.ndarray) -> float:
    """AUC of scores q over all labels that p may draw: each row is a positive by p and a negative by 1 - p."""
    _, place = np.unique(q, return_inverse=True)
    positive, negative = np.bincount(place, p), np.bincount(place, 1 - p)
    below = np.cumsum(negative) - negative / 2
    return float((positive * below).sum() / (positive.sum() * negative.sum()))


def measured(log: Path, name: str, model: str, seed: int) -> dict[str, float]:
    funnel = steps(name)
    config = load_config(settings(model, log, seed, funnel))
    data = open_data(config)
    encoder = prepare(config, data)
    splits = encode(config, data, encoder)
    trained = build(config, encoder, splits)
    fit(config, trained, encoder, splits, folder=log / "run")
    shutil.rmtree(log / "run", ignore_errors=True)
    said = score(trained, config.schema, Loader(splits["test"], encoder.layout, 8192, shuffle=False, seed=0).epoch(0),
                 "test")
    test = pq.read_table(log / "test.parquet")
    p = [test[f"p_{s}"].to_numpy() for s in funnel]
    q = list(np.exp(said.log_p.astype(float)).T)
    if model == BASE:                                  # each of them is given the step before
        q = [np.prod(q[:k + 1], axis=0) for k in range(len(q))]
    out = {}
    for k, step in enumerate(funnel):
        out |= {f"{step} auc": auc(p[k], p[k]) - auc(p[k], q[k]), f"{step} ratio": q[k].mean() / p[k].mean()}
        if k:
            truth, given = p[k] / p[k - 1], np.minimum(q[k] / q[k - 1], 1)
            for taken, weight in zip(TAKEN[funnel[k - 1]], (p[k - 1], 1 - p[k - 1])):
                out |= {f"{step} kl {taken}": kl(truth, given, weight),
                        f"{step} ratio {taken}": (weight * given).sum() / (weight * truth).sum()}
    return out


def world(folder: Path, name: str, seed: int, rows: int) -> Path:
    """A log of its kind, with seen_<step>: the step where the one before it was taken, and not observed elsewhere."""
    simulate(folder, rows=rows, users=rows // 40, items=rows // 80, days=5, side_tasks=(), spend=False, null_rate=0,
             missing_labels=0, drift=0, seed=seed, **{"funnel": STEPS, **WORLDS[name]})
    for split in ("train", "valid", "test"):
        table = pq.read_table(folder / f"{split}.parquet")
        for before, step in pairwise(steps(name)):
            seen = pa.array(table[step].to_numpy(), mask=table[before].to_numpy() == 0)
            table = table.append_column(f"seen_{step}", seen)
        pq.write_table(table, folder / f"{split}.parquet")
    return folder


def said(values: list[float], digits: int, sign: str = "") -> str:
    half = T975[len(values)] * np.std(values, ddof=1) / len(values) ** 0.5
    return f"{np.mean(values):{sign}.{digits}f} ± {half:.{digits}f}"


def tables(funnel: tuple[str, ...]) -> list[dict[str, tuple[str, int]]]:
    """What `measured` says -> its heading and how many digits: over all rows; then of each step given the one before.
    Two steps are one table."""
    over: dict[str, tuple[str, int]] = {}
    for step in funnel:
        over |= {f"{step} auc": (f"{step}: AUC below", 3), f"{step} ratio": (f"{step}: p^ / p", 2)}
    given = []
    for before, step in pairwise(funnel):
        name = f"{step} given {before}: " if len(funnel) > 2 else ""
        given.append({f"{step} kl {taken}": (f"{name}KL, {taken}", 1) for taken in TAKEN[before]}
                     | {f"{step} ratio {taken}": (f"{name}p^ / p, {taken}", 2) for taken in TAKEN[before]})
    return [over, *given] if len(funnel) > 2 else [over | given[0]]


def report(name: str, runs: dict[str, list[dict[str, float]]]) -> str:
    """The tables of one world; last columns are paired, seed by seed."""
    what = ", ".join(f"{k}={' > '.join(v) if isinstance(v, tuple) else f'{v:g}'}" for k, v in WORLDS[name].items())
    untaken = {f"{step} kl {TAKEN[before][1]}" for before, step in pairwise(steps(name))}
    lines = [f"### {name}: `{what}`"]
    for shown in tables(steps(name)):
        paired = [c for c in shown if c in untaken and BASE in runs]
        head = ["model", *(words for words, _ in shown.values())]
        head += [f"{shown[c][0]}, less that of {BASE}" for c in paired]
        lines += ["", f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
        for model, each in runs.items():
            cells = [said([r[c] for r in each], digits) for c, (_, digits) in shown.items()]
            cells += [said([r[c] - b[c] for r, b in zip(each, runs[BASE])], 1, "+") if model != BASE else ""
                      for c in paired]
            lines.append(f"| {model} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    asked.add_argument("--worlds", default=";".join(WORLDS), help="separated by ;")
    asked.add_argument("--models", default=",".join(MODELS))
    asked.add_argument("--seeds", type=int, default=8, choices=T975)
    asked.add_argument("--rows", type=int, default=30_000)
    asked.add_argument("--out", type=Path, help="all numbers, as JSON")
    args = asked.parse_args()
    torch.set_num_threads(1)
    began, found = time.process_time(), {}
    for name in args.worlds.split(";"):
        runs: dict[str, list[dict[str, float]]] = {m: [] for m in args.models.split(",")}
        for seed in range(args.seeds):
            with tempfile.TemporaryDirectory() as folder:
                log = world(Path(folder), name, seed, args.rows)
                for model in runs:
                    runs[model].append(measured(log, name, model, seed))
        found[name] = runs
        print(report(name, runs), end="\n\n", flush=True)
    print(f"{args.rows:,} rows a log, {args.seeds} seeds, {time.process_time() - began:.0f} CPU seconds")
    if args.out:
        args.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
