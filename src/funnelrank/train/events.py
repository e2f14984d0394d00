"""What happens in a run, as events: kept for the report, written as JSON lines, shown to whoever listens."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from funnelrank.durable import write_failure
from funnelrank.errors import ConfigError, TrainingError

Event = dict[str, Any]
Report = Callable[[Event], None]


class Recorder:
    """Events go to a file of JSON lines, to a list for the report, to the caller, and to TensorBoard where asked.

    `progress` events, many a second, go to the caller alone. Raises TrainingError where the file cannot be written.
    """

    def __init__(self, path: Path, kept: list[Event], report: Report, tensorboard: Path | None = None):
        self.path, self.kept, self.report = path, kept, report
        self.board = _board(tensorboard) if tensorboard else None

    def __enter__(self) -> Recorder:
        self._write("w", "")
        return self

    def __exit__(self, *_: object) -> None:
        if self.board:
            self.board.close()

    def __call__(self, event: Event) -> None:
        event = {"time": round(time.time(), 3), **event}
        if event["event"] != "progress":
            self.kept.append(event)
            self._write("a", json.dumps(event) + "\n")
            if self.board:
                for name, value in (event.get("loss") or event.get("metrics") or {}).items():
                    if value is not None:
                        self.board.add_scalar(f"{event['event']}/{name}", value, event["step"])
        self.report(event)

    def _write(self, mode: str, text: str) -> None:
        try:
            with self.path.open(mode, encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            why = write_failure(error, self.path.parent) or str(error)
            raise TrainingError(f"{self.path}: {why}; checkpoints are untouched") from error


def _board(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigError("train.tensorboard: TensorBoard is not installed; pip install 'funnelrank[tensorboard]', or "
                          "leave the key out") from None
    return SummaryWriter(str(folder))
