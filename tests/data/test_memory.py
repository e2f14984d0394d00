"""data.memory is kept whatever the rows are: wide, long, many, or other than their file says.

What is measured runs in a process of its own (`alone`), so that nothing else of the suite is in its memory.
"""

import multiprocessing
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from funnelrank.data import tables
from funnelrank.data.ahead import each, in_order
from funnelrank.data.encode import Encoder
from funnelrank.data.source import TooWide, open_source
from funnelrank.data.tables import Dimension
from funnelrank.errors import DataError
from funnelrank.schema import resolve
from funnelrank.settings import Data, Settings


def opened(folder, rows=".", **data):
    return open_source(rows, Data(dir=str(folder), **data), "train")


def anonymous():
    """Bytes of anonymous memory of this process."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("RssAnon"))


class Peak:
    """The most anonymous memory within the block, over what was there at its beginning."""

    def __enter__(self):
        pa.default_memory_pool().release_unused()
        self.begin, self.most, self._over = anonymous(), 0, False
        self._watch = threading.Thread(target=self._look, daemon=True)
        self._watch.start()
        return self

    def _look(self):
        while not self._over:
            self.most = max(self.most, anonymous() - self.begin)
            time.sleep(0.002)

    def __exit__(self, *error):
        self._over = True
        self._watch.join()


@pytest.fixture(scope="module")
def alone():
    """Calls a function of this module in a process that does nothing else."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        yield lambda work, *given: process.submit(work, *given).result()


def narrow_then(wide, rows=2000):
    return pa.table({"h": pa.array([[0]] * rows + [wide] * rows, pa.list_(pa.int64())), "i": np.arange(2 * rows)})


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("group", [10**6, 3000, 500])
def test_rows_far_wider_than_the_first_are_read_in_halves(tmp_path, monkeypatch, group, threads):
    monkeypatch.setattr("funnelrank.data.source.LEAST", 1 << 16)
    pq.write_table(narrow_then([0] * 500), tmp_path / "log.parquet", row_group_size=group)
    source = opened(tmp_path, memory=4_000_000)
    with pytest.raises(TooWide, match="row group .*: its rows are so wide that .* of them pass data.memory"):
        for unit in source.units:
            source.read(unit, ["h"])
    seen = list(in_order(source, ["h", "i"], lambda table, unit: table, threads))
    assert pa.concat_tables([t for _, t in seen])["i"].to_pylist() == list(range(4000))
    assert [u.start for u, _ in seen] == [t["i"][0].as_py() for _, t in seen]
    assert max(t["h"].nbytes for _, t in seen) <= 600_000 and len(seen) > len(source.units)
    assert [u for u, _ in each(source, ["i"])] == source.units        # narrow columns are read whole


def test_one_row_that_passes_the_budget_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("funnelrank.data.source.LEAST", 1 << 16)
    pq.write_table(narrow_then([0] * 500_000, 2), tmp_path / "log.parquet")
    with pytest.raises(DataError, match="log.parquet, row group 0, from row 2: its rows are so wide that 1 of them "):
        list(each(opened(tmp_path, memory=1_000_000), ["h"]))


def settings(**features):
    return Settings.model_validate({"features": {"lists": "off", **features}, "tasks": {"click": {}}})


def encoded(folder, memory, **features):
    """Every unit of log.parquet encoded, and the bytes that took."""
    said = settings(**features)
    with Peak() as peak:
        source = opened(folder, memory=memory)
        encoder = Encoder.fit(resolve(said), source, {})
        encode = lambda table, unit: encoder.encode(table, source.where(unit))
        parts = [part for _, part in in_order(source, source.columns.names, encode, 1)]
    return parts, peak.most


def test_texts_of_a_megabyte_are_encoded_within_the_budget(tmp_path, alone):
    texts = [chr(97 + i % 26) * 1_000_000 for i in range(120)]
    pq.write_table(pa.table({"t": texts, "click": [0, 1] * 60}), tmp_path / "log.parquet")
    parts, peak = alone(partial(encoded, t={"min_count": 1}), tmp_path, 400_000_000)
    ids = np.concatenate([part.ids for part in parts])
    assert len(set(ids[:, 0])) == 26 and (ids[:26] == ids[26:52]).all()
    assert peak < 400_000_000, peak


def test_lists_of_ten_thousand_are_encoded_within_the_budget(tmp_path, alone):
    ends = np.concatenate([np.arange(10_000), 10_000 + np.arange(2001) * 10_000]).astype(np.int32)     # narrow first
    lists = pa.ListArray.from_arrays(ends, pa.array(np.append(np.zeros(10_000, np.int64),
                                                              np.tile(np.arange(10_000), 2000))))
    rows = len(lists)
    pq.write_table(pa.table({"h": lists, "click": np.arange(rows) % 2}), tmp_path / "log.parquet")
    parts, peak = alone(partial(encoded, h={"kind": "sequence", "min_count": 1}, n={"kind": "length", "of": "h"}),
                        tmp_path, 600_000_000)
    assert sum(map(len, parts)) == rows and len(parts[-1].lists[0].values) == 50 * len(parts[-1])
    assert peak < 600_000_000, peak


def test_rows_that_turn_wide_are_decoded_fewer_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr("funnelrank.data.formats.LEAST_BATCH", 1 << 16)
    pq.write_table(narrow_then([0] * 2000, 600), tmp_path / "log.parquet")
    source = opened(tmp_path, memory=1 << 20)
    batches = list(source._files[0].stream(0, ["h", "i"], 1200))
    assert pa.Table.from_batches(batches)["i"].to_pylist() == list(range(1200))
    wide = [i for i, batch in enumerate(batches) if batch.nbytes > 1 << 17]
    assert 1 <= len(wide) <= 3 and wide[-1] <= 3 and len(batches) > 30       # found out at once, not again and again


def refused(folder):
    with Peak() as peak, pytest.raises(DataError) as told:
        list(each(opened(folder, memory=100_000_000), ["a"]))
    return str(told.value), peak.most


def test_a_footer_that_lies_about_its_rows_costs_no_memory(tmp_path, alone):
    """Row counts of the footer, raised a thousandfold: refused or found out, before memory is spent."""
    path = tmp_path / "log.parquet"
    pq.write_table(pa.table({"a": np.arange(1000)}), path, compression="none")
    raw = path.read_bytes()
    at = len(raw) - 8 - int.from_bytes(raw[-8:-4], "little")
    footer, told = raw[at:], 0
    varint = lambda n: bytes([(n >> s) & 127 | (128 if n >> (s + 7) else 0) for s in range(0, 64, 7)
                              if n >> s or not s])
    for lie in (10**6, 10**9, 2**40, 2**62):
        lied = footer[:-8].replace(varint(2 * 1000), varint(2 * lie))
        assert lied != footer[:-8]
        path.write_bytes(raw[:at] + lied + len(lied).to_bytes(4, "little") + b"PAR1")
        said, peak = alone(refused, tmp_path)
        told += said.startswith("log.parquet")
        assert peak < 100_000_000, (lie, peak)
    assert told == 4


def test_long_texts_are_hashed_in_parts_with_the_same_hashes(monkeypatch):
    texts = pa.array(["", "é" * 3000, "a", "b" * 999, "a" * 1001] * 3, pa.large_string())
    whole = tables._hashes(texts)
    monkeypatch.setattr(tables, "HASH_BYTES", 10)
    assert (tables._hashes(texts) == whole).all() and (tables._hashes(texts.slice(3)) == whole[3:]).all()
    monkeypatch.setattr(tables, "library", lambda: None)
    keys = pa.table({"k": texts.unique(), "v": range(5)})
    assert Dimension("t", "k", keys).rows(texts).tolist() == [0, 1, 2, 3, 4] * 3


def test_a_cache_that_has_no_room_is_refused_before_rows_are_written(tmp_path, monkeypatch):
    from collections import namedtuple

    from funnelrank.data.cache import open_encoded
    pq.write_table(pa.table({"u": np.arange(5000), "click": np.arange(5000) % 2}), tmp_path / "log.parquet",
                   row_group_size=1000)
    source, said, events = opened(tmp_path), settings(u={"min_count": 1}), []
    encoder = Encoder.fit(resolve(said), source, {})
    split = open_encoded(encoder, source, Data(), tmp_path / "cache", True, says=events.append)
    size = sum(f.stat().st_size for f in split.folder.glob("*.bin"))
    [told] = events
    assert (told["event"], told["what"]) == ("disk", "encoded rows of train")
    assert size <= told["bytes"] < 1.001 * size                # the record before the first row's counts for each unit
    monkeypatch.setattr("shutil.disk_usage", lambda path: namedtuple("Usage", "free")(size - 1))
    with pytest.raises(DataError, match="the encoded rows of data.train take about .* are free; make room or choose"):
        open_encoded(encoder, source, Data(), tmp_path / "other", True)
    assert not list((tmp_path / "other").iterdir())
