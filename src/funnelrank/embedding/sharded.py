"""The torchrec engine: tables whose rows lie apart, each with the rank that owns it.

torchrec's EmbeddingCollection carries ids and vectors between ranks. What is asked of it is a step's distinct rows,
once for each rank that reads them; bags are pooled from them where they are read. Gradients of rows come back to their
owner the same way, are added up there, and move as ever: what torchrec would do with them inside its backward, nobody
could check, balance or clip before.

    index [n]  ->  distinct rows [U], place of each index among them [n]                      on the rank that reads
    rows [U]   ->  their owners; vectors come back as block [U, D], a leaf                    ids and vectors move
    block.grad ->  their owners, who add up what all ranks say of a row: RowGradient          gradients move

    row-wise     rank r of n owns ceil(rows / n) neighbours of the table
    table-wise   one rank owns it all
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from funnelrank import ranks
from funnelrank.embedding.tables import RowGradient, Table
from funnelrank.errors import ConfigError

PAIR = "torchrec 1.8.0 with fbgemm-gpu-cpu 1.8.0"            # goes with torch 2.13
WHOLE = 4                # fbgemm's vectors are multiples of it; the rest is zeros
SENT = 1 << 16           # rows at once, where a table is brought together
INSTALL = "pip install --no-deps -r requirements-distributed.txt"


class ShardedTable(Table):
    """A table of which this rank holds rows `first` .. `first` + len(weight) - 1; `owner` None: row-wise.

    Lookups and `take` are for all ranks together. What is seen of it from outside are the rows that are here, counted
    from 0: RowGradient.rows, optimisers' states and averages.
    """

    sharded = True

    def __init__(self, sizes: Mapping[str, int], width: int, init: float, name: str, owner: int | None):
        self.owner = owner
        self.torchrec = (_collection(name, sum(sizes.values()), width, owner),)     # in a tuple: not of a model's state
        super().__init__(sizes, width, init)
        self.torchrec[0]._lookups = nn.ModuleList(Lookup(self) for _ in self.torchrec[0]._lookups)
        self.sent: list[tuple[list[Tensor], list[Tensor], Tensor]] = []    # rows here, their vectors, what came of them

    def held(self, rows: int) -> tuple[int, int]:
        if self.owner is not None:
            return (0, rows) if self.owner == ranks.rank() else (0, 0)
        each = -(-rows // ranks.size())
        return min(ranks.rank() * each, rows), min((ranks.rank() + 1) * each, rows)

    def block(self, index: Tensor) -> tuple[Tensor, Tensor]:
        rows, place = torch.unique(index, return_inverse=True)
        learn = self.training and torch.is_grad_enabled()
        here, vectors, found = self._fetch(rows, learn)
        if not learn:
            return found, place
        block = found.detach().requires_grad_()
        self.pending.append((rows, block))
        self.sent.append((here, vectors, found))
        return block, place

    def _fetch(self, rows: Tensor, learn: bool) -> tuple[list[Tensor], list[Tensor], Tensor]:
        """rows [U] of the table -> what all ranks ask of this one: rows [m] and vectors [m, D]; and the U vectors."""
        from torchrec import KeyedJaggedTensor
        engine, = self.torchrec
        asked = KeyedJaggedTensor(keys=["row"], values=rows, lengths=torch.tensor([len(rows)]))
        context = engine.create_context()
        given = engine.input_dist(context, asked).wait().wait()
        here = [g.values().long() for g in given]
        vectors = [v.requires_grad_(learn) for v in engine.compute(context, given)]
        with torch.set_grad_enabled(learn):
            found = engine.output_dist(context, vectors).wait()["row"].values()
            return here, vectors, found[:, :self.width]

    def take(self, again: bool = False) -> list[RowGradient]:
        taken = []
        for (_, block), (here, vectors, found) in zip(self.pending, self.sent):
            if block.grad is None:
                continue
            back = torch.autograd.grad(found, vectors, block.grad, retain_graph=again)
            rows, place = torch.unique(torch.cat([*here, self.pad[:0]]), return_inverse=True)
            grad = self.weight.new_zeros(len(rows), self.width)
            grad.index_add_(0, place, torch.cat(back)[:, :self.width])
            taken.append(RowGradient(self, rows, grad, self.weight.detach()[rows]))
            block.grad = None
        if not again:
            self.pending, self.sent = [], []
        for g in taken:
            g.grad.masked_fill_(torch.isin(g.rows, self.here(self.pad)).unsqueeze(1), 0)
        return taken

    def here(self, rows: Tensor) -> Tensor:
        """Those of the table's rows that this rank holds, as it counts them."""
        rows = rows - self.first
        return rows[(rows >= 0) & (rows < len(self.weight))]

    def read(self, rows: Tensor) -> Tensor:
        """Vectors [n, D] of any rows [n] of the table; asked by all ranks together."""
        distinct, place = torch.unique(rows, return_inverse=True)
        return self._fetch(distinct, False)[2][place]

    def write(self, rows: Tensor, vectors: Tensor) -> None:
        """The same vectors for the same rows, said on every rank."""
        local = rows - self.first
        mine = (local >= 0) & (local < len(self.weight))
        self.weight[local[mine]] = vectors.expand(len(rows), -1)[mine]

    @torch.no_grad()
    def whole(self, file: Path | None) -> Tensor:
        """All rows on the first rank, in a tensor that lies in `file`; on the others, which send theirs, what is here.
        Asked by all together."""
        held = ranks.every((self.first, len(self.weight)))
        if not ranks.first():
            for a in range(0, len(self.weight), SENT):
                dist.send(self.weight[a:a + SENT].contiguous(), 0)
            return self.weight
        out = torch.from_file(str(file), shared=True, size=self.rows * self.width, dtype=self.weight.dtype)
        out = out.view(self.rows, self.width)
        out[self.first:self.first + len(self.weight)] = self.weight
        for r, (first, n) in list(enumerate(held))[1:]:
            for a in range(first, first + n, SENT):
                part = self.weight.new_empty(min(SENT, first + n - a), self.width)
                dist.recv(part, r)
                out[a:a + len(part)] = part
        return out

    def extra_repr(self) -> str:
        how = "row-wise" if self.owner is None else f"table-wise, on rank {self.owner}"
        return f"{super().extra_repr()}; {how}, {len(self.weight):,} rows here"


class Lookup(nn.Module):
    """What stands in torchrec's collection for fbgemm's lookup, which would own the rows and has no inference mode."""

    def __init__(self, table: ShardedTable):
        super().__init__()
        self.table = (table,)

    def forward(self, asked: Any) -> Tensor:
        table, = self.table
        return F.pad(table.weight.detach()[asked.values().long()], (0, -table.width % WHOLE))


def _collection(name: str, rows: int, width: int, owner: int | None) -> Any:
    """torchrec's sharded collection of one table: who holds what, and the ways between ranks. It holds no rows."""
    torchrec = _torchrec()
    from torch.distributed.optim import _apply_optimizer_in_backward
    from torchrec.distributed.comm_ops import set_gradient_division
    from torchrec.distributed.embedding import EmbeddingCollectionSharder
    from torchrec.distributed.sharding_plan import construct_module_sharding_plan, row_wise, table_wise
    from torchrec.distributed.types import ShardingEnv
    set_gradient_division(False)                          # losses are of all ranks' rows; their gradients are added
    for logger in ("torchrec.distributed.utils", "torchrec.distributed.embedding", "torch.fx._symbolic_trace"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    whole = torchrec.EmbeddingCollection(device=torch.device("meta"), tables=[torchrec.EmbeddingConfig(
        name=name, embedding_dim=width + -width % WHOLE, num_embeddings=rows, feature_names=["row"])])
    # rows never move inside torchrec; with an optimiser it takes its fused kernel: the dense one crashes on CPUs
    _apply_optimizer_in_backward(torch.optim.SGD, whole.parameters(), {"lr": 0.0})
    sharder = EmbeddingCollectionSharder()
    plan = construct_module_sharding_plan(
        whole, {name: row_wise() if owner is None else table_wise(rank=owner)}, sharder=sharder, device_type="cpu",
        world_size=ranks.size(), local_size=ranks.size())
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):      # what it draws, each rank would draw alone
        warnings.simplefilter("ignore")
        engine = sharder.shard(whole, plan, ShardingEnv.from_process_group(dist.group.WORLD),
                               torch.device("cpu"))
    for lookup in engine._lookups:                          # another takes its place when the rows are there
        for memory in lookup.parameters():
            memory.untyped_storage().resize_(0)             # whoever else in torchrec holds on to it
    return engine


def _torchrec() -> Any:
    """The package. Raises ConfigError where it is not there, or not one that works with this torch."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import torchrec
            import torchrec.distributed.embedding  # noqa: F401
    except (ImportError, OSError, AttributeError, RuntimeError) as error:
        raise ConfigError(
            f"embedding.sharding: tables this large lie apart, on several processes, by torchrec, which cannot be used "
            f"here ({type(error).__name__}: {str(error).splitlines()[0][:160] if str(error) else error}); with torch "
            f"2.13 the pair that works is {PAIR}: {INSTALL}") from error
    return torchrec
