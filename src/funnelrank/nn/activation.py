"""Activations that carry state."""

import torch
from torch import Tensor, nn


class Dice(nn.Module):
    """f(s) = p s + (1 - p) alpha s,  p = sigmoid((s - E[s]) / sqrt(Var[s] + eps))   (DIN, arXiv 1706.06978).

    Mean and variance are per channel, of the batch while training and running averages otherwise; alpha is per channel
    and starts at 0. s [n, H] -> [n, H].
    """

    def __init__(self, width: int, eps: float = 1e-8):
        super().__init__()
        self.norm = nn.BatchNorm1d(width, eps=eps, affine=False)
        self.alpha = nn.Parameter(torch.zeros(width))

    def forward(self, s: Tensor) -> Tensor:
        if not self.training or len(s) < 2:         # one row has no variance to take
            p = torch.sigmoid((s - self.norm.running_mean) / (self.norm.running_var + self.norm.eps).sqrt())
        else:
            p = torch.sigmoid(self.norm(s))
        return p * s + (1 - p) * self.alpha * s
