"""Rows that are text: CSV files, and the types of their columns.

A column is cut as text and read as the type that its first values have, which then stands for all files of a split.
"""

import re
from collections.abc import Iterator, Mapping
from functools import cached_property

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv

from funnelrank.data.kinds import column_type, conform, whole
from funnelrank.data.places import Place, split_compression
from funnelrank.errors import DataError, listing
from funnelrank.settings import Csv

BLOCK = 8 << 20               # bytes of text parsed at a time
NO_NUMBER = ["NA", "N/A", "NULL", "null", "None", "NaN", "nan", "\\N"]
WORD = {"int": pa.int64(), "float": pa.float64(), "text": pa.large_string()}


class CsvRows:
    """Text: every column is cut as text, and read as the type that its first values have.

    Types come from the first block (the first that holds a value) of the first file and then stand for all files. A
    column whose numbers have leading zeros is text, because 007 and 7 are two ids. An empty cell is null.
    """

    part = ""

    def __init__(self, place: Place, csv: Csv, known: Mapping[str, pa.DataType], skips: bool = False):
        """`known` are types that files before it settled. With `skips`, lines of too few or too many cells are left
        out; `ragged` counts them once `parts` are known.
        """
        self.skips, self.ragged = skips, []
        self.place, self.csv, self.name, self.partition = place, csv, place.name, place.partition
        self._refuse_other_texts()
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
                kinds[c] = infer(_sound(batch.column(c)))
            if not self.empty and not any(pa.types.is_null(kinds[c]) for c in self._once):
                break
        self.schema = pa.schema([(c, kinds[c]) for c in names])

    def _refuse_other_texts(self) -> None:
        with self.place.open() as file:
            first = file.read(4)
        if first.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise DataError(f"{self.name}: is text in UTF-16; write it as UTF-8")
        if first.startswith(b"\x1f\x8b") and not split_compression(self.place.path)[1]:
            raise DataError(f"{self.name}: is compressed with gzip; rename it to end in .csv.gz")

    @cached_property
    def parts(self) -> list[tuple[int, int]]:
        self.ragged.clear()                        # what was met while types were inferred is met again
        return [(sum(b.num_rows for b in self._batches(self._once[:1])), self._width)]

    def stream(self, part: int, columns: list[str], rows: int) -> Iterator[pa.RecordBatch]:
        yield from self._batches(columns)

    def _batches(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        with self._reader(columns) as reader:
            yield from reader

    def _reader(self, columns: list[str] | None = None) -> pcsv.CSVStreamingReader:
        stem, compression = split_compression(self.place.path)
        file = self.place.open()
        if compression:
            file = pa.CompressedInputStream(file, compression)
        delimiter = "\t" if stem.endswith(".tsv") and self.csv.delimiter == "," else self.csv.delimiter
        text = dict.fromkeys(columns or [], pa.large_string())
        return pcsv.open_csv(
            file,
            pcsv.ReadOptions(use_threads=False, block_size=BLOCK,
                             column_names=None if self.csv.header else self.csv.columns),
            pcsv.ParseOptions(delimiter=delimiter, newlines_in_values=True,
                              invalid_row_handler=self._leave_out if self.skips else None),
            pcsv.ConvertOptions(column_types=text, include_columns=columns, null_values=[""],
                                strings_can_be_null=True, check_utf8=False))     # `column` looks, and says where

    def _leave_out(self, row: pcsv.InvalidRow) -> str:
        if "parts" not in vars(self):
            self.ragged.append(f"{self.name}, line {row.number}: holds {row.actual_columns} cells, not "
                               f"{row.expected_columns}")
        return "skip"

    def column(self, values: pa.ChunkedArray, kind: pa.DataType, where: str, name: str, start: int) -> pa.Array:
        texts = whole(values)
        mine = self.schema.field(name).type
        mine = kind if pa.types.is_null(mine) else mine            # what other files say of a column without a value
        if (sound := _sound(texts)) is not texts:
            first = int(pc.index(pc.and_(sound.is_null(), texts.is_valid()), True).as_py())
            raise DataError(f"{self.name}, row {start + first + 1}: column '{name}' holds bytes that are not UTF-8 "
                            f"({texts.cast(pa.large_binary())[first].as_py()[:40]!r}); write text as UTF-8")
        try:
            return conform(parse(texts, mine), kind, f"{where}, column '{name}'")
        except Unparsed as e:
            other = "float" if mine == pa.int64() and not _wrong(e.text, pa.float64()) and not re.match(
                r"-?0\d", e.text) else "text"
            raise DataError(
                f"{self.name}, row {start + e.row + 1}: column '{name}' holds '{e.text}', but it is read as "
                f"{column_type(mine)}, as its first values are; correct the value, or set data.csv.types to "
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
            first = next(i for i, t in enumerate(texts) if t.is_valid and _wrong(t.as_py(), kind))
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


def _sound(texts: pa.Array) -> pa.Array:
    """The same, or null where bytes are not UTF-8."""
    try:
        texts.validate(full=True)
    except pa.ArrowInvalid:
        raw = texts.cast(pa.large_binary()).to_pylist()
        return pa.array([None if b is None or not _is_utf8(b) else b.decode() for b in raw], pa.large_string())
    return texts


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _cast(texts: pa.Array, kind: pa.DataType) -> pa.Array:
    if pa.types.is_null(kind) and texts.null_count == len(texts):
        return pa.nulls(len(texts))
    if pa.types.is_timestamp(kind):            # nanoseconds, as pandas writes them, are cut to microseconds
        texts = pc.replace_substring_regex(texts, r"(\.\d{6})\d{1,3}", r"\1")
    return texts.cast(kind)


def _wrong(text: str, kind: pa.DataType) -> bool:
    try:
        _cast(pa.array([text], pa.large_string()), kind)
    except pa.ArrowException:
        return True
    return False
