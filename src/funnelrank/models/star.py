"""STAR: One Model to Serve All: Star Topology Adaptive Recommender for Multi-Domain CTR Prediction
(Sheng et al., CIKM 2021, arXiv 2101.11427). p is the row's scenario.

    W*_p = W_p o W,   b*_p = b_p + b,   h = act(W*_p h + b*_p)         star topology: o is by element
    z' = gamma gamma_p (z - mu_p) / sqrt(var_p + eps) + beta + beta_p   partitioned normalisation
    logit = s_m + s_a                                                   s_a: an auxiliary net on [scenario, x]

The shared W learns from every row, W_p from rows of scenario p alone. Everything of a scenario's own starts at what
changes nothing (W_p = 1, b_p = 0, gamma_p = 1, beta_p = 0), so at first all scenarios are one network.

The paper feeds batches of one scenario. Here scenarios mix freely: mean and variance are of the batch's rows of each
scenario. A row without a scenario, or of one that train did not have, gets the shared parameters and the statistics
of all rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal

import torch
from annotated_types import Gt
from torch import Tensor, nn

from funnelrank import ranks
from funnelrank.errors import ConfigError
from funnelrank.inputs import Inputs, Needs, Spec, with_flat
from funnelrank.models.mlp import Rate, Widths, owner_of_outputs, start_at_log_odds, view_of_outputs
from funnelrank.nn.linear import ACTIVATIONS, MLP, Activation, Elementwise, Linear
from funnelrank.nn.own import own_linear, owner


class PartitionedNorm(nn.Module):
    """flat [B, W] -> flat [B, W], each row normalised by the statistics of its own scenario; x.raw keeps what it was.

    With S = 1 it is batch normalisation. Statistics for evaluation are those of all batches so far for the first ten,
    then exponential averages; their variance also counts how far the batches' means lie apart. A scenario with fewer
    than two rows in a batch uses what it has gathered so far, or else the statistics of the whole batch, and gathers
    nothing.

    leave       roles or groups whose columns stay as they are: what names the scenario has no variance in it
    momentum    what a batch weighs in the averages
    eps         keeps the division finite
    """

    needs = Needs(scenario=True)
    reads, changes, sets_raw = {}, ("flat", "fields"), True

    def __init__(self, spec: Spec, *, leave: Sequence[str] = ("scenario",),
                 momentum: Annotated[float, Gt(0)] = 0.1, eps: Annotated[float, Gt(0)] = 1e-5):
        super().__init__()
        refuse_without_scenarios(spec, "prepare")
        n, W = spec.known, spec.flat
        self.momentum, self.eps = momentum, eps
        self.gain, self.shift = nn.Parameter(torch.ones(W)), nn.Parameter(torch.zeros(W))
        self.own_gain, self.own_shift = nn.Parameter(torch.ones(n, W)), nn.Parameter(torch.zeros(n, W))
        self.register_buffer("mean", torch.zeros(n + 1, W))              # place 0: of all rows
        self.register_buffer("var", torch.ones(n + 1, W))
        self.register_buffer("batches", torch.zeros(n + 1, 1))
        left = sorted({c for g in leave for c in spec.columns.get(g, ())})
        keep = torch.ones(W, dtype=torch.bool)
        keep[left] = False
        self.register_buffer("normalised", keep, persistent=False)
        self.left = bool(left)
        self.spec = replace(spec, raw=W)

    def forward(self, x: Inputs) -> Inputs:
        z, place = x.flat, owner(x.scenario)
        mean, var = self._of_batch(z, place) if self.training else self._gathered()
        ones, zeros = torch.ones_like(self.gain), torch.zeros_like(self.shift)
        gain = self.gain * torch.cat([ones.unsqueeze(0), self.own_gain])                        # [S - 1, W]
        shift = self.shift + torch.cat([zeros.unsqueeze(0), self.own_shift])
        scale = gain * (var + self.eps).rsqrt()
        y = z * scale.index_select(0, place) + (shift - mean * scale).index_select(0, place)
        return replace(with_flat(x, torch.where(self.normalised, y, z) if self.left else y, self.spec), raw=z)

    def _gathered(self) -> tuple[Tensor, Tensor]:
        """Mean and variance of each place as gathered; a place that has gathered nothing has those of all rows."""
        known = self.batches > 0
        return torch.where(known, self.mean, self.mean[:1]), torch.where(known, self.var, self.var[:1])

    def _of_batch(self, z: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
        places = len(self.mean)
        by_place = lambda v: ranks.summed(torch.cat([v.sum(0, keepdim=True), v.new_zeros(
            places, v.shape[1]).index_add(0, place, v)[1:]]))
        n = by_place(z.new_ones(len(z), 1))                                                     # [S - 1, 1]
        mean = by_place(z) / n.clamp(min=1)
        square = z.new_zeros(places, z.shape[1]).index_add(0, place, (z - mean.index_select(0, place)).square())
        square = ranks.summed(torch.cat([(z - mean[0]).square().sum(0, keepdim=True), square[1:]]))
        enough = n >= 2
        with torch.no_grad():
            old_mean, old_var = self._gathered()
            self._gather(mean.detach(), square.detach() / (n - 1).clamp(min=1), enough)
        whole = enough[:1]                               # a batch of one row has what was gathered
        mean0, var0 = (torch.where(whole, a, b) for a, b in
                       ((mean[:1], old_mean[:1]), (square[:1] / n[:1].clamp(min=1), old_var[:1])))
        known = self.batches > 0
        few_mean, few_var = torch.where(known, old_mean, mean0), torch.where(known, old_var, var0)
        return torch.where(enough, mean, few_mean), torch.where(enough, square / n.clamp(min=1), few_var)

    def _gather(self, mean: Tensor, var: Tensor, enough: Tensor) -> None:
        """Averages move where there were rows enough, and stay bit by bit where there were not."""
        rate = (1 / (self.batches + 1)).clamp(min=self.momentum)
        apart = mean - self.mean
        new_mean = self.mean + rate * apart
        new_var = (1 - rate) * (self.var + rate * apart.square()) + rate * var
        self.mean.copy_(torch.where(enough, new_mean, self.mean))
        self.var.copy_(torch.where(enough, new_var, self.var))
        self.batches += enough


class StarLinear(nn.Module):
    """y = (W_p o W) x + (b_p + b): x [B, in], place [B] -> [B, out]."""

    def __init__(self, width: int, out: int, scenarios: int):
        super().__init__()
        self.shared = Linear(width, out)
        self.own = nn.Parameter(torch.ones(scenarios, out, width))      # no L2: it would pull towards 0, not 1
        self.own_bias = nn.Parameter(torch.zeros(scenarios, out))

    def forward(self, x: Tensor, place: Tensor) -> Tensor:
        W, b = self.shared.weight.unsqueeze(0), self.shared.bias.unsqueeze(0)
        return own_linear(x, torch.cat([W, W * self.own]), torch.cat([b, b + self.own_bias]), place)


class StarMLP(nn.Module):
    """x.flat [B, W] -> [B, V, H]: an MLP of star layers, one for all tasks or one for each."""

    needs = Needs(scenario=True)

    def __init__(self, spec: Spec, *, hidden: Widths = (128, 64), activation: Elementwise = "relu", dropout: Rate = 0.0,
                 per: Literal["all", "task"] = "all"):
        super().__init__()
        refuse_without_scenarios(spec, "represent")
        self.views = spec.tasks if per == "task" else 1
        self.hidden = hidden[-1] if hidden else spec.flat
        self.bodies = nn.ModuleList(nn.ModuleList(StarLinear(a, b, spec.known)
                                                  for a, b in zip([spec.flat, *hidden], hidden))
                                    for _ in range(self.views))
        self.activation, self.dropout = ACTIVATIONS[activation](), nn.Dropout(dropout)

    def forward(self, x: Inputs) -> Tensor:
        place = owner(x.scenario)
        views = []
        for body in self.bodies:
            h = x.flat
            for layer in body:
                h = self.dropout(self.activation(layer(h, place)))
            views.append(h)
        return torch.stack(views, 1)                                    # [B, V, H]


class StarHeads(nn.Module):
    """s_o = <w_op o w_o, h_t> + b_op + b_o: h [B, T, H] or [B, 1, H] -> [B, O]. The last star layer."""

    needs = Needs(scenario=True)
    reads = {}

    def __init__(self, spec: Spec):
        super().__init__()
        refuse_without_scenarios(spec, "predict")
        O = len(spec.owners)
        self.linear = Linear(spec.hidden, 1, stack=O)
        self.own = nn.Parameter(torch.ones(spec.known, O, spec.hidden))
        self.own_bias = nn.Parameter(torch.zeros(spec.known, O))
        self.register_buffer("owner", owner_of_outputs(spec), persistent=False)
        start_at_log_odds(self.linear.bias, spec)

    def forward(self, h: Tensor, x: Inputs) -> Tensor:
        place = owner(x.scenario)
        w, b = self.linear.weight.squeeze(1).unsqueeze(0), self.linear.bias.squeeze(1).unsqueeze(0)
        weight, bias = torch.cat([w, w * self.own]), torch.cat([b, b + self.own_bias])          # [S - 1, O, H]
        h = h if h.shape[1] == 1 else view_of_outputs(h, self.owner)
        return (weight.index_select(0, place) * h).sum(2) + bias.index_select(0, place)


class AuxiliaryNetwork(nn.Module):
    """s_a = MLP([vector of the scenario, x]) -> [B, O]: what the scenario says by itself, past the main network.

    x is the input before normalisation. Rows without a named scenario have the mean of the named ones' vectors, which
    they do not train, and what they learn on top of it.

    width     of the scenario's vector
    hidden    widths of the network's layers
    """

    needs = Needs(scenario=True)
    reads = {"raw": None}

    def __init__(self, spec: Spec, *, width: Annotated[int, Gt(0)] = 16, hidden: Widths = (16,),
                 activation: Activation = "relu"):
        super().__init__()
        refuse_without_scenarios(spec, "side")
        self.scenarios = nn.Embedding(spec.known + 1, width)
        nn.init.normal_(self.scenarios.weight, std=0.01)
        nn.init.zeros_(self.scenarios.weight[0])
        self.mlp = MLP(width + (spec.raw or spec.flat), hidden, activation=activation)
        self.head = Linear(self.mlp.out, len(spec.owners))
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Inputs) -> Tensor:
        raw = x.flat if x.raw is None else x.raw
        own, named = self.scenarios.weight.split([1, len(self.scenarios.weight) - 1])
        vectors = torch.cat([named.detach().mean(0, keepdim=True) + own, named])                # [S - 1, width]
        return self.head(self.mlp(torch.cat([vectors.index_select(0, owner(x.scenario)), raw], 1)))


def refuse_without_scenarios(spec: Spec, slot: str) -> None:
    """ConfigError where no scenario has a name: there is nothing that a part could keep apart."""
    if not spec.known:
        raise ConfigError(f"model.{slot}: this part has parameters of its own for each scenario, and there are none; "
                          "set data.scenario to the column that names them, or choose a model without scenarios")
