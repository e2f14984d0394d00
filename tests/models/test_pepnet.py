"""PEPNet's identities (arXiv 2302.01115), and its equations written again in float64."""

from dataclasses import replace

import pytest
import torch
from made import batch, config, model
from plain import layer, wake

from funnelrank.inputs import Inputs, Spec
from funnelrank.models.mlp import Towers
from funnelrank.models.pepnet import EmbeddingGate, Flat, GateNU, ParameterGates

SPEC = Spec(flat=5, tasks=2, hidden=5, groups={"scenario": 2, "user": 3, "item": 1})
GROUPS = {"scenario": slice(0, 2), "user": slice(2, 5), "item": slice(4, 5)}


def rows(n=6, seed=0):
    flat = torch.randn(n, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Inputs(flat, groups={g: flat[:, s].clone() for g, s in GROUPS.items()})


def made(part, **keys):
    torch.manual_seed(0)
    return part(SPEC, **keys).double()


def plain_gate(gate, x, i=None):
    return gate.gamma * torch.sigmoid(layer(gate.last, torch.relu(layer(gate.first, x, i)), i))


def plain(epnet, ppnet, x, b):
    """One row through EPNet, then each task's tower, gate by gate."""
    e = x.flat[b]
    o = plain_gate(epnet.gate, torch.cat([x.groups["scenario"][b], e])) * e
    prior = torch.cat([x.groups["user"][b], x.groups["item"][b], o])
    out = []
    for t in range(2):
        deltas = [plain_gate(g, prior, t if g.first.stack else None) for g in ppnet.gates]
        h = deltas.pop(0) * o if ppnet.position == "input" else o
        for linear, delta in zip(ppnet.layers, deltas):
            h = delta * torch.relu(layer(linear, h, t))
        out.append(layer(ppnet.head, h, t))
    return torch.cat(out)


@pytest.mark.parametrize("position", ["input", "output"])
@pytest.mark.parametrize("per", ["all", "task"])
def test_it_is_the_papers_equations(position, per):
    epnet = wake(made(EmbeddingGate, hidden=4))
    ppnet = wake(made(ParameterGates, hidden=(4, 3), gate=4, position=position, per=per))
    x = rows()
    y = epnet(x)
    logits = ppnet(Flat(SPEC)(y), y)
    torch.testing.assert_close(logits, torch.stack([plain(epnet, ppnet, x, b) for b in range(6)]), atol=1e-10, rtol=0)


def test_a_gate_stays_between_zero_and_gamma_and_starts_around_one():
    gate, x = GateNU(50, 64, 200), torch.randn(500, 50)
    delta = gate(x)
    assert delta.min() > 0 and delta.max() < 2 and abs(delta.mean() - 1) < 0.05


@pytest.mark.parametrize("position", ["input", "output"])
@pytest.mark.parametrize("views", [1, 2])
def test_with_silent_gates_it_is_plain_towers_bit_for_bit(position, views):
    ppnet, epnet = made(ParameterGates, hidden=(4, 3), position=position), made(EmbeddingGate)
    towers = made(Towers, hidden=(4, 3))
    with torch.no_grad():
        for gate in (*ppnet.gates, epnet.gate):
            gate.last.weight.zero_()
            gate.last.bias.zero_()
        for mine, theirs in zip(ppnet.layers, towers.mlp.layers):
            theirs["linear"].load_state_dict(mine.state_dict())
        towers.linear.load_state_dict(ppnet.head.state_dict())
    x = rows()
    h = torch.randn(6, views, 5, dtype=torch.float64)
    each = h if position == "output" or views == 2 else h.repeat(1, 2, 1)      # a gated input is each task's own
    assert torch.equal(epnet(x).flat, x.flat) and torch.equal(ppnet(h, x), towers(each, x))


def test_the_gradient_of_the_embeddings_does_not_pass_through_the_gate():
    epnet, x = wake(made(EmbeddingGate)), rows()
    x.flat.requires_grad_()
    y = epnet(x).flat
    (found,) = torch.autograd.grad(y.square().sum(), x.flat, retain_graph=True)
    delta = (y / x.flat).detach()
    torch.testing.assert_close(found, 2 * y.detach() * delta, atol=1e-12, rtol=0)


def test_ppnets_gates_do_not_train_what_epnet_gave():
    ppnet, x = wake(made(ParameterGates, position="output", hidden=(4,))), rows()
    x.flat.requires_grad_()
    ppnet(torch.randn(6, 1, 5, dtype=torch.float64), x).sum().backward()
    assert x.flat.grad is None


def test_the_scenario_of_one_row_changes_that_row_only():
    epnet, x = wake(made(EmbeddingGate)), rows()
    groups = {**x.groups, "scenario": x.groups["scenario"].clone()}
    groups["scenario"][2] += 1
    same = (epnet(replace(x, groups=groups)).flat == epnet(x).flat).all(1)
    assert same.tolist() == [b != 2 for b in range(6)]


def test_a_gate_for_all_tasks_is_a_gate_for_each_that_are_equal():
    one, each = made(ParameterGates, per="all", hidden=(4,)), made(ParameterGates, hidden=(4,))
    with torch.no_grad():
        each.layers.load_state_dict(one.layers.state_dict())
        each.head.load_state_dict(one.head.state_dict())
        for a, b in zip(each.gates, one.gates):
            for name in ("first", "last"):
                getattr(a, name).weight[:] = getattr(b, name).weight
                getattr(a, name).bias[:] = getattr(b, name).bias
    x = rows()
    h = torch.randn(6, 1, 5, dtype=torch.float64)
    torch.testing.assert_close(one(h, x), each(h, x), atol=1e-12, rtol=0)


def test_gates_see_the_priors_named_and_fields_are_gated_with_flat():
    m = model(config({"name": "pepnet", "predict": {"groups": ["who"]}, "side": "fm"},
                     embedding={"width": 4, "groups": {"who": ["user", "tags"]}}))
    x = m.embedding(batch())
    y = m.slots.prepare[0](x)
    assert x.groups["who"].shape == (12, 8) and m.slots.predict.gates[0].first.width == 8 + x.flat.shape[1]
    for i, start in enumerate(m.embedding.starts):
        assert torch.equal(y.fields[:, i], y.flat[:, start:start + 4])
