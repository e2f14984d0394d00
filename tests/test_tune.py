"""Search over a config's keys: what was planted is found, valid alone decides, and a killed search goes on."""

import json
from pathlib import Path

import optuna
import pytest

from funnelrank import Ranker, api, cli, load_config, tune
from funnelrank.evaluate import tuned
from funnelrank.simulate import simulate

CONFIG = """
data: {{dir: {log}, train: train.parquet, valid: valid.parquet, test: nowhere.parquet}}
features: {{item_id: {{min_count: 2}}, price: number, device: id}}
tasks: {{click: {{}}, cart: {{after: click}}}}
embedding: {{width: 2}}
model: {{name: shared_bottom, represent: {{hidden: [4]}}}}
train: {{epochs: 2, batch_size: 100, threads: 1, log_every: 2, early_stopping: {{metric: valid/click/logloss}},
        checkpoint_every: 3}}
evaluate: {{intervals: none}}
tune:
  trials: 4
  over:
    train.optimiser.lr: [0.03, 1.0e-6]
    embedding.width: {{low: 2, high: 4}}
"""


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    folder = tmp_path_factory.mktemp("log")
    simulate(folder, rows=1500, users=60, items=40, funnel=["click", "cart"])
    return folder


@pytest.fixture
def shop(log, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("shop.yaml").write_text(CONFIG.format(log=log))
    return tmp_path


def trials():
    return json.loads(Path("runs/shop-tune/tune.json").read_text())["trials"]


def test_the_better_value_is_found_on_valid_alone_and_trains_to_the_same(shop, log, monkeypatch, capsys, no_pages):
    assert cli.main(["tune", "shop.yaml"]) == 0
    said = capsys.readouterr().out
    found = json.loads(Path("runs/shop-tune/tune.json").read_text())
    assert [t["state"] for t in found["trials"]] == ["COMPLETE"] * 4 and "4 of 4: trial 3" in said
    best = found["trials"][found["best"]]
    assert best["params"]["train.optimiser.lr"] == "0.03"
    assert all(2 <= t["params"]["embedding.width"] <= 4 for t in trials())
    assert best["value"] == min(t["value"] for t in found["trials"])
    assert "Best is trial" in said and "hold them against each other on test" in said
    chosen = load_config("runs/shop-tune/best.yaml", ["data.test=null"])
    assert chosen.settings.train.optimiser.lr == 0.03 and chosen.settings.tune.over == {}
    assert chosen.settings.embedding.width == best["params"]["embedding.width"] and chosen.settings.data.dir == str(log)
    assert chosen.settings.train.out.endswith("runs/shop-best")
    assert api.train(chosen).trained.best == best["value"]
    assert cli.main(["tune", "shop.yaml"]) == 0                      # finished: nothing more is trained
    assert trials() == found["trials"]


@pytest.fixture
def no_pages(monkeypatch):
    """Pictures are drawn by one test."""
    monkeypatch.setattr(tuned, "page", lambda found: "<html>")


class Killed(BaseException):
    """Nothing of ours catches it."""


def test_a_killed_search_goes_on_with_the_trial_it_was_killed_in(shop, monkeypatch, no_pages):
    report, seen = optuna.trial.Trial.report, []

    def stop(trial, value, step):
        seen.append((trial.number, step))
        if seen[-1] == (1, 2):
            raise Killed
        report(trial, value, step)
    monkeypatch.setattr(optuna.trial.Trial, "report", stop)
    with pytest.raises(Killed):
        tune.tune(load_config("shop.yaml"))
    monkeypatch.setattr(optuna.trial.Trial, "report", report)
    found = tune.tune(load_config("shop.yaml"))
    assert len(found.trials) == 4 and [t["number"] for t in found.trials] == [0, 2, 3, 4]
    lines = [json.loads(line) for line in Path("runs/shop-tune/trials/1/events.jsonl").read_text().splitlines()]
    assert [e["step"] for e in lines if e["event"] == "resume"][0] > 0
    again = found.trials[1]
    edits = [f"{k}={v}" for k, v in again["params"].items()]
    straight = load_config("shop.yaml", [*edits, "data.test=null", "train.out=runs/straight"])
    assert api.train(straight).trained.best == again["value"]
    assert not list(Path("runs/shop-tune/trials").glob("*/checkpoints/*"))


def test_processes_share_the_trials(shop, no_pages, monkeypatch):
    monkeypatch.setattr(tune, "EVERY", 0.1)
    events = []
    found = tune.tune(load_config("shop.yaml", ["tune.trials=3"]), jobs=2, report=events.append)
    assert [t["state"] for t in found.trials] == ["COMPLETE"] * 3
    assert {e["number"] for e in events} == {0, 1, 2} and events[-1]["best"] == found.best["value"]


def test_what_costs_too_much_is_not_trained(shop, no_pages, monkeypatch):
    size = sum(p.numel() for p in built("embedding.width=2").parameters())
    found = tune.tune(load_config("shop.yaml", [
        f"tune.limits.parameters={size}", "tune.over={embedding.width: [2, 4]}"]))
    for t in found.trials:
        over = t["params"]["embedding.width"] == "4"
        assert (t["state"], t["value"] is None) == (("PRUNED", True) if over else ("COMPLETE", False))
        assert not over or f"parameters, above {size:,}" in t["note"]
    assert {t["state"] for t in found.trials} == {"PRUNED", "COMPLETE"}
    assert found.best["params"]["embedding.width"] == "2"
    monkeypatch.setattr(tune, "latency", lambda model, batch: len(batch) / 10)
    slow = tune.tune(load_config("shop.yaml", ["tune.limits={latency_ms: 4, rows: 50}", "tune.trials=1"]), fresh=True)
    assert slow.best is None and slow.trials[0]["note"] == "5.00 ms for 50 rows, above 4"


def built(*sets):
    from funnelrank.flow import build, encode, open_data, prepare
    config = load_config("shop.yaml", [*sets, "data.test=null"])
    data = open_data(config)
    encoder = prepare(config, data)
    return build(config, encoder, encode(config, data, encoder))


def test_a_hopeless_trial_is_ended_early_and_a_failing_one_is_told(shop, no_pages, monkeypatch):
    monkeypatch.setattr(optuna.trial.Trial, "should_prune", lambda trial: trial.number == 1)
    found = tune.tune(load_config("shop.yaml", [
        "tune.over={model.represent.hidden: [[4], [8]], train.optimiser.lr: {low: 0.001, high: 0.1, log: true}}",
        "tune.trials=3"]))
    assert [t["state"] for t in found.trials] == ["COMPLETE", "PRUNED", "COMPLETE"]
    assert found.trials[1]["note"] == "at its evaluation 1 below the median of others"
    monkeypatch.undo()
    monkeypatch.chdir(shop)
    monkeypatch.setattr(tuned, "page", lambda found: "<html>")

    def fail(*given, **said):
        raise tune.ConfigError("model.represent: 3 heads do not divide 4")
    monkeypatch.setattr(tune, "build", fail)
    broken = tune.tune(load_config("shop.yaml", ["train.out=runs/other"]))
    assert [t["note"] for t in broken.trials] == ["model.represent: 3 heads do not divide 4"] * 4 and not broken.best
    assert tune.words(broken)[0] == "No trial came to its end with a value."


@pytest.mark.parametrize("sets, said", [
    (["tune.over={}"], "tune.over: names no key to try"),
    (["tune.over={train.optimizer.lr: [1, 2]}"], "train.optimizer: unknown key (did you mean 'optimiser'?)"),
    (["tune.over={train.optimiser.lr: {low: -1, high: 1}}"], "tune.over: --set train.optimiser.lr: found -1; must"),
    (["tune.over={data.dir: [a, b]}"], "'data.dir' decides what trials are measured on"),
    (["tune.over={train.optimiser.lr: [1]}"], "a choice is between two or more"),
    (["tune.over={train.optimiser.lr: {low: 2, high: 1}}"], "low (2) must be below high (1)"),
    (["tune.metric=valid/click/acu"], "tune.metric: no metric 'acu'"),
    (["tune.metric=test/click/auc"], "tune.metric: no split 'test'"),
    (["data.valid=null"], "data.valid: trials are judged on valid rows")])
def test_what_cannot_be_searched_is_said_at_once(shop, capsys, sets, said):
    assert cli.main(["tune", "shop.yaml", *(word for s in sets for word in ("--set", s))]) == 2
    found = capsys.readouterr().err
    assert said in found, found
    assert not Path("runs/shop-tune/trials").exists()


def test_another_search_is_not_gone_on_with(shop, capsys, no_pages):
    assert cli.main(["tune", "shop.yaml", "--set", "tune.trials=1"]) == 0
    assert cli.main(["tune", "shop.yaml", "--set", "train.batch_size=50"]) == 2
    said = capsys.readouterr().err
    assert "holds a search of another config or data (config.train.batch_size was 100, now 50)" in said
    assert cli.main(["tune", "shop.yaml", "--set", "train.batch_size=50", "--fresh", "--set", "tune.trials=1"]) == 0
    assert [t["number"] for t in trials()] == [0]


def test_the_section_decides_no_number_of_a_run(shop):
    first = api.train(load_config("shop.yaml", ["data.test=null"]))
    events = []
    api.train(load_config("shop.yaml", ["data.test=null", "tune.trials=9"]), report=events.append)
    assert events[-1]["event"] == "finished" and Ranker.load(first.folder).config.settings.tune.trials == 4


def test_the_page_shows_a_search_and_hostile_values_stay_text():
    bad = "<script>x</script>"
    row = {"state": "COMPLETE", "parameters": 10, "latency_ms": None, "seconds": 1.5, "note": None, "written": False}
    found = {"name": bad, "metric": "valid/auc", "best": 1, "written": 0, "importances": {"a.b": 0.8, "c": 0.2},
             "notes": [], "trials": [
                 row | {"number": 0, "value": 0.7, "params": {"a.b": 0.001, "c": bad}, "written": True},
                 row | {"number": 1, "value": 0.72, "params": {"a.b": 0.1, "c": "mmoe"}},
                 row | {"number": 2, "value": None, "state": "FAIL", "params": {}, "note": bad}]}
    text = tuned.page(found)
    assert "<script" not in text and text.count("<svg") == 4 and "http" not in text
    assert tuned.words(found)[:2] == ["Best is trial 1: valid/auc 0.7200, with a.b 0.1, c mmoe.",
                                      "The config as written has 0.7000, +0.0200 to the best."]
    assert "| 1 | 0.7200 | 0.1 | mmoe |" in tuned.markdown(found)
