"""What each model costs: parameters, multiply-adds and rows per CPU second, printed, and written into docs/models.

    python benchmarks/costs.py                     a table of all models
    python benchmarks/costs.py --models aitm ple   of these
    python benchmarks/costs.py --write             into the marked block of each model's page; about five minutes

All on one simulated log, with the same features (6 ids, one of them a cross, a number, a history), tasks (a funnel of
three) and embeddings (16 wide), and each recipe as it stands, so that what differs is the model. Parameters are those
of the network, without tables, whose size is the vocabularies'. Multiply-adds are those of matrix products, forward,
counted as they run (train/floor.py). Rows per CPU second are medians of windows: of the training that `funnelrank
train` does, loader included, and of scoring encoded rows. One thread, batches of 1024.
"""

from __future__ import annotations

import argparse
import datetime
import re
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from table import short

from funnelrank import flow
from funnelrank.batch import Batch
from funnelrank.config import Config, load
from funnelrank.data.loader import Loader
from funnelrank.models import MODELS
from funnelrank.simulate import simulate
from funnelrank.train.floor import multiply_adds

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "models"
BLOCK = re.compile(r"<!-- costs: ([\w ]+) -->\n(?:.*?\n)?<!-- costs: end -->\n", re.S)
BATCH = 1024
WARM = 8                             # steps before windows are measured
SCALE = "single_task"                # stands in every table
FEATURES = {
    "item_id": {"min_count": 1}, "scenario": "id", "device": "id", "price": "number",
    "city": {"column": "users.city"}, "category": {"column": "items.category"},
    "clicked": {"kind": "sequence", "column": "hist_click", "space": "item_id"},
    "scenario_x_category": {"kind": "cross", "of": ["scenario", "category"], "min_count": 1}, "lists": "off"}


class Cost(NamedTuple):
    parameters: int
    multiply_adds: float             # a row, forward
    train: float                     # rows per CPU second
    score: float


def config_of(name: str, folder: Path, cache: Path) -> Config:
    return load({
        "data": {"dir": str(folder), "train": "train.parquet", "scenario": "scenario", "user": "user_id",
                 "cache": str(cache), "tables": {"users": {"path": "users.parquet", "key": "user_id"},
                                                 "items": {"path": "items.parquet", "key": "item_id"}}},
        "features": FEATURES, "tasks": {"click": {}, "cart": {"after": "click"}, "buy": {"after": "cart"}},
        "model": name, "train": {"out": str(cache / "run"), "batch_size": BATCH, "threads": 1}})


class Windows:
    """A Loader that goes on until so many CPU seconds have passed, and notes how long windows of steps took."""

    def __init__(self, loader: Loader, seconds: float, steps: int = 5):
        self.loader, self.seconds, self.steps = loader, seconds, steps
        self.rates: list[float] = []

    def __len__(self) -> int:
        return len(self.loader)

    def state(self) -> dict:
        return self.loader.state()

    def epoch(self, number: int) -> Iterator[Batch]:
        full = (b for n in range(number, 1_000_000) for b in self.loader.epoch(n) if len(b) == BATCH)
        for _ in range(WARM):
            yield next(full)
        end = time.process_time() + self.seconds
        while time.process_time() < end or len(self.rates) < 3:
            start = time.process_time()
            for _ in range(self.steps):
                yield next(full)
            self.rates.append(self.steps * BATCH / (time.process_time() - start))


def measured(name: str, folder: Path, cache: Path, seconds: float) -> Cost:
    config = config_of(name, folder, cache)
    data = flow.open_data(config)
    encoder = flow.prepare(config, data)
    splits = flow.encode(config, data, encoder)
    model = flow.build(config, encoder, splits)
    loader = Loader(splits["train"], encoder.layout, BATCH, shuffle=True)
    batch = next(loader.epoch(0))
    counted = multiply_adds(model, batch) / len(batch)

    windows = Windows(loader, seconds)
    make, flow.Loader = flow.Loader, lambda *a, **k: windows
    try:
        flow.fit(config, model, encoder, splits, folder=cache / "run")
    finally:
        flow.Loader = make
    scoring = Windows(Loader(splits["train"], encoder.layout, BATCH, shuffle=True), seconds / 3)
    model.eval()
    with torch.no_grad():
        for rows in scoring.epoch(0):
            model.served(rows)
    return Cost(sum(p.numel() for p in model.slots.parameters()), counted, statistics.median(windows.rates),
                statistics.median(scoring.rates))


def rows_of(costs: dict[str, Cost], names: list[str]) -> list[str]:
    found = [f"| `{n}` | {short(c.parameters)} | {short(c.multiply_adds)} | {short(c.train)} | {short(c.score)} |"
             for n in names if (c := costs.get(n))]
    head = "| model | parameters | multiply-adds a row | rows per CPU-second, training | scoring |"
    return [head, "|---|---|---|---|---|", *found]


def processor() -> str:
    found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M) if Path(
        "/proc/cpuinfo").exists() else None
    return found[1] if found else "CPU"


def write(costs: dict[str, Cost], setup: str) -> None:
    """Fill the block of each page all of whose models were measured."""
    for page in sorted(PAGES.glob("*.md")):
        text = page.read_text()
        for block in BLOCK.finditer(text):
            names = block[1].split()
            if all(n in costs for n in names):
                lines = [*rows_of(costs, [*names, *({SCALE} - {*names})]), "", setup]
                made = "\n".join([f"<!-- costs: {block[1]} -->", "", *lines, "<!-- costs: end -->", ""])
                text = text.replace(block[0], made)
        page.write_text(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS), metavar="MODEL")
    parser.add_argument("--seconds", type=float, default=5.0, help="CPU seconds of training measured for each model")
    parser.add_argument("--rows", type=int, default=40_000, help="of the log")
    parser.add_argument("--write", action="store_true", help="into docs/models")
    said = parser.parse_args()
    torch.set_num_threads(1)
    names = list(dict.fromkeys([SCALE, *said.models]))
    with tempfile.TemporaryDirectory() as place:
        folder, costs = Path(place) / "log", {}
        simulate(folder, rows=said.rows, users=2000, items=2000)
        for name in names:
            costs[name] = measured(name, folder, Path(place) / "cache", said.seconds)
            print(rows_of(costs, [name])[-1], flush=True)
    if said.write:
        today = datetime.date.today().isoformat()
        write(costs, f"{today}, {processor()}: `python benchmarks/costs.py --write`. "
                     "Multiply-adds: of matrix products.")


if __name__ == "__main__":
    main()
