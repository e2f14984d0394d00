"""What stands where in a model's weights, found out by building its slots a little larger.

Parts know only sizes, so no part says which of its columns belong to which feature. But the axis of a weight that
grows when `flat` grows has a place for each column of flat; one that grows with `tasks` has a place for each task; and
if a task more makes a module more, that module's name counts tasks. So any part is understood without a word of its
own, if it keeps three customs:

    an axis with c places for each name is [names, c] flattened, as `view` and `flatten` leave it
    a part of `prepare` that widens flat appends to it, histories in their order
    `weight[..., in]`: the last axis of a weight is what it reads

An axis that depends on several sizes is understood where it is [tasks, scenarios, c] flattened, or columns of groups in
the order in which the part names them and then flat and histories. One that depends on them in any other way is
`mixed`: it can be carried only where none of them changed.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from funnelrank.errors import ConfigError
from funnelrank.inputs import Relation, Spec
from funnelrank.models.slots import Slots
from funnelrank.ranker import RankingModel

NUMBERS = re.compile(r"\d+(_\d+)*")
READ = ("flat", "numbers", "fields", "group", "history")     # what weights read; the others are what they are for

Label = Hashable
Labels = tuple[Label, ...]


@dataclass(frozen=True)
class Axis:
    """One axis of a weight: a label for each place, or None where places have no names; and what it counts."""

    labels: Labels | None
    size: int
    counts: str = ""             # flat, numbers, fields, group, history, tasks, scenarios (the first of several), mixed


@dataclass(frozen=True)
class Place:
    """A weight, by a name that does not depend on positions, and its axes."""

    name: str
    names: Labels                # tasks, histories, ... in that name
    axes: tuple[Axis, ...]


def places(model: RankingModel) -> tuple[dict[str, Place], dict[str, str]]:
    """Key of the state dict -> Place, for everything but the tables and what is fitted after training.

    And quantity -> why, of those that the model cannot be built with more of, so that nothing is known of them.
    """
    of, spec = labels(model), replace(model.spec, log_odds=())
    found = {"funnel.loc": Place("funnel.loc", (), (Axis(of["tasks"], spec.tasks, "tasks"),)),
             "funnel.scale": Place("funnel.scale", (), (Axis(of["tasks"], spec.tasks, "tasks"),))}
    base = {k: tuple(v.shape) for k, v in model.slots.state_dict().items()}
    more, by, rigid = {}, {}, {}
    for quantity in _larger(spec, 1):
        try:
            more[quantity], by[quantity] = _grown(model, spec, quantity)
        except ConfigError as error:
            rigid[quantity] = str(error)
    keyed = _keyed(base, more, of)
    for key, shape in base.items():
        name, names = _renamed(key, keyed, model)
        near = {q: of[q] for q in sorted(more, key=lambda q: _order(q, key, model)) if q in of and key in more[q]}
        axes = tuple(_axis([(q, (more[q][key][i] - n) / by[q]) for q in near if more[q][key][i] != n], n, near)
                     for i, n in enumerate(shape))
        found[f"slots.{key}"] = Place(f"slots.{name}", names, axes)
    return found, rigid


def _order(quantity: str, key: str, model: RankingModel) -> tuple[int, int]:
    """Which columns stand first in an axis of several kinds."""
    slot, *rest = key.split(".")
    said = model.slots.said.get(slot)
    part = said[int(rest[0])] if isinstance(said, list) else said
    groups = [f"group {g}" for g in (part or {}).get("groups") or ()]
    if quantity in groups:
        return 0, groups.index(quantity)
    return 1, ("flat", *(f"history {h}" for h in model.embedding.histories), "tasks").index(quantity) if (
        quantity in ("flat", "tasks") or quantity.startswith("history ")) else 99


def labels(model: RankingModel) -> dict[str, Labels]:
    """Quantity -> a label for each of its places."""
    e = model.embedding
    flat = tuple((p.name, j) for p in e.pieces for j in range(p.width))
    found: dict[str, Labels] = {"flat": flat}
    found |= {f"history {h}": tuple((h, j) for j in range(w)) for h, w in e.histories.items()}
    found |= {f"group {g}": tuple(flat[c] for c in columns.tolist()) for g, columns in e.groups.items()}
    return found | {"fields": tuple(p.name for p in e.embedded), "numbers": tuple(e.layout.numbers),
                    "tasks": tuple(model.tasks), "outputs": tuple(t for t, _ in e.outputs),
                    "histories": tuple(e.histories), "scenarios": (0, 1, *e.layout.scenarios)}


def _larger(spec: Spec, k: int) -> dict[str, Spec]:
    """Quantity -> a Spec with k more of it. Fields and columns of groups that are more stand where others do."""
    T = spec.tasks
    outputs = spec.outputs and (*spec.outputs, *(1,) * k)
    chain = (*spec.relations, *(Relation(t - 1, t) for t in range(T, T + k))) if spec.relations else ()
    larger = {"flat": replace(spec, flat=spec.flat + k), "numbers": replace(
        spec, numbers=spec.numbers + k, number_starts=(*spec.number_starts, *spec.number_starts[:1] * k)),
              "tasks": replace(spec, tasks=T + k, outputs=outputs, relations=chain),
              "scenarios": replace(spec, scenarios=spec.scenarios + k)}
    if len(spec.owners) != T:
        larger["outputs"] = replace(spec, outputs=(*spec.outputs[:-1], spec.outputs[-1] + k))
    if spec.embedded:
        larger["fields"] = replace(spec, fields=spec.fields and (spec.fields[0] + k, spec.fields[1]),
                                   starts=(*spec.starts, *spec.starts[:1] * k),
                                   widths=(*spec.widths, *spec.widths[:1] * k), embedded=spec.embedded + k)
    larger |= {f"group {g}": replace(spec, groups={**spec.groups, g: w + k},
                                     columns={**spec.columns, g: (*spec.columns[g], *spec.columns[g][:1] * k)})
               for g, w in spec.groups.items() if w}
    larger |= {f"history {h}": replace(spec, histories={**spec.histories, h: w + k})
               for h, w in spec.histories.items()}
    if spec.histories:
        width = next(iter(spec.histories.values()))
        larger["histories"] = replace(spec, histories={**spec.histories, **{f"one more {i}": width for i in range(k)}})
    return larger


def _grown(model: RankingModel, spec: Spec, quantity: str) -> tuple[dict[str, tuple[int, ...]], int]:
    """Shapes of the slots with k more of a quantity, and k: 1, unless only other sizes divide as a part wants."""
    for k in (1, 2, 3, 4, 6, 8, 12, 16, 32, 64):
        try:
            with torch.random.fork_rng(devices=[]):
                slots = Slots(model.slots.said, _larger(spec, k)[quantity])
        except ConfigError as error:
            fault = error
            continue
        return {key: tuple(v.shape) for key, v in slots.state_dict().items()}, k
    raise fault


def _keyed(base: Mapping[str, Sequence[int]], more: Mapping[str, Mapping[str, Sequence[int]]],
           of: Mapping[str, Labels]) -> dict[str, Labels]:
    """Module path -> what the numbers in its children's names stand for: 'transfer.gates' -> tasks."""
    found = {}
    for quantity in ("tasks", "histories", "scenarios", "fields"):
        for key in more.get(quantity, {}):
            if key in base:
                continue
            path = key.split(".")
            known = max(i for i in range(len(path)) if any(k.split(".")[:i] == path[:i] for k in base))
            if NUMBERS.fullmatch(path[known]):
                children = [k.split(".")[known] for k in base if k.split(".")[:known] == path[:known]]
                most = max(int(n) for child in children for n in child.split("_"))
                found[".".join(path[:known])] = _counted(quantity, of[quantity], most + 1)
    return found


def _renamed(key: str, keyed: Mapping[str, Labels], model: RankingModel) -> tuple[str, Labels]:
    """'transfer.gates.0_1.weight' -> 'transfer.ait.gates.click>cart.weight', and click and cart."""
    path, names = key.split("."), []
    out = []
    for i, piece in enumerate(path):
        named = keyed.get(".".join(path[:i]))
        if named and NUMBERS.fullmatch(piece):
            said = [named[int(n)] for n in piece.split("_")]
            names += said
            piece = ">".join(map(str, said))
        out.append(piece)
    slot = model.slots.said.get(path[0])
    if isinstance(slot, list):                               # a chain: by the part's name, not its position
        parts = [s["name"] for s in slot]
        at = int(path[1])
        out[1] = parts[at] + "'" * parts[:at].count(parts[at])
    elif slot:
        out.insert(1, slot["name"])
    return ".".join(out), tuple(names)


def _axis(grows: list[tuple[str, float]], size: int, of: Mapping[str, Labels]) -> Axis:
    """The axis that grows by so many places with each of these quantities, in their order."""
    grows = [(q, round(c) if c == round(c) else c) for q, c in grows if q != "histories"]
    if "outputs" in dict(grows):                             # a task more is an output more, and no more than that
        grows = [(q, c) for q, c in grows if q != "tasks"]
    if not grows:
        return Axis(None, size)
    plain: list[tuple[str, Label]] = []
    if len(grows) == 1:
        (q, c), = grows
        plain = [(q, label) for label in _counted(q, of[q], size / c) for _ in range(int(c))]
    elif {q for q, _ in grows} in ({"tasks", "scenarios"}, {"outputs", "scenarios"}):
        by, q = dict(grows), next(q for q, _ in grows if q != "scenarios")
        each = by["scenarios"] / len(of[q])                       # of each task, or output, in each scenario
        named = _counted("scenarios", of["scenarios"], by[q] / each)
        plain = [(q, (t, s)) for t in of[q] for s in named for _ in range(int(each))]
        plain = plain if each * len(named) == by[q] else []
    elif all(c == 1 and q.startswith(("flat", "group ", "history ")) for q, c in grows):
        plain = [(q, label) for q, _ in grows for label in of[q]]
    plain = [("tasks" if q == "outputs" else q, label) for q, label in plain]
    if len(plain) == size:
        seen: dict[Label, int] = {}
        numbered = []
        for one in plain:
            seen[one] = seen.get(one, -1) + 1
            numbered.append((*one, seen[one]))
        return Axis(tuple(numbered), size, plain[0][0].split(" ")[0])
    whole = tuple((q, of[q]) for q, _ in grows)
    return Axis(tuple((whole, k) for k in range(size)), size, "mixed")


def _counted(quantity: str, names: Labels, count: float) -> Labels:
    """The labels that an axis counts: of scenarios a part may leave out one or both of those without a name."""
    left_out = len(names) - count
    return names[int(left_out):] if quantity == "scenarios" and left_out in (1, 2) else names
