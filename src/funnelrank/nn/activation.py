"""Activations that carry state."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Dice(nn.Module):
    """f(s) = p s + (1 - p) alpha s,  p = sigmoid((s - E[s]) / sqrt(Var[s] + eps))   (DIN, arXiv 1706.06978).

    Mean and variance are per channel, of the batch while training and running averages otherwise; alpha is per channel
    and starts at 0. s [n, H] -> [n, H]; of a stack all side by side [n, stack * H], or layer i alone [n, H].
    """

    def __init__(self, width: int, eps: float = 1e-8, stack: int | None = None):
        super().__init__()
        self.width = width
        self.norm = nn.BatchNorm1d(width * (stack or 1), eps=eps, affine=False)
        self.alpha = nn.Parameter(torch.zeros(width * (stack or 1)))

    def forward(self, s: Tensor, i: int | None = None) -> Tensor:
        own = slice(None) if i is None else slice(i * self.width, (i + 1) * self.width)
        n, mean, variance = self.norm, self.norm.running_mean[own], self.norm.running_var[own]
        if not self.training or len(s) < 2:         # one row has no variance to take
            p = torch.sigmoid((s - mean) / (variance + n.eps).sqrt())
        else:
            if not i:
                n.num_batches_tracked.add_(1)
            p = torch.sigmoid(F.batch_norm(s, mean, variance, None, None, True, n.momentum, n.eps))
        return p * s + (1 - p) * self.alpha[own] * s
