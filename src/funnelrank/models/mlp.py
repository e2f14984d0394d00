"""The plain parts: an MLP as representation, and heads that turn representations into logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn

from funnelrank.inputs import Inputs, Needs, Spec
from funnelrank.nn.linear import MLP, Activation, Linear

Rate = Annotated[float, Ge(0), Lt(1)]
Widths = Sequence[Annotated[int, Gt(0)]]


class MLPBody(nn.Module):
    """h = MLP(flat), one for all tasks or one for each.

    x.flat [B, W] -> [B, V, H]; V = 1 with per="all", V = T with per="task"; H = hidden[-1].
    """

    needs = Needs()

    def __init__(self, spec: Spec, *, hidden: Widths = (128, 64), activation: Activation = "relu",
                 dropout: Rate = 0.0, norm: Literal["batch", "layer"] | None = None,
                 per: Literal["all", "task"] = "all"):
        super().__init__()
        self.views = spec.tasks if per == "task" else 1
        self.mlp = MLP(spec.flat, hidden, activation=activation, dropout=dropout, norm=norm,
                       stack=spec.tasks if per == "task" else None)
        self.hidden = self.mlp.out

    def forward(self, x: Inputs) -> Tensor:
        h = self.mlp(x.flat)
        return h if h.dim() == 3 else h.unsqueeze(1)                    # [B, V, H]


class LinearHeads(nn.Module):
    """z_t = <w_t, h_t> + b_t, with b_t starting at the log-odds of the task's label.

    h [B, T, H], or [B, 1, H] for one view that all tasks share -> logits [B, T].
    """

    needs = Needs()

    def __init__(self, spec: Spec):
        super().__init__()
        self.linear = Linear(spec.hidden, 1, stack=spec.tasks)
        start_at_log_odds(self.linear.bias, spec)

    def forward(self, h: Tensor, x: Inputs) -> Tensor:
        if h.shape[1] == 1:
            h = h.squeeze(1)
        return self.linear(h).squeeze(2)                                # [B, T]


class Towers(nn.Module):
    """An MLP of its own for each task, then a linear head: z_t = <w_t, MLP_t(h_t)> + b_t.

    h [B, T, H] or [B, 1, H] -> logits [B, T].
    """

    needs = Needs()

    def __init__(self, spec: Spec, *, hidden: Widths = (64,), activation: Activation = "relu", dropout: Rate = 0.0,
                 norm: Literal["batch", "layer"] | None = None):
        super().__init__()
        self.mlp = MLP(spec.hidden, hidden, activation=activation, dropout=dropout, norm=norm, stack=spec.tasks)
        self.linear = Linear(self.mlp.out, 1, stack=spec.tasks)
        start_at_log_odds(self.linear.bias, spec)

    def forward(self, h: Tensor, x: Inputs) -> Tensor:
        if h.shape[1] == 1:
            h = h.squeeze(1)
        return self.linear(self.mlp(h)).squeeze(2)                      # [B, T]


def start_at_log_odds(bias: Tensor, spec: Spec) -> None:
    """Set a head's bias [T, 1] to each task's log-odds, so that the first step does not spend itself on the mean."""
    with torch.no_grad():
        bias.copy_(torch.tensor(spec.log_odds or (0.0,) * spec.tasks).view_as(bias))
