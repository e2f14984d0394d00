"""Linear layers, one or n at once. How n are computed is this file's business alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Activation = Literal["relu", "gelu", "silu", "tanh", "sigmoid", "leaky_relu", "linear"]
ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh,
                                           "sigmoid": nn.Sigmoid, "leaky_relu": nn.LeakyReLU, "linear": nn.Identity}


class Linear(nn.Module):
    """y = x W^T + b, or n of them side by side.

    stack=None   x [..., in]                      -> [..., out]
    stack=n      x [B, in] (one input for all n)  -> [B, n, out]
                 x [B, n, in] (each its own)      -> [B, n, out]

    weight is [n, out, in], so that weight[i] is layer i alone and a shared input costs one wide product without a
    copy. Each slice starts as a layer of its own would: uniform in +-1/sqrt(in).
    """

    def __init__(self, width: int, out: int, *, bias: bool = True, stack: int | None = None):
        super().__init__()
        self.width, self.out, self.stack = width, out, stack
        lead = () if stack is None else (stack,)
        self.weight = nn.Parameter(torch.empty(*lead, out, width))
        self.bias = nn.Parameter(torch.empty(*lead, out)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        # by the slice: a default initialiser would read [n, out, in] as a convolution and start far too small
        bound = 1 / math.sqrt(max(self.width, 1))
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        if self.stack is None:
            return F.linear(x, self.weight, self.bias)
        if x.dim() == 2:
            bias = None if self.bias is None else self.bias.reshape(-1)
            return F.linear(x, self.weight.reshape(-1, self.width), bias).view(-1, self.stack, self.out)
        biases = [None] * self.stack if self.bias is None else self.bias.unbind(0)
        return torch.stack([F.linear(u, w, b) for u, w, b in zip(x.unbind(1), self.weight.unbind(0), biases)], 1)

    def extra_repr(self) -> str:
        return f"{self.width} -> {self.out}" + ("" if self.stack is None else f", stack={self.stack}")


class MLP(nn.Module):
    """Linear, norm, activation, dropout, once for each entry of `hidden`; n of them with stack=n.

    x [B, in] -> [B, hidden[-1]];   stack=n: x [B, in] or [B, n, in] -> [B, n, hidden[-1]].
    No hidden layers is the identity (with a stack, one copy for each).
    """

    def __init__(self, width: int, hidden: Sequence[int], *, activation: Activation = "relu", dropout: float = 0.0,
                 norm: Literal["batch", "layer"] | None = None, stack: int | None = None):
        super().__init__()
        self.stack = stack
        self.out = hidden[-1] if hidden else width
        self.layers = nn.ModuleList()
        for a, b in zip([width, *hidden], hidden):
            self.layers.append(nn.ModuleDict({
                "linear": Linear(a, b, stack=stack),
                **({"norm": Norm(norm, b, stack)} if norm else {}),
                "activation": ACTIVATIONS[activation](),
                **({"dropout": nn.Dropout(dropout)} if dropout else {}),
            }))

    def forward(self, x: Tensor) -> Tensor:
        if not self.layers and self.stack is not None and x.dim() == 2:
            return x.unsqueeze(1).expand(-1, self.stack, -1)
        for layer in self.layers:
            for step in layer.values():
                x = step(x)
        return x


class Norm(nn.Module):
    """Batch or layer normalisation of [B, H], or of each of n stacked [B, n, H] by itself."""

    def __init__(self, kind: Literal["batch", "layer"], width: int, stack: int | None = None):
        super().__init__()
        self.kind = kind
        if kind == "batch":
            self.norm = nn.BatchNorm1d(width * (stack or 1))
        else:
            self.norm = nn.LayerNorm(width, elementwise_affine=stack is None)
            if stack is not None:
                self.gain = nn.Parameter(torch.ones(stack, width))
                self.shift = nn.Parameter(torch.zeros(stack, width))

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "batch":
            n = self.norm
            if self.training and len(x) < 2:         # one row has no variance: an epoch's last batch can be so small
                flat = F.batch_norm(x.flatten(1), n.running_mean, n.running_var, n.weight, n.bias, eps=n.eps)
                return flat.view_as(x)
            return n(x.flatten(1)).view_as(x)
        x = self.norm(x)
        return x * self.gain + self.shift if hasattr(self, "gain") else x
