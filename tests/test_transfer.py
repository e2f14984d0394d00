"""Joint against separate: runs of each task and each scenario, compared on the same rows, and gone on with."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from funnelrank import cli, settings, transfer
from funnelrank.config import load
from funnelrank.data.only import Only, counted
from funnelrank.data.source import open_source
from funnelrank.evaluate.kept import open_scores
from funnelrank.simulate import simulate

CONFIG = """
data: {dir: log, train: train.parquet, valid: valid.parquet, test: test.parquet, scenario: scenario, user: user_id}
features: {item_id: id, scenario: id, lists: "off"}
tasks: {click: {}, cart: {after: click}, like: {}}
model: {name: aitm, represent: {hidden: [8]}}
train: {threads: 1, epochs: 1, log_every: 1000}
evaluate: {resamples: 100}
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory, no_pictures):
    folder = tmp_path_factory.mktemp("transfer")
    simulate(folder / "log", rows=4000, users=200, items=60, funnel=["click", "cart"])
    (folder / "shop.yaml").write_text(CONFIG)
    return folder


def test_each_is_compared_on_its_own_rows_and_a_second_time_nothing_is_trained(shop, monkeypatch, capsys):
    monkeypatch.chdir(shop)
    command = ["transfer", "shop.yaml", "--tasks", "click,cart", "--scenarios", "home"]
    assert cli.main(command) == 0
    said = capsys.readouterr().out
    assert "the joint model against models trained apart" in said
    folder = shop / "runs/shop-transfer"
    found = json.loads((folder / "transfer.json").read_text())
    assert {(r["of"], r["apart"], r["task"]) for r in found["rows"]} == {
        ("task", "click", "click"), ("task", "cart", "cart"),
        *(("scenario", "home", t) for t in ("click", "cart", "like"))}
    test = pq.read_table(shop / "log/test.parquet")
    home = pc.equal(test["scenario"], "home").to_numpy(zero_copy_only=False)
    scores = open_scores(folder / "scenario-home/scores").scores
    assert len(scores.labels) == home.sum()
    np.testing.assert_array_equal(scores.labels[:, 0], test["click"].cast(pa.float32()).to_numpy(
        zero_copy_only=False)[home])
    whole = json.loads((folder / "joint/metrics.json").read_text())
    value = lambda task, scenario: next(r["value"] for r in whole if (
        r["split"], r["metric"], r["task"], r["scenario"]) == ("test", "auc", task, scenario))
    row = next(r for r in found["rows"] if (r["of"], r["task"], r["metric"]) == ("scenario", "click", "auc"))
    assert row["value"] == pytest.approx(value("click", "home"), abs=1e-6)
    assert row["difference"] == pytest.approx(row["value"] - row["base_value"], abs=1e-6)
    assert row["low"] < row["difference"] < row["high"] and 0 <= row["p"] <= row["p_corrected"]
    alone = next(r for r in found["rows"] if (r["of"], r["task"], r["metric"]) == ("task", "cart", "auc"))
    assert alone["value"] == pytest.approx(value("cart", None), abs=1e-6)
    before = (folder / "joint/artefact/manifest.json").stat().st_mtime_ns
    assert cli.main(command) == 0
    assert (folder / "joint/artefact/manifest.json").stat().st_mtime_ns == before
    assert (folder / "transfer.md").read_text().startswith("# Learning together, on test")


def test_several_seeds_are_compared_by_their_means(shop, monkeypatch, capsys):
    monkeypatch.chdir(shop)
    assert cli.main(["transfer", "shop.yaml", "--tasks", "cart", "--scenarios", "none", "--seeds", "2",
                     "--set", "train.out=runs/seeds"]) == 0
    assert "Means over 2 seeds" in capsys.readouterr().out
    rows = json.loads((shop / "runs/seeds-transfer/transfer.json").read_text())["rows"]
    row = next(r for r in rows if r["metric"] == "auc")
    each = [json.loads((shop / f"runs/seeds-transfer/joint/seed-{s}/metrics.json").read_text()) for s in (0, 1)]
    aucs = [next(r["value"] for r in rows if (r["split"], r["metric"], r["task"], r["scenario"]) == (
        "test", "auc", "cart", None)) for rows in each]
    assert row["seeds"] == [2, 2] and row["value"] == pytest.approx(np.mean(aucs), abs=1e-6) and aucs[0] != aucs[1]


def test_a_task_alone_keeps_its_parts_and_loses_the_transfer():
    config = load({"data": {"user": "u"}, "features": {"a": "id"}, "tasks": {"x": {}, "y": {"after": "x"}},
                   "model": {"name": "aitm", "represent": {"hidden": [8]}}})
    one = transfer.alone(config, "y")
    assert one.schema.task_names == ["y"] and one.schema.parents == [None]
    assert one.settings.model["represent"]["hidden"] == [8] and not one.settings.model.get("transfer")


def test_gains_and_losses_are_said(tmp_path):
    row = {"of": "scenario", "apart": "home", "task": "buy", "metric": "auc", "difference": -0.02, "low": -0.03,
           "high": -0.01, "better": "separate", "p_corrected": 0.001, "base_value": 0.7, "value": 0.68, "note": None}
    found = transfer.Transfer(tmp_path, "test", [row, row | {"better": None}], [])
    assert transfer.words(found) == ["Shown: negative transfer: 'buy' in home loses to other scenarios (auc -0.0200, "
                                     "95 %: -0.0300 to -0.0100)."]
    assert [line[-1] for line in transfer.shown(found).rows] == ["negative transfer", "not shown"]


def test_only_the_rows_of_one_value():
    source = open_source(pa.table({"s": ["a", "b", None, "a"], "x": [1, 2, 3, 4]}), settings.Data(), "train")
    assert counted(source, "s") == {"a": 2, "b": 1}
    only = Only(source, "s", "a")
    assert only.rows == 2 and only.read(only.units[0], ["x"])["x"].to_pylist() == [1, 4]
    assert only.fingerprint() != Only(source, "s", "b").fingerprint()


@pytest.mark.parametrize("words, said", [
    (["--tasks", "clik"], "did you mean 'click'?"), (["--scenarios", "hom"], "did you mean 'home'?"),
    (["--set", "evaluate.keep_scores=0"], "evaluate.keep_scores"), (["--seeds", "0"], "seeds: 0 asked for"),
    (["--tasks", "none", "--scenarios", "none"], "nothing to learn from each other")])
def test_what_cannot_be_done_is_one_sentence(shop, monkeypatch, capsys, words, said):
    monkeypatch.chdir(shop)
    assert cli.main(["transfer", "shop.yaml", *words]) == 2
    assert said in capsys.readouterr().err
