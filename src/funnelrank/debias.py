"""Losses for a step that is only seen where the step before it happened, as conversions are only seen of clicks.

Who clicks is not chosen at random, so an average over clicks is not an average over impressions. With a the step before
t, o = 1 where a happened, r the label of t there, r^ = p(t | a), and the propensity q = p(a) of the model itself,
without gradient and kept above `clip`:

    d    = -(r log r^ + (1 - r) log(1 - r^))          the error, known where o = 1
    IPS    mean of o d / q                            unbiased where q is true
    DR     mean of d^ + o (d - d^) / q                d^: imputed; unbiased where q is true, or d^ right on average
           + mean of o (d - d^)^2 / q                 what the imputation learns from

ESCM2 (Wang et al., SIGIR 2022, arXiv 2204.05125) adds one of them, as a regulariser of counterfactual risk, to the
loss of ESMM: L_t = entire_space BCE(y_t, p(t)) + weight (IPS or DR). Where a stands further down a funnel, q is the
probability of an impression to reach a.

DCMT (Zhu et al., ICDE 2023) gives t a twin: r* would be the label had o been the other one, and r + r* = 1. A row
where a did not happen has r = 0, so its twin's label is 1. Both learn in their own space, with self-normalised
weights, and are to agree everywhere:

    sum of o d(r, r^) / q       sum of (1 - o) d(1, r^*) / (1 - q)
    ---------------------   +   ----------------------------------   +   agree mean of |1 - (r^ + r^*)|
    sum of o / q                sum of (1 - o) / (1 - q)

What the papers leave open, and what was chosen. Imputation and twin are outputs of the task, on the same tower as its
logit. In DR, d^ takes no gradient in the first mean and d none in the second, so that each learns from its own loss.
ESCM2's head gives d^ itself (`imputes: error`); then DR's gradient of r^ is that of IPS, and what imputing changes is
the tower they share. As in DR-JL (Wang et al., ICML 2019), the head can instead impute the label (`imputes: label`):
d^ = d(r~, r^), and rows without the step before teach r^, too. Weights of tasks and of rows count as in every loss;
means are over the rows of which it is known whether a happened and, where it did, whether t did.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from funnelrank.funnel import Funnel, Prediction


class Debias:
    """Losses [T] with what `model.debias` asks for: `said` is that section of the config, every default filled in."""

    def __init__(self, said: Mapping[str, Any]):
        self.how, self.clip = said["name"], said["clip"]
        self.weight, self.entire_space = said["weight"], said["entire_space"]
        self.imputes, self.agree = said.get("imputes"), said.get("agree")

    def __call__(self, funnel: Funnel, said: Prediction, labels: Tensor, weight: Tensor, losses: Tensor) -> Tensor:
        """losses [T] over all impressions; labels [B, T], weight [B] -> [T]; first steps and values keep theirs."""
        each = list(losses.unbind())
        for t in steps(funnel.parents, funnel.kinds):
            each[t] = self.entire_space * losses[t] + self.weight * self.of_step(funnel, said, labels, weight, t)
        return torch.stack(each)

    def of_step(self, funnel: Funnel, said: Prediction, labels: Tensor, weight: Tensor, t: int) -> Tensor:
        """The debiased loss of one step given the one before, a scalar."""
        a, head = funnel.parents[t], said.logits[:, funnel.unserved[t]]
        seen = ~labels[:, a].isnan() & ((labels[:, a] != 1) | ~labels[:, t].isnan())
        o = (labels[:, a] == 1) & seen
        r = torch.where(o, labels[:, t], 0.0)
        w = torch.where(seen, weight, 0.0)
        q = said.log_p[:, a].detach().exp().clamp(self.clip, 1 if self.how != "dcmt" else 1 - self.clip)
        z = said.logits[:, funnel.slices[t]].squeeze(1)
        d = error(r, z)
        if self.how == "ips":
            return inverse_propensity(d, o, q, w)
        head = head.squeeze(1)
        if self.how == "dr":
            if self.imputes == "label":
                d_hat = error(torch.sigmoid(head).detach(), z)
                off = error(r, z.detach()) - error(torch.sigmoid(head), z.detach())
            else:
                d_hat = F.softplus(head).detach()
                off = d.detach() - F.softplus(head)
            return doubly_robust(d, d_hat, o, q, w) + inverse_propensity(off.square(), o, q, w)
        factual, twin = w * o / q, w * ~o / (1 - q)
        return (mean(d, factual) + mean(error(torch.ones_like(r), head), twin)
                + self.agree * mean((1 - torch.sigmoid(z) - torch.sigmoid(head)).abs(), w))


def inverse_propensity(d: Tensor, o: Tensor, q: Tensor, w: Tensor) -> Tensor:
    """mean of o d / q over rows [B] with weights w: that of d, on average over who is observed (o), if q is true."""
    return mean(o * d / q, w)


def doubly_robust(d: Tensor, d_hat: Tensor, o: Tensor, q: Tensor, w: Tensor) -> Tensor:
    """mean of d^ + o (d - d^) / q: that of d, on average over who is observed, if q is true or d^ is."""
    return mean(d_hat + o * (d - d_hat) / q, w)


def steps(parents: Sequence[int | None], kinds: Sequence[str]) -> list[int]:
    """The tasks that a debias is about: binary ones with one before them."""
    return [t for t, (parent, kind) in enumerate(zip(parents, kinds)) if parent is not None and kind == "binary"]


def starts(said: Mapping[str, Any], log_odds: float) -> list[float]:
    """Where the biases of a step's outputs beyond its logit start, given the log-odds of its rate."""
    if said["name"] == "dcmt":
        return [-log_odds]
    if said["name"] != "dr":
        return []
    if said["imputes"] == "label":
        return [log_odds]
    p = 1 / (1 + math.exp(-log_odds))
    entropy = -(p * math.log(p) + (1 - p) * math.log(1 - p))
    return [math.log(math.expm1(entropy))]                                 # softplus of it is the mean error


def error(r: Tensor, z: Tensor) -> Tensor:
    """Cross entropy of sigmoid(z) for labels r in 0 .. 1."""
    return -(r * F.logsigmoid(z) + (1 - r) * F.logsigmoid(-z))


def mean(x: Tensor, w: Tensor) -> Tensor:
    """Mean of x with weights w; 0 where they are all 0."""
    total = w.sum()
    return (w * x).sum() / torch.where(total > 0, total, 1.0)
