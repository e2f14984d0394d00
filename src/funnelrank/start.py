"""Tables that start from an earlier run's (`embedding.init_from`): as FNN's do from a trained FM.

Rows are matched by what they stand for, a value of an id space, not by their number: the two runs may have seen other
values. Weights per id and output are matched by task as well.
"""

from __future__ import annotations

from pathlib import Path

import torch

from funnelrank.artefact import load_tensors, open_artefact, understood
from funnelrank.config import load
from funnelrank.data.encode import Encoder
from funnelrank.embedding.tables import WEIGHTS, Embedding
from funnelrank.errors import ConfigError, listing
from funnelrank.ranker import RankingModel

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
                table.weight[start + to.unsqueeze(1), columns] = values[:, [known.index(o) for o in both]]
                copied += len(to) * bool(both)
            else:
                table.weight[start + to] = values
                copied += len(to)
    if not copied:
        raise ConfigError(f"{WHERE}: nothing of {folder} fits; its id spaces are {listing(sorted(theirs.vocabs))} and "
                          f"its tasks {listing(theirs.layout.tasks)}")
    return copied
