"""Damaged and hostile files, a thousand of each kind: every one ends in the right result or in one sentence.

    python benchmarks/chaos_files.py                      3,000 cases and more, some minutes on two cores
    python benchmarks/chaos_files.py --cases 100 --only flips --seed 7

    flips      one byte of an artefact, a checkpoint, a cache, a parquet or an Arrow file is another
    files      data files nobody has seen: columns of any type, nulls, nested, empty, cut off; parquet, CSV, Arrow
    artefacts  an artefact whose content was changed and sealed again, so that every size and hash is right

Each case is a command (`predict`, `check --data`, what `train` and `--continue-from` read) in a child of its own with a
time limit and a memory limit. Counted are: same (exit code 0 and the numbers of the undamaged files), other (exit code
0 and different numbers), refused (exit code 2 and a sentence), and faults: any other exit code, a traceback, an output
that is there though the command failed, or no end within the limit. Where files are damaged, `other` is a fault as
well, except in a parquet footer or an Arrow file, which their formats do not protect; where files are new or sealed
again, numbers of their own are right.

Exit code 1 if there was a fault; each is named with the seed that makes it again.
"""

import argparse
import contextlib
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import hostile  # noqa: E402

LIMIT_S, LIMIT_BYTES = 60, 8 << 30
CHILDREN = 2
CONFIG = {
    "data": {"train": "train.parquet", "scenario": "scenario", "user": "user_id", "tables": {
        "items": {"path": "items.parquet", "key": "item_id"}}},
    "features": {"item_id": {"min_count": 1}, "scenario": {"min_count": 1}, "price": "number",
                 "level": {"kind": "number", "boundaries": [1.0, 2.0], "column": "hour"},
                 "badges": {"kind": "bag", "separator": "|", "min_count": 1},
                 "brand": {"column": "items.brand", "min_count": 1},
                 "shown": {"kind": "sequence", "column": "hist_shown", "space": "item_id"}},
    "tasks": {"click": {}, "buy": {"after": "click"}},
    "embedding": {"width": 4}, "model": {"name": "aitm", "represent": {"hidden": [8]}},
    "train": {"epochs": 1, "batch_size": 64, "threads": 1, "log_every": 1000},
}


def in_child(work: Callable[[], int | None], out: Path) -> int:
    """Begins `work` in a forked child with limits, its output into `out`; returns its number."""
    child = os.fork()
    if child == 0:
        code = 70
        try:
            os.setsid()
            file = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, 1)
            os.dup2(file, 2)
            resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))
            signal.alarm(LIMIT_S)
            code = work() or 0
        except BaseException:                  # whatever it was, the parent is told, and the child ends here
            import traceback
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return child


def prepare(folder: Path) -> None:
    """A small log, a model trained on it, and what an undamaged `predict` says."""
    import json

    import pyarrow as pa
    import pyarrow.parquet as pq

    from funnelrank import cli
    from funnelrank.simulate import simulate
    simulate(folder, rows=700, users=30, items=40, seed=5)
    (folder / "shop.yaml").write_text(json.dumps(CONFIG))
    rows = pq.read_table(folder / "train.parquet")
    with pa.ipc.new_file(str(folder / "rows.arrow"), rows.schema) as file:
        file.write_table(rows)
    assert cli.main(["train", str(folder / "shop.yaml"), "--set", f"train.out={folder / 'run'}"]) == 0
    assert cli.main(["predict", str(folder / "run"), str(folder / "train.parquet"), "--out",
                     str(folder / "scores.parquet")]) == 0
    hostile.baselines(folder)


class Sweep:
    """Cases of one kind, two at a time, and what became of them."""

    def __init__(self, kind: str, made: Path, cases: int, seed: int):
        self.kind, self.made, self.cases, self.seed = kind, made, cases, seed
        self.counts: Counter[tuple[str, str]] = Counter()
        self.faults: list[str] = []
        self.running: dict[int, tuple[int, Path]] = {}

    def run(self) -> None:
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="chaos-") as places:
            for number in range(self.cases):
                while len(self.running) >= CHILDREN:
                    self._wait()
                self._start(number, Path(places) / str(number))
            while self.running:
                self._wait()
        subjects = sorted({s for s, _ in self.counts})
        print(f"\n{self.kind}: {self.cases:,} cases in {time.monotonic() - began:.0f} s, "
              f"{sum(n for (_, how), n in self.counts.items() if how == 'fault')} faults", flush=True)
        for subject in subjects:
            print(f"  {subject:<24}" + "".join(f"{how} {self.counts[subject, how]:>5,}   "
                                               for how in ("same", "other", "refused", "fault")))
        for fault in self.faults[:20]:
            print(f"  FAULT {fault}")

    def _start(self, number: int, place: Path) -> None:
        place.mkdir()
        draw = random.Random(f"{self.seed} {self.kind} {number}")

        def work() -> int:
            subject = hostile.KINDS[self.kind](draw, self.made, place)
            (place / "subject.txt").write_text(subject)
            return hostile.act(subject, self.made, place)

        self.running[in_child(work, place / "said.txt")] = (number, place)

    def _wait(self) -> None:
        child, status = os.wait()
        number, place = self.running.pop(child)
        subject = (place / "subject.txt").read_text() if (place / "subject.txt").exists() else "its maker: failed"
        code = os.waitstatus_to_exitcode(status)
        said = (place / "said.txt").read_text(errors="replace") if (place / "said.txt").exists() else ""
        how, why = self._judged(code, said, subject, place)
        name = subject.split(":")[0]
        self.counts[name, how] += 1
        if how == "fault":
            self.faults.append(f"{subject} (--seed {self.seed}, case {number}): {why}")
        shutil.rmtree(place, ignore_errors=True)

    def _judged(self, code: int, said: str, subject: str, place: Path) -> tuple[str, str]:
        last = said.strip().splitlines()[-1][:300] if said.strip() else ""
        if code == -signal.SIGALRM:
            return "fault", f"no end within {LIMIT_S} s"
        if code < 0:
            return "fault", f"ended by signal {-code}: {last}"
        if "Traceback" in said or "a fault of funnelrank" in said:
            return "fault", " / ".join(line[:200] for line in said.strip().splitlines()[-4:])
        left = [p.name for p in place.rglob("*") if p.name == "scores.parquet" or p.name == "manifest.json" and
                p.parent.name == "artefact" and p.parent.parent.name == "new"]
        if code == 2:
            if left:
                return "fault", f"refused, and yet {left[0]} is there"
            return ("refused", "") if last and len(said) < 20_000 else ("fault", "refused without a sentence")
        if code in (hostile.SAME, hostile.OTHER):
            how = "same" if code == hostile.SAME else "other"
            if how == "other" and not hostile.may_differ(subject):
                return "fault", "other numbers than those of the undamaged files"
            return how, ""
        return "fault", f"exit code {code}: {last}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000, help="of each kind")
    parser.add_argument("--only", choices=list(hostile.KINDS), action="append")
    parser.add_argument("--seed", type=int, default=0)
    said = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    faults = 0
    with tempfile.TemporaryDirectory(prefix="chaos-made-") as folder:
        child = in_child(lambda: prepare(Path(folder)), Path(folder) / "said.txt")
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
            print((Path(folder) / "said.txt").read_text())
            return 1
        hostile.imports((Path(folder) / "modules.txt").read_text().splitlines())
        for kind in said.only or hostile.KINDS:
            sweep = Sweep(kind, Path(folder), said.cases, said.seed)
            with contextlib.suppress(KeyboardInterrupt):
                sweep.run()
            faults += len(sweep.faults)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
