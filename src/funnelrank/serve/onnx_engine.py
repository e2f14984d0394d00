"""What `funnelrank export --to serve` wrote, in ONNX Runtime: no torch is imported, and tables stay files in memory.

    manifest.json                    kind "served artefact": name, size and sha256 of all that follows
    model.onnx  model.onnx.data      the graph, and its weights, which are mapped rather than read
    inputs.json                      which feature is which column of which input
    tables/*.npy                     where the model reads flat alone: what is looked up before the graph; mapped, too.
                                     Otherwise tables are part of the graph
    encoder/  golden/                as in an artefact
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from funnelrank.artefact import SERVED, understood
from funnelrank.data.encode import Encoder
from funnelrank.data.encoded import Encoded, List
from funnelrank.data.golden import Golden
from funnelrank.errors import ArtefactError
from funnelrank.lookups import Lookups, Part
from funnelrank.onnx_runtime import session
from funnelrank.sealed import open_sealed, read_json

MANY = 64                            # rows of a user that are worth a run of the graph of their own


class _Input(NamedTuple):
    name: str
    of_users: bool
    what: str                        # ids | numbers | list | weight | scenario | row_user; once | own
    columns: Sequence[int]           # of ids or numbers; of a list, its number


class OnnxEngine:

    def __init__(self, folder: Path, encoder: Encoder, golden: Golden, about: dict[str, Any], said: dict[str, Any],
                 threads: int = 1):
        self.encoder, self.golden, self.about = encoder, golden, about
        self.session = session(folder / "model.onnx", threads)
        known = {i.name for i in self.session.get_inputs()}            # a graph drops what it does not read
        self.inputs = [self._input(one) for one in said["inputs"] if one["name"] in known]
        outputs = [o.name for o in self.session.get_outputs()]
        self.lookups = {side: Lookups([Part(**part) for part in parts], _mapped(folder, parts), threads)
                        for side, parts in said.get("lookups", {}).items()}
        if {i.name for i in self.inputs} != known or outputs != [o.name for o in encoder.schema.served]:
            raise ArtefactError(f"{folder}: the graph's inputs and outputs are not those that inputs.json and the "
                                "encoder name; export it again")

    @classmethod
    def load(cls, folder: Path, threads: int = 1) -> OnnxEngine:
        sealed = open_sealed(folder, SERVED)
        path = sealed.path
        with understood(path):
            return cls(path, Encoder.load(path / "encoder"), Golden.load(path / "golden"), dict(sealed.about),
                       read_json(path / "inputs.json", f"{SERVED} {path}"), threads)

    def alone(self, rows: Encoded) -> list[np.ndarray]:
        """Each row by itself, with a user of its own."""
        if self.lookups:
            return self._run(self._looked_up("once", rows), self._looked_up("own", rows), rows.scenario)
        return self.shared(rows, rows, np.arange(len(rows)))

    def shared(self, rows: Encoded, users: Encoded, row_user: np.ndarray) -> list[np.ndarray]:
        """Rows whose users' features stand in `users`; row_user [B] int64, rising."""
        if self.lookups:
            once, own = self._looked_up("once", users), self._looked_up("own", rows)
            if len(users) == 1:
                return self._run(once, own, rows.scenario)
            if len(rows) < MANY * len(users):
                return self._run(once[row_user], own, rows.scenario)
            ends = np.searchsorted(row_user, np.arange(len(users) + 1))
            each = [self._run(once[u:u + 1], own[a:b], rows.scenario[a:b])
                    for u, (a, b) in enumerate(zip(ends, ends[1:]))]
            return [np.concatenate(parts) for parts in zip(*each)]
        fed = {i.name: self._fed(i, rows, users, row_user) for i in self.inputs}
        return self.session.run(None, fed)

    def _looked_up(self, side: str, rows: Encoded) -> np.ndarray:
        return self.lookups[side](rows.ids, rows.numbers, rows.lists)

    def _run(self, once: np.ndarray, own: np.ndarray, scenario: np.ndarray) -> list[np.ndarray]:
        """once [1, W1], or [B, W1] as own is [B, W2]."""
        fed = {"once": once, "own": own, "scenario": scenario}
        return self.session.run(None, {i.name: fed[i.name] if i.name != "scenario" else scenario.astype(np.int64)
                                       for i in self.inputs})

    def _input(self, said: dict[str, Any]) -> _Input:
        layout, name, features = self.encoder.layout, said["name"], said["features"]
        what = name.removeprefix("user_")
        if name.startswith("list."):
            what = "weight" if said["datatype"] == "FP32" else "list"
        if what in ("once", "own"):
            return _Input(name, what == "once", what, ())
        among = {"ids": layout.ids, "numbers": layout.numbers}.get(what, layout.lists)
        return _Input(name, said["shape"][0] == "users", what, [among.index(f) for f in features])

    @staticmethod
    def _fed(i: _Input, rows: Encoded, users: Encoded, row_user: np.ndarray) -> np.ndarray:
        side = users if i.of_users else rows
        match i.what:
            case "ids":
                return side.ids[:, i.columns].astype(np.int64)
            case "numbers":
                return side.numbers[:, i.columns]
            case "list":
                return padded(side.lists[i.columns[0]], side.lists[i.columns[0]].values, np.int64)
            case "weight":
                one = side.lists[i.columns[0]]
                return padded(one, np.ones(len(one.values)) if one.weights is None else one.weights, np.float32)
            case "scenario":
                return side.scenario.astype(np.int64)
        return row_user


def _mapped(folder: Path, parts: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
    """The tables that these parts look in, as files in memory."""
    return {name: np.load(folder / "tables" / f"{name}.npy", mmap_mode="r", allow_pickle=False)
            for name in dict.fromkeys(part["table"] for part in parts) if name}


def padded(listed: List, values: np.ndarray, kind: type) -> np.ndarray:
    """A list's values or weights, [n, L] with zeros at the right; L is at least 1."""
    lengths = np.diff(listed.offsets)
    out = np.zeros((len(lengths), max(int(lengths.max(initial=0)), 1)), kind)
    out[np.arange(out.shape[1]) < lengths[:, None]] = values
    return out
