"""How long metrics and their intervals take, in CPU seconds of one thread.

    OMP_NUM_THREADS=1 python benchmarks/metrics.py
    OMP_NUM_THREADS=1 python benchmarks/metrics.py --rows 10000000 --users 1000000

First AUC with its user-clustered interval and GAUC; then everything that a binary task has, 1,000 resamples included.
"""

import argparse
import resource
import time

import numpy as np

from funnelrank.evaluate import intervals, metrics
from funnelrank.evaluate.measure import Scores, measure
from funnelrank.settings import Evaluate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--users", type=int, default=1_000_000)
    said = parser.parse_args()
    rng = np.random.default_rng(0)
    user = rng.integers(0, said.users, said.rows)
    z = (rng.normal(-2, 1, said.rows) + 0.5 * rng.normal(0, 1, said.users)[user]).astype(np.float32)
    y = rng.random(said.rows) < 1 / (1 + np.exp(-z))
    log_p, log_not_p = -np.logaddexp(np.float32(0), -z), -np.logaddexp(np.float32(0), z)

    start = time.process_time()
    auc, error = intervals.clustered(log_p, y, user)
    middle = time.process_time()
    gauc = metrics.gauc(log_p, y, user)
    end = time.process_time()
    print(f"{said.rows:,} rows, {said.users:,} users: AUC {auc:.5f} +- {1.96 * error:.5f} in {middle - start:.2f} "
          f"CPU s, GAUC {gauc.weighted:.5f} in {end - middle:.2f} CPU s")

    column = lambda x: x[:, None]
    scores = Scores(["click"], ["binary"], [None], column(log_p), column(log_not_p), column(log_p),
                    column(y.astype(np.float32)), None, user)
    for resamples in ("none", 1000):
        settings = Evaluate(intervals="none") if resamples == "none" else Evaluate(resamples=resamples)
        start = time.process_time()
        rows = measure("test", scores, settings)
        print(f"all metrics, resamples {resamples}: {time.process_time() - start:.2f} CPU s")
    for r in rows:
        if r["task"] and r["low"] is not None:
            print(f"  {r['metric']:<16}{r['value']:.5f}  {r['low']:.5f} .. {r['high']:.5f}")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    main()
