"""The generated log as peers take it: one array a feature, histories padded with 0. This first load is not counted."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


def read(folder: str, length: int | None = None, parts: int | None = None) -> tuple[dict, dict, dict]:
    """meta.json; features: ids [n] int32, histories [n, most] int32, numbers [n] float32; labels [n] float32.

    length: pad every history to so many entries instead of its own most.
    """
    meta = json.loads((Path(folder) / "meta.json").read_text())
    tables = [pq.read_table(path) for path in sorted(Path(folder).glob("*.parquet"))[:parts]]
    table = pa.concat_tables(tables).combine_chunks()
    array = lambda name: table[name].combine_chunks() if table[name].num_chunks != 1 else table[name].chunk(0)
    features = {f: array(f).to_numpy() for f in (*meta["fields"], *meta["numbers"])}
    features |= {h: padded(array(h), length or said["most"]) for h, said in meta["lists"].items()}
    return meta, features, {t: array(t).to_numpy().astype(np.float32) for t in meta["labels"]}


def padded(lists: pa.ListArray, length: int) -> np.ndarray:
    return cut_to(lists.values.to_numpy(), lists.offsets.to_numpy(), length)


def cut_to(values: np.ndarray, offsets: np.ndarray, length: int) -> np.ndarray:
    """Lists [n] as an array [n, length], the first entries of each, padded with 0."""
    sizes = np.diff(offsets)
    out = np.zeros((len(sizes), length), np.int32)
    place = np.arange(len(values)) - np.repeat(offsets[:-1], sizes)
    kept = place < length
    out[np.repeat(np.arange(len(sizes)), sizes)[kept], place[kept]] = values[kept]
    return out
