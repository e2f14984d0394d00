"""What every model with parameters of its own for each scenario must show, through all five slots."""

from operator import attrgetter

import pytest
import torch
from made import batch, config, model
from test_every_model import pick
from test_registry import losses

from funnelrank.errors import ConfigError
from funnelrank.models import MODELS, PARTS
from funnelrank.models.hmoe import ScenarioTowers
from funnelrank.models.star import AuxiliaryNetwork, PartitionedNorm, StarHeads, StarLinear

SAID = [{"name": n} for n in MODELS]
# parameters and buffers with a place for each scenario along their first axis, by the module that holds them
PLACES = {PartitionedNorm: ("own_gain", "own_shift", "mean", "var", "batches"), StarLinear: ("own", "own_bias"),
          StarHeads: ("own", "own_bias"), AuxiliaryNetwork: ("scenarios.weight",), ScenarioTowers: ("weights.weight",)}
OWN = {"star", "hmoe"}                               # models that have such modules
SHARED = {"star"}                                    # models whose rows of no known scenario read none of it
P = 3                                                # the scenario that is away
KNOWN = 3                                            # scenarios with a name: ids 2, 3, 4


@pytest.fixture(params=SAID, ids=list(MODELS))
def said(request):
    return request.param


def of_one(m, scenario):
    """Views of what a scenario owns: name -> (tensor, its gradient)."""
    found = {}
    for where, module in m.slots.named_modules():
        for name in PLACES.get(type(module), ()):
            tensor = attrgetter(name)(module)
            at = scenario - (2 if len(tensor) == KNOWN else 1)           # some have place 0 for rows without a name
            found[f"{where}.{name}"] = tensor.detach()[at], None if tensor.grad is None else tensor.grad[at]
    return found


def only(rows, scenarios):
    return pick(rows, [b for b, s in enumerate(rows.scenario.tolist()) if s in scenarios])


def test_rows_of_other_scenarios_leave_a_scenarios_parameters_and_buffers_alone(said):
    m = model(config(said)).train()
    rows = only(batch(80), {0, 1, 2, 4})
    before = {n: v.clone() for n, (v, _) in of_one(m, P).items()}
    losses(m, rows).backward()
    after = of_one(m, P)
    assert all(g is None or (g == 0).all() for _, g in after.values())
    assert all(torch.equal(before[n], v) for n, (v, _) in after.items())
    if said["name"] in OWN:
        assert after
        m.zero_grad()
        losses(m, only(batch(80), {P})).backward()
        assert all(g is None or (g != 0).any() for _, g in of_one(m, P).values())


@pytest.mark.parametrize("count", [0, 1])
def test_a_scenario_with_one_row_or_none_is_harmless(said, count):
    m = model(config(said)).train()
    rows = batch(60)
    keep = [b for b, s in enumerate(rows.scenario.tolist()) if s != P]
    keep += [b for b, s in enumerate(rows.scenario.tolist()) if s == P][:count]
    losses(m, pick(rows, keep)).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in m.parameters())
    assert all(b.isfinite().all() for b in m.buffers() if b.is_floating_point())
    assert m.eval()(rows).logits.isfinite().all()


def test_a_batch_of_one_row_trains(said):
    m = model(config(said)).train()
    losses(m, pick(batch(), [0])).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in m.parameters())


def test_a_row_of_no_known_scenario_gets_what_is_shared_whatever_scenarios_own(said):
    m, rows = model(config(said)), batch(60)
    for seed in range(3):                              # buffers see something
        m.train()(batch(60, seed=seed))
    m.eval()
    strangers = [b for b, s in enumerate(rows.scenario.tolist()) if s < 2]
    before = m(rows).logits
    with torch.no_grad():
        for scenario in range(2, 2 + KNOWN):
            for v, _ in of_one(m, scenario).values():
                v.mul_(1.5).add_(0.3)
    after = m(rows).logits
    assert after[strangers].isfinite().all()
    if said["name"] in OWN:
        if said["name"] in SHARED:
            torch.testing.assert_close(after[strangers], before[strangers])
        assert not torch.isclose(after, before).all(1)[[b for b in range(60) if b not in strangers]].any()


def test_parts_that_need_scenarios_are_refused_by_check_where_none_are_declared():
    for slot, parts in PARTS.items():
        for name, part in parts.items():
            if part.needs.scenario:
                with pytest.raises(ConfigError, match=rf"model.{slot}: {name} has parameters of its own"):
                    config({"name": "shared_bottom", slot: name}, data={"user": "user", "contradictions": "keep"})
