"""ESMM's identities (SIGIR 2018, arXiv 1804.07931): the conditional reading of two networks on shared embeddings."""

import pytest
import torch
from made import batch, config, model
from plain import layer, mlp

from funnelrank.loss import task_losses

TASKS = {"click": {}, "buy": {"after": "click"}}


def made(tasks=TASKS, **keys):
    m = model(config({"name": "esmm", "represent": {"hidden": [8, 4]}, **keys}, tasks=tasks))
    m.slots.double()
    m.funnel.double()
    return m


def rows(n=40, tasks=2):
    b = batch(n, tasks=tasks)
    b.labels = b.labels.double()
    return b


def run(m, b):
    x = m.embedding(b)
    x.flat = x.flat.double()
    return m.funnel(m.slots(x)), x.flat


def test_the_recipe_reads_a_later_step_given_the_one_before():
    assert config({"name": "esmm"}).model["reading"] == "conditional"
    assert config({"name": "esmm", "reading": "joint"}).model["reading"] == "joint"
    assert config({"name": "mmoe"}).model["reading"] == "joint"


def test_it_is_the_papers_equations_and_its_loss():
    m, b = made(), rows()
    said, flat = run(m, b)
    body, head = m.slots.represent.mlp, m.slots.predict.linear
    losses = torch.zeros(2, dtype=torch.float64)
    for i, x in enumerate(flat.detach()):
        ctr, cvr = (torch.sigmoid(layer(head, mlp(body, x, t), t)).squeeze() for t in range(2))
        torch.testing.assert_close(said.mean[i], torch.stack([ctr, ctr * cvr]), atol=1e-10, rtol=0)
        torch.testing.assert_close(said.given[i, 1], cvr, atol=1e-10, rtol=0)
        for t, p in enumerate((ctr, ctr * cvr)):
            losses[t] -= (b.labels[i, t] * p.log() + (1 - b.labels[i, t]) * (1 - p).log()) / len(b)
    found = task_losses(m.funnel, said, b.labels, b.weight.double())
    torch.testing.assert_close(found, losses, atol=1e-10, rtol=0)


def test_conversions_of_impressions_are_at_most_clicks_and_at_most_their_rate_given_a_click():
    said, _ = run(made(), rows())
    assert (said.mean[:, 1] <= said.mean[:, 0]).all() and (said.mean[:, 1] <= said.given[:, 1]).all()


def test_an_unclicked_row_teaches_the_conversion_network():
    m, b = made(), rows()
    b.labels[:] = 0
    said, _ = run(m, b)
    z = said.logits
    z.retain_grad()
    task_losses(m.funnel, said, b.labels, b.weight.double()).sum().backward()
    assert (z.grad[:, 1] != 0).all()


def test_where_every_row_is_a_click_it_is_plain_cross_entropy_of_conversions():
    m, b = made(), rows()
    with torch.no_grad():
        m.slots.predict.linear.bias[0] = 60
        m.slots.predict.linear.weight[0] = 0
    said, _ = run(m, b)
    bce = torch.nn.functional.binary_cross_entropy_with_logits(said.logits[:, 1], b.labels[:, 1])
    torch.testing.assert_close(task_losses(m.funnel, said, b.labels, b.weight.double())[1], bce, atol=1e-10, rtol=0)


@pytest.mark.parametrize("steps", [3, 5])
def test_a_chain_of_any_length_is_the_product_of_its_steps(steps):
    names = [f"s{k}" for k in range(steps)]
    tasks = {n: {"after": names[k - 1]} if k else {} for k, n in enumerate(names)}
    said, _ = run(made(tasks), rows(tasks=steps))
    torch.testing.assert_close(said.mean, torch.sigmoid(said.logits).cumprod(1), atol=1e-12, rtol=0)
    assert (said.mean.diff(dim=1) <= 0).all()
