"""Every registered model has a page of one fixed form in docs/models, and an example."""

import re
from pathlib import Path

import pytest
from made import config

from funnelrank.errors import ConfigError
from funnelrank.models import MODELS

ROOT = Path(__file__).parents[2]
FORM = {                                         # in this order
    "title": r"\A# .+$", "what it is for": r"^\*\*For\*\*", "equations": r"^```\n", "config": r"^```yaml$",
    "identities": r"^\*\*Identities\*\* \(tests/", "cost": r"^\*\*Cost\.\*\*",
    "measured cost": r"^<!-- costs: [\w ]+ -->$", "when not to use it": r"^\*\*When not\.\*\*",
    "quality": r"^\*\*Quality\*\*"}
COSTS = re.compile(r"^<!-- costs: ([a-z][\w ]+) -->$", re.M)
PAGES = {page: page.read_text() for page in sorted((ROOT / "docs" / "models").glob("*.md"))}
OF_MODELS = {page: COSTS.findall(text) for page, text in PAGES.items() if COSTS.search(text)}
EXAMPLES = {path: path.read_text() for path in sorted((ROOT / "examples").rglob("*.yaml"))}


def test_every_model_has_one_page():
    named = [model for said in OF_MODELS.values() for models in said for model in models.split() if model != "end"]
    assert sorted(named) == sorted(MODELS)


@pytest.mark.parametrize("page", OF_MODELS, ids=lambda page: page.stem)
def test_a_page_has_the_fixed_form(page):
    places = {}
    for what, said in FORM.items():
        found = re.search(said, PAGES[page], re.M)
        assert found, f"docs/models/{page.name} does not say: {what}"
        places[what] = found.start()
    assert list(places) == sorted(places, key=places.get), f"docs/models/{page.name}: the order is {', '.join(FORM)}"


@pytest.mark.parametrize("page", OF_MODELS, ids=lambda page: page.stem)
def test_the_tests_that_a_page_names_are_there(page):
    (said,) = re.findall(r"^\*\*Identities\*\* \((.*?)\)", PAGES[page], re.M | re.S)
    assert all((ROOT / path.strip()).exists() for path in said.split(","))


@pytest.mark.parametrize("model", MODELS)
def test_every_model_has_an_example_that_the_suite_trains(model):
    named = re.compile(rf"^  name: {model}$|^model: {{name: {model}\b", re.M)
    assert any(named.search(text) for path, text in EXAMPLES.items() if path.parent.name in ("models", "balance"))


@pytest.mark.parametrize("page", OF_MODELS, ids=lambda page: page.stem)
def test_the_config_of_a_page_names_parts_and_keys_that_exist(page):
    from ruamel.yaml import YAML
    for block in re.findall(r"^```yaml\n(.*?)^```$", PAGES[page], re.M | re.S):
        said = YAML(typ="safe").load(block)
        try:
            config(said["model"])
        except ConfigError as error:                     # groups and tasks are those of a log of its own
            assert all(re.search("no feature has the role|no task '", m) for m in error.messages), error
