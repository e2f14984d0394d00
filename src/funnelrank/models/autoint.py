"""AutoInt: Automatic Feature Interaction Learning via Self-Attentive Neural Networks (Song et al., CIKM 2019,
arXiv 1810.11921).

Features e_1 .. e_M look at each other. For each head h of a layer

    a_mk = softmax over k of <W_Q e_m, W_K e_k>            no division by a square root
    e~_m = sum_k a_mk W_V e_k
    e_m <- relu([e~_m of all heads] + W_res e_m)

and y = sigmoid(w . [e_1 .. e_M] + b) on the last layer's. A number is the feature x_i v_i, a list its pooled vector.
AutoInt+ has an MLP on the raw features beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Gt
from torch import Tensor, nn

from funnelrank.inputs import Inputs, Needs, Spec
from funnelrank.models.fields import FieldVectors
from funnelrank.models.mlp import Rate, Widths
from funnelrank.nn import mix
from funnelrank.nn.linear import MLP, Activation, Linear

Count = Annotated[int, Gt(0)]


class InteractingLayer(nn.Module):
    """e [B, M, n, D], n networks side by side -> [B, M, n, heads * width]."""

    def __init__(self, D: int, heads: int, width: int, residual: bool, n: int):
        super().__init__()
        self.heads, self.width, self.n = heads, width, n
        made = lambda: Linear(D, heads * width, bias=False, stack=n)
        self.query, self.key, self.value = made(), made(), made()
        self.residual = made() if residual else None

    def forward(self, e: Tensor) -> Tensor:
        M = e.shape[1]
        flat = e.flatten(0, 1)                                                            # [B * M, n, D]
        q, k, v = (layer(flat).view(-1, M, self.n * self.heads, self.width).transpose(1, 2)
                   for layer in (self.query, self.key, self.value))                       # [B, n * heads, M, width]
        if mix.kernels.on:
            mixed = F.scaled_dot_product_attention(q, k, v, scale=1.0)                    # a is never in memory whole
        else:                                                                             # somebody looks at it
            mixed = (q @ k.transpose(2, 3)).softmax(3) @ v
        mixed = mixed.transpose(1, 2).reshape(-1, M, self.n, self.heads * self.width)
        if self.residual is not None:
            mixed = mixed + self.residual(flat).view_as(mixed)
        return mixed.relu()


class InteractingLayers(nn.Module):
    """The layers one after another: fields [B, F, D], numbers [B, N] -> [B, n, M * heads * width], M = F + N."""

    def __init__(self, spec: Spec, layers: int, heads: int, width: int, residual: bool, n: int):
        super().__init__()
        self.n = n
        self.vectors = FieldVectors(spec)
        self.layers = nn.ModuleList(
            InteractingLayer(heads * width if i else self.vectors.width, heads, width, residual, n)
            for i in range(layers))
        self.out = self.vectors.count * heads * width

    def forward(self, x: Inputs) -> Tensor:
        e = self.vectors(x).unsqueeze(2).expand(-1, -1, self.n, -1)                       # [B, M, n, D]
        for layer in self.layers:
            e = layer(e)
        return e.transpose(1, 2).flatten(2)


class AutoIntBody(nn.Module):
    """fields [B, F, D], numbers [B, N] -> [B, V, H]; V = T, layers of their own, with per="task".

    layers      how many interacting layers
    heads       attentions of a layer
    width       of one head
    residual    W_res; false leaves it out
    hidden      widths of an MLP behind the features side by side; [] is the paper, where the head follows at once
    deep        widths of an MLP on flat, whose output stands beside it (AutoInt+)
    """

    needs = Needs(fields=True, numbers=True)
    reads = {"fields": None, "flat": "deep"}
    weighs = ("fields", "numbers")        # against each other: a new one takes a share from the first step

    def __init__(self, spec: Spec, *, layers: Count = 3, heads: Count = 2, width: Count = 16, residual: bool = True,
                 hidden: Widths = (), deep: Widths = (), activation: Activation = "relu", dropout: Rate = 0.0,
                 per: Literal["all", "task"] = "all"):
        super().__init__()
        self.views = spec.tasks if per == "task" else 1
        self.interacting = InteractingLayers(spec, layers, heads, width, residual, self.views)
        mlp = lambda size, widths: MLP(size, widths, activation=activation, dropout=dropout, stack=self.views)
        self.mlp = mlp(self.interacting.out, hidden)
        self.deep = mlp(spec.flat, deep) if deep else None
        self.hidden = self.mlp.out + (self.deep.out if deep else 0)

    def forward(self, x: Inputs) -> Tensor:
        h = self.mlp(self.interacting(x))                                                 # [B, V, H]
        return h if self.deep is None else torch.cat([h, self.deep(x.flat)], 2)


class AutoIntBottom(nn.Module):
    """Interacting layers under a whole model: [B, W] -> [B, W + M * heads * width] of flat, read by all that follows.

    layers      how many interacting layers
    heads       attentions of a layer
    width       of one head
    residual    W_res; false leaves it out
    keep        flat stays beside what the layers make of it; false: they alone
    """

    needs = Needs(fields=True, numbers=True)
    reads = {"fields": None}
    changes = ("flat",)
    keeps = "keep"
    weighs = ("fields", "numbers")        # against each other: a new one takes a share from the first step

    def __init__(self, spec: Spec, *, layers: Count = 3, heads: Count = 2, width: Count = 16, residual: bool = True,
                 keep: bool = True):
        super().__init__()
        self.keep = keep
        self.interacting = InteractingLayers(spec, layers, heads, width, residual, 1)
        self.spec = replace(spec, flat=self.interacting.out + keep * spec.flat)
        if not keep:                                     # no feature is a column of flat any more
            self.spec = replace(self.spec, starts=(), widths=(), number_columns=(), number_starts=(), columns={})

    def forward(self, x: Inputs) -> Inputs:
        h = self.interacting(x).squeeze(1)
        parts: Sequence[Tensor] = [x.flat, h] if self.keep else [h]
        return replace(x, flat=torch.cat(parts, 1))
