"""TorchEasyRec's configs: every model is imported, checked and trained, and others are refused by name."""

import pytest
from easyrec_configs import write_rows
from torch_easyrec_configs import ALL, DIN, MODELS, ONE, config, group, towers

from funnelrank import api, document
from funnelrank.config import load
from funnelrank.errors import ConfigError
from funnelrank.imports import read, write

LATER = 'relation_tower_names: ["cart"]'


@pytest.fixture
def folder(tmp_path, monkeypatch):
    write_rows(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def imported(folder, text: str):
    (folder / "source.config").write_text(text)
    return read([folder / "source.config"])


def settings_of(folder, text: str) -> dict:
    return document.read(imported(folder, text).text, "x").value


@pytest.mark.parametrize("model", MODELS)
def test_every_model_is_imported_checked_and_trained(folder, model):
    found = imported(folder, config(MODELS[model]))
    assert found.system == "torch_easyrec" and not found.of("refused"), found.of("refused")
    said = document.read(found.text, "x").value
    said["train"] |= {"steps": 2, "threads": 1}
    said["evaluate"] = {**said.get("evaluate", {}), "intervals": "none"}
    run = api.train(load(said), report=lambda event: None)
    assert any(r["split"] == "valid" for r in run.rows)


def test_sides_are_stripped_and_names_share_vectors(folder):
    said = settings_of(folder, config(MODELS["dbmtl_with_a_history"]))
    assert said["features"] == {
        "lists": "off", "user": {"hash_buckets": 1000}, "item": {"hash_buckets": 500, "space": "item_emb"},
        "past__item": {"kind": "sequence", "separator": "|", "space": "item_emb", "target": "item", "max_len": 20,
                       "latest": "first"}}
    hour = settings_of(folder, config(MODELS["mmoe"]))["features"]["hour_of_day"]
    assert hour == {"column": "hour", "num_buckets": 24}


@pytest.mark.parametrize("declared, feature", [
    ('raw_feature { feature_name: "price" expression: "item:price" '
     'normalizer: "method=zscore,mean=1,standard_deviation=4"',
     {"expression": "(coalesce(price, 0.0) - 1.0) / 4.0"}),
    ('raw_feature { feature_name: "price" expression: "item:price" default_value: "-1" '
     'normalizer: "method=expression,expr=sign(x) * log1p(abs(x))"',
     {"expression": "sign(coalesce(price, -1.0)) * log1p(abs(coalesce(price, -1.0)))"}),
    ('expr_feature { feature_name: "price" expression: "sigmoid(price / (1 + hour))" variables: "item:price" '
     'variables: "user:hour"', {"expression": "sigmoid(price / (1 + hour))"}),
])
def test_numbers_are_computed_where_they_are_normalised(folder, declared, feature):
    text = config(MODELS["mmoe"]).replace('raw_feature { feature_name: "price" expression: "item:price"', declared)
    assert settings_of(folder, text)["features"]["price"] == {
        "kind": "number", **feature, "log": False, "scale": "none", "clip": None, "indicator": False, "default": 0.0}


def test_mlps_have_no_norm_unless_they_say_so(folder):
    assert settings_of(folder, config(MODELS["mmoe"]))["model"] == {
        "name": "mmoe", "represent": {"experts": 3, "hidden": [32, 16]}, "predict": {"hidden": [16, 8]}}
    normed = MODELS["mmoe"].replace("hidden_units: [32, 16]", "hidden_units: [32, 16] use_ln: true dropout_ratio: 0.2")
    assert settings_of(folder, config(normed))["model"]["represent"] == {
        "experts": 3, "hidden": [32, 16], "dropout": 0.2, "norm": "layer"}


def test_tables_and_network_have_an_optimiser_each(folder):
    said = settings_of(folder, config(MODELS["mmoe"]))
    assert said["embedding"]["optimiser"] == {"name": "adagrad", "lr": 0.01}
    assert said["train"]["optimiser"] == {"name": "adam", "l2": 1e-5, "lr": 0.001} and said["train"]["average"] is None


def test_rows_of_another_place_are_left_to_be_named(folder):
    text = config(MODELS["mmoe"]).replace("CsvDataset", "OdpsDataset").replace('"train.csv"', '"odps://a/tables/b"')
    found = imported(folder, text)
    assert not found.of("refused") and "data" not in document.read(found.text, "x").value
    assert [r.said for r in found.rows if r.path == "train_input_path"] == [
        "only its own system reads that place; name files in data.train"]


def test_pepnet_is_gates_before_towers_of_their_own(folder):
    blocks = settings_of(folder, config(MODELS["pepnet"]))["model"]["represent"]["blocks"]
    assert blocks["epnet"] == {"inputs": ["all", "domain"], "merge": "list", "layer": {"name": "gate", "hidden": 16}}
    assert blocks["cvr_ppnet"]["inputs"] == ["epnet", "uia"] and blocks["cvr_ppnet"]["layer"]["position"] == "output"


def test_rows_of_a_tasks_space_weigh_as_they_did(folder):
    """There weights are brought to a mean of 1, which a weighted mean does by itself."""
    space = 'task_space_indicator_label: "clk" in_task_space_weight: 10 out_task_space_weight: 1'
    found = imported(folder, config(ALL + f"simple_multi_task {{ {towers(space)} }}"))
    assert document.read(found.text, "x").value["tasks"]["cvr"] == {
        "label": "buy", "within": {"task": "ctr", "inside": 10, "outside": 1}}
    assert not [r for r in found.of("approximated") if "space" in r.path]


def test_losses_of_a_task(folder):
    jrc = towers("").replace("losses { binary_cross_entropy {} }",
                             'losses { jrc_loss { session_name: "user" alpha: 0.7 } }', 1)
    said = settings_of(folder, config(ALL + f"simple_multi_task {{ {jrc} }}"))
    assert said["tasks"]["ctr"]["loss"] == {"name": "jrc", "alpha": 0.7, "by": "user"}
    assert said["data"]["user"] == "user"
    several = ALL + "mask_net { mask_net_module { n_mask_blocks: 1 mask_block { hidden_dim: 8 } } } " + ONE.replace(
        "binary_cross_entropy", "softmax_cross_entropy") + "num_class: 4"
    assert settings_of(folder, config(several))["tasks"]["clk"] == {"kind": "multiclass", "classes": 4}


@pytest.mark.parametrize("old, new, words", [
    ("mmoe {", "wukong {", "there is no importer for it; models that are carried are simple_multi_task, mmoe"),
    ('id_feature { feature_name: "brand"', 'tokenize_feature { feature_name: "brand"', "there is no such feature here"),
])
def test_what_there_is_not_is_refused_by_name(folder, old, new, words):
    text = config(MODELS["mmoe"]).replace(old, new)
    if "brand" in old:
        text = text.replace('"brand", "hour', '"hour')
    assert any(words in r.said for r in imported(folder, text).of("refused"))


@pytest.mark.parametrize("model, words", [
    (group("all", "user", "item", inner=DIN.replace('input: "past"', 'input: "pst"')) + f"dbmtl {{ {towers()} }}",
     "no sequence group 'pst'; there are past"),
    (ALL + f"dbmtl {{ {towers(LATER)} }}", "no tower 'cart' stands before 'cvr'"),
    (ALL + "mmoe { expert_mlp { hidden_units: 8 } }", "task_towers is missing"),
])
def test_what_does_not_hang_together_is_told_with_its_line(folder, model, words):
    with pytest.raises(ConfigError) as error:
        imported(folder, config(model))
    assert words in str(error.value) and str(error.value).startswith("source.config:")


TWO = """sequence_groups { group_name: "past" feature_names: ["item", "past__item", "past__price"] }
    sequence_encoders { ENCODER { input: "past" } }"""


@pytest.mark.parametrize("encoder, said", [
    ("din_encoder", "past__price: the mean of its entries, for no id is at its place; past__item: attention with item"),
    ("pooling_encoder", None)])
def test_a_sequence_that_is_compared_with_nothing_is_pooled(folder, encoder, said):
    text = config(group("all", "user", "item", inner=TWO.replace("ENCODER", encoder))
                  + f"simple_multi_task {{ {towers()} }}").replace('sequence_name: "past"', """sequence_name: "past"
        features { raw_feature { feature_name: "price" expression: "user:price" boundaries: [1, 9]
                                 embedding_dim: 8 } }""")
    found = imported(folder, text)
    written = document.read(found.text, "x").value
    assert any(said in r.said for r in found.of("approximated")) if said else not [
        r for r in found.rows if "no id is at its place" in r.said]
    assert "past__price" in written["features"] and ("past__item_attention" in str(written["model"])) == bool(said)


def test_what_is_refused_is_told_once_for_all_that_stands_in_it(folder):
    text = config(MODELS["mmoe"]).replace("feature_configs {", """feature_configs { match_feature { feature_name: "m"
        nested_map: "user:nm" pkey: "item:cate" skey: "item:iid" } } feature_configs {""", 1)
    (folder / "source.config").write_text(text)
    with pytest.raises(ConfigError) as told:
        write([folder / "source.config"])
    assert len(told.value.messages) == 1 and "feature_configs.match_feature: refused" in told.value.messages[0]
