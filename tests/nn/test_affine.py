"""The fast product is the plain one, gradients included; and it steps aside where it does not know the ground."""

import pytest
import torch
import torch.nn.functional as F

from funnelrank.nn import affine as module
from funnelrank.nn.affine import affine

BATCHES = [(64, 5, 3), (128, 40, 32), (4096, 24, 16)]


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("rows, width, out", BATCHES)
def test_values_and_gradients_are_those_of_linear_and_relu(rows, width, out, biased, relu):
    torch.manual_seed(0)
    x, w, b = torch.randn(rows, width), torch.randn(out, width), torch.randn(out) if biased else None
    direction, found = torch.randn(rows, out), []
    for way in (affine, lambda x, w, b, relu: F.linear(x, w, b).relu() if relu else F.linear(x, w, b)):
        leaves = [t.clone().requires_grad_() for t in (x, w, b) if t is not None]
        y = way(leaves[0], leaves[1], leaves[2] if biased else None, relu)
        found.append((y, *torch.autograd.grad(y, leaves, direction)))
    for mine, theirs in zip(*found):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_ragged_lengths_other_dtypes_and_no_rows_take_torchs_own_product(monkeypatch):
    monkeypatch.setattr(module, "ONEDNN", lambda *a: pytest.fail("oneDNN was asked"))
    for x in (torch.randn(65, 4), torch.randn(64, 4).double(), torch.randn(0, 4), torch.randn(64, 2, 4)):
        w = torch.randn(3, 4).to(x.dtype)
        torch.testing.assert_close(affine(x, w, None), F.linear(x, w))


def test_strided_inputs_are_read_where_they_lie():
    x, w = torch.randn(64, 2, 8), torch.randn(5, 8)
    torch.testing.assert_close(affine(x[:, 1], w, None), F.linear(x[:, 1], w), rtol=1e-4, atol=1e-5)


def test_an_input_that_learns_nothing_gets_no_gradient():
    x, w = torch.randn(64, 8), torch.randn(5, 8, requires_grad=True)
    affine(x, w, None).sum().backward()
    assert x.grad is None and w.grad is not None
