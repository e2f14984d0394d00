"""The generated log that both sides of a benchmark read: parquet files, made once per number of ids.

2 M rows: 23 id fields with ids by Zipf's law scattered over their spaces, three histories that live in the spaces of
three of the fields, 8 numbers, and two labels, click (16 %) and buy (1.6 %), that depend on some ids and numbers.
Ids are 1 .. size - 1 of each space, so that 0 is free for padding. meta.json says what is there.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from engine import FIELDS, LISTS, sizes

NUMBERS = 8
ROWS, PARTS, GROUP = 2_000_000, 8, 50_000           # rows, files, and rows of a row group
MOST = (50, 50, 20)                                 # entries of each history
CLICK, BUY = 0.16, 0.1                              # share of rows, and of clicks
VERSION = 1
SIGNAL = ("f0", "f2", "f5", "f8")                   # fields whose ids move the labels


def made(folder: Path, ids: int, rows: int = ROWS, strings: bool = False) -> Path:
    """The folder of a log with so many ids in all, made now if it is not there. `strings`: ids as texts."""
    target = folder / f"{'strings' if strings else 'ids'}-{ids}-{rows}"
    meta = describe(ids, rows)
    if (target / "meta.json").exists() and json.loads((target / "meta.json").read_text()) == meta:
        return target
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for part in range(PARTS):
        table = one_part(meta, part)
        pq.write_table(as_strings(table) if strings else table, target / f"part-{part}.parquet", row_group_size=GROUP)
    (target / "meta.json").write_text(json.dumps(meta))
    return target


def describe(ids: int, rows: int) -> dict:
    fields = {f"f{i}": size for i, size in enumerate(sizes(ids))}
    lists = {f"h{k}": {"space": f"f{f}", "mean": mean, "most": most}
             for k, ((f, mean), most) in enumerate(zip(LISTS.items(), MOST))}
    assert len(fields) == FIELDS
    return {"version": VERSION, "ids": ids, "rows": rows, "fields": fields, "lists": lists,
            "numbers": [f"n{i}" for i in range(NUMBERS)], "labels": ["click", "buy"]}


def one_part(meta: dict, part: int) -> pa.Table:
    rng = np.random.default_rng([meta["ids"], part])
    n = meta["rows"] // PARTS
    columns = {f: draw(rng, size, n) for f, size in meta["fields"].items()}
    numbers = {f: rng.standard_normal(n, np.float32) for f in meta["numbers"]}
    labels = clicks(rng, columns, numbers)
    arrays = {f: pa.array(v) for f, v in columns.items()}
    for name, said in meta["lists"].items():
        length = lengths(rng, said["mean"], said["most"], n)
        offsets = np.concatenate([[0], length.cumsum()]).astype(np.int32)
        values = draw(rng, meta["fields"][said["space"]], int(offsets[-1]))
        arrays[name] = pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))
    return pa.table(arrays | {f: pa.array(v) for f, v in (numbers | labels).items()})


def draw(rng: np.random.Generator, size: int, n: int) -> np.ndarray:
    """n ids of 1 .. size - 1."""
    return zipf(rng, size + 1, n) - 1


def zipf(rng: np.random.Generator, size: int, n: int) -> np.ndarray:
    """n ids of 2 .. size - 1: rank r has weight 1 / r, ranks are scattered over the ids."""
    rank = np.exp(rng.random(n) * np.log(size - 2)).astype(np.int64)
    return (2 + (rank * 2_654_435_761) % (size - 2)).astype(np.int32)


def lengths(rng: np.random.Generator, mean: float, most: int, n: int) -> np.ndarray:
    """Geometric, cut at `most`, with the mean asked for: E min(G, most) = g (1 - q^most), q = g / (1 + g)."""
    g = mean
    for _ in range(50):
        g = mean / (1 - (g / (1 + g)) ** most)
    return np.minimum(rng.geometric(1 / (1 + g), n) - 1, most)


def clicks(rng: np.random.Generator, columns: dict, numbers: dict) -> dict[str, np.ndarray]:
    """Labels: the rows whose signal and chance together stand highest; a buy is one of the clicks."""
    effects = np.random.default_rng(0).normal(0, 0.6, (2, len(SIGNAL), 997))
    n = len(numbers["n0"])
    taste = [sum(e[columns[f] % 997] for e, f in zip(by_field, SIGNAL)) for by_field in effects]
    score = taste[0] + 0.5 * numbers["n0"] + rng.logistic(size=n)
    click = score >= np.quantile(score, 1 - CLICK)
    score = np.where(click, taste[1] + 0.5 * numbers["n1"] + rng.logistic(size=n), -np.inf)
    buy = score >= np.quantile(score[click], 1 - BUY)
    return {"click": click.astype(np.int8), "buy": buy.astype(np.int8)}


def as_strings(table: pa.Table) -> pa.Table:
    """The same rows with ids as texts, as logs have them."""
    def text(array: pa.Array) -> pa.Array:
        if pa.types.is_list(array.type):
            return pa.ListArray.from_arrays(array.offsets, text(array.values))
        return array.cast(pa.string()) if array.type == pa.int32() else array
    return pa.table({name: text(table[name].combine_chunks()) for name in table.column_names})


def config(folder: Path, cache: Path, *, numbered: bool = True, lists: str = "off", **sections) -> dict:
    """What a funnelrank config says of this log. `numbered`: ids are used as they are, no vocabulary is fitted."""
    meta = json.loads((folder / "meta.json").read_text())
    space = lambda f: {"num_buckets": meta["fields"][f]} if numbered else {}
    features = {f: {"kind": "id", **space(f)} for f in meta["fields"]}
    features |= {h: {"kind": "sequence", "space": said["space"], "max_len": said["most"]}
                 for h, said in meta["lists"].items()}
    features |= dict.fromkeys(meta["numbers"], "number")
    return {"data": {"train": str(folder / "*.parquet"), "cache": str(cache)},
            "features": {"lists": lists, **features},
            "tasks": {"click": {}, "buy": {"after": "click"}}, **sections}
