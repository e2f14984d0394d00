"""DBMTL's identities (arXiv 1902.09154), and its equations written again in float64."""

import pytest
import torch
from plain import layer, mlp, wake

from funnelrank.inputs import Inputs, Relation, Spec
from funnelrank.models.dbmtl import RelationNetwork
from funnelrank.models.mlp import LinearHeads, Towers

H = 5
TREE = (Relation(0, 1), Relation(0, 2), Relation(1, 2))
NOTHING = Inputs(torch.zeros(0, 0))


def made(relations=TREE, **keys):
    torch.manual_seed(0)
    return wake(RelationNetwork(Spec(flat=1, tasks=3, hidden=H, relations=relations), **{"tower": (4,), **keys}))


def bottom(views=3, rows=6):
    return torch.randn(rows, views, H, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.mark.parametrize("views", [1, 3], ids=["one", "per task"])
def test_it_is_the_papers_equations(views):
    part, h = made(hidden=(7,)), bottom(views)
    for row, out in zip(h, part(h)):
        q = [mlp(part.towers, row[t % views], t) for t in range(3)]
        r0 = q[0]
        r1 = mlp(part.relations["1"], torch.cat([q[1], r0]))
        r2 = mlp(part.relations["2"], torch.cat([q[2], r0, r1]))
        torch.testing.assert_close(out, torch.stack([r0, r1, r2]), atol=1e-12, rtol=0)


@pytest.mark.parametrize("views", [1, 3], ids=["shared_bottom", "mmoe"])
def test_without_relations_it_is_shared_bottom_or_mmoe(views):
    part, h = made(relations=()), bottom(views)
    heads = wake(LinearHeads(Spec(flat=1, tasks=3, hidden=4)))
    towers = wake(Towers(Spec(flat=1, tasks=3, hidden=H), hidden=(4,)))
    towers.mlp.load_state_dict(part.towers.state_dict())
    towers.linear.load_state_dict(heads.linear.state_dict())
    torch.testing.assert_close(heads(part(h), NOTHING), towers(h, NOTHING), atol=1e-12, rtol=0)


def test_a_parent_does_not_feel_its_childs_parameters():
    part, h = made(), bottom()
    before = part(h)
    with torch.no_grad():
        for p in part.relations["2"].parameters():
            p.add_(1)
        part.towers.layers[0]["linear"].weight[2] += 1
    after = part(h)
    assert torch.equal(before[:, :2], after[:, :2]) and not torch.equal(before[:, 2], after[:, 2])


def test_a_child_hears_every_parent_declared_and_no_other_task():
    part, h = made((Relation(0, 2),)), bottom()
    moved = h.clone()
    moved[:, 1] += 1
    assert torch.equal(part(h)[:, 2], part(moved)[:, 2])
    moved[:, 0] += 1
    assert not torch.equal(part(h)[:, 2], part(moved)[:, 2])


def test_a_childs_loss_trains_its_parents_tower():
    part = made()
    part(bottom())[:, 2].sum().backward()
    assert all(part.towers.layers[0]["linear"].weight.grad[t].abs().sum() > 0 for t in range(3))


def test_a_relation_reads_its_parents_in_order():
    part, h = made(), bottom(1, rows=1)
    linear = part.relations["2"].layers[0]["linear"]
    assert linear.weight.shape == (4, 12) and torch.equal(
        torch.relu(layer(linear, torch.cat([mlp(part.towers, h[0, 0], 2), *part(h)[0, :2]]))), part(h)[0, 2])
