"""Wide & Deep (arXiv 1606.07792): crosses as weights, by an optimiser of their own."""

import pytest
import torch
from made import batch, config, inputs, model, spec

from funnelrank.check import notes
from funnelrank.errors import ConfigError
from funnelrank.models.wide_deep import Wide
from funnelrank.schema import resolve
from funnelrank.settings import CrossOptimiser, RowOptimiser
from funnelrank.train.optim import RowUpdates


def test_the_wide_part_sums_a_weight_per_cross_and_task():
    x = inputs(spec())
    torch.testing.assert_close(Wide(spec())(x), x.crosses.sum(1))


@pytest.mark.parametrize("engine", ["auto", "torch"])
def test_crosses_are_weights_and_nothing_else(engine):
    wide = model(config({"name": "wide_deep"}, embedding={"width": 4, "engine": engine}))
    deep = model(config({"name": "dnn"}, embedding={"width": 4, "engine": engine}))
    table, rows = wide.embedding.tables["crosses"], batch()
    assert table.weight.shape == (12, 3) and (table.weight == 0).all() and set(table.offset) == {"item_x_tab"}
    assert "item_x_tab" not in wide.embedding.tables["width_4"].offset
    assert "item_x_tab" in deep.embedding.tables["width_4"].offset
    assert deep.embedding.flat_width - wide.embedding.flat_width == 4
    with torch.no_grad():
        table.weight.normal_()
        table.weight[table.pad] = 0
    x = wide.embedding.eval()(rows)
    torch.testing.assert_close(x.crosses, table.weight[rows.ids[:, 3:].long()])


def test_without_wide_weights_it_is_the_deep_model():
    wide, rows = model(config({"name": "wide_deep"})).eval(), batch()
    x = wide.embedding(rows)
    torch.testing.assert_close(wide(rows).logits, wide.slots.predict(wide.slots.represent(x), x))


@pytest.mark.parametrize("engine", ["auto", "torch"])
def test_crosses_learn_by_their_own_optimiser_and_others_by_theirs(engine):
    sections = {"embedding": {"width": 4, "engine": engine}}
    m, plain = (model(config({"name": "wide_deep"}, **sections)) for _ in range(2))
    sums = {}
    for ranker, crosses in ((m, RowOptimiser(name="sgd", lr=0.5)), (plain, CrossOptimiser(l1=1e9))):
        updates = RowUpdates(ranker.embedding, RowOptimiser(), {"crosses": crosses})
        ranker.train()(batch(40)).logits.square().sum().backward()
        gradients = ranker.embedding.take_gradients()
        (mine,) = [g for g in gradients if g.table is ranker.embedding.tables["crosses"]]
        sums[crosses.name] = mine.rows, mine.grad.clone()
        updates.apply(gradients)
    rows, grad = sums["sgd"]
    torch.testing.assert_close(m.embedding.tables["crosses"].weight[rows], -0.5 * grad)
    assert (plain.embedding.tables["crosses"].weight == 0).all()                       # L1 holds them all
    torch.testing.assert_close(m.embedding.tables["width_4"].weight, plain.embedding.tables["width_4"].weight)


def test_crosses_start_from_ftrl_with_l1_unless_said():
    said = lambda **crosses: config(embedding={"crosses": crosses}).embedding.crosses
    assert said().name == "ftrl" and said().l1 > 0 and said(name="adagrad").l1 == 0
    with pytest.raises(ConfigError, match="adagrad has no l1"):
        said(name="adagrad", l1=0.1)


def test_wide_without_a_declared_cross_is_refused():
    features = {"user": {}, "item": {}, "tab": {}, "lists": "off"}
    with pytest.raises(ConfigError, match=r"model.side: wide reads declared crosses, and there are none"):
        config({"name": "wide_deep"}, features=features)


def test_an_optimiser_for_crosses_that_nobody_reads_as_weights_is_noted():
    def said(name):
        settings = config({"name": name}, embedding={"crosses": {"l1": 0.1}})
        return [n for n in notes(settings, resolve(settings)) if n.startswith("embedding.crosses")]

    assert len(said("dnn")) == 1 and said("wide_deep") == []
