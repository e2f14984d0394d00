"""DCN-v2: Improved Deep & Cross Network and Practical Lessons for Web-scale Learning to Rank Systems
(Wang et al., WWW 2021, arXiv 2008.13535).

    x_{l+1} = x_0 * (W_l x_l + b_l) + x_l                           a cross layer on x_0 = flat
    low rank     W_l = U_l V_l^T
    mixture      x_{l+1} = sum_i G_i(x_l) x_0 * (U_li g(C_li g(V_li^T x_l)) + b_l) + x_l
    stacked      h = MLP(x_L)
    parallel     h = [x_L, MLP(x_0)]

The paper leaves G and g open: here G is a softmax over the experts of a linear layer without bias, and g is tanh.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from annotated_types import Gt
from torch import Tensor, nn

from funnelrank.errors import ConfigError
from funnelrank.inputs import Inputs, Needs, Spec
from funnelrank.models.mlp import Rate, Widths
from funnelrank.nn.linear import MLP, Activation, Linear


class CrossLayer(nn.Module):
    """x_0, x [B, n, W] -> [B, n, W], n layers side by side. Full rank, low rank, or a mixture of low-rank experts."""

    def __init__(self, W: int, rank: int | None, experts: int, n: int):
        super().__init__()
        self.n, self.experts = n, experts
        if rank is None:
            self.full = Linear(W, W, stack=n)
        else:
            self.down = Linear(W, rank, bias=False, stack=n * experts)                    # V^T
            self.up = Linear(rank, W, bias=False, stack=n * experts)                      # U
            self.bias = nn.Parameter(torch.zeros(n, W))
        if experts > 1:
            self.middle = Linear(rank, rank, bias=False, stack=n * experts)               # C
            self.gate = Linear(W, experts, bias=False, stack=n)

    def forward(self, x0: Tensor, x: Tensor) -> Tensor:
        if hasattr(self, "full"):
            return x0 * self.full(x) + x
        if self.experts == 1:
            return x0 * (self.up(self.down(x)) + self.bias) + x
        each = self.down(x.repeat_interleave(self.experts, 1)).tanh()                     # [B, n * K, rank]
        each = self.up(self.middle(each).tanh()).unflatten(1, (self.n, self.experts))     # [B, n, K, W]
        gates = self.gate(x).softmax(2)                                                   # [B, n, K], sums to 1
        return x0 * (torch.einsum("bnk,bnkw->bnw", gates, each) + self.bias) + x


class CrossNetwork(nn.Module):
    """flat [B, W] -> [B, V, H]; V = T with per="task"; H = hidden[-1], or W + hidden[-1] in parallel.

    layers       how many cross layers: features meet in products of up to layers + 1
    rank         of W_l = U V^T; none for a full matrix
    experts      how many low-rank experts a cross layer mixes; more than 1 needs a rank
    structure    the MLP behind the cross layers, or beside them
    hidden       widths of the MLP; [] is the cross network alone
    """

    needs = Needs()

    def __init__(self, spec: Spec, *, layers: Annotated[int, Gt(0)] = 3, rank: Annotated[int, Gt(0)] | None = None,
                 experts: Annotated[int, Gt(0)] = 1, structure: Literal["stacked", "parallel"] = "stacked",
                 hidden: Widths = (128, 64), activation: Activation = "relu", dropout: Rate = 0.0,
                 norm: Literal["batch", "layer"] | None = None, per: Literal["all", "task"] = "all"):
        super().__init__()
        if experts > 1 and rank is None:
            raise ConfigError(f"model.represent.experts: {experts} experts of full rank; mixtures are of low rank, so "
                              "give `rank` too")
        self.views, self.structure = spec.tasks if per == "task" else 1, structure
        self.cross = nn.ModuleList(CrossLayer(spec.flat, rank, experts, self.views) for _ in range(layers))
        self.mlp = MLP(spec.flat, hidden, activation=activation, dropout=dropout, norm=norm, stack=self.views)
        self.hidden = self.mlp.out if structure == "stacked" or not hidden else spec.flat + self.mlp.out
        self.deep = bool(hidden)

    def forward(self, x: Inputs) -> Tensor:
        x0 = h = x.flat.unsqueeze(1).expand(-1, self.views, -1)                           # [B, V, W]
        for layer in self.cross:
            h = layer(x0, h)
        if not self.deep:
            return h
        return self.mlp(h) if self.structure == "stacked" else torch.cat([h, self.mlp(x0)], 2)
