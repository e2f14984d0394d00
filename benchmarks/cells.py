"""What is measured, against what, and what it must reach: every row of the table, and every threshold, once.

A cell has a side that is funnelrank and, mostly, another side; both are worker processes. Its kind says what is made
of their windows:

    times     rows per CPU second over the other side's
    slowdown  rows per CPU second of the other side (few ids) over ours (many ids); at most
    threads   rows per second of the clock, 2 threads over 1
    rate      rows per CPU second
    seconds   CPU seconds of one pass; at most
    share     of the physical floor: floor seconds of a row (train/floor.py, with the best rates of the same run) times
              rows per CPU second
    scale     rows per CPU second of another kind of thing, to see the order of magnitude; no threshold
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

NETS = {"small": ([32, 16], [8]), "large": ([256, 128], [64])}       # layers of bottoms, and of towers
EXPERTS = {"small": (8, [16]), "large": (4, [256, 128])}       # of MMoE: how many, and their layers
AT_MOST = ("slowdown", "seconds")


@dataclass(frozen=True)
class Side:
    """A worker: a program of this folder and what it is told. `log`: it also needs the generated log's folder."""

    program: str
    said: dict[str, Any]
    least: int = 1                   # units of work of a window

    @property
    def threads(self) -> int:
        return self.said.get("threads", 1)


@dataclass(frozen=True)
class Cell:
    name: str
    work: str                        # how the table names it
    against: str
    kind: str
    must: float | None
    stretch: float | None
    ours: Side
    other: Side | None = None
    quick: bool = False
    notes: tuple[str, ...] = field(default=())

    def reached(self, value: float, threshold: float | None) -> bool | None:
        if threshold is None:
            return None
        return value <= threshold if self.kind in AT_MOST else value >= threshold


def dims(net: str) -> dict[str, Any]:
    """Layer sizes of a net, as both sides are told them."""
    (bottom, tower), (experts, expert) = NETS[net], EXPERTS[net]
    return {"bottom": bottom, "tower": tower, "experts": experts, "expert": expert}


def ours(model: str, net: str, ids: float, batch: int = 4096, norm: str | None = "batch", threads: int = 1) -> Side:
    return Side("ours", {"work": "train", "model": model, "net": net, "ids": int(ids), "batch": batch, "norm": norm,
                         "threads": threads}, least=3)


def peer(program: str, model: str, net: str, ids: float, batch: int = 4096) -> Side:
    return Side(f"peers/{program}", {"model": model, **dims(net), "ids": int(ids), "batch": batch}, least=3)


def against(program: str, title: str, model: str, net: str, ids: str, must: float, stretch: float | None = None,
            batch: int = 4096, quick: bool = False) -> Cell:
    """One model end to end, both sides. DeepCTR-Torch's networks have no batch norm by default, torch-rechub's do."""
    names = {"aitm": "AITM", "mmoe": "MMoE", "deepfm": "DeepFM", "din": "DIN, three histories"}
    return Cell(f"{model}-{net}-{ids}-{batch}-{program}", f"{names[model]} {net.upper()}, {ids} ids, batch {batch}",
                title, "times", must, stretch,
                ours(model, net, float(ids), batch, "batch" if program == "rechub" else None),
                peer(program, model, net, float(ids), batch), quick)


def metric(name: str, work: str, title: str, kind: str, must: float, rows: int, quick: bool = False) -> Cell:
    """`name` is a metric, or metric-peer."""
    mine = Side("ours", {"work": "metric", "metric": name.split("-")[0], "rows": rows})
    other = Side("peers/others", {"work": name, "rows": rows}) if kind == "times" else None
    return Cell(name, work, title, kind, must, None, mine, other, quick)


def encode(name: str, work: str, must: float | None, strings: bool, quick: bool = False, **said: Any) -> Cell:
    return Cell(name, work, "itself", "rate" if must else "scale", must, None,
                Side("ours", {"work": "encode", "ids": 100_000, "rows": 400_000, "strings": strings, **said}),
                quick=quick)


RECHUB, DEEPCTR = "torch-rechub 0.9.0", "DeepCTR-Torch 0.3.0"

CELLS = [
    against("rechub", RECHUB, "aitm", "small", "1e5", 14, 18, quick=True),
    against("rechub", RECHUB, "aitm", "large", "1e5", 3.5, 4, quick=True),
    against("rechub", RECHUB, "aitm", "small", "1e6", 14, 18),
    against("rechub", RECHUB, "aitm", "small", "1e7", 70, 90),
    against("rechub", RECHUB, "aitm", "large", "1e7", 22, 25),
    against("rechub", RECHUB, "aitm", "large", "1e7", 50, 60, batch=1024, quick=True),
    against("deepctr", DEEPCTR, "mmoe", "small", "1e5", 8),
    against("deepctr", DEEPCTR, "mmoe", "small", "1e7", 60),
    against("deepctr", DEEPCTR, "deepfm", "large", "1e5", 4),
    against("deepctr", DEEPCTR, "deepfm", "large", "1e7", 40),
    against("rechub", RECHUB, "deepfm", "large", "1e5", 4),
    against("rechub", RECHUB, "deepfm", "large", "1e7", 40),
    against("rechub", RECHUB, "din", "large", "1e5", 10),
    *(Cell(f"floor-{net}-{ids}", f"share of the physical floor, AITM {net.upper()}, {ids} ids", "the machine", "share",
           must, stretch, ours("aitm", net, float(ids)),
           Side("ours", {"work": "floor", "model": "aitm", "net": net, "ids": int(float(ids)), "batch": 4096,
                         "norm": "batch"}), quick=(net, ids) == ("large", "1e5"))
      for net, must, stretch in (("large", 0.65, 0.75), ("small", 0.45, 0.55)) for ids in ("1e5", "1e7")),
    *(Cell(f"slowdown-{net}", f"slowdown from 1e5 to 1e7 ids, AITM {net.upper()}", "itself", "slowdown", 1.3, None,
           ours("aitm", net, 1e7), ours("aitm", net, 1e5)) for net in ("small", "large")),
    Cell("threads", "2 threads over 1, AITM LARGE, 1e5 ids (by the clock)", "itself", "threads", 1.7, None,
         ours("aitm", "large", 1e5, threads=2), ours("aitm", "large", 1e5)),
    Cell("loader", "shuffled loader alone", "itself", "rate", 2.5e6, None,
         Side("ours", {"work": "loader", "ids": 100_000, "batch": 4096}), quick=True),
    encode("encode-ids", "encoding parquet to cache, integer ids", 0.3e6, strings=False, quick=True),
    encode("encode-strings", "encoding parquet to cache, fitted strings and list numbers", 0.12e6, strings=True),
    encode("fit-strings", "fitting those vocabularies and statistics", None, strings=True, fit=True),
    metric("auc-sklearn", "AUC of 10 M rows", "scikit-learn", "times", 18, 10_000_000, quick=True),
    metric("gauc-rechub", "GAUC of 1e5 rows", "torch-rechub", "times", 500, 100_000, quick=True),
    metric("gauc-fuxictr", "GAUC of 1e5 rows", "FuxiCTR", "times", 500, 100_000),
    metric("gauc", "GAUC of 10 M rows, CPU seconds", "itself", "seconds", 1.0, 10_000_000, quick=True),
    Cell("lightgbm", "for scale: LightGBM, rows over CPU seconds of a training of 100 trees", "-", "scale", None, None,
         Side("peers/others", {"work": "trees", "ids": 100_000, "rows": 200_000})),
]
