"""AITM: Modeling the Sequential Dependence among Audience Multi-step Conversions with Multi-task Learning
in Targeted Display Advertising (Xi et al., KDD 2021, arXiv 2105.08489).

One tower per task, information passed down the funnel, one head per task:

    q_t = f_t(x)                                   towers: any `represent` part, per task
    p_{t-1} = g_{t-1}(z_{t-1})                     what the step before has to say (the info gate)
    z_t = AIT(p_{t-1}, q_t),   z_1 = q_1           adaptive information transfer
    y_t = sigmoid(w_t . z_t + b_t)                 p(step t) over all impressions: the joint reading

The loss adds alpha times the behavioural expectation calibrator (loss.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor, nn

from funnelrank.errors import ConfigError
from funnelrank.inputs import Needs, Spec
from funnelrank.nn.affine import affine
from funnelrank.nn.linear import MLP, Activation, Linear
from funnelrank.nn.mix import gated_sum


class InformationTransfer(nn.Module):
    """Each task with predecessors becomes an attention over what they pass on and its own tower.

    Candidates u of task t are p = g(z) of each predecessor, and its own q_t. All variants end in

        w_u = softmax over u of lw_u,     z_t = sum_u w_u v(u)

    and differ in lw and v (k is the width of a head):

    self_gate   lw_u = <h2(u), h3(u)> / sqrt(k)       v = h1        the paper: each u asks about itself
    cross       lw_u = <h1(q_t), h2(u)> / sqrt(k)     v = h3        the task asks; biased, output projection w_c
    own_keys    lw_u = <h1(q_t), h2_u(u)> / sqrt(k)   v = h3_u      the task asks; keys and values per input, biased

    They are different functions, and their results must not be compared as one model. In self_gate h1, h2, h3 have
    no bias, as in the authors' code, and all steps share them, as in the authors' code for more than two tasks
    (share=False gives each step its own). Their N(0, .01) start is not used: with it z_t is nearly 0 and a head sees
    nothing at first.

    h [B, T, H], or [B, 1, H] for one view that all tasks share -> [B, T, H].

    heads          attend with so many heads of width H / heads
    gate           widths of g's hidden layers before its last layer of width H; () is the paper's single layer, and
                   without one (null) what is passed on is z itself
    predecessor    "transferred": g reads z_{t-1}, as in the paper; "tower": g reads q_{t-1}
    stop_gradient  a later task does not train the towers of the ones before it (not AITM; off)
    """

    needs = Needs()

    def __init__(self, spec: Spec, *, variant: Literal["self_gate", "cross", "own_keys"] = "self_gate",
                 heads: Annotated[int, Gt(0)] = 1, gate: Sequence[Annotated[int, Gt(0)]] | None = (),
                 gate_activation: Activation = "relu", dropout: Annotated[float, Ge(0), Lt(1)] = 0.0,
                 share: bool = True, predecessor: Literal["transferred", "tower"] = "transferred",
                 stop_gradient: bool = False):
        super().__init__()
        H, T = spec.hidden, spec.tasks
        if H % heads:
            raise ConfigError(f"model.transfer.heads: {heads} heads do not divide towers of width {H}")
        if spec.views not in (1, T):
            raise ConfigError(f"model.represent: gives {spec.views} views; {T} tasks need {T} (per: task) or 1")
        if not spec.relations:
            raise ConfigError("model.transfer: no task comes after another, so there is nothing to transfer; declare "
                              "`after` in tasks, or choose a model without a transfer, such as shared_bottom")
        self.variant, self.heads, self.predecessor, self.stop_gradient = variant, heads, predecessor, stop_gradient
        self.views, self.hidden, self.tasks = T, H, T
        self.parents = [[r.parent for r in spec.relations if r.child == t] for t in range(T)]
        self.gates = nn.ModuleDict({
            f"{r.parent}_{r.child}": nn.Identity() if gate is None else MLP(H, (*gate, H), activation=gate_activation,
                                                                            dropout=dropout)
            for r in spec.relations})
        steps = [t for t in range(T) if self.parents[t]]
        owners = ["all"] if share else [str(t) for t in steps]
        if variant == "own_keys":
            owners = [str(t) for t in steps]        # keys belong to the inputs of one step
        self.attention = nn.ModuleDict({
            o: _Attention(variant, H, heads, inputs=1 + len(self.parents[int(o)]) if variant == "own_keys" else 1)
            for o in owners})

    def forward(self, h: Tensor) -> Tensor:
        q = h.expand(-1, self.tasks, -1).unbind(1)                      # T of [B, H]
        z: list[Tensor] = []
        for t, parents in enumerate(self.parents):
            if not parents:
                z.append(q[t])
                continue
            source = z if self.predecessor == "transferred" else q
            passed = [self.gates[f"{s}_{t}"](source[s].detach() if self.stop_gradient else source[s])
                      for s in parents]
            attend = self.attention["all"] if "all" in self.attention else self.attention[str(t)]
            z.append(attend([*passed, q[t]]))                           # the task itself stands last
        return torch.stack(z, 1)                                        # [B, T, H]


class _Attention(nn.Module):
    """U candidates [B, H], the task's own tower last -> z [B, H]."""

    def __init__(self, variant: str, H: int, heads: int, inputs: int):
        super().__init__()
        self.variant, self.heads, self.k = variant, heads, H // heads
        biased = variant != "self_gate"
        stack = inputs if variant == "own_keys" else None
        self.h1 = Linear(H, H, bias=biased)
        self.h2 = Linear(H, H, bias=biased, stack=stack)
        self.h3 = Linear(H, H, bias=biased, stack=stack)
        self.project = Linear(H, H) if variant == "cross" else None

    def forward(self, candidates: Sequence[Tensor]) -> Tensor:
        if (self.variant, self.heads, len(candidates)) == ("self_gate", 1, 2) and torch.compiler.is_compiling():
            return self._one_of_two(*candidates)
        u = torch.stack(tuple(candidates), 1)                           # [B, U, H]
        if self.variant == "self_gate" and self.heads == 1:
            return self._one_head(u)
        split = lambda a: a.unflatten(-1, (self.heads, self.k))         # [..., H] -> [..., heads, k]
        if self.variant == "self_gate":
            value, query, key = split(self.h1(u)), split(self.h2(u)), split(self.h3(u))
        else:
            query, key, value = split(self.h1(u[:, -1:])), split(self.h2(u)), split(self.h3(u))
        weight = ((query * key).sum(-1) / math.sqrt(self.k)).softmax(1)     # [B, U, heads]
        z = (weight.unsqueeze(-1) * value).sum(1).flatten(1)                # [B, H]
        return z if self.project is None else self.project(z)

    def _one_head(self, u: Tensor) -> Tensor:
        """self_gate in fewer products, u [B, U, H]: <W2 u, W3 u> = u' (W2' W3) u, sum_u w_u W1 u = W1 sum_u w_u u."""
        asked = affine(u.flatten(0, 1), self.h3.weight.T @ self.h2.weight, None).view_as(u)
        return self.h1(gated_sum(asked, u, 1 / math.sqrt(self.k)))      # [B, H]

    def _one_of_two(self, p: Tensor, q: Tensor) -> Tensor:
        """The same of two candidates in a graph, where a stack is a copy; a softmax of two is a sigmoid."""
        asks = self.h3.weight.T @ self.h2.weight / math.sqrt(self.k)
        lw = [(affine(u, asks, None) * u).sum(1, keepdim=True) for u in (p, q)]
        return self.h1(q + (lw[0] - lw[1]).sigmoid() * (p - q))
