"""Raw rows, from wherever they lie, one bounded unit at a time. Nothing is ever loaded whole.

    rows (a path, a glob, a folder, a URL, a table)  ->  files  ->  parts (row groups, record batches)  ->  units

Every format becomes a stream of Arrow record batches that is cut into units of a known number of rows, so that a unit
fits the memory budget however large its row group is. Column types are brought to few: int64, double, bool,
large_string, timestamp[us], date32, and large_list of these. What pyarrow or the disk raises leaves this file as one
DataError sentence that names the place.
"""

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from urllib.parse import unquote

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from funnelrank.errors import ConfigError, DataError, did_you_mean, listing
from funnelrank.settings import Csv, Data

UNIT_ROWS = 131_072
BATCH = 16_384                # rows decoded at a time
LEAST = 1 << 26               # bytes a unit may always have
UNIT_SHARE = 8                # a unit's share of data.memory: readers, casts and encoders hold copies beside it
BLOCK = 8 << 20               # bytes of text parsed at a time
MOST_ROWS = 10**11            # of one row group; a footer that says more is not believed
SUFFIXES = {"parquet": (".parquet", ".parq", ".pq"), "csv": (".csv", ".tsv"),
            "arrow": (".arrow", ".arrows", ".feather", ".ipc")}
COMPRESSION = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
NO_NUMBER = ["NA", "N/A", "NULL", "null", "None", "NaN", "nan", "\\N"]
WORD = {"int": pa.int64(), "float": pa.float64(), "text": pa.large_string()}


def open_source(rows: Any, data: Data, split: str) -> "Source":
    """The rows of one split, opened and checked but not read.

    `rows` is a path, a glob, a folder, an fsspec URL or a list of these, relative paths starting at data.dir; or a
    pyarrow table or record batch, or a pandas or polars frame. `split` names them in errors, as data.<split>.
    Raises DataError for files that are missing, empty, damaged, or that disagree; ConfigError for what cannot be rows.
    """
    if rows is None or (isinstance(rows, list | tuple) and not rows):
        raise ConfigError(f"data.{split}: no rows are given; name a file, a folder or a glob")
    paths = [os.fspath(r) if isinstance(r, os.PathLike) else r
             for r in (rows if isinstance(rows, list | tuple) else [rows])]
    if not all(isinstance(p, str) for p in paths):
        name = f"the table given as data.{split}"
        files: list[Any] = [TableRows(name, _as_table(rows, f"data.{split}"))]
        return Source(split, files, data)
    files, types, width = [], {}, 0
    for place in _find(paths, data, split):
        with reading(place.name):
            match place.format:
                case "parquet":
                    files.append(ParquetRows(place, width))
                    width = files[-1].width
                case "arrow":
                    files.append(ArrowRows(place))
                case "csv":
                    files.append(CsvRows(place, data.csv, types))
                    types |= {c.name: c.type for c in files[-1].schema if types.get(c.name, pa.null()) == pa.null()}
    return Source(split, files, data)


@dataclass(frozen=True)
class Unit:
    """Rows that are read together, all of one part (row group, record batch) of one file.

    `start` is the first one's row within the file, `offset` within the part; both count from 0.
    """

    file: int
    part: int
    start: int
    rows: int
    offset: int = 0


class Source:
    """The rows of one split: what columns they have, and units to read them by.

    split    its name in the config, as 'train'
    columns  the columns that all files have, in the first file's order, with the types that `read` gives
    units    in file order; rows is their exact number. For CSV both need one pass over the text, made when asked.
    """

    def __init__(self, split: str, files: list[Any], data: Data):
        self.split, self.memory = split, data.memory
        self.name = files[0].name if len(files) == 1 else f"data.{split} ({len(files)} files)"
        self._files = [f for f in files if not f.empty]
        if not self._files:
            raise DataError(f"{files[0].name}: holds no rows" if len(files) == 1 else
                            f"data.{split}: none of the {len(files)} files holds a row (first: {files[0].name})")
        self._csv = data.csv
        self._stream: tuple[Any, Stream] | None = None
        self.columns, self._faults = _agree(self._files)

    @cached_property
    def units(self) -> list[Unit]:
        units = []
        for i, file in enumerate(self._files):
            start = 0
            with reading(file.name):
                parts = file.parts
            for part, (rows, width) in enumerate(parts):
                if not 0 <= rows <= MOST_ROWS:
                    raise DataError(f"{file.name}, row group {part}: says that it holds {rows:,} rows; the file is "
                                    "damaged, write it again")
                step = min(UNIT_ROWS, max(1, self.memory // UNIT_SHARE // max(1, width)))
                units += [Unit(i, part, start + at, min(step, rows - at), at) for at in range(0, rows, step)]
                start += rows
        return units

    @cached_property
    def rows(self) -> int:
        return sum(u.rows for u in self.units)

    def where(self, unit: Unit) -> str:
        """A unit's place in words, for errors: 'part-0007.parquet, row group 3'."""
        file = self._files[unit.file]
        name = f"{file.name}, {file.part} {unit.part}" if file.part else file.name
        return name if unit.rows == file.parts[unit.part][0] else f"{name}, from row {unit.offset}"

    def require(self, columns: list[str], who: Mapping[str, str] | None = None) -> None:
        """Raise DataError, one sentence a fault, where columns are missing or differ between files.

        `who` says for a column what in the config asks for it, as {'price': 'features.price.column'}.
        """
        faults = []
        for c in columns:
            asks = f" ({who[c]})" if who and c in who else ""
            if c in self._faults:
                faults.append(self._faults[c] + asks)
            elif c not in self.columns.names:
                near = did_you_mean(c, self.columns.names)
                faults.append(f"{self.name}: no column '{c}'{asks}" + (
                    near or f"; columns are {listing(self.columns.names)}"))
        if faults:
            raise DataError(*faults)

    def read(self, unit: Unit, columns: list[str]) -> pa.Table:
        """One unit's rows, [unit.rows] of each column in the order asked, with the types of `columns`.

        Each column is one chunk that begins at offset 0, and a list column's values are exactly those of its rows.
        Reading units in order is fast; in a sliced part or a CSV file, going back reads that part again.
        """
        self.require(columns)
        file, where = self._files[unit.file], self.where(unit)
        inside = [c for c in dict.fromkeys(columns) if c in file.schema.names]
        arrays: dict[str, pa.Array] = {}
        if inside:
            with reading(where):
                table = self._next(unit, tuple(inside))
            if table.num_rows != unit.rows or set(table.column_names) != set(inside):
                raise DataError(f"{where}: should give {unit.rows:,} more rows, but gave {table.num_rows:,}; the file "
                                "is damaged, or changed while it was read")
            for c in inside:
                arrays[c] = file.column(table[c], self.columns.field(c).type, where, c, unit.start)
        for c in columns:
            if c not in arrays:
                arrays[c] = pa.repeat(pa.scalar(file.partition[c], self.columns.field(c).type), unit.rows)
        return pa.table([_own(arrays[c]) for c in columns], names=columns)

    def fingerprint(self) -> dict[str, Any]:
        """What a cache of these rows depends on: each file's path, size and time of change; a table's content hash."""
        if isinstance(self._files[0], TableRows):
            return {"table": self._content}
        csv = self._csv.model_dump() if any(isinstance(f, CsvRows) for f in self._files) else None
        with reading(self.name):
            return {"files": [f.place.fingerprint() for f in self._files], "csv": csv}

    @cached_property
    def _content(self) -> str:
        digest = hashlib.blake2b(digest_size=16)
        sink = pa.PythonFile(_Hashing(digest), mode="w")
        writer = None
        for unit in self.units:
            table = self.read(unit, self.columns.names)
            writer = writer or pa.ipc.new_stream(sink, table.schema)
            writer.write_table(table)
        writer.close()
        return digest.hexdigest()

    def _next(self, unit: Unit, columns: tuple[str, ...]) -> pa.Table:
        key = (unit.file, unit.part, columns)
        stream = self._stream[1] if self._stream and self._stream[0] == key else None
        self._stream = None                     # a stream that fails, or is done, is not used again
        if stream is None or stream.at > unit.offset:
            stream = Stream(self._files[unit.file].stream(unit.part, list(columns), unit.rows))
        stream.skip(unit.offset - stream.at)
        table = stream.take(unit.rows, max(LEAST, self.memory))
        if table is None:
            raise DataError(f"{self.where(unit)}: its rows are so wide that {unit.rows:,} of them pass data.memory "
                            f"({self.memory / 1e9:.3g} GB); raise data.memory, or write smaller row groups")
        if stream.at < self._files[unit.file].parts[unit.part][0]:
            self._stream = (key, stream)
        return table


class _Hashing:
    closed = False

    def __init__(self, digest):
        self.digest = digest

    def write(self, data) -> int:
        self.digest.update(data)
        return len(data)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


class Stream:
    """Record batches of any sizes, taken in the sizes asked for."""

    def __init__(self, batches: Iterator[pa.RecordBatch]):
        self.batches, self.rest, self.at = batches, None, 0

    def take(self, rows: int, most: int) -> pa.Table | None:
        """The next `rows` rows, or fewer at the end; None where they pass `most` bytes."""
        pieces, size = [], 0
        for piece in self._pieces(rows):
            pieces.append(piece)
            size += piece.nbytes
            if size > most:
                return None
        return pa.Table.from_batches(pieces) if pieces else pa.table({})

    def skip(self, rows: int) -> None:
        for _ in self._pieces(rows):
            pass

    def _pieces(self, rows: int) -> Iterator[pa.RecordBatch]:
        while rows > 0:
            batch = self.rest if self.rest is not None else next(self.batches, None)
            if batch is None:
                return
            self.rest = batch.slice(rows) if batch.num_rows > rows else None
            piece = batch.slice(0, rows)
            rows -= piece.num_rows
            self.at += piece.num_rows
            yield piece


# ---- types

def widened(kind: pa.DataType) -> pa.DataType:
    """The type that a column of this type is read as."""
    t = pa.types
    if isinstance(kind, pa.BaseExtensionType):
        return widened(kind.storage_type)
    if t.is_dictionary(kind):
        return widened(kind.value_type)
    if t.is_integer(kind) or (t.is_decimal(kind) and kind.scale == 0):
        return pa.int64()
    if t.is_floating(kind) or t.is_decimal(kind):
        return pa.float64()
    if any(is_text(kind) for is_text in (t.is_string, t.is_large_string, t.is_string_view,
                                         t.is_binary, t.is_large_binary, t.is_binary_view)):
        return pa.large_string()
    if t.is_timestamp(kind):
        return pa.timestamp("us", "UTC" if kind.tz else None)
    if t.is_date(kind):
        return pa.date32()
    if t.is_time(kind):
        return pa.time64("us")
    if t.is_duration(kind):
        return pa.duration("us")
    if any(is_list(kind) for is_list in (t.is_list, t.is_large_list, t.is_fixed_size_list,
                                         t.is_list_view, t.is_large_list_view)):
        return pa.large_list(widened(kind.value_type))
    return kind


def common(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    """The type that holds values of both (widened) types, or None where they are of different families."""
    if a == b or pa.types.is_null(b):
        return a
    if pa.types.is_null(a):
        return b
    numbers = [pa.bool_(), pa.int64(), pa.float64()]
    if a in numbers and b in numbers:
        return max(a, b, key=numbers.index)
    if pa.types.is_large_list(a) and pa.types.is_large_list(b):
        value = common(a.value_type, b.value_type)
        return value and pa.large_list(value)
    return None


def whole(array: pa.Array | pa.ChunkedArray) -> pa.Array:
    """One array, without a copy where there is one chunk."""
    if isinstance(array, pa.Array):
        return array
    return array.chunk(0) if array.num_chunks == 1 else array.combine_chunks()


def conform(array: pa.Array, kind: pa.DataType, where: str) -> pa.Array:
    """Values as a wider type, exactly: DataError where one does not survive (nanoseconds are cut to microseconds)."""
    if array.type == kind:
        return array
    try:
        if pa.types.is_temporal(kind):
            return array.cast(kind, safe=False)
        return array.cast(kind)
    except (pa.ArrowException, ValueError) as e:
        raise DataError(f"{where}: {_column_type(array.type)} does not fit {_column_type(kind)}: {_sentence(e)}") from e


def _agree(files: list[Any]) -> tuple[pa.Schema, dict[str, str]]:
    """The columns that all files share, and a sentence for each other column, raised once it is asked for."""
    _type_partitions(files)
    kinds: dict[str, pa.DataType] = {}
    origin: dict[str, Any] = {}
    faults: dict[str, str] = {}
    for file in files:
        columns = dict(zip(file.schema.names, file.schema.types)) | {
            c: pa.scalar(v).type for c, v in file.partition.items() if c not in file.schema.names}
        for c in [*kinds, *columns]:
            if c in faults:
                continue
            if c not in columns:
                faults[c] = (f"{file.name}: no column '{c}', which {origin[c].name} has; files of one split need the "
                             "same columns" + did_you_mean(c, set(columns) - set(kinds)))
            elif c not in kinds and file is not files[0]:
                faults[c] = (f"{files[0].name}: no column '{c}', which {file.name} has; files of one split need the "
                             "same columns")
            else:
                kind = widened(columns[c])
                both = common(kinds.setdefault(c, kind), kind)
                if both is None:
                    faults[c] = (f"{file.name}: column '{c}' is {_column_type(kind)}, but in {origin[c].name} it is "
                                 f"{_column_type(kinds[c])}; write it as one type in all files")
                    continue
                if c not in origin or both != kinds[c]:
                    origin[c] = file
                kinds[c] = both
        for c in {c for c in file.schema.names if file.schema.names.count(c) > 1}:
            faults[c] = f"{file.name}: has {file.schema.names.count(c)} columns named '{c}'; rename all but one"
    return pa.schema([(c, k) for c, k in kinds.items() if c not in faults]), faults


def _type_partitions(files: list[Any]) -> None:
    """Values of key=value folders become whole numbers where all of a key's values are."""
    for key in dict.fromkeys(k for f in files for k in f.partition):
        values = [f.partition[key] for f in files if f.partition.get(key) is not None]
        if all(re.fullmatch(r"-?\d{1,18}", str(v)) for v in values):
            for f in files:
                if f.partition.get(key) is not None:
                    f.partition[key] = int(f.partition[key])


def _column_type(kind: pa.DataType) -> str:
    names = {pa.int64(): "int", pa.float64(): "float", pa.large_string(): "string", pa.bool_(): "bool"}
    if pa.types.is_large_list(kind):
        return f"list of {_column_type(kind.value_type)}"
    return names.get(kind, str(kind))


def _own(array: pa.Array) -> pa.Array:
    """The same values in buffers that hold nothing else: offset 0, and lists without hidden values."""
    if pa.types.is_large_list(array.type) and len(array):
        offsets = array.offsets.to_numpy()
        hidden = offsets[0] != 0 or offsets[-1] != len(array.values)
        if array.null_count and not hidden:
            hidden = bool((offsets[1:] - offsets[:-1])[array.is_null().to_numpy(zero_copy_only=False)].any())
        return array.take(pa.array(np.arange(len(array)))) if hidden or array.offset else array
    return pa.concat_arrays([array, array.slice(0, 0)]) if array.offset else array


# ---- formats: name, schema, empty, partition, part (the word), parts [(rows, bytes a row)], stream, column

class ParquetRows:
    part = "row group"

    def __init__(self, place: "Place", width: int = 0):
        """`width` is what another file of the same rows measured, to spare measuring each."""
        self.place, self.name, self.partition = place, place.name, place.partition
        file = self._open()
        self.schema = _readable(file.schema_arrow)
        groups = [file.metadata.row_group(g) for g in range(file.metadata.num_row_groups)]
        self.empty = not any(g.num_rows for g in groups)
        self.width = width or (0 if self.empty else self._measure(file, [g.num_rows > 0 for g in groups].index(True)))
        self.parts = [(g.num_rows, max(self.width, 2 * g.total_byte_size // max(1, g.num_rows))) for g in groups]

    def _open(self) -> pq.ParquetFile:
        return pq.ParquetFile(self.place.open(), page_checksum_verification=True, pre_buffer=False,
                              coerce_int96_timestamp_unit="us")

    @staticmethod
    def _measure(file: pq.ParquetFile, group: int) -> int:
        """Decoded bytes a row, from the first rows: packed sizes say little, since 20M zeros fit 87 kB.

        The footer's own column sizes are not asked, because pyarrow ends the process where they are damaged.
        """
        first = next(file.iter_batches(1024, row_groups=[group]), None)
        return 2 * first.nbytes // first.num_rows if first else 0

    def stream(self, part: int, columns: list[str], rows: int) -> Iterator[pa.RecordBatch]:
        yield from self._open().iter_batches(batch_size=min(rows, BATCH), row_groups=[part], columns=columns)

    def column(self, values: pa.ChunkedArray, kind: pa.DataType, where: str, name: str, start: int) -> pa.Array:
        where = f"{where}, column '{name}'"
        array = conform(whole(values), kind, where)
        if "string" in str(kind):
            with reading(where):
                array.validate(full=True)          # text that is not UTF-8 would fail far from here
        return array


def _readable(schema: pa.Schema) -> pa.Schema:
    """The same; a damaged file's names and types fail here, where its place is known."""
    _ = schema.names, str(schema)
    return schema


class ArrowRows(ParquetRows):
    """IPC files (Feather 2) and IPC streams, told apart by their first bytes."""

    part = "record batch"

    def __init__(self, place: "Place"):
        self.place, self.name, self.partition = place, place.name, place.partition
        file = place.open()
        magic = file.read(6)
        if magic.startswith(b"FEA1"):
            raise DataError(f"{place.name}: is Feather version 1, which is no longer read; write it as version 2")
        self.random = magic == b"ARROW1"
        file.seek(0)
        reader = pa.ipc.open_file(file) if self.random else pa.ipc.open_stream(file)
        self.schema = _readable(reader.schema)
        sizes = list(self._sizes(reader))
        if not self.random:                        # a stream has no way in but its beginning: one part
            sizes = [(sum(n for n, _ in sizes), sum(b for _, b in sizes))]
        self.parts = [(n, 2 * b // max(1, n)) for n, b in sizes]
        self.empty = not any(n for n, _ in sizes)

    def _sizes(self, reader: Any) -> Iterator[tuple[int, int]]:
        batches = (reader.get_batch(i) for i in range(reader.num_record_batches)) if self.random else reader
        for batch in batches:
            yield batch.num_rows, batch.get_total_buffer_size()

    def stream(self, part: int, columns: list[str], rows: int) -> Iterator[pa.RecordBatch]:
        file = self.place.open()
        wanted = pa.ipc.IpcReadOptions(included_fields=[self.schema.get_field_index(c) for c in columns])
        if self.random:
            batches = iter([pa.ipc.open_file(file, options=wanted).get_batch(part)])
        else:
            batches = iter(pa.ipc.open_stream(file, options=wanted))
        for batch in batches:
            batch.validate(full=True)              # offsets are taken from the file as they are
            yield batch


class TableRows(ParquetRows):
    """Rows already in memory."""

    part = ""

    def __init__(self, name: str, table: pa.Table):
        self.name, self.table, self.partition, self.schema = name, table, {}, table.schema
        self.parts = [(table.num_rows, 2 * table.nbytes // max(1, table.num_rows))]
        self.empty = table.num_rows == 0

    def stream(self, part: int, columns: list[str], rows: int) -> Iterator[pa.RecordBatch]:
        yield from self.table.select(columns).to_batches()


class CsvRows:
    """Text: every column is cut as text, and read as the type that its first values have.

    Types come from the first block (the first that holds a value) of the first file and then stand for all files. A
    column whose numbers have leading zeros is text, because 007 and 7 are two ids. An empty cell is null.
    """

    part = ""

    def __init__(self, place: "Place", csv: Csv, known: Mapping[str, pa.DataType]):
        self.place, self.csv, self.name, self.partition = place, csv, place.name, place.partition
        with self._reader() as reader:
            names = reader.schema.names
        self._once = [c for c in names if names.count(c) == 1]
        if not self._once:
            raise DataError(f"{place.name}: no column has a name of its own; columns are {listing(names)}")
        kinds = {c: WORD[csv.types[c]] if c in csv.types else known.get(c, pa.null()) for c in names}
        self.empty, self._width = True, 1
        for batch in self._batches(self._once):
            if self.empty and batch.num_rows:
                self.empty, self._width = False, 2 * batch.nbytes // batch.num_rows
            for c in [c for c in self._once if pa.types.is_null(kinds[c])]:
                kinds[c] = infer(batch.column(c))
            if not self.empty and not any(pa.types.is_null(kinds[c]) for c in self._once):
                break
        self.schema = pa.schema([(c, kinds[c]) for c in names])

    @cached_property
    def parts(self) -> list[tuple[int, int]]:
        return [(sum(b.num_rows for b in self._batches(self._once[:1])), self._width)]

    def stream(self, part: int, columns: list[str], rows: int) -> Iterator[pa.RecordBatch]:
        yield from self._batches(columns)

    def _batches(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        with self._reader(columns) as reader:
            yield from reader

    def _reader(self, columns: list[str] | None = None) -> pcsv.CSVStreamingReader:
        stem, compression = _split_compression(self.place.path)
        file = self.place.open()
        if compression:
            file = pa.CompressedInputStream(file, compression)
        delimiter = "\t" if stem.endswith(".tsv") and self.csv.delimiter == "," else self.csv.delimiter
        text = dict.fromkeys(columns or [], pa.large_string())
        return pcsv.open_csv(
            file,
            pcsv.ReadOptions(use_threads=False, block_size=BLOCK,
                             column_names=None if self.csv.header else self.csv.columns),
            pcsv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            pcsv.ConvertOptions(column_types=text, include_columns=columns, null_values=[""],
                                strings_can_be_null=True))

    def column(self, values: pa.ChunkedArray, kind: pa.DataType, where: str, name: str, start: int) -> pa.Array:
        texts = whole(values)
        mine = self.schema.field(name).type
        try:
            return conform(parse(texts, mine), kind, f"{where}, column '{name}'")
        except Unparsed as e:
            other = "float" if mine == pa.int64() and not _fault(e.text, pa.float64()) and not re.match(
                r"-?0\d", e.text) else "text"
            raise DataError(
                f"{self.name}, row {start + e.row + 1}: column '{name}' holds '{e.text}', but it is read as "
                f"{_column_type(mine)}, as its first values are; correct the value, or set data.csv.types to "
                f"{{{name}: {other}}}") from None


class Unparsed(Exception):
    def __init__(self, text: str, row: int):
        self.text, self.row = text, row


def infer(texts: pa.Array) -> pa.DataType:
    """The narrowest type that holds every text [n]: null, int64, double, bool, date32, timestamp[us], large_string."""
    texts = texts.drop_null()
    numbers = texts.filter(pc.invert(pc.is_in(texts, value_set=pa.array(NO_NUMBER, texts.type))))
    if not len(texts) or not len(numbers):
        return pa.null()
    if pc.any(pc.match_substring_regex(numbers, r"^-?0\d")).as_py():
        return pa.large_string()
    whole = pc.all(pc.match_substring_regex(numbers, r"^-?\d+$")).as_py()
    for kind in [pa.int64()] if whole else [pa.float64(), pa.bool_(), pa.date32(), pa.timestamp("us"),
                                            pa.timestamp("us", "UTC")]:
        try:
            parse(texts, kind)
        except Unparsed:
            continue
        return kind
    return pa.large_string()


def parse(texts: pa.Array, kind: pa.DataType) -> pa.Array:
    """Texts [n] as values of a type, words such as NA as null; raises Unparsed at the first that is not exactly one."""
    if kind == pa.large_string():
        return texts
    try:
        values = _cast(texts, kind)
    except pa.ArrowException:
        none = pc.is_in(texts, value_set=pa.array(NO_NUMBER, texts.type))
        texts = pc.if_else(none, pa.scalar(None, texts.type), texts)
        try:
            values = _cast(texts, kind)
        except pa.ArrowException:
            first = next(i for i, t in enumerate(texts) if t.is_valid and _fault(t.as_py(), kind))
            raise Unparsed(texts[first].as_py(), first) from None
    if kind == pa.float64() and pc.any(nan := pc.is_nan(values)).as_py():
        return pc.if_else(nan, pa.scalar(None, kind), values)
    if kind == pa.int64():                     # 007 is not 7: what begins with 0 must read the same written back
        doubtful = pc.or_(pc.starts_with(texts, "0"), pc.or_(pc.starts_with(texts, "-0"), pc.starts_with(texts, "+")))
        if not pc.any(doubtful).as_py():
            return values
        written = pc.equal(values.cast(texts.type), texts)
    elif kind == pa.bool_():                   # and 1 is not true
        written = pc.equal(values.cast(texts.type), pc.utf8_lower(texts))
    else:
        return values
    if not pc.all(written, min_count=0).as_py():
        first = pc.index(written, False).as_py()
        raise Unparsed(texts[first].as_py(), first)
    return values


def _cast(texts: pa.Array, kind: pa.DataType) -> pa.Array:
    if pa.types.is_null(kind) and texts.null_count == len(texts):
        return pa.nulls(len(texts))
    return texts.cast(kind)


def _fault(text: str, kind: pa.DataType) -> bool:
    try:
        pa.array([text], pa.large_string()).cast(kind)
    except pa.ArrowException:
        return True
    return False


# ---- places

@dataclass
class Place:
    """One file: where it is, what it is called in sentences, and what its folders say about its rows."""

    fs: Any
    path: str
    name: str
    format: str
    partition: dict[str, Any] = field(default_factory=dict)

    @property
    def local(self) -> bool:
        return _is_local(self.fs)

    def open(self) -> pa.NativeFile:
        if self.local:
            return pa.OSFile(self.path, "rb")
        return pafs.PyFileSystem(pafs.FSSpecHandler(self.fs)).open_input_file(self.path)

    def fingerprint(self) -> dict[str, Any]:
        if self.local:
            stat = os.stat(self.path)
            return {"path": self.path, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
        info = self.fs.info(self.path)
        keys = ("mtime", "LastModified", "last_modified", "updated", "modified", "created", "ETag", "etag")
        return {"path": self.fs.unstrip_protocol(self.path), "size": info.get("size"),
                "mtime_ns": str(next((info[k] for k in keys if info.get(k) is not None), None))}


def _is_local(fs: Any) -> bool:
    return "file" in ((fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol)


def _find(paths: list[str], data: Data, split: str) -> list[Place]:
    """Every file that the paths name, each once, folders and globs in the order of their names."""
    places: dict[str, Place] = {}
    for written in paths:
        with reading(f"data.{split}: '{written}'"):
            found = _expand(written, data, split)
        for place in found:
            if place.path in places:
                raise DataError(f"data.{split}: {place.name} is named twice; its rows would count double")
            places[place.path] = place
    return list(places.values())


def _expand(written: str, data: Data, split: str) -> list[Place]:
    home, written = data.dir or os.getcwd(), os.path.expanduser(written)
    full = written if "://" in written or os.path.isabs(written) else f"{home.rstrip('/')}/{written}"
    full = full if "://" in full else os.path.abspath(full)
    try:
        fs, path = fsspec.core.url_to_fs(full)
        root = fsspec.core.url_to_fs(home if "://" in home else os.path.abspath(home))[1]
    except (ImportError, ValueError) as e:
        raise ConfigError(f"data.{split}: '{written}' cannot be opened: {_sentence(e)}") from e
    if fs.isfile(path):
        return [_place(fs, path, root, data.format, f"data.{split}")]
    if fs.isdir(path):
        hits = [path]
    elif not any(c in written for c in "*?["):
        raise DataError(f"data.{split}: no file or folder '{written}'{_siblings(fs, path)}")
    elif not (hits := sorted(fs.glob(path))):
        raise DataError(f"data.{split}: no file matches '{written}'{_siblings(fs, path)}")
    inside = sorted({f for hit in hits for f in (fs.find(hit) if fs.isdir(hit) else [hit])
                     if not _hidden(f[len(hit):] or os.path.basename(f))})
    formats = {f: _format(f) for f in inside}
    kept = [f for f in inside if formats[f] and formats[f] == (data.format or formats[f])]
    if data.format and not kept:
        kept = [f for f in inside if not formats[f]]
    if not kept:
        raise DataError(f"data.{split}: '{written}' holds no data files"
                        + (f" of format {data.format}" if data.format else "")
                        + f"; it holds {listing(os.path.basename(f) for f in inside)}")
    if len(kinds := sorted({formats[f] for f in kept if formats[f]})) > 1:
        raise DataError(f"data.{split}: '{written}' holds {listing(kinds)} files; say which with data.format")
    return [_place(fs, f, root, data.format, f"data.{split}") for f in kept]


def _place(fs: Any, path: str, root: str, format: str | None, where: str) -> Place:
    root = root.rstrip("/") + "/"
    name = path[len(root):] if path.startswith(root) else path if _is_local(fs) else fs.unstrip_protocol(path)
    if (format := format or _format(path)) is None:
        raise DataError(f"{where}: {name} has no suffix that tells its format; rename it, or set data.format")
    if fs.size(path) == 0:
        raise DataError(f"{name}: is empty (0 bytes)")
    pairs = [p.partition("=") for p in name.split("/")[:-1] if "=" in p]
    partition = {unquote(k): None if v == "__HIVE_DEFAULT_PARTITION__" else unquote(v) for k, _, v in pairs if k}
    return Place(fs, path, name, format, partition)


def _split_compression(path: str) -> tuple[str, str | None]:
    stem, suffix = os.path.splitext(path.lower())
    return (stem, COMPRESSION[suffix]) if suffix in COMPRESSION else (path.lower(), None)


def _format(path: str) -> str | None:
    stem, compression = _split_compression(path)
    found = next((f for f, suffixes in SUFFIXES.items() if stem.endswith(suffixes)), None)
    return found if found == "csv" or not compression else None


def _hidden(path: str) -> bool:
    """Spark's _SUCCESS and _metadata, and everything under a name that begins with a dot."""
    return any(p.startswith((".", "_")) and "=" not in p for p in path.split("/"))


def _siblings(fs: Any, path: str) -> str:
    parent, _, last = path.rstrip("/").rpartition("/")
    if not fs.isdir(parent):
        return f"; there is no folder '{parent}'"
    names = [os.path.basename(p.rstrip("/")) for p in fs.ls(parent, detail=False)]
    return did_you_mean(last, names) or f"; '{parent}' holds {listing(sorted(names), 5)}"


def _as_table(rows: Any, where: str) -> pa.Table:
    if isinstance(rows, list | tuple):
        raise ConfigError(f"{where}: a list may hold paths only; join tables before they are passed")
    try:
        if isinstance(rows, pa.Table):
            return rows
        if isinstance(rows, pa.RecordBatch):
            return pa.Table.from_batches([rows])
        if type(rows).__module__.split(".")[0] == "pandas" and hasattr(rows, "columns"):
            return pa.Table.from_pandas(rows, preserve_index=False)
        if hasattr(rows, "to_arrow"):
            return rows.to_arrow()
        if hasattr(rows, "__arrow_c_stream__"):
            return pa.table(rows)
    except (pa.ArrowException, TypeError, ValueError) as e:
        raise DataError(f"{where}: the table does not fit Arrow: {_sentence(e)}") from e
    raise ConfigError(f"{where}: a {type(rows).__name__} is no table; a path, a pyarrow table, or a pandas or polars "
                      "frame would do" + ("; call .collect() first" if hasattr(rows, "collect") else ""))


# ---- errors

@contextmanager
def reading(where: str) -> Iterator[None]:
    """What pyarrow, the disk or a remote store raises inside becomes one DataError sentence about `where`."""
    try:
        yield
    except MemoryError as e:
        raise DataError(f"{where}: the memory does not hold it ({_sentence(e)}); lower data.memory") from e
    except (pa.ArrowException, OSError, EOFError, UnicodeDecodeError) as e:
        raise DataError(f"{where}: cannot be read: {_sentence(e)}") from e


def _sentence(e: BaseException) -> str:
    text = " ".join(str(e).split("\n")[0].split(". Detail:")[0].split()).rstrip(".")
    return (text[:200] + " ..." if len(text) > 200 else text) or type(e).__name__
