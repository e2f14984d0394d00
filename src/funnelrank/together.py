"""Which parts make no sense together, or with these features and tasks: said by `check`, before anything is built.

Nothing here knows a part by name. Each declares what it needs, reads, changes and makes (models/slots.py); the shipped
JSON Schema carries that as x-... facts, so that it takes no torch.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from funnelrank import blocks
from funnelrank.errors import did_you_mean, listing
from funnelrank.schema import Schema
from funnelrank.settings import Settings

SLOTS = ("prepare", "represent", "transfer", "predict", "side")


@dataclass(frozen=True)
class Part:
    """What a config says of one part, {name: ..., keys}, and what the part declares."""

    slot: str
    place: str                         # in the config: model.prepare, or model.prepare[1] of several
    said: Mapping[str, Any]
    facts: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.said["name"]

    @property
    def reads(self) -> set[str]:
        """What trains its makers through this part under these keys: of flat, fields and raw, and groups."""
        if self.slot == "transfer":                      # it is given h, and nothing else
            return set()
        if blocks.is_drawing(self.said):
            whole = {"flat"} if blocks.ALL in blocks.groups_of(self.said) else set()
            return whole | ({"fields"} if self.needs("fields") else set()) | set(part_groups(self.said))
        reads = self.facts.get("x-reads", {"flat": None})
        return {name for name, key in reads.items() if key is None or self.said.get(key)} | set(part_groups(self.said))

    @property
    def changes(self) -> list[str]:
        return self.facts.get("x-changes", ["flat", "fields"])

    def needs(self, what: str) -> bool:
        """Of histories, fields and crosses."""
        drawn = blocks.forms_of(self.said) if blocks.is_drawing(self.said) else ()
        return bool(self.facts.get(f"x-needs-{what}")) or what in drawn or what == "histories" and "history" in drawn

    def __str__(self) -> str:
        return f"{self.place}: {self.name}"


def refusals(settings: Settings, schema: Schema, shipped: Mapping[str, Any]) -> Iterator[str]:
    """Each is 'dotted.key: what was found; what would do'. `shipped`, the JSON Schema, says what parts declare."""
    parts = []
    for slot in SLOTS:
        there = slot_parts(settings.model, (slot,))
        parts += [Part(slot, f"model.{slot}[{i}]" if len(there) > 1 else f"model.{slot}", said,
                       shipped["$defs"].get(f"{slot}.{said['name']}", {})) for i, said in enumerate(there)]
    yield from _scenarios(parts, schema, shipped)
    yield from _groups(parts, settings, schema)
    yield from _histories(parts, schema)
    yield from _crosses(parts, schema)
    yield from _fields(parts, settings, schema)
    yield from _unheard(parts)


def slot_parts(model: Mapping[str, Any], slots: Iterable[str] = SLOTS) -> list[dict]:
    """What stands in these slots, in order."""
    parts: list[dict] = []
    for slot in slots:
        said = model.get(slot)
        parts += said if isinstance(said, list) else [said] if said else []
    return parts


def part_groups(said: Mapping[str, Any]) -> list[str]:
    """Roles and groups that a part names: in `group`, its whole input, or in `groups`, what it reads besides."""
    drawn = [g for g in blocks.groups_of(said) if g != blocks.ALL] if blocks.is_drawing(said) else []
    return [*([said["group"]] if said.get("group") else []), *(said.get("groups") or ()), *drawn]


def _scenarios(parts: list[Part], schema: Schema, shipped: Mapping[str, Any]) -> Iterator[str]:
    takers = [key.split(".")[1] for key, facts in shipped["$defs"].items() if facts.get("x-takes-scenarios")]
    for part in parts:
        views = part.said.get("per") == "scenario"
        if not schema.scenario and (part.facts.get("x-needs-scenario") or views):
            yield (f"{part} has parameters of its own for each scenario; set data.scenario to the column that names it")
        behind = [p for p in parts if p.slot in ("transfer", "predict")]
        if part.slot == "represent" and views and not all(p.facts.get("x-takes-scenarios") for p in behind):
            yield (f"model.represent.per: scenario gives a view for each scenario, which only {listing(takers)} in "
                   "`predict`, without a transfer, can read; say `per: task` or `per: all`")


def _groups(parts: list[Part], settings: Settings, schema: Schema) -> Iterator[str]:
    """Groups that nobody declares, or that a part asks for before they are made."""
    there = {f.role for f in schema.features.values()} | set(settings.embedding.groups)
    made = {group: part for part in parts for group in part.facts.get("x-makes", ())}
    for part in parts:
        for group in part_groups(part.said) if not blocks.is_drawing(part.said) else ():      # those: blocks.faults
            where = f"{part.place}.{'group' if part.said.get('group') == group else 'groups'}"
            if group in made and group not in there:
                yield (f"{where}: '{group}' is made by {made[group].name}, which stands behind {part.name}; let it "
                       "come first")
            elif group not in there:
                yield (f"{where}: no feature has the role '{group}', and embedding.groups has no such group; there are "
                       + listing(sorted(there | set(made))) + (did_you_mean(group, there | set(made)) or (
                           f"; name other groups there, or say `role: {group}` in the features that are meant")))
        there |= set(part.facts.get("x-makes", ()))


def _histories(parts: list[Part], schema: Schema) -> Iterator[str]:
    readers = [p for p in parts if p.needs("histories")]
    if readers and not any(f.target for f in schema.of_kind("sequence", "history").values()):
        yield (f"{readers[0]} reads sequences whose ids are those of an id feature, and there is none; declare one, as "
               f"in `clicked: {{kind: sequence, space: item_id}}`, or leave {readers[0].name} out")
    elif len(readers) > 1:
        yield (f"{readers[1]} finds no sequence left to read, since {readers[0].name} before it has made flat vectors "
               "of them all; keep one of the two")


def _crosses(parts: list[Part], schema: Schema) -> Iterator[str]:
    for part in parts:
        if part.facts.get("x-needs-crosses") and not schema.of_kind("cross"):
            yield (f"{part} reads declared crosses, and there are none; declare one under features, as in "
                   f"`tab_x_device: {{kind: cross, of: [tab, device]}}`, or leave {part.name} out")


def _fields(parts: list[Part], settings: Settings, schema: Schema) -> Iterator[str]:
    """Parts that multiply features with each other need vectors, and of one width."""
    reader = next((p for p in parts if p.needs("fields")), None)
    if not reader:
        return
    weighed = any(p.facts.get("x-needs-crosses") for p in parts)
    jagged = any(p.needs("histories") for p in parts)
    rows = settings.embedding
    widths = {(rows.spaces[f.space].width if f.space in rows.spaces else None) or rows.width
              for f in schema.of_kind("id", "bag", "sequence", "history", *(() if weighed else ("cross",))).values()
              if not (jagged and f.kind in ("sequence", "history") and f.target)}
    if not widths:
        yield (f"{reader} multiplies the vectors of features with each other, and no feature has one; declare ids, or "
               "choose another part")
    elif len(widths) > 1:
        yield (f"embedding.spaces: {reader.name} in model.{reader.slot} multiplies features with each other, which "
               f"needs one width for all of them; widths are {listing(sorted(map(str, widths)))}")


def _unheard(parts: list[Part]) -> Iterator[str]:
    """Parts of `prepare` whose work nothing behind them learns from.

    `work` follows what each of flat, fields, raw and the groups owes to which parts, down the chain.
    """
    work: dict[str, set[int]] = {"flat": set(), "fields": set()}
    chain = [p for p in parts if p.slot == "prepare"]
    loose = False                                        # fields are columns of flat no longer
    for i, part in enumerate(chain):
        owed = {i}.union(*(work.get(name, set()) for name in part.reads))
        if part.facts.get("x-sets-raw"):
            work["raw"] = work["flat"]
        kept = part.said.get(part.facts.get("x-keeps"), True)
        for name in part.changes:
            if name == "flat" or not loose:
                work[name] = owed | (work[name] if kept else set())
        loose |= not kept
        work |= {group: owed for group in part.facts.get("x-makes", ())}
    work.setdefault("raw", work["flat"])
    readers = [p for p in parts if p.slot != "prepare"]
    heard = set().union(*(work.get(name, set()) for p in readers for name in p.reads))
    for i, part in enumerate(chain):
        if i not in heard:
            gives = listing([*part.changes, *part.facts.get("x-makes", ())])
            others = listing([p.name for p in (*chain[i + 1:], *readers)])
            yield (f"{part} would learn nothing: it gives {gives}, which no part behind it reads ({others} read other "
                   "things); leave it out, or choose parts that read that")
