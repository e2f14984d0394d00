"""How often train had a row's value of a column: what cold-start slices are cut by."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from funnelrank.data.ahead import each
from funnelrank.data.parse import is_list, one_chunk
from funnelrank.data.source import Source
from funnelrank.data.tables import canonical
from funnelrank.data.vocab import hash_values, nulls
from funnelrank.errors import DataError

NULL = -1


class Seen:
    """Rows of train that each value of a column stands on. Holds a hash and a count a distinct value."""

    def __init__(self, train: Source, column: str):
        self.column = column
        self.hashes, self.counts = np.empty(0, np.uint64), np.empty(0, np.int64)
        for unit, table in each(train, [column]):
            codes, missing = codes_of(table[column], f"{train.where(unit)}: column '{column}'")
            values, counts = np.unique(codes[~missing], return_counts=True)
            self.hashes, at = np.unique(np.concatenate([self.hashes, values]), return_inverse=True)
            self.counts = np.bincount(at, np.concatenate([self.counts, counts]), len(self.hashes)).astype(np.int64)

    def of(self, source: Source) -> np.ndarray:
        """Of each row [n] of a split, the rows of train with its value; NULL where it is null."""
        parts = [np.empty(0, np.int64)]
        for unit, table in each(source, [self.column]):
            codes, missing = codes_of(table[self.column], f"{source.where(unit)}: column '{self.column}'")
            at = np.minimum(np.searchsorted(self.hashes, codes), max(len(self.hashes) - 1, 0))
            known = self.hashes[at] == codes if len(self.hashes) else np.zeros(len(codes), bool)
            found = np.where(known, self.counts[at], 0) if len(self.hashes) else np.zeros(len(codes), np.int64)
            parts.append(np.where(missing, NULL, found))
        return np.concatenate(parts)


def codes_of(column: pa.ChunkedArray, where: str) -> tuple[np.ndarray, np.ndarray]:
    """A hash of each value [n] uint64, and which are null [n]. DataError for lists and fractions."""
    array = one_chunk(column)
    if is_list(array.type):
        raise DataError(f"{where} holds lists; rows are counted by a column of single values")
    array = canonical(array, where)
    return hash_values(array), nulls(array)


def groups_of(source: Source, column: str) -> np.ndarray:
    """A code [n] int64 of each row's value, equal where values are; -1 where it is null."""
    parts = []
    for unit, table in each(source, [column]):
        codes, missing = codes_of(table[column], f"{source.where(unit)}: column '{column}'")
        parts.append(np.where(missing, np.uint64(0), codes | np.uint64(1)))
    whole = np.concatenate(parts)
    values, at = np.unique(whole, return_inverse=True)
    return at - 1 if len(values) and values[0] == 0 else at
