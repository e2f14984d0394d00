"""Tables that start from an earlier run's (`embedding.init_from`), as FNN's do from a trained FM, or from files of
vectors (`data.vectors`).

Rows are matched by what they stand for, a value of an id space, not by their number: the two runs may have seen other
values. Weights per id and output are matched by task as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from funnelrank.artefact import open_artefact, understood
from funnelrank.config import load
from funnelrank.data.encode import Encoder
from funnelrank.data.vectors import Vectors
from funnelrank.embedding.tables import WEIGHTS, Embedding
from funnelrank.errors import ConfigError, DataError, listing
from funnelrank.ranker import RankingModel
from funnelrank.schema import FIRST
from funnelrank.settings import Settings
from funnelrank.tensors import load_tensors

WHERE = "embedding.init_from"


@torch.no_grad()
def start_from(folder: Path, embedding: Embedding, encoder: Encoder, allow_code: bool = False) -> int:
    """Copy the rows of the run (or artefact) at `folder` that `embedding` has too; returns how many.

    Raises ArtefactError for a folder that holds no artefact, and ConfigError where widths differ or nothing fits.
    """
    path = open_artefact(folder if (folder / "manifest.json").exists() else folder / "artefact").path
    with understood(path):
        config = load(path / "config.yaml", allow_code=allow_code, beside=False)
        theirs = Encoder.load(path / "encoder")
    before = RankingModel(config.settings, config.schema, theirs.layout, {})
    before.load_state_dict(load_tensors(path / "model.safetensors",
                                        {k: (tuple(v.shape), v.dtype) for k, v in before.state_dict().items()}))
    old = before.embedding
    mine, known = list(embedding.outputs), list(old.outputs)
    both = [o for o in mine if o in known]
    widths = {space: table.width for name, table in old.tables.items() if name not in WEIGHTS for space in table.offset}
    copied = 0
    for name, table in embedding.tables.items():
        for space, start in table.offset.items():
            if name not in WEIGHTS and widths.get(space, table.width) != table.width:
                raise ConfigError(f"{WHERE}: vectors of '{space}' are {widths[space]} wide in {folder} and "
                                  f"{table.width} here; write the same embedding.width")
            if name not in old.tables or space not in old.tables[name].offset:
                continue
            to, source = map(torch.from_numpy, encoder.vocabs[space].shared(theirs.vocabs[space], f"{WHERE}: {folder}"))
            values = old.tables[name].weight[old.tables[name].offset[space] + source]
            if name in WEIGHTS:
                columns = torch.tensor([mine.index(o) for o in both], dtype=torch.int64)
                mixed = table.read(start + to)
                mixed[:, columns] = values[:, [known.index(o) for o in both]]
                table.write(start + to, mixed)
                copied += len(to) * bool(both)
            else:
                table.write(start + to, values)
                copied += len(to)
    if not copied:
        raise ConfigError(f"{WHERE}: nothing of {folder} fits; its id spaces are {listing(sorted(theirs.vocabs))} and "
                          f"its tasks {listing(theirs.layout.tasks)}")
    return copied


@torch.no_grad()
def start_from_vectors(settings: Settings, embedding: Embedding, encoder: Encoder) -> Iterator[dict[str, Any]]:
    """Copy vectors of data.vectors into the spaces that start from them, and freeze those that are to stay.

    Says of each space how many of its `values` were `found`, and how many vectors are of values that it does not have.
    Values that share a bucket of a hash get the vector of the first. Raises ConfigError where widths differ, DataError
    for a value that stands twice.
    """
    for space, said in settings.embedding.spaces.items():
        if said.pretrained is None:
            continue
        found = Vectors(said.pretrained, settings.data.vectors[said.pretrained], settings.data)
        table = next(t for n, t in embedding.tables.items() if n not in WEIGHTS and space in t.offset)
        vocab, start = encoder.vocabs[space], table.offset[space]
        here, unused = torch.zeros(vocab.size, dtype=torch.bool), 0
        for values, vectors, where in found.parts():
            if vectors.shape[1] != table.width:
                raise ConfigError(f"embedding.spaces.{space}: vectors of data.vectors.{said.pretrained} are "
                                  f"{vectors.shape[1]} wide, and this space {table.width}; write width: "
                                  f"{vectors.shape[1]}")
            ids = torch.from_numpy(vocab.ids(values, where)).long()
            known = ids >= FIRST
            unused += int((~known).sum())
            ids, of = ids[known], known.nonzero().squeeze(1)
            first = torch.full((vocab.size,), len(ids))
            first.scatter_reduce_(0, ids, torch.arange(len(ids)), "amin")        # of values with one id
            twice = here[ids] | (first[ids] != torch.arange(len(ids)))
            if twice.any() and vocab.space.made != "hash":
                value = values[int(of[twice.nonzero()[0]])].as_py()
                raise DataError(f"{where}: the value {value!r} stands twice; each has one vector")
            ids, of = ids[~twice], of[~twice]
            table.write(start + ids, torch.from_numpy(vectors)[of])
            here[ids] = True
        if said.frozen:
            table.freeze(start + here.nonzero().squeeze(1))
        yield {"space": space, "vectors": said.pretrained, "found": int(here.sum()), "values": vocab.size - FIRST,
               "unused": unused, "frozen": said.frozen}
