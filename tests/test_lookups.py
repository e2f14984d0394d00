"""What a server looks up itself: by the kernel as by numpy, and as the tables say."""

import numpy as np
import pytest

from funnelrank import lookups as module
from funnelrank.lookups import Bags, Lookups, Part

SIZES = {"a": 30, "b": 50}


def bags(rng, rows, size, weighted):
    offsets = np.concatenate([[0], np.cumsum(rng.integers(0, 4, rows))])
    return Bags(rng.integers(1, size, offsets[-1]).astype(np.int32), offsets,
                rng.standard_normal(offsets[-1]).astype(np.float32) if weighted else None)


@pytest.fixture(params=[5, 16], ids=lambda width: f"width {width}")
def made(request):
    rng, D = np.random.default_rng(0), request.param
    tables = {"wide": rng.standard_normal((80, D)).astype(np.float32), "other": np.zeros((3, 2), np.float32)}
    tables["wide"][[0, 30]] = 0                                                # PAD of each space
    at = {"a": 0, "b": 30}
    part = lambda name, source, column, space, **more: Part(name, source, column, D, "wide", at[space], SIZES[space],
                                                            **more)
    return rng, tables, [
        part("x", "ids", 2, "a"), part("tab", "ids", 0, "b", least=1), Part("n1", "numbers", 1),
        Part("n2", "numbers", 2), part("shown", "lists", 1, "a", mean=True), Part("n0", "numbers", 0),
        part("tags", "lists", 0, "b")]


def by_numpy(monkeypatch):
    monkeypatch.setattr(module, "library", lambda: None)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("rows", [1, 40])
def test_kernel_and_numpy_give_what_stands_in_the_tables(made, rows, weighted, monkeypatch):
    rng, tables, parts = made
    ids = np.stack([rng.integers(0, n, rows) for n in (50, 30, 30)], 1).astype(np.int32)
    numbers, lists = rng.standard_normal((rows, 3)).astype(np.float32), [
        bags(rng, rows, 50, weighted), bags(rng, rows, 30, False)]
    given, look, table = ids.copy(), Lookups(parts, tables), tables["wide"]
    found = look(ids, numbers, lists)
    D = table.shape[1]
    for i in range(rows):
        shown, tags = (slice(one.offsets[i], one.offsets[i + 1]) for one in (lists[1], lists[0]))
        weights = lists[0].weights[tags, None] if weighted else 1
        wanted = [table[ids[i, 2]], table[30 + max(ids[i, 0], 1)], numbers[i, 1:],
                  table[lists[1].values[shown]].sum(0) / max(shown.stop - shown.start, 1), numbers[i, :1],
                  (table[30 + lists[0].values[tags]] * weights).sum(0)]
        np.testing.assert_allclose(found[i], np.concatenate(wanted), atol=1e-6)
    assert found.shape == (rows, 4 * D + 3) and (ids == given).all()
    by_numpy(monkeypatch)
    np.testing.assert_allclose(look(ids, numbers, lists), found, atol=1e-6)


@pytest.mark.parametrize("native", [True, False])
def test_an_id_outside_its_space_is_refused(made, native, monkeypatch):
    rng, tables, parts = made
    none = Bags(np.empty(0, np.int32), np.zeros(3, np.int64), None)
    if not native:
        by_numpy(monkeypatch)
    with pytest.raises(IndexError, match="'x': .*30.* is no id of it"):
        Lookups(parts, tables)(np.array([[1, 1, 29], [1, 1, 30]], np.int32), np.zeros((2, 3), np.float32), [none, none])


def test_no_list_and_no_number_are_fine(made, monkeypatch):
    _, tables, parts = made
    look = Lookups(parts[:1], tables)
    ids = np.array([[0, 0, 7], [0, 0, 0]], np.int32)
    found = look(ids, np.empty((2, 0), np.float32), [])
    assert (found == tables["wide"][[7, 0]]).all()
    by_numpy(monkeypatch)
    assert (look(ids, np.empty((2, 0), np.float32), []) == found).all()
