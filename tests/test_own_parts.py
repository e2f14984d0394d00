"""Parts of the user's own, named module:Class: imported only with allow_code, held to the contract, kept by name."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from funnelrank import Ranker, api, cli, config, own_parts
from funnelrank.errors import ConfigError

DOC = (Path(__file__).parents[1] / "docs" / "own_models.md").read_text()
PART = DOC.split("```python\n")[1].split("```")[0]
ROWS = 400
MODEL = DOC.split("```yaml\n")[1].split("```")[0]
REST = """\
data: {train: train.parquet, valid: valid.parquet, test: test.parquet, scenario: scenario, user: user_id}
features: {item_id: {min_count: 1}, scenario: id, price: number}
tasks: {click: {}, buy: {after: click}}
train: {threads: 1, epochs: 1, out: %s}
evaluate: {frozen: false, intervals: none}
"""


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    """Modules that a test imports are gone after it."""
    before = set(sys.modules)
    monkeypatch.setattr(own_parts, "_imported", {})
    monkeypatch.setattr(own_parts, "_sources", {})
    yield
    for name in set(sys.modules) - before:
        if not (getattr(sys.modules[name], "__file__", None) or "").startswith(sys.prefix):
            del sys.modules[name]


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """A folder with my_parts.py, shop.yaml and its log; the current one is another."""
    folder = tmp_path / "shop"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for split in ("train", "valid", "test"):
        click = rng.random(ROWS) < 0.4
        pq.write_table(pa.table({
            "item_id": rng.integers(0, 20, ROWS), "user_id": rng.integers(0, 50, ROWS), "price": rng.random(ROWS),
            "scenario": rng.choice(["a", "b"], ROWS), "click": click.astype(int),
            "buy": (click & (rng.random(ROWS) < 0.5)).astype(int)}), folder / f"{split}.parquet")
    (folder / "my_parts.py").write_text(f"import os\nos.environ['RAN'] = 'yes'\n{PART}")
    (folder / "shop.yaml").write_text(REST % (folder / "run") + MODEL)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("RAN", "no")
    return folder


def said(capsys, *tokens):
    code = cli.main([str(t) for t in tokens])
    return code, capsys.readouterr().err


def test_it_trains_scores_and_keeps_its_name_and_never_runs_unasked(shop, capsys, monkeypatch):
    sentence = "'my_parts:Gated' names code of somebody's own, which is imported and run only with --allow-code"
    for words in (["check", shop / "shop.yaml"], ["train", shop / "shop.yaml"], ["describe", shop / "shop.yaml"]):
        code, err = said(capsys, *words)
        assert code == 2 and sentence in err and "shop.yaml:8:15: model.represent.name" in err and err.count("\n") == 1
    assert os.environ["RAN"] == "no" and "my_parts" not in sys.modules
    for words in (["check"], ["train"], ["train"]):                    # the second training finds a finished run
        assert said(capsys, *words, shop / "shop.yaml", "--allow-code") == (0, "")
    assert os.environ["RAN"] == "yes"
    manifest = json.loads((shop / "run" / "artefact" / "manifest.json").read_text())
    assert "code of my_parts:Gated" in manifest["about"]["versions"]
    assert "my_parts:Gated" in (shop / "run" / "artefact" / "config.yaml").read_text()

    del sys.modules["my_parts"]
    monkeypatch.setenv("RAN", "no")
    scores = ["predict", shop / "run", shop / "test.parquet", "--out", "scores.parquet"]
    serve, export = ["serve", shop / "run", "--check"], ["export", shop / "run", "--to", "onnx", "--out", "graph"]
    for words in (scores, ["evaluate", shop / "run"], ["describe", shop / "run"], ["reproduce", shop / "run"],
                  ["replay", shop / "run", "--step", "1"], serve, export):
        code, err = said(capsys, *words)
        assert code == 2 and sentence in err and err.count("\n") == 1, err
    with pytest.raises(ConfigError, match=sentence):
        Ranker.load(shop / "run")
    assert os.environ["RAN"] == "no" and "my_parts" not in sys.modules
    code, err = said(capsys, *scores, "--allow-code")
    assert code == 2 and f"no such module in {Path.cwd()}, or where Python itself looks" in err
    monkeypatch.chdir(shop)
    for words in (scores, ["reproduce", shop / "run"], ["describe", shop / "run", "--shapes"], serve,
                  [*export, "--verify"]):
        assert said(capsys, *words, "--allow-code") == (0, "")
    assert len(pq.read_table("scores.parquet")) == ROWS


def test_code_that_changed_does_not_go_on_with_a_run(shop, capsys):
    trained = ["train", shop / "shop.yaml", "--allow-code"]
    assert said(capsys, *trained)[0] == 0
    record = json.loads((shop / "run" / "run.json").read_text())
    (shop / "run" / "run.json").write_text(json.dumps(record | {"state": "running"}))
    with open(shop / "my_parts.py", "a") as file:
        file.write("# another word\n")
    assert said(capsys, *trained)[0] == 0                  # this process has imported the text that was there before
    (shop / "run" / "run.json").write_text(json.dumps(record | {"state": "running"}))
    del sys.modules["my_parts"]
    own_parts._sources.clear()
    code, err = said(capsys, *trained)
    assert code == 2 and "has not finished, of another config or data (code of my_parts:Gated was" in err


def test_its_keys_are_checked_like_those_of_ours(shop):
    for edit, words in (
            ("width=0", "model.represent.width: found 0; must be a whole number above 0"),
            ("width=wide", "model.represent.width: found 'wide'; must be a whole number above 0"),
            ("bais=true", "model.represent.bais: unknown key (did you mean 'bias'?)"),
            ("name=my_parts:Gatd", "has no such name; a part is a class that derives from torch.nn.Module"),
            ("name=my_parts:Annotated", "a part is a class that derives from torch.nn.Module")):
        with pytest.raises(ConfigError) as caught:
            config.load(shop / "shop.yaml", [f"model.represent.{edit}"], allow_code=True)
        assert len(caught.value.messages) == 1 and words in str(caught.value), str(caught.value)
    read = config.load(shop / "shop.yaml", allow_code=True)
    assert read.settings.model["represent"] == {"name": "my_parts:Gated", "width": 32, "bias": True}
    Path("again.yaml").write_text(config.dump(read))
    assert config.load("again.yaml", allow_code=True) == read
    short = config.load(shop / "shop.yaml", ["model.represent=my_parts:Gated", "model.side=['lr']"], allow_code=True)
    assert short.settings.model["represent"]["width"] == 64


@pytest.mark.parametrize("name", ["my_parts", "os:system", "my_parts:", ":Gated", "../my_parts:Gated", "my_parts:a.b",
                                  "my_parts:Gated:x", "a b:c", "__import__('os'):x", "my_parts:__class__", "json:dumps",
                                  "torch.nn:Module", "torch.nn:Linear", "./my_parts:Gated", "my_parts;os:system",
                                  "mу_parts:Gated", "funnelrank.config:Config", "http://x/y:Z", "__main__:X", "nope:X"])
def test_hostile_names_are_one_sentence(shop, name):
    for allowed in (False, True):
        with pytest.raises(ConfigError) as caught:
            config.load(shop / "shop.yaml", [f"model.represent.name={json.dumps(name)}", "model.represent.width=64"],
                        allow_code=allowed)
        assert "model.represent" in caught.value.messages[0]
    assert os.environ["RAN"] == ("yes" if name == "my_parts:__class__" else "no")


BODIES = {
    "raise OSError('no disk')": "'bad' cannot be imported: OSError: no disk (",
    "import nowhere_at_all": "'bad' cannot be imported: No module named 'nowhere_at_all'",
    "def (": "'bad' cannot be imported: SyntaxError",
    "raise SystemExit": "'bad' ends the program while it is imported",
    "class P(nn.Module): pass": "'bad:P': has no `needs`",
    "class P(nn.Module):\n    needs = Needs()\n    def __init__(self, spec, width=3): pass": "its constructor must be",
    "class P(nn.Module):\n    needs = Needs()\n    def __init__(self, spec, *, name: str): pass": "constructor must be",
    "class P(nn.Module):\n    needs = Needs()\n    def __init__(self, spec, **keys): pass": "its constructor must be",
    "class P(nn.Module):\n    needs = Needs()\n    def __init__(self, spec, *, a: nn.Module = None): pass":
        "a key's type is none that a config can say",
}


@pytest.mark.parametrize("body", BODIES)
def test_a_class_that_no_slot_can_use_is_one_sentence(shop, body):
    (shop / "bad.py").write_text(f"from torch import nn\nfrom funnelrank.inputs import Needs\n{body}\n")
    with pytest.raises(ConfigError) as caught:
        config.load(shop / "shop.yaml", ["model.represent=bad:P"], allow_code=True)
    assert len(caught.value.messages) == 1 and BODIES[body] in str(caught.value), str(caught.value)


WRONG = {
    "self.views, self.hidden": ("self.seen, self.hidden", "model.represent: 'my_parts:Gated' has no `views`"),
    "return h.unsqueeze(1)": ("return h", r"gave \[400, 32\]; of 400 rows this slot gives \[400, 1, 32\], \[B, views"),
    "self.value = nn": ("self.value = 1 / 0 or nn", r"cannot be built: ZeroDivisionError: division by zero \(.*"),
    "self.value(x.flat)": ("self.value(x.fields)", r"my_parts.py, line \d+: .*a part of your own"),
}


@pytest.mark.parametrize("right", WRONG)
def test_what_a_part_does_wrong_is_told_with_its_place(shop, capsys, right):
    wrong, words = WRONG[right]
    text = (shop / "my_parts.py").read_text()
    assert right in text
    (shop / "my_parts.py").write_text(text.replace(right, wrong))
    code, err = said(capsys, "train", shop / "shop.yaml", "--allow-code", "--set", "train.batch_size=1024")
    assert code == 2 and re.search(words, err) and "Traceback" not in err, err


def test_the_configs_folder_comes_first_and_a_taken_name_is_refused(shop):
    Path("my_parts.py").write_text("raise AssertionError('the current folder came first')")
    before = list(sys.path)
    config.load(shop / "shop.yaml", allow_code=True)
    assert sys.path == before
    (shop / "random.py").write_text(PART)
    with pytest.raises(ConfigError, match="random.py would be imported, but this process already has another module"):
        config.load(shop / "shop.yaml", ["model.represent=random:Gated"], allow_code=True)
    other = Path("other.yaml")
    other.write_text((shop / "shop.yaml").read_text())
    Path("my_parts.py").write_text(PART)
    with pytest.raises(ConfigError, match="already has another module 'my_parts'"):       # not that of the first config
        config.load(other, allow_code=True)


def test_a_run_goes_on_from_one_with_a_part_of_its_own(shop):
    first = config.load(shop / "shop.yaml", allow_code=True)
    api.train(first)
    more = config.load(shop / "shop.yaml", [f"train.out={shop}/more"], allow_code=True)
    run = api.train(more, continue_from=shop / "run")
    assert run.ranker.continued["trainings"] == 1
    with pytest.raises(ConfigError, match="names code of somebody's own"):
        api.before_of(shop / "run", config.load(shop / "shop.yaml", ["model.represent=mlp"]))


def test_editors_take_the_form():
    says = jsonschema.Draft202012Validator(config.shipped_schema()).is_valid
    takes = lambda model: says({"features": {"a": "id"}, "tasks": {"click": {}}, "model": model})
    for model in ({"represent": "my_parts:Gated"}, {"predict": {"name": "a.b:C", "width": 3}}, {"side": ["x:Y", "lr"]}):
        assert takes(model)
    for model in ({"represent": "my_parts"}, {"represent": {"name": "../a:B"}}, {"side": ["x y:Z"]}):
        assert not takes(model)


def test_a_config_of_our_own_parts_imports_no_torch(shop):
    code = f"import sys; from funnelrank import config; config.load({str(shop / 'shop.yaml')!r}, " \
           "['model.represent=mlp']); assert 'torch' not in sys.modules"
    (shop / "shop.yaml").write_text((shop / "shop.yaml").read_text().replace(', width: 32', ''))
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_a_part_declares_decides_what_it_may_stand_before(shop):
    (shop / "my_two.py").write_text('''
from dataclasses import replace

from torch import nn

from funnelrank.inputs import Needs


class Unsaid(nn.Module):
    needs = Needs()

    def __init__(self, spec):
        super().__init__()
        self.spec = spec

    def forward(self, x):
        return replace(x, flat=2 * x.flat)


class OfFlat(Unsaid):
    changes = ("flat",)
''')
    for name, body, refused in (("Unsaid", "afm", False), ("OfFlat", "mlp", False), ("OfFlat", "afm", True)):
        (shop / "two.yaml").write_text(REST % (shop / "run") + (
            f"model: {{represent: {body}, predict: linear, prepare: ['my_two:{name}']}}\n"))
        if refused:
            with pytest.raises(ConfigError, match="my_two:OfFlat would learn nothing: it gives 'flat', which no part"):
                config.load(shop / "two.yaml", allow_code=True)
        else:
            config.load(shop / "two.yaml", allow_code=True)
