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
    splits = True         # flat may come as Halves: a user's part once for many rows

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


class Heads(Linear):
    """z_o = <w_o, h_t> + b_o for each output o of each task t; b_o starts where the task's label says.

    h [B, T, H], or [B, 1, H] for one view that all tasks share -> [B, O]. Where every task has one output, O = T.
    """

    def __init__(self, width: int, spec: Spec):
        super().__init__(width, 1, stack=len(spec.owners))
        self.register_buffer("owner", owner_of_outputs(spec), persistent=False)
        start_at_log_odds(self.bias, spec)

    def forward(self, h: Tensor) -> Tensor:
        if h.dim() == 3 and h.shape[1] == 1:
            h = h.squeeze(1)
        return super().forward(view_of_outputs(h, self.owner)).squeeze(2)


class LinearHeads(nn.Module):
    """z_o = <w_o, h_t> + b_o: h [B, T, H] or [B, 1, H] -> [B, O]."""

    needs = Needs()
    splits = True
    reads = {}

    def __init__(self, spec: Spec):
        super().__init__()
        self.linear = Heads(spec.hidden, spec)

    def forward(self, h: Tensor, x: Inputs) -> Tensor:
        return self.linear(h)                                           # [B, O]


class Towers(nn.Module):
    """An MLP of its own for each task, then a linear head for each output: z_o = <w_o, MLP_t(h_t)> + b_o.

    h [B, T, H] or [B, 1, H] -> [B, O].
    """

    needs = Needs()
    splits = True
    reads = {}

    def __init__(self, spec: Spec, *, hidden: Widths = (64,), activation: Activation = "relu", dropout: Rate = 0.0,
                 norm: Literal["batch", "layer"] | None = None):
        super().__init__()
        self.mlp = MLP(spec.hidden, hidden, activation=activation, dropout=dropout, norm=norm, stack=spec.tasks)
        self.linear = Heads(self.mlp.out, spec)

    def forward(self, h: Tensor, x: Inputs) -> Tensor:
        if h.shape[1] == 1:
            h = h.squeeze(1)
        return self.linear(self.mlp(h))                                 # [B, O]


def start_at_log_odds(bias: Tensor, spec: Spec) -> None:
    """Set biases [O, 1] to each task's log-odds, so that the first step does not spend itself on the mean."""
    with torch.no_grad():
        bias.copy_(torch.tensor(spec.log_odds or (0.0,) * len(spec.owners)).view_as(bias))


def owner_of_outputs(spec: Spec) -> Tensor | None:
    """The task of each output, [O] int64; None where every task has one."""
    return torch.tensor(spec.owners) if len(spec.owners) != spec.tasks else None


def view_of_outputs(h: Tensor, owner: Tensor | None) -> Tensor:
    """What each output reads of its task's view: [B, T, ...] -> [B, O, ...]; one view of all, [B, H], stays it."""
    return h if owner is None or h.dim() == 2 else h.index_select(1, owner)
