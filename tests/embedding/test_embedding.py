"""The embedding against a plain table per feature."""

import torch
from made import batch, config, layout

from funnelrank.embedding.tables import Embedding
from funnelrank.inputs import Needs


def embedding(**settings):
    torch.manual_seed(0)
    return Embedding(layout(), config(embedding={"width": 4, "init": 0.5, **settings}).embedding,
                     Needs(histories=True, groups=("user", "mine")) if "groups" in settings else Needs())


def row(e, feature, i):
    """The vector of id i of a feature, the slow way."""
    space = e.layout.space[feature]
    for table in e.tables.values():
        if space in table.offset:
            return table.weight[table.offset[space] + i]
    raise AssertionError(space)


def read(rows, b, i):
    """The id that is looked up: of the scenario (`tab`) 0 is a stranger's."""
    return max(rows.ids[b, i], 1) if i == 2 else rows.ids[b, i]


def test_flat_is_every_feature_once_at_its_slice():
    e, rows = embedding(spaces={"item": {"width": 6}}), batch()
    flat = e(rows).flat
    assert flat.shape == (12, e.flat_width) == (12, 4 + 6 + 4 + 4 + 6 + 4 + 2)
    for b in range(12):
        for i, f in enumerate(("user", "item", "tab", "item_x_tab")):
            torch.testing.assert_close(flat[b, e.slices[f]], row(e, f, read(rows, b, i)))
        for k, (f, how) in enumerate((("shown", "mean"), ("tags", "sum"))):
            values, offsets = rows.bags(k)
            vectors = [row(e, f, v) for v in values[offsets[b]:offsets[b + 1]]]
            expected = torch.stack(vectors).sum(0) if vectors else torch.zeros(e.width_of[f])
            if vectors and how == "mean":
                expected = expected / len(vectors)
            torch.testing.assert_close(flat[b, e.slices[f]], expected)
        assert flat[b, e.slices["price"]] == rows.numbers[b, 0]


def test_flat_is_ordered_by_role():
    e = embedding()
    starts = [e.slices[f].start for f in ("user", "shown", "item", "tags", "price", "tab")]
    assert starts == sorted(starts)


def test_training_gives_the_same_numbers_as_evaluation():
    e, rows = embedding(), batch()
    torch.testing.assert_close(e.train()(rows).flat, e.eval()(rows).flat)


def test_row_gradients_are_the_dense_gradient_at_distinct_rows():
    e, rows = embedding(), batch(40)
    direction = torch.randn(40, e.flat_width)
    (e.train()(rows).flat * direction).sum().backward()
    (gradient,) = e.take_gradients()
    table = e.tables["width_4"]
    dense = table.weight.detach().clone().requires_grad_()
    table.weight = torch.nn.Parameter(dense.detach(), requires_grad=False)
    total = torch.zeros_like(dense)
    for b in range(40):
        for i, f in enumerate(("user", "item", "tab", "item_x_tab")):
            total[table.offset[e.layout.space[f]] + read(rows, b, i)] += direction[b, e.slices[f]]
        for k, f in enumerate(("shown", "tags")):
            values, offsets = rows.bags(k)
            mine = values[offsets[b]:offsets[b + 1]]
            for v in mine:
                share = 1 / len(mine) if f == "shown" else 1
                total[table.offset[e.layout.space[f]] + v] += share * direction[b, e.slices[f]]
    total[table.pad] = 0
    assert len(gradient.rows.unique()) == len(gradient.rows)
    torch.testing.assert_close(gradient.grad, total[gradient.rows], atol=1e-5, rtol=1e-5)
    untouched = torch.ones(len(total), dtype=torch.bool)
    untouched[gradient.rows] = False
    assert total[untouched].abs().sum() == 0


def test_pad_is_zeros_and_never_learns():
    e, rows = embedding(), batch()
    rows.ids[:] = 0
    assert (e.train()(rows).flat[:, e.slices["item"]] == 0).all()
    e(rows).flat.square().sum().backward()
    e(rows).flat.sum().backward()
    for gradient in e.take_gradients():
        assert gradient.grad[torch.isin(gradient.rows, gradient.table.pad)].abs().sum() == 0


def test_weighted_mean_divides_by_the_weights():
    e, rows = embedding(), batch()
    rows.value_weights = torch.rand(len(rows.values)) + 0.1
    flat = e(rows).flat
    values, offsets = rows.bags(0)
    for b in range(12):
        lo, hi = offsets[b], offsets[b + 1]
        w = rows.value_weights[lo:hi]
        if hi > lo:
            expected = sum(wi * row(e, "shown", v) for wi, v in zip(w, values[lo:hi])) / w.sum()
            torch.testing.assert_close(flat[b, e.slices["shown"]], expected)


def test_groups_and_histories_are_what_was_asked_for():
    e, rows = embedding(groups={"mine": ["price", "item"]}), batch()
    x = e(rows)
    torch.testing.assert_close(x.groups["mine"], torch.cat([x.flat[:, e.slices["item"]],
                                                            x.flat[:, e.slices["price"]],
                                                            x.flat[:, e.slices["price.missing"]]], 1))
    assert x.groups["user"].shape == (12, 4) and "shown" not in e.slices      # jagged instead of pooled
    history = x.histories["shown"]
    torch.testing.assert_close(history.target, x.flat[:, e.slices["item"]])
    assert history.values.shape == (len(rows.bags(0)[0]), 4)


def test_batch_of_no_rows():
    assert embedding()(batch(0)).flat.shape[0] == 0


def test_a_row_without_a_scenario_is_a_stranger_like_one_of_an_unseen_scenario():
    e, rows = embedding(), batch()
    rows.ids[:, 2] = 0
    null = e(rows).flat[:, e.slices["tab"]]
    torch.testing.assert_close(null, row(e, "tab", 1).expand(12, -1))
    rows.ids[:, :2] = 0                                              # anything else without a value is zeros
    assert (e(rows).flat[:, e.slices["item"]] == 0).all()


def test_strangers_whom_no_row_has_taught_get_the_mean_of_the_scenarios_that_are_known():
    least = dict.fromkeys(layout().size, 5)
    for counts, taught in (({}, False), ({"tab": {"rows": 9, "nulls": 2, "oov": 2}, "item": {"oov": 99}}, False),
                           ({"tab": {"rows": 9, "nulls": 2, "oov": 3}}, True)):
        e = embedding()
        before = {f: row(e, f, 1).clone() for f in ("tab", "item", "user")}
        e.settle(counts, least)
        mean = torch.stack([row(e, "tab", i) for i in (2, 3, 4)]).mean(0)
        torch.testing.assert_close(row(e, "tab", 1), before["tab"] if taught else mean)
        assert torch.equal(row(e, "item", 1), before["item"]) and torch.equal(row(e, "user", 1), before["user"])
