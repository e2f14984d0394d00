"""Parts of a model that users write: named `module:Class` in a slot, imported only where `allow_code` says so.

    represent: {name: "my_parts:Gated", width: 32}        # class Gated of my_parts.py, Gated(spec, width=32)

What a config may say of a part, ours or theirs, is its constructor's keyword parameters; `definition` makes a JSON
Schema of them. A module is looked for in the folders given (the config's, then the current one) and then where Python
itself looks. No torch here: who imports a part imports torch.
"""

from __future__ import annotations

import copy
import hashlib
import importlib
import inspect
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import pydantic

from funnelrank.document import Path as Keys
from funnelrank.errors import ConfigError
from funnelrank.together import SLOTS

FORM = r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*:[A-Za-z_][A-Za-z0-9_]*$"
CODE = "code of "         # begins the key of a digest
LONGEST = 200             # characters of a name
HOW = "--allow-code (in Python: allow_code=True)"
FAULTS = (ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError, OSError, RuntimeError,
          SyntaxError, TypeError, ValueError)         # whatever code of others may raise
_imported: dict[str, type] = {}           # name -> class, of all that was allowed in this process
_sources: dict[str, str] = {}             # module -> hash of its text when it was imported


def is_own(name: Any) -> bool:
    """Whether a part's name is of the form `module:Class`; none of ours has a colon."""
    return isinstance(name, str) and ":" in name


def named(model: Any) -> Iterator[tuple[Keys, str, str]]:
    """Path, slot and name of every part of the user's own in a `model:` section, written in whatever way."""
    for slot in SLOTS if isinstance(model, dict) else ():
        said = model.get(slot)
        for i, one in enumerate(said if isinstance(said, list) else [said]):
            at = ("model", slot, i) if isinstance(said, list) else ("model", slot)
            name = one.get("name") if isinstance(one, dict) else one
            if is_own(name):
                yield ((*at, "name") if isinstance(one, dict) else at), slot, name


def imported(name: str) -> type:
    """A class that `find` has found; the config that names it was allowed to."""
    return _imported[name]


def find(name: str, folders: Iterable[Path]) -> type:
    """Imports the class. Raises ConfigError where there is none, or one that is no part."""
    if not re.fullmatch(FORM, name) or len(name) > LONGEST:
        raise ConfigError(f"found {name[:LONGEST]!r}; a part of your own is named module:Class, as in my_parts:Gated")
    module, _, attribute = name.partition(":")
    if module == "__main__":
        raise ConfigError(f"{name!r}: a script or a notebook is no module that another process could import; put the "
                          "class into a file of its own")
    found = getattr(_module(module, [str(folder) for folder in folders]), attribute, None)
    torch = sys.modules.get("torch")
    if not (torch and isinstance(found, type) and issubclass(found, torch.nn.Module)):
        what = "has no such name" if found is None else "has it, but as no subclass of torch.nn.Module"
        raise ConfigError(f"'{name}': {module} {what}; a part is a class that derives from torch.nn.Module")
    _refuse_misfits(found, name)
    _imported[name] = found
    with suppress(OSError, TypeError):                  # compiled modules have no text
        text = inspect.getsource(sys.modules[module])
        _sources.setdefault(module, hashlib.sha256(text.encode()).hexdigest()[:12])
    return found


def definition(part: type, slot: str, name: str) -> dict[str, Any]:
    """The JSON Schema of what a config may say of a part, and what `check` must know of it without building it."""
    return {**keys_of(part, slot, name), **_facts(part)}


def keys_of(part: type, slot: str, name: str) -> dict[str, Any]:
    """The JSON Schema of a constructor's keys; `$defs` of the sections in them are named slot.name.Section."""
    own = part_settings(part).model_json_schema(ref_template=f"#/$defs/{slot}.{name}.{{model}}")
    if "$defs" in own:
        own["$defs"] = {f"{slot}.{name}.{k}": v for k, v in own["$defs"].items()}
    own["description"] = own.get("description", "").split("\n\n")[0]
    own["properties"] = {"name": {"const": name}, **own.get("properties", {})}
    return {"additionalProperties": False, **own}


def _facts(part: type) -> dict[str, Any]:
    """What `check` must know of a part without building it: its needs, and what it declares (models/slots.py)."""
    facts = {f"needs-{need}": getattr(part.needs, need) for need in ("scenario", "fields", "histories", "crosses")}
    facts |= {key.replace("_", "-"): getattr(part, key, None)
              for key in ("makes", "keeps", "sets_raw", "takes_scenarios")}
    said = {f"x-{key}": list(value) if isinstance(value, tuple) else value for key, value in facts.items() if value}
    return said | {f"x-{key}": make(getattr(part, key)) for key, make in (("changes", list), ("reads", dict))
                   if hasattr(part, key)}               # undeclared is something else than nothing


def part_settings(part: type) -> type[pydantic.BaseModel]:
    """What a config may say of a part: its constructor's keyword parameters, as a pydantic model."""
    fields: dict[str, Any] = {}
    for name, parameter in inspect.signature(part.__init__, eval_str=True).parameters.items():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            default = ... if parameter.default is inspect.Parameter.empty else parameter.default
            fields[name] = (parameter.annotation, default)
    return pydantic.create_model(part.__name__, __config__=pydantic.ConfigDict(extra="forbid", validate_default=True),
                                 __doc__=inspect.getdoc(part), **fields)


def extended(shipped: Mapping[str, Any], parts: Iterable[tuple[str, str, type]]) -> Mapping[str, Any]:
    """The shipped JSON Schema with parts of the user's own, (slot, name, class), beside ours."""
    parts = list(parts)
    if not parts:
        return shipped
    schema = {**shipped, "$defs": dict(shipped["$defs"]),
              "properties": {**shipped["properties"], "model": copy.deepcopy(shipped["properties"]["model"])}}
    for slot, name, part in parts:
        own = definition(part, slot, name)
        schema["$defs"] |= own.pop("$defs", {})
        schema["$defs"][f"{slot}.{name}"] = own
        for branch in schema["properties"]["model"]["properties"][slot]["anyOf"]:       # one part, or a list of them
            union = branch.get("items", branch)
            if "discriminator" in union:
                union["discriminator"]["mapping"][name] = f"#/$defs/{slot}.{name}"
    return schema


def misfits(part: type, said: Mapping[str, Any]) -> Iterator[tuple[Keys, str]]:
    """What only pydantic sees of a part's keys: their own types may say more than our reader of JSON Schemas knows."""
    try:
        part_settings(part).model_validate({k: v for k, v in said.items() if k != "name"})
    except pydantic.ValidationError as error:
        for e in error.errors(include_url=False, include_context=False):
            at = next((tuple(e["loc"][:n]) for n in range(len(e["loc"]), 0, -1) if _there(said, e["loc"][:n])), ())
            yield at, re.sub(r"^(Value|Assertion) error, ", "", e["msg"])


def digests(model: Mapping[str, Any]) -> dict[str, str]:
    """Of each imported part that `model` names, a hash of its module's text."""
    return {CODE + name: _sources.get(name.partition(":")[0], "unknown") for _, _, name in named(model)}


def built(slot: str, name: str, *given: Any, **keys: Any) -> Any:
    """A part of the user's own. Raises ConfigError for whatever its constructor raises."""
    try:
        return imported(name)(*given, **keys)
    except FAULTS as error:
        where = blamed(error)
        raise ConfigError(f"model.{slot}: '{name}' cannot be built: {type(error).__name__}: {error}"
                          + (f" ({where})" if where else "")) from error


def blamed(error: BaseException) -> str | None:
    """Where in a part of the user's own an exception arose: 'my_parts.py, line 12'; None if it arose elsewhere."""
    return _last(error, {getattr(sys.modules.get(part.__module__), "__file__", None) for part in _imported.values()})


def _module(module: str, folders: list[str]) -> Any:
    top = module.partition(".")[0]
    importlib.invalidate_caches()
    mine, loaded = PathFinder.find_spec(top, folders), sys.modules.get(top)
    if mine and mine.origin and loaded and Path(getattr(loaded, "__file__", None) or "").resolve() != Path(
            mine.origin).resolve():
        raise ConfigError(f"'{module}': {mine.origin} would be imported, but this process already has another module "
                          f"'{top}', {getattr(loaded, '__file__', None) or 'of Python itself'}; rename yours")
    try:
        with _first_on_path(folders):
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and (module == error.name or module.startswith(f"{error.name}.")):
            raise ConfigError(f"'{module}': no such module in {' or '.join(folders)}, or where Python itself looks; "
                              "put it there, or its folder into PYTHONPATH") from None
        raise ConfigError(f"'{module}' cannot be imported: {error}") from error
    except FAULTS as error:
        raise ConfigError(f"'{module}' cannot be imported: {type(error).__name__}: {error}{_place(error)}") from error
    except SystemExit as error:
        raise ConfigError(f"'{module}' ends the program while it is imported; put that behind if __name__ == "
                          "'__main__'") from error


@contextmanager
def _first_on_path(folders: list[str]) -> Iterator[None]:
    before = list(sys.path)
    sys.path[:0] = folders
    try:
        yield
    finally:
        sys.path[:] = before


def _refuse_misfits(part: type, name: str) -> None:
    """ConfigError for a class whose constructor or `needs` no slot can use."""
    if type(getattr(part, "needs", None)).__qualname__ != "Needs":
        raise ConfigError(f"'{name}': has no `needs`; write `needs = Needs()` into the class (from funnelrank.inputs)")
    try:
        signature = inspect.signature(part.__init__, eval_str=True)
        _, spec, *keys = signature.parameters.values()
        shaped = spec.kind is not inspect.Parameter.KEYWORD_ONLY and all(
            key.kind is inspect.Parameter.KEYWORD_ONLY and key.annotation is not inspect.Parameter.empty
            and key.name != "name" for key in keys)
    except (NameError, TypeError, ValueError):
        shaped = False
    if not shaped:
        raise ConfigError(f"'{name}': its constructor must be __init__(self, spec, *, key: type = default, ...), each "
                          "key with a type and none called `name`; its keys are what a config may say")
    try:
        definition(part, "", name)
    except (pydantic.errors.PydanticUserError, pydantic.ValidationError) as error:
        raise ConfigError(f"'{name}': a key's type is none that a config can say: "
                          f"{str(error).splitlines()[0]}") from error


def _place(error: BaseException) -> str:
    """' (my_parts.py, line 3)': the last place outside Python's own import machinery."""
    trace = error.__traceback__
    files = set()
    while trace:
        files.add(trace.tb_frame.f_code.co_filename)
        trace = trace.tb_next
    files = {f for f in files if not f.startswith("<") and f not in (__file__, importlib.__file__)}
    return f" ({where})" if (where := _last(error, files)) else ""


def _last(error: BaseException, files: set[str | None]) -> str | None:
    found, trace = None, error.__traceback__
    while trace:
        if trace.tb_frame.f_code.co_filename in files:
            found = f"{trace.tb_frame.f_code.co_filename}, line {trace.tb_lineno}"
        trace = trace.tb_next
    return found


def _there(said: Any, at: tuple) -> bool:
    for key in at:
        try:
            said = said[key]
        except (LookupError, TypeError):
            return False
    return True
