"""The loop on made batches: what it learns, when it stops, and what it leaves behind."""

import json
from dataclasses import replace

import pytest
import torch
from made import batch, config, model

from funnelrank.errors import TrainingError
from funnelrank.settings import Train
from funnelrank.train.checkpoint import load_checkpoint
from funnelrank.train.optim import RowUpdates
from funnelrank.train.trainer import Judged, Trainer


class Batches:
    """Three batches an epoch, always the same."""

    def __init__(self, change=lambda i, b: b):
        self.all = [change(i, batch(32, seed=i)) for i in range(3)]
        self.at = None

    def __len__(self):
        return 3

    def epoch(self, number):
        for i, b in enumerate(self.all):
            self.at = {"epoch": number, "batch": i + 1}
            yield b

    def state(self):
        return self.at


def run(tmp_path, judge=None, batches=None, m=None, **train):
    m = m or model()
    events = []
    trainer = Trainer(m, Train(**{"log_every": 1, **train}), torch.ones(3), folder=tmp_path, report=events.append,
                      judge=judge)
    trained = trainer.run(batches or Batches(), RowUpdates(m.embedding, config().embedding.optimiser))
    return m, trained, events


def judged(values):
    values = iter(values)
    return lambda: Judged(next(values), +1, {"valid/auc": 0.5})


def test_without_valid_auto_is_one_epoch(tmp_path):
    _, trained, _ = run(tmp_path)
    assert (trained.steps, trained.epochs, trained.rows) == (3, 1, 96)


def test_loss_falls(tmp_path):
    _, _, events = run(tmp_path, epochs=30)
    losses = [sum(e["loss"].values()) for e in events if e["event"] == "step"]
    assert losses[-1] < 0.8 * losses[0]
    json.dumps(events)


def test_patience_stops_and_the_best_weights_come_back(tmp_path):
    m, trained, events = run(tmp_path, judged([0.6, 0.7, 0.65, 0.64]), epochs=10,
                             early_stopping={"patience": 2}, average=None)
    assert (trained.epochs, trained.best_step, trained.best) == (4, 6, 0.7)
    tensors, state = load_checkpoint(tmp_path, "best")
    assert state["step"] == 6
    assert all(torch.equal(tensors[f"model.{k}"], v) for k, v in m.state_dict().items())
    assert [e["better"] for e in events if e["event"] == "evaluate"] == [True, True, False, False]


def test_saved_weights_are_the_average_of_the_best_step(tmp_path):
    plain, _, _ = run(tmp_path / "a", judged([0.6, 0.5]), average=None)
    mean, _, _ = run(tmp_path / "b", judged([0.6, 0.5]), average=0.9)
    assert not torch.equal(plain.slots.predict.linear.weight, mean.slots.predict.linear.weight)


def test_a_null_metric_counts_as_no_improvement(tmp_path):
    _, trained, _ = run(tmp_path, judged([None, None]), epochs=5, early_stopping={"patience": 2})
    assert trained.epochs == 2 and trained.best is None


def test_evaluation_between_epochs(tmp_path):
    _, trained, events = run(tmp_path, judged([0.5, 0.6, 0.7]), epochs=2, evaluate_every=2)
    assert [e["step"] for e in events if e["event"] == "evaluate"] == [2, 4, 6]
    assert trained.best_step == 6


def test_steps_after_the_last_evaluation_are_evaluated(tmp_path):
    _, trained, events = run(tmp_path, judged([0.5, 0.6]), epochs=1, evaluate_every=2)
    assert [e["step"] for e in events if e["event"] == "evaluate"] == [2, 3] and trained.best_step == 3


def test_non_finite_loss_names_step_task_and_position(tmp_path):
    def poison(i, b):
        if i == 1:
            b = replace(b, numbers=b.numbers.clone())
            b.numbers[0, 0] = float("inf")
        return b

    with pytest.raises(TrainingError, match=r"step 2, epoch 1: the loss of .*click.* is not finite .*'batch': 1"):
        run(tmp_path, batches=Batches(poison))


def test_same_seed_same_bits(tmp_path):
    a, _, _ = run(tmp_path / "a", epochs=2)
    b, _, _ = run(tmp_path / "b", epochs=2)
    assert all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


def test_task_weight_zero_teaches_nothing_of_that_task(tmp_path):
    m = model(config({"name": "single_task"}))
    before = m.slots.predict.linear.weight.clone()
    trainer = Trainer(m, Train(average=None), torch.tensor([1.0, 0.0, 1.0]), folder=tmp_path, report=lambda e: None)
    trainer.run(Batches(), RowUpdates(m.embedding, config().embedding.optimiser))
    after = m.slots.predict.linear.weight
    assert torch.equal(before[1], after[1]) and not torch.equal(before[0], after[0])


def test_clipping_and_schedule_run(tmp_path):
    _, trained, _ = run(tmp_path, epochs=2, clip_norm=0.1, schedule={"name": "cosine", "warmup": 2})
    assert trained.steps == 6


def test_last_checkpoint_holds_all_that_a_resumed_run_needs(tmp_path):
    run(tmp_path, judged([0.5, 0.6]), epochs=2)
    tensors, state = load_checkpoint(tmp_path, "last")
    assert state["step"] == 6 and state["position"] == {"epoch": 1, "batch": 3} and state["best"] == 0.6
    assert {"rows.width_4.sum", "average.rows.width_4", "random", "dense.0.exp_avg"} <= set(tensors)


def test_dense_learning_rate_of_zero_would_be_refused():
    with pytest.raises(ValueError):
        Train(optimiser={"lr": 0})
