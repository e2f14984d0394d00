"""AFM (arXiv 1708.04617), against its equations in float64."""

import pytest
import torch
import torch.utils.checkpoint
from made import inputs, spec

from funnelrank.errors import ConfigError
from funnelrank.models import afm
from funnelrank.models.afm import AttentionalFM
from funnelrank.models.deepfm import SecondOrder


def test_it_is_the_papers_attention_over_pairs():
    sizes = spec()
    part, x = AttentionalFM(sizes, attention=5, per="task").double(), inputs(sizes)
    for b in range(6):
        f = [*x.fields[b], *(n * v for n, v in zip(x.numbers[b], part.vectors.weight))]
        products = [f[i] * f[j] for i in range(6) for j in range(i + 1, 6)]
        for t in range(2):
            score = torch.stack([part.score.weight[t, 0] @ torch.relu(part.attention.weight[t] @ p
                                                                      + part.attention.bias[t]) for p in products])
            a = score.exp() / score.exp().sum()
            torch.testing.assert_close(part(x)[b, t], sum(w * p for w, p in zip(a, products)), atol=1e-10, rtol=0)


def test_uniform_attention_and_a_head_of_ones_is_fm_over_the_number_of_pairs():
    sizes = spec()
    part, fm, x = AttentionalFM(sizes).double(), SecondOrder(sizes).double(), inputs(sizes)
    fm.vectors.load_state_dict(part.vectors.state_dict())
    torch.nn.init.zeros_(part.score.weight)
    torch.testing.assert_close(part(x).sum(2), fm(x) / 15, atol=1e-10, rtol=0)


def test_the_order_of_the_features_does_not_matter():
    sizes = spec(numbers=0)
    part, x = AttentionalFM(sizes).double(), inputs(sizes)
    before = part(x)
    x.fields = x.fields[:, [2, 0, 3, 1]]
    torch.testing.assert_close(part(x), before, atol=1e-10, rtol=0)


def test_one_feature_has_no_pairs():
    with pytest.raises(ConfigError, match="afm weighs pairs of features, and there is only one"):
        AttentionalFM(spec(fields=(1, 3), numbers=0))


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_rows_taken_a_few_at_a_time_give_what_all_at_once_give(monkeypatch, dropout):
    """With dropout, backward makes the products anew that forward had: as if they had been kept."""
    sizes = spec()
    part, x = AttentionalFM(sizes, per="task", dropout=dropout).double(), inputs(sizes)
    fields = x.fields.clone().requires_grad_()
    x.fields = fields

    def found(at_once, again=torch.utils.checkpoint.checkpoint):
        monkeypatch.setattr(afm, "AT_ONCE", at_once)
        monkeypatch.setattr(afm, "MANY", at_once)
        monkeypatch.setattr(afm, "checkpoint", again)
        torch.manual_seed(1)
        out = part(x)
        return out, *torch.autograd.grad(out.square().sum(), [fields, *part.parameters()])

    pairs = 15 * sizes.fields[1]
    few = found(2 * pairs)
    kept = found(2 * pairs, lambda call, rows, **how: call(rows)) if dropout else found(1 << 20)
    torch.testing.assert_close(few, kept, atol=1e-12, rtol=0)
    with torch.no_grad():
        for size in ("AT_ONCE", "MANY"):
            monkeypatch.setattr(afm, size, 2 * pairs)
        torch.testing.assert_close(part.eval()(x), part.pooled(part.vectors(x)), atol=1e-12, rtol=0)
