"""The loop: batch, loss, gradients, update; evaluation, early stopping and checkpoints between steps.

It knows no feature and no paper. Everything that decides what comes next is in `state` and the tensors of a
checkpoint: step, epoch, the loader's position, optimisers, averages, patience, random state.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from funnelrank import ranks
from funnelrank.batch import Batch
from funnelrank.errors import ArtefactError, TrainingError, listing
from funnelrank.loss import calibrator, is_plain, plain_losses
from funnelrank.ranker import RankingModel
from funnelrank.settings import Train
from funnelrank.train.balance import balance_of
from funnelrank.train.checkpoint import Part, discard_checkpoints, load_checkpoint, save_checkpoint
from funnelrank.train.events import Event, Report
from funnelrank.train.health import (
    Look,
    NotFinite,
    Watch,
    culprits,
    look,
    odd_gradients,
    odd_weights,
    stopped,
)
from funnelrank.train.optim import Average, RowUpdates, clip, dense_optimiser, dense_parameters, schedule_factor
from funnelrank.train.profile import Profile
from funnelrank.train.shared import Shared
from funnelrank.train.signals import Interrupted, held_signals

MOST_EPOCHS = 20                     # of `epochs: auto`
SAVING_SHARE = 20                    # between checkpoints by the clock, so many times as long as the last one took


# tensors and state that a run goes on from, as a Trainer's `tensors` and `state` gave them; state None: weights alone
Start = tuple[Mapping[str, Tensor], Mapping[str, Any] | None]


class Batches(Protocol):
    """What the loop asks of a loader."""

    def __len__(self) -> int: ...
    def epoch(self, number: int) -> Iterator[Batch]: ...
    def state(self) -> dict[str, Any]: ...
    def restore(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class Judged:
    """What an evaluation on valid found: the metric that early stopping follows, its direction, and all for the log."""

    value: float | None
    direction: int                   # +1: higher is better
    metrics: dict[str, float | None]


@dataclass(frozen=True)
class Trained:
    """How a run ended. `seconds` and `cpu_seconds` are training alone, without encoding and evaluation."""

    steps: int
    epochs: int
    best_step: int
    best: float | None
    seconds: float
    cpu_seconds: float
    rows: int
    kept: str = "last"               # which checkpoint holds the state that the model was left in


class Trainer:
    """Trains `model` on `batches`; `judge` evaluates it on valid, or None where there is no valid split. Of several
    ranks each has a Trainer; what the first one's `judge` says counts for all.
    """

    def __init__(self, model: RankingModel, settings: Train, weights: Tensor, *, folder: Path, report: Report,
                 judge: Callable[[], Judged | None] | None = None, profile: Profile | None = None):
        self.model, self.settings, self.folder, self.report, self.judge = model, settings, folder, report, judge
        self.profile = profile
        self.ends: Callable[[str], None] = profile.ends if profile else lambda part: None
        self.weights = weights                                           # [T] of tasks in the loss
        self.shared = Shared(model)
        self.balance = balance_of(settings.balance, model, self.shared)
        self.watch = Watch(model, report)
        self.dense = dense_parameters(model)
        self.optimiser = dense_optimiser(model, settings.optimiser) if self.dense else None
        self.base_lr = settings.optimiser.lr
        self.device = next(iter(model.funnel.buffers())).device
        self.step = self.epoch = self.rows = 0
        self.saved = self.evaluated = 0                                  # the steps of the last checkpoint, evaluation
        self.best: float | None = None
        self.best_step = self.waited = 0
        self.position: dict[str, Any] | None = None                      # of the loader, behind the last batch
        self.seconds = self.cpu_seconds = 0.0                            # up to `_since`
        self._since = (0.0, 0.0)                                         # wall and CPU clock
        self._last_log = (0.0, 0)                                        # when, and rows by then
        self._last_save, self._save_took = 0.0, 0.0
        self.plain = is_plain(model.funnel) and not (model.losses or model.spaces)
        self.apart = model.embedding.apart                               # one rank of several
        self.told = self.late = 0               # what ranks agreed on: a signal that one got, time for a checkpoint
        self.fuses = not self.apart                                      # rows move within backward where they can
        self._losses = torch.zeros(2, len(model.tasks) + 1)              # sums and steps: per task, then calibrator

    def run(self, batches: Batches, row_optimiser: RowUpdates, resume: bool = False,
            start: Start | None = None) -> Trained:
        """Train to the end and leave the best weights in the model (the averaged ones where averages are kept).

        With `resume`, from the last checkpoint in the folder, if there is one; otherwise those that are there go.
        `start`: what the run began from before any step, see `begin_from`.
        """
        s = self.settings
        self.updates = row_optimiser
        self.average = Average(self.model, self.model.embedding, s.average) if s.average else None
        if start:
            parts = self.parts()
            self.begin_from({k: parts[k].of(v) if k in parts else v for k, v in start[0].items()}, start[1])
        epochs, total = self._length(len(batches))
        if resume:
            self._resume(batches)
        else:
            ranks.led(lambda: discard_checkpoints(self.folder))
        self.updates.lay_together(self.average)
        self._last_log, self._last_save = (time.perf_counter(), self.rows), time.monotonic()
        with held_signals() as self.asked, self.profile or nullcontext(), _older_garbage_left_alone():
            first = self.epoch
            for self.epoch in range(first, epochs):
                if not self._ended:
                    self._train_epoch(batches, total)
                if self._ended:
                    break
            self._flush_log()
            self._evaluate()                                             # the steps since the last evaluation
            if self.saved != self.step:
                self._save("last")
        if self.profile and self.profile.steps:
            self.report({"event": "profile", "asked": self.profile.most is None,
                         **self.profile.result(self.updates, self.average)})
        kept = "best" if self.judge and self.best is not None else "last"
        if kept == "best":
            self._load_best()
        if self.average:
            self.average.catch_up()
            self.average._swap()
            self.updates.lay_apart()
        return Trained(self.step, self.epoch + 1, self.best_step or self.step, self.best, self.seconds,
                       self.cpu_seconds, self.rows, kept)

    def _train_epoch(self, batches: Batches, total: int | None) -> None:
        """What is left of an epoch: all of it, unless the run was resumed within it, or behind it."""
        every, done = self.settings.evaluate_every, self.position and self.position["epoch"] > self.epoch
        with self._timed():
            if every and self.step and self.step % every == 0:
                self._evaluate()                                         # the run ended in it
            for batch in () if done or self._ended else batches.epoch(self.epoch):
                self._train_step(batch.to(self.device), total, len(batches) * (self.epoch + 1))
                self.position = batches.state()
                if every and self.step % every == 0:
                    self._evaluate()
                if self._ended:
                    break
                self._save_if_due()
                if self.told if self.apart else self.asked.number:
                    self._leave()
            if not every:
                self._evaluate()
            if self.judge is None:
                self._save("last")

    def _length(self, batches: int) -> tuple[int, int | None]:
        """Epochs at most, of so many batches each, and steps, None where valid says how many."""
        s = self.settings
        if s.epochs != "auto" or s.steps:
            epochs = s.epochs if s.epochs != "auto" else math.ceil(s.steps / max(1, batches))
            return epochs, min(batches * epochs, s.steps or batches * epochs)
        return (MOST_EPOCHS, None) if self.judge else (1, batches)

    @property
    def _ended(self) -> bool:
        """Whether patience is spent, or the steps are done."""
        s = self.settings
        return bool(s.steps and self.step >= s.steps) or (
            self.judge is not None and self.waited >= s.early_stopping.patience)

    def _train_step(self, batch: Batch, total: int | None, planned: int) -> None:
        s = self.settings
        self.ends("loading")
        self.balance.begin(batch, self.shared)
        _, losses, pressed, whole = self._forward(batch)
        rest = self._rest(pressed)
        seen = (self.model.funnel.observed(whole.labels) & (whole.weight > 0).unsqueeze(1)).any(0)      # [T]
        self.ends("forward")
        self._check_finite(losses, rest, batch)
        if self.optimiser:
            self.optimiser.zero_grad(set_to_none=True)
        factor = schedule_factor(s.schedule, self.step, total)
        if self.fuses and not s.clip_norm and not self.balance.looks:             # nothing looks at the row gradients
            self.updates.fuse(factor, self.average)
        self.ends("other")
        gradients = self.balance.backward(self.weights * losses, seen, rest, self.shared)
        self.ends("backward")
        odd = odd_gradients(self.model, gradients, self.dense)
        if self._agree(bool(odd)):
            odd = list(dict.fromkeys(name for names in ranks.every(odd) for name in names))
            raise stopped("gradient", odd, self.step + 1, self._here, self._culprits(batch))
        if s.clip_norm:
            clip(self.dense, gradients, s.clip_norm, self.model.embedding.sharded)
        if self.optimiser:
            for group in self.optimiser.param_groups:
                group["lr"] = self.base_lr * factor
            self.optimiser.step()
        self.ends("dense step")
        self.updates.apply(gradients, factor)
        self.ends("row update")
        if self.average:
            self.average.update(gradients)
        self.ends("dense step")
        self.step += 1
        self.rows += len(whole)
        pressed = losses.new_zeros(1) if pressed is None else pressed.detach().view(1)
        self._losses += torch.stack([torch.cat([losses.detach(), pressed]),
                                     torch.cat([seen.float(), seen.new_ones(1).float()])]).cpu()
        if self.step % s.log_every == 0:
            self._flush_log(planned)
        if self.profile:
            self.profile.step_ends(batch)

    def _forward(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None, Batch]:
        """The model's outputs [B, O], losses [T], the calibrator, where it has a weight, and the batch these are of.

        Of several ranks each computes the losses of all their rows, from outputs that it is told, so that they are what
        one process would have; gradients flow to the outputs of its own.
        """
        if not self.model.training:
            self.model.train()
        with self._own_random():
            outputs = self.model.outputs(batch)
        if self.apart:
            outputs, batch = together(outputs, batch)
        funnel = self.model.funnel
        if self.plain:
            losses, pressed = plain_losses(funnel, outputs, batch.labels, batch.weight)
        else:
            said = funnel(outputs)
            losses = self.model.task_losses(said, batch)
            pressed = calibrator(said, funnel.parents, funnel.kinds, batch.weight) if self.model.calibrator else (
                losses.new_zeros(()))
        return outputs, losses, pressed if self.model.calibrator else None, batch

    def _rest(self, pressed: Tensor | None) -> Tensor | None:
        """What is minimised beside the tasks' losses: the calibrator times its weight, and parts' penalties."""
        asked = self.model.slots.penalty()
        if asked is not None and not ranks.first():
            asked = asked.detach()                       # gradients of ranks are added, and it has no rows to share
        if pressed is None:
            return asked
        return self.model.calibrator * pressed + (0.0 if asked is None else asked)

    @contextmanager
    def _own_random(self) -> Iterator[None]:
        """Each rank draws numbers of its own for its rows, by seed, step and rank; the shared state stays as it is."""
        if not self.apart:
            yield
            return
        shared, own = torch.get_rng_state(), np.random.SeedSequence(
            self.settings.seed, spawn_key=(self.step, ranks.rank()))
        torch.manual_seed(int(own.generate_state(1, np.uint64)[0] >> 1))
        try:
            yield
        finally:
            torch.set_rng_state(shared)

    def _agree(self, odd: bool) -> bool:
        """Whether `odd` on any rank; ranks also hear whether one was asked to stop, and whether it is time to save."""
        if not self.apart:
            return odd
        said = torch.tensor([int(odd), self.asked.number or 0, int(ranks.first() and self._is_late())])
        odd, self.told, self.late = ranks.most(said).tolist()
        return bool(odd)

    def _culprits(self, batch: Batch) -> list[str]:
        """What in the batch is odd; of several ranks, each in its own rows of it."""
        if not self.apart:
            return culprits(self.model, batch)
        said = ranks.every(culprits(self.model, batch))
        return [f"rank {r}: {line}" for r, lines in enumerate(said) for line in lines]

    @property
    def _here(self) -> dict[str, Any]:
        """Epoch and batch, from 0, of the step that is under way."""
        before = self.position or {"epoch": 0, "batch": 0}
        return {k: before[k] for k in ("epoch", "batch")}

    def _check_finite(self, losses: Tensor, rest: Tensor | None, batch: Batch) -> None:
        if math.isfinite((self.weights * losses.detach()).sum().item() + (0.0 if rest is None else rest.item())):
            return
        tasks = [t for t, v in zip(self.model.tasks, losses.tolist()) if not math.isfinite(v)] or [
            "calibrator" if self.model.calibrator else "penalty"]
        raise stopped("loss", tasks, self.step + 1, self._here, self._culprits(batch))

    def _check_weights(self) -> None:
        """Rows that nobody reads again would hide them; looked at where weights are saved or evaluated."""
        if odd := sorted({name for names in ranks.every(odd_weights(self.model)) for name in names}):
            raise stopped("weight", odd, self.step, self._here, [f"the steps since {self.saved} broke it"])

    def replay(self, batches: Batches, row_optimiser: RowUpdates, step: int, start: Start | None = None) -> Look:
        """Train to where `step` begins, or to an earlier one whose gradients are not finite, and look at its batch.

        From the last checkpoint if that is earlier, otherwise from the first step; nothing is written.
        """
        self.updates = row_optimiser
        self.fuses, s = False, self.settings                             # so that row gradients are seen, too
        self.average = Average(self.model, self.model.embedding, s.average) if s.average else None
        if start:
            self.begin_from(*start)
        found = load_checkpoint(self.folder, "last")
        if found and found[1]["step"] < step:
            self._resume(batches)
        epochs, total = self._length(len(batches))
        if total is not None and step > total:
            raise TrainingError(f"step {step}: the run has {total} steps; name one of them")
        first = self.epoch
        for self.epoch in range(first, epochs):
            done = self.position and self.position["epoch"] > self.epoch
            for batch in () if done else batches.epoch(self.epoch):
                batch, random = batch.to(self.device), torch.get_rng_state()
                if self.step + 1 < step:
                    try:
                        self._train_step(batch, total, 0)
                        self.position = batches.state()
                        continue
                    except NotFinite:
                        torch.set_rng_state(random)
                return self._look(batch)
        raise TrainingError(f"step {step}: the run has {self.step} steps; name one of them")

    def _look(self, batch: Batch) -> Look:
        self.balance.begin(batch, self.shared)
        outputs, losses, pressed, batch = self._forward(batch)
        rest = self._rest(pressed)
        said = self.model.funnel(outputs)
        self.model.zero_grad(set_to_none=True)
        seen = self.model.funnel.observed(batch.labels).any(0)
        gradients = self.balance.backward(self.weights * losses, seen, rest, self.shared)
        return look(self.model, said, batch, losses.detach(), gradients, self.step + 1, self._here)

    def _flush_log(self, planned: int | None = None) -> None:
        total, steps = self._losses
        if not steps[-1]:
            return
        mean = [a / n if n else None for a, n in zip(total.tolist(), steps.tolist())]    # None: nothing was observed
        self._losses.zero_()
        now, rows = time.perf_counter(), self.rows
        last, last_rows = self._last_log
        self._last_log = (now, rows)
        event: Event = {"event": "step", "step": self.step, "epoch": self.epoch + 1,
                        "loss": dict(zip(self.model.tasks, mean)), "rows": rows,
                        "rows_per_s": round((rows - last_rows) / max(now - last, 1e-9))}
        if self.model.calibrator:
            event["calibrator"] = mean[-1]
        if self.balance.weights is not None:
            event["weights"] = dict(zip(self.model.tasks, self.balance.weights.tolist()))
        if planned:
            event["steps"] = planned
        self.report(event)

    # ---- evaluation and early stopping

    def _evaluate(self) -> None:
        """Evaluate on valid, unless that was done at this step."""
        if self.judge is None or self.evaluated == self.step:
            return
        stop = self.settings.early_stopping
        self._flush_log()
        with self._untimed():
            judged = self.judged()
            better = judged.value is not None and (
                self.best is None or judged.direction * (judged.value - self.best) > stop.min_delta)
            self.report({"event": "evaluate", "step": self.step, "epoch": self.epoch + 1, "metrics": judged.metrics,
                         "metric": stop.metric, "value": judged.value, "better": better})
            self.evaluated = self.step
            if better:
                self.best, self.best_step, self.waited = judged.value, self.step, 0
                self._save("best")
            else:
                self.waited += 1
            self._save("last")

    def judged(self) -> Judged:
        self.model.eval()
        while True:
            try:
                with self.average.swapped_in() if self.average else nullcontext():
                    self._check_weights()
                    # ranks evaluate together: one that left would keep the others waiting
                    with self.watch.evaluating(self.step), nullcontext() if self.apart else self.asked.let_through():
                        return ranks.agreed(self.judge())
            except Interrupted:
                self._leave()

    @contextmanager
    def _timed(self) -> Iterator[None]:
        self._since = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            self._settle()

    @contextmanager
    def _untimed(self) -> Iterator[None]:
        self._settle()
        try:
            yield
        finally:
            self._since = time.perf_counter(), time.process_time()
            self._last_log = (self._since[0], self.rows)
            if self.profile:
                self.profile.begin()

    def _settle(self) -> None:
        """Count the time since the last call as training."""
        wall, cpu = time.perf_counter(), time.process_time()
        self.seconds += wall - self._since[0]
        self.cpu_seconds += cpu - self._since[1]
        self._since = wall, cpu

    # ---- checkpoints

    def tensors(self) -> dict[str, Tensor]:
        """Everything that is a tensor: weights, row states, the dense optimiser, averages, random state."""
        out = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        out |= {f"rows.{t}.{k}": v for t, state in self.updates.state.items() for k, v in state.items()}
        if self.optimiser:
            for i, p in enumerate(p for g in self.optimiser.param_groups for p in g["params"]):
                out |= {f"dense.{i}.{k}": torch.as_tensor(v) for k, v in self.optimiser.state.get(p, {}).items()}
        if self.average:
            out |= {f"average.dense.{i}": v for i, v in enumerate(self.average.shadow)}
            out |= {f"average.rows.{t}": v for t, v in self.average.rows.items()}
            out |= {f"average.seen.{t}": v for t, v in self.average.seen.items()}
        out |= {f"balance.{k}": v for k, v in self.balance.state.items()}
        if self.device.type == "cuda":
            out["random.device"] = torch.cuda.get_rng_state(self.device)
        return out | {"random": torch.get_rng_state(), "log": self._losses}

    def parts(self) -> dict[str, Part]:
        """Which of `tensors` are parts of larger ones, whose other rows lie with other ranks."""
        found = {}
        for name, table in self.model.embedding.tables.items():
            if table.sharded:
                of = [f"model.embedding.tables.{name}.weight", *(f"rows.{name}.{k}" for k in self.updates.state[name])]
                of += [f"average.rows.{name}", f"average.seen.{name}"] if self.average else []
                found |= dict.fromkeys(of, Part(table.first, len(table.weight), table.rows))
        return found

    def state(self) -> dict[str, Any]:
        """Everything that is a number: where the run stands."""
        return {"step": self.step, "epoch": self.epoch, "rows": self.rows, "best": self.best,
                "best_step": self.best_step, "waited": self.waited, "evaluated": self.evaluated,
                "position": self.position,
                "row_steps": self.updates.step_count,
                "average": {"steps": self.average.step_count, "log_decay": self.average.log_decay}
                if self.average else None, "seconds": self.seconds, "cpu_seconds": self.cpu_seconds}

    @torch.no_grad()
    def begin_from(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any] | None) -> None:
        """Weights, and with a state optimisers, averages and random state, as `tensors` and `state` once gave them.

        Where in its data a run stood, and what it thought its best, is not taken over.
        """
        self.model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
        if state is None or not state.get("average"):
            self.average = self.average and Average(self.model, self.model.embedding, self.average.decay)
        if state is None:
            return
        self.updates.step_count = state["row_steps"]
        for table, kept in self.updates.state.items():
            for k, v in kept.items():
                v.copy_(tensors[f"rows.{table}.{k}"])
        if self.optimiser:
            held: dict[int, dict[str, Tensor]] = {}
            for name in tensors:
                if name.startswith("dense."):
                    _, i, key = name.split(".")
                    held.setdefault(int(i), {})[key] = tensors[name]
            self.optimiser.load_state_dict(self.optimiser.state_dict() | {"state": held})
        if self.average and state["average"]:
            self.average.step_count = state["average"]["steps"]
            self.average.log_decay = state["average"]["log_decay"]
            for i, shadow in enumerate(self.average.shadow):
                shadow.copy_(tensors[f"average.dense.{i}"])
            for table in self.average.rows:
                self.average.rows[table].copy_(tensors[f"average.rows.{table}"])
                self.average.seen[table].copy_(tensors[f"average.seen.{table}"])
        for k, v in self.balance.state.items():
            if f"balance.{k}" in tensors:                                # a run's own; one before it may have had none
                v.copy_(tensors[f"balance.{k}"])
        if "random" in tensors:
            torch.set_rng_state(tensors["random"])
        if "random.device" in tensors and self.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["random.device"], self.device)

    def _save(self, name: str) -> None:
        """Under either name the whole state, so that whichever the model is left in can be gone on from."""
        began = time.monotonic()
        self._check_weights()
        save_checkpoint(self.folder, name, self.tensors(), self.state(), self.parts())
        if name == "last":
            self.saved, self._last_save = self.step, time.monotonic()
            self._save_took = self._last_save - began
        self.report({"event": "checkpoint", "step": self.step, "name": name})
        if self.profile:
            self.profile.begin()

    def _save_if_due(self) -> None:
        every, late = self.settings.checkpoint_every, self.late if self.apart else self._is_late()
        if self.saved != self.step and (late or every and self.step % every == 0):
            self._settle()
            self._save("last")

    def _is_late(self) -> bool:
        """Whether the clock says that it is time for a checkpoint."""
        seconds = self.settings.checkpoint_seconds
        return bool(seconds) and time.monotonic() - self._last_save >= max(seconds, SAVING_SHARE * self._save_took)

    def _leave(self) -> None:
        """Checkpoint, and let the signal do what it would have done."""
        if self.step:
            self._save("last")
            self.report({"event": "interrupted", "step": self.step})
        if self.apart:
            self.asked.number = self.told
        self.asked.pass_on()

    def _resume(self, batches: Batches) -> None:
        found = load_checkpoint(self.folder, "last", self.parts(), self.tensors())
        self.report({"event": "resume", "step": found[1]["step"] if found else 0})
        if found is None:
            return
        tensors, state = found
        mine = self.tensors()
        given = {k for k in tensors if not k.startswith(("dense.", "random"))}
        if odd := given ^ {k for k in mine if not k.startswith(("dense.", "random"))}:
            raise ArtefactError(f"checkpoint {self.folder / 'last'}: is of another model ({listing(sorted(odd))} only "
                                "on one side); begin anew with --fresh")
        with torch.no_grad():
            mine["log"].copy_(tensors["log"])
        self.begin_from(tensors, state)
        self.step, self.epoch, self.rows, self.position = (state[k] for k in ("step", "epoch", "rows", "position"))
        self.best, self.best_step, self.waited = state["best"], state["best_step"], state["waited"]
        self.evaluated, self.saved = state["evaluated"], self.step
        self.seconds, self.cpu_seconds = state["seconds"], state["cpu_seconds"]
        batches.restore(self.position)

    def _load_best(self) -> None:
        tensors, state = load_checkpoint(self.folder, "best", self.parts(), self.tensors()) or ({}, {"step": None})
        if state["step"] != self.best_step or "row_steps" not in state:
            raise ArtefactError(f"checkpoint {self.folder / 'best'}: should be the whole state of step "
                                f"{self.best_step}, and is of {state['step']}; begin anew with --fresh")
        self.begin_from(tensors, state)


@contextmanager
def _older_garbage_left_alone() -> Iterator[None]:
    """Python's collector runs every few steps; it need not walk each time over all that was there before."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def together(outputs: Tensor, batch: Batch) -> tuple[Tensor, Batch]:
    """Every rank's outputs [B, O], and a batch of all their rows that holds what losses read, and no features.

    Gradients flow to this rank's outputs; those of the others are numbers to it.
    """
    columns = [outputs.detach(), batch.labels, batch.weight.unsqueeze(1), batch.user.unsqueeze(1)]
    packed = [c.contiguous().view(torch.int32) for c in columns]                 # the bits, whatever they mean
    every = ranks.gather(torch.cat(packed, 1))
    said, labels, weight, user = (part.contiguous().view(c.dtype) for part, c in zip(
        torch.cat(every).split([p.shape[1] for p in packed], 1), columns))
    before = sum(len(part) for part in every[:ranks.rank()])
    empty = lambda x: x.new_empty(len(weight), 0)
    whole = Batch(empty(batch.ids), empty(batch.numbers), batch.values[:0], batch.offsets[:1], batch.scenario[:0],
                  labels, weight.squeeze(1), user.squeeze(1))
    return torch.cat([said[:before], outputs, said[before + len(outputs):]]), whole
