"""Names become numbers here: id spaces share one table per width, at offsets.

The torch engine: the reference, on any device. A step gathers each row it needs once; what autograd sees is that small
block of rows, so a gradient is one row per distinct id and a dense table gradient never exists.

    index [n] of the whole batch  ->  distinct rows [U], place of each index among them [n]
    block = table[rows]           ->  a leaf [U, D]; its .grad is the deduplicated row gradient
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from funnelrank.batch import Batch, Layout
from funnelrank.inputs import History, Inputs, Needs
from funnelrank.schema import PAD
from funnelrank.settings import Embedding as Settings

ROLE_ORDER = ("user", "item", "scenario", "prior", "context")


@dataclass
class RowGradient:
    """One table's share of a step: rows [U] and their gradients block.grad [U, D]."""

    table: Table
    rows: Tensor
    block: Tensor


class Table(nn.Module):
    """All ids of one width. Row 0 of each space is PAD: zeros, and it stays zeros.

    weight [rows, D], starting from N(0, init). It takes no gradient of its own; see RowGradient.
    """

    def __init__(self, sizes: Mapping[str, int], width: int, init: float):
        super().__init__()
        self.width = width
        self.offset: dict[str, int] = {}
        rows = 0
        for space, size in sizes.items():
            self.offset[space] = rows
            rows += size
        self.weight = nn.Parameter(torch.empty(rows, width).normal_(0, init) if init else torch.zeros(rows, width),
                                   requires_grad=False)
        self.register_buffer("pad", torch.tensor([o + PAD for o in self.offset.values()]), persistent=False)
        with torch.no_grad():
            self.weight[self.pad] = 0
        self.pending: list[RowGradient] = []

    def block(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """index [n] int64 -> (rows to look in, each index's place there): while training, distinct rows."""
        if not (self.training and torch.is_grad_enabled()):
            return self.weight, index
        rows, place = torch.unique(index, return_inverse=True)
        block = self.weight[rows].requires_grad_()
        self.pending.append(RowGradient(self, rows, block))
        return block, place

    def take_gradients(self) -> list[RowGradient]:
        """The step's row gradients, PAD's set to zero; asking takes them."""
        taken, self.pending = [p for p in self.pending if p.block.grad is not None], []
        for p in taken:
            p.block.grad[torch.isin(p.rows, self.pad)] = 0
        return taken

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]:,} rows x {self.width}, spaces {', '.join(self.offset)}"


@dataclass(frozen=True)
class _Piece:
    """One feature's place: where it comes from in the batch, and how wide it is in flat."""

    name: str
    source: str           # ids | lists | numbers
    position: int         # column among them
    width: int
    role: str


class Embedding(nn.Module):
    """Batch -> Inputs. The only place that knows both names and tensors.

    flat [B, W] holds every feature once, ordered by role (user, item, scenario, prior, context, your own): ids as their
    row, lists pooled (an empty one is zeros), numbers as they are. `slices` says which feature is where in flat.
    """

    def __init__(self, layout: Layout, settings: Settings, needs: Needs | None = None):
        super().__init__()
        self.layout, self.needs = layout, needs or Needs()
        width_of = {s: (settings.spaces[s].width if s in settings.spaces else None) or settings.width
                    for s in layout.size}
        widths: dict[int, dict[str, int]] = {}
        for space, size in layout.size.items():
            widths.setdefault(width_of[space], {})[space] = size
        self.tables = nn.ModuleDict({f"width_{w}": Table(sizes, w, settings.init) for w, sizes in widths.items()})
        self.width_of = {f: width_of[layout.space[f]] for f in (*layout.ids, *layout.lists)}
        pieces = [_Piece(f, "ids", i, self.width_of[f], layout.role[f]) for i, f in enumerate(layout.ids)]
        pieces += [_Piece(f, "lists", i, self.width_of[f], layout.role[f]) for i, f in enumerate(layout.lists)]
        pieces += [_Piece(c, "numbers", i, 1, layout.role[c]) for i, c in enumerate(layout.numbers)]
        place = {r: i for i, r in enumerate(ROLE_ORDER)}
        self.pieces = sorted(pieces, key=lambda p: (place.get(p.role, len(place)), p.role))
        self.slices: dict[str, slice] = {}
        start = 0
        for p in self.pieces:
            self.slices[p.name] = slice(start, start + p.width)
            start += p.width
        self.flat_width = start
        self.runs = self._runs()
        self.groups = self._groups(settings.groups)
        for w, table in self._tables():
            offsets = [table.offset[layout.space[f]] for f in layout.ids if self.width_of[f] == w]
            self.register_buffer(f"id_columns_{w}", torch.tensor(
                [i for i, f in enumerate(layout.ids) if self.width_of[f] == w], dtype=torch.int64), persistent=False)
            self.register_buffer(f"id_offsets_{w}", torch.tensor(offsets, dtype=torch.int64), persistent=False)

    def _tables(self) -> Iterable[tuple[int, Table]]:
        return [(t.width, t) for t in self.tables.values()]

    def _runs(self) -> list[str | Tensor]:
        """Flat, left to right: a feature's name, or the columns of numbers that stand side by side."""
        runs: list[str | list[int]] = []
        for p in self.pieces:
            if p.source != "numbers":
                runs.append(p.name)
            elif runs and isinstance(runs[-1], list):
                runs[-1].append(p.position)
            else:
                runs.append([p.position])
        return [r if isinstance(r, str) else torch.tensor(r) for r in runs]

    def _groups(self, named: Mapping[str, Sequence[str]]) -> dict[str, Tensor]:
        """Roles and named groups as columns of flat."""
        groups: dict[str, list[int]] = {}
        for p in self.pieces:
            groups.setdefault(p.role, []).extend(range(self.slices[p.name].start, self.slices[p.name].stop))
        for group, members in named.items():
            groups[group] = [c for p in self.pieces if self.layout.feature.get(p.name, p.name) in members
                             for c in range(self.slices[p.name].start, self.slices[p.name].stop)]
        return {g: torch.tensor(c) for g, c in groups.items()}

    def forward(self, batch: Batch) -> Inputs:
        """Batch of B rows -> Inputs with what `needs` asks for."""
        B, layout = len(batch), self.layout
        vectors: dict[str, Tensor] = {}
        histories: dict[str, History] = {}
        for w, table in self._tables():
            columns, lists = getattr(self, f"id_columns_{w}"), [k for k, f in enumerate(layout.lists)
                                                               if self.width_of[f] == w]
            ids = batch.ids.index_select(1, columns).long() + getattr(self, f"id_offsets_{w}")      # [B, F_w]
            bags = [batch.bags(k) for k in lists]
            values = [v.long() + table.offset[layout.space[layout.lists[k]]] for k, (v, _) in zip(lists, bags)]
            rows, place = table.block(torch.cat([ids.flatten(), *values]))
            single, *jagged = place.split([ids.numel(), *(len(v) for v in values)])
            if len(columns):
                embedded = F.embedding(single.view(B, len(columns)), rows)                           # [B, F_w, D]
                for column, vector in zip(columns.tolist(), embedded.unbind(1)):
                    vectors[layout.ids[column]] = vector
            for k, (_, offsets), where in zip(lists, bags, jagged):
                name = layout.lists[k]
                vectors[name] = self._pool(batch, k, where, rows, offsets)
                if self.needs.histories and name in layout.target:
                    histories[name] = History(F.embedding(where, rows), offsets,
                                              vectors[layout.target[name]])
        numbers = batch.numbers
        flat = torch.cat([vectors[r] if isinstance(r, str) else numbers.index_select(1, r.to(numbers.device))
                          for r in self.runs], 1)                                                    # [B, W]
        fields = None
        if self.needs.fields:
            fields = torch.stack([vectors[p.name] for p in self.pieces if p.source != "numbers"], 1)
        groups = {g: flat[:, self.groups[g].to(flat.device)] for g in self.needs.groups}
        return Inputs(flat, fields=fields, groups=groups, histories=histories, scenario=batch.scenario.long())

    def _pool(self, batch: Batch, k: int, where: Tensor, rows: Tensor, offsets: Tensor) -> Tensor:
        """List feature k pooled: [B, D]. Weighted lists: sum_i w_i e_i, divided by sum_i w_i for a mean."""
        mode = self.layout.pool[self.layout.lists[k]]
        if batch.value_weights is None:
            return F.embedding_bag(where, rows, offsets[:-1], mode=mode)
        B = len(batch)
        weights = batch.value_weights[batch.offsets[k * B]:batch.offsets[(k + 1) * B]]
        pooled = F.embedding_bag(where, rows, offsets[:-1], mode="sum", per_sample_weights=weights)
        if mode == "mean":
            owner = torch.repeat_interleave(torch.arange(B, device=offsets.device), offsets.diff())
            total = torch.zeros(B, device=weights.device).index_add_(0, owner, weights)
            pooled = pooled / torch.where(total > 0, total, 1.0).unsqueeze(1)
        return pooled

    def take_gradients(self) -> list[RowGradient]:
        return [g for table in self.tables.values() for g in table.take_gradients()]
