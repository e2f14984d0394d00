"""Fitting calibrators on held-out rows: one map for all of a task's rows, then what single scenarios add.

The map of all rows is a logistic regression on the log-odds (platt), or on log p and log(1 - p) (beta). Its departure
d from "leave it as it is" is taken times max(0, 1 - k / Q), Q = d' V^-1 d and k its parameters: what chance alone would
fit to a model that is right is left out, and a real fault loses nothing. V counts rows of one user together.

Isotonic pools adjacent violators (PAV) on top of the platt line, over bins of equal evidence, draws what is left to
that line unless it departs by more than chance would make it, and joins it by a broken line: steps would tie rows.

What scenarios add is a slope and a shift each, shrunk by how much more they differ than chance would make them:

    shrunk_s = tau^2 / (tau^2 + v_s) estimate_s,     tau^2 of DerSimonian and Laird (1986), v_s the estimate's variance

No setting decides how much: scenarios that are alike get nothing of their own.

A step's own map and that of the step before may disagree: then many rows would be held down to the step before
(calibration.py). Above HELD of the rows fitted on, the step gets a map of its probability given the step before
instead, fitted where that happened.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from funnelrank.calibration import Calibration, conditional
from funnelrank.evaluate.intervals import clusters
from funnelrank.evaluate.measure import Scores
from funnelrank.schema import Schema

PRIOR = 2.0             # standard deviation of slopes around 1, so that classes that a score parts have a finite one
LEAST = 30              # positives, and negatives, below which a task or a scenario is left as it is
FLATTEST = 0.05         # of a slope
STEPS = 50              # of Newton; 6 do
HELD = 0.02             # share of rows held down by the step before, above which maps disagree
ALONE = 0.05            # share of a step's positives without the step before, above which it has no map given that


class Fitted(NamedTuple):
    """What fitting found of one task, for the run's log."""

    rows: int
    positives: int
    before: float          # log loss on the rows it was fitted on
    after: float
    scenarios: int         # with a line of their own
    note: str | None = None


def fit_calibration(calibration: Calibration, scores: Scores, method: str, by_scenario: bool,
                    weight: np.ndarray | None = None) -> dict[str, Fitted]:
    """Fit every binary task in place. Scores are of the model alone; weight [n] undoes how rows were sampled.

    A task with fewer than LEAST positives or negatives is left as it is, and says so.
    """
    weight = np.ones(len(scores.labels)) if weight is None else np.asarray(weight, np.float64)
    found = {}
    for t in calibration.binary:
        lp, lq = (np.asarray(a[:, t], np.float64) for a in (scores.log_p, scores.log_not_p))
        found[scores.tasks[t]] = _fit_task(calibration, t, scores, lp, lq, method, by_scenario, weight)
        parent = calibration.parents[t]
        if parent is not None and held_down(calibration, scores, t) > HELD and _nested(scores, t, parent):
            log_c, log_not_c = (x.numpy() for x in conditional(*(
                torch.from_numpy(np.asarray(scores.log_p[:, i], np.float64)) for i in (t, parent))))
            happened = np.where(scores.labels[:, parent] == 1, weight, 0.0)
            again = _fit_task(calibration, t, scores, log_c, log_not_c, method, by_scenario, happened)
            if again.note is None:
                calibration.given[t] = True
                found[scores.tasks[t]] = again._replace(note=f"given {scores.tasks[parent]}, whose map disagrees: were "
                                                             "its negatives sampled? data.negatives_kept says so")
            else:                                # too few to fit on: the map of its own, after all
                _fit_task(calibration, t, scores, lp, lq, method, by_scenario, weight)
    return found


def held_down(calibration: Calibration, scores: Scores, t: int) -> float:
    """Share of rows whose task t, by its own map, would pass the step before, which it did not before."""
    parent = calibration.parents[t]
    fine = np.asarray(scores.log_p[:, t]) <= np.asarray(scores.log_p[:, parent])
    z = _log_odds(calibration, scores)
    return float(np.mean(fine & (z[:, t] == z[:, parent]))) if len(fine) else 0.0


def _nested(scores: Scores, t: int, parent: int) -> bool:
    """Whether the step happens where the step before did, but for few labels."""
    before = scores.labels[scores.labels[:, t] == 1, parent]
    return np.count_nonzero(before == 0) <= ALONE * len(before)


def _fit_task(calibration: Calibration, t: int, scores: Scores, lp: np.ndarray, lq: np.ndarray, method: str,
              by_scenario: bool, weight: np.ndarray) -> Fitted:
    """The map of one task's log p and log(1 - p) [n], written into `calibration`; rows of weight 0 do not count."""
    seen = ~np.isnan(scores.labels[:, t]) & (weight > 0)
    y, w, lp, lq = scores.labels[seen, t] == 1, weight[seen], lp[seen], lq[seen]
    users = clusters(None if scores.user is None else np.asarray(scores.user)[seen], len(y)).code
    before = float(-np.average(np.where(y, lp, lq), weights=w)) if len(y) else float("nan")
    positives = int(y.sum())
    if min(positives, len(y) - positives) < LEAST:
        return Fitted(len(y), positives, before, before, 0, "too few positives or negatives; left as it was")
    line = _line(lp, lq, y, w, users, "beta" if method == "beta" else "platt")
    calibration.line[t] = torch.from_numpy(line)
    z = line[0] * lp - line[1] * lq + line[2]
    if method == "isotonic":
        x, heights = _broken_line(z, y, w, calibration.x.shape[1])
        calibration.x[t], calibration.y[t] = torch.from_numpy(x), torch.from_numpy(heights)
        z = _followed(z, x, heights)
    own = 0
    if by_scenario and scores.scenario is not None:
        scenario = np.asarray(scores.scenario)[seen]
        slopes, shifts, own = _per_scenario(z, y, w, users, scenario, calibration.slope.shape[1])
        calibration.slope[t], calibration.shift[t] = torch.from_numpy(slopes), torch.from_numpy(shifts)
        z = slopes[scenario] * z + shifts[scenario]
    after = float(np.average(np.logaddexp(0, np.where(y, -z, z)), weights=w))
    return Fitted(len(y), positives, before, after, own)


def applied(calibration: Calibration, scores: Scores) -> Scores:
    """The scores as the calibrated model would give them (of binary tasks)."""
    z = _log_odds(calibration, scores)
    log_p, log_not_p = np.array(scores.log_p), np.array(scores.log_not_p)
    for t in calibration.binary:
        log_p[:, t], log_not_p[:, t] = -np.logaddexp(0, -z[:, t]), -np.logaddexp(0, z[:, t])
    return Scores(**{**scores.__dict__, "log_p": log_p, "log_not_p": log_not_p})


def _log_odds(calibration: Calibration, scores: Scores) -> np.ndarray:
    scenario = np.zeros(len(scores.labels), np.int64) if scores.scenario is None else scores.scenario
    with torch.inference_mode():
        return calibration.log_odds(*(torch.from_numpy(np.ascontiguousarray(a)).to(calibration.line.device)
                                      for a in (scores.log_p, scores.log_not_p, scenario))).cpu().numpy()


def sampling_weights(schema: Schema, split: str, labels: np.ndarray) -> np.ndarray | None:
    """[n] what each row stands for where the split's negatives were down-sampled; None where they were not."""
    kept = schema.negatives_kept
    if kept is None or split not in kept.splits:
        return None
    return np.where(labels[:, schema.task_names.index(kept.task)] == 0, 1 / kept.rate, 1.0)


# ---- one map for all rows

def _line(lp: np.ndarray, lq: np.ndarray, y: np.ndarray, w: np.ndarray, users: np.ndarray, method: str) -> np.ndarray:
    """(a, b, c): the likeliest line, as far as it departs from (1, 1, 0) by more than chance."""
    if method == "beta":
        found = _supported(*_logistic(np.stack([lp, -lq], 1), y, w, users), np.array([1.0, 1.0, 0.0]))
        if (found[:2] >= FLATTEST).all():
            return found
    slope, shift = _supported(*_logistic((lp - lq)[:, None], y, w, users), np.array([1.0, 0.0]))
    return np.array([max(slope, FLATTEST)] * 2 + [shift])


def _supported(theta: np.ndarray, covariance: np.ndarray, usual: np.ndarray) -> np.ndarray:
    """theta drawn to `usual` by what chance would make of so many parameters."""
    d = theta - usual
    evidence = float(d @ np.linalg.solve(covariance, d))
    return usual + max(0.0, 1 - len(d) / evidence) * d if evidence > 0 else usual


def _logistic(features: np.ndarray, y: np.ndarray, w: np.ndarray, users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Newton on the weighted log loss of features [n, k] and a constant: coefficients [k + 1], their covariance.

    The covariance is the sandwich over users [n]: H^-1 (sum of g_u g_u') H^-1, g_u the gradient of a user's rows.
    """
    X = np.concatenate([features, np.ones((len(y), 1))], 1)
    held = np.append(np.full(features.shape[1], 1 / PRIOR**2), 0.0)
    start = np.append(np.ones(features.shape[1]), 0.0)
    theta = start.copy()
    loss = lambda at: float(np.dot(w, np.logaddexp(0, np.where(y, -(X @ at), X @ at)))
                            + (held * (at - start) ** 2).sum() / 2)
    value = loss(theta)
    for _ in range(STEPS):
        p = 1 / (1 + np.exp(-np.clip(X @ theta, -40, 40)))
        gradient = X.T @ (w * (p - y)) + held * (theta - start)
        hessian = (X * (w * np.maximum(p * (1 - p), 1e-12))[:, None]).T @ X + np.diag(held + 1e-9)
        step, scale = np.linalg.solve(hessian, gradient), 1.0
        while scale > 1e-6 and loss(theta - scale * step) > value:
            scale /= 2
        theta = theta - scale * step
        value, last = loss(theta), value
        if last - value < 1e-9 * max(abs(value), 1.0):
            break
    p = 1 / (1 + np.exp(-np.clip(X @ theta, -40, 40)))
    g = np.stack([np.bincount(users, column) for column in (X * (w * (p - y))[:, None]).T], 1)
    bread = np.linalg.inv(hessian)
    return theta, bread @ (g.T @ g) @ bread + 1e-12 * np.eye(len(theta))


def _broken_line(z: np.ndarray, y: np.ndarray, w: np.ndarray, knots: int) -> tuple[np.ndarray, np.ndarray]:
    """Knots (x [K], y [K]) through the pooled rates of bins of equal evidence, both rising strictly."""
    order = np.argsort(z, kind="stable")
    z, y, w = z[order], y[order].astype(np.float64), w[order]
    p = 1 / (1 + np.exp(-z))
    evidence = np.cumsum(w * p * (1 - p))
    bins = int(min(knots, max(2, min(y.sum(), len(y) - y.sum()) // 20)))
    edges = np.unique(np.searchsorted(evidence, evidence[-1] * np.arange(bins) / bins))
    edges = edges[np.append(True, z[edges[1:]] > z[edges[1:] - 1])]               # a run of equal scores is one bin
    total = lambda column: np.add.reduceat(column, edges)
    weight, ones, said = total(w), total(w * y), total(w * z)
    blocks: list[list[float]] = []                                                # weight, ones, sum of z
    for block in zip(weight, ones, said):
        blocks.append(list(block))
        while len(blocks) > 1 and blocks[-2][1] / blocks[-2][0] >= blocks[-1][1] / blocks[-1][0]:
            last = blocks.pop()
            blocks[-1] = [a + b for a, b in zip(blocks[-1], last)]
    weight, ones, said = np.array(blocks).T
    rate, x = (ones + 0.5) / (weight + 1), said / weight
    heights = x + _shrunk(np.log(rate / (1 - rate)) - x, 1 / (weight * rate * (1 - rate)))
    for k in range(1, len(x)):
        heights[k] = max(heights[k], heights[k - 1] + FLATTEST * (x[k] - x[k - 1]))
    more = np.arange(1, knots - len(x) + 1)                                       # unused knots go on with slope 1
    return np.append(x, x[-1] + more), np.append(heights, heights[-1] + more)


def _followed(z: np.ndarray, x: np.ndarray, heights: np.ndarray) -> np.ndarray:
    """The broken line at z, with slope 1 beyond its ends."""
    return np.interp(z, x, heights) + np.maximum(z - x[-1], 0) - np.maximum(x[0] - z, 0)


# ---- what scenarios add

def _per_scenario(z: np.ndarray, y: np.ndarray, w: np.ndarray, users: np.ndarray, scenario: np.ndarray,
                  count: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Slopes and shifts [S] on top of z, shrunk to 1 and 0; and how many scenarios have enough rows for one."""
    slopes, shifts = np.ones(count), np.zeros(count)
    estimates, variances, centres, codes = [], [], [], []
    for s in range(count):
        mine = scenario == s
        if min(y[mine].sum(), (~y[mine]).sum()) < LEAST:
            continue
        p = 1 / (1 + np.exp(-z[mine]))
        centre = float(np.average(z[mine], weights=w[mine] * p * (1 - p) + 1e-12))    # there, slope and shift are apart
        theta, covariance = _logistic((z[mine] - centre)[:, None], y[mine], w[mine], users[mine])
        estimates.append((theta[0] - 1, theta[1] - centre))
        variances.append(np.diag(covariance))
        centres.append(centre)
        codes.append(s)
    if len(codes) < 2:
        return slopes, shifts, 0
    slope, shift = (_shrunk(e, v) for e, v in zip(np.array(estimates).T, np.array(variances).T))
    slope = np.maximum(slope, FLATTEST - 1)
    slopes[codes], shifts[codes] = 1 + slope, shift - slope * np.array(centres)
    return slopes, shifts, len(codes)


def _shrunk(estimates: np.ndarray, variances: np.ndarray) -> np.ndarray:
    """Estimates drawn to 0 by tau^2 / (tau^2 + variance), tau^2 by the method of moments around 0."""
    precision = 1 / variances
    tau2 = max(0.0, ((precision * estimates**2).sum() - len(estimates)) / precision.sum())
    return tau2 / (tau2 + variances) * estimates


def described(found: dict[str, Fitted]) -> dict[str, dict[str, Any]]:
    """For the run's log: plain values, no NaN."""
    return {task: {k: None if v != v else v for k, v in f._asdict().items()} for task, f in found.items()}
