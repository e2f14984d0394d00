"""A run that stops anywhere and is started again ends as the run that never stopped, to the last bit."""

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from funnelrank import ConfigError, DataError, TrainingError, api, durable, flow, load_config
from funnelrank.simulate import simulate
from funnelrank.train.checkpoint import load_checkpoint, save_checkpoint
from funnelrank.train.events import Recorder

pytestmark = pytest.mark.usefixtures("no_pictures")
CONFIG = {
    "data": {"train": "train.parquet", "valid": "valid.parquet", "test": "test.parquet", "scenario": "scenario"},
    "features": {"item_id": {"min_count": 2}, "scenario": "id", "price": "number",
                 "shown": {"kind": "sequence", "column": "hist_shown", "space": "item_id"}},
    "tasks": {"click": {}, "cart": {"after": "click"}},
    "embedding": {"width": 4}, "model": {"name": "aitm", "represent": {"hidden": [8], "dropout": 0.2}},
    "train": {"epochs": 3, "batch_size": 100, "threads": 1, "log_every": 3, "evaluate_every": 7,
              "checkpoint_every": 4, "early_stopping": {"patience": 9}},
}


class Killed(BaseException):
    """Stands for SIGKILL: nothing of ours catches it. benchmarks/chaos.py does it with the real one."""


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    folder = tmp_path_factory.mktemp("log")
    simulate(folder, rows=1200, users=60, items=40, seed=1)
    return folder


def config(log, out, *sets):
    return load_config(CONFIG, [f"data.dir={log}", f"train.out={out}", *sets])


def left(folder: Path) -> dict:
    """What must be equal: weights, metrics, all of both checkpoints but the clock."""
    out = {"model": (folder / "artefact/model.safetensors").read_bytes(),
           "metrics": (folder / "metrics.json").read_bytes()}
    for name in ("last", "best"):
        if (found := load_checkpoint(folder / "checkpoints", name)) is not None:
            out |= {f"{name}.{k}": v.contiguous().view(-1).numpy().tobytes() for k, v in found[0].items()}
            out[name] = {k: v for k, v in found[1].items() if "seconds" not in k}
    return out


@pytest.fixture(scope="module")
def straight(log, tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight") / "run"
    api.train(config(log, folder))
    return left(folder)


def stop_at(number, kind=Killed):
    """A listener that stops the run at its n-th event."""
    seen = []

    def listen(event):
        if event["event"] != "progress":
            seen.append(event)
        if len(seen) == number:
            raise kind
    return listen


@pytest.mark.parametrize("number", (1, 4, 9, 14, 23, 33))
def test_a_run_stopped_at_any_event_goes_on_bit_by_bit(log, tmp_path, straight, number):
    with contextlib.suppress(Killed):
        api.train(config(log, tmp_path / "run"), report=stop_at(number))
    with contextlib.suppress(Killed):
        api.train(config(log, tmp_path / "run"), report=stop_at(number // 2 + 3))
    run = api.train(config(log, tmp_path / "run"))
    assert left(tmp_path / "run") == straight
    lines = [json.loads(line) for line in (tmp_path / "run/events.jsonl").read_text().splitlines()]
    assert lines[-1]["event"] == "done" and [e["step"] for e in lines if e["event"] == "resume"] == (
        run.ranker.about["resumed"])
    assert json.loads((tmp_path / "run/run.json").read_text())["state"] == "finished"


@pytest.mark.parametrize("sets", [
    ("train.clip_norm=1", "embedding.optimiser={name: adam}", "train.optimiser.name=adamw", "embedding.engine=torch"),
    ("train.average=null", "embedding.optimiser={name: ftrl, l1: 0.01}", "train.optimiser.name=adagrad",
     "train.schedule={name: cosine, warmup: 4}"),
    ("data.valid=null", "train.evaluate_every=null", "train.optimiser.name=sgd", "model={name: din}"),
    ("train.evaluate_every=null", "train.epochs=auto", "train.early_stopping.patience=1",
     "model={name: mmoe, represent: {norm: batch}}")])
def test_every_optimiser_average_and_statistic_comes_back(log, tmp_path, sets):
    api.train(config(log, tmp_path / "straight", *sets))
    for number in (2, 6, 11):
        with contextlib.suppress(Killed):
            api.train(config(log, tmp_path / "run", *sets), report=stop_at(number))
    api.train(config(log, tmp_path / "run", *sets))
    assert left(tmp_path / "run") == left(tmp_path / "straight")


def test_checkpoints_by_the_clock_change_no_number(log, tmp_path, straight, monkeypatch):
    monkeypatch.setattr("funnelrank.train.trainer.SAVING_SHARE", 0)
    clock = iter(range(0, 10**6, 7))
    monkeypatch.setattr("funnelrank.train.trainer.time.monotonic", lambda: next(clock))
    run = api.train(config(log, tmp_path / "run", "train.checkpoint_seconds=1", "train.checkpoint_every=null"))
    steps = [e["step"] for line in (run.folder / "events.jsonl").read_text().splitlines()
             if (e := json.loads(line))["event"] == "checkpoint" and e["name"] == "last"]
    assert set(range(1, run.trained.steps)) <= set(steps)
    assert left(run.folder) == straight


def test_a_finished_run_is_returned_as_it_is_and_fresh_begins_anew(log, tmp_path):
    first, again, anew = [], [], []
    a = api.train(config(log, tmp_path / "run"), report=first.append)
    before = (tmp_path / "run/events.jsonl").read_bytes()
    b = api.train(config(log, tmp_path / "run"), report=again.append)
    assert [e["event"] for e in again] == ["finished"] and (tmp_path / "run/events.jsonl").read_bytes() == before
    assert b.trained == a.trained and b.folder == a.folder
    assert a.ranker.predict(log / "test.parquet").equals(b.ranker.predict(log / "test.parquet"))
    api.train(config(log, tmp_path / "run"), report=anew.append, fresh=True)
    assert [e["step"] for e in anew if e["event"] == "step"] == [e["step"] for e in first if e["event"] == "step"]
    (tmp_path / "run/metrics.json").unlink()                   # not all that it gave is there: the end is done again
    api.train(config(log, tmp_path / "run"))
    assert (tmp_path / "run/metrics.json").exists()


def test_an_unfinished_run_of_another_config_or_data_is_not_replaced(log, tmp_path):
    with contextlib.suppress(Killed):
        api.train(config(log, tmp_path / "run"), report=stop_at(6))
    with pytest.raises(ConfigError, match=r"not finished.*train\.seed was 0, now 1.*--fresh"):
        api.train(config(log, tmp_path / "run", "train.seed=1"))
    with pytest.raises(ConfigError, match=r"not finished.*data\.valid: its files changed"):
        api.train(config(log, tmp_path / "run"), valid=log / "test.parquet")
    assert load_checkpoint(tmp_path / "run/checkpoints", "last") is not None
    run = api.train(config(log, tmp_path / "run", "train.seed=1"), fresh=True)
    assert run.ranker.about["seed"] == 1 and run.ranker.about["resumed"] == []


def test_a_run_that_stopped_before_its_first_checkpoint_may_be_given_again_otherwise(log, tmp_path):
    wrong = config(log, tmp_path / "run", "features.scenario=number")          # its values are texts
    with pytest.raises(DataError, match="holds 's0'|is text"):
        api.train(wrong)
    events = []
    api.train(config(log, tmp_path / "run"), report=events.append)
    assert events[0]["event"] == "anew" and not events[0]["artefact"]
    assert "features.scenario" in events[0]["changed"][0] and (tmp_path / "run/artefact").exists()


def test_a_finished_run_of_another_config_is_replaced_and_said(log, tmp_path):
    api.train(config(log, tmp_path / "run"))
    events = []
    api.train(config(log, tmp_path / "run", "train.seed=1", "train.checkpoint_every=5"), report=events.append)
    assert events[0]["event"] == "anew" and events[0]["changed"] == ["train.seed was 0, now 1"]
    assert events[0]["artefact"]


def test_two_runs_into_one_folder_the_second_is_refused(log, tmp_path):
    code = (f"import sys, time; sys.path.insert(0, {str(Path(__file__).parents[2] / 'src')!r})\n"
            "from pathlib import Path\nfrom funnelrank.train.events import Recorder\n"
            f"with Recorder(Path({str(tmp_path / 'events.jsonl')!r}), [], print):\n"
            "    print('open', flush=True); time.sleep(60)")
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert other.stdout.readline() == b"open\n"
        with pytest.raises(ConfigError, match=f"another process is training into {tmp_path}"):
            api.train(config(log, tmp_path))
    finally:
        other.kill()                                           # the lock dies with it
        other.wait()
        other.stdout.close()
    with Recorder(tmp_path / "events.jsonl", [], print):
        pass


def test_a_line_cut_off_by_a_kill_is_dropped_and_the_file_goes_on(tmp_path):
    path, kept = tmp_path / "events.jsonl", []
    with Recorder(path, [], lambda e: None) as record:
        for step in (1, 2, 3):
            record({"event": "step", "step": step})
    path.write_bytes(path.read_bytes() + b'{"event": "st')
    with Recorder(path, kept, lambda e: None) as record:
        record({"event": "resume", "step": 2})
        record({"event": "step", "step": 3})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(e["event"], e["step"]) for e in lines] == [("step", 1), ("step", 2), ("step", 3), ("resume", 2),
                                                        ("step", 3)]
    assert [(e["event"], e["step"]) for e in kept] == [("step", 1), ("step", 2), ("resume", 2), ("step", 3)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("where", ["step", "evaluate"])
def test_a_signal_checkpoints_at_once_and_acts_then(log, tmp_path, straight, number, where, monkeypatch):
    class Asked(BaseException):
        pass

    def act(*_):
        raise Asked

    measure = flow.measure_split

    def within(*args, **named):                                # during the evaluation itself
        if where == "evaluate" and len(events) > 12 and not acted:
            acted.append(True)
            os.kill(os.getpid(), number)
            time.sleep(5)
        return measure(*args, **named)

    def listen(event):
        events.append(event)
        if where == "step" and event["event"] == "step" and event["step"] == 9:
            os.kill(os.getpid(), number)

    events, acted = [], []
    monkeypatch.setattr(flow, "measure_split", within)
    before = signal.signal(number, act)
    try:
        with pytest.raises(Asked):
            api.train(config(log, tmp_path / "run"), report=listen)
        assert signal.getsignal(number) is act
    finally:
        signal.signal(number, before)
    stopped = [e["step"] for e in events if e["event"] == "interrupted"]
    assert load_checkpoint(tmp_path / "run/checkpoints", "last")[1]["step"] == stopped[0]
    assert where != "step" or stopped == [9]
    api.train(config(log, tmp_path / "run"))
    assert left(tmp_path / "run") == straight


def test_a_disk_that_fills_up_stops_the_run_with_a_sentence_and_the_last_checkpoint_stays(log, tmp_path, straight):
    """The kernel's own refusal, by a limit on the size of a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def fill(event):
        if event["event"] == "step" and event["step"] == 9:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))

    try:
        with pytest.raises(TrainingError, match=r"may not grow so large here .* free\); make room"):
            api.train(config(log, tmp_path / "run"), report=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert load_checkpoint(tmp_path / "run/checkpoints", "last")[1]["step"] == 8
    api.train(config(log, tmp_path / "run"))
    assert left(tmp_path / "run") == straight


def test_a_disk_that_is_full_when_results_are_written_costs_a_sentence_and_no_result(log, tmp_path, straight,
                                                                                      monkeypatch):
    """One run meets it four times: writing the artefact, the kept scores, metrics.json and report.html."""
    before, folder = resource.getrlimit(resource.RLIMIT_FSIZE), tmp_path / "run"
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    steps = [(api.Ranker, "save", "artefact"), (api, "keep_scores", "scores"), (api, "write_text", "metrics.json"),
             (api, "write_text", "report.html")]
    for owner, name, what in steps:
        inner = getattr(owner, name)

        def full(*args, inner=inner, what=what, **named):
            if what not in ("metrics.json", "report.html") or Path(args[0]).name == what:
                resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
            return inner(*args, **named)

        with monkeypatch.context() as patch, pytest.raises(TrainingError, match="may not grow so large here") as told:
            patch.setattr(owner, name, full)
            try:
                api.train(config(log, folder))
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert len(told.value.messages) == 1 and what in str(told.value)
        assert not (folder / what).exists() and not list(folder.glob("**/*.tmp"))
    with pytest.raises(TrainingError, match=r"events.jsonl: .*may not grow .*; checkpoints are untouched"):
        try:
            with Recorder(folder / "events.jsonl", [], lambda event: None) as record:
                resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
                record({"event": "done"})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, ignored)
    api.train(config(log, folder))
    assert left(folder) == straight


def test_a_checkpoint_is_flushed_before_it_is_renamed_and_the_one_before_goes_last(log, tmp_path, monkeypatch):
    """The order of system calls, by functions of os; `strace -f -e fsync,rename,unlinkat` shows the same."""
    calls = []
    for name, inner in (("fsync", os.fsync), ("rename", os.rename)):
        def traced(*args, name=name, inner=inner, **named):
            given = [os.readlink(f"/proc/self/fd/{args[0]}")] if name == "fsync" else args
            inner(*args, **named)
            calls.append((name, *(Path(g).name for g in given)))
        monkeypatch.setattr(os, name, traced)
    removed = durable.shutil.rmtree
    monkeypatch.setattr(durable.shutil, "rmtree", lambda p, **n: (
        calls.append(("remove", Path(p).name)) if Path(p).exists() else None, removed(p, **n)))
    save_checkpoint(tmp_path, "last", {"a": torch.ones(2)}, {"step": 1})
    calls.clear()
    save_checkpoint(tmp_path, "last", {"a": torch.ones(2)}, {"step": 2})
    temporary = next(c[1] for c in calls if c[0] == "fsync" and c[1].endswith(".tmp"))
    flushed = calls.index(("fsync", temporary))
    assert {c[1] for c in calls[:flushed]} == {"tensors.safetensors", "state.json", "manifest.json"}
    assert calls[flushed + 1:flushed + 4] == [("rename", "last", ".last.old"), ("rename", temporary, "last"),
                                              ("fsync", tmp_path.name)]
    assert calls[flushed + 4][:2] == ("rename", ".last.old") and calls[flushed + 5][0] == "remove"
