"""LightGBM on encoded rows, a model a label: trees.py FOLDER lightgbm|lightgbm-te SEED SETTINGS (see contest.py).

lightgbm     numbers as they are, ids of up to `most_values` values (a setting of this file) as categories
lightgbm-te  the same numbers; each id as its 5-fold smoothed target encodings of all labels
Trees stop growing where AUC on valid does not rise for 50 rounds.
"""

import json
import sys
import time
from pathlib import Path

import lightgbm
import numpy as np

SMOOTHING = 20.0
FOLDS = 5
SETTINGS = {"most_values": 256, "objective": "binary", "metric": "auc", "learning_rate": 0.05, "num_leaves": 63,
            "min_data_in_leaf": 100, "feature_fraction": 0.5, "bagging_fraction": 0.8, "bagging_freq": 1,
            "cat_smooth": 50, "max_bin": 127, "num_threads": 1, "verbose": -1}


def main() -> None:
    place, model, seed, settings = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), SETTINGS | json.loads(sys.argv[4])
    meta = json.loads((place / "meta.json").read_text())
    splits = {s: dict(np.load(place / f"{s}.npz")) for s in meta["splits"]}
    clock = time.process_time()
    most = settings.pop("most_values")
    x, categories = encoded(meta, splits, seed) if model.endswith("-te") else plain(meta, splits, most)
    answers = {s: [] for s in splits if s != "train"}
    trees = []
    for t in range(len(meta["tasks"])):
        sets = {}
        for split in ("train", "valid"):
            y = splits[split]["labels"][:, t]
            sets[split] = lightgbm.Dataset(x[split][~np.isnan(y)], y[~np.isnan(y)], free_raw_data=True,
                                           categorical_feature=categories, params={"max_bin": SETTINGS["max_bin"]},
                                           reference=sets.get("train"))
        booster = lightgbm.train(settings | {"seed": seed}, sets["train"], 500, valid_sets=[sets["valid"]],
                                 callbacks=[lightgbm.early_stopping(50, verbose=False)])
        trees.append(booster.best_iteration)
        for split, out in answers.items():
            out.append(booster.predict(x[split], num_iteration=booster.best_iteration))
    np.savez(place / "scores.npz", **{s: np.stack(out, 1) for s, out in answers.items()})
    print(json.dumps({"cpu_seconds": round(time.process_time() - clock, 1), "trees": trees}))


def plain(meta: dict, splits: dict, most: int) -> tuple[dict[str, np.ndarray], list[int]]:
    small = [i for i, name in enumerate(meta["ids"]) if meta["size"][meta["space"][name]] <= most]
    columns = {s: np.column_stack([arrays["numbers"], arrays["ids"][:, small]]).astype(np.float32)
               for s, arrays in splits.items()}
    first = splits["train"]["numbers"].shape[1]
    return columns, list(range(first, columns["train"].shape[1]))


def encoded(meta: dict, splits: dict, seed: int) -> tuple[dict[str, np.ndarray], list[int]]:
    """Rows of train are encoded by the other folds, others by all of train."""
    train = splits["train"]
    fold = np.random.default_rng(seed).integers(0, FOLDS, len(train["labels"]))
    parts = {s: [arrays["numbers"]] for s, arrays in splits.items()}
    for f, name in enumerate(meta["ids"]):
        size, ids = meta["size"][meta["space"][name]], train["ids"][:, f]
        for t in range(len(meta["tasks"])):
            y = train["labels"][:, t]
            seen = ~np.isnan(y)
            mean = y[seen].mean()
            count = np.stack([np.bincount(ids[seen & (fold == k)], minlength=size) for k in range(FOLDS)])
            good = np.stack([np.bincount(ids[seen & (fold == k)], y[seen & (fold == k)], size) for k in range(FOLDS)])
            rate = lambda g, n, m=mean: (g + SMOOTHING * m) / (n + SMOOTHING)
            others = rate(good.sum(0) - good, count.sum(0) - count)                    # [folds, size]
            whole = rate(good.sum(0), count.sum(0))
            for split, arrays in splits.items():
                parts[split].append(others[fold, ids] if split == "train" else whole[arrays["ids"][:, f]])
    return {s: np.column_stack(p).astype(np.float32) for s, p in parts.items()}, []


if __name__ == "__main__":
    main()
