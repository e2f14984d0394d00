import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from funnelrank import check, config, document, fill, schema_file
from funnelrank.errors import ConfigError
from funnelrank.evaluate import table
from funnelrank.schema import resolve

GOOD = """\
data:
  train: train.parquet
  scenario: tab
  user: user_id
features:
  user_id:
  item_id: {space: item}
  price: number
  tab: id
  shown: {kind: sequence, space: item, max_len: 10}
tasks:
  click:
  buy: {after: click}
model: {name: aitm, represent: {hidden: [64]}}
"""


@pytest.fixture
def file(tmp_path):
    def write(text: str | bytes, name="demo.yaml") -> Path:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path
    return write


def faults(source, *sets) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        config.load(source, sets)
    return list(caught.value.messages)


def told(path: Path, *sets) -> list[str]:
    """Faults of a file, without the file's folder."""
    return [m.replace(f"{path.parent}{os.sep}", "") for m in faults(path, *sets)]


def test_an_edit_with_line_ends_is_told_in_one_line(file):
    for edit in ("a..b=\n\n", "a\nb", "train.\x1b[2J=3", "train.lr\n=fast"):
        assert all(m.isprintable() for m in told(file(GOOD), edit)), edit


@pytest.mark.parametrize("edit, said", [
    ("train.optimiser=adam", "train.optimiser: found 'adam'; must be a mapping with the keys name, lr, betas, eps, l2"),
    ("calibrate=platt", "calibrate: found 'platt'; must be a mapping with the keys method, by"),
    ("data.delimiter=;", "data.delimiter: unknown key here; 'delimiter' is a key of 'csv'"),
    ("model.hidden=[8]", "model.hidden: unknown key here; 'hidden' is a key of 'prepare', 'represent', 'transfer'"),
    ("model.experts=8", "model.experts: unknown key here; 'experts' is a key of 'represent'"),
])
def test_a_value_or_key_that_stands_one_level_off_is_told_where_it_goes(file, edit, said):
    assert any(said in m for m in faults(file(GOOD), edit))


# ---- what a good config becomes

def test_a_short_config_is_filled_with_every_default(file):
    c = config.load(file(GOOD))
    assert c.name == "demo" and c.settings.train.out == os.path.join("runs", "demo")
    assert c.settings.model["represent"] == {"name": "mlp", "per": "task", "hidden": [64], "activation": "relu",
                                             "dropout": 0.0, "norm": None}
    assert c.settings.model["transfer"]["variant"] == "self_gate" and c.settings.model["reading"] == "joint"
    assert c.settings.model["calibrator"] == 0.6
    assert "length(shown)" in c.schema.features and c.schema.task_names == ["click", "buy"]


@pytest.mark.parametrize("tasks", ["{y: }", "{y: , z: {after: y}}"])
def test_a_config_that_names_no_model_has_the_recipe_auto(file, tasks):
    named, bare = (config.load(file(f"features: {{a: }}\ntasks: {tasks}\n{line}")) for line in ("model: auto\n", ""))
    assert bare == named and bare.settings.model["represent"]["name"] == "dcn_v2"


def test_data_starts_at_the_files_folder_or_where_an_edit_was_typed(file, tmp_path, monkeypatch):
    path = file(GOOD)
    monkeypatch.chdir("/")
    assert config.load(path).settings.data.dir == str(tmp_path)
    assert config.load(path, ["data.dir=logs/october"]).settings.data.dir == "/logs/october"
    assert config.load(file(GOOD.replace("data:", "data:\n  dir: ../logs"))).settings.data.dir == str(
        tmp_path.parent / "logs")
    assert config.load(path, ["data.dir=s3://bucket/log"]).settings.data.dir == "s3://bucket/log"


def test_a_mapping_says_what_a_file_says(file):
    said = {"data": {"train": Path("train.parquet"), "scenario": "tab", "user": "user_id"},
            "features": {"user_id": None, "item_id": {"space": "item"}, "price": "number", "tab": "id",
                         "shown": {"kind": "sequence", "space": "item", "max_len": 10}},
            "tasks": {"click": {}, "buy": {"after": "click"}},
            "model": {"name": "aitm", "represent": {"hidden": (64,)}}}
    path = file(GOOD)
    same = config.load(said, [f"data.dir={path.parent}", "train.out=runs/demo"])
    assert same == config.load(path)
    assert said["features"]["user_id"] is None, "the caller's mapping is left alone"


def test_bare_words_and_empty_sections_are_short_for_mappings(file):
    c = config.load(file("features: {a: , b: number}\ntasks: {y: }\nmodel: shared_bottom\ntrain:\n"))
    assert c.schema.features["a"].kind == "id" and c.schema.features["b"].kind == "number"
    assert c.settings.model["predict"]["name"] == "towers" and c.settings.model["calibrator"] == 0


def test_swapping_a_part_keeps_what_the_recipe_says_of_per(file):
    c = config.load(file(GOOD), ["model.represent=mlp", "model.transfer=null"])
    assert c.settings.model["represent"]["per"] == "task" and c.settings.model["transfer"] is None


@pytest.mark.parametrize("sets", [(), ("model.name=shared_bottom", "model.reading=conditional"),
                                  ("data.memory=1.5GiB", "features.price.boundaries=[-1e9, 0.5, 3]"),
                                  ('data.csv.delimiter="\\t"', "features.price.clip=null"),
                                  ('tasks.buy.label="no: \'way\' # x"', "train.optimiser.eps=1e-12")])
def test_a_dumped_config_loads_back_equal(file, sets):
    c = config.load(file(GOOD), sets)
    text = config.dump(c)
    again = config.load(file(text, "demo.yaml"))
    assert again == c and config.dump(again) == text


VALUES = st.recursive(st.none() | st.booleans() | st.integers(-2**70, 2**70) | st.floats(allow_nan=False) | st.text(),
                      lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(min_size=1), v, max_size=3),
                      max_leaves=8)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.text(min_size=1), VALUES, min_size=1, max_size=4))
def test_whatever_is_written_is_read_back(value):
    if "<<" in json.dumps(value, ensure_ascii=False):
        return
    again = document.read(document.write(value), "x").value
    assert again == value and json.dumps(again) == json.dumps(value)       # 1.0 is not 1, true is not 1


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=":-{}[]&*!|>'\"#%@`\\ \n\tabc0.,?~<\x00\u2028", max_size=40))
def test_any_text_is_read_or_refused_in_one_sentence(text):
    try:
        document.read(text, "x.yaml")
    except ConfigError as error:
        assert error.messages[0].startswith("x.yaml") and "\n" not in error.messages[0]


@pytest.mark.parametrize("word, value", [
    ("no", "no"), ("12:30", "12:30"), ("1e-3", 0.001), ("1_000", "1_000"), ("0x1F", 31), ("0o17", 15), ("017", 17),
    ("~", None), ("", None), ("true", True), ("yes", "yes"), ("2026-01-01", "2026-01-01"), ("'5'", "5"),
    ("+.inf", float("inf")), ("!!str 5", "5"), (".5", 0.5), ("5.", 5.0)])
def test_words_mean_what_yaml_1_2_says(word, value):
    found = document.read(f"a: {word}", "x").value["a"]
    assert found == value and type(found) is type(value)


# ---- faults

def test_all_faults_are_reported_at_once_in_the_files_order(file):
    *names, last = (f"'{name}'" for name in config.shipped_schema()["x-recipes"])
    known = f"{', '.join(names)} or {last}"
    path = file("""\
data:
  trian: train.parquet
  memory: lots
features:
  user_id: {min_cout: 3}
  price: nmber
  z: {hash_buckets: 3, vocab_list: [a]}
  x: {kind: share, of: user_id}
tasks:
  click: {after: clik}
  buy: {after: click, after: click}
model:
  name: atim
  transfer: {name: at}
train:
  lr: 0.1
  batch_size: fast
  optimiser: {betas: [0.9]}
nonsense: 1
""")
    assert told(path, "train.seed=-1") == [
        "demo.yaml:2:3: data.trian: unknown key (did you mean 'train'?)",
        "demo.yaml:3:3: data.memory: a size is a number of bytes or a text like '2GB', '500MB' or '1.5GiB'",
        "demo.yaml:5:13: features.user_id.min_cout: unknown key (did you mean 'min_count'?)",
        "demo.yaml:6:3: features.price: found 'nmber'; must be 'id', 'number', 'vector', 'bag', 'sequence', 'history', "
        "'cross', 'length', 'share', 'match', 'gap' or 'rate' (did you mean 'number'?)",
        "demo.yaml:7:7: features.z.hash_buckets: an id space is made one way, but hash_buckets and "
        "vocab_list are all given; keep one",
        "demo.yaml:8:3: features.x.within: missing; it must be a text",
        "demo.yaml:10:11: tasks.click.after: no task 'clik'; tasks are 'click' and 'buy' (did you mean 'click'?)",
        "demo.yaml:11:23: tasks.buy.after: written twice, first on line 11; keep one",
        f"demo.yaml:13:3: model.name: found 'atim'; must be {known} or null "
        "(did you mean 'aitm'?)",
        "demo.yaml:14:14: model.transfer.name: found 'at'; must be 'ait' or 'dbmtl' (did you mean 'ait'?)",
        "demo.yaml:16:3: train.lr: unknown key here; 'lr' is a key of 'optimiser'",
        "demo.yaml:17:3: train.batch_size: found 'fast'; must be a whole number of at least 1",
        "demo.yaml:18:15: train.optimiser.betas: found a list of 1; must be a list of 2 numbers of at least 0 and "
        "below 1",
        "demo.yaml:19:1: nonsense: unknown key; keys here are data, features, tasks, embedding, model, train, "
        "calibrate, evaluate, tune",
        "--set train.seed: found -1; must be a whole number of at least 0 and below 9223372036854775808",
    ]


@pytest.mark.parametrize("edit, said", [
    ("train.batch_size=0", "found 0; must be a whole number of at least 1"),
    ("train.batch_size=2.5", "found 2.5; must be a whole number of at least 1"),
    ("train.batch_size='5'", "found the text '5'; must be a whole number of at least 1"),
    ("train.batch_size=true", "found true; must be a whole number of at least 1"),
    ("train.batch_size=", "found nothing; must be a whole number of at least 1, or leave the key out"),
    ("train.batch_size=" + "9" * 500, "must be a whole number of at least 1"),
    ("train.threads=100000000000", "must be a whole number of at least 1 and at most 4096"),
    ("train.optimiser.betas=[1.0, 0.9]", "[0]: found 1.0; must be a number of at least 0 and below 1"),
    ("train.optimiser.l2=1e300", "must be a number of at least 0 and at most 1e+06"),
    ("features.price={hash_buckets: 3000000000}", "hash_buckets: found 3000000000; must be a whole number of"),
    ("data.csv.delimiter='\"'", "a delimiter is one ASCII character, and neither a quote nor a line end"),
    ("data.csv.delimiter=§", "a delimiter is one ASCII character"),
    ("train.epochs=0", "epochs must be at least 1, or 'auto'"),
    ("train.average=.nan", "found nan; must be a number above 0 and below 1 or null"),
    ("evaluate.frozen=yes", "found 'yes'; must be true or false"),
    ("data.contradictions=rise", "must be 'raise', 'keep', 'drop' or 'repair' (did you mean 'raise'?)"),
    ("data.train={a: 1}", "found a mapping; must be a text or a list of texts or null"),
    ("data.train=[a, 1]", "[1]: found 1; must be a text"),
    ('train.batch_size="a\\nb"', "found 'a\\nb'; must be a whole number"),
    ("features.price.kind=5", "found 5; must be 'id', 'number'"),
    ("features.price=[1]", "found a list; must be 'id', 'number'"),
    ("features.shown.target=price", "'price' is no id feature of space 'item'"),
    ("features.lists=on", "found 'on'; must be 'auto' or 'off'"),
    ("model.represent.hidden=[64, x]", "[1]: found 'x'; must be a whole number above 0"),
    ("model.represent.dropout=1", "found 1; must be a number of at least 0 and below 1"),
    ("model.represent.wings=2", "unknown key; keys here are name, hidden, activation"),
    ("model.represent.name=5", "found 5; must be 'mlp'"),
    ("model.calibrator=-1", "found -1; must be a number of at least 0 or null"),
    ("model.relations={buy: [clik]}", "no task 'clik'; tasks are 'click' and 'buy' (did you mean 'click'?)"),
    ("embedding.groups={g: [prise]}", "no feature 'prise' (did you mean 'price'?)"),
    ("tasks.buy.label=price", "reads column 'price', which is the label of task 'buy'"),
    ("tasks.buy.within=clik", "task: no task 'clik'; tasks are 'click' and 'buy' (did you mean 'click'?)"),
    ("tasks.buy.within={task: click, outside: 1}", "inside and outside are the same, so all rows weigh alike"),
    ("tasks.click.after=byu", "no task 'byu'; tasks are 'click' and 'buy' (did you mean 'buy'?)"),
])
def test_a_fault_says_what_was_found_and_what_would_do(file, edit, said):
    messages = faults(file(GOOD), edit)
    assert len(messages) == 1 and said in messages[0], messages
    assert messages[0].startswith(f"--set {edit.split('=')[0]}: ") or "features.price" in messages[0]


@pytest.mark.parametrize("edit, said", [
    ("train.batch_size", "must be of the form a.b=value"),
    ("=5", "must be of the form a.b=value"),
    ("a..b=5", "must be of the form a.b=value"),
    ("train.batch_size=[", "--set train.batch_size: not YAML:"),
    ("train.batch_size.x=5", "train.batch_size: found a mapping; must be a whole number"),
    ("tasks.buy[0]=5", "'tasks.buy' is no list, so it has no [0]"),
    ("model.represent.hidden[5]=5", "'model.represent.hidden' is a list of 1, so it has no [5]"),
    ("data.train.x=5", "'data.train' is a value, so it has no 'x'"),
])
def test_an_edit_that_cannot_be_applied_is_named(file, edit, said):
    messages = faults(file(GOOD.replace("batch_size", "bs")), edit)
    assert any(said in m and m.startswith("--set ") for m in messages), messages


def test_edits_reach_lists_short_forms_and_sections_that_are_not_written(file):
    c = config.load(file(GOOD), ["model.represent.hidden[0]=32", "model.represent.hidden[1]=16",
                                 "features.price.log=false", "train.optimiser.lr=1e-2", "features.tab.role=scenario"])
    assert c.settings.model["represent"]["hidden"] == [32, 16]
    assert c.settings.features.columns["price"].kind == "number" and not c.settings.features.columns["price"].log
    assert c.settings.train.optimiser.lr == 0.01


def test_an_edit_takes_the_place_of_a_fault_in_the_file(file):
    bad = GOOD + "train: {batch_size: 0}\n"
    assert config.load(file(bad), ["train.batch_size=8"]).settings.train.batch_size == 8
    assert config.load(file(bad), ["train={}"]).settings.train.batch_size == 1024


@pytest.mark.parametrize("text, said", [
    ("", "demo.yaml: is empty"), ("# only a comment\n", "is empty"), ("- a\n- b\n", "is no mapping"),
    ("5", "is no mapping"),
    (b"\xff\xfe", "byte 0 is not UTF-8"), ("a: \x00", "control character"), ("a: [1, 2\n", "a bracket is not closed"),
    ("data:\n\ttrain: x\n", "demo.yaml:2:1: not YAML: found character '\\t' that cannot start any token; indent with"),
    ("a: b: c\n", "demo.yaml:1:5: not YAML: mapping values are not allowed here"),
    ("a: 1\n---\nb: 2\n", "second document"),
    ("a: {<<: {b: 1}}", "merging with '<<'"), ("a: !!python/object:os.system {}", "has no meaning here"),
    ("a: !x 1", "the tag '!x' has no meaning here"), ("a: *b", "alias '*b'"), ("a: &b [*b]", "alias '*b'"),
    ("? [a]\n: 1", "a key must be a plain word"), ("a: %x", "quote a value that begins with %"),
    ('a: "\\UFFFFFFFF"', "not YAML"),
    ("[" * 100_000, "nested more than 40 deep"), ("{a: " * 100_000, "nested more than 40 deep"),
    ("\n".join(" " * i + "a:" for i in range(1000)), "nested more than 40 deep"),
    ("a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{chr(b + 1)}: &{chr(b + 1)} [{', '.join([f'*{chr(b)}'] * 10)}]\n" for b in range(97, 110)),
     "more than 100000 values"),
])
def test_a_text_that_is_no_config_is_refused_in_one_sentence(file, text, said):
    path, started = file(text), time.process_time()
    message, = told(path)
    assert said in message and message.startswith("demo.yaml") and "\n" not in message
    assert time.process_time() - started < 3


def test_aliases_are_copies(file):
    c = config.load(file("features: {a: &x {min_count: 2}, b: *x}\ntasks: {y: }\nmodel: shared_bottom\n"),
                    ["features.b.min_count=3"])
    assert [c.settings.features.columns[n].min_count for n in "ab"] == [2, 3]


def test_a_path_that_cannot_be_read_is_named(tmp_path, file):
    file(GOOD)
    assert faults(tmp_path / "dmo.yaml") == [f"{tmp_path / 'dmo.yaml'}: no such file (did you mean 'demo.yaml'?)"]
    assert "is a folder" in faults(tmp_path)[0]
    assert "cannot be read" in faults("a\x00b")[0]
    assert "cannot be read" in faults("x" * 5000)[0]
    assert "are too many for a config" in faults(file(b"x" * 5_000_000, "log.csv"))[0]


# ---- settings without effect

@pytest.mark.parametrize("sets, said", [
    (["model.reading=conditional", "model.calibrator=0.6"], "under the conditional reading p(later) <= p(earlier)"),
    (["model.debias=dr"], "under the joint reading a logit is not that; say reading: conditional"),
    (["model={name: escm2_ips, reading: ordinal}"], "under the ordinal reading a logit is not that"),
    (["model.name=dcmt", "tasks={a: , b: }"], "no binary task comes after another, so there is nothing to debias"),
    (["model={name: escm2_dr, side: [fm]}"], "fm is one number a row, and debias: dr reads two of task 'buy'"),
    (["model={name: dcmt, debias: {weight: 0, entire_space: 0}}"], "later steps would learn nothing"),
    (["model.reading=ordinal", "model.calibrator=0.6"], "under the ordinal reading p(later) <= p(earlier)"),
    (["tasks={a: , b: }", "model.name=shared_bottom", "model.calibrator=0.1"], "no binary task comes after another"),
    (["tasks={a: , b: }"], "model.transfer: no task comes after another"),
    (["model={represent: mlp}"], "predict: nothing stands in this slot"),
    (["model={}"], "represent: nothing stands in this slot"),
    (["model.relations={click: buy}"], "'buy' stands behind 'click'"),
    (["model.relations={buy: buy}"], "a task cannot learn from itself"),
    (["train.early_stopping.metric=valid/by/auc"], "no task 'by'; tasks are 'click' and 'buy' (did you mean 'buy'?)"),
    (["train.early_stopping.metric=valid/buy/acu"], "no metric 'acu' to follow for task 'buy'"),
    (["train.early_stopping.metric=auc"], "must be valid/METRIC or valid/TASK/METRIC"),
    (["train.early_stopping.metric=valid/gauc", "data.user=null"], "set data.user"),
    (["evaluate.truth={by: p}"], "--set evaluate.truth: by: no task 'by'"),
    (["tasks.click.weight=0", "tasks.buy.weight=0"], "every task has weight 0"),
    (["tasks.buy.within=buy"], "inside its own label every row is a positive"),
    (["tasks.buy.within=click", "model.reading=conditional"], "a step's loss teaches the steps before it"),
    (["tasks.buy.within=click", "model={name: dcmt, reading: conditional}", "tasks.buy.after=null",
      "tasks.later={after: click}"], "model.debias says itself what rows weigh"),
    (["tasks.spend.kind=count", "data.negatives_kept={task: spend, rate: .5}"], "'spend' is not binary"),
])
def test_what_no_run_can_honour_is_refused(file, sets, said):
    assert any(said in m for m in faults(file(GOOD), *sets))


@pytest.mark.parametrize("sets, said", [
    (["tasks.click.weight=0"], "tasks.click.weight: 0, so this task learns nothing"),
    (["data.scenario=page"], "data.scenario: no feature reads 'page'"),
    (["embedding.groups={g: [price]}"], "embedding.groups.g: no part of the model reads this group"),
    (["train.early_stopping.patience=3"], "there is no data.valid to watch"),
    (["train.evaluate_every=10"], "there is no data.valid to evaluate on"),
    (["tasks.like={}", "data.negatives_kept={task: like, rate: .5}"], "'like' stands beside the funnel 'buy' and"),
    (["tasks={a: }", "model=single_task", "model.reading=conditional"], "all readings are the same here"),
    (["tasks={a: }", "model=single_task", "data.fill_implied=true"], "no label implies another"),
    (["tasks={a: }", "model=single_task", "data.contradictions=keep"], "no labels can contradict"),
    (["data.tables.items={path: x, key: k}"], "no feature reads a column of this table"),
    (["features.price.buckets=5", "features.price.log=false"], "a number cut into buckets is not scaled"),
    (["train.schedule.final=.1"], "a constant schedule has no end value"),
    (["embedding.optimiser.betas=[.5, .9]"], "adagrad has no betas"),
    (["features.shown=id", "data.time=t"], "data.time: only orders"),
    (["features.shown.space=itme"], "no other feature is of the space 'itme', so nothing is shared (did you mean"),
])
def test_what_has_no_effect_is_noted(file, sets, said):
    c = config.load(file(GOOD), sets)
    notes = check.notes(c.settings, c.schema)
    assert any(said in n for n in notes), notes
    assert not [n for n in notes if " " in n.split(": ")[0]]


def test_an_ordinary_config_has_no_notes(file):
    c = config.load(file(GOOD))
    assert check.notes(c.settings, c.schema) == []


def test_a_calibrator_that_cannot_act_is_off_unless_asked_for(file):
    assert config.load(file(GOOD), ["model.reading=conditional"]).settings.model["calibrator"] == 0
    assert config.load(file(GOOD), ["model.calibrator=0"]).settings.model["calibrator"] == 0


def test_features_outside_every_group_that_is_read_are_noted(file):
    c = config.load(file(GOOD), ["embedding.groups={who: [user_id]}"])
    c.settings.model["represent"]["group"] = "who"
    said = [n.split(":")[0] for n in check.unread(c.settings, c.schema)]
    assert said == ["features.price", "features.tab", "features.shown"]       # item_id is the target of a history


# ---- the shipped schema

def test_the_shipped_schema_is_fresh():
    assert schema_file.FILE.read_text() == schema_file.text(), "run python -m funnelrank.schema_file"


def test_an_editor_with_the_schema_agrees_with_us(file):
    validator = jsonschema.Draft202012Validator(config.shipped_schema())
    validator.check_schema(config.shipped_schema())
    for text, good in ((GOOD, True), (GOOD.replace("number", "nmber"), False), (GOOD.replace("hidden", "hiden"), False),
                       (GOOD.replace("price: number", "price: {kind: number, log: 3}"), False)):
        value = document.read(text.replace("user_id:\n", "user_id: id\n").replace("click:\n", "click: {}\n"), "x").value
        assert validator.is_valid(value) is good
    dumped = document.read(config.dump(config.load(file(GOOD))), "x").value
    validator.validate(dumped)


def test_every_part_and_every_setting_is_described():
    shipped = config.shipped_schema()
    for slot, parts in schema_file.PARTS.items():
        for name in parts:
            assert fill.part(shipped, slot, name)["properties"]["name"] == {"const": name}
    assert set(shipped["properties"]) == set(schema_file.Settings.model_fields)


def test_metrics_to_follow_are_those_that_are_measured():
    binary = {m for m, better in table.BINARY.items() if better} - {"gauc_frozen", "violation_rate"}   # not on valid
    assert set(check.METRICS["binary"]) == binary
    other = {m for kind, metrics in check.METRICS.items() if kind != "binary" for m in metrics}
    assert other == {m for m, better in table.OTHER.items() if better}


def test_loading_imports_no_torch(file):
    code = ("import sys; from funnelrank import config; "
            f"config.load({str(file(GOOD))!r}); assert 'torch' not in sys.modules")
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_example_is_good():
    for path in sorted((Path(__file__).parents[1] / "examples").rglob("*.yaml")):
        c = config.load(path)
        assert not [n for n in check.notes(c.settings, c.schema) if re.match("train|model|tasks", n)], path


def test_twice_the_features_take_twice_the_work():
    """Calls of functions, which no machine makes more or fewer: squared ways over features would double the ratio."""
    def calls(n):
        said = {"features": {f"f{i}": {"space": f"s{i}", "min_count": 2} for i in range(n)} | {
            f"l{i}": {"kind": "sequence", "space": f"s{i}"} for i in range(n)} | {"lists": "off"},
            "tasks": {"click": {}}, "model": {"name": "backbone"}}
        wanted, count = config.load(said).settings, 0

        def seen(frame, event, what):
            nonlocal count
            count += event in ("call", "c_call")
        sys.setprofile(seen)
        try:
            check.refusals(wanted, resolve(wanted), config.shipped_schema())
        finally:
            sys.setprofile(None)
        return count
    assert calls(160) < 2.3 * calls(80)
