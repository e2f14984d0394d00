"""Id spaces: how a raw value becomes a number, and the stable hashes behind it. No torch.

    fitted   the values that train has min_count times or more, the most frequent first, ties by value
    list     the values of a list or a file, in its order
    range    the column already holds 0 .. size - 1
    hash     a stable hash into `size` buckets

In every space 0 is PAD (null), 1 is OOV (a value the space does not know), and values start at 2.
A space holds one family of values, 'int' (int64) or 'string' (UTF-8), settled while it is fitted. Of each fitted value
it keeps how many trainings in a row went by without it, so that it can grow and retire (`grown`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from funnelrank.data.saved import read_saved, write_saved
from funnelrank.data.tables import KeyIndex
from funnelrank.errors import ConfigError, DataError
from funnelrank.schema import FIRST, OOV, PAD, Space

Family = Literal["int", "string"]
TYPE = {"int": pa.int64(), "string": pa.large_string()}
EXACT_INT = r"^(0|-?[1-9][0-9]*)$"
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
MIX = [(np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)), (np.uint64(27), np.uint64(0x94D049BB133111EB))]
LAST = np.uint64(31)
PENDING = 1 << 20          # rows of counts that may wait for the next merge
HASH_BYTES = 1 << 20       # bytes of text hashed at once (eight times that in memory)
assert FIRST - 1 == OOV


class Vocab:
    """One id space, fitted: values to ids 2 .. size - 1."""

    def __init__(self, space: Space, family: Family, values: pa.Array | None = None,
                 unseen: np.ndarray | None = None):
        self.space, self.family = space, family
        self._values = values                  # None for hash and range
        self.unseen = np.zeros(0 if values is None else len(values), np.int32) if unseen is None else unseen
        self.no_room = 0                       # values that `grown` left out because of max_size; not saved
        self._index: KeyIndex | None = None    # made at first use, once among threads
        self._making = Lock()

    @classmethod
    def fit(cls, space: Space, family: Family, values: pa.Array, counts: np.ndarray) -> Vocab:
        """The most frequent values first, ties by value. `values` are distinct, `counts` theirs."""
        table = pa.table({"value": values, "count": pa.array(counts, pa.int64())})
        table = table.filter(pc.greater_equal(table["count"], space.min_count))
        table = table.sort_by([("count", "descending"), ("value", "ascending")])
        return cls(space, family, _one_chunk(table["value"], TYPE[family])[:space.max_size])

    def grown(self, space: Space, values: pa.Array, counts: np.ndarray, retire: int | None = None) -> Vocab:
        """This fitted vocabulary after another training, whose distinct `values` have `counts`.

        Values that are here keep their order and so, unless one before them retires, their id. Behind them come those
        that the new rows have min_count times or more, as `fit` orders them, while there is room (max_size). A value
        that `retire` trainings in a row did not have is left out.
        """
        places = KeyIndex(self._values).find(values)
        unseen = self.unseen + np.int32(1)
        unseen[places[places >= 0]] = 0
        stays = unseen < retire if retire else np.ones(len(unseen), bool)
        kept, unseen = self._values.filter(pa.array(stays)), unseen[stays]
        new = Vocab.fit(space.model_copy(update={"max_size": None}), self.family,
                        values.filter(pa.array(places < 0)), counts[places < 0])._values
        room = len(new) if space.max_size is None else max(0, space.max_size - len(kept))
        both = pa.concat_arrays([kept, new[:room]])
        grown = Vocab(space, self.family, both, np.concatenate([unseen, np.zeros(len(both) - len(kept), np.int32)]))
        grown.no_room = len(new) - min(room, len(new))
        return grown

    def before(self, old: Vocab) -> np.ndarray:
        """Each of this space's ids [size] int64 as the id that `old` gave to the same value; -1 where it had none.

        Both are made in one way (data/grow.py). Raises ConfigError for whole numbers against texts.
        """
        if self._values is None:
            ids = np.arange(self.size)
            return np.where(ids < old.size, ids, -1)
        if self.family != old.family:
            names = {"int": "whole numbers", "string": "texts"}
            raise ConfigError(f"id space '{self.space.name}': held {names[old.family]}, now {names[self.family]}, so "
                              "its ids mean other values; start its features anew with --anew")
        found = KeyIndex(old._values).find(self._values)
        return np.concatenate([np.arange(FIRST), np.where(found < 0, -1, found + FIRST)])

    @classmethod
    def listed(cls, space: Space, family: Family) -> Vocab:
        """The values of `vocab_list` or `vocab_file` (one a line, UTF-8), in that order."""
        where = f"vocab_file {space.file}" if space.file else f"vocab_list of space '{space.name}'"
        fault = DataError if space.file else ConfigError
        if space.file:
            try:
                listed = Path(space.file).read_text(encoding="utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise DataError(f"{where}: cannot be read ({error}); it is a UTF-8 text, one value a line") from error
            listed = [line for line in listed if line]
        else:
            listed = list(space.values or ())
        texts = pa.array([str(value) for value in listed], pa.large_string())
        if len(texts) == 0:
            raise fault(f"{where}: holds no value; at least one is needed")
        seen = pc.value_counts(texts)
        twice = pc.filter(seen.field("values"), pc.greater(seen.field("counts"), 1))
        if len(twice):
            raise fault(f"{where}: holds '{twice[0]}' more than once; each value has one id")
        if space.unknown is not None and str(space.unknown) not in listed and space.unknown not in listed:
            raise fault(f"{where}: does not hold {space.unknown!r}, which unknown values are read as; add it")
        exact = pc.all(pc.match_substring_regex(texts, EXACT_INT)).as_py()
        if family == "int" and exact:
            return cls(space, "int", to_family(texts, "int", where, f"id space '{space.name}'"))
        return cls(space, "string", texts)

    @property
    def size(self) -> int:
        """Ids of the space, PAD and OOV included."""
        return FIRST + (len(self._values) if self._values is not None else self.space.size)

    @property
    def unknown(self) -> int:
        """The id that stands for values which the space does not know: OOV, unless it says otherwise."""
        if self.space.unknown is None:
            return OOV
        return int(self.ids(to_family(pa.array([str(self.space.unknown)], pa.large_string()), self.family,
                                      f"unknown of space '{self.space.name}'", f"id space '{self.space.name}'"))[0])

    def known(self) -> pa.Array:
        """The values of a fitted or listed space as a column."""
        return self._values

    def values(self) -> list[str | int] | None:
        """The value of each id from 2 on; None for a hash or a range, which keep no values."""
        return self._values.to_pylist() if self._values is not None else None

    def ids(self, array: pa.Array, where: str = "") -> np.ndarray:
        """Canonical values [n] -> ids [n] int32: null is PAD, a value the space does not know is OOV.

        Raises DataError, beginning with `where`, for a text that is no integer in a space of integers.
        """
        array = to_family(array, self.family, where, f"id space '{self.space.name}'")
        if self._values is not None:
            with self._making:
                if self._index is None:
                    self._index = KeyIndex(self._values)
            ids = self._index.find(array)
            ids += FIRST                                   # -1, not found, becomes OOV
        elif self.space.made == "hash":
            ids = _in_buckets(hash_values(array), np.uint64(self.space.size))
        else:
            numbers = _numpy(array)
            ids = np.add(numbers, FIRST, dtype=np.int32, casting="unsafe")
            ids[numbers.view(np.uint64) >= self.space.size] = OOV              # negative ones are huge there
        if array.null_count:
            ids[nulls(array)] = PAD
        return ids.astype(np.int32, copy=False)

    def shared(self, other: Vocab, where: str) -> tuple[np.ndarray, np.ndarray]:
        """Ids [n] int64 of this space and those [n] that the same values have in `other`, OOV among them.

        Raises ConfigError, beginning with `where`, for spaces without values that number them differently.
        """
        if self._values is None:                     # hashed, or a range: an id is its own meaning
            if (self.space.made, self.size) != (other.space.made, other.size):
                raise ConfigError(f"{where}: id space '{self.space.name}' is {self.space.made} of {self.space.size} "
                                  f"here, and has {other.size} ids made by {other.space.made} there; make them alike")
            ids = np.arange(OOV, self.size)
            return ids, ids
        found = other.ids(self._values, where).astype(np.int64)
        known = found >= FIRST
        return np.append(OOV, np.flatnonzero(known) + FIRST), np.append(OOV, found[known])

    def save(self, path: Path) -> None:
        """One Arrow IPC file."""
        about = {"space": self.space.model_dump(mode="json", exclude={"values"}), "family": self.family,
                 "keeps_values": self._values is not None}
        values = self._values if self._values is not None else pa.array([], TYPE[self.family])
        table = pa.table({"value": values, "unseen": pa.array(self.unseen)})
        table = table.replace_schema_metadata({"funnelrank": json.dumps(about)})
        write_saved(table, path)

    @classmethod
    def load(cls, path: Path) -> Vocab:
        table = read_saved(path)
        about = json.loads((table.schema.metadata or {}).get(b"funnelrank", b"null"))
        if not isinstance(about, dict) or table["value"].null_count:
            raise DataError(f"{path}: is an Arrow file, but not a saved vocabulary")
        values = _one_chunk(table["value"], TYPE[about["family"]]) if about["keeps_values"] else None
        unseen = table["unseen"].cast(pa.int32()).to_numpy() if "unseen" in table.column_names else None
        vocab = cls(Space(**about["space"]), about["family"], values, unseen)
        if values is not None:
            vocab._index = KeyIndex(values)
        if (values is None) == (vocab.space.made in ("fitted", "list")) or (
                values is not None and not vocab._index.is_distinct()):
            raise DataError(f"{path}: the values of a vocabulary are each there once")
        return vocab

    def digest(self, update: Callable[[bytes], None]) -> None:
        """Feeds everything that decides ids to a hash function's `update`."""
        said = [self.space.name, self.space.made, self.space.size, self.family]
        update(json.dumps(said + [self.space.unknown] * (self.space.unknown is not None)).encode())
        if self._values is not None:
            digest_values(self._values, update)


class Counts:
    """Exact counts of distinct values, one part of a log after another. Where they pass a budget, spill.py has parts of
    them written to files, `spilled`.
    """

    def __init__(self, family: Family):
        self.family = family
        self.spilled: list[Path] = []
        self.nbytes = 0
        self._parts: list[pa.Table] = []
        self._rows = self._merged = 0

    def add(self, array: pa.Array, times: np.ndarray | None = None) -> None:
        """Counts canonical values of the space's family, each once or as often as `times` says; nulls are no values."""
        if times is None:
            seen = pc.value_counts(array.drop_null())
            part = pa.table({"value": seen.field("values"), "count": seen.field("counts")})
        else:
            part = pa.table({"value": array, "count": times}).filter((times > 0) & ~nulls(array))
        self._parts.append(part)
        self._rows += len(part)
        self.nbytes += part.nbytes
        if self._rows > max(PENDING, 2 * self._merged):
            self.merge()

    def total(self) -> tuple[pa.Array, np.ndarray]:
        """Distinct values and their counts, in no order; of what was not spilled."""
        self.merge()
        if not self._parts:
            return pa.array([], TYPE[self.family]), np.zeros(0, np.int64)
        table = self._parts[0]
        return _one_chunk(table["value"], TYPE[self.family]), table["count"].to_numpy()

    def merge(self) -> None:
        """Each value once."""
        if len(self._parts) > 1 or self._rows != self._merged:
            table = pa.concat_tables(self._parts).group_by("value", use_threads=False)
            table = table.aggregate([("count", "sum")])
            self._parts = [table.select(["value", "count_sum"]).rename_columns(["value", "count"])]
        self._rows = self._merged = sum(len(t) for t in self._parts)
        self.nbytes = sum(t.nbytes for t in self._parts)

    def spill(self, path: Path) -> None:
        """Moves what is held into a new file; raises OSError as writing does."""
        pq.write_table(pa.concat_tables(self._parts), path, compression="zstd", write_page_checksum=True)
        self.spilled.append(path)
        self._parts, self._rows, self._merged, self.nbytes = [], 0, 0, 0


def to_family(array: pa.Array, family: Family, where: str, what: str) -> pa.Array:
    """Canonical values in the family that `what` keeps: integers become text, texts that are integers integers.

    Raises DataError, beginning with `where`, for the first text that is no int64.
    """
    if array.type == TYPE[family]:
        return array
    if family == "string" or array.null_count == len(array):
        return array.cast(TYPE[family])
    texts = pc.unique(array).drop_null()
    wrong = texts.filter(pc.invert(pc.match_substring_regex(texts, EXACT_INT)))
    # More digits than int64 has, or as many and past its end.
    wide = texts.filter(pc.greater(pc.binary_length(texts), 18)).to_pylist() if not len(wrong) else []
    beyond = [text for text in wide if not -2**63 <= int(text) < 2**63]
    if len(wrong) or beyond:
        first = wrong[0].as_py() if len(wrong) else beyond[0]
        raise DataError(f"{where}: holds {first!r}, but {what} holds integers; write integers, or give "
                        "texts a place of their own")
    return array.cast(pa.int64())


def is_whole(text: str) -> bool:
    """Whether a text spells an int64."""
    return re.match(EXACT_INT, text) is not None and -2**63 <= int(text) < 2**63


def splitmix64(numbers: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64, a bijection of 64 bits: uint64 [n] -> uint64 [n]."""
    z = numbers + GOLDEN
    for shift, factor in MIX:
        z ^= z >> shift
        z *= factor
    z ^= z >> LAST
    return z


def hashed_ids(numbers: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """What spaces of so many buckets [k] make of whole numbers [n, k] int64 that are no nulls: ids [n, k] int32."""
    return _in_buckets(splitmix64(numbers.view(np.uint64)), sizes)


def _in_buckets(hashes: np.ndarray, sizes: np.ndarray | np.uint64) -> np.ndarray:
    return (hashes % sizes).astype(np.int32) + np.int32(FIRST)


def hash_values(array: pa.Array) -> np.ndarray:
    """64-bit hashes [n] uint64 of canonical values, the same on every machine and in every process; 0 for null.

    int     h(x) = splitmix64(x)
    string  h(b_0 .. b_l-1) = splitmix64(l GOLDEN  xor  sum_j c_j (b_j + 1)),  c_j = splitmix64(j) | 1
            over its UTF-8 bytes, mod 2^64. With c_j odd, texts of one length that differ in one byte never collide.
    """
    if pa.types.is_large_string(array.type):
        coded = array.dictionary_encode()
        hashes = _hash_texts(coded.dictionary)
        hashes = np.append(hashes, np.uint64(0))[_numpy(coded.indices, -1)]   # a null's index is the last, 0
    else:
        hashes = splitmix64(_numpy(array).view(np.uint64))
        if array.null_count:
            hashes[nulls(array)] = 0
    return hashes


def _hash_texts(texts: pa.Array) -> np.ndarray:
    offsets, data = text_bytes(texts)
    lengths = np.diff(offsets)
    factors = splitmix64(np.arange(lengths.max(initial=0), dtype=np.uint64)) | np.uint64(1)
    sums = np.empty(len(texts), np.uint64)
    start = 0
    while start < len(texts):
        stop = max(start + 1, int(np.searchsorted(offsets, offsets[start] + HASH_BYTES, "right")) - 1)
        first, last = offsets[start], offsets[stop]
        place = np.arange(first, last) - np.repeat(offsets[start:stop], lengths[start:stop])
        running = np.zeros(last - first + 1, np.uint64)
        np.cumsum(factors[place] * (data[first:last].astype(np.uint64) + np.uint64(1)), out=running[1:])
        bounds = offsets[start:stop + 1] - first
        sums[start:stop] = running[bounds[1:]] - running[bounds[:-1]]   # exact mod 2^64
        start = stop
    return splitmix64(sums ^ (lengths.astype(np.uint64) * GOLDEN))


def text_bytes(texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Offsets [n + 1] int64 from 0 and bytes of a large_string array, without a copy of the bytes."""
    _, offsets, data = texts.buffers()
    if not len(texts):
        return np.zeros(1, np.int64), np.zeros(0, np.uint8)
    offsets = np.frombuffer(offsets, np.int64)[texts.offset:texts.offset + len(texts) + 1]
    data = np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8)
    return offsets - offsets[0], data[offsets[0]:offsets[-1]]


def nulls(array: pa.Array) -> np.ndarray:
    """[n] bool, true where the value is null."""
    return array.is_null().to_numpy(zero_copy_only=False)


def digest_values(array: pa.Array, update: Callable[[bytes], None]) -> None:
    """Feeds a column's values to a hash function's `update`, the same however Arrow lays them out."""
    kind = array.type
    update(f"{kind} {len(array)}".encode())
    update(nulls(array).tobytes())
    if pa.types.is_dictionary(kind):
        digest_values(array.dictionary_decode(), update)
    elif pa.types.is_nested(kind):
        if pa.types.is_map(kind):
            array = map_as_list(array)
        if not pa.types.is_struct(kind):
            update(pc.list_value_length(array).fill_null(0).to_numpy().astype(np.int64).tobytes())
        parts = array.flatten()
        for part in parts if isinstance(parts, list) else [parts]:
            digest_values(part, update)
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        for part in text_bytes(array.cast(pa.large_string()).fill_null("")):
            update(np.ascontiguousarray(part).tobytes())
    elif not pa.types.is_null(kind):
        if pa.types.is_temporal(kind):
            array = array.cast(pa.int32() if kind.bit_width == 32 else pa.int64())
        whole = array.cast(pa.uint8()) if pa.types.is_boolean(kind) else array
        update(whole.fill_null(0).to_numpy(zero_copy_only=False).tobytes())


def map_as_list(array: pa.Array) -> pa.Array:
    """A map column as lists of structs of key and value."""
    kind = array.type.key_type
    pair = pa.struct([pa.field("key", kind, pa.types.is_null(kind)), pa.field("value", array.type.item_type)])
    return array.cast(pa.large_list(pair))


def _numpy(array: pa.Array, null: int = 0) -> np.ndarray:
    """[n] numbers of an integer array, `null` where it has none."""
    return (array.fill_null(null) if array.null_count else array).to_numpy()


def _one_chunk(column: pa.ChunkedArray, type: pa.DataType) -> pa.Array:
    return pa.concat_arrays([pa.array([], type), *column.cast(type).chunks])
