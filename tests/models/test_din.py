"""DIN's identities (arXiv 1706.06978), and Dice."""

from dataclasses import replace

import pytest
import torch
from made import batch, config, model
from plain import layer, wake

from funnelrank.inputs import History, Inputs, Spec
from funnelrank.models.din import TargetAttention
from funnelrank.models.mlp import LinearHeads, MLPBody
from funnelrank.nn.activation import Dice

D = 4
OFFSETS = torch.tensor([0, 2, 2, 5])               # rows of 2, 0 and 3 entries


def history(seed=0):
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)
    return History(draw(5, D), OFFSETS, draw(3, D))


def part(**keys):
    torch.manual_seed(0)
    made = TargetAttention(Spec(flat=2, tasks=1, histories={"shown": D}), **keys)
    return wake(made)


def pooled(made, h):
    return made(Inputs(torch.zeros(3, 2, dtype=torch.float64), histories={"shown": h})).flat[:, 2:]


def test_pooled_histories_join_flat_and_the_spec_says_so():
    made = part()
    x = made(Inputs(torch.ones(3, 2, dtype=torch.float64), histories={"shown": history()}))
    assert x.flat.shape == (3, 2 + D) == (3, made.spec.flat) and (x.flat[:, :2] == 1).all() and not x.histories


def dice(f, s):
    p = torch.sigmoid((s - f.norm.running_mean) / (f.norm.running_var + 1e-8).sqrt())
    return p * s + (1 - p) * f.alpha * s


@pytest.mark.parametrize("softmax", [False, True])
def test_it_is_the_papers_sum_entry_by_entry(softmax):
    made, h = part(hidden=(5, 3), softmax=softmax), history()
    unit = made.units["0"]
    with torch.no_grad():
        for f in unit.dice:
            f.norm.running_mean.fill_(0.2)
            f.norm.running_var.fill_(2.0)
    out = pooled(made, h)
    for b, v in enumerate(h.target):
        entries = h.values[OFFSETS[b]:OFFSETS[b + 1]]
        a = []
        for e in entries:
            s = layer(unit.first, torch.cat([e, v, e - v, e * v]))
            for f, linear in zip(unit.dice, unit.rest):
                s = layer(linear, dice(f, s))
            a.append(s[0])
        if softmax and a:
            a = torch.softmax(torch.stack(a), 0)
        u = sum((w * e for w, e in zip(a, entries)), torch.zeros(D, dtype=torch.float64))
        torch.testing.assert_close(out[b], u, atol=1e-10, rtol=0)


def test_behind_it_an_mlp_with_dice_is_the_papers_model():
    spec = part().spec
    body = wake(MLPBody(spec, hidden=(5, 3), activation="dice", per="task"))
    heads = wake(LinearHeads(replace(spec, hidden=3)))
    x = part()(Inputs(torch.ones(3, 2, dtype=torch.float64), histories={"shown": history()}))
    z = heads(body(x), x)
    for b, row in enumerate(x.flat):
        h = row
        for step in body.mlp.layers:
            h = dice(step["activation"], layer(step["linear"], h, 0))
        torch.testing.assert_close(z[b], layer(heads.linear, h, 0), atol=1e-10, rtol=0)


def test_empty_history_is_zeros():
    assert (pooled(part(), history())[1] == 0).all() and (pooled(part(softmax=True), history())[1] == 0).all()


def test_order_of_a_history_does_not_matter():
    h = history()
    turned = History(h.values[[1, 0, 4, 2, 3]], h.offsets, h.target)
    torch.testing.assert_close(pooled(part(), h), pooled(part(), turned))


def test_one_entry_is_weighed_by_its_unit_and_by_one_under_softmax():
    h = History(history().values[:1], torch.tensor([0, 1]), history().target[:1])
    made = part()
    made_softmax = part(softmax=True)
    run = lambda m: m(Inputs(torch.zeros(1, 2, dtype=torch.float64), histories={"shown": h})).flat[:, 2:]
    weight = made.units["0"](h)
    torch.testing.assert_close(run(made), weight * h.values)
    torch.testing.assert_close(run(made_softmax), h.values)


def test_softmax_weights_sum_to_one_over_each_history():
    h = history()
    same = History(torch.ones_like(h.values), h.offsets, h.target)
    torch.testing.assert_close(pooled(part(softmax=True), same)[[0, 2]],
                               torch.ones(2, D, dtype=torch.float64))


def test_a_row_does_not_feel_its_neighbours():
    h, made = history(), part()
    alone = History(h.values[2:], torch.tensor([0, 3]), h.target[2:])
    x = made(Inputs(torch.zeros(1, 2, dtype=torch.float64), histories={"shown": alone}))
    torch.testing.assert_close(x.flat[0, 2:], pooled(made, h)[2], atol=1e-12, rtol=0)


def test_dice_with_alpha_one_is_the_identity_and_normalises_channels_of_the_batch():
    s, dice = torch.randn(50, 3, dtype=torch.float64) * 4 + 2, Dice(3).double()
    torch.nn.init.ones_(dice.alpha)
    torch.testing.assert_close(dice(s), s, atol=1e-12, rtol=0)
    torch.testing.assert_close(dice.eval()(s), s, atol=1e-12, rtol=0)
    torch.nn.init.zeros_(dice.train().alpha)
    p = torch.sigmoid((s - s.mean(0)) / (s.var(0, unbiased=False) + 1e-8).sqrt())
    torch.testing.assert_close(dice(s), p * s, atol=1e-12, rtol=0)


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
    with torch.no_grad():
        for table in m.embedding.tables.values():
            table.weight[table.weight.abs().sum(1) > 0] += 0.5          # PAD stays zeros
    values, offsets = rows.bags(0)
    row = int(offsets.diff().argmax())
    assert offsets.diff()[row] == 3
    longer = lambda pad: replace(rows, offsets=torch.where(torch.arange(len(rows.offsets)) > row, rows.offsets + 3,
                                                           rows.offsets),
                                 values=torch.cat([rows.values[:offsets[row + 1]], torch.full((3,), pad).int(),
                                                   rows.values[offsets[row + 1]:]]))
    logits = m(rows).logits
    torch.testing.assert_close(m(longer(0)).logits, logits)
    assert not torch.isclose(m(longer(5)).logits, logits).all()
