"""Scores, labels and users on which every side's metrics are timed."""

import numpy as np


def scores(rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores [n] float32 in 0 .. 1, labels [n] of 0 and 1 that follow them, users [n] by Zipf's law, some 23 each."""
    rng = np.random.default_rng(rows)
    score = rng.random(rows, np.float32)
    label = (rng.random(rows) < 0.3 * score).astype(np.float32)
    return score, label, np.exp(rng.random(rows) * np.log(max(rows // 22, 2))).astype(np.int64)
