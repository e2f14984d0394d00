"""Files and tables as streams of record batches, one class a format (CSV: text_rows.py).

Each has: name, schema, empty (no rows at all), partition, part (the word for its parts), parts [(rows, bytes a row)],
`stream` of a part's batches, and `column`, which brings one of them to the type that a split agreed on.
"""

from collections import deque
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from funnelrank.data.kinds import conform, reading, sentence, whole
from funnelrank.data.places import Place
from funnelrank.errors import ConfigError, DataError

BATCH = 4096                  # rows decoded at a time
LISTED = 512                  # the same where columns hold lists and data.memory is small,
LONG = 80_000                 # bytes of a list that are reckoned with where it is not: ten thousand ids,
LONG_SHARE = 8                # for such a share of data.memory
FEWEST = 64                   # rows decoded at a time, however large a row group is
BUFFER = 1 << 20              # bytes read at a time where a row group is larger than its share
ENOUGH = 1 << 24              # decoded bytes that measuring may take
BATCH_SHARE = 64              # a decoded batch's share of data.memory, and the bytes it may always have
LEAST_BATCH = 1 << 23
GROUP_SHARE = 8               # a row group's share of data.memory, up to which its columns are read in one go


class ParquetRows:
    part = "row group"
    ragged: tuple[str, ...] = ()      # lines of text that were left out

    def __init__(self, place: Place, memory: int = 2_000_000_000, width: int = 0):
        """`width` is what another file of the same rows measured, to spare measuring each."""
        self.place, self.name, self.partition, self.memory = place, place.name, place.partition, memory
        self._sizes: list[int] = []
        file = self._open()
        self.schema = _readable(file.schema_arrow)
        groups = [file.metadata.row_group(g) for g in range(file.metadata.num_row_groups)]
        self.empty = not any(g.num_rows for g in groups)
        self.width = width or (0 if self.empty else self._measure(file, [g.num_rows > 0 for g in groups].index(True)))
        self.parts = [(g.num_rows, max(self.width, 2 * g.total_byte_size // max(1, g.num_rows))) for g in groups]
        self._sizes = [g.total_byte_size for g in groups]

    def _open(self, group: int | None = None) -> pq.ParquetFile:
        large = group is None or self._sizes[group] * GROUP_SHARE > self.memory
        return pq.ParquetFile(self.place.open(), page_checksum_verification=True, pre_buffer=False,
                              buffer_size=BUFFER if large else 0, coerce_int96_timestamp_unit="us")

    @staticmethod
    def _measure(file: pq.ParquetFile, group: int) -> int:
        """Decoded bytes a row, from the first rows: packed sizes say little, since 20M zeros fit 87 kB.

        The footer's own column sizes are not asked, because pyarrow ends the process where they are damaged.
        """
        width = 0
        for rows in (1, 1024):                    # a thousand rows of a megabyte would be too many
            if width * rows <= ENOUGH and (first := next(file.iter_batches(rows, row_groups=[group]), None)):
                width = 2 * first.nbytes // first.num_rows
        return width

    def stream(self, part: int, columns: list[str], rows: int) -> Iterator[pa.RecordBatch]:
        # a batch is at most as large as its group, decoded; of larger groups, fewer rows are decoded at a time
        share = self.memory / GROUP_SHARE / max(1, self._sizes[part])
        listed = any(pa.types.is_nested(self.schema.field(c).type) for c in columns)
        most = min(BATCH, max(LISTED, self.memory // LONG_SHARE // LONG)) if listed else BATCH
        size = max(1, min(rows, most, max(FEWEST, int(most * share))))
        fits, done = max(LEAST_BATCH, self.memory // BATCH_SHARE), 0
        while size:
            at, narrower = 0, 0
            for batch in self._open(part).iter_batches(batch_size=size, row_groups=[part], columns=columns,
                                                       use_threads=False):       # units are read side by side
                decoded, many = batch.get_total_buffer_size(), batch.num_rows
                at += many
                if at <= done:
                    continue
                batch = batch.slice(max(0, done - at + many))
                done = at
                yield batch
                if decoded > 2 * fits and many > 1:        # rows wider than those before: begin again
                    narrower = max(1, fits * many // decoded)
                    break
            size = narrower

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

    def __init__(self, place: Place):
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


def as_table(rows: Any, where: str) -> pa.Table:
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
        raise DataError(f"{where}: the table does not fit Arrow: {sentence(e)}") from e
    raise ConfigError(f"{where}: found {type(rows).__name__}, which is no table; a path, a pyarrow table, or a "
                      "pandas or polars frame would do"
                      + ("; call .collect() first" if hasattr(rows, "collect") else ""))


class Stream:
    """Record batches of any sizes, taken in the sizes asked for."""

    def __init__(self, batches: Iterator[pa.RecordBatch]):
        self.batches, self.at = batches, 0
        self._rest: deque[pa.RecordBatch] = deque()

    def take(self, rows: int, most: int) -> pa.Table | None:
        """The next `rows` rows, or fewer at the end; None, and nothing taken, where they pass `most` bytes."""
        pieces, size, exactly = [], 0, False
        for piece in self._pieces(rows):
            pieces.append(piece)
            # the size of buffers is known at once, that of a part of them takes a hundred times as long
            size += piece.nbytes if exactly else piece.get_total_buffer_size()
            if size > most and not exactly:
                exactly, size = True, sum(p.nbytes for p in pieces)
            if size > most:
                self._rest.extendleft(reversed(pieces))
                self.at -= sum(piece.num_rows for piece in pieces)
                return None
        return pa.Table.from_batches(pieces) if pieces else pa.table({})

    def skip(self, rows: int) -> None:
        for _ in self._pieces(rows):
            pass

    def _pieces(self, rows: int) -> Iterator[pa.RecordBatch]:
        while rows > 0:
            batch = self._rest.popleft() if self._rest else next(self.batches, None)
            if batch is None:
                return
            if batch.num_rows > rows:
                self._rest.appendleft(batch.slice(rows))
            piece = batch.slice(0, rows)
            rows -= piece.num_rows
            self.at += piece.num_rows
            yield piece
