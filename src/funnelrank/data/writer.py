"""Parquet files that are complete or absent."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from funnelrank.durable import write_failure
from funnelrank.errors import DataError


class ParquetWriter:
    """Collects tables of one schema into a temporary file, which takes the final name when all went well."""

    def __init__(self, path: Path):
        self.path, self.rows = path, 0
        self._new = path.with_name(f".{path.name}.{os.getpid()}.new")
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> ParquetWriter:
        return self

    def write(self, part: pa.Table) -> None:
        with self._said():
            if self._writer is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._writer = pq.ParquetWriter(self._new, part.schema, compression="zstd", write_page_checksum=True)
            self._writer.write_table(part)
        self.rows += len(part)

    def __exit__(self, kind: type | None, *_: object) -> None:
        try:
            if self._writer is not None:
                with self._said():
                    self._writer.close()
                    if kind is None:
                        with self._new.open("rb+") as file:
                            os.fsync(file.fileno())
                        self._new.replace(self.path)
        finally:
            self._new.unlink(missing_ok=True)

    @contextmanager
    def _said(self) -> Iterator[None]:
        """What a disk says, as a sentence that names the file."""
        try:
            yield
        except OSError as error:
            why = write_failure(error, self.path.parent) or str(error)
            raise DataError(f"{self.path}: {why}; nothing of it was left behind") from error
