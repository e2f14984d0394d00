"""What a config leaves unsaid: shorthands in full, a model's recipe, defaults of parts, folders.

Works on plain mappings, in place, before and after they are checked; so what runs is what the artefact's config says.
"""

import copy
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from funnelrank import blocks
from funnelrank.check import calibrator_acts
from funnelrank.document import Path as Keys
from funnelrank.settings import Settings
from funnelrank.together import SLOTS
from funnelrank.validate import follow

CHAINS = ("prepare", "side")                                        # slots that hold any number of parts
NAMED = (*SLOTS, "debias")                                          # sections of `model` that name what stands there
ORDER = ("name", "reading", *NAMED, "calibrator", "relations")      # of keys, where a config is written out
URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+://")


def short_for(path: Keys) -> str | None:
    """The key that a bare word stands for at `path`: `price: number` is `price: {kind: number}`."""
    if path in (("train", "balance"), ("data", "engine")):
        return "name"
    if len(path) == 3 and (path[:2] == ("train", "track") or path[0] == "tasks" and path[2] == "loss"):
        return "name"
    if len(path) == 3 and path[0] == "tasks" and path[2] == "within":
        return "task"
    if path == ("model",) or path[0] == "model" and len(path) - isinstance(path[-1], int) == 2 and path[1] in NAMED:
        return "name"
    return "kind" if path[0] == "features" and len(path) == 2 and path[1] != "lists" else None


def spell_out(value: dict[str, Any], schema: Mapping[str, Any]) -> None:
    """Empty sections, `model: aitm`, `user_id:`, `represent: mlp`, and the slots of the named model's recipe.

    Takes anything, for it comes before the check.
    """
    for section in [s for s, inner in value.items() if inner is None]:
        value[section] = {}
    for section in ("features", "tasks"):
        inner = value.get(section)
        if isinstance(inner, dict):
            inner.update({k: {} for k, v in inner.items() if v is None})
    tasks = value.get("tasks")
    each = [task for task in (tasks.values() if isinstance(tasks, dict) else ()) if isinstance(task, dict)]
    inside = [(value.get("train"), "balance", "name"), (value.get("data"), "engine", "name"),
              *((task, key, name) for task in each for key, name in (("loss", "name"), ("within", "task")))]
    for section, key, name in inside:
        if isinstance(section, dict) and isinstance(section.get(key), str):
            section[key] = {name: section[key]}
    train = value.get("train")
    if isinstance(train, dict) and isinstance(train.get("track"), list):
        train["track"] = [{"name": t} if isinstance(t, str) else t for t in train["track"]]
    model = value.setdefault("model", dict(Settings.model_fields["model"].default))
    if isinstance(model, str):
        model = value["model"] = {"name": model}
    if isinstance(model, dict):
        name = model.get("name")
        _fill_slots(model, schema["x-recipes"].get(name, {}) if isinstance(name, str) else {}, schema)


def _fill_slots(model: dict[str, Any], recipe: Mapping[str, Any], schema: Mapping[str, Any]) -> None:
    """`represent: {hidden: [64]}` changes the recipe's part; `represent: {name: other}` swaps it.

    What a recipe says of `per` (one part for all tasks, or one each) holds for whatever is swapped in.
    """
    for slot in CHAINS:
        said = model.get(slot, recipe.get(slot, []))
        model[slot] = [{"name": p} if isinstance(p, str) else p for p in (said if isinstance(said, list) else [said])]
    for slot in (s for s in NAMED if s not in CHAINS):
        usual, said = recipe.get(slot), model.get(slot, {} if slot in recipe else None)
        if isinstance(said, str):
            said = {"name": said}
        if isinstance(said, dict) and usual:
            if said.get("name", usual["name"]) == usual["name"]:
                said = {**usual, **said}
            elif usual.get("per") in _choices(part(schema, slot, said["name"]), "per"):
                said = {"per": usual["per"], **said}
        if isinstance(said, dict) and blocks.is_drawing(said):
            blocks.spell_out(said)
        if slot in model or said is not None:
            model[slot] = said


def part(schema: Mapping[str, Any], slot: str, name: Any) -> Mapping[str, Any]:
    """The JSON Schema of one part; empty if there is none of that name."""
    return schema["$defs"].get(f"{slot}.{name}", {})


def _choices(node: Mapping[str, Any], key: str) -> list[Any]:
    """What a key of a part may say; empty if it has no such key."""
    return node.get("properties", {}).get(key, {}).get("enum", [])


def fill_model(value: dict[str, Any], schema: Mapping[str, Any]) -> None:
    """Defaults of every part's keys, the reading, and the calibrator's weight, which is 0 where it cannot act."""
    model = value["model"]
    for slot in NAMED:
        said = model.get(slot)
        for one in said if isinstance(said, list) else [said] if said else []:
            fill_defaults(one, part(schema, slot, one["name"]), schema)
    recipe = schema["x-recipes"].get(model.get("name")) or {}
    if model.get("reading") is None:
        model["reading"] = recipe.get("reading", "joint")
    if model.get("calibrator") is None:
        usual = recipe.get("calibrator", 0.0)
        model["calibrator"] = usual if calibrator_acts(model["reading"], value["tasks"]) else 0.0
    value["model"] = {k: model[k] for k in ORDER if k in model}


def fill_defaults(value: Any, node: Mapping[str, Any], root: Mapping[str, Any]) -> None:
    """Defaults of a section's keys, and of the sections in it; `value` was found good."""
    node = follow(node, root)
    if "discriminator" in node and isinstance(value, dict):
        key = node["discriminator"]["propertyName"]
        fill_defaults(value, {"$ref": node["discriminator"]["mapping"][value[key]]}, root)
        return
    if "anyOf" in node:
        inner = [b for b in node["anyOf"] if follow(b, root).get("type") == "object" or "discriminator" in b]
        node = follow(inner[0], root) if len(inner) == 1 else {}
        if "discriminator" in node:
            fill_defaults(value, node, root)
            return
    if not isinstance(value, dict):
        return
    for key, inner in node.get("properties", {}).items():
        if "default" in inner:
            value.setdefault(key, copy.deepcopy(inner["default"]))
        if key in value:
            fill_defaults(value[key], inner, root)
    if isinstance(others := node.get("additionalProperties"), Mapping):
        for key in value:
            fill_defaults(value[key], others, root)


def fill_folders(value: dict[str, Any], start: Path, name: str) -> None:
    """data.dir as an absolute path (or a URL), from `start`; the run's folder as runs/<name>."""
    data, train = value.setdefault("data", {}), value.setdefault("train", {})
    folder = os.path.expanduser(data.get("dir") or "")
    data["dir"] = folder if URL.match(folder) else os.path.abspath(start / folder)
    train["out"] = train.get("out") or os.path.join("runs", name)
