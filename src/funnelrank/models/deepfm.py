"""The first and second order of the field, as parts that add their logits to any model.

    LR        z = sum_i w_i x_i                                     a true weight per id, and one per number
    FM        z = sum_{i<j} <v_i, v_j>                              Factorization Machines (Rendle, ICDM 2010)
                = 1/2 sum_d [(sum_i v_id)^2 - sum_i v_id^2]
    DeepFM    z = LR + FM + MLP(v), on shared embeddings v          (Guo et al., IJCAI 2017, arXiv 1703.04247)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from funnelrank.inputs import Inputs, Needs, Spec
from funnelrank.nn.linear import Linear


class FirstOrder(nn.Module):
    """z_t = sum_i w_ti + sum_k a_tk n_k: a weight per id and task, from a table of its own. -> [B, T]."""

    needs = Needs(linear=True, numbers=True)

    def __init__(self, spec: Spec):
        super().__init__()
        self.numbers = Linear(spec.numbers, spec.tasks, bias=False) if spec.numbers else None

    def forward(self, x: Inputs) -> Tensor:
        z = x.linear.sum(1)                                             # [B, F, T] -> [B, T]
        return z + self.numbers(x.numbers) if self.numbers is not None else z


class SecondOrder(nn.Module):
    """FM's pairwise term, the same for every task: fields [B, F, D] -> [B, 1]."""

    needs = Needs(fields=True)

    def __init__(self, spec: Spec):
        super().__init__()

    def forward(self, x: Inputs) -> Tensor:
        return bi_interaction(x.fields).sum(1, keepdim=True)


def bi_interaction(fields: Tensor) -> Tensor:
    """sum_{i<j} v_i * v_j = 1/2 [(sum_i v_i)^2 - sum_i v_i^2]: fields [B, F, D] -> [B, D]."""
    return 0.5 * (fields.sum(1).square() - torch.einsum("bfd,bfd->bd", fields, fields))
