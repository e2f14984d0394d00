"""Whose run a folder holds, and how far it came: `run.json`.

    {"state": "running", "config": {...}, "data": {...}, "before": null, "versions": {...}, "machine": {...},
     "started": "..."}

state      running, then finished; failed where the numbers stopped the run (`failure` says where)
config     every setting, as `config.plain` writes it
data       per split and dimension table, the files that were read: path, size, time of change
before     null, or the run that this one goes on from: where it was, its manifest's hash, and what started anew

A run is gone on with where the settings that decide numbers, the data and the predecessor are the same. The record is
written when nothing of another run is left in the folder, and removed before anything of this one is, so that it never
speaks of checkpoints that are not its own.
"""

from __future__ import annotations

import datetime
import hashlib
import os
import platform
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy
import torch

from funnelrank import own_parts
from funnelrank.config import Config, plain
from funnelrank.durable import find_folder, flush_names, replace_file, write_failure
from funnelrank.errors import ArtefactError, ConfigError, TrainingError
from funnelrank.sealed import read_json, to_json
from funnelrank.train.checkpoint import discard_checkpoints

RECORD = "run.json"
COMPLETE = ("artefact", "metrics.json", "report.html")      # of a finished run
# where things lie and how often they are saved decides no number
FREE = (("train", "out"), ("train", "checkpoint_every"), ("train", "checkpoint_seconds"), ("train", "track"),
        ("data", "cache"), ("embedding", "sharding"))


class Standing:
    """The record of one run folder, as it was found and as it will be."""

    def __init__(self, folder: Path, config: Config, data: Mapping[str, Any],
                 before: Mapping[str, Any] | None = None):
        self.folder, self.found = folder, read_record(folder)
        self.record = {"state": "running", "config": plain(config.settings), "data": dict(data),
                       "before": before and dict(before), "machine": machine(),
                       "versions": versions() | own_parts.digests(config.settings.model),
                       "started": datetime.datetime.now(datetime.UTC).isoformat(" ", "seconds")}

    def changed(self) -> list[str]:
        """What config, data and predecessor are not those of the run that is there."""
        if self.found is None:
            return []
        was, now = (deciding_before(r.get("before")) for r in (self.found, self.record))
        code = [{k: v for k, v in r["versions"].items() if k.startswith(own_parts.CODE)}
                for r in (self.found, self.record)]
        return [*differences(deciding(self.found["config"]), deciding(self.record["config"])),
                *(f"data.{name}: its files changed" for name in sorted({*self.found["data"], *self.record["data"]})
                  if self.found["data"].get(name) != self.record["data"].get(name)),
                *differences(*code),
                *(["it went on from another run, or with other things anew (--continue-from, --anew)"]
                  if was != now else [])]

    @property
    def finished(self) -> bool:
        """Whether the folder holds all that this run would give, made by the same code."""
        return (self.found is not None and self.found["state"] == "finished" and not self.changed()
                and self.found["versions"] == self.record["versions"]
                and all((self.folder / name).exists() for name in COMPLETE))

    def begin(self, fresh: bool = False) -> bool:
        """Whether the run that is there is gone on with; otherwise nothing is left of it but what a finished run gave.

        Raises ConfigError for a run of another config or data, or from another run, that has not ended, unless `fresh`,
        or unless it left no checkpoint: one that stopped at its rows is mended in the config and given again.
        """
        changed, state = self.changed(), self.found and self.found["state"]
        trained = find_folder(self.folder / "checkpoints" / "last") is not None
        if not fresh and state == "running" and changed and trained:
            shown = "; ".join(changed[:5]) + (f"; and {len(changed) - 5} more" if len(changed) > 5 else "")
            raise ConfigError(f"train.out: {self.folder} holds a run that has not finished, of another config or data "
                              f"({shown}); end that one first, choose another folder, or begin anew with --fresh")
        goes_on = not fresh and self.found is not None and not changed and (
            state != "finished" or self.found["versions"] == self.record["versions"])
        if goes_on:
            self.record["started"] = self.found["started"]
        else:
            self._remove()
            discard_checkpoints(self.folder / "checkpoints")
        self._write()
        return goes_on

    def end(self) -> None:
        """Everything is on the disk."""
        self.record["state"] = "finished"
        self._write()

    def fail(self, failure: Mapping[str, Any]) -> None:
        """The numbers stopped the run; `failure` is kept for `replay`."""
        self.record |= {"state": "failed", "failure": dict(failure)}
        self._write()

    def _write(self) -> None:
        try:
            replace_file(self.folder / RECORD, to_json(self.record))
        except OSError as error:
            raise TrainingError(f"{self.folder / RECORD}: {write_failure(error, self.folder) or error}") from error

    def _remove(self) -> None:
        try:
            (self.folder / RECORD).unlink(missing_ok=True)
            flush_names(self.folder)
        except OSError as error:
            raise TrainingError(f"{self.folder / RECORD}: {write_failure(error, self.folder) or error}") from error


def read_record(folder: Path) -> dict[str, Any] | None:
    """What run.json says; None where there is none, or none that this version wrote."""
    path = folder / RECORD
    if not path.is_file():
        return None
    try:
        record = read_json(path, f"run {folder}")
    except ArtefactError:
        return None
    known = isinstance(record, dict) and all(isinstance(record.get(k), dict) for k in (
        "config", "data", "versions", "machine"))
    return record if known and {"state", "started"} <= set(record) else None


def deciding(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that decide a run's numbers."""
    free = {section for section, _ in FREE}
    return {section: {k: v for k, v in value.items() if (section, k) not in FREE} if section in free else value
            for section, value in settings.items() if section != "tune"}


def deciding_before(said: Any) -> Any:
    """A predecessor by what is in it, wherever it lies."""
    return {k: v for k, v in said.items() if k != "run"} if isinstance(said, dict) else None


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """'train.seed was 0, now 1' for every key that two configs say otherwise."""
    a, b = dict(leaves(before)), dict(leaves(now))
    spell = lambda side, key: repr(side[key]) if key in side else "not there"
    return [f"{key} was {spell(a, key)}, now {spell(b, key)}" for key in dict.fromkeys([*a, *b])
            if a.get(key) != b.get(key) or (key in a) != (key in b)]


def leaves(value: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """('train.seed', 0), ...: every value of a config that is no mapping, or an empty one, by its key with dots."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from leaves(item, f"{at}.{key}" if at else str(key))
    else:
        yield at, value


def versions() -> dict[str, str]:
    return {"funnelrank": version("funnelrank"), "torch": torch.__version__, "numpy": numpy.__version__,
            "pyarrow": version("pyarrow"), "python": platform.python_version(), "code": _code()}


@cache
def _code() -> str:
    """A hash of this package's own files: a version number alone does not tell an edited copy."""
    digest = hashlib.sha256()
    root = Path(__file__).parents[1]
    for path in sorted([*root.rglob("*.py"), *root.rglob("*.so"), *root.rglob("*.json")]):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def machine() -> dict[str, Any]:
    """What else decides the last bits: the processor, and how many threads compute."""
    return {"processor": platform.machine(), "capability": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(), "system": platform.system(),
            "cores": os.cpu_count(), "device": torch.cuda.get_device_name() if torch.cuda.is_available() else None}
