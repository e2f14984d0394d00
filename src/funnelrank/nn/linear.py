"""Linear layers, one or n at once. How n are computed is this file's business alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from funnelrank.nn.activation import Dice
from funnelrank.nn.affine import affine
from funnelrank.nn.norm import Norm
from funnelrank.nn.small import Step, fits, kernels, small
from funnelrank.nn.watch import Switch

Elementwise = Literal["relu", "gelu", "silu", "tanh", "sigmoid", "leaky_relu", "linear"]
Activation = Literal[Elementwise, "dice"]          # which has numbers of its own and looks at the batch
ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh,
                                           "sigmoid": nn.Sigmoid, "leaky_relu": nn.LeakyReLU, "linear": nn.Identity}

SMALL = 2048       # numbers of n weights together, up to which they are computed as one
WIDE = 512         # columns of n layers together, up to which a narrow one joins their product
LONE = 64          # columns of one of n layers, from which on each is a product of its own in a network that answers
_blocks = Switch()


@contextmanager
def without_blocks() -> Iterator[None]:
    """Within it no zeros are multiplied for speed: what is computed is what n layers have to compute, by torch."""
    with _blocks.off(), kernels.off():
        yield


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
            return affine(x, self.weight, self.bias)
        if x.dim() == 2:
            return affine(x, *self.wide()).view(-1, self.stack, self.out)
        if self.is_small:
            return affine(x.flatten(1), *self.block()).view(-1, self.stack, self.out)
        return torch.stack([affine(u, *self.one(i)) for i, u in enumerate(x.unbind(1))], 1)

    @property
    def is_small(self) -> bool:
        """Whether one product with a matrix that is mostly zeros takes less time than n small ones."""
        return _blocks.on and self.stack * self.width * self.out <= SMALL

    def wide(self) -> tuple[Tensor, Tensor | None]:
        """All n as one layer [n * out, in], for an input that they share; without a stack, the layer itself."""
        return self.weight.flatten(0, -2), None if self.bias is None else self.bias.flatten()

    def block(self) -> tuple[Tensor, Tensor | None]:
        """All n as one layer [n * out, n * in] of zeros but for the blocks on its diagonal, for inputs side by side."""
        return torch.block_diag(*self.weight.unbind(0)), None if self.bias is None else self.bias.flatten()

    def one(self, i: int) -> tuple[Tensor, Tensor | None]:
        """Layer i alone."""
        return self.weight[i], None if self.bias is None else self.bias[i]

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
        self.stack, self.apart = stack, False
        self.out = hidden[-1] if hidden else width
        self.layers = nn.ModuleList()
        for a, b in zip([width, *hidden], hidden):
            self.layers.append(nn.ModuleDict({
                "linear": Linear(a, b, stack=stack),
                **({"norm": Norm(norm, b, stack)} if norm else {}),
                "activation": Dice(b, stack=stack) if activation == "dice" else ACTIVATIONS[activation](),
                **({"dropout": nn.Dropout(dropout)} if dropout else {}),
            }))

    def collapse(self) -> None:
        """Batch norms become part of the layers before them, for a network that only answers. Wide layers that share
        their input are then done one by one: what each gives is the next one's input as it is, without a copy.
        """
        self.apart = self.stack is not None and len(self.layers) > 0 and self.layers[0]["linear"].out >= LONE
        for layer in self.layers:
            if "norm" in layer and layer["norm"].kind == "batch":
                linear, norm = layer["linear"], layer.pop("norm")
                weight, bias = norm.fold(*linear.wide())
                linear.weight = nn.Parameter(weight.detach().view_as(linear.weight), requires_grad=False)
                linear.bias = nn.Parameter(bias.detach().view(linear.weight.shape[:-1]), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and isinstance(x, Tensor) and (y := self._small(x)) is not None:
            return y
        if self.stack is None:
            for layer in self.layers:
                x = _layer(layer, x, layer["linear"].wide())
            return x
        if x.dim() == 2 and not self.layers:
            return x.unsqueeze(1).expand(-1, self.stack, -1)
        if x.dim() == 2 and self.apart:
            first = self.layers[0]
            return self._behind([_layer(first, x, first["linear"].one(i), i) for i in range(self.stack)], 1)
        if x.dim() == 2:                             # they share their input
            return self._behind(_layer(self.layers[0], x, self.layers[0]["linear"].wide()), 1)
        return self._behind(x.flatten(1), 0)

    def _small(self, x: Tensor) -> Tensor | None:
        """All layers, or all behind the first one's product, as one operation; None where they are not so small."""
        steps = [] if x.dim() > 3 else self._steps(x.dim() == 2)
        if not steps:
            return None
        h = x.flatten(1)
        if not fits(h, steps):
            first, *rest = steps
            steps = [*([first._replace(weight=None, bias=None)] if first.norm is not None else []), *rest]
            if not rest or first.weight.dim() == 3 or not fits(h, steps):
                return None
            h = affine(h, first.weight, first.bias, first.relu and first.norm is None)
        h = small(h, steps)
        return h if self.stack is None else h.unflatten(1, (self.stack, -1))

    def _steps(self, shared: bool) -> list[Step]:
        """The layers as `small` takes them, none where one is of another kind; `shared`: all n read the same."""
        steps = []
        for layer in self.layers:
            of = dict(layer.items())
            linear, norm, relu = of["linear"], of.get("norm"), isinstance(of["activation"], nn.ReLU)
            if "dropout" in of or not (relu or isinstance(of["activation"], nn.Identity)) or (
                    norm is not None and norm.kind != "batch"):
                return []
            weight, bias = linear.wide() if shared and not steps else (linear.weight, linear.bias)
            steps.append(Step(weight, bias, None if norm is None else norm.norm, relu))
        return steps

    def beside(self, other: Linear, x: Tensor) -> tuple[Tensor, Tensor]:
        """self(x), other(x): what this stack and that of other linear layers make of one input [B, in].

        In training their first products are one, if that is not too wide: gates are so narrow that alone they take
        as long as experts, and the gradient of the input is not added up from two.
        """
        first = self.layers[0] if self.layers else None
        if not self.training or first is None or first["linear"].weight.shape[:2].numel() > WIDE:
            return self(x), other(x)
        weights, biases = zip(first["linear"].wide(), other.wide())
        biases = [w.new_zeros(len(w)) if b is None else b for w, b in zip(weights, biases)]
        mine, others = affine(x, torch.cat(weights), torch.cat(biases)).split([len(w) for w in weights], 1)
        relu = isinstance(first["activation"], nn.ReLU)
        if "norm" in first:
            mine = first["norm"](mine, None, relu)
        elif relu:
            mine = mine.relu()
        return self._behind(_activated(first, mine, None), 1), others.unflatten(1, (-1, other.out))

    def _behind(self, h: Tensor | list[Tensor], start: int) -> Tensor:
        """A stack's layers from number `start` on; n side by side [B, n * H], or apart: n of [B, H]."""
        for layer in self.layers[start:]:
            linear = layer["linear"]
            if linear.is_small:
                h = _layer(layer, h if isinstance(h, Tensor) else torch.cat(h, 1), linear.block())
            else:
                h = h if isinstance(h, list) else [part.contiguous() for part in h.chunk(self.stack, 1)]
                h = [_layer(layer, u, linear.one(i), i) for i, u in enumerate(h)]
        return h.unflatten(1, (self.stack, -1)) if isinstance(h, Tensor) else torch.stack(h, 1)


def _layer(layer: nn.ModuleDict, x: Tensor, linear: tuple[Tensor, Tensor | None], i: int | None = None) -> Tensor:
    """One layer of an MLP, x [B, in] -> [B, out]; of a stack all n side by side [B, n * out], or layer i alone.

    A ReLU is done where the product or the norm before it is; batch norm at evaluation is folded into the product.
    """
    relu = isinstance(layer["activation"], nn.ReLU)
    if "norm" not in layer:
        x = affine(x, *linear, relu)
    elif layer["norm"].folds():
        x = affine(x, *layer["norm"].fold(*linear, i), relu)
    else:
        x = layer["norm"](affine(x, *linear), i, relu)
    return _activated(layer, x, i)


def _activated(layer: nn.ModuleDict, x: Tensor, i: int | None) -> Tensor:
    """What stands behind product and norm; a ReLU is done by then."""
    if not isinstance(layer["activation"], nn.ReLU):
        x = layer["activation"](x, i) if isinstance(layer["activation"], Dice) else layer["activation"](x)
    return layer["dropout"](x) if "dropout" in layer else x
