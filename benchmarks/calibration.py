"""What calibrators make of planted faults on a real log: ECE before and after, beside what chance alone leaves.

    python benchmarks/calibration.py examples/kuairand/aitm.yaml --set data.dir=LOGS/kuairand_pure
    python benchmarks/calibration.py examples/hillstrom/aitm.yaml --set data.dir=LOGS/hillstrom --tasks visit

Faults: none; logits doubled; trained on a log whose negatives (of the first task) were kept at 10 %, not declared. Each
calibrator is fitted on half of the held-out users (or rows) and measured on the other half, so that what remains is
noise and not drift; with --split test it is fitted on valid and measured on test, which holds later days.

`noise` is the ECE of perfect probabilities on these rows, `ratio` the ECE after by that, `fell` and `rose` the largest
changes of AUC within a scenario, `capped` the share of rows held down to the step before, `worse` the difference of log
loss to the uncalibrated model with its 95 % interval, where there is no fault.
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

import funnelrank as fr
from funnelrank.calibration import Calibration
from funnelrank.data.loader import Loader
from funnelrank.evaluate import metrics
from funnelrank.evaluate.calibrate import applied, fit_calibration
from funnelrank.evaluate.intervals import combined, ece_noise
from funnelrank.evaluate.measure import Scores, measure
from funnelrank.evaluate.score import score
from funnelrank.settings import Evaluate

KEPT = 0.1


def part(scores: Scores, rows: np.ndarray) -> Scores:
    arrays = ("log_p", "log_not_p", "mean", "labels", "scenario", "user")
    return replace(scores, **{k: v[rows] for k in arrays if (v := getattr(scores, k)) is not None})


def doubled(scores: Scores) -> Scores:
    z = 2 * (scores.log_p - scores.log_not_p)
    return replace(scores, log_p=-np.logaddexp(np.float32(0), -z), log_not_p=-np.logaddexp(np.float32(0), z))


def trained(config: "fr.Config", sampled: bool, folder: str) -> dict[str, Scores]:
    """Scores of valid and test of a model trained on all rows, or on those left when negatives are sampled."""
    data = fr.open_data(config)
    if sampled:
        source = data.sources["train"]
        rows = pa.concat_tables([source.read(unit, source.columns.names) for unit in source.units])
        keep = np.random.default_rng(0).random(len(rows)) < KEPT
        positive = pc.fill_null(pc.equal(rows[config.schema.tasks[0].label].cast("float64"), 1), True)
        data = fr.open_data(config, train=rows.filter(pc.or_(pa.chunked_array([pa.array(keep)]), positive)))
    encoder = fr.prepare(config, data)
    splits = fr.encode(config, data, encoder)
    model = fr.build(config, encoder, splits)
    fr.fit(config, model, encoder, splits, folder=Path(folder) / str(sampled))
    load = lambda s: Loader(splits[s], encoder.layout, 8192, shuffle=False, seed=0).epoch(0)
    return {s: score(model, config.schema, load(s), s) for s in ("valid", "test")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--set", dest="sets", action="append", default=[])
    parser.add_argument("--split", default="half", choices=("half", "test"))
    parser.add_argument("--tasks", default="", help="of which to print; default: all binary")
    said = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        config = fr.load_config(said.config, [*said.sets, "train.threads=1", f"data.cache={folder}/cache"])
        plain, sampled = (trained(config, s, folder) for s in (False, True))
    print(f"{said.config}, {said.split}")
    print(f"{'fault':<12}{'task':<12}{'calibrator':<12}{'rows':>8}{'ECE':>9}{'after':>9}{'noise':>9}{'ratio':>7}"
          f"{'fell':>10}{'rose':>10}{'capped':>9}   worse")
    for fault, scores in (("none", plain), ("doubled", {s: doubled(v) for s, v in plain.items()}),
                          ("sampled", sampled)):
        if said.split == "half":
            test = scores["test"]
            who = np.arange(len(test.labels)) if test.user is None else test.user
            mine = (who.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(32)) % np.uint64(2) == 0
            fitted_on, held = part(test, mine), part(test, ~mine)
        else:
            fitted_on, held = scores["valid"], scores["test"]
        for method in ("platt", "beta", "isotonic"):
            count = 1 if held.scenario is None else int(max(held.scenario.max(), fitted_on.scenario.max())) + 1
            calibration = Calibration(config.schema.parents, list(held.kinds), config.schema.reading, count, method)
            fit_calibration(calibration, fitted_on, method, True)
            after = applied(calibration, held)
            line(fault, method, said.tasks.split(",") if said.tasks else held.tasks, held, after, calibration)


def line(fault: str, method: str, tasks: list[str], held: Scores, after: Scores, calibration: Calibration) -> None:
    spreads: list[dict] = [{}, {}]
    for kept, scores in zip(spreads, (held, after)):
        measure("test", scores, Evaluate(), spreads=kept)
    for t, task in enumerate(held.tasks):
        if held.kinds[t] != "binary" or task not in tasks:
            continue
        y, before_p, lp = held.labels[:, t], held.log_p[:, t], after.log_p[:, t]
        seen = ~np.isnan(y)
        moved, parent = [0.0], held.parents[t]
        for s in [0] if held.scenario is None else np.unique(held.scenario):
            mine = seen if held.scenario is None else seen & (held.scenario == s)
            if min(y[mine].sum(), (1 - y[mine]).sum()) >= 50:
                moved.append(metrics.auc(lp[mine], y[mine]) - metrics.auc(before_p[mine], y[mine]))
        capped = 0.0 if parent is None else float(np.mean((lp == after.log_p[:, parent]) & (y == y)))
        noise = ece_noise(np.exp(lp[seen]), y[seen], 20)
        ece = [metrics.ece(np.exp(p[seen]), y[seen]) for p in (before_p, lp)]
        worse = ""
        place = task, None, "logloss"
        if fault == "none" and all(place in kept for kept in spreads):
            low, high = (d := combined([spreads[1][place], spreads[0][place]], [1, -1])).interval("normal")
            worse = f"   {d.value:+.5f} ({low:+.5f} to {high:+.5f})"
        print(f"{fault:<12}{task:<12}{method:<12}{seen.sum():>8,}{ece[0]:>9.4f}{ece[1]:>9.4f}{noise:>9.4f}"
              f"{ece[1] / noise:>7.2f}{abs(min(moved)):>10.6f}{max(moved):>10.6f}"
              f"{100 * capped:>7.2f} %{worse}", flush=True)


if __name__ == "__main__":
    main()
