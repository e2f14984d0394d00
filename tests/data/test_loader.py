import json
import threading
from functools import lru_cache

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from funnelrank.batch import Batch, Layout
from funnelrank.data.encoded import Encoded, List
from funnelrank.data.loader import Loader, pack
from funnelrank.errors import TrainingError

FIELDS = ("ids", "numbers", "values", "offsets", "scenario", "labels", "weight", "user", "value_weights")
LAYOUT = Layout(ids=("a", "b"), numbers=("x",), lists=("shown", "tags"), tasks=("click",), space={}, size={}, role={},
                pool={}, target={}, feature={}, scenarios=())


def ragged(lists, weights=None) -> List:
    offsets = np.concatenate([[0], np.cumsum([len(v) for v in lists])]).astype(np.int64)
    flat = np.array([i for values in lists for i in values], np.int32)
    return List(flat, offsets, None if weights is None else np.array(weights(flat), np.float32))


@lru_cache
def encoded(rows: int = 23, weighted: bool = False, seed: int = 0) -> Encoded:
    """Rows that carry their own number as `user`."""
    g = np.random.default_rng(seed)
    lists = [[list(g.integers(2, 9, n)) for n in g.integers(0, 4, rows)] for _ in range(2)]
    return Encoded(
        ids=g.integers(0, 99, (rows, 2)).astype(np.int32), numbers=g.normal(size=(rows, 1)).astype(np.float32),
        lists=[ragged(lists[0]), ragged(lists[1], (lambda v: v / 10) if weighted else None)],
        scenario=g.integers(0, 3, rows).astype(np.int32), weight=g.random(rows).astype(np.float32),
        labels=g.choice([0, 1, np.nan], (rows, 1)).astype(np.float32), user=np.arange(rows))


def loader(data: Encoded, size: int = 5, **changes) -> Loader:
    return Loader(data, LAYOUT, size, **{"shuffle": True, "seed": 7, **changes})


def same(a: Batch, b: Batch) -> None:
    for name in FIELDS:
        x, y = getattr(a, name), getattr(b, name)
        assert (x is None) == (y is None), name
        if x is not None:
            assert x.dtype == y.dtype and x.is_contiguous()
            torch.testing.assert_close(x, y, rtol=0, atol=0, equal_nan=True)


def alike(a, b) -> None:
    a, b = list(a), list(b)
    assert len(a) == len(b)
    for x, y in zip(a, b):
        same(x, y)


def users(batches) -> list[int]:
    return [int(u) for batch in batches for u in batch.user]


# ---- packing

def test_lists_are_packed_as_drawn_in_batch():
    data = Encoded(
        ids=np.zeros((3, 2), np.int32), numbers=np.zeros((3, 1), np.float32), scenario=np.zeros(3, np.int32),
        lists=[ragged([[5, 7], [], [2]]), ragged([[9], [4, 4, 8], []])], labels=np.zeros((3, 1), np.float32),
        weight=np.ones(3, np.float32), user=np.arange(3))
    for rows in (slice(0, 3), np.arange(3)):
        batch = pack(data, rows)
        assert batch.values.tolist() == [5, 7, 2, 9, 4, 4, 8] and batch.offsets.tolist() == [0, 2, 2, 3, 4, 7, 7]
    assert pack(data, np.array([2, 0])).values.tolist() == [2, 5, 7, 9]


@pytest.mark.parametrize("weighted", [False, True])
def test_a_batch_is_its_rows_one_by_one(weighted):
    data = encoded(weighted=weighted)
    rows = np.random.default_rng(0).permutation(23)[:11]
    batch = pack(data, rows)
    assert len(batch) == 11 and (batch.value_weights is not None) == weighted
    for name in ("ids", "numbers", "scenario", "labels", "weight", "user"):
        np.testing.assert_array_equal(getattr(batch, name).numpy(), getattr(data, name)[rows])
    for k, (values, offsets, weights) in enumerate(data.lists):
        for b, row in enumerate(rows):
            place = slice(*batch.offsets[k * 11 + b:k * 11 + b + 2])
            mine = slice(offsets[row], offsets[row + 1])
            assert batch.values[place].tolist() == values[mine].tolist()
            if weighted:     # a list without weights weighs 1
                assert batch.value_weights[place].tolist() == ([1.0] * len(values[mine]) if weights is None
                                                               else weights[mine].tolist())


def test_a_slice_is_the_same_as_its_rows():
    for weighted in (False, True):
        same(pack(encoded(weighted=weighted), slice(4, 9)), pack(encoded(weighted=weighted), np.arange(4, 9)))


def test_a_batch_has_the_types_of_batch_and_memory_of_its_own():
    data = encoded(weighted=True)
    kinds = dict(zip(FIELDS, (torch.int32, torch.float32, torch.int32, torch.int64, torch.int32, torch.float32,
                              torch.float32, torch.int64, torch.float32)))
    for rows in (slice(0, 4), np.arange(4)):
        batch = pack(data, rows)
        assert {name: getattr(batch, name).dtype for name in FIELDS} == kinds
        before = data.ids.copy(), data.lists[0].values.copy(), data.lists[0].offsets.copy()
        for name in FIELDS:
            getattr(batch, name).zero_()
        np.testing.assert_array_equal(data.ids, before[0])
        np.testing.assert_array_equal(data.lists[0].values, before[1])
        np.testing.assert_array_equal(data.lists[0].offsets, before[2])


def test_no_rows_and_no_lists_make_empty_tensors():
    batch = pack(encoded(), slice(0, 0))
    assert len(batch) == 0 and batch.values.shape == (0,) and batch.offsets.tolist() == [0]
    bare = Encoded(**{**vars(encoded()), "lists": []})
    for rows in (slice(0, 3), np.arange(3)):
        batch = pack(bare, rows)
        assert batch.values.shape == (0,) and batch.values.dtype == torch.int32 and batch.offsets.tolist() == [0]


# ---- epochs

@given(rows=st.integers(1, 40), size=st.integers(1, 45), epoch=st.integers(0, 3), shuffle=st.booleans())
def test_every_row_comes_exactly_once(rows, size, epoch, shuffle):
    batches = list(loader(encoded(rows), size, shuffle=shuffle).epoch(epoch))
    assert len(batches) == len(loader(encoded(rows), size)) and all(len(b) == size for b in batches[:-1])
    assert sorted(users(batches)) == list(range(rows))
    assert shuffle or users(batches) == list(range(rows))


@given(size=st.integers(1, 30))
def test_a_batch_of_any_size_is_the_next_rows_of_one_order_sorted(size):
    order = loader(encoded(), 1).order(2)
    batches = list(loader(encoded(), size).epoch(2))
    assert [users([b]) for b in batches] == [sorted(order[i:i + size]) for i in range(0, len(order), size)]


def test_the_order_is_that_of_seed_and_epoch_alone():
    order = lambda seed, epoch: users(loader(encoded(), seed=seed).epoch(epoch))
    assert order(7, 0) == order(7, 0)
    assert len({tuple(order(seed, epoch)) for seed in (0, 1, 2**63 - 1) for epoch in range(3)}) == 9
    one = loader(encoded())
    assert [users(one.epoch(n)) for n in (0, 1, 0)] == [order(7, 0), order(7, 1), order(7, 0)]


def test_every_order_is_as_likely():
    firsts = [int(loader(encoded(4), seed=seed).order(0)[0]) for seed in range(400)]
    assert all(60 < firsts.count(row) < 140 for row in range(4))


def test_drop_last_leaves_only_full_batches():
    batches = list(loader(encoded(), 5, drop_last=True).epoch(0))
    assert [len(b) for b in batches] == [5] * 4 and len(loader(encoded(), 5, drop_last=True)) == 4
    assert list(loader(encoded(), 50, drop_last=True).epoch(0)) == []


# ---- positions

@given(stop=st.integers(0, 12), size=st.integers(3, 9), memory=st.sampled_from([None, 100, 800]))
def test_resuming_at_any_position_is_never_having_stopped(stop, size, memory):
    straight = [batch for n in range(2) for batch in loader(encoded(), size, memory=memory).epoch(n)]
    first, done = loader(encoded(), size, memory=memory), []
    for n in range(2):
        for batch in first.epoch(n):
            if len(done) >= stop:
                break
            done.append(batch)
            state = first.state()
        if len(done) >= stop:
            break
    if not done:
        state = loader(encoded(), size, memory=memory).state()
    second = loader(encoded(), size, memory=memory)
    second.restore(json.loads(json.dumps(state)))
    for n in range(state["epoch"], 2):
        done += second.epoch(n)
    alike(done, straight)


def test_the_position_counts_what_was_handed_out_not_what_was_packed():
    one = loader(encoded())
    assert (one.state()["epoch"], one.state()["batch"]) == (0, 0)
    positions = []
    for _ in one.epoch(0):
        positions.append((one.state()["epoch"], one.state()["batch"]))
    assert positions == [(0, 1), (0, 2), (0, 3), (0, 4), (1, 0)]


def test_a_restored_position_is_used_once():
    one = loader(encoded())
    one.restore({**one.state(), "epoch": 1, "batch": 3})
    assert one.state()["batch"] == 3
    assert len(list(one.epoch(1))) == 2
    assert len(list(one.epoch(1))) == 5
    one.restore({**one.state(), "epoch": 1, "batch": 3})
    assert len(list(one.epoch(2))) == 5


def test_a_position_in_other_batches_is_refused():
    state = loader(encoded()).state()
    with pytest.raises(TrainingError, match="batch_size was 5, now it is 6"):
        loader(encoded(), 6).restore(state)
    with pytest.raises(TrainingError, match="seed was 7, now it is 8"):
        loader(encoded(), seed=8).restore(state)
    with pytest.raises(TrainingError, match="rows was 23, now it is 24"):
        loader(encoded(24)).restore(state)
    with pytest.raises(TrainingError, match="block was None, now it is 1; window was None, now it is 1$"):
        loader(encoded(), memory=100).restore(state)
    del state["order"]                       # made by another rule
    with pytest.raises(TrainingError, match="order was None, now it is 3"):
        loader(encoded()).restore(state)


# ---- the thread

def packers() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("funnelrank-loader")]


def test_leaving_early_or_failing_ends_the_thread():
    batches = loader(encoded()).epoch(0)
    next(batches)
    assert len(packers()) == 1
    batches.close()
    assert packers() == []
    with pytest.raises(KeyError):
        for _ in loader(encoded()).epoch(0):
            raise KeyError
    assert packers() == []
    list(loader(encoded()).epoch(0))
    assert packers() == []


def test_what_goes_wrong_while_packing_is_raised_where_batches_are_used():
    broken = Encoded(**{**vars(encoded()), "lists": [List(np.zeros(9, np.int32), np.arange(24), None)] * 2})
    got = 0
    with pytest.raises(IndexError):
        for _ in loader(broken, 4).epoch(0):         # rows past 9 have no values
            got += 1
    assert got < 6 and packers() == []


def test_one_batch_is_packed_ahead(monkeypatch):
    made = []
    real = pack

    def counted(data, rows):
        made.append(rows)
        return real(data, rows)
    monkeypatch.setattr("funnelrank.data.loader.pack", counted)
    batches = loader(encoded()).epoch(0)
    next(batches)
    next(batches)
    batches.close()
    assert 2 <= len(made) <= 3


@pytest.mark.parametrize("rows, size, ranks", [(23, 5, 2), (23, 5, 3), (7, 3, 4), (2, 9, 3), (64, 8, 5)])
@pytest.mark.parametrize("shuffle", [True, False])
def test_ranks_read_every_row_once_an_epoch_in_as_many_batches(monkeypatch, rows, size, ranks, shuffle):
    """Each gets a share of every batch, if need be an empty one: together what one process would get, in its order."""
    shares = []
    for rank in range(ranks):
        monkeypatch.setattr("funnelrank.ranks.size", lambda: ranks)
        monkeypatch.setattr("funnelrank.ranks.rank", lambda rank=rank: rank)
        shares.append([users([b]) for b in loader(encoded(rows), size, shuffle=shuffle, apart=True).epoch(1)])
    alone = [users([b]) for b in loader(encoded(rows), size, shuffle=shuffle).epoch(1)]
    assert [sum(parts, []) for parts in zip(*shares, strict=True)] == alone
    assert sorted(sum(alone, [])) == list(range(rows))
