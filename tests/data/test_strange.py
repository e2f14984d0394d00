"""Hostile and broken data end in the right rows or in one sentence, whatever they are."""

import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import strange
from hypothesis import HealthCheck, given
from hypothesis import settings as run
from hypothesis import strategies as st

import funnelrank
from funnelrank.api import train
from funnelrank.cli import main
from funnelrank.data.ahead import each
from funnelrank.data.source import open_source
from funnelrank.errors import DataError
from funnelrank.settings import Data


@run(max_examples=20, suppress_health_check=list(HealthCheck))
@given(strange.logs())
def test_columns_of_any_type_in_any_files_end_in_rows_or_in_a_sentence(tmp_path, log):
    tables, group, format, on_error, memory = log
    strange.write(tmp_path / "log", tables, group, format)
    said, what = strange.outcome(tmp_path, on_error=on_error, memory=memory)
    if said == "rows" and on_error == "raise":
        assert len(what) == sum(map(len, tables)) and not what.skipped
    if said == "rows" and on_error == "skip":
        assert len(what) <= sum(map(len, tables))


CELLS = st.sampled_from(["1", "-7", "9223372036854775808", "2.5", "1e400", "NaN", "", "007", "a,b", 'say "x"', "é",
                         "\n", " 1", "true", "2024-02-30", "\ufeff", "'", "1_000"])


@run(max_examples=40, suppress_health_check=list(HealthCheck))
@given(st.lists(st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=6), min_size=1, max_size=3), st.integers(0, 2),
       st.booleans())
def test_text_with_quotes_line_ends_and_mixed_types_is_read_as_written_or_named(tmp_path, files, bad, late):
    """Cells of any kind, quoted as they have to be; some files in another encoding, or with a ragged line."""
    for i, rows in enumerate(files):
        quoted = ["b,a" if late and i else "a,b", *(",".join(f'"{c.replace(chr(34), 2 * chr(34))}"' for c in row)
                                                   for row in rows)]
        text = "\n".join(quoted) + "\n"
        raw = text.encode() if bad != 1 or i == 0 else text.encode("utf-16")
        (tmp_path / f"{i}.csv").write_bytes(raw + (b"1,2,3\n" if bad == 2 and i == len(files) - 1 else b""))
    try:
        source = open_source([f"{i}.csv" for i in range(len(files))], Data(dir=str(tmp_path)), "train")
        read = pa.concat_tables([t for _, t in each(source, ["a", "b"])])
    except DataError as error:
        assert error.messages[0].split(",")[0].split(":")[0] in ("0.csv", "1.csv", "2.csv")
        assert all("\n" not in m for m in error.messages)
        return
    assert bad != 2 and (bad != 1 or len(files) == 1)
    cells = [row if not (late and i) else row[::-1] for i, rows in enumerate(files) for row in rows]
    for at, name in enumerate("ab"):
        if source.columns.field(name).type == pa.large_string():
            assert [v or "" for v in read[name].to_pylist()] == [row[at] for row in cells]
        assert len(read) == len(cells)


def log(rows=60, **changed):
    i = np.arange(rows)
    return pa.table({
        "user": i % 7, "item": [f"i{x % 5}" for x in i], "price": i * 0.5, "seen": [["i1", "i2"][:x % 3] for x in i],
        "tags": ["a|b" if x % 2 else "" for x in i], "tab": [f"t{x % 3}" for x in i], "w": np.ones(rows), "at": i,
        "click": (i % 2).astype(float), "buy": (i % 4 == 3).astype(float), **changed})


def save(folder, **changed):
    (folder / "log").mkdir(exist_ok=True)
    pq.write_table(log(**changed), folder / "log" / "0.parquet", row_group_size=20)


@pytest.mark.parametrize("changed", [
    {"click": [0.0] * 60, "buy": [0.0] * 60}, {"buy": pa.nulls(60, pa.float64()), "tab": ["only"] * 60},
    {n: pa.nulls(60) for n in ("tab", "user", "seen", "price", "item")}])
def test_one_class_one_scenario_or_no_value_at_all_still_trains(tmp_path, changed):
    save(tmp_path, **changed)
    done = train(strange.config(tmp_path, test="log"))
    values = {r["metric"]: r["value"] for r in done.rows if r["task"] == "buy" and r.get("scenario") is None}
    assert (values["auc"] is None) == ("buy" in changed)                # not guessed, not 0.5
    assert all(v is None or np.isfinite(v) for v in values.values())


def yaml(folder, **data) -> str:
    from funnelrank.config import dump
    path = folder / "c.yaml"
    path.write_text(dump(strange.config(folder, **data)))
    return str(path)


@pytest.mark.parametrize("changed, says", [
    ({"click": [2.0] * 60}, "log/0.parquet, row group 0: label 'click' is 2 on 20 rows (first: row 0 of it, from 0)"),
    ({"click": [float("inf")] * 60}, "label 'click' is inf on 20 rows"),
    ({"w": [-1.0] * 60}, "row group 0: column 'w' holds -1.0 on 20 rows (first: row 0)"),
    ({"user": [0.5] * 60}, "row group 0: column 'user': holds 0.5 in 20 rows (first: row 0); ids are whole numbers"),
    ({"seen": ["x"] * 60}, "column 'seen' is string; a bag or a sequence needs lists"),
    ({"seen": pa.array([[("i1", 1.0)]] * 60, pa.map_(pa.string(), pa.float64()))},
     "column 'seen' maps ids to weights, and 'seen' is a sequence, which has none; make it a bag"),
    ({"price": ["x"] * 60}, "row group 0: column 'price' is text and holds 'x'"),
    ({"at": ["x\n" * 10_000] * 60}, "row group 0: column 'at' is text and holds 'x\\nx\\nx"),
])
def test_the_command_ends_with_2_and_a_sentence_that_names_the_place(tmp_path, capsys, changed, says):
    save(tmp_path, **changed)
    for command in (["check", yaml(tmp_path), "--data"], ["train", yaml(tmp_path)]):
        assert main(command) == 2
        told = capsys.readouterr().err
        assert says in told and "Traceback" not in told and "fault of funnelrank" not in told
    assert not (tmp_path / "run" / "artefact").exists()


@pytest.mark.skipif(not hasattr(os, "seteuid") or os.geteuid() != 0, reason="only root can become nobody for a moment")
def test_files_and_folders_without_permission_are_named(tmp_path):
    save(tmp_path)
    file, folder = tmp_path / "log" / "0.parquet", tmp_path / "log"
    for place in (*reversed(tmp_path.parents[:-2]), tmp_path):
        if place.stat().st_uid == 0 and "pytest" in str(place):
            place.chmod(0o755)
    for closed in (file, folder):
        closed.chmod(0o000)
        os.seteuid(65534)
        try:
            with pytest.raises(DataError, match="log.*(Permission denied|no file or folder|holds no files)"):
                open_source("log/0.parquet" if closed == file else "log", Data(dir=str(tmp_path)), "train")
        finally:
            os.seteuid(0)
            closed.chmod(0o755)


def test_loops_of_links_end(tmp_path):
    save(tmp_path)
    (tmp_path / "log" / "again").symlink_to(tmp_path / "log", target_is_directory=True)
    (tmp_path / "loop.parquet").symlink_to("loop.parquet")
    (tmp_path / "a.parquet").symlink_to("b.parquet")
    (tmp_path / "b.parquet").symlink_to("a.parquet")
    assert open_source("log", Data(dir=str(tmp_path)), "train").rows == 60
    for name in ("loop.parquet", "a.parquet"):
        with pytest.raises(DataError, match=f"data.train: '{name}' is no plain file, or a link to nothing"):
            open_source(name, Data(dir=str(tmp_path)), "train")


def test_many_small_files_are_one_log(tmp_path):
    (tmp_path / "log").mkdir()
    pq.write_table(log(3), tmp_path / "one.parquet")
    raw = (tmp_path / "one.parquet").read_bytes()
    for i in range(800):
        (tmp_path / "log" / f"{i:05d}.parquet").write_bytes(raw)
    source = open_source("log", Data(dir=str(tmp_path)), "train")
    assert source.rows == 2400
    assert sum(t["at"].to_pylist() == [0, 1, 2] for _, t in each(source, ["at"])) == 800


@pytest.mark.parametrize("on_error", ["raise", "skip"])
@pytest.mark.parametrize("change", ["vanish", "grow", "shrink"])
def test_files_that_change_while_they_are_encoded_leave_no_cache(tmp_path, change, on_error):
    lines = lambda n: "user,item,price,seen,tags,tab,w,at,click,buy\n" + "1,a,2,x,y,z,1,3,1,0\n" * n
    path = tmp_path / "log.csv"
    path.write_text(lines(500))
    settings = strange.config(tmp_path, train="log.csv", on_error=on_error)
    settings = funnelrank.load_config({**settings.settings.model_dump(exclude_unset=True), "features": {
        "user": {"min_count": 1}, "price": "number", "lists": "off"}})
    opened = funnelrank.open_data(settings)
    encoder = funnelrank.prepare(settings, opened)
    path.write_text(lines({"grow": 900, "shrink": 100}.get(change, 1)))
    if change == "vanish":
        path.unlink()
    with pytest.raises(DataError, match="log.csv|a file changed while it was encoded"):
        funnelrank.encode(settings, opened, encoder)
    assert not [p for p in (tmp_path / "cache").glob("encoded-*")]
