"""Values against a JSON Schema, in sentences a person can act on.

Covers what our own shipped schema uses. A section that is one of several (`kind: sequence`, `name: mlp`) is
told apart by its `discriminator` first, so that a fault is about the one that was meant.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from funnelrank.document import Path
from funnelrank.errors import did_you_mean

Fault = tuple[Path, str]

NOUN = {"integer": ("a whole number", "whole numbers"), "number": ("a number", "numbers"),
        "string": ("a text", "texts"), "boolean": ("true or false", "true or false"), "null": ("null", "nulls"),
        "array": ("a list", "lists"), "object": ("a mapping", "mappings")}
TYPE = {"string": str, "boolean": bool, "null": type(None), "array": list, "object": dict}


def faults(value: Any, schema: Mapping, root: Mapping, path: Path = ()) -> Iterator[Fault]:
    """Every fault of `value`, as (path, 'found 0; must be a whole number of at least 1')."""
    schema = follow(schema, root)
    if "discriminator" in schema:
        yield from _one_of_named(value, schema, root, path)
    elif branches := schema.get("anyOf") or schema.get("oneOf"):
        yield from _any_of(value, branches, schema, root, path)
    elif "enum" in schema or "const" in schema:
        choices = schema.get("enum", [schema.get("const")])
        if not any(type(c) is type(value) and c == value for c in choices):
            yield path, _must(value, schema, root) + _near(value, choices)
    elif not _is(value, schema.get("type")):
        yield path, _must(value, schema, root)
    elif isinstance(value, dict):
        yield from _mapping(value, schema, root, path)
    elif isinstance(value, list):
        yield from _list(value, schema, root, path)
    elif not _in_range(value, schema):
        yield path, _must(value, schema, root)


def follow(schema: Mapping, root: Mapping) -> Mapping[str, Any]:
    """The schema behind a `$ref`."""
    while "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rsplit("/", 1)[1]]
    return schema


def _one_of_named(value: Any, schema: Mapping, root: Mapping, path: Path) -> Iterator[Fault]:
    key, mapping = schema["discriminator"]["propertyName"], schema["discriminator"]["mapping"]
    if isinstance(value, str):              # `represent: mlp` is short for `represent: {name: mlp}`
        at, name, value = path, value, {key: value}
    elif isinstance(value, dict):
        name = value.get(key, schema["discriminator"].get("default"))
        at = (*path, key)
        if name is None:
            yield path, f"`{key}` is missing; it must be {_choices(mapping)}"
            return
    else:
        yield path, f"found {found(value)}; must be {_choices(mapping)}, or a mapping with `{key}`"
        return
    if not isinstance(name, str):
        yield at, f"found {found(name)}; must be {_choices(mapping)}"
    elif name in mapping:
        yield from faults(value, {"$ref": mapping[name]}, root, path)
    else:
        yield at, f"found {found(name)}; must be {_choices(mapping)}" + did_you_mean(name, mapping)


def _any_of(value: Any, branches: list, schema: Mapping, root: Mapping, path: Path) -> Iterator[Fault]:
    near: list[list[Fault]] = []
    for branch in branches:
        found_here = list(faults(value, branch, root, path))
        if not found_here:
            return
        named = "discriminator" in follow(branch, root) and isinstance(value, str | dict)
        if named or all(len(at) > len(path) for at, _ in found_here):
            near.append(found_here)         # the right type of thing; the fault is inside it
    if len(near) == 1:
        yield from near[0]
    else:
        words = [c for b in branches for c in follow(b, root).get("enum", [])]
        yield path, _must(value, schema, root) + _near(value, words)


def _mapping(value: dict, schema: Mapping, root: Mapping, path: Path) -> Iterator[Fault]:
    known, others = schema.get("properties", {}), schema.get("additionalProperties", True)
    for key in schema.get("required", []):
        if key not in value:
            inner = known.get(key, {})
            what = follow(inner, root).get("description") or f"it must be {expected(inner, root)}"
            yield (*path, key), "missing; " + what[:1].lower() + what[1:].rstrip(".").replace("\n", " ")
    if len(value) < schema.get("minProperties", 0):
        yield path, "empty; at least one is needed"
    for key, inner in value.items():
        at = (*path, key)
        if key in known:
            yield from faults(inner, known[key], root, at)
        elif others is False:
            yield at, _unknown(key, known, root)
        elif not re.search(schema.get("propertyNames", {}).get("pattern", ""), str(key)):
            rule = schema["propertyNames"].get("description", "choose another")
            yield at, f"'{key}' cannot be a name; {rule}"
        elif isinstance(others, Mapping):
            yield from faults(inner, others, root, at)


def _list(value: list, schema: Mapping, root: Mapping, path: Path) -> Iterator[Fault]:
    if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", math.inf):
        yield path, f"found a list of {len(value)}; must be {expected(schema, root)}"
        return
    for i, item in enumerate(value):
        prefix = schema.get("prefixItems", [])
        yield from faults(item, prefix[i] if i < len(prefix) else schema.get("items", {}), root, (*path, i))


def _unknown(key: Any, known: Mapping, root: Mapping) -> str:
    of = lambda keys: [section for section, inner in known.items() if key in keys(inner)]
    if sections := of(lambda inner: follow(inner, root).get("properties", ())) or of(lambda inner: _keys(inner, root)):
        return f"unknown key here; '{key}' is a key of {_choices(sections)}"
    if near := did_you_mean(key, known):
        return "unknown key" + near
    return f"unknown key; keys here are {', '.join(known)}"


def _keys(schema: Mapping, root: Mapping) -> set[str]:
    """Those of a section, in any of its forms."""
    schema = follow(schema, root)
    forms = (*schema.get("anyOf", ()), *schema.get("oneOf", ()))
    return set(schema.get("properties", ())).union(*(_keys(form, root) for form in forms))


def _near(value: Any, words: Iterable[Any]) -> str:
    return did_you_mean(value, words) if isinstance(value, str) else ""


def _is(value: Any, kind: str | None) -> bool:
    if kind is None:
        return True
    if kind == "integer":
        return isinstance(value, int) and not isinstance(value, bool) or (
            isinstance(value, float) and value.is_integer())
    if kind == "number":
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(_float(value))
    return isinstance(value, TYPE[kind])


def _float(value: int | float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _in_range(value: Any, schema: Mapping) -> bool:
    if isinstance(value, str):
        return len(value) >= schema.get("minLength", 0) and bool(re.search(schema.get("pattern", ""), value))
    if isinstance(value, bool) or value is None:
        return True
    return (schema.get("minimum", -math.inf) <= value <= schema.get("maximum", math.inf)
            and schema.get("exclusiveMinimum", -math.inf) < value < schema.get("exclusiveMaximum", math.inf))


def _must(value: Any, schema: Mapping, root: Mapping) -> str:
    instead = ""
    if value is None and "default" in schema:
        instead = ", or leave the key out"
    return f"found {found(value)}; must be {expected(schema, root)}{instead}"


def found(value: Any) -> str:
    """A value as a person reads it: 'fast', 0.5, true, nothing, a list, a mapping."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, str):
        short = value if len(value) <= 60 else value[:57] + "..."
        likely = re.fullmatch(r"[\s\d_.,eE+-]*|true|false|null", short)    # it looks like another type
        shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in short)      # a message is one line
        return f"the text '{shown}'" if likely else f"'{shown}'"
    if isinstance(value, int | float):
        return str(value) if isinstance(value, float) or abs(value) < 10**40 else "a number of many digits"
    return f"a value of type {type(value).__name__}"


def expected(schema: Mapping, root: Mapping, plural: bool = False) -> str:
    """What would do: 'a whole number of at least 1 or null', 'a list of texts'."""
    schema = follow(schema, root)
    if "discriminator" in schema:
        names = _choices(schema["discriminator"]["mapping"])
        return f"{names}, or a mapping with `{schema['discriminator']['propertyName']}`"
    if branches := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(dict.fromkeys(expected(b, root, plural) for b in branches))
    if "enum" in schema or "const" in schema:
        return _choices(schema.get("enum", [schema.get("const")]))
    kind = schema.get("type")
    if kind is None:
        return "any value"
    if kind == "array" and schema.get("maxItems") == 0:
        return "an empty list"
    if kind == "array":
        items = schema.get("items") or (schema.get("prefixItems") or [{}])[0]
        least, most = schema.get("minItems", 0), schema.get("maxItems")
        size = "" if not least and most is None else f"{least} " if least == most else (
            f"at least {least} " if most is None else f"{least} to {most} ")
        what = expected(items, root, plural=True)
        return f"{NOUN[kind][plural]} of {size}{'values' if what == 'any value' else what}"
    if kind == "string" and "pattern" in schema:
        return f"{NOUN[kind][plural]} with {schema.get('description', 'the form ' + schema['pattern'])}"
    if kind == "string" and schema.get("minLength"):
        return f"{NOUN[kind][plural]} that {'are' if plural else 'is'} not empty"
    if kind == "object" and not plural and schema.get("properties") and schema.get("additionalProperties") is False:
        return f"{NOUN[kind][False]} with the keys {', '.join(schema['properties'])}"
    bounds = [f"{word} {_plain(schema[key])}" for key, word in (
        ("minimum", "of at least"), ("exclusiveMinimum", "above"), ("maximum", "at most"),
        ("exclusiveMaximum", "below")) if key in schema]
    return " ".join([NOUN[kind][plural], " and ".join(bounds)]).strip()


def _plain(number: float) -> str:
    return f"{number:g}" if isinstance(number, float) else str(number)


def _choices(names: Iterable[Any]) -> str:
    names = [repr(n) if isinstance(n, str) else found(n) for n in names]
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " or " + names[-1]

