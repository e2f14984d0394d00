"""DBMTL: Deep Bayesian Multi-Target Learning for Recommender Systems (Wang et al., 2019, arXiv 1902.09154).

    P(y_1 .. y_T | x) = prod_t P(y_t | parents of y_t, x)

The dependence is made on features rather than on labels: what a task hears of its parents is their last layer.

    q_t = tower_t(h)                                   h: the bottom, shared or a mixture of experts
    r_t = relation_t([q_t, r_p for each parent p])     tasks without parents: r_t = q_t
    z_t = w_t . r_t + b_t

Parents are the tree of `after`, or `model.relations`. Without relations this is the bottom with its towers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from funnelrank.inputs import Needs, Spec
from funnelrank.models.mlp import Rate, Widths
from funnelrank.nn.linear import MLP, Activation


class RelationNetwork(nn.Module):
    """h [B, T, H] or [B, 1, H] -> r [B, T, H'], with H' the width of the towers.

    The paper leaves open what a task without parents does; it keeps its tower, so that a root costs nothing.

    tower     widths of each task's tower, which reads h
    hidden    widths of a relation network's layers before its last, which is as wide as a tower
    """

    needs = Needs()

    def __init__(self, spec: Spec, *, tower: Widths = (64,), hidden: Widths = (), activation: Activation = "relu",
                 dropout: Rate = 0.0):
        super().__init__()
        self.towers = MLP(spec.hidden, tower, activation=activation, dropout=dropout, stack=spec.tasks)
        self.views, self.hidden = spec.tasks, self.towers.out
        self.parents = [[r.parent for r in spec.relations if r.child == t] for t in range(spec.tasks)]
        H = self.hidden
        self.relations = nn.ModuleDict({
            str(t): MLP(H * (1 + len(parents)), (*hidden, H), activation=activation, dropout=dropout)
            for t, parents in enumerate(self.parents) if parents})

    def forward(self, h: Tensor) -> Tensor:
        q = self.towers(h.squeeze(1) if h.shape[1] == 1 else h).unbind(1)       # T of [B, H]
        r: list[Tensor] = []
        for t, parents in enumerate(self.parents):
            r.append(self.relations[str(t)](torch.cat([q[t], *(r[p] for p in parents)], 1)) if parents else q[t])
        return torch.stack(r, 1)                                                # [B, T, H]
