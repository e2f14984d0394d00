"""Small layers one behind another as one operation: product, batch norm, ReLU. csrc/small.cpp, where it fits."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from funnelrank import ranks
from funnelrank.kernels import at, library, struct, threads
from funnelrank.nn.watch import Switch

_LAYER = struct(n="stack width out norm relu",
                p="weight bias gain shift running_mean running_var z mean rstd g dweight dbias dgain dshift",
                d="momentum eps")
_SMALL = struct(n="rows layers threads", p="x y dx layer")
MOST_COLUMNS = 256         # of a layer on either side, as the kernel has it
MOST_WEIGHTS = 2048        # of a layer, up to which the libraries' products take longer
kernels = Switch()         # off, products are torch's own


class Step(NamedTuple):
    """n layers side by side: weight [n, out, in], or [out, in] of one; bias [n, out] or [out].

    Without a weight what comes in goes on to the norm. `norm` has n * out columns.
    """

    weight: Tensor | None
    bias: Tensor | None
    norm: nn.BatchNorm1d | None
    relu: bool

    @property
    def sizes(self) -> tuple[int, int, int]:
        """n, in, out."""
        if self.weight is None:
            width = self.norm.num_features
            return 1, width, width
        n, out, width = self.weight.shape if self.weight.dim() == 3 else (1, *self.weight.shape)
        return n, width, out


def fits(x: Tensor, steps: Sequence[Step]) -> bool:
    """Whether these layers, in training, are small enough for the kernel, and it is there."""
    if not (kernels.on and steps and torch.is_grad_enabled() and not torch.compiler.is_compiling()
            and not torch.is_autocast_enabled("cpu") and library() is not None
            and x.dim() == 2 and x.device.type == "cpu" and x.dtype == torch.float32 and len(x)):
        return False
    for step in steps:
        if step.norm is not None and (len(x) < 2 or ranks.size() > 1):
            return False
        n, width, out = step.sizes
        if max(n * width, n * out) > MOST_COLUMNS or not width * out or (step.weight is not None and (
                n * width * out > MOST_WEIGHTS or step.weight.dtype != torch.float32)):
            return False
    return True


def small(x: Tensor, steps: Sequence[Step]) -> Tensor:
    """x [B, n * in] of the first step -> [B, n * out] of the last. Norms are those of training: by the rows that come,
    and running statistics are moved as nn.BatchNorm1d moves them."""
    learns = []
    for step in steps:
        norm = step.norm
        if norm is not None:
            norm.num_batches_tracked.add_(1)
        learns += [step.weight, step.bias, *((None, None) if norm is None else (norm.weight, norm.bias))]
    return _Small.apply(x, tuple(steps), *learns)


class _Small(torch.autograd.Function):

    @staticmethod
    def forward(ctx, x, steps, *learns):
        x = x.contiguous()
        learns = [None if t is None else t.contiguous() for t in learns]
        plan = _Plan(steps, len(x))
        held, y = x.new_empty(plan.kept), x.new_empty(len(x), plan.width)
        layers = plan.layers(x, y, held, learns)
        for layer, norm in ((layer, step.norm) for layer, step in zip(layers, steps) if step.norm is not None):
            layer.running_mean, layer.running_var = at(norm.running_mean), at(norm.running_var)
            layer.momentum, layer.eps = norm.momentum, norm.eps
        plan.run(library().small_forward, layers, x, y)
        ctx.save_for_backward(x, y, held, *learns)
        ctx.plan = plan
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        x, y, held, *learns = ctx.saved_tensors
        plan, g = ctx.plan, g.contiguous()
        found = [None if t is None else torch.empty_like(t) for t in learns]
        dx = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        layers = plan.layers(x, y, held, learns)
        read = x.new_empty(plan.rows * plan.read)              # gradients of what the layers but the first read
        to = read.data_ptr()
        layers[-1].g = at(g)
        for i, layer in enumerate(layers):
            layer.dweight, layer.dbias, layer.dgain, layer.dshift = map(at, found[4 * i:4 * i + 4])
            if i:
                layers[i - 1].g = to
                to += 4 * plan.rows * layer.stack * layer.width
        plan.run(library().small_backward, layers, x, None, dx)
        return dx, None, *found


class _Plan:
    """Where in one tensor lies what backward needs: mean and rstd of each norm, z of each product but a last one that
    no norm follows, whose z is what is answered. Offsets in numbers."""

    def __init__(self, steps: Sequence[Step], rows: int):
        self.rows, self.kept, self.of = rows, 0, []
        for i, step in enumerate(steps):
            n, width, out = step.sizes
            stats = z = None
            if step.norm is not None:
                stats, self.kept = self.kept, self.kept + 2 * n * out
            if step.weight is not None and (stats is not None or i + 1 < len(steps)):
                z, self.kept = self.kept, self.kept + rows * n * out
            self.of.append((n, width, out, step.relu, stats, z))
        self.width = n * out
        self.read = sum(n * width for n, width, *_ in self.of[1:])

    def layers(self, x: Tensor, y: Tensor, held: Tensor, learns: Sequence[Tensor | None]) -> ctypes.Array:
        layers, base = (_LAYER * len(self.of))(), held.data_ptr()
        for i, (layer, (n, width, out, relu, stats, z)) in enumerate(zip(layers, self.of)):
            layer.stack, layer.width, layer.out, layer.norm, layer.relu = n, width, out, stats is not None, relu
            layer.weight, layer.bias, layer.gain, layer.shift = map(at, learns[4 * i:4 * i + 4])
            layer.z = base + 4 * z if z is not None else at(y if learns[4 * i] is not None else x)
            if stats is not None:
                layer.mean, layer.rstd = base + 4 * stats, base + 4 * (stats + n * out)
        return layers

    def run(self, kernel: Callable[..., None], layers: ctypes.Array, x: Tensor, y: Tensor | None = None,
            dx: Tensor | None = None) -> None:
        kernel(ctypes.byref(_SMALL(self.rows, len(layers), threads(), at(x), at(y), at(dx), ctypes.addressof(layers))))
