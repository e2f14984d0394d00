"""A table that passes what one process may hold, and half of which does not: one ends with a sentence, two train.

    .distributed-env/bin/python benchmarks/budget.py            make test-distributed makes that environment
    .distributed-env/bin/python benchmarks/budget.py --rows 8000000 --budget 1.3

One id hashed into `--rows` rows of width 16, under Adagrad with averages: 200 bytes a row. The kernel holds each
process to `--budget` of private memory over what it has after its imports (RLIMIT_DATA); mapped files are beside it.
Prints for each process how it ended, and the most anonymous memory that it had over that start.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROW = 4 * 16 * 3 + 8          # bytes: a weight, Adagrad's sum and an average of 16 numbers, and when it was last seen
CONFIG = """
data: {{train: log.parquet, valid: log.parquet, cache: {scratch}/cache}}
features: {{user: {{hash_buckets: {rows}}}, item: {{min_count: 1}}}}
tasks: {{click: {{}}}}
model: {{name: shared_bottom, represent: {{hidden: [16]}}}}
embedding: {{width: 16, sharding: {{row_wise_from: 1000000}}}}
train: {{epochs: 2, batch_size: 1024, checkpoint_every: 4, threads: 1, out: {scratch}/run}}
evaluate: {{intervals: none}}
"""


def main() -> None:
    read = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    read.add_argument("--rows", type=int, default=4_000_000)
    read.add_argument("--budget", type=float, default=0.8, help="GB of a process")
    read.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    said = read.parse_args()
    print(f"a table of {said.rows:,} rows: {said.rows * ROW / 1e9:.2f} GB with what its optimiser keeps; a process may "
          f"hold {said.budget:.2f} GB", flush=True)
    for n in said.ranks:
        with tempfile.TemporaryDirectory() as scratch:
            launch(n, said.rows, said.budget, Path(scratch))


def launch(ranks: int, rows: int, budget: float, scratch: Path) -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    g = np.random.default_rng(0)
    pq.write_table(pa.table({"user": g.integers(0, 10**12, 8000), "item": g.integers(0, 50, 8000),
                             "click": g.integers(0, 2, 8000)}), scratch / "log.parquet")
    (scratch / "job.yaml").write_text(CONFIG.format(rows=rows, scratch=scratch))
    start = [sys.executable, *(["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
                               if ranks > 1 else []), __file__, "--work", str(budget), str(scratch)]
    # Arrow's own allocator asks for a gigabyte of addresses at once, which it does not use and RLIMIT_DATA counts
    alone = {"OMP_NUM_THREADS": "1", "ARROW_DEFAULT_MEMORY_POOL": "system"}
    ended = subprocess.run(start, env={**os.environ, **alone}, capture_output=True, text=True)
    for r in range(ranks):
        said = scratch / f"rank{r}.json"
        found = json.loads(said.read_text()) if said.exists() else {"code": "killed", "peak": float("nan")}
        print(f"{ranks} process{'es' * (ranks > 1)}, rank {r}: exit code {found['code']}, at most "
              f"{found['peak'] / 1e9:.2f} GB", flush=True)
    for line in ended.stderr.splitlines():
        if "memory does not hold" in line:
            print(f"  it said: {line}")
    artefact = scratch / "run" / "artefact" / "model.safetensors"
    if artefact.exists():
        steps = [json.loads(e) for e in (scratch / "run" / "events.jsonl").read_text().splitlines()]
        print(f"  trained {max(e.get('step', 0) for e in steps)} steps; an artefact of "
              f"{artefact.stat().st_size / 1e9:.2f} GB")
    elif "memory does not hold" not in ended.stderr:
        print(ended.stderr[-3000:])


def work(budget: float, scratch: Path) -> int:
    import torch._dynamo  # noqa: F401     what a training imports on its way
    import torch.distributed.checkpoint  # noqa: F401

    from funnelrank import api  # noqa: F401
    from funnelrank.cli import main as funnelrank
    if "RANK" in os.environ:
        import torchrec.distributed.embedding  # noqa: F401
    begin, most = of_this_process("RssAnon"), [0]
    limit = of_this_process("VmData") + int(budget * 1e9)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

    def watch():
        while True:
            most[0] = max(most[0], of_this_process("RssAnon") - begin)
            time.sleep(0.005)

    threading.Thread(target=watch, daemon=True).start()
    code = funnelrank(["train", str(scratch / "job.yaml")])
    (scratch / f"rank{os.environ.get('RANK', 0)}.json").write_text(json.dumps({"code": code, "peak": most[0]}))
    return code


def of_this_process(what: str) -> int:
    """Bytes, from /proc."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what))
    return 1024 * int(line.split()[1])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        sys.exit(work(float(sys.argv[2]), Path(sys.argv[3])))
    main()
