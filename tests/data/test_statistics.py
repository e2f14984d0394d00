"""Vocabularies, statistics and rates by DuckDB and Spark: what our own pass over train gives."""

import os
import shutil
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as run
from hypothesis import strategies as st

from funnelrank.config import load
from funnelrank.data import statistics
from funnelrank.data.encode import Encoder, Old
from funnelrank.data.events import open_events, with_histories
from funnelrank.data.sift import sift
from funnelrank.data.source import open_source
from funnelrank.data.tables import Dimension
from funnelrank.errors import ConfigError, DataError
from funnelrank.flow import open_data, prepare
from funnelrank.schema import resolve
from funnelrank.settings import Settings

ROOT = Path(__file__).parents[2]
ITEMS = pa.table({"item": [0, 1, 2, 3, -4, 11], "brand": ["a", "ä", "b", "b", None, "never"],
                  "tags": ["x|y", " y ", "x||z", None, "z", "x"], "size": [1.5, None, float("inf"), 2e-9, -7.0, 3.0]})
WORDS = pa.table({"w": ["x", "y", "ab", "zz", "x|y"], "letters": [1, 1, 2, 2, 3]})
TABLES = {"items": Dimension("items", "item", ITEMS), "words": Dimension("words", "w", WORDS)}
FEATURES = {
    "user": {"min_count": 2}, "item": {"min_count": 1}, "tab": {"min_count": 1},
    "word": {"max_size": 5, "min_count": 1},
    "shown": {"kind": "sequence", "space": "item", "max_len": 3},
    "early": {"kind": "sequence", "column": "shown", "max_len": 2, "latest": "first", "min_count": 1},
    "tags": {"kind": "bag", "separator": "|", "min_count": 1},
    "brand": {"column": "items.brand", "min_count": 1},
    "shown_brand": {"kind": "sequence", "column": "items.brand", "by": "shown", "space": "brand", "max_len": 9},
    "item_tags": {"kind": "bag", "column": "items.tags", "separator": "|", "space": "tags"},
    "shown_tags": {"kind": "bag", "column": "items.tags", "by": "shown", "separator": "|", "space": "tags"},
    "tag_letters": {"kind": "bag", "column": "words.letters", "by": "tags", "min_count": 1},
    "all_letters": {"column": "words.letters", "by": "tags", "min_count": 1},
    "word_letters": {"kind": "number", "column": "words.letters", "by": "word"},
    "pair": {"kind": "cross", "of": ["item", "word"], "min_count": 2, "max_size": 7},
    "price": "number", "plain": {"kind": "number", "column": "price", "log": False, "scale": "minmax"},
    "tiny": "number", "flag": "number", "count": {"kind": "number", "log": False, "indicator": True},
    "size": {"kind": "number", "column": "items.size"},
    "band": {"kind": "number", "column": "price", "buckets": 7}, "size_band": {"kind": "number", "column": "items.size",
                                                                              "buckets": 3},
    "cut": {"kind": "number", "column": "count", "boundaries": [1, 3]},
    "long": {"kind": "length", "of": "shown"}, "many": {"kind": "length", "of": "tags"},
    "wait": {"kind": "gap", "since": "before", "until": "time"},
    "whole": {"min_count": 1}, "flagged": {"column": "flag", "min_count": 1},
    "whole_brand": {"column": "items.brand", "by": "whole", "space": "brand"},
    "whole_text": {"column": "whole", "space": "word"}, "whole_pair": {"kind": "cross", "of": ["whole", "flagged"]},
    "item_rate": {"kind": "rate", "of": "item", "task": "click", "period": 10},
    "pair_rate": {"kind": "rate", "of": "pair", "task": "buy", "period": 7},
    "brand_rate": {"kind": "rate", "of": "brand", "task": "click", "period": 10},
    "tag_rate": {"kind": "rate", "of": "tags", "task": "click", "period": 50}}


def log(rows=300, seed=0):
    g = np.random.default_rng(seed)
    some = lambda values, share=0.1: pa.array(values, mask=g.random(rows) < share)
    words = np.array(["", " ", "é", "zz", "Z", "a\u2003", "\U0001f600", "ab"])
    pieces = np.array(["x", "\u2003x\x1f ", "y", "", " ", "\u00e9\u00a0", "\U0001f600"])
    lists = [None if n == 5 else [None if v == 9 else int(v) for v in g.integers(-5, 10, n)]
             for n in g.integers(0, 8, rows)]
    return pa.table({
        "user": some([f"u{u}" for u in g.integers(0, 60, rows)]),
        "item": pa.array(g.integers(-5, 12, rows), pa.int32()),
        "tab": pa.array(g.integers(0, 4, rows), pa.int8()), "word": some(g.choice(words, rows)),
        "shown": pa.array(lists, pa.list_(pa.int32())),
        "tags": some(["|".join(g.choice(pieces, n)) for n in g.integers(0, 4, rows)]),
        "price": some(np.append(g.normal(0, 9, rows - 3), [np.nan, np.inf, -np.inf]).round(1)),
        "tiny": g.random(rows) * 1e-9, "flag": some(g.random(rows) < 0.3),
        "count": pa.array(g.integers(-3, 5, rows), pa.int16()),
        "whole": pa.array(g.choice([-2.0, 0.0, 1.0, 3.0, 2.0**53, np.nan], rows)),
        "before": some(g.integers(-10**15, 10**15, rows)), "time": g.integers(-40, 50, rows),
        "click": some(g.integers(0, 2, rows)), "buy": pa.array(g.choice([0.0, 1.0, np.nan], rows))})


def settings(features=FEATURES, engine=None, **data):
    return Settings.model_validate({
        "data": {"scenario": "tab", "user": "user", "time": "time", "tables": {
            "items": {"path": "x", "key": "item"}, "words": {"path": "x", "key": "w"}},
                 "engine": {"name": engine} if isinstance(engine, str) else engine, **data},
        "features": {"lists": "off", **features}, "tasks": {"click": {}, "buy": {}}})


def fit(said, folder, events=None, source=None, old=None):
    schema, says = resolve(said), [] if events is None else events
    source = source or with_histories(open_source(str(folder / "*.parquet"), said.data, "train"), schema,
                                      open_events(schema, said.data))
    tables = {name: table for name, table in TABLES.items() if schema.tables[name].columns}
    return Encoder.fit(schema, source, tables, old=old, scratch=folder / "scratch", says=says.append,
                       engine=said.data.engine)


def same(ours: Encoder, theirs: Encoder, rounding: float = 1e-11) -> None:
    for name, vocab in ours.vocabs.items():
        assert theirs.vocabs[name].values() == vocab.values(), name
        assert theirs.vocabs[name].unseen.tolist() == vocab.unseen.tolist()
    assert theirs.scenario.values() == ours.scenario.values()
    assert theirs.boundaries == ours.boundaries and theirs.weighted == ours.weighted
    assert list(theirs.scalers) == list(ours.scalers)
    for name, a in ours.scalers.items():
        b = theirs.scalers[name]
        assert (a.log, a.clip, a.indicator) == (b.log, b.clip, b.indicator), name
        for x, y in ((a.centre, b.centre), (a.spread, b.spread)):
            np.testing.assert_allclose(y, x, rtol=rounding, err_msg=name)
    assert list(theirs.rates) == list(ours.rates)
    for name, rates in ours.rates.items():
        for a, b in zip(rates.lines, theirs.rates[name].lines):
            np.testing.assert_array_equal(a, b, err_msg=name)


@pytest.fixture(scope="module")
def session():
    """One Spark for all tests; engines use the session that runs."""
    sql = pytest.importorskip("pyspark.sql", reason="needs funnelrank[spark]; make test-distributed installs it")
    if not (os.environ.get("JAVA_HOME") or shutil.which("java")):
        pytest.skip("Spark needs Java 17")
    made = (sql.SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false")
            .config("spark.driver.host", "127.0.0.1").config("spark.driver.bindAddress", "127.0.0.1")
            .config("spark.sql.shuffle.partitions", "1").config("spark.driver.memory", "1g").getOrCreate())
    made.sparkContext.setLogLevel("OFF")
    yield made
    made.stop()


@pytest.fixture(params=["duckdb", "spark"])
def engine(request):
    if request.param == "spark":
        request.getfixturevalue("session")
    elif not all(map(find_spec, ("ibis", "duckdb"))):
        pytest.skip("needs funnelrank[scale]")
    return request.param


def test_an_engine_finds_what_our_own_pass_finds(tmp_path, engine):
    pq.write_table(log(), tmp_path / "a.parquet", row_group_size=70)
    pq.write_table(log(100, seed=1).select(log().column_names[::-1]), tmp_path / "b.parquet")
    events = []
    same(fit(settings(), tmp_path), fit(settings(engine=engine), tmp_path, events))
    assert [e for e in events if e["event"] == "engine"] == [
        {"event": "engine", "engine": engine, "quantiles": "exact", "left": [], "buckets": ["band", "size_band"]}]


def test_what_an_engine_cannot_give_the_same_is_left_to_our_own_pass_and_said(tmp_path, engine):
    """Made columns, times, dates as ids, texts of whole numbers, rates of lists, lists cut once they are looked up,
    and settings that no expression knows."""
    rows = log()
    g = np.random.default_rng(2)
    rows = rows.append_column("date", pa.array(g.integers(0, 5, 300).astype(np.int32), pa.date32()))
    rows = rows.append_column("when", pa.array(g.integers(0, 10**6, 300), pa.timestamp("s")))
    rows = rows.append_column("digits", pa.array([f"{a},{b}" for a, b in g.integers(0, 9, (300, 2))]))
    rows = rows.append_column("pieces", pa.array(g.normal(size=(300, 2)).tolist()))
    pq.write_table(rows, tmp_path / "a.parquet")
    features = {
        "user": {"min_count": 1}, "date": {"min_count": 1}, "code": {"column": "tab", "space": "digits"},
        "digits": {"kind": "bag", "separator": ",", "min_count": 1}, "when": "number", "item": {"min_count": 1},
        "cut_brand": {"kind": "sequence", "column": "items.brand", "by": "shown", "max_len": 2, "min_count": 1},
        "shown": {"kind": "sequence", "space": "item"}, "past": {"kind": "history", "of": "log", "item": "word"},
        "since": {"kind": "gap", "since": "past"}, "price": "number",
        "liked": {"kind": "rate", "of": "item", "among": "shown", "within": "shown"},
        "filled": {"column": "word", "default": "ab"}, "most": {"kind": "number", "column": "shown", "pool": "max"},
        "twice": {"kind": "number", "expression": "2 * price"}, "pieces": {"kind": "vector", "size": 2},
        "seconds": {"kind": "bag", "column": "shown", "buckets": 3},
        "band": {"kind": "number", "column": "price", "boundaries": [0]},
        "in_band": {"kind": "cross", "of": ["filled", "band"], "min_count": 1},
        "band_rate": {"kind": "rate", "of": "in_band", "task": "click", "period": 10}}
    with_log = {"events": {"log": {"path": str(tmp_path / "a.parquet")}}, "scenario": "word"}
    events = []
    same(fit(settings(features, **with_log), tmp_path), fit(settings(features, engine, **with_log), tmp_path, events))
    assert [e["left"] for e in events if e["event"] == "engine"] == [
        ["date", "code", "digits", "when", "cut_brand", "past", "since", "liked", "filled", "most", "twice", "pieces",
         "seconds", "in_band", "band_rate"]]


def test_vocabularies_grow_by_an_engine_as_by_our_own_pass(tmp_path, engine):
    """Values that are known count however rare they are; retired ones leave."""
    features = {n: FEATURES[n] for n in ("user", "item", "shown", "pair", "word", "brand", "item_rate")}
    pq.write_table(log(), tmp_path / "a.parquet")
    old = fit(settings(features), tmp_path)
    (tmp_path / "a.parquet").unlink()
    pq.write_table(log(120, seed=3), tmp_path / "b.parquet")
    going = Old({**old.vocabs, "": old.scenario}, old.scalers, old.boundaries, old.weighted, 1, old.rates)
    ours, theirs = (fit(settings(features, e), tmp_path, old=going) for e in (None, engine))
    same(ours, theirs)
    assert ours.vocabs["user"].size > 2


LOGS = os.environ.get("FUNNELRANK_DATA")


@pytest.mark.skipif(not LOGS, reason="FUNNELRANK_DATA names no folder of public logs")
@pytest.mark.parametrize("example, folder, left", [
    ("kuairand/auto", "kuairand_pure", ["rate_"] * 6 + ["since_"] * 3), ("globo/aitm", "globo_news", []),
    ("hillstrom/aitm", "hillstrom", []), ("census/aitm", "census_income", [])])
def test_a_public_log_has_one_set_of_vocabularies_whoever_counts(tmp_path, engine, example, folder, left):
    config = load(ROOT / "examples" / f"{example}.yaml", [
        f"data.dir={LOGS}/{folder}", f"data.cache={tmp_path}", "data.valid=null", "data.test=null"])
    data, events = open_data(config), []
    counted = config.settings.model_copy(update={"data": config.settings.data.model_copy(update={
        "engine": settings(engine=engine).data.engine})})
    theirs = prepare(replace(config, settings=counted), data, events.append)
    same(prepare(config, data), theirs, rounding=1e-9)               # of sums of 1.6 million numbers
    found, = (e["left"] for e in events if e["event"] == "engine")
    assert [n[:len(begin)] for n, begin in zip(found, left)] == left and len(found) == len(left)


@pytest.mark.skipif(not all(map(find_spec, ("ibis", "duckdb"))), reason="needs funnelrank[scale]")
@run(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data(), st.integers(1, 3), st.none() | st.integers(1, 4), st.integers(2, 9))
def test_ties_and_boundaries_are_ours_whatever_the_values(tmp_path, data, min_count, max_size, buckets):
    some = st.none() | st.integers(-2**63, 2**63 - 1) | st.integers(-3, 3)
    values = data.draw(st.lists(some, min_size=1, max_size=25))
    texts = data.draw(st.lists(st.none() | st.text(max_size=3), min_size=len(values), max_size=len(values)))
    numbers = data.draw(st.lists(st.none() | st.integers(-4, 4) | st.floats(width=32), min_size=len(values),
                                 max_size=len(values)))
    n = len(values)
    pq.write_table(pa.table({
        "i": pa.array(values, pa.int64()), "s": texts, "x": pa.array(numbers, pa.float64()), "tab": pa.array([0] * n),
        "user": pa.array([0] * n), "time": pa.array([0] * n), "click": pa.array([0] * n), "buy": pa.array([0] * n)}),
        tmp_path / "a.parquet")
    space = {"min_count": min_count, "max_size": max_size}
    features = {"i": space, "s": space, "x": {"kind": "number", "buckets": buckets}}
    ours, theirs = (fit(settings(features, e), tmp_path) for e in (None, "duckdb"))
    same(ours, theirs)


def test_approximate_quantiles_are_named_and_near(tmp_path, engine):
    features = {name: {"kind": "number", "buckets": 10} for name in "xy"}
    x = np.random.default_rng(0).permutation(4000).astype(float)
    none = np.zeros(4000, np.int64)
    pq.write_table(pa.table({"x": x, "y": np.maximum(x - 3600, 0), "tab": none, "user": none, "time": none,
                             "click": none, "buy": none}), tmp_path / "a.parquet")
    events = []
    found = fit(settings(features, {"name": engine, "quantiles": "approximate"}), tmp_path, events)
    assert events[0]["quantiles"] == "approximate" and events[0]["buckets"] == ["x", "y"]
    np.testing.assert_allclose(found.boundaries["x"], np.arange(1, 10) * 400, atol=80)
    assert found.boundaries["y"][0] == 1                # nine tenths are 0, which has a bucket of its own
    np.testing.assert_allclose(found.boundaries["y"], 1 + np.arange(9) * 399 / 9, atol=20)


@pytest.mark.skipif(not all(map(find_spec, ("ibis", "duckdb"))), reason="needs funnelrank[scale]")
def test_rows_that_no_engine_reads_the_same_are_refused(tmp_path):
    said = settings(engine="duckdb")
    with pytest.raises(ConfigError, match="train is a table in memory or of another format; write it"):
        fit(said, tmp_path, source=open_source(log(), said.data, "train"))
    pq.write_table(log(), tmp_path / "a.parquet")
    source = open_source(str(tmp_path / "a.parquet"), said.data, "train")
    sifted = sift(source, resolve(said), TABLES)
    with pytest.raises(ConfigError, match="data.engine: data.on_error: skip leaves out single rows"):
        fit(said, tmp_path, source=sifted)


@pytest.mark.skipif(not all(map(find_spec, ("ibis", "duckdb"))), reason="needs funnelrank[scale]")
def test_what_goes_wrong_in_an_engine_is_a_sentence(tmp_path, monkeypatch):
    pq.write_table(log(), tmp_path / "a.parquet")
    monkeypatch.setattr(statistics, "SHARE", 10**9)
    with pytest.raises(DataError, match="data.engine: features.* are more than 1,000, which pass data.memory|"
                                        "id space '.*': its values are more than"):
        rows = pa.table({c: np.arange(3000) for c in ("user", "item", "tab", "time", "click", "buy")})
        pq.write_table(rows, tmp_path / "a.parquet")
        fit(settings({"user": {"min_count": 1}}, "duckdb", scenario=None), tmp_path)
    (tmp_path / "notes.txt").write_text("no database\n" * 999)
    with pytest.raises(ConfigError, match="data.engine.connection: DuckDB cannot open '.*'.* it is a database's file"):
        fit(settings({"user": {}}, {"name": "duckdb", "connection": str(tmp_path / "notes.txt")}), tmp_path)
    (tmp_path / "a.parquet").unlink()
    pq.write_table(pa.table({c: pa.array([2**64 - 1] * 9, pa.uint64()) for c in rows.column_names}),
                   tmp_path / "b.parquet")
    with pytest.raises(DataError, match="data.engine: duckdb could not count the rows of train .*18446744073709551615"):
        fit(settings({"user": {}}, "duckdb", scenario=None), tmp_path)
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(ConfigError, match="data.engine: duckdb needs a library .*'funnelrank\\[scale\\]'"):
        fit(settings({"user": {}}, "duckdb"), tmp_path)


@pytest.mark.skipif(not all(map(find_spec, ("ibis", "duckdb"))), reason="needs funnelrank[scale]")
@pytest.mark.parametrize("value", [0.5, float("inf"), 2.0**60])
def test_an_id_that_is_none_is_our_own_sentence_whoever_counts(tmp_path, value):
    pq.write_table(log().append_column("code", pa.array([1.0] * 299 + [value])), tmp_path / "a.parquet")
    said = []
    for engine in (None, "duckdb"):
        with pytest.raises(DataError) as raised:
            fit(settings({"code": {}, "user": {}}, engine), tmp_path)
        said.append(str(raised.value))
    assert said[0] == said[1] and "ids are" in said[0] or "store ids as integers" in said[0]
