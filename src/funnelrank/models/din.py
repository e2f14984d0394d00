"""DIN: Deep Interest Network for Click-Through Rate Prediction (Zhou et al., KDD 2018, arXiv 1706.06978).

A history is read through the item at hand: each of its entries e_j weighs as much as it has to say about the target v.

    a_j = MLP([e_j, v, e_j - v, e_j * v])      the activation unit, one number
    u = sum_j a_j e_j                          no softmax: how much there is to say is kept

The paper's unit takes the outer product of e_j and v; the authors' code, as here, their difference and product.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from funnelrank.errors import ConfigError
from funnelrank.inputs import History, Inputs, Needs, Padded, Spec
from funnelrank.models.mlp import Widths
from funnelrank.nn.activation import Dice
from funnelrank.nn.history import beside_target, plus_row, pooled, rows_of
from funnelrank.nn.linear import Linear


class TargetAttention(nn.Module):
    """Histories, pooled by target attention, join flat: [B, W] -> [B, W + sum of their widths].

    Each history has a unit of its own. An empty one gives zeros.

    hidden    widths of the unit's hidden layers, with Dice between them
    softmax   weigh by softmax over a history instead (not the paper)
    """

    needs = Needs(histories=True)
    reads, changes = {}, ("flat",)

    def __init__(self, spec: Spec, *, hidden: Widths = (36,), softmax: bool = False):
        super().__init__()
        if not spec.histories:
            raise ConfigError("model.prepare: din reads histories through the row's own item, and no sequence has one; "
                              "declare an id feature in the space of a sequence, or leave din out")
        self.softmax = softmax
        self.units = nn.ModuleDict({str(i): ActivationUnit(width, hidden)
                                    for i, width in enumerate(spec.histories.values())})
        self.names = list(spec.histories)
        self.spec = replace(spec, flat=spec.flat + sum(spec.histories.values()), histories={})

    def forward(self, x: Inputs) -> Inputs:
        pooled = [self._pool(self.units[str(i)], x.histories[name]) for i, name in enumerate(self.names)]
        return replace(x, flat=torch.cat([x.flat, *pooled], 1), histories={})

    def _pool(self, unit: ActivationUnit, history: History | Padded) -> Tensor:
        """[B, D]"""
        if isinstance(history, Padded):
            return self._pool_padded(unit, history)
        return attended(unit, history, self.softmax)

    def _pool_padded(self, unit: ActivationUnit, history: Padded) -> Tensor:
        e, there, v = history
        weight = unit.weigh(e, v.unsqueeze(1))                                          # [B, L]
        if self.softmax:
            weight = weight.masked_fill(~there, torch.finfo(weight.dtype).min).softmax(1)
        return (weight.unsqueeze(2) * e).sum(1)                                         # what is not there is zeros


class ActivationUnit(nn.Module):
    """a_j for every entry of every history, [n].

    The first layer, W [e, v, e - v, e * v] + b, is taken apart so that what depends on v alone is computed once a row:
    (W_e + W_d) e + W_p (e * v)  per entry,  (W_v - W_d) v + b  per row.
    """

    def __init__(self, width: int, hidden: Widths):
        super().__init__()
        first, *rest = (*hidden, 1)
        self.width = width
        self.first = Linear(4 * width, first)
        self.rest = nn.ModuleList(Linear(a, b) for a, b in zip((first, *rest), rest))
        self.dice = nn.ModuleList(Dice(w) for w in hidden)

    def forward(self, history: History) -> Tensor:
        both = beside_target(history.values, history.target, history.offsets)           # [n, 2 D]
        by_entry, by_row = self._first(history.target)
        return self._rest(plus_row(both @ by_entry, by_row, history.offsets))

    def weigh(self, e: Tensor, v: Tensor) -> Tensor:
        """The same of padded entries e [B, L, D] against targets v [B, 1, D] -> [B, L]."""
        by_entry, by_row = self._first(v)
        return self._rest(torch.cat([e, e * v], -1) @ by_entry + by_row)

    def _first(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """The first layer: [2 D, H] that [e, e * v] is multiplied with, and what v adds, [..., H]."""
        w_e, w_v, w_d, w_p = self.first.weight.split(self.width, 1)
        return torch.cat([w_e + w_d, w_p], 1).T, v @ (w_v - w_d).T + self.first.bias

    def _rest(self, h: Tensor) -> Tensor:
        for dice, layer in zip(self.dice, self.rest):
            h = layer(dice(h))
        return h.squeeze(-1)


def attended(unit: ActivationUnit, history: History, softmax: bool) -> Tensor:
    """What a history says about the row's item: [B, D]."""
    weight = unit(history)                                                              # [n]
    if softmax:
        weight = softmax_by_row(weight, rows_of(history.offsets, weight.shape[0]), history.target.shape[0])
    return pooled(weight, history.values, history.offsets)


def softmax_by_row(score: Tensor, row: Tensor, rows: int) -> Tensor:
    """score [n] of rows row [n] -> weights [n] that sum to 1 over each row's entries."""
    top = score.new_full((rows,), float("-inf")).scatter_reduce(0, row, score.detach(), "amax")
    weight = (score - top[row]).exp()
    return weight / score.new_zeros(rows).index_add(0, row, weight)[row]


