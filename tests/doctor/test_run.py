"""Faults planted in a trained run, one by one: each is found, and none is where nothing was planted."""

import json

import pandas as pd
import pytest
import torch
from torch import nn

from funnelrank import cli, doctor
from funnelrank.doctor.patient import Patient
from funnelrank.nn.linear import Linear
from funnelrank.simulate import simulate

CONFIG = """
data: {dir: log, train: train.parquet, valid: valid.parquet, test: test.parquet, scenario: scenario, user: user_id}
features: {item_id: id, scenario: id, device: id, price: number, lists: "off",
           device_x_item: {kind: cross, columns: [device, item_id]}}
tasks: {click: {}, cart: {after: click}, like: {}}
model: {name: mmoe, represent: {experts: 3, hidden: [8]}, predict: {hidden: [8]}, prepare: [{name: epnet, hidden: 8}]}
train: {threads: 1, epochs: 1, log_every: 1000, batch_size: 256}
evaluate: {resamples: 100, frozen: false}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, no_pictures):
    folder = tmp_path_factory.mktemp("patient")
    simulate(folder / "log", rows=5000, users=200, items=60, funnel=["click", "cart"], drift=0.0)
    (folder / "shop.yaml").write_text(CONFIG)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert cli.main(["train", "shop.yaml"]) == 0
    return folder


@pytest.fixture
def patient(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return Patient(folder / "runs/shop")


def test_a_sound_run_has_nothing(patient):
    assert [f for d in doctor.RUN.values() for f in d(patient) if f.severity != "note"] == []


class Told(nn.Module):
    """Says what it is told, whatever it is given."""

    def __init__(self, says):
        super().__init__()
        self.says = says

    def forward(self, x):
        return self.says.expand(len(x), *self.says.shape)


def mates(p):
    p.model.slots.predict.register_forward_hook(lambda module, given, out: out - out.mean(0))


def no_number(p):
    p.model.slots.predict.linear.bias.data[0] = float("nan")


def huge_table(p):
    next(iter(p.model.embedding.tables.values())).weight.data[3] = 1e4


def cut_off(p):
    p.model.slots.spare = Linear(4, 4)


def stands_still(p):
    p.model.slots.represent.gates.weight.data.copy_(p.fresh.slots.represent.gates.weight)


def dead(p):
    layer = p.model.slots.represent.experts.layers[0]["linear"]
    layer.bias.data[:, 2:] = -1e3


def one_expert(p):
    p.model.slots.represent.gates = Told(torch.tensor([[30.0, 0.0, 0.0]] * 3))


def no_expert(p):
    p.model.slots.represent.gates = Told(torch.tensor([[0.0, 1.0, -30.0]] * 3))


def open_gate(p):
    gate = p.model.slots.prepare[0].gate
    gate.last.bias.data[:] = 30.0


def still_gate(p):
    p.model.slots.prepare[0].gate.last.weight.data.zero_()


def flat_task(p):
    p.model.slots.predict.linear.weight.data[1] = 0


def twin_tasks(p):
    p.model.slots.predict.register_forward_hook(lambda module, given, out: out[:, [0, 0, 2]])


def no_scenario(p):
    for table in p.model.embedding.tables.values():
        a = table.offset["scenario"]
        table.weight.data[a:a + p.layout.size["scenario"]] = 0.01


def other_rows(p):
    path = p.folder.parents[1] / "log/test.parquet"
    rows = pd.read_parquet(path)
    p.table = rows.assign(price=rows.price * 3, device=None)
    p.config.settings.data.test = str(path.with_name("changed.parquet"))
    p.table.to_parquet(p.config.settings.data.test)


def fewer_rows(p):
    other_rows(p)
    p.table[:100].to_parquet(p.config.settings.data.test)


def other_metrics(p):
    next(r for r in p.ranker.rows if r["split"] == "test" and r["metric"] == "auc")["value"] += 0.01


def chance(p):
    next(r for r in p.ranker.rows if (r["split"], r["metric"], r["task"]) == ("test", "auc", "like")).update(
        value=0.5, low=0.44, high=0.56)


def inflated(p):
    next(r for r in p.ranker.rows if (r["split"], r["metric"], r["task"]) == ("test", "pcoc", "click")).update(
        value=4.0, low=3.0, high=5.0)


PLANTED = [("depends_on_its_batch", mates), ("says_no_number", no_number), ("says_no_number", huge_table),
           ("never_learnt", cut_off), ("never_learnt", stands_still), ("dead_units", dead),
           ("gates_collapsed", one_expert), ("gates_collapsed", no_expert), ("gates_collapsed", open_gate),
           ("gates_collapsed", still_gate), ("task_says_nothing", flat_task), ("task_says_nothing", twin_tasks),
           ("task_says_nothing", chance), ("inputs_ignored", no_scenario), ("served_otherwise", other_rows),
           ("served_otherwise", fewer_rows), ("numbers_of_another_model", other_metrics),
           ("probabilities_off", inflated)]


@pytest.mark.parametrize("code, plant", PLANTED, ids=[p.__name__ for _, p in PLANTED])
def test_a_planted_fault_is_found(patient, code, plant):
    plant(patient)
    assert [f.code for f in doctor.RUN[code](patient)], code


def test_every_detector_has_a_planted_fault():
    assert {code for code, _ in PLANTED} == set(doctor.RUN)


def test_the_command_says_what_it_found_and_fails_on_it(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    assert cli.main(["doctor", "runs/shop", "--fail-on", "warning"]) == 0
    said = capsys.readouterr().out
    assert "model: " in said and "test: " in said and "shop: " in said
    words = ["doctor", "shop.yaml", "--set", "data.valid=test.parquet", "--out", "found.json"]
    assert cli.main([*words, "--format", "json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((folder / "found.json").read_text())
    (finding,) = [f for f in found["findings"] if f["severity"] == "error"]
    assert finding["code"] == "same_rows" and finding["evidence"]["share"] == 1 and finding["fix"]
    assert cli.main([*words, "--fail-on", "never"]) == 0
    assert cli.main([*words, "--skip", "same_rows"]) == 0
    assert "same_rows" not in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize("words, said", [
    (["shop.yaml", "--skip", "same_row"], "did you mean 'same_rows'?"),
    (["runs/shop", "--set", "a=b"], "a run's config cannot be edited"),
    (["runs/nowhere"], "no such file"), (["shop.yaml", "--rows", "0"], "at least 1 row"),
    (["shop.yaml", "--set", "data.train=null"], "data.train: no rows")])
def test_what_cannot_be_done_is_one_sentence(folder, monkeypatch, capsys, words, said):
    monkeypatch.chdir(folder)
    assert cli.main(["doctor", *words]) == 2
    assert said in capsys.readouterr().err
