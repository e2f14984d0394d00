"""HMoE: Improving Multi-Scenario Learning to Rank in E-commerce by Exploiting Task Relationships in the Label Space
(Li et al., CIKM 2020). A hybrid of implicit experts, in the features, and explicit ones, among the scores.

    M_j(x) = sum_i G_ji(x) E_i(x)                 experts, with one gate for all scenarios or one for each
    S_j    = tower_j(M_j(x))                      the score that scenario j would give
    W_p(x) = softmax(A_p x)                       how much scenario p listens to each
    out_p  = W_pp S_p + sum_{j != p} W_pj sg(S_j) sg stops gradients: a row of p trains tower p alone

Experts are `represent: mmoe`, with `per: scenario` for a gate for each. The paper ranks by one score; here every task
has its own towers and weights are shared by tasks, and scores are logits, mixed before the sigmoid.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from funnelrank import ranks
from funnelrank.inputs import Inputs, Needs, Spec
from funnelrank.models.mlp import Rate, Widths, owner_of_outputs, start_at_log_odds, view_of_outputs
from funnelrank.models.star import refuse_without_scenarios
from funnelrank.nn.linear import MLP, Activation, Linear
from funnelrank.nn.own import own, owner

FEW = 1000       # rows without a named scenario, after which their own tower weighs half of what it asks for


class ScenarioTowers(nn.Module):
    """h [B, 1, H], [B, T, H] or, with views per scenario, [B, P, H] -> logits [B, T].

    There are P places: one for each scenario with a name, and place 0 for rows without one (nn/own.py), which train a
    tower of their own and listen to all; nobody else listens to place 0. That tower's weight is taken times n / (n +
    1000), n the rows it was trained by, and A_0 starts at zero: where train had no such rows, a row of an unseen
    scenario gets the mean of what all named scenarios would say.

    hidden    widths of a tower's layers
    share     one A for all scenarios, instead of one for each
    """

    needs = Needs(scenario=True)
    weighs = ("scenarios",)        # against each other: a new one takes a share from the first step
    takes_scenarios = True

    def __init__(self, spec: Spec, *, hidden: Widths = (64,), activation: Activation = "relu", dropout: Rate = 0.0,
                 share: bool = False):
        super().__init__()
        refuse_without_scenarios(spec, "predict")
        self.tasks, self.places, self.share = spec.tasks, spec.known + 1, share
        self.per_scenario = spec.views_per == "scenario"
        n = spec.tasks * self.places
        self.towers = MLP(spec.hidden, hidden, activation=activation, dropout=dropout, stack=n)
        self.heads = Linear(self.towers.out, 1, stack=len(spec.owners) * self.places)
        self.register_buffer("owner", owner_of_outputs(spec), persistent=False)
        self.weights = Linear(spec.flat, self.places, stack=None if share else self.places)
        self.register_buffer("nameless", torch.zeros(()))                       # n
        with torch.no_grad():
            if not share:
                self.weights.weight[0], self.weights.bias[0] = 0, 0
            first = torch.empty(len(spec.owners), 1)
            start_at_log_odds(first, spec)
            self.heads.bias.copy_(first.repeat_interleave(self.places, 0))

    def forward(self, h: Tensor, x: Inputs) -> Tensor:
        T, n, place = self.tasks, self.places, owner(x.scenario).unsqueeze(1)    # [B, 1]
        if h.shape[1] == 1:
            each = h.squeeze(1)
        elif self.per_scenario:
            each = h.repeat(1, T, 1)                                            # [B, T * P, H]
        else:
            each = h.repeat_interleave(n, 1)
        towers = view_of_outputs(self.towers(each).unflatten(1, (T, n)), self.owner)     # [B, O, P, H]
        score = self.heads(towers.flatten(1, 2)).squeeze(2).unflatten(1, (-1, n))        # [B, O, P]
        column = torch.arange(n, device=h.device)
        score = torch.where((column == place).unsqueeze(1), score, score.detach())
        heard = self.weights(x.flat)
        heard = heard if self.share else own(heard, place.squeeze(1))           # [B, P]
        if self.training:
            self.nameless += ranks.add((place == 0).sum())
        trained = -torch.log1p(FEW / self.nameless)                             # log n / (n + FEW)
        heard = heard + torch.where(column == 0, torch.where(place == 0, trained, float("-inf")), 0.0)
        return (heard.softmax(1).unsqueeze(1) * score).sum(2)                   # [B, O]
