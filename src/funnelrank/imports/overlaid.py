"""A section over another of common settings: what the first says counts, and the table tells of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from funnelrank.imports.source import Section


@dataclass
class Overlaid:
    """An experiment over Base: what it says itself counts."""

    own: Section
    base: Section

    def of(self, key: str) -> Section:
        if self.own.has(key):
            self.base.ignored("the experiment says it", key)
            return self.own
        return self.base

    def has(self, key: str) -> bool:
        return bool(self._entries(key))

    def _entries(self, key: str) -> list[Any]:
        section = self.own if self.own.has(key) else self.base
        found = [e for e in section.entries if e.key == key]
        for e in found:
            if e.value is None or e.value == []:
                e.judge("carried", "nothing")
        return [e for e in found if e.value is not None and e.value != []]

    def text(self, key: str, default: str | None = None, to: str = "") -> str | None:
        return self.of(key).text(key, default, to) if self._entries(key) else default

    def whole(self, key: str, default: int | None = None, to: str = "") -> int | None:
        return self.of(key).whole(key, default, to) if self._entries(key) else default

    def number(self, key: str, default: float | None = None, to: str = "") -> float | None:
        return self.of(key).number(key, default, to) if self._entries(key) else default

    def flag(self, key: str, default: bool = False, to: str = "") -> bool:
        return self.of(key).flag(key, default, to) if self._entries(key) else default

    def scalars(self, key: str, to: str = "") -> list[Any]:
        return self.of(key).scalars(key, to) if self._entries(key) else []

    def wholes(self, key: str, default: Sequence[int] = (), to: str = "") -> list[int]:
        entries = self._entries(key)
        if not entries and any(e.key == key and e.value == [] for e in self.of(key).entries):
            return []
        found = self.of(key).wholes(key, to) if entries else list(default)
        return [w for w in found if 0 < w < 10**6]

    def approximated(self, key: str, how: str) -> None:
        if self._entries(key):
            self.of(key).approximated(key, how)

    def refused(self, key: str, why: str) -> None:
        self.of(key).refused(key, why)

    def ignored(self, why: str, *keys: str) -> None:
        for section in (self.own, self.base):
            section.ignored(why, *keys)

    def line(self, key: str) -> int:
        return self.of(key).line_of(key)


def holds(section: Section, key: str) -> bool:
    """Whether a key says something; null says nothing."""
    found = [e for e in section.entries if e.key == key]
    for e in found:
        if e.value is None:
            e.judge("carried", "nothing")
    return any(e.value is not None for e in found)
