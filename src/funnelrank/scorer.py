"""The graph that only answers: encoded ids in, every served output by name. What exports are made of.

    named tensors  ->  vectors of users [U, .] and of rows [B, .]  ->  slots  ->  funnel, calibration  ->  outputs [B]

Rows name their user (`row_user` [B], places among U users), so features of the role `user` are looked up once for all
the rows they rank, and where the model allows it their part of its first layer is computed once too. Lists are padded
with id 0, whose vector is zeros. Ids are mapped by the Encoder before; a graph checks nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from funnelrank.batch import Batch
from funnelrank.embedding.tables import Embedding, Piece, Table
from funnelrank.funnel import Prediction
from funnelrank.inputs import Inputs, Needs, Padded
from funnelrank.lookups import Bags, Lookups, Part
from funnelrank.nn.affine import Halves, fitting
from funnelrank.ranker import RankingModel
from funnelrank.schema import OOV, PAD, USER, Served

Kind = Literal["fp32", "fp16", "int8"]


@dataclass(frozen=True)
class Feed:
    """One input of the graph. A dimension is a number, or the name of one that varies: users, rows, or a list's."""

    name: str
    dtype: torch.dtype
    dims: tuple[str | int, ...]
    reads: tuple[str, ...] = ()          # features, one for each column


def frozen(model: RankingModel) -> RankingModel:
    """A copy for answering, on the same tables: batch norms folded into the layers before, APG's factors multiplied."""
    tables = {id(t.weight): t.weight for t in model.embedding.tables.values()}
    model = copy.deepcopy(model, tables).eval()
    for module in list(model.modules()):
        if hasattr(module, "collapse"):
            module.collapse()
    return model.requires_grad_(False)


def with_tables(model: RankingModel, kind: Kind) -> RankingModel:
    """A copy whose tables hold what smaller ones would give back, in float32."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for table in model.embedding.tables.values():
            table.weight.copy_(Lookup(table, kind)(torch.arange(len(table.weight))))
    return model


class Scorer(nn.Module):
    """Tensors in the order of `inputs` -> a tensor [B] for each of `outputs`.

    tables    fp32; fp16; or int8, each row with a scale of its own: |w - w'| <= max |row| / 254
    """

    def __init__(self, model: RankingModel, outputs: Sequence[Served], tables: Kind = "fp32"):
        super().__init__()
        embedding, self.outputs = model.embedding, list(outputs)
        self._embedding, self.kind = [embedding], tables       # in a list: no part of the graph
        self.model = frozen(model)
        del self.model.embedding                       # its tables are looked up by other means here
        self.needs, self.numbers, self.embedded = embedding.needs, embedding.layout.numbers, embedding.embedded
        self.crosses, self.histories = embedding.crosses, {f: embedding.layout.target[f] for f in embedding.histories}
        self.tables = nn.ModuleDict({name: Lookup(t, tables) for name, t in embedding.tables.items()})
        self.users, self.rows = _Side(embedding, True), _Side(embedding, False)
        for i, g in enumerate(self.needs.groups):
            self.register_buffer(f"group_{i}", embedding.groups[g], persistent=False)
        self.shares = bool(self.users.inputs)
        self.splits = self.shares and bool(self.rows.inputs) and splits(self.model)
        self.at = sum(p.width for p in self.users.pieces)      # flat begins with what is the user's
        self.inputs = [*self.users.inputs, *self.rows.inputs]
        if self.needs.scenario or model.calibration is not None:
            self.inputs.append(Feed("scenario", torch.int64, ("rows",)))
        if self.shares:
            self.inputs.append(Feed("row_user", torch.int64, ("rows",)))

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        fed = dict(zip((f.name for f in self.inputs), tensors))
        x = self._inputs(self.users(fed, self.tables), self.rows(fed, self.tables), fed.get("row_user"))
        x.scenario = fed.get("scenario")
        said = self._said(x)
        return tuple(self.model.funnel.answer(said, o) for o in self.outputs)

    def answer(self, rows: Batch, users: Batch, row_user: Tensor) -> tuple[Tensor, ...]:
        """The outputs of rows whose users' features stand in `users`, row_user [B] int64. Where the model reads nothing
        but flat, and that by layers, the tables are looked up as in training and no list is padded.
        """
        if not self.flat_alone:
            return self(*self.feed(rows, users, row_user).values())
        embed, B = self._embedding[0], len(rows)
        once, own = embed(users).flat[:, :self.at], embed(rows).flat[:, self.at:]
        size = fitting(B)
        own, row_user, scenario = (F.pad(v, (0, 0) * (v.dim() - 1) + (0, size - B)) for v in (
            own, row_user, rows.scenario.long()))
        said = self._said(Inputs(Halves(once, own, row_user), scenario=scenario))
        return tuple(self.model.funnel.answer(said, o)[:B] for o in self.outputs)

    @property
    def flat_alone(self) -> bool:
        """Whether the model reads nothing but flat, and that by layers that can do a user's columns once."""
        return self.splits and self.kind == "fp32" and replace(self.needs, scenario=False) == Needs()

    def _said(self, x: Inputs) -> Prediction:
        return self.model.finished(self.model.funnel(self.model.slots(x)), x.scenario)

    def _inputs(self, users: _Found, rows: _Found, row_user: Tensor | None) -> Inputs:
        spread = lambda v: v.index_select(0, row_user)                         # [U, ...] -> [B, ...]
        of = lambda kind: {**{k: spread(v) for k, v in getattr(users, kind).items()}, **getattr(rows, kind)}
        side = lambda found: torch.cat(found.flat, 1) if found.flat else None
        once, own = side(users), side(rows)
        if once is not None and own is not None and self.splits:
            flat = Halves(once, own, row_user)
        else:
            flat = torch.cat([*([spread(once)] if once is not None else []), *([own] if own is not None else [])], 1)
        x = Inputs(flat, groups={g: flat.index_select(1, getattr(self, f"group_{i}"))
                                 for i, g in enumerate(self.needs.groups)})
        if self.needs.fields or self.histories:
            vectors = of("vectors")
            if self.needs.fields:
                x.fields = torch.stack([vectors[p.name] for p in self.embedded], 1)
            values, there = of("values"), of("there")
            x.histories = {f: Padded(values[f], there[f], vectors[t]) for f, t in self.histories.items()}
        if self.needs.linear:
            linear = of("linear")
            x.linear = torch.stack([linear[p.name] for p in self.embedded], 1)
        if self.crosses:
            crosses = of("crosses")
            x.crosses = torch.stack([crosses[f] for f in self.crosses], 1)
        if self.needs.numbers:
            numbers = of("numbers")
            x.numbers = torch.cat([numbers[c] for c in self.numbers], 1) if self.numbers else None
        return x

    def feed(self, batch: Batch, users: Batch | None = None, row_user: Tensor | None = None) -> dict[str, Tensor]:
        """A batch as the graph's inputs, by name. `users` holds what of `batch` is its users'; without it, every row
        has a user of its own.
        """
        users = batch if users is None else users
        if row_user is None:
            row_user = torch.arange(len(batch))
        fed = {**self.users.feed(users), **self.rows.feed(batch), "scenario": batch.scenario.long(),
               "row_user": row_user}
        return {f.name: fed[f.name] for f in self.inputs}


class Network(nn.Module):
    """A Scorer whose model reads flat alone, behind its lookups, which are done outside: for a server.

    once [1, W1] of one user or [B, W1] of each row's own, own [B, W2], scenario [B] -> a tensor [B] for each output.
    `lookups` are those of once and own, and `tables` what they look in.
    """

    def __init__(self, scorer: Scorer):
        super().__init__()
        assert scorer.flat_alone, "a part of the model reads more than flat"
        embedding = scorer._embedding[0]
        self.model, self.outputs = scorer.model, scorer.outputs
        self.tables = [{name: t.weight.detach().numpy() for name, t in embedding.tables.items()}]    # no part of it
        sides = {"once": scorer.users, "own": scorer.rows}
        self.lookups = {name: Lookups(_parts(embedding, side.pieces), self.tables[0]) for name, side in sides.items()}
        self.inputs = [Feed("once", torch.float32, (1, self.lookups["once"].width)),
                       Feed("own", torch.float32, ("rows", self.lookups["own"].width)),
                       *(f for f in scorer.inputs if f.name == "scenario")]

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        once, own, scenario = (*tensors, None)[:3]
        said = self.model.funnel(self.model.slots(Inputs(Halves(once, own, None), scenario=scenario)))
        said = self.model.finished(said, scenario)
        return tuple(self.model.funnel.answer(said, o) for o in self.outputs)

    def feed(self, batch: Batch) -> dict[str, Tensor]:
        """A batch as the graph's inputs, by name; every row has a user of its own."""
        lists = [Bags(values.numpy(), offsets.numpy(), None) for values, offsets in map(
            batch.bags, range(len(batch.offsets) // len(batch)))]
        if batch.value_weights is not None:
            ends = batch.offsets[::len(batch)].tolist()
            lists = [one._replace(weights=batch.value_weights[a:b].numpy()) for one, a, b in zip(lists, ends, ends[1:])]
        fed = {name: torch.from_numpy(look(batch.ids.numpy(), batch.numbers.numpy(), lists))
               for name, look in self.lookups.items()}
        return {f.name: (fed | {"scenario": batch.scenario.long()})[f.name] for f in self.inputs}


def _parts(embedding: Embedding, pieces: Sequence[Piece]) -> list[Part]:
    layout, tables, found = embedding.layout, embedding.tables, []
    for p in pieces:
        if p.source == "numbers":
            found.append(Part(p.name, "numbers", p.position))
            continue
        space, table = layout.space[p.name], f"width_{p.width}"
        found.append(Part(p.name, p.source, p.position, p.width, table, tables[table].offset[space],
                          layout.size[space], p.source == "lists" and layout.pool[p.name] == "mean",
                          OOV if p.source == "ids" and layout.role[p.name] == "scenario" else PAD))
    return found


def splits(model: RankingModel) -> bool:
    """Whether every part reads flat, if at all, by layers that can do a user's columns once."""
    slots = model.slots
    parts = [*slots.prepare, *slots.side, *(p for p in (slots.represent, slots.predict) if p is not None)]
    return slots.represent is not None and all(getattr(part, "splits", False) for part in parts)


class Lookup(nn.Module):
    """One table: ids of it [...] -> vectors [..., D]."""

    def __init__(self, table: Table, kind: Kind):
        super().__init__()
        self.kind, self.offset, self.width = kind, table.offset, table.width
        weight = table.weight.detach()
        if kind == "int8":
            scale = weight.abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / 127
            self.register_buffer("scale", scale)
            weight = (weight / scale).round().to(torch.int8)
        self.register_buffer("weight", weight.half() if kind == "fp16" else weight)

    def forward(self, index: Tensor) -> Tensor:
        if self.kind == "int8":
            return self.weight[index].float() * self.scale[index]
        return F.embedding(index, self.weight).float()


@dataclass
class _Found:
    """What one side's inputs became, [R, ...] each, by feature; and their part of flat, column by column."""

    vectors: dict[str, Tensor]
    linear: dict[str, Tensor]
    crosses: dict[str, Tensor]
    numbers: dict[str, Tensor]
    values: dict[str, Tensor]
    there: dict[str, Tensor]
    blocks: dict[str, Tensor]
    flat: list[Tensor]


class _Side(nn.Module):
    """The features of users, or those of rows: which inputs they have and how those are looked up."""

    def __init__(self, embedding: Embedding, users: bool):
        super().__init__()
        layout = embedding.layout
        mine = [n for n in (*layout.ids, *layout.numbers, *layout.lists) if (layout.role[n] == USER) == users]
        self.pieces = [p for p in embedding.pieces if p.name in mine]
        place = {p.name: i for i, p in enumerate(self.pieces)}                # in flat's order they are looked up
        self.ids, self.numbers, self.lists = (sorted((n for n in all_ if n in mine), key=lambda n: place.get(n, len(
            place))) for all_ in (layout.ids, layout.numbers, layout.lists))
        self.columns = {n: layout.ids.index(n) for n in self.ids} | {n: layout.numbers.index(n) for n in self.numbers}
        self.list_at = {n: layout.lists.index(n) for n in self.lists}
        self.histories = [f for f in embedding.histories if f in mine]
        self.mean = {n: layout.pool[n] == "mean" for n in self.lists}
        self.weighted = layout.weighted
        self.where: dict[str, list[tuple[str, int]]] = {}                     # feature -> its tables and places there
        weighed = {p.name for p in embedding.embedded}
        for n in (*self.ids, *self.lists):
            table = {"vectors": f"width_{embedding.width_of[n]}"} if n not in embedding.crosses else {
                "crosses": "crosses"}
            if embedding.needs.linear and n in weighed:
                table["linear"] = "linear"
            self.where[n] = [(kind, t, embedding.tables[t].offset[layout.space[n]]) for kind, t in table.items()]
        self.single: dict[tuple[str, str], list[str]] = {}                    # the ids that one table is asked for
        for n in self.ids:
            for kind, t, _ in self.where[n]:
                self.single.setdefault((kind, t), []).append(n)
        for (kind, t), names in self.single.items():
            least = [OOV if layout.role[n] == "scenario" else PAD for n in names]
            for what, numbers in (
                    ("columns", None if names == self.ids else [self.ids.index(n) for n in names]),      # None: all
                    ("offsets", [o for n in names for k, u, o in self.where[n] if (k, u) == (kind, t)]),
                    ("least", least if any(least) else None)):
                self.register_buffer(f"{what}_{kind}_{t}", None if numbers is None else torch.tensor(numbers),
                                     persistent=False)
        self.runs = [(of, [p.name for p in ps]) for of, ps in groupby(self.pieces, lambda p: (p.source, p.width))]
        prefix, dim = ("user_", "users") if users else ("", "rows")
        self.prefix = prefix
        self.inputs = []
        for what, names, dtype in (("ids", self.ids, torch.int64), ("numbers", self.numbers, torch.float32)):
            if names:
                self.inputs.append(Feed(prefix + what, dtype, (dim, len(names)), tuple(names)))
        for n in self.lists:
            self.inputs.append(Feed(f"list.{n}", torch.int64, (dim, f"length.{n}"), (n,)))
            if self.weighted:
                self.inputs.append(Feed(f"list.{n}.weight", torch.float32, (dim, f"length.{n}"), (n,)))

    def forward(self, fed: Mapping[str, Tensor], tables: nn.ModuleDict) -> _Found:
        found = _Found({}, {}, {}, {}, {}, {}, {}, [])
        for kind in ("vectors", "linear", "crosses"):
            self._look_up(kind, fed, tables, getattr(found, kind), found)
        if self.numbers:
            numbers = fed[self.prefix + "numbers"]
            found.numbers = dict(zip(self.numbers, numbers.split(1, 1)))
        for (source, width), names in self.runs:               # neighbours in flat are neighbours in what was looked up
            whole = (fed[self.prefix + "numbers"] if source == "numbers" else
                     found.blocks[f"width_{width}"] if source == "ids" else None)
            if whole is None:
                found.flat += [found.vectors[n] for n in names]
                continue
            known = self.numbers if source == "numbers" else self.single["vectors", f"width_{width}"]
            first = known.index(names[0])
            found.flat.append((whole if names == known else whole[:, first:first + len(names)]).flatten(1))
        return found

    def _look_up(self, kind: str, fed: Mapping[str, Tensor], tables: nn.ModuleDict, into: dict[str, Tensor],
                 found: _Found) -> None:
        at = {n: (t, offset) for n in self.where for k, t, offset in self.where[n] if k == kind}
        for t in dict.fromkeys(t for t, _ in at.values()):
            if single := self.single.get((kind, t)):
                vectors = tables[t](self._ids(fed, kind, t) + getattr(self, f"offsets_{kind}_{t}"))
                into |= dict(zip(single, vectors.unbind(1)))
                if kind == "vectors":
                    found.blocks[t] = vectors                                  # [R, n, D]
            for n in (n for n in self.lists if n in at and at[n][0] == t):
                ids = fed[f"list.{n}"]
                there = ids > 0
                vectors = tables[t](ids + at[n][1])                            # [R, L, D]; PAD is zeros
                if kind == "vectors" and n in self.histories:
                    found.values[n], found.there[n] = vectors, there
                else:
                    into[n] = self._pool(n, vectors, there, fed.get(f"list.{n}.weight"))

    def _ids(self, fed: Mapping[str, Tensor], kind: str, table: str) -> Tensor:
        """[R, n]; what names the scenario has no null, as in Embedding."""
        ids, columns, least = fed[self.prefix + "ids"], *(getattr(self, f"{what}_{kind}_{table}")
                                                          for what in ("columns", "least"))
        ids = ids if columns is None else ids.index_select(1, columns)
        return ids if least is None else torch.maximum(ids, least)

    def _pool(self, name: str, vectors: Tensor, there: Tensor, weight: Tensor | None) -> Tensor:
        """[R, L, D] -> [R, D]"""
        pooled = (vectors if weight is None else vectors * weight.unsqueeze(2)).sum(1)
        if not self.mean[name]:
            return pooled
        if weight is None:
            return pooled / there.float().sum(1, keepdim=True).clamp(min=1)
        total = weight.sum(1, keepdim=True)
        return pooled * torch.where(total > 0, 1 / total, 1.0)

    def feed(self, batch: Batch) -> dict[str, Tensor]:
        fed = {}
        if self.ids:
            fed[self.prefix + "ids"] = batch.ids[:, [self.columns[n] for n in self.ids]].long()
        if self.numbers:
            fed[self.prefix + "numbers"] = batch.numbers[:, [self.columns[n] for n in self.numbers]]
        for n, k in self.list_at.items():
            values, offsets = batch.bags(k)
            first = int(batch.offsets[k * len(batch)])
            fed[f"list.{n}"] = padded(values.long(), offsets)
            if self.weighted:
                weights = batch.value_weights
                fed[f"list.{n}.weight"] = padded(torch.ones(len(values)) if weights is None
                                                 else weights[first:first + len(values)], offsets)
        return fed


def padded(values: Tensor, offsets: Tensor) -> Tensor:
    """values [n], offsets [B + 1] from 0 -> [B, L], zeros at the right; L is at least 1."""
    lengths = offsets.diff()
    L = max(int(lengths.max()) if len(lengths) else 0, 1)
    out = values.new_zeros(len(lengths), L)
    out[torch.arange(L) < lengths.unsqueeze(1)] = values
    return out
