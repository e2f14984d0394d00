"""The first and second order of the field, as parts that add their logits to any model, and DeepFM as a tower.

    LR        z = sum_i w_i x_i                                     a true weight per id, and one per number
    FM        z = LR + sum_{i<j} <v_i, v_j> x_i x_j                 Factorization Machines (Rendle, ICDM 2010)
                = LR + 1/2 sum_d [(sum_i v_id x_i)^2 - sum_i v_id^2 x_i^2]
    DeepFM    z = FM + w . MLP(v) + b, on shared embeddings v       (Guo et al., IJCAI 2017, arXiv 1703.04247)

The recipe deepfm is `lr` and `fm` beside an MLP. Inside another model's tower there is no logit to add to, so there

    h = [MLP(v), sum_{i<j} x_i v_i * x_j v_j]

of which DeepFM's logit, less its first order, is the linear head whose weights on the second half are 1.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from funnelrank.inputs import Inputs, Needs, Spec
from funnelrank.models.fields import FieldVectors
from funnelrank.models.mlp import Rate, Widths
from funnelrank.nn.linear import MLP, Activation, Linear


class FirstOrder(nn.Module):
    """z_o = sum_i w_oi + sum_k a_ok n_k: a weight per id and output, from a table of its own. -> [B, O]."""

    needs = Needs(linear=True, numbers=True)
    splits = True
    reads = {}

    def __init__(self, spec: Spec):
        super().__init__()
        self.numbers = Linear(spec.numbers, len(spec.owners), bias=False) if spec.numbers else None

    def forward(self, x: Inputs) -> Tensor:
        z = x.linear.sum(1)                                             # [B, F, O] -> [B, O]
        return z + self.numbers(x.numbers) if self.numbers is not None else z


class SecondOrder(nn.Module):
    """FM's pairwise term, the same for every task: fields [B, F, D], numbers [B, N] -> [B, 1]."""

    needs = Needs(fields=True, numbers=True)
    splits = True
    reads = {"fields": None}

    def __init__(self, spec: Spec):
        super().__init__()
        self.vectors = FieldVectors(spec)

    def forward(self, x: Inputs) -> Tensor:
        return self.vectors.interaction(x).sum(1, keepdim=True)


class DeepFMBody(nn.Module):
    """h = [MLP(flat), pairwise products summed]: [B, V, H]; V = T with per="task"; H = hidden[-1] + D."""

    needs = Needs(fields=True, numbers=True)
    splits = True
    reads = {"flat": None, "fields": None}

    def __init__(self, spec: Spec, *, hidden: Widths = (128, 64), activation: Activation = "relu",
                 dropout: Rate = 0.0, norm: Literal["batch", "layer"] | None = None,
                 per: Literal["all", "task"] = "all"):
        super().__init__()
        self.views = spec.tasks if per == "task" else 1
        self.vectors = FieldVectors(spec)
        self.mlp = MLP(spec.flat, hidden, activation=activation, dropout=dropout, norm=norm, stack=self.views)
        self.hidden = self.mlp.out + self.vectors.width

    def forward(self, x: Inputs) -> Tensor:
        pairwise = self.vectors.interaction(x).unsqueeze(1).expand(-1, self.views, -1)
        return torch.cat([self.mlp(x.flat), pairwise], 2)               # [B, V, H]
