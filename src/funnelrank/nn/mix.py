"""Sums over the parts of each row: a mixture of experts, and what FM's pairs need. csrc/mix.cpp where it fits."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from funnelrank.kernels import at, library, struct, threads
from funnelrank.nn.watch import Switch

_MIX = struct(n="rows views parts width threads", p="score x gate out g dscore dx")
_GATE = struct(n="rows parts width threads", p="key x gate out g dkey dx", f="scale")
_PAIRS = struct(n="rows parts width threads", p="v sum square gsum gsquare dv")

kernels = Switch()                  # off, softmaxes are torch's own


def mixture(score: Tensor, x: Tensor) -> Tensor:
    """h_v = sum_n softmax_n(score_v) x_n: score [B, V, N], x [B, N, H] -> [B, V, H]."""
    return _Mixture.apply(score, x) if _fits(score, x) else torch.bmm(score.softmax(2), x)


def gated_sum(key: Tensor, x: Tensor, scale: float) -> Tensor:
    """h = sum_n softmax_n(scale <key_n, x_n>) x_n: key and x [B, N, H] -> [B, H]."""
    if _fits(key, x):
        return _Gated.apply(key, x, scale)
    gate = (scale * (key * x).sum(2)).softmax(1)
    return sum(w * part for w, part in zip(gate.split(1, 1), x.unbind(1)))         # N is small


def sum_and_squares(v: Tensor) -> tuple[Tensor, Tensor]:
    """sum_f v_f and sum_f v_f^2: v [B, F, D] -> [B, D] each."""
    return _Sums.apply(v) if _fits(v) else (v.sum(1), v.square().sum(1))


def _fits(*tensors: Tensor) -> bool:
    return (kernels.on and not torch.compiler.is_compiling() and library() is not None
            and all(t.device.type == "cpu" and t.dtype == torch.float32 and t.shape[1:].numel() for t in tensors))


class _Mixture(torch.autograd.Function):

    @staticmethod
    def forward(ctx, score, x):
        score, x = score.contiguous(), x.contiguous()
        (B, V, N), H = score.shape, x.shape[2]
        gate, out = torch.empty_like(score), x.new_empty(B, V, H)
        library().mix_forward(ctypes.byref(_MIX(B, V, N, H, threads(), *map(at, (score, x, gate, out)))))
        ctx.save_for_backward(gate, x)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        gate, x = ctx.saved_tensors
        g, dscore, dx = g.contiguous(), torch.empty_like(gate), torch.empty_like(x)
        library().mix_backward(ctypes.byref(_MIX(*gate.shape, x.shape[2], threads(), *map(at, (
            None, x, gate, None, g, dscore, dx)))))
        return dscore, dx


class _Gated(torch.autograd.Function):

    @staticmethod
    def forward(ctx, key, x, scale):
        key, x = key.contiguous(), x.contiguous()
        gate, out = x.new_empty(x.shape[:2]), x.new_empty(len(x), x.shape[2])
        library().gate_forward(ctypes.byref(_GATE(*x.shape, threads(), *map(at, (key, x, gate, out)), scale=scale)))
        ctx.save_for_backward(key, x, gate)
        ctx.scale = scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        key, x, gate = ctx.saved_tensors
        g, dkey, dx = g.contiguous(), torch.empty_like(key), torch.empty_like(x)
        library().gate_backward(ctypes.byref(_GATE(*x.shape, threads(), *map(at, (
            key, x, gate, None, g, dkey, dx)), scale=ctx.scale)))
        return dkey, dx, None


class _Sums(torch.autograd.Function):

    @staticmethod
    def forward(ctx, v):
        v = v.contiguous()
        total, square = v.new_empty(2, len(v), v.shape[2]).unbind()
        library().pairs_forward(ctypes.byref(_PAIRS(*v.shape, threads(), *map(at, (v, total, square)))))
        ctx.save_for_backward(v)
        return total, square

    @staticmethod
    @once_differentiable
    def backward(ctx, of_sum, of_square):
        v, = ctx.saved_tensors
        of_sum, of_square, dv = of_sum.contiguous(), of_square.contiguous(), torch.empty_like(v)
        library().pairs_backward(ctypes.byref(_PAIRS(*v.shape, threads(), *map(at, (
            v, None, None, of_sum, of_square, dv)))))
        return dv
