"""Histories held still: a split whose rows carry each user's lists as they were at his first row.

With live lists, a user's earlier outcomes are written into his later rows, and ranking *within* the user then measures
how a model reads its own answers back. Evaluating on frozen lists takes that away; nothing else of a row changes.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from funnelrank.data.ahead import each
from funnelrank.data.kinds import whole
from funnelrank.data.source import Source, Unit
from funnelrank.data.tables import KeyIndex, canonical
from funnelrank.errors import ConfigError, DataError
from funnelrank.schema import Schema, table_of

LAST = np.iinfo(np.int64).max        # a row without a time comes after all that have one


def frozen_columns(source: Source, schema: Schema) -> list[str]:
    """The log's columns that hold a user's lists, in the schema's order.

    Those are the columns of `sequence` features, and of `bag` features and numbers `pool`ed from lists that have the
    role `user`: list columns, texts that a separator cuts, and the list of keys that a table's column is looked up
    `by`. A bag of another role, such as the candidate's tags, belongs to the row and stays.
    """
    columns = []
    for f in schema.of_kind("sequence", "bag", "number").values():
        column = f.by if table_of(f.column) else f.column
        if column not in source.columns.names or (f.kind != "sequence" and f.role != "user") or (
                f.kind == "number" and f.pool is None):
            continue
        if pa.types.is_large_list(source.columns.field(column).type) or (not table_of(f.column) and f.separator):
            columns.append(column)
    return list(dict.fromkeys(columns))


def frozen(source: Source, schema: Schema) -> "FrozenSource":
    """The same rows, each with its user's lists as at that user's first row of the split.

    First is by schema.time where it is declared (ties, and rows without a time, by file order after the others), else
    by file order. Rows whose user is null keep their own lists. Reads the split twice, and holds one set of lists a
    user; raises DataError where these pass the memory budget, ConfigError where no user is declared. Without a
    column that freezes, the rows are the live ones.
    """
    if schema.user is None:
        raise ConfigError("data.user: frozen histories need the column that says who; name it, or set "
                          "evaluate.frozen: false")
    columns = frozen_columns(source, schema)
    source.require([schema.user, *columns, *([schema.time] if schema.time else [])],
                   {schema.user: "data.user", **({schema.time: "data.time"} if schema.time else {})})
    if not columns:
        return FrozenSource(source, schema.user, schema.time, pa.array([], pa.int64()), pa.table({}))
    users, rows = first_rows(source, schema.user, schema.time)
    return FrozenSource(source, schema.user, schema.time, users, _lists_at(source, columns, rows))


class FrozenSource:
    """A Source (same rows, units and columns) whose list columns do not move within a user."""

    def __init__(self, live: Source, user: str, time: str | None, users: pa.Array, lists: pa.Table):
        self.live, self.user, self.time = live, user, time
        self.split, self.name, self.memory, self.columns = live.split, live.name, live.memory, live.columns
        self.skipped = live.skipped
        self._users, self._lists = KeyIndex(users), lists

    @property
    def units(self) -> list[Unit]:
        return self.live.units

    @property
    def rows(self) -> int:
        return self.live.rows

    def is_part(self, unit: Unit) -> bool:
        return self.live.is_part(unit)

    def at_once(self, threads: int) -> int:
        return self.live.at_once(threads)

    def where(self, unit: Unit) -> str:
        return self.live.where(unit)

    def require(self, columns: list[str], who: dict[str, str] | None = None) -> None:
        self.live.require(columns, who)

    def changed(self) -> bool:
        return self.live.changed()

    def fingerprint(self) -> dict[str, Any]:
        return {"live": self.live.fingerprint(), "user": self.user, "time": self.time,
                "frozen": self._lists.column_names}

    def read(self, unit: Unit, columns: list[str]) -> pa.Table:
        """As Source.read, with the frozen columns taken from each user's first row."""
        still = [c for c in dict.fromkeys(columns) if c in self._lists.column_names]
        if not still:
            return self.live.read(unit, columns)
        # a list's own values are needed only where the user is null
        live = self.live.read(unit, list(dict.fromkeys([self.user, *columns])))
        rows = self._users.find(live[self.user], f"{self.where(unit)}, column '{self.user}'")
        own = np.flatnonzero(rows < 0)
        arrays = {}
        for c in still:
            taken = whole(self._lists[c]).take(pa.array(rows, mask=rows < 0))
            if len(own):
                both = pa.concat_arrays([taken, whole(live[c]).take(pa.array(own))])
                order = np.arange(len(rows))
                order[own] = len(rows) + np.arange(len(own))
                taken = both.take(pa.array(order))
            arrays[c] = taken
        return pa.table([arrays.get(c, live[c]) for c in columns], names=columns)


def first_rows(source: Source, user: str, time: str | None) -> tuple[pa.Array, np.ndarray]:
    """Each user [U] and the number of his first row [U] in the split, counted over all units."""
    merged: tuple[pa.Array, np.ndarray, np.ndarray] | None = None
    waiting: list[tuple[pa.Array, np.ndarray, np.ndarray]] = []
    start = 0
    for unit, table in each(source, [c for c in (user, time) if c]):
        where = source.where(unit)
        users = canonical(table[user], f"{where}, column '{user}'")
        times = sortable(table[time], f"{where}, column '{time}'") if time else np.zeros(unit.rows, np.int64)
        named = users.is_valid().to_numpy(zero_copy_only=False)
        waiting.append(_first((users.filter(pa.array(named)), times[named],
                               start + np.flatnonzero(named))))
        start += unit.rows
        if sum(len(w[0]) for w in waiting) > (len(merged[0]) if merged else 0):
            # merging once as much waits as there is already keeps the whole work near n log n
            merged, waiting = _merge(([merged] if merged else []) + waiting), []
    merged = _merge(([merged] if merged else []) + waiting)
    return merged[0], merged[2]


def _merge(parts: list[tuple[pa.Array, np.ndarray, np.ndarray]]) -> tuple[pa.Array, np.ndarray, np.ndarray]:
    users, times, rows = zip(*parts)
    return _first((pa.concat_arrays(users), np.concatenate(times), np.concatenate(rows)))


def _first(seen: tuple[pa.Array, np.ndarray, np.ndarray]) -> tuple[pa.Array, np.ndarray, np.ndarray]:
    """Of users, times and rows [n], each user's earliest."""
    users, times, rows = seen
    codes = users.dictionary_encode().indices.to_numpy()
    order = np.lexsort((rows, times, codes))
    keep = order[np.r_[True, np.diff(codes[order]) > 0][:len(order)]]
    return users.take(pa.array(keep)), times[keep], rows[keep]


def sortable(values: pa.ChunkedArray, where: str) -> np.ndarray:
    """Times [n] that sort: int64, or float64 where the column holds fractions; nulls last."""
    if pa.types.is_floating(values.type):
        return np.nan_to_num(pc.fill_null(values, np.inf).to_numpy(), nan=np.inf, posinf=np.inf, neginf=-np.inf)
    if pa.types.is_large_string(values.type):
        raise DataError(f"{where}: is text, which does not say what comes first; numbers, dates or timestamps would do")
    return canonical(values, where).fill_null(LAST).to_numpy()


def moments(values: pa.ChunkedArray, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Times [n] that sort, and where there is one [n] bool."""
    known = values.is_valid().to_numpy()
    if pa.types.is_floating(values.type):
        known = known & np.isfinite(values.fill_null(np.nan).to_numpy())
    return sortable(values, where), known


def _lists_at(source: Source, columns: list[str], rows: np.ndarray) -> pa.Table:
    """The list columns at the given rows [U] of the split, in that order."""
    order = np.argsort(rows)
    wanted, pieces, start, held = rows[order], [], 0, 0
    for unit, table in each(source, columns):
        a, b = np.searchsorted(wanted, [start, start + unit.rows])
        if a < b:
            pieces.append(table.take(pa.array(wanted[a:b] - start)))
            held += pieces[-1].nbytes
            if held > source.memory:
                raise DataError(f"data.{source.split}: the lists of {b:,} users pass data.memory "
                                f"({source.memory / 1e9:.3g} GB) while they are frozen; raise data.memory, or set "
                                "evaluate.frozen: false")
        start += unit.rows
    back = np.empty(len(order), np.int64)
    back[order] = np.arange(len(order))
    if not pieces:
        return pa.schema([source.columns.field(c) for c in columns]).empty_table()
    return pa.concat_tables(pieces).combine_chunks().take(pa.array(back)).combine_chunks()
