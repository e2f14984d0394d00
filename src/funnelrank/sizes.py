"""How wide features are, as far as a config says it, for the rules of shapes.py. The Embedding decides; tests compare.

What only train can say is None: whether a number is ever missing where its `indicator` is auto, and so the width of
whatever that number stands in. Nor are sizes known behind a part of `prepare` that changes them. No torch.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from funnelrank.blocks import ALL, forms_of, is_drawing
from funnelrank.own_parts import is_own
from funnelrank.schema import Schema
from funnelrank.settings import Settings
from funnelrank.shapes import Features, Width, total
from funnelrank.together import SLOTS, slot_parts


class Size(NamedTuple):
    name: str
    role: str
    vectors: int              # embedded ones, side by side: 1 or 0
    width: Width              # of a vector, or how many numbers


def known_sizes(settings: Settings, schema: Schema, shipped: Mapping[str, Any]) -> Features:
    """What blocks of `represent` can read. `shipped`, the JSON Schema, says what parts need and change."""
    parts = [(slot, said, shipped["$defs"].get(f"{slot}.{said['name']}", {}))
             for slot in SLOTS for said in slot_parts(settings.model, (slot,))]
    needs = lambda what: any(facts.get(f"x-needs-{what}") for _, _, facts in parts)
    drawn = any("history" in forms_of(said) for _, said, _ in parts if is_drawing(said))
    sizes = list(_sizes(settings, schema, drawn or needs("histories"), needs("crosses")))
    groups: dict[str, list[Size]] = {ALL: sizes} | {f.role: [] for f in schema.features.values()}
    for size in sizes:
        groups[size.role].append(size)
    groups |= {g: [s for s in sizes if s.name in names] for g, names in
               ((g, set(names)) for g, names in settings.embedding.groups.items())}
    widths = {s.width for s in sizes if s.vectors}
    before = [(said["name"], facts) for slot, said, facts in parts if slot == "prepare"]
    moved = any(is_own(name) or "x-keeps" in facts for name, facts in before)
    longer = moved or any("x-needs-histories" in facts for _, facts in before)
    return Features(
        flat=None if longer else total(s.width for s in sizes),
        groups={g: total(s.width for s in inside) for g, inside in groups.items()},
        fields={} if moved else {g: sum(s.vectors for s in inside) for g, inside in groups.items()},
        width=widths.pop() if len(widths) == 1 else None,
        numbers={} if moved else {g: total(s.width for s in inside if not s.vectors) for g, inside in groups.items()},
        histories={n: _width(f.space, settings) for n, f in _paired(schema).items()} if drawn and not longer else {})


def _sizes(settings: Settings, schema: Schema, jagged: bool, weighed: bool) -> Iterator[Size]:
    """Each feature as flat has it: `jagged` histories and `weighed` crosses stand elsewhere."""
    elsewhere = {*(_paired(schema) if jagged else ()), *(schema.of_kind("cross") if weighed else ())}
    for name, f in schema.features.items():
        if name in elsewhere:
            continue
        if f.kind in ("id", "cross", "bag", "sequence") or schema.cut_as(name) == name:
            yield Size(name, f.role, 1, _width(getattr(f, "space", name), settings))
        else:
            many = {"vector": getattr(f, "size", 0), "match": 2}.get(f.kind, 1)
            yield Size(name, f.role, 0, total([many, _missing(f)]))


def _paired(schema: Schema) -> dict[str, Any]:
    """Sequences that can be read entry by entry."""
    return {n: f for n, f in schema.of_kind("sequence").items() if f.target}


def _width(space: str, settings: Settings) -> int:
    said = settings.embedding.spaces.get(space)
    return said.width if said and said.width else settings.embedding.width


def _missing(f: Any) -> Width:
    """How many numbers beside it say where it is missing."""
    if f.kind == "gap":
        return None
    said = getattr(f, "indicator", False)
    return int(said) if said != "auto" else 0 if f.kind == "number" and f.default is not None else None
