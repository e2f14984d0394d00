"""M2M's identities (arXiv 2201.06814), and its equations written again in float64."""

import math

import pytest
import torch
from plain import layer, mlp, wake

from funnelrank.errors import ConfigError
from funnelrank.inputs import History, Inputs, Spec
from funnelrank.models.m2m import MetaAttention, MetaTowers, MetaUnit, ScenarioView, SequenceAttention

T, K = 2, 3
SPEC = Spec(flat=5, tasks=T, hidden=K, groups={"scenario": 2, "user": 3})
act = torch.nn.functional.leaky_relu


def rows(n=6, seed=0):
    g = torch.Generator().manual_seed(seed)
    draw = lambda w: torch.randn(n, w, generator=g, dtype=torch.float64)
    return Inputs(draw(5), groups={"scenario": draw(2), "user": draw(3)})


def made(part, spec=SPEC, **keys):
    torch.manual_seed(0)
    return wake(part(spec, **keys))


def plain_meta(unit, h, view, t):
    for j, (weight, bias) in enumerate(zip(unit.weights, unit.biases)):
        W = layer(weight, view, t).view(unit.size, unit.size)
        if len(unit.inner):
            W = unit.outer[j].weight[t] @ W @ unit.inner[j].weight[t]
        h = act(W @ h + layer(bias, view, t))
    return h


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("depth", [1, 2])
def test_it_is_the_papers_equations(depth, rank):
    view = made(ScenarioView, groups=["scenario", "user"], hidden=(4, 4))
    body = made(MetaAttention, view.spec, groups=["scenario_view"], experts=3, hidden=(4, K), task=2, depth=depth,
                rank=rank)
    towers = made(MetaTowers, view.spec, groups=["scenario_view"], layers=2, depth=depth, rank=rank)
    x = view(rows())
    out = towers(body(x), x)
    for b in range(6):
        S = mlp(view.mlp, torch.cat([x.groups["scenario"][b], x.groups["user"][b]]))
        torch.testing.assert_close(x.groups["scenario_view"][b], S, atol=1e-12, rtol=0)
        E = [mlp(body.experts, x.flat[b], i, act) for i in range(3)]
        for t in range(T):
            task = mlp(body.task_view, body.tasks.weight[t], act=act)
            scores = [layer(body.score, plain_meta(body.meta, torch.cat([e, task]), S, t)) for e in E]
            alpha = torch.softmax(torch.cat(scores), 0)
            L = sum(a * e for a, e in zip(alpha, E))
            for unit in towers.layers:
                L = act(plain_meta(unit, L, S, t) + L)
            torch.testing.assert_close(out[b, t], layer(towers.head, L, t)[0], atol=1e-10, rtol=0)


def histories(values, lengths):
    return History(values, torch.tensor([0, *lengths]).cumsum(0), torch.zeros(len(lengths), values.shape[1]))


def attended(h, length=50, heads=2):
    part = made(SequenceAttention, Spec(flat=1, tasks=1, histories={"shown": 4}), heads=heads, length=length)
    n = len(h.offsets) - 1
    return part, part(Inputs(torch.zeros(n, 1, dtype=torch.float64), histories={"shown": h})).flat[:, 1:]


HISTORY = histories(torch.randn(9, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64), [4, 0, 2, 3])


def test_sequences_attend_to_themselves_head_by_head():
    part, out = attended(HISTORY)
    Q, K_, V = part.project[0].weight.chunk(3)
    for b, (lo, hi) in enumerate(zip(HISTORY.offsets, HISTORY.offsets[1:])):
        e = HISTORY.values[lo:hi]
        mixed = []
        for head in range(2):
            rows_of = slice(2 * head, 2 * head + 2)
            q, k, v = (e @ m[rows_of].T for m in (Q, K_, V))
            mixed.append(torch.softmax(q @ k.T / math.sqrt(2), 1) @ v)
        expected = (torch.cat(mixed, 1) @ part.out[0].weight.T).mean(0) if hi > lo else torch.zeros(4).double()
        torch.testing.assert_close(out[b], expected, atol=1e-10, rtol=0)


def test_neither_padding_nor_a_longer_neighbour_changes_a_row():
    _, out = attended(HISTORY)
    values = torch.randn(30, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    longer = histories(torch.cat([HISTORY.values, values]), [4, 0, 2, 3, 30])
    torch.testing.assert_close(attended(longer)[1][:4], out, atol=1e-12, rtol=0)
    torch.testing.assert_close(attended(HISTORY, length=4)[1], out, atol=1e-12, rtol=0)


def test_only_the_last_entries_are_read():
    last = histories(torch.cat([HISTORY.values[2:4], HISTORY.values[4:6], HISTORY.values[7:9]]), [2, 0, 2, 2])
    torch.testing.assert_close(attended(HISTORY, length=2)[1], attended(last)[1], atol=1e-12, rtol=0)


def test_only_empty_histories_are_zeros():
    assert (attended(histories(torch.zeros(0, 4, dtype=torch.float64), [0, 0]))[1] == 0).all()


def silent(part):
    """V_w = V_b = 0: what is generated no longer depends on the view."""
    for module in part.modules():
        if isinstance(module, MetaUnit):
            for linear in (*module.weights, *module.biases):
                torch.nn.init.zeros_(linear.weight)
    return part


def test_without_a_view_it_is_an_ordinary_network_the_same_for_all_scenarios():
    body, towers = silent(made(MetaAttention, experts=3, hidden=(K,))), silent(made(MetaTowers))
    x, other = rows(), rows()
    other.groups = rows(seed=5).groups
    assert torch.equal(towers(body(x), x), towers(body(other), other))
    unit, h = towers.layers[0], torch.randn(6, T, 1, K, dtype=torch.float64)
    W, b = unit.weights[0].bias.view(T, K, K), unit.biases[0].bias
    expected = act(torch.einsum("btmi,toi->btmo", h, W) + b[:, None])
    torch.testing.assert_close(unit(h, x.groups["scenario"]), expected, atol=1e-12, rtol=0)


def test_a_meta_unit_that_says_nothing_leaves_the_residual():
    towers = silent(made(MetaTowers, layers=3))
    for unit in towers.layers:
        for linear in (*unit.weights, *unit.biases):
            torch.nn.init.zeros_(linear.bias)
    h = torch.randn(6, T, K, dtype=torch.float64)
    kept = act(act(act(h)))
    expected = (towers.head.weight.squeeze(1) * kept).sum(2) + towers.head.bias.squeeze(1)
    torch.testing.assert_close(towers(h, rows()), expected, atol=1e-12, rtol=0)


def test_equal_experts_make_the_attention_irrelevant():
    """So its weights sum to 1."""
    body, x = made(MetaAttention, experts=3, hidden=(K,)), rows()
    with torch.no_grad():
        for step in body.experts.layers:
            step["linear"].weight[:] = step["linear"].weight[0]
            step["linear"].bias[:] = step["linear"].bias[0]
    torch.testing.assert_close(body(x), body.experts(x.flat)[:, :1].expand(-1, T, -1), atol=1e-12, rtol=0)


def test_tasks_and_layers_have_meta_units_of_their_own():
    body, towers = made(MetaAttention), made(MetaTowers, layers=2)
    assert body.meta.weights[0].weight.shape[0] == T and towers.layers[0] is not towers.layers[1]
    assert not torch.equal(towers.layers[0].weights[0].weight, towers.layers[1].weights[0].weight)


def test_heads_must_divide_a_history_and_there_must_be_one():
    with pytest.raises(ConfigError, match="3 heads do not divide the width 4 of 'shown'"):
        attended(HISTORY, heads=3)
    with pytest.raises(ConfigError, match="leave mha out"):
        SequenceAttention(SPEC)
