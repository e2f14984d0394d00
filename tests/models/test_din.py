"""DIN's identities (arXiv 1706.06978), and Dice."""

from dataclasses import replace

import torch
from made import batch, config, model

from funnelrank.inputs import History, Inputs, Spec
from funnelrank.models.din import TargetAttention
from funnelrank.nn.activation import Dice

D = 4
OFFSETS = torch.tensor([0, 2, 2, 5])               # rows of 2, 0 and 3 entries


def history(seed=0):
    g = torch.Generator().manual_seed(seed)
    return History(torch.randn(5, D, generator=g), OFFSETS, torch.randn(3, D, generator=g))


def part(**keys):
    torch.manual_seed(0)
    made = TargetAttention(Spec(flat=2, tasks=1, histories={"shown": D}), **keys)
    return made.eval()


def pooled(made, h):
    return made(Inputs(torch.zeros(3, 2), histories={"shown": h})).flat[:, 2:]


def test_pooled_histories_join_flat_and_the_spec_says_so():
    made = part()
    x = made(Inputs(torch.ones(3, 2), histories={"shown": history()}))
    assert x.flat.shape == (3, 2 + D) == (3, made.spec.flat) and (x.flat[:, :2] == 1).all() and not x.histories


def test_it_is_the_papers_sum_entry_by_entry():
    made, h = part(), history()
    unit, out = made.units["0"], pooled(made, h)
    for b in range(3):
        u = torch.zeros(D, dtype=torch.float64)
        for e in h.values[OFFSETS[b]:OFFSETS[b + 1]].double():
            v = h.target[b].double()
            s = unit.first.weight.double() @ torch.cat([e, v, e - v, e * v]) + unit.first.bias.double()
            norm = unit.dice[0].norm
            p = torch.sigmoid((s - norm.running_mean) / (norm.running_var + 1e-8).sqrt())
            a = unit.rest[0].weight.double() @ (p * s) + unit.rest[0].bias.double()
            u += a * e
        torch.testing.assert_close(out[b].double(), u, atol=1e-6, rtol=1e-5)


def test_empty_history_is_zeros():
    assert (pooled(part(), history())[1] == 0).all() and (pooled(part(softmax=True), history())[1] == 0).all()


def test_order_of_a_history_does_not_matter():
    h = history()
    turned = History(h.values[[1, 0, 4, 2, 3]], h.offsets, h.target)
    torch.testing.assert_close(pooled(part(), h), pooled(part(), turned))


def test_one_entry_is_weighed_by_its_unit_and_by_one_under_softmax():
    h = History(torch.randn(1, D), torch.tensor([0, 1]), torch.randn(1, D))
    made = part()
    made_softmax = part(softmax=True)
    run = lambda m: m(Inputs(torch.zeros(1, 2), histories={"shown": h})).flat[:, 2:]
    weight = made.units["0"](h, torch.zeros(1, dtype=torch.int64))
    torch.testing.assert_close(run(made), weight * h.values)
    torch.testing.assert_close(run(made_softmax), h.values)


def test_softmax_weights_sum_to_one_over_each_history():
    h = history()
    same = History(torch.ones(5, D), h.offsets, h.target)
    torch.testing.assert_close(pooled(part(softmax=True), same)[[0, 2]], torch.ones(2, D))


def test_a_row_does_not_feel_its_neighbours():
    h, made = history(), part()
    alone = History(h.values[2:], torch.tensor([0, 3]), h.target[2:])
    torch.testing.assert_close(made(Inputs(torch.zeros(1, 2), histories={"shown": alone})).flat[0, 2:],
                               pooled(made, h)[2])


def test_dice_with_alpha_one_is_the_identity_and_normalises_channels_of_the_batch():
    s, dice = torch.randn(50, 3) * 4 + 2, Dice(3)
    torch.nn.init.ones_(dice.alpha)
    torch.testing.assert_close(dice(s), s)
    torch.nn.init.zeros_(dice.alpha)
    p = torch.sigmoid((s - s.mean(0)) / (s.var(0, unbiased=False) + 1e-8).sqrt())
    torch.testing.assert_close(dice(s), p * s)


def test_dice_evaluates_a_row_by_itself_and_trains_on_one_row():
    dice = Dice(3)
    dice(torch.randn(50, 3))
    assert torch.isfinite(dice(torch.randn(1, 3))).all()
    dice.eval()
    s = torch.randn(5, 3)
    torch.testing.assert_close(dice(s)[2:3], dice(s[2:3]))


def test_dice_without_alpha_nears_relu_where_the_batch_is_narrow_around_zero():
    dice = Dice(1).eval()
    dice.norm.running_var.fill_(1e-8)
    s = torch.tensor([[-2.0], [-0.1], [0.1], [3.0]])
    torch.testing.assert_close(dice(s), s.relu(), atol=1e-6, rtol=0)


def test_dice_of_layers_side_by_side_is_the_dice_of_each():
    both, s = Dice(3, stack=2), torch.randn(40, 2, 3)
    torch.nn.init.normal_(both.alpha)
    for k in range(2):
        one = Dice(3)
        one.alpha.data = both.alpha.data[3 * k:3 * k + 3]
        want = one(s[:, k])
        torch.testing.assert_close(both(s.flatten(1))[:, 3 * k:3 * k + 3], want)
        torch.testing.assert_close(both(s[:, k], k), want)


def test_without_din_histories_are_pooled_into_the_base_model():
    base, din = model(config({"name": "dnn"})), model(config({"name": "din"}))
    assert not base.embedding.histories and set(din.embedding.histories) == {"shown"}
    assert base.slots.represent.mlp.layers[0]["linear"].width == din.slots.represent.mlp.layers[0]["linear"].width
    shown = base.embedding(batch()).flat[:, base.embedding.slices["shown"]]
    values, offsets = batch().bags(0)
    table = base.embedding.tables["width_4"]
    for b in range(12):
        mine = table.weight[table.offset["item"] + values[offsets[b]:offsets[b + 1]].long()]
        torch.testing.assert_close(shown[b], mine.mean(0) if len(mine) else torch.zeros(4))


def test_padding_at_the_end_of_a_history_changes_nothing():
    m, rows = model(config({"name": "din"})).eval(), batch()
    values, offsets = rows.bags(0)
    padded = torch.cat([values[:offsets[1]], torch.zeros(3, dtype=torch.int32), rows.values[offsets[1]:]])
    more = rows.offsets.clone()
    more[1:] += 3                                           # the first row's history ends with three PAD
    torch.testing.assert_close(m(replace(rows, values=padded, offsets=more)).logits, m(rows).logits)
