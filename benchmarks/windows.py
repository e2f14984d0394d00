"""The driver's side: two workers in turn, window by window, and results that are kept until what made them changes."""

from __future__ import annotations

import hashlib
import json
import os
import select
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from cells import Cell, Side

HERE = Path(__file__).parent
ROOT = HERE.parent
FOLDER = ROOT / ".bench"
PEERS = ROOT / ".bench-env" / "bin" / "python"
PATIENCE = 900                       # seconds without an answer
Window = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """A warm-up and then `windows` windows of about `seconds` CPU seconds a side."""

    windows: int = 4
    seconds: float = 5.0


class Failed(Exception):
    """A worker ended, or does not answer; the message holds the end of what it printed."""


class Worker:
    """A worker process, asleep until it is told to work."""

    def __init__(self, side: Side, log: Path):
        python = sys.executable if side.program == "ours" else str(PEERS)
        said = dict(side.said)
        if side.program != "ours" and "ids" in said:
            from rows import made
            said["log"] = str(made(FOLDER / "data", said["ids"]))
        threads = {f"{name}_NUM_THREADS": str(side.threads) for name in ("OMP", "MKL", "OPENBLAS", "NUMEXPR")}
        self.side, self.log = side, log
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                [python, HERE / f"{side.program}.py", json.dumps(said)], stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=errors, text=True,
                env=os.environ | threads | {"POLARS_MAX_THREADS": str(side.threads)})

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.stdin.close()               # it ends at the end of its input
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()

    def answer(self) -> Window:
        ready, _, _ = select.select([self.process.stdout], [], [], PATIENCE)
        line = self.process.stdout.readline() if ready else ""
        if not line:
            why = "does not answer" if not ready else f"ended with status {self.process.wait(20)}"     # -9: no memory
            raise Failed(f"{self.side.program} {why}:\n" + "\n".join(self.log.read_text().splitlines()[-8:]))
        try:
            return json.loads(line)
        except json.JSONDecodeError:
            raise Failed(f"{self.side.program} said {line!r}, which is no answer") from None

    def window(self, seconds: float) -> Window:
        self.process.stdin.write(f"window {seconds} {self.side.least}\n")
        self.process.stdin.flush()
        return self.answer()


def run(cell: Cell, plan: Plan) -> dict[str, list[Window]]:
    """Windows of both sides, which take turns: a warm-up each, then ours, the other, ours, ..."""
    (FOLDER / "logs").mkdir(parents=True, exist_ok=True)
    workers: dict[str, Worker] = {}
    found: dict[str, list[Window]] = {}
    try:
        for name, side in (("ours", cell.ours), ("other", cell.other)):
            if side:
                workers[name] = Worker(side, FOLDER / "logs" / f"{cell.name}.{name}.log")
                workers[name].answer()
                found[name] = []
        for turn in range(plan.windows + 1):
            for name, worker in workers.items():
                said = worker.window(plan.seconds)
                if turn:
                    found[name].append(said)
    finally:
        for worker in workers.values():
            worker.__exit__()
    return found


# ---- what windows say

class Value(NamedTuple):
    """A median and its range."""

    median: float
    low: float
    high: float


def rates(windows: Sequence[Window], clock: str = "cpu") -> list[float]:
    """Rows per second of each window."""
    return [w["rows"] / w[clock] for w in windows]


def spread(values: Sequence[float]) -> Value:
    return Value(statistics.median(values), min(values), max(values))


def ratio(above: Sequence[float], below: Sequence[float]) -> Value:
    """Ratio of medians, and the range of the ratios of windows that stood side by side."""
    pairs = [a / b for a, b in zip(above, below)]
    return Value(statistics.median(above) / statistics.median(below), min(pairs), max(pairs))


def floor_seconds(windows: Sequence[Window]) -> float:
    """Of one row: its products and its bytes at the best rates that any window saw."""
    work = windows[-1]
    return (2 * work["multiply_adds_per_row"] / max(w["flops"] for w in windows)
            + work["bytes_per_row"] / max(w["bytes"] for w in windows))


def summary(cell: Cell, found: dict[str, list[Window]]) -> dict[str, Any]:
    """The row of the table: `value`, what it is, and the rates of both sides."""
    mine, other = found["ours"], found.get("other", [])
    clock = "wall" if cell.kind == "threads" else "cpu"
    sides = {"ours": spread(rates(mine, clock))}
    if other and cell.kind != "share":
        sides["other"] = spread(rates(other, clock))
    if cell.kind in ("times", "threads"):
        value = ratio(rates(mine, clock), rates(other, clock))
    elif cell.kind == "slowdown":
        value = ratio(rates(other), rates(mine))
    elif cell.kind == "share":
        value = Value(*(r * floor_seconds(other) for r in sides["ours"]))
    elif cell.kind == "seconds":
        value = spread([w["cpu"] / w["units"] for w in mine])
    else:
        value = sides["ours"]
    return {"cell": cell.name, "work": cell.work, "against": cell.against, "kind": cell.kind, "value": value,
            "must": cell.must, "stretch": cell.stretch, "reached": cell.reached(value.median, cell.must),
            "stretched": cell.reached(value.median, cell.stretch), "sides": sides, "windows": found}


# ---- results that are kept

def code_hash(root: Path = ROOT) -> str:
    """Of everything that a result depends on beside the machine: the package, its engine, and this folder."""
    files = [*(root / "benchmarks").rglob("*.py"), root / "benchmarks" / "peers" / "requirements.txt",
             *(root / "src").rglob("*.py"), *(root / "csrc").glob("*"), root / "constraints.txt"]
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def place(cell: Cell, plan: Plan, code: str) -> Path:
    """Where the result of a cell is kept: another file as soon as the code, the cell or the plan changes."""
    made_from = json.dumps([code, asdict(cell), asdict(plan)], sort_keys=True)
    return FOLDER / "cells" / f"{cell.name}-{hashlib.sha256(made_from.encode()).hexdigest()[:16]}.json"


def kept(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.exists() else None


def keep(path: Path, result: dict[str, Any]) -> None:
    """Results of older code are gone with the first of the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for old in path.parent.glob(f"{result['cell']}-{'?' * 16}.json"):
        old.unlink()
    new = path.with_suffix(".new")
    new.write_text(json.dumps(result))
    new.replace(path)
