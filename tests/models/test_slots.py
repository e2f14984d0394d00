import pytest
from made import config, model

from funnelrank.errors import ConfigError


@pytest.mark.parametrize("said, sentence", [
    ({"name": "aitn"}, r"model.name: no model 'aitn'; models are .*did you mean 'aitm'"),
    ({"name": "aitm", "represent": "mpl"}, r"model.represent.name: no represent part 'mpl'.*did you mean 'mlp'"),
    ({"name": "aitm", "represent": {"hiden": [3]}}, r"model.represent.hiden: unknown key.*did you mean 'hidden'"),
    ({"name": "aitm", "represent": {"hidden": [0]}}, r"model.represent.hidden.0: .*greater than 0, found 0"),
    ({"name": "aitm", "transfer": {"variant": "x"}}, r"model.transfer.variant: .*self_gate"),
    ({"name": "aitm", "tower": {}}, r"model.tower: unknown key"),
    ({}, r"model.represent: nothing stands here"),
    ({"name": "aitm", "relations": {"buy": ["clik"]}}, r"model.relations: no task 'clik'.*did you mean 'click'"),
    ({"name": "aitm", "relations": {"click": ["buy"]}}, r"'buy' stands behind 'click'"),
])
def test_what_is_wrong_is_said_with_its_place(said, sentence):
    with pytest.raises(ConfigError, match=sentence):
        model(config(said))
