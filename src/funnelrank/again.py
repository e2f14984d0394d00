"""What was done once, done again: the batch that stopped a run looked at, and a whole run compared to the last bit."""

from __future__ import annotations

import dataclasses
import json
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from funnelrank.api import Ranker, before_of, train
from funnelrank.config import load as load_config
from funnelrank.errors import ArtefactError, ConfigError, DataError
from funnelrank.flow import build, encode, open_data, prepare, silent
from funnelrank.flow import replay as replay_step
from funnelrank.train.events import Report
from funnelrank.train.health import Look
from funnelrank.train.standing import Standing, differences, read_record


def replay(folder: str | Path, step: int | None = None, report: Report = silent,
           continue_from: str | Path | None = None, allow_code: bool = False) -> Look:
    """The batch that stopped a run, or that of any other step, trained up to again and looked at.

    `continue_from`: where the run that it went on from is now, if it was moved. Raises ArtefactError where the folder
    holds no run, DataError where its files, or the run that it went on from, have changed since.
    """
    folder = Path(folder)
    record = read_record(folder)
    if record is None:
        raise ArtefactError(f"{folder}: holds no run.json, so it is no run's folder; name the one given as train.out")
    if step is None and "failure" not in record:
        raise ConfigError(f"step: the run in {folder} was not stopped by its numbers; say which step to look at")
    config = load_config(record["config"], [f"train.out={json.dumps(str(folder))}"], allow_code=allow_code)
    if config.settings.train.threads is None:
        torch.set_num_threads(record["machine"]["threads"])
    data, began = open_data(config), _began(record.get("before"), continue_from)
    before = before_of(began["continue_from"], config, began["anew"]) if began else None
    if changed := Standing(folder, config, data.fingerprint(), before and before.mark).changed():
        raise DataError(f"{folder}: not the rows that it was trained on ({'; '.join(changed)})")
    encoder = prepare(config, data, report, before and before.encoder_for(config))
    splits = encode(config, data, encoder, report)
    model = build(config, encoder, splits)
    start = before.onto(config, encoder, model)[0] if before else None
    return replay_step(config, model, encoder, splits, step or record["failure"]["step"], folder=folder, start=start)


def _began(said: Any, moved: str | Path | None) -> dict[str, Any]:
    """What a recorded run went on from, as arguments of `train`; nothing where it began from nothing."""
    return {"continue_from": moved or said["run"], "anew": said["anew"]} if isinstance(said, dict) else {}


@dataclass(frozen=True)
class Reproduction:
    """A training done again, beside the one that an artefact records. `weights` and `metrics` say what differs."""

    circumstances: list[str]         # 'versions.torch was ..., now ...'; a reason for what differs
    weights: dict[str, float]        # tensor -> largest difference
    metrics: dict[str, tuple[float | None, float | None]]      # 'test/buy/auc' -> then, now
    tensors: int
    rows: int

    @property
    def equal(self) -> bool:
        return not self.weights and not self.metrics


def reproduce(artefact: str | Path, out: str | Path | None = None, report: Report = silent,
              continue_from: str | Path | None = None, allow_code: bool = False) -> Reproduction:
    """Train what an artefact records once more, from its files, into `out` (default: a folder that goes), and compare.

    Threads are those of the first time. `continue_from`: where the run that it went on from is now, if it was moved.
    Raises what `train` raises, ConfigError if `out` is that run's own folder.
    """
    then = Ranker.load(artefact, allow_code)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(out or Path(place) / "run").absolute()
        if Path(artefact).resolve() in (folder.resolve(), (folder / "artefact").resolve()):
            raise ConfigError(f"out: {folder} holds the run to compare with; choose another folder")
        settings = then.config.settings
        settings = settings.model_copy(update={"train": settings.train.model_copy(update={"out": str(folder)})})
        threads = torch.get_num_threads()
        torch.set_num_threads(then.about.get("machine", {}).get("threads", threads))
        try:
            train(dataclasses.replace(then.config, settings=settings), report=report, fresh=True,
                  **_began(then.about.get("before"), continue_from))
        finally:
            torch.set_num_threads(threads)
        now = Ranker.load(folder, allow_code)
    about = [{k: r.about.get(k, {}) for k in ("versions", "machine", "data", "before", "encoder")} for r in (then, now)]
    a, b = then.model.state_dict(), now.model.state_dict()
    largest = lambda x, y: float((x.double() - y.double()).abs().max())
    weights = {k: largest(v, b[k]) if k in b and b[k].shape == v.shape else math.inf for k, v in a.items()
               if k not in b or not torch.equal(v, b[k])}
    name = lambda row: "/".join(str(row[k]) for k in ("split", "task", "scenario", "metric") if row.get(k) is not None)
    before, after = ({name(row): row["value"] for row in r.rows} for r in (then, now))
    return Reproduction(differences(*about), weights,
                        {k: (before.get(k), after.get(k)) for k in dict.fromkeys([*before, *after])
                         if before.get(k) != after.get(k)}, len(a), len(before))
