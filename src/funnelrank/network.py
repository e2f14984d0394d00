"""A model as a drawing: boxes of features, parts, blocks and tasks, what each gives and costs, and which features reach
which task.

Sizes of a network do not depend on data, but for a few that only a fitted encoder knows: numbers that say where others
are missing, and how many scenarios there are. Without one these are as the config says them, or absent.

A feature *reaches* a task if the task's answer changes when the feature does, found by changing it; it *teaches* the
task, too, if a gradient of the task's answer comes back to it. What only opens gates behind a stop-gradient reaches.
Both are looked for under random weights, since a weight of 0 lets nothing through.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from funnelrank import blocks
from funnelrank.batch import Batch, Layout
from funnelrank.config import Config
from funnelrank.data.encode import Encoder
from funnelrank.describe import aligned
from funnelrank.errors import ConfigError
from funnelrank.inputs import Inputs
from funnelrank.models import part_class
from funnelrank.own_parts import is_own
from funnelrank.ranker import RankingModel
from funnelrank.schema import FIRST, Schema, Served
from funnelrank.shapes import Past, Shape, Vector
from funnelrank.train.floor import ran

ROWS, VALUES, ENTRIES = 24, 12, 10       # of the batch that is looked at; values of a space; entries of a list
SLOTS = ("prepare", "represent", "transfer", "predict", "side")
SCENARIO = "data.scenario"
DRAWN = ("name", "blocks", "packages", "outputs")         # keys of a part that its box does not list


@dataclass(frozen=True)
class Box:
    """One thing of a drawing. `kind`: features, part, block, sum or task."""

    name: str
    kind: str
    title: str
    lines: tuple[str, ...] = ()
    told: str = ""                       # more, for whoever asks
    gives: str = ""                      # '[B, 64]'
    parameters: int = 0
    multiply_adds: float | None = None   # a row, forward


@dataclass
class Network:
    """boxes by name; edges (from, to, whether to says what comes after from); reach: feature -> task -> teaches |
    reaches."""

    title: str
    boxes: dict[str, Box] = field(default_factory=dict)
    edges: list[tuple[str, str, bool]] = field(default_factory=list)
    reach: dict[str, dict[str, str]] = field(default_factory=dict)
    tasks: tuple[str, ...] = ()
    width: int = 0                       # of flat
    parameters: int = 0                  # of the network, without tables
    multiply_adds: float | None = None   # a row, forward; None where a part is the user's own
    entries: int = ENTRIES
    fitted: bool = False

    def box(self, box: Box, *reads: str) -> str:
        self.boxes[box.name] = box
        self.edges += [(r, box.name, False) for r in dict.fromkeys(reads)]
        return box.name


def built(config: Config, layout: Layout | None = None) -> tuple[RankingModel, Layout]:
    """A config's model over id spaces of a few values, before any row is read; ConfigError where a part cannot be."""
    settings, schema = config.settings, config.schema
    embedding = settings.embedding.model_copy(update={"engine": "torch", "init_from": None})
    settings = settings.model_copy(update={"embedding": embedding})
    small = replace(layout or Encoder.unfitted(schema, VALUES).layout, size=dict.fromkeys(schema.spaces, VALUES))
    return RankingModel(settings, schema, small, {}), small


def faults_of_building(config: Config) -> list[str]:
    """What a part says that cannot be built as the config asks: what only its own code knows."""
    try:
        built(config)
    except ConfigError as refused:
        return list(refused.messages)
    return []


def drawn(config: Config, layout: Layout | None = None) -> Network:
    """The drawing of a config's model; with the `layout` of a fitted encoder, where there is one."""
    settings, schema = config.settings, config.schema
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, small = built(config, layout)
        batch = some_rows(small, ROWS)
        with torch.no_grad():
            for parameter in model.slots.parameters():
                parameter.normal_(0, max(parameter.shape[-1] if parameter.dim() else 1, 1) ** -0.5)
            for table in model.embedding.tables.values():
                table.weight.normal_()
                table.weight[table.pad] = 0
        own = any(is_own(p["name"]) for slot in SLOTS for p in _listed(settings.model.get(slot)))
        found = Network(config.name, tasks=tuple(schema.task_names), width=model.spec.flat,
                        parameters=sum(p.numel() for p in model.slots.parameters()), fitted=layout is not None)
        costs = None if own else _costs(model, settings.model, [some_rows(small, n) for n in (ROWS, 2 * ROWS)])
        if costs:
            found.multiply_adds = costs[""].multiply_adds
        _draw(found, model, settings.model, schema, costs or {})
        found.reach = reach(model, batch, schema)
    return found


class Cost(NamedTuple):
    gives: str
    multiply_adds: float         # of each row more


def _costs(model: RankingModel, said: Mapping[str, Any], batches: Sequence[Batch]) -> dict[str, Cost]:
    """Of every module that has a box, by its path; '' is the whole network.

    A row costs what one more of them adds: products of weights alone, which a batch needs once, are not counted.
    """
    paths = ["", *(path for path, *_ in _parts(model, said))]
    if said.get("represent") and blocks.is_drawing(said["represent"]):
        paths += [f"represent.drawing.blocks.{n}_" for n in model.slots.represent.drawing.order]
    few, more = (ran(model, batch, paths) for batch in batches)
    total = lambda done: sum(map(prod, done.products))
    return {path: Cost(_shape(few[path].gave), (total(more[path]) - total(few[path])) / ROWS) for path in few}


def some_rows(layout: Layout, n: int) -> Batch:
    """Random rows: ids of values that are known, lists of ENTRIES."""
    lists = len(layout.lists)
    draw = lambda *shape: torch.randint(FIRST, VALUES, shape, dtype=torch.int32)
    values = draw(n * lists * ENTRIES)
    return Batch(draw(n, len(layout.ids)), torch.randn(n, len(layout.numbers)), values,
                 torch.arange(0, n * lists * ENTRIES + 1, ENTRIES),
                 torch.randint(2, 2 + max(len(layout.scenarios), 1), (n,), dtype=torch.int32),
                 torch.full((n, len(layout.tasks)), float("nan")), torch.ones(n), torch.arange(n),
                 torch.rand(len(values)) + 0.5 if layout.weighted else None)


# ---- boxes and edges

def _draw(found: Network, model: RankingModel, said: Mapping[str, Any], schema: Schema,
          costs: Mapping[str, Cost]) -> None:
    parts = list(_parts(model, said))
    drawing = model.slots.represent.drawing if said.get("represent") and blocks.is_drawing(said["represent"]) else None

    def box(path: str, kind: str, title: str, module: nn.Module, told: str, *lines: str, gives: str = "") -> Box:
        cost = costs.get(path)
        return Box(path, kind, title, lines, told, gives or (cost.gives if cost else ""),
                   sum(p.numel() for p in module.parameters()), cost.multiply_adds if cost else None)

    sources = _features(found, model, schema)
    stream = list(sources.values())                       # who holds flat, as the next part reads it
    heads: list[str] = []
    for path, slot, part, module in parts:
        keys = ", ".join(f"{k} {_word(v)}" for k, v in part.items() if k not in DRAWN)
        kind = part_class(slot, part["name"])
        told = "\n".join(filter(None, [f"{slot}: {part['name']}", (inspect.getdoc(kind) or "").split("\n\n")[0], keys]))
        asked = kind.asks(part) if hasattr(kind, "asks") else kind.needs
        past = [f"history {h}" for h in model.embedding.histories] if asked.histories else []
        groups = [g for g in (part.get("group"), *(part.get("groups") or ())) if g]
        named = [_group(found, model, g, sources) for g in groups if g in model.embedding.groups]
        match slot:
            case "prepare":
                name = found.box(box(path, "part", part["name"], module, told, *_short(keys)), *stream, *past)
                stream = [name]
            case "represent" if drawing is not None:
                heads = [_blocks(found, model, part, drawing, box, stream, sources)]
            case "represent":
                reads = named if part.get("group") else [*stream, *named]
                heads = [found.box(box(path, "part", part["name"], module, told, *_short(keys)), *reads, *past)]
            case "transfer":
                heads = [found.box(box(path, "part", part["name"], module, told, *_short(keys)), *heads)]
            case "predict":
                heads = [found.box(box(path, "part", part["name"], module, told, *_short(keys)), *heads, *named,
                                   *past)]
            case "side":
                weights = [*sources.values()] if asked.linear or asked.crosses else stream
                crossed = ["crosses"] if asked.crosses else []
                heads.append(found.box(box(path, "part", part["name"], module, told, *_short(keys)), *(
                    crossed or named or weights)))
    if len(heads) > 1:
        heads = [found.box(Box("sum", "sum", "+", (), "the sum of logits"), *heads)]
    for t in schema.tasks:
        given = f"given {t.after}" if t.after and schema.nested else f"after {t.after}" if t.after else ""
        found.box(Box(f"task {t.name}", "task", t.name, tuple(filter(None, [t.kind, given])),
                      f"task {t.name}, label {t.label}, {schema.reading} reading"), *heads)
        if t.after:
            found.edges.append((f"task {t.after}", f"task {t.name}", True))


def _parts(model: RankingModel, said: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any], nn.Module]]:
    for slot in SLOTS:
        for i, part in enumerate(_listed(said.get(slot))):
            module = getattr(model.slots, slot)
            yield (f"{slot}.{i}", slot, part, module[i]) if slot in ("prepare", "side") else (slot, slot, part, module)


def _features(found: Network, model: RankingModel, schema: Schema) -> dict[str, str]:
    """A box for each role, and for what stands outside of flat; role -> its box."""
    embedding, roles = model.embedding, {}
    for role in dict.fromkeys(p.role for p in embedding.pieces):
        members = [p for p in embedding.pieces if p.role == role]
        lines = _widths((embedding.layout.feature.get(p.name, p.name), p.width) for p in members)
        width = sum(p.width for p in members)
        roles[role] = found.box(Box(f"role {role}", "features", role, tuple(lines), f"features of role {role}:\n"
                                    + "\n".join(lines), f"[B, {width}]"))
    for h, width in embedding.histories.items():
        found.box(Box(f"history {h}", "features", h, (f"history, with {embedding.layout.target[h]}",),
                      f"{h}: entries one by one, beside the row's {embedding.layout.target[h]}", f"[n, {width}]"))
    if embedding.crosses:
        found.box(Box("crosses", "features", "crosses", tuple(embedding.crosses), "a weight for each value and output",
                      f"[B, {len(embedding.crosses)}, {len(embedding.outputs)}]"))
    return roles


def _widths(features: Iterator[tuple[str, int]]) -> list[str]:
    whole: dict[str, int] = {}
    for name, width in features:
        whole[name] = whole.get(name, 0) + width
    return [f"{name} {width}" for name, width in whole.items()]


def _group(found: Network, model: RankingModel, group: str, roles: Mapping[str, str]) -> str:
    """The box of a role, or of a named group, which is drawn when it is first read."""
    if group in roles:
        return roles[group]
    if f"group {group}" not in found.boxes:
        members = model.embedding.members[group]
        lines = _widths((model.embedding.layout.feature.get(p.name, p.name), p.width) for p in members)
        found.box(Box(f"group {group}", "features", group, tuple(lines), f"embedding.groups.{group}:\n"
                      + "\n".join(lines), f"[B, {sum(p.width for p in members)}]"))
    return f"group {group}"


def _blocks(found: Network, model: RankingModel, part: Mapping[str, Any], drawing: nn.Module, box: Any,
            stream: list[str], roles: Mapping[str, str]) -> str:
    said, _ = blocks.read(part)
    before = list(roles.values()) != stream                   # a part of prepare stands between features and blocks
    for name in drawing.order:
        block, reads = said[name], []
        for one in blocks.inputs_of(block):
            if one.of in said:
                reads.append(f"represent.drawing.blocks.{one.of}_")
            elif one.form == "history":
                reads.append(f"history {one.of}")
            else:
                reads += stream if one.of == blocks.ALL or before else [_group(found, model, one.of, roles)]
        layer = dict(block.layer or {})
        what = f"package {block.package}" if block.package else layer.pop("name", "")
        keys = ", ".join(f"{k} {_word(v)}" for k, v in layer.items())
        many = f"{block.repeat} side by side" if block.repeat else f"{block.chain} in a row" if block.chain else ""
        merge = block.merge if len(blocks.inputs_of(block)) > 1 or block.merge == "stack" else ""
        lines = [x for x in (f"{merge} of inputs" if merge else "", what, *_short(keys), many) if x]
        found.box(box(f"represent.drawing.blocks.{name}_", "block", name, drawing.blocks[f"{name}_"],
                      "\n".join(filter(None, [f"block {name}: {what or 'its inputs'}", keys, many])), *lines,
                      gives=_words(drawing.shapes[name])), *reads)
    outputs = [f"represent.drawing.blocks.{n}_" for n in blocks.outputs_of(part)]
    if len(outputs) == 1:
        return outputs[0]
    return found.box(Box("represent", "sum", "views", (), "a view for each task",
                         f"[B, {model.slots.represent.views}, {model.slots.represent.hidden}]"), *outputs)


def _listed(said: Any) -> list[Any]:
    return said if isinstance(said, list) else [said] if said else []


def _shape(value: Any) -> str:
    value = value.flat if isinstance(value, Inputs) else value
    return f"[{', '.join(['B', *map(str, value.shape[1:])])}]" if isinstance(value, Tensor) else ""


def _words(shape: Shape) -> str:
    if isinstance(shape, Past):
        return f"[n, {shape.width}]"
    return f"[B, {shape.width}]" if isinstance(shape, Vector) else f"[B, {shape.count}, {shape.width}]"


def _word(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "-".join(map(_word, value)) or "none"
    return str(value).lower() if isinstance(value, bool) else "none" if value is None else str(value)


def _short(keys: str, most: int = 34, lines: int = 2) -> list[str]:
    """Settings as lines of a box; what does not fit is left to its title."""
    found = [""]
    for piece in filter(None, keys.split(", ")):
        if found[-1] and len(found[-1]) + len(piece) + 2 > most:
            found[-1] += ","
            found.append("")
        found[-1] += (", " if found[-1] else "") + piece
    if len(found) > lines:
        found = [*found[:lines - 1], found[lines - 1].rstrip(",") + " \N{HORIZONTAL ELLIPSIS}"]
    return [line if len(line) <= most + 2 else line[:most] + "\N{HORIZONTAL ELLIPSIS}" for line in found if line]


# ---- what reaches what

def reach(model: RankingModel, batch: Batch, schema: Schema) -> dict[str, dict[str, str]]:
    """Feature -> task -> 'teaches', 'reaches' or ''. The scenario's column is there where parts have own parameters."""
    model, layout = model.double().eval(), model.embedding.layout
    batch = replace(batch, numbers=batch.numbers.double(), value_weights=None if batch.value_weights is None
                    else batch.value_weights.double())
    with torch.no_grad():
        before = _answers(model, model.embedding(batch), schema.served)
    columns = {n: layout.feature.get(n, n) for n in layout.numbers}
    names = list(dict.fromkeys([*layout.ids, *columns.values(), *layout.lists]))
    names = [n for n in schema.features if n in names]
    teaches = _taught(model, batch, schema.served)
    found: dict[str, dict[str, str]] = {}
    for name in [*names, *([SCENARIO] if schema.scenario else [])]:
        with torch.no_grad():
            other = changed(batch, layout, name)
            after = _answers(model, model.embedding(other), schema.served)
        moved = {t: bool(((before[t] - after[t]).abs() > 1e-12).any()) for t in before}
        found[name] = {t: "" if not moved[t] else "teaches" if t in teaches.get(name, ()) else "reaches"
                       for t in before}
    if schema.scenario and not any(found[SCENARIO].values()):
        del found[SCENARIO]
    return found


def changed(batch: Batch, layout: Layout, feature: str) -> Batch:
    """The same rows with other values of one feature."""
    other = lambda ids: FIRST + (ids - FIRST + 1 + torch.arange(len(ids)) % (VALUES - FIRST - 1)) % (VALUES - FIRST)
    ids, numbers, values = batch.ids.clone(), batch.numbers.clone(), batch.values.clone()
    if feature == SCENARIO:
        many = max(len(layout.scenarios), 1)
        return replace(batch, scenario=torch.where(torch.arange(ROWS) % 2 == 0, batch.scenario * 0 + 1,
                                                   2 + (batch.scenario - 1) % many).to(torch.int32))
    for i, name in enumerate(layout.ids):
        if name == feature:
            ids[:, i] = other(ids[:, i])
    for i, name in enumerate(layout.numbers):
        if layout.feature.get(name, name) == feature:
            numbers[:, i] += 1.0 + numbers[:, i].abs()
    for k, name in enumerate(layout.lists):
        if name == feature:
            at = slice(int(batch.offsets[k * ROWS]), int(batch.offsets[(k + 1) * ROWS]))
            values[at] = other(values[at])
    return replace(batch, ids=ids.to(torch.int32), numbers=numbers, values=values.to(torch.int32))


def _answers(model: RankingModel, x: Inputs, served: Sequence[Served]) -> dict[str, Tensor]:
    """Task -> everything that is answered of it."""
    said = model.funnel(model.slots(x))
    return {task: torch.stack([model.funnel.answer(said, o) for o in served if o.task == t and not o.given], 1)
            for t, task in enumerate(model.tasks)}


def _taught(model: RankingModel, batch: Batch, served: Sequence[Served]) -> dict[str, set[str]]:
    """Feature -> tasks whose answers have a gradient of what is looked up of it."""
    e, layout = model.embedding, model.embedding.layout
    with torch.no_grad():
        x = e(batch)
    leaves: list[tuple[Tensor, list[tuple[Any, str]]]] = []

    def leaf(value: Tensor | None, places: list[tuple[Any, str]]) -> Tensor | None:
        if value is None:
            return None
        value = value.detach().clone().requires_grad_()
        leaves.append((value, places))
        return value
    column = [p.name for p in e.pieces for _ in range(p.width)]
    of = lambda names: [(np.s_[:, i], layout.feature.get(n, n)) for i, n in enumerate(names)]
    x.flat, x.fields = leaf(x.flat, of(column)), leaf(x.fields, of([p.name for p in e.embedded]))
    x.groups = {g: leaf(v, of([column[c] for c in e.groups[g].tolist()])) for g, v in x.groups.items()}
    x.histories = {h: v._replace(values=leaf(v.values, [(..., h)]), target=leaf(v.target, [(..., layout.target[h])]))
                   for h, v in x.histories.items()}
    x.linear = leaf(x.linear, of([p.name for p in e.embedded]))
    x.crosses, x.numbers = leaf(x.crosses, of(e.crosses)), leaf(x.numbers, of(layout.numbers))
    found: dict[str, set[str]] = {}
    for task, answer in _answers(model, x, served).items():
        gradients = torch.autograd.grad(answer.sum(), [v for v, _ in leaves], retain_graph=True, allow_unused=True)
        for (_, places), gradient in zip(leaves, gradients):
            for at, name in places if gradient is not None else ():
                if gradient[at].any():
                    found.setdefault(name, set()).add(task)
    return found


# ---- in words

def words(network: Network) -> str:
    """Blocks with what they read and give, their parameters and multiply-adds; then which features reach which task."""
    lines = []
    for box in network.boxes.values():
        if box.kind == "features":
            continue
        reads = [network.boxes[a].title for a, b, after in network.edges if b == box.name and not after]
        count = f"{box.parameters:,}" if box.kind in ("part", "block") else ""
        lines.append((box.title, " ".join(box.lines), " ".join(reads), box.gives, count,
                      f"{box.multiply_adds:,.0f}" if box.multiply_adds is not None else ""))
    given = [(box.title, ", ".join(box.lines), "", box.gives, "", "") for box in network.boxes.values()
             if box.kind == "features"]
    mark = {"teaches": "yes", "reaches": "looks", "": "-"}
    reached = [(name, *(mark[of[t]] for t in network.tasks)) for name, of in network.reach.items()]
    return "\n\n".join([
        aligned(("block", "what", "reads", "gives", "parameters", "multiply-adds a row"), [*given, *lines]),
        summary(network), aligned(("feature", *network.tasks), reached),
        "yes: it changes the task's answer and learns from it; looks: it changes the answer behind a stop-gradient"])


def summary(network: Network) -> str:
    """Totals, and what was assumed; two clauses, with a semicolon between."""
    cost = "" if network.multiply_adds is None else (
        f" and {network.multiply_adds:,.0f} multiply-adds a row, forward, with lists of {network.entries} entries")
    unknown = "" if network.fitted else (
        "; numbers that say where others are missing, and scenarios, are known once train is read")
    return f"{network.parameters:,} parameters beside the tables{cost}{unknown}"
