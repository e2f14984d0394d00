"""The loop on made batches: what it learns, when it stops, and what it leaves behind."""

import json
from dataclasses import replace

import pytest
import torch
from made import batch, config, model

from funnelrank.errors import TrainingError
from funnelrank.loss import calibrator, task_losses
from funnelrank.settings import Train
from funnelrank.train.checkpoint import load_checkpoint
from funnelrank.train.optim import RowUpdates, dense_parameters
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


def test_steps_end_a_run_within_an_epoch_or_after_several(tmp_path):
    ended = [run(tmp_path / f"{n}", steps=n)[1] for n in (2, 3, 7)]
    assert [(t.steps, t.epochs) for t in ended] == [(2, 1), (3, 1), (7, 3)]
    assert run(tmp_path / "b", steps=7, epochs=2)[1].steps == 6              # whichever comes first
    weight = lambda name, **said: run(tmp_path / name, average=None, **said)[0].slots.predict.linear.weight
    line = {"name": "linear"}
    assert torch.equal(weight("c", steps=6, schedule=line), weight("d", epochs=2, schedule=line))
    assert not torch.equal(weight("e", steps=5, schedule=line), weight("f", steps=5))


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

    with pytest.raises(TrainingError, match=r"step 2, epoch 1: the loss of .*click.* is not finite .batch 1 of .*"
                                            "'price' reads inf"):
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


@pytest.mark.parametrize("clip_norm", [None, 0.05])
def test_a_run_is_its_steps_written_by_hand(tmp_path, clip_norm):
    """Calibrator, task weights, clipping, and one schedule on both learning rates, against torch's own pieces."""
    settings = config({"name": "aitm", "calibrator": 50.0, "represent": {"hidden": [8]}})
    m, by_hand = model(settings), model(settings)
    rows, weights = settings.embedding.optimiser, torch.tensor([1.0, 0.5, 2.0])
    s = Train(epochs=1, average=None, clip_norm=clip_norm, schedule={"name": "linear", "warmup": 1, "final": 0.25})
    Trainer(m, s, weights, folder=tmp_path, report=lambda e: None).run(Batches(), RowUpdates(m.embedding, rows))

    dense = dense_parameters(by_hand)
    adam, updates = torch.optim.Adam(dense, lr=1e-3), RowUpdates(by_hand.embedding, rows)
    for b, factor in zip(Batches().all, (1.0, 1.0, 0.25)):
        by_hand.train()
        said = by_hand(b)
        loss = (weights * task_losses(by_hand.funnel, said, b.labels, b.weight)).sum()
        loss = loss + 50.0 * calibrator(said, by_hand.funnel.parents, by_hand.funnel.kinds, b.weight)
        adam.zero_grad()
        loss.backward()
        gradients = by_hand.embedding.take_gradients()
        if clip_norm:
            norm = torch.cat([p.grad.flatten() for p in dense] + [g.grad.flatten() for g in gradients]).norm()
            assert norm > clip_norm
            for grad in [p.grad for p in dense] + [g.grad for g in gradients]:
                grad *= clip_norm / norm
        adam.param_groups[0]["lr"] = 1e-3 * factor
        adam.step()
        updates.apply(gradients, factor)
    for (name, mine), theirs in zip(m.named_parameters(), by_hand.parameters()):
        torch.testing.assert_close(mine, theirs, atol=2e-6, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


def test_auto_without_valid_is_one_epoch_and_its_schedule_ends_there(tmp_path):
    plain, _, _ = run(tmp_path / "a", average=None)
    falling, _, _ = run(tmp_path / "b", average=None, schedule={"name": "linear"})
    one, _, _ = run(tmp_path / "c", average=None, schedule={"name": "linear"}, epochs=1)
    weight = lambda m: m.slots.predict.linear.weight
    assert torch.equal(weight(falling), weight(one)) and not torch.equal(weight(falling), weight(plain))


def test_without_valid_the_last_state_is_kept_all_the_same(tmp_path):
    run(tmp_path, epochs=2)
    assert load_checkpoint(tmp_path, "last")[1]["step"] == 6
    run(tmp_path, judged([0.5, 0.6]), epochs=1, evaluate_every=2, checkpoint_every=2)
    assert load_checkpoint(tmp_path, "last")[1]["step"] == 3


def test_a_task_that_no_row_observed_has_no_loss_in_the_log(tmp_path):
    def hide(i, b):
        labels = b.labels.clone()
        labels[:, 2] = float("nan")
        return replace(b, labels=labels) if i < 2 else b

    _, _, events = run(tmp_path, batches=Batches(hide), log_every=2)
    steps = [e for e in events if e["event"] == "step"]
    assert steps[0]["loss"]["buy"] is None and steps[0]["loss"]["click"] > 0 and steps[1]["loss"]["buy"] > 0


def test_a_last_batch_of_one_row_trains_under_batch_norm(tmp_path):
    class Odd(Batches):
        def __init__(self):
            super().__init__()
            self.all[2] = batch(1, seed=9)

    m = model(config({"name": "aitm", "represent": {"hidden": [8], "norm": "batch"}}))
    assert run(tmp_path, m=m, batches=Odd())[1].steps == 3


def test_last_checkpoint_holds_all_that_a_resumed_run_needs(tmp_path):
    run(tmp_path, judged([0.5, 0.6]), epochs=2)
    tensors, state = load_checkpoint(tmp_path, "last")
    assert state["step"] == 6 and state["position"] == {"epoch": 1, "batch": 3} and state["best"] == 0.6
    assert {"rows.width_4.sum", "average.rows.width_4", "random", "dense.0.exp_avg"} <= set(tensors)


def test_dense_learning_rate_of_zero_would_be_refused():
    with pytest.raises(ValueError):
        Train(optimiser={"lr": 0})
