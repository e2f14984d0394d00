"""Whole jobs under torchrun, from raw files to the artefact: what one process does, or one sentence."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from funnelrank.cli import main
from funnelrank.tensors import load_tensors

needs_torchrec = pytest.mark.skipif(importlib.util.find_spec("torchrec") is None, reason=(
    "torchrec is not installed here; make test-distributed runs this"))
CONFIG = """
data: {train: train/*.parquet, valid: valid.parquet, test: [test-0.parquet, test-1.parquet], scenario: tab, user: user}
features:
  user: {min_count: 1}
  item: {min_count: 1}
  price: number
  shown: {kind: sequence, space: item}
  tags: {kind: bag, min_count: 1}
tasks: {click: {}, buy: {after: click}}
model: {name: aitm, represent: {hidden: [8, 4]}}
embedding: {width: 4}
train: {epochs: 4, batch_size: 64, evaluate_every: 3, early_stopping: {patience: 2}, threads: 1}
evaluate: {intervals: none}
"""


def log(rows, seed):
    g = np.random.default_rng(seed)
    some = lambda most, of: [g.integers(0, of, n).tolist() for n in g.integers(0, most + 1, rows)]
    click = g.random(rows) < 0.4
    return pa.table({"user": g.integers(0, 9, rows), "item": g.integers(0, 31, rows), "tab": g.integers(0, 3, rows),
                     "price": g.random(rows), "shown": some(5, 31), "tags": some(2, 7), "click": click.astype(int),
                     "buy": (click & (g.random(rows) < 0.5)).astype(int)})


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Uneven files of uneven row groups."""
    (tmp_path / "train").mkdir()
    for i, (rows, group) in enumerate(((157, 40), (3, 2), (91, 91), (1, 1), (209, 7))):
        pq.write_table(log(rows, i), tmp_path / f"train/{i}.parquet", row_group_size=group)
    for name, rows in (("valid", 83), ("test-0", 30), ("test-1", 41)):
        pq.write_table(log(rows, rows), tmp_path / f"{name}.parquet", row_group_size=11)
    (tmp_path / "job.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def words(out, **said):
    sets = {"train.out": out, "data.cache": f"cache-{out}"} | {k.replace("__", "."): v for k, v in said.items()}
    return ["train", "job.yaml", *(w for k, v in sets.items() for w in ("--set", f"{k}={v}"))]


def command(ranks, *words, what=("-m", "funnelrank")):
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", *what, *words]


def launched(ranks, *words, **how):
    return subprocess.run(command(ranks, *words, **how), capture_output=True, text=True, timeout=300,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})


def told(folder, kind):
    lines = (folder / "events.jsonl").read_text().splitlines(keepends=True)
    return [e for e in map(json.loads, (line for line in lines if line.endswith("\n"))) if e["event"] == kind]


def encoded(cache):
    return {f"{p.parent.name}/{p.name}": p.read_bytes() for p in sorted(cache.glob("encoded-*/*"))}


def sealed(run):
    """The artefact's files but for its weights and what is told of a run, and the weights."""
    files = {str(p.relative_to(run / "artefact")): p.read_bytes()
             for p in sorted((run / "artefact").rglob("*")) if p.is_file()}
    weights = load_tensors(run / "artefact" / "model.safetensors")
    return {n: b for n, b in files.items() if n not in ("manifest.json", "metrics.json", "model.safetensors")}, weights


def test_two_ranks_leave_what_one_process_leaves(folder):
    """Ranks encode files of their own into the same bytes, read every row once an epoch, and stop at the same step."""
    assert main(words("one")) == 0
    run = launched(2, *words("two"))
    assert not run.returncode, run.stderr
    assert encoded(folder / "cache-two") == encoded(folder / "cache-one")
    assert not [*(folder / "cache-two").glob("part-*")]
    written = [e["what"].split()[-1] for e in told(folder / "two", "disk")]     # by the first rank: files, whole splits
    assert {s: written.count(s) for s in ("train", "valid", "test")} == {"train": 3 + 1, "valid": 1, "test": 1 + 2}
    one, two = (told(folder / out, "evaluate") for out in ("one", "two"))
    assert [(e["step"], e["better"]) for e in two] == [(e["step"], e["better"]) for e in one]
    np.testing.assert_allclose([e["value"] for e in two], [e["value"] for e in one], atol=1e-5)
    assert told(folder / "two", "step")[-1]["rows"] == told(folder / "one", "step")[-1]["rows"]
    rows = [{(r["split"], r["task"], r["scenario"], r["metric"]): r["value"] for r in json.loads(
        (folder / out / "metrics.json").read_text()) if r["metric"] in ("auc", "log_loss")} for out in ("one", "two")]
    assert rows[0].keys() == rows[1].keys() and len(rows[0]) > 8
    for row, value in rows[0].items():
        assert rows[1][row] == pytest.approx(value, abs=1e-4, nan_ok=True), row


@needs_torchrec
def test_a_checkpoint_gives_one_artefact_whichever_engine_opens_it(folder):
    """Rows of two ranks, torch's operations, the native engine: to the byte, but for how their scores are rounded."""
    plan = {"embedding__sharding__row_wise_from": 0, "data__cache": "cache"}
    assert not launched(2, *words("run", **plan)).returncode
    found = {"two ranks": sealed(folder / "run")}
    for engine in ("torch", "native"):
        shutil.copytree(folder / "run", folder / engine)
        shutil.rmtree(folder / engine / "artefact")
        record = json.loads((folder / engine / "run.json").read_text())
        record["config"]["embedding"]["engine"] = engine
        (folder / engine / "run.json").write_text(json.dumps(record | {"state": "running"}))
        assert main(words(engine, embedding__engine=engine, **plan)) == 0
        assert told(folder / engine, "resume"), "it went on from the ranks' checkpoint"
        found[engine] = sealed(folder / engine)
    files, weights = found.pop("two ranks")
    assert set(weights) and not [name for name in files if name.endswith((".pt", ".pkl", ".pickle", ".metadata"))]
    for engine, (theirs, tensors) in found.items():
        assert tensors.keys() == weights.keys() and all(torch.equal(tensors[n], weights[n]) for n in weights), engine
        said = {n for n in files if not n.startswith("golden/") and n != "config.yaml"}
        assert theirs.keys() == files.keys() and {n: theirs[n] for n in said} == {n: files[n] for n in said}, engine


@needs_torchrec                        # for the seconds that a launch takes; nothing lies apart here
def test_what_one_rank_refuses_is_said_once_and_ends_all(folder):
    """The second file is the second rank's; its label is found while it is encoded."""
    table = log(9, 0)
    pq.write_table(table.set_column(table.column_names.index("click"), "click", [[0, 1, 7] * 3]),
                   folder / "train" / "1.parquet")
    run = launched(2, *words("two"))
    assert run.returncode
    assert run.stderr.count("label 'click'") == 1, run.stderr


@needs_torchrec
def test_a_full_disk_on_any_rank_is_one_sentence(folder):
    """The second rank may write no file of more than 300 bytes; rows that lie with it are more."""
    said = words("two", embedding__sharding__row_wise_from=0)
    assert main(["encode", *said[1:]]) == 0
    (folder / "narrow.py").write_text(
        "import os, resource, sys\nfrom funnelrank.cli import main\nif os.environ['RANK'] == '1':\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))\nsys.exit(main())\n")
    run = launched(2, *said, what=["narrow.py"])
    assert run.returncode
    assert run.stderr.count("last, rank 1: a file may not grow so large here") + run.stderr.count(
        "best, rank 1: a file may not grow so large here") == 1, run.stderr
    assert not [*(folder / "two" / "checkpoints").iterdir()], "nothing half written"


@needs_torchrec
@pytest.mark.parametrize(("sent", "said"), [(signal.SIGTERM, "stopped: this process was asked to end"),
                                            (signal.SIGINT, "stopped; what is complete on disk stays")])
def test_a_launcher_that_is_told_to_stop_leaves_a_checkpoint_and_one_sentence(folder, sent, said):
    long = words("two", train__epochs=4000, train__early_stopping__patience=10**6, train__log_every=1,
                 embedding__sharding__row_wise_from=0)
    job = subprocess.Popen(command(2, *long), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
                           env={**os.environ, "OMP_NUM_THREADS": "1"})
    events = folder / "two" / "events.jsonl"
    while job.poll() is None and not (events.exists() and told(folder / "two", "step")):
        time.sleep(0.1)
    job.send_signal(sent)
    stderr = job.communicate(timeout=120)[1]
    assert job.returncode and stderr.count(said) == 1, stderr
    last, = told(folder / "two", "interrupted")
    assert told(folder / "two", "checkpoint")[-1]["step"] == last["step"] > 0


@needs_torchrec                        # for the seconds that a launch takes; nothing lies apart here
def test_ranks_meet_soon_or_not_at_all_and_wait_for_each_other_long_afterwards(folder):
    """gloo has one patience for both; a first rank that gathers statistics for an hour is no reason to end."""
    (folder / "meet.py").write_text(
        "import datetime, os, sys, time\nfrom funnelrank import ranks\nranks.MEETING = datetime.timedelta(seconds=6)\n"
        "time.sleep(int(os.environ['RANK']) * int(sys.argv[1]))\n"
        "with ranks.joined():\n    ranks.led(lambda: time.sleep(9))\n    print('met')\n")
    assert launched(2, "0", what=["meet.py"]).stdout.count("met") == 2
    late = launched(2, "30", what=["meet.py"])
    assert late.returncode and "another process of this run is gone" in late.stderr


@needs_torchrec
@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="threads are named by Linux alone")
def test_no_thread_of_the_group_outlives_a_job(folder):
    """One that lets go of a tensor while the interpreter ends aborts the process, once in some dozen jobs."""
    (folder / "end.py").write_text("""
import atexit, os
from pathlib import Path
from funnelrank.cli import main

def tell():
    names = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    Path("left-" + os.environ["RANK"]).write_text(str([name for name in names if "gloo" in name]))

atexit.register(tell)
raise SystemExit(main())
""")
    plan = {"train__epochs": 1, "embedding__sharding__row_wise_from": 0}
    for out, more, code in (("well", {}, 0), ("badly", {"train__optimiser__lr": 1e30}, 1)):
        run = launched(2, *words(out, **plan, **more), what=["end.py"])
        assert run.returncode == code and (code == 0 or "not finite" in run.stderr), run.stderr
        left = [*folder.glob("left-*")]                    # a launcher may end one rank when the other has failed
        assert len(left) == 2 or code and left
        assert {path.read_text() for path in left} == {"[]"}
        for path in left:
            path.unlink()
