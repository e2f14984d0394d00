"""Batch normalisation of ours against torch's: values, gradients and running statistics."""

import pytest
import torch
from torch import nn

from funnelrank import kernels
from funnelrank.nn.linear import MLP
from funnelrank.nn.norm import Norm

SHAPES = [(2, 1), (7, 3), (64, 64), (65, 65), (1000, 130)]


def pair(width):
    torch.manual_seed(1)
    mine, theirs = Norm("batch", width), nn.BatchNorm1d(width)
    with torch.no_grad():
        for p in (mine.norm.weight, mine.norm.bias):
            p.normal_()
        theirs.load_state_dict(mine.norm.state_dict())
    return mine, theirs


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("rows, width", SHAPES)
def test_it_is_torchs_batch_norm_and_relu(rows, width, relu):
    mine, theirs = pair(width)
    x = torch.randn(rows, width) * 3 + torch.arange(width) % 7        # means that are not 0
    direction = torch.randn(rows, width)
    a, b = x.clone().requires_grad_(), x.double().requires_grad_()
    theirs.double()
    y, z = mine(a, relu=relu), theirs(b)
    z = z.relu() if relu else z
    torch.testing.assert_close(y, z.float(), rtol=1e-4, atol=2e-4)
    y.backward(direction)
    z.backward(direction.double())
    torch.testing.assert_close(a.grad, b.grad.float(), rtol=1e-3, atol=2e-4)
    for p, q in ((mine.norm.weight, theirs.weight), (mine.norm.bias, theirs.bias)):
        torch.testing.assert_close(p.grad, q.grad.float(), rtol=1e-3, atol=1e-2 if rows > 500 else 1e-3)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(getattr(mine.norm, name), getattr(theirs, name).to(getattr(mine.norm, name)))


@pytest.mark.skipif(kernels.library() is None, reason="the package was built without a C++ compiler")
def test_threads_do_not_change_a_bit():
    found = []
    for threads in (1, 2, 3):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            torch.manual_seed(0)
            norm, x = Norm("batch", 200), torch.randn(300, 200, requires_grad=True)
            y = norm(x, relu=True)
            y.square().sum().backward()
            found.append((y.detach(), x.grad, norm.norm.weight.grad, norm.norm.running_var))
        finally:
            torch.set_num_threads(before)
    for other in found[1:]:
        assert all((a == b).all() for a, b in zip(found[0], other))


def test_at_evaluation_it_is_folded_into_the_layer_before():
    torch.manual_seed(0)
    for stack in (None, 2):
        mlp = MLP(6, (5, 4), norm="batch", stack=stack)
        for _ in range(3):
            mlp(torch.randn(64, 6) + 1)
        mlp.eval()
        x = torch.randn(9, 6)
        for i in range(stack or 1):
            h = x
            for layer in mlp.layers:
                linear, norm = layer["linear"], layer["norm"].norm
                own = slice(i * linear.out, (i + 1) * linear.out)
                weight, bias = linear.one(i) if stack else (linear.weight, linear.bias)
                h = nn.functional.batch_norm(nn.functional.linear(h, weight, bias), norm.running_mean[own],
                                             norm.running_var[own], norm.weight[own], norm.bias[own]).relu()
            torch.testing.assert_close(mlp(x)[:, i] if stack else mlp(x), h)


def test_not_a_number_stays_one():
    norm = Norm("batch", 2)
    x = torch.randn(4, 2)
    x[1, 0] = float("nan")
    y = norm(x, relu=True)
    assert y[:, 0].isnan().all() and not y[:, 1].isnan().any()


def test_one_row_uses_the_running_statistics_and_does_not_move_them():
    norm = Norm("batch", 3)
    before = norm.norm.running_mean.clone()
    assert norm(torch.ones(1, 3)).isfinite().all() and (norm.norm.running_mean == before).all()
