"""The list numbers of a schema, computed for some rows of the log from raw values and full lists."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from funnelrank.data import derive
from funnelrank.data.columns import Rows
from funnelrank.data.vocab import nulls
from funnelrank.schema import Schema


class ListNumbers:
    """Shares what several numbers need: which elements of one list stand in another, and rows of elements."""

    def __init__(self, schema: Schema, rows: Rows):
        self._schema, self._rows = schema, rows
        self._kept: dict[tuple, Any] = {}

    def length(self, name: str) -> np.ndarray:
        """Ids in the list [n] float64."""
        return derive.lengths(self._rows.list(self._schema.features[name].of).offsets).astype(np.float64)

    def share(self, name: str) -> np.ndarray:
        """Share of the latest ids of one list in another [n], 0 .. 1."""
        f = self._schema.features[name]
        total = self._keep((f.of, f.within), lambda: derive.running(self._inside(f.of, f.within)))
        end = getattr(self._schema.features[f.of], "latest", "last")
        return derive.share(total, self._rows.list(f.of).offsets, f.last, end)

    def match(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Matches of the row's own id or ids in a list: their count [n], and the recency of the latest [n], 0 .. 1."""
        f = self._schema.features[name]
        of, within = self._schema.features[f.of], self._schema.features[f.within]
        offsets = self._rows.list(f.within).offsets
        if of.space != within.space:
            return self._attribute_match(f.of, f.within, offsets, within.latest)
        if of.kind == "id":
            own = self._rows.ids(f.of).values
            known = own.map(~nulls(own.base), False)
            return derive.match_own(self._rows.codes(f.of), known, self._rows.codes(f.within), offsets, within.latest)
        both = derive.Overlap([self._listed(f.within), self._listed(f.of)])
        elements = np.flatnonzero(both.within(0, 1))
        rows = self._keep((f.within, "rows"), lambda: derive.row_of(offsets))
        return derive.match(elements, rows[elements], offsets, within.latest)

    def _attribute_match(self, of: str, within: str, offsets: np.ndarray, end: str) -> tuple[np.ndarray, np.ndarray]:
        """The same, once for each attribute that an element's key has in common with the row's own key."""
        own, listed = self._rows.attribute(of, within)
        reader = self._rows.reader
        if self._schema.features[of].kind == "id":
            code = reader.table_code(of)
            return derive.match_own(code[own], code[own] >= 0, code[listed], offsets, end)
        return derive.match_sets(own, listed, offsets, *reader.table_codes(of), end)

    def _inside(self, of: str, within: str) -> np.ndarray:
        space = self._schema.features[of].space
        shares = [f for f in self._schema.of_kind("share").values() if self._schema.features[f.of].space == space]
        names = list(dict.fromkeys(n for f in shares for n in (f.of, f.within)))
        overlap = self._keep((space, "overlap"), lambda: derive.Overlap([self._listed(n) for n in names]))
        return overlap.within(names.index(of), names.index(within))

    def _listed(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        return self._rows.codes(name), self._rows.list(name).offsets

    def _keep(self, key: tuple, make: Callable[[], Any]) -> Any:
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]
