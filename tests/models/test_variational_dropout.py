"""Variational dropout: what its gates are, what they cost, and that features which say nothing go."""

import math

import numpy as np
import pyarrow as pa
import pytest
import torch
from made import batch, config, model, spec

from funnelrank import Ranker, api
from funnelrank.config import load
from funnelrank.inputs import Inputs
from funnelrank.models.variational_dropout import PACE, VariationalDropout

pytestmark = pytest.mark.usefixtures("no_pictures")


def part(**keys):
    """Fields of width 2 in columns 0-1 and 3-4, numbers (batch order) in columns 5 and 2, one column of another."""
    sizes = spec(fields=(2, 2), numbers=2)
    sizes = sizes.__class__(**{**sizes.__dict__, "flat": 7, "starts": (0, 3), "widths": (2, 2),
                               "number_starts": (5, 2), "columns": {"g": (3, 4, 5)}})
    return VariationalDropout(sizes, **keys)


def given(rows=5):
    flat = torch.randn(rows, 7)
    return Inputs(flat, fields=torch.stack([flat[:, 0:2], flat[:, 3:5]], 1), groups={"g": flat[:, 3:6]})


def test_each_feature_has_one_gate_over_all_that_reads_it():
    gates, x = part().eval(), given()
    with torch.no_grad():
        gates.fields.copy_(torch.tensor([0.0, 1.0]) / PACE)
        gates.numbers.copy_(torch.tensor([2.0, 3.0]) / PACE)
        gates.others.fill_(-1.0 / PACE)
    k = torch.sigmoid(torch.tensor([0.0, 0.0, 3.0, 1.0, 1.0, 2.0, -1.0]))
    out = gates(x)
    torch.testing.assert_close(out.flat, x.flat * k)
    torch.testing.assert_close(out.fields, torch.stack([out.flat[:, 0:2], out.flat[:, 3:5]], 1))
    torch.testing.assert_close(out.groups["g"], out.flat[:, 3:6])
    torch.testing.assert_close(gates.shares(), torch.sigmoid(torch.tensor([0.0, 1, 2, 3, -1])))


def test_while_training_a_row_has_a_feature_or_not_as_often_as_its_share_says():
    torch.manual_seed(0)
    gates = part(start=0.7).train()
    z = gates(Inputs(torch.ones(20_000, 7))).flat
    assert torch.equal(z[:, 0], z[:, 1]) and not torch.equal(z[:, 0], z[:, 3])
    assert ((z < 0.05) | (z > 0.95)).float().mean() > 0.85
    assert z.mean(0).tolist() == pytest.approx([0.7] * 7, abs=0.02)


def test_gates_that_are_wide_open_change_nothing():
    gates, x = part(start=1 - 1e-7), given()
    for mode in (True, False):
        torch.testing.assert_close(gates.train(mode)(x).flat, x.flat)


def test_the_penalty_is_the_price_of_what_is_kept_and_is_minimised_with_the_losses():
    gates = part(price=0.5, start=0.25)
    assert gates.penalty().item() == pytest.approx(0.5 * 5 * 0.25)
    m = model(config({"name": "shared_bottom", "prepare": [{"name": "variational_dropout", "price": 2.0}]}))
    assert m.slots.penalty().item() == pytest.approx(2.0 * 0.9 * 8, rel=1e-5)      # ids, numbers, lists


def test_the_trainer_adds_the_penalty_once(monkeypatch):
    from funnelrank.loss import plain_losses
    settings = config({"name": "shared_bottom", "prepare": [{"name": "variational_dropout", "price": 0.125}]})
    m = model(settings)
    rows = batch(32)
    losses, _ = plain_losses(m.funnel, m.eval().outputs(rows), rows.labels, rows.weight)
    losses.sum().backward()
    alone = [p.grad.clone() for p in m.slots.prepare[0].parameters()]
    m.zero_grad()
    losses, _ = plain_losses(m.funnel, m.outputs(rows), rows.labels, rows.weight)
    (losses.sum() + m.slots.penalty()).backward()
    for p, before in zip(m.slots.prepare[0].parameters(), alone):
        k = torch.sigmoid(PACE * p.detach())
        torch.testing.assert_close(p.grad - before, 0.125 * PACE * k * (1 - k))


def log(rows, seed):
    rng = np.random.default_rng(seed)
    item, x = rng.integers(0, 8, rows), rng.normal(size=(rows, 4))
    z = 1.5 * x[:, 0] + np.where(item % 2, 1.2, -1.2)
    return pa.table({"item": item, **{f"n{i}": x[:, i] for i in range(4)}, "idle": rng.integers(0, 8, rows),
                     "click": (rng.random(rows) < 1 / (1 + np.exp(-z))).astype(np.int64)})


def test_features_that_say_nothing_go_and_the_report_says_so(tmp_path):
    said = load({"features": {"item": "id", "idle": "id", **{f"n{i}": "number" for i in range(4)}},
                 "tasks": {"click": {}}, "embedding": {"width": 4, "init": 0.3},
                 "model": {"name": "shared_bottom", "prepare": [{"name": "variational_dropout", "price": 0.01}],
                           "represent": {"hidden": [16]}},
                 "train": {"epochs": 4, "batch_size": 128, "threads": 1, "out": str(tmp_path / "run"),
                           "optimiser": {"lr": 0.01}}})
    events = []
    run = api.train(said, train=log(3000, 0), report=events.append)
    shares = next(e["shares"] for e in events if e["event"] == "selection")
    assert set(shares) == {"item", "idle", "n0", "n1", "n2", "n3"}
    assert min(shares["item"], shares["n0"]) > 0.8 > 0.4 > max(shares[n] for n in ("idle", "n1", "n2", "n3")), shares
    assert {r["metric"]: r["value"] for r in run.rows if r["metric"].startswith("kept:")} == {
        f"kept:{n}": s for n, s in shares.items()}
    assert Ranker.load(run.folder).model.selection() == pytest.approx(shares)
    assert "n0" in api.describe(run.folder, shapes=True).split("kept")[-1]
    assert math.isfinite(run.ranker.predict(log(10, 1))["click"].to_numpy().sum())
