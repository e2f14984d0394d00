import pytest
import torch
from made import batch, config, model

from funnelrank.errors import ConfigError


@pytest.mark.parametrize("said, sentence", [
    ({"name": "aitn"}, r"model.name: found 'aitn'.*did you mean 'aitm'"),
    ({"name": "aitm", "represent": "mlpp"}, r"model.represent.*'mlpp'.*did you mean 'mlp'"),
    ({"name": "aitm", "represent": {"hiden": [3]}}, r"model.represent.hiden: unknown key.*did you mean 'hidden'"),
    ({"name": "aitm", "represent": {"hidden": [0]}}, r"model.represent.hidden\[0\]: found 0"),
    ({"name": "aitm", "transfer": {"variant": "x"}}, r"model.transfer.variant: .*self_gate"),
    ({"name": "aitm", "tower": {}}, r"model.tower: unknown key"),
    ({}, r"model.represent: nothing stands in this slot"),
    ({"name": "aitm", "relations": {"buy": ["clik"]}}, r"no task 'clik'.*did you mean 'click'"),
    ({"name": "aitm", "relations": {"click": ["buy"]}}, r"'buy' stands behind 'click'"),
    ({"name": "deepfm", "represent": {"per": "all"}, "reading": "both"}, r"model.reading: found 'both'"),
])
def test_what_is_wrong_is_said_with_its_place(said, sentence):
    with pytest.raises(ConfigError, match=sentence):
        model(config(said))


def test_parts_of_different_papers_work_together():
    m = model(config({"name": "aitm", "prepare": ["din"], "represent": {"name": "mmoe", "experts": 2, "hidden": [8]},
                      "side": ["lr", "fm"]}))
    logits = m(batch()).logits
    assert logits.shape == (12, 3) and logits.isfinite().all()


def test_pairs_need_one_width():
    with pytest.raises(ConfigError, match="needs one width for all of them; widths are '4' and '6'"):
        model(config({"name": "fm"}, embedding={"width": 4, "spaces": {"item": {"width": 6}}}))


def test_the_order_in_which_a_config_names_slots_and_keys_changes_nothing():
    said = {"name": "aitm", "prepare": ["epnet"], "represent": {"name": "mmoe", "experts": 2, "hidden": [8]},
            "side": ["lr"], "reading": "joint"}
    turned = {k: dict(reversed(v.items())) if isinstance(v, dict) else v for k, v in reversed(said.items())}
    assert config(said).model == config(turned).model
    a, b = (model(config(s)).eval()(batch()).logits for s in (said, turned))
    assert torch.equal(a, b)
