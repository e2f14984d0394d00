"""Counts that pass data.memory: the same vocabularies by way of the disk, and what is said before."""

import sys
from collections import Counter, namedtuple
from importlib.util import find_spec

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as run
from hypothesis import strategies as st

from funnelrank.data import spill as spill_module
from funnelrank.data.encode import Encoder, Old
from funnelrank.data.source import open_source
from funnelrank.data.spill import Spill
from funnelrank.data.vocab import TYPE, Counts
from funnelrank.errors import ConfigError, DataError
from funnelrank.schema import Space, resolve
from funnelrank.settings import Data, Settings

scale = pytest.mark.skipif(not all(map(find_spec, ("ibis", "duckdb"))), reason="needs funnelrank[scale]")


@pytest.fixture
def tight(monkeypatch):
    """Whatever is counted passes the budget."""
    monkeypatch.setattr(spill_module, "SHARE", 10**9)


def settings(**data):
    return Settings.model_validate({
        "data": {"scenario": "tab", **data},
        "features": {"user": {"min_count": 2}, "item": {"min_count": 1, "max_size": 40}, "tab": {"min_count": 1},
                     "seen": {"kind": "sequence", "space": "item", "max_len": 3},
                     "pair": {"kind": "cross", "of": ["item", "tab"], "min_count": 1}, "lists": "off"},
        "tasks": {"click": {}}})


def log(rows=500, seed=0):
    g = np.random.default_rng(seed)
    return pa.table({
        "user": [None if u == 7 else f"u{u}é" for u in g.integers(0, 300, rows)], "item": g.integers(-60, 60, rows),
        "tab": g.integers(0, 4, rows), "seen": [g.integers(-60, 60, n).tolist() for n in g.integers(0, 6, rows)],
        "click": g.integers(0, 2, rows)})


def fitted(table, folder, events=None, **data):
    said = settings(**data)
    return Encoder.fit(resolve(said), open_source(table, Data(memory=40_000_000, **data), "train"), {},
                       scratch=folder, says=(events if events is not None else []).append)


@scale
def test_an_encoder_fitted_by_way_of_the_disk_is_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr("funnelrank.data.fit.BLOCK", 64)
    plain, events = fitted(log(), tmp_path / "none"), []
    assert not (tmp_path / "none").exists()
    monkeypatch.setattr(spill_module, "SHARE", 10**9)
    spilled = fitted(log(), tmp_path / "cache", events)
    assert spilled.hash() == plain.hash()
    for name in ("user", "item", "pair"):
        assert spilled.vocabs[name].values() == plain.vocabs[name].values()
    assert [(e["event"], e["folder"], e["bytes"] > 0) for e in events] == [("disk", str(tmp_path / "cache"), True)]
    assert list((tmp_path / "cache").iterdir()) == []


@scale
def test_a_vocabulary_grows_by_way_of_the_disk_as_in_memory(tmp_path, monkeypatch):
    """Values that are known count as seen however rare they are; new ones need min_count; retired ones leave."""
    first, second, grown = log(), log(300, seed=1), []
    for folder, share in ((tmp_path / "memory", spill_module.SHARE), (tmp_path / "disk", 10**9)):
        monkeypatch.setattr(spill_module, "SHARE", share)
        said, old = settings(), fitted(first, folder)
        schema = resolve(said)
        going = Old({**old.vocabs, "": old.scenario}, old.scalers, old.boundaries, old.weighted, 1)
        grown.append(Encoder.fit(schema, open_source(second, Data(), "train"), {}, old=going, scratch=folder))
    a, b = grown
    assert a.hash() == b.hash()
    for name in ("user", "item", "pair"):
        assert a.vocabs[name].values() == b.vocabs[name].values()
        assert a.vocabs[name].unseen.tolist() == b.vocabs[name].unseen.tolist()


@scale
@run(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data(), st.sampled_from(["int", "string"]))
def test_ties_go_by_value_on_disk_as_in_memory(tmp_path, tight, data, family):
    values = st.integers(-2**63, 2**63 - 1) | st.integers(-3, 3) if family == "int" else st.text(max_size=3)
    parts = data.draw(st.lists(st.lists(st.none() | values, max_size=12), min_size=1, max_size=5))
    space = Space(name="s", made="fitted", min_count=data.draw(st.integers(1, 3)),
                  max_size=data.draw(st.none() | st.integers(1, 4)))
    with Spill(tmp_path, 1 << 30) as spill:
        disk, memory = Counts(family), Counts(family)
        for i, part in enumerate(parts):
            for counts in (disk, memory):
                counts.add(pa.array(part, TYPE[family]))
            spill.make_room({"s": disk}, i)
        found = spill.vocabulary(space, family, disk, "features.s").values()
        assert found == spill.vocabulary(space, family, memory, "features.s").values()
    counted = Counter(v for part in parts for v in part if v is not None)
    key = (lambda v: v) if family == "int" else (lambda v: v.encode())
    expected = sorted((v for v, n in counted.items() if n >= space.min_count), key=lambda v: (-counted[v], key(v)))
    assert found == expected[:space.max_size]
    assert not list(tmp_path.iterdir())


@scale
def test_a_vocabulary_that_passes_the_budget_names_its_space_and_what_would_do(tmp_path, monkeypatch):
    monkeypatch.setattr(spill_module, "LEAST", 1 << 23)
    values = pa.array(np.arange(200_000))
    table = pa.table({"user": values.cast(pa.large_string()), "item": values, "tab": values, "click": np.zeros(200_000),
                      "seen": pa.array([[]] * 200_000, pa.list_(pa.int64()))})
    said = resolve(settings())
    with pytest.raises(DataError, match="features.item: id space 'item' has more than .* values that stand 1 times or "
                                        "more in train, which pass data.memory .*; a larger min_count, a max_size, "
                                        "hash_buckets"):
        Encoder.fit(said.model_copy(update={"spaces": {
            **said.spaces, "item": said.spaces["item"].model_copy(update={"max_size": None})}}),
            open_source(table, Data(memory=4_000_000), "train"), {}, scratch=tmp_path)
    assert not list(tmp_path.iterdir())


def test_without_duckdb_a_sentence_says_what_would_do(tmp_path, tight, monkeypatch):
    monkeypatch.setitem(sys.modules, "ibis", None)
    with pytest.raises(ConfigError, match="data.memory: the values of id space '.*' pass it after 500 rows, and "
                                          "counting on disk needs ibis and duckdb .*'funnelrank\\[scale\\]'"):
        fitted(log(), tmp_path)
    assert not list(tmp_path.iterdir())


@scale
def test_a_disk_without_room_is_said_before_it_is_written_to(tmp_path, tight, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: namedtuple("Usage", "free")(5))
    with pytest.raises(DataError, match="counting the values of train on disk takes about .*, and 5 bytes are free"):
        fitted(log(), tmp_path)
    assert not list(tmp_path.iterdir())


@scale
def test_what_duckdb_cannot_do_is_a_sentence(tmp_path, tight, monkeypatch):
    events = []

    def cut(event):
        events.append(event)
        monkeypatch.setattr(Counts, "spill", broken)

    def broken(self, path):
        path.write_bytes(b"PAR1 no parquet")
        self.spilled.append(path)
        self._parts, self.nbytes = [], 0
    with pytest.raises(DataError, match="id space '.*': its values could not be counted on disk"):
        Encoder.fit(resolve(settings()), open_source(log(), Data(), "train"), {}, scratch=tmp_path, says=cut)
    assert events and not list(tmp_path.iterdir())
