"""MMoE's identities (Ma et al., KDD 2018)."""

import torch
from plain import layer, mlp

from funnelrank.inputs import Inputs, Spec
from funnelrank.models.mlp import MLPBody, Towers
from funnelrank.models.mmoe import MixtureOfExperts

SPEC = Spec(flat=6, tasks=3)
X = Inputs(torch.randn(7, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64))


def made(**keys):
    torch.manual_seed(1)
    return MixtureOfExperts(SPEC, hidden=(5, 4), **keys).double()


def test_one_expert_is_shared_bottom():
    part, bottom = made(experts=1), MLPBody(SPEC, hidden=(5, 4)).double()
    towers = Towers(Spec(flat=6, tasks=3, hidden=4), hidden=(3,)).double()
    with torch.no_grad():
        for mine, theirs in zip(bottom.mlp.layers, part.experts.layers):
            mine["linear"].weight.copy_(theirs["linear"].weight[0])
            mine["linear"].bias.copy_(theirs["linear"].bias[0])
    torch.testing.assert_close(part(X), bottom(X).expand(-1, 3, -1), atol=1e-12, rtol=0)
    torch.testing.assert_close(towers(part(X), X), towers(bottom(X), X), atol=1e-12, rtol=0)


def test_it_is_the_papers_sum_and_its_towers():
    part, towers = made(experts=3), Towers(Spec(flat=6, tasks=3, hidden=4), hidden=(3,)).double()
    out, logits = part(X), towers(part(X), X)
    for b in range(7):
        x = X.flat[b]
        e = [mlp(part.experts, x, n) for n in range(3)]
        for t in range(3):
            g = torch.softmax(layer(part.gates, x, t), 0)
            h = sum(gn * en for gn, en in zip(g, e))
            torch.testing.assert_close(out[b, t], h, atol=1e-10, rtol=0)
            z = layer(towers.linear, mlp(towers.mlp, h, t), t)
            torch.testing.assert_close(logits[b, t:t + 1], z, atol=1e-10, rtol=0)


def test_gates_sum_to_one():
    part = made(experts=3)
    for step in part.experts.layers:
        torch.nn.init.zeros_(step["linear"].weight)
        torch.nn.init.ones_(step["linear"].bias)
    torch.testing.assert_close(part(X), torch.ones(7, 3, 4, dtype=torch.float64), atol=1e-12, rtol=0)


def test_equal_experts_make_the_gate_irrelevant():
    part = made(experts=3)
    with torch.no_grad():
        for layer in part.experts.layers:
            layer["linear"].weight[:] = layer["linear"].weight[0]
            layer["linear"].bias[:] = layer["linear"].bias[0]
    before = part(X)
    torch.nn.init.normal_(part.gates.weight)
    torch.testing.assert_close(part(X), before, atol=1e-12, rtol=0)


def test_equal_gates_are_omoe():
    part, one = made(experts=3), made(experts=3, per="all")
    with torch.no_grad():
        part.gates.weight[:] = one.gates.weight
        one.experts.load_state_dict(part.experts.state_dict())
    torch.testing.assert_close(part(X), one(X).expand(-1, 3, -1), atol=1e-12, rtol=0)


def test_one_tasks_gate_leaves_other_tasks_alone():
    part = made(experts=3)
    before = part(X)
    torch.nn.init.normal_(part.gates.weight[1])
    after = part(X)
    assert torch.equal(before[:, [0, 2]], after[:, [0, 2]]) and not torch.equal(before[:, 1], after[:, 1])
