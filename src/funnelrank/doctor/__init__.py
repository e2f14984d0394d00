"""`funnelrank doctor`: finds what ruins published results, in a config's rows and in a trained run.

A detector is one function of a Log (data) or of a Patient (a run) that yields Findings; DATA and RUN below are all of
them. What is asked of many of them (values, relations with labels, gate shares) is made once, in log.py, relate.py and
patient.py.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from funnelrank.config import Config
from funnelrank.doctor import columns, leaks, runs, splits
from funnelrank.doctor.finding import Diagnosis, Finding, ordered
from funnelrank.doctor.log import MOST_ROWS, Log, read_log
from funnelrank.doctor.patient import Patient
from funnelrank.errors import ConfigError, did_you_mean
from funnelrank.flow import open_data, silent
from funnelrank.train.events import Report

DATA: dict[str, Callable[[Log], Iterator[Finding]]] = {d.__name__: d for d in (
    leaks.one_column_says_it_all, leaks.a_value_means_yes, leaks.tells_in_one_scenario, leaks.history_holds_the_row,
    leaks.from_the_future,
    leaks.statistic_of_the_whole_period, leaks.fits_train_too_well, leaks.encodes_the_rows_own_label,
    splits.same_rows, splits.repeated_rows, splits.rows_that_disagree, splits.broken_funnel, splits.odd_labels,
    splits.time_runs_back, splits.rows_in_blocks, splits.users_apart, splits.rates_move, splits.train_does_not_carry,
    splits.heavy_weights, splits.odd_scenarios, splits.odd_users,
    columns.dead_columns, columns.row_ids, columns.values_too_rare, columns.same_columns, columns.spellings,
    columns.codes_for_missing, columns.nulls_explode, columns.drift, columns.history_runs_back,
    columns.nothing_in_common)}


RUN: dict[str, Callable[[Patient], Iterator[Finding]]] = {d.__name__: d for d in (
    runs.depends_on_its_batch, runs.says_no_number, runs.never_learnt, runs.dead_units, runs.gates_collapsed,
    runs.task_says_nothing, runs.inputs_ignored, runs.served_otherwise, runs.numbers_of_another_model,
    runs.probabilities_off)}


def examine(what: Config | str | Path, *, data: bool = True, report: Report = silent, skip: Collection[str] = (),
            most: int = MOST_ROWS, allow_code: bool = False, **given: Any) -> Diagnosis:
    """What is wrong with the rows that a config names, and with a run where `what` is its folder.

    data    of a run: also look at its rows, as of a config
    skip    names of detectors to leave out
    most    rows of a split that are read; of more, evenly spaced parts
    given   train=, valid=, test=: rows instead of the config's, as open_data takes them
    """
    for name in skip:
        if name not in DATA | RUN:
            raise ConfigError(f"skip: no detector '{name}'; they are listed in docs/doctor.md" + did_you_mean(
                name, DATA | RUN))
    findings, looked = [], []
    if isinstance(what, Config):
        config = what
    else:
        patient = Patient(Path(what), allow_code)
        config = patient.config
        findings += [f for name, detector in RUN.items() if name not in skip for f in detector(patient)]
        looked.append(f"model: {len(patient.batch):,} rows of {patient.split}" + (
            "" if patient.kept else "; the run keeps no scores, so what is served was not held against them"))
    if data:
        log = read_log(config, open_data(config, report, **given), lambda split, done, total: report(
            {"event": "progress", "stage": f"read {split}", "rows": done, "total": total}), most)
        findings += [f for name, detector in DATA.items() if name not in skip for f in detector(log)]
        looked += [f"{s.name}: {len(s):,} rows" + (f" of {s.rows:,}" if len(s) < s.rows else "")
                   + f", {len(s.sample):,} of them with all columns" for s in log.splits.values()]
    return Diagnosis(config.name, ordered(findings), looked)
