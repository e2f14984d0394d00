"""Artefacts that were changed and sealed again, and a small part of the sweeps of benchmarks/chaos_files.py."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from funnelrank import ArtefactError, DataError, FunnelrankError, Ranker, api
from funnelrank.config import load
from funnelrank.data.encode import Encoder
from funnelrank.data.saved import read_saved, write_saved
from funnelrank.data.source import open_source
from funnelrank.data.tables import Dimension
from funnelrank.data.vocab import Vocab
from funnelrank.settings import Data

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import hostile  # noqa: E402


@pytest.fixture(scope="module")
def artefact(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    rows = pa.table({"item": ["a", "b"] * 20, "tab": ["x", "y"] * 20, "price": list(range(40)), "click": [0, 1] * 20})
    features = {"item": "id", "tab": "id", "price": "number",
                "cut": {"kind": "number", "column": "price", "buckets": 3}}
    config = load({"data": {"scenario": "tab"}, "features": features, "tasks": {"click": {}}, "embedding": {"width": 4},
                   "model": "shared_bottom", "train": {"threads": 1, "out": str(folder / "run")}})
    return api.train(config, train=rows).folder / "artefact"


def change(path: Path, *keys, value) -> None:
    whole = json.loads(path.read_text())
    inner = whole
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path.write_text(json.dumps(whole))


def edit(path: Path, old: str, new: str) -> None:
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


@pytest.mark.parametrize("damage, said", [
    (lambda f: change(f / "encoder/encoder.json", "scenario", value="../../outside.arrow"), "no file inside"),
    (lambda f: change(f / "encoder/encoder.json", "vocabs", "item", value="/etc/passwd"), "no file inside the folder"),
    (lambda f: change(f / "encoder/encoder.json", "boundaries", "cut", value=["a", "b"]), "no rising numbers"),
    (lambda f: change(f / "encoder/encoder.json", "scalers", value={}), "has scales and boundaries of 'cut'"),
    (lambda f: change(f / "encoder/encoder.json", "schema", "user", value="price"), "not that of the config"),
    (lambda f: (f / "encoder/encoder.json").write_text("[" * 100_000), "not readable as JSON"),
    (lambda f: (f / "metrics.json").write_text('{"a": 1, "a": 1}'), "a key stands twice"),
    (lambda f: edit(f / "config.yaml", "width: 4", "width: 2000000000"), "more numbers than"),
    (lambda f: edit(f / "config.yaml", "hidden: [128]", "hidden: [2000000000, 2000000000]"),
     "no model can be as large")])
def test_content_that_lies_under_right_seals_is_refused_before_memory_is_spent(artefact, tmp_path, damage, said):
    folder = shutil.copytree(artefact, tmp_path / "a")
    damage(folder)
    hostile.seal(folder)
    with pytest.raises(FunnelrankError, match=said):
        Ranker.load(folder)


def test_offsets_of_an_arrow_file_are_checked_before_they_are_followed(artefact, tmp_path):
    folder = shutil.copytree(artefact, tmp_path / "a")
    path = next(p for p in folder.rglob("*.arrow") if "item" in p.name)
    content = path.read_bytes()
    offsets = pa.array([0, 1, 2], pa.int64()).buffers()[1].to_pybytes()
    at = content.rindex(offsets)
    path.write_bytes(content[:at + 8] + (2**40).to_bytes(8, "little") + content[at + 16:])
    hostile.seal(folder)
    with pytest.raises(ArtefactError, match="are not what this version"):
        Ranker.load(folder)


@pytest.mark.parametrize("column", [pa.array([0] * 10**6), pa.array(["x" * 10**6]).dictionary_encode()],
                         ids=["numbers", "dictionary"])
def test_an_arrow_file_that_grows_when_it_is_read_is_refused_before(tmp_path, column):
    table, packed = pa.table({"value": column}), pa.ipc.IpcWriteOptions(compression="zstd")
    write_saved(table, tmp_path / "plain.arrow")
    assert read_saved(tmp_path / "plain.arrow").equals(table)
    with pa.ipc.new_file(str(tmp_path / "packed.arrow"), table.schema, options=packed) as file:
        file.write_table(table)
    assert (tmp_path / "packed.arrow").stat().st_size < table.nbytes / 100
    before = pa.total_allocated_bytes()
    for load_ in (read_saved, Vocab.load, Dimension.load):
        with pytest.raises(DataError, match="is compressed, which what is written here never is"):
            load_(tmp_path / "packed.arrow")
    assert pa.total_allocated_bytes() - before < 10**5
    for cut in (0, 5, 8, 100, -30):
        (tmp_path / "cut.arrow").write_bytes((tmp_path / "plain.arrow").read_bytes()[:cut][:2000])
        with pytest.raises((DataError, ValueError, OSError)):
            read_saved(tmp_path / "cut.arrow")


@pytest.mark.parametrize("column", [
    pa.nulls(4, pa.month_day_nano_interval()), pa.array(["a", "b\n", None, "c"]),
    pa.MapArray.from_arrays(pa.array([0, 0, 0, 0, 0], pa.int32()), pa.nulls(0), pa.nulls(0))], ids=str)
def test_columns_that_no_id_can_be_made_of_are_refused_in_one_line(column):
    rows = pa.table({"item": list(range(40)), "click": [0, 1] * 20})
    bag = {"kind": "bag", "separator": "|", "min_count": 1}
    schema = load({"features": {"item": bag}, "tasks": {"click": {}}}).schema
    encoder = Encoder.fit(schema, open_source(rows, Data(), "train"), {})
    other = open_source(pa.table({"item": column, "click": [0, 1, 0, 1]}), Data(), "test")
    try:
        encoder.encode(other.read(other.units[0], ["item", "click"]), "rows")
    except FunnelrankError as error:
        assert "\n" not in str(error)


def test_a_few_cases_of_each_sweep_end_well():
    done = subprocess.run([sys.executable, str(BENCHMARKS / "chaos_files.py"), "--cases", "8"], capture_output=True,
                          text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("8 cases") == 3 and done.stdout.count(" 0 faults") == 3
