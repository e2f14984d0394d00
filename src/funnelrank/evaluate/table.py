"""The rows of metrics.json: every metric of every task, over all rows and in each scenario, and their means.

One row is a dict of COLUMNS. Fields that a metric does not have are None; a value that is None has a note.

scenario None   all rows of the split
task None       the mean over the binary tasks that have the metric; rows and positives are sums over these tasks

measure.py makes them. `wide` puts a split on one line, `value` finds the number that early stopping watches, `show`
is for a console.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from funnelrank.errors import ConfigError, did_you_mean, listing

COLUMNS = ("split", "task", "scenario", "metric", "value", "low", "high", "rows", "positives", "users",
           "valid_users", "note")
BINARY = {"auc": 1, "gauc": 1, "gauc_unweighted": 1, "gauc_frozen": 1, "pr_auc": 1, "logloss": -1, "ne": -1,
          "pcoc": 0, "ece": -1, "ece_noise": 0, "violation_rate": -1}     # 1 = higher is better; pcoc is best at 1
NO_INTERVAL = "for an interval"     # ends the note of a value that has no interval
VALUE = {"rmse": -1, "mae": -1, "pcoc": 0, "spearman": 1}
AMOUNT = {**VALUE, "gini": 1, "auc_positive": 1}
CLASSES = {"accuracy": 1, "logloss": -1, "auc_ovr": 1}
KINDS = {"binary": BINARY, "regression": VALUE, "count": AMOUNT, "ziln": AMOUNT, "multiclass": CLASSES}
FACTS = ("label", "feature", "bin", "gate", "kept", "cost")          # how their names begin
OTHER = AMOUNT | CLASSES            # of any kind but binary


def to_json(rows: Sequence[Mapping[str, Any]]) -> str:
    """The text of metrics.json, one row a line, without NaN or Infinity."""
    return "[\n" + ",\n".join(json.dumps(r, ensure_ascii=False, allow_nan=False) for r in rows) + "\n]\n"


# ---- reading the rows

def is_view(metric: str) -> bool:
    """Whether it is of a part or a side of the rows that its name tells, `auc@user_id:new`, `psi:price`, or a fact."""
    return ":" in metric


def is_fact(metric: str) -> bool:
    """Whether it is no metric at all, but what facts.py and gates.py tell of rows, gates and cost: `label:rate`."""
    return metric.split(":", 1)[0] in FACTS


def wide(rows: Sequence[Mapping[str, Any]], split: str, scenario: str | None = None) -> dict[str, Any]:
    """One split on one line: auc_click, gauc_click, valid_users_click, ..., auc_macro, gauc_macro, ..."""
    line: dict[str, Any] = {}
    for r in rows:
        if r["split"] == split and r["scenario"] == scenario and not is_view(r["metric"]):
            of = r["task"] or "macro"
            line[f"{r['metric']}_{of}"] = r["value"]
            if r["metric"] == "gauc" and r["task"]:
                line[f"valid_users_{of}"] = r["valid_users"]
    return line


def direction(metric: str, where: str = "train.early_stopping.metric") -> int:
    """+1 where higher is better, -1 where lower is. Takes 'auc' or 'valid/buy/auc'. ConfigError for others."""
    known, name = BINARY | OTHER, metric.rsplit("/", 1)[-1]
    if name not in known:
        raise ConfigError(f"{where}: no metric '{name}'; metrics are {listing(known, 20)}" + did_you_mean(name, known))
    if not known[name]:
        raise ConfigError(f"{where}: '{name}' is best at 1, not when high or low; watch logloss instead")
    return known[name]


def check_name(name: str, tasks: Mapping[str, str], splits: Iterable[str] = ("valid",),
               where: str = "train.early_stopping.metric") -> tuple[str, str | None, str]:
    """'valid/buy/auc' -> (split, task, metric), 'valid/auc' -> the mean over tasks. tasks: name -> kind.

    ConfigError for a split, a task or a metric that there is not.
    """
    split, *middle, metric = name.split("/") if name.count("/") in (1, 2) else ("", name)
    if not split:
        raise ConfigError(f"{where}: '{name}' is no metric's name; write 'valid/auc' for the mean over tasks, or "
                          f"'valid/{next(iter(tasks), 'click')}/auc'")
    task = middle[0] if middle else None
    if split not in splits:
        raise ConfigError(f"{where}: no split '{split}' in '{name}'; use {listing(splits)}")
    if task is not None and task not in tasks:
        raise ConfigError(f"{where}: no task '{task}' in '{name}'; tasks are {listing(tasks)}"
                          + did_you_mean(task, tasks))
    if task is None and metric in tasks:
        raise ConfigError(f"{where}: '{name}' names a task but no metric; write '{name}/auc' or '{name}/logloss'")
    known = BINARY | OTHER
    if metric not in known:
        raise ConfigError(f"{where}: no metric '{metric}' in '{name}'; metrics are {listing(known, 20)}"
                          + did_you_mean(metric, known))
    if task is None and (metric not in BINARY or "binary" not in tasks.values()):
        raise ConfigError(f"{where}: '{name}' has no mean over tasks; name one task, as in "
                          f"'{split}/{next(iter(tasks), 'click')}/{metric}'")
    if task is not None and metric not in (fits := KINDS.get(tasks[task], OTHER)):
        raise ConfigError(f"{where}: '{task}' is a {tasks[task]} and has no '{metric}'; it has {listing(fits, 20)}")
    return split, task, metric


def value(rows: Sequence[Mapping[str, Any]], name: str, where: str = "train.early_stopping.metric") -> float | None:
    """The value over all rows of 'valid/buy/auc' or 'valid/auc'; None where its row says, in `note`, why not.

    ConfigError for a name that no row has.
    """
    rows = [r for r in rows if not is_view(r["metric"])]
    kinds = {r["task"]: "value" if r["positives"] is None else "binary" for r in rows if r["task"]}
    wanted = check_name(name, kinds, list(dict.fromkeys(r["split"] for r in rows)), where)
    for r in rows:
        if (r["split"], r["task"], r["metric"]) == wanted and r["scenario"] is None:
            return r["value"]
    raise ConfigError(f"{where}: '{name}' was not measured in this run")


class Shown(NamedTuple):
    """A table of texts."""

    columns: list[str]
    rows: list[list[str]]


def show(rows: Sequence[Mapping[str, Any]], split: str) -> Shown:
    """One line per task x scenario, then the means: ranking, log loss, calibration and counts, for a person.

    +- is half of a 95 % interval.
    """
    lines: dict[tuple, dict[str, Mapping]] = {}
    for r in rows:
        if r["split"] == split:
            lines.setdefault((r["task"], r["scenario"]), {})[r["metric"]] = r
    measured = {m for line in lines.values() for m, r in line.items() if r["value"] is not None}
    columns = [m for m in ("auc", "gauc", "gauc_frozen", "auc_oracle", "logloss", "accuracy", "auc_ovr", "rmse", "mae",
                           "gini", "pcoc")
               if m in measured or m in ("auc", "logloss", "pcoc")]
    table = []
    for (task, scenario), line in lines.items():
        said = [_with_half(line[m]) if m in line else "" for m in columns]
        first = next(iter(line.values()))       # auc or rmse: both are of all observed rows
        table.append([task or "mean", "all" if scenario is None else scenario, *said, f"{first['rows']:,}",
                      "" if first["positives"] is None else f"{first['positives']:,}", _notes(line, columns)])
    if not any(line[-1] for line in table):
        return Shown(["task", "scenario", *columns, "rows", "positives"], [line[:-1] for line in table])
    return Shown(["task", "scenario", *columns, "rows", "positives", "note"], table)


def _notes(line: Mapping[str, Mapping[str, Any]], columns: Sequence[str]) -> str:
    """What the metrics of a line note: with their names where notes differ, or where one is about a value shown."""
    notes: dict[str, list[str]] = {}
    for m in columns:
        if m in line and (note := line[m]["note"]) and not (
                line[m]["value"] is not None and note.endswith(NO_INTERVAL)):
            notes.setdefault(note, []).append(m)
    plain = len(notes) == 1 and all(line[m]["value"] is None for named in notes.values() for m in named)
    return "; ".join(note if plain else f"{', '.join(named)}: {note}" for note, named in notes.items())


def _with_half(row: Mapping[str, Any]) -> str:
    """The value, and half the width of its 95 % interval where it has one."""
    if row.get("low") is None:
        return _figure(row["value"])
    return f"{_figure(row['value'])} +-{_figure((row['high'] - row['low']) / 2)}"


def _figure(number: float | None) -> str:
    return "-" if number is None else f"{number:.4f}" if abs(number) < 100 else f"{number:,.1f}"
