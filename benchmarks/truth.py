"""Funnels whose truth is known: which head comes nearest, per step, and on the rows where a step was not taken.

    python benchmarks/truth.py                      all worlds and models, 8 seeds; the tables of docs/truth.md
    python benchmarks/truth.py --worlds unseen --models ESMM,DCMT --seeds 2 --rows 8000

Each world is `funnelrank simulate` with other arguments; each seed is another world of its kind and other first
weights, the same for all models. Everybody has the same features, the same network (an MLP of 32 and 16 a task, unless
the model says otherwise) and the same epochs; early stopping looks at valid's mean AUC. Measured on test against the
true probabilities p, as an average over all that could happen there, so that chance has no part in it; p^ are the
model's:

    AUC       how far below that of p itself it is; of click, and of buy over all rows
    p^ / p    ratio of means; of buy over all rows
    clicked, unclicked    of buy given a click, on rows weighted by their true probability to have one, or not: the same
              ratio, and KL, the mean of p log(p / p^) + (1 - p) log((1 - p) / (1 - p^)), in thousandths

Intervals are 95 % ones over seeds (Student's t). One thread.
"""

import argparse
import json
import shutil
import tempfile
import time
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

WORLDS = {
    "independent": {"alike": 0.0},
    "known": {"alike": 1.0},
    "known, strong": {"alike": 3.0},
    "unseen": {"mood": 0.7},
    "unseen, strong": {"mood": 1.5},
    "sparse": {"next_rate": 0.03},
}
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
CLICK, BUY = 0, 1
T975 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}      # Student's t, by seeds


def settings(model: str, log: Path, seed: int) -> dict:
    """`clicks alone` is what the field does without any of this: p(buy | click) learned on clicks, and on them only."""
    alone = model == BASE
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
        "tasks": {"click": {}, "buy": {"label": "bought"} if alone else {"after": "click"}},
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


def measured(log: Path, model: str, seed: int) -> dict[str, float]:
    config = load_config(settings(model, log, seed))
    data = open_data(config)
    encoder = prepare(config, data)
    splits = encode(config, data, encoder)
    trained = build(config, encoder, splits)
    fit(config, trained, encoder, splits, folder=log / "run")
    shutil.rmtree(log / "run", ignore_errors=True)
    said = score(trained, config.schema, Loader(splits["test"], encoder.layout, 8192, shuffle=False, seed=0).epoch(0),
                 "test")
    test = pq.read_table(log / "test.parquet")
    p_click, p_buy = (test[c].to_numpy() for c in ("p_click", "p_buy"))
    q_click, q_buy = np.exp(said.log_p[:, CLICK].astype(float)), np.exp(said.log_p[:, BUY].astype(float))
    step = q_buy if model == BASE else np.minimum(q_buy / q_click, 1)
    if model == BASE:
        q_buy = q_click * q_buy
    out = {"click": auc(p_click, p_click) - auc(p_click, q_click), "buy": auc(p_buy, p_buy) - auc(p_buy, q_buy),
           "all": q_buy.mean() / p_buy.mean()}
    truth = p_buy / p_click
    for name, weight in (("clicked", p_click), ("unclicked", 1 - p_click)):
        out |= {f"KL {name}": kl(truth, step, weight),
                f"bias {name}": (weight * step).sum() / (weight * truth).sum()}
    return out


def world(folder: Path, name: str, seed: int, rows: int) -> Path:
    """A log of its kind, with `bought`: buy where there was a click, and not observed where there was none."""
    simulate(folder, rows=rows, users=rows // 40, items=rows // 80, days=5, funnel=("click", "buy"), side_tasks=(),
             spend=False, null_rate=0, missing_labels=0, drift=0, seed=seed, **WORLDS[name])
    for split in ("train", "valid", "test"):
        table = pq.read_table(folder / f"{split}.parquet")
        bought = pa.array(table["buy"].to_numpy(), mask=table["click"].to_numpy() == 0)
        pq.write_table(table.append_column("bought", bought), folder / f"{split}.parquet")
    return folder


def said(values: list[float], digits: int, sign: str = "") -> str:
    half = T975[len(values)] * np.std(values, ddof=1) / len(values) ** 0.5
    return f"{np.mean(values):{sign}.{digits}f} ± {half:.{digits}f}"


COLUMNS = {"click": ("click: AUC below", 3), "buy": ("buy: AUC below", 3), "all": ("buy: p^ / p", 2),
           "KL clicked": ("KL, clicked", 1), "KL unclicked": ("KL, unclicked", 1),
           "bias clicked": ("p^ / p, clicked", 2), "bias unclicked": ("p^ / p, unclicked", 2)}


def report(name: str, runs: dict[str, list[dict[str, float]]]) -> str:
    """The table of one world; the last column is paired, seed by seed."""
    head = ["model", *(words for words, _ in COLUMNS.values()), f"KL, unclicked, less that of {BASE}"]
    lines = [f"### {name}: `{', '.join(f'{k}={v:g}' for k, v in WORLDS[name].items())}`", "", f"| {' | '.join(head)} |",
             "|" + "---|" * len(head)]
    for model, each in runs.items():
        cells = [said([r[c] for r in each], digits) for c, (_, digits) in COLUMNS.items()]
        if BASE in runs:
            cells.append(said([r["KL unclicked"] - b["KL unclicked"] for r, b in zip(each, runs[BASE])], 1, "+")
                         if model != BASE else "")
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
                    runs[model].append(measured(log, model, seed))
        found[name] = runs
        print(report(name, runs), end="\n\n", flush=True)
    print(f"{args.rows:,} rows a log, {args.seeds} seeds, {time.process_time() - began:.0f} CPU seconds")
    if args.out:
        args.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
