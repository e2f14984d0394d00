"""NFM (arXiv 1708.05027), against the sum over pairs in float64."""

import torch
from made import inputs, spec

from funnelrank.inputs import Spec
from funnelrank.models.deepfm import SecondOrder
from funnelrank.models.mlp import LinearHeads
from funnelrank.models.nfm import NeuralFM


def test_without_hidden_layers_and_a_head_of_ones_it_is_fm():
    sizes = spec()
    part, fm, x = NeuralFM(sizes, hidden=()).double(), SecondOrder(sizes).double(), inputs(sizes)
    fm.load_state_dict(part.state_dict(), strict=False)
    head = LinearHeads(Spec(flat=0, tasks=2, hidden=part.hidden)).double()
    with torch.no_grad():
        head.linear.weight.fill_(1)
        head.linear.bias.zero_()
    torch.testing.assert_close(head(part(x), x), fm(x).expand(-1, 2), atol=1e-10, rtol=0)


def test_it_is_an_mlp_on_the_sum_of_all_pairs():
    sizes = spec()
    part, x = NeuralFM(sizes, hidden=(5, 4), per="task").double().eval(), inputs(sizes)
    for b in range(6):
        f = [*x.fields[b], *(n * v for n, v in zip(x.numbers[b], part.vectors.weight))]
        pooled = sum(f[i] * f[j] for i in range(6) for j in range(i + 1, 6))
        for t in range(2):
            h = pooled
            for layer in part.mlp.layers:
                h = torch.relu(layer["linear"].weight[t] @ h + layer["linear"].bias[t])
            torch.testing.assert_close(part(x)[b, t], h, atol=1e-10, rtol=0)


def test_normalisation_and_dropout_reach_the_pooled_pairs():
    sizes = spec()
    part, x = NeuralFM(sizes, hidden=(), norm="batch", dropout=0.5).double(), inputs(sizes, rows=400)
    pooled = part(x)[:, 0]
    assert 0.4 < (pooled == 0).double().mean() < 0.6
    kept = pooled[:, 0][pooled[:, 0] != 0] / 2                  # dropout doubles what it keeps
    torch.testing.assert_close(kept.var(), torch.tensor(1.0, dtype=torch.float64), atol=0.4, rtol=0)
