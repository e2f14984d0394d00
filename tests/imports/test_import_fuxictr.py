"""FuxiCTR's configs: every model is imported, checked and trained; an experiment stands over Base."""

import pytest
from fuxictr_configs import DEEP, MODELS, ONE, TWO, experiment, write_configs, write_rows

from funnelrank import api, cli, document
from funnelrank.config import load
from funnelrank.errors import ConfigError
from funnelrank.imports import read


@pytest.fixture
def folder(tmp_path, monkeypatch):
    write_rows(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def imported(folder, model: str, change=lambda text: text):
    keys = MODELS[model]
    write_configs(folder, change(experiment(f"{model}_x1", model, keys)), labels=TWO if "num_tasks" in keys else ONE)
    return read([folder])


def settings_of(folder, model: str, change=lambda text: text) -> dict:
    return document.read(imported(folder, model, change).text, "x").value


@pytest.mark.parametrize("model", MODELS)
def test_every_model_is_imported_checked_and_trained(folder, model):
    found = imported(folder, model)
    assert (found.system, found.name) == ("fuxictr", f"{model}_x1") and not found.of("refused"), found.of("refused")
    said = document.read(found.text, "x").value
    said["train"] |= {"steps": 2, "threads": 1, "out": "runs/imported"}
    said["evaluate"] = {"intervals": "none"}
    run = api.train(load(said), report=lambda event: None)
    assert any(r["split"] == "valid" for r in run.rows)


def test_what_columns_are(folder):
    features = settings_of(folder, "DNN")["features"]
    assert features == {
        "lists": "off", "user": {"min_count": 1}, "item": {"min_count": 1}, "brand": {"min_count": 1},
        "hour": {"min_count": 2},
        "price": {"kind": "number", "log": False, "scale": "standard", "clip": None, "indicator": False,
                  "default": 0.0},
        "seen": {"kind": "sequence", "separator": "|", "space": "item", "max_len": 20, "pool": "sum"},
        "brands": {"kind": "sequence", "separator": "|", "min_count": 1, "max_len": 10000}}


def test_an_experiment_stands_over_base_and_others_are_ignored(folder):
    write_configs(folder, experiment("a", "DNN", DEEP), experiment("b", "FM", ""))
    with pytest.raises(ConfigError, match="there are the experiments 'a' and 'b'; choose one with --expid"):
        read([folder])
    with pytest.raises(ConfigError, match="no experiment 'c'"):
        read([folder], experiment="c")
    found = read([folder / "model_config.yaml"], experiment="b")
    said = document.read(found.text, "x").value
    assert said["model"]["name"] == "fm" and said["train"]["seed"] == 2024
    rows = {(r.path, r.verdict) for r in found.rows}
    assert {("a.hidden_units", "ignored"), ("Base.seed", "ignored"), ("other_x1.feature_cols.name", "ignored"),
            ("b.seed", "carried"), ("shop_x1.feature_cols.name", "carried")} <= rows
    assert {r.places[0][0] for r in found.rows} == {"dataset_config.yaml", "model_config.yaml"}


def test_tasks_are_bound_by_name(folder):
    assert settings_of(folder, "MMoE", lambda t: t + "  loss_weight: [1, 0.5]\n")["tasks"] == {
        "clk": {}, "buy": {"weight": 0.5}}
    chained = settings_of(folder, "AITM")
    assert chained["tasks"]["buy"] == {"after": "clk"} and chained["model"]["represent"]["hidden"] == [16, 8]


def test_din_compares_fields_with_lists_at_their_place(folder):
    said = settings_of(folder, "DIN")
    assert said["features"]["brands"] == {"kind": "sequence", "separator": "|", "max_len": 10000, "space": "brand",
                                          "target": "brand"}
    assert said["model"]["prepare"] == [{"name": "din", "hidden": [16]}]


def test_the_run(folder):
    said = settings_of(folder, "DeepFM")
    assert said["train"]["early_stopping"] == {"patience": 2} and said["train"]["clip_norm"] == 10.0
    assert said["train"]["optimiser"]["lr"] == said["embedding"]["optimiser"]["lr"] == 0.001
    assert said["embedding"]["optimiser"]["l2"] == 1e-6 and said["train"]["average"] is None
    found = imported(folder, "DeepFM", lambda t: t.replace("monitor: AUC", "monitor: logloss"))
    assert "metric: valid/clk/logloss" in found.text


@pytest.mark.parametrize("old, new, path, words", [
    ("model: DNN", "model: FiGNN", "DNN_x1.model", "there is no importer for FiGNN"),
    ("optimizer: adam", "optimizer: rmsprop", "DNN_x1.optimizer", "adam, adamw, adagrad and sgd are there"),
    ("net_regularizer: 0", "net_regularizer: l1(1.e-5)", "DNN_x1.net_regularizer", "is no L2"),
    ("epochs: 1", "epochs: 1\n  later_key: 3", "DNN_x1.later_key", "this importer does not know it"),
])
def test_what_there_is_not_is_refused(folder, old, new, path, words):
    found = imported(folder, "DNN", lambda t: t.replace(old, new))
    assert any(r.path == path and words in r.said for r in found.of("refused")), found.of("refused")


def test_code_in_a_config_is_not_run(folder):
    write_configs(folder, experiment("a", "DNN", DEEP))
    text = (folder / "dataset_config.yaml").read_text()
    text = text.replace('"layers.MaskedSumPooling()"', '"os.system(\'touch ran\')"')
    (folder / "dataset_config.yaml").write_text(text)
    found = read([folder])
    assert [r.path for r in found.of("refused")] == ["shop_x1.feature_cols.feature_encoder"]
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("wrong, words", [
    ({"dataset_config.yaml": "a: ["}, "dataset_config.yaml:1"),
    ({"dataset_config.yaml": "just text"}, "is no mapping"),
    ({"model_config.yaml": "Base: {}"}, "no experiment says which `model` it is of"),
    ({"model_config.yaml": "x: {model: DNN, dataset_id: shop}"}, "no dataset 'shop' with feature_cols"),
])
def test_what_is_no_config_is_told(folder, wrong, words):
    write_configs(folder, experiment("a", "DNN", DEEP))
    for name, text in wrong.items():
        (folder / name).write_text(text)
    with pytest.raises(ConfigError) as error:
        read([folder])
    assert words in str(error.value)


def test_the_command_takes_a_folder_or_two_files(folder, capsys):
    write_configs(folder, experiment("a", "DNN", DEEP), experiment("b", "FM", ""))
    assert cli.main(["import", ".", "--expid", "b"]) == 0 and (folder / "b.yaml").exists()
    assert cli.main(["import", "dataset_config.yaml", "model_config.yaml", "--expid", "a", "--out", "c.yaml"]) == 0
    assert cli.main(["check", "c.yaml"]) == 0
    (folder / "empty").mkdir()
    assert cli.main(["import", "empty"]) == 2 and "holds no dataset_config.yaml" in capsys.readouterr().err
