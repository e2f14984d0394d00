"""csrc/lists.cpp and csrc/keys.cpp give what numpy gives, over random work."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from funnelrank.data import derive, tables
from funnelrank.data.tables import KeyIndex
from funnelrank.kernels import library

pytestmark = pytest.mark.skipif(library() is None, reason="the kernels are not built")


def both(work):
    """The result with the kernels, and without them."""
    native = work()
    with pytest.MonkeyPatch.context() as patch:
        for module in (derive, tables):
            patch.setattr(module, "library", lambda: None)
        return native, work()


def same(native, plain) -> None:
    assert len(native) == len(plain)
    for a, b in zip(native, plain):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def lists(g: np.random.Generator, rows: int, longest: int, codes: int) -> tuple[np.ndarray, np.ndarray]:
    offsets = np.concatenate([[0], np.cumsum(g.integers(0, longest + 1, rows))])
    low = int(g.choice([0, -5, 2**62, -2**63]))
    return low + g.integers(0, codes, offsets[-1]), offsets


shapes = {"seed": st.integers(0, 2**32), "rows": st.integers(0, 30), "longest": st.integers(0, 60),
          "codes": st.integers(1, 80)}


@given(**shapes, asked=st.integers(0, 40), least=st.sampled_from([0, -1]))
def test_gathering(seed, rows, longest, codes, asked, least):
    g = np.random.default_rng(seed)
    _, offsets = lists(g, rows, longest, codes)
    wanted = g.integers(least, rows, asked) if rows + least else np.zeros(0, np.int64)
    native, plain = both(lambda: derive.gather(offsets, wanted))
    same(native, plain)
    for i, row in enumerate(wanted):
        mine = [] if row < 0 else list(range(offsets[row], offsets[row + 1]))
        assert native[0][native[1][i]:native[1][i + 1]].tolist() == mine


def test_gathering_rows_that_are_not_there():
    for work in both(lambda: pytest.raises(IndexError, derive.gather, np.array([0, 2, 3]), np.array([0, 2]))):
        assert work
    with pytest.raises(IndexError):
        derive.gather(np.array([0, 10, 2]), np.array([0, 1]))          # offsets that fall


@given(**shapes)
def test_what_stands_in_another_list(seed, rows, longest, codes):
    g = np.random.default_rng(seed)
    a = lists(g, rows, longest, codes)
    b = lists(g, rows, 60 - longest, codes)
    b = (b[0] - (b[0].min(initial=2**63 - 1) if len(b[0]) else 0) + (a[0].min() if len(a[0]) else 0), b[1])
    native, plain = both(lambda: [derive.Overlap([a, b]).within(i, j) for i in (0, 1) for j in (0, 1)])
    same(native, plain)
    for row in range(rows):
        mine, others = (set(codes[o[row]:o[row + 1]].tolist()) for codes, o in (a, b))
        inside = native[1][a[1][row]:a[1][row + 1]]
        assert set(a[0][a[1][row]:a[1][row + 1]][inside].tolist()) == mine & others


@given(**shapes, end=st.sampled_from(["first", "last"]), kind=st.sampled_from([np.int64, np.int32]))
def test_matches_of_the_rows_own_value(seed, rows, longest, codes, end, kind):
    g = np.random.default_rng(seed)
    _, offsets = lists(g, rows, longest, codes)
    own, known = g.integers(0, codes, rows).astype(kind), g.random(rows) < 0.8
    values = g.integers(0, codes, offsets[-1]).astype(kind)
    same(*both(lambda: derive.match_own(own, known, values, offsets, end)))


@given(**shapes, size=st.integers(1, 30), most=st.integers(0, 20), end=st.sampled_from(["first", "last"]))
def test_matches_through_a_tables_lists(seed, rows, longest, codes, size, most, end):
    g = np.random.default_rng(seed)
    _, offsets = lists(g, rows, longest, codes)
    each = [np.unique(g.integers(0, codes, g.integers(0, most + 1))) for _ in range(size)]
    ends = np.concatenate([[0], np.cumsum([len(e) for e in each])])
    own, listed = g.integers(-1, size, rows), g.integers(-1, size, offsets[-1])
    native, plain = both(lambda: derive.match_sets(own, listed, offsets, np.concatenate(each), ends, end))
    same(native, plain)
    for row in range(rows):
        mine = set() if own[row] < 0 else set(each[own[row]].tolist())
        common = [len(mine & set(each[i].tolist())) if i >= 0 else 0 for i in listed[offsets[row]:offsets[row + 1]]]
        assert native[0][row] == sum(common)
        back = common[::-1] if end == "last" else common
        assert native[1][row] == (1 / (1 + next(i for i, c in enumerate(back) if c)) if sum(common) else 0)


@given(seed=st.integers(0, 2**32), n=st.integers(1, 50), low=st.sampled_from([-2**63, -3, 0, 2**63 - 100]))
def test_keys_in_a_narrow_range(seed, n, low):
    g = np.random.default_rng(seed)
    keys = low + g.permutation(99)[:n]
    index = KeyIndex(pa.array(keys))
    query = pa.array([*keys.tolist(), -2**63, 2**63 - 1, 0, None, low + 50])
    native, plain = both(lambda: [index.find(query)])
    same(native, plain)
    place = {int(k): i for i, k in enumerate(keys)}
    assert native[0].tolist() == [place.get(v, -1) for v in query.to_pylist()]


@given(keys=st.lists(st.text(), unique=True, min_size=1, max_size=40), others=st.lists(st.none() | st.text()))
def test_texts_are_found_with_kernels_and_without(keys, others):
    query = pa.array(["cut", *others, *keys, *(k + "\0" for k in keys)], pa.large_string()).slice(1)
    keys = pa.array(["cut", *keys]).slice(1)
    native, plain = both(lambda: [KeyIndex(keys).find(query)])
    same(native, plain)
    place = {k: i for i, k in enumerate(keys.to_pylist())}
    assert native[0].tolist() == [place.get(v, -1) for v in query.to_pylist()]


def test_scattered_integers_are_found_and_no_others():
    g = np.random.default_rng(0)
    keys = g.permutation(np.unique(g.integers(-2**63, 2**63 - 1, 50_000)))
    query = np.concatenate([keys, g.integers(-2**63, 2**63 - 1, 600_000)])      # some share a slot's bits with a key
    index = KeyIndex(pa.array(keys))
    assert index.slots is not None and index.is_distinct()
    found = index.find(pa.array(query))
    assert (found[:len(keys)] == np.arange(len(keys))).all()
    others = found[len(keys):]
    assert (keys[others[others >= 0]] == query[len(keys):][others >= 0]).all() and (others >= 0).sum() < 10
    assert not KeyIndex(pa.array([*keys[:9], keys[3]])).is_distinct()


def test_lists_of_ten_thousand():
    g = np.random.default_rng(0)
    a, b = ((g.integers(0, 50_000, 30_000), np.array([0, 10_000, 10_000, 30_000])) for _ in range(2))
    same(*both(lambda: [derive.Overlap([a, b]).within(0, 1)]))
