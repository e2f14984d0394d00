"""Entries of histories beside their row's own item, and Dice, by the kernels and by torch's operations."""

import pytest
import torch

from funnelrank.nn import history
from funnelrank.nn.activation import Dice
from funnelrank.nn.norm import Norm

OFFSETS = torch.tensor([0, 3, 3, 4, 9, 9])
ROW = torch.tensor([0, 0, 0, 2, 3, 3, 3, 3, 3])


def with_gradients(call, *inputs):
    leaves = [x.clone().requires_grad_() for x in inputs]
    out = call(*leaves)
    out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(1)))
    return [out.detach()] + [x.grad for x in leaves]


def same(call, written, *inputs):
    for a, b in zip(with_gradients(call, *inputs), with_gradients(written, *inputs)):
        torch.testing.assert_close(a, b, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("threads", (1, 2))
@pytest.mark.parametrize("D", (1, 16, 19))
def test_entries_beside_their_rows_item(D, threads):
    torch.manual_seed(0)
    e, v, row, weight = torch.randn(9, D), torch.randn(5, D), torch.randn(5, D), torch.randn(9)
    torch.set_num_threads(threads)
    try:
        same(lambda e, v: history.beside_target(e, v, OFFSETS), lambda e, v: torch.cat([e, e * v[ROW]], 1), e, v)
        same(lambda h, r: history.plus_row(h * 1, r, OFFSETS), lambda h, r: h + r[ROW], e, row)
        same(lambda w, e: history.pooled(w, e, OFFSETS),
             lambda w, e: torch.stack([(w[ROW.eq(b), None] * e[ROW.eq(b)]).sum(0) for b in range(5)]), weight, e)
    finally:
        torch.set_num_threads(1)


def test_no_entry_at_all():
    e, none = torch.empty(0, 4, requires_grad=True), torch.zeros(3, dtype=torch.int64)
    v = torch.randn(2, 4, requires_grad=True)
    out = history.pooled(history.beside_target(e, v, none).sum(1), e, none)
    out.sum().backward()
    assert out.tolist() == [[0.0] * 4] * 2 and (v.grad == 0).all()


@pytest.mark.parametrize("rows, width", [(2, 1), (3, 36), (5, 16), (257, 36), (1025, 9), (400, 21), (300, 130)])
def test_dice_is_its_formula(rows, width):
    torch.manual_seed(0)
    s, made, plain = 3 * torch.randn(rows, width) + 1, Dice(width), Dice(width).double()
    torch.nn.init.normal_(made.alpha)
    plain.load_state_dict(made.state_dict())

    def by(dice, x):                               # float64 goes torch's way
        leaf = x.clone().requires_grad_()
        out = dice(leaf)
        out.backward(torch.randn(rows, width, generator=torch.Generator().manual_seed(1)).to(out.dtype))
        return [out.detach(), leaf.grad, dice.alpha.grad, dice.norm.running_mean, dice.norm.running_var]

    for a, b in zip(by(made, s), by(plain, s.double())):
        torch.testing.assert_close(a.double(), b, atol=2e-5 * rows ** 0.5, rtol=2e-5)


@pytest.mark.parametrize("rows, width", [(2, 9), (3, 36), (259, 36), (4097, 8), (1000, 17), (130, 3)])
def test_batch_norm_of_rows_that_fill_no_vectors(rows, width):
    torch.manual_seed(0)
    x, made, plain = 5 + torch.randn(rows, width), Norm("batch", width), torch.nn.BatchNorm1d(width).double()
    same_sized = [with_gradients(made, x), with_gradients(plain, x.double())]
    for a, b in zip(*same_sized):
        torch.testing.assert_close(a.double(), b, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(made.norm.running_var.double(), plain.running_var, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(made.norm.running_mean.double(), plain.running_mean, atol=1e-6, rtol=1e-6)
