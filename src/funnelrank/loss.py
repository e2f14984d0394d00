"""What training minimises: one loss per task over its observed labels, and the calibrator."""

from collections.abc import Sequence

import torch
from torch import Tensor

from funnelrank.funnel import Funnel, Prediction


def task_losses(funnel: Funnel, said: Prediction, labels: Tensor, weight: Tensor) -> Tensor:
    """Mean negative log likelihood of each task over the rows where its label was observed.

        L_t = sum_i w_i m_it l_it / sum_i w_i m_it,     m_it = 1 where y_it was observed

    labels [B, T] with NaN for "not observed", weight [B] >= 0 -> [T]. A task that no row observes gives 0.
    """
    weight = weight.unsqueeze(1) * funnel.observed(labels)                  # [B, T]
    total = weight.sum(0)
    return (weight * funnel.nll(said, labels)).sum(0) / torch.where(total > 0, total, 1.0)


def calibrator(said: Prediction, parents: Sequence[int | None], kinds: Sequence[str]) -> Tensor:
    """AITM's behavioural expectation calibrator (KDD 2021): a later step is not likelier than an earlier.

        L_lc = mean_B sum_t max(p_t - p_parent(t), 0)

    From predictions only, so rows with missing labels count too. Identically 0 under every other reading than joint. A
    scalar.
    """
    edges = [(t, p) for t, p in enumerate(parents) if p is not None and kinds[t] == "binary"]
    if not edges:
        return said.mean.new_zeros(())
    p = said.mean.unbind(1)
    return sum((p[t] - p[parent]).clamp(min=0).mean() for t, parent in edges)
