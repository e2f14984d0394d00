"""DCN-v2 (arXiv 2008.13535), against its equations in float64."""

import pytest
import torch
from made import inputs, spec

from funnelrank.errors import ConfigError
from funnelrank.models.dcn_v2 import CrossLayer, CrossNetwork


def slowly(layer, x0, x, n):
    """One cross layer of network n on one row."""
    if hasattr(layer, "full"):
        return x0 * (layer.full.weight[n] @ x + layer.full.bias[n]) + x
    K = layer.experts
    ways = range(n * K, (n + 1) * K)
    if K == 1:
        return x0 * (layer.up.weight[n] @ layer.down.weight[n] @ x + layer.bias[n]) + x
    score = layer.gate.weight[n] @ x
    gates = score.exp() / score.exp().sum()
    experts = [x0 * (layer.up.weight[i] @ torch.tanh(layer.middle.weight[i] @ torch.tanh(layer.down.weight[i] @ x))
                     + layer.bias[n]) for i in ways]
    return sum(g * e for g, e in zip(gates, experts)) + x


@pytest.mark.parametrize("keys", [{}, {"rank": 3}, {"rank": 3, "experts": 2}])
@pytest.mark.parametrize("structure", ["stacked", "parallel"])
def test_it_is_the_papers_network(keys, structure):
    sizes = spec()
    part = CrossNetwork(sizes, layers=2, structure=structure, hidden=(5,), per="task", **keys).double()
    for name, p in part.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(p)
    x, linear = inputs(sizes), part.mlp.layers[0]["linear"]
    assert part.hidden == (5 if structure == "stacked" else 5 + sizes.flat)
    for b in range(6):
        for t in range(2):
            h = x.flat[b]
            for layer in part.cross:
                h = slowly(layer, x.flat[b], h, t)
            deep = torch.relu(linear.weight[t] @ (h if structure == "stacked" else x.flat[b]) + linear.bias[t])
            want = deep if structure == "stacked" else torch.cat([h, deep])
            torch.testing.assert_close(part(x)[b, t], want, atol=1e-10, rtol=0)


def test_full_rank_is_low_rank_with_as_many_ranks_as_inputs():
    full, low = CrossLayer(4, None, 1, 1).double(), CrossLayer(4, 4, 1, 1).double()
    with torch.no_grad():
        low.down.weight.copy_(torch.eye(4))
        low.up.weight.copy_(full.full.weight)
        low.bias.copy_(full.full.bias)
    x0, x = torch.randn(2, 5, 1, 4, dtype=torch.float64).unbind(0)
    torch.testing.assert_close(low(x0, x), full(x0, x), atol=1e-10, rtol=0)


def test_equal_experts_make_the_gate_irrelevant():
    layer = CrossLayer(4, 2, 3, 1).double()
    with torch.no_grad():
        for part in (layer.down, layer.middle, layer.up):
            part.weight.copy_(part.weight[:1].clone())
    x0, x = torch.randn(2, 5, 1, 4, dtype=torch.float64).unbind(0)
    before = layer(x0, x)
    torch.nn.init.normal_(layer.gate.weight)
    torch.testing.assert_close(layer(x0, x), before, atol=1e-10, rtol=0)


def test_a_cross_layer_of_zeros_is_the_identity():
    sizes = spec()
    part, x = CrossNetwork(sizes, layers=3, hidden=()).double(), inputs(sizes)
    for p in part.parameters():
        torch.nn.init.zeros_(p)
    assert torch.equal(part(x)[:, 0], x.flat)


def test_layers_raise_the_degree_by_one_each():
    part = CrossNetwork(spec(fields=(1, 1), numbers=0), layers=3, hidden=()).double()
    with torch.no_grad():
        for layer in part.cross:
            layer.full.weight.fill_(1)
            layer.full.bias.zero_()
    x = inputs(spec(fields=(1, 1), numbers=0))
    x.flat = torch.tensor([[2.0]], dtype=torch.float64)
    assert part(x).item() == 2 * (1 + 2) ** 3                   # x (1 + x)^layers, of degree 4


def test_a_mixture_of_full_rank_is_refused():
    with pytest.raises(ConfigError, match="model.represent.experts: 2 experts of full rank"):
        CrossNetwork(spec(), experts=2)
