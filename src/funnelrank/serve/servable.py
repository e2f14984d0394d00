"""An artefact that answers: requests' raw rows -> the numbers that `predict` gives of them.

    requests  ->  one table of users, one of rows  ->  the Encoder, once each  ->  the Scorer  ->  each request's share

Where no request shares a user among its rows this is the path of `predict`, to the bit for the same batch. Where one
does, features of the role `user` are read, encoded and computed once for it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from funnelrank.api import Ranker, artefact_folder
from funnelrank.batch import Batch
from funnelrank.data.encoded import Encoded
from funnelrank.data.golden import CLOSE, Golden
from funnelrank.data.loader import pack
from funnelrank.errors import ArtefactError
from funnelrank.scorer import USER, Scorer
from funnelrank.sealed import MANIFEST
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


class Servable:
    """One version of one artefact, verified on its golden request."""

    def __init__(self, ranker: Ranker, name: str, version: str):
        if ranker.golden is None:
            raise ArtefactError(f"{name}: this artefact has no golden request, so nothing shows whether it answers as "
                                "it did when it was trained; train it again")
        self.name, self.version, self.golden = name, version, ranker.golden
        self.encoder, self.model, self.schema = ranker.encoder, ranker.model.eval(), ranker.config.schema
        self.columns = {f.name: Column(f.name, f.type) for f in ranker.golden.rows.schema}
        self.outputs = [o.name for o in self.schema.served]
        self.scorer = Scorer(ranker.model, self.schema.served).eval()
        self.users = [n for n, f in self.schema.features.items() if f.role == USER]
        self.others = [n for n in self.schema.features if n not in set(self.users)]
        reads = lambda names: {c for n in names for c in self.schema.reads(n)}
        self.of_users = [c for c in self.columns if c in reads(self.users)]
        self.of_rows = [c for c in self.columns if c in reads(self.others) or c == self.schema.scenario]

    @classmethod
    def load(cls, folder: Path, name: str | None = None) -> Servable:
        """Raises ArtefactError where the folder is no whole artefact, or does not answer its golden request."""
        path = artefact_folder(folder)
        ranker = Ranker.load(path)
        servable = cls(ranker, name or ranker.about.get("name", folder.name), version_of(path))
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
            batch = self._packed(self.encoder.encode(table, WHERE, labels=False), told)
            users = None
        else:
            users, rows, places, start = [], [], [], 0
            for r in asked:
                shared = bool(r.once) and set(self.of_users) <= set(r.once)
                users.append(pa.table({c: r.once[c] for c in self.of_users}) if shared else
                             self._table(r, self.of_users))
                rows.append(self._table(r, self.of_rows))
                places.append(np.full(r.rows, start) if shared else np.arange(start, start + r.rows))
                start += 1 if shared else r.rows
            many = sum(r.rows for r in asked)
            batch = self._packed(self._encoded(rows, self.others, many), told)
            users = self._packed(self._encoded(users, self.users, start), told)
            places = torch.from_numpy(np.concatenate(places).astype(np.int64))
        encoded = time.perf_counter()
        with torch.inference_mode():
            if users is None:
                said = self.model.served(batch)
                found = [self.model.funnel.answer(said, o) for o in self.schema.served]
            else:
                found = self.scorer.answer(batch, users, places)
            values = [t.numpy() for t in found]
        told.encode += encoded - clock
        told.score += time.perf_counter() - encoded
        ends = np.cumsum([r.rows for r in asked])
        return [Scored({name: np.ascontiguousarray(v[end - r.rows:end]) for name, v in zip(self.outputs, values)})
                for r, end in zip(asked, ends)]

    def _encoded(self, tables: Sequence[pa.Table], features: Sequence[str], rows: int) -> Encoded:
        table = pa.concat_tables(tables)
        if not table.column_names:                           # features of no column: there are none
            table = pa.table({"": pa.nulls(rows)})
        return self.encoder.encode(table, WHERE, labels=False, only=features)

    @staticmethod
    def _packed(encoded: Encoded, told: Told) -> Batch:
        told.counts.append(encoded.counts)
        return pack(encoded, slice(None))

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
