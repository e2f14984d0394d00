"""What shape a drawing's blocks have: rules by which features, merges and layers make one shape of others.

    Vector(W)      [B, W]
    Stack(n, D)    [B, n, D]     fields of a group, experts, one entry a task, ...
    Past(D)        a history: entries [n, D] by rows, and the row's own item [B, D]

The layers themselves (models/layers.py) ask these rules what they give, so that a drawing that `misfits` finds nothing
wrong with can be built. A width of None is known once train is read: a number that says where another is missing is
only there if one is. Nothing is refused for a width that is not known. No torch here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from funnelrank.blocks import ALL, GIVEN, Block, Input, Package, inputs_of, outputs_of, plan, read
from funnelrank.errors import ConfigError

Width = int | None


class Vector(NamedTuple):
    width: Width


class Stack(NamedTuple):
    count: Width
    width: Width


class Past(NamedTuple):
    width: Width


Shape = Vector | Stack | Past


class Misfit(ConfigError):
    """What a layer is given has no shape that it can take."""


# ---- what features give

@dataclass(frozen=True)
class Features:
    """Sizes of what a drawing can read; those that are not known are absent, or None."""

    flat: Width = None                                        # of all
    groups: Mapping[str, Width] = field(default_factory=dict)
    fields: Mapping[str, int] = field(default_factory=dict)   # group, or all -> embedded features in it
    width: Width = None                                       # of each of those
    numbers: Mapping[str, Width] = field(default_factory=dict)       # group, or all -> numbers in it
    histories: Mapping[str, int] = field(default_factory=dict)

    def read(self, one: Input) -> Shape:
        """Of features that a block reads, before a part of it is taken."""
        if one.form == "history":
            return Past(self.histories.get(one.of))
        if one.form is None or one.form == "flat":
            return Vector(self.flat if one.of == ALL else self.groups.get(one.of))
        many = (self.fields if one.form == "fields" else self.numbers).get(one.of)
        if many == 0:
            what = "embedded feature" if one.form == "fields" else "number"
            raise Misfit(f"there is no {what} in '{one.of}'; name another group, or another form")
        return Stack(many, self.width) if one.form == "fields" else Vector(many)


def taken(shape: Shape, one: Input) -> Shape:
    """What `take` leaves of it."""
    if one.take is None:
        return shape
    if isinstance(shape, Past):
        raise Misfit("take: a history has no entries by number; pool it first")
    size = shape[0]
    if isinstance(one.take, int):
        if isinstance(shape, Vector):
            raise Misfit(f"take: {one.take} is an entry of a stack, and '{one.of}' is one vector; cut it by "
                         "[start, stop]")
        if size is not None and one.take >= size:
            raise Misfit(f"take: '{one.of}' has entries 0 .. {size - 1}, and no {one.take}")
        return Vector(shape.width)
    start, stop = one.take
    if start >= stop or size is not None and stop > size:
        raise Misfit(f"take: [{start}, {stop}] " + (f"lies outside 0 .. {size} of '{one.of}', or is empty"
                                                    if size is not None else "is empty"))
    return Vector(stop - start) if isinstance(shape, Vector) else Stack(stop - start, shape.width)


# ---- merging

def merged(how: str, shapes: Sequence[Shape]) -> list[Shape]:
    """The shapes that a layer is given."""
    if how == "list" or len(shapes) == 1 and how != "stack":
        return list(shapes)
    if how == "concat":
        return [Vector(total(map(width_of, shapes)))]
    if how == "stack":
        return [stacked(shapes)]
    if isinstance(shapes[0], Past) or not _alike(shapes):
        raise Misfit(f"{how}: inputs are {', '.join(map(words, shapes))}; number by number needs the same of all")
    return [next((s for s in shapes if None not in s), shapes[0])]


def stacked(shapes: Sequence[Shape]) -> Stack:
    widths = {s.width for s in shapes} - {None}
    if len(widths) > 1 or any(isinstance(s, Past) for s in shapes):
        raise Misfit(f"a stack has vectors of one width, and these are {', '.join(map(words, shapes))}")
    return Stack(total(1 if isinstance(s, Vector) else s.count for s in shapes), widths.pop() if widths else None)


def alone(shapes: Sequence[Shape]) -> Shape:
    if len(shapes) != 1:
        raise Misfit("merge: list hands several inputs to a layer that takes several, and here is none; merge them "
                     "another way")
    return shapes[0]


def words(shape: Shape) -> str:
    said = ["so many" if n is None else str(n) for n in shape]
    if isinstance(shape, Stack):
        return f"{said[0]} vectors of {'a width' if shape.width is None else said[1]}"
    what = "a history of width" if isinstance(shape, Past) else "a vector of"
    return f"{what} {said[0]}" if shape.width is not None else what.split(" of")[0]


# ---- what layers take

def one(shapes: Sequence[Shape]) -> Shape:
    if len(shapes) != 1:
        raise Misfit(f"takes one input, and is given {len(shapes)} (merge: list); merge them another way")
    return shapes[0]


def width_of(shape: Shape) -> Width:
    """Of the vector that it is, or of a stack's entries side by side."""
    if isinstance(shape, Past):
        raise Misfit("takes a vector, and is given a history; pool it first (layer: pool, or layer: target_attention)")
    return shape.width if isinstance(shape, Vector) else times(*shape)


def stack_of(shapes: Sequence[Shape]) -> Stack:
    if not isinstance(shape := one(shapes), Stack):
        raise Misfit("takes a stack of vectors of one width, and is given "
                     + ("a history" if isinstance(shape, Past) else "one vector")
                     + "; read features with form: fields, or merge blocks with merge: stack")
    return shape


def past_of(shapes: Sequence[Shape]) -> Past:
    if not isinstance(shape := one(shapes), Past):
        raise Misfit("takes a history, and is given none; read a sequence by its name, alone")
    return shape


def total(widths: Iterable[Width]) -> Width:
    widths = list(widths)
    return None if None in widths else sum(widths)


def times(a: Width, b: Width) -> Width:
    return None if a is None or b is None else a * b


def _alike(shapes: Sequence[Shape]) -> bool:
    """Whether all can be one shape, as far as is known."""
    return len(set(map(type, shapes))) == 1 and all(len(set(sizes) - {None}) < 2 for sizes in zip(*shapes))


# ---- what layers give; keys that do not matter here are passed by

def mlp(*shapes: Shape, hidden: Sequence[int], activation: str | list[str], dropout: float | list[float], **_) -> Shape:
    width = width_of(one(shapes))
    for key, said in (("activation", activation), ("dropout", dropout)):
        if isinstance(said, list) and len(said) != len(hidden):
            raise Misfit(f"{key}: has {len(said)} entries for {len(hidden)} layers; give one for all, or one for each")
    return Vector(hidden[-1] if hidden else width)


def linear(*shapes: Shape, width: int, **_) -> Shape:
    width_of(one(shapes))
    return Vector(width)


def same_vector(*shapes: Shape, **_) -> Shape:
    return Vector(width_of(one(shapes)))


def same(*shapes: Shape, **_) -> Shape:
    width_of(one(shapes))
    return shapes[0]


def activation(*shapes: Shape, activation: str, **_) -> Shape:
    if activation == "dice":
        raise Misfit("activation: dice has parameters of a layer's width; it stands in an mlp")
    return same(*shapes)


def cross_v2(*shapes: Shape, rank: int | None, experts: int, **_) -> Shape:
    if experts > 1 and rank is None:
        raise Misfit(f"experts: {experts} experts of full rank; mixtures are of low rank, so give `rank` too")
    return same_vector(*shapes)


def entry(*shapes: Shape, **_) -> Shape:
    return Vector(stack_of(shapes).width)


def fm(*shapes: Shape, **_) -> Shape:
    stack_of(shapes)
    return Vector(1)


def _pairs(*shapes: Shape) -> Width:
    n = stack_of(shapes).count
    if n is not None and n < 2:
        raise Misfit("multiplies pairs of vectors, and is given one; read more features")
    return None if n is None else n * (n - 1) // 2


def dot(*shapes: Shape, **_) -> Shape:
    return Vector(_pairs(*shapes))


def bilinear(*shapes: Shape, **_) -> Shape:
    return Stack(_pairs(*shapes), shapes[0].width)


def autoint(*shapes: Shape, heads: int, width: int, **_) -> Shape:
    return Stack(stack_of(shapes).count, heads * width)


def _divided(heads: int, width: Width) -> None:
    if width is not None and width % heads:
        raise Misfit(f"heads: {heads} heads do not divide the width {width}")


def self_attention(*shapes: Shape, heads: int, **_) -> Shape:
    shape = stack_of(shapes)
    _divided(heads, shape.width)
    return shape


def senet(*shapes: Shape, **_) -> Shape:
    return stack_of(shapes)


def number_vectors(*shapes: Shape, width: int, **_) -> Shape:
    return Stack(width_of(one(shapes)), width)


def pool(*shapes: Shape, **_) -> Shape:
    return Vector(past_of(shapes).width)


def target_attention(*shapes: Shape, target: bool, **_) -> Shape:
    D = past_of(shapes).width
    return Vector(times(2, D) if target else D)


def bst(*shapes: Shape, heads: int, **_) -> Shape:
    D = past_of(shapes).width
    _divided(heads, D)
    return Vector(D)


def gate(*shapes: Shape, **_) -> Shape:
    if len(shapes) < 2:
        raise Misfit("takes what is gated and what opens the gate; name two inputs or more, with merge: list")
    return Vector([width_of(s) for s in shapes][0])


def ppnet(*shapes: Shape, hidden: Sequence[int], **_) -> Shape:
    if len(shapes) < 2:
        raise Misfit("takes what is gated and what opens the gates; name two inputs or more, with merge: list")
    return Vector([*[width_of(s) for s in shapes][:1], *hidden][-1])


def mask_block(*shapes: Shape, width: int, **_) -> Shape:
    if len(shapes) > 2:
        raise Misfit(f"takes what is masked and what makes the mask, and is given {len(shapes)} inputs")
    for shape in shapes:
        width_of(shape)
    return Vector(width)


def mmoe(*shapes: Shape, gates: int, hidden: Sequence[int], **_) -> Shape:
    if len(shapes) > 2:
        raise Misfit(f"takes what the experts read and what the gates read, and is given {len(shapes)} inputs")
    widths = [width_of(s) for s in shapes]
    return Stack(gates, [widths[0], *hidden][-1])


def is_level(shape: Shape, tasks: int) -> bool:
    """Whether it is what a level of PLE for so many tasks hands to the next."""
    return isinstance(shape, Stack) and shape.count == tasks + 1


def ple(*shapes: Shape, tasks: int, own: int, shared: int, hidden: Sequence[int], last: bool, **_) -> Shape:
    width_of(one(shapes))
    if not (last or shared):
        raise Misfit("shared: 0 leaves no shared state for the next level; set last: true, or give it experts")
    if not (own or shared):
        raise Misfit("own: there are neither own nor shared experts; give one of them a number")
    if not hidden:
        raise Misfit("hidden: found []; an expert has at least one layer")
    return Stack(tasks + (not last), hidden[-1])


def ait(*shapes: Shape, heads: int, **_) -> Shape:
    if len(shapes) < 2:
        raise Misfit("takes the steps before and the step's own tower, last; name two inputs or more, with "
                     "merge: list")
    widths = {width_of(s) for s in shapes} - {None}
    if len(widths) > 1:
        raise Misfit(f"towers have widths {', '.join(map(str, sorted(widths)))}; an attention over them needs one")
    H = widths.pop() if widths else None
    if H is not None and H % heads:
        raise Misfit(f"heads: {heads} heads do not divide towers of width {H}")
    return Vector(H)


RULES = {
    "mlp": mlp, "linear": linear, "cross": same_vector, "cross_v2": cross_v2, "residual": same_vector,
    "highway": same_vector, "layer_norm": same, "batch_norm": same_vector, "activation": activation, "dropout": same,
    "reduce": entry, "fm": fm, "bi_interaction": entry, "dot": dot, "autoint": autoint,
    "self_attention": self_attention, "senet": senet, "bilinear": bilinear, "number_vectors": number_vectors,
    "periodic": number_vectors, "autodis": number_vectors, "pool": pool, "target_attention": target_attention,
    "bst": bst, "gate": gate, "ppnet": ppnet, "mask_block": mask_block, "mmoe": mmoe, "ple": ple, "ait": ait,
}


def given_by(layer: Mapping[str, Any], shapes: Sequence[Shape]) -> Shape:
    """The shape that a layer, {name: ..., every key}, makes of these. Raises Misfit where it cannot take them."""
    return RULES[layer["name"]](*shapes, **{k: v for k, v in layer.items() if k != "name"})


# ---- a whole drawing

def misfits(part: Mapping[str, Any], features: Features, tasks: int) -> list[tuple[str, str]]:
    """What does not fit together in a drawing that blocks.faults finds good: (dotted key below the part, sentence)."""
    blocks, packages = read(part)
    walk = _Walk(features, packages)
    names = outputs_of(part)
    shapes = walk.drawing(blocks, names, {}, "blocks")
    outputs = part.get("outputs")
    for name in names:
        with walk.told(f"outputs.{next(t for t, b in outputs.items() if b == name)}"
                       if isinstance(outputs, dict) else "outputs" if outputs else f"blocks.{name}"):
            if name in shapes:
                output_width(name, shapes[name], tasks, each=isinstance(outputs, dict))
    if walk.histories and (unread := set(features.histories) - walk.histories):
        walk.found.append(("blocks", unread_history(unread)))
    return list(dict.fromkeys(walk.found))


def output_width(name: str, shape: Shape, tasks: int, each: bool) -> Width:
    """The width of what comes out of a block; with `each`, one that is named for a task."""
    if isinstance(shape, Stack) and not each:
        if shape.count not in (None, tasks):
            raise Misfit(f"'{name}' gives {shape.count} vectors, and there are {tasks} tasks; name a block for each, "
                         "as in {task: block}")
        return shape.width
    return width_of(shape)


def unread_history(names: Iterable[str]) -> str:
    return (f"no block reads the sequence '{min(names)}'; where one sequence is read as a history all are, so give it "
            "to a block with layer: pool, or remove it")


class _Walk:
    """Shapes of blocks in the order of their plan. A block that does not fit has none, and nor has what reads it."""

    def __init__(self, features: Features, packages: Mapping[str, Package]):
        self.features, self.packages = features, packages
        self.found: list[tuple[str, str]] = []
        self.histories: set[str] = set()
        self.shared: dict[str, Shape] = {}

    def drawing(self, blocks: Mapping[str, Block], outputs: Sequence[str], given: Mapping[str, Shape],
                where: str) -> dict[str, Shape]:
        shapes = dict(given)
        for name in plan(blocks, outputs):
            if (shape := self.block(blocks[name], blocks, shapes, f"{where}.{name}")) is not None:
                shapes[name] = shape
        return shapes

    def block(self, block: Block, blocks: Mapping[str, Block], shapes: Mapping[str, Shape],
              at: str) -> Shape | None:
        before, reads = len(self.found), []
        for i, one in enumerate(inputs_of(block)):
            if one.form == "history":
                self.histories.add(one.of)
            with self.told(f"{at}.inputs" + (f"[{i}]" if isinstance(block.inputs, list) else "")):
                inner = one.of in blocks or one.of == GIVEN
                shape = shapes.get(one.of) if inner else self.features.read(one)
                reads.append(shape and taken(shape, one))
        if len(self.found) > before or None in reads:
            return None
        with self.told(f"{at}.merge"):
            held = merged(block.merge, reads)
        outs: list[Shape | None] = []
        for _ in range(block.repeat or block.chain or int(bool(block.layer or block.package))):
            if len(self.found) > before or outs and outs[-1] is None:
                return None
            out = None
            with self.told(f"{at}.{'package' if block.package else 'layer'}"):
                out = self.package(block.package, alone(held)) if block.package else given_by(block.layer, held)
            outs.append(out)
            held = held if block.repeat else [out]
        if len(self.found) > before or None in outs:
            return None
        with self.told(f"{at}.repeat" if block.repeat else f"{at}.layer" if outs else f"{at}.merge"):
            return stacked(outs) if block.repeat else alone(held)
        return None

    def package(self, name: str, given: Shape) -> Shape | None:
        package = self.packages[name]
        if package.shared and not _alike([first := self.shared.setdefault(name, given), given]):
            raise Misfit(other_use(name, first, given))
        shapes = self.drawing(package.blocks, [package.output], {GIVEN: given}, f"packages.{name}.blocks")
        return shapes.get(package.output)

    @contextmanager
    def told(self, where: str) -> Iterator[None]:
        try:
            yield
        except Misfit as misfit:
            self.found += [(where, message) for message in misfit.messages]


def other_use(package: str, first: Shape, given: Shape) -> str:
    return (f"'{package}' is shared, and is given {words(first)} elsewhere and {words(given)} here; give it the same, "
            "or set its shared: false")
