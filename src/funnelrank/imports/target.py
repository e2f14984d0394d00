"""The funnelrank config that an import builds up, and how it is written: sections, a line an entry, source lines."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from funnelrank.document import write

WIDE = 110               # columns up to which a mapping stands on one line
ORDER = ("data", "features", "tasks", "embedding", "model", "train", "calibrate", "evaluate")


@dataclass
class Target:
    """`lines` holds, for a path of the config, the line of the source that it comes from."""

    config: dict[str, Any] = field(default_factory=lambda: {section: {} for section in ORDER})
    lines: dict[tuple[str, ...], int] = field(default_factory=dict)

    def __getitem__(self, section: str) -> dict[str, Any]:
        return self.config[section]

    def put(self, path: str, value: Any, line: int | None = None) -> None:
        """`put('train.optimiser.lr', 0.001, 12)`. Without a value it puts nothing."""
        if value is None:
            return
        *sections, key = path.split(".")
        here = self.config
        for section in sections:
            here = here.setdefault(section, {})
        here[key] = value
        self.note(path.split("."), line)

    def note(self, path: list[str] | tuple[str, ...], line: int | None) -> None:
        if line:
            self.lines[tuple(path)] = line

    def line_of(self, key: str) -> int:
        """The line of the source that a dotted key of the config, or the nearest section around it, comes from."""
        path = tuple(re.sub(r"\[(\d+)\]", r".\1", key).split("."))
        return next((self.lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in self.lines), 1)

    def text(self, head: str) -> str:
        """The config as YAML behind a comment."""
        said = {section: self.config[section] for section in ORDER if self.config.get(section)}
        blocks = ["\n".join(_write((section,), inner, self.lines)) for section, inner in said.items()]
        return "".join(f"# {line}".rstrip() + "\n" for line in head.splitlines()) + "\n" + "\n\n".join(blocks) + "\n"


def _write(path: tuple[str, ...], value: Any, lines: Mapping[tuple[str, ...], int]) -> list[str]:
    """The lines of `path[-1]: value`, indented by its depth."""
    indent, key = "  " * (len(path) - 1), write(path[-1])
    comment = f"    # {lines[path]}" if path in lines else ""
    flat = f"{indent}{key}: {write([value])[1:-1]}"                # in a list it stands on one line
    inside = any(len(p) > len(path) and p[:len(path)] == path for p in lines)
    if not isinstance(value, dict) or not value or (len(path) > 1 and not inside and len(flat) <= WIDE):
        return [flat + comment]
    out = [f"{indent}{key}:{comment}"]
    for name, inner in value.items():
        out += _write((*path, str(name)), inner, lines)
    return out

