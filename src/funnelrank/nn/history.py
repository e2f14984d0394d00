"""Entries of histories beside their row's own item, which is not copied for each. csrc/history.cpp where it fits.

Entries [n, D] of B rows, row b's from offsets[b] to offsets[b + 1] (int64, from 0); targets [B, D].
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from funnelrank.kernels import at, library, struct, threads

_WORK = struct(n="rows width threads", p="offset e v both de dv weight out g dweight")


def rows_of(offsets: Tensor, entries: int) -> Tensor:
    """The row of each of n entries, [n]."""
    return torch.repeat_interleave(torch.arange(offsets.shape[0] - 1, device=offsets.device), offsets.diff(),
                                   output_size=entries)


def beside_target(e: Tensor, v: Tensor, offsets: Tensor) -> Tensor:
    """[e_j, e_j * v_b] for entry j of row b: [n, 2 D]."""
    if _fits(offsets, e, v):
        return _Unit.apply(e, v, offsets)
    return torch.cat([e, e * v[rows_of(offsets, e.shape[0])]], 1)


def plus_row(h: Tensor, row: Tensor, offsets: Tensor) -> Tensor:
    """h_j + row_b for entry j of row b: h [n, H], row [B, H] -> [n, H]. May take h's memory."""
    return _Spread.apply(h, row, offsets) if _fits(offsets, h, row) else h + row[rows_of(offsets, h.shape[0])]


def pooled(weight: Tensor, e: Tensor, offsets: Tensor) -> Tensor:
    """sum_j weight_j e_j over each row's entries: weight [n] -> [B, D]; no entry is zeros."""
    if _fits(offsets, weight, e):
        return _Pool.apply(weight, e, offsets)
    zeros = e.new_zeros(offsets.shape[0] - 1, e.shape[1])
    return zeros.index_add(0, rows_of(offsets, e.shape[0]), weight.unsqueeze(1) * e)


def _fits(offsets: Tensor, *tensors: Tensor) -> bool:
    return (not torch.compiler.is_compiling() and library() is not None and offsets.dtype == torch.int64
            and all(t.device.type == "cpu" and t.dtype == torch.float32 for t in tensors))


def _work(offsets: Tensor, width: int, **tensors: Tensor) -> ctypes.Structure:
    return ctypes.byref(_WORK(len(offsets) - 1, width, threads(), at(offsets),
                              **{name: at(tensor) for name, tensor in tensors.items()}))


class _Unit(torch.autograd.Function):

    @staticmethod
    def forward(ctx, e, v, offsets):
        e, v, offsets = e.contiguous(), v.contiguous(), offsets.contiguous()
        both = e.new_empty(len(e), 2 * e.shape[1])
        library().unit_forward(_work(offsets, e.shape[1], e=e, v=v, both=both))
        ctx.save_for_backward(e, v, offsets)
        return both

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        e, v, offsets = ctx.saved_tensors
        g, de, dv = g.contiguous(), torch.empty_like(e), torch.empty_like(v)
        library().unit_backward(_work(offsets, e.shape[1], e=e, v=v, both=g, de=de, dv=dv))
        return de, dv, None


class _Spread(torch.autograd.Function):

    @staticmethod
    def forward(ctx, h, row, offsets):
        row, offsets = row.contiguous(), offsets.contiguous()
        if h.is_contiguous():
            ctx.mark_dirty(h)
        else:
            h = h.contiguous()
        library().spread_forward(_work(offsets, h.shape[1], v=row, both=h))
        ctx.save_for_backward(offsets)
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        offsets, = ctx.saved_tensors
        g = g.contiguous()
        dv = g.new_empty(len(offsets) - 1, g.shape[1])
        library().spread_backward(_work(offsets, g.shape[1], both=g, dv=dv))
        return g, dv, None


class _Pool(torch.autograd.Function):

    @staticmethod
    def forward(ctx, weight, e, offsets):
        weight, e, offsets = weight.contiguous(), e.contiguous(), offsets.contiguous()
        out = e.new_empty(len(offsets) - 1, e.shape[1])
        library().pool_forward(_work(offsets, e.shape[1], e=e, weight=weight, out=out))
        ctx.save_for_backward(weight, e, offsets)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        weight, e, offsets = ctx.saved_tensors
        g, dweight, de = g.contiguous(), torch.empty_like(weight), torch.empty_like(e)
        library().pool_backward(_work(offsets, e.shape[1], e=e, weight=weight, g=g, dweight=dweight, de=de))
        return dweight, de, None
