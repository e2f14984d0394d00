"""Vectors of values from files: where they come to stand, and that those which are frozen stay."""

import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import funnelrank
from funnelrank import ConfigError, DataError, Ranker, api
from funnelrank.check import notes
from funnelrank.config import load
from funnelrank.data.verify import verify
from funnelrank.flow import build
from funnelrank.kernels import library
from funnelrank.simulate import simulate

pytestmark = pytest.mark.usefixtures("no_pictures")
WIDTH = 4


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    folder = tmp_path_factory.mktemp("log")
    simulate(folder, rows=1500, users=100, items=50, seed=1)
    seen = np.unique(pq.read_table(folder / "train.parquet")["item_id"].to_numpy())
    ids = np.append(seen[:len(seen) // 2], [1, 2, 3])
    vectors = np.random.default_rng(0).normal(size=(len(ids), WIDTH)).astype(np.float32)
    lists = pa.array(vectors.tolist(), pa.list_(pa.float32(), WIDTH))
    pq.write_table(pa.table({"id": ids, "vector": lists}), folder / "v.parquet", row_group_size=7)
    pq.write_table(pa.table({"id": ids.astype(str), "text": [" ".join(map(repr, map(float, v))) for v in vectors]}),
                   folder / "t.parquet")
    np.save(folder / "v.npy", vectors)
    (folder / "ids").write_text("".join(f"{i}\n" for i in ids))
    (folder / "v.vec").write_text(f"{len(ids)} {WIDTH}\n" + "".join(
        f"{i} {' '.join(map(repr, map(float, v)))}\n" for i, v in zip(ids, vectors)))
    return folder, dict(zip(ids.tolist(), vectors))


def config(log, out, vectors=None, features=None, optimiser=None, engine="auto", **space):
    return load({
        "data": {"dir": str(log[0]), "train": "train.parquet", "valid": "valid.parquet", "scenario": "scenario",
                 "vectors": {"made": vectors or {"path": "v.parquet"}}},
        "features": features or {"item_id": {"min_count": 2}, "scenario": "id", "price": "number", "lists": "off",
                                 "hist": {"kind": "sequence", "column": "hist_click", "space": "item_id"}},
        "tasks": {"click": {}}, "model": "shared_bottom",
        "embedding": {"width": WIDTH, "spaces": {"item_id": {"pretrained": "made", **space}},
                      "engine": engine, "optimiser": {"l2": 0.01, **(optimiser or {})}},
        "train": {"epochs": 1, "batch_size": 64, "threads": 1, "out": str(out)}})


def rows_of(ranker, space="item_id"):
    table = ranker.model.embedding.tables[f"width_{WIDTH}"]
    start = table.offset[space]
    values = ranker.encoder.vocabs[space].values()
    return {v: table.weight[start + 2 + i].detach().numpy() for i, v in enumerate(values)}


@pytest.fixture(scope="module")
def encoder(log, tmp_path_factory):
    said = config(log, tmp_path_factory.mktemp("e"))
    return funnelrank.prepare(said, funnelrank.open_data(said))


FORMS = [{"path": "v.parquet"}, {"path": "t.parquet", "vector": "text", "separator": " "},
         {"path": "v.npy", "ids": "ids"}, {"path": "v.vec"}]


@pytest.mark.parametrize("vectors", FORMS, ids=lambda v: v["path"])
def test_each_value_starts_from_its_vector(log, encoder, tmp_path, vectors):
    said, events = config(log, tmp_path, vectors), []
    table = build(said, encoder, {}, events.append).embedding.tables[f"width_{WIDTH}"]
    without = build(config(log, tmp_path, pretrained=None), encoder, {}).embedding.tables[f"width_{WIDTH}"]
    start, values = table.offset["item_id"], encoder.vocabs["item_id"].values()
    found = 0
    for i, value in enumerate(values):
        row, expected = table.weight[start + 2 + i], log[1].get(value)
        found += expected is not None
        assert torch.equal(row, without.weight[start + 2 + i] if expected is None else torch.tensor(expected))
    assert (table.weight[start] == 0).all() and torch.equal(table.weight[start + 1], without.weight[start + 1])
    assert events == [{"event": "pretrained", "space": "item_id", "vectors": "made", "found": found,
                       "values": len(values), "unused": len(log[1]) - found, "frozen": False}]
    assert 0 < found < len(values)


@pytest.mark.parametrize("engine", ["native", "torch"])
@pytest.mark.parametrize("optimiser", ["adagrad", "adam"])
def test_frozen_vectors_stay_and_all_others_learn(log, encoder, tmp_path, engine, optimiser):
    if engine == "native" and library() is None:
        pytest.skip("no native engine here")
    said = config(log, tmp_path / "run", frozen=True, engine=engine, optimiser={"name": optimiser})
    before = build(said, encoder, {}).embedding.tables[f"width_{WIDTH}"]
    ranker = Ranker.load(api.train(said).folder)
    start, after = before.offset["item_id"], rows_of(ranker)
    moved = {v: not np.array_equal(row, before.weight[start + 2 + i].numpy()) for i, (v, row) in enumerate(
        after.items())}
    for value, row in after.items():
        if value in log[1]:
            assert np.array_equal(row, log[1][value])                      # to the bit, average and l2 notwithstanding
    assert {v for v, m in moved.items() if m} == {v for v in moved if v not in log[1]}


def test_without_frozen_they_learn(log, tmp_path):
    after = rows_of(Ranker.load(api.train(config(log, tmp_path / "run")).folder))
    assert any(not np.array_equal(row, log[1][v]) for v, row in after.items() if v in log[1])


def test_of_values_in_one_bucket_the_first_is_taken(log, tmp_path):
    features = {"item_id": {"hash_buckets": 3}, "lists": "off"}
    said = config(log, tmp_path, features=features)
    events, encoder = [], funnelrank.prepare(said, funnelrank.open_data(said))
    table = build(said, encoder, {}, events.append).embedding.tables[f"width_{WIDTH}"]
    first = {}
    for value, i in zip(log[1], encoder.vocabs["item_id"].ids(pa.array(list(log[1])))):
        first.setdefault(int(i), log[1][value])
    assert all(np.array_equal(table.weight[i].numpy(), v) for i, v in first.items()) and len(first) == 3
    assert events[0]["found"] == events[0]["values"] == 3 and events[0]["unused"] == 0


@pytest.mark.parametrize("name, text, message", [
    ("a.vec", "7 1 2\n8 1 2 x\n", "line 2: is no value and 2 numbers behind it"),
    ("a.vec", "7 1 2\n8 1\n", "line 2: is no value and 2 numbers"), ("a.vec", "7\n", "line 1: is no value and some"),
    ("a.vec", "7 1 nan\n", "the vector of '7' holds a number that is missing or not finite"),
    ("a.csv", "id,vector\n7,1|2\n8,1|2|3\n", "column 'vector': a list of 3 \\(row 1;"),
    ("a.csv", "id,vector\n7,1|2\n8,\n", "is null or empty in 1 rows \\(first: row 1\\)"),
    ("a.csv", "id,vector\n,1|2\n", "a value is null"), ("a.csv", "id,embedding\n7,1|2\n", "no column 'vector'"),
    ("a.npy", "no matrix", "cannot be read"), ("none.vec", None, "cannot be read: No such file"),
    ("a.csv", "id,vector\n7,1|2\n7,1|3\n", None)])
def test_what_a_file_of_vectors_may_not_hold(log, tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    said = config(log, tmp_path, {"path": str(tmp_path / name), "separator": "|"}, width=2)
    found = verify(said.schema, said.settings)
    assert (not found.faults) if message is None else any(re.search(message, f) for f in found.faults)


def test_a_value_has_one_vector_and_a_space_its_width(log, encoder, tmp_path):
    some = [*log[1]][:2]
    twice = pa.table({"id": [*some, some[0]], "vector": [[0.0] * WIDTH] * 3})
    pq.write_table(twice, tmp_path / "twice.parquet")
    with pytest.raises(DataError, match=f"twice.parquet.*: the value {some[0]} stands twice; each has one"):
        build(config(log, tmp_path, {"path": str(tmp_path / "twice.parquet")}), encoder, {})
    with pytest.raises(ConfigError, match="are 4 wide, and this space 6; write width: 4"):
        build(config(log, tmp_path, width=6), encoder, {})


def test_what_a_config_may_not_say_of_them(log, tmp_path):
    with pytest.raises(ConfigError, match=r"embedding.spaces.item_id.pretrained: no 'mad' in data.vectors.*'made'"):
        config(log, tmp_path, pretrained="mad")
    with pytest.raises(ConfigError, match="there is nothing to freeze"):
        config(log, tmp_path, pretrained=None, frozen=True)
    idle = config(log, tmp_path, pretrained=None)
    assert any(n.startswith("data.vectors.made: no id space starts from these") for n in notes(
        idle.settings, idle.schema))
