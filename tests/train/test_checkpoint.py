import os

import pytest
import torch

from funnelrank.errors import ArtefactError, TrainingError
from funnelrank.train.checkpoint import load_checkpoint, save_checkpoint

STATE = {"step": 12, "best": None, "lr": 0.1 + 0.2, "position": {"epoch": 1, "batch": 3},
         "history": [1, 2.5, "x", True], "random": 2**127 + 1}


def test_there_is_none_until_one_was_completed(tmp_path):
    assert load_checkpoint(tmp_path, "last") is None
    assert load_checkpoint(tmp_path / "nowhere", "last") is None


def test_tensors_and_state_come_back_bit_by_bit(tmp_path):
    tensors = {"w": torch.randn(3, 4), "n": torch.tensor(7), "none": torch.zeros(0, 2), "random": torch.get_rng_state(),
               "half": torch.randn(5).bfloat16(), "odd": torch.tensor([float("nan"), float("-inf"), -0.0])}
    save_checkpoint(tmp_path, "last", tensors, STATE)
    loaded, state = load_checkpoint(tmp_path, "last")
    assert state == STATE and list(state) == list(STATE)
    assert set(loaded) == set(tensors)
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype and loaded[name].shape == tensor.shape
        assert loaded[name].numpy(force=True).tobytes() == tensor.numpy(force=True).tobytes() \
            if tensor.dtype != torch.bfloat16 else torch.equal(loaded[name], tensor)


def run(model, optimiser, steps):
    for _ in range(steps):
        optimiser.zero_grad()
        model(torch.randn(8, 3)).square().mean().backward()
        optimiser.step()


def fresh():
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Dropout(0.5), torch.nn.Linear(4, 1))
    return model, torch.optim.Adam(model.parameters(), 0.1)


def test_a_run_resumed_from_a_checkpoint_is_the_run_that_never_stopped(tmp_path):
    straight, optimiser = fresh()
    run(straight, optimiser, 10)

    model, optimiser = fresh()
    run(model, optimiser, 4)
    moments = {f"adam.{i}.{k}": v for i, s in optimiser.state_dict()["state"].items() for k, v in s.items()}
    save_checkpoint(tmp_path, "last", {**{f"model.{k}": v for k, v in model.state_dict().items()}, **moments,
                                       "random": torch.get_rng_state()}, {"step": 4})
    torch.manual_seed(99)

    tensors, state = load_checkpoint(tmp_path, "last")
    resumed, optimiser = fresh()
    resumed.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
    adam = optimiser.state_dict()
    for name, tensor in tensors.items():
        if name.startswith("adam."):
            _, i, key = name.split(".")
            adam["state"].setdefault(int(i), {})[key] = tensor
    optimiser.load_state_dict(adam)
    torch.set_rng_state(tensors["random"])
    run(resumed, optimiser, 10 - state["step"])
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), resumed.parameters()))


def test_what_json_would_change_is_refused_before_anything_is_written(tmp_path):
    for bad, fault in [({"best": float("nan")}, ValueError), ({"best": float("inf")}, ValueError),
                       ({"t": (1, 2)}, TypeError), ({"d": {3: "x"}}, TypeError), ({"t": torch.zeros(1)}, TypeError)]:
        with pytest.raises(fault):
            save_checkpoint(tmp_path, "last", {}, bad)
    assert list(tmp_path.iterdir()) == []


def full(*args):
    raise OSError(28, os.strerror(28))


def test_the_one_before_survives_a_full_disk(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, "last", {"a": torch.ones(2)}, {"step": 1})
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TrainingError, match=r"checkpoint .*last: the disk is full \(.* free\)"):
        save_checkpoint(tmp_path, "last", {"a": torch.zeros(2)}, {"step": 2})
    monkeypatch.undo()
    tensors, state = load_checkpoint(tmp_path, "last")
    assert state == {"step": 1} and torch.equal(tensors["a"], torch.ones(2))
    assert [p.name for p in tmp_path.iterdir()] == ["last"]


def test_checkpoints_of_two_names_live_side_by_side_and_are_replaced(tmp_path):
    for step in range(3):
        save_checkpoint(tmp_path, "last", {"a": torch.tensor(step)}, {"step": step})
        if step == 1:
            save_checkpoint(tmp_path, "best", {"a": torch.tensor(step)}, {"step": step})
    assert load_checkpoint(tmp_path, "last")[1] == {"step": 2} and load_checkpoint(tmp_path, "best")[1] == {"step": 1}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best", "last"]


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "manifest.json"])
def test_a_checkpoint_that_was_cut_off_is_refused_not_skipped(tmp_path, name):
    save_checkpoint(tmp_path, "last", {"a": torch.ones(2)}, {"step": 1})
    path = tmp_path / "last" / name
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(ArtefactError, match=f"checkpoint {tmp_path}/last: .*{name}"):
        load_checkpoint(tmp_path, "last")


def test_a_folder_of_the_users_is_not_replaced_by_a_checkpoint(tmp_path):
    (tmp_path / "last").mkdir()
    (tmp_path / "last" / "notes.txt").write_text("mine")
    with pytest.raises(ArtefactError, match="is in the way and not replaced"):
        save_checkpoint(tmp_path, "last", {}, {})
    assert (tmp_path / "last" / "notes.txt").read_text() == "mine"
