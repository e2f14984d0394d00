"""Normalisation, with the ReLU behind it where there is one: one pass over memory less, and less to keep."""

from __future__ import annotations

import ctypes
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from funnelrank import ranks
from funnelrank.kernels import at, library, struct, threads

NORM = struct(n="rows width relu threads", p="x weight bias mean rstd variance y g dx dweight dbias", d="eps")


class Norm(nn.Module):
    """Batch or layer normalisation of [B, H], or of each of n layers of a stack by itself; then ReLU, if asked."""

    def __init__(self, kind: Literal["batch", "layer"], width: int, stack: int | None = None):
        super().__init__()
        self.kind, self.width, self.stack = kind, width, stack
        if kind == "batch":
            self.norm = nn.BatchNorm1d(width * (stack or 1))
        else:
            self.norm = nn.LayerNorm(width, elementwise_affine=stack is None)
            if stack is not None:
                self.gain = nn.Parameter(torch.ones(stack, width))
                self.shift = nn.Parameter(torch.zeros(stack, width))

    def forward(self, x: Tensor, i: int | None = None, relu: bool = False) -> Tensor:
        """x [B, H] -> [B, H]; of a stack all n side by side [B, n * H], or layer i alone [B, H]."""
        if self.kind == "batch":
            return self._batch(x, i, relu)
        if self.stack is None:
            x = self.norm(x)
        elif i is None:
            x = (self.norm(x.unflatten(1, (self.stack, self.width))) * self.gain + self.shift).flatten(1)
        else:
            x = self.norm(x) * self.gain[i] + self.shift[i]
        return x.relu() if relu else x

    def folds(self) -> bool:
        """Whether it is a scale and a shift of each column now, which the layer before can take over."""
        return self.kind == "batch" and not self.training

    def fold(self, weight: Tensor, bias: Tensor | None, i: int | None = None) -> tuple[Tensor, Tensor]:
        """The linear layer [out, in] that does what that one did and, after it, this normalisation at evaluation."""
        n, own = self.norm, self._own(i)
        scale = n.weight[own] * torch.rsqrt(n.running_var[own] + n.eps)
        shift = n.bias[own] - n.running_mean[own] * scale
        return weight * scale.unsqueeze(1), shift if bias is None else shift + bias * scale

    def _own(self, i: int | None) -> slice:
        return slice(None) if i is None else slice(i * self.width, (i + 1) * self.width)

    def _batch(self, x: Tensor, i: int | None, relu: bool) -> Tensor:
        n, own = self.norm, self._own(i)
        mean, variance, weight, bias = n.running_mean[own], n.running_var[own], n.weight[own], n.bias[own]
        if self.training and ranks.size() > 1:
            x = among_ranks(x, mean, variance, n, bool(i))
            x = x * weight + bias
            return x.relu() if relu else x
        learn = self.training and len(x) > 1         # one row has no variance: an epoch's last batch can be so small
        if learn and not i:
            n.num_batches_tracked.add_(1)
        if learn and compiled(x):
            return _BatchNorm.apply(x, weight, bias, mean, variance, n.momentum, n.eps, relu)
        x = F.batch_norm(x, mean, variance, weight, bias, learn, n.momentum, n.eps)
        return x.relu() if relu else x


def among_ranks(x: Tensor, mean: Tensor, variance: Tensor, n: nn.BatchNorm1d, counted: bool = False) -> Tensor:
    """x [B, H] without mean and variance of all ranks' rows; `mean` and `variance`, running ones of `n`, are moved.

    As F.batch_norm does it for one process; `counted`, where this batch was counted for another layer of a stack.
    """
    total = ranks.summed(torch.cat([x.sum(0), x.new_full((1,), len(x))]))
    rows = total[-1].detach()
    if rows < 2:
        return (x - mean) * (variance + n.eps).rsqrt()
    centred = x - total[:-1] / rows
    square = ranks.summed(centred.square().sum(0))
    with torch.no_grad():
        if not counted:
            n.num_batches_tracked.add_(1)
        mean.lerp_(total[:-1] / rows, n.momentum)
        variance.lerp_(square / (rows - 1), n.momentum)
    return centred * (square / rows + n.eps).rsqrt()


def compiled(x: Tensor) -> bool:
    """Whether csrc/norm.cpp does it."""
    return (x.device.type == "cpu" and x.dtype == torch.float32 and not torch.compiler.is_compiling()
            and library() is not None)


class _BatchNorm(torch.autograd.Function):
    """x [B, H] normalised by its own rows; the running statistics are moved as nn.BatchNorm1d moves them."""

    @staticmethod
    def forward(ctx, x, weight, bias, running_mean, running_var, momentum, eps, relu):
        x, weight, bias = x.contiguous(), weight.contiguous(), bias.contiguous()
        B, H = x.shape
        mean, rstd, variance, y = *torch.empty(3, H).unbind(), torch.empty_like(x)
        library().norm_forward(ctypes.byref(NORM(B, H, relu, threads(), *map(at, (
            x, weight, bias, mean, rstd, variance, y)), eps=eps)))
        running_mean.lerp_(mean, momentum)
        running_var.lerp_(variance * (B / (B - 1)), momentum)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        ctx.relu = relu
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        x, weight, bias, mean, rstd = ctx.saved_tensors
        g, dx, (dweight, dbias) = g.contiguous(), torch.empty_like(x), torch.empty(2, x.shape[1]).unbind()
        library().norm_backward(ctypes.byref(NORM(*x.shape, ctx.relu, threads(), *map(at, (
            x, weight, bias, mean, rstd, None, None, g, dx, dweight, dbias)))))
        return dx, dweight, dbias, None, None, None, None, None
