"""Plain features, all together: hashed whole numbers and scaled numbers, each a column of the log without nulls.

Of few rows with many columns, as a request to score has them, numpy's calls for one feature after another take longer
than what they do; here one call does all features. Whatever is not plain in these rows is left to the Encoder, which
gives the same.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import groupby

import numpy as np

from funnelrank.data.columns import Rows
from funnelrank.data.numbers import Scaler
from funnelrank.data.vocab import Vocab, hashed_ids
from funnelrank.schema import Schema, table_of

Found = dict[str, tuple[np.ndarray, dict[str, int]]]
OTHERWISE = ("key", "default", "expression", "pool")        # keys of a feature that is more than its column


class Plain:
    """Which features may be plain, and how they are encoded."""

    def __init__(self, schema: Schema, vocabs: Mapping[str, Vocab], scalers: Mapping[str, Scaler],
                 boundaries: Collection[str]):
        bare = {n: f for n, f in schema.of_kind("id", "number").items()
                if not table_of(f.column) and all(getattr(f, key, None) is None for key in OTHERWISE)}
        self._hashed = [(n, f.column, vocabs[f.space].space.size) for n, f in bare.items() if f.kind == "id" and (
            vocabs[f.space].space.made, vocabs[f.space].family) == ("hash", "int")]
        numbers = [(n, f.column, scalers[n]) for n, f in bare.items() if f.kind == "number" and n not in boundaries]
        way = lambda one: (one[2].log, one[2].clip is None, one[2].clip)
        self._numbers = [list(alike) for _, alike in groupby(sorted(numbers, key=way), way)]

    def read(self, rows: Rows, only: Collection[str]) -> Found:
        """Ids [n] int32 or numbers [n] float32 of the features of `only` that are plain here, and their counts."""
        only, found = set(only), {}
        if here := self._here(rows, self._hashed, only, "iu"):
            names, columns, sizes = zip(*here)
            ids = hashed_ids(_side_by_side(columns, np.int64), np.array(sizes, np.uint64))
            found |= {n: (ids[:, i], {"nulls": 0, "oov": 0}) for i, n in enumerate(names)}
        for alike in self._numbers:
            if here := self._here(rows, alike, only, "if"):
                names, columns, scalers = zip(*here)
                values = _side_by_side(columns, np.float64)
                if np.isfinite(values).all():
                    scaled = Scaler.together(scalers, False)(values)
                    found |= {n: (scaled[:, i], {"nulls": 0, "nonfinite": 0}) for i, n in enumerate(names)}
        return found

    @staticmethod
    def _here(rows: Rows, some: Sequence[tuple], only: Collection[str], kinds: str) -> list[tuple]:
        """Those that are asked for and stand in their column as numbers, without a null: name, values [n], the rest."""
        return [(name, values, rest) for name, column, rest in some
                if name in only and (values := rows.plain(column)) is not None and values.dtype.kind in kinds]


def _side_by_side(columns: Sequence[np.ndarray], kind: type) -> np.ndarray:
    """k of [n] -> [n, k]"""
    out = np.empty((len(columns[0]), len(columns)), kind)
    for i, column in enumerate(columns):
        out[:, i] = column
    return out
