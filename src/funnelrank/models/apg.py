"""APG: Adaptive Parameter Generation Network for Click-Through Rate Prediction (Yan et al., NeurIPS 2022, arXiv
2203.16218). An MLP whose weights are generated for each row i from a condition z_i.

    W_i = U S_i V,   S_i = reshape(G(z_i)) [K, K]          low rank: only the small core is generated
    y_i = act(U (S_i (V x_i)) + b)                         decomposed: W_i is never built
    U = U_l U_r,  V = V_l V_r                              over-parameterised: through a wide middle P > K

Per row and layer that is N K + K^2 + K M products beside the generator's, for N M of a plain layer; U, V and b are
shared by all rows. Conditions: a group of features (group-wise), several (mix-wise), or x_i itself (self-wise).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from annotated_types import Gt
from torch import Tensor, nn

from funnelrank.errors import ConfigError
from funnelrank.inputs import Inputs, Needs, Spec
from funnelrank.models.mlp import Rate, Widths
from funnelrank.nn.affine import affine
from funnelrank.nn.linear import ACTIVATIONS, MLP, Elementwise, Linear


class GeneratedMLP(nn.Module):
    """x.flat [B, W] -> [B, V, H]; V = 1 with per="all", V = T with per="task"; H = hidden[-1].

    groups       roles or groups of the condition; [] is each layer's own input (self-wise)
    mix          several groups side by side, or their sum by learned weights, which needs one width
    hidden       widths of the layers
    rank         K; a layer narrower than that on either side takes its width
    middle       P, the wide middle of U and V; none: U and V are single matrices
    generator    widths of the generator's hidden layers
    """

    needs = Needs()

    def __init__(self, spec: Spec, *, groups: Sequence[str] = ("scenario",), mix: Literal["concat", "sum"] = "concat",
                 hidden: Widths = (128, 64), rank: Annotated[int, Gt(0)] = 8,
                 middle: Annotated[int, Gt(0)] | None = 32, generator: Widths = (),
                 activation: Elementwise = "relu", dropout: Rate = 0.0, per: Literal["all", "task"] = "all"):
        super().__init__()
        if not hidden:
            raise ConfigError("model.represent.hidden: found []; there is no layer whose weights could be generated")
        widths = [spec.groups[g] for g in groups]
        if mix == "sum" and len(set(widths)) > 1:
            raise ConfigError(f"model.represent.mix: a sum needs one width, and groups {', '.join(groups)} have "
                              f"{', '.join(map(str, widths))}; say concat")
        if middle is not None and middle < rank:
            raise ConfigError(f"model.represent.middle: {middle} is narrower than rank {rank}; the middle is the wide "
                              "part, or none")
        self.groups, self.mix = list(groups), mix
        self.views = spec.tasks if per == "task" else 1
        self.hidden = hidden[-1]
        self.shares = nn.Parameter(torch.zeros(len(widths))) if mix == "sum" and len(widths) > 1 else None
        condition = (widths[0] if mix == "sum" else sum(widths)) if widths else None
        self.layers = nn.ModuleList(
            GeneratedLinear(a, b, a if condition is None else condition, rank=rank, middle=middle, generator=generator,
                            stack=spec.tasks if per == "task" else None)
            for a, b in zip([spec.flat, *hidden], hidden))
        self.activation, self.dropout = ACTIVATIONS[activation](), nn.Dropout(dropout)

    def condition(self, x: Inputs) -> Tensor | None:
        """z [B, C], or None where each layer's input is its condition."""
        if not self.groups:
            return None
        found = [x.groups[g] for g in self.groups]
        if self.shares is None:
            return torch.cat(found, 1)
        return torch.einsum("gbc,g->bc", torch.stack(found), self.shares.softmax(0))

    def forward(self, x: Inputs) -> Tensor:
        h, z = x.flat, self.condition(x)
        for layer in self.layers:
            h = self.dropout(self.activation(layer(h, h if z is None else z)))
        return h if h.dim() == 3 else h.unsqueeze(1)                            # [B, V, H]

    def collapse(self) -> None:
        """U_l U_r and V_l V_r become U and V, for a graph that only answers: fewer numbers, the same function."""
        for layer in self.layers:
            layer.inner.collapse()
            layer.outer.collapse()


class GeneratedLinear(nn.Module):
    """y = U (S(z) (V x)) + b: x [B, M] or [B, n, M], z [B, C] or [B, n, C] -> [B, N], or [B, n, N] with stack=n.

    The generator's last bias starts at the identity, so that S starts near it: a plain low-rank layer.
    """

    def __init__(self, width: int, out: int, condition: int, *, rank: int, middle: int | None, generator: Widths,
                 stack: int | None):
        super().__init__()
        self.rank = min(rank, width, out)
        self.inner = Factor(width, self.rank, middle, stack)                    # V
        self.outer = Factor(self.rank, out, middle, stack)                      # U
        self.generator = MLP(condition, generator, stack=stack)
        self.core = Linear(self.generator.out, self.rank ** 2, stack=stack)
        self.bias = nn.Parameter(torch.zeros(out) if stack is None else torch.zeros(stack, out))
        with torch.no_grad():
            self.core.bias.copy_(torch.eye(self.rank).flatten().expand_as(self.core.bias))

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        S = self.core(self.generator(z)).unflatten(-1, (self.rank, self.rank))  # [B, (n,) K, K]
        h = (S @ self.inner(x).unsqueeze(-1)).squeeze(-1)                       # [B, (n,) K]
        return self.outer(h) + self.bias


class Factor(nn.Module):
    """y = A x, with A [out, in] one matrix, or A = L R through a wide middle.

    L R is multiplied out before a row is touched, so that a row never passes through the middle.
    """

    def __init__(self, width: int, out: int, middle: int | None, stack: int | None):
        super().__init__()
        self.right = Linear(width, middle or out, bias=False, stack=stack)
        self.left = Linear(middle, out, bias=False, stack=stack) if middle else None
        for part in (self.right, self.left):             # two factors in a row: each keeps the size of what it is given
            if part is not None:
                nn.init.uniform_(part.weight, -(3 / part.width) ** 0.5, (3 / part.width) ** 0.5)

    def matrix(self) -> Tensor:
        return self.right.weight if self.left is None else self.left.weight @ self.right.weight

    def forward(self, x: Tensor) -> Tensor:
        A = self.matrix()
        if A.dim() == 2:
            return affine(x, A, None)
        if x.dim() == 2:                                 # one input for all n
            return affine(x, A.flatten(0, 1), None).unflatten(1, A.shape[:2])
        return torch.stack([affine(u, a, None) for u, a in zip(x.unbind(1), A.unbind(0))], 1)

    def collapse(self) -> None:
        if self.left is not None:
            whole = self.matrix().detach()
            collapsed = Linear(self.right.width, self.left.out, bias=False, stack=self.right.stack)
            collapsed.weight = nn.Parameter(whole)
            self.right, self.left = collapsed, None
