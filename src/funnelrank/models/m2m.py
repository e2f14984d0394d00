"""M2M: Leaving No One Behind: A Multi-Scenario Multi-Task Meta Learning Approach for Advertiser Modeling
(Zhang et al., WSDM 2022, arXiv 2201.06814).

    X_seq  = MultiHead(sequence)                          each history attends to itself; its mean joins flat
    E_i    = MLP_i([X_seq, X_other])                      experts [k]
    T_t    = MLP(Emb(t))                                  task view [k]
    S~     = MLP([scenario, user])                        scenario view: what generates all weights below
    Meta(h): K times  h <- act(W h + b),  W = reshape(V_w S~ + v_w),  b = V_b S~ + v_b
    a_ti   = v . Meta_t([E_i, T_t]),  alpha = softmax over i of a_ti
    R_t    = sum_i alpha_ti E_i                           attention meta network
    L_t^0  = R_t,  L_t^j = act(Meta_t^j(L_t^{j-1}) + L_t^{j-1})         tower meta network, with residuals

Every task has meta units of its own, and every layer of a tower. The paper's heads are Poisson regressions of an
advertiser's counts; here the funnel says what a logit means, and a task of kind `count` is just that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import torch
from annotated_types import Gt, MinLen
from torch import Tensor, nn

from funnelrank.errors import ConfigError
from funnelrank.inputs import History, Inputs, Needs, Padded, Spec
from funnelrank.models.mlp import Heads, Rate, Widths
from funnelrank.nn.linear import ACTIVATIONS, MLP, Activation, Elementwise, Linear

VIEW = "scenario_view"
Groups = Annotated[Sequence[str], MinLen(1)]


class SequenceAttention(nn.Module):
    """Histories attend to themselves; their means join flat: [B, W] -> [B, W + sum of their widths].

    e~ = concat_h softmax(Q_h K_h^T / sqrt(d / heads)) V_h W_o over a history's own entries; an empty one gives zeros.
    Order does not matter, since the paper adds no positions.

    heads     of attention; they must divide each history's width
    length    at most so many of the last entries are read
    """

    needs = Needs(histories=True)
    reads, changes = {}, ("flat",)

    def __init__(self, spec: Spec, *, heads: Annotated[int, Gt(0)] = 2, length: Annotated[int, Gt(0)] = 50):
        super().__init__()
        if not spec.histories:
            raise ConfigError("model.prepare: mha reads sequences whose ids are those of an id feature, and there are "
                              "none; declare one, or leave mha out")
        for name, width in spec.histories.items():
            if width % heads:
                raise ConfigError(f"model.prepare.heads: {heads} heads do not divide the width {width} of '{name}'")
        self.heads, self.length, self.names = heads, length, list(spec.histories)
        self.project = nn.ModuleList(Linear(d, 3 * d, bias=False) for d in spec.histories.values())
        self.out = nn.ModuleList(Linear(d, d, bias=False) for d in spec.histories.values())
        self.spec = replace(spec, flat=spec.flat + sum(spec.histories.values()), histories={})

    def forward(self, x: Inputs) -> Inputs:
        pooled = [self._pool(i, x.histories[name]) for i, name in enumerate(self.names)]
        return replace(x, flat=torch.cat([x.flat, *pooled], 1), histories={})

    def _pool(self, i: int, history: History | Padded) -> Tensor:
        """[B, D]"""
        e, there = self._padded(history)                                        # [B, L, D], [B, L]
        q, k, v = (p.unflatten(2, (self.heads, -1)).transpose(1, 2) for p in self.project[i](e).chunk(3, 2))
        score = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])                  # [B, heads, L, L]
        score = score.masked_fill(~there[:, None, None], torch.finfo(score.dtype).min)
        h = self.out[i]((score.softmax(3) @ v).transpose(1, 2).flatten(2))      # [B, L, D]
        return (h * there.unsqueeze(2)).sum(1) / there.sum(1, keepdim=True).clamp(min=1)

    def _padded(self, history: History | Padded) -> tuple[Tensor, Tensor]:
        """The last entries of each row side by side, and which places hold one."""
        if isinstance(history, Padded):
            e, there, _ = history
            length = there.sum(1, keepdim=True)                                 # [B, 1]
            kept, place = length.clamp(max=self.length), torch.arange(self.length, device=e.device).unsqueeze(0)
            index = (length - kept + place).clamp(max=e.shape[1] - 1)           # [B, length]
            return e.gather(1, index.unsqueeze(2).expand(-1, -1, e.shape[2])), place < kept
        values, offsets = history.values, history.offsets
        n, L = values.shape[0], self.length
        if values.device.type == "cpu" and not torch.compiler.is_compiling():
            L = max(1, min(L, int(offsets.diff().max()))) if offsets.shape[0] > 1 else 1    # no wider than this batch
        kept = offsets.diff().clamp(max=L).unsqueeze(1)                         # [B, 1]
        place = torch.arange(L, device=values.device).unsqueeze(0)              # [1, L]
        there = place < kept
        index = torch.where(there, offsets[1:].unsqueeze(1) - kept + place, n)  # place n holds zeros
        return torch.cat([values, values.new_zeros(1, values.shape[1])])[index], there


class ScenarioView(nn.Module):
    """S~ = MLP(vectors of `groups`) as a group of its own, `scenario_view` [B, s]; flat stays as it is.

    groups    roles or groups that say where a row stands: the scenario, and whose row it is
    hidden    widths of the MLP's layers; the last is s
    """

    needs = Needs()
    reads, changes, makes = {}, (), (VIEW,)

    def __init__(self, spec: Spec, *, groups: Groups = ("scenario",), hidden: Widths = (16,),
                 activation: Activation = "relu"):
        super().__init__()
        self.groups = list(groups)
        self.mlp = MLP(sum(spec.groups[g] for g in groups), hidden, activation=activation)
        self.spec = replace(spec, groups={**spec.groups, VIEW: self.mlp.out})

    def forward(self, x: Inputs) -> Inputs:
        view = self.mlp(torch.cat([x.groups[g] for g in self.groups], 1))
        return replace(x, groups={**x.groups, VIEW: view})


class MetaUnit(nn.Module):
    """Layers whose weights are generated from a view: h [B, n, m, k], view [B, s] -> [B, n, m, k]; n units, m inputs.

    With `rank` r the weights are U S V with S [r, r] generated and U, V learned (as in APG), for k^2 generated.
    """

    def __init__(self, view: int, width: int, units: int, *, depth: int, rank: int | None, activation: Elementwise):
        super().__init__()
        self.width, self.size = width, rank or width
        self.weights = nn.ModuleList(Linear(view, self.size ** 2, stack=units) for _ in range(depth))
        self.biases = nn.ModuleList(Linear(view, width, stack=units) for _ in range(depth))
        self.inner = nn.ModuleList(Linear(width, rank, bias=False, stack=units) for _ in range(depth if rank else 0))
        self.outer = nn.ModuleList(Linear(rank, width, bias=False, stack=units) for _ in range(depth if rank else 0))
        self.activation = ACTIVATIONS[activation]()
        with torch.no_grad():        # what is generated starts as large as a layer's own weights would
            for weight, bias in zip(self.weights, self.biases):
                weight.weight.mul_(1 / math.sqrt(self.size))
                weight.bias.uniform_(-1, 1).mul_(1 / math.sqrt(self.size))
                bias.bias.zero_()

    def forward(self, h: Tensor, view: Tensor) -> Tensor:
        for j, (weight, bias) in enumerate(zip(self.weights, self.biases)):
            W = weight(view).unflatten(2, (self.size, self.size))               # [B, n, k, k]
            if self.inner:
                V, U = self.inner[j].weight, self.outer[j].weight               # [n, r, k], [n, k, r]
                h = h @ V.transpose(1, 2) @ W.transpose(2, 3) @ U.transpose(1, 2)
            else:
                h = h @ W.transpose(2, 3)
            h = self.activation(h + bias(view).unsqueeze(2))
        return h


class MetaAttention(nn.Module):
    """Experts, weighed for each task by generated weights: x.flat [B, W] -> R [B, T, k]; k = hidden[-1].

    groups     roles or groups of the view that generates; `scenario_view` where that part stands in `prepare`
    experts    how many
    hidden     widths of an expert's layers
    task       width of a task's embedding
    depth      K, layers of a meta unit
    rank       of generated weights; none: all (2 k)^2 of them
    """

    needs = Needs()

    def __init__(self, spec: Spec, *, groups: Groups = ("scenario",), experts: Annotated[int, Gt(0)] = 4,
                 hidden: Widths = (64, 16), task: Annotated[int, Gt(0)] = 16, depth: Annotated[int, Gt(0)] = 1,
                 rank: Annotated[int, Gt(0)] | None = None, activation: Elementwise = "leaky_relu",
                 dropout: Rate = 0.0):
        super().__init__()
        self.groups, self.views = list(groups), spec.tasks
        self.experts = MLP(spec.flat, hidden, activation=activation, dropout=dropout, stack=experts)
        k = self.hidden = self.experts.out
        self.tasks = nn.Embedding(spec.tasks, task)
        self.task_view = MLP(task, (k,), activation=activation)
        self.meta = MetaUnit(sum(spec.groups[g] for g in groups), 2 * k, spec.tasks, depth=depth, rank=rank,
                             activation=activation)
        self.score = Linear(2 * k, 1, bias=False)                               # v

    def forward(self, x: Inputs) -> Tensor:
        E = self.experts(x.flat)                                                # [B, N, k]
        B, N, k = E.shape
        T = self.task_view(self.tasks.weight)                                   # [T, k]
        pairs = torch.cat([E.unsqueeze(1).expand(-1, self.views, -1, -1),
                           T[None, :, None].expand(B, -1, N, -1)], 3)           # [B, T, N, 2k]
        alpha = self.score(self.meta(pairs, view_of(x, self.groups))).squeeze(3).softmax(2)     # [B, T, N]
        return alpha @ E                                                        # [B, T, k]


class MetaTowers(nn.Module):
    """Towers of generated layers with residuals, then a linear head: h [B, T, H] or [B, 1, H] -> logits [B, T].

    groups    roles or groups of the view that generates
    layers    of a tower; each is a meta unit of its own
    depth     K, layers of a meta unit
    rank      of generated weights; none: all H^2 of them
    """

    needs = Needs()
    reads = {}

    def __init__(self, spec: Spec, *, groups: Groups = ("scenario",), layers: Annotated[int, Gt(0)] = 2,
                 depth: Annotated[int, Gt(0)] = 1, rank: Annotated[int, Gt(0)] | None = None,
                 activation: Elementwise = "leaky_relu"):
        super().__init__()
        self.groups, self.tasks = list(groups), spec.tasks
        view = sum(spec.groups[g] for g in groups)
        self.layers = nn.ModuleList(MetaUnit(view, spec.hidden, spec.tasks, depth=depth, rank=rank,
                                             activation=activation) for _ in range(layers))
        self.activation = ACTIVATIONS[activation]()
        self.head = Heads(spec.hidden, spec)

    def forward(self, h: Tensor, x: Inputs) -> Tensor:
        view = view_of(x, self.groups)
        h = h.expand(-1, self.tasks, -1).unsqueeze(2)                           # [B, T, 1, H]
        for meta in self.layers:
            h = self.activation(meta(h, view) + h)
        return self.head(h.squeeze(2))                                          # [B, O]


def view_of(x: Inputs, groups: Sequence[str]) -> Tensor:
    """[B, s]"""
    return torch.cat([x.groups[g] for g in groups], 1)
