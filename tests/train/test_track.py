"""A run that is told to trackers: the numbers are there, the run is the same, and no fault of theirs is one of it."""

import contextlib
import json
import threading
import time
from pathlib import Path

import pytest

from funnelrank import api, cli, load_config
from funnelrank.simulate import simulate
from funnelrank.train import track

pytestmark = pytest.mark.usefixtures("no_pictures")
CONFIG = {
    "data": {"train": "train.parquet", "valid": "valid.parquet", "test": "test.parquet"},
    "features": {"item_id": {"min_count": 2}, "price": "number"},
    "tasks": {"click": {}, "cart": {"after": "click"}},
    "embedding": {"width": 2}, "model": {"name": "shared_bottom", "represent": {"hidden": [4]}},
    "train": {"epochs": 2, "batch_size": 200, "threads": 1, "log_every": 2}, "evaluate": {"intervals": "none"}}


class Killed(BaseException):
    """Nothing of ours catches it."""


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    folder = tmp_path_factory.mktemp("log")
    simulate(folder, rows=1200, users=60, items=40, funnel=["click", "cart"])
    return folder


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """No library asks a network."""
    for name, value in (("MLFLOW_DISABLE_TELEMETRY", "true"), ("DO_NOT_TRACK", "true"), ("WANDB_MODE", "offline"),
                        ("MLFLOW_ALLOW_FILE_STORE", "true")):
        monkeypatch.setenv(name, value)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


def config(log, out, said):
    return load_config(CONFIG, [f"data.dir={log}", f"train.out={out}", f"train.track={json.dumps(said)}"])


def events(out):
    return [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]


def warnings(out):
    return [e["said"] for e in events(out) if e["event"] == "warning"]


def of_curve(out, name):
    """step -> value, as events.jsonl has it."""
    return {e["step"]: pytest.approx(track.values_of(e)[name], rel=1e-6) for e in events(out)
            if name in track.values_of(e) and "step" in e}


def boards(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    found = EventAccumulator(str(folder))
    found.Reload()
    return {name: {e.step: e.value for e in found.Scalars(name)} for name in found.Tags()["scalars"]}


def stop_at(number):
    seen = []

    def listen(event):
        seen.append(event["event"])
        if seen.count("step") == number:
            raise Killed
    return listen


def test_tensorboard_has_every_number_once_however_often_the_run_stopped(log, tmp_path):
    out = tmp_path / "run"
    with contextlib.suppress(Killed):
        api.train(config(log, out, ["tensorboard"]), report=stop_at(5))
    run = api.train(config(log, out, ["tensorboard"]))
    found = boards(out)
    for name in ("train/loss/click", "train/loss/cart", "valid/auc_click", "valid/logloss_cart"):
        assert found[name] == of_curve(out, name)
    last = {r["task"]: r["value"] for r in run.rows if r["split"] == "test" and r["metric"] == "logloss"}
    assert list(found["final/test/logloss_click"].values()) == [pytest.approx(last["click"], rel=1e-6)]
    assert warnings(out) == []


def test_mlflow_has_numbers_parameters_and_one_run_however_often_it_stopped(log, tmp_path):
    from mlflow import MlflowClient
    out, uri = tmp_path / "run", (tmp_path / "mlruns").as_uri()
    said = [{"name": "mlflow", "uri": uri, "experiment": "shop"}]
    with contextlib.suppress(Killed):
        api.train(config(log, out, said), report=stop_at(5))
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("shop").experiment_id
    (stopped,) = client.search_runs([experiment])
    assert stopped.info.status == "FAILED"
    api.train(config(log, out, said))
    (run,) = client.search_runs([experiment])
    assert run.info.run_id == stopped.info.run_id and run.info.status == "FINISHED" and warnings(out) == []
    assert run.info.run_name == "config/run"
    assert run.data.params["train.batch_size"] == "200" and run.data.params["tasks.cart.after"] == "click"
    curve = {m.step: m.value for m in client.get_metric_history(run.info.run_id, "valid/auc_click")}
    assert curve == of_curve(out, "valid/auc_click")
    assert run.data.metrics["final/test/auc_macro"] == pytest.approx(json_value(out, "auc"))


def json_value(out, metric, task=None):
    rows = json.loads((out / "metrics.json").read_text())
    return next(r["value"] for r in rows if (r["split"], r["task"], r["scenario"], r["metric"]) == (
        "test", task, None, metric))


def test_wandb_writes_offline(log, tmp_path):
    pytest.importorskip("wandb", reason="wandb is not installed; pip install 'funnelrank[wandb]'")
    out = tmp_path / "run"
    api.train(config(log, out, [{"name": "wandb", "project": "shop", "mode": "offline"}]))
    assert warnings(out) == []
    (path,) = (out / "wandb").glob("offline-run-*/*.wandb")
    (own,) = [e["run"] for e in events(out) if e["event"] == "tracking"]
    assert own in path.name
    wanted = ["train/loss/click", "valid/logloss_cart", "final/test/auc_macro", repr(json_value(out, "auc"))]
    for _ in range(300):                            # a process of wandb's own writes it, some time after its end
        if not (missing := [said for said in wanted if said.encode() not in path.read_bytes()]):
            break
        time.sleep(0.2)
    assert not missing


class Broken:
    def __init__(self, said):
        pass

    def begin(self, told, run, step):
        return "7"

    def log(self, step, seconds, values):
        raise OSError("the server\nis gone")

    def end(self, how):
        raise AssertionError("it was told more")


class Hanging(Broken):
    over = threading.Event()

    def begin(self, told, run, step):
        self.over.wait(60)
        raise OSError("ended with the test")


@pytest.mark.parametrize("kind, said", [
    (Broken, "tensorboard failed (OSError: the server), and is told no more of this run; events.jsonl has all of it"),
    (Hanging, "tensorboard was not done within the time that a run waits for it")])
def test_a_tracker_that_fails_or_hangs_is_warned_of_and_the_run_is_the_same(log, tmp_path, monkeypatch, kind, said):
    api.train(config(log, tmp_path / "plain", []))
    monkeypatch.setitem(track.KINDS, "tensorboard", kind)
    monkeypatch.setitem(track.PATIENCE, "finished", 0.2)
    api.train(config(log, tmp_path / "run", ["tensorboard"]))
    (warned,) = warnings(tmp_path / "run")
    if kind is Hanging:
        kind.over.set()
    assert warned.startswith(said)
    for name in ("metrics.json", "artefact/model.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()
    assert json.loads((tmp_path / "run/run.json").read_text())["state"] == "finished"


def test_without_trackers_none_of_their_libraries_is_imported(log, tmp_path, monkeypatch):
    for library, _ in track.NEEDS.values():
        monkeypatch.setitem(__import__("sys").modules, library, None)      # importing it raises
    api.train(config(log, tmp_path / "run", []))


def test_what_cannot_be_told_is_one_sentence_before_anything_is_done(log, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(track, "find_spec", lambda name: None)
    Path("shop.yaml").write_text(json.dumps(CONFIG))
    words = ["train", "shop.yaml", "--set", f"data.dir={log}"]
    assert cli.main([*words, "--set", "train.track=[mlflow]"]) == 2
    assert capsys.readouterr().err == (
        "train.track[0]: mlflow needs the library 'mlflow', which is not installed; pip install 'funnelrank[mlflow]', "
        "or leave it out\n")
    assert cli.main([*words, "--set", "train.track=[mflow]"]) == 2
    assert "did you mean 'mlflow'?" in capsys.readouterr().err
    assert cli.main([*words, "--set", "train.track=[wandb, wandb]"]) == 2
    assert "track names each tracker once" in capsys.readouterr().err


def test_names_that_mlflow_refuses_are_made_plain():
    assert track._plain("valid/auc_кл|ик@1") == "valid/auc_кл_ик_1"
