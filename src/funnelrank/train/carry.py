"""From the state of one trained model to the start of another: weights, optimisers and averages by name.

What has the same name keeps its place in the new tensors, whatever its position: a value's row, a feature's columns, a
task's head, a scenario's row. What is new is as in a fresh model, with two exceptions: the columns that old weights
read new features through are 0, so that what was learned says the same until the new columns have learned; and the
optimisers' state of new places is 0. What has no place and no reason to be new is refused.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from funnelrank.embedding.tables import WEIGHTS, Table
from funnelrank.errors import ArtefactError, ConfigError, listing
from funnelrank.ranker import RankingModel
from funnelrank.settings import Settings
from funnelrank.train.axes import READ, Axis, Label, Place, places
from funnelrank.train.optim import dense_optimiser, dense_parameters, row_optimiser, row_state

SLOTS = ("prepare", "represent", "transfer", "predict", "side")
OPTIMISER = "optimiser"
FITTED = "calibration."      # fitted after training, on valid: never carried
MOST = 5                     # sentences of one kind


@dataclass
class Model:
    """A model, its settings, and the encoder's side of it: labels that two models can be compared by."""

    model: RankingModel
    settings: Settings
    anew: frozenset[str] = frozenset()       # features, tasks, slots and 'optimiser' that start anew


@dataclass
class Carried:
    """A start for a Trainer, in the form of a checkpoint's tensors, and what became of the weights."""

    tensors: dict[str, Tensor]
    state: dict[str, Any] | None             # None: optimisers and averages start anew
    weights: dict[str, list[str]] = field(default_factory=dict)      # carried, resized, added, dropped


class _Move:
    """Where the places of a new tensor stood in the old one: per axis an index pair, or None for all as they are."""

    def __init__(self, shape: tuple[int, ...], pairs: list[tuple[Tensor, Tensor] | None], zero: Tensor | None = None):
        self.shape, self.pairs, self.zero = shape, pairs, zero

    @property
    def whole(self) -> bool:
        return all(p is None for p in self.pairs)

    def __call__(self, old: Tensor, start: Tensor) -> Tensor:
        """`start`, with every place that the old tensor has filled from there."""
        if self.whole:
            return old.clone()
        new = start.clone()
        to = [torch.arange(n) if p is None else p[0] for n, p in zip(self.shape, self.pairs)]
        at = [torch.arange(n) if p is None else p[1] for n, p in zip(old.shape, self.pairs)]
        if self.zero is not None:
            new[_grid([*to[:-1], self.zero])] = 0
        new[_grid(to)] = old[_grid(at)]
        return new


def _grid(indices: list[Tensor]) -> tuple[Tensor, ...]:
    return tuple(i.view(*[-1 if k == j else 1 for k in range(len(indices))]) for j, i in enumerate(indices))


def carry(old: Model, new: Model, tensors: Mapping[str, Tensor], state: Mapping[str, Any] | None,
          rows: Mapping[str, np.ndarray]) -> Carried:
    """The start of `new` from what a Trainer of `old` kept.

    tensors, state   as Trainer.tensors() and Trainer.state(); state None: weights alone, optimisers and averages start
                     anew
    rows             per id space that goes on, the id that each of its ids had before; -1 for a new one

    Raises ConfigError, all faults at once, for weights that cannot be carried; each says what to start anew instead.
    """
    faults = [*_settings_changed(old, new, state is not None), *_parts_changed(old, new)]
    moves, sorted_out = _moves(old, new, faults)
    tables = {name: _rows(name, table, old, new, rows, faults) for name, table in new.model.embedding.tables.items()}
    if faults:
        raise ConfigError(*faults)
    start = {k: v.cpu() for k, v in new.model.state_dict().items()}
    was = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    weights = {k: moves[k][1](was[moves[k][0]], v) if k in moves else v.clone() for k, v in start.items()
               if not k.startswith("embedding.tables.")}
    for name, move in tables.items():
        key = f"embedding.tables.{name}.weight"
        weights[key] = move(was[key], start[key]) if move else start[key].clone()
    out = {f"model.{k}": v for k, v in weights.items()}
    said: dict[str, Any] | None = None
    if state is not None:
        out |= _optimisers(old, new, tensors, moves, tables)
        said = {"row_steps": state["row_steps"], "average": None}
        if new.settings.train.average and state["average"]:
            out |= _averages(old, new, tensors, moves, tables, weights, state["average"]["log_decay"])
            said["average"] = dict(state["average"])
        out |= {k: tensors[k] for k in ("random",) if k in tensors}
    return Carried(out, said, sorted_out)


# ---- what may not change

def _settings_changed(old: Model, new: Model, state: bool) -> list[str]:
    faults = []
    was, now = old.settings, new.settings
    readings = [s.model.get("reading") for s in (was, now)]
    if readings[0] != readings[1] and "predict" not in new.anew:
        faults.append(f"model.reading: was {readings[0]}, now {readings[1]}, so the heads mean something else; start "
                      "them anew with --anew predict")
    if state:
        rows = [("embedding.optimiser.name", was.embedding.optimiser.name, now.embedding.optimiser.name)]
        if all("crosses" in m.model.embedding.tables for m in (old, new)):
            rows.append(("embedding.crosses.name", was.embedding.crosses.name, now.embedding.crosses.name))
        for where, a, b in (*rows, ("train.optimiser.name", was.train.optimiser.name, now.train.optimiser.name)):
            kinds = [{"adamw": "adam"}.get(name, name) for name in (a, b)]
            if kinds[0] != kinds[1]:
                faults.append(f"{where}: was {a}, now {b}, which keeps another state; start it anew with --anew "
                              f"{OPTIMISER}")
    kinds = {t: f for t, f in zip(old.model.tasks, old.model.funnel.kinds)}
    for task, kind in zip(new.model.tasks, new.model.funnel.kinds):
        if task not in new.anew and kinds.get(task, kind) != kind:
            faults.append(f"tasks.{task}.kind: was {kinds[task]}, now {kind}; start it anew with --anew {task}")
    return faults


def _parts_changed(old: Model, new: Model) -> list[str]:
    parts = [{slot: [p["name"] for p in _listed(m.settings.model.get(slot))] for slot in SLOTS} for m in (old, new)]
    return [f"model.{slot}: was {listing(parts[0][slot])}, now {listing(parts[1][slot])}; start this slot anew with "
            f"--anew {slot}" for slot in SLOTS if parts[0][slot] != parts[1][slot] and slot not in new.anew]


def _listed(said: Any) -> list[Any]:
    return said if isinstance(said, list) else [said] if said else []


def _keys_changed(old: Model, new: Model) -> list[str]:
    """Settings of parts that are not what they were, though every weight fits: 'represent.activation: relu -> gelu'."""
    return [f"{slot}.{key}: {a.get(key)} -> {b.get(key)}" for slot in SLOTS if slot not in new.anew
            for a, b in zip(*(_listed(m.settings.model.get(slot)) for m in (old, new)))
            for key in {**a, **b} if a.get(key) != b.get(key)]


# ---- weights

def _moves(old: Model, new: Model, faults: list[str]) -> tuple[dict[str, tuple[str, _Move]], dict[str, list[str]]]:
    """Key of the new state dict -> key of the old one and the move; and what became of each weight, in words."""
    before, after = places(old.model), places(new.model)
    shapes = {k: tuple(v.shape) for k, v in old.model.state_dict().items()}
    named = {p.name: k for k, p in before.items()}
    known = {label for p in before.values() for a in p.axes for label in a.labels or ()} | set(old.model.tasks) | set(
        old.model.embedding.histories)
    is_new = lambda label: _names(label) & new.anew or (label not in known and isinstance(label[0], str))
    moves: dict[str, tuple[str, _Move]] = {}
    said: dict[str, list[str]] = {"carried": [], "resized": [], "added": [], "dropped": [],
                                  "changed": _keys_changed(old, new)}
    refused: dict[str, list[str]] = {}
    for key, place in after.items():
        slot = key.split(".")[1]
        if slot in new.anew or set(map(str, place.names)) & new.anew:
            said["added"].append(place.name)
            continue
        if place.name not in named:
            if any(n not in known for n in place.names) or any(
                    a.labels and all(map(is_new, a.labels)) for a in place.axes):
                said["added"].append(place.name)
            else:
                refused.setdefault(slot, []).append(f"{place.name} is not in the artefact")
            continue
        source = named[place.name]
        pairs, why = [], ""
        for was, now in zip(before[source].axes, place.axes):
            pair, fault = _pair(was, now, new.anew)
            pairs.append(pair)
            why = why or fault
        if len(before[source].axes) != len(place.axes) or why:
            refused.setdefault(slot, []).append(why or f"{place.name} has another number of axes")
            continue
        move = _Move(tuple(a.size for a in place.axes), pairs, _zeroed(key, place, pairs))
        moves[key] = (source, move)
        said["carried" if move.whole else "resized"].append(
            place.name if move.whole else f"{place.name} {list(shapes[source])} -> {[a.size for a in place.axes]}")
    for slot, why in refused.items():
        shown = "; ".join(why[:MOST]) + (f"; and {len(why) - MOST} more" if len(why) > MOST else "")
        faults.append(f"model.{slot}: {shown}; start this slot anew with --anew {slot}")
    here = {p.name for p in after.values()}
    said["dropped"] = [p.name for p in before.values() if p.name not in here]
    said["dropped"] += [f"table {t}" for t in old.model.embedding.tables if t not in new.model.embedding.tables]
    return moves, said


def _pair(was: Axis, now: Axis, anew: Collection[str]) -> tuple[tuple[Tensor, Tensor] | None, str]:
    """Places of the new axis and where they were, or None where all stay; and why that cannot be said, or ''."""
    if was.labels is None or now.labels is None:
        same = was.labels is None and now.labels is None and was.size == now.size
        return None, "" if same else f"a layer of width {was.size} has width {now.size} now"
    if "mixed" in (was.counts, now.counts):
        same = was.labels == now.labels and not any(
            _names((q, label)) & set(anew) for q, labels in now.labels[0][0] for label in labels)
        return None, "" if same else "columns of several kinds stand in one axis, and some are new or gone"
    at = {label: i for i, label in enumerate(was.labels)}
    found = [-1 if _names(label) & set(anew) else at.get(label, -1) for label in now.labels]
    if found == list(range(was.size)):
        return None, ""
    new = [i for i, f in enumerate(found) if f >= 0]
    return (torch.tensor(new, dtype=torch.int64), torch.tensor([f for f in found if f >= 0], dtype=torch.int64)), ""


def _zeroed(key: str, place: Place, pairs: list) -> Tensor | None:
    """Columns of a weight that read what is new."""
    if not key.endswith("weight") or len(pairs) < 2 or pairs[-1] is None or place.axes[-1].counts not in READ:
        return None
    old = set(pairs[-1][0].tolist())
    return torch.tensor([i for i in range(place.axes[-1].size) if i not in old], dtype=torch.int64)


def _names(label: Label) -> set[str]:
    """What --anew may call a place: ('flat', ('price.missing', 0), 0) -> price.missing, price."""
    inner = label[1][0] if isinstance(label[1], tuple) and label[1] else label[1]
    return {inner, inner.rsplit(".", 1)[0]} if isinstance(inner, str) else set()


# ---- tables

class _RowMove:
    """Rows of a new table from those of the old one; a table of first-order weights has a column a task besides."""

    def __init__(self, source: Tensor, columns: tuple[Tensor, Tensor] | None):
        self.source, self.columns = source, columns           # [rows] int64, -1: new

    def __call__(self, old: Tensor, start: Tensor, one_a_row: bool = False) -> Tensor:
        new, kept = start.clone(), torch.nonzero(self.source >= 0).squeeze(1)
        if self.columns is None or one_a_row:
            new[kept] = old[self.source[kept]]
        else:
            to, at = self.columns
            new[kept.unsqueeze(1), to] = old[self.source[kept].unsqueeze(1), at]
        return new


def _rows(name: str, table: Table, old: Model, new: Model, rows: Mapping[str, np.ndarray],
          faults: list[str]) -> _RowMove | None:
    """The move of one table; None where the old model has no such table and all of it is new."""
    tables = old.model.embedding.tables
    source = np.full(len(table.weight), -1, np.int64)
    for space, offset in table.offset.items():
        if space not in rows:
            continue
        if name in tables and space in tables[name].offset:
            ids = rows[space]
            source[offset:offset + len(ids)] = np.where(ids < 0, -1, ids + tables[name].offset[space])
        elif name not in WEIGHTS and (was := [t.width for n, t in tables.items()
                                              if n not in WEIGHTS and space in t.offset]):
            members = [f for f, s in new.model.embedding.layout.space.items() if s == space]
            faults.append(f"embedding: rows of space '{space}' were {was[0]} wide, now {table.width}; start its "
                          f"features anew with --anew {','.join(members)}")
    if name not in tables:
        return None
    columns = None
    if name in WEIGHTS:
        at = {t: i for i, t in enumerate(old.model.tasks)}
        both = [(i, at[t]) for i, t in enumerate(new.model.tasks) if t in at and t not in new.anew]
        columns = torch.tensor(both, dtype=torch.int64).view(-1, 2).unbind(1)
    return _RowMove(torch.from_numpy(source), columns)


# ---- optimisers and averages

def dense_names(model: nn.Module, settings: Settings) -> list[str]:
    """Names of the dense parameters in the order that Trainer.tensors() numbers them in."""
    names = {id(p): n for n, p in model.named_parameters()}
    if not dense_parameters(model):
        return []
    return [names[id(p)] for g in dense_optimiser(model, settings.train.optimiser).param_groups for p in g["params"]]


def _optimisers(old: Model, new: Model, tensors: Mapping[str, Tensor], moves: Mapping[str, tuple[str, _Move]],
                tables: Mapping[str, _RowMove | None]) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    for name, move in tables.items():
        table = new.model.embedding.tables[name]
        optimiser = row_optimiser(name, new.settings.embedding)
        for k, shape in row_state(optimiser, len(table.weight), table.width).items():
            key, zero = f"rows.{name}.{k}", torch.zeros(shape)
            out[key] = move(tensors[key], zero, optimiser.name == "rowwise_adagrad") if move else zero
    at = {n: i for i, n in enumerate(dense_names(old.model, old.settings))}
    parameters = dict(new.model.named_parameters())
    for i, name in enumerate(dense_names(new.model, new.settings)):
        if name not in moves:
            continue
        source, move = moves[name]
        prefix = f"dense.{at[source]}."
        for key in [k for k in tensors if k.startswith(prefix)]:
            value = tensors[key]
            out[f"dense.{i}.{key.removeprefix(prefix)}"] = (
                value.clone() if value.dim() == 0 and parameters[name].dim() else move(
                    value, torch.zeros(parameters[name].shape, dtype=value.dtype)))
    return out


def _averages(old: Model, new: Model, tensors: Mapping[str, Tensor], moves: Mapping[str, tuple[str, _Move]],
              tables: Mapping[str, _RowMove | None], weights: Mapping[str, Tensor],
              log_decay: float) -> dict[str, Tensor]:
    names = {id(p): n for n, p in old.model.named_parameters()}
    at = {names[id(p)]: i for i, p in enumerate(dense_parameters(old.model))}
    names = {id(p): n for n, p in new.model.named_parameters()}
    out: dict[str, Tensor] = {}
    for i, p in enumerate(dense_parameters(new.model)):
        name = names[id(p)]
        out[f"average.dense.{i}"] = (moves[name][1](tensors[f"average.dense.{at[moves[name][0]]}"], weights[name])
                                     if name in moves else weights[name].clone())
    for name, move in tables.items():
        weight = weights[f"embedding.tables.{name}.weight"]
        now = torch.full((len(weight),), log_decay, dtype=torch.float64)
        out[f"average.rows.{name}"] = move(tensors[f"average.rows.{name}"], weight) if move else weight.clone()
        out[f"average.seen.{name}"] = move(tensors[f"average.seen.{name}"], now, True) if move else now
    return out


def check_state(model: RankingModel, settings: Settings, tensors: Mapping[str, Tensor], state: Mapping[str, Any],
                where: str) -> None:
    """Raises ArtefactError unless a checkpoint is one of this model: its tensors by name and shape, its counts."""
    average, number = state.get("average"), lambda v, kinds: type(v) in kinds and v == v
    if not number(state.get("row_steps"), (int,)) or not (average is None or isinstance(average, dict) and number(
            average.get("steps"), (int,)) and number(average.get("log_decay"), (int, float))):
        raise ArtefactError(f"{where}: does not say how many steps were done; it was changed")
    if "random" in tensors and (tensors["random"].shape, tensors["random"].dtype) != (
            torch.get_rng_state().shape, torch.uint8):
        raise ArtefactError(f"{where}: holds no state of this version's random generator")
    order, shapes = dense_names(model, settings), {k: tuple(v.shape) for k, v in model.state_dict().items()}
    needed = {f"model.{k}": shape for k, shape in shapes.items() if not k.startswith(FITTED)}
    for name, table in model.embedding.tables.items():
        kept = row_state(row_optimiser(name, settings.embedding), len(table.weight), table.width)
        needed |= {f"rows.{name}.{k}": shape for k, shape in kept.items()}
        if average is not None:
            needed |= {f"average.rows.{name}": tuple(table.weight.shape), f"average.seen.{name}": (len(table.weight),)}
    if average is not None:
        names = {id(p): n for n, p in model.named_parameters()}
        needed |= {f"average.dense.{i}": shapes[names[id(p)]] for i, p in enumerate(dense_parameters(model))}
    for key, tensor in tensors.items():
        at = re.fullmatch(r"dense\.(\d{1,6})\.\w+", key)
        if at and (int(at[1]) >= len(order) or tuple(tensor.shape) not in ((), shapes[order[int(at[1])]])):
            raise ArtefactError(f"{where}: tensor '{key}' is {list(tensor.shape)}, which no weight of the model is")
    for key, shape in needed.items():
        if key not in tensors or tuple(tensors[key].shape) != shape:
            found = list(tensors[key].shape) if key in tensors else "not there"
            raise ArtefactError(f"{where}: tensor '{key}' is {found}; the model has {list(shape)}")
