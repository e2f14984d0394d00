"""Several threads give what one gives: the same arrays, counts, order and errors."""

import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as times
from hypothesis import strategies as st

from funnelrank.data import source as sources
from funnelrank.data.ahead import in_order
from funnelrank.data.cache import open_encoded
from funnelrank.data.encode import Encoder
from funnelrank.data.source import open_source
from funnelrank.errors import DataError
from funnelrank.schema import resolve
from funnelrank.settings import Data, Settings

SETTINGS = Settings.model_validate({
    "data": {"user": "user", "contradictions": "keep"},
    "features": {"user": {"min_count": 1}, "item": {"min_count": 1}, "price": "number",
                 "shown": {"kind": "sequence", "space": "item"}},
    "tasks": {"click": {}, "buy": {"after": "click"}}})
SCHEMA = resolve(SETTINGS)


def log(rows: int, seed: int = 0) -> pa.Table:
    g = np.random.default_rng(seed)
    lists = [[int(i) for i in g.integers(0, 20, n)] for n in g.integers(0, 5, rows)]
    return pa.table({
        "user": g.choice([f"u{i}" for i in range(30)], rows), "item": g.integers(0, 20, rows),
        "price": g.choice([1.5, 2, np.nan], rows), "shown": pa.array(lists, pa.list_(pa.int64())),
        "click": g.integers(0, 2, rows), "buy": g.integers(0, 2, rows)})


def write(folder, tables, group=16):
    for i, table in enumerate(tables):
        pq.write_table(table, folder / f"part-{i}.parquet", row_group_size=group)
    return str(folder)


def opened(path, **data):
    said = Data.model_validate({**SETTINGS.data.model_dump(), **data})
    return open_source(path, said, "train"), said


def encoded(path, threads, folder=None, policy=True, **data):
    source, said = opened(path, **data)
    encoder = Encoder.fit(SCHEMA, source, {}, threads=threads)
    done = []
    return encoder, open_encoded(encoder, source, said, folder, policy, done.append, threads=threads), done


def bits(split) -> list[bytes]:
    arrays = [split.ids, split.numbers, split.scenario, split.labels, split.weight, split.user]
    return [a.tobytes() for a in [*arrays, *(a for each in split.lists for a in each if a is not None)]]


def same(a, b) -> None:
    assert a[0].hash() == b[0].hash() and a[2] == b[2]
    assert bits(a[1]) == bits(b[1])
    assert (a[1].counts, a[1].coverage, a[1].contradictions) == (b[1].counts, b[1].coverage, b[1].contradictions)


@times(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.integers(1, 120), min_size=1, max_size=3), group=st.integers(1, 70),
       unit=st.integers(5, 50), threads=st.integers(2, 5), seed=st.integers(0, 99))
def test_any_number_of_threads_makes_the_same_bits(tmp_path_factory, rows, group, unit, threads, seed):
    folder = tmp_path_factory.mktemp("log")
    path = write(folder, [log(n, seed + i) for i, n in enumerate(rows)], group)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "UNIT_ROWS", unit)               # some groups are sliced, some are whole
        same(encoded(path, 1), encoded(path, threads))
        same(encoded(path, 1), encoded(path, threads, folder / "cache"))


def test_text_files_are_cut_in_order_too(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "UNIT_ROWS", 7)
    lines = ["user,item,price,shown,click,buy", *(f"u{i % 5},{i % 7},{i},{i % 3}|{i % 4},{i % 2},0" for i in range(60))]
    (tmp_path / "log.csv").write_text("\n".join(lines) + "\n")
    source, _ = opened(str(tmp_path / "log.csv"))
    seen = [(unit.start, table["price"].to_pylist())
            for unit, table in in_order(source, ["price"], lambda table, unit: table, 3)]
    assert seen == [(at, list(range(at, min(at + 7, 60)))) for at in range(0, 60, 7)]


def broken(folder, bad: dict[int, int]):
    """Eight row groups; in those of `bad` a label is what its value says."""
    tables = []
    for i in range(8):
        table = log(16, i)
        labels = table["click"].to_numpy().copy()
        if i in bad:
            labels[3] = bad[i]
        tables.append(table.set_column(4, "click", pa.array(labels)))
    return write(folder, tables)


@pytest.mark.parametrize("bad", [{0: 7}, {7: 7}, {2: 7, 3: 8}, {3: 8, 6: 7}])
def test_the_first_failure_is_the_one_that_is_said(tmp_path, bad):
    path = broken(tmp_path, bad)
    said = []
    for threads in (1, 2, 4):
        with pytest.raises(DataError) as caught:
            encoded(path, threads, tmp_path / "cache")
        said.append(str(caught.value))
        assert [p for p in (tmp_path / "cache").iterdir() if not p.name.startswith(".lock")] == []
    assert said[0] == said[1] == said[2] and f"part-{min(bad)}.parquet" in said[0]
    assert not [t for t in threading.enumerate() if t.name.startswith("funnelrank-encode")]


def test_a_damaged_slice_is_said_after_what_failed_before_it(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "UNIT_ROWS", 16)
    source, _ = opened(write(tmp_path, [log(64)], group=64))
    read = source.read

    def damaged(unit, columns):
        if unit.offset == 32:
            raise DataError("the third is damaged")
        return read(unit, columns)
    source.read = damaged

    def work(table, unit):
        if unit.offset == 16:
            raise DataError("the second is wrong")
        return unit.offset
    for threads in (1, 3):
        with pytest.raises(DataError, match="the second is wrong"):
            list(in_order(source, ["item"], work, threads))


def test_leaving_early_begins_nothing_more(tmp_path):
    source, _ = opened(write(tmp_path, [log(16, i) for i in range(8)]))
    begun = []
    units = in_order(source, ["item"], lambda table, unit: begun.append(unit), 2)
    next(units)
    units.close()
    assert len(begun) <= 3
    assert not [t for t in threading.enumerate() if t.name.startswith("funnelrank-encode")]


def test_units_at_once_stay_within_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "UNIT_ROWS", 10)
    path = write(tmp_path, [log(100)], group=100)
    roomy, _ = opened(path)
    assert [roomy.at_once(t) for t in (1, 2, 3, 99)] == [1, 2, 3, 10]
    width = roomy._files[0].parts[0][1]
    tight, _ = opened(path, memory=10 * width * 8)
    assert tight.at_once(8) == 2                     # a unit fills its share
    running, most, lock = 0, [], threading.Lock()

    def work(table, unit):
        nonlocal running
        with lock:
            running += 1
            most.append(running)
        with lock:
            running -= 1
    list(in_order(tight, ["item"], work, 8))
    assert max(most) <= 2 and len(most) == 10
