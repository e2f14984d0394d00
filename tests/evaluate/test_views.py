"""Other sides of the same scores: steps given the step before, cold starts, other groups, drift."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from funnelrank import settings
from funnelrank.data.seen import NULL, Seen, groups_of
from funnelrank.data.source import open_source
from funnelrank.evaluate import metrics
from funnelrank.evaluate.drift import psi, psi_noise
from funnelrank.evaluate.measure import Scores, measure
from funnelrank.evaluate.views import cold_rows, funnel_rows, gauc_rows, score_drift_rows

EVALUATE = settings.Evaluate(resamples=200)


@pytest.fixture(scope="module")
def scores():
    rng = np.random.default_rng(0)
    n = 4000
    z = rng.normal(-0.5, 1, (n, 2))
    click = 1 / (1 + np.exp(-z[:, 0]))
    buy = click / (1 + np.exp(-z[:, 1]))
    clicked = rng.random(n) < click
    labels = np.stack([clicked, clicked & (rng.random(n) < buy / click)], 1).astype(np.float32)
    p = np.stack([click, np.where(np.arange(n) % 10 == 0, np.minimum(click * 1.2, 0.99), buy)], 1)
    return Scores(["click", "buy"], ["binary"] * 2, [None, 0], np.log(p).astype(np.float32),
                  np.log1p(-p).astype(np.float32), p, labels, rng.integers(2, 4, n), rng.integers(0, 300, n))


def find(rows, metric, task, scenario=None):
    (row,) = [r for r in rows if (r["metric"], r["task"], r["scenario"]) == (metric, task, scenario)]
    return row


def test_a_step_given_the_one_before_is_measured_where_that_happened(scores):
    rows = funnel_rows("test", scores, EVALUATE, ["a", "b"])
    at = scores.labels[:, 0] == 1
    step = np.minimum(scores.log_p[at, 1] - scores.log_p[at, 0], -1e-7)
    row = find(rows, "auc_given", "buy")
    assert row["value"] == pytest.approx(metrics.auc(step, scores.labels[at, 1]), abs=1e-6)
    assert row["low"] < row["value"] < row["high"] and row["rows"] == at.sum()
    p = find(rows, "pcoc_given", "buy")["value"]
    assert p == pytest.approx(np.exp(step).sum() / scores.labels[at, 1].sum(), rel=1e-5)
    assert {r["scenario"] for r in rows if r["metric"] == "ece_given"} == {None, "a", "b"}
    assert not [r for r in rows if r["task"] == "click"]


def test_violations_have_a_size(scores):
    size = find(funnel_rows("test", scores, EVALUATE, None), "violation_size", "buy")
    p = np.exp(scores.log_p.astype(np.float64))
    over = p[:, 1] - p[:, 0]
    assert size["value"] == pytest.approx(over[over > 0].mean(), rel=1e-6)
    none = Scores(**{**scores.__dict__, "log_p": np.minimum(scores.log_p, scores.log_p[:, :1])})
    size = find(funnel_rows("test", none, EVALUATE, None), "violation_size", "buy")
    assert size["value"] is None and size["note"] == "no violations"


def test_cold_slices_are_the_metrics_of_their_rows(scores):
    seen = np.random.default_rng(1).choice([NULL, 0, 5, 50, 500], len(scores.labels))
    rows = cold_rows("test", scores, EVALUATE, {"item_id": seen})
    for bucket, value in (("new", 0), ("1-9", 5), ("10-99", 50), ("100+", 500)):
        at = seen == value
        row = find(rows, f"auc@item_id:{bucket}", "click")
        assert row["value"] == pytest.approx(metrics.auc(scores.log_p[at, 0], scores.labels[at, 0]))
        assert row["rows"] == at.sum() and row["low"] < row["value"] < row["high"]


def test_gauc_of_one_group_is_auc_and_of_users_is_gauc(scores):
    whole = gauc_rows("test", scores, EVALUATE, "day", np.zeros(len(scores.labels), np.int64))
    assert find(whole, "gauc_by:day", "click")["value"] == pytest.approx(
        metrics.auc(scores.log_p[:, 0], scores.labels[:, 0]))
    by = find(gauc_rows("test", scores, EVALUATE, "user", scores.user), "gauc_by:user", "click")
    usual = find(measure("test", scores, EVALUATE), "gauc", "click")
    assert {k: by[k] for k in ("value", "low", "high", "users", "valid_users")} == pytest.approx(
        {k: usual[k] for k in ("value", "low", "high", "users", "valid_users")})


def test_requests_of_one_user_are_drawn_together(scores):
    request = scores.user * 4 + np.arange(len(scores.user)) % 4
    by = find(gauc_rows("test", scores, EVALUATE, "request", request), "gauc_by:request", "click")
    assert by["users"] > 1000 and by["low"] < by["value"] < by["high"]
    nobody = np.full(len(scores.labels), -1)
    assert "has both classes" in find(gauc_rows("test", scores, EVALUATE, "x", nobody), "gauc_by:x", "buy")["note"]


def test_live_gauc_says_so_where_lists_move_it(scores):
    frozen = Scores(**{**scores.__dict__, "log_p": np.random.default_rng(9).normal(-1, 1, scores.log_p.shape).astype(
        np.float32)})
    rows = measure("test", scores, EVALUATE, frozen=frozen)
    assert "read gauc_frozen" in find(rows, "gauc", "click")["note"]
    same = measure("test", scores, EVALUATE, frozen=scores)
    assert find(same, "gauc", "click")["note"] is None


def test_psi_is_zero_of_equal_shares_and_of_its_noise_on_two_draws():
    assert psi(np.array([5, 10, 85]), np.array([50, 100, 850])) == pytest.approx(0)
    p, q = np.array([0.2, 0.8]), np.array([0.5, 0.5])
    assert psi(1000 * p, 1000 * q) == pytest.approx(((q - p) * np.log(q / p)).sum())
    assert psi(np.ones(500), np.array([5])) > 1                        # many cells, and one
    rng = np.random.default_rng(0)
    draws = [psi(*(rng.multinomial(3000, np.full(12, 1 / 12)) for _ in range(2))) for _ in range(200)]
    assert np.mean(draws) == pytest.approx(psi_noise(np.full(12, 250), np.full(12, 250)), rel=0.1)


def test_scores_that_move_have_a_psi(scores):
    moved = Scores(**{**scores.__dict__, "log_p": scores.log_p - 1})
    rows = score_drift_rows("test", scores, moved)
    assert [r["task"] for r in rows] == ["click", "buy"] and all(r["value"] > 0.25 > r["noise"] for r in rows)
    assert score_drift_rows("test", scores, scores)[0]["value"] == pytest.approx(0)


@pytest.mark.parametrize("values", [[1, 2, 2, None], ["a", "b", "b", None]])
def test_how_often_train_had_a_value(values):
    other = 7 if values[0] == 1 else "c"
    train, rows = (open_source(pa.table({"x": pa.array(v)}), settings.Data(), "train")
                   for v in (values, [values[1], other, None, values[0]]))
    assert Seen(train, "x").of(rows).tolist() == [2, 0, NULL, 1]
    codes = groups_of(rows, "x")
    assert codes[2] == -1 and len(set(codes.tolist())) == 4


def test_a_run_has_these_rows_and_its_report_shows_them(tmp_path, monkeypatch):
    import json

    from funnelrank import cli
    from funnelrank.simulate import simulate
    monkeypatch.chdir(tmp_path)
    simulate("log", rows=3000, users=150, items=60, funnel=["click", "cart"])
    (tmp_path / "shop.yaml").write_text("""
data: {dir: log, train: train.parquet, valid: valid.parquet, test: test.parquet, scenario: scenario, user: user_id}
features: {item_id: id, scenario: id, clicked: {kind: sequence, column: hist_click, space: item_id}}
tasks: {click: {}, cart: {after: click}}
model: {name: shared_bottom, represent: {hidden: [8]}}
train: {threads: 1, epochs: 1, log_every: 1000}
evaluate: {resamples: 100, gauc_by: [day]}
""")
    assert cli.main(["train", "shop.yaml"]) == 0
    rows = json.loads((tmp_path / "runs/shop/metrics.json").read_text())
    names = {r["metric"] for r in rows if r["split"] == "test"}
    assert {"auc_given", "violation_size", "gauc_by:day", "psi:item_id", "psi:score", "psi:clicked"} <= names
    counts = pd.read_parquet("log/train.parquet").user_id.value_counts()
    users = pd.read_parquet("log/test.parquet").user_id.map(counts).fillna(0)
    cold = next(r for r in rows if (r["split"], r["metric"], r["task"]) == ("test", "logloss@user_id:10-99", "click"))
    observed = pd.read_parquet("log/test.parquet").click.notna()
    assert cold["rows"] == ((users >= 10) & (users <= 99) & observed).sum()
    page = (tmp_path / "runs/shop/report.html").read_text()
    for section in ("funnel", "cold-starts", "drift"):
        assert f'<section id="{section}">' in page
    assert cli.main(["train", "shop.yaml", "--set", "evaluate.gauc_by=[dy]", "--set", "train.out=x"]) == 2
