"""Exact keys, and the dimension tables that are looked up by them.

`canonical` brings id values of any column type into one of two families, int64 or large_string; `KeyIndex` finds the
position of such values among distinct keys (vocabularies use it too); a `Dimension` is a table of attributes behind
one. Positions are exact for the whole int64 range and for any text.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from funnelrank.data.ahead import each
from funnelrank.data.kinds import column_type, conform, reading, whole, widened
from funnelrank.data.saved import read_saved, write_saved
from funnelrank.data.source import Source, open_source
from funnelrank.errors import DataError
from funnelrank.kernels import library
from funnelrank.schema import Schema, table_of
from funnelrank.settings import Data

INT, STRING = pa.int64(), pa.large_string()
EXACT = 2**53                # a double holds every whole number up to here
DENSE, ALWAYS_DENSE = 4, 1_000_000
HASH_BYTES = 1 << 22         # bytes of text hashed at a time, beside one text at least; 32 times that in memory
P = 0x9E3779B97F4A7C15       # odd, so it has an inverse modulo 2**64
P_INVERSE = pow(P, -1, 2**64)


def canonical(array: pa.Array | pa.ChunkedArray, where: str) -> pa.Array:
    """Id values [n] as int64 or large_string [n], nulls kept; `where` begins the sentence of an error.

    int64: every integer, boolean, whole float (NaN is null), whole decimal, date (days), time, duration and timestamp
    (microseconds); a column of nulls only is int64, too. large_string: text, and bytes that are UTF-8. Dictionaries
    are decoded. Raises DataError for fractions, infinities, floats beyond 2^53 (they no longer tell neighbours apart),
    integers beyond 64 bits with sign, lists and structs.
    """
    kind = widened(array.type)
    array = conform(whole(array), kind, where)
    if kind in (INT, STRING):
        return array
    if pa.types.is_floating(kind):
        return _whole(array, where)
    if pa.types.is_date32(kind):
        return array.cast(pa.int32()).cast(INT)
    times = pa.types.is_temporal(kind) and not pa.types.is_interval(kind)
    if pa.types.is_boolean(kind) or times or pa.types.is_null(kind):
        return array.cast(INT)
    raise DataError(f"{where}: is of type {column_type(kind)}, which cannot be an id; whole numbers or text would do")


def _whole(array: pa.Array, where: str) -> pa.Array:
    values = array.fill_null(np.nan).to_numpy(zero_copy_only=False)
    missing = np.isnan(values)
    bad = ~missing & ((np.floor(values) != values) | (np.abs(values) > EXACT))
    if bad.any():
        first = int(bad.argmax())
        why = ("floats beyond 2^53 no longer tell neighbouring ids apart; store ids as integers or text"
               if np.isfinite(values[first]) and values[first] == np.floor(values[first])
               else "ids are whole numbers or text")
        raise DataError(f"{where}: holds {float(values[first])!r} in {int(bad.sum())} rows (first: row {first}); {why}")
    return pa.array(np.where(missing, 0, values).astype(np.int64), mask=missing)


class KeyIndex:
    """Where each distinct key stands: key values [K], int64 or large_string, no nulls -> 0 .. K-1.

    Integers whose range is narrow for their number are found in a lookup table. Other keys are found by a hash and then
    compared, so that equal hashes never mix up two of them: by csrc/keys.cpp where it is built, else by
    binary search over integers, and over a 64-bit hash of texts.
    """

    def __init__(self, values: pa.Array):
        values = canonical(values, "keys")
        assert values.null_count == 0, "keys hold no nulls"
        self.values = values
        self.family = "int" if values.type == INT else "string"
        self.table = self.slots = None
        if self.family == "int":
            keys = values.to_numpy()
            low, high = (int(keys.min()), int(keys.max())) if len(keys) else (0, -1)
            if high - low + 1 <= DENSE * len(keys) + ALWAYS_DENSE:
                self.low = low
                self.table = np.full(high - low + 2, -1, np.int64)      # the last cell answers for everything outside
                self.table[keys - low] = np.arange(len(keys))
                return
        if len(values) and (native := library()) is not None:
            self.slots = _slots(values)
            self.repeated = native.keys_index(len(values), *_pointers(values), len(self.slots), self.slots.ctypes.data,
                                              None)
            return
        keys = _hashes(values) if self.family == "string" else keys
        self.order = np.argsort(keys, kind="stable")
        self.sorted = keys[self.order]

    def __len__(self) -> int:
        return len(self.values)

    def is_distinct(self) -> bool:
        """Whether each key is there once, as it must be."""
        if self.table is not None:
            return np.count_nonzero(self.table >= 0) == len(self)
        if self.slots is not None:
            return not self.repeated
        twice = self.sorted[1:] == self.sorted[:-1]
        if self.family == "int" or not twice.any():
            return not twice.any()
        same = self.values.take(pa.array(self.order[np.append(twice, False) | np.append(False, twice)]))
        return pc.count_distinct(same).as_py() == len(same)              # equal hashes of different texts

    def find(self, query: pa.Array | pa.ChunkedArray, where: str = "ids") -> np.ndarray:
        """Positions [n] int64 of the query's values [n]; -1 for nulls and for values that are no key.

        Raises DataError where text is looked up among whole numbers, or the other way round.
        """
        query = canonical(query, where)
        if query.null_count == len(query) or not len(self):
            return np.full(len(query), -1, np.int64)
        if (query.type == INT) != (self.family == "int"):
            names = {"int": "whole numbers", "string": "text"}
            raise DataError(f"{where}: holds {names['int' if query.type == INT else 'string']}, but the keys it is "
                            f"looked up among are {names[self.family]}; make both the same type")
        if self.slots is not None:
            found = self._find_hashed(query)
        elif self.family == "string":
            found = self._find_texts(query)
        else:
            found = self._find_ints((query.fill_null(0) if query.null_count else query).to_numpy())
        if query.null_count:
            found[query.is_null().to_numpy(zero_copy_only=False)] = -1
        return found

    def _find_hashed(self, query: pa.Array) -> np.ndarray:
        native, out = library(), np.empty(len(query), np.int64)
        native.keys_find(len(query), *_pointers(query), *_pointers(self.values), len(self.slots),
                         self.slots.ctypes.data, out.ctypes.data)
        return out

    def _find_ints(self, query: np.ndarray) -> np.ndarray:
        if self.table is not None:
            if (native := library()) is not None:
                query, out = np.ascontiguousarray(query), np.empty(len(query), np.int64)
                native.lists_find(len(query), query.ctypes.data, self.low, len(self.table), self.table.ctypes.data,
                                  out.ctypes.data)
                return out
            # unsigned wrap-around: everything below `low` becomes huge and meets the last cell
            cell = query.view(np.uint64) - np.uint64(self.low % 2**64)
            return self.table[np.minimum(cell, np.uint64(len(self.table) - 1)).view(np.int64)]
        at = np.minimum(np.searchsorted(self.sorted, query), len(self.sorted) - 1)
        return np.where(self.sorted[at] == query, self.order[at], -1)

    def _find_texts(self, query: pa.Array) -> np.ndarray:
        coded = query.dictionary_encode()
        texts = coded.dictionary
        hashes = _hashes(texts)
        found = np.full(len(texts), -1, np.int64)
        at = np.searchsorted(self.sorted, hashes)
        open_ = np.flatnonzero(at < len(self.sorted))
        while len(open_):                                            # once, unless keys share a hash
            open_ = open_[self.sorted[at[open_]] == hashes[open_]]
            candidate = self.order[at[open_]]
            same = pc.equal(texts.take(pa.array(open_)), self.values.take(pa.array(candidate)))
            same = same.to_numpy(zero_copy_only=False)
            found[open_[same]] = candidate[same]
            open_ = open_[~same]
            at[open_] += 1
            open_ = open_[at[open_] < len(self.sorted)]
        codes = coded.indices.fill_null(len(texts)).to_numpy()
        return np.append(found, -1)[codes]


def text_codes(texts: pa.Array) -> np.ndarray:
    """Whole numbers [n] int64, equal where two texts of large_string [n] are; 0 where one is null."""
    if not len(texts) or (native := library()) is None:
        return texts.dictionary_encode().indices.fill_null(0).to_numpy().astype(np.int64)
    slots, codes = _slots(texts), np.empty(len(texts), np.int64)
    native.keys_index(len(texts), *_pointers(texts), len(slots), slots.ctypes.data, codes.ctypes.data)
    if texts.null_count:
        codes[texts.is_null().to_numpy(zero_copy_only=False)] = 0
    return codes


def _slots(keys: pa.Array) -> np.ndarray:
    """Empty ones for these keys, a quarter to a half of which will be filled."""
    return np.full(2 << len(keys).bit_length(), -1, np.int64)


def _pointers(array: pa.Array) -> tuple[int, int | None]:
    """Where values or offsets of int64 or large_string [n] begin, and its bytes, as csrc/keys.cpp reads them."""
    _, first, *rest = array.buffers()
    start = first.address + 8 * array.offset
    return (start, (rest[0] or first).address) if rest else (start, None)      # empty texts alone may have no bytes


def _hashes(texts: pa.Array) -> np.ndarray:
    """A 64-bit hash of each text [n] uint64: the sum of (byte + 1) P^i, from one running sum over all bytes."""
    _, offsets, _ = texts.buffers()
    if not len(texts):
        return np.empty(0, np.uint64)
    offsets = np.frombuffer(offsets, np.int64, len(texts) + 1, offset=8 * texts.offset)
    parts, start = [], 0
    while start < len(texts):
        stop = max(start + 1, int(np.searchsorted(offsets, offsets[start] + HASH_BYTES, "right")) - 1)
        parts.append(_hash_some(texts.slice(start, stop - start)))
        start = stop
    return np.concatenate(parts)


def _hash_some(texts: pa.Array) -> np.ndarray:
    _, offsets, data = texts.buffers()
    offsets = np.frombuffer(offsets, np.int64, len(texts) + 1, offset=8 * texts.offset)
    first, size = int(offsets[0]), int(offsets[-1] - offsets[0])
    offsets = offsets - first
    powers = np.ones(size + 1, np.uint64)
    powers[1:] = P
    np.cumprod(powers, out=powers)
    terms = np.zeros(size + 1, np.uint64)
    if size:
        terms[1:] = np.frombuffer(data, np.uint8, size, offset=first)
        terms[1:] += np.uint64(1)
        terms[1:] *= powers[:-1]
    np.cumsum(terms, out=terms)
    undo = np.ones(size + 1, np.uint64)
    undo[1:] = P_INVERSE
    np.cumprod(undo, out=undo)
    hashes = (terms[offsets[1:]] - terms[offsets[:-1]]) * undo[offsets[:-1]]
    return hashes ^ (hashes >> np.uint64(32))


class Dimension:
    """Attributes of users or items: one row a key, and the columns that features read."""

    def __init__(self, name: str, key_column: str, table: pa.Table, where: str | None = None):
        """`table` holds the key column and the attributes; raises DataError for null and for repeated keys."""
        where = where or f"table '{name}'"
        self.name, self.key_column, self.table = name, key_column, table.combine_chunks()
        self.files: dict[str, Any] = {}              # as Source.fingerprint describes them, where it was read from some
        keys = canonical(table[key_column], f"{where}: key '{key_column}'")
        if keys.null_count:
            raise DataError(f"{where}: key '{key_column}' is null in {keys.null_count} of {len(keys)} rows; a table "
                            "has a key in every row")
        if message := _repeated(keys):
            raise DataError(f"{where}: key '{key_column}' {message}; a table has one row a key")
        self.key = KeyIndex(keys)

    def rows(self, keys: pa.Array | pa.ChunkedArray) -> np.ndarray:
        """The table's row [n] int64 of each key [n]; -1 where it has none, or the key is null."""
        return self.key.find(keys, f"the keys of table '{self.name}'")

    def take(self, keys: pa.Array | pa.ChunkedArray, column: str) -> pa.Array:
        """A column's value for each key [n]; null where the table has no such key."""
        return self.at(self.rows(keys), column)

    def at(self, rows: np.ndarray, column: str) -> pa.Array:
        """A column's value at rows [n] as `rows` gives them; null where the row is -1."""
        return whole(self.table[column]).take(pa.array(rows, mask=rows < 0))

    def save(self, path: str | Path) -> None:
        """Write as an Arrow IPC file; `load` gives the same table back."""
        about = {"funnelrank.table": self.name, "funnelrank.key": self.key_column}
        table = self.table.replace_schema_metadata(about)
        with reading(str(path)):
            write_saved(table, path)

    @classmethod
    def load(cls, path: str | Path) -> "Dimension":
        with reading(str(path)):
            table = read_saved(path)
        about = table.schema.metadata or {}
        if b"funnelrank.table" not in about or b"funnelrank.key" not in about:
            raise DataError(f"{path}: is an Arrow file, but not a saved dimension table")
        return cls(about[b"funnelrank.table"].decode(), about[b"funnelrank.key"].decode(),
                   table.replace_schema_metadata(None), str(path))


def _repeated(keys: pa.Array) -> str | None:
    counts = pc.value_counts(keys)
    times = counts.field("counts").to_numpy()
    if not len(times) or times.max() == 1:
        return None
    first = int((times > 1).argmax())
    value = counts.field("values")[first].as_py()
    return f"{value!r} stands on {times[first]} rows ({int((times > 1).sum())} keys are repeated)"


def open_tables(schema: Schema, data: Data) -> dict[str, Dimension]:
    """Every dimension table that features read, its key and those columns only.

    Raises DataError for null or repeated keys, missing columns, and where the tables together pass data.memory;
    nothing of a table is ever skipped, since that would change attributes in silence.
    """
    tables, held = {}, 0
    for name, wanted in schema.tables.items():
        if not wanted.columns:
            continue
        split = f"tables.{name}.path"
        source = open_source(data.tables[name].path, data.model_copy(update={"on_error": "raise"}), split)
        who = {wanted.key: f"data.tables.{name}.key"}
        for feature, f in schema.features.items():
            if f.column and table_of(f.column) == name:
                who.setdefault(f.column.split(".", 1)[1], f"features.{feature}.column")
        columns = list(dict.fromkeys([wanted.key, *wanted.columns]))
        source.require(columns, who)
        table, held = _read_all(source, columns, held, data.memory)
        tables[name] = Dimension(name, wanted.key, table, source.name)
        tables[name].files = source.fingerprint()
    return tables


def _read_all(source: Source, columns: list[str], held: int, memory: int) -> tuple[pa.Table, int]:
    pieces = []
    for unit, table in each(source, columns):
        pieces.append(table)
        held += pieces[-1].nbytes
        if held > memory:
            raise DataError(f"data.{source.split}: the dimension tables pass data.memory ({memory / 1e9:.3g} GB) at "
                            f"{source.where(unit)}; raise data.memory, or keep fewer columns or rows")
    return pa.concat_tables(pieces).combine_chunks(), held
