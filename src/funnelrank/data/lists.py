"""The list numbers of a schema, computed for some rows of the log from raw values and full lists."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from funnelrank.data import derive
from funnelrank.data.columns import Rows
from funnelrank.data.numbers import bucket_ids
from funnelrank.data.parse import Values
from funnelrank.data.vocab import hash_values, nulls
from funnelrank.schema import FIRST, PAD, Schema


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

    def rated(self, name: str, boundaries: Mapping[str, list[float]]) -> tuple[
            np.ndarray, np.ndarray, np.ndarray | None]:
        """Values whose rate a row asks for, as codes [m] uint64, known [m], offsets [n + 1] or None for one a row."""
        of = self._schema.features[self._schema.features[name].of]
        of_name = self._schema.features[name].of
        if of.kind == "number":
            ids = bucket_ids(self._rows.numbers(of_name)[0], boundaries[of_name], FIRST)
            return ids.astype(np.uint64), ids != PAD, None
        if of.kind == "bag":
            listed = self._rows.list(of_name)
            codes, known = self._hashed(listed.values)
            return codes, known, listed.offsets
        values = Values(self._rows.crossed(of_name)) if of.kind == "cross" else self._rows.ids(of_name).values
        return *self._hashed(values), None

    def counted(self, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What a rate of lists counts: values as codes [m] uint64, whether each is good [m], and of which row [m]."""
        f = self._schema.features[name]
        of, among, listed = self._schema.features[f.of], self._schema.features[f.among], self._rows.list(f.among)
        good = self._inside(f.among, f.within)
        row = self._keep((f.among, "rows"), lambda: derive.row_of(listed.offsets))
        if of.space == among.space:
            codes, known = self._hashed(listed.values)
        else:
            places, reader = self._rows.attribute(f.of, f.among)[1], self._rows.reader
            if of.kind == "id":
                codes, known = self._hashed(Values(reader.table_ids(f.of), places, (of.column, reader.family(f.of))))
            else:
                inside = reader.table_list(f.of)
                at, offsets = derive.gather(inside.offsets, places)
                codes, known = (a[at] for a in self._hashed(inside.values))
                good, row = (np.repeat(a, np.diff(offsets)) for a in (good, row))
        return codes[known], good[known], row[known]

    def _hashed(self, values: Values) -> tuple[np.ndarray, np.ndarray]:
        """Codes of values [m] uint64, equal where values are, and whether each is there [m]."""
        make = lambda: (hash_values(values.base), ~nulls(values.base))
        codes, known = make() if values.key is None else self._rows.reader.keep(("hashed", *values.key), make)
        return values.map(codes, 0), values.map(known, False)

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
        pairs = [(f.of, f.within) for f in self._schema.of_kind("share").values()]
        pairs += [(f.among, f.within) for f in self._schema.of_kind("rate").values() if f.task is None]
        names = list(dict.fromkeys(n for pair in pairs if self._schema.features[pair[0]].space == space for n in pair))
        overlap = self._keep((space, "overlap"), lambda: derive.Overlap([self._listed(n) for n in names]))
        return overlap.within(names.index(of), names.index(within))

    def _listed(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        return self._rows.codes(name), self._rows.list(name).offsets

    def _keep(self, key: tuple, make: Callable[[], Any]) -> Any:
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]
