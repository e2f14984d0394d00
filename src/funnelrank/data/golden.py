"""The golden request: a few raw rows and what was served of them when the artefact was written.

    golden/rows.arrow      the log's columns that scoring reads, as their types were in training
    golden/scores.arrow    a column for each output

Whoever loads an artefact can so tell that rows still become the same numbers, and knows the types that columns have.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from funnelrank.data.ahead import each
from funnelrank.data.saved import read_saved, write_saved
from funnelrank.data.source import Source
from funnelrank.errors import DataError

ROWS = 16
CLOSE = 1e-5             # between machines and versions of torch; values beyond 1 by their size


class Golden(NamedTuple):
    rows: pa.Table
    scores: pa.Table

    def save(self, folder: Path) -> None:
        folder.mkdir()
        write_saved(self.rows, folder / "rows.arrow")
        write_saved(self.scores, folder / "scores.arrow")

    @classmethod
    def load(cls, folder: Path) -> Golden:
        golden = cls(read_saved(folder / "rows.arrow"), read_saved(folder / "scores.arrow"))
        if len(golden.rows) != len(golden.scores) or not len(golden.rows):
            raise DataError(f"{folder}: {len(golden.rows)} rows and {len(golden.scores)} scores do not fit together")
        return golden

    def difference(self, scores: pa.Table) -> tuple[float, str]:
        """The largest distance of other scores of the same rows from these, and the output that has it."""
        if scores.column_names != self.scores.column_names:
            return np.inf, "the names of outputs"
        apart = {}
        for name in scores.column_names:
            ours, theirs = (t[name].to_numpy().astype(np.float64) for t in (self.scores, scores))
            gap = np.abs(theirs - ours) / np.maximum(1, np.abs(ours))
            apart[name] = float(np.where(np.isnan(gap), np.inf, gap).max())
        worst = max(apart, key=apart.get)
        return apart[worst], worst


def some_rows(source: Source, columns: Sequence[str], most: int = ROWS) -> pa.Table:
    """Rows from all over the first unit of a source."""
    with closing(each(source, list(columns))) as units:
        _, table = next(iter(units))
    return table.take(pa.array(np.unique(np.linspace(0, len(table) - 1, most).astype(np.int64))))
