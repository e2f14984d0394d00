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
from funnelrank.data.expressions import evaluate
from funnelrank.data.kinds import column_type, pairs_as_map
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
from funnelrank.data.readings import at_keys, known_numbers, number_lists, pooled, vectors
from funnelrank.data.tables import Dimension, canonical, text_codes
from funnelrank.data.vocab import Family, hash_values, is_whole, nulls, splitmix64, to_family
from funnelrank.errors import DataError, did_you_mean
from funnelrank.schema import Schema, is_number, table_of

INT, FLOAT = pa.int64(), pa.float64()


class Ids(NamedTuple):
    """One value a row, null where there is none."""

    values: Values               # [n]
    missing_keys: int = 0        # rows whose key no row of the table has
    filled: int = 0              # rows that have the feature's default


class Reader:
    """Reads the raw values of a schema's features; keeps each table column in the form its features need.

    boundaries   of numbers that are cut, by feature; while those of a list are not known, a number in it is its 64 bits
    """

    def __init__(self, schema: Schema, tables: Mapping[str, Dimension], families: Mapping[str, Family],
                 boundaries: Mapping[str, list[float]] | None = None):
        self.schema, self.tables, self.families, self.boundaries = schema, tables, families, boundaries or {}
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

    def base_key(self, name: str) -> tuple:
        """What tells the values of a table's column, as this feature reads them, from all others."""
        f, cut = self.schema.features[name], self.schema.cut_as(name)
        return (f.column, f"cut as {cut}" if cut else self.family(name))

    def table_ids(self, name: str) -> pa.Array:
        """One value a row of the table [r]."""
        table, column = self.lookup(name)
        family, where = self.family(name), f"table '{table}': column '{column}'"
        if self.schema.cut_as(name):
            return self.keep(self.base_key(name), lambda: self.cut(name, missing_as_nan(
                numbers(self._column(table, column), where), {})))
        return self.keep((table, column, family), lambda: id_values(
            self._column(table, column), family, where, self.schema.features[name].space))

    def table_list(self, name: str) -> Ragged:
        """Several values a row of the table."""
        table, column = self.lookup(name)
        f, family, where = self.schema.features[name], self.family(name), f"table '{table}': column '{column}'"
        if self.schema.cut_as(name):
            return self.keep((*self.base_key(name), f.separator), lambda: self.cut_lists(
                name, self._column(table, column), where))
        separators = (f.separator, getattr(f, "weight_separator", None))
        return self.keep((table, column, family, separators), lambda: ragged(
            self._column(table, column), family, where, f.space, *separators))

    def cut(self, name: str, values: np.ndarray) -> pa.Array:
        """Numbers [n] as which of the feature's buckets they fall into, from 0 on; NaN is null."""
        boundaries, missing = self.boundaries.get(self.schema.cut_as(name)), np.isnan(values)
        codes = (values + 0.0).view(np.int64) if boundaries is None else np.searchsorted(
            np.asarray(boundaries), values, "right").astype(np.int64)
        return pa.array(codes, mask=missing)

    def cut_lists(self, name: str, column: pa.Array, where: str) -> Ragged:
        """Lists of numbers as lists of buckets. Numbers that are missing or not finite are dropped."""
        values, offsets, null = number_lists(column, where, self.schema.features[name].separator)
        values, offsets, dropped = known_numbers(values, offsets)
        return Ragged(Values(self.cut(name, values)), offsets, None, null, dropped)

    def table_rows_of(self, name: str, rows: np.ndarray) -> pa.Array:
        """The table's column, as it is, in these of its rows [n]; null for -1."""
        table, column = self.lookup(name)
        return self._column(table, column).take(pa.array(rows, mask=rows < 0))

    def table_vectors(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """One vector a row of the table, one of nulls behind them [r + 1, size], and which rows have none [r + 1]."""
        table, column = self.lookup(name)
        f = self.schema.features[name]

        def make() -> tuple[np.ndarray, np.ndarray]:
            found, missing = vectors(self._column(table, column), f.size, f"table '{table}': column '{column}'",
                                     f.separator)
            return np.concatenate([found, np.full((1, f.size), np.nan)]), np.append(missing, True)
        return self.keep((table, column, "vector", f.separator), make)

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
        return self._keep((column,), lambda: pairs_as_map(one_chunk(self._table.column(column)), self.place(column)))

    def plain(self, column: str) -> np.ndarray | None:
        """A column of int64 or float64 without a null, as it is; None for any other, or where there is none."""
        if not self.has(column):
            return None
        found = self.column(column)
        return found.to_numpy() if not found.null_count and found.type in (INT, FLOAT) else None

    def place(self, column: str) -> str:
        return f"{self._where}: column '{column}'"

    def ids(self, name: str) -> Ids:
        """The values of an `id` feature, in the family of its space."""
        f = self.reader.schema.features[name]
        family = self.reader.family(name)
        if f.key is not None:
            column, missing = self._at_key(name)
            found = Ids(Values(id_values(column, family, self.place(f.column), f.space)), missing)
        elif self.reader.lookup(name) is None:
            found = self._keep((f.column, family), lambda: Ids(Values(
                id_values(self.column(f.column), family, self.place(f.column), f.space))))
        else:
            rows, missing = self._table_rows(name)
            found = Ids(Values(self.reader.table_ids(name), rows, (f.column, family)), missing)
        return found if f.default is None else self._with_default(name, found)

    def crossed(self, name: str) -> pa.Array:
        """The values that a `cross` is of as one 64-bit value; null where one of them is, unless it has a default."""
        f = self.reader.schema.features[name]
        parts = [self._to_cross(part) for part in f.of or ()]
        parts += [Values(to_family(canonical(self.column(c), self.place(c)), "string", self.place(c), "a cross"))
                  for c in f.columns or ()]
        hashes, null = [], np.zeros(len(self), bool)
        for values in parts:
            part, without = values.map(hash_values(values.base), 0), values.map(nulls(values.base), True)
            if f.default is not None:
                part, without = np.where(without, hash_values(_default(f.default, values.base.type)), part), False
            hashes.append(part)
            null |= without
        return pa.array(crossed_codes(hashes).view(np.int64), mask=null)

    def _to_cross(self, name: str) -> Values:
        """An id, or which bucket of its own a number falls into."""
        if self.reader.schema.features[name].kind == "id":
            return self.ids(name).values
        return self._keep((name, "cut"), lambda: Values(self.reader.cut(name, self.numbers(name)[0])))

    def list(self, name: str) -> Ragged:
        """The values of a `bag` or `sequence` feature."""
        if self.reader.schema.features[name].default is None:
            return self._list(name)
        return self._keep((name, "list with default"), lambda: self._list_with_default(name, self._list(name)))

    def _list(self, name: str) -> Ragged:
        reader, f = self.reader, self.reader.schema.features[name]
        if reader.lookup(name) is None and reader.schema.cut_as(name):
            return self._keep((*reader.base_key(name), f.separator), lambda: reader.cut_lists(
                name, self.column(f.column), self.place(f.column)))
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
        missing = None
        if f.expression is not None:
            values = self._computed(name)
        elif f.key is not None or f.pool is not None:
            column, missing = self._at_key(name) if f.key is not None else self._raw(name)
            values = numbers(column, self.place(f.column)) if f.pool is None else pooled(
                *number_lists(column, self.place(f.column), f.separator)[:2], f.pool)
        elif self.reader.lookup(name) is None:
            values = numbers(self.column(f.column), self.place(f.column))
        else:
            rows, missing = self._table_rows(name)
            values = self.reader.table_numbers(name)[rows]
        values = missing_as_nan(values, counts)
        if self.reader.lookup(name) is not None:
            counts |= {"nulls": counts["nulls"] - missing, "missing_keys": missing}
        return values if f.default is None else np.where(np.isnan(values), f.default, values), counts

    def _computed(self, name: str) -> np.ndarray:
        """What a number's expression comes to [n]: of columns, and of other numbers with their defaults."""
        features = self.reader.schema.features

        def number(other: str) -> np.ndarray:
            if is_number(other, name, features):
                return self.numbers(other)[0]
            return missing_as_nan(numbers(self.column(other), self.place(other)), {})
        return evaluate(features[name].expression, number, len(self))

    def vector(self, name: str) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
        """A `vector` feature as float64 with NaN for missing [n, size], which rows are missing [n], and its counts."""
        f, counts = self.reader.schema.features[name], {}
        if self.reader.lookup(name) is None:
            values, null = vectors(self.column(f.column), f.size, self.place(f.column), f.separator)
            counts["nulls"] = int(null.sum())
        else:
            rows, missing = self._table_rows(name)
            values, null = (made[rows] for made in self.reader.table_vectors(name))
            counts |= {"nulls": int(null.sum()) - missing, "missing_keys": missing}
        wild = np.isinf(values)
        counts["nonfinite"] = int(wild.any(1).sum())
        values = np.where(wild, np.nan, values)
        if f.default is not None:
            return np.where(np.isnan(values), f.default, values), np.zeros(len(null), bool), counts
        return values, null, counts

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
            coded = text_codes(pa.concat_arrays(arrays))
            return dict(zip(names, np.split(coded, np.cumsum([len(a) for a in arrays])[:-1])))
        return self._keep((space, "codes"), make)[name]

    def attribute(self, name: str, within: str) -> tuple[np.ndarray, np.ndarray]:
        """For a match through a table: its row for each row of the log [n], and for each key in the list [m]."""
        (table, _), f = self.reader.lookup(name), self.reader.schema.features[within]
        listed = self._keep((within, table, "rows"), lambda: self.reader.table_rows(
            table, self.list(within).values.array(), self.place(f.column)))
        return self._table_rows(name)[0], listed

    def _at_key(self, name: str) -> tuple[pa.Array, int]:
        """What the maps of a feature's column have at each row's key, and how many rows a table does not have."""
        f = self.reader.schema.features[name]
        column, missing = self._raw(name)
        return at_keys(column, self.column(f.key), self.place(f.column), f.separator, f.key_separator), missing

    def _raw(self, name: str) -> tuple[pa.Array, int]:
        """A feature's column of the log, or of a table, as it is, and how many rows a table does not have."""
        if self.reader.lookup(name) is None:
            return self.column(self.reader.schema.features[name].column), 0
        rows, missing = self._table_rows(name)
        return self.reader.table_rows_of(name, rows), missing

    def _with_default(self, name: str, found: Ids) -> Ids:
        default, (base, places, key) = self.reader.schema.features[name].default, found.values
        if places is None:
            values = Values(base.fill_null(_default(default, base.type)[0]) if base.null_count else base)
            return Ids(values, found.missing_keys, base.null_count)
        without = found.values.map(nulls(base), True)
        key = (*key, "default", default)
        return Ids(Values(self.reader.keep(key, lambda: _one_more(base, default)),
                          np.where(without, len(base), places), key), found.missing_keys, int(without.sum()))

    def _list_with_default(self, name: str, listed: Ragged) -> Ragged:
        """The same with one element, of weight 1, in each list that has none."""
        f, reader, (base, places, key) = self.reader.schema.features[name], self.reader, listed.values
        default = f.default if not reader.schema.cut_as(name) else reader.cut(
            name, np.array([f.default], np.float64))[0].as_py()
        counts = np.diff(listed.offsets)
        offsets = np.concatenate([[0], np.cumsum(np.maximum(counts, 1))])
        at = np.arange(listed.offsets[-1]) + np.repeat(offsets[:-1] - listed.offsets[:-1], counts)
        filled = np.full(offsets[-1], len(base))
        filled[at] = np.arange(len(base)) if places is None else places
        weights = listed.weights
        if weights is not None:
            weights = np.ones(offsets[-1])
            weights[at] = listed.weights
        key = (*key, "default", default) if key else None
        whole = reader.keep(key, lambda: _one_more(base, default)) if key else _one_more(base, default)
        return listed._replace(values=Values(whole, filled, key), offsets=offsets, weights=weights,
                               filled=int((counts == 0).sum()))

    def _plain(self, name: str) -> pa.Array:
        kind = self.reader.schema.features[name].kind
        return (self.ids(name) if kind == "id" else self.list(name)).values.array()

    def _table_rows(self, name: str) -> tuple[np.ndarray, int]:
        """Row of the feature's table for each row of the log, and how many keys it does not have."""
        f, (table, _) = self.reader.schema.features[name], self.reader.lookup(name)

        def make() -> tuple[np.ndarray, int]:
            column = self.column(f.by)
            if is_list(column.type):
                raise DataError(f"{self.place(f.by)} is {column_type(column.type)}, and '{name}' looks up one value "
                                "by it; a list of keys is for a bag or a sequence")
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
        return Ragged(Values(base, rows, reader.base_key(name)), offsets, None, keys.null,
                      keys.dropped + dropped - missing, missing)

    def _lists_of_rows(self, name: str, rows: np.ndarray) -> tuple[Values, np.ndarray, np.ndarray | None, np.ndarray]:
        """The lists that rows [n] of a table hold, and whether each is null: values, offsets, weights, null."""
        listed = self.reader.table_list(name)
        places, offsets = derive.gather(listed.offsets, rows)
        inside = listed.values.places
        f = self.reader.schema.features[name]
        key = (*self.reader.base_key(name), f.separator, getattr(f, "weight_separator", None))
        values = Values(listed.values.base, places if inside is None else inside[places], key)
        return values, offsets, taken(listed.weights, places), np.append(listed.null, False)[rows]

    def _keep(self, key: tuple, make: Callable[[], Any]) -> Any:
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]


def _default(value: str | int, kind: pa.DataType) -> pa.Array:
    """A default as a column [1] of values of this type, or as text where it is no whole number."""
    one = pa.array([str(value)], pa.large_string())
    return one.cast(pa.int64()) if pa.types.is_int64(kind) and is_whole(str(value)) else one


def _one_more(base: pa.Array, default: str | int) -> pa.Array:
    return pa.concat_arrays([base, _default(default, base.type)])


def crossed_codes(hashes: list[np.ndarray]) -> np.ndarray:
    """One 64-bit value [n] uint64 of the hashes of several values, each [n] uint64; their order counts."""
    code = np.zeros_like(hashes[0])
    for part in hashes:
        code = splitmix64(code) ^ part
    return splitmix64(code)
