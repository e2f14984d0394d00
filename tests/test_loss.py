import pytest
import torch
from made import batch, config, model

from funnelrank.errors import ConfigError
from funnelrank.funnel import Funnel
from funnelrank.loss import calibrator, is_plain, plain_losses, task_losses, within
from funnelrank.settings import JRC, Focal, Huber, Pairwise, Squared

KINDS = ["binary"] * 3


ONE = torch.ones(2, dtype=torch.float64)


def said(p):
    p = torch.tensor(p, dtype=torch.float64, requires_grad=True)
    return p, Funnel([None, 0, 1])(torch.logit(p))


@pytest.mark.parametrize("kinds", [KINDS, ["binary", "binary", "regression"]], ids=["steps", "value"])
@pytest.mark.parametrize("reading", ["joint", "conditional", "ordinal"])
def test_mean_is_over_observed_rows_not_over_the_batch(reading, kinds):
    """A label that is not observed leaves its task's loss to the other rows, other tasks alone, and no gradient."""
    g = torch.Generator().manual_seed(0)
    z = torch.randn(8, 3, generator=g, dtype=torch.float64, requires_grad=True)
    y = torch.rand(8, 3, generator=g).lt(0.6).double().cumprod(1)
    y[0] = 1                                             # a value after a step that did not happen is not observed, too
    funnel, hidden, w = Funnel([None, 0, 1], reading, kinds).double(), y.clone(), torch.rand(8, generator=g).double()
    hidden[[2, 5], 2] = float("nan")
    rest = [0, 1, 3, 4, 6, 7]
    found, full = (task_losses(funnel, funnel(z), labels, w) for labels in (hidden, y))
    alone = task_losses(funnel, funnel(z[rest]), y[rest], w[rest])
    torch.testing.assert_close(found[2], alone[2], atol=1e-12, rtol=0)
    assert torch.equal(found[:2], full[:2]) and not torch.isclose(found[2], full[2])
    found[2].backward()
    assert (z.grad[[2, 5]] == 0).all() and (z.grad[0] != 0).any()


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


def test_a_task_within_another_is_the_weighted_mean_over_its_space():
    """By hand, in float64: weights of data and space, a label that was not observed, and one of another task's."""
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(50, 2, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 2, (50, 2), generator=generator).double()
    y[3, 1] = y[7, 0] = y[8, 0] = float("nan")
    w = torch.rand(50, generator=generator, dtype=torch.float64)
    funnel, above, below = Funnel([None, 0]), 0.0, 0.0
    for i in range(50):
        if i != 3:
            weight = w[i] * (3.0 if y[i, 0] == 1 else 0.2)
            p = 1 / (1 + (-z[i, 1]).exp())
            above -= weight * (p.log() if y[i, 1] == 1 else (1 - p).log())
            below += weight
    found = task_losses(funnel, funnel(z), y, within(w, y, {1: (0, 3.0, 0.2)}))
    torch.testing.assert_close(found[1], above / below)
    torch.testing.assert_close(found[0], task_losses(funnel, funnel(z), y, w)[0])


@pytest.mark.parametrize("loss", [None, {"name": "pairwise", "by": "batch"}, {"name": "jrc", "by": "batch"}, "focal"])
def test_rows_outside_a_task_of_weight_0_are_as_if_they_were_not_there(loss):
    keys = {"loss": loss} if loss else {}
    m = model(config(tasks={"click": {}, "buy": {**keys, "within": "click"}}, model="shared_bottom")).eval()
    rows = batch(60, tasks=2, seed=5)
    inside = rows.labels[:, 0] == 1
    rows.labels[~inside, 1] = float("nan")
    without = m.task_losses(m(rows), rows)
    rows.labels[~inside, 1] = 1.0
    torch.testing.assert_close(m.task_losses(m(rows), rows), without)


def test_calibrator_is_zero_exactly_where_the_funnel_holds():
    _, good = said([[0.5, 0.3, 0.1], [0.9, 0.9, 0.2]])
    _, bad = said([[0.5, 0.3, 0.1], [0.2, 0.9, 0.1]])
    assert calibrator(good, [None, 0, 1], KINDS, ONE).item() == 0
    torch.testing.assert_close(calibrator(bad, [None, 0, 1], KINDS, ONE), torch.tensor(0.7 / 2, dtype=torch.float64))
    g = torch.Generator().manual_seed(0)
    for p in torch.rand(200, 1, 3, generator=g, dtype=torch.float64).round(decimals=1):          # ties, too
        holds = bool((p[0, 1:] <= p[0, :-1]).all())
        asked = Funnel([None, 0, 1])(torch.zeros_like(p))._replace(mean=p)
        assert (calibrator(asked, [None, 0, 1], KINDS, ONE[:1]).item() == 0) == holds


def test_calibrator_counts_a_row_of_weight_two_twice_and_one_of_weight_0_not_at_all():
    p, _ = said([[0.2, 0.6, 0.1], [0.5, 0.7, 0.8], [0.1, 0.9, 0.9]])
    of = lambda rows, weight: calibrator(Funnel([None, 0, 1])(torch.logit(p[rows])), [None, 0, 1], KINDS,
                                         torch.tensor(weight, dtype=torch.float64))
    torch.testing.assert_close(of([0, 1, 2], [2.0, 1.0, 0.0]), of([0, 0, 1], [1.0, 1.0, 1.0]))
    assert of([0, 1, 2], [0.0, 0.0, 0.0]).item() == 0


def test_calibrator_pushes_plus_and_minus_one_over_b_on_violating_rows_only():
    p = torch.tensor([[0.2, 0.6, 0.9], [0.6, 0.2, 0.1], [0.6, 0.2, 0.3], [0.1, 0.4, 0.2]], dtype=torch.float64,
                     requires_grad=True)
    prediction = Funnel([None, 0, 1])(torch.logit(p))._replace(mean=p)
    (0.6 * calibrator(prediction, [None, 0, 1], KINDS, torch.ones(4, dtype=torch.float64))).backward()
    expected = 0.6 / 4 * torch.tensor([[-1, 0, 1], [0, 0, 0], [0, -1, 1], [-1, 1, 0]], dtype=torch.float64)
    torch.testing.assert_close(p.grad, expected, atol=1e-15, rtol=0)


@pytest.mark.parametrize("reading", ["conditional", "ordinal"])
def test_calibrator_is_zero_where_steps_are_nested(reading):
    prediction = Funnel([None, 0, 1], reading)(torch.randn(100, 3) * 5)
    assert calibrator(prediction, [None, 0, 1], KINDS, torch.ones(100)).item() == 0


# ---- losses that a task may have instead

G = torch.Generator().manual_seed(0)
B = 40
Z, Y = torch.randn(B, 1, generator=G, dtype=torch.float64), torch.rand(B, 1, generator=G).lt(0.3).double()
W, USER = torch.rand(B, generator=G).double(), torch.randint(0, 6, (B,), generator=G)


def loss_of(loss, z=Z, y=Y, w=W, user=USER, **funnel):
    f = Funnel([None], **funnel)
    return task_losses(f, f(z), y, w, {0: loss} if loss else None, user)[0]


def test_focal_is_its_formula_and_with_gamma_0_cross_entropy():
    p, y = Z.sigmoid(), Y
    own, share = torch.where(y == 1, p, 1 - p), torch.where(y == 1, 0.25, 0.75)
    expected = (W.unsqueeze(1) * -share * (1 - own) ** 2 * own.log()).sum() / W.sum()
    torch.testing.assert_close(loss_of(Focal(name="focal")), expected, atol=1e-12, rtol=1e-10)
    torch.testing.assert_close(loss_of(Focal(name="focal", gamma=0, alpha=None)), loss_of(None), atol=1e-12, rtol=1e-10)


def test_focal_is_of_the_probability_over_all_impressions():
    z, y = torch.randn(30, 2, generator=G, dtype=torch.float64), torch.rand(30, 2, generator=G).lt(0.4).double()
    funnel, w = Funnel([None, 0], "conditional"), torch.ones(30, dtype=torch.float64)
    found = task_losses(funnel, funnel(z), y, w, {1: Focal(name="focal", alpha=None)})
    p = z[:, 0].sigmoid() * z[:, 1].sigmoid()
    own = torch.where(y[:, 1] == 1, p, 1 - p)
    torch.testing.assert_close(found[1], ((1 - own) ** 2 * -own.log()).mean(), atol=1e-10, rtol=1e-9)
    torch.testing.assert_close(found[0], task_losses(funnel, funnel(z), y, w)[0])


def test_huber_is_squared_error_within_delta_and_a_line_beyond():
    at = lambda error, loss: loss_of(loss, torch.tensor([[(5 + error - 5) / 2]]), torch.tensor([[5.0]]), torch.ones(1),
                                     kinds=["regression"], loc=[5.0], scale=[2.0]).item()
    huber = Huber(name="huber", delta=1.5)
    assert at(1.0, huber) == at(1.0, Squared(name="squared")) == 0.5 * 0.5**2
    assert at(8.0, huber) == 1.5 * (4 - 0.75) and at(10.0, huber) - at(8.0, huber) == 1.5


@pytest.mark.parametrize("by", ["user", "batch"])
def test_pairwise_is_the_mean_over_pairs_of_one_context(by):
    s, total, weight = Z[:, 0], 0.0, 0.0
    for i in range(B):
        for j in range(B):
            if Y[i] == 1 and Y[j] == 0 and (by == "batch" or USER[i] == USER[j]):
                total += W[i] * W[j] * torch.log1p(torch.exp(s[j] - s[i]))
                weight += W[i] * W[j]
    found = loss_of(Pairwise(name="pairwise", alpha=0, by=by))
    torch.testing.assert_close(found, total / weight, atol=1e-12, rtol=1e-10)
    half = loss_of(Pairwise(name="pairwise", alpha=0.3, by=by))
    torch.testing.assert_close(half, 0.3 * loss_of(None) + 0.7 * total / weight, atol=1e-12, rtol=1e-10)


def test_pairwise_of_a_batch_without_pairs_is_0_and_asks_for_nothing():
    z = Z.clone().requires_grad_()
    loss_of(Pairwise(name="pairwise", alpha=0), z, torch.ones(B, 1).double()).backward()
    assert (z.grad == 0).all()
    alone = loss_of(Pairwise(name="pairwise", alpha=0), user=torch.full((B,), -1))
    assert alone == 0


@pytest.mark.parametrize("by", ["user", "batch"])
def test_jrc_is_the_papers_loss(by):
    """Written as the paper writes it: B x B logits of both classes, a mask of contexts, and softmaxes over columns."""
    f = torch.randn(B, 2, generator=G, dtype=torch.float64)
    context = USER if by == "user" else torch.zeros(B, dtype=torch.int64)
    mask = (context.unsqueeze(1) == context).double()
    y = torch.cat([1 - Y, Y], 1)
    logits = f.unsqueeze(1).expand(B, B, 2) + (1 - mask).unsqueeze(2) * -1e9
    labels = y.unsqueeze(1).expand(B, B, 2) * mask.unsqueeze(2)
    each = -(labels * logits.log_softmax(0)).sum(0).sum(1)                             # [B], of each column
    ge, ce = (each / mask.sum(0)).mean(), -(y * f.log_softmax(1)).sum(1).mean()
    found = loss_of(JRC(name="jrc", alpha=0.4, by=by), f, w=torch.ones(B).double(), outputs=[2])
    torch.testing.assert_close(found, 0.4 * ce + 0.6 * ge, atol=1e-10, rtol=1e-9)


def test_jrc_does_not_mind_a_context_that_nobody_is_in_nor_rows_without_a_label():
    f, hidden = torch.randn(B, 2, generator=G, dtype=torch.float64, requires_grad=True), Y.clone()
    hidden[:5] = float("nan")
    user = USER.clone()
    user[10:] = -1
    loss_of(JRC(name="jrc"), f, hidden, user=user, outputs=[2]).backward()
    assert f.grad.isfinite().all() and (f.grad[:5] == 0).all()


def test_two_logits_say_p_by_their_difference():
    f = torch.randn(B, 2, generator=G, dtype=torch.float64)
    torch.testing.assert_close(Funnel([None], outputs=[2])(f).mean[:, 0], f.softmax(1)[:, 1])


@pytest.mark.parametrize("tasks, sentence", [
    ({"click": {"loss": "focl"}}, r"tasks.click.loss.name: found 'focl'.*did you mean 'focal'"),
    ({"click": {"loss": {"name": "focal", "delta": 1}}}, r"tasks.click.loss.delta: unknown key"),
    ({"stay": {"kind": "regression", "loss": "focal"}}, r"focal is no loss of a regression task; there are 'squared'"),
    ({"click": {"loss": "huber"}}, r"huber is no loss of a binary task"),
    ({"spend": {"kind": "ziln", "loss": "huber"}}, r"a ziln has one loss"),
])
def test_a_loss_that_a_task_cannot_have_is_refused(tasks, sentence):
    with pytest.raises(ConfigError, match=sentence):
        config({"name": "shared_bottom"}, tasks)


def test_a_loss_that_compares_needs_somebody_to_compare():
    tasks = {"click": {"loss": "jrc"}, "buy": {"after": "click"}}
    with pytest.raises(ConfigError, match=r"tasks.click.loss: jrc compares rows of one user; set data.user"):
        config({"name": "shared_bottom"}, tasks, data={"scenario": "tab"})
    with pytest.raises(ConfigError, match=r"tasks.buy.loss: jrc compares the logits of all rows"):
        config({"name": "esmm"}, {"click": {}, "buy": {"after": "click", "loss": {"name": "jrc", "by": "batch"}}})
    assert config({"name": "esmm"}, tasks).tasks["click"].loss.by == "user"


@pytest.mark.parametrize("loss", ["jrc", "pairwise", "focal"])
def test_every_model_part_learns_by_any_loss(loss):
    said = {"name": loss, **({} if loss == "focal" else {"by": "batch"})}
    tasks = {"click": {"loss": said}, "buy": {"after": "click"}}
    m, rows = model(config({"name": "aitm", "represent": {"hidden": [8]}, "side": ["lr"]}, tasks)), batch(80, 2)
    said = m.train()(rows)
    assert said.logits.shape[1] == (3 if loss == "jrc" else 2)
    assert said.mean[:, 0].mean().item() == pytest.approx(0.3, abs=0.05)                # starts at the label's rate
    m.task_losses(said, rows).sum().backward()
    assert not [n for n, p in m.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.abs().sum())]


@pytest.mark.parametrize("parents", [[None], [None, 0, 1], [None, 0, 0, None]])
def test_plain_losses_are_the_losses_and_the_calibrator_with_their_gradients(parents):
    torch.manual_seed(0)
    T, funnel = len(parents), Funnel(parents)
    assert is_plain(funnel) and not is_plain(Funnel(parents, "conditional"))
    z = torch.randn(300, T) * torch.tensor([1.0, 30.0, 200.0]).repeat_interleave(100).unsqueeze(1)
    y = (torch.rand(300, T) < 0.4).float()
    y[torch.rand(300, T) < 0.2], y[:, -1] = float("nan"), float("nan") if T == 3 else 1.0
    weight = torch.rand(300) * (torch.rand(300) < 0.8)
    found = []
    for plain in (False, True):
        logits = z.clone().requires_grad_()
        if plain:
            losses, pressed = plain_losses(funnel, logits, y, weight)
        else:
            said = funnel(logits)
            losses = task_losses(funnel, said, y, weight)
            pressed = calibrator(said, parents, funnel.kinds, weight)
        (losses @ torch.arange(1.0, T + 1) + 0.6 * pressed).backward()
        found.append((losses.detach(), pressed.detach(), logits.grad))
    for a, b in zip(*found):
        torch.testing.assert_close(b, a, rtol=2e-6, atol=1e-9)


def test_a_plain_loss_of_a_row_that_nobody_saw_does_not_overflow():
    z = torch.tensor([[1e30, 3.0], [0.5, -1e30]], requires_grad=True)
    losses, _ = plain_losses(Funnel([None, None]), z, torch.tensor([[float("nan"), 1.0], [1.0, float("nan")]]),
                             torch.ones(2))
    losses.sum().backward()
    assert losses.isfinite().all() and z.grad.isfinite().all() and (z.grad[[0, 1], [0, 1]] == 0).all()
