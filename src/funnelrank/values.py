"""What the outputs of a task say of its label where that is not yes or no: a distribution for each kind.

kind         outputs z   of y                                              mean
regression   z           N(m + d z, d^2)                                   m + d z
count        z           Poisson(e^z)                                      e^z
ziln         z0 z1 z2    0 with 1 - p, else LogNormal(mu, sigma)           p exp(mu + sigma^2 / 2)
                         p = s(z0), mu = z1, sigma = softplus(z2)
multiclass   z0 z1 ...   k with probability softmax(z)_k                   (the likeliest class's probability)

m and d are the mean and the spread of the label in train, so that its unit does not set the loss's size. ziln is the
zero-inflated lognormal of Wang, Liu & Miao, "A Deep Probabilistic Model for Customer Lifetime Value Prediction"
(arXiv 1912.07753); like the authors' code it keeps sigma above the root of the float's epsilon.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

RARE = 1e-6       # shares never or always seen start at log-odds of +-13.8, not at infinity


def mean(kind: str, z: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """Expected value [B] of a task's own outputs z [B, k]; of classes, which have none, the likeliest's probability."""
    if kind == "regression":
        return loc + scale * z[:, 0]
    if kind == "count":
        return z[:, 0].exp()
    if kind == "multiclass":
        return z.softmax(1).amax(1)
    z0, mu, raw = z.unbind(1)
    return (F.logsigmoid(z0) + mu + 0.5 * _sigma(raw).square()).exp()


def nll(kind: str, z: Tensor, y: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """Negative log likelihood [B] of y [B] under a task's own outputs z [B, k].

    regression   (y - mean)^2 / (2 d^2)        up to a constant
    count        e^z - y z                     up to terms of y alone
    multiclass   -log softmax(z)_y
    ziln         -log(1 - p) of y = 0;  -log p + log(y sigma sqrt(2 pi)) + (log y - mu)^2 / (2 sigma^2) of y > 0
    """
    if kind == "regression":
        return 0.5 * ((y - loc) / scale - z[:, 0]).square()
    if kind == "count":
        return z[:, 0].exp() - y * z[:, 0]
    if kind == "multiclass":
        return -z.log_softmax(1).gather(1, y.long().unsqueeze(1)).squeeze(1)
    z0, mu, raw = z.unbind(1)
    sigma, positive = _sigma(raw), y > 0
    log_y = torch.where(positive, y, 1.0).log()
    spent = log_y + sigma.log() + 0.5 * math.log(2 * math.pi) + 0.5 * ((log_y - mu) / sigma).square()
    return torch.where(positive, spent - F.logsigmoid(z0), -F.logsigmoid(-z0))


def starts(kind: str, label: Mapping[str, Any], outputs: int = 1) -> tuple[float, ...]:
    """Where the outputs' biases start: at what train's labels say without any feature.

    label   mean; of a ziln also positive, the share above 0, and log_mean, log_std of those; of classes, shares
    """
    if kind == "regression":
        return (0.0,)
    if kind == "count":
        return (math.log(max(label["mean"], RARE)),)
    if kind == "multiclass":
        return tuple(math.log(max(p, RARE)) for p in label.get("shares") or [1 / outputs] * outputs)
    return log_odds(label["positive"]), label["log_mean"], math.log(math.expm1(max(label["log_std"], 0.01)))


def log_odds(p: float) -> float:
    p = min(max(p, RARE), 1 - RARE)
    return math.log(p / (1 - p))


def _sigma(raw: Tensor) -> Tensor:
    return F.softplus(raw).clamp(min=math.sqrt(torch.finfo(raw.dtype).eps))
