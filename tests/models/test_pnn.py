"""PNN (arXiv 1611.00144), against its equations in float64."""

import pytest
import torch
from made import inputs, spec

from funnelrank.models.fields import FieldVectors
from funnelrank.models.pnn import ProductNetwork


def fields_of(part, x, b):
    """x_i v_i of row b: embedded fields, then numbers times their vectors."""
    return [*x.fields[b], *(n * v for n, v in zip(x.numbers[b], part.vectors.weight))]


def test_a_number_is_a_field_times_its_own_vector():
    x, part = inputs(spec()), FieldVectors(spec()).double()
    assert part(x).shape == (6, 6, 3)
    torch.testing.assert_close(part(x)[:, :4], x.fields)
    torch.testing.assert_close(part(x)[2, 5], x.numbers[2, 1] * part.weight[1])


def test_inner_products_are_the_gram_matrix_above_its_diagonal():
    sizes = spec()
    part, x = ProductNetwork(sizes).double(), inputs(sizes)
    (p,) = part.products(part.vectors(x))
    for b in range(6):
        f = torch.stack(fields_of(part, x, b))
        gram = f @ f.T
        torch.testing.assert_close(p[b], torch.stack([gram[i, j] for i in range(6) for j in range(i + 1, 6)]))


def test_outer_products_are_summed_over_all_pairs():
    sizes = spec()
    part, x = ProductNetwork(sizes, product="outer").double(), inputs(sizes)
    (p,) = part.products(part.vectors(x))
    for b in range(6):
        f = fields_of(part, x, b)
        torch.testing.assert_close(p[b].view(3, 3), sum(torch.outer(u, v) for u in f for v in f))


def test_outer_products_know_the_inner_ones_only_in_sum():
    sizes = spec()
    part, x = ProductNetwork(sizes, product="both").double(), inputs(sizes)
    inner, outer = part.products(part.vectors(x))
    f = part.vectors(x)
    torch.testing.assert_close(outer.view(-1, 3, 3).diagonal(dim1=1, dim2=2).sum(1),
                               2 * inner.sum(1) + f.square().sum((1, 2)))


@pytest.mark.parametrize("product", ["inner", "outer", "both"])
def test_it_is_the_papers_product_layer(product):
    sizes = spec()
    part, x = ProductNetwork(sizes, product=product, hidden=(5, 4), per="task").double(), inputs(sizes)
    first, second = (layer["linear"] for layer in part.mlp.layers)
    for b in range(6):
        f = fields_of(part, x, b)
        p = []
        if product != "outer":
            p += [(f[i] * f[j]).sum() for i in range(6) for j in range(i + 1, 6)]
        if product != "inner":
            p += list(sum(torch.outer(u, v) for u in f for v in f).flatten())
        for t in range(2):
            w_z, w_p = first.weight[t, :, :sizes.flat], first.weight[t, :, sizes.flat:]
            l_1 = torch.relu(w_z @ x.flat[b] + w_p @ torch.stack(p) + first.bias[t])
            l_2 = torch.relu(second.weight[t] @ l_1 + second.bias[t])
            torch.testing.assert_close(part(x)[b, t], l_2, atol=1e-10, rtol=0)


def test_without_weights_on_its_products_it_is_an_mlp():
    sizes = spec()
    part, x = ProductNetwork(sizes, hidden=(5,)).double(), inputs(sizes)
    with torch.no_grad():
        part.mlp.layers[0]["linear"].weight[:, :, sizes.flat:] = 0
        plain = part.mlp.layers[0]["linear"]
        want = torch.relu(x.flat @ plain.weight[0, :, :sizes.flat].T + plain.bias[0])
    torch.testing.assert_close(part(x)[:, 0], want, atol=1e-10, rtol=0)
