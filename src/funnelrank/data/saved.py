"""Arrow files that an encoder keeps, read without more memory than they are long.

A file of a few kilobytes may hold buffers that are gigabytes once decompressed. What is written here is never
compressed, so a file that is was not: that is seen in its messages, before any buffer is touched.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from funnelrank.errors import DataError

MAGIC = b"ARROW1\0\0"           # then the messages as in a stream, and a footer
DICTIONARY, RECORDS = 2, 3      # kinds of messages with a body
HEADER, KIND = 2, 1             # fields of a Message
DATA, COMPRESSION = 1, 3        # of a DictionaryBatch, of a RecordBatch


def write_saved(table: pa.Table, path: Path | str) -> None:
    with pa.OSFile(str(path), "wb") as out, pa.ipc.new_file(out, table.schema) as file:
        file.write_table(table)


def read_saved(path: Path | str) -> pa.Table:
    """What `write_saved` wrote, its offsets and texts checked. Raises DataError for a file that is compressed, and what
    pyarrow raises for one that is no Arrow file."""
    with pa.OSFile(str(path), "rb") as file:
        whole = file.read_buffer()
    if memoryview(whole)[:len(MAGIC)] != MAGIC:
        raise DataError(f"{path}: is no Arrow file")
    parts = pa.ipc.open_file(whole).num_record_batches                # as its end says, so that it has one
    stream = whole.slice(len(MAGIC))
    if any(map(_is_compressed, _messages(stream))):
        raise DataError(f"{path}: is compressed, which what is written here never is; it was changed")
    reader = pa.ipc.open_stream(stream)
    batches = list(reader)
    if len(batches) != parts:
        raise DataError(f"{path}: holds {len(batches)} parts, and says {parts} at its end; it was changed")
    table = pa.Table.from_batches(batches, reader.schema)
    table.validate(full=True)                     # offsets are taken from the file as they are
    return table


def _messages(stream: pa.Buffer) -> Iterator[pa.Message]:
    reader = pa.ipc.MessageReader.open_stream(stream)
    while True:
        try:
            yield reader.read_next_message()
        except StopIteration:
            return


def _is_compressed(message: pa.Message) -> bool:
    """From a message's flatbuffer, which pyarrow has verified: tables of fields, found by offsets."""
    said = message.metadata.to_pybytes()
    top = struct.unpack_from("<I", said)[0]
    kind = _field(said, top, KIND)
    if not kind or said[kind] not in (DICTIONARY, RECORDS):
        return False
    records = _table(said, top, HEADER)
    if records and said[kind] == DICTIONARY:
        records = _table(said, records, DATA)
    return bool(records) and _field(said, records, COMPRESSION) != 0


def _field(said: bytes, table: int, number: int) -> int:
    """Where a table's field stands; 0 where it is left out."""
    fields = table - struct.unpack_from("<i", said, table)[0]
    place = 4 + 2 * number
    if place + 2 > struct.unpack_from("<H", said, fields)[0]:
        return 0
    offset = struct.unpack_from("<H", said, fields + place)[0]
    return table + offset if offset else 0


def _table(said: bytes, table: int, number: int) -> int:
    """Where the table that a field points to begins; 0 where it is left out."""
    place = _field(said, table, number)
    return place + struct.unpack_from("<I", said, place)[0] if place else 0
