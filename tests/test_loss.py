import pytest
import torch

from funnelrank.funnel import Funnel
from funnelrank.loss import calibrator, task_losses

KINDS = ["binary"] * 3


def said(p):
    p = torch.tensor(p, requires_grad=True)
    return p, Funnel([None, 0, 1])(torch.logit(p))


def test_mean_is_over_observed_rows_not_over_the_batch():
    funnel = Funnel([None])
    z = torch.tensor([[0.3], [1.2], [-0.7]])
    y = torch.tensor([[1.0], [float("nan")], [0.0]])
    alone = task_losses(funnel, funnel(z[[0, 2]]), y[[0, 2]], torch.ones(2))
    torch.testing.assert_close(task_losses(funnel, funnel(z), y, torch.ones(3)), alone)


def test_weight_two_is_the_row_twice():
    funnel = Funnel([None])
    z, y = torch.tensor([[0.3], [1.2]]), torch.tensor([[1.0], [0.0]])
    twice = task_losses(funnel, funnel(z[[0, 1, 1]]), y[[0, 1, 1]], torch.ones(3))
    torch.testing.assert_close(task_losses(funnel, funnel(z), y, torch.tensor([1.0, 2.0])), twice)


def test_task_that_no_row_observes_gives_zero():
    funnel = Funnel([None])
    z = torch.randn(4, 1, requires_grad=True)
    loss = task_losses(funnel, funnel(z), torch.full((4, 1), float("nan")), torch.ones(4))
    loss.sum().backward()
    assert loss.item() == 0 and (z.grad == 0).all()


def test_calibrator_is_zero_exactly_where_the_funnel_holds():
    _, good = said([[0.5, 0.3, 0.1], [0.9, 0.9, 0.2]])
    _, bad = said([[0.5, 0.3, 0.1], [0.2, 0.9, 0.1]])
    assert calibrator(good, [None, 0, 1], KINDS).item() < 1e-7
    torch.testing.assert_close(calibrator(bad, [None, 0, 1], KINDS), torch.tensor(0.7 / 2))


def test_calibrator_pushes_plus_and_minus_one_over_b_on_violating_rows_only():
    p = torch.tensor([[0.2, 0.6], [0.6, 0.2]], requires_grad=True)
    funnel = Funnel([None, 0])
    prediction = funnel(torch.logit(p))._replace(mean=p)
    calibrator(prediction, [None, 0], ["binary"] * 2).backward()
    torch.testing.assert_close(p.grad, torch.tensor([[-0.5, 0.5], [0.0, 0.0]]))


@pytest.mark.parametrize("reading", ["conditional", "ordinal"])
def test_calibrator_is_zero_where_steps_are_nested(reading):
    prediction = Funnel([None, 0, 1], reading)(torch.randn(100, 3) * 5)
    assert calibrator(prediction, [None, 0, 1], KINDS).item() == 0
