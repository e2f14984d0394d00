"""FM and DeepFM (Rendle 2010; arXiv 1703.04247), against the sum over pairs."""

from dataclasses import replace

import torch
from made import batch, config, inputs, model, spec
from plain import layer, mlp

from funnelrank.inputs import Inputs, Spec
from funnelrank.models.deepfm import DeepFMBody, FirstOrder, SecondOrder
from funnelrank.models.fields import bi_interaction
from funnelrank.models.mlp import LinearHeads

FIELDS = torch.randn(6, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
CLOSE = {"atol": 1e-10, "rtol": 0}


def double(said):
    """A whole model in float64, whose tables hold something."""
    m = model(config(said)).double().eval()
    g = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for table in m.embedding.tables.values():
            table.weight.normal_(generator=g)
            table.weight[table.pad] = 0
        for part in m.slots.side:
            for p in part.parameters():
                p.normal_(generator=g)
    return m


def rows():
    b = batch()
    return replace(b, numbers=b.numbers.double())


def test_deepfm_is_its_equation_row_by_row():
    m, b = double({"name": "deepfm", "represent": {"hidden": [6, 5]}}), rows()
    x, (first, second) = m.embedding(b), m.slots.side
    for r in range(12):
        f = [*x.fields[r], *(n * v for n, v in zip(x.numbers[r], second.vectors.weight))]
        pairs = sum(f[i] @ f[j] for i in range(len(f)) for j in range(i + 1, len(f)))
        for t in range(3):
            linear = sum(w[t] for w in x.linear[r]) + sum(a * n for a, n in zip(first.numbers.weight[t], x.numbers[r]))
            deep = layer(m.slots.predict.linear, mlp(m.slots.represent.mlp, x.flat[r], t), t)[0]
            torch.testing.assert_close(m(b).logits[r, t], deep + linear + pairs, **CLOSE)


def test_fm_is_its_equation_row_by_row():
    m, b = double({"name": "fm"}), rows()
    x, (first, second) = m.embedding(b), m.slots.side
    for r in range(12):
        v = [*x.fields[r], *second.vectors.weight]
        size = [1.0] * len(x.fields[r]) + x.numbers[r].tolist()
        pairs = sum((v[i] @ v[j]) * size[i] * size[j] for i in range(len(v)) for j in range(i + 1, len(v)))
        linear = x.linear[r].sum(0) + first.numbers.weight @ x.numbers[r]
        torch.testing.assert_close(m(b).logits[r], m.slots.bias + linear + pairs, **CLOSE)


def test_second_order_is_the_sum_over_all_pairs():
    pairs = sum((FIELDS[:, i] * FIELDS[:, j]).sum(1) for i in range(5) for j in range(i + 1, 5))
    part = SecondOrder(Spec(flat=1, tasks=2))
    torch.testing.assert_close(part(Inputs(torch.zeros(6, 1), fields=FIELDS)), pairs.unsqueeze(1), **CLOSE)
    torch.testing.assert_close(bi_interaction(FIELDS).sum(1), pairs, **CLOSE)


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
    deep, fm = double({"name": "deepfm"}), double({"name": "fm"})
    with torch.no_grad():
        deep.slots.predict.linear.weight.zero_()
        deep.slots.predict.linear.bias.copy_(fm.slots.bias.view(3, 1))
        fm.embedding.load_state_dict(deep.embedding.state_dict())
        fm.slots.side.load_state_dict(deep.slots.side.state_dict())
    torch.testing.assert_close(deep(rows()).logits, fm(rows()).logits, **CLOSE)


def test_numbers_take_part_in_the_pairs_as_fields_times_their_vectors():
    sizes = spec()
    part, x = SecondOrder(sizes).double(), inputs(sizes)
    for b in range(6):
        f = [*x.fields[b], *(n * v for n, v in zip(x.numbers[b], part.vectors.weight))]
        want = sum(f[i] @ f[j] for i in range(6) for j in range(i + 1, 6))
        torch.testing.assert_close(part(x)[b, 0], want, atol=1e-10, rtol=0)


def test_deepfm_whose_vectors_are_zero_is_lr_and_its_network():
    deep, lr, b = double({"name": "deepfm"}), double({"name": "lr"}), rows()
    with torch.no_grad():
        deep.embedding.tables["width_4"].weight.zero_()
        deep.slots.side[1].vectors.weight.zero_()
        lr.embedding.load_state_dict(deep.embedding.state_dict())
        lr.slots.side.load_state_dict({k: v for k, v in deep.slots.side.state_dict().items() if k.startswith("0")})
        lr.slots.bias.zero_()
    x = deep.embedding(b)
    network = deep.slots.predict(deep.slots.represent(x), x)
    torch.testing.assert_close(deep(b).logits, lr(b).logits + network, **CLOSE)


def test_a_tower_of_deepfm_with_a_head_of_ones_on_its_pairs_is_deepfm_without_first_order():
    sizes = spec()
    body, fm, x = DeepFMBody(sizes, hidden=(5,), per="task").double(), SecondOrder(sizes).double(), inputs(sizes)
    fm.load_state_dict({"vectors.weight": body.vectors.weight.detach()})
    head = LinearHeads(Spec(flat=0, tasks=2, hidden=body.hidden)).double()
    with torch.no_grad():
        head.linear.weight[:, :, 5:] = 1
        deep = torch.einsum("btk,tk->bt", body.mlp(x.flat), head.linear.weight[:, 0, :5]) + head.linear.bias[:, 0]
    torch.testing.assert_close(head(body(x), x), deep + fm(x), atol=1e-10, rtol=0)
