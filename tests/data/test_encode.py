import datetime as dt
import decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from funnelrank.data import encode as encode_module
from funnelrank.data.encode import NO_USER, Encoder
from funnelrank.data.source import open_source
from funnelrank.data.tables import Dimension
from funnelrank.errors import ConfigError, DataError
from funnelrank.schema import resolve
from funnelrank.settings import Settings


def schema_of(features, tables=(), **data):
    return resolve(Settings.model_validate({
        "data": {"tables": {n: {"path": "x", "key": k} for n, k in dict(tables).items()}, **data},
        "features": {"lists": "off", **features}, "tasks": {"click": {}}, "model": {"name": "aitm"}}))


def table(columns, types=None):
    """A log: lists of values by column, with a label unless one is given."""
    types = types or {}
    arrays = {n: v if isinstance(v, pa.Array) else pa.array(v, types.get(n)) for n, v in columns.items()}
    rows = len(next(iter(arrays.values())))
    return pa.table({"click": pa.array([i % 2 for i in range(rows)], pa.int8()), **arrays})


def fit(features, log, tables=None, keys=None, types=None, **data):
    schema = schema_of(features, keys or {}, **data)
    dimensions = {n: Dimension(n, (keys or {})[n], pa.table(t)) for n, t in (tables or {}).items()}
    log = log if isinstance(log, pa.Table) else table(log, types)
    return Encoder.fit(schema, open_source(log, Settings.model_validate(
        {"features": {"click": "id"}, "tasks": {"t": {}}}).data, "train"), dimensions)


def encoded(features, log, **rest):
    """Encoder and its encoding of the rows it was fitted on."""
    log = log if isinstance(log, pa.Table) else table(log, rest.pop("types", None))
    encoder = fit(features, log, **rest)
    return encoder, encoder.encode(log, "log")


def number(encoder, rows, name):
    return rows.numbers[:, encoder.layout.numbers.index(name)]


def one_id(encoder, rows, name):
    return rows.ids[:, encoder.layout.ids.index(name)].tolist()


def ids_of(encoder, rows, name):
    """A list feature as lists of the values its ids stand for (1 = OOV)."""
    values, offsets, _ = rows.lists[encoder.layout.lists.index(name)]
    known = encoder.vocabs[encoder.layout.space[name]].values()
    back = [known[i - 2] if i > 1 else int(i) for i in values]
    return [back[a:b] for a, b in zip(offsets, offsets[1:])]


ID = {"kind": "id", "min_count": 1}
ITEMS = {"video": [1, 2, 3, 4], "author": ["a", "b", "a", None], "tag": ["x|y", "y", None, "x| z |"],
         "price": [1.0, float("nan"), None, 3.0], "tags": [[7, 8], [8], [], None]}
KEYS = {"items": "video"}


# ---- ids

def test_frequent_values_come_first_and_rare_ones_are_unknown():
    encoder, rows = encoded({"a": {"kind": "id", "min_count": 2}}, {"a": ["u", "v", "v", None, "w", "w"]})
    assert one_id(encoder, rows, "a") == [1, 2, 2, 0, 3, 3]
    assert rows.counts["a"] == {"rows": 6, "nulls": 1, "oov": 1}
    assert encoder.layout.size == {"a": 4}


def test_a_space_counts_all_its_features():
    features = {"item": {"min_count": 3}, "seen": {"kind": "sequence", "space": "item"}}
    encoder, rows = encoded(features, {"item": [1, 2, 5], "seen": [[2, 2], [1, 1, 9], None]})
    assert encoder.vocabs["item"].values() == [1, 2]
    assert one_id(encoder, rows, "item") == [2, 3, 1]
    assert ids_of(encoder, rows, "seen") == [[2, 2], [1, 1, 1], []]
    assert rows.counts["seen"] == {"rows": 3, "nulls": 1, "empty": 0, "ids": 5, "oov": 1, "dropped": 0, "cut": 0}


def test_what_max_len_cuts_off_is_not_counted():
    encoder, _ = encoded({"h": {"kind": "sequence", "max_len": 2, "min_count": 1}}, {"h": [[1, 2, 3], [4]]})
    assert sorted(encoder.vocabs["h"].values()) == [2, 3, 4]


def test_64_bit_ids_are_exact():
    ids = [2**63 - 1, 2**63 - 2, -2**63, 2**53 + 1]
    encoder, rows = encoded({"a": ID}, {"a": ids})
    assert [encoder.vocabs["a"].values()[i - 2] for i in one_id(encoder, rows, "a")] == ids


def test_families_are_settled_in_train():
    encoder = fit({"a": ID, "b": ID}, {"a": [1, 2], "b": ["1", "x"]})
    rows = encoder.encode(table({"a": ["2", "3"], "b": [1, 2]}), "log")
    assert rows.ids.tolist() == [[3, 2], [1, 1]]
    with pytest.raises(DataError, match="^day 2: column 'a': holds 'y', but id space 'a' holds integers"):
        encoder.encode(table({"a": ["2", "y"], "b": ["x", "x"]}), "day 2")


def test_pieces_of_texts_follow_the_integers_of_their_space():
    encoder, rows = encoded({"item": ID, "seen": {"kind": "sequence", "separator": "|", "space": "item"}},
                            {"item": [12, 7], "seen": ["7|12", ""]})
    assert ids_of(encoder, rows, "seen") == [[7, 12], []]


def test_crosses_are_of_all_their_parts():
    features = {"a": ID, "b": ID, "ab": {"kind": "cross", "of": ["a", "b"], "min_count": 1},
                "ba": {"kind": "cross", "of": ["b", "a"], "hash_buckets": 1000}}
    log = {"a": [1, 1, 2, None, 1], "b": ["x", "y", "x", "x", "x"]}
    encoder, rows = encoded(features, log)
    ab, ba = one_id(encoder, rows, "ab"), one_id(encoder, rows, "ba")
    assert ab[0] == ab[4] == 2 and len(set(ab)) == 4 and ab[3] == 0          # the pair seen twice is the first id
    assert ba[0] == ba[4] and ba[3] == 0 and min(ba[:3]) >= 2
    unseen = encoder.encode(table({"a": [2], "b": ["y"]}), "log")
    assert one_id(encoder, unseen, "ab") == [1]
    with pytest.raises(ConfigError, match="features.c: a cross"):
        fit({"a": ID, "b": ID, "c": {"kind": "cross", "of": ["a", "b"], "num_buckets": 5}}, log)


BANDS = {"price": {"kind": "number", "boundaries": [10, 20]}, "age": {"kind": "number", "buckets": 2}}


def test_crosses_are_of_buckets_of_numbers_too():
    features = {"a": ID, **BANDS, "at": {"kind": "cross", "of": ["a", "price"], "min_count": 1},
                "of_age": {"kind": "cross", "of": ["age", "price"], "hash_buckets": 1000}}
    log = {"a": [1, 1, 1, 1, 2, 1], "price": [5, 7, 10, 19, 5, None], "age": [1, 1, 2, 2, 1, 1]}
    encoder, rows = encoded(features, log)
    at, of_age = one_id(encoder, rows, "at"), one_id(encoder, rows, "of_age")
    assert at[0] == at[1] and at[2] == at[3] and at[5] == 0 and len({at[0], at[2], at[4]}) == 3 and min(at[:5]) == 2
    assert of_age[0] == of_age[1] == of_age[4] and of_age[2] == of_age[3] != of_age[0] and of_age[5] == 0
    unseen = encoder.encode(table({"a": [1, 2, 1], "price": [-3.5, 12, 25], "age": [0, 9, None]}), "log")
    assert one_id(encoder, unseen, "at") == [at[0], 1, 1]                    # 2 at 12 and 1 at 25 were not there
    assert one_id(encoder, unseen, "of_age")[::2] == [of_age[0], 0]


@pytest.mark.parametrize("cross, said", [
    ({"of": ["a", "plain"]}, "features.x.of: 'plain' is a number as it is; give it boundaries"),
    ({"of": ["a", "age"]}, "features.x.of: where 'age' is cut is known only when train has been read; give 'age'"),
    ({"of": ["a", "price"], "default": 1}, "features.x.default: stands for .* 'price' is a number, .* remove"),
    ({"of": ["a", "list"]}, "features.x.of: 'list' is of kind bag; it must be an id or a number that is cut")])
def test_a_cross_says_which_of_its_parts_has_no_values_to_cross(cross, said):
    with pytest.raises(ConfigError, match=said):
        schema_of({"a": ID, **BANDS, "plain": "number", "list": "bag", "x": {"kind": "cross", **cross}}, {})


def test_a_rate_is_of_a_cross_of_buckets_of_a_number_that_is_computed():
    features = {"a": ID, "cheap": {"kind": "number", "expression": "price / 2", "boundaries": [10]},
                "at": {"kind": "cross", "of": ["a", "cheap"], "min_count": 1},
                "rate": {"kind": "rate", "of": "at", "task": "click", "period": 10, "strength": 1}}
    log = {"a": [1, 1, 1, 1], "price": [4, 6, 50, 4], "time": [1, 2, 3, 15], "click": [1, 1, 0, 0]}
    encoder, rows = encoded(features, log, time="time")
    rates = number(encoder, rows, "rate")
    assert rates[3] > rates[0] == rates[1] == rates[2]


# ---- numbers

def test_numbers_are_scaled_and_missing_ones_are_said():
    encoder, rows = encoded({"p": {"kind": "number", "log": False}, "q": {"kind": "number", "log": False}},
                            {"p": [1.0, None, float("nan"), float("inf"), 3.0], "q": [0, 0, 0, 0, 10]})
    assert encoder.layout.numbers == ("p", "p.missing", "q")
    assert number(encoder, rows, "p").tolist() == [-1, 0, 0, 0, 1]
    assert number(encoder, rows, "p.missing").tolist() == [0, 1, 1, 1, 0]
    assert rows.counts["p"] == {"rows": 5, "nulls": 1, "nonfinite": 2}
    assert encoder.layout.feature == {"p": "p", "p.missing": "p", "q": "q"}
    assert encoder.layout.role["p.missing"] == "context"


def test_buckets_are_ids_of_their_own_space():
    encoder, rows = encoded({"p": {"kind": "number", "boundaries": [0, 10]}, "q": {"kind": "number", "buckets": 2}},
                            {"p": [-1, 0, 10, None], "q": [1, 2, 3, 4]})
    assert rows.ids.tolist() == [[2, 2], [3, 2], [4, 3], [0, 3]]
    assert encoder.layout.size == {"p": 5, "q": 4} and encoder.layout.space == {"p": "p", "q": "q"}
    assert encoder.layout.numbers == ()


@pytest.mark.parametrize("values, seen", [
    (pa.array([True, False, None]), [1, 0, None]),
    (pa.array([decimal.Decimal("1.50"), None], pa.decimal128(5, 2)), [1.5, None]),
    (pa.array([dt.date(1970, 1, 2), None]), [86400, None]),
    (pa.array([dt.datetime(1970, 1, 1, 0, 0, 2, 500_000)], pa.timestamp("ns", "UTC")), [2.5]),
    (pa.array([dt.timedelta(minutes=1)], pa.duration("ms")), [60]),
    (pa.array([" 1.5", "-2e3", "", None, "nan"]), [1.5, -2000, None, None, None]),
    (pa.array(["7"]).dictionary_encode(), [7]),
    (pa.array([None, None], pa.null()), [None, None]),
    (pa.array([2**64 - 1], pa.uint64()), [2.0**64]),
])
def test_number_columns_of_any_type(values, seen):
    encoder = fit({"p": {"kind": "number", "log": False, "scale": "none", "clip": None, "indicator": True}},
                  {"p": [1.0]})
    rows = encoder.encode(table({"p": values}), "log")
    assert number(encoder, rows, "p").tolist() == [np.float32(v or 0) for v in seen]
    assert number(encoder, rows, "p.missing").tolist() == [v is None for v in seen]


def test_texts_and_lists_are_no_numbers():
    encoder = fit({"p": "number"}, {"p": [1.0]})
    with pytest.raises(DataError, match="^day 2: column 'p' is text and holds 'cheap'; the schema says number; mend "
                                         "the column, or give the feature the kind that it is of, such as id$"):
        encoder.encode(table({"p": ["1", "cheap", "dear"]}), "day 2")
    with pytest.raises(DataError, match="column 'p' is list.*the schema says number"):
        encoder.encode(table({"p": [[1.0]]}), "day 2")


# ---- lists

LISTED = [[1, 2, None], [], None, [3]]


@pytest.mark.parametrize("column", [
    pa.array(LISTED), pa.array(LISTED, pa.large_list(pa.int16())), pa.array([[0], *LISTED])[1:],
    pa.array(["1, 2", "", None, "3"]), pa.array(["1,2", ",", None, " 3 "]).dictionary_encode(),
])
def test_lists_however_they_are_written(column):
    features = {"h": {"kind": "bag", "separator": ",", "min_count": 1}}
    encoder, rows = encoded(features, {"h": column})
    assert [[int(x) for x in row] for row in ids_of(encoder, rows, "h")] == [[1, 2], [], [], [3]]
    counts = rows.counts["h"]
    assert (counts["nulls"], counts["empty"], counts["ids"]) == (1, 1, 3)
    assert counts["dropped"] == (1 if pa.types.is_nested(column.type) else 0)


def test_fixed_size_lists_and_slices():
    column = pa.array([[1, 2], None, [2, 2]], pa.list_(pa.int32(), 2))
    encoder, rows = encoded({"h": {"kind": "sequence", "min_count": 1}}, {"h": column})
    assert ids_of(encoder, rows, "h") == [[1, 2], [], [2, 2]]
    part = encoder.encode(table({"h": column})[1:], "log")
    assert ids_of(encoder, part, "h") == [[], [2, 2]]


@pytest.mark.parametrize("latest, kept", [("last", [[2, 3, 4], [5]]), ("first", [[3, 2, 1], [5]])])
def test_histories_keep_their_latest_oldest_first(latest, kept):
    features = {"h": {"kind": "sequence", "max_len": 3, "latest": latest, "min_count": 1}}
    encoder, rows = encoded(features, {"h": [[1, 2, 3, 4], [5]]})
    assert ids_of(encoder, rows, "h") == kept
    assert rows.counts["h"]["cut"] == 1


def test_weights_of_texts_and_of_maps():
    features = {"w": {"kind": "bag", "separator": "|", "weight_separator": ":", "min_count": 1},
                "m": {"kind": "bag", "min_count": 1}, "plain": {"kind": "bag", "min_count": 1}}
    log = {"w": ["red:0.5|a:b:2|blue", None, "red:inf"], "plain": [[1], [], []],
           "m": pa.array([[("k", 2.0)], [], [("k", None), ("l", 4.0)]], pa.map_(pa.string(), pa.float32()))}
    encoder, rows = encoded(features, log)
    assert ids_of(encoder, rows, "w") == [["red", "a:b", "blue"], [], ["red"]]
    assert rows.lists[0].weights.tolist() == [.5, 2, 1, 0]
    assert ids_of(encoder, rows, "m") == [["k"], [], ["k", "l"]]
    assert rows.lists[1].weights.tolist() == [2, 1, 4]
    assert rows.lists[2].weights is None and encoder.layout.weighted
    with pytest.raises(DataError, match="column 'w': weights is text and holds 'much'"):
        encoder.encode(table({**log, "w": ["red:much", "", ""]}), "log")
    with pytest.raises(DataError, match="in train 'plain' had no weights"):
        encoder.encode(table({**log, "plain": pa.array([[(1, 2.0)], [], []], pa.map_(pa.int8(), pa.float32()))}), "log")


def test_a_column_that_is_no_list_is_named():
    with pytest.raises(DataError, match="column 'h' is .*a bag or a sequence needs lists, or texts and a `separator`"):
        encoded({"h": {"kind": "bag"}}, {"h": ["a,b"]})


# ---- tables

def test_attributes_by_a_key_and_by_a_list_of_keys():
    features = {
        "author": {"column": "items.author", "by": "v", "min_count": 1},
        "price": {"kind": "number", "column": "items.price", "by": "v", "log": False, "scale": "none"},
        "tag": {"kind": "bag", "column": "items.tag", "by": "v", "separator": "|", "min_count": 1},
        "authors": {"kind": "sequence", "column": "items.author", "by": "h", "space": "author"},
        "tags": {"kind": "bag", "column": "items.tags", "by": "h", "min_count": 1},
        "pieces": {"kind": "bag", "column": "items.tag", "by": "h", "separator": "|", "space": "tag"}}
    log = {"v": [1, 4, 9, None, 2], "h": [[1, 2, 9, None], [4, 3], [], None, [2, 2]]}
    encoder, rows = encoded(features, log, tables={"items": ITEMS}, keys=KEYS)
    author = encoder.vocabs["author"].values()
    assert [author[i - 2] if i else None for i in one_id(encoder, rows, "author")] == ["a", None, None, None, "b"]
    assert rows.counts["author"] == {"rows": 5, "nulls": 2, "oov": 0, "missing_keys": 1}
    assert number(encoder, rows, "price").tolist() == [1, 3, 0, 0, 0]
    assert rows.counts["price"] == {"rows": 5, "nulls": 1, "nonfinite": 1, "missing_keys": 1}
    assert ids_of(encoder, rows, "tag") == [["x", "y"], ["x", "z"], [], [], ["y"]]
    assert ids_of(encoder, rows, "authors") == [["a", "b"], ["a"], [], [], ["b", "b"]]
    counts = rows.counts["authors"]
    assert (counts["missing_keys"], counts["dropped"], counts["nulls"], counts["empty"]) == (1, 2, 1, 1)
    assert ids_of(encoder, rows, "tags") == [[7, 8, 8], [], [], [], [8, 8]]
    assert ids_of(encoder, rows, "pieces") == [["x", "y", "y"], ["x", "z"], [], [], ["y", "y"]]
    assert rows.counts["tag"] == {"rows": 5, "nulls": 1, "empty": 1, "ids": 5, "oov": 0, "dropped": 0, "cut": 0,
                                  "missing_keys": 1}
    assert encoder.layout.role["authors"] == "user"


def test_keys_in_texts_are_cut_as_the_history_is():
    features = {"h": {"kind": "sequence", "separator": " ", "min_count": 1},
                "authors": {"kind": "sequence", "column": "items.author", "by": "h", "min_count": 1}}
    encoder, rows = encoded(features, {"h": ["1 2", "9"]}, tables={"items": ITEMS}, keys=KEYS)
    assert ids_of(encoder, rows, "authors") == [["a", "b"], []]


def test_one_value_is_not_looked_up_by_a_list():
    with pytest.raises(DataError, match="'author' looks up one value by it"):
        encoded({"author": {"column": "items.author", "by": "h"}}, {"h": [[1]]}, tables={"items": ITEMS}, keys=KEYS)


# ---- numbers read off lists

def newest(row, end):
    return row[::-1] if end == "last" else row


def slow_match(element_hits, end):
    steps = [i for i, hits in enumerate(newest(element_hits, end)) if hits]
    return np.log1p(sum(element_hits)), 1 / (1 + steps[0]) if steps else 0


HISTORY = st.lists(st.none() | st.lists(st.none() | st.integers(1, 6), max_size=7), min_size=1, max_size=6)


@given(st.data(), st.sampled_from(["last", "first"]), st.booleans(), st.sampled_from([2, encode_module.BLOCK]))
@settings(max_examples=60, deadline=None)
def test_list_numbers_are_their_definitions(data, end, texts, block):
    shown = data.draw(HISTORY)
    n = len(shown)
    liked = data.draw(st.lists(st.lists(st.integers(1, 6), max_size=5), min_size=n, max_size=n))
    video = data.draw(st.lists(st.none() | st.integers(1, 6), min_size=n, max_size=n))
    bag = data.draw(st.lists(st.lists(st.integers(1, 6), max_size=3), min_size=n, max_size=n))
    name = (lambda x: None if x is None else f"v{x}") if texts else (lambda x: x)
    kind = pa.string() if texts else pa.int64()
    many = pa.list_(kind)
    features = {
        "video": {}, "shown": {"kind": "sequence", "space": "video", "max_len": 2, "latest": end},
        "liked": {"kind": "sequence", "space": "video"}, "bag": {"kind": "bag", "space": "video"},
        "author": {"column": "items.author"}, "tag": {"kind": "bag", "column": "items.tag", "separator": "|"},
        "n": {"kind": "length", "of": "shown"}, "s": {"kind": "share", "of": "shown", "within": "liked"},
        "s2": {"kind": "share", "of": "shown", "within": "liked", "last": 2},
        **{f"m{x}": {"kind": "match", "of": x, "within": "shown"} for x in ("video", "bag", "author", "tag")}}
    log = table({"video": [name(x) for x in video], "shown": [r and [name(x) for x in r] for r in shown],
                 "liked": [[name(x) for x in r] for r in liked], "bag": [[name(x) for x in r] for r in bag]},
                {"video": kind, "shown": many, "liked": many, "bag": many})
    items = ITEMS | {"video": pa.array([name(x) for x in ITEMS["video"]], kind)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode_module, "BLOCK", block)
        encoder, rows = encoded(features, log, tables={"items": items}, keys=KEYS)

    author = dict(zip([1, 2, 3, 4], ["a", "b", "a", None]))
    tags = dict(zip([1, 2, 3, 4], [{"x", "y"}, {"y"}, set(), {"x", "z"}]))
    full = [[x for x in row or [] if x is not None] for row in shown]
    expected = {"s": [], "s2": [], "mvideo": [], "mbag": [], "mauthor": [], "mtag": []}
    for row, likes, own, own_bag in zip(full, liked, video, bag):
        for share, last in (("s", None), ("s2", 2)):
            seen = newest(row, end)[:last]
            expected[share].append(sum(x in likes for x in seen) / len(seen) if seen else 0)
        expected["mvideo"].append(slow_match([x == own for x in row], end))
        expected["mbag"].append(slow_match([x in own_bag for x in row], end))
        expected["mauthor"].append(slow_match([author.get(own) is not None and author.get(x) == author.get(own)
                                               for x in row], end))
        expected["mtag"].append(slow_match([len(tags.get(x, set()) & tags.get(own, set())) for x in row], end))
    for share in ("s", "s2"):
        np.testing.assert_allclose(number(encoder, rows, share), expected[share], rtol=1e-6)
    for match in ("mvideo", "mbag", "mauthor", "mtag"):
        got = np.stack([number(encoder, rows, f"{match}.count"), number(encoder, rows, f"{match}.recency")], 1)
        np.testing.assert_allclose(got, expected[match], rtol=1e-6)
    length = np.log1p([len(row) for row in full])
    spread = length.std() if len(set(length)) > 1 else 1
    np.testing.assert_allclose(number(encoder, rows, "n"), (length - length.mean()) / spread, atol=1e-5)


def test_list_numbers_see_ids_that_the_vocabulary_does_not_keep():
    features = {"video": {"min_count": 100}, "h": {"kind": "sequence", "space": "video", "max_len": 1},
                "m": {"kind": "match", "of": "video", "within": "h"}}
    encoder, rows = encoded(features, {"video": [5, 6], "h": [[5, 7, 7], [5]]})
    assert one_id(encoder, rows, "video") == [1, 1]
    assert number(encoder, rows, "m.count").tolist() == [np.float32(np.log(2)), 0]
    assert number(encoder, rows, "m.recency").tolist() == [np.float32(1 / 3), 0]


def test_automatic_list_numbers_have_columns_by_name():
    schema = {"lists": "auto", "video": {}, "a": {"kind": "sequence", "space": "video"},
              "b": {"kind": "sequence", "space": "video"}}
    encoder, rows = encoded(schema, {"video": [1], "a": [[1]], "b": [[]]})
    assert {"length(a)", "share(a,b)", "share(a,b,10)", "match(video,a).count", "match(video,a).recency"} < set(
        encoder.layout.numbers)
    assert encoder.layout.role["length(a)"] == "user" and encoder.layout.role["match(video,a).recency"] == "context"
    assert encoder.layout.feature["match(video,a).count"] == "match(video,a)"
    assert encoder.layout.target == {"a": "video", "b": "video"}
    assert rows.numbers.shape == (1, len(encoder.layout.numbers)) and np.isfinite(rows.numbers).all()


def test_a_history_of_ten_thousand():
    rng = np.random.default_rng(0)
    long = rng.integers(1, 5000, 10_000).tolist()
    features = {"lists": "auto", "video": {}, "h": {"kind": "sequence", "space": "video"},
                "g": {"kind": "sequence", "space": "video"}}
    encoder, rows = encoded(features, {"video": [long[0], 1, None], "h": [long, [], None], "g": [long[:10], [1], [2]]})
    assert len(rows.lists[0].values) == 50 and rows.counts["h"]["cut"] == 9950
    assert number(encoder, rows, "share(h,g)")[0] == pytest.approx(np.isin(long, long[:10]).mean())
    back = long[::-1].index(long[0])
    assert number(encoder, rows, "match(video,h).recency").tolist() == [np.float32(1 / (1 + back)), 0, 0]


# ---- gaps

def gap_of(since, until):
    """The gaps as they were before log1p and scaling; None where one is missing."""
    encoder, rows = encoded({"g": {"kind": "gap", "since": "a", "until": "b"}}, {"a": since, "b": until})
    scaler = encoder.scalers["g"]
    t = number(encoder, rows, "g") * scaler.spread + scaler.centre
    missing = number(encoder, rows, "g.missing").tolist() if scaler.indicator else [0] * len(t)
    return [None if m else pytest.approx(float(np.sign(x) * np.expm1(abs(x))), rel=1e-4, abs=1e-4)
            for x, m in zip(t, missing)]


def test_gaps_of_integers_floats_and_times():
    assert gap_of([10, 10, None], [15, 7, 1]) == [5, -3, None]
    assert gap_of([2**62, -2**62], [2**62 + 1, -2**62 + 3]) == [1, 3]
    assert gap_of([1.0, float("inf"), 0.0], [1.5, 2.0, float("nan")]) == [.5, None, None]
    day, later = dt.datetime(2020, 1, 1), [dt.datetime(2020, 1, 2), dt.datetime(2020, 1, 1, 12)]
    assert gap_of([day, day], later) == [86400, 43200]
    assert gap_of(pa.array([dt.date(2020, 1, 1)] * 2), pa.array(later, pa.timestamp("ns"))) == [86400, 43200]


def test_a_gap_needs_two_of_a_kind():
    with pytest.raises(DataError, match="a gap needs two times or two numbers"):
        gap_of([1, 2], [dt.datetime(2020, 1, 1)] * 2)


# ---- who, where, weight, labels

def test_scenarios_are_in_the_order_of_their_values():
    encoder, rows = encoded({"a": ID}, {"a": [1] * 5, "tab": [10, 2, None, 2, -1]}, scenario="tab")
    assert encoder.layout.scenarios == ("-1", "2", "10")
    assert rows.scenario.tolist() == [4, 3, 0, 3, 2]
    unseen = encoder.encode(table({"a": [1], "tab": [3]}), "log")
    assert unseen.scenario.tolist() == [1] and unseen.counts["data.scenario"]["oov"] == 1


@pytest.mark.parametrize("users", [[1, 2, None, 1, -1, 2**63 - 1], ["x", "y", None, "x", "", "-1"]])
def test_equal_users_have_equal_codes_and_no_user_has_none(users):
    encoder, rows = encoded({"a": ID}, {"a": [1] * 6, "u": users}, user="u")
    codes = rows.user.tolist()
    assert codes[0] == codes[3] and len(set(codes)) == 5
    assert [c == NO_USER for c in codes] == [u is None for u in users]


def test_weights_are_finite_and_not_negative():
    encoder, rows = encoded({"a": ID}, {"a": [1, 1], "w": [0.5, 2]}, weight="w")
    assert rows.weight.tolist() == [.5, 2]
    for bad, said in ((None, "null"), (-1.0, "-1"), (float("nan"), "nan"), (float("inf"), "inf")):
        with pytest.raises(DataError, match=f"^log: column 'w' holds {said}.* on 1 row .first: row 1.; a weight is"):
            encoder.encode(table({"a": [1, 1], "w": [1.0, bad]}), "log")
    assert encoded({"a": ID}, {"a": [1]})[1].weight.tolist() == [1]


def test_serving_needs_no_label_weight_user_or_scenario():
    encoder, _ = encoded({"a": ID}, {"a": [1, 2], "u": [1, 2], "tab": [0, 1], "w": [1, 1]}, user="u", scenario="tab",
                         weight="w")
    rows = encoder.encode(pa.table({"a": [2, 1]}), "request", labels=False)
    assert rows.ids.tolist() == [[3], [2]] and np.isnan(rows.labels).all() and rows.labels.shape == (2, 1)
    assert rows.user.tolist() == [NO_USER] * 2 and rows.scenario.tolist() == [0, 0] and rows.weight.tolist() == [1, 1]
    there = encoder.encode(pa.table({"a": [2], "tab": [1]}), "request", labels=False)
    assert there.scenario.tolist() == [3]
    with pytest.raises(DataError, match="^request: no column 'a'"):
        encoder.encode(pa.table({"b": [2]}), "request", labels=False)


def test_labels_that_were_not_observed_are_nan():
    _, rows = encoded({"a": ID}, {"a": [1] * 4, "click": [1, 0, None, 1]})
    assert np.isnan(rows.labels[2, 0]) and rows.labels[:2, 0].tolist() == [1, 0]


def test_columns_that_are_not_there_are_named_with_who_asks():
    with pytest.raises(DataError, match=r"no column 'aa' \(features.x.column\)"):
        fit({"x": {"column": "aa"}}, {"a": [1]})


# ---- the whole

FEATURES = {
    "lists": "auto", "video": {"min_count": 1}, "name": {"min_count": 1}, "hashed": {"hash_buckets": 7},
    "ranged": {"num_buckets": 3}, "listed": {"vocab_list": ["p", "q"]},
    "price": "number", "band": {"kind": "number", "column": "price", "buckets": 3},
    "seen": {"kind": "sequence", "space": "video", "max_len": 3}, "liked": {"kind": "sequence", "space": "video"},
    "words": {"kind": "bag", "separator": ",", "weight_separator": ":", "min_count": 1},
    "author": {"column": "items.author", "min_count": 1},
    "tag": {"kind": "bag", "column": "items.tag", "separator": "|", "min_count": 1},
    "authors": {"kind": "sequence", "column": "items.author", "by": "seen", "space": "author"},
    "both": {"kind": "cross", "of": ["name", "author"], "min_count": 1},
    "wait": {"kind": "gap", "since": "price", "until": "ranged"}}


def whole_log(n=60, seed=0):
    rng = np.random.default_rng(seed)
    some = lambda values: [None if rng.random() < .1 else v for v in values]
    lists = lambda most: some([rng.integers(0, 7, rng.integers(0, most)).tolist() for _ in range(n)])
    return table({
        "video": some(rng.integers(0, 7, n).tolist()), "name": some(rng.choice(["ann", "bo", "cy"], n).tolist()),
        "hashed": some(rng.choice(["a", "b"], n).tolist()), "ranged": some(rng.integers(-1, 5, n).tolist()),
        "listed": some(rng.choice(["p", "r"], n).tolist()), "price": some(rng.normal(size=n).tolist()),
        "seen": pa.array(lists(6), pa.list_(pa.int64())), "liked": pa.array(lists(4), pa.list_(pa.int64())),
        "words": some([",".join(rng.choice(["x:2", "y", "z:.5"], rng.integers(0, 4))) for _ in range(n)]),
        "tab": rng.choice(["a", "b"], n), "user": some(rng.integers(0, 5, n).tolist()), "weight": rng.random(n)})


def whole():
    return fit(FEATURES, whole_log(), tables={"items": ITEMS}, keys=KEYS, scenario="tab", user="user", weight="weight")


def same(a, b):
    for name in ("ids", "numbers", "scenario", "labels", "weight", "user"):
        x, y = getattr(a, name), getattr(b, name)
        assert x.dtype == y.dtype and x.tobytes() == y.tobytes(), name
    for x, y in zip(a.lists, b.lists, strict=True):
        for part, other in zip(x, y):
            assert (part is None and other is None) or (part.dtype, part.tobytes()) == (other.dtype, other.tobytes())
    assert a.counts == b.counts


def test_a_saved_encoder_gives_the_same_bytes(tmp_path):
    encoder, log = whole(), whole_log(seed=1)
    encoder.save(tmp_path / "e")
    again = Encoder.load(tmp_path / "e")
    same(encoder.encode(log, "log"), again.encode(log, "log"))
    assert again.layout == encoder.layout
    assert again.hash() == encoder.hash() == whole().hash()
    assert not [p for p in (tmp_path / "e").rglob("*") if p.is_file() and p.suffix not in (".arrow", ".json")]


def test_arrays_have_the_layout_s_shapes_and_types():
    encoder, log = whole(), whole_log()
    rows, layout = encoder.encode(log, "log"), encoder.layout
    assert rows.ids.shape == (60, len(layout.ids)) and rows.numbers.shape == (60, len(layout.numbers))
    assert len(rows.lists) == len(layout.lists) and len(rows) == 60
    for c, name in enumerate(layout.ids):
        assert rows.ids[:, c].min() >= 0 and rows.ids[:, c].max() < layout.size[layout.space[name]]
    for (values, offsets, weights), name in zip(rows.lists, layout.lists):
        assert values.dtype == np.int32 and offsets.dtype == np.int64 and len(offsets) == 61
        assert offsets[-1] == len(values) and values.min() >= 1 and values.max() < layout.size[layout.space[name]]
        assert weights is None or weights.dtype == np.float32
    assert np.isfinite(rows.numbers).all() and rows.user.dtype == np.int64 and rows.scenario.dtype == np.int32


@pytest.mark.parametrize("block", [1, 7])
def test_rows_do_not_depend_on_their_neighbours(monkeypatch, block):
    encoder, log = whole(), whole_log(seed=2)
    at_once = encoder.encode(log, "log")
    monkeypatch.setattr(encode_module, "BLOCK", block)
    same(at_once, encoder.encode(log, "log"))
    one = encoder.encode(log.slice(17, 1), "log")
    assert one.ids[0].tolist() == at_once.ids[17].tolist() and one.numbers[0].tolist() == at_once.numbers[17].tolist()


@pytest.mark.parametrize("rows", [1, 37])
def test_plain_features_are_the_same_done_together_or_one_by_one(monkeypatch, rows):
    rng = np.random.default_rng(rows)
    features = {"a": {"hash_buckets": 50}, "b": {"hash_buckets": 2**31 - 2}, "same": {"kind": "id", "space": "a"},
                "text": {"hash_buckets": 9}, "holed": {"hash_buckets": 9}, "known": ID,
                "x": "number", "y": {"kind": "number", "log": False, "clip": None}, "n": "number", "z": "number",
                "wild": {"kind": "number", "clip": 2.5}, "filled": {"kind": "number", "default": 3}}
    log = pa.table({
        "click": rng.integers(0, 2, rows), **{n: rng.integers(-2**63, 2**63 - 1, rows) for n in ("a", "b", "same")},
        "text": pa.array([f"t{i % 5}" for i in range(rows)]), "known": rng.integers(0, 9, rows),
        "holed": pa.array(rng.integers(0, 9, rows), mask=np.arange(rows) % 3 == 0),
        **{n: rng.standard_normal(rows) * 10.0 ** rng.integers(-3, 30, rows) for n in ("x", "y", "z")},
        "n": rng.integers(-2**62, 2**62, rows), "filled": rng.random(rows),
        "wild": np.where(np.arange(rows) % 4 == 0, np.inf, 1.0)})
    encoder = fit(features, log)
    together, read = encoder.encode(log, "log"), encoder._plain.read(encoder._reader.rows(log, "log"), features)
    assert set(read) == {"a", "b", "same", "x", "y", "n", "z"}
    monkeypatch.setattr(encode_module, "FEW", 0)
    one_by_one = encoder.encode(log, "log")
    same(together, one_by_one)
    assert together.counts == one_by_one.counts and list(together.counts) == list(one_by_one.counts)


def test_fitting_does_not_depend_on_units():
    log = whole_log(200)
    schema = schema_of(FEATURES, KEYS, scenario="tab", user="user", weight="weight")
    data = lambda memory: Settings.model_validate(
        {"data": {"memory": memory}, "features": {"a": "id"}, "tasks": {"t": {}}}).data
    sources = [open_source(log, data(memory), "train") for memory in (2_000_000_000, 20_000)]
    assert len(sources[0].units) == 1 < len(sources[1].units)
    done = []
    tables = {"items": Dimension("items", "video", pa.table(ITEMS))}
    encoders = [Encoder.fit(schema, source, tables, done.append) for source in sources]
    assert encoders[0].hash() == encoders[1].hash() and done[0] == done[-1] == 200


def test_errors_say_in_which_of_many_rows(monkeypatch):
    monkeypatch.setattr(encode_module, "BLOCK", 2)
    encoder = fit({"a": ID}, {"a": [1]})
    with pytest.raises(DataError, match="^day 2, of these rows 2 to 3: column 'a': holds 0.5 in 1 rows .first: row 1"):
        encoder.encode(table({"a": [1.0, 2.0, 3.0, 0.5, 1.0]}), "day 2")


def test_hash_tells_what_decides_the_encoding():
    log = whole_log()
    base = dict(tables={"items": ITEMS}, keys=KEYS, scenario="tab", user="user")
    hashes = {fit(FEATURES, log, **base).hash()}
    more = {**ITEMS, "tag": ["x|y", "y", None, "x"]}
    for features, rest in (
            (FEATURES | {"price": {"kind": "number", "clip": 3}}, base),
            (FEATURES | {"seen": {"kind": "sequence", "space": "video", "max_len": 2}}, base),
            (FEATURES | {"hashed": {"hash_buckets": 8}}, base),
            (FEATURES | {"listed": {"vocab_list": ["q", "p"]}}, base),
            (FEATURES, base | {"tables": {"items": more}}), (FEATURES, base | {"user": None})):
        hashes.add(fit(features, log, **rest).hash())
    assert len(hashes) == 7
    assert fit(FEATURES | {"price": {"kind": "number", "role": "mine"}}, log, **base).hash() in hashes


def test_no_rows_encode_to_no_rows():
    encoder = whole()
    rows = encoder.encode(whole_log().slice(0, 0), "log")
    assert len(rows) == 0 and rows.numbers.shape == (0, len(encoder.layout.numbers))
    assert all(len(listed.values) == 0 and listed.offsets.tolist() == [0] for listed in rows.lists)
