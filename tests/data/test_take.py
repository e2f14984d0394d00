"""Rows in any order: native and numpy give the same, and an order is a permutation that any part can be had of."""

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from funnelrank.data import cache
from funnelrank.data import take as taking
from funnelrank.data.encoded import Encoded, List
from funnelrank.data.order import Order
from funnelrank.kernels import sort_keys

FLAGS = ["-std=c++17", "-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
need_native = pytest.mark.skipif(taking.library() is None, reason="the native library is not built")


def split(g: np.random.Generator, rows: int, lists: int, widths: tuple[int, int, int], longest: int) -> Encoded:
    def one(weighted: bool) -> List:
        offsets = np.concatenate([[0], np.cumsum(g.integers(0, longest + 1, rows))]).astype(np.int64)
        values = g.integers(0, 99, offsets[-1], np.int32)
        return List(values, offsets, g.random(offsets[-1], np.float32) if weighted else None)
    ids, numbers, tasks = widths
    return Encoded(
        ids=g.integers(0, 99, (rows, ids), np.int32), numbers=g.random((rows, numbers), np.float32),
        lists=[one(g.random() < 0.3) for _ in range(lists)], scenario=g.integers(0, 3, rows, np.int32),
        labels=g.choice([0, 1, np.nan], (rows, tasks)).astype(np.float32), weight=g.random(rows, np.float32),
        user=g.integers(-1, 2**62, rows))


def side_by_side(data: Encoded) -> cache.EncodedSplit:
    """The same rows as records, as a cache has them."""
    widths = {"ids": data.ids.shape[1], "numbers": data.numbers.shape[1], "labels": data.labels.shape[1],
              "lists": len(data.lists)}
    arrays = cache._InMemory()
    arrays.add(cache._parts(data, cache._record(**widths), [0] * len(data.lists), True), len(data))
    return cache._split(arrays.whole, {"weighted": [x.weights is not None for x in data.lists], "counts": {},
                                       "coverage": {}, "contradictions": {}}, None)


def same(a, b) -> None:
    assert (a is None) == (b is None)
    if a is not None:
        assert a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@need_native
@given(seed=st.integers(0, 2**32), rows=st.integers(1, 70), batch=st.integers(0, 90), lists=st.integers(0, 4),
       widths=st.tuples(st.integers(0, 24), st.integers(0, 9), st.integers(1, 3)), longest=st.integers(0, 40))
def test_native_and_numpy_take_the_same_of_columns_apart_and_side_by_side(seed, rows, batch, lists, widths, longest):
    g = np.random.default_rng(seed)
    data, order = split(g, rows, lists, widths, longest), g.integers(0, rows, batch)
    plain = taking._plain(data, order)
    for rows_of in (data, side_by_side(data)):
        assert taking._fits(rows_of, order)
        for taken in (taking._native(taking.library(), rows_of, order), taking._plain(rows_of, order)):
            assert taken.columns.keys() == plain.columns.keys()
            for name in taken.columns:
                same(taken.columns[name], plain.columns[name])
            for a, b in zip(taken[1:], plain[1:]):
                same(a, b)


@need_native
def test_rows_and_values_that_are_not_there_are_refused_by_both():
    data = split(np.random.default_rng(0), 9, 1, (2, 1, 1), 5)
    short = data.lists[0]._replace(values=data.lists[0].values[:-1].copy())
    for broken, rows in ((data, [9]), (Encoded(**{**vars(data), "lists": [short]}), list(range(9)))):
        for take in (taking._plain, lambda *work: taking._native(taking.library(), *work)):
            with pytest.raises(IndexError):
                take(broken, np.array(rows))


def test_arrays_laid_out_otherwise_are_taken_all_the_same():
    data, rows = split(np.random.default_rng(0), 20, 1, (4, 2, 1), 5), np.array([3, 19, 0])
    for other in (Encoded(**{**vars(data), "ids": np.asfortranarray(data.ids)}),
                  Encoded(**{**vars(data), "user": data.user.astype(np.int32)})):
        assert not taking._fits(other, rows)
        np.testing.assert_array_equal(taking.take(other, rows).columns["ids"], data.ids[rows])


@settings(max_examples=40)
@given(rows=st.integers(0, 3000), seed=st.integers(0, 2**63))
def test_a_shuffle_is_a_permutation_and_the_same_without_the_library(rows, seed):
    order = taking.shuffled(rows, np.random.SeedSequence(seed))
    assert order.dtype == np.int64 and np.array_equal(np.sort(order), np.arange(rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(taking, "library", lambda: None)
        np.testing.assert_array_equal(taking.shuffled(rows, np.random.SeedSequence(seed)), order)


def test_a_large_shuffle_is_the_same_without_the_library_and_leaves_no_pattern(monkeypatch):
    n = 200_000
    order = taking.shuffled(n, np.random.SeedSequence(3))
    assert abs(np.corrcoef(order, np.arange(n))[0, 1]) < 0.01 and abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 0.01
    monkeypatch.setattr(taking, "library", lambda: None)
    np.testing.assert_array_equal(taking.shuffled(n, np.random.SeedSequence(3)), order)


@pytest.mark.parametrize("kind", [np.uint32, np.uint64])
@pytest.mark.parametrize("most", [1, 3, 300, 70_000, 2**31])
def test_many_keys_are_sorted_however_they_are_spread(kind, most):
    keys = np.random.default_rng(most).integers(0, most, 300_000).astype(kind)
    keys[::7] <<= kind(most.bit_length() % 20)                    # several highest bytes, some of them of few keys
    wanted = np.sort(keys)
    sort_keys(keys)
    np.testing.assert_array_equal(keys, wanted)


# ---- orders by blocks and windows

@given(rows=st.integers(1, 400), width=st.integers(1, 1 << 19), share=st.floats(0.01, 0.9), epoch=st.integers(0, 3),
       cuts=st.lists(st.integers(0, 400), max_size=5))
def test_an_order_by_windows_hands_out_every_row_once_whatever_part_is_asked_for(rows, width, share, epoch, cuts):
    size = rows * width
    whole = Order(rows, size, 5, int(size * share)).rows(epoch, 0, rows)
    assert np.array_equal(np.sort(whole), np.arange(rows))
    edges, another = sorted({0, rows, *(c for c in cuts if c < rows)}), Order(rows, size, 5, int(size * share))
    parts = [(a, b) for a, b in zip(edges[:-1], edges[1:])]
    for a, b in reversed(parts):
        np.testing.assert_array_equal(another.rows(epoch, a, b), whole[a:b])


def test_what_does_not_fit_is_read_window_by_window_and_what_fits_is_shuffled_whole():
    rows, width = 40_000, 1024
    order = Order(rows, rows * width, 0, 8 << 20)
    assert order.place() == {"order": 3, "block": 1024, "window": 4096}
    assert Order(rows, rows * width, 0, rows * width).place() == Order(rows, rows * width, 0).place()
    epochs = [order.rows(n, 0, rows) for n in range(2)]
    blocks = [set(epochs[0][start:start + 4096] // 1024) for start in range(0, rows, 4096)]
    assert [len(b) for b in blocks[:-1]] == [4] * 9 and sorted(x for b in blocks for x in b) == list(range(40))
    assert not np.array_equal(*epochs)
    assert abs(np.corrcoef(epochs[0][:4096], np.arange(4096))[0, 1]) < 0.1


@pytest.mark.parametrize("name", ["take", "lists", "keys"])
def test_the_functions_touch_only_what_they_own(tmp_path, name):
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    (tmp_path / "trial.cpp").write_text("int main() {}\n")
    if subprocess.run([compiler, *FLAGS, "trial.cpp", "-o", "trial"], cwd=tmp_path, capture_output=True).returncode:
        pytest.skip("the C++ compiler has no sanitizers")
    driver = Path(__file__).with_name(f"{name}_driver.cpp")
    subprocess.run([compiler, *FLAGS, driver, "-o", tmp_path / "driver"], check=True)
    done = subprocess.run([tmp_path / "driver"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
