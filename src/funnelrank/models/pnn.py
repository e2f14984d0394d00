"""PNN: Product-based Neural Networks for User Response Prediction (Qu et al., ICDM 2016, arXiv 1611.00144).

    l_1 = relu(W_z z + W_p p + b_1)         z: the fields side by side; p: their products
    inner   p_ij = <f_i, f_j>, i < j        F (F - 1) / 2 numbers
    outer   p = sum_i sum_j f_i f_j^T = s s^T,  s = sum_i f_i          D x D numbers, summed over pairs first
    both    the two side by side

and more layers on l_1. The paper's p has all i and j; p_ij = p_ji says nothing new, and p_ii is left out as well.
Numbers are fields x_i v_i in p, and stand in z as they are, which a linear layer cannot tell from x_i v_i.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from funnelrank.inputs import Inputs, Needs, Spec
from funnelrank.models.fields import FieldVectors, pairs
from funnelrank.models.mlp import Rate, Widths
from funnelrank.nn.linear import MLP, Activation


class ProductNetwork(nn.Module):
    """flat [B, W], fields [B, F, D] -> [B, V, H]; V = T with per="task"; H = hidden[-1].

    product    inner, outer, or both
    """

    needs = Needs(fields=True, numbers=True)
    reads = {"flat": None, "fields": None}

    def __init__(self, spec: Spec, *, product: Literal["inner", "outer", "both"] = "inner",
                 hidden: Widths = (128, 64), activation: Activation = "relu", dropout: Rate = 0.0,
                 norm: Literal["batch", "layer"] | None = None, per: Literal["all", "task"] = "all"):
        super().__init__()
        self.product, self.views = product, spec.tasks if per == "task" else 1
        self.vectors = FieldVectors(spec)
        F, D = self.vectors.count, self.vectors.width
        i, j = pairs(F)
        self.register_buffer("i", i, persistent=False)
        self.register_buffer("j", j, persistent=False)
        products = (product != "outer") * len(i) + (product != "inner") * D * D
        self.mlp = MLP(spec.flat + products, hidden, activation=activation, dropout=dropout, norm=norm,
                       stack=self.views)
        self.hidden = self.mlp.out

    def forward(self, x: Inputs) -> Tensor:
        return self.mlp(torch.cat([x.flat, *self.products(self.vectors(x))], 1))          # [B, V, H]

    def products(self, f: Tensor) -> list[Tensor]:
        """f [B, F, D] -> [B, F (F - 1) / 2] and / or [B, D * D]."""
        found = []
        if self.product != "outer":
            found.append(torch.bmm(f, f.transpose(1, 2))[:, self.i, self.j])
        if self.product != "inner":
            s = f.sum(1)
            found.append((s.unsqueeze(2) * s.unsqueeze(1)).flatten(1))
        return found
