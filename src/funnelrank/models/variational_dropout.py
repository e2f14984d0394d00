"""Variational dropout as a selection of features: Dropout Feature Ranking for Deep Learning Models (Chang, Rampasek &
Goldenberg, arXiv 1712.08645), with the relaxed gates of Concrete Dropout (Gal, Hron & Kendall, NeurIPS 2017).

    k_f = sigmoid(a_f)                                               how much of feature f is kept, learned
    z_bf = sigmoid((a_f + log u_bf - log(1 - u_bf)) / T),  u_bf ~ U(0, 1),  T = 0.1     almost 0 or 1; mean about k_f
    x~_bf = z_bf x_bf while training, k_f x_bf else
    L' = L + price sum_f k_f

A feature stays where taking it away costs the loss more than about `price`. The paper and the code that followed it
write price = lambda / rows: of the training set in the paper, of a batch in EasyRec's layer of this name.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from annotated_types import Gt, Lt
from torch import Tensor, nn

from funnelrank.inputs import Inputs, Needs, Spec, with_flat

TEMPERATURE = 0.1
PACE = 10.0              # a_f = PACE times its parameter: gates have far to go, and adam's steps are short


class VariationalDropout(nn.Module):
    """Each feature of flat [B, W] is kept by a learned share, at a price; the report lists the shares.

    fields, which are columns of flat, and groups are gated with it. First-order weights, histories that a part reads
    entry by entry, and numbers on their own pass by. Each number of a vector is a feature here, and so is each column
    that a part before has added.

    price     of a feature that is wholly kept, in the loss's units
    start     the share that each is kept by at first
    """

    needs = Needs()
    reads, changes = {"flat": None}, ("flat", "fields")

    def __init__(self, spec: Spec, *, price: Annotated[float, Gt(0)] = 1e-3,
                 start: Annotated[float, Gt(0), Lt(1)] = 0.9):
        super().__init__()
        self.spec, self.price = spec, price
        F, N = len(spec.starts), len(spec.number_starts)
        owner = {at + j: f for f, (at, width) in enumerate(zip(spec.starts, spec.widths)) for j in range(width)}
        owner |= {at: F + n for n, at in enumerate(spec.number_starts)}
        free = [c for c in range(spec.flat) if c not in owner]
        owner |= {c: F + N + i for i, c in enumerate(free)}
        gate = torch.tensor([owner[c] for c in range(spec.flat)], dtype=torch.int64)
        self.register_buffer("gate", gate, persistent=False)                                     # [W] column -> gate
        for i, g in enumerate(spec.columns):
            self.register_buffer(f"group_{i}", torch.tensor(spec.columns[g], dtype=torch.int64), persistent=False)
        begin = math.log(start / (1 - start)) / PACE
        self.fields, self.numbers, self.others = (
            nn.Parameter(torch.full((n,), begin)) if n else None for n in (F, N, len(free)))

    def shares(self) -> Tensor:
        """k of embedded features, in the order of fields; of numbers, in the order of the batch; of other columns."""
        return torch.sigmoid(self._logits())

    def penalty(self) -> Tensor:
        return self.price * self.shares().sum()

    def _logits(self) -> Tensor:
        return PACE * torch.cat([p for p in (self.fields, self.numbers, self.others) if p is not None])

    def forward(self, x: Inputs) -> Inputs:
        a = self._logits()
        if self.training:
            u = torch.rand(x.flat.shape[0], len(a), dtype=x.flat.dtype, device=x.flat.device)
            u = u.clamp(1e-6, 1 - 1e-6)
            z = torch.sigmoid((a + u.log() - (-u).log1p()) / TEMPERATURE)
        else:
            z = torch.sigmoid(a).unsqueeze(0)
        z = z.index_select(1, self.gate)                                                         # [B or 1, W]
        gated = with_flat(x, x.flat * z, self.spec)
        gated.groups = dict(x.groups)
        for i, g in enumerate(self.spec.columns):
            if g in x.groups:
                gated.groups[g] = x.groups[g] * z.index_select(1, getattr(self, f"group_{i}"))
        return gated
