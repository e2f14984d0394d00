"""A trained run as detectors look at it: its model, some encoded rows, what it says of them, and one backward."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from funnelrank.api import Ranker
from funnelrank.batch import Batch
from funnelrank.data.encode import joined
from funnelrank.data.encoded import Encoded
from funnelrank.data.loader import pack
from funnelrank.data.source import Source
from funnelrank.evaluate.gates import Gate, gates_of
from funnelrank.evaluate.kept import Kept, open_scores
from funnelrank.funnel import Prediction
from funnelrank.ranker import RankingModel

ROWS = 4096                 # of the run's rows that are looked at
UNITS = 8                   # of a split that they come from
SPLITS = ("test", "valid", "train")


class Patient:
    """A run folder (or an artefact), opened and verified. What is asked of it is made when first asked for."""

    def __init__(self, folder: Path, allow_code: bool = False):
        self.folder = folder.parent if folder.name == "artefact" else folder
        self.ranker = Ranker.load(folder, allow_code)
        self.model: RankingModel = self.ranker.model.cpu()
        self.config, self.schema = self.ranker.config, self.ranker.config.schema
        self.layout = self.ranker.encoder.layout

    # ---- rows

    def source(self, split: str) -> Source | None:
        rows = getattr(self.config.settings.data, split)
        return None if rows is None else self.ranker._with_histories(self.ranker._source(None, split), None)

    @cached_property
    def split(self) -> str:
        """The split whose rows are looked at: the last one measured."""
        return next((s for s in SPLITS if getattr(self.config.settings.data, s) is not None), "")

    @cached_property
    def encoded(self) -> Encoded:
        """At most ROWS rows of several units, in their order."""
        source = self.source(self.split)
        units = [source.units[i] for i in np.unique(np.linspace(0, len(source.units) - 1, UNITS).astype(int))]
        share, parts = -(-ROWS // len(units)), []
        columns = self.ranker._columns(labels=True)
        for unit in units:
            table = source.read(unit, columns)
            rows = np.sort(np.random.default_rng(unit.start).permutation(len(table))[:share])
            parts.append(self.ranker.encoder.encode(table.take(rows), source.where(unit)))
        return parts[0] if len(parts) == 1 else joined(parts)

    @cached_property
    def batch(self) -> Batch:
        return pack(self.encoded, np.arange(len(self.encoded)))

    def rows(self, which: np.ndarray) -> Batch:
        return pack(self.encoded, which)

    # ---- what the model says

    def says(self, batch: Batch) -> Prediction:
        self.model.eval()
        with torch.inference_mode():
            return self.model.served(batch)

    @cached_property
    def said(self) -> Prediction:
        return self.says(self.batch)

    def answers(self, said: Prediction) -> Tensor:
        """[B, T]: log-odds of binary tasks, the mean of others."""
        binary = torch.tensor([k == "binary" for k in self.model.funnel.kinds])
        return torch.where(binary, said.log_p - said.log_not_p, said.mean)

    # ---- what it would learn

    @cached_property
    def gradients(self) -> tuple[dict[str, Tensor | None], dict[str, float], RankingModel]:
        """Of one batch's mean loss: each parameter's gradient, each id space's largest, and the model that has them."""
        return self._gradients(copy.deepcopy(self.model))

    @cached_property
    def first_gradients(self) -> dict[str, Tensor | None]:
        """The same of the model as it was before training; nothing where that cannot be made again."""
        return {} if self.fresh is None else self._gradients(self.fresh)[0]

    def _gradients(self, model: RankingModel) -> tuple[dict[str, Tensor | None], dict[str, float], RankingModel]:
        model.train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.eval()                              # a unit that is dropped out is not dead
        said = model(self.batch)
        (model.funnel.nll(said, self.batch.labels).sum() / len(self.batch)).backward()
        spaces: dict[str, float] = {}
        for g in model.embedding.take_gradients():
            starts = sorted((o, s) for s, o in g.table.offset.items())
            for (start, space), end in zip(starts, [*(o for o, _ in starts[1:]), len(g.table.weight)]):
                mine = (g.rows >= start) & (g.rows < end)
                if mine.any():
                    spaces[space] = max(spaces.get(space, 0.0), float(g.grad[mine].abs().max()))
        tables = {id(t.weight) for t in model.embedding.tables.values()}
        return ({n: p.grad for n, p in model.named_parameters() if p.requires_grad and id(p) not in tables}, spaces,
                model)

    @cached_property
    def fresh(self) -> RankingModel | None:
        """The model as it was before training; None where that cannot be made again."""
        if self.ranker.continued or self.config.settings.embedding.init_from:
            return None
        torch.manual_seed(self.config.settings.train.seed)
        return RankingModel(self.config.settings, self.schema, self.layout, {})

    # ---- gates

    @cached_property
    def gates(self) -> list[Gate]:
        return gates_of(self.model, self.batch, self.layout.scenarios)

    # ---- what the run left

    @cached_property
    def kept(self) -> Kept | None:
        return open_scores(self.folder / "scores") if (self.folder / "scores").is_dir() else None

    def changed(self, name: str) -> Batch | None:
        """The rows with one feature's values dealt to other rows; None for one that has no column of its own."""
        at = torch.from_numpy(np.random.default_rng(0).permutation(len(self.batch)))
        layout, batch = self.layout, self.batch
        if name in layout.ids:
            ids = batch.ids.clone()
            i = layout.ids.index(name)
            ids[:, i] = ids[at, i]
            return replace(batch, ids=ids)
        columns = [i for i, c in enumerate(layout.numbers) if layout.feature[c] == name]
        if columns:
            numbers = batch.numbers.clone()
            numbers[:, columns] = numbers[at][:, columns]
            return replace(batch, numbers=numbers)
        return None

    def scenarios(self) -> Iterator[tuple[str, np.ndarray]]:
        """Names, and which of the rows [B] are of it."""
        for s, name in enumerate(self.layout.scenarios, 2):
            mine = self.encoded.scenario == s
            if mine.any():
                yield name, mine
