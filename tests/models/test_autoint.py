"""AutoInt (arXiv 1810.11921), against its equations in float64."""

import pytest
import torch
from made import inputs, spec

from funnelrank.models.autoint import AutoIntBody, AutoIntBottom, InteractingLayer
from funnelrank.nn import mix


def slowly(layer, e, n):
    """One layer of network n on one row's features e [M, D], head by head."""
    K = layer.width
    out = []
    for m in range(len(e)):
        heads = []
        for h in range(layer.heads):
            q, k, v = (w.weight[n, h * K:(h + 1) * K] for w in (layer.query, layer.key, layer.value))
            score = torch.stack([(q @ e[m]) @ (k @ other) for other in e])
            a = score.exp() / score.exp().sum()
            heads.append(sum(w * (v @ other) for w, other in zip(a, e)))
        mixed = torch.cat(heads)
        if layer.residual is not None:
            mixed = mixed + layer.residual.weight[n] @ e[m]
        out.append(torch.relu(mixed))
    return torch.stack(out)


@pytest.mark.parametrize("residual", [True, False])
def test_it_is_the_papers_layers_one_after_another(residual):
    sizes = spec()
    part = AutoIntBody(sizes, layers=2, heads=2, width=3, residual=residual, per="task").double()
    x = inputs(sizes)
    assert part(x).shape == (6, 2, 6 * 2 * 3) and part.hidden == 36
    for b in range(6):
        for t in range(2):
            e = torch.cat([x.fields[b], x.numbers[b].unsqueeze(1) * part.interacting.vectors.weight])
            for layer in part.interacting.layers:
                e = slowly(layer, e, t)
            torch.testing.assert_close(part(x)[b, t], e.flatten(), atol=1e-10, rtol=0)


def test_permuting_features_permutes_what_becomes_of_them():
    layer = InteractingLayer(4, heads=2, width=3, residual=True, n=1).double()
    e, order = torch.randn(5, 6, 1, 4, dtype=torch.float64), [3, 0, 5, 1, 2, 4]
    torch.testing.assert_close(layer(e[:, order]), layer(e)[:, order], atol=1e-10, rtol=0)


def test_without_values_only_the_residual_is_left():
    layer = InteractingLayer(4, heads=2, width=3, residual=True, n=1).double()
    torch.nn.init.zeros_(layer.value.weight)
    e = torch.randn(5, 6, 1, 4, dtype=torch.float64)
    torch.testing.assert_close(layer(e)[:, :, 0], torch.relu(e[:, :, 0] @ layer.residual.weight[0].T), atol=1e-10,
                               rtol=0)


def test_autoint_plus_has_an_mlp_beside_it():
    sizes = spec()
    part, x = AutoIntBody(sizes, layers=1, deep=(5,), hidden=(7,)).double(), inputs(sizes)
    linear = part.deep.layers[0]["linear"]
    assert part.hidden == 12
    torch.testing.assert_close(part(x)[:, 0, 7:], torch.relu(x.flat @ linear.weight[0].T + linear.bias[0]))


def test_a_bottom_is_the_body_that_all_towers_read():
    sizes = spec()
    body, bottom, x = AutoIntBody(sizes).double(), AutoIntBottom(sizes, keep=False).double(), inputs(sizes)
    bottom.interacting.load_state_dict(body.interacting.state_dict())
    assert bottom.spec.flat == bottom(x).flat.shape[1] == body.hidden
    torch.testing.assert_close(bottom(x).flat, body(x)[:, 0], atol=1e-10, rtol=0)


def test_a_bottom_keeps_what_was_there_before_it():
    sizes = spec()
    bottom, x = AutoIntBottom(sizes).double(), inputs(sizes)
    assert bottom(x).flat.shape[1] == bottom.spec.flat
    assert torch.equal(bottom(x).flat[:, :sizes.flat], x.flat)


def test_with_somebody_looking_at_its_weights_it_says_the_same():
    sizes = spec()
    part, x = AutoIntBody(sizes, per="task").double(), inputs(sizes)
    with mix.kernels.off():
        seen = part(x)
    torch.testing.assert_close(part(x), seen, atol=1e-12, rtol=0)
