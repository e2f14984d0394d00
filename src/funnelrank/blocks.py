"""A network drawn in a config: named blocks, what each reads, and in which order they are computed.

    blocks:
      bottom: {inputs: all, layer: {name: mlp, hidden: [256]}}
      gate:   {inputs: [bottom, scenario], merge: list, layer: gate}
    outputs: {click: gate, buy: bottom}

Blocks may stand in any order. Names are the config's alone: models/backbone.py builds what `Plan` says. No torch here,
so that `check` finds what is wrong with a drawing before anything is computed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from funnelrank.errors import did_you_mean, listing
from funnelrank.settings import Name, Section

ALL = "all"            # every feature
GIVEN = "input"        # within a package: what the block that uses it reads
Count = Annotated[int, Field(ge=1)]
Slice = tuple[Annotated[int, Field(ge=0)], Count]


class Input(Section):
    """One thing that a block reads."""

    of: str
    """A block, a group of features (a role, or one of embedding.groups), `all`, or with form: history a sequence."""
    form: Literal["flat", "fields", "numbers", "history"] | None = None
    """Of features: side by side (flat, the default), embedded ones as a stack of vectors (fields), numbers alone, or
    one sequence's vectors, entry by entry, with its target (history)."""
    take: Annotated[int, Field(ge=0)] | Slice | None = None
    """One entry of a stack, or `[start, stop]` of a vector's numbers or a stack's entries."""


class Block(Section):
    """What it reads, how that is put together, and one layer on it."""

    inputs: str | Annotated[list[str | Input], Field(min_length=1)]
    """Blocks and groups of features by name, or `{of: name, form: ..., take: ...}`."""
    merge: Literal["concat", "list", "stack", "sum", "mean", "product"] = "concat"
    """Several inputs side by side; each for itself, for layers that take several; as entries of one stack; or added,
    averaged, multiplied number by number."""
    layer: dict[str, Any] | None = None
    """What is computed. Without one the block is its merged inputs."""
    package: str | None = None
    """A drawing of `packages` in place of a layer."""
    repeat: Count | None = None
    """So many of the layer on the same input, each with weights of its own, as a stack."""
    chain: Count | None = None
    """So many of the layer one after another."""


class Package(Section):
    """A drawing that several blocks use. Its blocks read `input`, features and each other."""

    blocks: dict[Name, Block] = Field(min_length=1)
    """Blocks by name."""
    output: str
    """The block that comes out."""
    shared: bool = False
    """All that use it share its weights. Default: each has its own."""


def inputs_of(block: Block) -> list[Input]:
    said = [block.inputs] if isinstance(block.inputs, str) else block.inputs
    return [Input(of=one) if isinstance(one, str) else one for one in said]


def plan(blocks: Mapping[str, Block], outputs: Iterable[str]) -> list[str]:
    """The blocks that `outputs` depend on, each behind what it reads. Takes a drawing that `faults` found good."""
    order: dict[str, None] = {}
    waiting = list(reversed(list(outputs)))                     # a stack, so that a long chain is no deep recursion
    while waiting:
        name = waiting[-1]
        block = blocks[name]
        if ahead := [i.of for i in inputs_of(block) if i.of in blocks and i.of not in order]:
            waiting += reversed(ahead)
            continue
        waiting.pop()
        order[name] = None
    return list(order)


def spell_out(said: Any) -> None:
    """`layer: mlp` in full, in place. Takes anything, for it comes before the check."""
    drawings = [said, *(said.get("packages") or {}).values()] if isinstance(said, dict) and isinstance(
        said.get("packages") or {}, dict) else [said]
    for drawing in drawings:
        blocks = drawing.get("blocks") if isinstance(drawing, dict) else None
        for block in blocks.values() if isinstance(blocks, dict) else ():
            if isinstance(block, dict) and isinstance(block.get("layer"), str):
                block["layer"] = {"name": block["layer"]}


def is_drawing(part: Mapping[str, Any]) -> bool:
    """Whether a part of the model is a drawing of blocks."""
    return part.get("name") == "backbone"


def read(part: Mapping[str, Any]) -> tuple[dict[str, Block], dict[str, Package]]:
    """Blocks and packages of a part's section."""
    return ({n: Block.model_validate(b) for n, b in part["blocks"].items()},
            {n: Package.model_validate(p) for n, p in (part.get("packages") or {}).items()})


def ends(blocks: Mapping[str, Block]) -> list[str]:
    """The blocks that no block reads."""
    inner = {one.of for block in blocks.values() for one in inputs_of(block)}
    return [name for name in blocks if name not in inner]


def outputs_of(part: Mapping[str, Any]) -> list[str]:
    """Names of the blocks that come out, each once."""
    said = part.get("outputs")
    if said is None:
        return ends(read(part)[0])
    return [said] if isinstance(said, str) else list(dict.fromkeys(said.values()))


def groups_of(part: Mapping[str, Any]) -> list[str]:
    """Groups of features that some block reads, `all` included, whether or not the drawing is sound."""
    blocks, packages = read(part)
    return list(dict.fromkeys(
        one.of for drawing in (blocks, *(p.blocks for p in packages.values())) for block in drawing.values()
        for one in inputs_of(block) if one.of not in (*drawing, GIVEN) and one.form != "history"))


def forms_of(part: Mapping[str, Any]) -> set[str]:
    """In which forms some block reads features."""
    blocks, packages = read(part)
    return {one.form for drawing in (blocks, *(p.blocks for p in packages.values())) for block in drawing.values()
            for one in inputs_of(block) if one.form}


def in_order(model: Mapping[str, Any], tasks: Iterable[str]) -> Mapping[str, Any]:
    """The model's section with a drawing's outputs in the tasks' order, which is all that a part may know of them."""
    part = model.get("represent")
    if not part or not is_drawing(part) or not isinstance(part["outputs"], dict):
        return model
    return {**model, "represent": {**part, "outputs": {t: part["outputs"][t] for t in tasks}}}


# ---- what is wrong with a drawing

def faults(part: Mapping[str, Any], tasks: Iterable[str], groups: Iterable[str],
           sequences: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Each fault as (dotted key below the part, sentence)."""
    blocks, packages = read(part)
    known, sequences, tasks = {*groups, ALL}, list(sequences), list(tasks)
    found = list(_drawing_faults("blocks", blocks, packages, known, sequences, within=False))
    for name, package in packages.items():
        where = f"packages.{name}"
        found += _drawing_faults(f"{where}.blocks", package.blocks, packages, known, sequences, within=True)
        if package.output not in package.blocks:
            found.append((f"{where}.output", _no_block(package.output, package.blocks)))
        elif not found:
            found += _unread(f"{where}.blocks", package.blocks, [package.output])
        if (ring := _ring(name, packages)) is not None:
            found.append((where, f"uses itself ({' > '.join(ring)}); a package is made of others"))
    for name in set(packages) - {b.package for d in (blocks, *(p.blocks for p in packages.values()))
                                 for b in d.values()}:
        found.append((f"packages.{name}", "no block uses this package; use it, or remove it"))
    outputs = part.get("outputs")
    if outputs is None:
        if len(last := ends(blocks)) != 1 and not found:
            found.append(("outputs", f"missing, and {listing(last)} are read by no block; name the one that comes out, "
                          "or one for each task"))
    elif isinstance(outputs, dict):
        for task, block in outputs.items():
            if task not in tasks:
                found.append((f"outputs.{task}", f"no task '{task}'; tasks are {listing(tasks)}"
                              + did_you_mean(task, tasks)))
            if block not in blocks:
                found.append((f"outputs.{task}", _no_block(block, blocks)))
        if missing := [t for t in tasks if t not in outputs]:
            found.append(("outputs", f"no block for {listing(missing)}; name one for each task, or a single block "
                          "that all share"))
    elif outputs not in blocks:
        found.append(("outputs", _no_block(outputs, blocks)))
    yield from found
    if not found:
        yield from _unread("blocks", blocks, outputs_of(part))


def _no_block(name: str, blocks: Mapping[str, Any]) -> str:
    return f"no block '{name}'; blocks are {listing(blocks)}" + did_you_mean(name, blocks)


def _drawing_faults(where: str, blocks: Mapping[str, Block], packages: Mapping[str, Package], features: set[str],
                    sequences: list[str], within: bool) -> Iterator[tuple[str, str]]:
    reserved = {GIVEN: "what a package is given"} if within else {}
    for name, block in blocks.items():
        at = f"{where}.{name}"
        if name in reserved or name in features:
            what = reserved.get(name) or ("every feature" if name == ALL else "features")
            yield at, f"'{name}' already stands for {what}; give the block another name"
        if block.layer is not None and block.package is not None:
            yield f"{at}.package", "a block is a layer or a package, not both; keep one"
        if block.package is not None and block.package not in packages:
            yield (f"{at}.package", f"no package '{block.package}'; there are {listing(packages) or 'none'}"
                   + did_you_mean(block.package, packages))
        if (block.repeat or block.chain) and block.layer is None and block.package is None:
            yield f"{at}.{'repeat' if block.repeat else 'chain'}", "there is no layer to repeat; give the block one"
        if block.repeat and block.chain:
            yield f"{at}.chain", "layers stand side by side (repeat) or one after another (chain); keep one"
        for i, one in enumerate(inputs_of(block)):
            spot = f"{at}.inputs" + (f"[{i}]" if isinstance(block.inputs, list) else "")
            known = {*blocks, *features, *([GIVEN] if within else [])}
            if one.form and (one.of in blocks or within and one.of == GIVEN):
                yield spot, f"form: {one.form} is for features, and '{one.of}' is a block; remove it"
            elif one.form == "history":
                if one.of not in sequences:
                    yield (spot, f"no sequence '{one.of}' with a target; there are {listing(sequences) or 'none'}"
                           + did_you_mean(one.of, sequences))
            elif one.of not in known:
                hint = f"; read a sequence as {{of: {one.of}, form: history}}" if one.of in sequences else ""
                yield (spot, f"no block and no group of features '{one.of}'; blocks are {listing(blocks)}, groups are "
                       + listing(sorted(features)) + (hint or did_you_mean(one.of, known)))
    for name in blocks:
        ring = _cycle(name, blocks)
        if ring and min(ring) == name:                               # each ring once
            yield f"{where}.{name}.inputs", f"reads what it gives ({' > '.join(ring)}); a drawing has no cycles"


def _cycle(start: str, blocks: Mapping[str, Block]) -> list[str] | None:
    """The shortest way from a block back to itself along what it reads."""
    ways, seen = [[start]], {start}
    for way in ways:
        for one in inputs_of(blocks[way[-1]]):
            if one.of == start:
                return [*way, start]
            if one.of in blocks and one.of not in seen:
                seen.add(one.of)
                ways.append([*way, one.of])
    return None


def _ring(start: str, packages: Mapping[str, Package]) -> list[str] | None:
    ways, seen = [[start]], {start}
    for way in ways:
        for used in (b.package for b in packages[way[-1]].blocks.values()):
            if used == start:
                return [*way, start]
            if used in packages and used not in seen:
                seen.add(used)
                ways.append([*way, used])
    return None


def _unread(where: str, blocks: Mapping[str, Block], outputs: list[str]) -> Iterator[tuple[str, str]]:
    read_by_someone = set(plan(blocks, outputs))
    for name in blocks:
        if name not in read_by_someone:
            yield f"{where}.{name}", "nothing that comes out depends on this block; read it, or remove it"
