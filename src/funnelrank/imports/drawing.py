"""Networks as the drawings that `represent: {name: backbone}` reads, from what other systems say of layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

from funnelrank.imports.source import legal

Ref = str | dict[str, Any]               # what a block reads: a name, or {of: ..., form: ..., take: ...}
RESERVED = ("all", "input", "user", "item", "context", "scenario", "prior")


@dataclass(frozen=True)
class Mlp:
    """Layers one after another, with what stands behind each; norm None, batch or layer."""

    hidden: tuple[int, ...] = ()
    activation: tuple[str, ...] = ()
    dropout: tuple[float, ...] = ()
    norm: tuple[str | None, ...] = ()
    line: int | None = None

    @property
    def keys(self) -> dict[str, Any] | None:
        """Keys of a part that has one activation, dropout and norm for all its layers; None where these differ."""
        if any(len(set(each)) > 1 for each in (self.activation, self.dropout, self.norm)):
            return None
        return {"hidden": list(self.hidden)} | (self._differing(0) if self.hidden else {})

    def _differing(self, i: int) -> dict[str, Any]:
        """Keys of layer i that are not a part's defaults."""
        return {**({"activation": self.activation[i]} if self.activation[i] != "relu" else {}),
                **({"dropout": self.dropout[i]} if self.dropout[i] else {}),
                **({"norm": self.norm[i]} if self.norm[i] else {})}

    def parts(self) -> list[dict[str, Any]]:
        """As layers `mlp`, a new one where the norm changes."""
        found, at = [], 0
        for norm, group in groupby(self.norm):
            n = len(list(group))
            own = slice(at, at + n)
            layer: dict[str, Any] = {"name": "mlp", "hidden": list(self.hidden[own])}
            for key, said, usual in (("activation", self.activation[own], "relu"), ("dropout", self.dropout[own], 0.0)):
                if set(said) != {usual}:
                    layer[key] = said[0] if len(set(said)) == 1 else list(said)
            found.append(layer | ({"norm": norm} if norm else {}))
            at += n
        return found

    def without_norm(self) -> Mlp:
        return replace(self, norm=(None,) * len(self.hidden))


@dataclass
class Drawing:
    """Blocks by name, in the order in which they were drawn."""

    blocks: dict[str, dict[str, Any]] = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)
    taken: set[str] = field(default_factory=lambda: set(RESERVED))

    def name(self, wanted: str) -> str:
        """A name that no block and no group of features has."""
        wanted = name = legal(wanted)
        k = 1
        while name in self.taken or name in self.blocks:
            k += 1
            name = f"{wanted}_{k}"
        return name

    def add(self, wanted: str, inputs: Sequence[Ref], layer: dict[str, Any] | None = None, *, merge: str | None = None,
            line: int | None = None, **keys: Any) -> str:
        """Draws a block and returns its name."""
        name = self.name(wanted)
        reads: Any = inputs[0] if len(inputs) == 1 and isinstance(inputs[0], str) else list(inputs)
        short = layer["name"] if layer and len(layer) == 1 else layer
        said = {"inputs": reads, "merge": merge, "layer": short, **keys}
        self.blocks[name] = {k: v for k, v in said.items() if v is not None}
        if line:
            self.lines[name] = line
        return name

    def mlp(self, wanted: str, inputs: Sequence[Ref], mlp: Mlp, line: int | None = None) -> str:
        """The MLP on the inputs side by side; without layers, the inputs themselves."""
        parts: list[dict[str, Any] | None] = list(mlp.parts()) or [None]
        for i, layer in enumerate(parts):
            last = i == len(parts) - 1
            at = self.add(wanted if last else f"{wanted}_{i + 1}", inputs, layer, line=(line or mlp.line))
            inputs = [at]
        return at

    def width(self, ref: Ref) -> int | None:
        """How wide a block is, where its layer says so."""
        block = self.blocks.get(ref, {}) if isinstance(ref, str) else {}
        layer = block.get("layer")
        match layer.get("name") if isinstance(layer, dict) else layer:
            case "mlp" | "ppnet" if layer["hidden"]:
                return layer["hidden"][-1]
            case "linear" | "mask_block":
                return layer["width"]
            case "ait":
                return self.width(block["inputs"][-1])
        return None

    def of_one_width(self, wanted: str, refs: Sequence[Ref], width: int | None, line: int | None) -> list[Ref]:
        """The same, each behind a linear layer where they have not the width that is asked for, or differ."""
        known = [self.width(ref) for ref in refs]
        if width is None and len(set(known)) > 1 and known[0]:
            width = known[0]
        if width is None or set(known) == {width}:
            return list(refs)
        return [self.add(f"{wanted}_of_{ref if isinstance(ref, str) else i}", [ref], {"name": "linear", "width": width},
                         line=line) for i, ref in enumerate(refs)]


def take(ref: str, entry: int) -> Ref:
    """One entry of a block's stack."""
    return {"of": ref, "take": entry}


def fields(group: str) -> Ref:
    """A group's embedded features, a vector each."""
    return {"of": group, "form": "fields"}


def numbers(group: str) -> Ref:
    return {"of": group, "form": "numbers"}


def history(sequence: str) -> Ref:
    return {"of": sequence, "form": "history"}
