"""Several ranks on one machine: time of a step, bytes sent by kind against the least that the plan allows, and what a
model of a step says of many machines.

    .distributed-env/bin/python benchmarks/scale.py            make test-distributed makes that environment
    .distributed-env/bin/python benchmarks/scale.py --ranks 1 2 --rows 100000 --steps 10

AITM on the rows of made.py, under gloo, one thread a rank. `sent` is what a rank hands to collectives for others, by
their usual rings, mean over ranks and steps; `least` is each distinct row that lies elsewhere once (4 bytes of id, its
vector, its gradient), a ring over the dense gradients, and outputs and labels once to each other rank.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist

BATCH, WIDTH = 4096, 16
PLANS = {"replicated": {"row_wise_from": 2**60}, "row-wise": {"row_wise_from": 0}}
# processes that train alone, each a rank's share of rows, beside each other: what a plan's ranks would take if they had
# nothing to tell each other. Rows that lie apart go through torch's operations.
ALONE = {"replicated": "native", "row-wise": "torch"}
KINDS = ("ids", "vectors", "row gradients", "dense gradients", "outputs", "other")
# what the prediction assumes of machines that nobody has measured here: bytes a second and seconds an exchange
NETWORKS = {"10 Gbit": (1.1e9, 50e-6), "100 Gbit": (11e9, 20e-6)}
KEPT = 3                 # numbers of a weight: itself, Adagrad's sum, its average; and eight bytes of a row besides


def main() -> None:
    read = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    read.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    read.add_argument("--rows", type=int, default=1_000_000, help="of the tables together")
    read.add_argument("--steps", type=int, default=30)
    said = read.parse_args()
    found = []
    for n in said.ranks:
        for plan in (*ALONE.values(), *(PLANS if n > 1 else ())):
            found.append(launch(n, plan, said.rows, said.steps))
            print(line(found[-1]), flush=True)
    if len(found) > 1:
        predict(found)


def launch(n: int, plan: str, rows: int, steps: int) -> dict:
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "out.json"
        subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n}",
                        __file__, "--work", plan, str(rows), str(steps), str(out)], check=True,
                       env={**os.environ, "OMP_NUM_THREADS": "1"})
        return json.loads(out.read_text())


def line(f: dict) -> str:
    sent = ", ".join(f"{k} {v / 1e3:,.0f}" for k, v in f["sent"].items() if v >= 500)
    whole, least = sum(f["sent"].values()), f["least"]
    if f["plan"] not in PLANS:
        many = f"{f['ranks']} processes that share nothing" if f["ranks"] > 1 else "1 process"
        return f"{many}, engine {f['plan']}: {f['ms']:.0f} ms a step of {BATCH // f['ranks']} rows"
    return (f"{f['ranks']} ranks, {f['plan']}: {f['ms']:.0f} ms a step of {BATCH} rows" + (
        f"; sent by a rank, kB: {sent}; together {whole / 1e3:,.0f}, {whole / least:.2f} of the least; "
        f"the rank that sends most: {f['most'] / max(whole, 1):.2f} of the mean; {f['calls']:.0f} exchanges"
        if least else ""))


# ---- one rank

class Counter:
    """Bytes that this rank sends to others, by kind."""

    def __init__(self):
        self.kind = "other"
        self.begin()

    def begin(self) -> None:
        self.sent, self.least, self.calls = dict.fromkeys(KINDS, 0.0), 0.0, 0

    @contextmanager
    def of(self, kind: str):
        before, self.kind = self.kind, kind
        try:
            yield
        finally:
            self.kind = before

    def add(self, tensor: torch.Tensor, times: float) -> None:
        kind = self.kind
        if kind == "lookup":
            kind = "vectors" if tensor.is_floating_point() else "ids"
        self.sent[kind] += tensor.nbytes * times
        self.calls += 1


def counting() -> Counter:
    """Puts a counter into what the trainer calls."""
    from funnelrank import ranks
    from funnelrank.embedding import sharded, tables
    from funnelrank.train import shared, trainer
    count, n, me = Counter(), ranks.size(), ranks.rank()

    def wrapped(module, name, kind=None, note=None):
        work = getattr(module, name)

        def call(*given, **named):
            if note:
                note(*given, **named)
            with count.of(kind or count.kind):
                return work(*given, **named)
        setattr(module, name, call)

    def exchanged(output, input, output_split_sizes=None, input_split_sizes=None, *_, **__):     # torch's own names
        own = input_split_sizes[me] / max(sum(input_split_sizes), 1) if input_split_sizes else 1 / n
        count.add(input, 1 - own)

    def looked_up(table, rows, learn):
        here = ((rows >= table.first) & (rows < table.first + len(table.weight))).sum().item()
        count.least += (len(rows) - here) * (4 + 8 * table.width)

    def merged(tables_, mine):
        count.least += (n - 1) * sum(len(g.rows) * (4 + 4 * g.table.width) for g in mine.values()
                                     if not g.table.sharded)

    def dense(parameters, each):
        count.least += 2 * (n - 1) / n * sum(4 * p.numel() for p in parameters)

    def said(outputs, batch):
        count.least += (n - 1) * 4 * (outputs.numel() + batch.labels.numel() + len(batch))

    wrapped(dist, "all_reduce", note=lambda t, *_, **__: count.add(t, 2 * (n - 1) / n))
    wrapped(dist, "all_gather", note=lambda out, t, *_, **__: count.add(t, n - 1))
    wrapped(dist, "all_to_all_single", note=exchanged)
    wrapped(sharded.ShardedTable, "_fetch", "lookup", looked_up)
    wrapped(sharded.ShardedTable, "take", "row gradients")
    wrapped(tables, "_of_all_ranks", "row gradients", merged)
    wrapped(shared, "of_all_ranks", "dense gradients", dense)
    wrapped(trainer, "together", "outputs", said)
    return count


def work(plan: str, rows: int, steps: int, out: Path) -> None:
    from made import batch, layout, model

    from funnelrank import ranks
    from funnelrank.settings import RowOptimiser, Train
    from funnelrank.train.optim import RowUpdates
    from funnelrank.train.trainer import Trainer
    torch.set_num_threads(1)
    with ranks.joined():
        count, n = counting(), ranks.size()
        of = layout(rows)
        made = model("aitm", "large", of, "torch" if plan == "torch" else "auto", plan in PLANS, **PLANS.get(plan, {}))
        few = [batch(BATCH // n, of, 1000 * ranks.rank() + i) for i in range(8)]
        times = []

        class Batches:
            def __len__(self):
                return steps + 5

            def epoch(self, k):
                for i in range(steps + 5):
                    if i == 5:
                        count.begin()
                    times.append(time.perf_counter())
                    yield few[i % len(few)]

            def state(self):
                return {"epoch": 0, "batch": 0}

        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(ranks.agreed(scratch))
            said = Train(epochs=1, checkpoint_seconds=None)
            trainer = Trainer(made, said, torch.ones(2), folder=folder, report=lambda event: None)
            trainer._save = lambda name: None                               # a step is timed, not a checkpoint
            ranks.wait()                                                    # so that all are under way at once
            trainer.run(Batches(), RowUpdates(made.embedding, RowOptimiser()))
            ranks.wait()
        seconds = sorted(b - a for a, b in zip(times[5:], times[6:]))
        sent, calls = {k: v / steps for k, v in count.sent.items()}, count.calls / steps
        every = ranks.every((sent, count.least / steps, seconds[len(seconds) // 2]))
        speed, delay = exchange() if n > 1 else (None, None)
        if ranks.first():
            mean = {k: sum(s[k] for s, _, _ in every) / n for k in KINDS}
            out.write_text(json.dumps({
                "ranks": n, "plan": plan, "rows": rows, "ms": 1e3 * sum(s for _, _, s in every) / n, "sent": mean,
                "least": sum(least for _, least, _ in every) / n, "most": max(sum(s.values()) for s, _, _ in every),
                "calls": calls, "bytes_per_s": speed, "delay": delay}))


def exchange() -> tuple[float, float]:
    """Bytes a second that a rank sends in a large all-to-all, and the seconds of one of nothing."""
    def timed(numbers: int, times: int) -> float:
        x, y = torch.zeros(numbers * dist.get_world_size()), torch.empty(numbers * dist.get_world_size())
        dist.barrier()
        began = time.perf_counter()
        for _ in range(times):
            dist.all_to_all_single(y, x)
        return (time.perf_counter() - began) / times
    small, large = timed(1, 50), timed(1 << 20, 5)
    return (1 << 22) * (dist.get_world_size() - 1) / large, small


# ---- many machines

def predict(found: list[dict]) -> None:
    """step = the same rows in processes that share nothing + bytes sent / bandwidth + exchanges x delay.

    All four are measured on the same number of processes: how much they slow each other down is in the first, and what
    is left to be wrong is that ranks wait for the slowest at each exchange, and what only ranks do (sorting and merging
    what they tell each other).

    For many machines: of the row-wise plan, with a core for each rank, and the bytes of a row of the batch that the
    largest number of ranks here sent; a lower bound, since nobody waits for the slowest there.
    """
    by = {(f["ranks"], f["plan"]): f for f in found}
    one, many = by.get((1, "torch")), [f for f in found if f["plan"] == "row-wise"]
    print("\nthe model of a step, on this machine:")
    for f in (f for f in found if f["plan"] in PLANS):
        alone = by[f["ranks"], ALONE[f["plan"]]]["ms"]
        moves, waits = 1e3 * sum(f["sent"].values()) / f["bytes_per_s"], 1e3 * f["calls"] * f["delay"]
        said = alone + moves + waits
        print(f"  {f['ranks']} ranks, {f['plan']}: {said:.0f} ms said ({alone:.0f} alone + {moves:.0f} bytes at "
              f"{f['bytes_per_s'] / 1e6:,.0f} MB/s + {waits:.0f} for {f['calls']:.0f} exchanges of "
              f"{f['delay'] * 1e6:,.0f} us), {f['ms']:.0f} measured: {f['ms'] / said:.2f} of it")
    if one is None or not many:
        return
    base, share = many[-1], 4096
    rows_asked = sum(base["sent"][k] for k in ("ids", "vectors", "row gradients")) * base["ranks"] / (base["ranks"] - 1)
    per_row = rows_asked / (BATCH / base["ranks"])                   # bytes a row of the batch, were all rows elsewhere
    fixed = base["sent"]["dense gradients"] * base["ranks"] / (base["ranks"] - 1) / 2
    print(f"\npredicted, not measured: {share} rows a rank and step, one core a rank, row-wise tables of width {WIDTH}")
    print(f"{'ranks':>6} {'GB a rank, for tables of 1e8 / 1e9 / 1e10 / 1e11 rows':>56} "
          + " ".join(f"{name + ': ms, rows/s':>26}" for name in NETWORKS))
    for n in (8, 64, 512):
        memory = " / ".join(f"{r * (4 * WIDTH * KEPT + 8) / n / 1e9:,.1f}" for r in (1e8, 1e9, 1e10, 1e11))
        cells = []
        for speed, delay in NETWORKS.values():
            sent = per_row * share * (n - 1) / n + 2 * fixed * (n - 1) / n
            # no collective of n ranks takes fewer turns than log2 n
            seconds = one["ms"] / 1e3 * share / BATCH + sent / speed + base["calls"] * delay * math.log2(n)
            cells.append(f"{1e3 * seconds:,.0f}, {n * share / seconds:,.0f}")
        print(f"{n:>6} {memory:>56} " + " ".join(f"{c:>26}" for c in cells))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5]))
    else:
        main()
