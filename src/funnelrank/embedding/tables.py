"""Names become numbers here: id spaces share one table per width, at offsets.

Two engines look up the same tables: `reference.py` in torch's own operations, on any device, and `native.py` on a CPU.
Either leaves one gradient per distinct row; a gradient as large as a table never exists. Under torchrun each rank looks
up its own rows; large tables then lie apart (`sharded.py`), and gradients are of all ranks' rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from funnelrank import ranks
from funnelrank.batch import Batch, Layout
from funnelrank.embedding.native import Native
from funnelrank.embedding.plan import native_engine
from funnelrank.embedding.reference import TorchEngine, bag_offsets, distinct
from funnelrank.errors import ConfigError, did_you_mean, listing
from funnelrank.inputs import History, Inputs, Needs
from funnelrank.kernels import library
from funnelrank.schema import FIRST, OOV, PAD
from funnelrank.settings import Embedding as Settings
from funnelrank.settings import Sharding

REPLICATED, ROW_WISE = "replicated", "row_wise"
DRAWN = 1 << 22                          # numbers drawn at once; a multiple of 16
WEIGHTS = ("linear", "crosses")          # tables of a number per id and output
ROLE_ORDER = ("user", "item", "scenario", "prior", "context")


@dataclass
class RowGradient:
    """One table's share of a step: distinct rows [U], their gradients [U, D], and their weights before it [U, D]."""

    table: Table
    rows: Tensor
    grad: Tensor
    old: Tensor


class Table(nn.Module):
    """All ids of one width. Row 0 of each space is PAD: zeros, and it stays zeros.

    weight [rows, D], starting from N(0, init). It takes no gradient of its own; see RowGradient.
    frozen [rows] bool, or None: rows that do not learn.
    """

    sharded = False                 # whether rows lie with several ranks, `weight` being those from `first` on

    def __init__(self, sizes: Mapping[str, int], width: int, init: float):
        super().__init__()
        self.width = width
        self.offset: dict[str, int] = {}
        self.rows = 0
        for space, size in sizes.items():
            self.offset[space] = self.rows
            self.rows += size
        self.first, end = self.held(self.rows)
        weight = torch.zeros(end - self.first, width)
        if init and not weight.is_meta:                 # of shapes alone, drawing would import half of torch
            draw(weight, self.first, self.rows, init)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.register_buffer("frozen", None, persistent=False)
        self.register_buffer("pad", torch.tensor([o + PAD for o in self.offset.values()], dtype=torch.int64),
                             persistent=False)
        with torch.no_grad():
            self.weight[self.here(self.pad)] = 0
        self.pending: list[tuple[Tensor, Tensor]] = []           # rows, and the block that autograd sees

    def block(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """index [n] int64 -> (rows to look in, each index's place there): while training, distinct rows."""
        if not (self.training and torch.is_grad_enabled()):
            return self.weight, index
        rows, place = distinct(index, len(self.weight), self.pad)
        block = self.weight[rows].requires_grad_()
        self.pending.append((rows, block))
        return block, place

    def take(self, again: bool = False) -> list[RowGradient]:
        """The step's row gradients, PAD's set to zero; with `again`, another backward may follow."""
        taken = [RowGradient(self, rows, block.grad, block.detach()) for rows, block in self.pending
                 if block.grad is not None]
        self.pending = self.pending if again else []
        for _, block in self.pending:
            block.grad = None
        for g in taken:
            g.grad.masked_fill_(torch.isin(g.rows, self.pad).unsqueeze(1), 0)
        return taken

    def held(self, rows: int) -> tuple[int, int]:
        """The first of `rows` that is here, and the one behind the last."""
        return 0, rows

    def here(self, rows: Tensor) -> Tensor:
        """Places in `weight` of those of the table's rows that are here."""
        return rows

    def read(self, rows: Tensor) -> Tensor:
        """Vectors [n, D] of rows [n]."""
        return self.weight[rows]

    def write(self, rows: Tensor, vectors: Tensor) -> None:
        """Set rows [n] to vectors [n, D] or [D]."""
        self.weight[rows] = vectors

    def freeze(self, rows: Tensor) -> None:
        """Rows [n] learn no more."""
        if self.frozen is None:
            self.frozen = torch.zeros(len(self.weight), dtype=torch.bool)
        self.frozen[self.here(rows)] = True

    def extra_repr(self) -> str:
        return f"{self.rows:,} rows x {self.width}, spaces {', '.join(self.offset)}"


def draw(weight: Tensor, first: int, rows: int, std: float) -> None:
    """Fill `weight` [n, D] with what rows `first` .. `first` + n - 1 of a table of `rows` start from: N(0, std).

    The generator gives every rank the whole table, a part at a time, so that it starts alike however it is shared.
    """
    n, D = weight.shape
    if n == rows:
        weight.normal_(0, std)
        return
    start, total = first * D, rows * D
    flat, at = weight.view(-1), 0
    while at < total:
        # sixteen at a time are made together, and the last sixteen of a tensor anew where they do not fill up
        end = total if total - at < DRAWN + 16 else at + DRAWN
        part = torch.empty(end - at).normal_(0, std)
        a, b = max(at, start), min(end, start + n * D)
        if a < b:
            flat[a - start:b - start] = part[a - at:b - at]
        at = end


@dataclass(frozen=True)
class Piece:
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
    What names the scenario (ids of role `scenario`) has no null: a row without one and a row of one that train did not
    have are the same stranger, OOV. See `settle`.
    `apart`: it is one rank's of several, each with rows of its own; large tables lie apart then (embedding.sharding).
    Histories that a part needs jagged (`histories`: name -> width) are not in flat, and where a part reads crosses as
    weights (`crosses`), those are nowhere else and have no vectors.
    """

    def __init__(self, layout: Layout, settings: Settings, needs: Needs | None = None,
                 outputs: Sequence[tuple[str, int]] | None = None, apart: bool = False):
        super().__init__()
        self.apart = apart and ranks.size() > 1
        self.layout, self.needs = layout, needs or Needs()
        self.outputs = tuple(outputs or ((t, 0) for t in layout.tasks))       # O: task, and which of its own
        self.crosses = layout.crosses if self.needs.crosses else ()
        weighed = {layout.space[f] for f in self.crosses}
        embedded = {layout.space[f] for f in (*layout.ids, *layout.lists) if f not in self.crosses}
        sizes = {s: n for s, n in layout.size.items() if s in embedded or s not in weighed}
        width_of = {s: (settings.spaces[s].width if s in settings.spaces else None) or settings.width
                    for s in sizes}
        widths: dict[int, dict[str, int]] = {}
        for space, size in sizes.items():
            widths.setdefault(width_of[space], {})[space] = size
        made = [(f"width_{w}", sizes, w, settings.init) for w, sizes in widths.items()]
        if self.needs.linear:
            made.append(("linear", sizes, len(self.outputs), 0.0))
        if self.crosses:
            made.append(("crosses", {s: layout.size[s] for s in sorted(weighed)}, len(self.outputs), 0.0))
        how = shared_out({n: 4 * w * sum(sizes.values()) for n, sizes, w, _ in made}, settings.sharding,
                         ranks.size()) if self.apart else {}
        self.tables = nn.ModuleDict({n: self._table(n, *said, how.get(n, REPLICATED)) for n, *said in made})
        ids = [f for f in layout.ids if f not in self.crosses]
        self.width_of = {f: width_of[layout.space[f]] for f in (*ids, *layout.lists)}
        self.histories = {f: self.width_of[f] for f in layout.lists
                          if f in layout.target} if self.needs.histories else {}
        pieces = [Piece(f, "ids", layout.ids.index(f), self.width_of[f], layout.role[f]) for f in ids]
        pieces += [Piece(f, "lists", i, self.width_of[f], layout.role[f]) for i, f in enumerate(layout.lists)
                   if f not in self.histories]
        pieces += [Piece(c, "numbers", i, 1, layout.role[c]) for i, c in enumerate(layout.numbers)]
        place = {r: i for i, r in enumerate(ROLE_ORDER)}
        self.pieces = sorted(pieces, key=lambda p: (place.get(p.role, len(place)), p.role))
        self.embedded = [p for p in self.pieces if p.source != "numbers"]
        self.slices: dict[str, slice] = {}
        start = 0
        for p in self.pieces:
            self.slices[p.name] = slice(start, start + p.width)
            start += p.width
        self.flat_width = start
        self.members = self._members(settings.groups)
        self.groups = {g: torch.tensor([c for p in ps for c in range(self.slices[p.name].start,
                                                                     self.slices[p.name].stop)], dtype=torch.int64,
                                       device="cpu")         # numbers, even of a model that is shapes alone
                       for g, ps in self.members.items()}
        for group in self.needs.groups:
            if group not in self.groups:
                raise ConfigError(f"model: a part reads the group '{group}', and no feature is in it; give features "
                                  "that `role`, or name the group in embedding.groups; there are "
                                  + listing(self.groups) + did_you_mean(group, self.groups))
        names = [layout.role[f] == "scenario" for f in layout.ids]
        self.register_buffer("names_scenario", torch.tensor(names) if any(names) else None, persistent=False)   # [F]
        self.reference = TorchEngine(self)
        self.native: Native | None = None
        if settings.engine != "torch" and not self.sharded:
            if library() is not None:
                self.native = native_engine(self)
            elif settings.engine == "native":
                raise ConfigError("embedding.engine: the native engine was asked for, and is not there; install the "
                                  "package where there is a C++ compiler, or write engine: auto")

    @staticmethod
    def _table(name: str, sizes: Mapping[str, int], width: int, init: float, how: str | int) -> Table:
        if how == REPLICATED:
            return Table(sizes, width, init)
        from funnelrank.embedding.sharded import ShardedTable  # torchrec: only where rows do lie apart
        return ShardedTable(sizes, width, init, name, None if how == ROW_WISE else how)

    @property
    def sharded(self) -> bool:
        """Whether rows of a table lie with other ranks."""
        return any(t.sharded for t in self.tables.values())

    def _members(self, named: Mapping[str, Sequence[str]]) -> dict[str, list[Piece]]:
        """Roles and named groups as the features that they hold."""
        members: dict[str, list[Piece]] = {role: [] for role in self.layout.role.values()}
        for p in self.pieces:
            members[p.role].append(p)
        return members | {g: [p for p in self.pieces if self.layout.feature.get(p.name, p.name) in features]
                          for g, features in named.items()}

    @property
    def fields(self) -> tuple[int, int] | None:
        """F and D of `Inputs.fields`, where a part needs them. Raises ConfigError where widths differ."""
        if not self.needs.fields:
            return None
        widths = {p.width for p in self.embedded}
        if len(widths) != 1:
            found = ", ".join(f"{w}" for w in sorted(widths)) or "none"
            raise ConfigError(f"embedding.spaces: a part of the model multiplies features with each other, which needs "
                              f"one width for all of them; widths are {found}")
        return len(self.embedded), widths.pop()

    @property
    def starts(self) -> tuple[int, ...]:
        """Where each field starts in flat."""
        return tuple(self.slices[p.name].start for p in self.embedded)

    @property
    def number_starts(self) -> tuple[int, ...]:
        """Where each number of the batch stands in flat."""
        return tuple(self.slices[n].start for n in self.layout.numbers)

    @property
    def number_columns(self) -> tuple[int, ...]:
        """Where each number stands in flat."""
        return tuple(self.slices[p.name].start for p in self.pieces if p.source == "numbers")

    @property
    def all_learn(self) -> bool:
        return all(table.frozen is None for table in self.tables.values())

    @property
    def runs_native(self) -> bool:
        """Whether the native engine does the work: it is there, and the tables stand on the CPU in float32."""
        return self.native is not None and self.native.fits()

    def forward(self, batch: Batch) -> Inputs:
        """Batch of B rows -> Inputs with what `needs` asks for. Raises IndexError for ids outside their space."""
        if self.names_scenario is not None:
            nameless = (batch.ids == PAD) & self.names_scenario
            batch = replace(batch, ids=batch.ids.masked_fill(nameless, OOV))
        if self.runs_native and not batch.numbers.requires_grad:
            x = self._by_native(batch)
        else:
            x = self.reference(self, batch)
        x.scenario = batch.scenario.long()
        if self.needs.numbers:
            x.numbers = batch.numbers
        return x

    def _by_native(self, batch: Batch) -> Inputs:
        flat, *rest = self.native(batch.ids, batch.numbers, batch.values, batch.offsets, batch.value_weights,
                                  self.training and torch.is_grad_enabled())
        x = Inputs(flat, groups={g: rest.pop(0) for g in self.needs.groups})
        if self.needs.fields:
            x.fields = rest.pop(0).unflatten(1, self.fields)
        x.histories = {f: History(rest.pop(0), bag_offsets(batch, self.layout.lists.index(f)), rest.pop(0))
                       for f in self.histories}
        if self.needs.linear:
            x.linear = rest.pop(0).unflatten(1, (len(self.embedded), self.tables["linear"].width))
        if self.crosses:
            x.crosses = rest.pop(0).unflatten(1, (len(self.crosses), self.tables["crosses"].width))
        return x

    @torch.no_grad()
    def settle(self, counts: Mapping[str, Mapping[str, int]], least: Mapping[str, int]) -> None:
        """After training: strangers among scenarios get the mean of the scenarios that have a vector.

        For spaces of role `scenario` whose OOV fewer than `least` (by space) rows have trained, going by `counts`, an
        EncodedSplit's of train. It would otherwise be about what it started as, far from all that the network has met.
        """
        space, role = self.layout.space, self.layout.role
        for named in {space[f] for f in self.layout.ids if role[f] == "scenario"}:
            trained = sum(n for f, said in counts.items() if space.get(f) == named for key, n in said.items()
                          if key == "oov" or key in ("nulls", "missing_keys") and role[f] == "scenario")
            size = self.layout.size[named]
            for table in self.tables.values():
                if trained < least[named] and named in table.offset and size > FIRST:
                    start = table.offset[named]
                    known = table.read(torch.arange(start + FIRST, start + size, device=table.weight.device))
                    table.write(torch.tensor([start + OOV], device=table.weight.device), known.mean(0))

    def take_gradients(self, again: bool = False) -> list[RowGradient]:
        """The step's row gradients, one per table that a backward reached; asking takes them. With `again`, another
        backward of the same step may follow, and leaves its own."""
        found: dict[str, list[RowGradient]] = {n: t.take(again) for n, t in self.tables.items()}
        if self.native:
            tables = list(self.tables.items())
            for rows in self.native.take():
                name, table = tables[rows.table]
                found[name].append(RowGradient(table, *rows[1:]))
        taken = {n: _together(gs) for n, gs in found.items() if gs}
        if self.apart and (alike := {n: t for n, t in self.tables.items() if not t.sharded}):
            taken |= _of_all_ranks(alike, taken)
        return [learning(taken[n]) for n in self.tables if n in taken]


def learning(gradient: RowGradient) -> RowGradient:
    """The same without rows that are frozen."""
    if gradient.table.frozen is None:
        return gradient
    kept = ~gradient.table.frozen[gradient.rows]
    return RowGradient(gradient.table, gradient.rows[kept], gradient.grad[kept], gradient.old[kept])


def _together(gradients: list[RowGradient]) -> RowGradient:
    """Gradients of several backwards of one table as one."""
    if len(gradients) == 1:
        return gradients[0]
    rows, place = torch.unique(torch.cat([g.rows for g in gradients]), return_inverse=True)
    table = gradients[0].table
    grad = table.weight.new_zeros(len(rows), table.width).index_add_(0, place, torch.cat([g.grad for g in gradients]))
    return RowGradient(table, rows, grad, table.weight[rows])


def _of_all_ranks(tables: Mapping[str, Table], mine: Mapping[str, RowGradient]) -> dict[str, RowGradient]:
    """What all ranks say of tables that each of them holds: the same on every one."""
    none = lambda t: RowGradient(t, t.pad[:0], t.weight[:0], t.weight[:0])
    said = [mine.get(n) or none(t) for n, t in tables.items()]
    counts = torch.cat(ranks.gather(torch.tensor([[len(g.rows) for g in said]]), [1] * ranks.size()))  # [ranks, tables]
    sizes = [[n * (2 + t.width * t.weight.element_size() // 4) for n, t in zip(c, tables.values())]
             for c in counts.tolist()]
    packed = [part for g in said
              for part in (g.rows.view(torch.int32), g.grad.contiguous().view(torch.int32).flatten())]
    every = ranks.gather(torch.cat(packed), [sum(s) for s in sizes])
    parts = [whole.split(s) for whole, s in zip(every, sizes)]
    found = {}
    for k, (name, table) in enumerate(tables.items()):
        n = counts[:, k].tolist()
        if sum(n):
            rows = [p[k][:2 * m].view(torch.int64) for p, m in zip(parts, n)]
            grads = [p[k][2 * m:].view(table.weight.dtype).view(m, table.width) for p, m in zip(parts, n)]
            found[name] = _together([RowGradient(table, r, g, g) for r, g in zip(rows, grads)])
    return found


def shared_out(sizes: Mapping[str, int], said: Sharding, among: int) -> dict[str, str | int]:
    """Where each table's rows lie, given its bytes: REPLICATED on every rank, ROW_WISE, or with the one rank named."""
    held, how = [0] * among, {}
    for name, size in sorted(sizes.items(), key=lambda item: -item[1]):
        if size >= said.row_wise_from:
            how[name] = ROW_WISE
        elif said.below == "replicated":
            how[name] = REPLICATED
        else:
            how[name] = held.index(min(held))
            held[how[name]] += size
    return how
