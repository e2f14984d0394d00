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
from funnelrank.models.layers import Value, build_layer, flat
from funnelrank.shapes import (
    Features,
    Misfit,
    Shape,
    Stack,
    alone,
    merged,
    other_use,
    output_width,
    stacked,
    taken,
    unread_history,
    width_of,
)

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
        site = _Site(spec, features_of(spec), packages, seed, self.shared)
        self.drawing = Drawing(blocks, names, None, site, "blocks", "blocks")
        if unread := set(spec.histories) - self.drawing.histories:
            raise ConfigError(f"{PLACE}.blocks: {unread_history(unread)}")
        self.names = names
        shapes = [self.drawing.shapes[n] for n in names]
        self.whole = isinstance(outputs, str)
        self.views = 1 if self.whole and not isinstance(shapes[0], Stack) else spec.tasks
        with _told(f"{PLACE}.outputs"):
            self.hidden = max(output_width(n, s, spec.tasks, each=not self.whole) for n, s in zip(names, shapes))

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


def features_of(spec: Spec) -> Features:
    """What a drawing can read, as shapes.py wants it."""
    within = {ALL: range(spec.flat), **{g: set(columns) for g, columns in spec.columns.items()}}
    count = lambda columns: {g: sum(c in mine for c in columns) for g, mine in within.items()}
    return Features(spec.flat, spec.groups, count(spec.starts), spec.fields[1] if spec.fields else None,
                    count(spec.number_columns), spec.histories)


@dataclass(frozen=True)
class _Site:
    """What every block is built with."""

    spec: Spec
    features: Features
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
    """Blocks in the order of their plan; `given` is the shape of what a package is handed.

    `where` names a use of it, of which weights are; `place` is where it stands in the config.
    """

    def __init__(self, blocks: Mapping[str, Block], outputs: Sequence[str], given: Shape | None, site: _Site,
                 where: str, place: str):
        super().__init__()
        self.order = plan(blocks, outputs)
        self.shapes: dict[str, Shape] = {} if given is None else {GIVEN: given}
        self.histories: set[str] = set()
        self.blocks = nn.ModuleDict()
        for name in self.order:
            built = Built(blocks[name], self.shapes, site, f"{where}.{name}", f"{PLACE}.{place}.{name}")
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

    def __init__(self, block: Block, shapes: Mapping[str, Shape], site: _Site, where: str, at: str):
        super().__init__()
        self.reads = nn.ModuleList()
        for i, one in enumerate(inputs_of(block)):
            with _told(f"{at}.inputs" + (f"[{i}]" if isinstance(block.inputs, list) else "")):
                self.reads.append(_Read(one, shapes, site))
        self.histories = {r.name for r in self.reads if r.form == "history"}
        with _told(f"{at}.merge"):
            self.merge, held = block.merge, merged(block.merge, [r.out for r in self.reads])
        self.steps, self.side_by_side = nn.ModuleList(), block.repeat is not None
        outs = []
        for k in range(block.repeat or block.chain or int(bool(block.layer or block.package))):
            if block.package:
                with _told(f"{at}.package"):
                    step: nn.Module = _Use(block.package, held, site, f"{where}[{k}]" if k else where)
                self.histories |= step.histories
            else:
                with _told(f"{at}.layer"), site.seeded(f"{where} {k}"):
                    step = build_layer(block.layer, held)
            self.steps.append(step)
            outs.append(step.out)
            if not self.side_by_side:
                held = [step.out]
        with _told(f"{at}.repeat" if self.side_by_side else f"{at}.merge"):
            self.out = stacked(outs) if self.side_by_side else alone(held)

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
        package, given, place = site.packages[name], alone(shapes), f"packages.{name}.blocks"
        if not package.shared:
            self.own = Drawing(package.blocks, [package.output], given, site, f"{where}.{name}", place)
        elif name not in site.shared:
            site.shared[name] = Drawing(package.blocks, [package.output], given, site, place, place)
        elif (first := site.shared[name].shapes[GIVEN]) != given:
            raise Misfit(other_use(name, first, given))
        self.held = (site.shared[name] if package.shared else self.own,)         # no second owner of its parameters
        self.output, self.histories = package.output, self.held[0].histories
        self.out = self.held[0].shapes[package.output]

    def forward(self, x: Inputs, given: Value) -> Value:
        return self.held[0](x, given)[self.output]


class _Read(nn.Module):
    """One input of a block: features in a form, or another block's value; all of it, or a part."""

    def __init__(self, one: Input, shapes: Mapping[str, Shape], site: _Site):
        super().__init__()
        spec = site.spec
        self.name, self.take = one.of, one.take
        self.form = None if one.of in shapes else one.form or "flat"
        self.register_buffer("columns", None, persistent=False)
        shape = shapes[one.of] if self.form is None else site.features.read(one)
        if self.form in ("fields", "numbers"):
            mine = range(spec.flat) if one.of == ALL else spec.columns.get(one.of, ())
            columns = enumerate(spec.starts) if self.form == "fields" else ((c, c) for c in spec.number_columns)
            self.columns = torch.tensor([i for i, c in columns if c in mine])
        self.out = taken(shape, one)

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


# ---- merging

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


@contextmanager
def _told(where: str) -> Iterator[None]:
    """What does not fit, with the block's place in front."""
    try:
        yield
    except Misfit as misfit:
        raise ConfigError(*(f"{where}: {m}" for m in misfit.messages)) from None
