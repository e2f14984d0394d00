"""The rows of one scenario: a source without all others."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from funnelrank.data.ahead import each
from funnelrank.data.parse import one_chunk
from funnelrank.data.sift import Sifted
from funnelrank.data.source import Source
from funnelrank.errors import DataError


class Only(Sifted):
    """Rows whose value of a column spells `value`. Holds the places of the others, 8 bytes each."""

    def __init__(self, source: Source, column: str, value: str):
        units, lost = [], {}
        for unit, table in each(source, [column]):
            others = np.flatnonzero(~(spelled(table[column]) == value))
            units.append(unit)
            if len(others):
                lost[unit] = others
        super().__init__(source, units, lost)
        self.only = {column: value}
        if not self.rows:
            raise DataError(f"data.{source.split}: no row has '{column}' = {value}")

    def fingerprint(self) -> dict[str, Any]:
        return super().fingerprint() | {"only": self.only}


def counted(source: Source, column: str) -> Counter:
    """How many rows each value of a column has, by how it is spelled; nulls are not counted."""
    found: Counter = Counter()
    for _, table in each(source, [column]):
        values, counts = np.unique(spelled(table[column].drop_null()), return_counts=True)
        found.update(dict(zip(values.tolist(), counts.tolist())))
    return found


def spelled(column: pa.ChunkedArray) -> np.ndarray:
    """Values as texts [n]; null is ''."""
    array = one_chunk(column)
    array = array.dictionary_decode() if pa.types.is_dictionary(array.type) else array
    return pc.fill_null(array.cast(pa.large_string()), "").to_numpy(zero_copy_only=False).astype(str)
