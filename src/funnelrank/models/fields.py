"""Features as vectors of one width, and their pairs: what FM and its descendants multiply."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from funnelrank.inputs import Inputs, Spec
from funnelrank.nn.mix import sum_and_squares


class FieldVectors(nn.Module):
    """x_i v_i of every feature, as FM has it: an embedded one is its row, a number is times a vector of its own.

    fields [B, F, D], numbers [B, N] -> [B, F + N, D]. Lists take part as their pooled vector.
    """

    def __init__(self, spec: Spec):
        super().__init__()
        fields, self.width = spec.fields or (0, 0)
        self.count = fields + spec.numbers
        self.weight = nn.Parameter(torch.empty(spec.numbers, self.width).normal_(0, 0.01)) if spec.numbers else None

    def forward(self, x: Inputs) -> Tensor:
        if self.weight is None:
            return x.fields
        return torch.cat([x.fields, x.numbers.unsqueeze(2) * self.weight], 1)       # [B, F + N, D]

    def interaction(self, x: Inputs) -> Tensor:
        """`bi_interaction` of them all, [B, D]; numbers enter its two sums without a vector for each row."""
        if self.weight is None:
            return bi_interaction(x.fields)
        total, squares = sum_and_squares(x.fields)
        total = total + x.numbers @ self.weight
        return 0.5 * (total.square() - (squares + x.numbers.square() @ self.weight.square()))


def pairs(count: int) -> tuple[Tensor, Tensor]:
    """i and j of all i < j < count, [count (count - 1) / 2] each."""
    i, j = torch.triu_indices(count, count, 1)
    return i, j


def bi_interaction(v: Tensor) -> Tensor:
    """sum_{i<j} v_i * v_j = 1/2 [(sum_i v_i)^2 - sum_i v_i^2]: v [B, F, D] -> [B, D]."""
    total, squares = sum_and_squares(v)
    return 0.5 * (total.square() - squares)
