"""How far a distribution moved: the population stability index.

    PSI = sum over cells c of (q_c - p_c) ln(q_c / p_c),     p shares of the one sample, q of the other

0 where nothing moved. By custom .1 is little and .25 much. Cells that one sample lacks count as half a row of it.
"""

from __future__ import annotations

import numpy as np

MOST = 20               # cells that are asked: the largest, and the rest as one


def psi(before: np.ndarray, after: np.ndarray) -> float:
    """Of rows [K] counted in each cell, of two samples; arrays may differ in length (0 behind the end)."""
    K = max(len(before), len(after))
    p, q = (np.pad(np.asarray(x, np.float64), (0, K - len(x))) for x in (before, after))
    if K > MOST:
        order = np.argsort(-(p / max(p.sum(), 1) + q / max(q.sum(), 1)), kind="stable")
        p, q = (np.append(x[order[:MOST]], x[order[MOST:]].sum()) for x in (p, q))
    used = (p + q) > 0
    p, q = (np.maximum(x[used], 0.5) for x in (p, q))
    p, q = p / p.sum(), q / q.sum()
    return float(((q - p) * np.log(q / p)).sum())


def psi_noise(before: np.ndarray, after: np.ndarray) -> float:
    """The PSI to expect of two samples of one distribution: (cells - 1) (1 / n + 1 / m)."""
    K = min(max(len(before), len(after)), MOST + 1)
    return (K - 1) * (1 / max(np.sum(before), 1) + 1 / max(np.sum(after), 1))
