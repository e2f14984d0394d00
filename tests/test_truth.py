"""benchmarks/truth.py: what it measures is what it says, and it runs."""

import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import truth  # noqa: E402


def test_auc_is_that_of_all_labels_that_the_truth_may_draw():
    rng = np.random.default_rng(0)
    p, q = rng.random(5), np.array([0.1, 0.4, 0.4, 0.2, 0.9])
    above = below = 0.0
    for y in product((0, 1), repeat=5):                     # pairs of a positive and a negative, over all draws
        y = np.array(y)
        chance = np.prod(np.where(y, p, 1 - p))
        for i, j in product(np.flatnonzero(y == 1), np.flatnonzero(y == 0)):
            above += chance * (1.0 if q[i] > q[j] else 0.5 if q[i] == q[j] else 0)
            below += chance
    own = ((p * (1 - p)) / 2).sum()                         # a row is never a pair with itself
    assert truth.auc(p, q) == pytest.approx((above + own) / (below + 2 * own), abs=1e-12)
    assert truth.auc(p, p) >= truth.auc(p, q)


def test_the_truth_is_without_divergence_and_nothing_else_is():
    p, w = np.array([0.1, 0.5, 0.9]), np.array([1.0, 2.0, 0.0])
    assert truth.kl(p, p, w) == 0 < truth.kl(p, p * 0.9, w)
    assert truth.kl(p, np.array([0.1, 0.5, 0.2]), w) == 0           # a row without weight


@pytest.mark.parametrize("funnel", [{}, {"funnel": ("click", "cart", "buy")}])
def test_a_world_is_measured(tmp_path, monkeypatch, funnel):
    monkeypatch.setitem(truth.WORLDS, "tiny", {"alike": 2.0, **funnel})
    log = truth.world(tmp_path, "tiny", 0, 2000)
    runs = {model: [truth.measured(log, "tiny", model, 0)] * 2 for model in (truth.BASE, "ESCM2-DR")}
    given = "carted" if funnel else "clicked"
    for each in runs.values():
        assert all(r[f"buy ratio {given}"] > 0 and r["click ratio"] > 0 and r["click auc"] > -0.1 for r in each)
        shown = [c for table in truth.tables(truth.steps("tiny")) for c in table]
        assert all(sorted(r) == sorted(shown) for r in each)
    first, *tables = truth.report("tiny", runs).split("\n\n")
    assert first.startswith("### tiny: `alike=2") and len(tables) == (3 if funnel else 1)
    for lines in (table.splitlines() for table in tables):
        assert len(lines) == 4 and lines[-1].startswith("| ESCM2-DR | ")
        assert len({line.count("|") for line in lines}) == 1
