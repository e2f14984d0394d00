"""The torch engine on a GPU: rows per second of whole training steps, and the memory bandwidth that rows reach.

    python benchmarks/gpu.py --ids 1e7 --batches 4096 16384 65536

A step is forward, losses, backward, row update (Adagrad) and dense update (Adam), on batches that already stand on the
device; the loader is not measured. Every cell: 10 steps to warm up, then the median of 5 windows of 20 steps. "rows"
times the embedding alone, forward to update, and counts the bytes that have to move: each looked-up row and its
gradient read once, each distinct row and its Adagrad state read and written. `--device cpu` runs it anywhere.
"""

import argparse
import statistics
import time

import torch
from made import batch, layout, model

from funnelrank.loss import calibrator, task_losses
from funnelrank.settings import DenseOptimiser, RowOptimiser
from funnelrank.train.optim import RowUpdates, dense_optimiser

WARM, WINDOWS, STEPS = 10, 5, 20


def timed(step, device: str) -> tuple[float, float, float]:
    """Seconds a step: median, least and most of the windows."""
    sync = torch.cuda.synchronize if device == "cuda" else lambda: None
    for i in range(WARM):
        step(i)
    found = []
    for _ in range(WINDOWS):
        sync()
        start = time.perf_counter()
        for i in range(STEPS):
            step(i)
        sync()
        found.append((time.perf_counter() - start) / STEPS)
    return statistics.median(found), min(found), max(found)


def training_step(ranker, batches):
    optimiser = dense_optimiser(ranker, DenseOptimiser())
    rows = RowUpdates(ranker.embedding, RowOptimiser())
    weights = torch.ones(2, device=batches[0].ids.device)
    ranker.train()

    def step(i: int) -> None:
        b = batches[i % len(batches)]
        said = ranker(b)
        loss = (weights * task_losses(ranker.funnel, said, b.labels, b.weight)).sum()
        if ranker.calibrator:
            loss = loss + ranker.calibrator * calibrator(said, ranker.funnel.parents, ranker.funnel.kinds)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        rows.apply(ranker.embedding.take_gradients())
        optimiser.step()
    return step


def rows_step(ranker, batches):
    rows = RowUpdates(ranker.embedding, RowOptimiser())
    ranker.train()
    direction = None

    def step(i: int) -> None:
        nonlocal direction
        flat = ranker.embedding(batches[i % len(batches)]).flat
        if direction is None:
            direction = torch.randn_like(flat)
        flat.backward(direction)
        rows.apply(ranker.embedding.take_gradients())
    return step


def bytes_of(b, of, width: int = 16) -> int:
    looked_up = b.ids.numel() + len(b.values)
    spaces = torch.arange(len(of.ids), device=b.ids.device) * max(of.size.values())
    distinct = len(torch.cat([(b.ids.long() + spaces).flatten(), b.values.long()]).unique())
    return 4 * width * (2 * looked_up + 4 * distinct)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ids", type=float, default=1e7)
    parser.add_argument("--batches", type=int, nargs="+", default=[4096, 16384, 65536])
    parser.add_argument("--models", nargs="+", default=["aitm", "mmoe", "din"])
    parser.add_argument("--nets", nargs="+", default=["small", "large"])
    parser.add_argument("--device", default="cuda")
    said = parser.parse_args()
    of = layout(int(said.ids))
    if said.device == "cuda":
        copied = torch.empty(2**30, dtype=torch.uint8, device="cuda")
        into = torch.empty_like(copied)
        seconds, *_ = timed(lambda i: into.copy_(copied), "cuda")
        bandwidth = 2 * copied.numel() / seconds
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, copy {bandwidth / 1e12:.2f} TB/s")
        del copied, into
    print(f"{'work':<14}{'batch':>8}{'ms a step':>12}{'range':>18}{'M rows/s':>10}{'of copy':>9}")
    for size in said.batches:
        batches = [batch(size, of, seed).to(said.device) for seed in range(4)]
        ranker = model("aitm", "small", of, "torch").to(said.device)
        seconds, least, most = timed(rows_step(ranker, batches), said.device)
        share = f"{bytes_of(batches[0], of) / seconds / bandwidth:9.1%}" if said.device == "cuda" else ""
        print(f"{'rows':<14}{size:>8}{seconds * 1e3:>12.3f}{f'{least * 1e3:.3f} - {most * 1e3:.3f}':>18}"
              f"{size / seconds / 1e6:>10.2f}{share}")
        del ranker
        for name in said.models:
            for net in said.nets:
                ranker = model(name, net, of, "torch").to(said.device)
                seconds, least, most = timed(training_step(ranker, batches), said.device)
                print(f"{name + ' ' + net:<14}{size:>8}{seconds * 1e3:>12.3f}"
                      f"{f'{least * 1e3:.3f} - {most * 1e3:.3f}':>18}{size / seconds / 1e6:>10.2f}", flush=True)
                del ranker


if __name__ == "__main__":
    main()
