"""Properties that hold for every model, whatever its paper."""

from dataclasses import replace
from typing import get_args

import pytest
import torch
from made import batch, config, model

from funnelrank.loss import calibrator, task_losses
from funnelrank.models import MODELS, PARTS
from funnelrank.schema_file import part_settings
from funnelrank.train.optim import RowUpdates, dense_optimiser


def pers(part) -> tuple:
    """What a part may be one of, for all or for each; empty if it does not ask."""
    asked = part_settings(part).model_fields.get("per")
    return get_args(asked.annotation) if asked else ()


SINGLES = [{"name": n} for n in MODELS]
VARIANTS = [{"name": "aitm", "transfer": {"variant": v, "heads": 2}} for v in ("self_gate", "cross", "own_keys")]
VARIANTS += [{"name": "aitm", "represent": r} for r in ("nfm", "deepfm", "afm", "pnn",
                                                        {"name": "autoint", "hidden": [8]})]
VARIANTS += [{"represent": {"name": "pnn", "product": "both", "hidden": [8]}, "predict": "linear"},
             {"represent": {"name": "autoint", "deep": [8], "residual": False}, "predict": "linear"},
             {"represent": {"name": "dcn_v2", "rank": 2, "experts": 2, "structure": "parallel"}, "predict": "linear"},
             {"prepare": ["din", "autoint"], "represent": {"name": "mlp", "activation": "dice", "per": "task"},
              "predict": "linear", "side": ["lr", "fm", "wide"]},
             {"prepare": [{"name": "autoint", "keep": False}, "partitioned_norm", "epnet"], "represent": "pnn",
              "predict": "ppnet"}]
GRID = [{"represent": {"name": r, **per}, "predict": "linear"} for r, part in PARTS["represent"].items()
        for per in [{"per": p} for p in ("all", "task") if p in pers(part)] or [{}]]
GRID += [{"represent": {"name": "mlp", "per": per}, "transfer": t, "predict": p} for per in ("all", "task")
         for t in (None, *PARTS["transfer"]) for p in PARTS["predict"]]
ALL = SINGLES + VARIANTS + GRID
NAMES = ["/".join(str(v.get("name", v) if isinstance(v, dict) else v) for v in m.values()) + f"-{i}"
         for i, m in enumerate(ALL)]


@pytest.fixture(params=ALL, ids=NAMES)
def said(request):
    return request.param


def same(model, rows):
    model.eval()
    with torch.no_grad():
        return model(rows).logits


def pick(rows, keep):
    """The rows `keep` of a batch, lists included."""
    values, lengths = [], []
    for k in range(2):
        v, o = rows.bags(k)
        for b in keep:
            values.append(v[o[b]:o[b + 1]])
            lengths.append(len(values[-1]))
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    return replace(rows, ids=rows.ids[keep], numbers=rows.numbers[keep], values=torch.cat(values), offsets=offsets,
                   scenario=rows.scenario[keep], labels=rows.labels[keep], weight=rows.weight[keep],
                   user=rows.user[keep])


def test_one_finite_logit_per_row_and_task(said):
    logits = same(model(config(said)), batch())
    assert logits.shape == (12, 3) and logits.isfinite().all()


def test_every_parameter_gets_a_gradient_and_so_does_every_table(said):
    m, rows = model(config(said)), batch(200)
    m.train()
    task_losses(m.funnel, m(rows), rows.labels, rows.weight).sum().backward()
    silent = [n for n, p in m.named_parameters() if p.requires_grad and (p.grad is None or p.grad.abs().sum() == 0)]
    assert not silent
    gradients = m.embedding.take_gradients()
    assert gradients and all(g.grad.abs().sum() > 0 for g in gradients)


def test_a_rows_answer_does_not_depend_on_its_neighbours(said):
    m, rows = model(config(said)), batch()
    torch.testing.assert_close(same(m, rows)[[3]], same(m, pick(rows, [3])), atol=1e-6, rtol=1e-5)


def test_permuting_rows_permutes_answers(said):
    m, rows = model(config(said)), batch()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(5)).tolist()
    torch.testing.assert_close(same(m, rows)[order], same(m, pick(rows, order)), atol=1e-6, rtol=1e-5)


def test_saved_and_loaded_gives_the_same_bits(said):
    a, b = model(config(said), seed=0), model(config(said), seed=1)
    b.load_state_dict(a.state_dict())
    assert torch.equal(same(a, batch()), same(b, batch()))


@pytest.mark.parametrize("said", [{"name": "lr"}, *VARIANTS])      # each model by itself: test_registry.py
def test_two_hundred_steps_learn_a_planted_rule(said):
    settings = config(said)
    m = model(settings)
    rows = batch(256, seed=2)
    rule = (rows.numbers[:, 0] > 0).float()
    rows.labels[:] = torch.stack([rule, rule * (rows.ids[:, 2] > 1), rule * (rows.ids[:, 2] > 2)], 1)
    dense, updates = dense_optimiser(m, settings.train.optimiser.model_copy(update={"lr": 0.01})), RowUpdates(
        m.embedding, settings.embedding.optimiser)
    m.train()
    for step in range(200):
        prediction = m(rows)
        loss = task_losses(m.funnel, prediction, rows.labels, rows.weight).sum()
        loss = loss + m.calibrator * calibrator(prediction, m.funnel.parents, m.funnel.kinds)
        if step == 0:
            first = loss.item()
        dense.zero_grad()
        loss.backward()
        updates.apply(m.embedding.take_gradients())
        dense.step()
    assert loss.item() < 0.35 * first


def test_swapping_a_part_keeps_one_tower_per_task():
    assert config({"name": "aitm", "represent": "mlp"}).model["represent"]["per"] == "task"
    assert config({"name": "aitm", "represent": "mmoe"}).model["represent"]["per"] == "task"
