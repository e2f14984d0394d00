"""x W^T + b on a CPU, by whichever library is faster at it.

torch's own matrix products go to MKL; oneDNN's, which torch carries as well, take 20 to 30 % less time for x W^T and
g W of a batch's shapes (benchmarks/gemm.py), add the bias and apply the ReLU on the way. Elsewhere, under compile and
export, and for other dtypes it is F.linear.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from funnelrank.nn.small import Step, fits, small

STEP = 64        # rows: oneDNN prepares itself for every new shape, for some 10 ms, and a ragged length is always new
SMALL = 512      # numbers of a weight below which MKL's product is faster for g W
PLAIN, RELU = ("none", [], None), ("relu", [], None)         # what comes behind the product
ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None


class Halves(NamedTuple):
    """Rows [B, W] of which the first columns are shared by many, so that a layer does their part once.

    once [U, W1] of U users, own [B, W - W1], user [B] int64: row b is [once[user[b]], own[b]]. Without `user` once is
    of one user [1, W1], or of each row [B, W1].
    """

    once: Tensor
    own: Tensor
    user: Tensor | None

    @property
    def shape(self) -> tuple[int, int]:
        return self.own.shape[0], self.once.shape[1] + self.own.shape[1]

    def dim(self) -> int:
        return 2

    def flatten(self, start: int) -> Halves:
        return self

    def unsqueeze(self, dim: int) -> Tensor:
        return self.whole().unsqueeze(dim)

    def whole(self) -> Tensor:
        """[B, W]"""
        once = self.once.expand(len(self.own), -1) if self.user is None else self.once[self.user]
        return torch.cat([once, self.own], 1)

    def affine(self, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
        first, rest = weight.split([self.once.shape[1], self.own.shape[1]], 1)
        once = F.linear(self.once, first, bias)                                # [U, out]
        if not torch.compiler.is_compiling() and len(once) == 1:
            return affine(self.own, rest, once[0], relu)
        each = once if self.user is None else once.index_select(0, self.user)
        y = torch.addmm(each, self.own, rest.t())                              # the product adds to them
        return y.relu() if relu else y


def affine(x: Tensor | Halves, weight: Tensor, bias: Tensor | None, relu: bool = False) -> Tensor:
    """x [B, in], weight [out, in], bias [out] -> [B, out], followed by a ReLU if asked."""
    if isinstance(x, Halves):
        return x.affine(weight, bias, relu)
    if fits(x, step := (Step(weight, bias, None, relu),)):
        return small(x, step)
    if _fits(x, weight):
        if torch.is_grad_enabled():
            return _Affine.apply(x, weight, bias, relu)
        return ONEDNN(x.contiguous(), weight.contiguous(), bias, *(RELU if relu else PLAIN))
    y = F.linear(x, weight, bias)
    return y.relu() if relu else y


def fitting(rows: int) -> int:
    """The next number of rows that the faster product takes; `rows` itself where those are few, or there is none."""
    return rows if ONEDNN is None or rows < 4 * STEP else -(-rows // STEP) * STEP


def _fits(x: Tensor, weight: Tensor) -> bool:
    return (ONEDNN is not None and not torch.compiler.is_compiling() and x.dim() == 2 and x.device.type == "cpu"
            and x.dtype == weight.dtype == torch.float32 and len(x) > 0 and len(x) % STEP == 0
            and not torch.is_autocast_enabled("cpu"))


class _Affine(torch.autograd.Function):

    @staticmethod
    def forward(ctx, x, weight, bias, relu):
        x, weight = x.contiguous(), weight.contiguous()
        y = ONEDNN(x, weight, bias, *(RELU if relu else PLAIN))
        ctx.save_for_backward(x, weight, y if relu else None)
        ctx.biased = bias is not None
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        x, weight, y = ctx.saved_tensors
        g = g.contiguous() if y is None else torch.ops.aten.threshold_backward(g, y, 0).contiguous()
        dx = None
        if ctx.needs_input_grad[0]:
            dx = g.mm(weight) if weight.numel() < SMALL else ONEDNN(g, weight.t().contiguous(), None, *PLAIN)
        dweight = g.t().mm(x) if ctx.needs_input_grad[1] else None
        return dx, dweight, g.sum(0) if ctx.biased else None, None
