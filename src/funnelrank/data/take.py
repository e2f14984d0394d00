"""Rows of a split in any order, column by column, into arrays of their own: through csrc/take.cpp where it is built,
through numpy where it is not, with the same result.
"""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import numpy as np

from funnelrank.data.derive import gather
from funnelrank.data.encoded import Encoded
from funnelrank.kernels import library, sort_keys, struct

COLUMNS = {"ids": np.int32, "numbers": np.float32, "scenario": np.int32, "labels": np.float32, "weight": np.float32,
           "user": np.int64}
LISTS = {"offsets": np.int64, "values": np.int32, "weights": np.float32}
WORD = 4                             # bytes; every column is a number of them


class Taken(NamedTuple):
    """B rows, with the lists packed as in Batch."""

    columns: dict[str, np.ndarray]       # each [B, ...]
    values: np.ndarray                   # [n] int32
    offsets: np.ndarray                  # [K * B + 1] int64
    weights: np.ndarray | None           # [n] float32, where a list has weights; lists without weigh 1


_Column = struct(n="width stride", p="source to")
_List = struct(n="size stride", p="offsets values weights")
_Work = struct(n="rows batch columns lists", p="order column list starts offsets values weights")


def take(encoded: Encoded, rows: np.ndarray) -> Taken:
    """Rows number `rows` [B] int64. Raises IndexError for rows, or values of lists, that are not there."""
    native = library()
    return _plain(encoded, rows) if native is None or not _fits(encoded, rows) else _native(native, encoded, rows)


def _plain(encoded: Encoded, rows: np.ndarray) -> Taken:
    weighted = any(listed.weights is not None for listed in encoded.lists)
    values, weights, offsets, end = [np.empty(0, np.int32)], [np.empty(0, np.float32)], [np.zeros(1, np.int64)], 0
    for listed in encoded.lists:
        places, starts = gather(listed.offsets, rows)
        values.append(listed.values[places])
        offsets.append(starts[1:] + end)
        end += len(values[-1])
        if weighted:
            weights.append(np.ones(len(values[-1]), np.float32) if listed.weights is None else listed.weights[places])
    return Taken({name: getattr(encoded, name)[rows] for name in COLUMNS}, np.concatenate(values),
                 np.concatenate(offsets), np.concatenate(weights) if weighted else None)


def _fits(encoded: Encoded, rows: np.ndarray) -> bool:
    """The arrays are laid out as the library reads them: rows and offsets at any distance, what is in them together."""
    n = len(encoded)
    apart = [(getattr(encoded, name), kind) for name, kind in COLUMNS.items()]
    apart += [(listed.offsets, LISTS["offsets"]) for listed in encoded.lists]
    together = [(rows, np.int64), *((array, LISTS[name]) for listed in encoded.lists for name in ("values", "weights")
                                    if (array := getattr(listed, name)) is not None)]
    return (all(array.dtype == kind and array.flags.aligned for array, kind in [*apart, *together])
            and all(array.flags.c_contiguous for array, _ in together)
            and all(array[:1].flags.c_contiguous for array, _ in apart)
            and all(len(getattr(encoded, name)) == n for name in COLUMNS)
            and all(len(listed.offsets) == n + 1 and (listed.weights is None or len(listed.weights) == len(
                listed.values)) for listed in encoded.lists))


def _native(native: ctypes.CDLL, encoded: Encoded, rows: np.ndarray) -> Taken:
    batch, lists = len(rows), encoded.lists
    columns = {name: np.empty((batch, *getattr(encoded, name).shape[1:]), kind) for name, kind in COLUMNS.items()}
    pairs = [(getattr(encoded, name), out) for name, out in columns.items() if out.size]
    column = (_Column * len(pairs))(*(_Column(out.nbytes // batch // WORD, source.strides[0], source.ctypes.data,
                                              out.ctypes.data) for source, out in pairs))
    listed = (_List * len(lists))(*(_List(len(x.values), x.offsets.strides[0], x.offsets.ctypes.data,
                                          x.values.ctypes.data, None if x.weights is None else x.weights.ctypes.data)
                                    for x in lists))
    starts, offsets = np.empty(len(lists) * batch, np.int64), np.empty(len(lists) * batch + 1, np.int64)
    work = _Work(len(encoded), batch, len(pairs), len(lists), rows.ctypes.data, ctypes.addressof(column),
                 ctypes.addressof(listed), starts.ctypes.data, offsets.ctypes.data)
    size = native.take_rows(ctypes.byref(work))
    if size < 0:
        raise IndexError("a row, or the values of its list, lies outside the split")
    values = np.empty(size, np.int32)
    weights = np.empty(size, np.float32) if any(x.weights is not None for x in lists) else None
    work.values, work.weights = values.ctypes.data, None if weights is None else weights.ctypes.data
    native.take_values(ctypes.byref(work))
    return Taken(columns, values, offsets, weights)


def shuffled(rows: int, seed: np.random.SeedSequence) -> np.ndarray:
    """A permutation of 0 .. rows - 1, int64: the order of random keys that carry their row in the low bits.

    Every machine gives the same. Each order is as likely but for keys with equal random bits, which keep their order:
    of 2^20 rows 2^-5 pairs in the mean.
    """
    bits = np.uint64(rows.bit_length())
    keys = np.random.Philox(seed).random_raw(rows)
    keys <<= bits
    keys |= np.arange(rows, dtype=np.uint64)
    sort_keys(keys)
    keys &= (np.uint64(1) << bits) - np.uint64(1)
    return keys.view(np.int64)
