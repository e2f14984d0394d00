"""Intervals against slow definitions, and against the truth they should cover."""

import sys
from pathlib import Path

import numpy as np
import pytest

from funnelrank.evaluate import intervals, metrics
from funnelrank.evaluate.intervals import Resamples, clusters, combined
from funnelrank.evaluate.measure import Scores, measure
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


def places(x, w):
    """Each row's place among all, in weights: the share below it and half of its equals."""
    below = (w * ((x < x[:, None]) + 0.5 * (x == x[:, None]))).sum(1)
    return below / w.sum()


def weighted_spearman(mean, label, w):
    a, b = places(mean, w) - 0.5, places(label, w) - 0.5
    return (w * a * b).sum() / np.sqrt((w * a * a).sum() * (w * b * b).sum())


def weighted_gini(mean, label, w):
    share = lambda s: (w * label * places(s, w)).sum() / (w * label).sum() - 0.5
    return share(mean) / share(label)


@pytest.mark.parametrize("levels", [None, 2])
@pytest.mark.parametrize("influence, metric, weighted", [
    (intervals.spearman_influence, metrics.spearman, weighted_spearman),
    (intervals.gini_influence, metrics.gini, weighted_gini)])
def test_influence_on_a_value_s_order_is_its_derivative(levels, influence, metric, weighted):
    score, _, user = drawn(80, 10, levels)
    label = np.round(np.maximum(score.astype(np.float64) + np.random.default_rng(1).normal(size=80), 0), 1)
    found = influence(score, label, clusters(user, 80))
    assert found.value == pytest.approx(metric(score, label)) == pytest.approx(weighted(score, label, np.ones(80)))
    for u in range(10):
        step = 1e-5 * (user == u)
        slope = (weighted(score, label, 1 + step) - weighted(score, label, 1 - step)) / 2e-5
        assert found.psi[u] == pytest.approx(slope, abs=1e-7)


@pytest.mark.parametrize("metric", ["spearman", "gini", "auc_ovr", "accuracy", "logloss"])
def test_intervals_of_amounts_and_classes_are_as_wide_as_users_drawn_anew_say(metric):
    """Against 400 plain draws of users with replacement."""
    rng = np.random.default_rng(0)
    user = np.repeat(np.arange(150), 1 + rng.integers(0, 8, 150))
    n, own = len(user), rng.normal(size=150)[user]
    seen = rng.normal(size=n)
    amount = np.where(rng.random(n) < 0.5, np.exp(seen + own + rng.normal(size=n)), 0.0)
    z = rng.normal(size=(n, 3)) + np.stack([seen + own, -seen, own], 1)
    log_p = (z - np.logaddexp.reduce(z, 1)[:, None]).astype(np.float32)
    kind = np.argmax(z + rng.gumbel(size=z.shape), 1).astype(np.float32)
    column, none = lambda x: np.asarray(x, np.float32)[:, None], np.zeros((n, 1), np.float32)
    amounts = metric in ("spearman", "gini")
    scores = Scores(["t"], ["ziln" if amounts else "multiclass"], [None], none, none, column(np.exp(seen)),
                    column(amount if amounts else kind), None, user, {} if amounts else {"t": log_p})
    row = next(r for r in measure("test", scores, Evaluate()) if r["metric"] == metric)
    plain = {"spearman": lambda i: metrics.spearman(seen[i], amount[i]), "logloss": lambda i: metrics.class_logloss(
        log_p[i], kind[i]), "gini": lambda i: metrics.gini(np.exp(seen[i]), amount[i]), "accuracy": lambda i:
        metrics.accuracy(log_p[i], kind[i]), "auc_ovr": lambda i: metrics.auc_ovr(log_p[i], kind[i])}[metric]
    rows_of = np.split(np.arange(n), np.flatnonzero(np.diff(user)) + 1)
    draws = [plain(np.concatenate([rows_of[u] for u in rng.integers(0, 150, 150)])) for _ in range(400)]
    assert row["low"] < row["value"] < row["high"] and row["note"] is None
    assert (row["high"] - row["low"]) / (2 * 1.96) == pytest.approx(np.std(draws), rel=0.15)


def test_correlations_may_lie_below_0_and_rare_classes_have_no_interval():
    n = 200
    seen = np.random.default_rng(0).normal(size=n)
    none, column = np.zeros((n, 1), np.float32), lambda x: np.asarray(x, np.float32)[:, None]
    rows = measure("test", Scores(["t"], ["regression"], [None], none, none, column(-seen), column(seen)), Evaluate())
    row = next(r for r in rows if r["metric"] == "spearman")
    assert (row["value"], row["low"], row["high"]) == (pytest.approx(-1), pytest.approx(-1), pytest.approx(-1))
    noisy = column(0.3 * np.random.default_rng(1).normal(size=n) - 0.1 * seen)
    rows = measure("test", Scores(["t"], ["regression"], [None], none, none, noisy, column(seen)), Evaluate())
    row = next(r for r in rows if r["metric"] == "spearman")
    assert -1 < row["low"] < row["value"] < 0
    kind = np.arange(n) % 2
    kind[:3] = 2
    log_p = np.log(np.full((n, 3), 1 / 3) + 0.01 * np.random.default_rng(2).random((n, 3))).astype(np.float32)
    rows = measure("test", Scores(["t"], ["multiclass"], [None], none, none, none, column(kind), classes={"t": log_p}),
                   Evaluate())
    said = {r["metric"]: (r["low"] is not None, r["note"]) for r in rows if r["task"]}
    assert said == {"accuracy": (True, None), "logloss": (True, None),
                    "auc_ovr": (False, "too few positives for an interval")}


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
