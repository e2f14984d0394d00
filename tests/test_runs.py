"""Several runs from the command line: seeds, comparison, leaderboard."""

import json

import numpy as np
import pytest
import torch

from funnelrank import Ranker, cli
from funnelrank.evaluate.kept import open_scores
from funnelrank.simulate import simulate

CONFIG = """
data: {dir: log, train: train.parquet, valid: valid.parquet, test: test.parquet, scenario: scenario, user: user_id}
features: {item_id: id, scenario: id, lists: "off"}
tasks: {click: {}, cart: {after: click}}
model: {name: shared_bottom, represent: {hidden: [8]}}
train: {threads: 1, epochs: 1, log_every: 1000}
evaluate: {resamples: 100}
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    simulate(folder / "log", rows=4000, users=200, items=60, funnel=["click", "cart"])
    (folder / "shop.yaml").write_text(CONFIG)
    return folder


def test_seeds_comparison_and_leaderboard(shop, monkeypatch, capsys):
    monkeypatch.chdir(shop)
    assert cli.main(["train", "shop.yaml", "--seeds", "2", "--set", "train.out=runs/many"]) == 0
    assert cli.main(["train", "shop.yaml", "--set", "train.out=runs/one"]) == 0
    capsys.readouterr()
    assert sorted(p.name for p in (shop / "runs/many").iterdir()) == ["seed-0", "seed-1", "summary.json", "summary.md"]
    summary = json.loads((shop / "runs/many/summary.json").read_text())
    each = [json.loads((shop / f"runs/many/seed-{s}/metrics.json").read_text()) for s in (0, 1)]
    values = [next(r["value"] for r in rows if (r["split"], r["metric"]) == ("test", "auc")) for rows in each]
    row = next(r for r in summary["rows"] if (r["split"], r["metric"]) == ("test", "auc"))
    assert row["values"] == values and row["mean"] == pytest.approx(sum(values) / 2) and values[0] != values[1]

    assert cli.main(["compare", "runs/one", "runs/many", "runs/many/seed-0", "--out", "cmp"]) == 0
    said = capsys.readouterr().out
    assert "held against one" in said and "P values are corrected by Holm" in said
    found = json.loads((shop / "cmp/comparison.json").read_text())
    same = next(r for r in found["rows"] if r["run"] == "seed-0" and r["metric"] == "auc" and r["scenario"] is None)
    assert same["difference"] == 0 and same["p_corrected"] == 1           # one is seed 0, too
    assert (shop / "cmp/comparison.md").read_text().startswith("# Compared with one, on test")

    assert cli.main(["leaderboard", "runs/one", "runs/many", "--metric", "test/click/logloss"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


@pytest.mark.parametrize("words, said", [
    (["compare", "nowhere", "log"], "nowhere: there is no such folder"),
    (["compare", "log", "log"], "log: keeps no scores of its test rows"),
    (["leaderboard", "log"], "no finished run"),
    (["leaderboard", "runs"], "name the runs in it, as runs/*"),
    (["train", "shop.yaml", "--seeds", "1"], "seeds: 1 asked for"),
])
def test_what_cannot_be_done_is_one_sentence(shop, monkeypatch, capsys, words, said):
    monkeypatch.chdir(shop)
    assert cli.main(words) == 2
    assert said in capsys.readouterr().err


def test_calibrators_ride_in_the_artefact(shop, monkeypatch, capsys):
    monkeypatch.chdir(shop)
    words = ["train", "shop.yaml", "--set", "train.out=runs/calibrated", "--set", "calibrate.method=platt"]
    assert cli.main(words) == 0
    events = [json.loads(line) for line in (shop / "runs/calibrated/events.jsonl").read_text().splitlines()]
    (event,) = [e for e in events if e["event"] == "calibrate"]
    assert event["method"] == "platt" and set(event["tasks"]) == {"click", "cart"}
    ranker = Ranker.load(shop / "runs/calibrated")
    assert (ranker.model.calibration.line[0] != torch.tensor([1.0, 1.0, 0.0])).any()
    written = {(r["task"], r["scenario"], r["metric"]): r["value"] for r in ranker.rows if r["split"] == "test"}
    for r in ranker.evaluate():                                    # scored by the artefact as by the run
        if r["value"] is not None:
            assert r["value"] == pytest.approx(written[r["task"], r["scenario"], r["metric"]], rel=1e-4)
    served = ranker.predict("log/test.parquet")
    scores = open_scores(shop / "runs/calibrated/scores").scores
    np.testing.assert_allclose(np.log(served["click"].to_numpy()), scores.log_p[:, 0], atol=1e-4)

    capsys.readouterr()
    assert cli.main(["evaluate", "runs/calibrated", "--by", "scenario,user_id", "--out", "by.json"]) == 0
    rows = json.loads((shop / "by.json").read_text())
    assert [r["metric"] for r in rows if r["task"] == "click"][-2:] == ["field_ece:scenario", "field_ece:user_id"]
    assert "field_ece" in capsys.readouterr().out
    assert cli.main(["evaluate", "runs/calibrated", "--by", "scenaro"]) == 2
    assert "column 'scenaro'" in (said := capsys.readouterr().err) and "did you mean 'scenario'" in said


def test_calibrators_need_held_out_rows(shop, monkeypatch, capsys):
    monkeypatch.chdir(shop)
    assert cli.main(["train", "shop.yaml", "--set", "data.valid=null", "--set", "calibrate.method=beta",
                     "--set", "train.out=runs/never"]) == 2
    assert "calibrate.method: beta is fitted on valid" in capsys.readouterr().err
    assert not (shop / "runs/never/checkpoints").exists()
