"""An encoder that goes on from another one: its id spaces grow, its statistics stay, features come and go.

A feature is the same one if it has the same name and means the same; where its column is found, how often a value must
be seen, how long a list may be and whose side it is on may change. One that means something else is refused, with the
way out: to start it anew.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

import numpy as np

from funnelrank.data.encode import Encoder, Old
from funnelrank.errors import ConfigError, listing
from funnelrank.schema import FIRST, Schema, Space

MAY_CHANGE = {"column", "by", "role", "min_count", "max_size", "vocab_list", "vocab_file", "num_buckets", "separator",
              "weight_separator", "max_len", "target", "indicator"}
LATER = MAY_CHANGE | {"space", "hash_buckets", "unknown", "log", "scale", "clip"}      # done with what was read
LISTS = ("bag", "sequence", "history")
WAYS = ("fitted", "list")         # of making a space that keeps its values


def carried_over(old: Encoder, schema: Schema, anew: Collection[str], retire: int | None = None) -> Old:
    """What an encoder for `schema` takes from `old`: everything about features that are the same and not `anew`.

    Raises ConfigError, all faults at once, for features and id spaces that are not what they were.
    """
    same = same_features(old.schema, schema, anew)
    faults = [f"{where}; start it anew with --anew {who}" for where, who in _changed(old.schema, schema, same)]
    if faults:
        raise ConfigError(*faults)
    vocabs = {name: old.vocabs[name] for name in same_spaces(schema, same) if name in old.vocabs}
    if old.scenario is not None and schema.scenario == old.schema.scenario:
        vocabs[""] = old.scenario
    scalers = {n: s for n, s in old.scalers.items() if n in same}
    for name, f in schema.of_kind("number", "vector").items():
        if name in scalers and f.indicator != "auto":
            scalers[name] = replace(scalers[name], indicator=f.indicator)
    return Old(vocabs, scalers, {n: b for n, b in old.boundaries.items() if n in same},
               [n for n in old.weighted if n in same], retire, {n: r for n, r in old.rates.items() if n in same})


def same_features(old: Schema, schema: Schema, anew: Collection[str]) -> list[str]:
    """Features that both have and that do not start anew."""
    return [n for n in schema.features if n in old.features and n not in anew]


def same_spaces(schema: Schema, same: Collection[str]) -> list[str]:
    """Id spaces that some feature which is not new lives in."""
    return [name for name in schema.spaces if any(n in same for n in _members(schema, name))]


def _members(schema: Schema, space: str) -> list[str]:
    return [n for n, f in schema.features.items() if getattr(f, "space", None) == space or n == space]


def _changed(old: Schema, schema: Schema, same: Collection[str]) -> list[tuple[str, str]]:
    """(what changed, which features to start anew) of each fault."""
    found = []
    for name in same:
        was, now = (s.features[name].model_dump(exclude=MAY_CHANGE) for s in (old, schema))
        if was != now:
            keys = [k for k in now if was.get(k) != now[k]] if was["kind"] == now["kind"] else ["kind"]
            said = ", ".join(f"{k} was {was.get(k)!r}, now {now[k]!r}" for k in keys)
            found.append((f"features.{name}: {said}, so what was learned of it means something else", name))
        elif events := _other_events(old, schema, name):
            found.append((f"features.{name}: {events}, so what was learned of it means something else", name))
        elif others := [p for p in _parts(schema, name) if _says_otherwise(old, schema, name, p, same)]:
            found.append((f"features.{name}: rests on {listing(others)}, whose values are others now, so what was "
                          "learned of it means something else", name))
    for name in same_spaces(schema, same):
        if name in old.spaces and (why := _remade(old.spaces[name], schema.spaces[name])):
            found.append((f"id space '{name}': {why}, so its ids mean other values", ",".join(_members(schema, name))))
    return found


def _parts(schema: Schema, name: str) -> list[str]:
    """The features that a feature is computed from, or cut as."""
    cut = schema.cut_as(name)
    return [*schema.read_by(name), *([cut] if cut and cut != name else [])]


def _says_otherwise(old: Schema, schema: Schema, reader: str, name: str, same: Collection[str]) -> bool:
    """Whether a feature says of a row what it did not, as `reader` reads it; one that starts anew is cut anew."""
    if name not in old.features:
        return True
    whole = schema.features[reader].kind in ("number", "length")            # it reads numbers and lists before any cut
    aside = {*LATER, *(("buckets", "boundaries") if whole else ()),
             *(("pool",) if schema.features[name].kind in LISTS else ())}
    was, now = (s.features[name].model_dump(exclude=aside) for s in (old, schema))
    return was != now or bool(now.get("buckets") and name not in same or _other_events(old, schema, name)) or any(
        _says_otherwise(old, schema, name, p, same) for p in (schema.read_by(name) if whole else _parts(schema, name)))


def _other_events(old: Schema, schema: Schema, name: str) -> str:
    """What differs between the events that a feature was made of and those it is made of now."""
    was, now = ([s.made[c].model_dump() for c in s.columns_of(name) if c in s.made] for s in (old, schema))
    keys = [k for a, b in zip(was, now) for k in a if k not in ("of", "max_len") and a[k] != b[k]]
    return "made of other events" if len(was) != len(now) else f"its events' {keys[0]} changed" if keys else ""


def _remade(was: Space, now: Space) -> str:
    if was.made != now.made and not {was.made, now.made} <= set(WAYS):
        return f"was made by {was.made}, now by {now.made}"
    if now.made == "hash" and was.size != now.size:
        return f"hashed into {was.size} buckets, now into {now.size}"
    return ""


def rows_before(old: Encoder, new: Encoder, same: Collection[str]) -> dict[str, np.ndarray]:
    """Per id space that goes on: the id that each of its ids had before, [size] int64, -1 for a new one."""
    return {name: new.vocabs[name].before(old.vocabs[name]) for name in same_spaces(new.schema, same)
            if name in old.vocabs}


def growth(old: Encoder, new: Encoder, before: Mapping[str, np.ndarray]) -> dict[str, dict[str, int]]:
    """Per id space, how many values were carried, added and dropped, and for how many there was no room."""
    said = {}
    for name, vocab in new.vocabs.items():
        values, carried = vocab.size - FIRST, int((before[name][FIRST:] >= 0).sum()) if name in before else 0
        dropped = old.vocabs[name].size - FIRST - carried if name in old.vocabs else 0
        said[name] = {"carried": carried, "added": values - carried, "dropped": dropped, "no_room": vocab.no_room}
    return said
