"""What a config comes to, as text: every feature, id space, task and part, with the defaults filled in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from funnelrank.config import Config
from funnelrank.fill import SLOTS

if TYPE_CHECKING:
    from funnelrank.api import Ranker


def describe(config: Config, sizes: Mapping[str, int] | None = None) -> str:
    """Tasks, features, id spaces and slots. `sizes` are the id spaces' sizes, where an encoder knows them."""
    settings, schema = config.settings, config.schema
    tasks = [(t.name, t.kind, t.label, t.after or "", f"{t.weight:g}") for t in schema.tasks]
    written = set(settings.features.columns)
    features = [(n, f.kind, _reads(f), getattr(f, "space", None) or "", f.role or "", "" if n in written else "auto")
                for n, f in schema.features.items()]
    spaces = []
    for name, space in schema.spaces.items():
        special = settings.embedding.spaces.get(name)
        members = [n for n, f in schema.features.items() if getattr(f, "space", None) == name or n == name]
        spaces.append((name, _made(space), f"{sizes[name]:,}" if sizes and name in sizes else "",
                       str((special and special.width) or settings.embedding.width), ", ".join(dict.fromkeys(members))))
    parts = []
    for slot in SLOTS:
        said = settings.model.get(slot)
        for one in said if isinstance(said, list) else [said] if said else []:
            drawn = {k: ", ".join(v) for k, v in one.items() if k in ("blocks", "packages") and v}
            parts.append((slot, one["name"], ", ".join(f"{k}={_word(v)}" for k, v in {**one, **drawn}.items()
                                                       if k != "name")))
    who = [f"{key} {value}" for key in ("scenario", "user", "time", "weight") if (value := getattr(schema, key))]
    return "\n\n".join(filter(None, [
        f"{config.name}: {settings.model.get('name') or 'five slots'}, {schema.reading} reading, calibrator "
        f"{settings.model.get('calibrator', 0):g}; columns: {', '.join(who) or 'none of scenario, user, time, weight'}",
        aligned(("task", "kind", "label", "after", "weight"), tasks),
        aligned(("feature", "kind", "reads", "space", "role", ""), features),
        aligned(("id space", "made", "ids", "width", "features"), spaces),
        aligned(("slot", "part", "settings"), parts)]))


def describe_ranker(ranker: Ranker) -> str:
    """The same with the sizes of a fitted Ranker's id spaces, its columns, and every parameter."""
    layout = ranker.encoder.layout
    columns = [("ids", str(len(layout.ids)), ", ".join(layout.ids)),
               ("numbers", str(len(layout.numbers)), ", ".join(layout.numbers)),
               ("lists", str(len(layout.lists)), ", ".join(layout.lists)),
               ("scenarios", str(len(layout.scenarios)), ", ".join(map(str, layout.scenarios)))]
    weights = [(name, "x".join(map(str, p.shape)) or "1", f"{p.numel():,}")
               for name, p in ranker.model.named_parameters()]
    total = sum(p.numel() for p in ranker.model.parameters())
    shares = sorted((ranker.model.selection() or {}).items(), key=lambda s: -s[1])
    return "\n\n".join([describe(ranker.config, layout.size), aligned(("a batch", "columns", ""), columns),
                        aligned(("parameter", "shape", "numbers"), weights), f"{total:,} numbers in all",
                        *([aligned(("feature", "kept"), [(n, f"{s:.3f}") for n, s in shares])] if shares else [])])


def aligned(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of texts, columns two spaces apart; '' without rows."""
    if not rows:
        return ""
    widths = [max(map(len, column)) for column in zip(head, *rows)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in (head, *rows))


def describe_continued(said: Mapping[str, Any]) -> list[str]:
    """What a run took over from the one before it, a line each (see continued.py)."""
    lines = [f"continues {said['from']['name']} of {said['from']['started']}, training {said['trainings'] + 1}; "
             f"optimisers {said['optimiser']}"]
    for what in ("features", "tasks", "scenarios"):
        names = said[what]
        changes = [f"{len(names[k])} {k}" + (f" ({', '.join(names[k])})" if k != "carried" else "")
                   for k in ("carried", "added", "dropped") if names[k]]
        if changes:
            lines.append(f"  {what}: {', '.join(changes)}")
    for space, n in said["spaces"].items():
        lines.append(f"  ids of {space}: {n['carried']:,} carried, {n['added']:,} added, {n['dropped']:,} dropped"
                     + (f", {n['no_room']:,} left out by max_size" if n["no_room"] else ""))
    for table, n in said["tables"].items():
        was = "new" if n["before"] is None else f"{n['before']:,} before"
        lines.append(f"  table {table}: {n['rows']:,} rows ({was})")
    weights = said["weights"]
    lines.append("  weights: " + ", ".join(f"{len(names):,} {k}" for k, names in weights.items() if names))
    lines += [f"    {k}: {name}" for k in ("resized", "added", "dropped", "changed") for name in weights[k]]
    return lines


def _reads(feature: Any) -> str:
    if feature.kind == "gap":
        return f"{feature.until} - {feature.since}"
    if feature.kind == "cross":
        return " x ".join(feature.of or feature.columns)
    if feature.kind == "length":
        return feature.of
    if feature.kind == "rate":
        return f"{feature.of} {f'by {feature.task}' if feature.task else f'in {feature.among} and {feature.within}'}"
    if feature.kind in ("share", "match"):
        last = getattr(feature, "last", None)
        return f"{feature.of} in {feature.within}" + (f", last {last}" if last else "")
    if getattr(feature, "expression", None):
        return feature.expression
    column = f"{feature.column} by {feature.by}" if feature.by else feature.column
    if getattr(feature, "key", None):
        return f"{column} at {feature.key}"
    return f"{feature.pool} of {column}" if feature.kind == "number" and feature.pool else column


def _made(space: Any) -> str:
    if space.made == "fitted":
        return f"seen {space.min_count} times" + (f", at most {space.max_size:,}" if space.max_size else "")
    if space.made == "list":
        return space.file or f"{len(space.values)} listed"
    return f"{space.made} of {space.size:,}"


def _word(value: Any) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
