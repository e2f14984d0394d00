"""Kinds of tasks that are no yes or no, against distributions that torch has."""

import math

import numpy as np
import pyarrow as pa
import pytest
import torch
from made import batch, config, model
from torch.distributions import LogNormal, Poisson

from funnelrank import values, wide
from funnelrank.api import Ranker
from funnelrank.data.labels import read_labels
from funnelrank.errors import ConfigError, DataError
from funnelrank.funnel import Funnel
from funnelrank.loss import task_losses
from funnelrank.schema import resolve

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


# ---- classes

DEVICE = {"click": {}, "device": {"kind": "multiclass", "classes": ["phone", "desk", 3], "after": "click"}}


def test_multiclass_is_a_softmax_and_starts_at_the_shares():
    y = torch.arange(60).remainder(3).double()
    torch.testing.assert_close(values.nll("multiclass", Z, y, ONE, ONE),
                               torch.nn.functional.cross_entropy(Z, y.long(), reduction="none"))
    start = torch.tensor([values.starts("multiclass", {"shares": [0.5, 0.3, 0.2]})])
    torch.testing.assert_close(start.softmax(1), torch.tensor([[0.5, 0.3, 0.2]]))


@pytest.mark.parametrize("reading", ["joint", "conditional"])
def test_classes_are_served_by_name_and_add_up_to_what_comes_before(reading):
    settings = config({"name": "shared_bottom", "reading": reading}, DEVICE)
    m, rows = model(settings), batch(20, 2)
    said, served = m.eval()(rows), {o.name: m.funnel.answer(m(rows), o) for o in resolve(settings).served}
    classes = ["device=phone", "device=desk", "device=3"]
    nested = [f"{c}|click" for c in classes] if reading == "conditional" else []
    assert list(served) == ["click", *classes, *nested]
    whole = sum(served[c] for c in classes)
    torch.testing.assert_close(whole, said.mean[:, 0] if reading == "conditional" else torch.ones(20))
    if nested:
        torch.testing.assert_close(sum(served[c] for c in nested), torch.ones(20))


def test_labels_of_classes_are_read_by_value():
    schema = resolve(config({"name": "shared_bottom"}, DEVICE))
    rows = lambda *v: pa.table({"click": [1.0] * len(v), "device": pa.array(v)})
    assert read_labels(rows("desk", "3", None, "phone"), schema, "f")[:, 1].tolist()[:2] == [1, 2]
    numbers = resolve(config({"name": "shared_bottom"}, {"device": {"kind": "multiclass", "classes": 3}}))
    found = read_labels(pa.table({"device": [2.0, float("nan"), 0.0]}), numbers, "f")[:, 0]
    assert found[0] == 2 and found[1] != found[1] and found[2] == 0
    with pytest.raises(DataError, match=r"label 'device' is 'tv' on 2 rows \(first: row 1 of it, from 0\); a label of "
                                        r"'device' is 'phone', 'desk' and '3', or null"):
        read_labels(rows("desk", "tv", "tv"), schema, "f")


@pytest.mark.parametrize("task, sentence", [
    ({"kind": "multiclass"}, r"tasks.device.*multiclass needs classes"),
    ({"classes": 3}, r"tasks.device.classes: classes are of kind multiclass, and this is binary"),
    ({"kind": "multiclass", "classes": ["a", "a"]}, r"tasks.device.classes: classes are at least two values"),
    ({"kind": "multiclass", "classes": 1}, r"tasks.device.classes: found 1"),
    ({"kind": "multiclass", "classes": 3, "loss": "focal"}, r"tasks.device.loss: a multiclass has one loss"),
])
def test_classes_that_cannot_be_are_refused(task, sentence):
    with pytest.raises(ConfigError, match=sentence):
        config({"name": "shared_bottom"}, {"device": task})


def test_a_multiclass_task_is_learnt_and_measured_from_rows_to_scores(tmp_path):
    """Three classes that one feature decides, through fit, metrics, a saved artefact and predict."""
    g = np.random.default_rng(0)
    item = g.integers(0, 9, 900)
    frame = pa.table({"item": item.astype(str), "kind": np.array(["low", "mid", "top"])[item // 3],
                      "click": g.integers(0, 2, 900)})
    ranker = Ranker({"data": {}, "features": {"item": "id"}, "model": {"name": "shared_bottom"},
                     "tasks": {"click": {}, "kind": {"kind": "multiclass", "classes": ["low", "mid", "top"]}},
                     "train": {"epochs": 20, "batch_size": 64, "optimiser": {"lr": 0.01}, "threads": 1,
                               "out": str(tmp_path)}})
    ranker.fit(frame)
    line = wide(ranker.evaluate(frame), "test")
    assert line["accuracy_kind"] > 0.95 and line["auc_ovr_kind"] > 0.99 and line["logloss_kind"] < 0.2
    ranker.save(tmp_path / "artefact")
    scores = Ranker.load(tmp_path / "artefact").predict(frame)
    assert scores.column_names == ["click", "kind=low", "kind=mid", "kind=top"]
    top = np.stack([scores[c].to_numpy() for c in scores.column_names[1:]], 1).argmax(1)
    assert (top == item // 3).mean() == line["accuracy_kind"]
