"""`make costs`: what it counts is right, and it finds its place in every page."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))      # last: tests have a made.py of their own

import costs  # noqa: E402

from funnelrank.models import MODELS  # noqa: E402
from funnelrank.simulate import simulate  # noqa: E402


def test_a_deep_model_costs_its_weights_once_a_row(tmp_path):
    simulate(tmp_path / "log", rows=6000, users=100, items=50)
    cost = costs.measured("single_task", tmp_path / "log", tmp_path / "cache", seconds=0.01)
    weights = 3 * ((7 * 16 + 2) * 128 + 128 * 64 + 64)           # 6 ids and a history; a number and its absence
    assert cost.parameters == weights + 3 * (128 + 64 + 1) and cost.multiply_adds == weights
    assert cost.train > 0 and cost.score > 0


@pytest.fixture
def pages(tmp_path, monkeypatch):
    for page in costs.PAGES.glob("*.md"):
        (tmp_path / page.name).write_text(page.read_text())
    monkeypatch.setattr(costs, "PAGES", tmp_path)
    return tmp_path


def test_every_models_costs_find_their_place_and_are_written_anew(pages):
    for train in (10.0, 2000.0):
        costs.write({m: costs.Cost(1, 2.0, train, 4.0) for m in MODELS}, "setup")
    text = "".join(page.read_text() for page in pages.glob("*.md"))
    assert all(f"| `{m}` | 1 | 2 | 2 k | 4 |" in text for m in MODELS) and "| 10 |" not in text


def test_a_page_is_left_alone_unless_all_its_models_were_measured(pages):
    before = (pages / "deepfm.md").read_text()
    costs.write({"fm": costs.Cost(1, 2.0, 3.0, 4.0)}, "setup")
    assert (pages / "deepfm.md").read_text() == before
