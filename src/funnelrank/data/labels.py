"""Labels: reading them, and what to do where they and the funnel disagree.

A label is 0, 1 or null for a binary task, a finite number or null for a regression, the same and not below 0
for a count or a ziln, one of its classes (kept as its place among them) for a multiclass task. Null and NaN mean "not
observed": no loss, no metric.

    contradiction   a task is 1 where the task before it is 0. A task before it that is not observed passes
                    the question on: buy = 1, cart = null, click = 0 is a contradiction of buy and click.
    implied label   a 1 implies 1 for every task before it, a 0 implies 0 for every task after it.

Only binary tasks take part in either. Policies are for train rows; the cache applies them to no other split.
"""

from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from funnelrank.data.kinds import column_type
from funnelrank.data.parse import numbers
from funnelrank.errors import DataError, did_you_mean, listing
from funnelrank.schema import Schema, TaskColumn

Policy = Literal["raise", "keep", "drop", "repair"]


class Contradiction(NamedTuple):
    """Rows on which `child` is 1 and `parent`, the nearest observed task before it, is 0."""

    child: str
    parent: str
    rows: int
    positives: int       # rows on which child is 1
    first: int | None    # the first such row, from 0


def read_labels(table: pa.Table, schema: Schema, where: str) -> np.ndarray:
    """The tasks' labels as float32 [n, T], NaN where not observed.

    Raises DataError, one sentence a column, where a column is missing, is no number, or holds a value that
    its task cannot have.
    """
    labels = np.empty((table.num_rows, len(schema.tasks)), np.float32)
    faults: list[str] = []
    for t, task in enumerate(schema.tasks):
        if task.label not in table.column_names:
            faults.append(f"{where}: no column '{task.label}', the label of task '{task.name}'"
                          + did_you_mean(task.label, table.column_names))
            continue
        values, fault = _numbers(table.column(task.label), task)
        if values is not None:
            wrong = _wrong(values, task)
            fault = _said(table.column(task.label), values, wrong, task) if wrong.any() else ""
            with np.errstate(over="ignore", invalid="ignore"):
                labels[:, t] = values
        if fault:
            faults.append(f"{where}: label '{task.label}' {fault}")
    if faults:
        raise DataError(*faults)
    return labels


def wrong_labels(table: pa.Table, task: TaskColumn, where: str) -> tuple[np.ndarray, DataError] | None:
    """Rows [n] bool whose label the task cannot have, and the sentence of it; None where there is none.

    A column that is missing, or no number at all, is no row's fault, and None, too.
    """
    values = _numbers(table.column(task.label), task)[0] if task.label in table.column_names else None
    if values is None or not (wrong := _wrong(values, task)).any():
        return None
    return wrong, DataError(f"{where}: label '{task.label}' {_said(table.column(task.label), values, wrong, task)}")


def read_weights(column: pa.Array, where: str) -> np.ndarray:
    """Rows' weights as float32 [n]. Raises DataError, beginning with `where`, for nulls, negatives and infinities."""
    weights = numbers(column, where)
    if found := wrong_weights(column, where):
        raise found[1]
    return weights.astype(np.float32)


def wrong_weights(column: pa.Array, where: str) -> tuple[np.ndarray, DataError] | None:
    """Rows [n] bool whose weight is null, negative or not finite, and the sentence of it; None where there is none."""
    weights = numbers(column, where)
    wrong = ~((weights >= 0) & (weights <= np.finfo(np.float32).max))
    if not wrong.any():
        return None
    first = int(wrong.argmax())
    found = column[first].as_py()
    return wrong, DataError(f"{where} holds {'null' if found is None else found} on {_rows(int(wrong.sum()))} "
                            f"(first: row {first}); a weight is a finite number, 0 or more")


def contradictions(labels: np.ndarray, schema: Schema) -> list[Contradiction]:
    """What contradicts the funnel in labels [n, T], nothing changed.

    One entry for each task with one before it, even if its rows are 0, and one for each farther task that
    contradicts it across unobserved ones.
    """
    return [found for found, _ in _found(labels, schema)]


def apply_policy(labels: np.ndarray, schema: Schema, contradictions: Policy, fill_implied: bool, where: str,
                 start: int | None = None) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Train labels [n, T] as the policy wants them, which rows to keep [n] bool, and a report for JSON.

    raise    DataError with count and first row of every contradiction; `start` is row 0's place in its file
    keep     labels stay as they are
    drop     rows with a contradiction are not kept
    repair   observed 0s before a 1 become 1, up the whole chain

    Then `fill_implied` fills labels that were not observed; it never changes an observed one, and leaves a
    label open that a kept contradiction implies both ways.

    The report: policy; edges (see `describe`); dropped and repaired rows; filled labels per task.
    """
    found = _found(labels, schema)
    clash = np.zeros(len(labels), bool)
    for _, rows in found:
        clash |= rows
    if contradictions == "raise" and clash.any():
        raise DataError(*(_sentence(edge, schema, where, start) for edge, _ in found if edge.rows))
    labels, keep = labels.copy(), np.ones(len(labels), bool)
    if contradictions == "drop":
        keep = ~clash
    if contradictions == "repair":
        _repair(labels, schema)
    filled = _fill(labels, schema) if fill_implied else {}
    report = {
        "policy": contradictions, "edges": [describe(edge, where, start) for edge, _ in found],
        "dropped": int((~keep).sum()), "repaired": int(clash.sum()) if contradictions == "repair" else 0,
        "filled": filled}
    return labels, keep, report


def describe(edge: Contradiction, where: str, start: int | None = None) -> dict[str, Any]:
    """A contradiction for a report: its fields, with `first` as words, or None where there is no row."""
    return edge._asdict() | {"first": None if edge.first is None else f"{where}, {_place(edge.first, start)}"}


def _numbers(column: pa.ChunkedArray, task: TaskColumn) -> tuple[np.ndarray | None, str]:
    """A column as float64 [n] with NaN for null, or what keeps it from being one."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    if pa.types.is_null(kind):
        return np.full(len(column), np.nan), ""
    if task.kind == "multiclass":
        return _places(column, task), ""
    if not (pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind)
            or pa.types.is_decimal(kind)):
        return None, f"is of type {column_type(kind)}; {_wanted(task)}"
    if pa.types.is_boolean(kind):
        column = column.cast(pa.uint8())        # arrow has no cast from bool to double
    values = pc.fill_null(column.cast(pa.float64(), safe=False), float("nan"))
    return values.to_numpy(), ""


def _wrong(values: np.ndarray, task: TaskColumn) -> np.ndarray:
    """Rows [n] bool of values [n] float64 that the task cannot have."""
    seen = ~np.isnan(values)
    if task.kind == "multiclass":
        return values < 0
    if task.kind == "binary":
        return seen & (values != 0) & (values != 1)
    wrong = seen & (np.abs(values) > np.finfo(np.float32).max)
    return wrong | (values < 0) if task.kind in ("count", "ziln") else wrong


def _places(column: pa.ChunkedArray, task: TaskColumn) -> np.ndarray:
    """The place of each value among the task's classes as float64 [n]; NaN for null, -1 for what is none of them."""
    place = {_spelled(c): k for k, c in enumerate(task.classes)}
    coded = column.combine_chunks().dictionary_encode()
    known = [np.nan if v != v else place.get(_spelled(v), -1) for v in coded.dictionary.to_pylist()]
    places = np.array([*known, np.nan])
    return places[coded.indices.fill_null(len(places) - 1).to_numpy(zero_copy_only=False)]


def _spelled(value: Any) -> str:
    """A class as a text: 2, 2.0 and '2' are one."""
    if isinstance(value, float) and value.is_integer() or isinstance(value, bool):
        value = int(value)
    return str(value)


def _said(column: pa.ChunkedArray, values: np.ndarray, wrong: np.ndarray, task: TaskColumn) -> str:
    rows = np.flatnonzero(wrong)
    if task.kind == "multiclass":
        return (f"is {column[int(rows[0])].as_py()!r} on {_rows(len(rows))} (first: {_place(rows[0], None)}); "
                f"{_wanted(task)}")
    value = float(values[rows[0]])
    shown = int(value) if value.is_integer() and abs(value) < 2**53 else value    # 2, not 2.0
    return f"is {shown} on {_rows(len(rows))} (first: {_place(rows[0], None)}); {_wanted(task)}"


def _wanted(task: TaskColumn) -> str:
    return {"multiclass": f"a label of '{task.name}' is {listing(map(str, task.classes))}, or null",
            "binary": "a binary label is 0, 1 or null",
            "regression": "a regression label is a finite number or null",
            "count": "a count label is a finite number, 0 or more, or null",
            "ziln": "a ziln label is a finite amount, 0 or more, or null"}[task.kind]


def _found(labels: np.ndarray, schema: Schema) -> list[tuple[Contradiction, np.ndarray]]:
    found = []
    for t, task in enumerate(schema.tasks):
        if task.kind != "binary" or task.after is None:
            continue
        positive = labels[:, t] == 1
        asking = positive          # rows where every task between is unobserved
        for distance, a in enumerate(_before(t, schema)):
            rows = asking & (labels[:, a] == 0)
            count = int(rows.sum())
            if count or distance == 0:
                found.append((Contradiction(task.name, schema.tasks[a].name, count, int(positive.sum()),
                                            int(rows.argmax()) if count else None), rows))
            asking = asking & np.isnan(labels[:, a])
    return found


def _sentence(edge: Contradiction, schema: Schema, where: str, start: int | None) -> str:
    label = {t.name: t.label for t in schema.tasks}
    return (f"{where}: label '{label[edge.child]}' is 1 on {_rows(edge.rows)} where '{label[edge.parent]}' "
            f"is 0 (first: {_place(edge.first, start)}); '{edge.child}' comes after '{edge.parent}'; "
            "set data.contradictions to keep, drop or repair")


def _repair(labels: np.ndarray, schema: Schema) -> None:
    for t, task in enumerate(schema.tasks):
        if task.kind == "binary":
            positive = labels[:, t] == 1
            for a in _before(t, schema):
                labels[positive & (labels[:, a] == 0), a] = 1


def _fill(labels: np.ndarray, schema: Schema) -> dict[str, int]:
    n, T = labels.shape
    one, zero = np.zeros((n, T), bool), np.zeros((n, T), bool)
    for t, task in enumerate(schema.tasks):
        if task.kind == "binary":
            for a in _before(t, schema):
                one[:, a] |= labels[:, t] == 1
                zero[:, t] |= labels[:, a] == 0
    fill = np.isnan(labels) & (one ^ zero)
    labels[fill & one] = 1
    labels[fill & zero] = 0
    return {task.name: int(fill[:, t].sum()) for t, task in enumerate(schema.tasks) if task.kind == "binary"}


def _before(t: int, schema: Schema) -> list[int]:
    """Positions of the tasks before task t, the nearest first."""
    parents, chain = schema.parents, []
    while (t := parents[t]) is not None:
        chain.append(t)
    return chain


def _place(row: int, start: int | None) -> str:
    return f"row {row} of it, from 0" if start is None else f"row {start + row} of the file, from 0"


def _rows(count: int) -> str:
    return f"{count} row" if count == 1 else f"{count} rows"
