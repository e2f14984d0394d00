"""The funnel's identities, against plain float64."""

import math

import pytest
import torch

from funnelrank.funnel import Funnel, log1mexp, undo_down_sampling
from funnelrank.ranker import starts

TREE = [None, 0, 1, 0]          # click > cart > buy, click > like
Z = torch.randn(200, 4, generator=torch.Generator().manual_seed(0)) * 3


def test_joint_reading_is_one_sigmoid_a_task():
    said = Funnel(TREE)(Z)
    torch.testing.assert_close(said.mean, torch.sigmoid(Z))
    torch.testing.assert_close(said.log_not_p, torch.log1p(-torch.sigmoid(Z.double())).float(), atol=1e-6, rtol=1e-5)


def test_conditional_reading_multiplies_along_the_tree():
    said = Funnel(TREE, "conditional")(Z)
    s = torch.sigmoid(Z.double())
    p = torch.stack([s[:, 0], s[:, 0] * s[:, 1], s[:, 0] * s[:, 1] * s[:, 2], s[:, 0] * s[:, 3]], 1)
    torch.testing.assert_close(said.log_p.exp().double(), p, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(said.log_not_p.exp().double(), 1 - p, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(said.given.double(), s, atol=1e-6, rtol=1e-5)


def test_ordinal_reading_takes_a_gap_off_the_log_odds_along_the_tree():
    said, z = Funnel(TREE, "ordinal")(Z), Z.double()
    gap = torch.log1p(torch.exp(-z))
    u = torch.stack([z[:, 0], z[:, 0] - gap[:, 1], z[:, 0] - gap[:, 1] - gap[:, 2], z[:, 0] - gap[:, 3]], 1)
    p = torch.sigmoid(u)
    torch.testing.assert_close(said.log_p.double(), p.log(), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(said.log_not_p.double(), (1 - p).log(), atol=1e-6, rtol=1e-5)
    given = torch.stack([p[:, 0], p[:, 1] / p[:, 0], p[:, 2] / p[:, 1], p[:, 3] / p[:, 0]], 1)
    torch.testing.assert_close(said.given.double(), given, atol=1e-6, rtol=1e-5)


def test_ordinal_reading_of_a_chain_is_proportional_odds_regression():
    """McCullagh 1980: P(Y >= k) = s(w.x - theta_k), theta rising; here w.x - theta_1, and gaps that x does not move."""
    g = torch.Generator().manual_seed(3)
    x, w = torch.randn(50, 5, generator=g, dtype=torch.float64), torch.randn(5, generator=g, dtype=torch.float64)
    theta = [-0.5, 0.2, 1.7]
    z = torch.stack([x @ w - theta[0]] + [torch.full((50,), -math.log(math.expm1(b - a)), dtype=torch.float64)
                                          for a, b in zip(theta, theta[1:])], 1)
    said = Funnel([None, 0, 1], "ordinal").double()(z)
    for i in range(50):
        reached = [1.0] + [1 / (1 + math.exp(t - float(x[i] @ w))) for t in theta] + [0.0]
        assert said.mean[i].tolist() == pytest.approx(reached[1:4], abs=1e-12)
        # the likelihood of ending at each level, from the conditionals
        there = [1.0, *said.mean[i].tolist()]
        on = [*said.given[i].tolist(), 0.0]
        assert [p * (1 - q) for p, q in zip(there, on)] == pytest.approx(
            [a - b for a, b in zip(reached, reached[1:])], abs=1e-12)


def test_with_one_task_all_readings_are_one():
    z = Z[:, :1]
    for reading in ("conditional", "ordinal"):
        for a, b in zip(Funnel([None], reading)(z), Funnel([None])(z)):
            assert torch.equal(a, b)


@pytest.mark.parametrize("reading", ["conditional", "ordinal"])
@pytest.mark.parametrize("size", [0.01, 10, 1000])
def test_probabilities_never_rise_down_the_funnel_for_any_logits(reading, size):
    said = Funnel(TREE, reading)(Z * size)
    for child, parent in ((1, 0), (2, 1), (3, 0)):
        assert (said.log_p[:, child] <= said.log_p[:, parent]).all()
        assert (said.mean[:, child] <= said.mean[:, parent]).all()
    assert (said.given <= 1).all() and all(part.isfinite().all() for part in said)


@pytest.mark.parametrize("reading", ["joint", "conditional", "ordinal"])
def test_p_and_its_complement_add_up_to_one(reading):
    said = Funnel(TREE, reading).double()(Z.double() * 4)
    torch.testing.assert_close(torch.logaddexp(said.log_p, said.log_not_p), torch.zeros(200, 4).double(), atol=1e-14,
                               rtol=0)


@pytest.mark.parametrize("first", [-80.0, -20.0, 0.0, 20.0, 80.0])
def test_what_is_given_the_parent_keeps_its_digits_at_both_ends_of_the_ordinal_reading(first):
    z = torch.stack([torch.full((41,), first), torch.linspace(-20, 20, 41)], 1)
    given = Funnel([None, 0], "ordinal")(z).given[:, 1].double()
    u = z.double()
    exact = (1 + torch.exp(-u[:, 0])) / (1 + torch.exp(-u[:, 0]) * (1 + torch.exp(-u[:, 1])))
    torch.testing.assert_close(given, exact, atol=0, rtol=3e-6)


def test_ordinal_loss_has_gradient_p_minus_y_of_its_step_and_all_below():
    z = torch.randn(50, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    y = torch.rand(50, 3, generator=torch.Generator().manual_seed(2)).lt(0.5).double().cumprod(1)
    funnel = Funnel([None, 0, 1], "ordinal").double()
    said = funnel(z)
    funnel.nll(said, y).sum().backward()
    wrong = (said.mean - y).detach()                                    # d loss_t / d u_t
    below = wrong.flip(1).cumsum(1).flip(1)                             # u_t moves every step from t on
    slope = torch.cat([torch.ones(50, 1).double(), torch.sigmoid(-z.detach()[:, 1:])], 1)      # d u_t / d z_t
    torch.testing.assert_close(z.grad, slope * below, atol=1e-12, rtol=0)


@pytest.mark.parametrize("reading", ["conditional", "ordinal"])
def test_log_not_p_keeps_its_gradient_where_the_model_is_confidently_wrong(reading):
    z = torch.tensor([[40.0, 0.5]], requires_grad=True)
    funnel = Funnel([None, 0], reading)
    loss = funnel.nll(funnel(z), torch.zeros(1, 2)).sum()
    loss.backward()
    assert torch.isfinite(loss) and z.grad.abs().min() > 0.3


@pytest.mark.parametrize("reading", ["joint", "conditional"])
def test_loss_of_the_first_task_has_gradient_p_minus_y(reading):
    z = torch.randn(50, 2, generator=torch.Generator().manual_seed(1), requires_grad=True)
    y = torch.rand(50, 2).lt(0.3).float()
    funnel = Funnel([None, 0], reading)
    funnel.nll(funnel(z), y)[:, 0].sum().backward()
    torch.testing.assert_close(z.grad[:, 0], torch.sigmoid(z.detach()[:, 0]) - y[:, 0], atol=1e-6, rtol=1e-5)
    assert z.grad[:, 1].abs().max() == 0


def test_conversion_learns_from_unclicked_rows_under_the_conditional_reading():
    z = torch.zeros(1, 2, requires_grad=True)
    funnel = Funnel([None, 0], "conditional")
    funnel.nll(funnel(z), torch.zeros(1, 2))[:, 1].sum().backward()
    assert z.grad[0, 1] > 0


def test_missing_label_weighs_nothing_and_leaves_other_tasks_alone():
    z = torch.randn(30, 4, requires_grad=True)
    y = torch.rand(30, 4).lt(0.5).float()
    hidden = y.clone()
    hidden[:, 2] = float("nan")
    funnel = Funnel(TREE)
    full, part = funnel.nll(funnel(z), y), funnel.nll(funnel(z), hidden)
    assert (part[:, 2] == 0).all()
    torch.testing.assert_close(part[:, [0, 1, 3]], full[:, [0, 1, 3]])
    part.sum().backward()
    assert (z.grad[:, 2] == 0).all() and z.grad.isfinite().all()


def test_regression_is_squared_error_in_units_of_its_spread():
    funnel = Funnel([None, 0], "joint", ["binary", "regression"], loc=[0, 5.0], scale=[1, 2.0])
    said = funnel(torch.tensor([[0.0, 1.5]]))
    assert said.mean[0, 1] == 8.0
    assert funnel.nll(said, torch.tensor([[1.0, 4.0]]))[0, 1] == pytest.approx((4 - 8) ** 2 / (2 * 2**2))


def test_count_is_poisson_and_lowest_at_the_label():
    funnel = Funnel([None], kinds=["count"])
    loss = lambda mean: funnel.nll(funnel(torch.tensor([[math.log(mean)]])), torch.tensor([[3.0]])).item()
    assert loss(3.0) < min(loss(2.9), loss(3.1))


def test_value_after_a_step_is_observed_only_there_and_served_over_all():
    funnel = Funnel([None, 0], "conditional", ["binary", "regression"], loc=[0, 10.0], scale=[1, 1.0])
    said = funnel(torch.tensor([[0.0, 0.0]]))
    assert said.given[0, 1] == 10 and said.mean[0, 1] == pytest.approx(5.0)
    assert funnel.observed(torch.tensor([[0.0, 0.0], [1.0, 9.0]]))[:, 1].tolist() == [False, True]


@pytest.mark.parametrize("reading", ["joint", "conditional", "ordinal"])
def test_down_sampling_is_undone_exactly_on_a_nested_funnel(reading):
    p, step, rate = 0.1, 0.2, 0.25                                    # true click, buy | click
    kept = p + (1 - p) * rate
    p_seen, buy_seen = p / kept, p * step / kept
    logit = lambda q: math.log(q / (1 - q))
    said = {"joint": logit(buy_seen), "conditional": logit(step), "ordinal": logit(step) + math.log(1 - p_seen)}
    z = torch.tensor([[logit(p_seen), said[reading], 0.3]])
    funnel = Funnel([None, 0, None], reading)
    fixed = undo_down_sampling(funnel(z), funnel, 0, rate)
    assert fixed.mean[0].tolist() == pytest.approx([p, p * step, torch.sigmoid(torch.tensor(0.3)).item()], rel=1e-5)
    torch.testing.assert_close(fixed.log_p[:, :2].exp() + fixed.log_not_p[:, :2].exp(), torch.ones(1, 2))
    assert fixed.given[0, 1].item() == pytest.approx(step, rel=1e-5)


def test_log1mexp_is_exact_at_both_ends():
    x = torch.tensor([-1e-8, -1e-3, -0.5, -5.0, -80.0])
    expected = torch.log(-torch.expm1(x.double())).float()
    torch.testing.assert_close(log1mexp(x), expected)


def test_an_unobserved_count_never_overflows_into_the_gradient():
    z = torch.tensor([[100.0], [0.0]], requires_grad=True)
    funnel = Funnel([None], kinds=["count"])
    funnel.nll(funnel(z), torch.tensor([[float("nan")], [1.0]])).sum().backward()
    assert z.grad.tolist() == [[0.0], [0.0]]


@pytest.mark.parametrize("reading, value", [("joint", 30.0), ("conditional", 30.0 * 0.5 * 0.1 / 0.55),
                                            ("ordinal", 30.0 * 0.5 * 0.1 / 0.55)])
def test_values_are_corrected_only_where_they_hang_on_the_sampled_task(reading, value):
    funnel = Funnel([None, 0], reading, ["binary", "regression"], loc=[0, 30.0])
    fixed = undo_down_sampling(funnel(torch.zeros(1, 2)), funnel, 0, 0.1)
    assert fixed.mean[0, 1].item() == pytest.approx(value, rel=1e-5) and fixed.given[0, 1] == 30


@pytest.mark.parametrize("reading", ["joint", "conditional", "ordinal"])
def test_heads_start_where_every_step_has_its_own_rate(reading):
    means = [0.4, 0.25, 0.3, 0.1]                                       # given the parent, unless joint
    z = starts(["binary"] * 4, [{"mean": m} for m in means], TREE, reading)
    said = Funnel(TREE, reading).double()(torch.tensor([z], dtype=torch.float64))
    assert (said.mean if reading == "joint" else said.given)[0].tolist() == pytest.approx(means, rel=1e-6)
