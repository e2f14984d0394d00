"""Any part with any other (grid.py): of the whole, so much that any two parts meet; and graphs of every part."""

import random

import pytest
from graph import exported
from grid import SLOTS, pairwise, prove, said
from made import config, model

from funnelrank.errors import ConfigError
from funnelrank.models import MODELS, PARTS

PICKED = pairwise()
CHUNKS = 12


def named(parts) -> set:
    """Slot and name of each part of a combination."""
    return {(slot, p["name"]) for slot, part in zip(SLOTS, parts) if part
            for p in (part if isinstance(part, tuple) else [part])}


def alone() -> list:
    """For each part that is in no recipe, a combination that has it; and a few others."""
    known = {(slot, p if isinstance(p, str) else p["name"]) for recipe in MODELS.values() for slot in SLOTS
             for p in (recipe.get(slot) if isinstance(recipe.get(slot), list) else [recipe.get(slot)]) if p}
    picked = []
    for part in sorted({(slot, name) for slot in SLOTS for name in PARTS[slot]} - known):
        picked.append(next(parts for parts in PICKED if part in named(parts)))
    return picked + random.Random(1).sample(PICKED, 4)


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_any_part_works_with_any_other(chunk):
    rng = random.Random(chunk)
    for parts in PICKED[chunk::CHUNKS]:
        try:
            assert prove(parts, rng) is None
        except Exception as error:
            error.add_note(f"model: {said(parts)}")
            raise


def test_every_registered_part_stands_in_the_grid():
    assert set().union(*map(named, PICKED)) == {(slot, name) for slot in SLOTS for name in PARTS[slot]}


@pytest.mark.parametrize("parts", alone(), ids=lambda parts: "-".join(sorted(name for _, name in named(parts))))
def test_a_combination_is_exported_with_an_open_number_of_rows_and_answers_the_same(parts):
    exported(model(config(said(parts))))


def refused(model, **rest) -> str:
    with pytest.raises(ConfigError) as error:
        config(model, **rest)
    (sentence,) = error.value.messages
    return sentence


@pytest.mark.parametrize("model, sentence", [
    ({"represent": "afm", "predict": "linear", "prepare": "din"},
     "model.prepare: din would learn nothing: it gives 'flat', which no part behind it reads ('afm' and 'linear' read "
     "other things); leave it out, or choose parts that read that"),
    ({"side": "auxiliary", "prepare": "partitioned_norm"}, "model.prepare: partitioned_norm would learn nothing"),
    ({"represent": "mlp", "predict": "linear", "prepare": "scenario_view"}, "it gives 'scenario_view', which no part"),
    ({"represent": "mlp", "predict": "linear", "prepare": ["din", {"name": "autoint", "keep": False}]},
     "model.prepare[0]: din would learn nothing"),
    ({"represent": "nfm", "predict": "linear", "prepare": [{"name": "autoint", "keep": False}, "epnet"]},
     "model.prepare[0]: autoint would learn nothing"),
    ({"represent": "mlp", "predict": "linear", "prepare": ["din", "mha"]},
     "model.prepare[1]: mha finds no sequence left to read, since din before it has made flat vectors of them all"),
    ({"represent": "mlp", "predict": "linear", "prepare": [{"name": "epnet", "groups": ["scenario_view"]},
                                                           "scenario_view"]},
     "model.prepare[0].groups: 'scenario_view' is made by scenario_view, which stands behind epnet; let it come first"),
    ({"represent": {"name": "mmoe", "per": "scenario"}, "predict": "towers"}, "gives a view for each scenario"),
])
def test_parts_that_make_no_sense_together_are_refused_with_the_reason(model, sentence):
    with pytest.raises(ConfigError) as error:
        config(model)
    assert any(sentence in m for m in error.value.messages)


@pytest.mark.parametrize("model", [
    {"represent": {"name": "autoint", "deep": [6]}, "predict": "linear", "prepare": "din"},
    {"represent": "afm", "predict": "hmoe", "prepare": "din"},
    {"represent": "mlp", "predict": "meta_towers", "prepare": ["mha", "autoint", "epnet"]},
    {"side": ["auxiliary"], "prepare": ["din", "partitioned_norm"], "represent": "pnn", "predict": "star"},
    {"represent": "mlp", "predict": {"name": "meta_towers", "groups": ["scenario_view"]}, "prepare": "scenario_view"},
])
def test_a_part_is_heard_where_anything_behind_it_reads_what_it_gives(model):
    config(model)


def test_what_the_log_has_not_is_asked_for_by_check():
    plain = {"user": {}, "item": {}, "price": "number", "lists": "off"}
    bare = {"data": {}, "features": plain, "tasks": {"click": {}}}
    said = lambda **slots: refused({"represent": "mlp", "predict": "linear", **slots}, **bare)
    assert "reads sequences whose ids are those of an id feature" in said(prepare="din")
    assert "has parameters of its own for each scenario; set data.scenario" in said(represent="star")
    assert "no task comes after another" in said(transfer="ait")
    assert "reads declared crosses, and there are none" in said(side="wide")
    assert "no feature has the role 'scenario'" in said(represent="apg")
    assert "name other groups there, or say `role: scenario`" in said(represent="apg")
    assert "multiplies the vectors of features with each other, and no feature has one" in refused(
        {"side": "fm"}, **{**bare, "features": {"price": "number"}})


def test_vectors_of_features_that_are_multiplied_have_one_width():
    widths = {"width": 4, "spaces": {"tab": {"width": 6}, "item_x_tab": {"width": 4}}}
    assert refused({"side": "fm"}, embedding=widths) == (
        "embedding.spaces: fm in model.side multiplies features with each other, which needs one width for all of "
        "them; widths are '4' and '6'")
    crosses = {"width": 4, "spaces": {"item_x_tab": {"width": 6}}}
    assert "widths are" in refused({"side": "fm"}, embedding=crosses)
    config({"side": ["fm", "wide"]}, embedding=crosses)              # as weights they are not multiplied
