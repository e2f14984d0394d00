"""YAML 1.2 as plain values, with the place of every key.

Stricter than YAML where leniency hides mistakes: a key written twice is a fault, `no` and `12:30` are texts,
`<<` and foreign tags are refused, and nesting and aliases are bounded, so that no text can exhaust memory or the
stack.
"""

import copy
import json
import math
import re
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingStartEvent,
    NodeEvent,
    ScalarEvent,
    SequenceStartEvent,
)

from funnelrank.errors import ConfigError

Path = tuple[str | int, ...]

DEEPEST = 40             # sections inside sections; a config needs 6
MOST = 100_000           # values in one document, aliases written out

NULL = re.compile(r"~|null|Null|NULL|")
TRUE = re.compile(r"true|True|TRUE")
FALSE = re.compile(r"false|False|FALSE")
INT = re.compile(r"[-+]?[0-9]{1,400}")
HEX = re.compile(r"0x[0-9a-fA-F]{1,400}|0o[0-7]{1,400}")
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
LIMIT = re.compile(r"([-+]?)\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


@dataclass
class Document:
    """A text's value, and where each path in it stands as 'file:line:column'."""

    value: Any = None
    places: dict[Path, str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)    # keys written twice: the reading could go on

    def place(self, path: Path) -> str:
        """Where `path` stands, or its nearest parent that the text has; '' if there is none."""
        return nearest(self.places, path)


def nearest(places: dict[Path, str], path: Path) -> str:
    for length in range(len(path), -1, -1):
        if path[:length] in places:
            return places[path[:length]]
    return ""


def dotted(path: Path) -> str:
    """('tasks', 'buy', 'after') -> 'tasks.buy.after'; numbers are list positions: 'represent.hidden[0]'."""
    text = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in path)
    return text.removeprefix(".")


def scalar(text: str) -> Any:
    """The value of an unquoted word, by the core schema of YAML 1.2."""
    if NULL.fullmatch(text):
        return None
    if TRUE.fullmatch(text):
        return True
    if FALSE.fullmatch(text):
        return False
    if INT.fullmatch(text):
        return int(text)
    if HEX.fullmatch(text):
        return int(text, 0)
    if match := LIMIT.fullmatch(text):
        return float("nan") if match[3] else float(match[1] + "inf")
    return float(text) if FLOAT.fullmatch(text) else text


def write(value: Any, indent: int = 0) -> str:
    """A plain value as YAML that `read` takes back unchanged: mappings as blocks, lists on one line."""
    if not isinstance(value, dict) or not value:
        return _flow(value)
    lines = []
    for key, inner in value.items():
        block = isinstance(inner, dict) and inner
        lines.append(f"{' ' * indent}{_flow(str(key))}:{chr(10) if block else ' '}{write(inner, indent + 2)}")
    return "\n".join(lines)


def _flow(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_flow(str(k))}: {_flow(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if isinstance(value, str):
        if re.fullmatch(r"[\w./(][\w ./()-]*", value, re.ASCII) and isinstance(scalar(value), str) and (
                value.strip() == value):
            return value
        quoted = json.dumps(value, ensure_ascii=False)
        return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in quoted)
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if value != value else ".inf" if value > 0 else "-.inf"
    return json.dumps(value)


class _Open:
    """A mapping or a list that is not closed yet."""

    def __init__(self, value: dict | list, path: Path, anchor: str | None):
        self.value, self.path, self.anchor = value, path, anchor
        self.key: str | None = None        # of a mapping: the key that waits for its value
        self.lines: dict[str, int] = {}    # of a mapping: where its keys stand
        self.count = 1                     # values inside, itself included


def read(text: str, name: str) -> Document:
    """Reads one document; `name` stands for the file in places. Raises ConfigError where the text is no YAML."""
    document = Document(places={(): f"{name}:1:1"})
    try:
        _compose(text, name, document)
    except YAMLError as error:
        raise ConfigError(_sentence(error, text, name)) from None
    except (ValueError, OverflowError):     # an escape such as "\UFFFFFFFF"
        raise ConfigError(f"{name}: not YAML: a quoted text has an escape for no existing character") from None
    return document


def _compose(text: str, name: str, document: Document) -> None:
    stack: list[_Open] = []
    anchors: dict[str, tuple[Any, int] | None] = {}
    documents, total = 0, 0

    def where(event) -> str:
        return f"{name}:{event.start_mark.line + 1}:{event.start_mark.column + 1}"

    def path_of_next(event) -> Path:
        if not stack:
            return ()
        top = stack[-1]
        if isinstance(top.value, dict):
            return (*top.path, top.key)
        path = (*top.path, len(top.value))
        document.places[path] = where(event)
        return path

    def put(value: Any, count: int, event) -> None:
        nonlocal total
        total += count
        if total > MOST:
            raise ConfigError(f"{where(event)}: more than {MOST} values, aliases written out; a config is shorter, "
                              "and a long list of ids belongs in a file of its own (vocab_file)")
        if not stack:
            document.value = value
            return
        top = stack[-1]
        top.count += count
        if isinstance(top.value, list):
            top.value.append(value)
        elif top.key is not None:
            top.value[top.key] = value
            top.key = None

    def begin_key(event) -> None:
        top = stack[-1]
        if not isinstance(event, ScalarEvent) or event.value == "":
            whose = dotted(top.path) or "the config"
            raise ConfigError(f"{where(event)}: {whose}: a key must be a plain word")
        key = event.value
        if key == "<<" and event.implicit[0]:
            raise ConfigError(f"{where(event)}: {dotted((*top.path, key))}: merging with '<<' is not part of "
                              "YAML 1.2; write the keys out")
        if key in top.lines:
            document.faults.append(f"{where(event)}: {dotted((*top.path, key))}: written twice, first on "
                                   f"line {top.lines[key]}; keep one")
        else:
            document.places[(*top.path, key)] = where(event)
        top.lines.setdefault(key, event.start_mark.line + 1)
        top.key = key

    for event in YAML(typ="safe", pure=True).parse(text):
        if isinstance(event, DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise ConfigError(f"{where(event)}: a second document ('---') begins here; a config is one")
        elif isinstance(event, NodeEvent):
            if stack and isinstance(stack[-1].value, dict) and stack[-1].key is None:
                begin_key(event)
                continue
            path = path_of_next(event)
            if isinstance(event, AliasEvent):
                if anchors.get(event.anchor) is None:
                    raise ConfigError(f"{where(event)}: {dotted(path)}: alias '*{event.anchor}' stands before the "
                                      f"end of its '&{event.anchor}', or without one")
                value, count = anchors[event.anchor]
                if total + count <= MOST:
                    value = copy.deepcopy(value)
                put(value, count, event)
            elif isinstance(event, ScalarEvent):
                value = _typed(event, where(event), path)
                if event.anchor:
                    anchors[event.anchor] = (value, 1)
                put(value, 1, event)
            elif isinstance(event, MappingStartEvent | SequenceStartEvent):
                _refuse_tag(event, where(event), path)
                if len(stack) == DEEPEST:
                    raise ConfigError(f"{where(event)}: nested more than {DEEPEST} deep; a config is flatter")
                if event.anchor:
                    anchors[event.anchor] = None
                stack.append(_Open({} if isinstance(event, MappingStartEvent) else [], path, event.anchor))
        elif stack and type(event).__name__ in ("MappingEndEvent", "SequenceEndEvent"):
            closed = stack.pop()
            if closed.anchor:
                anchors[closed.anchor] = (closed.value, closed.count)
            total -= closed.count - 1       # `put` counts what is inside once more
            put(closed.value, closed.count, event)


def _typed(event: ScalarEvent, where: str, path: Path) -> Any:
    if event.tag != "tag:yaml.org,2002:str":
        _refuse_tag(event, where, path)
    return scalar(event.value) if event.implicit[0] else event.value


def _refuse_tag(event: NodeEvent, where: str, path: Path) -> None:
    if event.tag not in (None, "!"):
        raise ConfigError(f"{where}: {dotted(path)}: the tag '{event.tag}' has no meaning here")


def _sentence(error: YAMLError, text: str, name: str) -> str:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if mark is None:                        # a character that no YAML may hold
        position = getattr(error, "position", 0)
        line = text.count("\n", 0, position) + 1
        return f"{name}:{line}: not YAML: the control character {text[position]!r}; is this a text file?"
    problem = getattr(error, "problem", None) or getattr(error, "context", None) or "cannot be read"
    lines = text.splitlines()
    here = lines[mark.line][mark.column:] if mark.line < len(lines) else ""
    hint = ""
    if "\\t" in problem or here.startswith("\t"):
        hint = "; indent with spaces, not tabs"
    elif "mapping values" in problem:
        hint = "; is this line indented too far, or does a value hold ': ' and need quotes?"
    elif here[:1] in "%@`" and here:
        hint = f"; quote a value that begins with {here[0]}"
    elif ("found" in problem and "end" in problem) or "<stream end>" in problem:
        hint = "; a quote or a bracket is not closed"
    return f"{name}:{mark.line + 1}:{mark.column + 1}: not YAML: {problem}{hint}"
