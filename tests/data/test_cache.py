import errno
import gc
import json
import multiprocessing
import os
import resource
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from funnelrank.data import cache
from funnelrank.data.cache import EncodedSplit, open_encoded
from funnelrank.data.encode import Encoder
from funnelrank.data.loader import Loader
from funnelrank.data.source import open_source
from funnelrank.errors import DataError
from funnelrank.schema import resolve
from funnelrank.settings import Data, Settings

ARRAYS = ("ids", "numbers", "scenario", "labels", "weight", "user")
ROWS = 200


def settings(**data) -> Settings:
    return Settings.model_validate({
        "data": {"user": "user", "scenario": "tab", "weight": "w", "contradictions": "keep", **data},
        "features": {"user": {"min_count": 1}, "price": "number", "shown": {"kind": "sequence", "min_count": 1},
                     "tags": {"kind": "bag", "weight_separator": ":", "separator": "|", "min_count": 1},
                     "none": {"kind": "bag", "min_count": 1}},
        "tasks": {"click": {}, "buy": {"after": "click"}, "spend": {"after": "click", "kind": "regression"}}})


def log(rows: int = ROWS, seed: int = 0) -> pa.Table:
    g = np.random.default_rng(seed)
    pick = lambda values, p=None: g.choice(values, rows, p=p)
    lists = [[int(i) for i in g.integers(0, 20, n)] for n in g.integers(0, 5, rows)]
    texts = ["|".join(f"{i}:{i / 4}" for i in g.integers(0, 9, n)) for n in g.integers(0, 3, rows)]
    return pa.table({
        "user": pick([f"u{i}" for i in range(30)]), "tab": pick(["a", "b", "c"]), "w": pick([1.0, 0.5]),
        "price": pa.array(pick([1.5, 2, 30, np.nan])), "shown": pa.array(lists, pa.list_(pa.int64())),
        "tags": texts, "none": pa.array([[]] * rows, pa.list_(pa.int64())),
        "click": pa.array(pick([0, 1]), mask=pick([False, True], [0.9, 0.1])),
        "buy": pick([0, 1], [0.7, 0.3]), "spend": pick([0.0, 2.5])})


class Made:
    """A log on disk, an encoder fitted on it, and how often it was asked to encode."""

    def __init__(self, folder, table=None, **data):
        self.settings = settings(**data)
        self.path, self.folder = folder / "log.parquet", folder / "cache"
        pq.write_table(log() if table is None else table, self.path, row_group_size=64)
        self.schema = resolve(self.settings)
        self.encoder = Encoder.fit(self.schema, self.source(), {})
        self.encodes = 0
        encode = self.encoder.encode

        def counted(*args, **kwargs):
            self.encodes += 1
            return encode(*args, **kwargs)
        self.encoder.encode = counted

    def source(self):
        return open_source(str(self.path), self.settings.data, "train")

    def open(self, policy=True, folder="", progress=None, **data) -> EncodedSplit:
        said = Data.model_validate({**self.settings.data.model_dump(), **data})
        return open_encoded(self.encoder, self.source(), said, self.folder if folder == "" else folder, policy,
                            progress)


@pytest.fixture
def made(tmp_path):
    return Made(tmp_path)


def same(a, b) -> None:
    for name in ARRAYS:
        x, y = getattr(a, name), getattr(b, name)
        assert x.dtype == y.dtype and x.shape == y.shape, name
        np.testing.assert_array_equal(x, y, err_msg=name)
    assert len(a.lists) == len(b.lists)
    for x, y in zip(a.lists, b.lists):
        for u, v in zip(x, y):
            assert (u is None) == (v is None)
            if u is not None:
                assert u.dtype == v.dtype
                np.testing.assert_array_equal(u, v)


def whole(made: Made):
    return made.encoder.encode(pq.read_table(made.path), "all")


def test_the_cache_holds_what_the_encoder_makes_of_all_rows_at_once(made):
    split = made.open()
    assert split.rows == len(split) == ROWS
    same(split, whole(made))
    assert split.counts == whole(made).counts
    assert [w is not None for _, _, w in split.lists] == [False, True, False]
    assert len(split.lists[2].values) == 0          # a file of no bytes


def test_a_row_is_one_place_in_memory(made):
    split = made.open()
    columns = [getattr(split, name) for name in ARRAYS]
    ends = [listed.offsets for listed in split.lists]
    [record] = {array.strides[0] for array in [*columns, *ends]}
    places = [array.ctypes.data for array in columns]
    assert max(places) - min(places) < record and split.ids.ctypes.data % 8 == 0
    assert all(split.ids.ctypes.data - record < at.ctypes.data < split.ids.ctypes.data for at in ends)


def test_memory_and_disk_hold_the_same(made):
    split, kept = made.open(), made.open(folder=None)
    same(split, kept)
    assert (split.counts, split.coverage, split.contradictions) == (kept.counts, kept.coverage, kept.contradictions)
    assert kept.folder is None and list(made.folder.iterdir()) == [split.folder]
    with pytest.raises(ValueError, match="read-only"):
        kept.ids[0] = 0
    with pytest.raises(ValueError, match="read-only"):
        split.ids[0] = 0


def test_a_cache_is_made_once(made):
    made.open()
    made.encodes = 0
    same(made.open(), made.open(folder=None))
    assert made.encodes == 4       # only the one in memory
    assert [p.name[:8] for p in made.folder.iterdir()] == ["encoded-"]


def test_any_unit_size_makes_the_same_cache(tmp_path):
    made = Made(tmp_path)
    split = made.open()
    pq.write_table(log(), made.path, row_group_size=7)
    other = made.open()
    assert other.folder != split.folder and made.encodes > 20
    same(split, other)
    assert (other.counts, other.coverage) == (split.counts, split.coverage)
    for a, b in zip(*(Loader(s, made.encoder.layout, 16, shuffle=True, seed=1).epoch(0) for s in (split, other))):
        assert torch.equal(a.ids, b.ids) and torch.equal(a.values, b.values) and torch.equal(a.user, b.user)


@pytest.mark.parametrize("change", ["file", "encoder", "policy", "fill", "contradictions", "format"])
def test_whatever_decides_the_numbers_makes_another_cache(made, change, monkeypatch):
    first = made.open()
    if change == "file":
        pq.write_table(log(seed=1), made.path)
        second = made.open()
        same(second, whole(made))
    elif change == "encoder":
        made.encoder.hash = lambda: "another"
        second = made.open()
    elif change == "policy":
        second = made.open(policy=False)
    elif change == "fill":
        second = made.open(fill_implied=True)
    elif change == "contradictions":
        second = made.open(contradictions="repair")
    else:
        monkeypatch.setattr(cache, "FORMAT", -1)
        second = made.open()
    assert second.folder != first.folder and first.folder.exists()


def test_a_folder_keeps_the_caches_used_last_and_those_in_use(made, monkeypatch):
    monkeypatch.setattr(cache, "KEEP", 2)
    names = lambda: {p.name for p in made.folder.glob("encoded-*")}
    held = made.open(contradictions="keep")                        # the oldest, but somebody reads it
    for age, policy in ((3, "drop"), (2, "repair")):
        path = made.open(contradictions=policy).folder
        os.utime(path, ns=(0, time.time_ns() - age * 10**12))
    os.utime(held.folder, ns=(0, 0))
    gc.collect()
    newest = made.open(policy=False)
    assert names() == {held.folder.name, newest.folder.name, path.name}
    again = held.folder
    del held
    gc.collect()
    os.utime(again, ns=(0, 0))
    made.open(policy=False, fill_implied=True, negatives_kept=None)                   # nothing is made: nothing goes
    assert again.name in names()
    made.open(contradictions="drop")
    assert again.name not in names() and len(names()) == 2
    assert not list(made.folder.glob(".*.tmp"))


def test_a_file_with_a_new_time_of_change_is_encoded_again(made):
    first = made.open()
    os.utime(made.path, ns=(0, 10**18))
    assert made.open().folder != first.folder


@pytest.mark.parametrize("name", ["rows.bin", "list0.values.bin", "list1.weights.bin", "meta.json"])
@pytest.mark.parametrize("damage", ["cut", "empty", "gone"])
def test_a_damaged_cache_is_made_again(made, name, damage):
    path = made.open().folder / name
    if damage == "gone":
        path.unlink()
    else:
        os.truncate(path, 0 if damage == "empty" else path.stat().st_size - 1)
    same(made.open(), whole(made))
    assert len(list(made.folder.iterdir())) == 1


def test_what_a_killed_process_left_is_swept_away(made):
    stale = made.folder / f".encoded-{'0' * 32}.0123abcd.tmp"
    stale.mkdir(parents=True)
    (stale / "rows.bin").write_bytes(b"1")
    (made.folder / ".others.tmp").mkdir()
    split = made.open()
    assert sorted(p.name for p in made.folder.iterdir()) == sorted([".others.tmp", split.folder.name])


def open_slowly(folder, results, name):
    made = Made.__new__(Made)
    made.settings, made.path, made.folder = settings(), folder / "log.parquet", folder / "cache"
    made.schema = resolve(made.settings)
    made.encoder = Encoder.fit(made.schema, made.source(), {})
    encode, encodes = made.encoder.encode, []
    made.encoder.encode = lambda *a, **k: (encodes.append(1), time.sleep(0.05), encode(*a, **k))[-1]
    split = made.open()
    results.put((name, len(encodes), split.folder.name, int(split.ids.sum())))


def test_two_processes_make_one_cache_once(made):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    writers = [context.Process(target=open_slowly, args=(made.path.parent, results, n)) for n in range(3)]
    for writer in writers:
        writer.start()
    found = [results.get(timeout=60) for _ in writers]
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    assert len({(folder, total) for _, _, folder, total in found}) == 1
    assert sorted(n for _, n, _, _ in found)[-1] == 4
    assert len(list(made.folder.iterdir())) == 1
    same(made.open(), whole(made))


def test_a_full_disk_is_one_sentence_and_leaves_nothing(made):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(DataError) as fault:
            made.open()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(fault.value).startswith(f"cache {made.folder}, for the encoded rows of data.train: a file may not grow")
    assert "needed" in str(fault.value) and "free" in str(fault.value) and "data.cache" in str(fault.value)
    assert list(made.folder.iterdir()) == []
    same(made.open(), whole(made))


def test_a_disk_that_fills_names_what_is_needed_and_free(made, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(os, "fsync", full)
    said = r"the disk is full \(about \d+\.\d KB needed, \d+\.\d [GT]B free\); make room or choose"
    with pytest.raises(DataError, match=said):
        made.open()
    assert list(made.folder.iterdir()) == []


def test_a_cache_folder_that_cannot_be_made_is_one_sentence(made):
    made.folder.write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        made.open()


def test_an_error_of_the_data_passes_and_leaves_nothing(made):
    table = log()
    pq.write_table(table.set_column(8, "buy", pa.array([0] * 199 + [7])), made.path, row_group_size=64)
    with pytest.raises(DataError, match="row group 3: label 'buy' is 7 on 1 row"):
        made.open()
    assert list(made.folder.iterdir()) == []


def test_a_file_that_changes_while_it_is_encoded_is_refused(made):
    def change(done):
        if done == 64:
            os.utime(made.path, ns=(0, 10**18))
    with pytest.raises(DataError, match="data.train: a file changed while it was encoded"):
        made.open(progress=change)
    assert list(made.folder.iterdir()) == []


def test_progress_counts_rows(made):
    told = []
    made.open(progress=told.append)
    assert told == [64, 128, 192, 200]


def contradicting(labels) -> np.ndarray:
    return (labels[:, 0] == 0) & (labels[:, 1] == 1)


def test_policies_of_train(made):
    plain = whole(made)
    clash = contradicting(plain.labels)
    assert 5 < clash.sum() < 100
    split = made.open(contradictions="drop")
    assert split.rows == ROWS - clash.sum() == split.coverage["click"]["rows"]
    keep = np.flatnonzero(~clash)
    np.testing.assert_array_equal(split.labels, plain.labels[keep])
    np.testing.assert_array_equal(split.ids, plain.ids[keep])
    for k in range(3):
        values, offsets, _ = plain.lists[k]
        kept = [values[offsets[i]:offsets[i + 1]] for i in keep]
        np.testing.assert_array_equal(split.lists[k].values, np.concatenate(kept))
        np.testing.assert_array_equal(np.diff(split.lists[k].offsets), [len(v) for v in kept])
    assert split.contradictions["dropped"] == clash.sum()
    same(split, made.open(contradictions="drop", folder=None))

    split = made.open(contradictions="repair")
    assert not contradicting(split.labels).any() and split.contradictions["repaired"] == clash.sum()
    same(made.open(contradictions="keep"), plain)
    with pytest.raises(DataError, match=r"log.parquet, row group 0: label 'buy' is 1 on \d+ rows where 'click' is 0"):
        made.open(contradictions="raise")


def test_the_report_adds_up_over_units(made):
    clash = contradicting(whole(made).labels)
    [edge] = made.open().contradictions["edges"]
    assert edge["rows"] == clash.sum() and edge["positives"] == (whole(made).labels[:, 1] == 1).sum()
    first = int(clash.argmax())
    assert first < 64
    assert edge["first"] == f"{made.path}, row group 0, row {first} of the file, from 0"


def test_other_splits_are_left_alone_but_reported(made):
    split = made.open(policy=False, contradictions="repair", fill_implied=True)
    same(split, whole(made))
    assert split.contradictions["policy"] is None
    assert split.contradictions["edges"][0]["rows"] == contradicting(split.labels).sum()


def test_implied_labels_are_filled_when_asked_and_under_the_conditional_reading(made):
    missing = int(np.isnan(whole(made).labels[:, 0]).sum())
    implied = int((np.isnan(whole(made).labels[:, 0]) & (whole(made).labels[:, 1] == 1)).sum())
    assert implied
    observed = lambda split: split.coverage["click"]["observed"]
    assert observed(made.open()) == ROWS - missing
    split = made.open(fill_implied=True)
    assert observed(split) == ROWS - missing + implied == ROWS - int(np.isnan(split.labels[:, 0]).sum())
    assert split.contradictions["filled"]["click"] == implied
    made.encoder.schema = made.schema.model_copy(update={"reading": "conditional"})
    assert observed(made.open()) == ROWS - missing + implied
    assert observed(made.open(fill_implied=False)) == ROWS - missing


def test_coverage_counts_rows_observed_and_positives(made):
    split, labels = made.open(), whole(made).labels
    assert split.coverage["click"] == {"rows": ROWS, "observed": int((~np.isnan(labels[:, 0])).sum()),
                                       "positives": int((labels[:, 0] == 1).sum())}
    assert split.coverage["spend"] == {"rows": ROWS, "observed": ROWS, "positives": None}
    meta = json.loads((split.folder / "meta.json").read_text())
    assert meta["made_from"]["contradictions"] == "keep" and meta["rows"] == ROWS


def test_dropping_every_row_is_an_error(tmp_path):
    table = log()
    table = table.set_column(7, "click", pa.array([0] * ROWS)).set_column(8, "buy", pa.array([1] * ROWS))
    made = Made(tmp_path, table, contradictions="drop")
    for folder in (made.folder, None):
        with pytest.raises(DataError, match="data.train: each of the 200 rows contradicts the funnel and is dropped"):
            made.open(folder=folder)
    assert list(made.folder.iterdir()) == []


def test_a_split_without_features_of_a_kind(tmp_path):
    made = Made(tmp_path)
    made.settings = Settings.model_validate({"features": {"user": "id"}, "tasks": {"click": {}}})
    made.schema = resolve(made.settings)
    made.encoder = Encoder.fit(made.schema, made.source(), {})
    split = made.open()
    same(split, whole(made))
    assert split.numbers.shape == (ROWS, 0) and split.lists == []


def test_a_byte_changed_in_a_cache_is_never_read_and_the_cache_is_made_again(made):
    first = made.open()
    expected, rng = whole(made), np.random.default_rng(0)
    for path in sorted(first.folder.iterdir()):
        old = bytearray(path.read_bytes())
        for at in rng.integers(0, max(len(old), 1), 3) if old else ():
            old[at] ^= 1 << rng.integers(8)
            path.write_bytes(old)
            if (found := cache._open(first.folder)) is not None:
                assert path.name == "meta.sum"                 # its sum of an empty file
                same(found, expected)
        path.unlink()
        path.write_bytes(old)
        same(made.open(), expected)
