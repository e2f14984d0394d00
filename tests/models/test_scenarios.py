"""What every model with parameters of its own for each scenario must show, through all five slots."""

from copy import deepcopy
from dataclasses import replace
from functools import cache
from operator import attrgetter

import pytest
import torch
from made import batch, config, model, pick
from test_registry import losses, trained

from funnelrank.errors import ConfigError
from funnelrank.evaluate.metrics import auc
from funnelrank.inputs import Spec
from funnelrank.models import MODELS, PARTS
from funnelrank.models.hmoe import ScenarioTowers
from funnelrank.models.star import AuxiliaryNetwork, PartitionedNorm, StarHeads, StarLinear

SAID = [{"name": n} for n in MODELS]
# parameters and buffers with a place for each scenario along their first axis, by the module that holds them
PLACES = {PartitionedNorm: ("own_gain", "own_shift", "mean", "var", "batches"), StarLinear: ("own", "own_bias"),
          StarHeads: ("own", "own_bias"), AuxiliaryNetwork: ("scenarios.weight",), ScenarioTowers: ("weights.weight",)}
OWN = {"star", "hmoe"}                               # models that have such modules
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
    torch.optim.SGD(m.parameters(), lr=1.0).step()
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


def of_scenario(rows, s):
    """The same rows, of scenario s alone: what says so in the log, and the feature that reads it."""
    ids = rows.ids.clone()
    ids[:, 2] = s
    return replace(rows, ids=ids, scenario=torch.full_like(rows.scenario, s))


@cache
def _knowing(name):
    settings, drawn = config({"name": name}), [of_scenario(batch(100, seed=k), 2 + k % KNOWN) for k in range(90)]
    for rows in drawn:                                       # one rule, which scenarios shift in ways of their own
        rows.labels[:] = (rows.numbers[:, 0] + 0.5 * (rows.ids[:, 2] - 3) > 0).float().unsqueeze(1)
    m = trained(model(settings), settings, drawn, rows_lr=0.1)
    m.embedding.settle({}, dict.fromkeys(m.embedding.layout.size, 5))
    return m


def knowing(name):
    """A model trained on rows of known scenarios alone, as a run leaves it."""
    return deepcopy(_knowing(name))


def neutral(m, s):
    """Everything of scenario s's own says nothing of its own: a vector of its own is the mean of the others'."""
    others = [k for k in range(KNOWN) if k != s - 2]
    with torch.no_grad():
        for table in m.embedding.tables.values():
            if "tab" in table.offset:
                named = table.weight[table.offset["tab"] + 2:table.offset["tab"] + 2 + KNOWN]
                named[s - 2] = named[others].mean(0)
                table.weight[table.offset["tab"] + 1] = named.mean(0)
        for module in m.slots.modules():
            if isinstance(module, PartitionedNorm):
                module.own_gain[s - 2], module.own_shift[s - 2] = 1, 0
                module.mean[s - 1], module.var[s - 1] = module.mean[0], module.var[0]
            elif isinstance(module, StarLinear | StarHeads):
                module.own[s - 2], module.own_bias[s - 2] = 1, 0
            elif isinstance(module, AuxiliaryNetwork):
                named = module.scenarios.weight[1:]
                named[s - 2] = named[others].mean(0)
            elif isinstance(module, ScenarioTowers):         # what it says counts; to whom it listens is its own
                module.weights.weight[s - 1], module.weights.bias[s - 1] = 0, 0


@pytest.mark.parametrize("name", ["star", "hmoe", "pepnet", "apg", "m2m"])
def test_an_unseen_scenario_and_none_at_all_are_a_scenario_without_anything_of_its_own(name):
    m, rows = knowing(name), batch(40, seed=99)
    neutral(m, 3)
    with torch.no_grad():
        unseen, null, plain = (m(of_scenario(rows, s)).logits for s in (1, 0, 3))
    torch.testing.assert_close(unseen, plain, atol=1e-5, rtol=1e-4)
    assert torch.equal(null, unseen)


@pytest.mark.parametrize("name", ["star", "hmoe", "pepnet", "apg", "m2m"])
def test_what_known_scenarios_taught_serves_an_unseen_one(name):
    m, rows = knowing(name), batch(1000, seed=999)
    with torch.no_grad():
        p = m(of_scenario(rows, 1)).mean[:, 0]
    y = (rows.numbers[:, 0] > 0).float()
    assert auc(p.numpy(), y.numpy()) > 0.95
    assert 0.7 < p.sum() / y.sum() < 1.4                     # as the middle one of three, whose rate is a half


def test_parts_that_need_scenarios_are_refused_by_check_where_none_are_declared():
    for slot, parts in PARTS.items():
        for name, part in parts.items():
            if part.needs.scenario:
                with pytest.raises(ConfigError, match=rf"model.{slot}: {name} has parameters of its own"):
                    config({"name": "shared_bottom", slot: name}, data={"user": "user", "contradictions": "keep"})


def test_every_part_that_asks_for_scenarios_is_held_to_what_is_shown_here():
    spec = Spec(flat=6, tasks=2, hidden=4, scenarios=2 + KNOWN)
    asking = [part for parts in PARTS.values() for part in parts.values() if part.needs.scenario]
    assert asking and all(any(type(m) in PLACES for m in part(spec).modules()) for part in asking)
