"""Vectors of values that were made elsewhere (data.vectors): files of values and, for each, so many numbers.

    .npy                  a matrix; its rows are the values of `ids`, a text of one value a line, or 0, 1, 2, ...
    .txt .vec             a line each: the value, then its numbers, with spaces between; a first line of two counts
                          is no vector
    parquet, csv, arrow   two columns: the value, and a list of numbers or a text that `separator` cuts
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from funnelrank.data.ahead import each
from funnelrank.data.kinds import reading
from funnelrank.data.parse import one_chunk
from funnelrank.data.readings import number_lists, vectors
from funnelrank.data.source import open_source
from funnelrank.data.tables import canonical
from funnelrank.errors import DataError
from funnelrank.settings import Data, VectorSettings

LINES = 8192                 # of a text or a matrix, read at once


class Part(NamedTuple):
    """Some values of a file."""

    values: pa.Array             # [k] int64 or large_string
    vectors: np.ndarray          # [k, D] float32
    where: str                   # begins the sentence of an error


class Vectors:
    """The values of one entry of data.vectors, part by part."""

    def __init__(self, name: str, said: VectorSettings, data: Data):
        """Opens the files. Raises DataError where they are missing, damaged or of another form."""
        self.name, self.said = name, said
        where = f"data.vectors.{name}"
        self._source = None
        if isinstance(said.path, str) and Path(said.path).suffix.lower() in (".npy", ".txt", ".vec"):
            self.path = Path(data.dir or ".") / said.path
            with reading(f"{where}.path: {self.path}"):
                about = self.path.stat()
            self._about = [{"path": str(self.path), "size": about.st_size, "changed": about.st_mtime_ns}]
        else:
            anyway = data.model_copy(update={"on_error": "raise", "format": None})
            self._source = open_source(said.path, anyway, f"vectors.{name}.path")
            self._source.require([said.id, said.vector], {said.id: f"{where}.id", said.vector: f"{where}.vector"})
        self._ids = Path(data.dir or ".") / said.ids if said.ids else None

    def fingerprint(self) -> Any:
        return self._source.fingerprint() if self._source else {"files": self._about}

    def parts(self) -> Iterator[Part]:
        """Raises DataError for null values, and for vectors that differ in length or hold what is no number."""
        if self._source:
            found = self._of_table()
        else:
            found = self._of_matrix() if self.path.suffix.lower() == ".npy" else self._of_text()
        for part in found:
            if part.values.null_count:
                raise DataError(f"{part.where}: a value is null; each vector is of one")
            if not np.isfinite(part.vectors).all():
                row = int((~np.isfinite(part.vectors)).any(1).argmax())
                raise DataError(f"{part.where}: the vector of {part.values[row].as_py()!r} holds a number that is "
                                "missing or not finite")
            yield part

    def _of_table(self) -> Iterator[Part]:
        width = None
        for unit, table in each(self._source, [self.said.id, self.said.vector]):
            where = self._source.where(unit)
            column = one_chunk(table[self.said.vector])
            place = f"{where}: column '{self.said.vector}'"
            if width is None:
                lengths = np.diff(number_lists(column.slice(0, 1), place, self.said.separator)[1])
                width = int(lengths[0]) if len(lengths) and lengths[0] else None
            found, missing = vectors(column, width or 1, place, self.said.separator)
            if missing.any():
                raise DataError(f"{place}: is null or empty in {int(missing.sum())} rows (first: row "
                                f"{int(missing.argmax())}); leave such values out")
            yield Part(canonical(table[self.said.id], f"{where}: column '{self.said.id}'"), found.astype(np.float32),
                       where)

    def _of_matrix(self) -> Iterator[Part]:
        where = f"data.vectors.{self.name}: {self.path}"
        try:
            matrix = np.load(self.path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            said = str(error).splitlines()[0]
            raise DataError(f"{where}: cannot be read ({said}); write it with numpy.save") from None
        if matrix.ndim != 2 or matrix.dtype.kind not in "fiu":
            raise DataError(f"{where}: is of shape {list(matrix.shape)} and type {matrix.dtype}; a matrix of numbers, "
                            "[values, width], is needed")
        values = pa.array(np.arange(len(matrix)))
        if self._ids:
            with reading(f"data.vectors.{self.name}.ids: {self._ids}"):
                values = pa.array(self._ids.read_text(encoding="utf-8").splitlines(), pa.large_string())
            if len(values) != len(matrix):
                raise DataError(f"data.vectors.{self.name}.ids: {self._ids} has {len(values):,} lines, and the matrix "
                                f"{len(matrix):,} rows; each row has its value")
        for start in range(0, len(matrix), LINES):
            part = slice(start, start + LINES)
            yield Part(values[part], np.array(matrix[part], np.float32), where)

    def _of_text(self) -> Iterator[Part]:
        where, width, first = f"data.vectors.{self.name}: {self.path}", None, 1
        with reading(where), self.path.open(encoding="utf-8") as lines:
            while some := list(islice(lines, LINES)):
                values, numbers = [], []
                for at, line in enumerate(some, first):
                    pieces = line.split()
                    if not pieces or (at == 1 and len(pieces) == 2 and all(p.isdigit() for p in pieces)):
                        continue
                    width = width or len(pieces) - 1
                    try:
                        numbers.append(np.array(pieces[len(pieces) - width:], np.float32))
                    except ValueError:
                        numbers.append(np.empty(0))
                    if len(pieces) <= width or len(numbers[-1]) != width or not width:
                        raise DataError(f"{where}, line {at}: is no value and {width or 'some'} numbers behind it, as "
                                        "the first line has")
                    values.append(" ".join(pieces[:len(pieces) - width]))
                first += len(some)
                if values:
                    yield Part(pa.array(values, pa.large_string()), np.stack(numbers), where)


def open_vectors(data: Data) -> dict[str, Vectors]:
    """Every entry of data.vectors, opened."""
    return {name: Vectors(name, said, data) for name, said in data.vectors.items()}
