"""A network that the config draws as named blocks: blocks.py has what a drawing says, layers.py what blocks hold.

A block's parameters start from the run's seed and the block's name alone, so that the order in which blocks are
written, or what stands beside them, changes nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from funnelrank.blocks import ALL, GIVEN, Block, Input, Package, ends, forms_of, inputs_of, plan
from funnelrank.errors import ConfigError
from funnelrank.inputs import Inputs, Needs, Spec
from funnelrank.models.layers import Misfit, Past, Shape, Stack, Value, Vector, build_layer, flat, width_of

PLACE = "model.represent"
PLAIN = {"mlp": {"inputs": ALL, "layer": {"name": "mlp", "hidden": [128, 64]}}}


class Backbone(nn.Module):
    """Features through a drawing of blocks -> [B, V, H], a view for each task, or one that all share.

    Tasks' outputs of different widths are filled up with zeros to the widest, which a linear head does not notice.

    blocks      name: block
    outputs     the block that all tasks share, or {task: block}; without it, the one that no block reads
    packages    drawings that blocks use by name
    """

    needs = Needs()

    def __init__(self, spec: Spec, *, blocks: dict[str, Block] = PLAIN, outputs: str | dict[str, str] | None = None,
                 packages: dict[str, Package] | None = None):
        super().__init__()
        blocks = {n: Block.model_validate(b) for n, b in blocks.items()}
        packages = {n: Package.model_validate(p) for n, p in (packages or {}).items()}
        outputs = ends(blocks)[0] if outputs is None else outputs
        names = [outputs] if isinstance(outputs, str) else list(outputs.values())
        seed = int(torch.randint(2**62, (), device="cpu"))
        self.shared = nn.ModuleDict()                          # packages that all their users share
        self.drawing = Drawing(blocks, names, None, _Site(spec, packages, seed, self.shared), "blocks")
        if unread := set(spec.histories) - self.drawing.histories:
            raise ConfigError(f"{PLACE}.blocks: no block reads the sequence '{min(unread)}'; where one sequence is "
                              "read as a history all are, so give it to a block with layer: pool, or remove it")
        self.names = names
        shapes = [self.drawing.shapes[n] for n in names]
        if isinstance(outputs, str) and isinstance(shapes[0], Stack):
            self.views, self.hidden = shapes[0]
            if self.views != spec.tasks:
                raise ConfigError(f"{PLACE}.outputs: '{outputs}' gives {self.views} vectors, and there are "
                                  f"{spec.tasks} tasks; name a block for each, as in {{task: block}}")
        else:
            self.views = 1 if isinstance(outputs, str) else spec.tasks
            with _told(f"{PLACE}.outputs"):
                self.hidden = max(width_of(s) for s in shapes)
        self.whole = isinstance(outputs, str)

    @staticmethod
    def asks(said: Mapping[str, Any]) -> Needs:
        """What a drawing reads, before it is built."""
        forms = forms_of(said)
        return Needs(fields="fields" in forms, histories="history" in forms)

    def forward(self, x: Inputs) -> Tensor:
        out = self.drawing(x, None)
        if self.whole:
            h = out[self.names[0]]
            return h if h.dim() == 3 else h.unsqueeze(1)                         # [B, V, H]
        wide = [F.pad(flat(out[n]), (0, self.hidden - width_of(self.drawing.shapes[n]))) for n in self.names]
        return torch.stack(wide, 1)                                              # [B, T, H]


@dataclass(frozen=True)
class _Site:
    """What every block is built with."""

    spec: Spec
    packages: Mapping[str, Package]
    seed: int
    shared: nn.ModuleDict

    @contextmanager
    def seeded(self, where: str) -> Iterator[None]:
        """Random numbers of `where` alone."""
        digest = hashlib.sha256(f"{self.seed} {where}".encode()).digest()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int.from_bytes(digest[:7], "little"))
            yield


class Drawing(nn.Module):
    """Blocks in the order of their plan; `given` is the shape of what a package is handed."""

    def __init__(self, blocks: Mapping[str, Block], outputs: Sequence[str], given: Shape | None, site: _Site,
                 where: str):
        super().__init__()
        self.order = plan(blocks, outputs)
        self.shapes: dict[str, Shape] = {} if given is None else {GIVEN: given}
        self.histories: set[str] = set()
        self.blocks = nn.ModuleDict()
        for name in self.order:
            built = Built(blocks[name], self.shapes, site, f"{where}.{name}")
            self.blocks[f"{name}_"] = built           # a block may be called `items`, a module may not
            self.shapes[name] = built.out
            self.histories |= built.histories

    def forward(self, x: Inputs, given: Value | None) -> dict[str, Value]:
        """Every block's value by its name."""
        values: dict[str, Value] = {} if given is None else {GIVEN: given}
        for name, block in zip(self.order, self.blocks.values()):
            values[name] = block(x, values)
        return values


class Built(nn.Module):
    """One block: what it reads, how that is merged, and its layers, one after another or side by side (repeat)."""

    def __init__(self, block: Block, shapes: Mapping[str, Shape], site: _Site, where: str):
        super().__init__()
        at = f"{PLACE}.{where}"
        self.reads = nn.ModuleList()
        for i, one in enumerate(inputs_of(block)):
            with _told(f"{at}.inputs" + (f"[{i}]" if isinstance(block.inputs, list) else "")):
                self.reads.append(_Read(one, shapes, site.spec))
        self.histories = {r.name for r in self.reads if r.form == "history"}
        with _told(f"{at}.merge"):
            self.merge, merged = block.merge, _merged(block.merge, [r.out for r in self.reads])
        self.steps, self.side_by_side = nn.ModuleList(), block.repeat is not None
        outs = []
        for k in range(block.repeat or block.chain or int(bool(block.layer or block.package))):
            if block.package:
                with _told(f"{at}.package"):
                    step: nn.Module = _Use(block.package, merged, site, f"{where}[{k}]" if k else where)
                self.histories |= step.histories
            else:
                with _told(f"{at}.layer"), site.seeded(f"{where} {k}"):
                    step = build_layer(block.layer, merged)
            self.steps.append(step)
            outs.append(step.out)
            if not self.side_by_side:
                merged = [step.out]
        with _told(f"{at}.repeat" if self.side_by_side else f"{at}.layer"):
            self.out = _stacked(outs) if self.side_by_side else _alone(merged)

    def forward(self, x: Inputs, values: Mapping[str, Value]) -> Value:
        merged = _merge(self.merge, [read(x, values) for read in self.reads])
        outs = []
        for step in self.steps:
            out = step(x, *merged) if isinstance(step, _Use) else step(*merged)
            outs.append(out)
            if not self.side_by_side:
                merged = [out]
        return torch.stack(outs, 1) if self.side_by_side else merged[0]


class _Use(nn.Module):
    """A package where a layer could stand: a drawing of its own, or the one that all users share."""

    def __init__(self, name: str, shapes: Sequence[Shape], site: _Site, where: str):
        super().__init__()
        package, given = site.packages[name], _alone(shapes)
        if not package.shared:
            self.own = Drawing(package.blocks, [package.output], given, site, f"{where}.{name}")
        elif name not in site.shared:
            site.shared[name] = Drawing(package.blocks, [package.output], given, site, f"packages.{name}.blocks")
        elif (first := site.shared[name].shapes[GIVEN]) != given:
            raise Misfit(f"'{name}' is shared, and is given {_words(first)} elsewhere and {_words(given)} here; give "
                         "it the same, or set its shared: false")
        self.held = (site.shared[name] if package.shared else self.own,)         # no second owner of its parameters
        self.output, self.histories = package.output, self.held[0].histories
        self.out = self.held[0].shapes[package.output]

    def forward(self, x: Inputs, given: Value) -> Value:
        return self.held[0](x, given)[self.output]


class _Read(nn.Module):
    """One input of a block: features in a form, or another block's value; all of it, or a part."""

    def __init__(self, one: Input, shapes: Mapping[str, Shape], spec: Spec):
        super().__init__()
        self.name, self.take = one.of, one.take
        self.form = None if one.of in shapes else one.form or "flat"
        self.register_buffer("columns", None, persistent=False)
        if self.form is None:
            shape: Shape = shapes[one.of]
        elif self.form == "history":
            shape = Past(spec.histories[one.of])
        elif self.form == "flat":
            shape = Vector(spec.flat if one.of == ALL else spec.groups[one.of])
        else:
            mine = range(spec.flat) if one.of == ALL else spec.columns.get(one.of, ())
            if self.form == "fields":
                at = [f for f, start in enumerate(spec.starts) if start in mine]
                shape = Stack(len(at), spec.fields[1])
            else:
                at = [c for c in spec.number_columns if c in mine]
                shape = Vector(len(at))
            if not at:
                what = "embedded feature" if self.form == "fields" else "number"
                raise Misfit(f"there is no {what} in '{one.of}'; name another group, or another form")
            self.columns = torch.tensor(at)
        self.out = _taken(shape, one)

    def forward(self, x: Inputs, values: Mapping[str, Value]) -> Value:
        if self.form is None:
            value: Value = values[self.name]
        elif self.form == "history":
            value = x.histories[self.name]
        elif self.form == "flat":
            value = x.flat if self.name == ALL else x.groups[self.name]
        else:
            value = (x.fields if self.form == "fields" else x.flat).index_select(1, self.columns)
        if self.take is None:
            return value
        return value[:, self.take] if isinstance(self.take, int) else value[:, self.take[0]:self.take[1]]


def _taken(shape: Shape, one: Input) -> Shape:
    if one.take is None:
        return shape
    if isinstance(shape, Past):
        raise Misfit("take: a history has no entries by number; pool it first")
    size = shape[0]
    if isinstance(one.take, int):
        if isinstance(shape, Vector):
            raise Misfit(f"take: {one.take} is an entry of a stack, and '{one.of}' is one vector; cut it by "
                         "[start, stop]")
        if one.take >= size:
            raise Misfit(f"take: '{one.of}' has entries 0 .. {size - 1}, and no {one.take}")
        return Vector(shape.width)
    start, stop = one.take
    if not start < stop <= size:
        raise Misfit(f"take: [{start}, {stop}] lies outside 0 .. {size} of '{one.of}', or is empty")
    return Vector(stop - start) if isinstance(shape, Vector) else Stack(stop - start, shape.width)


# ---- merging

def _merged(how: str, shapes: Sequence[Shape]) -> list[Shape]:
    """The shapes that a layer is given."""
    if how == "list" or len(shapes) == 1 and how != "stack":
        return list(shapes)
    if how == "concat":
        return [Vector(sum(map(width_of, shapes)))]
    if how == "stack":
        return [_stacked(shapes)]
    if len(set(shapes)) != 1 or isinstance(shapes[0], Past):
        raise Misfit(f"{how}: inputs are {', '.join(map(_words, shapes))}; number by number needs the same of all")
    return [shapes[0]]


def _stacked(shapes: Sequence[Shape]) -> Stack:
    widths = {None if isinstance(s, Past) else s.width for s in shapes}
    if len(widths) != 1 or None in widths:
        raise Misfit(f"a stack has vectors of one width, and these are {', '.join(map(_words, shapes))}")
    return Stack(sum(1 if isinstance(s, Vector) else s.count for s in shapes), widths.pop())


def _alone(shapes: Sequence[Shape]) -> Shape:
    if len(shapes) != 1:
        raise Misfit("merge: list hands several inputs to a layer that takes several, and here is none; merge them "
                     "another way")
    return shapes[0]


def _merge(how: str, values: Sequence[Value]) -> list[Value]:
    if how == "list" or len(values) == 1 and how != "stack":
        return list(values)
    if how == "concat":
        return [torch.cat([flat(v) for v in values], 1)]
    if how == "stack":
        return [torch.cat([v if v.dim() == 3 else v.unsqueeze(1) for v in values], 1)]
    whole = values[0]
    for v in values[1:]:
        whole = whole * v if how == "product" else whole + v
    return [whole / len(values) if how == "mean" else whole]


def _words(shape: Shape) -> str:
    if isinstance(shape, Past):
        return f"a history of width {shape.width}"
    return f"a vector of {shape.width}" if isinstance(shape, Vector) else f"{shape.count} vectors of {shape.width}"


@contextmanager
def _told(where: str) -> Iterator[None]:
    """What does not fit, with the block's place in front."""
    try:
        yield
    except Misfit as misfit:
        raise ConfigError(*(f"{where}: {m}" for m in misfit.messages)) from None
