import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from funnelrank.data import derive

ENDS = st.sampled_from(["last", "first"])
SMALL, HUGE = st.integers(0, 4), st.integers(-2**63, 2**63 - 1)
quick = settings(max_examples=60, deadline=None)


def flat(lists):
    """Codes and offsets of a list of lists."""
    return (np.array([x for row in lists for x in row], np.int64),
            np.cumsum([0, *map(len, lists)]).astype(np.int64))


def newest(row, end):
    """A list as from its latest element back."""
    return row[::-1] if end == "last" else row


@st.composite
def side_by_side(draw, count, values=SMALL):
    """`count` columns of lists, equally many rows."""
    rows = draw(st.integers(0, 6))
    return [draw(st.lists(st.lists(values, max_size=6), min_size=rows, max_size=rows)) for _ in range(count)]


@given(side_by_side(3), st.sampled_from([1, 3, derive.BLOCK]))
@quick
def test_overlap_is_membership_in_the_same_row(columns, block):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(derive, "BLOCK", block)
        overlap = derive.Overlap([flat(c) for c in columns])
        for a, left in enumerate(columns):
            for b, right in enumerate(columns):
                expected = [x in theirs for ours, theirs in zip(left, right) for x in ours]
                assert overlap.within(a, b).tolist() == expected


@given(side_by_side(2, HUGE | st.sampled_from([-2**63, 2**63 - 1])))
@quick
def test_overlap_is_exact_for_any_64_bit_codes(columns):
    left, right = columns
    right = [ours[::2] + theirs for ours, theirs in zip(left, right)]
    found = derive.Overlap([flat(left), flat(right)]).within(0, 1)
    assert found.tolist() == [x in theirs for ours, theirs in zip(left, right) for x in ours]


@pytest.mark.parametrize("rounds", [0, 1, 6])
def test_overlap_does_not_trust_its_hash(monkeypatch, rounds):
    """Codes that all hash alike, and no rounds at all, give the same answer."""
    monkeypatch.setattr(derive, "ROUNDS", rounds)
    monkeypatch.setattr(derive, "ODD", np.uint64(2**40))
    rng = np.random.default_rng(0)
    lists = [rng.integers(0, 50, rng.integers(0, 20)).tolist() for _ in range(100)]
    others = [rng.integers(0, 50, rng.integers(0, 20)).tolist() for _ in range(100)]
    found = derive.Overlap([flat(lists), flat(others)]).within(0, 1)
    assert found.tolist() == [x in theirs for ours, theirs in zip(lists, others) for x in ours]


@given(side_by_side(2), st.none() | st.integers(1, 7), ENDS)
@quick
def test_share_counts_the_latest_elements_of_one_list_in_the_other(columns, last, end):
    left, right = columns
    expected = []
    for ours, theirs in zip(left, right):
        seen = newest(ours, end)[:last]
        expected.append(sum(x in theirs for x in seen) / len(seen) if seen else 0)
    total = derive.running(derive.Overlap([flat(left), flat(right)]).within(0, 1))
    np.testing.assert_allclose(derive.share(total, flat(left)[1], last, end), expected)


def slow_match(pairs, row, end):
    """Count of (element, own) pairs, and how recent the latest matching element is."""
    count = sum(pairs)
    steps = [i for i, hit in enumerate(newest(pairs, end)) if hit]
    return count, 1 / (1 + steps[0]) if steps else 0


@given(st.data(), ENDS)
@quick
def test_match_counts_the_own_id_and_its_recency(data, end):
    lists, = data.draw(side_by_side(1))
    own = data.draw(st.lists(SMALL | st.none(), min_size=len(lists), max_size=len(lists)))
    expected = [slow_match([x == o for x in row], row, end) for row, o in zip(lists, own)]
    codes, offsets = flat(lists)
    places = derive.same(np.array([0 if o is None else o for o in own], np.int64),
                         np.array([o is not None for o in own], bool), codes, offsets)
    count, recency = derive.match(places, derive.row_of(offsets)[places], offsets, end)
    assert count.tolist() == [c for c, _ in expected]
    np.testing.assert_allclose(recency, [r for _, r in expected])


@given(side_by_side(1), st.integers(1, 7), ENDS)
@quick
def test_latest_keeps_the_newest_and_puts_the_oldest_first(columns, most, end):
    lists, = columns
    codes, offsets = flat(lists)
    places, out = derive.latest(offsets, most, end)
    expected = [newest(row, end)[:most][::-1] for row in lists]
    assert np.diff(out).tolist() == [len(row) for row in expected]
    assert codes[places].tolist() == [x for row in expected for x in row]


@given(side_by_side(1), st.data())
@quick
def test_gather_takes_lists_in_any_order(columns, data):
    lists, = columns
    rows = data.draw(st.lists(st.integers(0, len(lists) - 1), max_size=8)) if lists else []
    codes, offsets = flat(lists)
    places, out = derive.gather(offsets, np.array(rows, np.int64))
    assert codes[places].tolist() == [x for r in rows for x in lists[r]]
    assert out.tolist() == np.cumsum([0, *(len(lists[r]) for r in rows)]).tolist()


def test_ten_thousand_elements_beside_empty_lists():
    rng = np.random.default_rng(1)
    long = rng.integers(0, 3000, 10_000).tolist()
    lists, others = [[], long, [], [7]], [long, long[:100], [], []]
    found = derive.Overlap([flat(lists), flat(others)]).within(0, 1)
    few = set(long[:100])
    assert found.tolist() == [x in few for x in long] + [False]
    share = derive.share(derive.running(found), flat(lists)[1], 10, "last")
    assert share.tolist() == [0, sum(x in few for x in long[-10:]) / 10, 0, 0]


def test_no_rows_and_no_elements():
    none = (np.zeros(0, np.int64), np.zeros(1, np.int64))
    assert derive.Overlap([none, none]).within(0, 1).tolist() == []
    empty = (np.zeros(0, np.int64), np.zeros(4, np.int64))
    assert derive.share(derive.running(derive.Overlap([empty, empty]).within(1, 0)), empty[1], 3, "last").tolist() == [
        0, 0, 0]
    count, recency = derive.match(np.zeros(0, np.int64), np.zeros(0, np.int64), empty[1], "last")
    assert count.tolist() == [0, 0, 0] and recency.tolist() == [0, 0, 0]
