"""Gates are named by what they are, sum to one, and their mean over slices is that over all rows."""

import numpy as np
import pytest
import torch
from made import batch, config, model

from funnelrank.evaluate.gates import gate_rows, gates_of

SCENARIOS = ("a", "b", "c")
NAMES = {
    "aitm": [("cart", ("from click", "own tower")), ("buy", ("from cart", "own tower"))],
    "mmoe": [("click", ("expert 0", "expert 1", "expert 2", "expert 3"))],          # as many as places: no scenarios
    "cgc": [("click", ("own 0", "own 1", "shared 0", "shared 1"))],
    "hmoe": [("(no scenario)", ("expert 0", "expert 1", "expert 2", "expert 3")), ("", ("(no scenario)", *SCENARIOS))],
    "pepnet": [("", ("opening",)), ("click", ("opening",)), ("click", ("opening",)), ("click", ("opening",))]}


@pytest.mark.parametrize("name", NAMES)
def test_views_and_candidates_are_named_and_shares_sum_to_one(name):
    gates = gates_of(model(config(model={"name": name})), batch(64), SCENARIOS)
    assert [(g.views[0], g.candidates) for g in gates] == NAMES[name]
    for g in gates:
        assert len(g.views) == g.share.shape[1]
        if g.kind == "softmax":
            torch.testing.assert_close(g.share.sum(2), torch.ones(g.share.shape[:2]))
            assert len(g.candidates) == g.share.shape[2]


def test_scenarios_means_weighted_by_their_rows_are_the_whole():
    rows, m = batch(300), model(config(model={"name": "mmoe"}))
    named = rows.scenario.numpy().clip(2)                      # all rows are of a scenario with a name
    found = gate_rows("test", gates_of(m, rows, SCENARIOS), m.tasks, SCENARIOS, named)
    cells = {}
    for r in found:
        cells.setdefault((r["task"], r["metric"]), {})[r["scenario"]] = r
    assert len(cells) == 3 * 4
    for of in cells.values():
        parts = [of[s] for s in SCENARIOS]
        assert np.average([r["value"] for r in parts], weights=[r["rows"] for r in parts]) == pytest.approx(
            of[None]["value"], abs=1e-6)
        assert sum(r["rows"] for r in parts) == of[None]["rows"] == 300


def test_attention_between_features_is_too_much_to_tell():
    m = model(config(model={"name": "autoint"}))
    gates = gates_of(m, batch(20), SCENARIOS)
    assert gates and gate_rows("test", gates, m.tasks, SCENARIOS, None) == []


def test_a_model_without_gates_has_no_rows():
    m = model(config(model={"name": "shared_bottom"}))
    assert gate_rows("test", gates_of(m, batch(20)), m.tasks, (), None) == []
