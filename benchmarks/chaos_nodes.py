"""Two launchers of one elastic job on this machine: one is killed with its rank, and comes back later.

    .distributed-env/bin/python benchmarks/chaos_nodes.py        make test-distributed makes that environment

The run is that of chaos_ranks.py, under `torchrun --nnodes=1:2 --rdzv-backend=c10d`. Prints from which step it went on
after the loss and after the return, and with how many ranks; then asks both launchers to end.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from chaos_ranks import ROOT, SETS, begun, count, step, told, workers


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        log, out = Path(scratch) / "log", Path(scratch) / "run"
        subprocess.run([sys.executable, "-m", "funnelrank", "simulate", log, "--rows", "12000"], check=True,
                       stdout=subprocess.DEVNULL)
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        launchers = [launcher(out, log, port)]
        time.sleep(3)                                    # the first one holds the store in which all of them meet
        try:
            launchers.append(launcher(out, log, port))
            until(lambda: step(out, "step") >= 10, launchers)
            said(f"{ranks(launchers)} ranks at step {step(out, 'step')}; one launcher and its rank are killed")
            lost, before, began = launchers.pop(), begun(out), time.monotonic()
            for pid in [lost.pid, *workers(lost.pid)]:
                os.kill(pid, signal.SIGKILL)
            lost.wait()
            until(lambda: begun(out) > before and step(out, "step") > resumed(out), launchers)
            said(f"{ranks(launchers)} rank went on from step {resumed(out)}, {time.monotonic() - began:.0f} s later")
            before, began = begun(out), time.monotonic()
            launchers.append(launcher(out, log, port))
            until(lambda: begun(out) > before and told(out)[-1]["event"] in ("step", "checkpoint"), launchers)
            said(f"it comes back: {ranks(launchers)} ranks went on from step {resumed(out)}, "
                 f"{time.monotonic() - began:.0f} s later; {count(out, 'interrupted')} interruption left a checkpoint")
        finally:
            for job in launchers[::-1]:
                job.terminate()
            codes = [job.wait() for job in launchers]
        said(f"asked to end, the launchers' exit codes are {codes}")


def launcher(out: Path, log: Path, port: int) -> subprocess.Popen:
    sets = {**SETS, "train.epochs": 2000, "train.out": out, "data.dir": log, "data.cache": out.parent / "cache"}
    words = [w for k, v in sets.items() for w in ("--set", f"{k}={v}")]
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--nnodes=1:2", "--nproc-per-node=1", "--rdzv-backend=c10d",
         f"--rdzv-endpoint=localhost:{port}", "--rdzv-id=job", "--rdzv-conf=last_call_timeout=15", "--max-restarts=9",
         "-m", "funnelrank", "train", str(ROOT / "examples" / "demo.yaml"), *words],
        env={**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def ranks(launchers: list[subprocess.Popen]) -> int:
    return sum(len(workers(job.pid)) for job in launchers)


def resumed(out: Path) -> int:
    return step(out, "resume")


def until(met, launchers: list[subprocess.Popen], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not met():
        if time.monotonic() > end or any(job.poll() is not None for job in launchers):
            sys.exit(f"waited in vain; exit codes of the launchers: {[job.poll() for job in launchers]}")
        time.sleep(0.2)


def said(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    main()
