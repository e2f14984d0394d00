"""What a model says of a scenario that it has never seen: trained without one of six, scored on it and on the others.

    python benchmarks/new_scenario.py
    python benchmarks/new_scenario.py --models star,hmoe --seeds 1

Mean and standard deviation over seeds, of clicks on the test day. The scenario left out has a click rate of its own,
which nobody can know: p / y says how far that is from what the others share. One thread.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from funnelrank import load_config
from funnelrank.data.loader import Loader
from funnelrank.evaluate import metrics
from funnelrank.evaluate.score import score
from funnelrank.flow import build, encode, fit, open_data, prepare
from funnelrank.simulate import simulate

LEFT_OUT = "search"
MODELS = {"shared_bottom": {}, "star": {}, "hmoe": {}, "pepnet": {"predict": {"groups": ["scenario"]}}, "apg": {},
          "m2m": {}}


def settings(name: str, log: Path, seed: int) -> dict:
    return {
        "data": {"dir": str(log), "train": "known.parquet", "valid": "valid.parquet", "test": "test.parquet",
                 "scenario": "scenario", "user": "user_id", "cache": str(log / "cache"),
                 "tables": {"items": {"path": "items.parquet", "key": "item_id"},
                            "users": {"path": "users.parquet", "key": "user_id"}}},
        "features": {
            "item_id": "id", "scenario": "id", "price": "number", "lists": "off",
            "category": {"column": "items.category"}, "city": {"column": "users.city"},
            "level": {"column": "users.level", "kind": "number"},
            "rating": {"column": "items.rating", "kind": "number"},
            "clicked": {"kind": "sequence", "column": "hist_click", "space": "item_id", "max_len": 20}},
        "tasks": {"click": {}, "cart": {"after": "click"}}, "embedding": {"width": 8},
        "model": {"name": name, **MODELS[name]}, "evaluate": {"intervals": "none"},
        "train": {"out": str(log / "run"), "seed": seed, "threads": 1, "batch_size": 512, "epochs": 2,
                  "log_every": 10**6}}


def measured(name: str, log: Path, seed: int) -> dict[str, tuple[float, float, float]]:
    """AUC, p / y and log loss of clicks, of the scenario left out and of the others."""
    config = load_config(settings(name, log, seed))
    data = open_data(config)
    encoder = prepare(config, data)
    splits = encode(config, data, encoder)
    model = build(config, encoder, splits)
    fit(config, model, encoder, splits, folder=log / "run")
    said = score(model, config.schema, Loader(splits["test"], encoder.layout, 8192, shuffle=False, seed=0).epoch(0),
                 "test")
    found = {}
    for who, rows in (("left out", said.scenario == 1), ("known", said.scenario > 1)):
        rows = rows & ~np.isnan(said.labels[:, 0])
        lp, lq, y = said.log_p[rows, 0], said.log_not_p[rows, 0], said.labels[rows, 0]
        found[who] = metrics.auc(lp, y), metrics.pcoc(np.exp(lp), y), metrics.logloss(lp, lq, y)
    return found


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    asked.add_argument("--models", default=",".join(MODELS))
    asked.add_argument("--seeds", type=int, default=3)
    args = asked.parse_args()
    torch.set_num_threads(1)
    print("| model | rows of | AUC | p / y | log loss |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder)
        simulate(log, rows=60_000, users=1_500, items=600, scenarios=6, drift=0.1, seed=5)
        train = pq.read_table(log / "train.parquet")
        pq.write_table(train.filter(pc.not_equal(train["scenario"], LEFT_OUT)), log / "known.parquet")
        for name in args.models.split(","):
            runs = [measured(name, log, seed) for seed in range(args.seeds)]
            for who in runs[0]:
                cells = [f"{a.mean():.{d}f} ± {a.std():.{d}f}"
                         for a, d in zip(np.array([r[who] for r in runs]).T, (4, 3, 4))]
                print(f"| {name} | {who} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
