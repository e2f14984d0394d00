"""Kills short runs at random moments of every phase, goes on with them, and counts how many end as if never stopped.

    python benchmarks/chaos.py [--runs 100] [--seed 0] [--keep FOLDER]

Each run is a child of this process, forked once everything is imported and warm, and is ended by a SIGKILL from
outside: at a random moment of a phase that is drawn evenly, so that short phases (writing a checkpoint, putting the
artefact in place) are met as often as long ones. One run in two is killed again while it goes on, up to three times.
The last start is left alone. Then everything it left is compared with an undisturbed run: every file of the artefact,
metrics, both checkpoints with weights, optimiser states, averages, random state, position and patience, and the losses
in events.jsonl, all to the last bit; and no file is left over. Exit code 1 if one differs.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import mmap
import os
import random
import signal
import struct
import sys
import tempfile
import time
import traceback
from pathlib import Path

import torch

torch.set_num_threads(1)                     # a forked child has none of its parent's threads

from funnelrank import api, load_config  # noqa: E402
from funnelrank.evaluate import report as pictures  # noqa: E402
from funnelrank.simulate import simulate  # noqa: E402
from funnelrank.tensors import load_tensors  # noqa: E402
from funnelrank.train import trainer  # noqa: E402

PHASES = ("start", "statistics", "encoding", "training", "checkpoint", "evaluation", "measuring", "artefact", "report",
          "done")
TIMES = {"time", "seconds", "cpu_seconds", "rows_per_s"}                # differ from run to run, and may
DATA = {"train": "train.parquet", "valid": "valid.parquet", "test": "test.parquet", "scenario": "scenario",
        "user": "user_id", "time": "time_ms", "tables": {"items": {"path": "items.parquet", "key": "item_id"}}}
FEATURES = {"item_id": {"min_count": 2}, "scenario": "id", "category": {"column": "items.category"}, "price": "number",
            "shown": {"kind": "sequence", "column": "hist_shown", "space": "item_id"},
            "clicked": {"kind": "sequence", "column": "hist_click", "space": "item_id"}}
TASKS = {"click": {}, "cart": {"after": "click"}, "buy": {"after": "cart"}, "like": {}}
POLL = 1e-4                                                             # seconds
COMMON = {"batch_size": 192, "threads": 1, "log_every": 5}
KINDS = {
    "aitm, dropout, patience": {
        "model": {"name": "aitm", "represent": {"hidden": [16, 8], "dropout": 0.2}}, "embedding": {"width": 8},
        "train": {**COMMON, "epochs": 3, "evaluate_every": 11, "checkpoint_every": 7,
                  "early_stopping": {"patience": 4}}},
    "mmoe, batch norm, clipped, lazy adam": {
        "model": {"name": "mmoe", "represent": {"experts": 3, "hidden": [16], "norm": "batch"}},
        "embedding": {"width": 4, "optimiser": {"name": "adam", "lr": 0.01}},
        "train": {**COMMON, "epochs": 2, "clip_norm": 1.0, "checkpoint_every": 5, "optimiser": {"name": "adamw"}}},
    "deepfm, ftrl, torch engine, no average, no valid": {
        "model": {"name": "deepfm"},
        "embedding": {"width": 4, "engine": "torch", "optimiser": {"name": "ftrl", "l1": 0.01}},
        "train": {**COMMON, "epochs": 2, "average": None, "checkpoint_every": 5,
                  "schedule": {"name": "cosine", "warmup": 5}}},
}


class Board:
    """What a child is doing, in memory that outlives it: the phase, and how many phases it has entered."""

    def __init__(self):
        self.memory = mmap.mmap(-1, 16)
        self.stack = [0]

    def read(self) -> tuple[int, int]:
        return struct.unpack("qq", self.memory)

    def _enter(self, phase: int) -> None:
        self.memory[:] = struct.pack("qq", phase, self.read()[1] + 1)

    @contextlib.contextmanager
    def phase(self, name: str):
        self.stack.append(PHASES.index(name))
        self._enter(self.stack[-1])
        try:
            yield
        finally:
            self.stack.pop()
            self._enter(self.stack[-1])

    def mark(self, module: object, function: str, name: str) -> None:
        inner = getattr(module, function)

        def marked(*args, **named):
            with self.phase(name):
                return inner(*args, **named)

        setattr(module, function, marked)


def marked_child(board: Board) -> None:
    """Only in a child: its functions say which phase they are."""
    for module, function, name in (
            (api, "prepare", "statistics"), (api, "encode", "encoding"), (api, "fit", "training"),
            (api, "measure_split", "measuring"), (api, "write_artefact", "artefact"), (api, "write_text", "report"),
            (pictures, "page", "report"),
            (trainer, "save_checkpoint", "checkpoint"), (trainer.Trainer, "judged", "evaluation")):
        board.mark(module, function, name)


def train(kind: str, log: Path, out: str) -> None:
    data = {k: v for k, v in DATA.items() if k != "valid" or "no valid" not in kind}
    api.train(load_config({"data": data, "features": FEATURES, "tasks": TASKS, **KINDS[kind]},
                          [f"data.dir={log}", f"train.out={out}"]))


def start(kind: str, log: Path, folder: Path) -> tuple[int, Board]:
    """Forks a child that trains into `folder`/run."""
    board = Board()
    child = os.fork()
    if child:
        return child, board
    try:
        os.chdir(folder)
        said = os.open("said.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(said, 1)
        os.dup2(said, 2)
        marked_child(board)
        train(kind, log, "run")
        with board.phase("done"):
            os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(3)


def timeline(child: int, board: Board) -> list[tuple[int, float]]:
    """Every phase that a child entered until its end, and how long it stayed."""
    seen, began, entered = [], time.perf_counter(), board.read()
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        time.sleep(POLL)
        now = board.read()
        if now != entered:
            seen.append((entered[0], time.perf_counter() - began))
            began, entered = time.perf_counter(), now
    return seen


def kill(child: int, board: Board, goal: int, occurrence: int, wait: float) -> str | None:
    """SIGKILL `wait` seconds into the n-th time that phase `goal` is entered; the phase it met, None: it had ended."""
    count, last, until = 0, -1, None
    while True:
        time.sleep(POLL)
        phase, entered = board.read()
        if entered != last:
            last = entered
            count += phase == goal
        if until is None and count > occurrence:
            until = time.perf_counter() + wait
        if until is not None and time.perf_counter() >= until:
            os.kill(child, signal.SIGKILL)
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            if os.WIFSIGNALED(status):
                return PHASES[board.read()[0]]
            assert os.WEXITSTATUS(status) == 0, "a run ended by itself, and not well"
            return None


def contents(run: Path) -> dict[str, object]:
    """All that a run left, without times of day and durations."""
    left = {str(p.relative_to(run)): True for p in run.rglob("*") if p.is_file()}
    for path in run.rglob("*"):
        name = str(path.relative_to(run))
        if path.suffix == ".safetensors":
            for key, tensor in load_tensors(path).items():
                left[f"{name}:{key}"] = (tuple(tensor.shape), tensor.contiguous().view(-1).numpy().tobytes())
        elif name == "metrics.json" or name.startswith("artefact/") and path.is_file() and path.name != "manifest.json":
            left[name] = path.read_bytes()
        elif path.name == "state.json":
            left[name] = {k: v for k, v in json.loads(path.read_text()).items() if k not in TIMES}
    manifest = json.loads((run / "artefact/manifest.json").read_text())
    left["artefact files"] = manifest["files"]
    left["training"] = {k: v for k, v in manifest["about"]["training"].items() if k not in TIMES}
    kept: list[dict] = []
    for line in (run / "events.jsonl").read_text().splitlines():
        event = json.loads(line)
        if event["event"] == "resume":
            kept = [e for e in kept if e["step"] <= event["step"]]
        if event["event"] in ("step", "evaluate"):
            kept.append({k: v for k, v in event.items() if k not in TIMES})
    left["events"] = list({json.dumps(e): e for e in kept}.values())    # a window may be said again, word for word
    return left


def main() -> int:
    ask = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ask.add_argument("--runs", type=int, default=100)
    ask.add_argument("--seed", type=int, default=0)
    ask.add_argument("--keep", type=Path, help="leave the folders of runs that differ here")
    asked = ask.parse_args()
    draw, began = random.Random(asked.seed), time.perf_counter()
    met: collections.Counter[str] = collections.Counter()
    equal = kills = 0
    with tempfile.TemporaryDirectory() as place:
        base = asked.keep or Path(place)
        log = base / "log"
        simulate(log, rows=4000, users=300, items=150, seed=1)
        straight, courses = {}, {}
        for n, kind in enumerate(KINDS):
            train(kind, log, str(base / "warm" / f"{n}"))           # whatever is imported late, children have then
            folder = base / f"straight-{n}"
            folder.mkdir(parents=True)
            courses[kind] = timeline(*start(kind, log, folder))
            straight[kind] = contents(folder / "run")
            took = sum(t for _, t in courses[kind])
            print(f"{kind}: {took:.1f} s, {len(courses[kind])} phases entered", flush=True)
        for number in range(asked.runs):
            kind = list(KINDS)[number % len(KINDS)]
            folder = base / f"run-{number}"
            folder.mkdir()
            for again in range(draw.choice((1, 1, 1, 2, 2, 3))):
                lengths = collections.defaultdict(list)
                for phase, took in courses[kind]:
                    lengths[phase].append(took)
                goal = sorted(lengths)[(number // len(KINDS) + again) % len(lengths)]
                occurrence = draw.randrange(len(lengths[goal])) if not again else 0
                wait = draw.random() * lengths[goal][occurrence]
                phase = kill(*start(kind, log, folder), goal, occurrence, wait)
                if phase is None:
                    break
                met[phase] += 1
                kills += 1
            child, _ = start(kind, log, folder)
            _, status = os.waitpid(child, 0)
            same = os.waitstatus_to_exitcode(status) == 0 and contents(folder / "run") == straight[kind]
            equal += same
            if not same:
                told(number, kind, folder, straight[kind])
            else:
                for path in sorted(folder.rglob("*"), reverse=True):
                    path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    print(f"\nkills by the phase that they met ({kills} in {asked.runs} runs):")
    for phase in PHASES:
        print(f"  {phase:<11}{met[phase]:>4}  {'#' * met[phase]}")
    print(f"ended bitwise equal to a run that was never stopped: {equal} of {asked.runs}; "
          f"{time.perf_counter() - began:.0f} s")
    return 0 if equal == asked.runs else 1


def told(number: int, kind: str, folder: Path, expected: dict[str, object]) -> None:
    try:
        found = contents(folder / "run")
        odd = [k for k in dict.fromkeys([*expected, *found]) if expected.get(k) != found.get(k)]
    except (OSError, ValueError, KeyError) as error:
        odd = [repr(error)]
    print(f"run {number} ({kind}) differs: {', '.join(odd[:12])}", flush=True)
    print((folder / "said.txt").read_text()[-2000:], flush=True)


if __name__ == "__main__":
    sys.exit(main())
