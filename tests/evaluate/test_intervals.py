"""Intervals against slow definitions, and against the truth they should cover."""

import sys
from pathlib import Path

import numpy as np
import pytest

from funnelrank.evaluate import intervals, metrics
from funnelrank.evaluate.intervals import Resamples, clusters, combined
from funnelrank.evaluate.measure import measure
from funnelrank.settings import Evaluate

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from coverage_of_intervals import covered, log  # noqa: E402


def drawn(n=300, users=40, levels=None, seed=0):
    rng = np.random.default_rng(seed)
    user = rng.integers(0, users, n)
    z = rng.normal(-0.5, 1, n) + 0.7 * rng.normal(size=users)[user]
    y = rng.random(n) < 1 / (1 + np.exp(-z))
    return (np.round(z * levels) / levels if levels else z).astype(np.float32), y, user


def components(score, y):
    """V10 of each positive and V01 of each negative, pair by pair."""
    wins = (score[y][:, None] > score[~y]) + 0.5 * (score[y][:, None] == score[~y])
    return wins.mean(1), wins.mean(0)


@pytest.mark.parametrize("levels", [None, 2])
def test_independent_rows_have_delongs_error(levels):
    score, y, _ = drawn(levels=levels)
    positives, negatives = components(score, y)
    auc, error = intervals.delong(score, y)
    assert auc == pytest.approx(metrics.auc(score, y), abs=1e-15)
    assert error**2 == pytest.approx(positives.var(ddof=1) / len(positives) + negatives.var(ddof=1) / len(negatives))


@pytest.mark.parametrize("levels", [None, 2])
def test_users_have_obuchowskis_error(levels):
    score, y, user = drawn(levels=levels)
    positives, negatives = components(score, y)
    P, N, auc = y.sum(), (~y).sum(), metrics.auc(score, y)
    a = np.array([(positives[user[y] == u] - auc).sum() for u in range(40)])
    b = np.array([(negatives[user[~y] == u] - auc).sum() for u in range(40)])
    I = len(set(user[y])), len(set(user[~y]))
    expected = (I[0] / (I[0] - 1) * (a**2).sum() / P**2 + I[1] / (I[1] - 1) * (b**2).sum() / N**2
                + 2 * 40 / 39 * (a * b).sum() / (P * N))
    assert intervals.clustered(score, y, user)[1] ** 2 == pytest.approx(
        expected, rel=0.01)     # in place of 40 / 39 stands a geometric mean of the other two


@pytest.mark.parametrize("levels", [None, 2])
def test_influence_on_average_precision_is_its_derivative(levels):
    score, y, user = drawn(80, 10, levels)
    found = intervals.pr_auc_influence(score, y, clusters(user, len(y)))
    assert found.value == pytest.approx(metrics.pr_auc(score, y))
    order = np.argsort(-score, kind="stable")
    def weighted(w):
        total = 0.0
        for i in np.flatnonzero(y):
            above = score >= score[i]
            total += w[i] * (w * y)[above].sum() / w[above].sum()
        return total / w[y].sum()
    assert len(order) == 80 and weighted(np.ones(80)) == pytest.approx(found.value)
    for u in range(10):
        step = 1e-5 * (user == u)
        assert found.psi[u] == pytest.approx((weighted(1 + step) - weighted(1 - step)) / 2e-5, abs=1e-7)


def test_unknown_users_are_clusters_of_their_own_and_codes_do_not_matter():
    code, count = clusters(np.array([5, -1, 5, 0, -1]), 5)
    assert code[0] == code[2] and len(set(code)) == 4 and count > code.max()
    score, y, user = drawn()
    far = np.array([2**50, -7, *range(2, 40)])[user]
    assert intervals.clustered(score, y, far) == pytest.approx(intervals.clustered(score, y, user))
    alone = intervals.clustered(score, y, np.full(300, -1))
    assert alone == pytest.approx(intervals.delong(score, y))


def test_resamples_draw_each_user_once_on_average_and_the_same_for_everyone():
    made = [Resamples(clusters(np.arange(500) // 2, 500), 400) for _ in range(2)]
    assert (made[0].weights == made[1].weights).all() and made[0].weights.shape == (400, 250)
    assert made[0].weights.mean() == pytest.approx(1, abs=0.02) and made[0].weights.var() == pytest.approx(1, abs=0.05)
    column = np.random.default_rng(0).normal(size=500)
    weights = made[0].weights[:, made[0].group]
    np.testing.assert_allclose(made[0].sums(made[0].group, [column])[:, 0], weights @ column, atol=1e-4)


def test_many_users_are_dealt_into_groups_with_the_same_error(monkeypatch):
    score, y, user = drawn(20_000, 4000)
    errors = []
    for most in (10_000, 1000):
        monkeypatch.setattr(intervals, "MOST_GROUPS", most)
        of = clusters(user, len(user))
        resamples = Resamples(of, 200)
        assert resamples.groups == min(most, 4000)
        found = resamples.linear(*intervals.auc_influence(score, y, of))
        errors.append((found.error(), combined([found], [1]).error()))
    assert errors[0][0] == errors[1][0] == pytest.approx(errors[0][1])
    assert errors[1][1] == pytest.approx(errors[0][0], rel=0.1)


def test_a_run_and_itself_differ_by_nothing():
    scores = log(np.random.default_rng(0), 100)[0]
    spreads: dict = {}
    measure("test", scores, Evaluate(resamples=100), spreads=spreads)
    assert {m for _, _, m in spreads} >= {"auc", "pr_auc", "gauc", "logloss", "ece"}
    for spread in spreads.values():
        assert combined([spread, spread], [1, -1]).error() == 0


def test_intervals_may_be_of_rows_or_off():
    scores = log(np.random.default_rng(0), 200)[0]
    width = {}
    for kind in ("user", "row", "none"):
        rows = measure("test", scores, Evaluate(intervals=kind))
        width[kind] = {r["metric"]: r["low"] and r["high"] - r["low"] for r in rows if r["task"]}
    assert set(width["none"].values()) == {None}
    assert width["row"]["logloss"] < 0.95 * width["user"]["logloss"]      # users act alike, so rows say less
    assert width["row"]["gauc"] == pytest.approx(width["user"]["gauc"], rel=0.1)
    auc = intervals.delong(scores.log_p[:, 0], scores.labels[:, 0])[1]
    assert width["row"]["auc"] == pytest.approx(2 * 1.96 * auc, rel=0.01)


def test_95_percent_intervals_cover_the_truth():
    found = covered(100, 120, truth_users=40_000, metrics=("auc", "gauc", "logloss", "pcoc"), independent=False)
    for name, (share, _, _) in found.items():
        assert share >= 0.88, name           # 0.95 less 3 standard errors of 100 draws


def test_the_noise_of_ece_is_the_ece_of_labels_drawn_from_the_predictions():
    rng = np.random.default_rng(0)
    p = 1 / (1 + np.exp(-rng.normal(-2, 1, 5000))).astype(np.float32)
    found = [metrics.ece(p, rng.random(5000) < p) for _ in range(60)]
    assert intervals.ece_noise(p, rng.random(5000) < p, 20) == pytest.approx(np.mean(found), rel=0.08)
