"""A source config as sections whose every key must be answered for, and the table of those answers.

    carried         it is in the written config and means the same
    approximated    it is in the written config and means something near, and the table says how that differs
    ignored         it says nothing about the model, and the table says why
    refused         it says something that the written config does not, and the table says what to do instead

Reading a key carries it; `approximated`, `ignored` and `refused` say otherwise. What nobody read is refused, so that
nothing is dropped unmentioned.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from funnelrank.errors import ConfigError
from funnelrank.imports.prototext import Message, Word

Verdict = Literal["carried", "approximated", "ignored", "refused"]
VERDICTS: tuple[Verdict, ...] = ("carried", "approximated", "ignored", "refused")
UNKNOWN = "this importer does not know it; if it matters, write the same into the imported config by hand"


@dataclass
class Entry:
    """One occurrence of a key: its value, a scalar or a Section, and what became of it."""

    key: str
    value: Any
    line: int
    file: str
    verdict: Verdict | None = None
    said: str = ""

    def judge(self, verdict: Verdict, said: str) -> None:
        """What is refused stays so, and approximations of one key are told together."""
        if self.verdict == "refused" != verdict:
            return
        if self.verdict == verdict == "approximated" and said not in self.said:
            said = f"{self.said}; {said}"
        self.verdict, self.said = verdict, said
        if isinstance(self.value, Section) and verdict in ("ignored", "refused"):
            for entry in self.value.entries:
                entry.judge(verdict, said)


@dataclass(frozen=True)
class Row:
    """What became of a key path, on all the lines where that is the same."""

    path: str
    verdict: Verdict
    said: str
    places: tuple[tuple[str, int], ...]      # file, line

    @property
    def where(self) -> str:
        """'aitm.config:12, 19 and 30 more'."""
        lines = [line for _, line in self.places]
        shown = ", ".join(map(str, lines[:4])) + (f" and {len(lines) - 4} more" if len(lines) > 4 else "")
        return f"{self.places[0][0]}:{shown}"


@dataclass
class Section:
    """A message or mapping. A key that is written several times, or holds a list, has several entries."""

    path: str
    line: int
    file: str
    faults: list[str]                        # of the whole source: what no reading makes sense of
    entries: list[Entry] = field(default_factory=list)

    # ---- asking

    def has(self, key: str) -> bool:
        return any(e.key == key for e in self.entries)

    def names(self) -> list[str]:
        return list(dict.fromkeys(e.key for e in self.entries))

    def line_of(self, key: str) -> int:
        return next((e.line for e in self.entries if e.key == key), self.line)

    # ---- reading, which carries

    def section(self, key: str) -> Section:
        """The one section at `key`; an empty one where there is none."""
        found = self.sections(key)
        if len(found) > 1:
            self._fault(found[1].line, key, f"written twice, first on line {found[0].line}; keep one")
        return found[0] if found else Section(self._at(key), self.line, self.file, self.faults)

    def sections(self, key: str) -> list[Section]:
        return [e.value for e in self._read(key, "") if self._is(e, isinstance(e.value, Section), "a section")]

    def text(self, key: str, default: str | None = None, to: str = "") -> str | None:
        return self._one(key, self.texts(key, to), default)

    def texts(self, key: str, to: str = "") -> list[str]:
        return [str(e.value) for e in self._read(key, to) if self._is(e, isinstance(e.value, str), "a text")]

    def whole(self, key: str, default: int | None = None, to: str = "") -> int | None:
        return self._one(key, self.wholes(key, to), default)

    def wholes(self, key: str, to: str = "") -> list[int]:
        fits = lambda v: isinstance(v, int | float) and not isinstance(v, bool) and v == v // 1 and abs(v) < 2**63
        return [int(e.value) for e in self._read(key, to) if self._is(e, fits(e.value), "a whole number")]

    def number(self, key: str, default: float | None = None, to: str = "") -> float | None:
        return self._one(key, self.numbers(key, to), default)

    def numbers(self, key: str, to: str = "") -> list[float]:
        fits = lambda v: isinstance(v, int | float) and not isinstance(v, bool) and abs(v) < 1e300
        return [e.value for e in self._read(key, to) if self._is(e, fits(e.value), "a number")]

    def flag(self, key: str, default: bool = False, to: str = "") -> bool:
        known = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}
        found = [known[str(e.value).lower()] for e in self._read(key, to)
                 if self._is(e, not isinstance(e.value, Section) and str(e.value).lower() in known, "true or false")]
        return self._one(key, found, default)

    def scalars(self, key: str, to: str = "") -> list[Any]:
        """Texts and numbers as they stand."""
        return [str(e.value) if isinstance(e.value, Word) else e.value for e in self._read(key, to)
                if self._is(e, not isinstance(e.value, Section), "a value")]

    # ---- judging

    def carried(self, key: str, to: str = "") -> None:
        self._judge(key, "carried", to)

    def approximated(self, key: str, how: str) -> None:
        self._judge(key, "approximated", how)

    def ignored(self, why: str, *keys: str) -> None:
        for key in keys:
            self._judge(key, "ignored", why)

    def refused(self, key: str, why: str) -> None:
        """Also of a key that is not written: then its default is what cannot be."""
        if not self.has(key):
            self.entries.append(Entry(key, None, self.line, self.file))
        self._judge(key, "refused", why)

    def all_entries(self) -> Iterator[tuple[str, Entry]]:
        for entry in self.entries:
            yield self._at(entry.key), entry
            if isinstance(entry.value, Section):
                yield from entry.value.all_entries()

    # ---- within

    def _at(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key

    def _read(self, key: str, to: str) -> list[Entry]:
        found = [e for e in self.entries if e.key == key]
        for entry in found:
            if entry.verdict is None or to and entry.verdict not in ("refused", "approximated"):
                entry.verdict, entry.said = "carried", to
        return found

    def _judge(self, key: str, verdict: Verdict, said: str) -> None:
        for entry in self.entries:
            if entry.key == key:
                entry.judge(verdict, said)

    def _is(self, entry: Entry, fits: bool, what: str) -> bool:
        if not fits:
            found = "a section" if isinstance(entry.value, Section) else "nothing" if entry.value is None else (
                f"'{str(entry.value)[:60]}'")
            self._fault(entry.line, entry.key, f"found {found}; must be {what}")
        return fits

    def _one(self, key: str, found: list[Any], default: Any) -> Any:
        if len(found) > 1:
            lines = [e.line for e in self.entries if e.key == key]
            self._fault(lines[1], key, f"written twice, first on line {lines[0]}; keep one")
        return found[-1] if found else default

    def _fault(self, line: int, key: str, what: str) -> None:
        self.faults.append(f"{self.file}:{line}: {self._at(key)}: {what}")      # `stop_at` tells each once


def of_message(message: Message, file: str, faults: list[str], path: str = "") -> Section:
    """What the reader of protobuf text found, as a Section."""
    section = Section(path, message.line, file, faults)
    for f in message.fields:
        inner = f"{path}.{f.name}" if path else f.name
        value = of_message(f.value, file, faults, inner) if isinstance(f.value, Message) else f.value
        section.entries.append(Entry(f.name, value, f.line, file))
    return section


def of_mapping(value: Any, lines: dict[tuple, int], file: str, faults: list[str], at: tuple = ()) -> Section:
    """A YAML mapping as a Section; `lines` says where each path stands. A list's items are entries of one key."""
    path = ".".join(str(p) for p in at if isinstance(p, str))
    line = lines.get(at, 1)
    section = Section(path, line, file, faults)
    for key, inner in value.items():
        spot = (*at, key)
        pieces = [((*spot, i), v) for i, v in enumerate(inner)] if isinstance(inner, list) else [(spot, inner)]
        for where, piece in pieces:
            held = of_mapping(piece, lines, file, faults, where) if isinstance(piece, dict) else piece
            section.entries.append(Entry(str(key), held, lines.get(where, lines.get(spot, line)), file))
        if not pieces:
            section.entries.append(Entry(str(key), [], lines.get(spot, line), file))
    return section


def table(sources: Iterable[Section]) -> list[Row]:
    """A row for each key path and answer, in the order of the source."""
    rows: dict[tuple[str, Verdict, str], list[tuple[str, int]]] = {}
    for source in sources:
        for path, entry in source.all_entries():
            verdict, said = (entry.verdict, entry.said) if entry.verdict else ("refused", UNKNOWN)
            rows.setdefault((path, verdict, said), []).append((entry.file, entry.line))
    return [Row(*key, tuple(dict.fromkeys(places))) for key, places in rows.items()]


def legal(name: str | None) -> str:
    """A name that a config takes: what it may not hold becomes '_'."""
    return re.sub(r"[\s.:|/]", "_", name or "") or "_"


def stop_at(faults: list[str]) -> None:
    """Raises what was found wrong so far, in the order of the files' lines."""
    def place(fault: str) -> tuple[str, int]:
        file, line, *_ = [*fault.split(":"), ""]
        return file, int(line) if line.isdigit() else 0
    if faults:
        raise ConfigError(*sorted(dict.fromkeys(faults), key=place))
