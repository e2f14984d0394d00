"""Every way of reading a column in one run: trained, loaded, asked as a server is asked, gone on from, examined."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from funnelrank import Ranker, api, doctor
from funnelrank.config import load
from funnelrank.data.loader import pack
from funnelrank.data.verify import verify
from funnelrank.scorer import Scorer
from funnelrank.serve.protocol import Limits
from funnelrank.serve.requests import from_rank
from funnelrank.serve.servable import Servable

pytestmark = pytest.mark.usefixtures("no_pictures")
FEATURES = {
    "item": {"min_count": 1, "role": "item"}, "user": {"min_count": 1},
    "hour": {"num_buckets": 24, "unknown": 0, "default": 0},
    "city": {"hash_buckets": 50, "default": ""},
    "image": {"kind": "vector", "size": 3, "role": "item"},
    "scores": {"kind": "vector", "size": 2, "separator": ",", "scale": "none"},
    "tags": {"kind": "bag", "role": "item", "min_count": 1},
    "topics": {"kind": "bag", "separator": "|", "weight_separator": ":", "min_count": 1},
    "rate": {"kind": "number", "column": "rates", "key": "city", "role": "user"},
    "tier": {"column": "tiers", "key": "city", "separator": "|", "key_separator": ":", "min_count": 1, "role": "user"},
    "plan": {"column": "plans", "key": "city", "min_count": 1, "role": "user"},
    "price": {"kind": "number", "boundaries": [1, 2, 4]},
    "paid": {"kind": "sequence", "space": "price", "max_len": 4},
    "dwell": {"kind": "sequence", "buckets": 3},
    "mean_dwell": {"kind": "number", "column": "dwell", "pool": "mean", "role": "user"},
    "dear": {"kind": "number", "expression": "log1p(price) * (hour > 12) + coalesce(rate, 0.5)"},
    "city_x_hour": {"kind": "cross", "columns": ["city", "hour"], "hash_buckets": 100},
    "plan_x_price": {"kind": "cross", "of": ["plan", "price"], "min_count": 1}}


def rows(n, seed):
    rng = np.random.default_rng(seed)
    lists = lambda make, most=5: [None if rng.random() < 0.1 else [make() for _ in range(rng.integers(most))]
                                  for _ in range(n)]
    city = [None if rng.random() < 0.1 else str(rng.choice(["rome", "oslo", "bern"])) for _ in range(n)]
    maps = lambda make: [None if c is None else {str(k): make() for k in rng.choice(["rome", "oslo"], 2, False)}
                         for c in city]
    text = lambda m: None if m is None else "|".join(f"{k}:{v}" for k, v in m.items())
    pairs = lambda found: [m if m is None else list(m.items()) for m in found]
    click = rng.random(n) < 0.4
    return pa.table({
        "item": rng.integers(0, 20, n), "user": rng.integers(0, 15, n), "hour": rng.integers(-1, 26, n), "city": city,
        "image": pa.array([None if rng.random() < 0.1 else rng.normal(size=3).tolist() for _ in range(n)],
                          pa.list_(pa.float64())),
        "scores": [f"{a:.3f},{b:.3f}" for a, b in rng.normal(size=(n, 2))],
        "tags": pa.array([[{"tag": str(k), "weight": 0.5} for k in rng.choice(list("abc"), 2, False)]
                          for _ in range(n)], pa.list_(pa.struct([("tag", pa.string()), ("weight", pa.float64())]))),
        "topics": [text(m) for m in maps(lambda: round(rng.random(), 2))],
        "rates": pa.array(pairs(maps(rng.random)), pa.map_(pa.string(), pa.float64())),
        "tiers": [text(m) for m in maps(lambda: int(rng.integers(3)))],
        "plans": pa.array(pairs(maps(lambda: str(rng.choice(["x", "y"])))), pa.map_(pa.string(), pa.string())),
        "price": rng.lognormal(1, 1, n), "paid": pa.array(lists(lambda: float(rng.lognormal(1, 1)))),
        "dwell": pa.array(lists(lambda: float(rng.integers(60)))), "click": click.astype(np.int64)})


def config(folder):
    return load({"data": {"user": "user"}, "features": FEATURES, "tasks": {"click": {}},
                 "embedding": {"width": 4, "init": 0.3}, "model": {"name": "din", "represent": {"hidden": [8]}},
                 "train": {"threads": 1, "epochs": 1, "batch_size": 64, "out": str(folder)}})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return api.train(config(tmp_path_factory.mktemp("kinds") / "run"), train=rows(300, 0), valid=rows(80, 1))


def test_one_row_at_a_time_is_scored_as_many_are(run):
    ranker, log = Ranker.load(run.folder), rows(25, 2).drop(["click"])
    whole = ranker.predict(log)
    each = pa.concat_tables([ranker.predict(log.slice(i, 1)) for i in range(len(log))])
    assert np.allclose(whole["click"], each["click"], atol=1e-6)


def test_a_rank_request_says_what_predict_says(run):
    shop, log = Servable.load(run.folder), rows(6, 3).drop(["click"])
    theirs = [c for c in shop.columns if c in ("rates", "tiers", "plans", "city", "paid", "dwell", "user")]
    for c in theirs:                                                         # one user's, for all candidates
        i = log.column_names.index(c)
        log = log.set_column(i, log.field(i), log[c].take([0] * 6))
    plain = lambda c, v: v if v is None or c not in ("rates", "plans", "tags") else (
        {e["tag"]: e["weight"] for e in v} if c == "tags" else dict(v))
    said = {c: [plain(c, v) for v in log[c].to_pylist()] for c in log.column_names}
    body = {"user": {c: said[c][0] for c in theirs}, "candidates": {c: v for c, v in said.items() if c not in theirs}}
    asked, _ = from_rank(json.loads(json.dumps(body)), shop.columns, shop.outputs, Limits())
    found = shop.score([asked])[0].outputs["click"]
    assert np.allclose(found, Ranker.load(run.folder).predict(log)["click"], atol=1e-6)


def test_a_run_goes_on_from_it(run, tmp_path):
    again = api.train(config(tmp_path / "again"), continue_from=run.folder, train=rows(200, 5), valid=rows(80, 6))
    old, new = (Ranker.load(r.folder).encoder for r in (run, again))
    assert new.boundaries == old.boundaries and new.scalers["image"] == old.scalers["image"]


def test_the_graph_that_is_exported_says_the_same(run):
    ranker = Ranker.load(run.folder)
    batch = pack(ranker.encoder.encode(rows(9, 7), "log"), slice(None))
    model, schema = ranker.model.eval(), ranker.config.schema
    scorer = Scorer(model, schema.served).eval()
    with torch.no_grad():
        found, expected = scorer(*scorer.feed(batch).values())[0], model.funnel.answer(
            model.served(batch), schema.served[0])
    assert torch.allclose(found, expected, atol=1e-6)


def test_check_and_doctor_read_them(run, tmp_path):
    said = config(tmp_path / "run")
    pq.write_table(rows(300, 0), tmp_path / "train.parquet")
    settings = load({"data": {"user": "user", "train": str(tmp_path / "train.parquet")}, "features": FEATURES,
                     "tasks": {"click": {}}}).settings
    found = verify(said.schema, settings)
    assert not found.faults
    assert any("features.hour.num_buckets: 24 means ids 0 to 23" in note and "become 0" in note for note in found.notes)
    assert not any("paid" in note or "dwell" in note for note in found.notes)
    doctor.examine(said, train=rows(300, 0), valid=rows(80, 1))
