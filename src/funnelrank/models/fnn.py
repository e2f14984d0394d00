"""FNN: Deep Learning over Multi-field Categorical Data (Zhang, Du & Wang, ECIR 2016, arXiv 1601.02376).

    z_i = (w_i, v_i)                  of each field: FM's weight and FM's vector
    l_1 = tanh(W_1 z + b_1),  l_2 = tanh(W_2 l_1 + b_2), ...
    y = sigmoid(W_3 l_2 + b_3)

w and v start from a trained FM (`embedding.init_from`) and are learnt on. FM's w_0, one number, is part of b_1. The
paper's alternative start, restricted Boltzmann machines, is not here. With T tasks FM has T weights an id and one
vector: a network of one task reads that task's weights (of several outputs, those of the first), one of all tasks
reads them all.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from funnelrank.inputs import Inputs, Needs, Spec
from funnelrank.models.mlp import Rate, Widths
from funnelrank.nn.linear import MLP, Activation


class FactorisationSupported(nn.Module):
    """flat [B, W], linear [B, F, O] -> [B, V, H]; V = T with per="task"; H = hidden[-1]."""

    needs = Needs(linear=True)

    def __init__(self, spec: Spec, *, hidden: Widths = (128, 64), activation: Activation = "tanh",
                 dropout: Rate = 0.0, norm: Literal["batch", "layer"] | None = None,
                 per: Literal["all", "task"] = "all"):
        super().__init__()
        self.per, self.views = per, spec.tasks if per == "task" else 1
        weights = spec.embedded * (1 if per == "task" else len(spec.owners))
        first = torch.tensor([spec.owners.index(t) for t in range(spec.tasks)])
        self.register_buffer("first", first if len(spec.owners) != spec.tasks else None, persistent=False)
        self.mlp = MLP(spec.flat + weights, hidden, activation=activation, dropout=dropout, norm=norm,
                       stack=self.views)
        self.hidden = self.mlp.out

    def forward(self, x: Inputs) -> Tensor:
        if self.per == "task":
            w = (x.linear if self.first is None else x.linear.index_select(2, self.first)).transpose(1, 2)
        else:
            w = x.linear.flatten(1).unsqueeze(1)
        v = x.flat.unsqueeze(1).expand(-1, self.views, -1)
        return self.mlp(torch.cat([v, w], 2))                           # [B, V, H]
