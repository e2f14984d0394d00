"""Kills one rank after the other at random moments of a run under torchrun, and sees whether the job ends all the same.

    .distributed-env/bin/python benchmarks/chaos_ranks.py --kills 20        make test-distributed makes that environment

The run is examples/demo.yaml on its simulated log, every table lying apart, a checkpoint every fourth step. Prints each
kill, and how the artefact's test AUC compares with that of a run that nobody touched.
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
from pathlib import Path

ROOT = Path(__file__).parents[1]
SETS = {"train.epochs": 12, "train.checkpoint_every": 4, "embedding.sharding.row_wise_from": 0,
        "evaluate.intervals": "none"}


def main() -> None:
    read = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    read.add_argument("--kills", type=int, default=20)
    read.add_argument("--ranks", type=int, default=2)
    read.add_argument("--seed", type=int, default=0)
    read.add_argument("--apart", type=float, default=25, help="seconds between kills, about; a start takes ten")
    said = read.parse_args()
    rng, killed = random.Random(said.seed), 0
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        log = scratch / "log"
        subprocess.run([sys.executable, "-m", "funnelrank", "simulate", log, "--rows", "20000"], check=True,
                       stdout=subprocess.DEVNULL)
        run(said.ranks, scratch / "whole", log, 0).wait()
        job, began = run(said.ranks, scratch / "killed", log, 3 * said.kills), time.monotonic()
        try:
            while killed < said.kills and job.poll() is None:
                time.sleep(rng.uniform(said.apart / 4, 2 * said.apart))
                if found := workers(job.pid):
                    os.kill(rng.choice(found), signal.SIGKILL)
                    killed += 1
                    print(f"kill {killed:>2} after {time.monotonic() - began:4.0f} s, the last checkpoint of step "
                          f"{step(scratch / 'killed')}", flush=True)
            code = job.wait()
        finally:
            job.terminate()
        auc = [mean_auc(scratch / name) if not code else None for name in ("whole", "killed")]
        print(f"{killed} kills, {time.monotonic() - began:.0f} s, exit code {code}; test AUC {auc[0]} undisturbed, "
              f"{auc[1]} after them")
        sys.exit(code)


def run(ranks: int, out: Path, log: Path, restarts: int) -> subprocess.Popen:
    sets = {**SETS, "train.out": out, "data.dir": log, "data.cache": out.parent / "cache"}
    words = [w for k, v in sets.items() for w in ("--set", f"{k}={v}")]
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}",
         f"--max-restarts={restarts}", "-m", "funnelrank", "train", str(ROOT / "examples" / "demo.yaml"), *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def workers(parent: int) -> list[int]:
    """Processes that torchrun has started, from /proc."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1]) == parent:
                found.append(int(pid))
        except OSError:                                       # it has ended
            continue
    return found


def step(folder: Path) -> int:
    """The last step of which a checkpoint was written."""
    events = folder / "events.jsonl"
    said = [json.loads(line) for line in events.read_text().splitlines()[:-1]] if events.exists() else []
    return max((e["step"] for e in said if e["event"] == "checkpoint"), default=0)


def mean_auc(folder: Path) -> float:
    return next(round(r["value"], 5) for r in json.loads((folder / "metrics.json").read_text()) if (
        r["split"], r["task"], r["scenario"], r["metric"]) == ("test", None, None, "auc"))


if __name__ == "__main__":
    main()
