"""What every model of the registry must show over a few steps: nothing silent, exportable, able to cross two ids."""

import pytest
import torch
from graph import exported
from made import batch, config, model

from funnelrank.evaluate.metrics import auc
from funnelrank.models import MODELS
from funnelrank.train.optim import RowUpdates, dense_optimiser

NAMES = list(MODELS)


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


def losses(m, rows):
    return m.task_losses(m(rows), rows).sum()


def trained(m, settings, batches, lr=0.01, rows_lr=0.3):
    dense = dense_optimiser(m, settings.train.optimiser.model_copy(update={"lr": lr}))
    updates = RowUpdates(m.embedding, settings.embedding.optimiser.model_copy(update={"lr": rows_lr}))
    m.train()
    for rows in batches:
        dense.zero_grad()
        losses(m, rows).backward()
        updates.apply(m.embedding.take_gradients())
        dense.step()
    return m.eval()


def test_every_parameter_gets_a_gradient_within_twenty_batches(name):
    m = model(config({"name": name})).train()
    silent = {n for n, p in m.named_parameters() if p.requires_grad}
    for seed in range(20):
        m.zero_grad()
        losses(m, batch(16, seed=seed)).backward()
        m.embedding.take_gradients()
        silent -= {n for n, p in m.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        if not silent:
            break
    assert not silent


def test_it_is_exported_with_an_open_number_of_rows_and_answers_the_same(name):
    exported(model(config({"name": name})))


def crossed(n, seed):
    """Rows whose label is whether one of two ids is odd and the other not: neither says anything alone."""
    rows = batch(n, seed=seed)
    rows.labels[:] = ((rows.ids[:, 0] + rows.ids[:, 1]) % 2).float().unsqueeze(1)
    return rows


@pytest.mark.parametrize("name", [n for n in NAMES if n != "lr"])
def test_it_learns_the_xor_of_two_ids(name):
    settings = config({"name": name})
    m, rows, found = model(settings), crossed(1000, 999), 0.0
    for k in range(6):                                   # as long as it takes, up to 120 steps
        m = trained(m, settings, (crossed(200, seed) for seed in range(20 * k, 20 * k + 20)))
        with torch.no_grad():
            found = auc(m(rows).mean[:, 0].numpy(), rows.labels[:, 0].numpy())
        if found > 0.9:
            break
    assert found > 0.9
