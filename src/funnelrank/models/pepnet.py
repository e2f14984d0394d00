"""PEPNet: Parameter and Embedding Personalized Network for Infusing with Personalized Prior Information
(Chang et al., KDD 2023, arXiv 2302.01115). sg stops gradients, o is by element.

    Gate NU   delta = gamma sigmoid(W_2 relu(W_1 x + b_1) + b_2),  gamma = 2       each number in (0, 2), 1 at rest
    EPNet     O_ep = Gate([E(F_d), sg(E)]) o E                                     F_d: what is known of the scenario
    PPNet     delta^(l) = Gate^(l)([E(F_u), E(F_i), E(F_a), sg(O_ep)])             priors: user, item, author
              O^(l) = delta^(l) o H^(l),   H^(l+1) = f(W^(l) O^(l) + b^(l))        towers of each task

Read by its index the paper gates each layer's input, the tower's own input included; public code gates each hidden
layer's output instead. `position` offers both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from annotated_types import Gt
from torch import Tensor, nn

from funnelrank.inputs import Inputs, Needs, Spec, with_flat
from funnelrank.models.mlp import Heads, Rate, Widths
from funnelrank.nn.linear import ACTIVATIONS, Elementwise, Linear


class GateNU(nn.Module):
    """delta = gamma sigmoid(W_2 relu(W_1 x + b_1) + b_2): x [B, in] -> [B, out], or [B, n, out] with stack=n.

    The last bias starts at zero, so that gates start around gamma / 2 = 1, which is the plain network.
    """

    def __init__(self, width: int, hidden: int, out: int, *, gamma: float = 2.0, stack: int | None = None):
        super().__init__()
        self.gamma = gamma
        self.first = Linear(width, hidden, stack=stack)
        self.last = Linear(hidden, out, stack=stack)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.gamma * torch.sigmoid(self.last(torch.relu(self.first(x))))


class EmbeddingGate(nn.Module):
    """EPNet: flat [B, W] -> delta o flat [B, W], with delta from the scenario's features and sg(flat).

    fields, which are columns of flat, are gated with it; groups stay as they were.

    groups    roles or groups whose vectors open the gate
    hidden    width of the gate's hidden layer
    gamma     the most that a gate can say; at gamma / 2 = 1 it changes nothing
    """

    needs = Needs()
    reads, changes = {}, ("flat", "fields")       # the gate itself sees sg(flat)

    def __init__(self, spec: Spec, *, groups: Sequence[str] = ("scenario",), hidden: Annotated[int, Gt(0)] = 64,
                 gamma: Annotated[float, Gt(0)] = 2.0):
        super().__init__()
        self.groups = list(groups)
        self.gate = GateNU(sum(spec.groups[g] for g in groups) + spec.flat, hidden, spec.flat, gamma=gamma)
        self.spec = spec

    def forward(self, x: Inputs) -> Inputs:
        delta = self.gate(torch.cat([*(x.groups[g] for g in self.groups), x.flat.detach()], 1))     # [B, W]
        return with_flat(x, delta * x.flat, self.spec)


class Flat(nn.Module):
    """h = flat: x.flat [B, W] -> [B, 1, W]. For models whose towers read the input itself."""

    needs = Needs()

    def __init__(self, spec: Spec):
        super().__init__()
        self.views, self.hidden = 1, spec.flat

    def forward(self, x: Inputs) -> Tensor:
        return x.flat.unsqueeze(1)


class ParameterGates(nn.Module):
    """PPNet: towers whose layers are gated by priors; h [B, T, H] or [B, 1, H] -> [B, O].

    groups      roles or groups of the priors: who is this, and what is this about
    hidden      widths of a tower's layers
    gate        width of each gate's hidden layer
    position    input: gate what each layer reads, the last one included; output: what each hidden layer gives
    per         a gate for each task, or one for all
    gamma       the most that a gate can say
    """

    needs = Needs()
    reads = {}                                    # sg(flat)

    def __init__(self, spec: Spec, *, groups: Sequence[str] = ("user", "item"), hidden: Widths = (128, 64),
                 gate: Annotated[int, Gt(0)] = 64, position: Literal["input", "output"] = "input",
                 per: Literal["all", "task"] = "task", gamma: Annotated[float, Gt(0)] = 2.0,
                 activation: Elementwise = "relu", dropout: Rate = 0.0):
        super().__init__()
        self.groups, self.position = list(groups), position
        T, widths = spec.tasks, [spec.hidden, *hidden]
        prior = sum(spec.groups[g] for g in groups) + spec.flat
        self.gates = nn.ModuleList(GateNU(prior, gate, w, gamma=gamma, stack=T if per == "task" else None)
                                   for w in (widths if position == "input" else hidden))
        self.layers = nn.ModuleList(Linear(a, b, stack=T) for a, b in zip(widths, hidden))
        self.head = Heads(widths[-1], spec)
        self.activation, self.dropout = ACTIVATIONS[activation](), nn.Dropout(dropout)

    def forward(self, h: Tensor, x: Inputs) -> Tensor:
        prior = torch.cat([*(x.groups[g] for g in self.groups), x.flat.detach()], 1)
        deltas = [gate(prior) for gate in self.gates]                           # each [B, T, H_l] or [B, H_l]
        deltas = [d if d.dim() == 3 else d.unsqueeze(1) for d in deltas]
        if self.position == "input":
            h, deltas = deltas[0] * h, deltas[1:]
        if h.shape[1] == 1:
            h = h.squeeze(1)                                                    # one input for all towers
        for layer, delta in zip(self.layers, deltas):
            h = self.dropout(delta * self.activation(layer(h)))                 # [B, T, H_l]
        return self.head(h)                                                     # [B, O]
