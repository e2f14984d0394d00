"""EasyRec's configs: every model class is imported, checked and trained; every key is answered for."""

import pytest
from easyrec_configs import ALL, CALIBRATED, MODELS, PIPELINE, config, group, rows, towers, write_rows

from funnelrank import api, cli, document
from funnelrank.config import load
from funnelrank.errors import ConfigError
from funnelrank.imports import read, write
from funnelrank.imports.source import VERDICTS

MMOE = MODELS["mmoe"]


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


def row(found, path: str, verdict: str | None = None):
    matching = [r for r in found.rows if r.path == path and verdict in (None, r.verdict)]
    assert len(matching) == 1, [(r.path, r.verdict, r.said) for r in found.rows if r.path == path]
    return matching[0]


@pytest.mark.parametrize("model", MODELS)
def test_every_model_class_is_imported_checked_and_trained(folder, model):
    found = imported(folder, config(MODELS[model]))
    assert not found.of("refused") and len(found.of("carried")) > 30
    said = document.read(found.text, "x").value
    said["train"] |= {"steps": 2, "threads": 1}
    said["evaluate"] = {**said.get("evaluate", {}), "intervals": "none"}
    run = api.train(load(said), report=lambda event: None)
    assert any(r["split"] == "valid" for r in run.rows) and run.folder.name == "imported"


# ---- the table

def test_every_key_path_of_the_source_is_in_the_table(folder):
    text = config(MMOE).replace("prefetch_size: 32", "prefetch_size: 32 data_of_a_later_version { deep { key: 1 } }")
    found = imported(folder, text)
    paths = {r.path for r in found.rows}
    assert {"data_config.data_of_a_later_version", "data_config.data_of_a_later_version.deep",
            "data_config.data_of_a_later_version.deep.key", "model_config.mmoe.task_towers.dnn.hidden_units",
            "train_config.sync_replicas", "export_config.multi_placeholder"} <= paths
    assert {r.verdict for r in found.rows} == set(VERDICTS)
    assert all(r.said for r in found.rows if r.verdict != "carried")
    assert row(found, "data_config.data_of_a_later_version.deep.key").verdict == "refused"
    assert found.page().count("\n| `") == len(found.rows)


def test_the_table_names_lines_and_the_config_does_too(folder):
    found = imported(folder, config(MMOE))
    line = next(i for i, text in enumerate(config(MMOE).splitlines(), 1) if "num_epochs" in text)
    assert row(found, "data_config.num_epochs").where == f"source.config:{line}"
    line = next(i for i, text in enumerate(config(MMOE).splitlines(), 1) if 'input_names: "brand"' in text)
    assert f"  brand: {{hash_buckets: 100}}    # {line}\n" in found.text


def test_what_is_refused_writes_nothing_unless_asked(folder, capsys):
    (folder / "a.config").write_text(config(MMOE).replace("sync_replicas: true", 'fine_tune_checkpoint: "x/model"'))
    assert cli.main(["import", "a.config"]) == 2
    assert "a.config:18: train_config.fine_tune_checkpoint: refused: weights of another" in capsys.readouterr().err
    assert not (folder / "a.yaml").exists()
    assert cli.main(["import", "a.config", "--anyway"]) == 0
    assert load(folder / "a.yaml") and "| refused |" in (folder / "a.import.md").read_text()
    assert cli.main(["check", "a.yaml"]) == 0
    assert cli.main(["import", "a.config", "--anyway"]) == 2 and "is there already" in capsys.readouterr().err


def test_strict_refuses_approximations(folder):
    (folder / "a.config").write_text(config(MMOE))
    with pytest.raises(ConfigError, match=r"a.config:\d+: model_config.embedding_regularization: approximated"):
        write([folder / "a.config"], strict=True)
    exact = config(ALL + f'model_class: "MMoE" mmoe {{ expert_dnn {{ hidden_units: 8 }} num_expert: 2 {towers()} }}')
    exact = exact.replace("adam_optimizer", "lazy_adam_optimizer").replace("save_checkpoints_steps: 10", "")
    (folder / "b.config").write_text(exact)
    assert not write([folder / "b.config"], strict=True)[0].of("approximated")


def test_paths_go_on_to_start_at_the_current_folder(folder):
    (folder / "a.config").write_text(config(MMOE))
    _, out = write([folder / "a.config"], folder / "inner" / "deep" / "a.yaml")
    assert load(out).settings.data.dir == str(folder)


# ---- rows

def test_csv_without_a_header_is_read_in_the_order_of_input_fields(folder):
    said = settings_of(folder, config(MMOE))
    csv = said["data"]["csv"]
    assert csv["columns"][:4] == ["clk", "buy", "user", "item"] and csv["header"] is False
    assert csv["types"]["price"] == "float" and csv["types"]["tags"] == "text" and csv["types"]["hour"] == "int"
    headed = settings_of(folder, config(MMOE).replace("prefetch_size: 32", "with_header: true separator: '\\t'"))
    assert "columns" not in headed["data"]["csv"] and headed["data"]["csv"]["delimiter"] == "\t"


def test_empty_cells_are_0_or_the_default_of_the_field(folder):
    features = settings_of(folder, config(MMOE))["features"]
    assert features["hour"] == {"num_buckets": 24, "unknown": 0, "default": 3}
    assert features["price"] == {"kind": "number", "boundaries": [1, 5, 20], "default": 0.0}
    assert features["user"] == {"hash_buckets": 1000} and features["lists"] == "off"


def test_features_of_the_older_form_are_read(folder):
    text = config(MMOE)
    older = text.replace("feature_config: {", "").replace("  features:", "feature_configs")
    older = older.replace("}\n}\nmodel", "}\nmodel")
    assert settings_of(folder, older)["features"] == settings_of(folder, text)["features"]


def test_a_number_has_no_width_of_its_own(folder):
    text = config(MODELS["every_layer"].replace('"age"', '"age", "count"')).replace(
        '"count" feature_type: RawFeature', '"count" feature_type: RawFeature embedding_dim: 4')
    assert "spaces" not in settings_of(folder, text)["embedding"]


def test_input_fields_expand_where_they_are_told_to(folder):
    text = config(MMOE).replace("prefetch_size: 32", """auto_expand_input_fields: true
        input_fields { input_name: "f[1-3]" input_type: DOUBLE }""").replace("feature_config: {", """feature_config: {
        features { input_names: "f1" feature_type: RawFeature shared_names: "f[2-3]" }""")
    columns = settings_of(folder, text)["data"]["csv"]["columns"]
    assert columns[-3:] == ["f1", "f2", "f3"]


@pytest.mark.parametrize("declared, feature", [
    ('feature_type: RawFeature', {"kind": "number", "log": False, "scale": "none", "clip": None, "indicator": False,
                                  "default": 0.0}),
    ('feature_type: RawFeature min_val: 1 max_val: 9 normalizer_fn: "tf.math.log1p"',
     {"kind": "number", "expression": "log1p((coalesce(new, 0.0) - 1) / 8)", "log": False, "scale": "none",
      "clip": None, "indicator": False, "default": 0.0}),
    ('input_names: "hour" feature_name: "new" feature_type: ExprFeature expression: "new>18 & hour < 5"',
     {"kind": "number", "expression": "coalesce(new, 0.0)>18 & coalesce(hour, 0.0) < 5", "log": False,
      "scale": "none", "clip": None, "indicator": False, "default": 0.0}),
    ('input_names: "item" feature_name: "new" feature_type: LookupFeature hash_bucket_size: 9 kv_separator: ":"',
     {"column": "item", "key": "new", "separator": "|", "key_separator": ":", "hash_buckets": 9}),
    ('feature_type: RawFeature raw_input_dim: 3 separator: ";"',
     {"kind": "vector", "size": 3, "separator": ";", "log": False, "scale": "none", "clip": None, "indicator": False,
      "default": 0.0}),
    ('feature_type: SequenceFeature sub_feature_type: RawFeature boundaries: [1, 2]',
     {"kind": "sequence", "separator": "|", "boundaries": [1, 2], "max_len": 10000, "latest": "first"}),
    ('feature_type: TagFeature hash_bucket_size: 9 kv_separator: ":"',
     {"kind": "bag", "separator": "|", "weight_separator": ":", "hash_buckets": 9, "pool": "sum"}),
    ('feature_type: TagFeature hash_bucket_size: 9 separator: "," combiner: "mean"',
     {"kind": "bag", "separator": ",", "hash_buckets": 9, "pool": "mean"}),
    ('feature_type: IdFeature vocab_list: ["a", "b"]', {"vocab_list": ["a", "b"], "unknown": "a"}),
    ('feature_type: IdFeature hash_bucket_size: 9 embedding_name: "e"', {"hash_buckets": 9, "space": "e"}),
    ('feature_type: SequenceFeature hash_bucket_size: 9 max_seq_len: 7',
     {"kind": "sequence", "separator": "|", "hash_buckets": 9, "max_len": 7, "latest": "first"}),
    ('input_names: "brand" feature_name: "new" feature_type: ComboFeature hash_bucket_size: 9',
     {"kind": "cross", "columns": ["new", "brand"], "hash_buckets": 9}),
])
def test_features_of_every_kind(folder, declared, feature):
    text = config(MMOE.replace('"user"', '"user", "new"', 1)).replace("feature_config: {", f"""feature_config: {{
        features {{ input_names: "new" {declared} embedding_dim: 8 }}""").replace(
        "prefetch_size: 32", 'input_fields { input_name: "new" input_type: STRING }')
    assert settings_of(folder, text)["features"]["new"] == feature


# ---- models

def test_batch_norm_is_on_unless_it_is_off(folder):
    assert settings_of(folder, config(MMOE))["model"] == {
        "name": "mmoe", "represent": {"experts": 3, "hidden": [32, 16], "norm": "batch"},
        "predict": {"hidden": [16, 8], "norm": "batch"}}
    plain = settings_of(folder, config(MMOE.replace("hidden_units: [32, 16]", "hidden_units: [32, 16] use_bn: false")))
    assert plain["model"]["represent"] == {"experts": 3, "hidden": [32, 16]}


def test_a_last_layer_of_its_own_is_a_block_of_its_own(folder):
    blocks = settings_of(folder, config(MODELS["aitm_by_blocks"]))["model"]["represent"]["blocks"]
    assert blocks["second_1"]["layer"] == {"name": "mlp", "hidden": [20], "norm": "batch"}
    assert blocks["second"] == {"inputs": "second_1", "layer": {"name": "mlp", "hidden": [16], "activation": "linear"}}
    assert blocks["aitm"] == {"inputs": ["first", "second"], "merge": "list",
                              "layer": {"name": "ait", "variant": "own_keys", "stop_gradient": True}}


def test_labels_by_position_are_resolved_and_told(folder):
    found = imported(folder, config(MODELS["simple_multi_task"]))
    assert document.read(found.text, "x").value["tasks"]["cvr"] == {"label": "buy", "weight": 0.5}
    told = [r for r in found.rows if r.path.endswith("task_towers.tower_name") and "by position, 'buy'" in r.said]
    assert told and told[0].verdict == "carried"


def test_two_classes_are_one_logit_and_more_are_a_softmax(folder):
    text = config(MODELS["simple_multi_task"])
    assert "kind" not in settings_of(folder, text)["tasks"]["cvr"]
    three = settings_of(folder, text.replace("num_class: 2", "num_class: 3"))["tasks"]["cvr"]
    assert (three["kind"], three["classes"]) == ("multiclass", 3)


def test_several_losses_of_a_tower_become_one_with_their_shares(folder):
    tasks = settings_of(folder, config(MODELS["dbmtl"]))["tasks"]
    assert tasks["ctr"] == {"label": "clk", "loss": {"name": "pairwise", "alpha": 0.25, "by": "batch"}, "weight": 4.0}
    assert tasks["cvr"]["loss"] == {"name": "jrc", "alpha": 0.5, "by": "user"}
    focal = towers("losses { loss_type: BINARY_FOCAL_LOSS binary_focal_loss { gamma: 3 alpha: 0.3 } }")
    model = ALL + f'model_class: "SimpleMultiTask" simple_multi_task {{ {focal} }}'
    assert settings_of(folder, config(model))["tasks"]["cvr"]["loss"] == {"name": "focal", "gamma": 3, "alpha": 0.3}


def test_the_calibrator_follows_relations(folder):
    said = settings_of(folder, config(MODELS["aitm_by_towers"]))
    assert said["tasks"]["cvr"]["after"] == "ctr" and said["model"]["calibrator"] == 0.6
    assert said["data"]["contradictions"] == "keep"                  # labels stay what they are, as there


def test_a_calibrator_without_a_relation_is_an_error_with_its_fix(folder):
    model = MODELS["aitm_by_towers"].replace('relation_tower_names: ["ctr"]', "")
    with pytest.raises(ConfigError) as error:
        imported(folder, config(model))
    said = str(error.value)
    assert said.startswith("source.config:")
    assert 'it would always be 0; add relation_tower_names: ["ctr"] to the tower \'cvr\', or remove the loss' in said


def test_both_forms_of_aitm(folder):
    by_towers = settings_of(folder, config(MODELS["aitm_by_towers"]))["model"]["represent"]
    assert by_towers["blocks"]["cvr_ait"] == {"inputs": ["cvr_ait_of_ctr_tower", "cvr_ait_of_cvr_tower"],
                                              "merge": "list",
                                              "layer": {"name": "ait", "variant": "own_keys", "gate": None}}
    assert by_towers["blocks"]["cvr_ait_of_cvr_tower"]["layer"] == {"name": "linear", "width": 12}
    by_blocks = settings_of(folder, config(MODELS["aitm_by_blocks"]))["model"]["represent"]
    assert by_blocks["outputs"]["ctr"] != by_blocks["outputs"]["cvr"] == "cvr_relation"


def test_esmm_is_conditional(folder):
    said = settings_of(folder, config(MODELS["esmm"]))
    assert said["model"]["reading"] == "conditional" and said["tasks"]["cvr"] == {"label": "buy", "after": "ctr"}


def test_a_history_shares_the_space_of_what_it_is_compared_with(folder):
    features = settings_of(folder, config(MODELS["multi_tower_din"]))["features"]
    assert features["seen"] == {"kind": "sequence", "separator": "|", "space": "item", "target": "item", "max_len": 20,
                                "latest": "first"}


def test_sequences_beside_read_ones_are_pooled(folder):
    model = MODELS["multi_tower_bst"].replace('"item", "brand"', '"item", "brand", "brands"').replace(
        'seq_att_map {', 'seq_att_map { key: "brand" hist_seq: "brands" } seq_att_map {').replace(
        'bst_towers', 'din_towers { input: "none" dnn { hidden_units: 1 } } bst_towers')
    with pytest.raises(ConfigError, match="seq_att_groups has no group 'none'"):
        (folder / "a.config").write_text(config(model))
        write([folder / "a.config"])


def test_selection_of_features_stands_ahead_of_everything(folder):
    said = settings_of(folder, config(MMOE + "variational_dropout { regularization_lambda: 0.64 }"))
    assert said["model"]["prepare"] == [{"name": "variational_dropout", "price": 0.01}]      # of a batch of 64


def test_optimiser_and_course_of_the_learning_rate(folder):
    said = settings_of(folder, config(MMOE))
    assert said["train"]["optimiser"] == {"name": "adam", "lr": 0.001, "l2": 1e-6}
    assert said["train"]["schedule"] == {"name": "exponential", "decay": 0.5, "every": 1000, "final": 0.01}
    assert said["embedding"]["optimiser"] == {"name": "adam", "lr": 0.001, "l2": 5e-6} and said["train"]["steps"] == 20
    assert (said["embedding"]["width"], said["embedding"]["init"]) == (8, 0.3536)
    two = config(MMOE).replace("num_steps: 20", """num_steps: 20 optimizer_config { sgd_optimizer {
        learning_rate { constant_learning_rate { learning_rate: 0.1 } } } }""")
    assert settings_of(folder, two)["train"]["optimiser"]["name"] == "sgd"


# ---- lambdas

BLOCKS = ALL + """model_class: "RankModel" backbone {
    blocks { name: "a" inputs { feature_group_name: "all" }
             keras_layer { class_name: "MLP" mlp { hidden_units: [8] } } }
    blocks { name: "b" inputs { feature_group_name: "all" }
             keras_layer { class_name: "MLP" mlp { hidden_units: [8] } } } MORE } model_params { }"""


@pytest.mark.parametrize("body, block", [
    ("lambda x: x[0] * x[1]", {"inputs": ["a", "b"], "merge": "product"}),
    ("lambda t: tf.add_n(t)", {"inputs": ["a", "b"], "merge": "sum"}),
    ("lambda x: tf.stack(x, axis=1)", {"inputs": ["a", "b"], "merge": "stack"}),
    ("lambda x: tf.nn.relu(x)", None),
    ("lambda x: __import__('os').system('touch ran')", None),
    ("lambda x: tf.map_fn(lambda y: y, x)", None),
])
def test_lambdas_are_known_by_their_words_and_never_run(folder, body, block):
    text = config(BLOCKS.replace("MORE", f"""blocks {{
        name: "c" inputs {{ block_name: "a" }} inputs {{ block_name: "b" }} merge_inputs_into_list: true
        lambda {{ expression: "{body}" }} }}"""))
    found = imported(folder, text)
    drawn = document.read(found.text, "x").value["model"]["represent"]["blocks"]
    if block:
        assert drawn["c"] == block and not found.of("refused")
    else:
        assert "nn.relu" in body or [r.path for r in found.of("refused")] == [
            "model_config.backbone.blocks.lambda.expression"]
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("wrong, words", [
    ('blocks { name: "c" inputs { block_name: "d" } } blocks { name: "d" inputs { block_name: "c" } }', "c > d > c"),
    ('blocks { name: "c" inputs { block_name: "aa" } }', "no block 'aa'; there are a, b, c"),
    ('blocks { name: "c" inputs { feature_group_name: "al" } }', "no feature group 'al'; there are all"),
    ('concat_blocks: ["z"]', "no block 'z'"),
    ('blocks { name: "a" inputs { feature_group_name: "all" } }', "a second block 'a'"),
    ('blocks { name: "c" inputs { package_name: "p" } }', "no package 'p'"),
    ('blocks { name: "c" }', "reads nothing"),
])
def test_blocks_that_do_not_hang_together_are_told_with_their_line(folder, wrong, words):
    with pytest.raises(ConfigError) as error:
        imported(folder, config(BLOCKS.replace("MORE", wrong)))
    assert words in str(error.value) and all(m.startswith("source.config:") for m in error.value.messages)


def test_blocks_on_which_nothing_depends_are_left_out(folder):
    found = imported(folder, config(BLOCKS.replace("MORE", 'concat_blocks: ["b"]')))
    assert list(document.read(found.text, "x").value["model"]["represent"]["blocks"]) == ["b"]
    assert {r.verdict for r in found.rows if r.path == "model_config.backbone.blocks.keras_layer.class_name"} == {
        "carried", "ignored"}


def test_packages_that_are_given_something_share_their_weights(folder):
    text = config(BLOCKS.replace("MORE", """packages { name: "deep"
        blocks { name: "in" inputs { use_package_input: true }
                 keras_layer { class_name: "MLP" mlp { hidden_units: [4] } } } }
        blocks { name: "c" inputs { package_name: "deep" package_input: "a" } }
        blocks { name: "d" inputs { package_name: "deep" package_input: "b" } }"""))
    represent = settings_of(folder, text)["model"]["represent"]
    assert represent["packages"]["deep"]["shared"] is True and len(represent["packages"]["deep"]["blocks"]) == 1
    assert [b["package"] for b in represent["blocks"].values() if "package" in b] == ["deep", "deep"]


# ---- what is no config

@pytest.mark.parametrize("text, words", [
    ("a: {", "source.config:1: not protobuf text"),
    ("a: 1", "looks like no config of EasyRec or TorchEasyRec"),
    (config(MMOE).replace("batch_size: 64", "batch_size: 'many'"), "batch_size: found 'many'; must be a whole number"),
    (config(MMOE).replace("batch_size: 64", "batch_size: 64 batch_size: 32"), "written twice, first on line"),
    (config(MMOE.replace('"user"', '"usr"', 1)), "no feature 'usr' is declared"),
    (config(MMOE + 'feature_groups { group_name: "none" }'), "group 'none' has no features"),
    (config(ALL + 'model_class: "DSSM" dssm { }'), None),
])
def test_what_is_no_config_is_told_with_its_line(folder, text, words):
    if words is None:
        assert "there is no importer for DSSM" in row(imported(folder, text), "model_config.model_class").said
        return
    with pytest.raises(ConfigError) as error:
        imported(folder, text)
    assert words in str(error.value)


def test_rows_hold_what_they_should():
    assert len(rows(5).splitlines()) == 5 and group("g", "a").startswith('feature_groups { group_name: "g" ')
    assert "MODEL" in PIPELINE and "ORDER_CALIBRATE" in CALIBRATED


SPACE = 'task_space_indicator_label: "clk" in_task_space_weight: {} out_task_space_weight: {}'


@pytest.mark.parametrize("inside, outside, within, weight, verdict", [
    (1, 0, "ctr", 0.5, "carried"), (2, 0, {"task": "ctr", "inside": 2, "outside": 0}, 1.0, "carried"),
    (1, 0.1, {"task": "ctr", "inside": 1, "outside": 0.1}, 0.5, "approximated"), (1, 1, None, 0.5, "ignored")])
def test_rows_of_a_tasks_space_weigh_as_they_did(folder, inside, outside, within, weight, verdict):
    """EasyRec divides by how many rows weigh anything: a weight inside alone is a weight of the task."""
    found = imported(folder, config(MMOE.replace("weight: 0.5", "weight: 0.5 " + SPACE.format(inside, outside))))
    said = document.read(found.text, "x").value["tasks"]["cvr"]
    assert said.get("within") == within and said.get("weight", 1.0) == weight
    assert row(found, "model_config.mmoe.task_towers.out_task_space_weight").verdict == verdict


@pytest.mark.parametrize("model, space, words", [
    (MMOE, SPACE.format(1, 0).replace("clk", "shown"), "no tower learns 'shown'; add one"),
    (MMOE, SPACE.format(0, 1), "rows inside weigh more than 0"),
    (MODELS["esmm"], SPACE.format(1, 0), "both losses of ESMM are over all rows")])
def test_a_space_that_cannot_be_carried_is_refused_by_name(folder, model, space, words):
    text = config(model.replace('tower_name: "cvr"', f'tower_name: "cvr" {space}'))
    assert any(words in r.said for r in imported(folder, text).of("refused"))


def test_what_only_check_finds_wrong_has_the_line_that_it_comes_from(folder):
    """A rate that ends below 0: no key by itself is wrong to the importer."""
    text = config(MMOE).replace("min_learning_rate: 0.00001", "min_learning_rate: -1")
    line = next(i for i, said in enumerate(text.splitlines(), 1) if "learning_rate: {" in said)
    with pytest.raises(ConfigError, match=rf"source.config:{line}: imported, it would not be a config: "
                                          r"train.schedule.final: found -1000"):
        imported(folder, text)


def test_a_packages_blocks_have_names_of_their_own(folder):
    """A block may be called as the one within the package that it uses; a package that uses itself is still told."""
    drawn = ALL + """model_class: "RankModel" backbone {
        packages { name: "deep" blocks { name: "it" inputs { feature_group_name: "all" }
                                         keras_layer { class_name: "MLP" mlp { hidden_units: [4] } } } }
        blocks { name: "it" inputs { package_name: "deep" } } } model_params { }"""
    blocks = settings_of(folder, config(drawn))["model"]["represent"]["blocks"]
    assert [b.get("layer", {}).get("hidden") for b in blocks.values()] == [[4]]
    ring = drawn.replace('inputs { feature_group_name: "all" }', 'inputs { package_name: "deep" }')
    with pytest.raises(ConfigError, match="package 'deep' uses itself"):
        imported(folder, config(ring))


def test_a_sequence_without_a_key_is_pooled_beside_the_attention(folder):
    inner = """sequence_features { group_name: "past" allow_key_search: true need_key_feature: true
        seq_att_map { key: "item" hist_seq: "seen" aux_hist_seq: "brands" } }"""
    text = config(group("all", "user", "item", inner=inner) + 'model_class: "SimpleMultiTask" '
                  + f"simple_multi_task {{ {towers()} }}")
    found = imported(folder, text)
    said = document.read(found.text, "x").value
    assert said["features"]["brands"]["kind"] == "sequence" and "target" not in said["features"]["brands"]
    assert "brands" in str(said["embedding"]["groups"]) and "seen_attention" in said["model"]["represent"]["blocks"]
    assert [r.said for r in found.of("approximated") if r.path.endswith("aux_hist_seq")] == [
        "the mean of its entries, beside the attention"]
    with pytest.raises(ConfigError, match="aux_hist_seq: no feature 'brnds' is declared"):
        imported(folder, text.replace('aux_hist_seq: "brands"', 'aux_hist_seq: "brnds"'))
