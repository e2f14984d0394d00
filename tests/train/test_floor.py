"""The physical floor: what is counted, and that counting leaves no trace."""

import pytest
import torch
from made import batch, config, layout, model

from funnelrank.settings import RowOptimiser
from funnelrank.train.floor import Machine, Product, Work, floor_ms, measure_machine, products, row_bytes, work_of
from funnelrank.train.optim import Average, RowUpdates


@pytest.mark.parametrize("said", [{"name": "aitm"}, {"name": "mmoe"}, {"name": "din"}, {"name": "deepfm"}])
def test_counting_leaves_the_model_and_chance_as_they_were(said):
    m, b = model(config(model=said)), batch()
    before, chance = {k: v.clone() for k, v in m.state_dict().items()}, torch.get_rng_state()
    work = work_of(m, b, RowUpdates(m.embedding, RowOptimiser()))
    assert work.multiply_adds > 0 and work.bytes > 0 and work.rows == len(b)
    assert all(torch.equal(v, before[k]) for k, v in m.state_dict().items())
    assert torch.equal(chance, torch.get_rng_state())
    assert all(p.grad is None for p in m.parameters()) and not m.embedding.take_gradients()


@pytest.mark.parametrize("rows", [12, 64])
def test_a_backward_costs_twice_its_forward(rows):
    m = model(config(model={"name": "shared_bottom", "represent": {"hidden": [7, 5]}, "predict": {"hidden": [3]}}))
    b = batch(rows=rows)
    forward = m.embedding.flat_width * 7 + 7 * 5 + 3 * (5 * 3 + 3 * 1)
    assert sum(n * a * k * p for n, a, k, p in products(m, b)) == 3 * rows * forward


def test_what_a_kernel_does_in_one_pass_is_counted_as_products_too():
    m, b = model(config(model={"name": "mmoe", "represent": {"experts": 4, "hidden": [7]}})), batch(rows=64)
    flat = m.embedding.flat_width
    forward = flat * 4 * 7 + 3 * flat * 4 + 3 * 4 * 7 + 3 * (7 * 64 + 64)
    assert sum(n * a * k * p for n, a, k, p in products(m, b, backward=False)) == 64 * forward


def test_attention_that_is_one_operation_is_counted_as_its_products():
    m, b = model(config(model={"name": "autoint", "represent": {"layers": 1, "heads": 2, "width": 5}})), batch(rows=64)
    (layer,) = m.slots.represent.interacting.layers
    M, D, heads = m.slots.represent.interacting.vectors.count, layer.query.width, 3 * 2              # three tasks
    forward = 4 * M * D * heads * 5 + 2 * heads * M * M * 5 + 3 * M * 2 * 5
    assert sum(n * a * k * p for n, a, k, p in products(m, b, backward=False)) == 64 * forward


@pytest.mark.parametrize("engine", ["auto", "torch"])
def test_bytes_by_hand(engine):
    m = model(config(embedding={"width": 4, "engine": engine}, model={"name": "lr", "side": ["lr"]}))
    b, of = batch(rows=12), layout()
    values = {f: b.bags(k)[0].tolist() for k, f in enumerate(of.lists)}
    looked_up = b.ids.numel() + len(b.values)
    distinct = len({(of.space[f], int(v)) for i, f in enumerate(of.ids) for v in b.ids[:, i]}
                   | {(of.space[f], v) for f, vs in values.items() for v in vs})
    updates = RowUpdates(m.embedding, RowOptimiser(name="rowwise_adagrad"))
    moved = looked_up + 2 * (len(of.ids) + 2) * 12
    expected = sum(4 * width * moved + 2 * distinct * 4 * (width + 1) for width in (4, 3))
    assert row_bytes(m.embedding, b, updates) == expected
    average = Average(m, m.embedding, 0.9)
    assert row_bytes(m.embedding, b, updates, average) == expected + sum(2 * distinct * (4 * w + 8) for w in (4, 3))


def test_the_floor_adds_products_and_bytes():
    work = Work(rows=1, products=(Product(2, 3, 4, 5), Product(1, 1, 1, 30)), bytes=6000)
    assert work.multiply_adds == 150
    assert floor_ms(work, Machine(flops=1e5, bytes=1e6)) == pytest.approx(3 + 6)


def test_a_machine_has_rates():
    machine = measure_machine([Product(1, 64, 32, 16), Product(2, 64, 8, 8)], seconds=0.002)
    assert machine.flops > 1e6 and machine.bytes > 1e6
