"""Logs as nobody would write them: columns of every type, files that disagree, bytes that are wrong.

`logs()` draws the files of a split; `outcome` says what the program makes of them, which is rows or one sentence.
"""

import datetime as dt
import decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

import funnelrank
from funnelrank.data.verify import verify
from funnelrank.errors import ConfigError, DataError

COLUMNS = ("user", "item", "price", "seen", "tags", "tab", "w", "at", "click", "buy")
UTC = dt.UTC
DAY = dt.datetime(2024, 2, 29, 23, 59, 59, 999999)
# what the config expects, then everything else
FIT = {
    "user": [pa.array([1, 2, None, 4]), pa.array([-5, 2**63 - 1, -2**63, 0])],
    "item": [pa.array(["a", "b", None, ""]), pa.array(["é", "\0", "a" * 300, "b"])],
    "price": [pa.array([1.5, None, float("nan"), float("inf")]), pa.array([0.0, -1e300, 1e-300, 2.0])],
    "seen": [pa.array([["a"], [], None, ["b", None, "a"]], pa.list_(pa.string()))],
    "tags": [pa.array(["a|b", "", None, " c | "]), pa.array(["|||", "a", "b|b", "x"])],
    "tab": [pa.array(["home", "search", None, "home"])], "w": [pa.array([1.0, 0.5, 2.0, 0.0])],
    "at": [pa.array([1, 2, 3, None])], "click": [pa.array([0, 1, None, 1]), pa.array([1, 1, 1, 1])],
    "buy": [pa.array([0, 0, None, 1]), pa.array([0.0, 1.0, float("nan"), 0.0])],
}
STRANGE = [
    pa.array([1, 2, 3, None], pa.int8()), pa.array([2**64 - 1, 0, 1, 2], pa.uint64()), pa.array([0, 1, 2, None]),
    pa.array([0.5, 1.0, 2.0, None]), pa.array([2.0**60, 1.0, -1.0, 0.0]), pa.array([float("-inf"), 1, 0, None]),
    pa.array([1, 0, 1, 0], pa.float16()), pa.array([True, False, None, True]), pa.nulls(4),
    pa.array(["1", "2", "x", None]), pa.array(["1", "0", "1", "0"]), pa.array(["", " ", "NaN", "1e9"]),
    pa.array([b"\xff\xfe", b"a", None, b""]), pa.array([b"abcd"] * 4, pa.binary(4)),
    pa.array(["a", "b", "a", None]).dictionary_encode(), pa.array([1, 2, 1, None]).dictionary_encode(),
    pa.array([decimal.Decimal("1.50"), None, decimal.Decimal("-2.25"), decimal.Decimal("0.00")]),
    pa.array([decimal.Decimal(10**30), decimal.Decimal(1), None, decimal.Decimal(0)], pa.decimal128(38, 0)),
    pa.array([DAY.date(), dt.date(1, 1, 1), dt.date(9999, 12, 31), None]),
    pa.array([DAY, None, dt.datetime(1970, 1, 1), DAY], pa.timestamp("ns")),
    pa.array([DAY, None, DAY, DAY], pa.timestamp("s", "America/Sao_Paulo")),
    pa.array([2**62, -2**62, 0, None], pa.timestamp("s")), pa.array([1, 2, 3, None], pa.date64()),
    pa.array([1, 2, 3, None], pa.time32("ms")), pa.array([1, 2, 3, None], pa.duration("ms")),
    pa.array([[1], [], None, [2, 3]], pa.list_(pa.int32())), pa.array([[1.5], [2.0], [], None]),
    pa.array([[1, 2]] * 4, pa.list_(pa.int64(), 2)), pa.array([["a"], None, [], ["b"]], pa.large_list(pa.string())),
    pa.array([[[1]], [], None, [[2], []]]), pa.array([[{"a": 1}], [], None, []]), pa.nulls(4, pa.list_(pa.null())),
    pa.array([{"a": 1}, None, {"a": 2}, {}]), pa.array([[("a", 1.0)], [], None, [("b", None)]], pa.map_(
        pa.string(), pa.float64())), pa.array([[(1, float("nan"))], [], None, []], pa.map_(pa.int64(), pa.float64())),
    pa.array([(1, 2, 3)] * 4, pa.month_day_nano_interval()),
    pa.array(["a", None, "b" * 20, ""], pa.string_view()), pa.array([[1], [2], None, []], pa.list_view(pa.int64())),
    pa.RunEndEncodedArray.from_arrays(pa.array([4], pa.int32()), pa.array(["a"])),
]
NOT_TAKEN = (pa.RunEndEncodedArray, pa.StringViewArray, pa.ListViewArray, pa.MonthDayNanoIntervalArray)


@st.composite
def logs(draw):
    """(tables, rows of a row group, format, on_error, memory): mostly sound columns, a few strange ones."""
    strange = draw(st.sets(st.sampled_from(COLUMNS), max_size=3))
    tables = []
    for _ in range(draw(st.integers(1, 3))):
        arrays, names = [], list(COLUMNS)
        for name in COLUMNS:
            odd = name in strange and draw(st.booleans())
            array = draw(st.sampled_from(STRANGE if odd else FIT[name]))
            order = draw(st.lists(st.integers(0, 3), min_size=4, max_size=4))
            arrays.append(array if isinstance(array, NOT_TAKEN) else array.take(pa.array(order)))
        if draw(st.integers(0, 9)) == 0:                       # a column missing, or twice
            at = draw(st.integers(0, len(names) - 1))
            if draw(st.booleans()):
                del arrays[at], names[at]
            else:
                names[at] = draw(st.sampled_from(COLUMNS))
        table = pa.Table.from_arrays(arrays, names)
        tables.append(table.slice(0, draw(st.sampled_from([4, 4, 4, 1, 0]))))
    return (tables, draw(st.integers(1, 5)), draw(st.sampled_from(["parquet", "arrow"])),
            draw(st.sampled_from(["raise", "skip"])), draw(st.sampled_from([2_000_000_000, 1])))


def write(folder: Path, tables, group: int, format: str) -> None:
    """The files of a log; a table that parquet has no types for is written as Arrow, and then all are."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    if format == "parquet":
        try:
            for i, table in enumerate(tables):
                pq.write_table(table, folder / f"{i}.parquet", row_group_size=group, write_page_checksum=True)
            return
        except (pa.ArrowException, NotImplementedError):
            for old in folder.iterdir():
                old.unlink()
    for i, table in enumerate(tables):
        with pa.OSFile(str(folder / f"{i}.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as out:
            out.write_table(table, max_chunksize=group)


def config(folder: Path, **data):
    return funnelrank.load_config({
        "data": {"dir": str(folder), "train": "log", "weight": "w", "scenario": "tab", "user": "user", "time": "at",
                 "contradictions": "keep", "cache": str(folder / "cache"), **data},
        "features": {"user": {"min_count": 1}, "item": {"min_count": 1}, "price": "number",
                     "seen": {"kind": "sequence", "space": "item"},
                     "tags": {"kind": "bag", "separator": "|", "min_count": 1}, "late": {
                         "kind": "gap", "since": "at", "until": "price"}, "lists": "off"},
        "tasks": {"click": {}, "buy": {"after": "click"}}, "model": {"name": "aitm"},
        "train": {"out": str(folder / "run"), "threads": 1}})


def outcome(folder: Path, **data) -> tuple[str, object]:
    """('rows', train as encoded) or ('sentence', the error). What `check --data` says must agree with it."""
    settings = config(folder, **data)
    found = verify(settings.schema, settings.settings)
    try:
        opened = funnelrank.open_data(settings)
        encoder = funnelrank.prepare(settings, opened)
        split = funnelrank.encode(settings, opened, encoder)["train"]
    except (DataError, ConfigError) as error:
        assert error.messages and all(m and "\n" not in m and len(m) < 2000 for m in error.messages), error
        cache = folder / "cache"
        assert not cache.exists() or not list(cache.glob(".*")), "something half-written"
        assert found.faults, f"check found nothing, but: {error}"
        return "sentence", error
    assert not found.faults, found.faults
    assert np.isfinite(split.numbers).all() and (split.ids >= 0).all() and (split.weight >= 0).all()
    assert np.isin(split.labels[~np.isnan(split.labels)], (0, 1)).all()
    lost = split.skipped.get("rows", 0) + split.skipped.get("group_rows", 0)
    assert len(split) + lost <= sum(u.rows for u in opened.sources["train"].units) + lost
    return "rows", split


def flipped(raw: bytes, rng: np.random.Generator) -> bytes:
    """The same with up to three bytes changed, and sometimes cut off."""
    damaged = bytearray(raw)
    for at in rng.integers(0, len(raw), rng.integers(1, 4)):
        damaged[at] ^= 1 << rng.integers(0, 8)
    return bytes(damaged[:rng.integers(1, len(raw))] if rng.random() < 0.2 else damaged)
