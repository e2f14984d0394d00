"""AITM's identities (arXiv 2105.08489), and its equations written again, slowly, in float64."""

import math

import pytest
import torch
from made import batch, config, model
from plain import layer, mlp, wake

from funnelrank.errors import ConfigError
from funnelrank.inputs import Relation, Spec
from funnelrank.models.aitm import InformationTransfer
from funnelrank.models.mlp import LinearHeads

CHAIN = (Relation(0, 1), Relation(1, 2))
H = 8


def transfer(relations=CHAIN, tasks=3, seed=0, **keys):
    torch.manual_seed(seed)
    return InformationTransfer(Spec(flat=1, tasks=tasks, views=tasks, hidden=H, relations=relations), **keys).double()


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def towers(B=5, tasks=3):
    return draw(B, tasks, H)


def attended(variant, attend, u):
    """One row's candidates u, the task's own tower last -> z."""
    own = lambda i: i if variant == "own_keys" else None
    if variant == "self_gate":
        score = [layer(attend.h2, x) @ layer(attend.h3, x) for x in u]
        value = [layer(attend.h1, x) for x in u]
    else:
        score = [layer(attend.h1, u[-1]) @ layer(attend.h2, x, own(i)) for i, x in enumerate(u)]
        value = [layer(attend.h3, x, own(i)) for i, x in enumerate(u)]
    e = [math.exp(s / math.sqrt(H)) for s in score]
    z = sum(w / sum(e) * v for w, v in zip(e, value))
    return z if attend.project is None else layer(attend.project, z)


def plain(part, q):
    """The equations, row by row and step by step."""
    out = []
    for row in q:
        z = [row[0]]
        for t in range(1, len(row)):
            gate = part.gates[f"{t - 1}_{t}"]
            p = z[-1] if isinstance(gate, torch.nn.Identity) else mlp(gate, z[-1])
            attend = part.attention["all"] if "all" in part.attention else part.attention[str(t)]
            z.append(attended(part.variant, attend, (p, row[t])))
        out.append(torch.stack(z))
    return torch.stack(out)


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("variant", ["self_gate", "cross", "own_keys"])
def test_each_variant_is_its_equations(variant, share):
    part, q = wake(transfer(variant=variant, share=share)), towers()
    torch.testing.assert_close(part(q), plain(part, q), atol=1e-10, rtol=0)


@pytest.mark.parametrize("variant", ["self_gate", "cross", "own_keys"])
def test_without_a_gate_what_is_passed_on_is_z_itself(variant):
    """With own_keys that is the transfer of EasyRec: the tower's query over keys and values of each input."""
    part, q = wake(transfer(variant=variant, gate=None)), towers()
    assert not list(part.gates.parameters())
    torch.testing.assert_close(part(q), plain(part, q), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("variant", ["self_gate", "cross", "own_keys"])
def test_first_step_is_its_own_tower(variant):
    q = towers()
    assert torch.equal(transfer(variant=variant)(q)[:, 0], q[:, 0])


def swapped(part, u):
    return part.attention["all"](u.flip(1).unbind(1))


def test_self_gate_does_not_care_which_input_is_which_and_cross_does():
    u = draw(6, 2, H)
    gate, cross = transfer(), transfer(variant="cross")
    torch.testing.assert_close(gate.attention["all"](u.unbind(1)), swapped(gate, u))
    assert not torch.allclose(cross.attention["all"](u.unbind(1)), swapped(cross, u), atol=1e-3)


def test_transfer_of_q_and_q_is_h1_of_q():
    part = transfer()
    q = draw(6, H)
    attend = part.attention["all"]
    torch.testing.assert_close(attend([q, q]), attend.h1(q))


@pytest.mark.parametrize("silent", ["h2", "h3"])
def test_without_h2_or_h3_both_inputs_weigh_half(silent):
    attend = transfer().attention["all"]
    torch.nn.init.zeros_(getattr(attend, silent).weight)
    u = draw(6, 2, H)
    torch.testing.assert_close(attend(u.unbind(1)), attend.h1(u).mean(1))


def marked(attend, count):
    """Candidates whose last numbers name them, which nothing but the values reads: the weights come out there."""
    u = draw(6, count, H)
    u[:, :, H - count:] = torch.eye(count, dtype=torch.float64)
    value = attend.h1 if attend.variant == "self_gate" else attend.h3
    with torch.no_grad():
        for h in (attend.h1, attend.h2, attend.h3):
            h.weight[..., H - count:] = 0
        for h in (value, attend.project):
            if h is not None:
                h.weight.copy_(torch.eye(H).expand_as(h.weight))
                if h.bias is not None:
                    h.bias.zero_()
    return u


def weights(attend, u):
    count = u.shape[1]
    return attend(u.unbind(1))[:, H - count:]


BY_VARIANT = pytest.mark.parametrize("variant, count", [("self_gate", 3), ("cross", 3), ("own_keys", 2)])


def attention(variant):
    return next(iter(wake(transfer(variant=variant)).attention.values()))


@BY_VARIANT
def test_weights_are_positive_and_sum_to_one(variant, count):
    attend = attention(variant)
    w = weights(attend, marked(attend, count))
    assert (w > 0).all() and not torch.isclose(w[0], w[1]).any()
    torch.testing.assert_close(w.sum(1), torch.ones(6, dtype=torch.float64), atol=1e-12, rtol=0)


@BY_VARIANT
def test_what_one_input_says_changes_its_own_score_alone(variant, count):
    """Of an input that does not ask: the scores of the others stay, so their weights keep their ratios."""
    attend = attention(variant)
    u = marked(attend, count)
    before = weights(attend, u)
    u[:, 0, :H - count] += 1
    after = weights(attend, u)
    ratio = lambda w: w[:, 1:] / w[:, 1:].sum(1, keepdim=True)
    torch.testing.assert_close(ratio(after), ratio(before), atol=1e-12, rtol=0)
    assert not torch.isclose(after[:, 0], before[:, 0]).any()


def test_a_task_beside_the_funnel_is_a_single_tower():
    part, q = transfer((Relation(0, 1),)), towers()
    assert torch.equal(part(q)[:, 2], q[:, 2])


def test_own_keys_with_tied_keys_is_cross_without_its_projection():
    own, cross = transfer(variant="own_keys"), transfer(variant="cross")
    attend, other = own.attention["1"], cross.attention["all"]
    with torch.no_grad():
        other.h1.load_state_dict(attend.h1.state_dict())
        for h in ("h2", "h3"):
            for name in ("weight", "bias"):
                tied = getattr(getattr(attend, h), name)
                tied[1] = tied[0]
                getattr(getattr(other, h), name).copy_(tied[0])
        other.project.weight.copy_(torch.eye(H))
        other.project.bias.zero_()
    u = draw(6, 2, H)
    torch.testing.assert_close(attend(u.unbind(1)), other(u.unbind(1)))


def test_heads_attend_by_themselves():
    """Two heads are one head of half width, twice, when nothing mixes the halves."""
    part = transfer(heads=2)
    attend = part.attention["all"]
    u = draw(6, 2, H)
    half = H // 2
    expected = []
    for lo in (0, half):
        rows = slice(lo, lo + half)
        h1, h2, h3 = (u @ m.weight[rows].T for m in (attend.h1, attend.h2, attend.h3))
        w = ((h2 * h3).sum(-1) / math.sqrt(half)).softmax(1)
        expected.append((w.unsqueeze(-1) * h1).sum(1))
    torch.testing.assert_close(attend(u.unbind(1)), torch.cat(expected, 1))


def test_earlier_steps_do_not_feel_later_towers():
    part, q = transfer(), towers()
    moved = q.clone()
    moved[:, 2] += 1
    assert torch.equal(part(q)[:, :2], part(moved)[:, :2])
    assert not torch.equal(part(q)[:, 2], part(moved)[:, 2])


def test_order_of_the_chain_matters():
    q = towers(tasks=2)
    part = transfer((Relation(0, 1),), tasks=2)
    assert not torch.allclose(part(q).flip(1), part(q.flip(1)), atol=1e-4)


def test_a_tree_passes_from_its_root_to_each_child():
    part, q = transfer((Relation(0, 1), Relation(0, 2))), towers()
    moved = q.clone()
    moved[:, 1] += 1
    assert torch.equal(part(q)[:, 2], part(moved)[:, 2])


def test_predecessor_tower_passes_on_the_tower_not_what_was_transferred_to_it():
    q = towers()
    moved = q.clone()
    moved[:, 0] += 1
    near, far = transfer(predecessor="tower"), transfer()
    assert torch.equal(near(q)[:, 2], near(moved)[:, 2])
    assert not torch.equal(far(q)[:, 2], far(moved)[:, 2])


def test_stop_gradient_keeps_later_tasks_out_of_earlier_towers():
    q = towers().requires_grad_()
    transfer(stop_gradient=True)(q)[:, 1:].sum().backward()
    assert q.grad[:, 0].abs().sum() == 0


def test_own_attention_for_each_step_when_not_shared():
    assert len(transfer(share=False).attention) == 2 and len(transfer().attention) == 1


def test_without_a_funnel_there_is_nothing_to_transfer():
    with pytest.raises(ConfigError, match="no task comes after another"):
        transfer(relations=())


def test_heads_must_divide_the_towers():
    with pytest.raises(ConfigError, match="3 heads do not divide"):
        transfer(heads=3)


def test_head_biases_start_at_log_odds():
    heads = LinearHeads(Spec(flat=1, tasks=2, hidden=4, log_odds=(-1.5, -4.0)))
    assert heads.linear.bias.flatten().tolist() == [-1.5, -4.0]


def test_default_calibrator_is_the_papers_point_six_and_off_where_it_can_only_be_zero():
    assert model().calibrator == 0.6
    assert model(config({"name": "aitm", "reading": "conditional"})).calibrator == 0
    with pytest.raises(ConfigError, match="can only be zero"):
        model(config({"name": "aitm", "reading": "conditional", "calibrator": 0.3}))


def test_shared_view_gives_every_task_the_same_tower():
    m = model(config({"name": "aitm", "represent": {"name": "mlp", "per": "all", "hidden": [8]}}))
    assert m(batch()).logits.shape == (12, 3)
