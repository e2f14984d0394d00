"""Trackers: who is told of a run besides its own events.jsonl. TensorBoard, MLflow, Weights & Biases; each optional.

A tracker sees numbers by name, and no event:

    train/loss/click, train/rows_per_s      of steps
    valid/auc_click                         of evaluations while it trains
    final/test/auc_click                    at its end, of the weights that are kept

Each works on a thread of its own. One that fails, or that hangs, is warned of once and told no more; it neither ends
nor holds up a run, and changes no number of it. A run that goes on, goes on in the trackers too: which run it is there
stands in events.jsonl, as {"event": "tracking", "tracker": "mlflow", "run": "4f0c..."}.
"""

from __future__ import annotations

import math
import os
import queue
import re
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from funnelrank import settings
from funnelrank.errors import ConfigError

PATIENCE = {"finished": 60.0, "failed": 5.0}     # seconds that the end of a run waits for its trackers
LONGEST = 500                                    # characters of a value of the config in MLflow
End = Literal["finished", "failed"]
Event = dict[str, Any]


@dataclass(frozen=True)
class Told:
    """What a tracker is told of a run before its first number."""

    name: str                       # 'demo', or 'demo/seed-3'
    folder: Path
    config: Mapping[str, Any]       # every key with dots -> its value


class Tracker(Protocol):
    """One place that runs are sent to. Whatever it raises ends it alone."""

    def begin(self, told: Told, run: str | None, step: int) -> str | None:
        """Called first. `run`: which run there this one goes on in, behind `step`; gives which one it is."""

    def log(self, step: int, seconds: float, values: Mapping[str, float]) -> None:
        """Numbers after `step`, at `seconds` since 1970."""

    def end(self, how: End) -> None:
        """Called last."""


class Trackers:
    """The trackers of one run; called with each of its events. Raises ConfigError where a library is missing."""

    def __init__(self, chosen: Sequence[settings.AnyTracker], told: Told):
        for at, said in enumerate(chosen):
            library, extra = NEEDS[said.name]
            if find_spec(library) is None:
                raise ConfigError(f"train.track[{at}]: {said.name} needs the library '{library}', which is not "
                                  f"installed; pip install 'funnelrank[{extra}]', or leave it out")
        self._workers = [_Worker(said.name, KINDS[said.name](said), told) for said in chosen]
        self._step = 0

    def __call__(self, event: Event, earlier: Iterable[Event]) -> list[Event]:
        """Passes its numbers on. Gives events that trackers have to tell; `earlier` are those of the run so far."""
        self._step = event.get("step", self._step)
        if values := values_of(event):
            runs = {e["tracker"]: e["run"] for e in earlier if e["event"] == "tracking"}
            begun = max((e["step"] for e in earlier if e["event"] == "resume"), default=0)
            for worker in self._workers:
                worker.log(runs.get(worker.name), begun, _Numbers(self._step, event["time"], values))
        return self._heard()

    def close(self, how: End) -> list[Event]:
        """Lets them finish, for as long as PATIENCE says."""
        until = time.monotonic() + PATIENCE[how]
        for worker in self._workers:
            worker.end(how)
        for worker in self._workers:
            worker.wait(max(until - time.monotonic(), 0.0))
        return self._heard()

    def _heard(self) -> list[Event]:
        return [{"event": "warning", "step": self._step, **said} if "said" in said else said
                for worker in self._workers for said in worker.heard()]


def values_of(event: Event) -> dict[str, float]:
    """The numbers of an event by name; none of an event that has none."""
    match event["event"]:
        case "step":
            named = {**{f"train/loss/{task}": loss for task, loss in event["loss"].items()},
                     **{f"train/weight/{task}": weight for task, weight in event.get("weights", {}).items()},
                     **{f"train/{key}": event.get(key) for key in ("calibrator", "rows_per_s")}}
        case "evaluate":
            named = event["metrics"]
        case "measured":
            named = {f"final/{name}": value for name, value in event["metrics"].items()}
        case _:
            named = {}
    return {name: float(value) for name, value in named.items() if value is not None and math.isfinite(value)}


class _Numbers(NamedTuple):
    step: int
    seconds: float
    values: dict[str, float]


class _Worker:
    """One tracker on its thread, which starts with the first numbers."""

    def __init__(self, name: str, tracker: Tracker, told: Told):
        self.name, self.tracker, self.told = name, tracker, told
        self._asked: queue.SimpleQueue[_Numbers | End] = queue.SimpleQueue()
        self._heard: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def log(self, run: str | None, begun: int, numbers: _Numbers) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, args=(run, begun), daemon=True,
                                            name=f"funnelrank-{self.name}")
            self._thread.start()
        self._asked.put(numbers)

    def end(self, how: End) -> None:
        self._asked.put(how)

    def wait(self, seconds: float) -> None:
        if self._thread is not None:
            self._thread.join(seconds)
            if self._thread.is_alive():
                self._warn(f"{self.name} was not done within the time that a run waits for it, and may lack what came "
                           "last; events.jsonl has all of it")

    def heard(self) -> list[Event]:
        found = []
        while not self._heard.empty():
            found.append(self._heard.get())
        return found

    def _work(self, run: str | None, begun: int) -> None:
        try:
            own = self.tracker.begin(self.told, run, begun)
            if own is not None and own != run:
                self._heard.put({"event": "tracking", "tracker": self.name, "run": own})
            while isinstance(asked := self._asked.get(), _Numbers):
                self.tracker.log(*asked)
            self.tracker.end(asked)
        except Exception as error:       # of a library, a server, a network: none of them is this run's fault
            first = next(iter(str(error).splitlines()), "")
            self._warn(f"{self.name} failed ({type(error).__name__}: {first[:300]}), and is told no more of this run; "
                       "events.jsonl has all of it")

    def _warn(self, said: str) -> None:
        self._heard.put({"what": f"tracker {self.name}", "said": said})


# ---- the three

class TensorBoard:
    """Event files in the run's folder."""

    def __init__(self, said: settings.TensorBoard):
        pass

    def begin(self, told: Told, run: str | None, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter
        self._board = SummaryWriter(str(told.folder), purge_step=step + 1)     # what an earlier try wrote behind it

    def log(self, step: int, seconds: float, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._board.add_scalar(name, value, step, seconds)

    def end(self, how: End) -> None:
        self._board.close()


class MLflow:
    """A run of an experiment; the config's values are its parameters."""

    def __init__(self, said: settings.MLflow):
        self.said = said

    def begin(self, told: Told, run: str | None, step: int) -> str:
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param, RunStatus
        self._metric, self._status = Metric, RunStatus
        self._client = MlflowClient(tracking_uri=self.said.uri)
        if run is not None:
            self._run = run
            self._client.update_run(run, status=RunStatus.to_string(RunStatus.RUNNING))
            return run
        name = self.said.experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "Default"
        there = self._client.get_experiment_by_name(name)
        experiment = there.experiment_id if there else self._client.create_experiment(name)
        self._run = self._client.create_run(experiment, run_name=told.name).info.run_id
        params = [Param(_plain(key), str(value)[:LONGEST]) for key, value in told.config.items()]
        for first in range(0, len(params), 100):                # the most that a server takes at once
            self._client.log_batch(self._run, params=params[first:first + 100])
        return self._run

    def log(self, step: int, seconds: float, values: Mapping[str, float]) -> None:
        metrics = [self._metric(_plain(name), value, int(1000 * seconds), step) for name, value in values.items()]
        for first in range(0, len(metrics), 1000):
            self._client.log_batch(self._run, metrics=metrics[first:first + 1000])

    def end(self, how: End) -> None:
        self._client.set_terminated(self._run, "FINISHED" if how == "finished" else "FAILED")


class Wandb:
    """A run of a project; offline, files for `wandb sync` in the run's folder."""

    def __init__(self, said: settings.Wandb):
        self.said = said

    def begin(self, told: Told, run: str | None, step: int) -> str:
        import wandb
        self._run = wandb.init(project=self.said.project, entity=self.said.entity, mode=self.said.mode,
                               name=told.name, id=run, resume="allow" if run else None, dir=str(told.folder),
                               config=dict(told.config), reinit="create_new",
                               settings=wandb.Settings(silent=True, console="off"))
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        return self._run.id

    def log(self, step: int, seconds: float, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def end(self, how: End) -> None:
        self._run.finish(exit_code=0 if how == "finished" else 1)


KINDS = {"tensorboard": TensorBoard, "mlflow": MLflow, "wandb": Wandb}
NEEDS = {"tensorboard": ("tensorboard", "tensorboard"), "mlflow": ("mlflow", "mlflow"), "wandb": ("wandb", "wandb")}


def _plain(name: str) -> str:
    """A name of the characters that MLflow takes."""
    return re.sub(r"[^\w/. -]", "_", name)
