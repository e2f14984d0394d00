import datetime
import gzip
import os

import fsspec
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as run
from hypothesis import strategies as st

from funnelrank.data.source import open_source
from funnelrank.errors import ConfigError, DataError
from funnelrank.settings import Data

LOG = pa.table({
    "user": pa.array([7, -1, None, 2**62 + 1, 5, 5, 6], pa.int64()),
    "price": pa.array([0.5, None, 2, 3, 4, 5, 6], pa.float32()),
    "name": ["a", None, "", "é", "x,y", 'q"q', "two\nlines"],
    "hist": pa.array([[1, 2], [], None, [3], [4, 4, 4], [5], []], pa.list_(pa.int32())),
})
READ = pa.schema([("user", pa.int64()), ("price", pa.float64()), ("name", pa.large_string()),
                  ("hist", pa.large_list(pa.int64()))])


def all_rows(source, columns=None):
    return pa.concat_tables([source.read(u, columns or source.columns.names) for u in source.units])


def opened(folder, rows, **data):
    return open_source(rows, Data(dir=str(folder), **data), "train")


def fails(folder, rows, read=None, **data):
    """The sentences of the DataError that opening, or reading the columns `read`, ends with."""
    with pytest.raises(DataError) as e:
        source = opened(folder, rows, **data)
        all_rows(source, read)
    assert all("\n" not in m for m in e.value.messages)
    return str(e.value)


def write_ipc(path, table, stream=False, rows=3, **options):
    new = pa.ipc.new_stream if stream else pa.ipc.new_file
    with pa.OSFile(str(path), "wb") as f, new(f, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as w:
        w.write_table(table, max_chunksize=rows)


# ---- the same rows, however they are stored

@pytest.mark.parametrize("write", [
    lambda p: pq.write_table(LOG, p / "log.parquet"),
    lambda p: pq.write_table(LOG, p / "log.parquet", row_group_size=3, write_page_checksum=True),
    lambda p: [pq.write_table(LOG.slice(i, 2), p / f"{i}.parquet") for i in (0, 2, 4, 6)],
    lambda p: write_ipc(p / "log.arrow", LOG),
    lambda p: write_ipc(p / "log.feather", LOG, compression="lz4"),
    lambda p: write_ipc(p / "log.arrows", LOG, stream=True, compression="zstd"),
    lambda p: pq.write_table(LOG.set_column(2, "name", LOG["name"].dictionary_encode()), p / "log.parquet"),
])
@pytest.mark.parametrize("memory", [2_000_000_000, 2000, 1])
def test_every_format_and_budget_gives_the_same_rows(tmp_path, write, memory):
    write(tmp_path)
    (tmp_path / "_SUCCESS").touch()
    source = opened(tmp_path, ".", memory=memory)
    assert source.columns.equals(READ)
    assert source.rows == sum(u.rows for u in source.units) == 7
    assert all_rows(source).equals(LOG.cast(READ))
    if memory == 1:
        assert [u.rows for u in source.units] == [1] * 7


@pytest.mark.parametrize("frame", [
    LOG, LOG.to_batches()[0], pl.from_arrow(LOG), pa.concat_tables([LOG.slice(0, 2), LOG.slice(2)])])
def test_tables_in_memory_are_read_like_files(frame):
    source = open_source(frame, Data(), "train")
    assert all_rows(source).equals(LOG.cast(READ))
    assert source.where(source.units[0]) == "the table given as data.train"


def test_pandas_frames_keep_integers_exact_and_missing_values_null():
    frame = pd.DataFrame({"user": pd.array([2**62 + 1, None], "Int64"), "hist": [[1], None], "x": [1.5, np.nan]},
                         index=[5, 6])
    assert all_rows(open_source(frame, Data(), "train")).to_pylist() == [
        {"user": 2**62 + 1, "hist": [1], "x": 1.5}, {"user": None, "hist": None, "x": None}]


@run(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.none() | st.integers(-2**63, 2**63 - 1), st.none() | st.lists(st.none() | st.integers(
    -5, 5), max_size=4), st.none() | st.text()), min_size=1, max_size=30), st.integers(1, 7), st.integers(1, 3000))
def test_any_chunking_of_the_same_rows_gives_the_same_rows(tmp_path, rows, group, memory):
    table = pa.table({"id": pa.array([r[0] for r in rows], pa.int64()),
                      "hist": pa.array([r[1] for r in rows], pa.list_(pa.int64())),
                      "text": pa.array([r[2] for r in rows], pa.string())})
    pq.write_table(table, tmp_path / "log.parquet", row_group_size=group)
    write_ipc(tmp_path / "log.arrow", table, rows=group)
    expected = table.to_pylist()
    for given_rows in ("log.parquet", "log.arrow", table):
        source = opened(tmp_path, given_rows, memory=memory)
        assert all_rows(source).to_pylist() == expected
        back = [source.read(u, ["hist", "id"]) for u in reversed(source.units)]      # any order
        assert pa.concat_tables(back[::-1]).to_pylist() == [{"hist": r["hist"], "id": r["id"]} for r in expected]


def test_columns_come_in_the_order_asked_as_one_chunk_without_hidden_values():
    lists = pa.LargeListArray.from_arrays([0, 2, 4, 5], pa.array([1, 2, 3, 4, 5]), mask=pa.array([False, True, False]))
    source = open_source(pa.table({"a": [1, 2, 3], "hist": lists}), Data(memory=16), "train")
    for unit in source.units:
        table = source.read(unit, ["hist", "a"])
        assert table.column_names == ["hist", "a"]
        hist = table["hist"].chunk(0)
        assert table["hist"].num_chunks == 1 and hist.offset == 0
        assert hist.offsets[0].as_py() == 0 and hist.offsets[-1].as_py() == len(hist.values) == len(hist.flatten())
    assert all_rows(source, ["hist"])["hist"].to_pylist() == [[1, 2], None, [5]]


def test_a_giant_row_group_is_read_in_slices(tmp_path):
    zeros = pa.table({"a": np.zeros(400_000, np.int64), "h": pa.array([[0] * 5] * 400_000)})
    pq.write_table(zeros, tmp_path / "z.parquet", row_group_size=10**6)
    source = opened(tmp_path, "z.parquet", memory=8_000_000)
    assert max(u.rows for u in source.units) * 6 * 8 <= 1_000_000
    table = source.read(source.units[-1], ["h"])
    assert table.num_rows == source.units[-1].rows
    assert source.where(source.units[1]) == f"z.parquet, row group 0, from row {source.units[0].rows}"
    assert max(u.rows for u in opened(tmp_path, "z.parquet").units) == 131_072


# ---- types

def test_integers_widen_and_floats_and_empty_columns_join_them(tmp_path):
    pq.write_table(pa.table({"a": pa.array([1], pa.int8()), "b": [2], "c": pa.nulls(1), "l": [[]]}),
                   tmp_path / "1.parquet")
    pq.write_table(pa.table({"l": [[3]], "c": ["x"], "b": [2.5], "a": pa.array([2**40], pa.uint64())}),
                   tmp_path / "2.parquet")
    assert all_rows(opened(tmp_path, "*.parquet")).to_pylist() == [
        {"a": 1, "b": 2.0, "c": None, "l": []}, {"a": 2**40, "b": 2.5, "c": "x", "l": [3]}]


def test_an_integer_that_would_lose_digits_beside_floats_is_an_error(tmp_path):
    pq.write_table(pa.table({"id": [2**53 + 1]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"id": [1.0]}), tmp_path / "2.parquet")
    assert fails(tmp_path, ".").startswith("1.parquet, row group 0, column 'id': int does not fit float: Integer value "
                                           "9007199254740993")


def test_unsigned_integers_beyond_64_bits_with_sign_are_an_error(tmp_path):
    pq.write_table(pa.table({"id": pa.array([2**64 - 1], pa.uint64())}), tmp_path / "1.parquet")
    assert "column 'id'" in fails(tmp_path, "1.parquet") and "18446744073709551615" in fails(tmp_path, "1.parquet")


def test_times_of_any_unit_are_microseconds(tmp_path):
    at = datetime.datetime(2024, 1, 2, 3, 4, 5, 678000)
    for i, unit in enumerate(["ms", "us", "ns"]):
        pq.write_table(pa.table({"t": pa.array([at], pa.timestamp(unit))}), tmp_path / f"{i}.parquet")
    source = opened(tmp_path, ".")
    assert source.columns.field("t").type == pa.timestamp("us")
    assert all_rows(source)["t"].to_pylist() == [at] * 3


def test_types_that_differ_between_files_name_both_once_they_are_read(tmp_path):
    pq.write_table(pa.table({"id": [1], "x": [1]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"id": ["a"], "x": [2]}), tmp_path / "2.parquet")
    source = opened(tmp_path, ".")
    assert all_rows(source, ["x"])["x"].to_pylist() == [1, 2]
    with pytest.raises(DataError) as e:
        source.require(["x", "id"], {"id": "features.id.column"})
    assert str(e.value) == ("2.parquet: column 'id' is string, but in 1.parquet it is int; write it as one type in all "
                            "files (features.id.column)")


def test_a_column_that_one_file_lacks_is_named_either_way(tmp_path):
    pq.write_table(pa.table({"a": [1], "b": [1]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"a": [1], "c": [1]}), tmp_path / "2.parquet")
    assert fails(tmp_path, ".", ["a", "b"]).startswith("2.parquet: no column 'b', which 1.parquet has")
    assert fails(tmp_path, ".", ["c"]).startswith("1.parquet: no column 'c', which 2.parquet has")


def test_missing_columns_are_named_all_at_once_with_what_asks_for_them():
    with pytest.raises(DataError) as e:
        open_source(LOG, Data(), "valid").require(["usr", "hist", "zzz"], {"usr": "data.user"})
    assert e.value.messages == (
        "the table given as data.valid: no column 'usr' (data.user) (did you mean 'user'?)",
        "the table given as data.valid: no column 'zzz'; columns are 'user', 'price', 'name' and 'hist'")


def test_two_columns_of_one_name_are_an_error_once_read(tmp_path):
    pq.write_table(pa.Table.from_arrays([pa.array([1]), pa.array([2]), pa.array([3])], ["a", "a", "b"]),
                   tmp_path / "1.parquet")
    assert all_rows(opened(tmp_path, "1.parquet"), ["b"])["b"].to_pylist() == [3]
    assert "2 columns named 'a'" in fails(tmp_path, "1.parquet", ["a"])
    (tmp_path / "1.csv").write_text("a,a,b\n1,2,3\n")
    assert all_rows(opened(tmp_path, "1.csv"), ["b"])["b"].to_pylist() == [3]
    assert "2 columns named 'a'" in fails(tmp_path, "1.csv", ["a"])


# ---- places

def hive(folder, keys):
    for i, key in enumerate(keys):
        (folder / key).mkdir(parents=True)
        pq.write_table(pa.table({"x": [i]}), folder / key / "part-0.parquet")


def test_folders_named_key_value_become_columns(tmp_path):
    hive(tmp_path / "log", ["day=2024-01-01/hour=07", "day=2024-01-02/hour=23",
                            "day=a%20b/hour=__HIVE_DEFAULT_PARTITION__"])
    for rows in ("log", "log/*", "log/*/*/*.parquet", ["log/day=2024-01-01", "log/day=2024-01-02", "log/day=a%20b"]):
        assert all_rows(opened(tmp_path, rows), ["hour", "x", "day"]).to_pylist() == [
            {"hour": 7, "x": 0, "day": "2024-01-01"}, {"hour": 23, "x": 1, "day": "2024-01-02"},
            {"hour": None, "x": 2, "day": "a b"}]
    assert all_rows(opened(tmp_path, "log"), ["day"])["day"].to_pylist() == ["2024-01-01", "2024-01-02", "a b"]
    assert all_rows(opened(tmp_path / "log/day=2024-01-01", "hour=07")).to_pylist() == [{"x": 0, "hour": 7}]


def test_lists_and_globs_keep_their_order_and_no_file_counts_twice(tmp_path):
    hive(tmp_path, ["b", "a"])
    assert all_rows(opened(tmp_path, ["b", "a"]))["x"].to_pylist() == [0, 1]
    assert all_rows(opened(tmp_path, "?/*.parquet"))["x"].to_pylist() == [1, 0]
    assert "a/part-0.parquet is named twice" in fails(tmp_path, ["a", "*/part-0.parquet"])


def test_urls_of_fsspec_are_read_like_local_files():
    fs = fsspec.filesystem("memory")
    for i in range(2):
        with fs.open(f"/urls/part={i}/log.parquet", "wb") as f:
            pq.write_table(LOG, f, row_group_size=3)
    with fs.open("/urls/log.csv.gz", "wb") as f:
        f.write(gzip.compress(b"a\n1\n"))
    source = open_source("memory://urls/*/*.parquet", Data(), "train")
    assert source.rows == 14
    assert source.read(source.units[-1], ["user", "part"]).to_pylist() == [{"user": 6, "part": 1}]
    assert source.fingerprint() == open_source("memory://urls/*/*.parquet", Data(), "train").fingerprint()
    assert all_rows(open_source("log.csv.gz", Data(dir="memory://urls"), "train"))["a"].to_pylist() == [1]
    with pytest.raises(DataError, match="no file or folder 'memory://urls/lag.csv.gz' \\(did you mean 'log.csv.gz'"):
        open_source("memory://urls/lag.csv.gz", Data(), "train")
    with pytest.raises(ConfigError, match="nosuch"):
        open_source("nosuch://a/b.parquet", Data(), "train")


def test_fingerprints_follow_the_content(tmp_path):
    pq.write_table(LOG, tmp_path / "log.parquet")
    before = opened(tmp_path, "log.parquet").fingerprint()
    assert before == opened(tmp_path, "log.parquet", memory=1000).fingerprint()
    pq.write_table(LOG.slice(1), tmp_path / "log.parquet")
    assert opened(tmp_path, "log.parquet").fingerprint() != before
    a, b, c = (open_source(t, Data(), "train").fingerprint() for t in (
        LOG, pa.concat_tables([LOG.slice(0, 3), LOG.slice(3)]), LOG.slice(0, 6)))
    assert a == b != c


@pytest.mark.parametrize("rows, says", [
    ("trian.parquet", "data.train: no file or folder 'trian.parquet' (did you mean 'train.parquet'?)"),
    ("nowhere/x.parquet", "there is no folder"),
    ("*.feather", "no file matches '*.feather'"),
    ("notes", "'notes' holds no data files; it holds 'todo.md'"),
    ("notes/todo.md", "notes/todo.md has no suffix that tells its format"),
    ("both", "'both' holds 'csv' and 'parquet' files; say which with data.format"),
    ("zero.parquet", "zero.parquet: is empty (0 bytes)"),
    ("norows.parquet", "norows.parquet: holds no rows"),
    (["norows.parquet", "header.csv"], "none of the 2 files holds a row"),
    ("text.parquet", "text.parquet: cannot be read: Parquet magic bytes not found"),
    ("cut.parquet", "cut.parquet: cannot be read: "),
    ("text.arrow", "text.arrow: cannot be read: "),
    ("text.csv.gz", "text.csv.gz: cannot be read: "),
    ("blank.csv", "blank.csv: cannot be read: "),
    ("ragged.csv", "ragged.csv: cannot be read: CSV parse error: Row #3: Expected 2 columns, got 1"),
    ("latin.csv", "latin.csv, row 1: column 'a' holds bytes that are not UTF-8"),
    ("wide.csv", "wide.csv: is text in UTF-16; write it as UTF-8"),
    ("packed.csv", "packed.csv: is compressed with gzip; rename it to end in .csv.gz"),
    ("nothing", "data.train: 'nothing' holds no files"),
    ("dangling.parquet", "data.train: 'dangling.parquet' is no plain file, or a link to nothing"),
    ("x" * 4000, "data.train: no file or folder 'xxx"),
])
def test_bad_places_and_files_are_one_sentence(tmp_path, rows, says):
    pq.write_table(LOG, tmp_path / "train.parquet")
    pq.write_table(LOG.slice(0, 0), tmp_path / "norows.parquet")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "train.parquet").read_bytes()[:-9])
    (tmp_path / "zero.parquet").touch()
    for name in ("text.parquet", "text.arrow", "text.csv.gz"):
        (tmp_path / name).write_text("id,x\n1,2\n")
    (tmp_path / "header.csv").write_text("a,b\n")
    (tmp_path / "blank.csv").write_text("\n\n")
    (tmp_path / "ragged.csv").write_text("a,b\n1,2\n3\n")
    (tmp_path / "latin.csv").write_bytes(b"a\nb\xe9\n")
    (tmp_path / "wide.csv").write_bytes("a,b\n1,2\n".encode("utf-16"))
    (tmp_path / "packed.csv").write_bytes(gzip.compress(b"a,b\n1,2\n"))
    (tmp_path / "nothing").mkdir()
    (tmp_path / "dangling.parquet").symlink_to("gone.parquet")
    for folder, names in {"notes": ["todo.md", ".x.csv"], "both": ["a.csv", "b.parquet"]}.items():
        (tmp_path / folder).mkdir()
        for name in names:
            (tmp_path / folder / name).touch()
    said = fails(tmp_path, rows)
    assert says in said and len(said) < 600


@pytest.mark.parametrize("text, remedy", [
    ("user;item;price;click\n1;2;3;0\n", "set data.csv.delimiter to ';'"),
    ("1,2,3.5,0\n4,5,6.5,1\n", "set data.csv.header to false and name the columns in data.csv.columns")])
def test_a_text_cut_wrongly_is_one_sentence_with_its_remedy(tmp_path, text, remedy):
    (tmp_path / "log.csv").write_text(text)
    said = fails(tmp_path, "log.csv", ["user", "item", "price", "click"])
    assert said.startswith("log.csv: none of the columns 'user', 'item', 'price' and 1 more is there")
    assert remedy in said


def test_files_without_rows_are_passed_over(tmp_path):
    for i, rows in enumerate([0, 7, 0]):
        pq.write_table(LOG.slice(0, rows), tmp_path / f"{i}.parquet")
    assert opened(tmp_path, ".").rows == 7


@pytest.mark.parametrize("rows, says", [
    (None, "data.train: no rows are given"), ("", "'' is no path; name a file"),
    ([], "no rows are given"), (5, "found int, which is no table"),
    ([LOG], "a list may hold paths only"), (pl.LazyFrame({"a": [1]}), "call .collect\\(\\) first")])
def test_what_cannot_be_rows_is_the_configs_fault(rows, says):
    with pytest.raises(ConfigError, match=says):
        open_source(rows, Data(), "train")


def test_a_pandas_column_of_mixed_types_is_named():
    with pytest.raises(DataError, match="data.train: the table does not fit Arrow: .*b"):
        open_source(pd.DataFrame({"b": [1, "x", [2]]}), Data(), "train")


@pytest.mark.parametrize("name, write", [
    ("log.parquet", lambda p: pq.write_table(LOG, p, write_page_checksum=True, row_group_size=4)),
    ("log.arrow", lambda p: write_ipc(p, LOG)),
    ("log.arrows", lambda p: write_ipc(p, LOG, stream=True, compression="lz4")),
])
def test_damaged_bytes_end_in_a_sentence_or_in_rows_never_in_a_traceback(tmp_path, name, write):
    path = tmp_path / name
    write(path)
    whole, random = path.read_bytes(), np.random.default_rng(0)
    sentences = 0
    for _ in range(150):
        damaged = bytearray(whole)
        for at in random.integers(0, len(whole), 3):
            damaged[at] = random.integers(0, 256)
        path.write_bytes(damaged[:random.integers(1, len(whole))] if random.random() < 0.3 else damaged)
        try:
            all_rows(opened(tmp_path, name))
        except DataError as e:
            sentences += 1
            assert name in str(e)
    assert sentences > 50


def test_a_flipped_bit_in_a_checksummed_page_is_found(tmp_path):
    table = pa.table({"a": np.random.default_rng(0).integers(0, 2**60, 1000)})
    path = tmp_path / "log.parquet"
    pq.write_table(table, path, write_page_checksum=True, use_dictionary=False, compression="none", row_group_size=500)
    damaged = bytearray(path.read_bytes())
    damaged[6000] ^= 1
    path.write_bytes(damaged)
    source = opened(tmp_path, "log.parquet")
    assert source.read(source.units[0], ["a"]).num_rows == 500
    assert fails(tmp_path, "log.parquet").startswith("log.parquet, row group 1: cannot be read: ")


def test_rows_that_are_far_wider_than_the_first_are_named_not_held(tmp_path, monkeypatch):
    monkeypatch.setattr("funnelrank.data.source.LEAST", 1 << 16)
    pq.write_table(pa.table({"h": pa.array([[0]] * 2000 + [[0] * 5000] * 2000)}), tmp_path / "log.parquet")
    assert "log.parquet, row group 0" in fails(tmp_path, "log.parquet", memory=1_000_000)


def test_a_file_that_shrinks_while_it_is_read_is_named(tmp_path):
    pq.write_table(LOG, tmp_path / "log.parquet", row_group_size=4)
    source = opened(tmp_path, "log.parquet")
    pq.write_table(LOG.slice(0, 3), tmp_path / "log.parquet")
    for unit in source.units:
        with pytest.raises(DataError, match=f"log.parquet, row group {unit.part}"):
            source.read(unit, ["user"])
    os.remove(tmp_path / "log.parquet")
    with pytest.raises(DataError, match="log.parquet"):
        source.read(source.units[0], ["user"])
    with pytest.raises(DataError, match="log.parquet"):
        source.changed()


# ---- CSV

TEXT = 'id,code,x,day,at,ok,name\n' + "".join(
    f'{i},{i:03d},{i}.5,2024-01-0{i},2024-01-0{i} 10:00:00,{str(i > 2).lower()},"n,""{i}\n"\n' for i in range(1, 6))
TEXT += "-9223372036854775808,,NaN,,,,\n"


@pytest.mark.parametrize("memory", [2_000_000_000, 1])
@pytest.mark.parametrize("name, write, csv", [
    ("log.csv", lambda p: p.write_text(TEXT), {}),
    ("log.csv", lambda p: p.write_bytes(b"\xef\xbb\xbf" + TEXT.replace('"\n', '"\r\n').encode()), {}),
    ("log.csv.gz", lambda p: p.write_bytes(gzip.compress(TEXT.encode())), {}),
    ("log.tsv", lambda p: p.write_text(TEXT.replace("n,", "n;").replace(",", "\t").replace("n;", "n,")), {}),
    ("log.csv", lambda p: p.write_text(TEXT.partition("\n")[2]),
     {"header": False, "columns": TEXT.partition("\n")[0].split(",")}),
    ("log.csv", lambda p: p.write_text(TEXT.replace(",", ";").replace("n;", "n,")), {"delimiter": ";"}),
])
def test_text_becomes_typed_columns(tmp_path, name, write, csv, memory):
    write(tmp_path / name)
    source = opened(tmp_path, name, csv=csv, memory=memory)
    rows = all_rows(source).to_pylist()
    assert len(rows) == source.rows == 6
    assert rows[0] == {"id": 1, "code": "001", "x": 1.5, "day": datetime.date(2024, 1, 1),
                       "at": datetime.datetime(2024, 1, 1, 10), "ok": False, "name": 'n,"1\n'}
    assert rows[5] == {"id": -2**63, "code": None, "x": None, "day": None, "at": None, "ok": None, "name": None}
    assert all_rows(source, ["ok"])["ok"].to_pylist() == [False, False, True, True, True, None]


def test_blocks_of_text_give_the_same_rows_as_the_whole(tmp_path, monkeypatch):
    lines = [f"{i},{i * i},{'x' * (i % 7)}" for i in range(2000)]
    (tmp_path / "log.csv").write_text("a,b,c\n" + "\n".join(lines))
    monkeypatch.setattr("funnelrank.data.text_rows.BLOCK", 512)
    source = opened(tmp_path, "log.csv", memory=100_000)
    assert source.rows == 2000 and len(source.units) > 2
    assert [f"{r['a']},{r['b']},{r['c'] or ''}" for r in all_rows(source).to_pylist()] == lines
    last = source.units[-1]
    assert source.read(last, ["b"])["b"][-1].as_py() == 1999**2
    assert source.read(source.units[0], ["b"])["b"][1].as_py() == 1
    assert source.where(last) == f"log.csv, from row {last.start}"


@pytest.mark.parametrize("late, says", [
    ("abc", "row 501: column 'id' holds 'abc', but it is read as int, as its first values are; correct the value, or "
            "set data.csv.types to {id: text}"),
    ("007", "row 501: column 'id' holds '007', but it is read as int"),
    ("1.5", "set data.csv.types to {id: float}"),
    ("18446744073709551615", "holds '18446744073709551615'"),
    (" 5", "holds ' 5'"),
    ("x" * 2000, "block boundaries"),
])
def test_a_late_value_of_another_type_is_named(tmp_path, monkeypatch, late, says):
    monkeypatch.setattr("funnelrank.data.text_rows.BLOCK", 512)
    (tmp_path / "log.csv").write_text("id\n" + "7\n" * 500 + late + "\n")
    assert says in fails(tmp_path, "log.csv")
    if len(late) < 100:
        source = opened(tmp_path, "log.csv", csv={"types": {"id": "text"}})
        assert all_rows(source)["id"].to_pylist()[499:] == ["7", late]


def test_types_come_from_the_first_file_and_hold_for_all(tmp_path):
    (tmp_path / "1.csv").write_text("id,late,x\n1,,1\n2,,2\n")
    (tmp_path / "2.csv").write_text("x,id,late\n1,3,0.5\n")
    assert all_rows(opened(tmp_path, "*.csv"))["late"].to_pylist() == [None, None, 0.5]
    (tmp_path / "2.csv").write_text("x,id,late\n1,b,0.5\n")
    assert fails(tmp_path, "*.csv").startswith("2.csv, row 1: column 'id' holds 'b', but it is read as int")


@pytest.mark.parametrize("texts, kind", [
    (["1", "", "-5"], pa.int64()), (["1", "2.5", "NA"], pa.float64()), (["01", "2"], pa.large_string()),
    (["0", "10"], pa.int64()), (["0.5", "-0.25"], pa.float64()), (["-0.5", "007"], pa.large_string()),
    (["12345678901234567890"], pa.large_string()), (["true", "False"], pa.bool_()), (["1e5", "inf"], pa.float64()),
    (["", ""], pa.null()), (["2024-01-01"], pa.date32()), (["2024-01-01T10:00:00Z"], pa.timestamp("us", "UTC")),
    (["NA", "x"], pa.large_string()), (["1", "a"], pa.large_string()),
])
def test_the_type_of_a_text_column_is_what_all_its_first_values_are(tmp_path, texts, kind):
    (tmp_path / "log.csv").write_text("x,y\n" + "".join(f"{t},1\n" for t in texts))
    source = opened(tmp_path, "log.csv")
    assert source.columns.field("x").type == kind
    values = all_rows(source, ["x"])["x"]
    if kind == pa.large_string():
        assert values.to_pylist() == texts
    assert values.null_count == sum(t in ("", "NA") for t in texts) - (kind == pa.large_string()) * texts.count("NA")


@pytest.mark.parametrize("csv", [{"header": False}, {"columns": ["a"]}, {"delimiter": "||"}])
def test_csv_settings_that_contradict_each_other_are_refused(csv):
    with pytest.raises(ValueError):
        Data(csv=csv)


def test_csv_times_with_nanoseconds_are_times(tmp_path):
    (tmp_path / "t.csv").write_text("t\n2024-01-01 17:41:36.168732472\n2024-01-02 00:00:00\n")
    source = open_source("t.csv", Data(dir=str(tmp_path)), "train")
    assert source.columns.field("t").type == pa.timestamp("us")
    times = source.read(source.units[0], ["t"])["t"].to_pylist()
    assert [t.microsecond for t in times] == [168732, 0]
