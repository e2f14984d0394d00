"""An artefact that answers: requests' raw rows -> the numbers that `predict` gives of them.

    requests  ->  one table of users, one of rows  ->  the Encoder, once each  ->  an engine  ->  each request's share

An engine is a trained artefact in torch, or a graph that was exported to be served. Where no request shares a user
among its rows torch goes the path of `predict`, to the bit for the same batch. Where one does, features of the role
`user` are read, encoded and computed once for it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from funnelrank.artefact import SERVED, artefact_folder
from funnelrank.data.encode import Encoder
from funnelrank.data.encoded import Encoded
from funnelrank.data.golden import CLOSE, Golden
from funnelrank.errors import ArtefactError, ConfigError
from funnelrank.schema import USER
from funnelrank.sealed import MANIFEST, kind_of
from funnelrank.serve.requests import Column, Rows

WHERE = "the request"
Counts = dict[str, dict[str, int]]


@dataclass
class Scored:
    """One request's outputs, [rows] float32 each."""

    outputs: dict[str, np.ndarray]


@dataclass
class Told:
    """What a batch was made of, for whoever keeps count."""

    counts: list[Mapping[str, Mapping[str, int]]] = field(default_factory=list)
    encode: float = 0.0              # seconds
    score: float = 0.0


class Engine(Protocol):
    """What turns encoded rows into outputs [rows] float32, in the order of `schema.served`."""

    encoder: Encoder
    golden: Golden | None
    about: Mapping[str, Any]

    def alone(self, rows: Encoded) -> list[np.ndarray]:
        """Each row with a user of its own."""
        ...

    def shared(self, rows: Encoded, users: Encoded, row_user: np.ndarray) -> list[np.ndarray]:
        """Rows whose users' features stand in `users`; row_user [B] int64."""
        ...


class Servable:
    """One version of one artefact, verified on its golden request."""

    def __init__(self, engine: Engine, name: str, version: str):
        if engine.golden is None:
            raise ArtefactError(f"{name}: this artefact has no golden request, so nothing shows whether it answers as "
                                "it did when it was trained; train it again")
        self.engine, self.name, self.version, self.golden = engine, name, version, engine.golden
        self.encoder, self.schema = engine.encoder, engine.encoder.schema
        self.columns = {f.name: Column(f.name, f.type) for f in self.golden.rows.schema}
        self.outputs = [o.name for o in self.schema.served]
        self.users = [n for n, f in self.schema.features.items() if f.role == USER]
        self.others = [n for n in self.schema.features if n not in set(self.users)]
        reads = lambda names: {c for n in names for c in self.schema.reads(n)}
        self.of_users = [c for c in self.columns if c in reads(self.users)]
        self.of_rows = [c for c in self.columns if c in reads(self.others) or c == self.schema.scenario]

    @classmethod
    def load(cls, folder: Path, name: str | None = None, threads: int = 1, allow_code: bool = False) -> Servable:
        """A run's folder, an artefact, or a folder that `export --to serve` wrote. Raises ArtefactError where it is
        none of them, is not whole, or does not answer its golden request; ConfigError where a library is missing.
        """
        path = artefact_folder(folder)
        if kind_of(path) == SERVED:
            from funnelrank.serve.onnx_engine import OnnxEngine
            try:
                engine = OnnxEngine.load(path, threads)
            except ModuleNotFoundError as error:
                raise ConfigError(f"serve: {folder} needs the library '{error.name}', which is not installed; "
                                  "pip install 'funnelrank[serve]'") from None
        else:
            from funnelrank.serve.torch_engine import TorchEngine  # slow to come, and not needed by the other
            engine = TorchEngine.load(path, threads, allow_code)
        servable = cls(engine, name or engine.about.get("name", folder.name), version_of(path))
        servable.verify()
        return servable

    def verify(self) -> float:
        """The largest difference from the golden scores, by either path."""
        rows = {c: self.golden.rows[c].combine_chunks() for c in self.columns}
        asked = Rows(len(self.golden.rows), {}, rows)
        worst = 0.0
        for once in (False, True):
            found = self._scored([asked], once, Told())[0].outputs
            apart, output = Golden.difference(self.golden, pa.table({k: pa.array(v) for k, v in found.items()}))
            if not apart <= CLOSE:
                raise ArtefactError(f"{self.name}: of its golden request '{output}' differs by {apart:.2g} from what "
                                    f"was served of it before ({CLOSE:g} is the most that may be)")
            worst = max(worst, apart)
        return worst

    def score(self, asked: Sequence[Rows], told: Told | None = None) -> list[Scored]:
        """Each request's outputs. Raises DataError for values that the Encoder refuses."""
        return self._scored(asked, any(r.once for r in asked), told or Told())

    def _scored(self, asked: Sequence[Rows], once: bool, told: Told) -> list[Scored]:
        clock = time.perf_counter()
        if not once:
            table = pa.concat_tables([self._table(r, self.columns) for r in asked])
            rows = self.encoder.encode(table, WHERE, labels=False)
            told.counts.append(rows.counts)
        else:
            rows, users, row_user = self._apart(asked, told)
        encoded = time.perf_counter()
        values = self.engine.shared(rows, users, row_user) if once else self.engine.alone(rows)
        told.encode += encoded - clock
        told.score += time.perf_counter() - encoded
        ends = np.cumsum([r.rows for r in asked])
        return [Scored({name: np.ascontiguousarray(v[end - r.rows:end]) for name, v in zip(self.outputs, values)})
                for r, end in zip(asked, ends)]

    def _apart(self, asked: Sequence[Rows], told: Told) -> tuple[Encoded, Encoded, np.ndarray]:
        """Requests' rows, their users, and which row has which user."""
        users, rows, places, start = [], [], [], 0
        for r in asked:
            shared = bool(r.once) and set(self.of_users) <= set(r.once)
            users.append(pa.table({c: r.once[c] for c in self.of_users}) if shared else self._table(r, self.of_users))
            rows.append(self._table(r, self.of_rows))
            places.append(np.full(r.rows, start) if shared else np.arange(start, start + r.rows))
            start += 1 if shared else r.rows
        encoded = (self._encoded(rows, self.others, sum(r.rows for r in asked)),
                   self._encoded(users, self.users, start))
        told.counts += [e.counts for e in encoded]
        return *encoded, np.concatenate(places).astype(np.int64)

    def _encoded(self, tables: Sequence[pa.Table], features: Sequence[str], rows: int) -> Encoded:
        table = pa.concat_tables(tables)
        if not table.column_names:                           # features of no column: there are none
            table = pa.table({"": pa.nulls(rows)})
        return self.encoder.encode(table, WHERE, labels=False, only=features)

    @staticmethod
    def _table(r: Rows, columns: Sequence[str]) -> pa.Table:
        """Some columns of a request, one value a row."""
        where = pa.array(np.zeros(r.rows, np.int64))
        return pa.table({c: r.once[c].take(where) if c in r.once else r.each[c] for c in columns})

    def metadata(self) -> dict[str, Any]:
        return {"name": self.name, "versions": [self.version], "platform": "funnelrank",
                "inputs": [{"name": c.name, "datatype": c.datatype, "shape": c.shape} for c in self.columns.values()],
                "outputs": [{"name": o, "datatype": "FP32", "shape": [-1]} for o in self.outputs]}


def version_of(folder: Path) -> str:
    """What tells two artefacts apart: the beginning of the manifest's hash."""
    return hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()[:12]


def counted(counts: Sequence[Mapping[str, Mapping[str, int]]]) -> Counts:
    """Nulls and values unseen in train, per feature, of both tables of a batch."""
    found: Counts = {}
    for one in counts:
        for name, said in one.items():
            found[name] = {k: int(said[k]) for k in ("rows", "nulls", "oov", "ids") if k in said}
    return found
