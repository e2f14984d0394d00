"""From the state of one trained model to the start of another: weights, optimisers and averages by name.

Where things stood is said by moves.py. The optimisers' state of new places is 0, their average what they begin with.
What has no place and no reason to be new is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from funnelrank.errors import ConfigError, listing
from funnelrank.models import part_class
from funnelrank.train.axes import labels
from funnelrank.train.moves import SLOTS, Model, Move, RowMove, read_anew, row_move, weight_moves
from funnelrank.train.optim import averaged_names, optimised_names, row_optimiser, row_state

OPTIMISER = "optimiser"


@dataclass
class Carried:
    """A start for a Trainer, in the form of a checkpoint's tensors, and what became of the weights."""

    tensors: dict[str, Tensor]
    state: dict[str, Any] | None             # None: optimisers and averages start anew
    weights: dict[str, list[str]] = field(default_factory=dict)      # carried, resized, added, dropped, changed


def carry(old: Model, new: Model, tensors: Mapping[str, Tensor], state: Mapping[str, Any] | None,
          rows: Mapping[str, np.ndarray]) -> Carried:
    """The start of `new` from what a Trainer of `old` kept.

    tensors, state   as Trainer.tensors() and Trainer.state(); state None: weights alone, optimisers and averages start
                     anew
    rows             per id space that goes on, the id that each of its ids had before; -1 for a new one

    Raises ConfigError, all faults at once, for weights that cannot be carried; each says what to start anew instead.
    """
    faults = [*_settings_changed(old, new, state is not None), *_parts_changed(old, new)]
    moves, sorted_out = weight_moves(old, new, faults)
    sorted_out["changed"] = [*_keys_changed(old, new), *_share_taken(old, new)]
    tables = {name: row_move(name, table, old, new, rows, faults) for name, table in new.model.embedding.tables.items()}
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


def _settings_changed(old: Model, new: Model, state: bool) -> list[str]:
    faults = []
    was, now = old.settings, new.settings
    readings = [s.model.get("reading") for s in (was, now)]
    if readings[0] != readings[1] and "predict" not in new.anew:
        faults.append(f"model.reading: was {readings[0]}, now {readings[1]}, so the heads mean something else; start "
                      "them anew with --anew predict")
    if state:
        rows = [("embedding.optimiser.name", was.embedding.optimiser.name, now.embedding.optimiser.name)]
        if all("crosses" in m.model.embedding.tables for m in (old, new)) and not read_anew("crosses", new):
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
    classes = [{n: t.classes for n, t in s.tasks.items()} for s in (was, now)]
    for task in new.model.tasks:
        if task not in new.anew and classes[0].get(task, classes[1][task]) != classes[1][task] and (
                kinds.get(task) == "multiclass"):
            faults.append(f"tasks.{task}.classes: were {classes[0][task]}, now {classes[1][task]}; start it anew with "
                          f"--anew {task}")
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


def _share_taken(old: Model, new: Model) -> list[str]:
    """Parts that weigh all of something against each other, where some of it is new: old answers move at once."""
    before, now, found = labels(old.model), labels(new.model), []
    for slot in SLOTS:
        for part in _listed(new.settings.model.get(slot)) if slot not in new.anew else ():
            for quantity in getattr(part_class(slot, part["name"]), "weighs", ()):
                if added := [n for n in now[quantity] if n not in before[quantity] or n in new.anew]:
                    found.append(f"{slot}.{part['name']} weighs {quantity} against each other: {listing(added)} "
                                 "takes a share from the first step")
    return found


def _optimisers(old: Model, new: Model, tensors: Mapping[str, Tensor], moves: Mapping[str, tuple[str, Move]],
                tables: Mapping[str, RowMove | None]) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    for name, move in tables.items():
        table = new.model.embedding.tables[name]
        optimiser = row_optimiser(name, new.settings.embedding)
        for k, shape in row_state(optimiser, len(table.weight), table.width).items():
            key, zero = f"rows.{name}.{k}", torch.zeros(shape)
            out[key] = move(tensors[key], zero, optimiser.name == "rowwise_adagrad") if move else zero
    at = {n: i for i, n in enumerate(optimised_names(old.model, old.settings.train.optimiser))}
    parameters = dict(new.model.named_parameters())
    for i, name in enumerate(optimised_names(new.model, new.settings.train.optimiser)):
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


def _averages(old: Model, new: Model, tensors: Mapping[str, Tensor], moves: Mapping[str, tuple[str, Move]],
              tables: Mapping[str, RowMove | None], weights: Mapping[str, Tensor],
              log_decay: float) -> dict[str, Tensor]:
    at = {n: i for i, n in enumerate(averaged_names(old.model))}
    out: dict[str, Tensor] = {}
    for i, name in enumerate(averaged_names(new.model)):
        out[f"average.dense.{i}"] = (moves[name][1](tensors[f"average.dense.{at[moves[name][0]]}"], weights[name])
                                     if name in moves else weights[name].clone())
    for name, move in tables.items():
        weight = weights[f"embedding.tables.{name}.weight"]
        now = torch.full((len(weight),), log_decay, dtype=torch.float64)
        out[f"average.rows.{name}"] = move(tensors[f"average.rows.{name}"], weight) if move else weight.clone()
        out[f"average.seen.{name}"] = move(tensors[f"average.seen.{name}"], now, True) if move else now
    return out
