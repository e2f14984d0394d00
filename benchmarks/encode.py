"""From parquet to batches, one thread: rows per CPU-second of fitting, of encoding into a cache, and of the loader.

    python benchmarks/encode.py [--rows 400000] [--kinds integers texts] [--rounds 3] [--only fit encode loader]

Made data: 23 id fields by Zipf's law, 8 numbers, 3 histories (13, 13 and 5 ids long in the mean), 2 labels; zstd, row
groups of 98,304 rows. `integers` has integer ids and no list numbers; `texts` has ids that are texts, integer
histories, and the list numbers of `lists: auto`. CPU time is user + system of the whole process, every thread of it;
medians, then all rounds. The loader hands out shuffled epochs of `--loader-rows` rows in batches of 4096, of rows as a
cache keeps them, all columns of a row side by side, and of the same rows with each column apart, in turns.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from engine import FIELDS
from made import LENGTHS, layout
from rows import NUMBERS, zipf

from funnelrank import config as configs
from funnelrank.data import cache as caches
from funnelrank.data.cache import open_encoded
from funnelrank.data.encode import Encoder
from funnelrank.data.encoded import Encoded, List
from funnelrank.data.loader import Loader
from funnelrank.data.source import open_source

GROUP, BATCH = 98_304, 4096
IDS = 100_000                                             # in all fields together
SIZES = [int(IDS * share) for share in [0.4, 0.3, 0.2] + [0.1 / 20] * 20]
LISTS = ("shown", "clicked", "bought")


def log(rows: int, kind: str, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    columns = {}
    for i, size in enumerate(SIZES):
        ids = zipf(rng, size, rows)
        columns[f"f{i}"] = pa.array(ids if kind == "integers" else np.char.add(f"value-{i}-", ids.astype(str)))
    for i in range(NUMBERS):
        values = np.round(rng.lognormal(2, 1, rows), 2)
        columns[f"n{i}"] = pa.array(values, mask=rng.random(rows) < 0.02)
    items = zipf(rng, SIZES[0], rows)
    columns["item"] = pa.array(items.astype(np.int64))
    for name, (mean, most) in zip(LISTS, LENGTHS):
        lengths = np.minimum(rng.geometric(1 / (1 + mean), rows) - 1, most)
        offsets = np.concatenate([[0], lengths.cumsum()]).astype(np.int32)
        columns[name] = pa.ListArray.from_arrays(pa.array(offsets), pa.array(
            zipf(rng, SIZES[0], int(offsets[-1])).astype(np.int64)))
    click = rng.random(rows) < 0.16
    buy = click & (rng.random(rows) < 0.1)
    return pa.table(columns | {"click": click.astype(np.int8), "buy": buy.astype(np.int8)})


def settings(kind: str, files: Path) -> configs.Config:
    features = {f"f{i}": "id" for i in range(1, FIELDS)} | {f"n{i}": "number" for i in range(NUMBERS)}
    features |= {"item": "id"} | {name: {"kind": "sequence", "space": "item"} for name in LISTS}
    return configs.load({
        "data": {"train": str(files)}, "features": {"lists": "off" if kind == "integers" else "auto", **features},
        "tasks": {"click": {}, "buy": {"after": "click"}}, "model": {"name": "aitm"}})


def split(rows: int, folder: Path, seed: int = 0) -> Encoded:
    """Encoded rows for the loader, memory-mapped, each column by itself."""
    rng = np.random.default_rng(seed)

    def mapped(name: str, array: np.ndarray) -> np.ndarray:
        np.save(folder / f"{name}.npy", array)
        return np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r"))

    lists = []
    for name, (mean, most) in zip(LISTS, LENGTHS):
        lengths = np.minimum(rng.geometric(1 / (1 + mean), rows) - 1, most)
        offsets = np.concatenate([[0], lengths.cumsum()])
        values = rng.integers(2, IDS, offsets[-1], np.int32)
        lists.append(List(mapped(name, values), mapped(f"{name}.at", offsets), None))
    return Encoded(lists=lists, **{name: mapped(name, array) for name, array in {
        "ids": rng.integers(2, IDS, (rows, FIELDS), np.int32),
        "numbers": rng.standard_normal((rows, NUMBERS), np.float32), "scenario": np.zeros(rows, np.int32),
        "labels": rng.integers(0, 2, (rows, 2)).astype(np.float32), "weight": np.ones(rows, np.float32),
        "user": np.arange(rows)}.items()})


def side_by_side(apart: Encoded, folder: Path) -> Encoded:
    """The same rows as a cache's records."""
    record = caches._record(FIELDS, NUMBERS, apart.labels.shape[1], len(LISTS))
    parts = caches._parts(apart, record, [0] * len(LISTS), first=True)
    for name, array in parts.items():
        array.tofile(folder / f"{name}.bin")
    mapped = {name: np.asarray(np.memmap(folder / f"{name}.bin", array.dtype, "r")) for name, array in parts.items()}
    return caches._split(mapped.pop, {"weighted": [False] * len(LISTS), "counts": {}, "coverage": {},
                                     "contradictions": {}}, None)


def cpu(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def say(what: str, rows: int, seconds: list[float]) -> None:
    each = [rows / s for s in seconds]
    print(f"{what:<22}{statistics.median(each):>12,.0f} rows per CPU-s   ({', '.join(f'{e:,.0f}' for e in each)})",
          flush=True)


def encoding(kind: str, rows: int, rounds: int, only: list[str], folder: Path) -> None:
    path, cache = folder / f"{kind}.parquet", folder / "cache"
    pq.write_table(log(rows, kind), path, row_group_size=GROUP, compression="zstd", write_page_checksum=True)
    config = settings(kind, path)
    data = config.settings.data

    def fit() -> Encoder:
        return Encoder.fit(config.schema, open_source(str(path), data, "train"), {})

    def encode() -> None:
        open_encoded(encoder, open_source(str(path), data, "train"), data, cache, True)

    encoder = fit()
    if "fit" in only:
        say(f"{kind}: fit", rows, [cpu(fit) for _ in range(rounds)])
    if "encode" in only:
        seconds = []
        for _ in range(rounds):
            seconds.append(cpu(encode))
            shutil.rmtree(cache)
        say(f"{kind}: encode", rows, seconds)


def loading(rows: int, rounds: int, folder: Path) -> None:
    apart = split(rows, folder)
    sides = {"loader, as cached": side_by_side(apart, folder), "loader, columns apart": apart}
    took = {name: [] for name in sides}

    def epoch(loader: Loader, n: int) -> None:
        for _ in loader.epoch(n):
            pass

    for n in range(2 * rounds):
        for name, made in sides.items():
            took[name].append(cpu(partial(epoch, Loader(made, layout(IDS), BATCH, shuffle=True), n)))
    for name, seconds in took.items():
        say(name, rows, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--loader-rows", type=int, default=2_000_000)
    parser.add_argument("--kinds", nargs="+", default=["integers", "texts"], choices=["integers", "texts"])
    parser.add_argument("--only", nargs="+", default=["fit", "encode", "loader"], choices=["fit", "encode", "loader"])
    parser.add_argument("--rounds", type=int, default=3)
    said = parser.parse_args()
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    with tempfile.TemporaryDirectory() as folder:
        if {"fit", "encode"} & set(said.only):
            for kind in said.kinds:
                encoding(kind, said.rows, said.rounds, said.only, Path(folder))
        if "loader" in said.only:
            loading(said.loader_rows, said.rounds, Path(folder))


if __name__ == "__main__":
    main()
