"""Kinds of tasks that are no yes or no, against distributions that torch has."""

import math

import pytest
import torch
from torch.distributions import LogNormal, Poisson

from funnelrank import values
from funnelrank.funnel import Funnel
from funnelrank.loss import task_losses

G = torch.Generator().manual_seed(0)
Z = torch.randn(60, 3, generator=G, dtype=torch.float64)
AMOUNT = torch.where(torch.rand(60, generator=G) < 0.5, 0.0, torch.rand(60, generator=G) * 80).double()
ONE = torch.tensor(1.0)


def test_ziln_is_a_zero_or_a_lognormal():
    p, spread = Z[:, 0].sigmoid(), torch.log1p(Z[:, 2].exp())
    spent = AMOUNT > 0
    expected = -torch.where(spent, p.log() + LogNormal(Z[:, 1], spread).log_prob(AMOUNT.where(spent, ONE.double())),
                            (1 - p).log())
    torch.testing.assert_close(values.nll("ziln", Z, AMOUNT, ONE, ONE), expected, atol=1e-10, rtol=1e-10)
    mean = p * LogNormal(Z[:, 1], spread).mean
    torch.testing.assert_close(values.mean("ziln", Z, ONE, ONE), mean, atol=0, rtol=1e-10)


def test_count_is_poisson_up_to_what_the_model_cannot_move():
    y = torch.arange(60).double()
    gap = values.nll("count", Z[:, :1], y, ONE, ONE) + Poisson(Z[:, 0].exp()).log_prob(y)
    torch.testing.assert_close(gap, -torch.lgamma(y + 1), atol=1e-9, rtol=1e-10)


def test_a_ziln_head_starts_at_what_the_labels_say():
    z = torch.tensor([values.starts("ziln", {"positive": 0.2, "log_mean": 3.0, "log_std": 0.7})])
    p, mean = torch.sigmoid(z[0, 0]), values.mean("ziln", z, ONE, ONE)
    assert p == pytest.approx(0.2) and mean.item() == pytest.approx(0.2 * math.exp(3 + 0.7**2 / 2), rel=1e-5)


def test_amounts_of_nothing_leave_the_lognormal_alone():
    z = Z.clone().requires_grad_()
    values.nll("ziln", z, torch.zeros(60), ONE, ONE).sum().backward()
    assert (z.grad[:, 1:] == 0).all()
    torch.testing.assert_close(z.grad[:, 0], z[:, 0].sigmoid())


@pytest.mark.parametrize("z", [-200.0, 200.0])
def test_ziln_has_a_finite_loss_and_gradient_far_out(z):
    out = torch.tensor([[z, 1.0, z]] * 2, requires_grad=True)
    loss = values.nll("ziln", out, torch.tensor([0.0, 30.0]), ONE, ONE).sum()
    loss.backward()
    assert loss.isfinite() and out.grad.isfinite().all()


@pytest.mark.parametrize("reading", ["joint", "conditional"])
def test_a_task_owns_its_slice_of_the_outputs(reading):
    funnel = Funnel([None, 0, 0], reading, ["binary", "ziln", "binary"], outputs=[1, 3, 1])
    z = torch.randn(5, 5, generator=G)
    said, alone = funnel(z), Funnel([None, 0], reading)(z[:, [0, 4]])
    torch.testing.assert_close(said.log_p[:, [0, 2]], alone.log_p)
    amount = values.mean("ziln", z[:, 1:4], ONE, ONE)
    torch.testing.assert_close(said.given[:, 1], amount)
    torch.testing.assert_close(said.mean[:, 1], amount * said.mean[:, 0] if reading == "conditional" else amount)


def test_an_amount_that_was_not_observed_gives_its_outputs_no_gradient():
    funnel = Funnel([None], kinds=["ziln"], outputs=[3])
    z = torch.tensor([[0.1, 500.0, 500.0], [0.1, 1.0, 1.0]], requires_grad=True)
    task_losses(funnel, funnel(z), torch.tensor([[float("nan")], [2.0]]), torch.ones(2)).sum().backward()
    assert (z.grad[0] == 0).all() and z.grad[1].isfinite().all() and z.grad[1].abs().min() > 0
