"""Properties that hold for every model, whatever its paper."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pyarrow as pa
import pytest
import torch
from made import batch, config, model, pick

from funnelrank import api
from funnelrank import config as configs
from funnelrank.loss import calibrator, task_losses
from funnelrank.models import MODELS, PARTS
from funnelrank.own_parts import part_settings
from funnelrank.train.optim import RowUpdates, dense_optimiser

SINGLES = [{"name": n} for n in MODELS]
DEBIASED = [{"name": "aitm", "reading": "conditional", "debias": {"name": "dr", "imputes": "label"}},
            {"name": "ple", "reading": "conditional", "debias": "dcmt"},
            {"name": "hmoe", "reading": "conditional", "debias": "dr"},
            {"name": "lr", "reading": "conditional", "debias": "dcmt"}]
VARIANTS = [{"name": "aitm", "transfer": {"variant": v, "heads": 2}} for v in ("self_gate", "cross", "own_keys")]
VARIANTS += [{"name": "aitm", "represent": r} for r in ("nfm", "deepfm", "afm", "pnn",
                                                        {"name": "autoint", "hidden": [8], "layers": 2, "width": 4})]
VARIANTS += [{"represent": {"name": "pnn", "product": "both", "hidden": [8]}, "predict": "linear"},
             {"represent": {"name": "autoint", "deep": [8], "residual": False, "layers": 1}, "predict": "linear"},
             {"represent": {"name": "dcn_v2", "rank": 2, "experts": 2, "structure": "parallel"}, "predict": "linear"},
             {"prepare": ["din", {"name": "autoint", "layers": 1, "width": 4}],
              "represent": {"name": "mlp", "activation": "dice", "per": "task"}, "predict": "linear",
              "side": ["lr", "fm", "wide"]},
             {"prepare": [{"name": "autoint", "keep": False, "layers": 1, "width": 4}, "partitioned_norm", "epnet"],
              "represent": {"name": "pnn", "hidden": [16]}, "predict": {"name": "ppnet", "hidden": [16], "gate": 8}}]
ALL = SINGLES + VARIANTS + DEBIASED
NAMES = ["/".join(str(v.get("name", v) if isinstance(v, dict) else v) for v in m.values()) + f"-{i}"
         for i, m in enumerate(ALL)]


@pytest.fixture(params=ALL, ids=NAMES)
def said(request):
    return request.param


def awake(m):
    """No weight and no vector left where it starts, so that whatever leaks from row to row is seen."""
    g = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for p in m.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=g))
        for table in m.embedding.tables.values():
            moved = 0.5 * torch.randn(table.weight.shape, generator=g)
            moved[list(table.offset.values())] = 0                             # PAD is zeros
            table.weight += moved
    return m


def same(model, rows):
    model.eval()
    with torch.no_grad():
        return model(rows).logits


def test_one_finite_logit_per_row_and_task(said):
    m = model(config(said))
    logits = same(m, batch())
    assert logits.shape == (12, len(m.spec.owners)) and logits.isfinite().all()
    assert m(batch()).mean.shape == (12, 3)


def test_every_parameter_gets_a_gradient_and_so_does_every_table(said):
    m, rows = model(config(said)), batch(200)
    m.train()
    m.task_losses(m(rows), rows).sum().backward()
    silent = [n for n, p in m.named_parameters() if p.requires_grad and (p.grad is None or p.grad.abs().sum() == 0)]
    assert not silent
    gradients = m.embedding.take_gradients()
    assert gradients and all(g.grad.abs().sum() > 0 for g in gradients)


def with_padding(rows, count):
    """The same rows, and behind them `count` of nothing: PAD ids, empty lists, zeros."""
    zeros = lambda t: torch.cat([t, t.new_zeros(count, *t.shape[1:])])
    shown, tags = rows.offsets[:len(rows) + 1], rows.offsets[len(rows):]
    offsets = torch.cat([shown, shown[-1:].repeat(count), tags[1:], tags[-1:].repeat(count)])
    return replace(rows, offsets=offsets, **{k: zeros(getattr(rows, k)) for k in (
        "ids", "numbers", "scenario", "labels", "weight", "user")})


def test_a_rows_answer_is_its_own_however_the_batch_is_permuted_split_or_padded(said):
    m, rows = awake(model(config(said))), batch()
    logits = same(m, rows)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(5)).tolist()
    for answers, expected in ((same(m, pick(rows, order)), logits[order]),
                              (torch.cat([same(m, pick(rows, part)) for part in ([0], [1, 2, 3, 4], [*range(5, 12)])]),
                               logits),
                              (same(m, with_padding(rows, 5))[:12], logits)):
        torch.testing.assert_close(answers, expected, atol=1e-5, rtol=1e-4)


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
        loss = loss + m.calibrator * calibrator(prediction, m.funnel.parents, m.funnel.kinds, rows.weight)
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


def asked_for(slot, part, key):
    """Each value that a part's setting may have."""
    field = part_settings(PARTS[slot][part]).model_fields.get(key)
    return get_args(field.annotation) if field else ()


BASE = {"represent": {"name": "mlp", "hidden": [6]}, "predict": "linear"}
BUILT = [(slot, part, key, a) for slot, parts in PARTS.items() for part in parts
         for key in ("activation", "gate_activation") for a in asked_for(slot, part, key)]


@pytest.mark.parametrize("slot, part, key, activation", BUILT, ids=["-".join((s, p, a)) for s, p, _, a in BUILT])
def test_every_activation_that_a_part_may_have_is_there(slot, part, key, activation):
    said = {"name": part, key: activation} | ({"groups": ["scenario"]} if part in ("m2m", "meta_towers") else {})
    reader = {"predict": {"name": "meta_towers", "groups": [part]}} if part == "scenario_view" else {}
    m = model(config({**BASE, **reader, slot: [said] if slot in ("prepare", "side") else said})).train()
    losses = m.task_losses(m(batch(40)), batch(40))
    losses.sum().backward()
    assert losses.isfinite().all()


@pytest.mark.parametrize("name", ["lr", "fnn", "single_task", "auto"])
@pytest.mark.parametrize("task", [{}, {"kind": "ziln"}, {"kind": "count"}], ids=str)
def test_a_log_of_numbers_alone_trains_and_answers(name, task, tmp_path):
    g = torch.Generator().manual_seed(0)
    price = torch.rand(300, generator=g, dtype=torch.float64)
    rows = pa.table({"price": price.numpy(), "age": price.flip(0).numpy(), "y": (price > 0.6).long().numpy()})
    run = api.train(configs.load({
        "features": {"price": "number", "age": "number", "lists": "off"}, "tasks": {"y": task}, "model": {"name": name},
        "train": {"threads": 1, "epochs": 1, "batch_size": 64, "out": str(tmp_path / "run")}}), train=rows)
    assert np.isfinite(run.ranker.predict(rows.drop(["y"]))["y"].to_numpy()).all()
