"""Sums over the parts of each row, by the kernels and by torch's operations."""

import pytest
import torch
from made import batch, config, model

from funnelrank.models.fields import bi_interaction
from funnelrank.nn import mix
from funnelrank.nn.linear import MLP, Linear


def with_gradients(call, *inputs):
    leaves = [x.clone().requires_grad_() for x in inputs]
    out = call(*leaves)
    outs = out if isinstance(out, tuple) else (out,)
    g = torch.Generator().manual_seed(1)
    sum((o * torch.randn(o.shape, generator=g)).sum() for o in outs).backward()
    return [o.detach() for o in outs] + [x.grad for x in leaves]


@pytest.mark.parametrize("threads", (1, 2))
@pytest.mark.parametrize("B, V, N, H", [(5, 2, 8, 16), (3, 1, 1, 1), (7, 3, 2, 21), (0, 2, 4, 8), (1, 2, 17, 33)])
def test_a_mixture_is_the_softmax_and_the_sum_written_out(B, V, N, H, threads):
    torch.manual_seed(0)
    score, x = 9 * torch.randn(B, V, N), torch.randn(B, N, H)
    torch.set_num_threads(threads)
    found = with_gradients(mix.mixture, score, x)
    torch.set_num_threads(1)
    for a, b in zip(found, with_gradients(lambda s, x: torch.bmm(s.softmax(2), x), score, x)):
        torch.testing.assert_close(a, b, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("B, N, H", [(64, 2, 16), (5, 3, 33), (2, 1, 1), (0, 2, 4)])
def test_a_gated_sum_is_its_formula(B, N, H):
    torch.manual_seed(0)
    key, x = 3 * torch.randn(B, N, H), torch.randn(B, N, H)
    written = lambda k, x: (((k * x).sum(2) * 0.3).softmax(1).unsqueeze(2) * x).sum(1)
    for a, b in zip(with_gradients(lambda k, x: mix.gated_sum(k, x, 0.3), key, x), with_gradients(written, key, x)):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_a_mixture_of_scores_far_apart_or_not_finite():
    x, inf, nan = torch.randn(3, 3, 4), float("inf"), float("nan")
    score = torch.tensor([[[0.0, -1e4, 300.0]], [[-inf, 0.0, -inf]], [[0.0, nan, 1.0]]])
    found = mix.mixture(score, x)
    torch.testing.assert_close(found[:2], torch.bmm(score.softmax(2), x)[:2])
    assert found[2].isnan().all()


@pytest.mark.parametrize("F, D", [(26, 16), (1, 1), (3, 19)])
def test_sums_and_sums_of_squares(F, D):
    torch.manual_seed(0)
    v = torch.randn(9, F, D)
    for a, b in zip(with_gradients(mix.sum_and_squares, v), with_gradients(lambda v: (v.sum(1), (v * v).sum(1)), v)):
        torch.testing.assert_close(a, b, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["deepfm", "nfm"])
def test_numbers_interact_as_vectors_do(name):
    m, b = model(config(model=name)), batch()
    vectors = next(part.vectors for part in m.modules() if hasattr(part, "vectors"))
    x = m.embedding(b)
    torch.testing.assert_close(vectors.interaction(x), bi_interaction(vectors(x)), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("keys", [{}, {"norm": "batch"}, {"norm": "layer", "activation": "gelu"},
                                  {"activation": "dice"}])
def test_layers_beside_a_stack_are_what_they_are_alone(keys):
    torch.manual_seed(0)
    stack, gates, x = MLP(9, (8, 5), stack=3, **keys), Linear(9, 3, bias=False, stack=2), torch.randn(64, 9)
    together = with_gradients(lambda x: stack.beside(gates, x), x)
    weights = [p.grad for p in (*stack.parameters(), *gates.parameters())]
    stack.zero_grad(), gates.zero_grad()
    apart = with_gradients(lambda x: (stack(x), gates(x)), x)
    for a, b in zip(together + weights, apart + [p.grad for p in (*stack.parameters(), *gates.parameters())]):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
