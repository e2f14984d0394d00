import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from funnelrank.data import numbers
from funnelrank.data.numbers import Moments, NumberStatistics, Sample, bucket_ids
from funnelrank.errors import DataError
from funnelrank.settings import Number

FINITE = st.floats(-1e12, 1e12, allow_subnormal=False)


def fitted(values, **said):
    statistics = NumberStatistics(Number(**said))
    statistics.add(np.array(values, float))
    return statistics.scaler("features.x")


@given(st.lists(FINITE, max_size=40), st.lists(st.integers(0, 40), max_size=5), st.sampled_from([1, 4, 1 << 16]))
@settings(max_examples=60, deadline=None)
def test_moments_are_those_of_the_whole_whatever_the_parts(values, cuts, block):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(numbers, "BLOCK", block)
        results = []
        for cut in ([], sorted(c for c in cuts if c < len(values))):
            moments = Moments()
            for a, b in zip([0, *cut], [*cut, len(values)]):
                moments.add(np.array(values[a:b]))
            results.append(moments.result())
    assert results[0] == results[1]                       # to the last bit
    if values:
        np.testing.assert_allclose(results[0][0], np.mean(values), rtol=1e-9, atol=1e-9 * max(map(abs, values)))
        np.testing.assert_allclose(results[0][1], np.std(values), rtol=1e-6, atol=1e-9 * max(map(abs, values)))


def test_moments_do_not_cancel_far_from_zero():
    moments = Moments()
    for start in range(0, 200_000, 10_000):
        moments.add(1e9 + (np.arange(start, start + 10_000) % 2))
    mean, std = moments.result()
    assert mean == pytest.approx(1e9 + .5, abs=1e-6) and std == pytest.approx(.5, abs=1e-9)


def test_standard_scale_is_log1p_of_the_size_then_mean_and_spread():
    values = np.array([0., 1., -3., 1000., 20.])
    y = fitted(values)(values)
    t = np.sign(values) * np.log1p(np.abs(values))
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, (t - t.mean()) / t.std(), rtol=1e-6)


def test_missing_is_the_mean_and_is_said():
    scaler = fitted([1, np.nan, 3], log=False)
    assert scaler.indicator
    assert scaler(np.array([np.nan, 2, 3])).tolist() == [0, 0, 1]
    assert not fitted([1, 3]).indicator
    assert fitted([1, 3], indicator=True).indicator
    assert not fitted([1, np.nan], indicator=False).indicator


def test_constant_and_empty_columns_scale_by_one():
    assert fitted([.1] * 7, log=False)(np.array([.1, 1.1])) .tolist() == [0, 1]
    assert fitted([5, 5], scale="minmax", log=False)(np.array([5., 6.])).tolist() == [0, 1]
    nothing = fitted([np.nan, np.nan])
    assert nothing(np.array([np.nan, 0.])).tolist() == [0, 0] and nothing.indicator


def test_minmax_none_and_clip():
    assert fitted([2, 4], scale="minmax", log=False)(np.array([2., 3., 4.])).tolist() == [0, .5, 1]
    assert fitted([2, 4], scale="none", log=False)(np.array([2., 30., -30.])).tolist() == [2, 6, -6]
    assert fitted([2, 4], scale="none", log=False, clip=None)(np.array([30., 1e300])).tolist() == [
        30, np.finfo(np.float32).max]


def test_values_too_large_for_statistics_are_named():
    with pytest.raises(DataError, match=r"features.x: values from -1e\+308 to 1e\+308 are too large"):
        fitted([1e308, -1e308], log=False)
    assert np.isfinite(fitted([1e308, -1e308])(np.array([1e308]))).all()


# ---- buckets

@given(st.lists(FINITE, min_size=1, max_size=60), st.integers(2, 8))
@settings(max_examples=60, deadline=None)
def test_quantile_buckets_are_filled_and_in_order(values, buckets):
    sample = Sample()
    sample.add(np.array(values))
    cuts = sample.boundaries(buckets)
    assert cuts == sorted(set(cuts)) and len(cuts) < buckets
    ids = bucket_ids(np.array(values), cuts, 2)
    assert sorted(set(ids.tolist())) == list(range(2, 3 + len(cuts)))       # none is empty
    assert [i for _, i in sorted(zip(values, ids.tolist()))] == sorted(ids.tolist())


def test_distinct_values_fall_into_equal_buckets():
    sample = Sample()
    sample.add(np.random.default_rng(0).permutation(1000).astype(float))
    assert np.bincount(bucket_ids(np.arange(1000.), sample.boundaries(8), 0)).tolist() == [125] * 8


def test_boundaries_are_half_open_and_missing_is_pad():
    assert bucket_ids(np.array([-1, 0, .5, 1, 9, np.nan]), [0., 1.], 2).tolist() == [2, 3, 3, 4, 4, 0]
    assert bucket_ids(np.array([3.]), [], 2).tolist() == [2]


def test_a_full_sample_stays_uniform_and_does_not_depend_on_parts(monkeypatch):
    monkeypatch.setattr(numbers, "SAMPLE", 1000)
    cuts = []
    for size in (50_000, 777):
        sample = Sample()
        for start in range(0, 50_000, size):
            sample.add(np.arange(start, min(start + size, 50_000)) / 50_000)
        assert 400 < len(sample._values) <= 1000
        cuts.append(sample.boundaries(4))
    assert cuts[0] == cuts[1]
    np.testing.assert_allclose(cuts[0], [.25, .5, .75], atol=.06)


def ids_of(values, buckets) -> dict[float, int]:
    sample = Sample()
    sample.add(np.array(values, np.float64))
    distinct = np.unique(values).astype(float)
    return dict(zip(distinct.tolist(), bucket_ids(distinct, sample.boundaries(buckets), 0).tolist()))


def test_a_value_as_frequent_as_a_bucket_has_one_of_its_own_and_the_others_share_the_rest():
    tail = np.arange(1, 61)
    ids = ids_of(np.concatenate([np.zeros(10_000), tail]), 16)         # quantiles alone would see no tail
    assert ids[0.] == 0 and set(ids.values()) == set(range(16))
    assert np.bincount([ids[float(v)] for v in tail])[1:].tolist() == [4] * 15
    ids = ids_of(np.concatenate([np.full(10_000, 30.), np.full(5000, 31.), tail[tail > 31], tail[tail < 30]]), 16)
    alone = [v for v in ids if list(ids.values()).count(ids[v]) == 1]
    assert {30., 31.} <= set(alone) and set(ids.values()) == set(range(16))


@given(st.lists(st.integers(0, 12), min_size=1, max_size=80), st.integers(2, 14))
@settings(max_examples=60, deadline=None)
def test_each_value_has_a_bucket_of_its_own_where_there_are_enough(values, buckets):
    ids = ids_of(values, buckets)
    if len(ids) <= buckets:
        assert list(ids.values()) == list(range(len(ids)))
    heaviest = max(set(values), key=values.count)
    if values.count(heaviest) * buckets >= len(values) and buckets > 2:
        assert list(ids.values()).count(ids[heaviest]) == 1
