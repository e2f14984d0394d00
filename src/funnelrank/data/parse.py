"""One raw column: ids, numbers, times, and lists however they are written. Before vocabularies and before any cut.

Functions begin the sentence of an error with `where`, as "part-0007.parquet, row group 3: column 'tags'".
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from funnelrank.data import derive
from funnelrank.data.kinds import column_type
from funnelrank.data.tables import canonical
from funnelrank.data.vocab import Family, map_as_list, nulls, to_family
from funnelrank.errors import DataError

MICROSECONDS = 1e6           # in a second
MENDED = "; mend the column, or give the feature the kind that it is of, such as id"


class Values(NamedTuple):
    """Values [n], as they are or as places in fewer: a dictionary, or a table's column. Place -1 is null.

    `key` names a base that is the same for all rows of the log, so that what is made from it can be kept.
    """

    base: pa.Array
    places: np.ndarray | None = None
    key: tuple | None = None

    def array(self) -> pa.Array:
        if self.places is None:
            return self.base
        null = self.places < 0
        return self.base.take(pa.array(self.places, mask=null) if null.any() else pa.array(self.places))

    def at(self, places: np.ndarray) -> Values:
        """Some of them, at places >= 0."""
        if self.places is None:
            return Values(self.base.take(pa.array(places)))
        return Values(self.base, self.places[places], self.key)

    def map(self, made: np.ndarray, null: Any) -> np.ndarray:
        """What was made from the base, one each, brought to the values; `null` where a place is -1."""
        return made if self.places is None else np.append(made, made.dtype.type(null))[self.places]

    def times(self) -> np.ndarray | None:
        """How often each value of the base stands here; None: once."""
        return None if self.places is None else np.bincount(self.places + 1, minlength=len(self.base) + 1)[1:]

    def count(self) -> int:
        return len(self.base) if self.places is None else len(self.places)


class Ragged(NamedTuple):
    """Several values a row, null elements dropped."""

    values: Values               # [m] no nulls
    offsets: np.ndarray          # [n + 1] int64
    weights: np.ndarray | None   # [m] float64
    null: np.ndarray             # [n] bool, the whole list is null
    dropped: int = 0             # null elements
    missing_keys: int = 0        # elements (or rows) whose key no row of the table has
    filled: int = 0              # empty lists that have the feature's default


def one_chunk(column: pa.ChunkedArray) -> pa.Array:
    """A table's column as one array; dictionaries are left to whoever reads it."""
    column = column.unify_dictionaries() if pa.types.is_dictionary(column.type) else column
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays([pa.array([], column.type), *column.chunks])


def is_list(kind: pa.DataType) -> bool:
    return (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
            or pa.types.is_map(kind))


def numbers(column: pa.Array, where: str) -> np.ndarray:
    """A column as float64 [n]: null is NaN, and NaN or an infinity in the data is +inf.

    Times and dates are seconds since 1970, durations seconds, booleans 0 and 1, texts the number they spell.
    Raises DataError, beginning with `where`, for a text that is none and for lists and structs.
    """
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.dictionary_decode()
        kind = column.type
    if pa.types.is_temporal(kind):
        column = pc.divide(microseconds(column, where).cast(pa.float64(), safe=False), MICROSECONDS)
    elif pa.types.is_boolean(kind):
        column = column.cast(pa.uint8())
    elif is_text(kind):
        column = _spelt(column, where)
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
              or pa.types.is_null(kind)):
        raise DataError(f"{where} is {column_type(kind)}; the schema says number{MENDED}")
    values = column.cast(pa.float64(), safe=False)
    null = nulls(values) if values.null_count else None
    values = zero_for_null(values).to_numpy()
    if not np.isfinite(values).all():
        values = np.where(np.isfinite(values), values, np.inf)
    return values if null is None else np.where(null, np.nan, values)


def missing_as_nan(values: np.ndarray, counts: dict[str, int]) -> np.ndarray:
    """What `numbers` gives, with NaN for all that is missing; adds `nulls` and `nonfinite` to counts."""
    wild = np.isinf(values)
    counts["nulls"], counts["nonfinite"] = int(np.isnan(values).sum()), int(wild.sum())
    return np.where(wild, np.nan, values) if counts["nonfinite"] else values


def newest(listed: Ragged, f: Any) -> tuple[Values, np.ndarray, np.ndarray | None]:
    """Values, offsets and weights of a list feature's latest `max_len` elements, oldest first."""
    end, most = getattr(f, "latest", "last"), f.max_len
    longest = int(np.diff(listed.offsets).max(initial=0))
    if end == "last" and (most is None or longest <= most):
        return listed.values, listed.offsets, listed.weights
    places, offsets = derive.latest(listed.offsets, longest if most is None else most, end)
    return listed.values.at(places), offsets, taken(listed.weights, places)


def ragged(column: pa.Array, family: Family, where: str, space: str, separator: str | None = None,
           weight_separator: str | None = None) -> Ragged:
    """A column of lists, of maps from id to weight, or of texts with a separator.

    Pieces of texts lose the white space around them, and are no element if nothing is left. A piece without a weight
    weighs 1, one whose weight is not finite 0. Raises DataError, beginning with `where`, for any other column.
    """
    if pa.types.is_null(column.type):
        values = pa.array([], pa.null())
        return Ragged(Values(id_values(values, family, where, space)), np.zeros(len(column) + 1, np.int64),
                      np.zeros(0) if weight_separator else None, np.ones(len(column), bool))
    if not is_list(column.type):
        if separator is None:
            raise DataError(f"{where} is {column_type(column.type)}; a bag or a sequence needs lists, or texts and a "
                            "`separator`: give the feature that reads it one, as in separator: '|'")
        texts = canonical(column, where).cast(pa.large_string()).dictionary_encode()
        each = _split(texts.dictionary, separator, family, where, space, weight_separator)
        rows = texts.indices.fill_null(-1).to_numpy()
        places, offsets = derive.gather(each.offsets, rows)
        return Ragged(Values(each.values.base, places), offsets, taken(each.weights, places), rows < 0)
    mapped = pa.types.is_map(column.type)
    if mapped:
        column = map_as_list(column)
    if column.null_count or pa.types.is_fixed_size_list(column.type):
        offsets = np.concatenate([[0], np.cumsum(pc.list_value_length(column).fill_null(0).to_numpy())])
    else:
        offsets = column.offsets.to_numpy().astype(np.int64)
        offsets -= offsets[0]
    values, weights = column.flatten(), None
    if mapped:
        values, weights = (pc.struct_field(values, i) for i in (0, 1))
        weights = _weights(weights, where)
    elif weight_separator is not None and is_text(values.type):
        values, offsets, known = without_null(values, offsets)
        values, weights = _weighted(values, weight_separator, where)
        return _ragged(values, offsets, weights, column, family, where, space,
                       0 if known is None else int((~known).sum()))
    return _ragged(values, offsets, weights, column, family, where, space)


def _ragged(values: pa.Array, offsets: np.ndarray, weights: np.ndarray | None, column: pa.Array, family: Family,
            where: str, space: str, dropped: int = 0) -> Ragged:
    values, offsets, known = without_null(id_values(values, family, where, space), offsets)
    if known is not None:
        dropped += int((~known).sum())
        weights = taken(weights, known)
    null = nulls(column) if column.null_count else np.zeros(len(column), bool)
    return Ragged(Values(values), offsets, weights, null, dropped)


def _split(texts: pa.Array, separator: str, family: Family, where: str, space: str,
           weight_separator: str | None) -> Ragged:
    pieces = pc.split_pattern(texts, separator)
    offsets = np.concatenate([[0], np.cumsum(pc.list_value_length(pieces).to_numpy())])
    pieces, offsets = _without_empty(pc.utf8_trim_whitespace(pieces.flatten()), offsets)
    weights = None
    if weight_separator is not None:
        pieces, weights = _weighted(pieces, weight_separator, where)
    return Ragged(Values(id_values(pieces, family, where, space)), offsets, weights, np.zeros(len(texts), bool))


def _weighted(pieces: pa.Array, separator: str, where: str) -> tuple[pa.Array, np.ndarray]:
    """'red:0.5' -> 'red' and 0.5, cut at the last separator."""
    cut = pc.split_pattern(pieces, separator, max_splits=1, reverse=True)
    lengths, parts = pc.list_value_length(cut).to_numpy().astype(np.int64), cut.flatten()
    ends = np.cumsum(lengths)
    starts = ends - lengths
    texts = parts.take(pa.array(ends - 1, mask=lengths < 2))
    return pc.utf8_trim_whitespace(parts.take(pa.array(starts))), _weights(texts, f"{where}: weights")


def _weights(column: pa.Array, where: str) -> np.ndarray:
    weights = numbers(column, where)
    return np.where(np.isnan(weights), 1.0, np.where(np.isinf(weights), 0.0, weights))


def _without_empty(pieces: pa.Array, offsets: np.ndarray) -> tuple[pa.Array, np.ndarray]:
    kept = pc.not_equal(pieces, "").to_numpy(zero_copy_only=False)
    return (pieces, offsets) if kept.all() else (pieces.filter(pa.array(kept)), offsets_of(kept, offsets))


def without_null(values: pa.Array, offsets: np.ndarray) -> tuple[pa.Array, np.ndarray, np.ndarray | None]:
    """Without null elements: values, offsets, and which elements stay [m] (None: all)."""
    if not values.null_count:
        return values, offsets, None
    known = ~nulls(values)
    return values.drop_null(), offsets_of(known, offsets), known


def offsets_of(kept: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(kept)])[offsets]


def id_values(column: pa.Array, family: Family, where: str, space: str) -> pa.Array:
    return to_family(canonical(column, where), family, where, f"id space '{space}'")


def taken(array: np.ndarray | None, places: np.ndarray) -> np.ndarray | None:
    return None if array is None else array[places]


def zero_for_null(array: pa.Array) -> pa.Array:
    return array.fill_null(0) if array.null_count else array      # a copy, even where there is none


def is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or str(kind) == "string_view"


def _spelt(column: pa.Array, where: str) -> pa.Array:
    """Numbers that texts spell; blank texts are null."""
    texts = pc.utf8_trim_whitespace(column.cast(pa.large_string()))
    texts = pc.if_else(pc.equal(texts, ""), pa.scalar(None, pa.large_string()), texts)
    try:
        return texts.cast(pa.float64())
    except pa.ArrowInvalid:
        first = next((text for text in pc.unique(texts).to_pylist() if text and not _spells_number(text)), "?")
        raise DataError(f"{where} is text and holds '{first}'; the schema says number{MENDED}") from None


def _spells_number(text: str) -> bool:
    try:
        pa.array([text]).cast(pa.float64())
    except pa.ArrowInvalid:
        return False
    return True


def microseconds(column: pa.Array, where: str) -> pa.Array:
    """Times as int64 microseconds."""
    kind = column.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        column = column.cast(pa.timestamp("us", getattr(kind, "tz", None)), safe=False)
    elif pa.types.is_time(kind):
        column = column.cast(pa.time64("us"), safe=False)
    elif pa.types.is_duration(kind):
        column = column.cast(pa.duration("us"), safe=False)
    else:
        raise DataError(f"{where} is {column_type(kind)}; a time is a timestamp, a date, a time of day or a duration")
    return column.cast(pa.int64())


def integer_gap(a: pa.Array, b: pa.Array) -> np.ndarray:
    """b - a as float64 [n], NaN where either is null; the difference is taken in whole numbers where it fits."""
    null = nulls(a) | nulls(b)
    a, b = (column.cast(pa.int64(), safe=False).fill_null(0).to_numpy() for column in (a, b))
    with np.errstate(over="ignore"):
        exact = b - a
    values = np.where((b >= a) == (exact >= 0), exact.astype(np.float64), b.astype(np.float64) - a.astype(np.float64))
    return np.where(null, np.nan, values)
