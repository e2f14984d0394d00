"""Raw values of features: columns of the log, and columns of dimension tables looked up by a key or a list of keys.

Everything here is before vocabularies and before any cut: values in the family of their id space, lists in full.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from threading import RLock
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from funnelrank.data import derive
from funnelrank.data.parse import (
    MICROSECONDS,
    Ragged,
    Values,
    id_values,
    integer_gap,
    is_list,
    is_text,
    microseconds,
    missing_as_nan,
    numbers,
    offsets_of,
    one_chunk,
    ragged,
    taken,
    zero_for_null,
)
from funnelrank.data.tables import Dimension, canonical
from funnelrank.data.vocab import Family, hash_values, nulls, splitmix64, to_family
from funnelrank.errors import DataError, did_you_mean
from funnelrank.schema import Schema, table_of


class Ids(NamedTuple):
    """One value a row, null where there is none."""

    values: Values               # [n]
    missing_keys: int = 0        # rows whose key no row of the table has


class Reader:
    """Reads the raw values of a schema's features; keeps each table column in the form its features need."""

    def __init__(self, schema: Schema, tables: Mapping[str, Dimension], families: Mapping[str, Family]):
        self.schema, self.tables, self.families = schema, tables, families
        self._kept: dict[tuple, Any] = {}
        self._making = RLock()
        compared = [name for f in schema.of_kind("share", "match").values() for name in (f.of, f.within)]
        compared += [name for f in schema.of_kind("rate").values() if f.task is None for name in (f.among, f.within)]
        self.compared = list(dict.fromkeys(compared))

    def rows(self, table: pa.Table, where: str) -> Rows:
        return Rows(self, table, where)

    def blocks(self, table: pa.Table, where: str, size: int) -> Iterator[tuple[int, Rows]]:
        """The rows, at most `size` at a time, each with its first row's number; at least one block, maybe empty."""
        for start in range(0, max(table.num_rows, 1), size):
            block = table.slice(start, size)
            if len(block) < table.num_rows:
                yield start, Rows(self, block, f"{where}, of these rows {start} to {start + len(block) - 1}")
            else:
                yield start, Rows(self, block, where)

    def family(self, name: str) -> Family:
        return self.families[self.schema.features[name].space]

    def separator_of(self, column: str) -> str | None:
        """Where a log column of texts is cut, as the list feature that reads it says."""
        lists = self.schema.of_kind("bag", "sequence").values()
        return next((f.separator for f in lists if f.column == column), None)

    def lookup(self, name: str) -> tuple[str, str] | None:
        """Table and column that a feature reads, or None for a column of the log."""
        column = self.schema.features[name].column
        return tuple(column.split(".", 1)) if table_of(column) else None

    def table_ids(self, name: str) -> pa.Array:
        """One value a row of the table [r]."""
        table, column = self.lookup(name)
        family, space = self.family(name), self.schema.features[name].space
        return self.keep((table, column, family), lambda: id_values(
            self._column(table, column), family, f"table '{table}': column '{column}'", space))

    def table_list(self, name: str) -> Ragged:
        """Several values a row of the table."""
        table, column = self.lookup(name)
        f, family = self.schema.features[name], self.family(name)
        separators = (f.separator, getattr(f, "weight_separator", None))
        return self.keep((table, column, family, separators), lambda: ragged(
            self._column(table, column), family, f"table '{table}': column '{column}'", f.space, *separators))

    def table_numbers(self, name: str) -> np.ndarray:
        """One number a row of the table, and a null behind them for rows that are not there [r + 1]."""
        table, column = self.lookup(name)
        return self.keep((table, column, "number"), lambda: np.append(
            numbers(self._column(table, column), f"table '{table}': column '{column}'"), np.nan))

    def table_code(self, name: str) -> np.ndarray:
        """The code of each row of the table, equal where values are; -1 for null, and at the end for no row [r + 1]."""
        return self.keep((name, "code"), lambda: np.append(
            self.table_ids(name).dictionary_encode().indices.fill_null(-1).to_numpy().astype(np.int64), -1))

    def table_codes(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """The codes of each row of the table, each once, equal where values are: codes [m], offsets [r + 1]."""
        def make() -> tuple[np.ndarray, np.ndarray]:
            listed = self.table_list(name)
            coded = listed.values.array().dictionary_encode()
            codes, span = coded.indices.to_numpy().astype(np.int64), max(len(coded.dictionary), 1)
            pairs = np.unique(derive.row_of(listed.offsets) * span + codes)
            per_row = np.bincount(pairs // span, minlength=len(listed.offsets) - 1)
            return pairs % span, np.concatenate([[0], np.cumsum(per_row)])
        return self.keep((name, "codes"), make)

    def table_rows(self, table: str, keys: pa.Array, where: str) -> np.ndarray:
        """Row of the table for each key [n], -1 where there is none."""
        found = self.tables[table]
        return found.rows(to_family(keys, found.key.family, where, f"the key of table '{table}'"))

    def _column(self, table: str, column: str) -> pa.Array:
        found = self.tables[table].table
        if column not in found.column_names:
            raise DataError(f"table '{table}': no column '{column}'" + did_you_mean(column, found.column_names))
        return one_chunk(found.column(column))

    def keep(self, key: tuple, make: Callable[[], Any]) -> Any:
        """What `make` gives, made once for all rows, whichever of several threads asks first."""
        if key not in self._kept:
            with self._making:
                if key not in self._kept:
                    self._kept[key] = make()
        return self._kept[key]


class Rows:
    """The raw values of some rows of the log. Each column is parsed once, however many features read it."""

    def __init__(self, reader: Reader, table: pa.Table, where: str):
        self.reader, self._table, self._where = reader, table, where
        self._names = frozenset(table.column_names)
        self._kept: dict[tuple, Any] = {}

    def __len__(self) -> int:
        return self._table.num_rows

    def has(self, column: str) -> bool:
        return column in self._names

    def column(self, column: str) -> pa.Array:
        if not self.has(column):
            raise DataError(f"{self._where}: no column '{column}'" + did_you_mean(column, self._table.column_names))
        return self._keep((column,), lambda: one_chunk(self._table.column(column)))

    def place(self, column: str) -> str:
        return f"{self._where}: column '{column}'"

    def ids(self, name: str) -> Ids:
        """The values of an `id` feature, in the family of its space."""
        f = self.reader.schema.features[name]
        family = self.reader.family(name)
        if self.reader.lookup(name) is None:
            return self._keep((f.column, family), lambda: Ids(Values(
                id_values(self.column(f.column), family, self.place(f.column), f.space))))
        rows, missing = self._table_rows(name)
        return Ids(Values(self.reader.table_ids(name), rows, (f.column, family)), missing)

    def crossed(self, parts: list[str]) -> pa.Array:
        """The values of several `id` features as one 64-bit value; null where one of them is."""
        code, null = np.zeros(len(self), np.uint64), np.zeros(len(self), bool)
        for part in parts:
            values = self.ids(part).values
            code = splitmix64(code) ^ values.map(hash_values(values.base), 0)
            null |= values.map(nulls(values.base), True)
        return pa.array(splitmix64(code).view(np.int64), mask=null)

    def list(self, name: str) -> Ragged:
        """The values of a `bag` or `sequence` feature."""
        reader, f = self.reader, self.reader.schema.features[name]
        if f.kind == "sequence" and reader.lookup(name) is None and pa.types.is_map(self.column(f.column).type):
            raise DataError(f"{self.place(f.column)} maps ids to weights, and '{name}' is a sequence, which has none; "
                            "make it a bag")
        if reader.lookup(name) is None:
            separators = (f.separator, getattr(f, "weight_separator", None))
            return self._parsed(f.column, reader.family(name), f.space, *separators)
        return self._keep((name, "list"), lambda: self._looked_up(name))

    def numbers(self, name: str) -> tuple[np.ndarray, dict[str, int]]:
        """A `number` feature as float64 with NaN for missing [n], and its counts."""
        f, counts = self.reader.schema.features[name], {}
        if self.reader.lookup(name) is None:
            return missing_as_nan(numbers(self.column(f.column), self.place(f.column)), counts), counts
        rows, missing = self._table_rows(name)
        values = missing_as_nan(self.reader.table_numbers(name)[rows], counts)
        return values, counts | {"nulls": counts["nulls"] - missing, "missing_keys": missing}

    def gap(self, since: str, until: str) -> tuple[np.ndarray, dict[str, int]]:
        """until - since as float64 [n], in seconds where both are times; NaN where either is missing."""
        a, b = self.column(since), self.column(until)
        times = [pa.types.is_temporal(column.type) for column in (a, b)]
        if all(times):
            a, b = microseconds(a, self.place(since)), microseconds(b, self.place(until))
        elif any(times) and not (pa.types.is_null(a.type) or pa.types.is_null(b.type)):
            raise DataError(f"{self._where}: column '{since}' is {a.type} and column '{until}' is {b.type}; "
                            "a gap needs two times or two numbers")
        if pa.types.is_integer(a.type) and pa.types.is_integer(b.type):
            values = integer_gap(a, b)
        else:
            a, b = numbers(a, self.place(since)), numbers(b, self.place(until))
            with np.errstate(invalid="ignore"):
                values = np.where(np.isnan(a) | np.isnan(b), np.nan,
                                  np.where(np.isinf(a) | np.isinf(b), np.inf, b - a))
        counts: dict[str, int] = {}
        return missing_as_nan(values / MICROSECONDS if all(times) else values, counts), counts

    def codes(self, name: str) -> np.ndarray:
        """Whole numbers, equal where two values of one space are: of an `id` [n] (0 where null) or of a list [m].

        Comparable between the features of one space, within these rows.
        """
        features, space = self.reader.schema.features, self.reader.schema.features[name].space
        if self.reader.family(name) == "int":
            return self._keep((name, "codes"), lambda: zero_for_null(self._plain(name)).to_numpy())

        def make() -> dict[str, np.ndarray]:
            names = [n for n in self.reader.compared if features[n].space == space]
            arrays = [self._plain(n) for n in names]
            coded = pa.concat_arrays(arrays).dictionary_encode().indices
            coded = zero_for_null(coded).to_numpy()
            return dict(zip(names, np.split(coded, np.cumsum([len(a) for a in arrays])[:-1])))
        return self._keep((space, "codes"), make)[name]

    def attribute(self, name: str, within: str) -> tuple[np.ndarray, np.ndarray]:
        """For a match through a table: its row for each row of the log [n], and for each key in the list [m]."""
        (table, _), f = self.reader.lookup(name), self.reader.schema.features[within]
        listed = self._keep((within, table, "rows"), lambda: self.reader.table_rows(
            table, self.list(within).values.array(), self.place(f.column)))
        return self._table_rows(name)[0], listed

    def _plain(self, name: str) -> pa.Array:
        kind = self.reader.schema.features[name].kind
        return (self.ids(name) if kind == "id" else self.list(name)).values.array()

    def _table_rows(self, name: str) -> tuple[np.ndarray, int]:
        """Row of the feature's table for each row of the log, and how many keys it does not have."""
        f, (table, _) = self.reader.schema.features[name], self.reader.lookup(name)

        def make() -> tuple[np.ndarray, int]:
            column = self.column(f.by)
            if is_list(column.type):
                raise DataError(f"{self.place(f.by)} is {column.type}, and '{name}' looks up one value by it; "
                                "a list of keys is for a bag or a sequence")
            keys = canonical(column, self.place(f.by))
            rows = self.reader.table_rows(table, keys, self.place(f.by))
            return rows, int((rows < 0).sum()) - keys.null_count
        return self._keep((f.by, table, "rows"), make)

    def _parsed(self, column: str, family: Family | None, space: str, *separators: str | None) -> Ragged:
        return self._keep((column, family, separators), lambda: ragged(
            self.column(column), family, self.place(column), space, *separators))

    def _looked_up(self, name: str) -> Ragged:
        reader, f = self.reader, self.reader.schema.features[name]
        table, column = reader.lookup(name)
        separator = reader.separator_of(f.by)
        if not is_list(self.column(f.by).type) and separator is None:
            rows, missing = self._table_rows(name)
            values, offsets, weights, null = self._lists_of_rows(name, rows)
            return Ragged(values, offsets, weights, null | nulls(self.column(f.by)), missing_keys=missing)
        keys = self._parsed(f.by, reader.tables[table].key.family, f"key of table {table}", separator)
        rows = self._keep((f.by, table, "list rows"), lambda: reader.table_rows(
            table, keys.values.array(), self.place(f.by)))
        missing = int((rows < 0).sum())
        kind = reader.tables[table].table.schema.field(column).type
        if is_list(kind) or f.separator is not None and is_text(kind):
            values, offsets, weights, _ = self._lists_of_rows(name, rows)
            return Ragged(values, offsets[keys.offsets], weights, keys.null, keys.dropped, missing)
        base, offsets = reader.table_ids(name), keys.offsets
        known = rows >= 0
        if base.null_count:
            known &= ~np.append(nulls(base), True)[rows]
        dropped = len(rows) - int(known.sum())
        if dropped:
            rows, offsets = rows[known], offsets_of(known, offsets)
        return Ragged(Values(base, rows, (f.column, reader.family(name))), offsets, None, keys.null,
                      keys.dropped + dropped - missing, missing)

    def _lists_of_rows(self, name: str, rows: np.ndarray) -> tuple[Values, np.ndarray, np.ndarray | None, np.ndarray]:
        """The lists that rows [n] of a table hold, and whether each is null: values, offsets, weights, null."""
        listed = self.reader.table_list(name)
        places, offsets = derive.gather(listed.offsets, rows)
        inside = listed.values.places
        f = self.reader.schema.features[name]
        key = (f.column, self.reader.family(name), f.separator, getattr(f, "weight_separator", None))
        values = Values(listed.values.base, places if inside is None else inside[places], key)
        return values, offsets, taken(listed.weights, places), np.append(listed.null, False)[rows]

    def _keep(self, key: tuple, make: Callable[[], Any]) -> Any:
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]
