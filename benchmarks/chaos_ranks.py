"""Kills one rank after the other at random moments of a run under torchrun, and sees whether the job ends all the same.

    .distributed-env/bin/python benchmarks/chaos_ranks.py --kills 20        make test-distributed makes that environment

The run is examples/demo.yaml on its simulated log, every table lying apart, a checkpoint every fourth step. About one
kill of four comes while ranks start; the others up to --apart steps after they went on from their checkpoint, so that
they meet steps, evaluations and checkpoints on a busy machine, too. Prints each kill and what it met, and how far the
artefact's weights and test AUC lie from those of a run that nobody touched.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from safetensors.numpy import load_file

ROOT = Path(__file__).parents[1]
SETS = {"train.epochs": 20, "train.batch_size": 1024, "train.evaluate_every": 20, "train.checkpoint_every": 4,
        "train.early_stopping.patience": 10**6, "train.log_every": 1, "embedding.sharding.row_wise_from": 0,
        "evaluate.intervals": "none", "train.threads": 1}
ROWS = 12_000


def main() -> None:
    read = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    read.add_argument("--kills", type=int, default=20)
    read.add_argument("--ranks", type=int, default=2)
    read.add_argument("--seed", type=int, default=0)
    read.add_argument("--apart", type=int, default=10, help="steps between two kills, at most")
    said = read.parse_args()
    rng, met = random.Random(said.seed), Counter()
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        log, whole, killed = scratch / "log", scratch / "whole", scratch / "killed"
        subprocess.run([sys.executable, "-m", "funnelrank", "simulate", log, "--rows", str(ROWS)], check=True,
                       stdout=subprocess.DEVNULL)
        began = time.monotonic()
        job = run(said.ranks, whole, log, 0)
        while job.poll() is None and not begun(whole):
            time.sleep(0.1)
        start = time.monotonic() - began
        if code := job.wait():
            sys.exit(f"the undisturbed run ends with exit code {code}")
        print(f"undisturbed: {time.monotonic() - began:.0f} s, {step(whole, 'step')} steps", flush=True)
        job, began = run(said.ranks, killed, log, 3 * said.kills), time.monotonic()
        try:
            while met.total() < said.kills and (found := victim(job, killed, rng, said.apart, start)):
                pid, what = found
                os.kill(pid, signal.SIGKILL)
                met[what] += 1
                print(f"kill {met.total():>2} after {time.monotonic() - began:4.0f} s: {what}; step "
                      f"{step(killed, 'step')}, the last checkpoint of step {step(killed, 'checkpoint')}", flush=True)
            code = job.wait()
        finally:
            job.terminate()
        print(f"{met.total()} kills ({', '.join(f'{n} {what}' for what, n in met.items())}), "
              f"{time.monotonic() - began:.0f} s, exit code {code}")
        if code or met.total() < said.kills:
            sys.exit(code or f"the run ended after {met.total()} of {said.kills} kills; give a smaller --apart")
        weights = [load_file(folder / "artefact" / "model.safetensors") for folder in (whole, killed)]
        apart = max(float(abs(a - weights[1][name]).max()) for name, a in weights[0].items() if a.size)
        print(f"test AUC {mean_auc(whole)} undisturbed, {mean_auc(killed)} after the kills; "
              f"weights differ by {apart:.1e} at most")


def run(ranks: int, out: Path, log: Path, restarts: int) -> subprocess.Popen:
    sets = {**SETS, "train.out": out, "data.dir": log, "data.cache": out.parent / "cache"}
    words = [w for k, v in sets.items() for w in ("--set", f"{k}={v}")]
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}",
         f"--max-restarts={restarts}", "-m", "funnelrank", "train", str(ROOT / "examples" / "demo.yaml"), *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def victim(job: subprocess.Popen, folder: Path, rng: random.Random, apart: int, start: float) -> tuple[int, str] | None:
    """Waits for a random moment of the processes that are there next: one of them, and what they are doing. None once
    the job has ended. `start`: seconds until ranks train, about."""
    before, early, later = begun(folder), rng.random() < 0.25, rng.uniform(0, 0.5)
    steps, seconds, since = rng.randint(0, apart), rng.uniform(0, start), None
    while job.poll() is None:
        found, trains = workers(job.pid), begun(folder) > before
        if since is None and found and (
                early or trains and step(folder, "step") >= step(folder, "resume") + steps):
            since = time.monotonic() + (seconds if early else later)
        if since is not None and found and time.monotonic() >= since:
            writes = any((folder / "checkpoints").glob(".*.tmp"))
            return rng.choice(found), "starting" if not trains else "writing a checkpoint" if writes else "training"
        time.sleep(0.02)
    return None


def begun(folder: Path) -> int:
    """Rises when ranks begin to train, or go on."""
    return count(folder, "resume") + (count(folder, "step") > 0)


def workers(parent: int) -> list[int]:
    """Processes that torchrun has started, from /proc, without those that have ended."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            state, of = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[:2]
        except OSError:                                       # it has ended
            continue
        if int(of) == parent and state != "Z":
            found.append(int(pid))
    return found


def told(folder: Path) -> list[dict]:
    events = folder / "events.jsonl"
    lines = events.read_text().splitlines(keepends=True) if events.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def count(folder: Path, kind: str) -> int:
    return sum(e["event"] == kind for e in told(folder))


def step(folder: Path, kind: str) -> int:
    """The last step that events of this kind tell of."""
    return next((e["step"] for e in reversed(told(folder)) if e["event"] == kind), 0)


def mean_auc(folder: Path) -> float:
    return next(round(r["value"], 5) for r in json.loads((folder / "metrics.json").read_text()) if (
        r["split"], r["task"], r["scenario"], r["metric"]) == ("test", None, None, "auc"))


if __name__ == "__main__":
    main()
