import datetime
import decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from funnelrank.data.tables import Dimension, KeyIndex, canonical, open_tables
from funnelrank.errors import DataError
from funnelrank.schema import resolve
from funnelrank.settings import Settings

INT64 = st.integers(-2**63, 2**63 - 1)


def ids(values, kind=None):
    return canonical(pa.array(values, kind), "t").to_pylist()


# ---- canonical

@pytest.mark.parametrize("values, kind, expected", [
    ([1, None, -2], pa.int8(), [1, None, -2]),
    ([2**63 - 1], pa.uint64(), [2**63 - 1]),
    ([-2**63, 2**63 - 1], pa.int64(), [-2**63, 2**63 - 1]),
    ([True, False, None], pa.bool_(), [1, 0, None]),
    ([1.0, -0.0, float("nan"), None, 2.0**53], pa.float64(), [1, 0, None, None, 2**53]),
    ([3.0], pa.float32(), [3]),
    ([decimal.Decimal(2**62 + 1)], pa.decimal128(38, 0), [2**62 + 1]),
    ([datetime.date(1970, 1, 3)], pa.date32(), [2]),
    ([datetime.datetime(1970, 1, 1, 0, 0, 1)], pa.timestamp("ms"), [1_000_000]),
    ([None, None], pa.null(), [None, None]),
    (["a", "", None, "é\0"], pa.string(), ["a", "", None, "é\0"]),
    ([b"a"], pa.binary(), ["a"]),
    (["a", "b"], pa.string_view(), ["a", "b"]),
])
def test_every_id_type_has_one_of_two_families(values, kind, expected):
    array = canonical(pa.array(values, kind), "t")
    assert array.type in (pa.int64(), pa.large_string())
    assert array.to_pylist() == expected


def test_dictionaries_and_chunks_are_decoded():
    chunks = pa.chunked_array([pa.array(["a", None]).dictionary_encode(), pa.array(["b", "a"]).dictionary_encode()])
    assert canonical(chunks, "t").to_pylist() == ["a", None, "b", "a"]


@pytest.mark.parametrize("values, kind, says", [
    ([1.0, 1.5], pa.float64(), "1.5 in 1 rows \\(first: row 1\\)"),
    ([float("inf")], pa.float64(), "inf"),
    ([2.0**60], pa.float64(), "beyond 2\\^53"),
    ([2**63], pa.uint64(), "9223372036854775808"),
    ([decimal.Decimal("1.5")], pa.decimal128(4, 1), "1.5"),
    ([[1]], pa.list_(pa.int64()), "list of int"),
    ([{"a": 1}], pa.struct([("a", pa.int64())]), "struct"),
    ([b"\xff"], pa.binary(), "UTF8"),
])
def test_what_cannot_be_an_id_is_named(values, kind, says):
    with pytest.raises(DataError, match=says) as e:
        canonical(pa.array(values, kind), "log.parquet, column 'x'")
    assert str(e.value).startswith("log.parquet, column 'x'")


# ---- KeyIndex

@given(st.lists(INT64, unique=True, max_size=30), st.lists(st.none() | INT64, max_size=30), st.booleans())
def test_integers_are_found_where_they_stand(keys, others, shift):
    query = keys + others + [k ^ 1 for k in keys]
    if shift:                     # near one another: the lookup table instead of the hashes
        keys, query = ([k % 1000 for k in keys], [k if k is None else k % 3000 - 1000 for k in query])
        keys = list(dict.fromkeys(keys))
    place = {k: i for i, k in enumerate(keys)}
    found = KeyIndex(pa.array(keys, pa.int64())).find(pa.array(query, pa.int64()))
    assert found.dtype == np.int64
    assert found.tolist() == [place.get(q, -1) for q in query]


@given(st.lists(st.text(), unique=True, max_size=30), st.lists(st.none() | st.text(), max_size=30))
def test_texts_are_found_where_they_stand(keys, others):
    query = others + keys + keys[:3] + [k + "\0" for k in keys]
    place = {k: i for i, k in enumerate(keys)}
    array = pa.array(["cut", *query], pa.large_string()).slice(1)
    assert KeyIndex(pa.array(keys, pa.string())).find(array).tolist() == [place.get(q, -1) for q in query]


def test_texts_that_share_a_hash_are_still_told_apart(monkeypatch):
    monkeypatch.setattr("funnelrank.data.tables.library", lambda: None)
    monkeypatch.setattr("funnelrank.data.tables._hashes", lambda texts: np.full(len(texts), 7, np.uint64))
    keys = [f"k{i}" for i in range(20)]
    assert KeyIndex(pa.array(keys)).find(pa.array(["k19", "no", "k0", None, "k7"])).tolist() == [19, -1, 0, -1, 7]


def test_the_whole_range_of_64_bits_is_exact():
    keys = [-2**63, 2**63 - 1, 2**63 - 2, 0, 2**53, 2**53 + 1]
    index = KeyIndex(pa.array(keys))
    assert index.table is None
    assert index.find(pa.array([*keys, 2**53 + 2, -1])).tolist() == [0, 1, 2, 3, 4, 5, -1, -1]
    dense = KeyIndex(pa.array([2**63 - 1, 2**63 - 3]))
    assert dense.table is not None
    assert dense.find(pa.array([-2**63, 2**63 - 3, 2**63 - 2, 2**63 - 1, 0])).tolist() == [-1, 1, -1, 0, -1]
    low = KeyIndex(pa.array([-2**63]))
    assert low.find(pa.array([2**63 - 1, -2**63, -2**63 + 1])).tolist() == [-1, 0, -1]


def test_an_empty_index_knows_nothing():
    assert KeyIndex(pa.array([], pa.int64())).find(pa.array([1, None])).tolist() == [-1, -1]
    assert KeyIndex(pa.array([], pa.large_string())).find(pa.array(["a"])).tolist() == [-1]
    assert KeyIndex(pa.array(["a"])).find(pa.array([], pa.large_string())).tolist() == []


def test_text_looked_up_among_numbers_is_an_error_and_nulls_are_not():
    index = KeyIndex(pa.array([1, 2]))
    with pytest.raises(DataError, match="log, column 'u': holds text, but the keys .* whole numbers"):
        index.find(pa.array(["1"]), "log, column 'u'")
    assert index.find(pa.array([None, None], pa.null())).tolist() == [-1, -1]


# ---- Dimension

ITEMS = pa.table({"video_id": [10, 2**62, -3], "author": ["a", None, "c"], "tags": [[1, 2], [], None]})


def test_attributes_are_taken_by_key_and_missing_keys_are_null(tmp_path):
    items = Dimension("items", "video_id", ITEMS)
    items.save(tmp_path / "items.arrow")
    for d in (items, Dimension.load(tmp_path / "items.arrow")):
        keys = pa.array([-3, 10, 4, None, 2**62])
        assert (d.name, d.key_column) == ("items", "video_id")
        assert d.rows(keys).tolist() == [2, 0, -1, -1, 1]
        assert d.take(keys, "author").to_pylist() == ["c", "a", None, None, None]
        assert d.take(keys, "tags").to_pylist() == [None, [1, 2], None, None, []]
        assert d.table.equals(ITEMS)


@pytest.mark.parametrize("keys, says", [
    ([1, 2, 1, 3, 3, 3], "1 stands on 2 rows \\(2 keys are repeated\\)"),
    (["a", "b", "b"], "'b' stands on 2 rows \\(1 keys are repeated\\)"),
    ([1, None, None], "null in 2 of 3 rows"),
])
def test_repeated_and_null_keys_are_errors(keys, says):
    with pytest.raises(DataError, match=says):
        Dimension("items", "id", pa.table({"id": keys}))


def test_a_damaged_or_foreign_file_is_not_a_dimension(tmp_path):
    path = tmp_path / "items.arrow"
    Dimension("items", "video_id", ITEMS).save(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="items.arrow"):
        Dimension.load(path)
    with pa.OSFile(str(path), "wb") as f, pa.ipc.new_file(f, ITEMS.schema) as w:
        w.write_table(ITEMS)
    with pytest.raises(DataError, match="not a saved dimension table"):
        Dimension.load(path)
    with pytest.raises(DataError, match="none.arrow"):
        Dimension.load(tmp_path / "none.arrow")


def settings(folder, **data):
    return Settings.model_validate({
        "data": {"dir": str(folder), "tables": {"items": {"path": "items.parquet", "key": "video_id"}}, **data},
        "features": {"user_id": "id", "video_id": "id", "author": {"column": "items.author"}},
        "tasks": {"click": {}}})


def test_open_tables_reads_the_key_and_what_features_ask_for(tmp_path):
    pq.write_table(ITEMS, tmp_path / "items.parquet", row_group_size=1)
    s = settings(tmp_path)
    tables = open_tables(resolve(s), s.data)
    assert list(tables) == ["items"]
    assert tables["items"].table.column_names == ["video_id", "author"]
    assert tables["items"].take(pa.array([10, 11]), "author").to_pylist() == ["a", None]


def test_open_tables_names_missing_columns_and_their_reader(tmp_path):
    pq.write_table(ITEMS.rename_columns(["video", "autor", "tags"]), tmp_path / "items.parquet")
    s = settings(tmp_path)
    with pytest.raises(DataError) as e:
        open_tables(resolve(s), s.data)
    assert e.value.messages == (
        "items.parquet: no column 'video_id' (data.tables.items.key) (did you mean 'video'?)",
        "items.parquet: no column 'author' (features.author.column) (did you mean 'autor'?)")


def test_open_tables_keeps_to_the_memory_budget(tmp_path):
    pq.write_table(pa.table({"video_id": range(10_000), "author": range(10_000)}), tmp_path / "items.parquet")
    s = settings(tmp_path, memory=100_000)
    with pytest.raises(DataError, match="data.tables.items.path: the dimension tables pass data.memory"):
        open_tables(resolve(s), s.data)
    with pytest.raises(DataError, match="data.tables.items.path: no file or folder 'items.parquet'"):
        (tmp_path / "items.parquet").rename(tmp_path / "item.parquet")
        open_tables(resolve(s), s.data)
