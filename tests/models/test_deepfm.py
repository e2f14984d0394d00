"""FM and DeepFM (Rendle 2010; arXiv 1703.04247), against the sum over pairs."""

import torch
from made import batch, config, model

from funnelrank.inputs import Inputs, Spec
from funnelrank.models.deepfm import FirstOrder, SecondOrder, bi_interaction

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
    assert m.embedding.tables["linear"].weight.shape == (64, 3)
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
