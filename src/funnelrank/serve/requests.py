"""From what a client sent to columns of raw rows, as the log had them.

A request is rows, of which some columns may be given once for all: those of the user it ranks for.

    tensors   one a column, [rows], or [rows, length] of a list; a first dimension of 1 is one value for all rows.
              NAME.null [rows] BOOL says where there is no value, NAME.length [rows] INT64 how long each list is, and
              NAME.weight [rows, length] what its entries weigh, or what a map has at its keys
    rank      {"user": {column: value}, "candidates": {column: [value, ...]} or [{column: value}, ...]}
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from funnelrank.errors import did_you_mean, listing
from funnelrank.serve.protocol import Limits, RequestError, Tensor, an_object, chosen, json_numbers

COMPANIONS = {"null": "BOOL", "length": "INT64", "weight": None}        # weights are what the map holds
WHOLE = ("INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64")
ACCEPTED = {"INT64": WHOLE, "FP64": ("FP16", "FP32", "FP64", *WHOLE, "BOOL"), "BOOL": ("BOOL",), "BYTES": ("BYTES",)}
OPERATORS = ("sum", "product")


@dataclass(frozen=True)
class Column:
    """One column of the log that scoring reads."""

    name: str
    kind: pa.DataType

    @cached_property
    def is_list(self) -> bool:
        return pa.types.is_large_list(self.kind) or pa.types.is_map(self.kind)

    @cached_property
    def value(self) -> pa.DataType:
        """The type of a value, or of a list's entry."""
        if pa.types.is_map(self.kind):
            return self.kind.key_type
        return self.kind.value_type if self.is_list else self.kind

    @cached_property
    def weight(self) -> Column:
        """What a map has at its keys, as a column of its own."""
        return Column(f"{self.name}.weight", self.kind.item_type)

    @cached_property
    def datatype(self) -> str:
        t, kind = pa.types, self.value
        if t.is_floating(kind):
            return "FP64"
        if t.is_boolean(kind):
            return "BOOL"
        return "INT64" if t.is_integer(kind) or t.is_temporal(kind) else "BYTES"

    @cached_property
    def shape(self) -> list[int]:
        return [-1, -1] if self.is_list else [-1]


@dataclass
class Rows:
    """One request's rows: `once` has one row of the columns that all share, `each` [rows] of the others."""

    rows: int
    once: dict[str, pa.Array]
    each: dict[str, pa.Array]
    outputs: list[str] = field(default_factory=list)


@dataclass
class Ranking:
    """What else a rank request asks for."""

    sort: tuple[str, dict[str, float]] | None = None
    top: int | None = None
    counts: bool = False
    id: str = ""


def from_tensors(inputs: Mapping[str, Tensor], columns: Mapping[str, Column], limits: Limits) -> Rows:
    """Raises RequestError unless the tensors are the declared columns, all of them, in shapes that fit together."""
    companions: dict[str, dict[str, Tensor]] = {}
    for name, tensor in inputs.items():
        stem, _, last = name.rpartition(".")
        if name not in columns and stem in columns and last in COMPANIONS:
            companions.setdefault(stem, {})[last] = tensor
        elif name not in columns:
            raise RequestError(f"input '{name}': the model has no such input{did_you_mean(name, columns)}")
    if missing := [name for name in columns if name not in inputs]:
        raise RequestError(f"inputs: {listing(missing)} missing; a column without values is said by NAME.null")
    rows = max(t.shape[0] for t in inputs.values())
    if odd := [t for t in inputs.values() if t.shape[0] not in (1, rows)]:
        raise RequestError(f"input '{odd[0].name}': {odd[0].shape[0]} rows, and others have {rows}; 1 would be one "
                           "value for all")
    if not rows or any(not t.shape[0] for t in inputs.values()):
        raise RequestError("inputs: there is no row in them")
    found = Rows(rows, {}, {})
    for name, column in columns.items():
        beside = companions.get(name, {})
        n = max([inputs[name].shape[0], *(t.shape[0] for t in beside.values())])
        if any(t.shape[0] != n for t in (inputs[name], *beside.values())):
            raise RequestError(f"input '{name}': it and its {listing(beside)} have different numbers of rows")
        array = _column(column, inputs[name], beside, limits)
        (found.once if n == 1 and rows > 1 else found.each)[name] = array
    return found


def _column(column: Column, tensor: Tensor, beside: Mapping[str, Tensor], limits: Limits) -> pa.Array:
    where = f"input '{column.name}'"
    if len(tensor.shape) != (2 if column.is_list else 1):
        raise RequestError(f"{where}: shape {list(tensor.shape)}; the model says {column.shape}")
    null = _companion(column, beside, "null", tensor.shape[:1])
    lengths = _companion(column, beside, "length", tensor.shape[:1])
    weights = _weights(column, beside.get("weight"), tensor.shape, limits)
    if not column.is_list:
        return _with_nulls(_values(column, tensor, where, limits), null)
    n, L = tensor.shape
    if lengths is None:
        lengths = np.full(n, L)
    if len(lengths) and (lengths.min() < 0 or lengths.max() > L):
        raise RequestError(f"{where}: its lengths are not all from 0 to {L}")
    if null is not None:
        lengths = np.where(null, 0, lengths)                 # a null list ends where the one before it does
    entries = _values(column, tensor, where, limits)
    kept = (np.arange(L) < lengths[:, None]).ravel()
    if not kept.all():
        entries = entries.filter(pa.array(kept))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    if null is not None and null.any():
        offsets = pa.array(offsets, mask=np.append(null, False))
    if pa.types.is_map(column.kind):
        weigh = pa.array(np.ones(n * L)).cast(column.kind.item_type) if weights is None else weights
        return pa.MapArray.from_arrays(pa.array(offsets).cast(pa.int32()), entries, weigh.filter(pa.array(kept)))
    return pa.LargeListArray.from_arrays(offsets, entries)


def _companion(column: Column, beside: Mapping[str, Tensor], name: str, shape: Sequence[int]) -> np.ndarray | None:
    tensor = beside.get(name)
    if tensor is None:
        return None
    full, datatype = f"input '{column.name}.{name}'", COMPANIONS[name]
    if name == "length" and not column.is_list:
        raise RequestError(f"{full}: '{column.name}' has no {name}")
    if tensor.datatype not in ACCEPTED[datatype] or tuple(tensor.shape) != tuple(shape):
        raise RequestError(f"{full}: {tensor.datatype} {list(tensor.shape)}; {datatype} {list(shape)} is needed")
    values = _numbers(tensor, full)
    if values is None:
        raise RequestError(f"{full}: holds null")
    return values


def _weights(column: Column, tensor: Tensor | None, shape: Sequence[int], limits: Limits) -> pa.Array | None:
    if tensor is None:
        return None
    full = f"input '{column.name}.weight'"
    if not pa.types.is_map(column.kind):
        raise RequestError(f"{full}: '{column.name}' has no weight")
    if tuple(tensor.shape) != tuple(shape):
        raise RequestError(f"{full}: {tensor.datatype} {list(tensor.shape)}; {column.weight.datatype} {list(shape)} is "
                           "needed")
    return _values(column.weight, tensor, full, limits)


def _values(column: Column, tensor: Tensor, where: str, limits: Limits) -> pa.Array:
    """All entries of a tensor, in the order of rows, in the column's own type."""
    if tensor.datatype not in ACCEPTED[column.datatype]:
        raise RequestError(f"{where}: datatype {tensor.datatype}; the model says {column.datatype}")
    if isinstance(tensor.values, np.ndarray):
        values = _numbers(tensor, where)
        if tensor.datatype == "UINT64" and len(values) and values.max() > np.uint64(2**63 - 1):
            raise RequestError(f"{where}: holds a number above 2^63 - 1")
        array = pa.array(values.ravel())
    else:
        array = _listed(tensor.values, column, where, limits)
    try:
        return array.cast(column.value, safe=False) if array.type != column.value else array
    except (pa.ArrowException, ValueError):
        raise RequestError(f"{where}: holds a text that is not UTF-8" if column.datatype == "BYTES" else
                           f"{where}: holds what is no {column.value}") from None


def _numbers(tensor: Tensor, where: str) -> np.ndarray | None:
    """A tensor's numbers; None where JSON said null."""
    values = tensor.values
    if not isinstance(values, np.ndarray):
        if any(v is None for v in values):
            return None
        kind = {"BOOL": (bool,), "INT64": (int,)}.get(tensor.datatype, (int, float) if tensor.datatype[:2] == "FP"
                                                       else (int,))
        if any(type(v) not in kind for v in values):
            raise RequestError(f"{where}: holds what is no {tensor.datatype}")
        try:
            values = np.array(values, {bool: np.bool_, int: np.int64}.get(kind[0] if len(kind) == 1 else None,
                                                                         np.float64)).reshape(tensor.shape)
        except OverflowError:
            raise RequestError(f"{where}: holds a number beyond 64 bits") from None
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise RequestError(f"{where}: holds NaN or infinity; say null, by NAME.null or in JSON")
    return values


def _listed(values: Sequence[Any], column: Column, where: str, limits: Limits) -> pa.Array:
    """Values of JSON, or texts as bytes, as Arrow has them; null stays null."""
    datatype = column.datatype
    kinds = {"INT64": (int,), "FP64": (int, float, bool), "BOOL": (bool,), "BYTES": (str, bytes)}[datatype]
    for v in values:
        if v is not None and type(v) not in kinds:
            if datatype == "INT64" and type(v) is str and pa.types.is_timestamp(column.value):
                return _times(values, column, where)
            raise RequestError(f"{where}: holds {type(v).__name__} {str(v)[:40]!r}; the model says {datatype}")
    if datatype == "BYTES" and any(v is not None and len(v) > limits.text for v in values):
        raise RequestError(f"{where}: a text has at most {limits.text} bytes", 413)
    try:
        if datatype == "BYTES":
            return pa.array(values, pa.large_string() if any(type(v) is str for v in values) else pa.large_binary())
        return pa.array([None if v is None else float(v) for v in values] if datatype == "FP64" else values,
                        {"INT64": pa.int64(), "FP64": pa.float64(), "BOOL": pa.bool_()}[datatype])
    except (pa.ArrowException, OverflowError, UnicodeEncodeError, ValueError, TypeError):
        raise RequestError(f"{where}: holds a value that is no {datatype}") from None


def _times(values: Sequence[Any], column: Column, where: str) -> pa.Array:
    try:
        return pa.array(values, pa.large_string()).cast(column.value)
    except (pa.ArrowException, TypeError, ValueError):
        raise RequestError(f"{where}: holds what is no time, as in 2026-05-01T12:00:00") from None


def _with_nulls(array: pa.Array, null: np.ndarray | None) -> pa.Array:
    if null is None or not null.any():
        return array
    return pc.if_else(pa.array(null), pa.scalar(None, array.type), array)


# ---- rank

def from_rank(said: Any, columns: Mapping[str, Column], outputs: Sequence[str], limits: Limits) -> tuple[Rows, Ranking]:
    """Raises RequestError unless user and candidates have every declared column, once."""
    said = an_object(said, "the body")
    if unknown := [k for k in said if k not in ("user", "candidates", "outputs", "sort", "top", "counts", "id",
                                                "parameters")]:
        raise RequestError(f"{unknown[0][:60]!r}: a rank request has no such key")
    user, candidates = an_object(said.get("user", {}), "user"), said.get("candidates")
    if isinstance(candidates, list):
        candidates = _by_column(candidates, limits)
    candidates = an_object(candidates, "candidates")
    for name in (*user, *candidates):
        if name not in columns:
            raise RequestError(f"{name[:60]!r}: the model has no such column{did_you_mean(name[:60], columns)}")
    if twice := [name for name in user if name in candidates]:
        raise RequestError(f"'{twice[0]}': is given both for the user and for candidates")
    if missing := [name for name in columns if name not in user and name not in candidates]:
        raise RequestError(f"{listing(missing)} missing; say null where there is no value")
    lengths = {len(v) if isinstance(v, list) else -1 for v in candidates.values()}
    if len(lengths) != 1 or -1 in lengths or 0 in lengths:
        raise RequestError("candidates: each column is a list, of one value for each candidate, and of one length")
    rows = lengths.pop()
    if rows > limits.rows:
        raise RequestError(f"candidates: {rows}; a request has at most {limits.rows} rows", 413)
    found = Rows(rows, {}, {}, chosen(_names(said.get("outputs", [])), outputs))
    for name, column in columns.items():
        shared = name in user
        (found.once if shared and rows > 1 else found.each)[name] = _json_column(
            column, [user[name]] if shared else candidates[name], limits)
    top, counts, name = said.get("top"), said.get("counts", False), said.get("id", "")
    if top is not None and (type(top) is not int or top < 1):
        raise RequestError("top: a whole number above 0 is needed")
    if type(counts) is not bool or not isinstance(name, str):
        raise RequestError("counts is true or false, and id is a text")
    return found, Ranking(_sort(said.get("sort"), outputs), top, counts, name)


def _by_column(candidates: Sequence[Any], limits: Limits) -> dict[str, list[Any]]:
    if not candidates or len(candidates) > limits.rows:
        raise RequestError(f"candidates: {len(candidates)}; a request has 1 to {limits.rows} rows",
                           413 if candidates else 400)
    names = list(an_object(candidates[0], "candidates[0]"))
    for i, one in enumerate(candidates):
        if list(an_object(one, f"candidates[{i}]")) != names and set(one) != set(names):
            raise RequestError(f"candidates[{i}]: its columns are not those of candidates[0]; say null where there is "
                               "no value")
    return {name: [one[name] for one in candidates] for name in names}


def _json_column(column: Column, values: Sequence[Any], limits: Limits) -> pa.Array:
    where = f"'{column.name}'"
    if not column.is_list:
        tensor = Tensor(column.name, column.datatype, (len(values),), list(values))
        return _values(column, tensor, where, limits)
    mapped, entries, weights, lengths = pa.types.is_map(column.kind), [], [], []
    for v in values:
        if v is not None and not isinstance(v, dict if mapped else list):
            raise RequestError(f"{where}: holds {type(v).__name__}; {'an object' if mapped else 'a list'} is needed")
        if v is not None and len(v) > limits.length:
            raise RequestError(f"{where}: a list has at most {limits.length} entries", 413)
        lengths.append(len(v or ()))
        entries += list(v or ())
        weights += list(v.values()) if mapped and v else []
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    tensor = Tensor(column.name, column.datatype, (len(entries),), entries)
    array, mask = _values(column, tensor, where, limits), np.array([v is None for v in values])
    if mask.any():
        offsets = pa.array(offsets, mask=np.append(mask, False))
    if not mapped:
        return pa.LargeListArray.from_arrays(offsets, array)
    items = _values(column.weight, Tensor(column.name, column.weight.datatype, (len(weights),), weights), where, limits)
    return pa.MapArray.from_arrays(pa.array(offsets).cast(pa.int32()), array, items)


def _names(said: Any) -> list[str]:
    if not isinstance(said, list) or not all(isinstance(n, str) for n in said):
        raise RequestError("outputs: a list of names is needed")
    return said


def _sort(said: Any, outputs: Sequence[str]) -> tuple[str, dict[str, float]] | None:
    """{"sum": {output: weight}} or {"product": {output: power}}: closed operators, nothing is evaluated."""
    if said is None:
        return None
    said = an_object(said, "sort")
    if len(said) != 1 or next(iter(said)) not in OPERATORS:
        raise RequestError('sort: {"sum": {output: weight}} or {"product": {output: power}} is needed')
    (operator, terms), = said.items()
    terms = an_object(terms, f"sort.{operator}")
    chosen(list(terms), outputs)
    if not terms or any(type(v) not in (int, float) or not abs(v) <= 1e6 for v in terms.values()):
        raise RequestError(f"sort.{operator}: each output has a number from -1e6 to 1e6, and there is at least one")
    return operator, {k: float(v) for k, v in terms.items()}


def sorted_by(sort: tuple[str, Mapping[str, float]],
              outputs: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Places of rows, the largest value first and ties in the order they came; and each row's value.

        sum       sum_k w_k y_k
        product   prod_k y_k ^ w_k      by logarithms; 0 to a negative power is infinite
    """
    operator, terms = sort
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        y = {k: outputs[k].astype(np.float64) for k in terms}
        if operator == "sum":
            value = sum(w * y[k] for k, w in terms.items())
        else:
            value = np.exp(sum((w * np.log(np.maximum(y[k], 0)) for k, w in terms.items() if w), np.zeros(
                len(next(iter(y.values()))))))
    return np.argsort(-np.nan_to_num(value, nan=-math.inf), kind="stable"), value


def answer(model: str, version: str, asked: Rows, ranking: Ranking, outputs: Mapping[str, np.ndarray],
           counts: Mapping[str, Any] | None) -> dict[str, Any]:
    """The response to a rank request."""
    said: dict[str, Any] = {"model_name": model, "model_version": version}
    if ranking.id:
        said["id"] = ranking.id
    order = np.arange(asked.rows)
    if ranking.sort:
        order, value = sorted_by(ranking.sort, outputs)
        said["sort"] = json_numbers(value[order[:ranking.top]])
    order = order[:ranking.top]
    said["order"] = order.tolist()                          # places among the candidates
    said["outputs"] = {name: json_numbers(outputs[name][order]) for name in asked.outputs}
    if counts is not None:
        said["counts"] = counts
    return said
