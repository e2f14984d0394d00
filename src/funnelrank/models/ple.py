"""PLE: Progressive Layered Extraction, A Novel Multi-Task Learning Model for Personalized Recommendations
(Tang et al., RecSys 2020). One level of it is CGC, Customized Gate Control.

Experts are owned by a task or shared by all. Level j reads what level j-1 gave (level 0 gives flat to everybody):

    e_tm^j = f_tm(x_t^{j-1})                                own experts of task t, m = 1 .. own
    s_m^j  = f_m(x_s^{j-1})                                 shared experts, m = 1 .. shared
    g_t^j  = softmax(W_t x_t^{j-1})                         over own and shared experts: one linear layer
    x_t^j  = sum_m g_tm^j [e_t1 .. e_t,own, s_1 .. s_shared]
    g_s^j  = softmax(W_s x_s^{j-1}),  x_s^j  = the same sum over the experts of all tasks and the shared ones

The last level has no shared output, since nothing would read it. With two levels or more a task's loss reaches the
experts of other tasks through x_s; with one it does not.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from funnelrank.errors import ConfigError
from funnelrank.inputs import Inputs, Needs, Spec
from funnelrank.models.mlp import Rate, Widths
from funnelrank.nn.linear import MLP, Activation, Linear


class ProgressiveExtraction(nn.Module):
    """x.flat [B, W] -> [B, T, H], one view per task; H = hidden[-1].

    own       experts of each task, in each level
    shared    experts that all tasks share, in each level
    levels    how many levels; 1 is CGC
    """

    needs = Needs()
    splits = True         # flat may come as Halves: a user's part once for many rows

    def __init__(self, spec: Spec, *, levels: Annotated[int, Gt(0)] = 2, own: Annotated[int, Ge(0)] = 2,
                 shared: Annotated[int, Ge(0)] = 2, hidden: Widths = (128,), activation: Activation = "relu",
                 dropout: Rate = 0.0, norm: Literal["batch", "layer"] | None = None):
        super().__init__()
        if own + shared == 0:
            raise ConfigError("model.represent: ple has neither own nor shared experts; give one of them a number")
        if not hidden:
            raise ConfigError("model.represent.hidden: found []; an expert has at least one layer")
        self.views, self.hidden = spec.tasks, hidden[-1]
        self.levels = nn.ModuleList(
            Level(spec.flat if j == 0 else self.hidden, spec.tasks, own, shared, last=j == levels - 1, hidden=hidden,
                   activation=activation, dropout=dropout, norm=norm) for j in range(levels))

    def forward(self, x: Inputs) -> Tensor:
        tasks = common = x.flat                                                 # [B, W]
        for level in self.levels:
            tasks, common = level(tasks, common)                                # [B, T, H], [B, H]
        return tasks


class Level(nn.Module):
    """tasks [B, T, in] or [B, in] for one that all share, common [B, in] -> ([B, T, H], [B, H] or None at the last)."""

    def __init__(self, width: int, tasks: int, own: int, shared: int, *, last: bool, hidden: Widths, **keys):
        super().__init__()
        self.tasks, self.n_own, self.n_shared = tasks, own, shared
        self.own = MLP(width, hidden, stack=tasks * own, **keys) if own else None
        self.shared = MLP(width, hidden, stack=shared, **keys) if shared else None
        # one candidate needs no gate; without shared experts nothing reads a shared state
        self.gate = Linear(width, own + shared, bias=False, stack=tasks) if own + shared > 1 else None
        self.common = None
        if shared and not last:
            self.common = Linear(width, tasks * own + shared, bias=False)

    def forward(self, tasks: Tensor, common: Tensor | None) -> tuple[Tensor, Tensor | None]:
        B = tasks.shape[0]
        own = shared = None
        if self.own is not None:
            each = tasks if tasks.dim() == 2 else tasks.repeat_interleave(self.n_own, 1)
            own = self.own(each)                                                # [B, T * own, H]
        if self.shared is not None:
            shared = self.shared(common)                                        # [B, shared, H]
        return self._mix(B, tasks, own, shared), self._mix_common(common, own, shared)

    def _mix(self, B: int, tasks: Tensor, own: Tensor | None, shared: Tensor | None) -> Tensor:
        if self.gate is None:
            return own if own is not None else shared.expand(B, self.tasks, -1)
        weight = self.gate(tasks).softmax(2)                                    # [B, T, own + shared]
        h = weight.new_zeros(())
        if own is not None:
            mine = own.unflatten(1, (self.tasks, self.n_own))                   # [B, T, own, H]
            h = h + (weight[:, :, :self.n_own].unsqueeze(2) @ mine).squeeze(2)
        if shared is not None:
            h = h + weight[:, :, self.n_own:] @ shared
        return h                                                                # [B, T, H]

    def _mix_common(self, common: Tensor, own: Tensor | None, shared: Tensor | None) -> Tensor | None:
        if self.common is None:
            return None
        weight = self.common(common).softmax(1).unsqueeze(1)                    # [B, 1, T * own + shared]
        experts = shared if own is None else torch.cat([own, shared], 1)
        return (weight @ experts).squeeze(1)                                    # [B, H]
