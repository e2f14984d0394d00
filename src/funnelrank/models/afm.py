"""AFM: Attentional Factorization Machines (Xiao et al., IJCAI 2017, arXiv 1708.04617).

    a'_ij = h . relu(W (x_i v_i * x_j v_j) + b),    a = softmax over all pairs i < j of a'
    y = w_0 + sum_i w_i x_i + p . sum_{i<j} a_ij (x_i v_i * x_j v_j)

p is the linear head behind this part, the first order the recipe's `side: [lr]`.

126 features are 7,875 pairs: products of a batch of 1,024 rows would be half a gigabyte, and several times that with
what their gradients need. Rows are taken a few at a time, so that the pairs of those stay in the cache, and backward
makes them once more instead of keeping them.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from annotated_types import Gt
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from funnelrank.errors import ConfigError
from funnelrank.inputs import Inputs, Needs, Spec
from funnelrank.models.fields import FieldVectors, pairs
from funnelrank.models.mlp import Rate
from funnelrank.nn import mix
from funnelrank.nn.affine import affine
from funnelrank.nn.linear import Linear

MANY = 1 << 22             # numbers of a batch's products, 16 MB, from which on rows are taken a few at a time,
AT_ONCE = 1 << 19          # and of the products of those


class AttentionalFM(nn.Module):
    """Pairs pooled by attention: fields [B, F, D], numbers [B, N] -> [B, V, D]; V = T, one each, with per="task".

    attention    width of the attention's hidden layer
    dropout      share of the pairs' products set to 0 while training
    """

    needs = Needs(fields=True, numbers=True)
    reads = {"fields": None}
    weighs = ("fields", "numbers")        # against each other: a new one takes a share from the first step

    def __init__(self, spec: Spec, *, attention: Annotated[int, Gt(0)] = 16, dropout: Rate = 0.0,
                 per: Literal["all", "task"] = "all"):
        super().__init__()
        self.views = spec.tasks if per == "task" else 1
        self.vectors = FieldVectors(spec)
        self.hidden = self.vectors.width
        if self.vectors.count < 2:
            raise ConfigError("model.represent: afm weighs pairs of features, and there is only one; declare more "
                              "features, or choose another part")
        i, j = pairs(self.vectors.count)
        self.register_buffer("i", i, persistent=False)
        self.register_buffer("j", j, persistent=False)
        self.dropout = nn.Dropout(dropout)
        self.attention = Linear(self.hidden, attention, stack=self.views)
        self.score = Linear(attention, 1, bias=False, stack=self.views)

    def forward(self, x: Inputs) -> Tensor:
        v = self.vectors(x)                                                               # [B, M, D]
        each = len(self.i) * self.hidden
        if torch.compiler.is_compiling() or len(v) * each < MANY or not mix.kernels.on:
            return self.pooled(v)                                 # an export has any number of rows; or somebody looks
        few = max(1, AT_ONCE // each)
        if not torch.is_grad_enabled():
            return torch.cat([self.pooled(part) for part in v.split(few)])
        again = {"use_reentrant": False, "preserve_rng_state": self.training and self.dropout.p > 0}
        return torch.cat([checkpoint(self.pooled, part, **again) for part in v.split(few)])

    def pooled(self, v: Tensor) -> Tensor:
        """v [B, M, D] -> [B, V, D]."""
        products = self.dropout(v[:, self.i] * v[:, self.j])                              # [B, P, D]
        hidden = affine(products.flatten(0, 1), *self.attention.wide(), relu=True)        # [B * P, V * A]
        score = self.score(hidden.view(-1, self.views, self.attention.out))               # [B * P, V, 1]
        a = score.view(-1, len(self.i), self.views).softmax(1)                            # [B, P, V]
        return torch.einsum("bpv,bpd->bvd", a, products)
