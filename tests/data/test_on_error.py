"""data.on_error: skip. What is left out, what stays, and what is told of it."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as run
from hypothesis import strategies as st

import funnelrank
from funnelrank.api import train
from funnelrank.data import sift as sift_module
from funnelrank.data.source import open_source
from funnelrank.errors import DataError
from funnelrank.settings import Data

ROWS = 40


def config(folder, rows="log", **data):
    return funnelrank.load_config({
        "data": {"dir": str(folder), "train": rows, "weight": "w", "scenario": "tab", "user": "user",
                 "contradictions": "keep", "on_error": "skip", "cache": str(folder / "cache"), **data},
        "features": {"user": {"min_count": 1}, "price": "number", "seen": {"kind": "sequence", "min_count": 1},
                     "lists": "off"},
        "tasks": {"click": {}, "buy": {"after": "click"}}, "model": {"name": "aitm"},
        "train": {"out": str(folder / "run"), "threads": 1}})


def log(rows=ROWS, **changed):
    i = np.arange(rows)
    columns = {"user": i % 7, "price": i * 0.5, "seen": pa.array([[int(x), 1] for x in i], pa.list_(pa.int64())),
               "tab": [f"t{x % 3}" for x in i], "w": np.ones(rows), "click": (i % 2).astype(float),
               "buy": (i % 4 == 3).astype(float)}
    return pa.table({**columns, **changed})


def write(folder, *tables, group=8):
    (folder / "log").mkdir(exist_ok=True)
    for i, table in enumerate(tables):
        pq.write_table(table, folder / "log" / f"{i}.parquet", row_group_size=group, write_page_checksum=True)


def sifted(folder, **data):
    return funnelrank.open_data(config(folder, **data)).sources["train"]


def prices(source):
    return [v for u in source.units for v in source.read(u, ["price"])["price"].to_pylist()]


def changed(values, **at):
    values = list(values)
    for k, v in at.items():
        values[int(k[1:])] = v
    return values


def test_rows_with_outcomes_that_mean_nothing_are_left_out_one_by_one(tmp_path):
    table = log(click=changed(np.arange(ROWS) % 2 * 1.0, _3=2.0, _20=float("inf")), w=changed(np.ones(ROWS), _3=-1.0,
                                                                                              _30=None))
    write(tmp_path, table)
    source = sifted(tmp_path)
    assert prices(source) == [i * 0.5 for i in range(ROWS) if i not in (3, 20, 30)]
    assert source.rows == sum(u.rows for u in source.units) == ROWS - 3
    assert (source.skipped.files, source.skipped.groups, source.skipped.rows) == (0, 0, 3)
    assert source.skipped.samples[0] == ("log/0.parquet, row group 0: label 'click' is 2 on 1 row (first: row 3 of it, "
                                         "from 0); a binary label is 0, 1 or null")
    assert source.where(source.units[0]) == "log/0.parquet, row group 0, without 1 skipped"
    with pytest.raises(DataError, match="column 'w' holds -1.0 on 1 row"):
        data = funnelrank.open_data(config(tmp_path, on_error="raise"))
        funnelrank.encode(config(tmp_path), data, funnelrank.prepare(config(tmp_path), data))


def test_values_that_only_halving_finds_are_left_out_one_by_one(tmp_path):
    write(tmp_path, log(price=changed([str(i) for i in range(ROWS)], _9="cheap", _10="dear"),
                        user=changed(np.arange(ROWS) * 1.0, _33=0.5)))
    source = sifted(tmp_path)
    assert prices(source) == [str(i) for i in range(ROWS) if i not in (9, 10, 33)]
    assert source.skipped.rows == 3
    assert source.skipped.samples[0].startswith("log/0.parquet, row group 1, row 9 of the file, from 0: column 'price' "
                                                "is text and holds 'cheap'")


@run(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sets(st.integers(0, ROWS - 1), max_size=ROWS - 1), st.integers(1, ROWS), st.integers(1, 4000))
def test_whatever_rows_are_wrong_the_others_stay(tmp_path, wrong, group, memory):
    kinds = [("click", 2.0), ("w", float("nan")), ("user", 0.5), ("price", "x")]
    columns = {"click": [0.0] * ROWS, "w": [1.0] * ROWS, "user": [1.0] * ROWS, "price": [str(i) for i in range(ROWS)]}
    for row in wrong:
        name, value = kinds[row % 4]
        columns[name][row] = value
    write(tmp_path, log(**columns), group=group)
    source = sifted(tmp_path, memory=memory)
    assert prices(source) == [str(i) for i in range(ROWS) if i not in wrong]
    assert source.skipped.rows == len(wrong) and not source.skipped.groups


def test_what_follows_sees_the_same_rows(tmp_path):
    """Statistics, encoded rows and their frozen lists are those of a log without the wrong rows."""
    good = log()
    columns = {c: good[c].to_pylist() for c in good.column_names}
    columns["click"][5], columns["w"][17] = 2.0, -1.0
    (tmp_path / "bad").mkdir()
    (tmp_path / "good").mkdir()
    write(tmp_path / "bad", pa.table({c: pa.array(v, good.schema.field(c).type) for c, v in columns.items()}))
    write(tmp_path / "good", good.take([i for i in range(ROWS) if i not in (5, 17)]))
    made = []
    for folder in (tmp_path / "bad", tmp_path / "good"):
        settings = config(folder, test="log")
        data = funnelrank.open_data(settings)
        encoder = funnelrank.prepare(settings, data)
        splits = funnelrank.encode(settings, data, encoder)
        made.append((encoder.hash(), {k: v for k, v in splits.items()}))
    (a, bad), (b, good) = made
    assert a == b and set(bad) == set(good) == {"train", "test", "test/frozen"}
    for split in bad:
        for name in ("ids", "numbers", "labels", "weight", "user", "scenario"):
            assert np.array_equal(getattr(bad[split], name), getattr(good[split], name), equal_nan=True)
        assert np.array_equal(bad[split].lists[0].values, good[split].lists[0].values)
        assert bad[split].skipped["rows"] == 2 and good[split].skipped == {}


def test_a_damaged_row_group_is_left_out_whole(tmp_path):
    write(tmp_path, log(price=np.random.default_rng(0).random(ROWS)))
    path = tmp_path / "log" / "0.parquet"
    expected = pq.read_table(path)["price"].to_pylist()
    column = pq.ParquetFile(path).metadata.row_group(2).column(1)
    raw = bytearray(path.read_bytes())
    raw[column.data_page_offset + column.total_compressed_size // 2] ^= 4
    path.write_bytes(raw)
    source = sifted(tmp_path)
    assert prices(source) == expected[:16] + expected[24:]
    assert (source.skipped.groups, source.skipped.group_rows, source.skipped.rows) == (1, 8, 0)
    assert source.skipped.words() == "1 row group (8 rows)"
    assert source.skipped.samples[0].startswith("log/0.parquet, row group 2: cannot be read: ")


def test_too_many_rows_that_halving_would_find_leave_out_the_group(tmp_path, monkeypatch):
    monkeypatch.setattr(sift_module, "MOST", 2)
    write(tmp_path, log(price=["x"] * 8 + [str(i) for i in range(8, ROWS)]))
    source = sifted(tmp_path)
    assert prices(source) == [str(i) for i in range(8, ROWS)]
    assert (source.skipped.groups, source.skipped.group_rows, source.skipped.rows) == (1, 8, 0)


@pytest.mark.parametrize("damage, says", [
    (lambda p: p.write_bytes(p.read_bytes()[:-9]), "log/1.parquet: cannot be read"),
    (lambda p: p.write_bytes(b""), "log/1.parquet: is empty (0 bytes)"),
    (lambda p: (p.unlink(), p.symlink_to(p)), "log/1.parquet: cannot be read: "),
    (lambda p: pq.write_table(log(user=["a"] * ROWS), p), "log/1.parquet: column 'user' is string, but in "
                                                          "log/0.parquet it is int"),
    (lambda p: pq.write_table(log().drop(["w"]), p), "log/1.parquet: no column 'w', which log/0.parquet has"),
])
def test_files_that_cannot_be_used_are_left_out(tmp_path, damage, says):
    write(tmp_path, log(), log(), log())
    damage(tmp_path / "log" / "1.parquet")
    source = sifted(tmp_path)
    assert prices(source) == prices(source) == [i * 0.5 for i in range(ROWS)] * 2
    assert source.skipped.files == 1 and source.skipped.words() == "1 file"
    assert source.skipped.samples[0].startswith(says)


def test_lines_and_values_of_a_text_are_left_out(tmp_path):
    (tmp_path / "log").mkdir()
    lines = [f"{i % 7},{i},1|2,a,1,{i % 2},0" for i in range(ROWS)]
    lines[4], lines[9], lines[12], lines[13] = "1,2", lines[9] + ",9", "x" + lines[12][1:], lines[13][:-3] + "2,0"
    text = ("user,price,seen,tab,w,click,buy\n" + "\n".join(lines) + "\n").encode()
    text = text.replace(b"\n6,20,1|2,a", b"\n6,20,1|2,\xe9")
    (tmp_path / "log" / "0.csv").write_bytes(text)
    plain = config(tmp_path, csv={"types": {"user": "int"}}).settings.model_dump(exclude_unset=True)
    settings = funnelrank.load_config({**plain, "features": {
        "user": {"min_count": 1}, "price": "number", "seen": {"kind": "sequence", "separator": "|", "min_count": 1},
        "lists": "off"}})
    source = funnelrank.open_data(settings).sources["train"]
    assert prices(source) == [i for i in range(ROWS) if i not in (4, 9, 12, 13, 20)]
    assert source.skipped.rows == 5
    assert any("line 6: holds 2 cells, not 7" in s for s in source.skipped.samples)
    assert any("holds bytes that are not UTF-8" in s for s in source.skipped.samples)


def test_a_column_of_a_wrong_kind_is_no_rows_fault(tmp_path):
    write(tmp_path, log(seen=[1.5] * ROWS))
    with pytest.raises(DataError, match="column 'seen' is float; a bag or a sequence needs lists"):
        sifted(tmp_path)


def test_a_split_without_a_row_left_is_refused(tmp_path):
    write(tmp_path, log(click=[2.0] * ROWS))
    with pytest.raises(DataError, match="none of the 40 rows can be used, and data.on_error is skip; the first "
                                        "sentence: .*'click' is 2"):
        sifted(tmp_path)
    (tmp_path / "log" / "0.parquet").write_bytes(b"no parquet at all")
    with pytest.raises(DataError, match="none of the 1 files can be read, and data.on_error is skip"):
        sifted(tmp_path)


def test_check_and_training_tell_what_was_left_out(tmp_path):
    from funnelrank.data.verify import verify
    write(tmp_path, log(click=changed(np.arange(ROWS) % 2 * 1.0, _3=2.0)))
    settings = config(tmp_path)
    found = verify(settings.schema, settings.settings)
    assert found.faults == []
    assert "skip leaves out 1 row of data.train (first: log/0.parquet, row group 0: label 'click'" in found.notes[0]
    events = []
    done = train(settings, report=events.append)
    assert [(e["split"], e["rows"], e["words"]) for e in events if e["event"] == "skipped"] == [("train", 1, "1 row")]
    page = (done.folder / "report.html").read_text()
    assert "Left out by <code>data.on_error: skip</code>" in page and "label &#x27;click&#x27; is 2" in page
    with pytest.raises(DataError, match="'price'|'seen'|'user'"):
        done.ranker.predict(log(price=["x"] * ROWS))


def test_a_scan_holds_the_same_whatever_the_threads(tmp_path):
    write(tmp_path, log(click=changed(np.arange(ROWS) % 2 * 1.0, _3=2.0, _12=5.0)), log())
    settings = config(tmp_path)
    source = lambda: open_source("log", Data(dir=str(tmp_path), on_error="skip"), "train")
    one, two = (sift_module.sift(source(), settings.schema, {}, threads=n) for n in (1, 4))
    assert one.units == two.units and one.skipped == two.skipped and prices(one) == prices(two)
