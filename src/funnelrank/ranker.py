"""Embedding, slots and funnel put together: a Batch goes in, a Prediction comes out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from funnelrank import blocks, values
from funnelrank.batch import Batch, Layout
from funnelrank.calibration import Calibration
from funnelrank.debias import Debias
from funnelrank.debias import starts as unserved_starts
from funnelrank.embedding.tables import Embedding
from funnelrank.funnel import Funnel, Prediction, undo_down_sampling
from funnelrank.inputs import Relation, Spec
from funnelrank.loss import task_losses, within
from funnelrank.models.slots import Slots
from funnelrank.schema import Schema
from funnelrank.settings import Settings

UNKNOWN = {"mean": 0.5, "std": 1.0, "positive": 0.5, "log_mean": 0.0, "log_std": 1.0}      # a label nobody looked at


class RankingModel(nn.Module):
    """Batch -> Prediction, for every name of `tasks` in order.

    labels: per task what flow.label_statistics says of its observed train labels, given its parent unless the reading
    is joint; it sets where heads start and the scale of regressions. `apart`: one of several ranks' under torchrun.
    """

    def __init__(self, settings: Settings, schema: Schema, layout: Layout, labels: Mapping[str, Mapping[str, float]],
                 apart: bool = False):
        super().__init__()
        self.tasks = tuple(schema.task_names)
        kinds = [t.kind for t in schema.tasks]
        outputs = [t.outputs for t in schema.tasks]
        known = [UNKNOWN | {k: v for k, v in labels.get(t, {}).items() if v is not None} for t in self.tasks]
        self.funnel = Funnel(schema.parents, schema.reading, kinds,
                             loc=[y["mean"] if k == "regression" else 0.0 for y, k in zip(known, kinds)],
                             scale=[y["std"] or 1.0 if k == "regression" else 1.0 for y, k in zip(known, kinds)],
                             outputs=outputs, unserved=[t.unserved for t in schema.tasks])
        self.losses = {i: t.loss for i, t in enumerate(schema.tasks) if t.loss}
        self.spaces = {i: (self.tasks.index(t.within.task), t.within.inside, t.within.outside)
                       for i, t in enumerate(schema.tasks) if t.within}
        self.debias = Debias(settings.model["debias"]) if settings.model.get("debias") else None
        self.calibrator = float(settings.model.get("calibrator") or 0.0)
        self.embedding = Embedding(layout, settings.embedding, Slots.needs(settings.model), schema.outputs,
                                   apart)
        self.spec = Spec(
            flat=self.embedding.flat_width, tasks=len(self.tasks), scenarios=len(layout.scenarios) + 2,
            numbers=len(layout.numbers), histories=self.embedding.histories, fields=self.embedding.fields,
            starts=self.embedding.starts, number_columns=self.embedding.number_columns,
            widths=tuple(p.width for p in self.embedding.embedded), number_starts=self.embedding.number_starts,
            embedded=len(self.embedding.embedded),
            relations=relations(settings.model.get("relations"), schema),
            groups={g: len(c) for g, c in self.embedding.groups.items()},
            columns={g: tuple(c.tolist()) for g, c in self.embedding.groups.items()},
            outputs=tuple(outputs),
            log_odds=tuple(starts(kinds, known, schema.parents, schema.reading,
                                  [t.outputs - t.unserved for t in schema.tasks], settings.model.get("debias"))))
        self.slots = Slots(blocks.in_order(settings.model, self.tasks), self.spec)

        method, kept = settings.calibrate.method, schema.negatives_kept
        self.calibration = None if method == "none" else Calibration(
            schema.parents, kinds, schema.reading, len(layout.scenarios) + 2, method)
        self.kept = (self.tasks.index(kept.task), kept.rate) if kept else None

    def served(self, batch: Batch, corrected: bool = True) -> Prediction:
        """What is served: down-sampling undone, then calibrated. `corrected=False`: as where negatives are sampled."""
        return self.finished(self(batch), batch.scenario, corrected)

    def finished(self, said: Prediction, scenario: Tensor, corrected: bool = True) -> Prediction:
        """The same of what the funnel said, scenario [B]."""
        if self.kept and (corrected or self.calibration):
            said = undo_down_sampling(said, self.funnel, *self.kept)
        if self.calibration:
            said = self.calibration(said, scenario)
            if self.kept and not corrected:
                said = undo_down_sampling(said, self.funnel, self.kept[0], 1 / self.kept[1])
        return said

    def task_losses(self, said: Prediction, batch: Batch, likelihood: bool = False) -> Tensor:
        """What training minimises of each task, [T]; with `likelihood` by that, over all rows, whatever loss it has."""
        weight = within(batch.weight, batch.labels, self.spaces) if self.spaces and not likelihood else batch.weight
        losses = task_losses(self.funnel, said, batch.labels, weight, None if likelihood else self.losses, batch.user)
        return losses if self.debias is None else self.debias(self.funnel, said, batch.labels, batch.weight, losses)

    def selection(self) -> dict[str, float] | None:
        """How much of each feature is kept, where a part learns that; columns of numbers by their own names."""
        part = next((p for p in self.slots.prepare if hasattr(p, "shares")), None)
        if part is None:
            return None
        names = [*(p.name for p in self.embedding.embedded), *self.embedding.layout.numbers]
        return dict(zip(names, part.shares().tolist()))

    def forward(self, batch: Batch) -> Prediction:
        return self.funnel(self.outputs(batch))

    def outputs(self, batch: Batch) -> Tensor:
        """[B, O]: what the funnel gives its meaning."""
        return self.slots(self.embedding(batch))


def relations(said: Mapping[str, Any] | None, schema: Schema) -> tuple[Relation, ...]:
    """Who may learn from whom: the tree of `after`, unless `model.relations` says otherwise ({task: tasks})."""
    names = schema.task_names
    if said is None:
        return tuple(Relation(p, t) for t, p in enumerate(schema.parents) if p is not None)
    found = [Relation(names.index(parent), names.index(child)) for child, parents in said.items()
             for parent in ([parents] if isinstance(parents, str) else parents)]
    return tuple(sorted(found, key=lambda r: (r.child, r.parent)))


def starts(kinds: Sequence[str], labels: Sequence[Mapping[str, float]], parents: Sequence[int | None],
           reading: str, outputs: Sequence[int] | None = None, debias: Mapping[str, Any] | None = None) -> list[float]:
    """Where heads' biases start: what gives each step its mean label, which is given its parent unless `reading` is
    joint. Under the ordinal reading p(t | a) = s(z_t - log(1 - p_a)). Of two logits the first starts at 0. `outputs`
    are those that are served; what `debias` adds follows them."""
    found, whole = [], []
    for kind, label, parent, n in zip(kinds, labels, parents, outputs or [1] * len(kinds)):
        p = min(max(label["mean"], values.RARE), 1 - values.RARE)
        before = whole[parent] if parent is not None and reading != "joint" else 1.0
        whole.append(p * before)
        if kind == "binary":
            shift = math.log1p(-before) if reading == "ordinal" and parent is not None else 0.0
            found += [*[0.0] * (n - 1), values.log_odds(p) + shift]
            found += unserved_starts(debias, found[-1]) if debias and parent is not None else []
        else:
            found += values.starts(kind, label, n)
    return found
