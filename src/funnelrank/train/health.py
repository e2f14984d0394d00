"""Whether numbers are still numbers: what stops a run, what is warned of, and a close look at one batch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from funnelrank import ranks
from funnelrank.batch import Batch
from funnelrank.embedding.tables import RowGradient, Table
from funnelrank.errors import TrainingError, listing
from funnelrank.funnel import Prediction
from funnelrank.nn.linear import MLP
from funnelrank.ranker import RankingModel
from funnelrank.train.events import Report

LARGE = 100.0             # a table's weight; they start around 0.01, and stay below 10 where training goes well
FLAT = 1e-6               # log-odds: rows that differ by less are told the same
DEAD = 0.5                # share of a layer's units
WORST = 10                # rows, parameters, features that a look lists


class NotFinite(TrainingError):
    """A run that its numbers stopped; `facts` is what JSON can hold, for run.json and `replay`."""

    def __init__(self, message: str, facts: Mapping[str, Any]):
        super().__init__(message)
        self.facts = dict(facts)


@dataclass(frozen=True)
class Look:
    """One training step's numbers, before it moved anything. Lists are cut after WORST, the worst first.

    losses      task -> mean loss of the batch
    gradients   (parameter, largest |gradient|); of tables (table: features of a space, the same)
    features    (feature, largest |number| or |weight| of a vector it reads)
    rows        (row of the batch, task, loss)
    culprits    sentences: what is not finite, or largest
    """

    step: int
    position: Mapping[str, Any]
    losses: Mapping[str, float]
    gradients: list[tuple[str, float]]
    features: list[tuple[str, float]]
    rows: list[tuple[int, str, float]]
    culprits: list[str]


def stopped(what: str, of: list[str], step: int, position: Mapping[str, Any], found: list[str]) -> NotFinite:
    """The end of a run in `step`, which trained on the batch at `position` (epoch and batch from 0)."""
    epoch, batch = position["epoch"] + 1, position["batch"]
    return NotFinite(
        f"step {step}, epoch {epoch}: the {what} of {listing(of)} is not finite (batch {batch} of the epoch, from 0); "
        f"{'; '.join(found[:3])}; a lower learning rate, train.clip_norm, or a look at the rows' numbers and weights "
        "would help. `funnelrank replay` with the run's folder shows this batch. The last checkpoint is untouched.",
        {"step": step, "what": what, "of": of, "position": dict(position), "culprits": found})


def odd_gradients(model: nn.Module, gradients: list[RowGradient], dense: Sequence[Tensor] | None = None) -> list[str]:
    """Names of parameters, and of tables' features, whose gradient is not finite. One synchronisation where none is.

    `dense`: the model's parameters, where they are at hand; to walk through its modules takes longer than to look.
    """
    every = [p.grad for p in (model.parameters() if dense is None else dense) if p.grad is not None]
    every += [g.grad for g in gradients]
    if not every or math.isfinite(torch.stack(torch._foreach_norm(every, dtype=torch.float32)).sum().item()):
        return []
    named = [(n, p.grad) for n, p in model.named_parameters() if p.grad is not None]
    return [n for n, g in named if not g.isfinite().all()] + [
        _spelled(model, g.table, space) for g in gradients for space, rows in _spaces(g.table)
        if not g.grad[(g.rows >= rows.start) & (g.rows < rows.stop)].isfinite().all()] or ["all of them together"]


def odd_weights(model: RankingModel) -> list[str]:
    """Names of what holds a weight that is not finite: dense parameters, buffers, tables' features."""
    tables = {id(t.weight) for t in model.embedding.tables.values()}
    odd = [n for n, p in model.state_dict(keep_vars=True).items()
           if id(p) not in tables and p.is_floating_point() and not p.isfinite().all()]
    for table in model.embedding.tables.values():
        if not math.isfinite(largest(table.weight)):
            odd += [_spelled(model, table, space) for space, rows in _spaces(table)
                    if not math.isfinite(largest(table.weight[rows]))]
    return odd


def largest(x: Tensor) -> float:
    """Of |x|; NaN where one is, 0 of nothing."""
    if not x.numel():
        return 0.0
    low, high = torch.aminmax(x.detach())
    return max(abs(low.item()), abs(high.item())) if (low + high).isfinite() else math.nan


def culprits(model: RankingModel, batch: Batch) -> list[str]:
    """What in a batch, or in the weights that it reads, is not finite; else which feature's number is the largest."""
    found = []
    for name, values in _read(model, batch):
        flat = values.detach().flatten(1)
        if not (fine := flat.isfinite().all(1)).all():
            row = int((~fine).nonzero()[0])
            by_row = name in (*model.embedding.layout.numbers, *model.embedding.layout.ids)
            found.append(f"feature '{name}' reads {float(flat[row][~flat[row].isfinite()][0])} in {int((~fine).sum())} "
                         f"of {len(flat)} (first: row {row} of the batch)" if by_row else
                         f"a vector of feature '{name}' is not finite")
    if not batch.weight.isfinite().all():
        found.append(f"the weight of row {int((~batch.weight.isfinite()).nonzero()[0])} is not finite")
    dense = [n for n, p in model.named_parameters() if p.requires_grad and not p.isfinite().all()]
    if dense:
        found.append(f"weights of {listing(dense, 3)} are not finite already: the step before broke them")
    if not found:
        size, name = max(((largest(v), n) for n, v in _read(model, batch)), default=(0.0, ""))
        found.append(f"its inputs and the weights are finite; the largest is {size:.3g}, of feature '{name}'")
    return found


def look(model: RankingModel, said: Prediction, batch: Batch, losses: Tensor, gradients: list[RowGradient], step: int,
         position: Mapping[str, Any]) -> Look:
    """After a backward, before any update."""
    order = lambda pairs: sorted(pairs, key=lambda p: -math.inf if math.isnan(p[-1]) else -p[-1])[:WORST]
    rows = model.funnel.nll(said, batch.labels).detach() * batch.weight.unsqueeze(1) * (
        model.funnel.observed(batch.labels))
    worst = order((i, t, row[k]) for i, row in enumerate(rows.tolist()) for k, t in enumerate(model.tasks))
    return Look(step, dict(position), dict(zip(model.tasks, losses.tolist())),
                order([(n, largest(p.grad)) for n, p in model.named_parameters() if p.grad is not None]
                      + [(_spelled(model, g.table, space), largest(
                          g.grad[(g.rows >= rows.start) & (g.rows < rows.stop)]))
                         for g in gradients for space, rows in _spaces(g.table)]),
                order((n, largest(v)) for n, v in _read(model, batch)), worst, culprits(model, batch))


class Watch:
    """Warnings while a model is evaluated, each said once: outputs that say the same for every row, dead units, and
    tables that grow without end."""

    def __init__(self, model: RankingModel, report: Report):
        self.model, self.report = model, report
        self.said: set[str] = set()

    @contextmanager
    def evaluating(self, step: int) -> Iterator[None]:
        """Looks at whatever the model answers within the block."""
        alive: dict[str, Tensor] = {}
        span: list[tuple[Tensor, Tensor]] = []

        def units(name: str):
            def hook(module, given, out):
                lit = (out > 0).any(0)
                alive[name] = alive[name] | lit if name in alive else lit
            return hook

        hooks = [m.register_forward_hook(units(n)) for n, m in self.model.named_modules()
                 if isinstance(m, MLP) and len(m.layers) and isinstance(m.layers[-1]["activation"], nn.ReLU)]
        hooks.append(self.model.funnel.register_forward_hook(
            lambda module, given, out: span.append(torch.aminmax(out.logits, dim=0)) if len(out.logits) else None))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
        alive = {name: ranks.add(lit.int()) > 0 for name, lit in alive.items()}
        if span:
            span = [(-ranks.most(-torch.stack([s[0] for s in span]).amin(0)),
                     ranks.most(torch.stack([s[1] for s in span]).amax(0)))]
        for name, lit in alive.items():
            if (dead := int((~lit).sum())) > DEAD * lit.numel():
                self._warn(step, f"units of {name}", f"{dead} of {lit.numel()} units of {name} are zero on every row; "
                           "a lower learning rate, or another activation, would help")
        if span:
            width = span[0][1] - span[0][0]
            for task, own in zip(self.model.tasks, self.model.funnel.slices):
                if width[own].max() < FLAT:
                    self._warn(step, f"output of {task}", f"task '{task}' is told the same for every row; its features "
                               "or labels say nothing, or its weights are gone")
        self.tables(step)

    def tables(self, step: int) -> None:
        for name, table in self.model.embedding.tables.items():
            size = largest(table.weight)
            if self.model.embedding.apart:
                size = ranks.most(torch.tensor(size)).item()
            if size > LARGE:
                self._warn(step, f"table {name}", f"table {name} holds weights up to {size:.3g}; a lower "
                           "embedding.optimiser.lr, or its l2, would help")

    def _warn(self, step: int, what: str, said: str) -> None:
        if what not in self.said:
            self.said.add(what)
            self.report({"event": "warning", "step": step, "what": what, "said": said})


def _read(model: RankingModel, batch: Batch) -> Iterator[tuple[str, Tensor]]:
    """Each feature with what it reads: numbers [B, 1], vectors of ids [B, D], of lists [n, D]."""
    layout, table_of = model.embedding.layout, {}
    for table in model.embedding.tables.values():
        for space, start in table.offset.items():
            table_of.setdefault(space, (table, start))
    for i, name in enumerate(layout.numbers):
        yield name, batch.numbers[:, i:i + 1]
    for i, name in enumerate(layout.ids):
        table, start = table_of[layout.space[name]]
        yield name, table.read(start + batch.ids[:, i].long())
    for i, name in enumerate(layout.lists):
        table, start = table_of[layout.space[name]]
        yield name, table.read(start + batch.bags(i)[0].long())


def _spaces(table: Table) -> list[tuple[str, slice]]:
    """Id spaces with their places in the rows that are here."""
    starts = sorted((o, s) for s, o in table.offset.items())
    ends = [o for o, _ in starts[1:]] + [table.rows]
    here = [(space, slice(max(start - table.first, 0), min(end - table.first, len(table.weight))))
            for (start, space), end in zip(starts, ends)]
    return [(space, rows) for space, rows in here if rows.start < rows.stop]


def _spelled(model: RankingModel, table: Table, space: str) -> str:
    layout = model.embedding.layout
    name = next(n for n, t in model.embedding.tables.items() if t is table)
    return f"{name}: {', '.join(f for f in (*layout.ids, *layout.lists) if layout.space[f] == space)}"
