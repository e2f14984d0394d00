"""More ways to read one column: the value that a map has at a row's key, numbers in lists, and what is made of those.

Like parse.py before vocabularies and before any cut; functions begin the sentence of an error with `where`. What a row
gives depends on that row alone, so that one row at a time reads as many do.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from funnelrank.data import derive
from funnelrank.data.kinds import column_type
from funnelrank.data.parse import is_list, is_text, numbers, offsets_of, one_chunk
from funnelrank.data.tables import canonical
from funnelrank.data.vocab import map_as_list, nulls, to_family
from funnelrank.errors import DataError

Pool = Literal["mean", "sum", "min", "max", "first", "last"]


def at_keys(column: pa.Array, keys: pa.Array, where: str, separator: str | None = None,
            key_separator: str | None = None) -> pa.Array:
    """The value [n] that each row's map has at the row's key; null where either is, or the map has no such key.

    Maps are a map column, or texts such as 'a:1|b:2', of which a piece without a `key_separator` is none. Keys are
    compared as texts; of a key that stands twice, the last value counts. Raises DataError for any other column.
    """
    if pa.types.is_null(column.type):
        return pa.nulls(len(column))
    if pa.types.is_map(column.type):
        entries = map_as_list(column)
        offsets, rows = _offsets(entries), np.arange(len(column))
        names, values = (pc.struct_field(entries.flatten(), i) for i in (0, 1))
        names = to_family(canonical(names, where), "string", where, "its keys")
    elif is_list(column.type) or separator is None:
        raise DataError(f"{where} is {column_type(column.type)}; `key` reads a map, or a text that separator and "
                        "key_separator cut")
    else:
        texts = canonical(column, where).cast(pa.large_string()).dictionary_encode()
        rows = texts.indices.fill_null(-1).to_numpy()
        pieces = pc.split_pattern(texts.dictionary, separator)
        offsets = _offsets(pieces)
        cut = pc.split_pattern(pieces.flatten(), key_separator, max_splits=1, reverse=True)
        ends, parts = np.cumsum(pc.list_value_length(cut).to_numpy()), cut.flatten()
        whole = np.diff(ends, prepend=0) == 2
        names, values = (pc.utf8_trim_whitespace(parts.take(pa.array(ends[whole] - back))) for back in (2, 1))
        values = pc.if_else(pc.equal(values, ""), pa.scalar(None, values.type), values)
        offsets = offsets_of(whole, offsets)
    keys = to_family(canonical(keys, where), "string", where, "its keys")
    codes = one_chunk(pa.chunked_array([names, keys])).dictionary_encode().indices.fill_null(-1).to_numpy()
    names, keys = np.split(codes, [len(names)])
    places, offsets = derive.gather(offsets, rows)
    row = derive.row_of(offsets)
    hit = (names[places] == keys[row]) & (keys[row] >= 0)
    found = np.full(len(keys), -1)
    found[row[hit]] = places[hit]
    return values.take(pa.array(found, mask=found < 0))


def number_lists(column: pa.Array, where: str, separator: str | None = None) -> tuple[
        np.ndarray, np.ndarray, np.ndarray]:
    """Lists of numbers: values [m] as `numbers` gives them, offsets [n + 1], and which lists are null [n].

    Of lists, of texts with a separator (a blank piece is a number that is missing), or of numbers, each a list of one.
    """
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if is_text(column.type):
        if separator is None:
            raise DataError(f"{where} is {column_type(column.type)}; a list of numbers needs lists, or texts and a "
                            "`separator`")
        texts = pc.utf8_trim_whitespace(column.cast(pa.large_string()))
        blank = pc.fill_null(pc.equal(texts, ""), False)
        pieces = pc.split_pattern(pc.if_else(blank, pa.scalar(None, texts.type), texts), separator)
        return numbers(pieces.flatten(), where), _offsets(pieces), nulls(column)
    if pa.types.is_map(column.type):
        raise DataError(f"{where} is {column_type(column.type)}; a list of numbers is needed, or say in `key` which "
                        "of the map's")
    if not is_list(column.type):
        values = numbers(column, where)
        known = ~np.isnan(values)
        return values[known], np.concatenate([[0], np.cumsum(known)]), ~known
    return numbers(column.flatten(), where), _offsets(column), nulls(column)


def known_numbers(values: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """The same without numbers that are missing or not finite, and how many those were."""
    known = np.isfinite(values)
    if known.all():
        return values, offsets, 0
    return values[known], offsets_of(known, offsets), int((~known).sum())


def pooled(values: np.ndarray, offsets: np.ndarray, how: Pool) -> np.ndarray:
    """One number [n] of each list of numbers, over those that are finite; NaN where there is none."""
    values, offsets, _ = known_numbers(values, offsets)
    counts = np.diff(offsets)
    some = counts > 0
    out = np.full(len(counts), np.nan)
    starts, ends = offsets[:-1][some], offsets[1:][some]
    with np.errstate(over="ignore"):
        match how:
            case "first":
                out[some] = values[starts]
            case "last":
                out[some] = values[ends - 1]
            case "min":
                out[some] = np.minimum.reduceat(values, starts) if len(starts) else 0
            case "max":
                out[some] = np.maximum.reduceat(values, starts) if len(starts) else 0
            case _:
                total = np.bincount(derive.row_of(offsets), values, len(counts))
                out[some] = total[some] / (counts[some] if how == "mean" else 1)
    return out


def vectors(column: pa.Array, size: int, where: str, separator: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Lists of `size` numbers each as [n, size], as `numbers` gives them, and which rows have none [n].

    A null or empty list is none. Raises DataError, beginning with `where`, for one of another length.
    """
    values, offsets, _ = number_lists(column, where, separator)
    lengths = np.diff(offsets)
    missing = lengths == 0
    odd = ~missing & (lengths != size)
    if odd.any():
        first = int(odd.argmax())
        raise DataError(f"{where}: a list of {lengths[first]} (row {first}; {int(odd.sum())} rows have another length "
                        f"than {size}); write the length that all have into `size`, or correct the rows")
    out = np.full((len(lengths), size), np.nan)
    out[~missing] = values.reshape(-1, size)
    return out, missing


def _offsets(lists: pa.Array) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(pc.list_value_length(lists).fill_null(0).to_numpy().astype(np.int64))])
