"""From a YAML text to settings: every fault at once, each with its place, and every default filled in.

    load      file or mapping, plus `--set` edits -> Config
    dump      Config -> YAML with every default written out, which loads back equal

The shipped JSON Schema (config.schema.json, made by schema_file.py) says what may stand where; pydantic then checks
what a schema cannot say; `schema.resolve` and `check.refusals` what only the whole config shows. No torch.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from funnelrank import check, document, own_parts
from funnelrank.document import Path as Keys
from funnelrank.document import dotted, nearest
from funnelrank.errors import ConfigError, did_you_mean
from funnelrank.fill import fill_folders, fill_model, short_for, spell_out
from funnelrank.schema import Schema, resolve
from funnelrank.settings import Settings
from funnelrank.validate import Fault, faults
from funnelrank.validate import found as found_value

LARGEST = 4_000_000      # bytes of a config file
SET = "--set "           # a place in the command line begins so


@dataclass(frozen=True)
class Config:
    """A config that was found good. Two are equal when they say the same, wherever they were read."""

    settings: Settings                # every default filled in; data.dir absolute; train.out set
    schema: Schema
    name: str = field(compare=False)                              # 'demo' of demo.yaml
    path: Path | None = field(default=None, compare=False)
    text: str = field(default="", compare=False)                  # as written
    sets: tuple[str, ...] = field(default=(), compare=False)
    places: Mapping[Keys, str] = field(default_factory=dict, compare=False, repr=False)
    allow_code: bool = field(default=False, compare=False)        # parts of the user's own may be imported

    def placed(self, message: str) -> str:
        """'train.lr: ...' with its place in front, as 'demo.yaml:8:3: train.lr: ...', where it is known."""
        return _placed(message, self.places)


def load(source: str | os.PathLike | Mapping[str, Any], sets: Iterable[str] = (), *, allow_code: bool = False,
         beside: bool = True) -> Config:
    """Reads a config file (or takes a mapping of the same form), applies `a.b=c` edits and checks the whole.

    Relative data paths start at `data.dir`, which itself starts at the file's folder, or at the current one in an
    edit or a mapping. Raises ConfigError with all faults, one sentence each.

    allow_code   import the parts of a model that it names as module:Class; without it such a config is refused
    beside       look for them in the file's folder first, then in the current one and where Python itself looks
    """
    sets = tuple(sets)
    path = None if isinstance(source, Mapping) else Path(source)
    text = "" if path is None else read_text(path)
    name = "config" if path is None else path.name.split(".")[0] or path.name
    value, places, found = _written(source, text, sets)
    from_here = path is None or nearest(places, ("data", "dir")).startswith(SET)
    folders = [*([path.parent.absolute()] if path and beside else []), Path.cwd()]
    settings, schema = _checked(value, places, found, Path.cwd() if from_here else path.parent, name,
                                dict.fromkeys(folders) if allow_code else None)
    return Config(settings, schema, name=name, path=path, text=text, sets=sets, places=places, allow_code=allow_code)


def edited(config: Config, sets: Iterable[str]) -> dict[str, Any]:
    """What was written, with the edits that `config` was read with and these; nothing is filled in or checked."""
    source = config.text and str(config.path) or plain(config.settings)
    value, _, found = _written(source, config.text, (*config.sets, *sets))
    if found:
        raise ConfigError(*found)
    return value


def dump(config: Config) -> str:
    """The config as YAML with every default written out. `load` of it gives an equal Config."""
    return document.write(plain(config.settings)) + "\n"


def plain(settings: Settings) -> dict[str, Any]:
    """Settings as a user would write them: mappings, lists, texts and numbers."""
    value = settings.model_dump(mode="json", by_alias=True)
    value["features"] = {"lists": value["features"]["lists"], **value["features"]["columns"]}
    return value


@cache
def shipped_schema() -> dict[str, Any]:
    """The JSON Schema that is part of the package."""
    return json.loads(resources.files("funnelrank").joinpath("config.schema.json").read_text(encoding="utf-8"))


# ---- reading

def read_text(path: Path) -> str:
    """The text of a config file. Raises ConfigError where there is none."""
    try:
        if path.is_dir():
            raise ConfigError(f"{path}: is a folder; name the config file in it")
        if (size := path.stat().st_size) > LARGEST:
            raise ConfigError(f"{path}: {size} bytes are too many for a config; is this the data?")
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        folder = path.parent
        near = did_you_mean(path.name, [p.name for p in folder.glob("*.y*ml")]) if folder.is_dir() else ""
        raise ConfigError(f"{path}: no such file{near}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8; a config is a UTF-8 text") from None
    except (OSError, ValueError) as error:     # not allowed, a name too long, a name with a NUL
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{str(path)!r}: cannot be read ({reason})") from None


def _plain(value: Any) -> Any:
    """A deep copy with keys as texts and tuples as lists; paths become texts."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _written(source: str | os.PathLike | Mapping[str, Any], text: str,
             sets: Iterable[str]) -> tuple[dict[str, Any], dict[Keys, str], list[str]]:
    """What a file (of this text) or a mapping says once edited, where its keys stand, and faults so far."""
    written = document.Document(_plain(source)) if isinstance(source, Mapping) else document.read(text, str(source))
    value, places = written.value, written.places
    if not isinstance(value, dict):
        what = "is empty" if value is None else "is no mapping"
        raise ConfigError(f"{source}: {what}; a config has the sections features: and tasks:, and usually data: "
                          "and model:")
    return value, places, written.faults + [fault for edit in sets for fault in _edit(value, edit, places)]


def _split(path: str) -> Keys:
    """'a.b[0].c' -> ('a', 'b', 0, 'c')."""
    parts: list[str | int] = []
    for piece in path.split("."):
        name, *rest = re.split(r"\[(\d{1,9})\](?=\[|$)", piece)
        parts += [name, *(int(i) for i in rest if i)]
    return tuple(parts)


def _edit(value: dict, edit: str, places: dict[Keys, str]) -> list[str]:
    """Applies one `--set a.b[0].c=value` in place; returns its faults."""
    key, equals, text = edit.partition("=")
    where, path = SET + key.strip(), _split(key.strip())
    if not equals or "" in path or not key.isprintable():
        shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in edit)           # a message is one line
        return [f"{SET}{shown}: must be of the form a.b=value, as in train.batch_size=512"]
    try:
        said = document.read(text, where)
    except ConfigError as error:
        return [re.sub(r":\d+:\d+: ", ": ", message, count=1) for message in error.messages]
    if said.faults:
        return [re.sub(r":\d+:\d+: ", ": ", message, count=1) for message in said.faults]
    here: Any = value
    for i, part in enumerate(path):
        last = i == len(path) - 1
        if isinstance(part, int) and not (isinstance(here, list) and part < len(here) + last):
            size = f"a list of {len(here)}" if isinstance(here, list) else "no list"
            return [f"{where}: '{dotted(path[:i])}' is {size}, so it has no [{part}]"]
        if isinstance(part, str) and not isinstance(here, dict):
            return [f"{where}: '{dotted(path[:i])}' is a value, so it has no '{part}'"]
        if last and isinstance(part, int):
            here[part:part + 1] = [said.value]
        elif last:
            here[part] = said.value
        else:
            inner = here[part] if isinstance(part, int) else here.get(part)
            short = short_for(path[:i + 1]) if isinstance(inner, str) else None
            here[part] = {short: inner} if short else {} if inner is None else inner
            if inner is None:
                places[path[:i + 1]] = where
            here = here[part]
    for old in [p for p in places if p[:len(path)] == path]:
        del places[old]                                    # what stood there is gone
    places[path] = where
    return []


# ---- checking

def _checked(value: dict, places: Mapping[Keys, str], found: list[str], start: Path, name: str,
             code_from: Iterable[Path] | None) -> tuple[Settings, Schema]:
    """Settings and schema of a written value, or all faults together, `found` included.

    What is refused is cut out, and the rest is looked at all the same; of what is then found, nothing counts that the
    cut itself may have caused.
    """
    own, foreign = _own_parts(value, code_from)
    shipped = own_parts.extended(shipped_schema(), own)
    spell_out(value, shipped)
    broken = foreign + [(at, m) for at, m in faults(value, shipped, shipped)
                        if not any(at[:len(slot)] == slot for slot in (_slot(where) for where, _ in foreign))]
    if own and not broken:
        broken = [((*at, *inner), m) for at, said, part in _of_own(value, own)
                  for inner, m in own_parts.misfits(part, said)]
    if ("model", "name") in (at for at, _ in broken):      # a slot without a name waited for the model's
        broken = [(at, m) for at, m in broken if not (at[0] == "model" and m.startswith("`name` is missing"))]
    for at, _ in broken:
        _cut(value, at)
    more: list[str] = []
    if not (broken and any(faults(value, shipped, shipped))):
        fill_folders(value, start, name)
        fill_model(value, shipped)
        settings, wrong = _settings(value)
        if wrong:
            broken += wrong
            for at, _ in wrong:
                _cut(value, at)
            settings, _ = _settings(value)
        try:
            if settings:
                schema = resolve(settings)
                more = check.refusals(settings, schema, shipped)
        except ConfigError as error:
            more = list(error.messages)
    touched = {at[0] for at, _ in broken if at}
    if touched & {"features", "data"}:
        more = [m for m in more if not m.startswith(("features", "embedding"))]
    if touched & {"model", "tasks"}:
        more = [m for m in more if not m.startswith("model")]
    found = [*found, *(_told(at, message, places) for at, message in broken), *(_placed(m, places) for m in more)]
    if found:
        raise ConfigError(*sorted(dict.fromkeys(found), key=_line))
    return settings, schema


def _own_parts(value: dict, code_from: Iterable[Path] | None) -> tuple[list[tuple[str, str, type]], list[Fault]]:
    """(slot, name, class) of the parts of the user's own that `value` names, imported if they may be, and faults."""
    own, wrong = [], []
    for at, slot, name in own_parts.named(value.get("model")):
        if code_from is None:
            wrong.append((at, f"{found_value(name)} names code of somebody's own, which is imported and run only with "
                              f"{own_parts.HOW}"))
            continue
        try:
            own.append((slot, name, own_parts.find(name, code_from)))
        except ConfigError as error:
            wrong += [(at, message) for message in error.messages]
    return own, wrong


def _slot(at: Keys) -> Keys:
    """('model', 'side', 0, 'name') -> ('model', 'side', 0)."""
    return at[:3] if len(at) > 2 and isinstance(at[2], int) else at[:2]


def _of_own(value: dict, own: Iterable[tuple[str, str, type]]) -> Iterable[tuple[Keys, Mapping[str, Any], type]]:
    """Path, keys and class of each part of the user's own, once everything is spelt out."""
    classes = {(slot, name): part for slot, name, part in own}
    for at, slot, name in own_parts.named(value["model"]):
        said = value["model"][slot]
        yield _slot(at), said[at[2]] if isinstance(said, list) else said, classes[slot, name]


def _settings(value: dict) -> tuple[Settings | None, list[Fault]]:
    """Settings of a value that the JSON Schema takes, or what only pydantic sees."""
    columns = dict(value["features"])
    lists = {"lists": columns.pop("lists")} if "lists" in columns else {}
    try:
        return Settings.model_validate({**value, "features": {**lists, "columns": columns}}), []
    except ValidationError as error:
        return None, list(dict.fromkeys(
            _as_written(e["loc"], value, re.sub(r"^(Value|Assertion) error, ", "", e["msg"]))
            for e in error.errors(include_url=False, include_context=False)))


def _line(fault: str) -> tuple[int, int]:
    """Sorts faults as they stand in the file; those of the command line come last."""
    match = re.match(r".*?:(\d+):(\d+): ", fault) if not fault.startswith(SET) else None
    return (int(match[1]), int(match[2])) if match else (10**9, 0)


def _cut(value: dict, path: Keys) -> None:
    """Takes what is at fault out of `value`, so that the rest can still be looked at."""
    if path[:1] == ("model",):
        value["model"] = {}
    elif path[:1] == ("features",) and len(path) > 1:
        value["features"].pop(path[1], None)
    elif len(path) == 2 and path[0] == "tasks" and value["tasks"].get(path[1]) is not None:
        value["tasks"][path[1]] = {}                       # others may come after it
    else:
        holders = [value]
        for part in path:
            if not isinstance(holders[-1], dict) or part not in holders[-1]:
                break
            holders.append(holders[-1][part])
        last = next((i for i in range(len(holders) - 1, 0, -1) if isinstance(holders[i - 1], dict)), 0)
        if last:                                           # a missing key takes the section that lacks it along
            del holders[last - 1][path[last - 1]]


def _as_written(loc: tuple, value: Any, message: str) -> Fault:
    """Pydantic's location without the names of union branches: the path that the user wrote.

    A fault of a whole section is told at the first of its keys that the message names.
    """
    path: list[str | int] = []
    for part in loc[:1] + loc[2:] if loc[:2] == ("features", "columns") else loc:
        if isinstance(value, dict) and part in value or (
                isinstance(value, list) and isinstance(part, int) and part < len(value)):
            path.append(part)
            value = value[part]
    named = [word for word in re.findall(r"\w+", message) if isinstance(value, dict) and word in value]
    return (*path, *named[:1]), message


def _told(path: Keys, message: str, places: Mapping[Keys, str]) -> str:
    key, place = dotted(path), nearest(places, path)
    if place.startswith(SET):
        key = key.removeprefix(place.removeprefix(SET)).lstrip(".")
    return ": ".join(part for part in (place, key, message) if part)


def _placed(message: str, places: Mapping[Keys, str]) -> str:
    key, colon, rest = message.partition(": ")
    path = _split(key)
    section = Settings.model_fields.get(path[0]) if isinstance(path[0], str) else None
    if not colon or section is None:
        return message
    keys = getattr(section.annotation, "model_fields", {})
    if len(path) > 1 and path[0] not in ("features", "tasks", "model") and path[1] not in keys:
        return message                                     # a file called train.parquet, for one
    return _told(path, rest, places)
