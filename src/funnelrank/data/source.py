"""Raw rows, from wherever they lie, one bounded unit at a time. Nothing is ever loaded whole.

    rows (a path, a glob, a folder, a URL, a table)  ->  files  ->  parts (row groups, record batches)  ->  units

Every format becomes a stream of Arrow record batches that is cut into units of a known number of rows, so that a unit
fits the memory budget however large its row group is. Column types are brought to few: int64, double, bool,
large_string, timestamp[us], date32, and large_list of these (kinds.py). places.py finds files, formats.py and
text_rows.py decode them. What pyarrow or the disk raises leaves here as one DataError sentence that names the place.
"""

import hashlib
import os
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import pyarrow as pa

from funnelrank.data.agree import agree
from funnelrank.data.formats import ArrowRows, ParquetRows, Stream, TableRows, as_table
from funnelrank.data.kinds import own, reading
from funnelrank.data.places import find_files
from funnelrank.data.skipped import Skipped
from funnelrank.data.text_rows import CsvRows
from funnelrank.errors import ConfigError, DataError, did_you_mean, listing
from funnelrank.settings import Data

UNIT_ROWS = 131_072
LEAST = 1 << 26               # bytes a unit may always have
UNIT_SHARE = 8                # a unit's share of data.memory: readers, casts and encoders hold copies beside it
COPIES = 2                    # units of such a share that fit beside each other
MOST_ROWS = 10**11            # of one row group; a footer that says more is not believed


def open_source(rows: Any, data: Data, split: str, where: str | None = None) -> "Source":
    """The rows of one split, opened and checked but not read.

    `rows` is a path, a glob, a folder, an fsspec URL or a list of these, relative paths starting at data.dir; or a
    pyarrow table or record batch, or a pandas or polars frame. Errors begin with `where`, by default data.<split>.
    Raises DataError for files that are missing, empty, damaged, or that disagree; ConfigError for what cannot be rows.
    """
    where = where or f"data.{split}"
    if rows is None or (isinstance(rows, list | tuple) and not rows):
        raise ConfigError(f"{where}: no rows are given; name a file, a folder or a glob")
    paths = [os.fspath(r) if isinstance(r, os.PathLike) else r
             for r in (rows if isinstance(rows, list | tuple) else [rows])]
    if not all(isinstance(p, str) for p in paths):
        name = f"the table given as {where}"
        files: list[Any] = [TableRows(name, as_table(rows, where))]
        return Source(split, files, data)
    files, types, width, skipped = [], {}, 0, Skipped()
    places = find_files(paths, data, where)
    for place in places:
        try:
            with reading(place.name):
                place.refuse_empty()
                place.opened = place.fingerprint()
                match place.format:
                    case "parquet":
                        files.append(ParquetRows(place, data.memory, width))
                        width = files[-1].width
                    case "arrow":
                        files.append(ArrowRows(place))
                    case "csv":
                        files.append(CsvRows(place, data.csv, types, data.on_error == "skip"))
                        types |= {c.name: c.type for c in files[-1].schema if types.get(c.name, pa.null()) == pa.null()}
        except DataError as error:
            if data.on_error == "raise":
                raise
            skipped.file(error)
    if not files:
        raise DataError(f"{where}: none of the {len(places)} files can be read, and data.on_error is skip; the "
                        f"first sentence: {skipped.samples[0]}")
    return Source(split, files, data, skipped)


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


class TooWide(DataError):
    """Rows of a unit that pass its share of data.memory: `halves` of it are read instead."""


def halves(unit: Unit) -> list[Unit]:
    """Two units of the same rows, or none where it has only one."""
    middle = unit.rows // 2
    return [replace(unit, rows=middle), replace(unit, start=unit.start + middle, offset=unit.offset + middle,
                                                rows=unit.rows - middle)] if middle else []


class Source:
    """The rows of one split: what columns they have, and units to read them by.

    split    its name in the config, as 'train'
    columns  the columns that all files have, in the first file's order, with the types that `read` gives
    units    in file order; rows is their exact number. For CSV both need one pass over the text, made when asked.
    skipped  files that data.on_error: skip left out; single rows and row groups are left out by sift.py
    """

    def __init__(self, split: str, files: list[Any], data: Data, skipped: Skipped | None = None):
        self.split, self.memory, self.skips = split, data.memory, data.on_error == "skip"
        self.skipped = skipped or Skipped()
        self.name = files[0].name if len(files) == 1 else f"data.{split} ({len(files)} files)"
        self._files = [f for f in files if not f.empty]
        if not self._files:
            raise DataError(f"{files[0].name}: holds no rows" if len(files) == 1 else
                            f"data.{split}: none of the {len(files)} files holds a row (first: {files[0].name})")
        self._csv = data.csv
        self._stream: tuple[Any, Stream] | None = None
        self.columns, self._faults = agree(self._files)

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

    @property
    def ragged(self) -> list[str]:
        """Lines of text that data.on_error: skip left out, a sentence each; known once `units` are."""
        return [line for file in self._files for line in file.ragged]

    def is_part(self, unit: Unit) -> bool:
        """Whether it is a whole part of its file: such units may be read at the same time, by several threads."""
        return unit.rows == self._files[unit.file].parts[unit.part][0]

    def at_once(self, threads: int) -> int:
        """How many units may be worked on together, each with copies beside it, within data.memory."""
        if threads == 1 or len(self.units) == 1:
            return 1
        largest = max(unit.rows * self._files[unit.file].parts[unit.part][1] for unit in self.units)
        return max(1, min(threads, len(self.units), self.memory * COPIES // UNIT_SHARE // max(1, largest)))

    def where(self, unit: Unit) -> str:
        """A unit's place in words, for errors: 'part-0007.parquet, row group 3'."""
        file = self._files[unit.file]
        name = f"{file.name}, {file.part} {unit.part}" if file.part else file.name
        return name if self.is_part(unit) else f"{name}, from row {unit.offset}"

    def require(self, columns: list[str], who: Mapping[str, str] | None = None) -> None:
        """Raise DataError, one sentence a fault, where columns are missing or differ between files.

        `who` says for a column what in the config asks for it, as {'price': 'features.price.column'}. Under
        data.on_error: skip, a file that stands apart from the others is left out instead.
        """
        while self.skips and "units" not in vars(self) and len(self._files) > 1 and (
                apart := next((self._faults[c] for c in columns if c in self._faults), None)):
            self.skipped.file(DataError(apart.sentence))
            self._files.remove(apart.file)
            self.columns, self._faults = agree(self._files)
        faults = []
        if not any(c in self.columns.names or c in self._faults for c in columns) and len(columns) > 3:
            raise DataError(f"{self.name}: none of the columns {listing(columns, 3)} is there; columns are "
                            f"{listing(self.columns.names)}{self._cut_wrongly()}")
        for c in columns:
            asks = f" ({who[c]})" if who and c in who else ""
            if c in self._faults:
                faults.append(self._faults[c].sentence + asks)
            elif c not in self.columns.names:
                near = did_you_mean(c, self.columns.names)
                faults.append(f"{self.name}: no column '{c}'{asks}" + (
                    near or f"; columns are {listing(self.columns.names)}"))
        if faults:
            raise DataError(*faults)

    @property
    def paths(self) -> list[str]:
        """Where the files lie, links followed; none for a table in memory."""
        return [os.path.realpath(f.place.path) if f.place.local else f.place.path
                for f in self._files if not isinstance(f, TableRows)]

    def files(self) -> list["Source"]:
        """A source of each file's rows, with the columns that all of them agreed on."""
        found = []
        for file in self._files:
            one = copy(self)
            for made in ("units", "rows", "_content"):
                vars(one).pop(made, None)
            one._files, one._stream, one.name = [file], None, file.name
            found.append(one)
        return found

    @property
    def paths_of_parquet(self) -> list[str] | None:
        """Every file's path or URL, where all of them are parquet files; another engine can read these."""
        if not all(type(f) is ParquetRows for f in self._files):
            return None
        return [f.place.path if f.place.local else f.place.fs.unstrip_protocol(f.place.path) for f in self._files]

    @property
    def raw_types(self) -> pa.Schema:
        """Columns of this split as the first file holds them, without those that are bytes, in whichever file."""
        bytes_ = {c for f in self._files for c, kind in zip(f.schema.names, f.schema.types)
                  if any(is_(kind) for is_ in (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view))}
        first = self._files[0].schema
        return pa.schema([first.field(c) for c in self.columns.names if c in first.names and c not in bytes_])

    def _cut_wrongly(self) -> str:
        """What to set where a text's first line was read as columns that nobody wants."""
        if not isinstance(self._files[0], CsvRows):
            return ""
        names = self.columns.names
        if len(names) == 1 and (found := [d for d in ";\t|," if d in names[0]]):
            return f"; set data.csv.delimiter to {found[0]!r}"
        return "; if that is no header line, set data.csv.header to false and name the columns in data.csv.columns"

    def read(self, unit: Unit, columns: list[str]) -> pa.Table:
        """One unit's rows, [unit.rows] of each column in the order asked, with the types of `columns`.

        Each column is one chunk that begins at offset 0, and a list column's values are exactly those of its rows.
        Reading units in order is fast; in a sliced part or a CSV file, going back reads that part again. Raises TooWide
        where rows are far wider than the first ones; `ahead.each` and `in_order` go on with halves then.
        """
        return self.typed(self.raw(unit, columns), unit, columns)

    def raw(self, unit: Unit, columns: list[str]) -> pa.Table:
        """One unit's rows of those columns that stand in its file, as the file holds them."""
        self.require(columns)
        file, where = self._files[unit.file], self.where(unit)
        inside = [c for c in dict.fromkeys(columns) if c in file.schema.names]
        if not inside:
            return pa.table({"": pa.nulls(unit.rows)})
        with reading(where):
            table = self._next(unit, tuple(inside))
        pa.default_memory_pool().release_unused()      # decoding needs more than what it gives, for a moment
        if table.num_rows != unit.rows or set(table.column_names) != set(inside):
            raise DataError(f"{where}: should give {unit.rows:,} more rows, but gave {table.num_rows:,}; the file "
                            "is damaged, or changed while it was read")
        return table

    def typed(self, table: pa.Table, unit: Unit, columns: list[str], start: int = 0) -> pa.Table:
        """Rows of a unit as `raw` gives them, from its row `start` on, with the types of `columns`."""
        file, where, rows = self._files[unit.file], self.where(unit), table.num_rows
        arrays: dict[str, pa.Array] = {}
        held = dict(zip(table.column_names, table.columns))
        del table                                  # each column goes once it is copied
        for c in dict.fromkeys(columns):
            kind = self.columns.field(c).type
            arrays[c] = own(file.column(held.pop(c), kind, where, c, unit.start + start) if c in file.schema.names else
                            pa.repeat(pa.scalar(file.partition[c], kind), rows))
        return pa.table([arrays[c] for c in columns], names=columns)

    def fingerprint(self) -> dict[str, Any]:
        """What a cache of these rows depends on: each file's path, size and time of change when it was opened; a
        table's content hash.
        """
        if isinstance(self._files[0], TableRows):
            return {"table": self._content}
        csv = self._csv.model_dump() if any(isinstance(f, CsvRows) for f in self._files) else None
        return {"files": [f.place.opened for f in self._files], "csv": csv}

    def changed(self) -> bool:
        """Whether a file is not the one that was opened; DataError where one is gone."""
        with reading(self.name):
            return any(f.place.fingerprint() != f.place.opened for f in self._files if not isinstance(f, TableRows))

    @cached_property
    def _content(self) -> str:
        digest = hashlib.blake2b(digest_size=16)
        sink = pa.PythonFile(_Hashing(digest), mode="w")
        writer = None
        units = self.units[::-1]
        while units:
            unit = units.pop()
            try:
                table = self.read(unit, self.columns.names)
            except TooWide:
                if not (parts := halves(unit)):
                    raise
                units += parts[::-1]
                continue
            writer = writer or pa.ipc.new_stream(sink, table.schema)
            writer.write_table(table)
        writer.close()
        return digest.hexdigest()

    def _next(self, unit: Unit, columns: tuple[str, ...]) -> pa.Table:
        key = (unit.file, unit.part, columns)
        stream = None
        if not self.is_part(unit):              # one that is may be read while another thread goes through slices
            stream = self._stream[1] if self._stream and self._stream[0] == key else None
            self._stream = None                 # a stream that fails, or is done, is not used again
        if stream is None or stream.at > unit.offset:
            stream = Stream(self._files[unit.file].stream(unit.part, list(columns), unit.rows))
        stream.skip(unit.offset - stream.at)
        table = stream.take(unit.rows, max(LEAST, self.memory // UNIT_SHARE if unit.rows > 1 else self.memory))
        if table is None:
            if not self.is_part(unit):
                self._stream = (key, stream)
            raise TooWide(f"{self.where(unit)}: its rows are so wide that {unit.rows:,} of them pass data.memory "
                          f"({self.memory / 1e9:.3g} GB); raise data.memory, or write shorter lists and texts")
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
