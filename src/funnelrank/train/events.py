"""What happens in a run, as events: kept for the report, written as JSON lines, told to trackers and who listens."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from funnelrank.durable import lock_file, write_failure
from funnelrank.errors import ConfigError, TrainingError
from funnelrank.train.track import Trackers

Event = dict[str, Any]
Report = Callable[[Event], None]


class Recorder:
    """Events go to a file of JSON lines, to a list for the report, to the caller, and to trackers where asked.

    `progress` events, many a second, go to the caller alone. While it is open no other process records into the same
    file: that is a ConfigError there. The file goes on where it ended; `begin_anew` empties it. After a `resume` event
    of step n the list holds no event of a later step from before it, since those steps are done again; the file does.
    Raises TrainingError where the file cannot be written.
    """

    def __init__(self, path: Path, kept: list[Event], report: Report, trackers: Trackers | None = None):
        self.path, self.kept, self.report, self.trackers = path, kept, report, trackers

    def __enter__(self) -> Recorder:
        try:
            self._file = self.path.open("a+b")
        except OSError as error:
            raise self._failed(error) from error
        if not lock_file(self._file.fileno()):
            self._file.close()
            raise ConfigError(f"train.out: another process is training into {self.path.parent} just now; wait for its "
                              "end, or choose another folder")
        self._take_up()
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if self.trackers:
            with contextlib.suppress(TrainingError) if kind else contextlib.nullcontext():
                for said in self.trackers.close("finished" if kind is None else "failed"):
                    self(said)
        try:
            self._file.close()
        except OSError as error:         # of a line that could not be written, for which TrainingError is on its way
            if kind is None:
                raise self._failed(error) from error

    def begin_anew(self) -> None:
        self._file.truncate(0)
        self.kept.clear()

    def __call__(self, event: Event) -> None:
        event = {"time": round(time.time(), 3), **event}
        if event["event"] != "progress":
            self._keep(event)
            try:
                self._file.write(json.dumps(event).encode() + b"\n")
                self._file.flush()
            except OSError as error:
                raise self._failed(error) from error
        self.report(event)
        if self.trackers and event["event"] not in ("progress", "warning", "tracking"):
            for said in self.trackers(event, self.kept):
                self(said)

    def _keep(self, event: Event) -> None:
        if event["event"] == "resume":
            self.kept[:] = [e for e in self.kept if e.get("step", 0) <= event["step"]]
        self.kept.append(event)

    def _take_up(self) -> None:
        """What an earlier process wrote, without the line that it was killed in."""
        self._file.seek(0)
        end = 0
        for line in self._file:
            try:
                event = json.loads(line)
                if not line.endswith(b"\n") or not isinstance(event, dict) or "event" not in event:
                    break
            except ValueError:
                break
            self._keep(event)
            end += len(line)
        if end < os.fstat(self._file.fileno()).st_size:
            self._file.truncate(end)

    def _failed(self, error: OSError) -> TrainingError:
        why = write_failure(error, self.path.parent) or str(error)
        return TrainingError(f"{self.path}: {why}; checkpoints are untouched")

