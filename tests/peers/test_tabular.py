"""benchmarks/peers/tabular.py: every model of torch-rechub that takes part in the contest trains on encoded rows and
answers every task of every split."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch_rechub", reason="torch-rechub is not installed here; `make test-peers` installs it")

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path += [str(BENCHMARKS), str(BENCHMARKS / "peers")]

import tabular  # noqa: E402

MODELS = ("shared_bottom", "mmoe", "ple", "aitm", "esmm", "deepfm", "dcn_v2", "din", "wide_deep")
META = {"ids": ["video", "tab", "tab_x_video"], "numbers": ["since.missing"], "lists": ["tags", "seen"],
        "tasks": ["click", "view", "like"], "crosses": ["tab_x_video"], "splits": ["train", "valid", "test"],
        "space": {"video": "video", "tab": "tab", "tab_x_video": "tab_x_video", "tags": "tags", "seen": "video"},
        "size": {"video": 9, "tab": 4, "tab_x_video": 12, "tags": 5}}
ROWS = 80


@pytest.fixture
def place(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "meta.json").write_text(json.dumps(META))
    for split in META["splits"]:
        ids = np.stack([rng.integers(1, META["size"][n], ROWS) for n in META["ids"]], 1).astype(np.int32)
        labels = np.stack([(ids[:, 0] > 4) ^ (rng.random(ROWS) < 0.3) for _ in META["tasks"]], 1).astype(np.float32)
        lists = {}
        for i, name in enumerate(META["lists"]):
            offsets = np.concatenate([[0], rng.integers(0, 4, ROWS).cumsum()])
            lists[f"list{i}.offsets"] = offsets
            lists[f"list{i}.values"] = rng.integers(1, META["size"][META["space"][name]], offsets[-1]).astype(np.int32)
        np.savez(tmp_path / f"{split}.npz", ids=ids, numbers=rng.normal(size=(ROWS, 1)).astype(np.float32),
                 labels=labels, **lists)
    return tmp_path


@pytest.mark.parametrize("model", MODELS)
def test_it_trains_and_answers_every_task(place, model, monkeypatch, capsys):
    if model != "wide_deep":                            # nobody else is given crosses
        (place / "meta.json").write_text(json.dumps(META | {"crosses": [], "ids": META["ids"][:2]}))
    monkeypatch.setattr(sys, "argv", ["tabular.py", str(place), f"rechub-{model}", "0", '{"batch": 32, "lr": 0.01}'])
    tabular.main()
    about = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert about["parameters"] > 0 and about["cpu_seconds"] > 0
    scores = np.load(place / "scores.npz")
    assert sorted(scores) == ["test", "valid"]
    for split in scores:
        p = scores[split]
        assert p.shape == (ROWS, 3) and (p > 0).all() and (p < 1).all()
        assert (p.std(0) > 0).all()                     # no task is left without a model


def test_only_its_din_keeps_lists_that_have_a_feature_of_the_row_in_their_space():
    pooled = tabular.declared(META)["lists"]
    assert [f.pooling for f in pooled] == ["mean", "mean"]
    net = tabular.single("din", META)
    assert [f.name for f in net.history_features] == ["seen"] and [f.name for f in net.target_features] == ["video"]
    assert [f.name for f in net.features] == ["tab", "tags"]
