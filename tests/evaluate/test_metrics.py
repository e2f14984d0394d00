"""Metrics against scikit-learn, against plain counts of pairs, and against what must not change them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, log_loss, roc_auc_score

from funnelrank.evaluate import metrics
from funnelrank.evaluate.metrics import Ranking, Undefined

ANY_FLOAT = st.floats(width=32, allow_nan=False)
FEW = st.sampled_from([-np.inf, -2.0, -1e-40, -0.0, 0.0, 1e-40, 1.0, np.inf])
ANY_OR_FEW = st.one_of(ANY_FLOAT, FEW)


@st.composite
def scored(draw, score=ANY_OR_FEW, smallest=1, users=6):
    n = draw(st.integers(smallest, 40))
    lists = [draw(st.lists(x, min_size=n, max_size=n))
             for x in (score, st.integers(0, 1), st.integers(-1, users))]
    return np.array(lists[0], np.float32), np.array(lists[1]), np.array(lists[2])


def pairwise(score, label):
    """AUC as it is defined: every positive against every negative, a tie is half a win."""
    pos, neg = score[label == 1], score[label == 0]
    wins = sum(float(a > b) + 0.5 * float(a == b) for a in pos for b in neg)
    return wins / (len(pos) * len(neg))


def slow_gauc(score, label, user):
    each, rows = [], []
    known = [u for u in np.unique(user) if u != -1]
    for u in known:
        mine = user == u
        if 0 < label[mine].sum() < mine.sum():
            each.append(pairwise(score[mine], label[mine]))
            rows.append(mine.sum())
    if not each:
        return None, None, 0, len(known)
    return np.dot(each, rows) / sum(rows), np.mean(each), len(each), len(known)


def drawn(n=5000, levels=None, seed=0):
    """Seeded logits, labels drawn from them; `levels` rounds the scores so that they tie."""
    rng = np.random.default_rng(seed)
    z = rng.normal(-1.5, 1.2, n)
    y = (rng.random(n) < 1 / (1 + np.exp(-z))).astype(np.float32)
    score = np.round(z * levels) / levels if levels else z
    return score.astype(np.float32), y


# ---- AUC and average precision

@settings(max_examples=120, deadline=None)
@given(scored())
def test_auc_is_the_count_of_pairs(rows):
    score, label, _ = rows
    if label.min() == label.max():
        with pytest.raises(Undefined, match="only one class"):
            metrics.auc(score, label)
    else:
        assert metrics.auc(score, label) == pytest.approx(pairwise(score, label), abs=1e-12)


@pytest.mark.parametrize("levels", [None, 20, 1])
@pytest.mark.parametrize("shift", [0, 100, -100])
def test_auc_and_pr_auc_agree_with_sklearn(levels, shift):
    score, y = drawn(levels=levels)
    score = score + np.float32(shift)
    assert metrics.auc(score, y) == pytest.approx(roc_auc_score(y, score), abs=1e-12)
    assert metrics.pr_auc(score, y) == pytest.approx(average_precision_score(y, score), abs=1e-12)


@settings(max_examples=80, deadline=None)
@given(scored(score=st.one_of(st.floats(-9, 9, width=32), st.sampled_from([-1.0, 0.0, 2.0]))))
def test_pr_auc_is_sklearns_average_precision(rows):
    score, label, _ = rows
    if not label.any():
        with pytest.raises(Undefined, match="no positives"):
            metrics.pr_auc(score, label)
    else:
        assert metrics.pr_auc(score, label) == pytest.approx(average_precision_score(label, score), abs=1e-12)


def test_constant_score_has_auc_one_half_and_precision_of_the_rate():
    y = np.array([1, 0, 0, 1, 0])
    assert metrics.auc(np.full(5, -3.0), y) == 0.5
    assert metrics.pr_auc(np.full(5, -3.0), y) == pytest.approx(0.4)


def test_minus_zero_ties_with_zero():
    assert metrics.auc(np.array([-0.0, 0.0]), np.array([0, 1])) == 0.5


def test_log_p_tells_apart_what_saturated_p_cannot():
    z = np.array([18.0, 20.0, 25.0, 30.0], np.float32)
    log_p = -np.logaddexp(np.float32(0), -z).astype(np.float32)
    y = np.array([0, 0, 1, 1])
    assert metrics.auc(np.exp(log_p), y) == 0.5
    assert metrics.auc(log_p, y) == 1.0


def test_scores_are_left_as_they_were():
    score, y = drawn(100)
    before = score.copy()
    metrics.auc(score, y), metrics.gauc(score, y, np.arange(100) % 3)
    np.testing.assert_array_equal(score, before)


@pytest.mark.parametrize("signs", ["one sign: 32-bit keys", "both signs: 64-bit keys"])
def test_both_widths_of_keys_hold_the_extremes(signs):
    big = np.finfo(np.float32).max
    values = [-big, -1.0, -1e-45, 0.0] if signs.startswith("one") else [-big, -1e-45, 1e-45, big]
    score = np.array(values, np.float32)
    ranking = metrics.Ranking(score[[2, 0, 3, 1]], np.array([1, 0, 0, 1]))
    assert ranking.keys.dtype == (np.uint32 if signs.startswith("one") else np.uint64)
    np.testing.assert_array_equal(ranking._scores(), score)
    assert ranking.auc() == pairwise(score[[2, 0, 3, 1]], np.array([1, 0, 0, 1]))


# ---- GAUC

@settings(max_examples=120, deadline=None)
@given(scored(), st.sampled_from([0, 2**31, 2**40, -2**40]))
def test_gauc_is_the_mean_of_each_users_auc(rows, far):
    score, label, user = rows
    said = metrics.gauc(score, label, np.where(user > 2, user + far, user))
    weighted, unweighted, valid, users = slow_gauc(score, label, user)
    assert said[2:] == (valid, users)
    if valid:
        assert said.weighted == pytest.approx(weighted, abs=1e-12)
        assert said.unweighted == pytest.approx(unweighted, abs=1e-12)
    else:
        assert said.weighted is None and said.unweighted is None


def test_gauc_of_one_group_is_auc():
    score, y = drawn()
    said = metrics.gauc(score, y, np.full(len(y), 7))
    assert said == (metrics.auc(score, y), metrics.auc(score, y), 1, 1)


def test_gauc_ignores_an_offset_per_user_and_auc_does_not():
    score, y = drawn(levels=8)
    user = np.random.default_rng(1).integers(0, 50, len(y))
    moved = score + 16 * user.astype(np.float32)
    assert metrics.gauc(moved, y, user) == metrics.gauc(score, y, user)
    assert abs(metrics.auc(moved, y) - metrics.auc(score, y)) > 0.1


def test_rows_of_a_null_user_are_skipped():
    score, y = drawn(300)
    user = np.arange(300) % 5 - 1
    known = user >= 0
    assert metrics.gauc(score, y, user) == metrics.gauc(score[known], y[known], user[known])
    assert metrics.gauc(score, y, np.full(300, -1)) == (None, None, 0, 0)


def test_auc_by_user_says_who_and_takes_any_code():
    score, y = drawn(300)
    user = np.arange(300) % 5
    far = np.array([2**50, -7, 3, -2**60, 0])[user]
    by, wide = metrics.auc_by_user(score, y, user), metrics.auc_by_user(score, y, far)
    assert by.code.tolist() == [0, 1, 2, 3, 4] and sorted(wide.code.tolist()) == sorted(set(far.tolist()))
    for code, found in zip(wide.code, wide.auc):
        assert found == metrics.auc(score[far == code], y[far == code])


# ---- what must not change a metric

@settings(max_examples=50, deadline=None)
@given(scored(score=st.floats(-20, -0.0625, width=32), smallest=4), st.randoms(use_true_random=False))
def test_order_of_rows_changes_nothing(rows, random):
    log_p, label, user = rows
    label[:2] = 0, 1
    log_not_p = np.log1p(-np.exp(log_p))
    p = np.exp(log_p)
    order = np.array(random.sample(range(len(label)), len(label)))

    def everything(at):
        lp, lq, y, bins = log_p[at], log_not_p[at], label[at], metrics.reliability(p[at], label[at], 3)
        by_user = metrics.gauc(lp, y, user[at])
        return [metrics.auc(lp, y), metrics.pr_auc(lp, y), metrics.logloss(lp, lq, y), metrics.ne(lp, lq, y),
                metrics.pcoc(p[at], y), *(v or 0 for v in by_user), bins.ece(), *bins.count]
    np.testing.assert_allclose(everything(order), everything(np.arange(len(label))), rtol=1e-5)


@settings(max_examples=50, deadline=None)
@given(scored(score=st.integers(-50, 50)))
def test_a_rising_map_of_scores_changes_no_ranking_metric(rows):
    score, label, user = rows
    label = np.append(label, [0, 1])
    score, user = np.append(score, [0, 0]).astype(np.float32), np.append(user, [0, 0])
    risen = np.exp(score / 10)
    assert metrics.auc(risen, label) == metrics.auc(score, label)
    assert metrics.pr_auc(risen, label) == metrics.pr_auc(score, label)
    assert metrics.gauc(risen, label, user) == metrics.gauc(score, label, user)


# ---- probabilities

def test_logloss_agrees_with_sklearn_and_ne_is_one_for_the_mean():
    z, y = drawn()
    log_p, log_not_p = -np.logaddexp(0, -z), -np.logaddexp(0, z)
    assert metrics.logloss(log_p, log_not_p, y) == pytest.approx(log_loss(y, np.exp(log_p)), rel=1e-6)
    rate = np.full(len(y), y.mean(dtype=np.float64))
    assert metrics.ne(np.log(rate), np.log1p(-rate), y) == pytest.approx(1, abs=1e-12)
    assert metrics.ne(log_p, log_not_p, y) < 0.9


def test_logloss_stays_exact_where_p_saturates():
    z = np.array([-40.0, 40.0])
    assert metrics.logloss(-np.logaddexp(0, -z), -np.logaddexp(0, z), np.array([1, 0])) == pytest.approx(40)


def test_impossible_events_and_nan_predictions_are_named():
    with pytest.raises(Undefined, match="probability 0"):
        metrics.logloss(np.array([-np.inf]), np.array([0.0]), np.array([1]))
    with pytest.raises(Undefined, match="NaN"):
        metrics.logloss(np.array([np.nan]), np.array([0.0]), np.array([1]))
    with pytest.raises(Undefined, match="1 predictions are NaN"):
        metrics.auc(np.array([np.nan, 0.0]), np.array([1, 0]))
    with pytest.raises(Undefined, match="not finite"):
        metrics.rmse(np.array([np.inf]), np.array([1]))


def test_pcoc_is_predicted_over_observed():
    assert metrics.pcoc(np.array([0.5, 0.5, 0.5, 0.5]), np.array([1, 0, 0, 0])) == 2
    with pytest.raises(Undefined, match="sum to 0"):
        metrics.pcoc(np.array([0.5]), np.array([0]))


@pytest.mark.parametrize("n, bins", [(1000, 10), (997, 20), (3, 20), (1, 2)])
def test_bins_have_equal_mass_and_hold_every_row(n, bins):
    rng = np.random.default_rng(n)
    p, y = rng.permutation(n).astype(np.float32) / n, rng.integers(0, 2, n)
    said = metrics.reliability(p, y, bins)
    assert len(said.count) == min(n, bins) and said.count.sum() == n
    assert said.count.max() - said.count.min() <= 1
    order = np.argsort(p)
    plain = np.split(order, np.cumsum(said.count)[:-1])
    np.testing.assert_allclose(said.p, [p[part].mean() for part in plain], rtol=1e-6)
    np.testing.assert_allclose(said.y, [y[part].mean() for part in plain], rtol=1e-12)
    slow = sum(len(part) * abs(p[part].mean() - y[part].mean()) for part in plain) / n
    assert metrics.ece(p, y, bins) == pytest.approx(slow, rel=1e-5)


def test_rows_of_one_probability_share_a_bin():
    p = np.repeat(np.float32([0.1, 0.3, 0.9]), [70, 20, 10])
    y = np.concatenate([np.arange(70) < 7, np.arange(20) < 6, np.arange(10) < 9])
    said = metrics.reliability(p, y, 10)
    assert list(said.count) == [70, 20, 10]
    assert said.ece() == pytest.approx(0, abs=1e-7)


def test_bins_of_log_p_are_those_of_p():
    z, y = drawn()
    log_p = -np.logaddexp(np.float32(0), -z)
    of_logs, of_p = metrics.Ranking(log_p, y).bins(20, np.exp), metrics.reliability(np.exp(log_p), y, 20)
    for a, b in zip(of_logs, of_p):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_wilson_interval_covers_and_stays_within_zero_and_one():
    low, high = metrics.wilson(np.array([0, 10, 5]), np.array([10, 10, 10]))
    np.testing.assert_allclose(low, [0, 0.7225, 0.2366], atol=1e-4)
    np.testing.assert_allclose(high, [0.2775, 1, 0.7634], atol=1e-4)
    rng = np.random.default_rng(0)
    low, high = metrics.wilson(rng.binomial(50, 0.1, 20000), np.full(20000, 50))
    assert 0.94 < np.mean((low <= 0.1) & (high >= 0.1)) < 0.98


def test_violation_is_strict():
    child, parent = np.array([0.2, 0.3, 0.5]), np.array([0.2, 0.2, 0.6])
    assert metrics.violation_rate(child, parent) == pytest.approx(1 / 3)
    with pytest.raises(Undefined, match="NaN"):
        metrics.violation_rate(child, np.array([0.2, np.nan, 0.6]))


def test_rmse_and_mae():
    mean, y = np.array([1, 2, 5], np.float32), np.array([1, 4, 1], np.float32)
    assert metrics.rmse(mean, y) == pytest.approx(np.sqrt(20 / 3))
    assert metrics.mae(mean, y) == 2


def test_gini_is_the_area_of_sorted_amounts_over_the_best():
    rng = np.random.default_rng(3)
    y = np.where(rng.random(50) < 0.5, 0, rng.integers(1, 40, 50)).astype(float)
    s = rng.normal(size=50)

    def area(score):
        share = np.cumsum(y[np.argsort(-score, kind="stable")]) / y.sum()
        return sum(share) / 50 - 51 / 100
    assert metrics.gini(s, y) == pytest.approx(area(s) / area(y))
    assert metrics.gini(y, y) == 1 and metrics.gini(np.ones(50), y) == pytest.approx(0, abs=1e-12)
    assert metrics.gini(-y, y) == pytest.approx(-1)
    order = rng.permutation(50)
    assert metrics.gini(np.round(s)[order], y[order]) == pytest.approx(metrics.gini(np.round(s), y))
    with pytest.raises(Undefined, match="below 0"):
        metrics.gini(s, y - 1)
    with pytest.raises(Undefined, match="all labels are the same"):
        metrics.gini(s, np.zeros(50))


def test_spearman_is_the_correlation_of_mean_ranks():
    assert metrics.spearman(np.array([1, 2, 3, 4]), np.array([1, 10, 100, 1000])) == pytest.approx(1)
    assert metrics.spearman(np.array([1, 2, 2, 3]), np.array([5, 5, 7, 9])) == pytest.approx(
        np.corrcoef([1, 2.5, 2.5, 4], [1.5, 1.5, 3, 4])[0, 1])
    with pytest.raises(Undefined, match="all predictions are the same"):
        metrics.spearman(np.ones(3), np.arange(3))


# ---- labels

def test_observed_drops_nan_labels_from_every_array():
    label, other = metrics.observed(np.array([1, np.nan, 0]), np.array([5, 6, 7]))
    assert list(label) == [1, 0] and list(other) == [5, 7]
    with pytest.raises(Undefined, match="no observed labels"):
        metrics.observed(np.array([np.nan]))
    with pytest.raises(Undefined, match="no observed labels"):
        metrics.observed(np.array([]))


@pytest.mark.parametrize("bad", [2, -1, 0.5, np.nan])
def test_labels_other_than_zero_and_one_are_refused(bad):
    with pytest.raises(ValueError, match="must be 0 or 1"):
        metrics.auc(np.zeros(2), np.array([0, bad]))


@pytest.mark.parametrize("metric", [metrics.auc, metrics.pr_auc, metrics.pcoc, metrics.rmse, metrics.mae,
                                    metrics.gini, metrics.spearman, metrics.violation_rate, metrics.ece])
def test_no_rows_define_nothing(metric):
    with pytest.raises(Undefined, match="no rows"):
        metric(np.array([]), np.array([]))


@pytest.mark.parametrize("sign", [1, -1, 0])
def test_parts_merge_into_the_ranking_of_all_rows(sign):
    rng = np.random.default_rng(5)
    score = rng.normal(size=9000).round(2).astype(np.float32)              # with ties, across parts too
    score = np.abs(score) * sign if sign else score
    label = rng.random(9000) < 0.2
    whole = Ranking(score, label)
    parts = [Ranking(score[at], label[at]) for at in np.array_split(rng.permutation(9000), 7)]
    found = Ranking.merged(parts)
    assert found.auc() == whole.auc() and found.pr_auc() == whole.pr_auc() and (found.keys == whole.keys).all()
    assert Ranking.merged(parts[:1]).auc() == parts[0].auc()
