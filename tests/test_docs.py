"""The pages are true: snippets run, commands work as a newcomer types them, links lead somewhere, and config.md is
what the settings say."""

import re
import shlex
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from cyclopts import CycloptsError
from ruamel.yaml import YAML

import funnelrank as fr
from funnelrank import cli, reference, settings
from funnelrank.config import load, shipped_schema
from funnelrank.evaluate import table
from funnelrank.settings import FEATURE_KINDS
from funnelrank.simulate import simulate

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SPLITS = ("train", "valid", "test")

by_name = lambda path: str(path.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of one language ('' for those that name none), in order."""
    return [text for said, text in re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.M | re.S)
            if said == language]


def run(page: Path, **names) -> dict:
    """Executes a page's python blocks one after another."""
    for number, text in enumerate(blocks(page, "python"), 1):
        exec(compile(text, f"{page.name}, snippet {number}", "exec"), names)
    return names


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def log(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("docs") / "log"
    simulate(folder, rows=2000, users=150, items=60)
    return folder


@pytest.fixture
def shop(log, tmp_path, monkeypatch) -> Path:
    """A folder as the README's reader has it: his own log, whose columns are named as in its shop.yaml."""
    monkeypatch.chdir(tmp_path)
    items = pd.read_parquet(log / "items.parquet")
    items["tags"] = items["tags"].map("|".join, na_action="ignore")
    items.rename(columns={"rating": "price"}).to_parquet("items.parquet")
    names = {"scenario": "tab", "hist_click": "viewed_item_ids", "hist_buy": "bought_item_ids"} | {
        task: f"is_{task}" for task in ("click", "cart", "buy")}
    for split, day in zip(SPLITS, ("2024-05-31", "2024-06-01", "2024-06-02")):
        rows = pd.read_parquet(log / f"{split}.parquet").rename(columns=names)
        Path(f"log/day={day}").mkdir(parents=True)
        rows.to_parquet(f"log/day={day}/part-0.parquet")
    rows.to_parquet("last_week.parquet")
    rows.drop(columns=["is_click", "is_cart", "is_buy"]).to_parquet("tomorrow.parquet")
    (config,) = [b for b in blocks(ROOT / "README.md", "yaml") if b.startswith("# shop.yaml")]
    Path("shop.yaml").write_text(config)
    return tmp_path


def test_readme_from_a_log_to_scores(shop, capsys):
    (commands,) = [b for b in blocks(ROOT / "README.md", "") if "funnelrank check" in b]
    for line in commands.splitlines():
        program, *words = shlex.split(line, comments=True)
        assert program == "funnelrank"
        assert cli.main(words) == 0, f"{line}\n{capsys.readouterr().err}"
    assert {"artefact", "metrics.json", "report.html"} <= {p.name for p in Path("runs/shop").iterdir()}
    scores = pq.read_table("scores.parquet")
    assert scores.column_names == ["user_id", "item_id", "click", "cart", "cart|click", "buy", "buy|cart"]
    assert len(scores) == len(pd.read_parquet("tomorrow.parquet"))
    printed = capsys.readouterr().out
    assert re.search(r"^task +scenario +auc", printed, re.M)
    text = (ROOT / "README.md").read_text()
    assert all(f"`{c}`" in text for c in ("click", "cart", "buy", "cart|click", "buy|cart"))


def test_readme_in_python(shop):
    names = run(ROOT / "README.md", frame=pd.read_parquet("tomorrow.parquet"))
    assert names["ranker"].config.settings.train.seed == 1
    assert (shop / "artefact" / "manifest.json").exists()


def test_python_page(log, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("log").symlink_to(log)
    names = run(ROOT / "docs" / "python.md")
    assert names["scores"].column_names == ["user_id", "item_id", "click", "cart", "cart|click", "buy", "buy|cart"]
    assert str(names["scores"].column_names) in (ROOT / "docs" / "python.md").read_text()
    assert names["curve"] and (tmp_path / "runs" / "first" / "report.html").exists()


def test_config_page_is_fresh():
    assert (ROOT / "docs" / "config.md").read_text() == reference.page(), (
        "run: python -m funnelrank.reference > docs/config.md")


def test_every_key_has_a_meaning():
    keys, section = [], ""
    for line in reference.page().splitlines():
        section = line.lstrip("# ") if line.startswith("#") else section
        if line.startswith("| `") and line.endswith("|  |"):
            keys.append(f"{section}: {line.split('`')[1]}")
    assert not keys, f"say what {keys} mean: in settings.py, in the part's docstring, or in reference.SAID"


def test_no_meaning_is_left_over():
    own = {(c.__name__, k) for c in vars(settings).values() if isinstance(c, type)
           and hasattr(c, "model_fields") for k, f in c.model_fields.items()}
    said = {tuple(k.split(".")) for k in reference.SAID if "." in k and not k.startswith("model.")}
    assert said <= own, said - own


def test_feature_examples_hold(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert reference.EXAMPLES.keys() == FEATURE_KINDS.keys()
    text = ("data: {tables: {items: {path: i, key: item_id}}, events: {log: {path: l}}, user: u, time: t}\n"
            "tasks: {y: {}, click: {}}\nmodel: shared_bottom\n"
            "features:\n")
    extra = "tab: id\ndevice: id\nbought: {kind: sequence, space: item_id}\n"
    lines = (extra + "\n".join(reference.EXAMPLES.values())).splitlines()
    found = load(_written(text + "".join(f"  {line}\n" for line in lines)))
    assert {f.kind for f in found.settings.features.columns.values()} == set(FEATURE_KINDS)


def _written(text: str) -> Path:
    path = Path("config.yaml")
    path.write_text(text)
    return path


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        other = page.parent / name if name else page
        assert other.exists(), f"{by_name(page)}: {target}"
        assert not anchor or anchor in anchors(other), f"{by_name(page)}: {target}"


def anchors(page: Path) -> set[str]:
    """Headings as a browser on GitHub names them."""
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-")
            for h in re.findall(r"^#+ (.*)$", page.read_text(), re.M)}


def test_the_readme_leads_to_every_page():
    led = set(re.findall(r"\]\((docs/[\w/]+\.md)", (ROOT / "README.md").read_text()))
    pages = {by_name(page) for page in PAGES[1:]}
    assert pages <= led, pages - led


def test_metrics_page_names_every_metric():
    text = (ROOT / "docs" / "metrics.md").read_text()
    known = {*table.BINARY, *table.OTHER, "auc_oracle", "logloss_oracle", "pcoc_oracle"}
    assert all(f"`{m}`" in text for m in known)
    assert all(f"`{c}`" in text for c in table.COLUMNS if c != "metric")


def commands() -> list[tuple[str, str]]:
    """(page, line) of every funnelrank command that stands in a fenced block, whatever starts it."""
    found = []
    for page in PAGES:
        for text in blocks(page, ""):
            joined = text.replace("\\\n", " ").splitlines()
            found += [(by_name(page), part) for line in joined for part in line.split("&&")
                      if re.match(r"\s*(torchrun .* -m )?funnelrank \S", part)]
    return found


def test_commands_of_the_pages_can_be_typed():
    """As they stand: a shell drops what is behind '#', and nothing else."""
    assert len(commands()) > 40
    for page, line in commands():
        words = shlex.split(line, comments=True)
        try:
            cli.app.parse_args(words[words.index("funnelrank") + 1:], exit_on_error=False, print_error=False)
        except CycloptsError as error:
            raise AssertionError(f"{page}: {line}: {error}") from error


def test_commands_within_sentences_exist():
    known = {name for name in cli.app if not name.startswith("-")}
    for page in PAGES:
        for text in re.findall(r"`funnelrank ([^`]+)`", page.read_text()):
            command, *words = text.split()
            if not command.startswith("-"):
                assert command in known, f"{by_name(page)}: {text}"
                options = {name for a in cli.app[command].assemble_argument_collection() for name in a.names}
                left = {w for w in words if w.startswith("--")} - options - {"--help"}
                assert not left, f"{by_name(page)}: {text}: {left}"


BASE = """
data: {train: train.parquet, valid: valid.parquet, scenario: tab, user: user_id, time: time,
       tables: {items: {path: i, key: item_id}}, events: {log: {path: l}}}
features: {item_id: id, tab: id, device: id, brand: {column: items.brand}, price: number,
           viewed: {kind: sequence, column: viewed_item_ids, space: item_id},
           bought: {kind: sequence, column: bought_item_ids, space: item_id}}
tasks: {click: {}, cart: {after: click}, buy: {after: cart}}
model: shared_bottom
"""


def keys_of(shape: dict, root: dict) -> list[tuple[str, dict]]:
    """(key, what it holds) of a part of the JSON Schema, in all its forms; '*' stands for names that users give."""
    while "$ref" in shape:
        shape = root["$defs"][shape["$ref"].rsplit("/", 1)[-1]]
    own = list(shape.get("properties", {}).items())
    if isinstance(shape.get("additionalProperties"), dict):
        own.append(("*", shape["additionalProperties"]))
    inner = [*shape.get("anyOf", ()), *shape.get("oneOf", ()), *([shape["items"]] if "items" in shape else [])]
    return own + [found for form in inner for found in keys_of(form, root)]


def test_keys_that_the_pages_name_exist():
    """`train.early_stopping.patience`, as it stands in sentences; `model.onnx` and its like are files."""
    root, named = shipped_schema(), 0
    files = (".md", ".py", ".html", ".json", ".db", ".onnx", ".data", ".pt2", ".safetensors")
    for page in PAGES:
        for text in re.findall(r"`([a-z_]+(?:\.\w+)+)[`=:\[ ]", page.read_text()):
            first, *rest = text.split(".")
            if first not in root["properties"] or text.endswith(files):
                continue
            here, named = [root["properties"][first]], named + 1
            for key in rest:
                here = [shape for part in here for k, shape in keys_of(part, root) if k in (key, "*")]
                assert here, f"{by_name(page)}: no key '{text}'"
    assert named > 100


ELSEWHERE = ("deploy.md", "own_models.md")     # of Kubernetes; with code beside it, which test_own_parts.py runs


@pytest.mark.parametrize("page", [p for p in PAGES if p.parent.name != "models" and p.name not in ELSEWHERE
                                  and blocks(p, "yaml")], ids=by_name)
def test_yaml_of_the_pages_is_a_config(page):
    """Each block: whole sections in place of those of a plain config, data and features beside its own."""
    for number, text in enumerate(blocks(page, "yaml"), 1):
        here, base = (YAML(typ="safe").load(t) for t in (text, BASE))
        if not set(here) <= set(settings.Settings.model_fields):
            here = {"features": base["features"] | here}
        try:
            load(base | here | {"data": base["data"] | here.get("data", {})})
        except fr.ConfigError as error:
            raise AssertionError(f"{by_name(page)}, block {number}: {error}") from error
