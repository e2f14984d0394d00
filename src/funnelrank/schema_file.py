"""Makes config.schema.json: what a config may say, from the settings' classes and the parts' constructors.

    python -m funnelrank.schema_file

Run it after changing a setting or a part's parameter; a test compares the file with what this makes. The file is for
editors (keys complete, with their descriptions) and for `config.load`, which so needs no torch to check a model.
"""

import json
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from funnelrank.fill import CHAINS, SLOTS
from funnelrank.models import MODELS, PARTS
from funnelrank.models.layers import LAYERS
from funnelrank.own_parts import FORM, definition, keys_of
from funnelrank.settings import DEBIAS, FEATURE_KINDS, Settings

FILE = Path(__file__).with_name("config.schema.json")


def config_schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of a config file, as users write it, shorthands included."""
    schema = Settings.model_json_schema(by_alias=True)
    defs = schema["$defs"]
    features = defs.pop("Features")
    schema["properties"]["features"] = {
        "description": "A name for each thing a model may see, and how a column becomes it.",
        "type": "object", "minProperties": 1,
        "properties": {"lists": features["properties"]["lists"]},
        "propertyNames": features["properties"]["columns"]["propertyNames"] | _name_pattern(features),
        "additionalProperties": _named("kind", {k: f"#/$defs/{c.__name__}" for k, c in FEATURE_KINDS.items()},
                                       default="id")}
    for kind, section in FEATURE_KINDS.items():
        if kind != "id":
            defs[section.__name__]["required"] = ["kind", *defs[section.__name__].get("required", [])]
    schema["properties"]["model"] = model_schema(defs)
    _tidy(schema)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "A funnelrank config", **schema,
            "x-recipes": TypeAdapter(Any).dump_python(MODELS, mode="json")}


def model_schema(defs: dict[str, Any]) -> dict[str, Any]:
    """The `model:` section. Each part becomes a definition named 'slot.part', added to `defs`."""
    properties: dict[str, Any] = {
        "name": {"anyOf": [{"enum": list(MODELS)}, {"type": "null"}], "default": None,
                 "description": "A paper, whose recipe fills the slots that are not written here."},
        "reading": {"anyOf": [{"enum": ["joint", "conditional", "ordinal"]}, {"type": "null"}], "default": None,
                    "description": "What a logit means: the step over all impressions (joint), given the step before "
                                   "(conditional), or how far its log-odds lie below that step's (ordinal)."},
        "calibrator": {"anyOf": [{"type": "number", "minimum": 0}, {"type": "null"}], "default": None,
                       "description": "Weight of the behavioural expectation calibrator. Default: the paper's, where "
                                      "it can act."},
        "relations": {"type": "object",
                      "description": "task: tasks it learns from in `transfer`, instead of the tree of `after`.",
                      "additionalProperties": {"anyOf": [{"type": "string"},
                                                         {"type": "array", "items": {"type": "string"}}]}}}
    defs["own"] = {"type": "object", "required": ["name"], "properties": {"name": {
        "type": "string", "pattern": FORM, "description": "module:Class, a part of your own."}},
        "description": "A part of your own, and its keys."}
    for slot in SLOTS:
        mapping = {}
        for name, part in PARTS[slot].items():
            own = definition(part, slot, name)
            defs.update(own.pop("$defs", {}))
            defs[f"{slot}.{name}"] = own
            mapping[name] = f"#/$defs/{slot}.{name}"
        union = _named("name", mapping)
        union["anyOf"] += [{"type": "string", "pattern": FORM}, {"$ref": "#/$defs/own"}]
        if not mapping:
            properties[slot] = {"type": "array", "maxItems": 0}
        elif slot in CHAINS:
            properties[slot] = {"anyOf": [union, {"type": "array", "items": union}]}
        else:
            properties[slot] = {"anyOf": [union, {"type": "null"}]}
    defs["represent.backbone.Block"]["properties"]["layer"] |= _layers(defs)
    for name, section in DEBIAS.items():
        own = section.model_json_schema()
        own["properties"] = {"name": {"const": name}, **{k: v for k, v in own["properties"].items() if k != "name"}}
        defs[f"debias.{name}"] = own
    named = _named("name", {name: f"#/$defs/debias.{name}" for name in DEBIAS})
    properties["debias"] = {"anyOf": [named, {"type": "null"}], "default": None,
                            "description": "How a step that is only seen where the step before happened is debiased."}
    return {"type": "object", "additionalProperties": False, "properties": properties,
            "description": "A paper by name, or its five slots."}


def _layers(defs: dict[str, Any]) -> dict[str, Any]:
    """What a block's `layer` may say. Each layer becomes a definition named 'layer.name', added to `defs`."""
    for name, layer in LAYERS.items():
        own = keys_of(layer, "layer", name)
        defs.update(own.pop("$defs", {}))
        defs[f"layer.{name}"] = own
    union = _named("name", {name: f"#/$defs/layer.{name}" for name in LAYERS})
    return {"anyOf": [union, {"type": "null"}]}


def _named(key: str, mapping: dict[str, str], default: str | None = None) -> dict[str, Any]:
    """One of several sections, told apart by `key`; its bare name stands for a section without other keys."""
    discriminator = {"propertyName": key, "mapping": mapping} | ({"default": default} if default else {})
    return {"anyOf": [{"enum": list(mapping)}, *({"$ref": r} for r in mapping.values()),
                      *([{"type": "null"}] if default else [])], "discriminator": discriminator}


def _name_pattern(section: dict[str, Any]) -> dict[str, str]:
    return {"pattern": next(iter(section["properties"]["columns"]["patternProperties"]))}


def _tidy(node: Any) -> None:
    """No titles that only repeat a key; a mapping with free names says so in a form that refuses bad ones."""
    if isinstance(node, dict):
        if "oneOf" in node and "discriminator" in node:           # of settings: its name alone does, too
            del node["oneOf"]
            node |= _named(node["discriminator"]["propertyName"], node["discriminator"]["mapping"])
        if isinstance(node.get("title"), str):
            del node["title"]
        if node.get("type") == "object" and "patternProperties" in node:
            (pattern, inner), = node.pop("patternProperties").items()
            node["propertyNames"] = {"pattern": pattern, **node.get("propertyNames", {})}
            node["additionalProperties"] = inner
    for inner in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        _tidy(inner)


def text() -> str:
    return json.dumps(config_schema(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
