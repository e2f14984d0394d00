"""What stops a run, what it says, what is warned of, and the look at one batch."""

import json
import math

import pytest
import torch
from made import batch, config, model
from test_resume import config as run_config
from test_trainer import Batches, judged, run

from funnelrank import ConfigError, TrainingError, again, api
from funnelrank.simulate import simulate
from funnelrank.train.checkpoint import load_checkpoint
from funnelrank.train.health import NotFinite, Watch, culprits, largest, odd_gradients, odd_weights


def test_largest():
    assert largest(torch.tensor([[-3.0, 2.0]])) == 3 and largest(torch.zeros(0, 2)) == 0
    assert math.isnan(largest(torch.tensor([1.0, math.nan]))) and not math.isfinite(largest(torch.tensor([math.inf])))


def test_a_gradient_that_is_not_finite_stops_the_run_and_is_named(tmp_path):
    m, calls = model(), []
    head = m.slots.predict.linear.weight
    head.register_hook(lambda g: calls.append(1) or (g * math.inf if len(calls) == 2 else g))
    with pytest.raises(NotFinite, match=r"step 2, epoch 1: the gradient of 'slots.predict.linear.weight' is not finite "
                                        r"\(batch 1 of the epoch") as stop:
        run(tmp_path, m=m)
    assert stop.value.facts["what"] == "gradient" and stop.value.facts["position"] == {"epoch": 0, "batch": 1}
    assert odd_weights(m) == []


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_a_row_that_is_not_finite_is_never_saved(tmp_path, clip_norm):
    m = model()
    with torch.no_grad():                                       # an item that no batch reads
        m.embedding.tables["width_4"].weight[m.embedding.tables["width_4"].offset["item"] + 1] = math.nan
    with pytest.raises(NotFinite, match="step 3, epoch .*: the weight of 'width_4: item, shown' is not finite"):
        batches = Batches(lambda i, b: b)
        for b in batches.all:
            b.ids[:, 1] = b.ids[:, 1].clamp(min=2)
        run(tmp_path, m=m, batches=batches, clip_norm=clip_norm)
    assert load_checkpoint(tmp_path, "last") is None


def test_row_gradients_are_named_by_their_features():
    m, b = model(), batch(16)
    m.train()
    m(b).logits.sum().backward()
    gradients = m.embedding.take_gradients()
    assert odd_gradients(m, gradients) == []
    table = gradients[0].table
    rows = (gradients[0].rows >= table.offset["tags"]).nonzero()
    gradients[0].grad[rows[0]] = math.inf
    assert odd_gradients(m, gradients) == ["width_4: tags"]


def test_culprits_name_feature_and_row():
    m, b = model(), batch(16)
    assert "the largest is" in culprits(m, b)[0]
    b.numbers[3, 0] = math.inf
    assert culprits(m, b) == ["feature 'price' reads inf in 1 of 16 (first: row 3 of the batch)"]
    b.numbers[3, 0] = 0
    m.embedding.tables["width_4"].weight.data[m.embedding.tables["width_4"].offset["user"] + b.ids[5, 0]] = math.nan
    assert culprits(m, b)[0].startswith("feature 'user' reads nan in ")
    m.slots.predict.linear.bias.data[0] = math.nan
    assert any("slots.predict.linear.bias" in c for c in culprits(m, b))


def test_constant_outputs_dead_units_and_large_tables_are_warned_of_once():
    m, events = model(config({"name": "single_task", "represent": {"hidden": [8]}})), []
    watch = Watch(m, events.append)
    m.eval()
    with watch.evaluating(1):
        m(batch(64))
    assert events == []
    with torch.no_grad():
        m.slots.represent.mlp.layers[0]["linear"].bias.fill_(-1e6)
        m.embedding.tables["width_4"].weight[5] = 1e3
    for step in (2, 3):
        with watch.evaluating(step):
            m(batch(64))
    assert {e["what"].split()[0] for e in events} == {"units", "output", "table"}
    assert {e["step"] for e in events} == {2} and len({e["what"] for e in events}) == len(events)
    assert not m._forward_hooks and not m.funnel._forward_hooks


def test_watching_changes_no_number(tmp_path, monkeypatch):
    a, _, _ = run(tmp_path / "a", judged([0.5, 0.6]), epochs=2)
    monkeypatch.setattr("funnelrank.train.trainer.odd_gradients", lambda *_: [])
    monkeypatch.setattr("funnelrank.train.trainer.odd_weights", lambda *_: [])
    monkeypatch.setattr(Watch, "tables", lambda *_: None)
    b, _, _ = run(tmp_path / "b", judged([0.5, 0.6]), epochs=2)
    assert all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    folder = tmp_path_factory.mktemp("log")
    simulate(folder, rows=1200, users=60, items=40, seed=1)
    return folder


@pytest.mark.parametrize("every", [2, 100])                   # from a checkpoint, from the first step
def test_replay_trains_up_to_the_batch_that_stopped_the_run(log, tmp_path, every):
    settings = run_config(log, tmp_path / "run", "train.optimiser={name: sgd, lr: 1e12}", "train.evaluate_every=50",
                          f"train.checkpoint_every={every}")
    with pytest.raises(NotFinite) as stop:
        api.train(settings)
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["state"] == "failed" and record["failure"] == stop.value.facts
    left = sorted((p, p.stat().st_mtime_ns) for p in (tmp_path / "run").rglob("*"))
    seen = again.replay(tmp_path / "run")
    assert (seen.step, seen.position) == (stop.value.facts["step"], stop.value.facts["position"])
    assert seen.culprits == stop.value.facts["culprits"]
    odd = [t for t, v in seen.losses.items() if not math.isfinite(v)]
    assert odd == stop.value.facts["of"] if stop.value.facts["what"] == "loss" else not odd
    assert len(seen.rows) == 10 and sorted((p, p.stat().st_mtime_ns) for p in (tmp_path / "run").rglob("*")) == left
    with pytest.raises(NotFinite):
        api.train(settings)                                     # the same command stops at the same step


def test_replay_of_a_step_sees_its_losses(log, tmp_path, monkeypatch):
    monkeypatch.setattr(api.report_of, "page", lambda run: "<html>")
    events = []
    with pytest.raises(ConfigError, match="say which step"):
        api.train(run_config(log, tmp_path / "run", "train.log_every=1"), report=events.append)
        again.replay(tmp_path / "run")
    for step in (1, 9, 30):
        said = next(e["loss"] for e in events if e["event"] == "step" and e["step"] == step)
        assert again.replay(tmp_path / "run", step).losses == said
    with pytest.raises(TrainingError, match="step 31: the run has 30 steps; name one of them"):
        again.replay(tmp_path / "run", 31)


def test_replay_knows_the_steps_of_a_run_that_ends_within_an_epoch(log, tmp_path, monkeypatch):
    monkeypatch.setattr(api.report_of, "page", lambda run: "<html>")
    api.train(run_config(log, tmp_path / "run", "train.steps=4"))
    with pytest.raises(TrainingError, match="step 5: the run has 4 steps"):
        again.replay(tmp_path / "run", 5)
