"""NFM: Neural Factorization Machines for Sparse Predictive Analytics (He & Chua, SIGIR 2017, arXiv 1708.05027).

    f_BI(x) = sum_{i<j} x_i v_i * x_j v_j = 1/2 [(sum_i x_i v_i)^2 - sum_i (x_i v_i)^2]          in R^D
    y = w_0 + sum_i w_i x_i + h . relu(W_L ... relu(W_1 f_BI + b_1) ... + b_L)

Dropout and batch normalisation act on f_BI too, as in the paper. The first order is the recipe's `side: [lr]`.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from funnelrank.inputs import Inputs, Needs, Spec
from funnelrank.models.fields import FieldVectors
from funnelrank.models.mlp import Rate, Widths
from funnelrank.nn.linear import MLP, Activation
from funnelrank.nn.norm import Norm


class NeuralFM(nn.Module):
    """h = MLP(f_BI): fields [B, F, D], numbers [B, N] -> [B, V, H]; V = T with per="task".

    hidden     widths of the layers on f_BI; [] leaves f_BI itself, and a linear head of ones is FM
    dropout    share of f_BI and of each layer's outputs set to 0 while training
    norm       normalisation of f_BI, and before each activation
    """

    needs = Needs(fields=True, numbers=True)
    reads = {"fields": None}

    def __init__(self, spec: Spec, *, hidden: Widths = (64,), activation: Activation = "relu", dropout: Rate = 0.0,
                 norm: Literal["batch", "layer"] | None = None, per: Literal["all", "task"] = "all"):
        super().__init__()
        self.views = spec.tasks if per == "task" else 1
        self.vectors = FieldVectors(spec)
        D = self.vectors.width
        self.pooled = nn.Sequential(*([Norm(norm, D)] if norm else []), nn.Dropout(dropout))
        self.mlp = MLP(D, hidden, activation=activation, dropout=dropout, norm=norm, stack=self.views)
        self.hidden = self.mlp.out

    def forward(self, x: Inputs) -> Tensor:
        return self.mlp(self.pooled(self.vectors.interaction(x)))                     # [B, V, H]
