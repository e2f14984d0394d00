"""Where every place of a new model's weights stood in the old one: by name, whatever the position.

A place keeps what it held wherever a feature's columns, a task's head or a value's row stand now. What is new is as in
a fresh model, but the columns that old weights read new features through are 0, so that what was learned says the same
until the new columns have learned.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from funnelrank.embedding.tables import WEIGHTS, Table
from funnelrank.models import part_class
from funnelrank.ranker import RankingModel
from funnelrank.settings import Settings
from funnelrank.train.axes import READ, Axis, Label, Place, labels, places

SLOTS = ("prepare", "represent", "transfer", "predict", "side")
MOST = 5                     # sentences of one kind


@dataclass
class Model:
    """A model and its settings."""

    model: RankingModel
    settings: Settings
    anew: frozenset[str] = frozenset()       # features, tasks, slots and 'optimiser' that start anew


class Move:
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


def weight_moves(old: Model, new: Model, faults: list[str]) -> tuple[dict[str, tuple[str, Move]], dict[str, list[str]]]:
    """Key of the new state dict -> key of the old one and the move; and what became of each weight, in words."""
    (before, rigid), (after, _) = places(old.model), places(new.model)
    used = [slot for slot in SLOTS if new.settings.model.get(slot)]
    faults += [f"model: nothing can be said of its weights by {quantity}, which changes ({why}); start all slots anew "
               f"with --anew {','.join(used)}" for quantity, why in rigid.items()
               if not set(used) <= new.anew and labels(old.model)[quantity] != labels(new.model).get(quantity)]
    shapes = {k: tuple(v.shape) for k, v in old.model.state_dict().items()}
    named = {p.name: k for k, p in before.items()}
    known = {label for p in before.values() for a in p.axes for label in a.labels or ()} | set(old.model.tasks) | set(
        old.model.embedding.histories)
    is_new = lambda label: _names(label) & new.anew or (label not in known and isinstance(label[0], str))
    moves: dict[str, tuple[str, Move]] = {}
    said: dict[str, list[str]] = {"carried": [], "resized": [], "added": [], "dropped": []}
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
        move = Move(tuple(a.size for a in place.axes), pairs, _zeroed(key, place, pairs))
        moves[key] = (source, move)
        said["carried" if move.whole else "resized"].append(
            place.name if move.whole else f"{place.name} {list(shapes[source])} -> {[a.size for a in place.axes]}")
    for slot, why in refused.items():
        shown = "; ".join(why[:MOST]) + (f"; and {len(why) - MOST} more" if len(why) > MOST else "")
        faults.append(f"model.{slot}: {shown}; start this slot anew with --anew {slot}")
    said["added"] += [f"table {t}" for t in new.model.embedding.tables if read_anew(t, new)]
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
            _names((q, label)) & set(anew) for q, of in now.labels[0][0] for label in of)
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


def read_anew(name: str, new: Model) -> bool:
    """Whether a table of weights, first-order or of crosses, is read by slots alone that start anew (--anew side)."""
    if name not in WEIGHTS:
        return False
    said = {slot: new.settings.model.get(slot) or [] for slot in SLOTS}
    readers = {slot for slot, parts in said.items() for one in (parts if isinstance(parts, list) else [parts])
               if getattr(part_class(slot, one["name"]).needs, name)}
    return readers <= new.anew


class RowMove:
    """Rows of a new table from those of the old one; a table of first-order weights has a column an output besides."""

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


def row_move(name: str, table: Table, old: Model, new: Model, rows: Mapping[str, np.ndarray],
             faults: list[str]) -> RowMove | None:
    """The move of one table; None where all of it is new: the old model has none, or all that reads it starts anew."""
    tables = old.model.embedding.tables
    if read_anew(name, new):
        return None
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
        at = {o: i for i, o in enumerate(old.model.embedding.outputs)}
        both = [(i, at[o]) for i, o in enumerate(new.model.embedding.outputs) if o in at and o[0] not in new.anew]
        columns = torch.tensor(both, dtype=torch.int64).view(-1, 2).unbind(1)
    return RowMove(torch.from_numpy(source), columns)
