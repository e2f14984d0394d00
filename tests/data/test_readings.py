"""Kinds that read a column in other ways: each against the rule as one would say it of a single row."""

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_encode import encoded, fit, ids_of, number, one_id, schema_of, table

from funnelrank.data.encode import Encoder
from funnelrank.data.readings import at_keys, pooled, vectors
from funnelrank.errors import ConfigError, DataError

RAW = {"log": False, "scale": "none", "clip": None}
NAN = float("nan")
numbers = st.none() | st.floats(-1e6, 1e6, width=32) | st.sampled_from([NAN, math.inf, -math.inf])


def row_by_row(encoder, log):
    """The same rows encoded one at a time, as a server does."""
    parts = [encoder.encode(log.slice(i, 1), "log", labels=False) for i in range(len(log))]
    lists = [[p.lists[k][0].tolist() for p in parts] for k in range(len(parts[0].lists))]
    return np.concatenate([p.ids for p in parts]), np.concatenate([p.numbers for p in parts]), lists


def assert_one_at_a_time(encoder, log):
    whole, (ids, values, lists) = encoder.encode(log, "log", labels=False), row_by_row(encoder, log)
    assert (whole.ids == ids).all() and (whole.numbers == values).all()
    for k, (flat, offsets, _) in enumerate(whole.lists):
        assert [flat[a:b].tolist() for a, b in zip(offsets, offsets[1:])] == lists[k]


# ---- vectors

def test_a_vector_is_so_many_numbers_each_scaled_by_itself():
    log = table({"v": [[1.0, 10.0], [3.0, 10.0], None, [None, 40.0], []]})
    encoder, rows = encoded({"v": {"kind": "vector", "size": 2}}, log)
    assert encoder.layout.numbers == ("v.0", "v.1", "v.missing")
    assert encoder.layout.feature == {"v.0": "v", "v.1": "v", "v.missing": "v"}
    assert number(encoder, rows, "v.0").tolist() == [-1, 1, 0, 0, 0]
    assert number(encoder, rows, "v.1") == pytest.approx([-0.70710678, -0.70710678, 0, 1.41421356, 0])
    assert number(encoder, rows, "v.missing").tolist() == [0, 0, 1, 0, 1]
    assert rows.counts["v"] == {"rows": 5, "nulls": 2, "nonfinite": 0}
    assert_one_at_a_time(encoder, log)


@settings(max_examples=40)
@given(st.lists(st.none() | st.lists(numbers, min_size=3, max_size=3), min_size=1, max_size=6), st.booleans())
def test_a_vector_is_read_alike_from_lists_and_texts(rows, as_text):
    spelled = [None if r is None else "|".join("" if x is None or math.isnan(x) else repr(x) for x in r) for r in rows]
    column = pa.array(spelled, pa.string()) if as_text else pa.array(rows, pa.list_(pa.float64()))
    found, missing = vectors(column, 3, "x", "|" if as_text else None)
    for i, r in enumerate(rows):
        known = [x is not None and math.isfinite(x) for x in r or [None] * 3]
        assert [math.isfinite(y) for y in found[i]] == known
        assert [y for y, k in zip(found[i], known) if k] == [x for x, k in zip(r or [], known) if k]
        assert missing[i] == (r is None)


def test_a_vector_of_another_length_is_an_error_that_says_which_row():
    with pytest.raises(DataError, match=r"column 'v': a list of 3 \(row 1; 1 rows have another length than 2\)"):
        fit({"v": {"kind": "vector", "size": 2}}, {"v": [[1.0, 2.0], [1.0, 2.0, 3.0]]})
    with pytest.raises(DataError, match="column 'v' is text and holds 'x'; the schema says number"):
        fit({"v": {"kind": "vector", "size": 2, "separator": ","}}, {"v": ["1,x"]})


def test_a_vector_of_a_table_is_looked_up():
    features = {"v": {"kind": "vector", "size": 2, "column": "items.v", **RAW}}
    log = table({"video": [2, 9, None, 1]})
    encoder, rows = encoded(features, log, tables={"items": {"video": [1, 2], "v": [[1.0, 2.0], [3.0, 4.0]]}},
                            keys={"items": "video"})
    assert rows.numbers.tolist() == [[3, 4, 0], [0, 0, 1], [0, 0, 1], [1, 2, 0]]
    assert rows.counts["v"] == {"rows": 4, "nulls": 1, "missing_keys": 1, "nonfinite": 0}


def test_huge_and_wild_numbers_of_a_vector_stay_finite():
    log = table({"v": [[1e300, math.inf], [-1e300, NAN], [5e-324, 1.0]]})
    encoder, rows = encoded({"v": {"kind": "vector", "size": 2, "log": True}}, log)
    assert np.isfinite(rows.numbers).all() and rows.counts["v"]["nonfinite"] == 2


# ---- the value at a key

MAPS = st.none() | st.dictionaries(st.sampled_from(["a", "b", "7", "x y"]), st.none() | st.integers(-9, 9), max_size=3)


@settings(max_examples=60)
@given(st.lists(st.tuples(MAPS, st.sampled_from([None, "a", "b", "7", "zz"])), min_size=1, max_size=6))
def test_the_value_at_a_key_is_the_map_s(rows):
    maps, keys = [m for m, _ in rows], pa.array([k for _, k in rows], pa.string())
    expected = [None if m is None or k is None else m.get(k) for m, k in rows]
    column = pa.array([None if m is None else list(m.items()) for m in maps], pa.map_(pa.string(), pa.int64()))
    assert at_keys(column, keys, "x").to_pylist() == expected
    texts = [None if m is None else "|".join(f"{k}: {'' if v is None else v} " for k, v in m.items()) for m in maps]
    found = at_keys(pa.array(texts, pa.string()), keys, "x", "|", ":").to_pylist()
    assert found == [None if v is None else str(v) for v in expected]


def test_keys_are_compared_as_texts_and_the_last_of_two_counts():
    column = pa.array([[(1, 0.5), (2, 0.25), (1, 0.75)]] * 2, pa.map_(pa.int64(), pa.float64()))
    assert at_keys(column, pa.array(["1", "2"]), "x").to_pylist() == [0.75, 0.25]
    assert at_keys(pa.array(["a:b:1||c"]), pa.array(["a:b"]), "x", "|", ":").to_pylist() == ["1"]


def test_ids_and_numbers_at_a_key():
    features = {"rate": {"kind": "number", "column": "rates", "key": "brand", **RAW},
                "tier": {"column": "tiers", "key": "brand", "separator": ",", "key_separator": "=", "min_count": 1}}
    log = table({"brand": ["u", "v", "w", None], "tiers": ["u=gold,v=tin", "v=tin", "", None],
                 "rates": pa.array([[("u", 0.5)], [("v", 2.0), ("u", 1.0)], [], None],
                                   pa.map_(pa.string(), pa.float64()))})
    encoder, rows = encoded(features, log)
    assert number(encoder, rows, "rate").tolist() == [0.5, 2.0, 0, 0]
    assert number(encoder, rows, "rate.missing").tolist() == [0, 0, 1, 1]
    known = encoder.vocabs["tier"].values()
    assert [known[i - 2] if i else None for i in one_id(encoder, rows, "tier")] == ["gold", "tin", None, None]
    assert_one_at_a_time(encoder, log)
    with pytest.raises(DataError, match="`key` reads a map, or a text that separator"):
        fit({"r": {"kind": "number", "column": "brand", "key": "brand"}}, log)


# ---- numbers in lists

@settings(max_examples=60)
@given(st.lists(st.none() | st.lists(numbers, max_size=4), min_size=1, max_size=6),
       st.sampled_from(["mean", "sum", "min", "max", "first", "last"]))
def test_a_list_becomes_one_number(rows, how):
    plain = {"mean": lambda x: sum(x) / len(x), "sum": sum, "min": min, "max": max, "first": lambda x: x[0],
             "last": lambda x: x[-1]}[how]
    values = np.array([NAN if x is None else x for r in rows for x in r or []], np.float64)
    offsets = np.concatenate([[0], np.cumsum([len(r or []) for r in rows])]).astype(np.int64)
    found = pooled(values, offsets, how)
    for r, y in zip(rows, found):
        known = [x for x in r or [] if x is not None and math.isfinite(x)]
        assert math.isnan(y) if not known else y == pytest.approx(plain(known), abs=1e-9)


def test_a_pooled_number_is_a_number_like_any_other():
    listed = {"kind": "number", "column": "seconds", "separator": " "}
    features = {"dwell": {**listed, "pool": "mean", "boundaries": [2, 5]},
                "last": {**listed, "pool": "last", "default": -1, **RAW}}
    log = table({"seconds": ["1 2", "9", "", None, "4 5"]})
    encoder, rows = encoded(features, log)
    assert one_id(encoder, rows, "dwell") == [2, 4, 0, 0, 3]
    assert number(encoder, rows, "last").tolist() == [2, 9, -1, -1, 5]
    assert rows.counts["last"] == {"rows": 5, "nulls": 2, "nonfinite": 0}
    assert_one_at_a_time(encoder, log)


def test_a_list_of_numbers_is_cut_into_buckets():
    features = {"paid": {"kind": "sequence", "boundaries": [10, 100], "max_len": 3}}
    log = table({"paid": [[5.0, 50.0, 10.0, 500.0], [None, NAN, 1.0], [], None]})
    encoder, rows = encoded(features, log)
    values, offsets, _ = rows.lists[0]
    assert [values[a:b].tolist() for a, b in zip(offsets, offsets[1:])] == [[3, 3, 4], [2], [], []]
    assert encoder.layout.size["paid"] == 5 and encoder.layout.space["paid"] == "paid"
    assert rows.counts["paid"] == {"rows": 4, "nulls": 1, "empty": 1, "ids": 4, "oov": 0, "dropped": 2, "cut": 1}
    assert_one_at_a_time(encoder, log)


def test_buckets_of_equal_count_are_of_what_a_list_keeps():
    log = table({"h": [[999.0, 1.0, 2.0], [3.0, 4.0]]})
    encoder = fit({"h": {"kind": "sequence", "buckets": 2, "max_len": 2}}, log)
    assert encoder.boundaries == {"h": [3.0]}


def test_a_list_shares_the_buckets_of_a_number_and_is_compared_with_it(tmp_path):
    features = {"price": {"kind": "number", "boundaries": [2.0, 4.0]},
                "seen": {"kind": "sequence", "column": "prices", "space": "price"},
                "viewed": {"kind": "sequence", "column": "items.price", "by": "videos", "space": "price"},
                "tags": {"kind": "bag", "column": "prices", "space": "price", "default": 3}}
    log = table({"price": [1.0, 5.0], "prices": [[3.0, 9.0], []], "videos": [[1, 2, 8], None]})
    encoder, rows = encoded(features, log, tables={"items": {"video": [1, 2], "price": [4.0, None]}},
                            keys={"items": "video"})
    lists = [[v[a:b].tolist() for a, b in zip(o, o[1:])] for v, o, _ in rows.lists]
    assert one_id(encoder, rows, "price") == [2, 4]
    assert lists == [[[3, 4], []], [[4], []], [[3, 4], [3]]]
    assert encoder.layout.target == {"seen": "price", "viewed": "price"} and encoder.layout.size == {"price": 5}
    encoder.save(tmp_path / "e")
    again = Encoder.load(tmp_path / "e")
    assert again.hash() == encoder.hash()
    assert_one_at_a_time(again, log)


# ---- defaults and unknown values

def test_a_default_stands_for_what_is_missing_and_nulls_are_still_counted():
    features = {"a": {"min_count": 1, "default": "none"}, "n": {"kind": "number", "default": 4, **RAW},
                "b": {"kind": "bag", "separator": "|", "min_count": 1, "default": "?"},
                "c": {"kind": "cross", "columns": ["a", "n"], "default": "", "min_count": 1}}
    log = table({"a": ["x", None, "none"], "n": [1.0, NAN, None], "b": ["r|s", "", None]})
    encoder, rows = encoded(features, log)
    assert one_id(encoder, rows, "a") == [3, 2, 2] and rows.counts["a"] == {"rows": 3, "nulls": 1, "oov": 0}
    assert number(encoder, rows, "n").tolist() == [1, 4, 4] and rows.counts["n"]["nulls"] == 1
    assert ids_of(encoder, rows, "b") == [["r", "s"], ["?"], ["?"]]
    assert rows.counts["b"] == {"rows": 3, "nulls": 1, "empty": 1, "ids": 4, "oov": 0, "dropped": 0, "cut": 0}
    assert 0 not in one_id(encoder, rows, "c") and len(set(one_id(encoder, rows, "c"))) == 3
    assert_one_at_a_time(encoder, log)


def test_a_default_stands_for_rows_that_a_table_does_not_have():
    features = {"brand": {"column": "items.brand", "min_count": 1, "default": "b"},
                "tags": {"kind": "bag", "column": "items.tags", "min_count": 1, "default": 0}}
    items = {"video": [1, 2, 3], "brand": ["a", None, "b"], "tags": [[7], [], None]}
    encoder, rows = encoded(features, table({"video": [1, 2, 3, 9, None]}), tables={"items": items},
                            keys={"items": "video"})
    known = encoder.vocabs["brand"].values()
    assert [known[i - 2] for i in one_id(encoder, rows, "brand")] == ["a", "b", "b", "b", "b"]
    assert rows.counts["brand"] == {"rows": 5, "nulls": 2, "oov": 0, "missing_keys": 1}
    assert ids_of(encoder, rows, "tags") == [[7], [0], [0], [0], [0]]


def test_weights_of_a_bag_go_with_its_default():
    features = {"t": {"kind": "bag", "separator": "|", "weight_separator": ":", "min_count": 1, "default": "z"}}
    encoder, rows = encoded(features, {"t": ["a:2", None, "b:3|c"]})
    assert rows.lists[0].weights.tolist() == [2, 1, 3, 1] and rows.lists[0].offsets.tolist() == [0, 1, 2, 4]


def test_values_outside_a_range_are_read_as_the_one_it_says():
    features = {"a": {"num_buckets": 3, "unknown": 0}, "h": {"kind": "sequence", "num_buckets": 3, "unknown": 2},
                "l": {"vocab_list": ["x", "y"], "unknown": "y"}}
    log = table({"a": [0, 2, 3, -1, None], "h": [[0, 5], None, [1], [], [-3]], "l": ["x", "z", None, "y", "Y"]})
    encoder, rows = encoded(features, log)
    assert one_id(encoder, rows, "a") == [2, 4, 2, 2, 0] and rows.counts["a"]["oov"] == 2
    assert rows.lists[0].values.tolist() == [2, 4, 3, 4] and rows.counts["h"]["oov"] == 2
    assert one_id(encoder, rows, "l") == [2, 3, 0, 3, 3]
    assert encoder.hash() != fit(features | {"a": {"num_buckets": 3}}, log).hash()


# ---- crosses of columns, pairs

def test_a_cross_of_columns_needs_no_feature_of_them():
    log = table({"a": [1, 1, 2, None], "b": ["x", "x", "x", "x"], "d": [1.0, 1.0, 1.0, 1.0]})
    encoder, rows = encoded({"c": {"kind": "cross", "columns": ["a", "b", "d"], "min_count": 1}}, log)
    assert encoder.layout.ids == ("c",) and encoder.schema.log_columns(labels=False) == ["a", "b", "d"]
    assert one_id(encoder, rows, "c") == [2, 2, 3, 0]
    texts = pa.table({**{c: log[c] for c in log.column_names}, "a": pa.array(["1", "1", "2", None])})
    assert (encoder.encode(texts.select(log.column_names), "log").ids == rows.ids).all()


@pytest.mark.parametrize("kind", [pa.map_(pa.string(), pa.float32()),
                                  pa.list_(pa.struct([("tag", pa.string()), ("w", pa.float32())]))])
def test_pairs_of_a_value_and_its_weight_are_a_weighted_bag(kind):
    pairs = [[("a", 0.5), ("b", None)], [], None, [("b", 2.0)]]
    if pa.types.is_list(kind):
        pairs = [r if r is None else [{"tag": k, "w": w} for k, w in r] for r in pairs]
    encoder, rows = encoded({"t": {"kind": "bag", "min_count": 1}}, {"t": pa.array(pairs, kind)})
    assert ids_of(encoder, rows, "t") == [["a", "b"], [], [], ["b"]]
    assert rows.lists[0].weights.tolist() == [0.5, 1, 2]


# ---- what a config may not say

@pytest.mark.parametrize("features, message", [
    ({"a": {"num_buckets": 3, "unknown": 3}}, "features.a.unknown: 3 is none of the values of space 'a'"),
    ({"a": {"unknown": "x"}}, "features.a.unknown: space 'a' has OOV for values that it does not know"),
    ({"a": {"num_buckets": 3, "default": "x"}}, "features.a.default: 'x' is none of the values of space 'a'"),
    ({"c": {"kind": "cross", "columns": ["a", "items.b"]}}, "features.c.columns: 'items.b' is of a table"),
    ({"p": {"kind": "number", "buckets": 3}, "a": {"space": "p"}}, "features.a.space: 'p' is a number cut into"),
    ({"h": {"kind": "bag", "buckets": 3, "space": "p"}}, "features.h.space: numbers that are cut here make a space"),
    ({"v": {"kind": "vector", "size": 2, "column": "click"}}, "features.v: reads column 'click', which is the label"),
    ({"c": {"kind": "cross", "columns": ["a", "click"]}}, "features.c: reads column 'click', which is the label"),
    ({"a": {"column": "m", "key": "click"}}, "features.a: reads column 'click', which is the label"),
])
def test_what_cannot_be_meant_is_said(features, message):
    with pytest.raises(ConfigError, match=message):
        schema_of(features)


@pytest.mark.parametrize("feature, message", [
    ({"kind": "number", "key": "a", "pool": "mean"}, "key reads one number of a map, pool one of a list"),
    ({"kind": "number", "separator": ","}, "a number is not cut"),
    ({"kind": "id", "key": "a", "separator": ","}, "say in key_separator"),
    ({"kind": "id", "separator": ","}, "is a bag or a sequence, or has a key"),
    ({"kind": "sequence", "buckets": 3, "hash_buckets": 9}, "buckets make an id space of their own; remove hash_buck"),
    ({"kind": "sequence", "buckets": 3, "boundaries": [1]}, "two ways to cut one number"),
    ({"kind": "cross"}, "a cross is of features, `of`, or of columns"),
    ({"hash_buckets": 3, "unknown": 0}, "every value has a bucket of a hash"),
])
def test_what_contradicts_itself_is_said(feature, message):
    with pytest.raises(ValueError, match=message):
        schema_of({"x": feature})


# ---- expressions

def test_an_expression_reads_columns_and_other_numbers_of_the_config():
    features = {"price": {"kind": "number", "column": "items.price", "default": 2, **RAW},
                "rel": {"kind": "number", "expression": "budget / price", **RAW},
                "rich": {"kind": "number", "expression": "if(rel > 3, 1, rel)", "boundaries": [1, 2]}}
    log = table({"video": [1, 2, 9], "budget": [4.0, None, 8.0]})
    encoder, rows = encoded(features, log, tables={"items": {"video": [1, 2], "price": [4.0, 1.0]}},
                            keys={"items": "video"})
    assert number(encoder, rows, "rel").tolist() == [1, 0, 4] and number(encoder, rows, "rel.missing").tolist() == [
        0, 1, 0]
    assert one_id(encoder, rows, "rich") == [3, 0, 3]
    assert rows.counts["rel"] == {"rows": 3, "nulls": 1, "nonfinite": 0}
    assert encoder.schema.reads("rich") == {"budget", "video"}
    assert encoder.schema.features["rel"].role == "context"
    assert_one_at_a_time(encoder, log)
