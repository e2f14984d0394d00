"""Encoded rows as numpy arrays: what the Encoder makes, the cache keeps and the loader cuts into batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np


class List(NamedTuple):
    """One list feature of n rows, oldest id first. Row i holds values[offsets[i]:offsets[i + 1]].

        row 0  [5 7]     values  [5 7 2]
        row 1  []        offsets [0 2 2 3]
        row 2  [2]       weights [.5 1. 2.], or None where the feature has no weights
    """

    values: np.ndarray             # [m] int32
    offsets: np.ndarray            # [n + 1] int64, starts at 0
    weights: np.ndarray | None     # [m] float32


@dataclass
class Encoded:
    """n rows. Columns of ids, numbers and labels, and the order of lists, are those of the Encoder's Layout.

    counts holds whole numbers per feature (rows, nulls, oov, empty, ...), which add up over parts of a split.
    """

    ids: np.ndarray                # [n, F] int32; 0 null (PAD), 1 unseen in train (OOV)
    numbers: np.ndarray            # [n, N] float32, scaled, missing already filled
    lists: list[List]              # K
    scenario: np.ndarray           # [n] int32; 0 null, 1 unseen in train
    labels: np.ndarray             # [n, T] float32, NaN where not observed
    weight: np.ndarray             # [n] float32
    user: np.ndarray               # [n] int64, equal for equal users; -1 where the user is null or not given
    counts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def nbytes(self) -> int:
        arrays = [self.ids, self.numbers, self.scenario, self.labels, self.weight, self.user]
        return sum(a.nbytes for a in [*arrays, *(a for each in self.lists for a in each if a is not None)])
