"""What several tasks learn together, and what each of them would do to it.

A number of a weight is shared where more than one task's loss reaches it: found out once, on the first batch, with
every label observed, by the likelihood that another loss stands for. So a stack of towers is shared as far as tasks
read each other's, and no further. The columns of a table are shared likewise, over all its rows. What no more than one
task reaches is that task's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from funnelrank import ranks
from funnelrank.batch import Batch
from funnelrank.embedding.tables import RowGradient
from funnelrank.ranker import RankingModel


@dataclass
class Gradients:
    """T gradients of each block: a dense parameter [T, n], or the rows of a table that some task touched [T, U * D].

    names      of the blocks, as in `Shared.reach`
    shared     per block bool, [n], or of a table [U * D]
    products   [K, T, T] float64: <g_s, g_t> over what is shared, block by block
    tables     of the last blocks, the rows
    """

    names: list[str]
    blocks: list[Tensor]
    shared: list[Tensor]
    products: Tensor
    tables: list[RowGradient]


class Shared:
    """The parameters and table rows of a model, asked for one gradient or for one of each task.

    reach    per block, whether more than one task reaches a number: [n] of a parameter, [D] of a table's columns
    """

    def __init__(self, model: RankingModel):
        self.model = model
        self.parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.reach = {n: p.new_zeros(p.shape, dtype=torch.bool) for n, p in self.parameters.items()}
        self.reach |= {f"embedding.tables.{n}": t.weight.new_zeros(t.width, dtype=torch.bool)
                       for n, t in model.embedding.tables.items()}

    def find(self, batch: Batch) -> None:
        """Fill `reach`, on a copy of the network: no weight, statistic or random state moves."""
        model, device = self.model, self.model.funnel.loc.device
        slots = deepcopy(model.slots).train()
        parameters = {f"slots.{n}": p for n, p in slots.named_parameters() if p.requires_grad}
        counts = {n: torch.zeros_like(r, dtype=torch.int32) for n, r in self.reach.items()}
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            said = model.funnel(slots(model.embedding(batch)))
            seen = replace(batch, labels=torch.ones_like(batch.labels), weight=torch.ones_like(batch.weight))
            losses = model.task_losses(said, seen, likelihood=True)
        reached: dict[str, Tensor] = {}
        for t in range(len(losses)):
            losses[t].backward(retain_graph=True)
            for name, p in parameters.items():
                if p.grad is not None:
                    reached[name] = p.grad != 0
                p.grad = None
            for name, g in self._rows(again=True).items():
                reached[name] = (g.grad != 0).any(0)
            for name, count in counts.items():
                there = reached.pop(name, torch.zeros_like(count, dtype=torch.bool))
                count += ranks.most(there.int())
        model.embedding.take_gradients()
        for name, reach in self.reach.items():
            reach.copy_(counts[name] > 1)

    def one(self, loss: Tensor) -> list[RowGradient]:
        """The gradient of one loss: dense ones in `.grad`, those of rows as the engine left them."""
        loss.backward()
        if self.model.embedding.apart:
            parameters = list(self.parameters.values())
            for p, g in zip(parameters, of_all_ranks(parameters, [[p.grad for p in parameters]])[0]):
                p.grad = g
        return self.model.embedding.take_gradients()

    def each(self, losses: Tensor) -> Gradients:
        """The gradient of each of `losses` [T], by as many backwards through one graph. `.grad` is left empty."""
        dense: dict[str, list[Tensor | None]] = {n: [] for n in self.parameters}
        rows: list[dict[str, RowGradient]] = []
        for loss in losses.unbind():
            loss.backward(retain_graph=True)
            for name, p in self.parameters.items():
                dense[name].append(p.grad)
                p.grad = None
            rows.append(self._rows(again=True))
        self.model.embedding.take_gradients()
        if self.model.embedding.apart:
            each = of_all_ranks(list(self.parameters.values()), list(zip(*dense.values())))
            dense = {n: list(g) for n, g in zip(dense, zip(*each))}
        names = [n for n, g in dense.items() if any(x is not None for x in g)]
        blocks = [torch.stack([torch.zeros_like(self.parameters[n]) if g is None else g for g in dense[n]]).flatten(1)
                  for n in names]
        shared = [self.reach[n].flatten() for n in names]
        touched = {n: together([r[n] for r in rows if n in r]) for n in dict.fromkeys(n for r in rows for n in r)}
        for name, union in touched.items():
            blocks.append(torch.stack([_in(union, r[name]) if name in r else torch.zeros_like(union.grad)
                                       for r in rows]).flatten(1))
            shared.append(self.reach[name].expand(len(union.rows), -1).flatten())
        products = torch.stack([(b @ b.T).double() for b in (b * s for b, s in zip(blocks, shared))])
        if self.model.embedding.sharded:                    # of rows that lie apart, each rank knows its own products
            own = torch.tensor([0] * len(names) + [u.table.sharded for u in touched.values()], dtype=torch.bool)
            products[own] = ranks.add(products[own].contiguous())
        return Gradients([*names, *touched], blocks, shared, products, list(touched.values()))

    def combine(self, found: Gradients, weights: Tensor, own: Tensor) -> list[RowGradient]:
        """Leave sum_t w_t g_t as the gradient: `weights` [K, T] where a number is shared, `own` [T] elsewhere."""
        sums = [torch.where(s, w.to(b) @ b, own.to(b) @ b) for b, s, w in zip(found.blocks, found.shared, weights)]
        dense = len(sums) - len(found.tables)
        for name, g in zip(found.names, sums[:dense]):
            self.parameters[name].grad = g.view_as(self.parameters[name])
        return [RowGradient(t.table, t.rows, g.view_as(t.grad), t.old) for t, g in zip(found.tables, sums[dense:])]

    def _rows(self, again: bool) -> dict[str, RowGradient]:
        names = {id(t): f"embedding.tables.{n}" for n, t in self.model.embedding.tables.items()}
        return {names[id(g.table)]: g for g in self.model.embedding.take_gradients(again)}


def of_all_ranks(parameters: Sequence[Tensor], each: Sequence[Sequence[Tensor | None]]) -> list[list[Tensor | None]]:
    """Gradients of the parameters, once or of each of T losses, summed over ranks; None where no rank has one."""
    there = torch.tensor([[g is not None for g in gradients] for gradients in each], dtype=torch.float32).flatten()
    flat = torch.cat([there, *(torch.zeros_like(p).flatten() if g is None else g.flatten()
                               for gradients in each for p, g in zip(parameters, gradients))])
    there, *parts = ranks.add(flat).split([len(there), *(p.numel() for _ in each for p in parameters)])
    found = [part.view_as(p) if n else None
             for part, p, n in zip(parts, [*parameters] * len(each), there.tolist())]
    return [found[k:k + len(parameters)] for k in range(0, len(found), len(parameters))]


def together(gradients: Sequence[RowGradient]) -> RowGradient:
    """The rows that any of them touched, each once, with their weights; `grad` has their shape and no meaning."""
    first = gradients[0]
    if all(len(g.rows) == len(first.rows) and torch.equal(g.rows, first.rows) for g in gradients[1:]):
        return first
    rows = torch.unique(torch.cat([g.rows for g in gradients]))
    old = first.table.weight.detach()[rows]
    return RowGradient(first.table, rows, old, old)


def _in(union: RowGradient, g: RowGradient) -> Tensor:
    """The gradient of `g` on the rows of `union`."""
    if g.rows is union.rows or torch.equal(g.rows, union.rows):
        return g.grad
    return torch.zeros_like(union.grad).index_copy_(0, torch.searchsorted(union.rows, g.rows), g.grad)
