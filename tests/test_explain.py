"""What answers come from: planted features are found, intervals are of paired differences, fewer features train."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from funnelrank import Ranker, cli, explain, load_config
from funnelrank.data.encoded import Encoded, List
from funnelrank.evaluate import explained
from funnelrank.evaluate.importance import Columns, dealt, importances
from funnelrank.evaluate.intervals import clustered
from funnelrank.evaluate.measure import Scores
from funnelrank.settings import Evaluate

CONFIG = """
data: {train: train.parquet, valid: valid.parquet, test: test.parquet, scenario: tab, user: user}
features: {strong: number, weak: number, noise: number, tab: id, item: id,
           seen: {kind: sequence, space: item}}
tasks: {click: {}, buy: {after: click}, paid: {kind: regression}}
embedding: {width: 4}
model: {name: mmoe, represent: {experts: 2, hidden: [8]}, predict: {hidden: [8]}}
train: {threads: 1, epochs: 3, batch_size: 100, log_every: 1000, optimiser: {lr: 0.01},
        early_stopping: {metric: valid/auc, patience: 9}}
evaluate: {resamples: 100, frozen: false, intervals: user}
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory, no_pictures):
    """A log in which `strong` decides, `weak` helps, and `noise` says nothing."""
    folder, rng = tmp_path_factory.mktemp("explain"), np.random.default_rng(0)
    for split, n in (("train", 3000), ("valid", 1200), ("test", 300)):
        f = pd.DataFrame({k: rng.normal(size=n) for k in ("strong", "weak", "noise")})
        f["tab"], f["item"], f["user"] = rng.choice(["a", "b"], n), rng.integers(0, 30, n), rng.integers(0, 200, n)
        f["seen"] = [rng.integers(0, 30, k).tolist() for k in rng.integers(0, 4, n)]
        f["click"] = (rng.random(n) < 1 / (1 + np.exp(-2 * f.strong - 0.5 * f.weak))).astype(float)
        f["buy"] = f.click * (rng.random(n) < 0.4)
        f["paid"] = f.strong + rng.normal(size=n)
        f.to_parquet(folder / f"{split}.parquet")
    (folder / "shop.yaml").write_text(CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert cli.main(["train", "shop.yaml"]) == 0
    return folder


def made(n=600, users=60, seed=0):
    """Encoded rows of one id, one number, one list; and what a model of the number says of them."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 4, n)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    x = rng.normal(size=n).astype(np.float32)
    y = (rng.random(n) < 1 / (1 + np.exp(-x))).astype(np.float32)
    listed = List(rng.integers(2, 9, offsets[-1]).astype(np.int32), offsets, None)
    user = rng.integers(0, users, n)
    return Encoded(rng.integers(2, 9, (n, 1)).astype(np.int32), x[:, None], [listed],
                   rng.integers(2, 4, n).astype(np.int32), y[:, None], np.ones(n, np.float32), user)


def says(rows):
    z = rows.numbers.astype(np.float64)
    return Scores(["click"], ["binary"], [None], -np.logaddexp(0, -z), -np.logaddexp(0, z), z, rows.labels,
                  rows.scenario, rows.user)


def test_dealing_every_column_is_taking_other_rows():
    rows, at = made(), np.random.default_rng(1).permutation(600)
    found = dealt(rows, Columns((0,), (0,), (0,), True), at)
    assert np.array_equal(found.ids, rows.ids[at]) and np.array_equal(found.numbers, rows.numbers[at])
    assert np.array_equal(found.scenario, rows.scenario[at]) and np.array_equal(found.labels, rows.labels)
    was, now = rows.lists[0], found.lists[0]
    for i in range(600):
        a, b = now.offsets[i:i + 2], was.offsets[at[i]:at[i] + 2]
        assert np.array_equal(now.values[a[0]:a[1]], was.values[b[0]:b[1]])


def test_what_no_answer_reads_costs_nothing_and_the_rest_a_paired_difference():
    rows = made()
    found = importances(rows, {"id": Columns(ids=(0,)), "number": Columns(numbers=(0,))}, says, Evaluate(), ["a", "b"])
    at = {(r["feature"], r["scenario"], r["metric"]): r for r in found}
    for (feature, _, _), r in at.items():
        if feature == "id":
            assert r["value"] == r["low"] == r["high"] == 0
    r = at["number", None, "auc"]
    other = dealt(rows, Columns(numbers=(0,)), np.random.default_rng(0).permutation(600))
    base, changed = (clustered(says(x).log_p[:, 0], rows.labels[:, 0] == 1, rows.user)[0] for x in (rows, other))
    assert r["value"] == pytest.approx(base - changed)
    assert 0.1 < r["low"] < r["value"] < r["high"] and r["high"] - r["value"] < 0.15
    assert at["number", None, "loss"]["low"] > 0
    by_tab = [at["number", s, "auc"]["rows"] for s in ("a", "b")]
    assert sum(by_tab) == 600 and by_tab[0] == (rows.scenario == 2).sum()


def test_an_interval_covers_what_other_users_give():
    """Of the same model on 200 other draws of users, with the same number of rows each."""
    inside = []
    truth = np.mean([r["value"] for s in range(200, 230) for r in importances(
        made(3000, 300, s), {"number": Columns(numbers=(0,))}, says, Evaluate(), None) if r["metric"] == "auc"])
    for seed in range(200):
        (r,) = [r for r in importances(made(300, 60, seed), {"number": Columns(numbers=(0,))}, says, Evaluate(), None)
                if r["metric"] == "auc"]
        inside.append(r["low"] <= truth <= r["high"])
    assert 0.9 < np.mean(inside) < 0.99


def test_too_few_positives_are_a_note_and_no_number():
    rows = made(60)
    rows = replace(rows, labels=np.where(np.arange(60)[:, None] < 3, 1, 0).astype(np.float32))
    (r, _) = importances(rows, {"number": Columns(numbers=(0,))}, says, Evaluate(), None)
    assert r["value"] is None and r["note"] == "too few positives"


def test_the_command_finds_what_was_planted(shop, monkeypatch, capsys):
    monkeypatch.chdir(shop)
    monkeypatch.setattr(explained, "page", lambda *given: "<html>")
    assert cli.main(["explain", "runs/shop", "--by", "item"]) == 0
    said = capsys.readouterr().out
    assert "on 1,200 rows of valid" in said
    lines = [line.split()[0] for line in said.splitlines() if line]
    assert lines.index("strong") < lines.index("weak") < lines.index("noise")
    found = json.loads((shop / "runs/shop/explain/explain.json").read_text())
    at = {(r["feature"], r["task"], r["scenario"], r["metric"]): r for r in found["importance"]}
    assert at["strong", "click", None, "auc"]["low"] > 0.15 and at["weak", "click", None, "auc"]["low"] > 0
    assert at["noise", "click", None, "auc"]["low"] < 0.01
    assert at["strong", "paid", None, "loss"]["low"] > 0 and at["strong", "click", "a", "auc"]["low"] > 0
    assert set(found["kinds"]) >= {"strong", "seen", "tab"} and "length(seen)" not in found["kinds"]
    gates = {(g["task"], g["scenario"], g.get("by")) for g in found["gates"]}
    assert {("click", None, None), ("buy", "a", None)} <= gates and any(by == "item" for _, _, by in gates)
    for task in ("click", "buy", "paid"):
        shares = [g["value"] for g in found["gates"] if (g["task"], g["scenario"]) == (task, None)]
        assert sum(shares) == pytest.approx(1, abs=1e-5) and len(shares) == 2
    assert "| strong |" in (shop / "runs/shop/explain/explain.md").read_text()


def test_fewer_features_are_trained_and_held_against_all(shop, monkeypatch, capsys):
    monkeypatch.chdir(shop)
    monkeypatch.setattr(explain, "KEPT", (0.67,))
    found = explain.explain("runs/shop")
    chosen = explain.select("runs/shop", found)
    (step,) = chosen.steps
    assert step["features"] == 4 and not {"strong", "weak"} & set(step["removed"]) and len(step["removed"]) == 2
    assert {r["task"] for r in step["rows"]} >= {"click", "buy"}
    fewer = load_config(shop / "runs/shop-select/selected.yaml")
    every = {"strong", "weak", "noise", "tab", "item", "seen"}
    assert set(fewer.settings.features.columns) == every - set(step["removed"])
    assert Ranker.load("runs/shop-select/keep-4").config.settings.data.test is None
    assert explain.words(chosen)[0].startswith("4 features: AUC click ")


def test_the_page_is_whole_and_hostile_names_stay_text():
    bad = "<script>alert(1)</script>"
    row = {"feature": bad, "task": bad, "scenario": None, "metric": "auc", "value": 0.1, "low": 0.05, "high": 0.15,
           "base": 0.7, "rows": 100, "positives": 30, "note": None}
    found = {"name": bad, "split": "valid", "looked": 100, "kinds": {bad: "feature"}, "gates": [],
             "importance": [row, row | {"scenario": bad}]}
    text = explained.page(found)
    assert "<script" not in text and text.count("<svg") == 1 and "+0.1000" in text
    assert "http" not in text
    assert "\n# " not in explained.markdown(found, ["feature"], [["a\n# b"]], ["c\n# d"])[1:]


@pytest.mark.parametrize("words, said", [
    (["explain", "nowhere"], "there is no such folder"), (["explain", "runs/shop", "--most", "0"], "at least 1"),
    (["explain", "runs/shop", "--by", "nothing"], "nothing")])
def test_what_cannot_be_done_is_one_sentence(shop, monkeypatch, capsys, words, said):
    monkeypatch.chdir(shop)
    assert cli.main(words) == 2
    assert said in capsys.readouterr().err
