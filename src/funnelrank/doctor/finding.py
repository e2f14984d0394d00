"""What a doctor says: findings, each with its evidence and what would mend it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Severity = Literal["error", "warning", "note"]
MORE = 3                # of findings that are alike, that a console shows
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or may be.

    code      the detector's name, for --skip
    severity  error: numbers made with it mean nothing. warning: they may mislead. note: worth knowing
    where     the key of the config, or the split, that it is about
    said      what was found, in one sentence with its numbers
    fix       what would mend it
    evidence  the numbers, as JSON can hold them
    """

    code: str
    severity: Severity
    where: str
    said: str
    fix: str
    evidence: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return vars(self)


@dataclass(frozen=True)
class Diagnosis:
    """All findings about one config or run, the gravest first, and what was looked at."""

    about: str
    findings: list[Finding]
    looked: list[str]              # sentences: what was read, and what could not be

    def count(self, severity: Severity) -> int:
        return sum(f.severity == severity for f in self.findings)

    def worst(self, at_least: str) -> list[Finding]:
        """Findings of this severity or a graver one; none for 'never'."""
        if at_least == "never":
            return []
        return [f for f in self.findings if SEVERITIES.index(f.severity) <= SEVERITIES.index(at_least)]

    def to_json(self) -> str:
        return json.dumps({"about": self.about, "findings": [f.to_json() for f in self.findings],
                           "looked": self.looked}, indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def lines(self) -> list[str]:
        """For a console."""
        groups: dict[tuple[str, str, str], list[Finding]] = {}
        for f in self.findings:
            groups.setdefault((f.code, f.where, f.severity), []).append(f)
        out = []
        for (code, where, severity), (first, *more) in groups.items():
            out += [f"{severity}: {where}: {first.said}", *(f"    also: {f.said}" for f in more[:MORE])]
            out += [f"    and {len(more) - MORE} more like it"] * (len(more) > MORE) + [f"    {first.fix} [{code}]", ""]
        counts = [f"{n} {s}{'s' if n != 1 else ''}" for s in SEVERITIES if (n := self.count(s))]
        return [*out, *self.looked, f"{self.about}: " + (", ".join(counts) if counts else "nothing found")]


def ordered(findings: Iterable[Finding]) -> list[Finding]:
    return sorted(findings, key=lambda f: SEVERITIES.index(f.severity))


def percent(share: float) -> str:
    """'12.3 %', '<0.1 %' for what is little and not nothing."""
    return "<0.1 %" if 0 < share < 0.0005 else f"{100 * share:.1f} %"


def some(names: Sequence[str], most: int = 5) -> str:
    """'a, b, c and 4 more'."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
