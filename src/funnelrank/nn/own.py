"""Rows that each use parameters of their own scenario: one of n layers for each row.

Scenario ids 0 (null) and 1 (unseen in train) have no parameters of their own; `owner` sends both to place 0, where the
shared parameters stand, and scenario s + 2 to place s + 1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def owner(scenario: Tensor) -> Tensor:
    """scenario [B] int64 -> [B]: 0 for null and unseen, 1 .. S - 2 for those with a name."""
    return (scenario - 1).clamp(min=0)


def own(stacked: Tensor, index: Tensor) -> Tensor:
    """Each row's own of n: stacked [B, n, ...], index [B] -> [B, ...]. What was not picked gets a gradient of 0."""
    at = index.view(-1, *[1] * (stacked.dim() - 1)).expand(-1, 1, *stacked.shape[2:])
    return stacked.gather(1, at).squeeze(1)


def own_linear(x: Tensor, weight: Tensor, bias: Tensor | None, index: Tensor) -> Tensor:
    """y_b = W_i x_b + b_i with i = index_b: x [B, in], weight [n, out, in], bias [n, out], index [B] -> [B, out].

    On a CPU rows are brought together by index, so that the cost is that of one layer. In a graph, whose shapes may
    not depend on the data, and on devices that the host would have to wait for, all n are computed and one is picked.
    """
    n, out, _ = weight.shape
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        every = F.linear(x, weight.flatten(0, 1), None if bias is None else bias.flatten())
        return own(every.unflatten(1, (n, out)), index)
    order = index.argsort()
    sizes = torch.bincount(index, minlength=n).tolist()
    biases = [None] * n if bias is None else bias.unbind(0)
    parts = [F.linear(rows, w, b) for rows, w, b in zip(x[order].split(sizes), weight.unbind(0), biases) if len(rows)]
    return torch.cat(parts or [x.new_zeros(0, out)])[order.argsort()]
