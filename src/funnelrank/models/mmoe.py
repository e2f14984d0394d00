"""MMoE: Modeling Task Relationships in Multi-task Learning with Multi-gate Mixture-of-Experts
(Ma et al., KDD 2018).

    e_n = f_n(x)                       N experts, each an MLP
    g_t = softmax(W_t x)               one linear gate per task; one for all tasks is OMoE
    h_t = sum_n g_tn e_n               what task t's tower reads

HMoE (hmoe.py) asks for a gate per scenario instead.
"""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Gt
from torch import Tensor, nn

from funnelrank.errors import ConfigError
from funnelrank.inputs import Inputs, Needs, Spec
from funnelrank.models.mlp import Rate, Widths
from funnelrank.nn.linear import MLP, Activation, Linear
from funnelrank.nn.mix import mixture


class MixtureOfExperts(nn.Module):
    """x.flat [B, W] -> [B, T, H], or [B, 1, H] with one gate for all (per="all"); H = hidden[-1].

    per="scenario" has a gate for each scenario with a name, and one for the rest, place 0 (nn/own.py), and gives all
    of their views, [B, P, H].
    """

    needs = Needs()
    splits = True         # flat may come as Halves: a user's part once for many rows

    def __init__(self, spec: Spec, *, experts: Annotated[int, Gt(0)] = 4, hidden: Widths = (128,),
                 activation: Activation = "relu", dropout: Rate = 0.0, norm: Literal["batch", "layer"] | None = None,
                 per: Literal["all", "task", "scenario"] = "task"):
        super().__init__()
        if per == "scenario" and not spec.known:
            raise ConfigError("model.represent.per: scenario needs scenarios; set data.scenario to the column that "
                              "names them")
        self.views = {"all": 1, "task": spec.tasks, "scenario": spec.known + 1}[per]
        self.views_per = "scenario" if per == "scenario" else "task"
        self.experts = MLP(spec.flat, hidden, activation=activation, dropout=dropout, norm=norm, stack=experts)
        self.gates = Linear(spec.flat, experts, bias=False, stack=self.views)
        self.hidden = self.experts.out

    def forward(self, x: Inputs) -> Tensor:
        experts, gates = self.experts.beside(self.gates, x.flat)        # [B, N, H], [B, V, N]
        return mixture(gates, experts)                                  # [B, V, H]
