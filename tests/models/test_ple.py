"""PLE's and CGC's identities (Tang et al., RecSys 2020), and their equations written again in float64."""

import pytest
import torch
from made import config
from plain import mlp, wake

from funnelrank.errors import ConfigError
from funnelrank.inputs import Inputs, Spec
from funnelrank.models.mlp import MLPBody
from funnelrank.models.mmoe import MixtureOfExperts
from funnelrank.models.ple import ProgressiveExtraction

T = 3
SPEC = Spec(flat=6, tasks=T)
X = Inputs(torch.randn(7, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64))


def made(**keys):
    torch.manual_seed(1)
    return wake(ProgressiveExtraction(SPEC, **{"hidden": (5, 4), **keys}))


def plain(part, x):
    """One row, expert by expert."""
    tasks, common = [x] * T, x
    for level in part.levels:
        m = level.n_own
        own = [[mlp(level.own, tasks[t], t * m + i) for i in range(m)] for t in range(T)]
        shared = [mlp(level.shared, common, i) for i in range(level.n_shared)]
        new = []
        for t in range(T):
            experts = own[t] + shared
            weight = torch.softmax(level.gate.weight[t] @ tasks[t], 0)
            new.append(sum(w * e for w, e in zip(weight, experts)))
        if level.common is not None:
            experts = [e for es in own for e in es] + shared
            common = sum(w * e for w, e in zip(torch.softmax(level.common.weight @ common, 0), experts))
        tasks = new
    return torch.stack(tasks)


@pytest.mark.parametrize("keys", [{"levels": 1}, {"levels": 2}, {"levels": 3, "own": 1, "shared": 2},
                                  {"own": 0, "shared": 3}, {"own": 2, "shared": 0}])
def test_it_is_the_papers_equations(keys):
    part = made(**keys)
    torch.testing.assert_close(part(X), torch.stack([plain(part, x) for x in X.flat]), atol=1e-10, rtol=0)


def test_without_own_experts_one_level_is_mmoe():
    part, other = made(levels=1, own=0, shared=3), wake(MixtureOfExperts(SPEC, experts=3, hidden=(5, 4)))
    other.experts.load_state_dict(part.levels[0].shared.state_dict())
    other.gates.load_state_dict(part.levels[0].gate.state_dict())
    torch.testing.assert_close(part(X), other(X), atol=1e-12, rtol=0)


def test_one_own_expert_and_none_shared_is_a_network_for_each_task():
    part, other = made(levels=1, own=1, shared=0), wake(MLPBody(SPEC, hidden=(5, 4), per="task"))
    other.mlp.load_state_dict(part.levels[0].own.state_dict())
    assert torch.equal(part(X), other(X))


def test_in_one_level_a_tasks_loss_leaves_other_tasks_experts_alone_and_in_two_it_does_not():
    for levels, alone in ((1, True), (2, False)):
        part = made(levels=levels, own=2)
        part(X)[:, 0].sum().backward()
        for step in part.levels[0].own.layers:
            assert step["linear"].weight.grad[:2].abs().sum() > 0
            assert (step["linear"].weight.grad[2:].abs().sum() == 0) == alone


def test_the_last_level_has_no_shared_output_for_nothing_reads_it():
    part = made(levels=3)
    assert [level.common is not None for level in part.levels] == [True, True, False]


def test_equal_experts_make_every_gate_irrelevant():
    part = made(levels=1)
    level = part.levels[0]
    with torch.no_grad():
        for own, shared in zip(level.own.layers, level.shared.layers):
            for name in ("weight", "bias"):
                one = getattr(own["linear"], name)[:1].clone()
                getattr(own["linear"], name)[:] = one
                getattr(shared["linear"], name)[:] = one
        before = part(X)
        torch.nn.init.normal_(level.gate.weight)
        torch.testing.assert_close(part(X), before, atol=1e-12, rtol=0)


def test_no_experts_at_all_are_refused():
    with pytest.raises(ConfigError, match="neither own nor shared"):
        made(own=0, shared=0)


def test_cgc_is_ple_of_one_level():
    said = {name: config({"name": name, "represent": {"levels": 1}}).model for name in ("cgc", "ple")}
    assert said["ple"] == {**said["cgc"], "name": "ple"} and config({"name": "cgc"}).model == said["cgc"]
    assert config({"name": "ple"}).model["represent"]["levels"] == 2
