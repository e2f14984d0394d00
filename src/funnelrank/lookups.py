"""Encoded rows to one flat vector each, without torch: tables' rows side by side, lists pooled, numbers as they are.

What a server does before the graph, straight from files that are mapped into memory: by the kernel that training uses,
or by numpy where there is none.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, NamedTuple

import numpy as np

from funnelrank.kernels import ID, NUMBER, POOL, Item, Work, library

KINDS = {"ids": ID, "lists": POOL, "numbers": NUMBER}


class Bags(NamedTuple):
    """One list feature of n rows: row i holds values[offsets[i]:offsets[i + 1]]. See data.encoded.List."""

    values: np.ndarray             # [m] int32
    offsets: np.ndarray            # [n + 1] int64, from 0
    weights: np.ndarray | None     # [m] float32


@dataclass(frozen=True)
class Part:
    """One feature's columns of the flat vector."""

    feature: str
    source: Literal["ids", "numbers", "lists"]
    column: int                    # of the source
    width: int = 1
    table: str = ""
    offset: int = 0                # its id space: rows offset .. offset + size of the table
    size: int = 0
    mean: bool = False             # of a list
    least: int = 0                 # what a smaller id is read as


class Lookups:
    """ids [n, F] int32, numbers [n, N] float32 and lists [n] each -> flat [n, W] float32.

    `parts` stand in flat in their order. Raises IndexError for an id outside its space.
    """

    def __init__(self, parts: Sequence[Part], tables: Mapping[str, np.ndarray], threads: int = 1):
        self.parts, self.threads = list(parts), threads
        self.starts = list(accumulate((p.width for p in parts), initial=0))
        self.width = self.starts.pop()
        names = [name for name in tables if any(p.table == name for p in parts)]
        self.tables = {name: tables[name] for name in names}
        self.lists = [p.column for p in parts if p.source == "lists"]
        self.least = [(p.column, p.least) for p in parts if p.least]
        items = [Item(KINDS[p.source], self.lists.index(p.column) if p.source == "lists" else p.column,
                      names.index(p.table) if p.table else 0, p.offset, p.size, 0, start, p.width, int(p.mean))
                 for p, start in zip(parts, self.starts)]
        self._plan = np.array(items, np.int64).reshape(-1, len(Item._fields))
        P, N = ctypes.c_void_p, ctypes.c_int64
        self._arrays = ((P * len(names))(*map(_at, self.tables.values())), N(self.width),
                        (N * len(names))(*(t.shape[1] for t in self.tables.values())))
        self._tables, self._width, self._steps = map(ctypes.addressof, self._arrays)

    def __call__(self, ids: np.ndarray, numbers: np.ndarray, lists: Sequence[Bags]) -> np.ndarray:
        if self.least:
            ids = ids.copy()
            for column, least in self.least:
                np.maximum(ids[:, column], least, out=ids[:, column])
        mine = [lists[k] for k in self.lists]
        weighted = any(one.weights is not None for one in mine)
        mine = [one._replace(weights=np.ones(len(one.values), np.float32) if one.weights is None else one.weights)
                for one in mine] if weighted else mine
        out = np.empty((len(ids), self.width), np.float32)
        (self._by_numpy if library() is None else self._by_kernel)(ids, numbers, mine, out)
        return out

    def _by_kernel(self, ids: np.ndarray, numbers: np.ndarray, lists: Sequence[Bags], out: np.ndarray) -> None:
        ids, numbers = np.ascontiguousarray(ids, np.int32), np.ascontiguousarray(numbers, np.float32)
        values = offsets = weights = None
        if lists:
            ends = list(accumulate((len(one.values) for one in lists), initial=0))
            values = np.concatenate([one.values for one in lists])
            offsets = np.concatenate([*(one.offsets[:-1] + end for one, end in zip(lists, ends)), ends[-1:]])
            weights = None if lists[0].weights is None else np.concatenate([one.weights for one in lists])
        where = ctypes.c_void_p(_at(out))
        work = Work(len(ids), ids.shape[1], numbers.shape[1], 0 if values is None else len(values), len(self.tables),
                    len(self._plan), 0, self.threads, _at(ids), _at(numbers), _at(values), _at(offsets), _at(weights),
                    _at(self._plan), None, self._tables, self._steps, ctypes.addressof(where), self._width)
        if refused := library().rows_gather(ctypes.byref(work), len(lists)):
            said = f"'{self.parts[work.bad_item].feature}': {work.bad_id} is no id of it" if refused == 1 else (
                "offsets of lists lead outside their values" if refused == 2 else "no memory")
            raise MemoryError(said) if refused == 3 else IndexError(said)

    def _by_numpy(self, ids: np.ndarray, numbers: np.ndarray, lists: Sequence[Bags], out: np.ndarray) -> None:
        bags = dict(zip(self.lists, lists))
        for part, start in zip(self.parts, self.starts):
            to = out[:, start:start + part.width]
            if part.source == "numbers":
                to[:, 0] = numbers[:, part.column]
                continue
            values = ids[:, part.column] if part.source == "ids" else bags[part.column].values
            if len(values) and not 0 <= values.min() <= values.max() < part.size:
                raise IndexError(f"'{part.feature}': {values.min()} or {values.max()} is no id of it")
            vectors = self.tables[part.table][values.astype(np.int64) + part.offset]
            to[:] = vectors if part.source == "ids" else _pooled(vectors, bags[part.column], part.mean)


def _at(array: np.ndarray | None) -> int | None:
    """Where its numbers lie."""
    return None if array is None else array.__array_interface__["data"][0]


def _pooled(vectors: np.ndarray, bags: Bags, mean: bool) -> np.ndarray:
    """[m, D] -> [n, D]; an empty list is zeros."""
    sums = lambda of: np.stack([of[a:b].sum(0) for a, b in zip(bags.offsets, bags.offsets[1:])])
    pooled = sums(vectors if bags.weights is None else vectors * bags.weights[:, None])
    if not mean:
        return pooled
    total = np.diff(bags.offsets) if bags.weights is None else sums(bags.weights)
    return pooled / np.where(total > 0, total, 1)[:, None]
