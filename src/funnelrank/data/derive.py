"""Numbers read off lists: shares of one list in another, matches of the row's own ids in a list. No row loop: what
costs most goes through csrc/lists.cpp where that is built, and numpy does the same where it is not.

A list feature of n rows is a flat array of codes [m] and offsets [n + 1]. Codes are whole numbers, equal exactly
where the raw values are, so that values no vocabulary kept still match. Lists come in full, before any max_len.
The end of a list that is its latest is 'last' or 'first'.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from funnelrank.kernels import library

LIMIT = 1 << 62            # products of rows and codes stay below this
BLOCK = 1 << 16            # elements whose table of slots stays in a core's cache
ROUNDS = 6                 # of hashing, before what is left is sorted
ODD = np.uint64(0x9E3779B97F4A7C15)


def lengths(offsets: np.ndarray) -> np.ndarray:
    """Ids in each list [n]."""
    return np.diff(offsets)


def row_of(offsets: np.ndarray) -> np.ndarray:
    """The row of each element [m]."""
    return np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))


def gather(offsets: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lists number `rows` one after another: places of their elements [k], and offsets [len(rows) + 1].

    Row -1 has an empty list. Raises IndexError for a row that is not there.
    """
    if (native := library()) is not None:
        offsets, rows = _int64(offsets), _int64(rows)
        out = np.empty(len(rows) + 1, np.int64)
        size = native.lists_offsets(len(offsets) - 1, _at(offsets), len(rows), _at(rows), _at(out))
        if size < 0:
            raise IndexError(f"a row lies outside the {len(offsets) - 1} lists")
        places = np.empty(size, np.int64)
        native.lists_places(_at(offsets), len(rows), _at(rows), _at(out), _at(places))
        return places, out
    if len(rows) and rows.min() < 0:
        offsets, rows = np.append(offsets, offsets[-1]), np.where(rows < 0, len(offsets) - 1, rows)
    starts = offsets[:-1][rows]
    counts = offsets[1:][rows] - starts         # work of the rows asked for only: `offsets` may be a whole split's
    out = np.concatenate([[0], np.cumsum(counts)])
    return np.arange(out[-1]) + np.repeat(starts - out[:-1], counts), out


def running(inside: np.ndarray) -> np.ndarray:
    """How many of the elements [m] before each place [m + 1] are inside."""
    total = np.zeros(len(inside) + 1, np.int64)
    np.cumsum(inside, out=total[1:])
    return total


def share(running: np.ndarray, offsets: np.ndarray, last: int | None, end: str) -> np.ndarray:
    """Share [n] of the latest `last` elements (None: all) that are inside, after `running`; 0 for an empty list."""
    start, stop = offsets[:-1], offsets[1:]
    if last is not None and end == "last":
        start = np.maximum(start, stop - last)
    elif last is not None:
        stop = np.minimum(stop, start + last)
    return (running[stop] - running[start]) / np.maximum(stop - start, 1)


def latest(offsets: np.ndarray, most: int, end: str) -> tuple[np.ndarray, np.ndarray]:
    """Each list's latest `most` elements, oldest first: their places [k], and offsets [n + 1]."""
    counts = np.minimum(np.diff(offsets), most)
    out = np.concatenate([[0], np.cumsum(counts)])
    if end == "last":
        return np.arange(out[-1]) + np.repeat(offsets[1:] - out[1:], counts), out
    return np.repeat(offsets[:-1] + out[1:] - 1, counts) - np.arange(out[-1]), out


def match(elements: np.ndarray, rows: np.ndarray, offsets: np.ndarray, end: str) -> tuple[np.ndarray, np.ndarray]:
    """Count of matches [n], and recency [n]: 1 / (1 + steps back from the latest element to the last match), or 0.

    elements [h] are places in the flat list that matched, rising, one entry a match; rows [h] their rows.
    """
    n = len(offsets) - 1
    count = np.bincount(rows, minlength=n)
    recency = np.zeros(n)
    if len(rows):
        edge = rows[1:] != rows[:-1]
        nearest = np.append(edge, True) if end == "last" else np.append(True, edge)
        row, place = rows[nearest], elements[nearest]
        steps = offsets[row + 1] - 1 - place if end == "last" else place - offsets[row]
        recency[row] = 1 / (1 + steps)
    return count, recency


def same(own: np.ndarray, known: np.ndarray, codes: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Places [h] of list elements that equal their row's own code; `known` [n] is false where the row has none."""
    counts = np.diff(offsets)
    places = np.flatnonzero(codes == np.repeat(own, counts))
    return places if known.all() else places[np.repeat(known, counts)[places]]


def match_own(own: np.ndarray, known: np.ndarray, codes: np.ndarray, offsets: np.ndarray,
              end: str) -> tuple[np.ndarray, np.ndarray]:
    """`match` of the elements that `same` finds: count [n] and recency [n]."""
    if (native := library()) is None:
        elements = same(own, known, codes, offsets)
        return match(elements, row_of(offsets)[elements], offsets, end)
    n, (own, codes, offsets) = len(own), map(_int64, (own, codes, offsets))
    known, count, recency = np.ascontiguousarray(known, bool), np.empty(n, np.int64), np.empty(n)
    fit = native.lists_match(n, _at(own), _at(known), _at(codes), len(codes), _at(offsets), end == "last", _at(count),
                             _at(recency))
    assert fit == 0, "offsets of a list that end behind it"
    return count, recency


def match_sets(own: np.ndarray, listed: np.ndarray, offsets: np.ndarray, codes: np.ndarray, each: np.ndarray,
               end: str) -> tuple[np.ndarray, np.ndarray]:
    """Count [n] and recency [n] of attributes that a list's elements have in common with the row's own key.

    own [n] and listed [m] are rows of a table, -1 for none; row i has codes[each[i]:each[i + 1]], rising, each once.
    """
    if (native := library()) is None:
        (mine, ends), (theirs, stops) = gather(each, own), gather(each, listed)
        both = Overlap([(codes[theirs], stops[offsets]), (codes[mine], ends)])
        elements = row_of(stops)[both.within(0, 1)]
        return match(elements, row_of(offsets)[elements], offsets, end)
    n, (own, listed, offsets, codes, each) = len(own), map(_int64, (own, listed, offsets, codes, each))
    count, recency = np.empty(n, np.int64), np.empty(n)
    fit = native.lists_match_sets(n, _at(own), _at(listed), len(listed), _at(offsets), len(each) - 1, _at(codes),
                                  _at(each), end == "last", _at(count), _at(recency))
    assert fit == 0, "rows that the table does not have"
    return count, recency


def _int64(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array, np.int64)


def _at(array: np.ndarray) -> int:
    return array.ctypes.data


class Overlap:
    """Which elements of one list stand in another list of the same row. Each list is (codes [m], offsets [n + 1]).

    In numpy, every element is given the number of its (row, code) pair, through a table of slots filled block of rows
    by block of rows; two elements stand for the same value of the same row exactly where their numbers are equal.
    """

    def __init__(self, lists: Sequence[tuple[np.ndarray, np.ndarray]]):
        self._native = library()
        if self._native is not None:
            self._lists = [(_int64(codes), _int64(offsets)) for codes, offsets in lists]
            return
        codes = _small([codes for codes, _ in lists], len(lists[0][1]) - 1)
        self._numbers, self._size = _pair_numbers(codes, [offsets for _, offsets in lists])
        self._present: dict[int, np.ndarray] = {}

    def within(self, a: int, b: int) -> np.ndarray:
        """[m_a] bool, true where the element of list a stands in list b of its row."""
        if self._native is not None:
            (codes, offsets), (others, ends) = self._lists[a], self._lists[b]
            inside = np.empty(len(codes), bool)
            fit = self._native.lists_inside(len(offsets) - 1, _at(codes), len(codes), _at(offsets), _at(others),
                                            len(others), _at(ends), _at(inside))
            assert fit == 0, "offsets of a list that end behind it"
            return inside
        if b not in self._present:
            self._present[b] = np.zeros(self._size, bool)
            self._present[b][self._numbers[b]] = True
        return self._present[b][self._numbers[a]]


def _small(lists: list[np.ndarray], rows: int) -> list[np.ndarray]:
    """The same lists with codes from 0 up, small enough that row * codes + code fits an int64."""
    filled = [codes for codes in lists if len(codes)]
    if not filled:
        return lists
    low, high = min(int(codes.min()) for codes in filled), max(int(codes.max()) for codes in filled)
    if (high - low + 1) * max(rows, 1) < LIMIT:
        return [codes - low for codes in lists]
    distinct = np.unique(np.concatenate(filled))
    return [np.searchsorted(distinct, codes) for codes in lists]


def _pair_numbers(lists: list[np.ndarray], offsets: list[np.ndarray]) -> tuple[list[np.ndarray], int]:
    """Per list the number of each element's (row, code) pair [m], and one more than the largest."""
    n = len(offsets[0]) - 1
    span = 1 + max((int(codes.max()) for codes in lists if len(codes)), default=0)
    numbers = [np.empty(len(codes), np.int64) for codes in lists]
    elements = np.sum(offsets, axis=0)
    size = start = 0
    while start < n:
        stop = max(start + 1, int(np.searchsorted(elements, elements[start] + BLOCK, "right")) - 1)
        parts = [slice(o[start], o[stop]) for o in offsets]
        keys = np.concatenate([codes[part] + np.repeat(np.arange(stop - start) * span, np.diff(o[start:stop + 1]))
                               for codes, o, part in zip(lists, offsets, parts)])
        block, used = _number(keys)
        block += size
        size += used
        for out, part, piece in zip(numbers, parts, np.split(block, np.cumsum([p.stop - p.start for p in parts])[:-1])):
            out[part] = piece
        start = stop
    return numbers, size


def _number(keys: np.ndarray) -> tuple[np.ndarray, int]:
    """Numbers [k] that are equal exactly where int64 keys are, below `used`.

    Each key claims the slot that a hash names; one key wins a slot, elements with that key take its number, the rest
    go on to a fresh table with another hash.
    """
    numbers = np.empty(len(keys), np.int64)
    left, rest, used = None, keys, 0           # left: places of the keys that are still without a number
    for turn in range(ROUNDS):
        bits = max(4, int(2 * len(rest)).bit_length())
        slots = ((rest.view(np.uint64) * (ODD + np.uint64(2 * turn))) >> np.uint64(64 - bits)).view(np.int64)
        table = np.empty(1 << bits, np.int64)
        table[slots] = rest
        won = table[slots] == rest
        if turn == 0:
            numbers[:] = slots                 # the losers are overwritten below
        else:
            numbers[left[won]] = slots[won] + used
        used += 1 << bits
        lost = np.flatnonzero(~won)
        if not len(lost):
            return numbers, used
        left, rest = (lost if left is None else left[lost]), rest[lost]
    distinct, inverse = np.unique(rest, return_inverse=True)
    numbers[left] = inverse + used
    return numbers, used + len(distinct)
