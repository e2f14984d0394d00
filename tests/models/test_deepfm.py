"""FM and DeepFM (Rendle 2010; arXiv 1703.04247), against the sum over pairs."""

import torch
from made import batch, config, inputs, model, spec

from funnelrank.inputs import Inputs, Spec
from funnelrank.models.deepfm import DeepFMBody, FirstOrder, SecondOrder
from funnelrank.models.fields import bi_interaction
from funnelrank.models.mlp import LinearHeads

FIELDS = torch.randn(6, 5, 3, generator=torch.Generator().manual_seed(0))


def test_second_order_is_the_sum_over_all_pairs():
    pairs = sum((FIELDS[:, i] * FIELDS[:, j]).sum(1) for i in range(5) for j in range(i + 1, 5))
    part = SecondOrder(Spec(flat=1, tasks=2))
    torch.testing.assert_close(part(Inputs(torch.zeros(6, 1), fields=FIELDS)), pairs.unsqueeze(1))
    torch.testing.assert_close(bi_interaction(FIELDS).sum(1), pairs)


def test_first_order_is_a_weight_per_id_and_per_number():
    part = FirstOrder(Spec(flat=1, tasks=2, numbers=3))
    weights, numbers = torch.randn(6, 4, 2), torch.randn(6, 3)
    torch.testing.assert_close(part(Inputs(torch.zeros(6, 1), linear=weights, numbers=numbers)),
                               weights.sum(1) + numbers @ part.numbers.weight.T)


def test_lr_sees_its_ids_through_a_table_of_their_own():
    m = model(config({"name": "lr"}))
    assert m.embedding.tables["linear"].weight.shape == (76, 3)
    assert (m.embedding.tables["linear"].weight == 0).all()
    rows = batch()
    torch.testing.assert_close(m.eval()(rows).logits, m.slots.bias + rows.numbers @ m.slots.side[0].numbers.weight.T)


def test_deepfm_without_its_deep_part_is_fm():
    deep, fm = model(config({"name": "deepfm"})), model(config({"name": "fm"}))
    with torch.no_grad():
        for name, table in deep.embedding.tables.items():
            table.weight.normal_()
            table.weight[table.pad] = 0
            fm.embedding.tables[name].weight.copy_(table.weight)
        fm.slots.side.load_state_dict(deep.slots.side.state_dict())
        deep.slots.predict.linear.weight.zero_()
        deep.slots.predict.linear.bias.copy_(fm.slots.bias.view(3, 1))
    torch.testing.assert_close(deep.eval()(batch()).logits, fm.eval()(batch()).logits)


def test_numbers_take_part_in_the_pairs_as_fields_times_their_vectors():
    sizes = spec()
    part, x = SecondOrder(sizes).double(), inputs(sizes)
    for b in range(6):
        f = [*x.fields[b], *(n * v for n, v in zip(x.numbers[b], part.vectors.weight))]
        want = sum(f[i] @ f[j] for i in range(6) for j in range(i + 1, 6))
        torch.testing.assert_close(part(x)[b, 0], want, atol=1e-10, rtol=0)


def test_deepfm_whose_vectors_are_zero_is_lr_and_a_constant():
    deep, lr = model(config({"name": "deepfm"})), model(config({"name": "lr"}))
    with torch.no_grad():
        for table in deep.embedding.tables.values():
            table.weight.zero_()
        lr.slots.side[0].load_state_dict(deep.slots.side[0].state_dict())
        lr.slots.bias.zero_()
        deep.slots.side[1].vectors.weight.zero_()
    rows = batch()
    rows.numbers[:] = rows.numbers[:1]                     # the deep part sees nothing but numbers now
    difference = deep.eval()(rows).logits - lr.eval()(rows).logits
    torch.testing.assert_close(difference, difference[:1].expand(12, -1))


def test_a_tower_of_deepfm_with_a_head_of_ones_on_its_pairs_is_deepfm_without_first_order():
    sizes = spec()
    body, fm, x = DeepFMBody(sizes, hidden=(5,), per="task").double(), SecondOrder(sizes).double(), inputs(sizes)
    fm.load_state_dict({"vectors.weight": body.vectors.weight.detach()})
    head = LinearHeads(Spec(flat=0, tasks=2, hidden=body.hidden)).double()
    with torch.no_grad():
        head.linear.weight[:, :, 5:] = 1
        deep = torch.einsum("btk,tk->bt", body.mlp(x.flat), head.linear.weight[:, 0, :5]) + head.linear.bias[:, 0]
    torch.testing.assert_close(head(body(x), x), deep + fm(x), atol=1e-10, rtol=0)
