"""A month of a drifting log, learned day by day, in one training on all of it, and not at all after its first half.

    python benchmarks/growing.py                    about two minutes on one core
    python benchmarks/growing.py --seeds 3

Writes runs/drift-log (days apart), and scores each of the last days with models that have seen what was before it:

    none     trained on days 0-14, and never again
    daily    the same, then `--continue-from` yesterday's model on each day, once over it
    all      trained from nothing on every day so far
    truth    the probabilities that labels were drawn from: no model can do better

Prints the mean over the scored days: AUC, log loss and PCOC (predicted over happened) of each task, and the CPU seconds
of training that a day costs.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from funnelrank import api, load_config
from funnelrank.evaluate import metrics
from funnelrank.simulate import simulate

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "examples" / "drift" / "daily.yaml"
DAYS, FIRST, SCORED = 30, 15, 7
TASKS = ("click", "cart", "buy")


def write_log(folder: Path, rows: int, seed: int) -> None:
    simulate(folder, rows=rows, users=1500, items=1000, days=DAYS, drift=1.0, launches=0.5, side_tasks=(), seed=seed)
    log = pa.concat_tables([pq.read_table(folder / f"{s}.parquet") for s in ("train", "valid", "test")])
    day = log["day"].to_numpy()
    for d in range(DAYS):
        pq.write_table(log.filter(pa.array(day == d)), folder / f"day-{d}.parquet")
    pq.write_table(log.filter(pa.array(day < FIRST)), folder / "first.parquet")


def scores(log: Path, runs: Path, seed: int) -> tuple[dict[str, list[np.ndarray]], dict[str, list[float]]]:
    """Per way, [tasks, AUC | log loss | PCOC] of each scored day; and CPU seconds of each day's training."""
    found: dict[str, list] = {w: [] for w in ("none", "daily", "all", "truth")}
    seconds: dict[str, list[float]] = {w: [] for w in ("none", "daily", "all")}

    def train(way: str, name: str, files: list[str], before: Path | None = None) -> api.Run:
        config = load_config(CONFIG, [f"data.dir={log}", f"data.train=[{', '.join(files)}]", "data.valid=null",
                                      "data.test=null", f"train.out={runs / name}", f"train.seed={seed}"])
        run = api.train(config, continue_from=before)
        seconds[way].append(run.trained.cpu_seconds)
        return run

    none = daily = train("none", "none", ["first.parquet"])
    for d in range(FIRST, DAYS):
        if d >= DAYS - SCORED:
            table = pq.read_table(log / f"day-{d}.parquet")
            whole = train("all", f"all-{d}", ["first.parquet", *(f"day-{k}.parquet" for k in range(FIRST, d))])
            for way, run in (("none", none), ("daily", daily), ("all", whole)):
                said = run.ranker.predict(table)
                found[way].append(np.array([measured(said[t].to_numpy(), table[t]) for t in TASKS]))
            found["truth"].append(np.array([measured(table[f"p_{t}"].to_numpy(), table[t]) for t in TASKS]))
        if d < DAYS - 1:
            daily = train("daily", f"daily-{d}", [f"day-{d}.parquet"], daily.folder)
    ids = daily.ranker.encoder.vocabs["item_id"].size
    print(f"seed {seed}: items known after days 0-14 {none.ranker.encoder.vocabs['item_id'].size:,}, at the end day by "
          f"day {ids:,}, of all days at once {whole.ranker.encoder.vocabs['item_id'].size:,}")
    return found, seconds


def measured(p: np.ndarray, column: pa.ChunkedArray) -> tuple[float, float, float]:
    label = column.to_numpy().astype(np.float64)
    seen = ~np.isnan(label)
    p, label = p[seen].astype(np.float64), label[seen]
    return metrics.auc(p, label), metrics.logloss(np.log(p), np.log1p(-p), label), metrics.pcoc(p, label)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=90_000)
    parser.add_argument("--seeds", type=int, default=1)
    said = parser.parse_args()
    ways: dict[str, list[np.ndarray]] = {}
    costs: dict[str, list[float]] = {}
    for seed in range(said.seeds):
        log = ROOT / "runs" / "drift-log"
        write_log(log, said.rows, seed)
        with tempfile.TemporaryDirectory() as folder:
            found, seconds = scores(log, Path(folder), seed)
        for way, days in found.items():
            ways.setdefault(way, []).append(np.mean(days, 0))
        for way, each in seconds.items():
            costs.setdefault(way, []).extend(each)
    print(f"\n{said.rows:,} rows, {DAYS} days; mean of the last {SCORED} days, +- between {said.seeds} seeds")
    print(f"{'':<14}" + "".join(f"{t + ' ' + m:>22}" for m in ("auc", "logloss", "pcoc") for t in TASKS)
          + f"{'CPU s a training':>20}")
    for way in ("daily", "all"):                  # seeds make other logs, so they are compared one by one
        ways[f"{way} - none"] = [a - b for a, b in zip(ways[way], ways["none"])]
    for way, each in ways.items():
        mean, std = np.mean(each, 0), np.std(each, 0, ddof=1) if len(each) > 1 else np.zeros((3, 3))
        cells = "".join(f"{f'{mean[t, m]:.4f} +- {std[t, m]:.4f}':>22}" for m in range(3) for t in range(3))
        print(f"{way:<14}{cells}" + (f"{np.mean(costs[way]):>20.2f}" if way in costs else ""))


if __name__ == "__main__":
    main()
