"""The torch engine: lookups in torch's own operations, on any device, and what the native engine must agree with.

A step gathers each row it needs once; what autograd sees is that small block of rows.

    index [n] of the whole batch  ->  distinct rows [U], place of each index among them [n]
    block = table[rows]           ->  a leaf [U, D]; its .grad is the deduplicated row gradient
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from funnelrank.batch import Batch
from funnelrank.inputs import History, Inputs

if TYPE_CHECKING:
    from funnelrank.embedding.tables import Embedding


class TorchEngine(nn.Module):
    """Batch -> Inputs. It keeps what it needs every step as tensors on the device; the tables are the Embedding's."""

    def __init__(self, embedding: Embedding):
        super().__init__()
        layout, tables = embedding.layout, embedding.tables
        own = {t: [f for f, w in embedding.width_of.items() if t == f"width_{w}"] for t in tables}
        if "linear" in tables:
            own["linear"] = [p.name for p in embedding.embedded]
        if "crosses" in tables:
            own["crosses"] = embedding.crosses
        self.ids = {t: [f for f in layout.ids if f in own[t]] for t in tables}
        self.lists = {t: [f for f in layout.lists if f in own[t]] for t in tables}
        for t, table in tables.items():
            self._keep(f"columns_{t}", [layout.ids.index(f) for f in self.ids[t]])
            self._keep(f"offsets_{t}", [table.offset[layout.space[f]] for f in self.ids[t]])
            self._keep(f"list_offsets_{t}", [table.offset[layout.space[f]] if f in own[t] else -1
                                             for f in layout.lists])
        self._keep("id_sizes", [layout.size[layout.space[f]] for f in layout.ids])
        self._keep("list_sizes", [layout.size[layout.space[f]] for f in layout.lists])
        self._keep("means", [int(layout.pool[f] == "mean") for f in layout.lists])
        for i, group in enumerate(embedding.needs.groups):
            self._keep(f"group_{i}", embedding.groups[group].tolist())

    def _keep(self, name: str, numbers: list[int]) -> None:
        self.register_buffer(name, torch.tensor(numbers, dtype=torch.int64), persistent=False)

    def forward(self, embedding: Embedding, batch: Batch) -> Inputs:
        # len() would make a number of what torch.export leaves open
        layout, needs, B, n = embedding.layout, embedding.needs, batch.ids.shape[0], batch.values.shape[0]
        lengths = batch.offsets.diff()                                                              # [K * B]
        bag = torch.repeat_interleave(lengths, output_size=n) if layout.lists else lengths.new_zeros(0)   # [n]
        which = bag // B if B else bag                                                              # [n] value -> list
        self._check(embedding, batch, which)
        shares = self._shares(batch, lengths, bag)                                                  # [K, B, 1]
        ends = batch.offsets[::B].tolist() if embedding.histories and B else None
        vectors: dict[str, Tensor] = {}                                                             # [B, D] each
        weights: dict[str, dict[str, Tensor]] = {"linear": {}, "crosses": {}}                     # [B, T] each
        histories: dict[str, Tensor] = {}
        for t, table in embedding.tables.items():
            found = weights.get(t, vectors)
            ids = batch.ids.index_select(1, getattr(self, f"columns_{t}")) + getattr(self, f"offsets_{t}")
            values = lengths.new_zeros(0)
            if self.lists[t]:
                offsets = getattr(self, f"list_offsets_{t}")[which]
                # a list of another table looks at PAD here
                values = torch.where(offsets < 0, table.pad[0], batch.values + offsets)
            rows, place = table.block(torch.cat([ids.flatten(), values]))
            single, jagged = place.split([ids.numel(), values.shape[0]])
            found |= dict(zip(self.ids[t], F.embedding(single.view(ids.shape), rows).unbind(1)))
            if any(f not in embedding.histories for f in self.lists[t]):
                pooled = F.embedding_bag(jagged, rows, batch.offsets[:-1], mode="sum",
                                         per_sample_weights=batch.value_weights)
                pooled = pooled.view(len(layout.lists), B, table.width) * shares
                found |= {f: pooled[layout.lists.index(f)] for f in self.lists[t]}
            for f in self.lists[t]:
                if f in embedding.histories:
                    k = layout.lists.index(f)
                    histories[f] = F.embedding(jagged[ends[k]:ends[k + 1]] if ends else jagged, rows)
        numbers = dict(zip(layout.numbers, batch.numbers.split(1, 1)))
        flat = torch.cat([numbers[p.name] if p.source == "numbers" else vectors[p.name]
                          for p in embedding.pieces] or [batch.numbers], 1)                         # [B, W]
        x = Inputs(flat, groups={g: flat[:, getattr(self, f"group_{i}")] for i, g in enumerate(needs.groups)})
        if needs.fields:
            x.fields = torch.stack([vectors[p.name] for p in embedding.embedded], 1)
        x.histories = {f: History(histories[f], bag_offsets(batch, layout.lists.index(f)), vectors[layout.target[f]])
                       for f in embedding.histories}
        if needs.linear:
            x.linear = torch.stack([weights["linear"][p.name] for p in embedding.embedded], 1)
        if embedding.crosses:
            x.crosses = torch.stack([weights["crosses"][f] for f in embedding.crosses], 1)
        return x

    def _shares(self, batch: Batch, lengths: Tensor, bag: Tensor) -> Tensor:
        """What each bag's sum is multiplied with, [K, B, 1]: for a mean, 1 / its length or the sum of its weights."""
        total = lengths.float()
        if batch.value_weights is not None:
            total = torch.zeros_like(total).index_add_(0, bag, batch.value_weights)
        total = total.view(self.means.shape[0], batch.ids.shape[0])
        return torch.where((self.means.unsqueeze(1) > 0) & (total > 0), 1 / total, 1.0).unsqueeze(2)

    def _check(self, embedding: Embedding, batch: Batch, which: Tensor) -> None:
        """Ids outside their space are an IndexError. On a CPU only: elsewhere the host would have to wait."""
        if batch.ids.device.type != "cpu" or torch.compiler.is_compiling():
            return
        layout = embedding.layout
        bad = (batch.ids < 0) | (batch.ids >= self.id_sizes)                                        # [B, F]
        if bad.any():
            row, column = bad.nonzero()[0].tolist()
            raise outside(layout.ids[column], row, int(batch.ids[row, column]), int(self.id_sizes[column]))
        bad = (batch.values < 0) | (batch.values >= self.list_sizes[which])                         # [n]
        if bad.any():
            j = int(bad.nonzero()[0])
            k = int(which[j])
            row = int(torch.searchsorted(batch.offsets, j, right=True)) - 1 - k * len(batch)
            raise outside(layout.lists[k], row, int(batch.values[j]), int(self.list_sizes[k]))


def outside(feature: str, row: int, found: int, size: int) -> IndexError:
    return IndexError(f"feature '{feature}', row {row} of the batch: id {found}; its space has {size} ids, "
                      f"0 to {size - 1}")


def bag_offsets(batch: Batch, k: int) -> Tensor:
    """Where each row's bag of list k starts, [B + 1], from 0."""
    B = batch.ids.shape[0]
    offsets = batch.offsets[k * B:(k + 1) * B + 1]
    return offsets - offsets[0]


def distinct(index: Tensor, rows: int, pad: Tensor) -> tuple[Tensor, Tensor]:
    """index [n] into a table of `rows` -> (distinct rows [U], place [n]), so that rows[place] == index.

    Away from the CPU nothing is sorted and the host does not wait: there rows are n long, one occurrence of an id
    stands for all of them, and the places at which nothing looks hold a PAD row, whose gradient is zero.
    """
    if index.device.type == "cpu":
        return torch.unique(index, return_inverse=True)
    return one_stands_for_all(index, torch.empty(rows, dtype=torch.int64, device=index.device), pad)


def one_stands_for_all(index: Tensor, slot: Tensor, pad: Tensor) -> tuple[Tensor, Tensor]:
    """`distinct` by a slot per table row; `slot` may hold anything."""
    here = torch.arange(len(index), device=index.device)
    slot[index] = here
    place = slot[index]
    return torch.where(place == here, index, pad[0]), place
