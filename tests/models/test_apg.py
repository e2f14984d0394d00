"""APG's identities (arXiv 2203.16218), and its equations written again in float64."""

import copy

import pytest
import torch
from plain import layer, mlp, wake

from funnelrank.errors import ConfigError
from funnelrank.inputs import Inputs, Spec
from funnelrank.models.apg import GeneratedLinear, GeneratedMLP

SPEC = Spec(flat=6, tasks=2, groups={"scenario": 3, "user": 3, "item": 2})


def rows(n=7, seed=0):
    g = torch.Generator().manual_seed(seed)
    draw = lambda w: torch.randn(n, w, generator=g, dtype=torch.float64)
    return Inputs(draw(6), groups={name: draw(w) for name, w in SPEC.groups.items()})


def made(**keys):
    torch.manual_seed(0)
    return wake(GeneratedMLP(SPEC, **{"hidden": (5, 4), "rank": 3, "middle": 7, **keys}))


def dense(gen, z, t=None):
    """W_i = U_l U_r S_i V_l V_r, built."""
    S = layer(gen.core, mlp(gen.generator, z, t), t).view(gen.rank, gen.rank)
    pick = lambda linear: linear.weight if t is None else linear.weight[t]
    whole = lambda f: pick(f.right) if f.left is None else pick(f.left) @ pick(f.right)
    return whole(gen.outer) @ S @ whole(gen.inner)


def plain(part, x, b, t):
    h = x.flat[b]
    zs = [x.groups[g][b] for g in part.groups]
    if part.shares is not None:
        zs = [sum(w * z for w, z in zip(torch.softmax(part.shares, 0), zs))]
    for gen in part.layers:
        bias = gen.bias if t is None else gen.bias[t]
        h = torch.relu(dense(gen, torch.cat(zs) if zs else h, t) @ h + bias)
    return h


@pytest.mark.parametrize("keys", [
    {}, {"middle": None}, {"groups": ["user", "item"]}, {"groups": ["scenario", "user"], "mix": "sum"}, {"groups": []},
    {"generator": (5,)}], ids=["group-wise", "one matrix", "mix-wise", "mix-wise sum", "self-wise", "deep generator"])
@pytest.mark.parametrize("per", ["all", "task"])
def test_decomposed_it_is_the_papers_dense_product(keys, per):
    part, x = made(per=per, **keys), rows()
    out = part(x)
    for b in range(7):
        for v in range(part.views):
            expected = plain(part, x, b, v if per == "task" else None)
            torch.testing.assert_close(out[b, v], expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("per", ["all", "task"])
def test_collapsed_is_over_parameterised(per):
    part, x = made(per=per), rows()
    small = copy.deepcopy(part)
    small.collapse()
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in part.parameters())
    torch.testing.assert_close(small(x), part(x), atol=1e-12, rtol=0)


def test_equal_conditions_give_equal_weights_and_others_do_not():
    part, x = made(), rows()
    x.flat[:] = x.flat[0]
    x.groups["scenario"][:3] = x.groups["scenario"][0]
    out = part(x)
    torch.testing.assert_close(out[:3], out[:1].expand(3, -1, -1), atol=1e-14, rtol=0)
    assert not torch.allclose(out[3], out[0])


def test_a_silent_generator_leaves_a_plain_low_rank_layer():
    gen = GeneratedLinear(6, 5, 3, rank=3, middle=None, generator=(), stack=None).double()
    torch.nn.init.zeros_(gen.core.weight)
    x, z = torch.randn(4, 6, dtype=torch.float64), torch.randn(4, 3, dtype=torch.float64)
    expected = x @ gen.inner.right.weight.T @ gen.outer.right.weight.T + gen.bias
    torch.testing.assert_close(gen(x, z), expected, atol=1e-12, rtol=0)


def test_generated_weights_have_at_most_the_rank_asked_for():
    gen = made().layers[0]
    assert torch.linalg.matrix_rank(dense(gen, torch.randn(3, dtype=torch.float64))) == 3


def test_full_rank_with_identities_generates_every_weight():
    gen = wake(GeneratedLinear(4, 4, 3, rank=9, middle=None, generator=(), stack=None))
    assert gen.rank == 4
    with torch.no_grad():
        gen.inner.right.weight.copy_(torch.eye(4))
        gen.outer.right.weight.copy_(torch.eye(4))
    z, x = torch.randn(3, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    expected = layer(gen.core, z).view(4, 4) @ x + gen.bias
    torch.testing.assert_close(gen(x.unsqueeze(0), z.unsqueeze(0))[0], expected, atol=1e-12, rtol=0)


def test_self_wise_gradients_pass_through_the_input_and_through_its_condition():
    part, x = made(groups=[], activation="tanh"), rows(3)
    assert torch.autograd.gradcheck(lambda flat: part(Inputs(flat)), x.flat.requires_grad_())
    gen, h = part.layers[0], x.flat.detach()
    whole, held = (torch.autograd.functional.jacobian(lambda u, c=c: gen(u, u if c else h), h) for c in (True, False))
    assert not torch.allclose(whole, held)


def test_what_cannot_be_is_refused():
    for keys, words in (({"groups": ["user", "item"], "mix": "sum"}, "needs one width"), ({"middle": 2}, "narrower"),
                        ({"hidden": ()}, "no layer")):
        with pytest.raises(ConfigError, match=words):
            made(**keys)
