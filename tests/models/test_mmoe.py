"""MMoE's identities (Ma et al., KDD 2018)."""

import torch

from funnelrank.inputs import Inputs, Spec
from funnelrank.models.mlp import MLPBody
from funnelrank.models.mmoe import MixtureOfExperts

SPEC = Spec(flat=6, tasks=3)
X = Inputs(torch.randn(7, 6, generator=torch.Generator().manual_seed(0)))


def made(**keys):
    torch.manual_seed(1)
    return MixtureOfExperts(SPEC, hidden=(5, 4), **keys)


def test_one_expert_is_shared_bottom():
    part, bottom = made(experts=1), MLPBody(SPEC, hidden=(5, 4))
    with torch.no_grad():
        for mine, theirs in zip(bottom.mlp.layers, part.experts.layers):
            mine["linear"].weight.copy_(theirs["linear"].weight[0])
            mine["linear"].bias.copy_(theirs["linear"].bias[0])
    torch.testing.assert_close(part(X), bottom(X).expand(-1, 3, -1))


def test_it_is_the_papers_sum():
    part = made(experts=3)
    out = part(X)
    for b in range(7):
        x = X.flat[b].double()
        e = []
        for n in range(3):
            h = x
            for layer in part.experts.layers:
                h = torch.relu(layer["linear"].weight[n].double() @ h + layer["linear"].bias[n].double())
            e.append(h)
        for t in range(3):
            g = torch.softmax(part.gates.weight[t].double() @ x, 0)
            torch.testing.assert_close(out[b, t].double(), sum(gn * en for gn, en in zip(g, e)), atol=1e-6, rtol=1e-5)


def test_equal_experts_make_the_gate_irrelevant():
    part = made(experts=3)
    with torch.no_grad():
        for layer in part.experts.layers:
            layer["linear"].weight[:] = layer["linear"].weight[0]
            layer["linear"].bias[:] = layer["linear"].bias[0]
    before = part(X)
    torch.nn.init.normal_(part.gates.weight)
    torch.testing.assert_close(part(X), before)


def test_equal_gates_are_omoe():
    part, one = made(experts=3), made(experts=3, per="all")
    with torch.no_grad():
        part.gates.weight[:] = one.gates.weight
        one.experts.load_state_dict(part.experts.state_dict())
    torch.testing.assert_close(part(X), one(X).expand(-1, 3, -1))


def test_one_tasks_gate_leaves_other_tasks_alone():
    part = made(experts=3)
    before = part(X)
    torch.nn.init.normal_(part.gates.weight[1])
    after = part(X)
    assert torch.equal(before[:, [0, 2]], after[:, [0, 2]]) and not torch.equal(before[:, 1], after[:, 1])
