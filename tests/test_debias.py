"""Debiased losses of a step that is only seen after another: the papers' sums in float64, and what they promise."""

import math
from itertools import product

import pytest
import torch
from made import batch, config, model

from funnelrank.debias import Debias, doubly_robust, inverse_propensity
from funnelrank.funnel import Funnel
from funnelrank.loss import task_losses
from funnelrank.ranker import starts

NAN = float("nan")
USUAL = {"clip": 0.1, "weight": 0.7, "entire_space": 0.4}
WAYS = {"ips": {"name": "ips", **USUAL}, "error": {"name": "dr", "imputes": "error", **USUAL},
        "label": {"name": "dr", "imputes": "label", **USUAL}, "dcmt": {"name": "dcmt", "agree": 0.3, **USUAL}}
s = lambda z: 1 / (1 + math.exp(-z))
entropy = lambda r, p: -(r * math.log(p) + (1 - r) * math.log(1 - p))


def funnel(way, parents=(None, 0)):
    unserved = [0 if p is None or way == "ips" else 1 for p in parents]
    return Funnel(parents, "conditional", outputs=[1 + n for n in unserved], unserved=unserved).double()


def losses(way, f, said, labels, weight):
    return Debias(WAYS[way])(f, said, labels, weight, task_losses(f, said, labels, weight))


def rows(way, n=60, parents=(None, 0)):
    g = torch.Generator().manual_seed(4)
    f = funnel(way, parents)
    z = torch.randn(n, f.unserved[-1].stop, generator=g, dtype=torch.float64, requires_grad=True)
    labels = torch.rand(n, len(parents), generator=g).lt(0.5).double().cumprod(1)
    return f, z, labels, torch.rand(n, generator=g, dtype=torch.float64)


def by_hand(way, z, labels, weight, a, t, reach):
    """The debiased loss of step t after a, a row at a time; reach: p(a) of each row. z [n, 2] of t."""
    top = below = counter = counted = agree = known = 0.0
    for (v, *more), y, w, q in zip(z.tolist(), labels.tolist(), weight.tolist(), reach):
        if math.isnan(y[a]) or (y[a] == 1 and math.isnan(y[t])):
            continue
        o, p = y[a] == 1, s(v)
        q = min(max(q, 0.1), 0.9 if way == "dcmt" else 1)
        known += w
        d = entropy(y[t] if o else 0.0, p)
        if way == "ips":
            top += w * (d / q if o else 0)
        elif way == "error":
            told = math.log1p(math.exp(more[0]))
            top += w * (told + ((d - told) / q + (d - told) ** 2 / q if o else 0))
        elif way == "label":
            told = entropy(s(more[0]), p)
            top += w * (told + ((d - told) / q + (d - told) ** 2 / q if o else 0))
        elif o:
            top, below = top + w * d / q, below + w / q
        else:
            counter, counted = counter + w * entropy(1, s(more[0])) / (1 - q), counted + w / (1 - q)
        if way == "dcmt":
            agree += w * abs(1 - (p + s(more[0])))
    return top / below + counter / counted + 0.3 * agree / known if way == "dcmt" else top / known


@pytest.mark.parametrize("way", WAYS)
def test_it_is_the_papers_sum_beside_the_loss_of_the_entire_space(way):
    f, z, labels, weight = rows(way)
    labels[:5, 0] = NAN
    labels[3:9, 1] = NAN
    found = losses(way, f, f(z), labels, weight)
    plain = task_losses(f, f(z), labels, weight)
    hand = by_hand(way, z[:, 1:], labels, weight, 0, 1, torch.sigmoid(z[:, 0]).tolist())
    assert found[0] == plain[0]
    assert found[1].item() == pytest.approx(0.4 * plain[1].item() + 0.7 * hand, abs=1e-10)


@pytest.mark.parametrize("way", WAYS)
def test_down_a_tree_the_propensity_is_that_of_reaching_the_step_before(way):
    f, z, labels, weight = rows(way, parents=(None, 0, 1, 0))
    labels[:, 3] *= labels[:, 0]
    p = f(z).mean.detach()
    for t, a in ((1, 0), (2, 1), (3, 0)):
        hand = by_hand(way, z[:, f.slices[t].start:f.unserved[t].stop], labels, weight, a, t, p[:, a].tolist())
        assert Debias(WAYS[way]).of_step(f, f(z), labels, weight, t).item() == pytest.approx(hand, abs=1e-10)


def chances(q):
    """Every pattern of who is observed, with its probability."""
    for pattern in product((0.0, 1.0), repeat=len(q)):
        o = torch.tensor(pattern, dtype=torch.float64)
        yield o, (o * q + (1 - o) * (1 - q)).prod()


TRUE = torch.tensor([0.1, 0.3, 0.6, 0.9, 0.25], dtype=torch.float64)
WRONG = torch.tensor([0.4, 0.2, 0.5, 0.7, 0.6], dtype=torch.float64)
D = torch.tensor([0.2, 1.3, 0.7, 2.0, 0.4], dtype=torch.float64)
HAT = torch.tensor([0.5, 0.1, 1.9, 0.3, 0.8], dtype=torch.float64)
W = torch.tensor([1.0, 2.0, 1.0, 0.5, 3.0], dtype=torch.float64)


def expected(estimate):
    return sum(p * estimate(o) for o, p in chances(TRUE)).item()


def test_over_all_who_may_be_observed_both_are_the_mean_over_everybody_where_propensities_are_true():
    everybody = (W * D).sum().item() / W.sum().item()
    assert expected(lambda o: inverse_propensity(D, o, TRUE, W)) == pytest.approx(everybody, abs=1e-12)
    assert expected(lambda o: doubly_robust(D, HAT, o, TRUE, W)) == pytest.approx(everybody, abs=1e-12)
    assert expected(lambda o: (W * o * D).sum() / W.sum()) != pytest.approx(everybody, rel=0.1)


def test_where_propensities_are_wrong_true_imputations_still_make_it_right_without_variance():
    everybody = (W * D).sum().item() / W.sum().item()
    assert expected(lambda o: inverse_propensity(D, o, WRONG, W)) != pytest.approx(everybody, rel=0.1)
    assert expected(lambda o: doubly_robust(D, HAT, o, WRONG, W)) != pytest.approx(everybody, rel=0.1)
    for o, _ in chances(TRUE):
        assert doubly_robust(D, D, o, WRONG, W).item() == pytest.approx(everybody, abs=1e-12)


def test_nothing_imputed_is_inverse_propensity():
    o = (TRUE > 0.28).double()
    assert torch.equal(doubly_robust(D, torch.zeros_like(D), o, WRONG, W), inverse_propensity(D, o, WRONG, W))


def test_where_everybody_clicks_ips_is_cross_entropy_of_conversions():
    f, z, labels, weight = rows("ips")
    labels[:, 0] = 1
    z = torch.stack([torch.full((60,), 50.0).double(), z[:, 1]], 1)
    found = Debias(WAYS["ips"]).of_step(f, f(z), labels, weight, 1)
    plain = torch.nn.functional.binary_cross_entropy_with_logits(z[:, 1], labels[:, 1], weight, reduction="sum")
    torch.testing.assert_close(found, plain / weight.sum(), atol=1e-12, rtol=0)


@pytest.mark.parametrize("way", WAYS)
def test_the_propensity_is_not_taught_by_what_it_weighs(way):
    f, z, labels, weight = rows(way)
    Debias(WAYS[way]).of_step(f, f(z), labels, weight, 1).backward()
    assert (z.grad[:, 0] == 0).all() and (z.grad[:, 1] != 0).any()


def test_imputed_errors_leave_the_gradient_of_ips_and_imputed_labels_teach_from_unclicked_rows():
    grads = {}
    for way in ("ips", "error", "label"):
        f, z, labels, weight = rows("error")
        if way == "ips":
            f = Funnel([None, 0], "conditional", outputs=[1, 2], unserved=[0, 1]).double()
        Debias(WAYS[way]).of_step(f, f(z), labels, weight, 1).backward()
        grads[way] = z.grad
    torch.testing.assert_close(grads["error"][:, 1], grads["ips"][:, 1], atol=1e-14, rtol=0)
    unclicked = labels[:, 0] == 0
    assert (grads["error"][unclicked, 1] == 0).all() and (grads["label"][unclicked, 1] != 0).all()
    assert all((grads[way][unclicked, 2] == 0).all() and (grads[way][~unclicked, 2] != 0).all()
               for way in ("error", "label"))


def test_a_twin_that_says_the_opposite_agrees_and_weights_are_of_ratios_alone():
    f, z, labels, weight = rows("dcmt")
    with torch.no_grad():
        z[:, 2] = -z[:, 1]
        z[:, 0] = z[0, 0]                                    # one propensity for all: plain means of each space
    found = [Debias({**WAYS["dcmt"], "agree": a}).of_step(f, f(z), labels, weight, 1).item() for a in (0, 5)]
    o = labels[:, 0] == 1
    d = -torch.where(labels[:, 1] == 1, torch.sigmoid(z[:, 1]), 1 - torch.sigmoid(z[:, 1])).log()
    plain = (weight * d)[o].sum() / weight[o].sum() + (
        weight * -torch.sigmoid(z[:, 2]).log())[~o].sum() / weight[~o].sum()
    assert found == pytest.approx([plain.item()] * 2, abs=1e-12)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("click", [0.0, 1.0, NAN])
def test_batches_of_one_kind_of_row_are_finite(way, click):
    f, z, labels, weight = rows(way)
    labels[:, 0], labels[:, 1] = click, 0 if click != 1 else labels[:, 1]
    loss = losses(way, f, f(z * 200), labels, weight).sum()
    loss.backward()
    assert loss.isfinite() and z.grad.isfinite().all()


def test_heads_that_are_not_served_start_where_they_would_learn_to_be_without_features():
    means = [{"mean": 0.2}, {"mean": 0.3}]
    of = lambda way: starts(["binary"] * 2, means, [None, 0], "conditional", debias=WAYS[way])
    z = math.log(0.3 / 0.7)
    assert of("ips")[1:] == pytest.approx([z])
    assert of("label")[1:] == pytest.approx([z, z]) and of("dcmt")[1:] == pytest.approx([z, -z])
    assert math.log1p(math.exp(of("error")[2])) == pytest.approx(entropy(0.3, 0.3))


def test_what_is_not_served_is_not_among_the_tasks():
    m = model(config({"name": "escm2_dr"}))
    said = m(batch(8))
    assert said.logits.shape == (8, 5) and said.mean.shape == said.given.shape == (8, 3)
    bare = model(config({"name": "esmm"}))
    assert (m.tasks, m.funnel.parents) == (bare.tasks, bare.funnel.parents)


def test_a_debias_goes_with_any_model_and_can_be_taken_off_a_recipe():
    assert config({"name": "mmoe", "reading": "conditional", "debias": "ips"}).model["debias"]["clip"] > 0
    assert model(config({"name": "escm2_dr", "debias": None})).debias is None
