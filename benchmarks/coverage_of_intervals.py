"""How often 95 % intervals cover the truth: many logs drawn from one world, whose true metrics are known.

    OMP_NUM_THREADS=1 python benchmarks/coverage_of_intervals.py
    OMP_NUM_THREADS=1 python benchmarks/coverage_of_intervals.py --draws 1000 --users 400

Users differ in how likely they act and in how often they are seen, so rows of one user go together. The model is off:
its logits are 1.3 times too wide and moved. The truth of each metric is its value on a log of millions of rows; that
of ECE, which falls with the size of a log, is its mean over logs of this size. Differences are between two models on
the same rows, the interval from subtracted spreads.

Prints coverage, the mean width of the intervals, and coverage had rows been taken as independent.
"""

import argparse

import numpy as np

from funnelrank.evaluate.intervals import combined
from funnelrank.evaluate.measure import SHAPES, Scores, measure
from funnelrank.settings import Evaluate

METRICS = ("auc", "gauc", "gauc_unweighted", "pr_auc", "logloss", "ne", "pcoc", "ece")


def log(rng: np.random.Generator, users: int) -> tuple[Scores, Scores]:
    """What two models say of one log."""
    rows = 1 + rng.geometric(1 / 8, users)
    user = np.repeat(np.arange(users), rows)
    n = len(user)
    seen, hidden = rng.normal(size=(2, n))
    own = rng.normal(size=users)[user]
    truth = -1.2 + 0.8 * seen + 0.5 * hidden + 0.7 * own
    y = (rng.random(n) < 1 / (1 + np.exp(-truth))).astype(np.float32)
    good = 1.3 * (-1.0 + 0.8 * seen + 0.3 * own)
    return tuple(_scores(z.astype(np.float32), y, user) for z in (good, good + 0.4 * rng.normal(size=n)))


def _scores(z: np.ndarray, y: np.ndarray, user: np.ndarray) -> Scores:
    column = lambda x: x[:, None]
    log_p, log_not_p = -np.logaddexp(np.float32(0), -z), -np.logaddexp(np.float32(0), z)
    return Scores(["click"], ["binary"], [None], column(log_p), column(log_not_p), column(log_p), column(y), None, user)


def covered(draws: int, users: int, seed: int = 0, truth_users: int = 400_000, metrics=METRICS,
            independent: bool = True) -> dict:
    """metric -> (coverage, mean width); 'auc, rows independent' and 'a - b' of each beside them."""
    rng = np.random.default_rng(seed)
    values = lambda rows: {r["metric"]: r["value"] for r in rows if r["task"]}
    off, row, settings = (Evaluate(intervals=k) for k in ("none", "row", "user"))
    true = [values(measure("test", s, off)) for s in log(rng, truth_users)]
    found: dict[str, list] = {}
    for _ in range(draws):
        spreads = [{}, {}]
        a, b = log(rng, users)
        for s, kept in zip((a, b), spreads):
            measure("test", s, settings, spreads=kept)
        for m in metrics:
            one, two = (kept["click", None, m] for kept in spreads)
            found.setdefault(m, []).append((one.value, *one.interval(SHAPES.get(m, "quantiles"))))
            found.setdefault(f"{m}, difference", []).append(
                ((d := combined([one, two], [1, -1])).value, *d.interval("normal")))
        rows = {r["metric"]: r for r in measure("test", a, row) if r["task"]} if independent else {}
        for m in ("auc", "logloss", "pcoc") if independent else ():
            low_high = tuple(rows[m][k] for k in ("value", "low", "high"))
            found.setdefault(f"{m}, rows as independent", []).append(low_high)
    out = {}
    for name, some in found.items():
        value, low, high = np.array(some).T
        metric = name.split(",")[0]
        t = value.mean() if metric == "ece" else (
            true[0][metric] - true[1][metric] if "difference" in name else true[0][metric])
        out[name] = float(np.mean((low <= t) & (t <= high))), float(np.mean(high - low)), t
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--users", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    said = parser.parse_args()
    print(f"{said.draws} logs of {said.users} users, about {9 * said.users:,} rows each")
    for name, (share, width, truth) in covered(said.draws, said.users, said.seed).items():
        print(f"{name:<34}truth {truth:+.5f}   covered {100 * share:5.1f} %   mean width {width:.5f}")


if __name__ == "__main__":
    main()
