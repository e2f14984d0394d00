"""Rows that are only for timing: ids by Zipf's law scattered over a table, three histories, numbers, two labels."""

import numpy as np
import torch
from cells import NETS
from rows import NUMBERS, zipf

from funnelrank.batch import Batch, Layout
from funnelrank.config import load
from funnelrank.ranker import RankingModel

LENGTHS = ((13, 50), (13, 50), (5, 20))              # mean and most entries of each history


def layout(ids: int) -> Layout:
    """23 spaces of which the three largest hold most of `ids`; histories live in the first."""
    share = np.array([0.4, 0.3, 0.2] + [0.1 / 20] * 20)
    sizes = {f"f{i}": max(int(ids * s), 10) for i, s in enumerate(share)}
    names, lists = tuple(sizes), ("shown", "clicked", "bought")
    numbers = tuple(f"n{i}" for i in range(NUMBERS))
    return Layout(ids=names, numbers=numbers, lists=lists, tasks=("click", "buy"),
                  space={n: n for n in names} | dict.fromkeys(lists, "f0"), size=sizes,
                  role=dict.fromkeys((*names, *numbers, *lists), "context"), pool=dict.fromkeys(lists, "mean"),
                  target=dict.fromkeys(lists, "f0"), feature={n: n for n in numbers}, scenarios=())


def batch(rows: int, of: Layout, seed: int) -> Batch:
    rng = np.random.default_rng(seed)
    ids = np.stack([zipf(rng, of.size[f], rows) for f in of.ids], 1)
    lengths = np.concatenate([np.minimum(rng.geometric(1 / (1 + mean), rows) - 1, most) for mean, most in LENGTHS])
    offsets = np.concatenate([[0], lengths.cumsum()]).astype(np.int64)
    click = rng.random(rows) < 0.16
    labels = np.stack([click, click & (rng.random(rows) < 0.1)], 1).astype(np.float32)
    return Batch(ids=torch.from_numpy(ids), numbers=torch.from_numpy(rng.standard_normal((rows, NUMBERS), np.float32)),
                 values=torch.from_numpy(zipf(rng, of.size["f0"], int(offsets[-1]))),
                 offsets=torch.from_numpy(offsets), scenario=torch.zeros(rows, dtype=torch.int32),
                 labels=torch.from_numpy(labels), weight=torch.ones(rows), user=torch.zeros(rows, dtype=torch.int64))


def model(name: str, net: str, of: Layout, engine: str = "auto", apart: bool = False, **sharding) -> RankingModel:
    """`apart`: one rank's of several, whose tables lie as `sharding` says."""
    bottom, tower = NETS[net]
    slots = {"aitm": {"represent": {"hidden": [*bottom, *tower]}},
             "mmoe": {"represent": {"hidden": bottom}, "predict": {"hidden": tower}},
             "din": {"represent": {"hidden": [*bottom, *tower]}},
             "deepfm": {"represent": {"hidden": [*bottom, *tower]}}}[name]
    features = {n: "id" for n in of.ids} | {n: "number" for n in of.numbers} | {
        n: {"kind": "sequence", "space": "f0"} for n in of.lists}
    config = load({"features": {"lists": "off", **features}, "tasks": {"click": {}, "buy": {"after": "click"}},
                   "embedding": {"engine": engine, "sharding": sharding}, "model": {"name": name, **slots}})
    torch.manual_seed(0)
    return RankingModel(config.settings, config.schema, of, {"click": {"mean": 0.16}, "buy": {"mean": 0.016}}, apart)
