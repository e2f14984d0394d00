"""What a model's outputs mean is said once, here: logits -> log p and log(1 - p) of every step of the funnel.

Each task owns a slice of the O outputs: one, its logit z, of a binary task (or two, whose difference f1 - f0 is z);
those that values.py reads of the others.

reading       log p(buy)
joint         logsigmoid(z_buy)                          a step over all impressions (MMoE, PLE, AITM)
conditional   log p(click) + logsigmoid(z_buy)           a step given the one before (ESMM); p(buy) <= p(click)
ordinal       logsigmoid(u_buy),                         cumulative log-odds (McCullagh 1980); p(buy) <= p(click)
              u_buy = u_click - softplus(-z_buy)         a gap above 0 below the step before; u_click = z_click

What a step adds is logsigmoid(z) <= 0: to log p under the conditional reading, to the log-odds under the ordinal one.
There s(z) is the ratio of the odds, and the step before enters what is given it:

    p(buy | click) = s(z_buy - log(1 - p(click)))        which is s(z_buy) where clicks are rare

Both log p and log(1 - p) are exact: taking one from the float32 other kills the gradient exactly where the model is
confidently wrong.
"""

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from funnelrank import values
from funnelrank.schema import Served


class Prediction(NamedTuple):
    """What a model says about B rows and T tasks.

    For a binary task `mean` is p, over all impressions whatever the reading. For other kinds `mean` is the expected
    value, and log_p and log_not_p are 0. `given` is the same given that the parent happened; it equals `mean` for a
    task without a parent, and for a value under the joint reading, which is learned on whatever rows its label is on.
    """

    logits: Tensor       # [B, O]
    log_p: Tensor        # [B, T] <= 0
    log_not_p: Tensor    # [B, T] <= 0
    mean: Tensor         # [B, T]
    given: Tensor        # [B, T] p(t | parent), or the expected value given the parent


class Funnel(nn.Module):
    """Gives outputs their meaning along the tree of tasks.

    parents   per task, the position of the task it comes after, or None; a parent stands before its children
    kinds     binary, or a kind of values.py
    loc, scale   [T] of regressions: mean = loc + scale * z, so that a label's unit does not set its loss's size
    outputs   per task, how many of the O are its own; one each where it is left out
    unserved  per task, how many of those, its last, only its loss reads (debias.py); none where it is left out
    """

    def __init__(self, parents: Sequence[int | None], reading: Literal["joint", "conditional", "ordinal"] = "joint",
                 kinds: Sequence[str] | None = None, loc: Sequence[float] | None = None,
                 scale: Sequence[float] | None = None, outputs: Sequence[int] | None = None,
                 unserved: Sequence[int] | None = None):
        super().__init__()
        T = len(parents)
        assert all(p is None or p < t for t, p in enumerate(parents)), "a parent stands before its children"
        self.parents, self.reading, self.nested = list(parents), reading, reading != "joint"
        self.kinds = list(kinds) if kinds is not None else ["binary"] * T
        ends = list(accumulate(outputs or [1] * T))
        read = [b - n for b, n in zip(ends, unserved or [0] * T)]
        self.slices = [slice(a, b) for a, b in zip([0, *ends], read)]          # of O, per task
        self.unserved = [slice(a, b) for a, b in zip(read, ends)]
        self.register_buffer("loc", torch.tensor(loc if loc is not None else [0.0] * T, dtype=torch.float32))
        self.register_buffer("scale", torch.tensor(scale if scale is not None else [1.0] * T, dtype=torch.float32))

    def forward(self, logits: Tensor) -> Prediction:
        """logits [B, O] -> Prediction."""
        z = logits if logits.shape[1] == len(self.kinds) else self._log_odds(logits)
        sure, sure_not, z = F.logsigmoid(z).unbind(1), F.logsigmoid(-z).unbind(1), z.unbind(1)        # T of [B]
        odds: list[Tensor] = []                                             # u, under the ordinal reading
        log_p: list[Tensor] = []
        log_not_p: list[Tensor] = []
        mean: list[Tensor] = []
        given: list[Tensor] = []
        for t, (parent, kind) in enumerate(zip(self.parents, self.kinds)):
            after = self.nested and parent is not None
            odds.append(z[t])
            if kind == "binary":
                lp, lq = step, not_step = sure[t], sure_not[t]
                if after and self.reading == "ordinal":
                    # p / p_a = s(z - log(1 - p_a)): as stable as a sigmoid, and p <= p_a to the last bit
                    odds[t] = odds[parent] + step
                    step = F.logsigmoid(z[t] - log_not_p[parent])
                    lp, lq = log_p[parent] + step, F.logsigmoid(-odds[t])
                elif after:
                    # log p_a + log s(z);  1 - p_a s(z) = (1 - p_a) + p_a s(-z)
                    lp, lq = log_p[parent] + step, torch.logaddexp(log_not_p[parent], log_p[parent] + not_step)
                elif parent is not None:
                    step = (lp - log_p[parent]).clamp(max=0)
                log_p.append(lp)
                log_not_p.append(lq)
                mean.append(lp.exp())
                given.append(step.exp())
            else:
                value = values.mean(kind, logits[:, self.slices[t]], self.loc[t], self.scale[t])
                whole = value * log_p[parent].exp() if after else value
                log_p.append(torch.zeros_like(value))
                log_not_p.append(torch.zeros_like(value))
                mean.append(whole)
                given.append(value)
        stack = lambda columns: torch.stack(columns, 1)
        return Prediction(logits, stack(log_p), stack(log_not_p), stack(mean), stack(given))

    def answer(self, said: Prediction, served: Served) -> Tensor:
        """One served column, [B]."""
        if served.of_class is None:
            return (said.given if served.given else said.mean)[:, served.task]
        p = said.logits[:, self.slices[served.task]].softmax(1)[:, served.of_class]
        parent = self.parents[served.task]
        return p if served.given or parent is None or not self.nested else p * said.mean[:, parent]

    def _log_odds(self, logits: Tensor) -> Tensor:
        """z [B, T] where some task has several outputs; of tasks that are not binary, one that is not read."""
        own = [logits[:, s] for s in self.slices]
        return torch.stack([x[:, 1] - x[:, 0] if kind == "binary" and x.shape[1] == 2 else x[:, 0]
                            for x, kind in zip(own, self.kinds)], 1)

    def nll(self, said: Prediction, labels: Tensor) -> Tensor:
        """Negative log likelihood [B, T] of labels [B, T]; 0 where a label is NaN, and so is its gradient.

        binary      -(y log p + (1 - y) log(1 - p)); other kinds as in values.py

        Where steps are nested (any reading but joint) a value after a task is observed only where that task is 1.
        """
        columns = []
        for t, (parent, kind) in enumerate(zip(self.parents, self.kinds)):
            y = labels[:, t]
            seen = ~y.isnan()
            y = torch.where(seen, y, 0.0)
            if kind == "binary":
                loss = -(y * said.log_p[:, t] + (1 - y) * said.log_not_p[:, t])
            else:
                if self.nested and parent is not None:
                    seen = seen & (labels[:, parent] == 1)
                # an unseen row must not overflow: 0 * inf is NaN
                z = torch.where(seen.unsqueeze(1), said.logits[:, self.slices[t]], 0.0)
                loss = values.nll(kind, z, y, self.loc[t], self.scale[t])
            columns.append(torch.where(seen, loss, 0.0))
        return torch.stack(columns, 1)

    def observed(self, labels: Tensor) -> Tensor:
        """[B, T] bool: which labels `nll` counts."""
        if not self.nested or set(self.kinds) == {"binary"}:
            return ~labels.isnan()
        columns = []
        for t, (parent, kind) in enumerate(zip(self.parents, self.kinds)):
            seen = ~labels[:, t].isnan()
            if kind != "binary" and self.nested and parent is not None:
                seen = seen & (labels[:, parent] == 1)
            columns.append(seen)
        return torch.stack(columns, 1)


def undo_down_sampling(said: Prediction, funnel: Funnel, task: int, rate: float) -> Prediction:
    """What the probabilities are before a share `rate` of the negatives of `task` was kept.

        p = p' r / (p' r + (1 - p'))           r = rate, p' as trained

    A step after `task` keeps its probability given `task`, so its p over all impressions falls by the same factor.
    Tasks beside it are left as they are: how they go together with `task` is not known. So are values under the joint
    reading, which may be recorded only where `task` happened. `task` has no parent (check.py).
    """
    log_p, log_not_p, mean = said.log_p.clone(), said.log_not_p.clone(), said.mean.clone()
    lp = log_p[:, task] + math.log(rate)
    whole = torch.logaddexp(lp, log_not_p[:, task])
    shift = lp - whole - said.log_p[:, task]                                # log of p / p'
    below = {task}
    for t, parent in enumerate(funnel.parents):
        if parent in below:
            below.add(t)
    for t in below:
        if funnel.kinds[t] == "binary":
            log_p[:, t] = said.log_p[:, t] + shift
            log_not_p[:, t] = log1mexp(log_p[:, t]) if t != task else log_not_p[:, t] - whole
            mean[:, t] = log_p[:, t].exp()
        elif funnel.nested:
            mean[:, t] = mean[:, t] * shift.exp()
    given = said.given.clone()
    given[:, task] = mean[:, task]
    return said._replace(log_p=log_p, log_not_p=log_not_p, mean=mean, given=given)


def log1mexp(log_p: Tensor) -> Tensor:
    """log(1 - exp(log_p)) for log_p <= 0, exact at both ends."""
    log_p = log_p.clamp(max=-torch.finfo(log_p.dtype).tiny)
    near = log_p > -math.log(2)
    return torch.where(near, (-torch.expm1(log_p)).log(), torch.log1p(-log_p.exp()))
