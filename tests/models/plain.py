"""Layers written again as plain sums in float64, for the papers' restatements."""

import torch


def layer(linear, x, i=None):
    """W x + b of one row; layer i of a stack."""
    w, b = linear.weight.detach(), linear.bias.detach() if linear.bias is not None else None
    if i is not None:
        w, b = w[i], None if b is None else b[i]
    return w @ x if b is None else w @ x + b


def mlp(net, x, i=None, act=torch.relu):
    """An MLP of one row, without norm and dropout; network i of a stack."""
    for step in net.layers:
        x = act(layer(step["linear"], x, i))
    return x


def wake(module):
    """Float64, and no parameter left at a value that hides a term (zeros, ones)."""
    module.double()
    g = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=g, dtype=p.dtype))
    return module.eval()
