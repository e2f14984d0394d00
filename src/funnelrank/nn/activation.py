"""Activations that carry state."""

import ctypes

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from funnelrank import ranks
from funnelrank.kernels import at, library, threads
from funnelrank.nn.norm import NORM, among_ranks, compiled


class Dice(nn.Module):
    """f(s) = p s + (1 - p) alpha s,  p = sigmoid((s - E[s]) / sqrt(Var[s] + eps))   (DIN, arXiv 1706.06978).

    Mean and variance are per channel, of the batch while training and running averages otherwise; alpha is per channel
    and starts at 0. s [n, H] -> [n, H]; of a stack all side by side [n, stack * H], or layer i alone [n, H].
    """

    def __init__(self, width: int, eps: float = 1e-8, stack: int | None = None):
        super().__init__()
        self.width = width
        self.norm = nn.BatchNorm1d(width * (stack or 1), eps=eps, affine=False)
        self.alpha = nn.Parameter(torch.zeros(width * (stack or 1)))

    def forward(self, s: Tensor, i: int | None = None) -> Tensor:
        own = slice(None) if i is None else slice(i * self.width, (i + 1) * self.width)
        n, mean, variance = self.norm, self.norm.running_mean[own], self.norm.running_var[own]
        if self.training and ranks.size() > 1:
            p = torch.sigmoid(among_ranks(s, mean, variance, n, bool(i)))
        elif not self.training or len(s) < 2:       # one row has no variance to take
            p = torch.sigmoid((s - mean) / (variance + n.eps).sqrt())
        else:
            if not i:
                n.num_batches_tracked.add_(1)
            if compiled(s):
                return _Dice.apply(s, self.alpha[own], mean, variance, n.momentum, n.eps)
            p = torch.sigmoid(F.batch_norm(s, mean, variance, None, None, True, n.momentum, n.eps))
        return p * s + (1 - p) * self.alpha[own] * s


class _Dice(torch.autograd.Function):
    """s [n, H] by its own rows' statistics; the running ones are moved as nn.BatchNorm1d moves them."""

    @staticmethod
    def forward(ctx, s, alpha, running_mean, running_var, momentum, eps):
        s, alpha = s.contiguous(), alpha.contiguous()
        n, H = s.shape
        mean, rstd, variance, y = *torch.empty(3, H).unbind(), torch.empty_like(s)
        library().dice_forward(ctypes.byref(NORM(n, H, False, threads(), *map(at, (
            s, alpha, None, mean, rstd, variance, y)), eps=eps)))
        running_mean.lerp_(mean, momentum)
        running_var.lerp_(variance * (n / (n - 1)), momentum)
        ctx.save_for_backward(s, alpha, mean, rstd)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        s, alpha, mean, rstd = ctx.saved_tensors
        g, ds, dalpha = g.contiguous(), torch.empty_like(s), torch.empty_like(alpha)
        library().dice_backward(ctypes.byref(NORM(*s.shape, False, threads(), *map(at, (
            s, alpha, None, mean, rstd, None, None, g, ds, dalpha)))))
        return ds, dalpha, None, None, None, None
