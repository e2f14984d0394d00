import math

import pytest
import torch
from torch import nn

from funnelrank.nn.linear import MLP, Linear


def test_stack_is_n_layers():
    torch.manual_seed(0)
    many = Linear(5, 3, stack=4)
    x, each = torch.randn(7, 5), torch.randn(7, 4, 5)
    for i in range(4):
        one = nn.Linear(5, 3)
        with torch.no_grad():
            one.weight.copy_(many.weight[i])
            one.bias.copy_(many.bias[i])
        torch.testing.assert_close(many(x)[:, i], one(x))
        torch.testing.assert_close(many(each)[:, i], one(each[:, i]))


@pytest.mark.parametrize("norm", [None, "layer", "batch"])
def test_stacked_mlp_is_n_mlps(norm):
    torch.manual_seed(0)
    many = MLP(6, (5, 4), norm=norm, stack=3)
    x = torch.randn(16, 6)
    out = many(x)
    for i in range(3):
        one = MLP(6, (5, 4), norm=norm)
        for mine, theirs in zip(one.layers, many.layers):
            with torch.no_grad():
                mine["linear"].weight.copy_(theirs["linear"].weight[i])
                mine["linear"].bias.copy_(theirs["linear"].bias[i])
        torch.testing.assert_close(out[:, i], one(x))


def test_each_slice_starts_as_a_layer_of_its_own():
    weight = Linear(512, 256, stack=8).weight
    assert weight.std().item() == pytest.approx(1 / math.sqrt(3 * 512), rel=0.02)


def test_gradient_of_one_slice_leaves_the_others_alone():
    many = Linear(5, 3, stack=2)
    many(torch.randn(4, 5))[:, 0].sum().backward()
    assert many.weight.grad[0].abs().sum() > 0 and many.weight.grad[1].abs().sum() == 0


def test_no_hidden_layers_is_the_identity():
    x = torch.randn(3, 4)
    assert MLP(4, ())(x) is x
    assert (MLP(4, (), stack=2)(x) == x.unsqueeze(1)).all()
