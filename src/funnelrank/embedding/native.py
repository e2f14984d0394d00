"""The native CPU engine: csrc/rows.cpp behind two torch operators.

    funnelrank::embed           all that a batch looks up, written straight to its columns: one call, every table
    funnelrank::embed_backward  gradients of the outputs -> one gradient per distinct row, which the engine keeps

Table gradients leave the graph there: what autograd sees is a token, whose gradient is zero.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from funnelrank.embedding.reference import outside
from funnelrank.kernels import ID, NUMBER, Copy, Item, Work, at, library, struct, threads
from funnelrank.settings import RowOptimiser

MOST_ROWS = 2**31                                   # of one table
OPTIMISERS = ("none", "sgd", "adagrad", "rowwise_adagrad", "adam", "ftrl")    # as csrc/rows.cpp counts them
STATES = {"none": (), "sgd": (), "adagrad": ("sum",), "rowwise_adagrad": ("sum",), "adam": ("m", "v"),
          "ftrl": ("sum", "z")}


Move = struct(n="kind width step state_step average_step seen_step", p="w s1 s2 average seen",
              d="before after", f="keep lr eps l1 l2 a1 b2 a2 c2")
_Distinct = struct(n="width capacity", p="slot row first gradient used move")


def large_pages(tensor: Tensor) -> Tensor:
    """The same tensor, with a wish for large pages under it: random rows then miss the address cache less often."""
    if tensor.device.type == "cpu":
        library().rows_large_pages(tensor.data_ptr(), tensor.nbytes)
    return tensor


def side_by_side(columns: Sequence[Tensor]) -> list[Tensor]:
    """The same tensors [rows] or [rows, n], float32 or float64, as views of one that holds all of a row together.

    Where no cache holds them, a row is then waited for, and its page looked up, once instead of once for each tensor.
    """
    starts, width = [], 0
    for c in columns:
        starts.append(width)
        width += c[:1].nbytes // 4
        width += width % 2                                       # doubles start at whole doubles
    whole = large_pages(torch.empty(len(columns[0]), width))
    views = [whole[:, at:at + c[:1].nbytes // 4].view(c.dtype) for c, at in zip(columns, starts)]
    return [(v if c.dim() == 2 else v.squeeze(1)).copy_(c) for v, c in zip(views, columns)]


class Rows(NamedTuple):
    """What a backward left of one table: distinct rows [U], their gradients and weights [U, D]."""

    table: int
    rows: Tensor
    grad: Tensor
    old: Tensor


class Native:
    """Looks up batches in `tables` and reduces gradients to their rows.

    names: of the items, for errors. outputs: widths. jagged: per output the list whose vectors it holds, or -1.
    """

    def __init__(self, tables: Sequence[nn.Module], items: Sequence[Item], copies: Sequence[Copy],
                 names: Sequence[str], outputs: Sequence[int], jagged: Sequence[int], lists: int):
        self.tables = list(tables)
        self.plan = torch.tensor(items, dtype=torch.int64).view(-1, len(Item._fields))
        self.copies = torch.tensor(sorted(copies), dtype=torch.int64).view(-1, len(Copy._fields))
        self.names, self.outputs, self.jagged, self.lists = "\n".join(names), list(outputs), list(jagged), lists
        for item in items:
            assert item.kind == NUMBER or item.offset + item.size <= len(tables[item.table].weight)
        of = [[i for i in items if i.kind != NUMBER and i.table == t] for t in range(len(tables))]
        self.id_items = [sum(i.kind == ID for i in mine) for mine in of]
        self.has_lists = [any(i.kind != ID for i in mine) for mine in of]
        self.pending: list[Rows] = []
        self.moves: list[Move] | None = None          # of this step's rows, inside backward; see RowUpdates.fuse
        self._start()

    def _start(self) -> None:
        self.key = next(_KEYS)
        _ENGINES[self.key] = self
        self.token = torch.zeros((), requires_grad=True)
        for table in self.tables:
            large_pages(table.weight)
        self.slots: list[Tensor] | None = None
        self.room: list[tuple[Tensor, Tensor, Tensor] | None] = [None] * len(self.tables)

    def __getstate__(self) -> dict[str, Any]:
        """A copy is an engine of its own, with a key and buffers of its own."""
        own = ("key", "token", "slots", "room")
        return {k: v for k, v in self.__dict__.items() if k not in own} | {"pending": [], "moves": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def fits(self) -> bool:
        """Whether the tables are what the kernels know: float32 on the CPU."""
        return all(t.weight.device.type == "cpu" and t.weight.dtype == torch.float32 and t.weight.stride(1) == 1
                   and len(t.weight) < MOST_ROWS for t in self.tables)

    def __call__(self, ids: Tensor, numbers: Tensor, values: Tensor, offsets: Tensor, weights: Tensor | None,
                 learn: bool) -> Sequence[Tensor]:
        """A batch's tensors -> the outputs, [B, width] each or [n, width] of a list's n vectors.

        Raises IndexError for an id outside its space, or offsets outside the values; nothing is read there.
        """
        tables = [t.weight for t in self.tables]
        token = self.token if learn else None
        if torch.compiler.is_compiling():
            return _embed(token, tables, ids, numbers, values, offsets, weights, self.plan, self.copies, self.outputs,
                          self.jagged, self.lists, self.names, self.key if learn else -1)
        if learn:       # the same without the operator's overhead, about 0.2 ms a step
            return _Embed.apply(token, self, tables, ids, numbers, values, offsets, weights)
        return _gather(tables, ids, numbers, values, offsets, weights, self.plan, self.copies, self.outputs,
                       self.jagged, self.lists, self.names)

    def reduce(self, gradients: Sequence[Tensor | None], ids: Tensor, values: Tensor, offsets: Tensor,
               weights: Tensor | None) -> None:
        """Gradients of the outputs -> `pending`; or, where `moves` are given, straight into the rows."""
        T, tables, (moves, self.moves) = threads(), self.tables, (self.moves, None)
        gradients = [None if g is None else g.contiguous() for g in gradients]
        if self.slots is None:
            self.slots = [large_pages(torch.zeros(len(t.weight), dtype=torch.int32)) for t in tables]
        used = torch.zeros(len(tables), T, dtype=torch.int64)
        distinct = (_Distinct * len(tables))()
        for k, table in enumerate(tables):
            lookups = len(ids) * self.id_items[k] + len(values) * self.has_lists[k]
            capacity = min(len(table.weight), lookups)
            row, first, gradient = self._room(k, T * capacity)
            distinct[k] = _Distinct(table.width, capacity, self.slots[k].data_ptr(), row.data_ptr(), first.data_ptr(),
                                    gradient.data_ptr(), used[k].data_ptr(),
                                    ctypes.addressof(moves[k]) if moves else None)
        work, kept = _work([t.weight for t in tables], ids, None, values, offsets, weights, self.plan, self.copies,
                           gradients, self.outputs, T)
        if library().rows_reduce(ctypes.byref(work), distinct):
            raise MemoryError("the embedding's backward found no memory")
        if moves:
            return
        for k, table in enumerate(tables):
            U = int(used[k].sum())
            if U:
                rows = torch.empty(U, dtype=torch.int64)
                grad, old = torch.empty(U, table.width), torch.empty(U, table.width)
                library().rows_collect(ctypes.byref(distinct[k]), T, table.weight.data_ptr(), table.weight.stride(0),
                                       rows.data_ptr(), grad.data_ptr(), old.data_ptr())
                self.pending.append(Rows(k, rows, grad, old))

    def take(self) -> list[Rows]:
        """What backwards left since the last time; a permission to move rows that was not used is gone."""
        taken, self.pending, self.moves = self.pending, [], None
        return taken

    def _room(self, k: int, rows: int) -> tuple[Tensor, Tensor, Tensor]:
        """Buffers for the distinct rows of table k, kept from step to step; only what is used is ever touched."""
        if self.room[k] is None or len(self.room[k][0]) < rows:
            rows += rows // 4
            self.room[k] = (torch.empty(rows, dtype=torch.int32), torch.empty(rows, dtype=torch.int32),
                            torch.empty(rows, self.tables[k].width))
        return self.room[k]


_KEYS = itertools.count()
_ENGINES: WeakValueDictionary[int, Native] = WeakValueDictionary()    # an operator takes no object, but a number


def _work(tables: Sequence[Tensor], ids: Tensor, numbers: Tensor | None, values: Tensor, offsets: Tensor,
          weights: Tensor | None, plan: Tensor, copies: Tensor, outputs: Sequence[Tensor | None],
          widths: Sequence[int], T: int) -> tuple[Any, tuple]:
    """The kernels' view of a batch, and what must stay alive while they look."""
    P, N = ctypes.c_void_p, ctypes.c_int64
    arrays = ((P * len(tables))(*map(at, tables)), (N * len(tables))(*(t.stride(0) for t in tables)),
              (P * len(outputs))(*map(at, outputs)), (N * len(widths))(*widths))
    work = Work(len(ids), ids.shape[1], 0 if numbers is None else numbers.shape[1], len(values), len(tables),
                 len(plan), len(copies), T, ids.data_ptr(), at(numbers), values.data_ptr(), offsets.data_ptr(),
                 at(weights), plan.data_ptr(), copies.data_ptr(), *map(ctypes.addressof, arrays))
    return work, arrays


def _gather(tables: Sequence[Tensor], ids: Tensor, numbers: Tensor, values: Tensor, offsets: Tensor,
            weights: Tensor | None, plan: Tensor, copies: Tensor, widths: Sequence[int], jagged: Sequence[int],
            lists: int, names: str) -> list[Tensor]:
    for name, tensor, dtype, dims in (("ids", ids, torch.int32, 2), ("numbers", numbers, torch.float32, 2),
                                      ("values", values, torch.int32, 1), ("offsets", offsets, torch.int64, 1),
                                      ("value_weights", weights, torch.float32, 1)):
        if tensor is not None and (tensor.dtype != dtype or tensor.dim() != dims):
            raise TypeError(f"batch.{name}: {tensor.dtype} of {tensor.dim()} axes; {dtype} of {dims} is needed")
    B, n = len(ids), len(values)
    if len(numbers) != B or len(offsets) != lists * B + 1 or (weights is not None and len(weights) != n):
        raise ValueError(f"batch: {B} rows of ids, {len(numbers)} of numbers, {len(offsets)} offsets of {lists} lists, "
                         f"{n} values, {n if weights is None else len(weights)} weights do not fit together")
    ids, numbers, values, offsets, weights = _contiguous(ids, numbers, values, offsets, weights)
    ends = offsets[::max(B, 1)].tolist() if max(jagged) >= 0 and B else [0] * (lists + 1)
    if any(a < 0 or b < a or b > n for a, b in zip(ends, ends[1:])):
        raise IndexError(f"batch.offsets: they lead outside the {n} values")
    outputs = [torch.empty(B if k < 0 else ends[k + 1] - ends[k], w) for w, k in zip(widths, jagged)]
    work, kept = _work(tables, ids, numbers, values, offsets, weights, plan, copies, outputs, widths, threads())
    refused = library().rows_gather(ctypes.byref(work), lists)
    if refused == 1:
        size = Item(*plan[work.bad_item].tolist()).size
        raise outside(names.splitlines()[work.bad_item], work.bad_row, work.bad_id, size)
    if refused == 2:
        raise IndexError(f"batch.offsets: they lead outside the {n} values")
    if refused:
        raise MemoryError("the embedding's forward found no memory")
    return outputs


def _contiguous(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if t is None else t.contiguous() for t in tensors]


# ---- as torch operators

class _Embed(torch.autograd.Function):
    """funnelrank::embed and its gradient for eager steps."""

    @staticmethod
    def forward(ctx, token, engine, tables, ids, numbers, values, offsets, weights):
        ctx.engine, ctx.batch = engine, _contiguous(ids, values, offsets, weights)
        ctx.set_materialize_grads(False)
        return tuple(_gather(tables, ids, numbers, values, offsets, weights, engine.plan, engine.copies,
                             engine.outputs, engine.jagged, engine.lists, engine.names))

    @staticmethod
    def backward(ctx, *gradients):
        ctx.engine.reduce(gradients, *ctx.batch)
        return (None,) * 8


@torch.library.custom_op("funnelrank::embed", mutates_args=(), device_types="cpu", schema=(
    "(Tensor? token, Tensor[] tables, Tensor ids, Tensor numbers, Tensor values, Tensor offsets, Tensor? weights, "
    "Tensor plan, Tensor copies, int[] widths, int[] jagged, int lists, str names, int engine) -> Tensor[]"))
def _embed(token, tables, ids, numbers, values, offsets, weights, plan, copies, widths, jagged, lists, names, engine):
    return _gather(tables, ids, numbers, values, offsets, weights, plan, copies, widths, jagged, lists, names)


@_embed.register_fake
def _(token, tables, ids, numbers, values, offsets, weights, plan, copies, widths, jagged, lists, names, engine):
    lengths = {k: torch.library.get_ctx().new_dynamic_size() for k in jagged if k >= 0}
    return [numbers.new_empty(lengths.get(k, ids.shape[0]), w) for w, k in zip(widths, jagged)]


@torch.library.custom_op("funnelrank::embed_backward", mutates_args=(), device_types="cpu", schema=(
    "(Tensor?[] gradients, Tensor ids, Tensor values, Tensor offsets, Tensor? weights, int engine) -> Tensor"))
def _embed_backward(gradients, ids, values, offsets, weights, engine):
    _ENGINES[engine].reduce(gradients, *_contiguous(ids, values, offsets, weights))
    return torch.zeros(())


@_embed_backward.register_fake
def _(gradients, ids, values, offsets, weights, engine):
    return torch.empty(())


def _setup(ctx, inputs, output):
    ids, values, offsets, weights = inputs[2], *inputs[4:7]
    ctx.save_for_backward(ids, values, offsets, *([] if weights is None else [weights]))
    ctx.tables, ctx.engine = len(inputs[1]), inputs[-1]


def _backward(ctx, gradients):
    ids, values, offsets, *weights = ctx.saved_tensors
    token = _embed_backward(gradients, ids, values, offsets, weights[0] if weights else None, ctx.engine)
    return token, [None] * ctx.tables, *[None] * 12


_embed.register_autograd(_backward, setup_context=_setup)


# ---- how rows move

class Shadow(NamedTuple):
    """The weight average of one table's rows, and what this step does to it; train/optim.py says how."""

    rows: Tensor         # [rows, D]
    seen: Tensor         # [rows] float64
    decay: float
    before: float
    after: float


def move(weight: Tensor, settings: RowOptimiser | None, state: Mapping[str, Tensor], lr: float, step: int,
         shadow: Shadow | None) -> Move:
    """What the kernels need to move rows of `weight` at step 1, 2, ...: by an optimiser, or (None) only the average."""
    name = settings.name if settings else "none"
    made = Move(kind=OPTIMISERS.index(name), width=weight.shape[1], w=weight.data_ptr(), step=weight.stride(0))
    states = [state[k] for k in STATES[name]]
    made.s1, made.s2 = [*(s.data_ptr() for s in states), None, None][:2]
    made.state_step = states[0].stride(0) if states else 0
    if settings:
        b1, b2 = settings.betas
        made.lr, made.eps, made.l1, made.l2 = lr, settings.eps, settings.l1 * settings.lr, settings.l2
        if name == "adam":
            made.lr = lr / (1 - b1 ** step)
            made.a1, made.b2, made.a2, made.c2 = 1 - b1, b2, 1 - b2, 1 - b2 ** step
    if shadow:
        made.average, made.seen = shadow.rows.data_ptr(), shadow.seen.data_ptr()
        made.average_step, made.seen_step = shadow.rows.stride(0), shadow.seen.stride(0)
        made.before, made.after, made.keep = shadow.before, shadow.after, 1 - shadow.decay
    return made


def move_rows(how: Move, rows: Tensor, grad: Tensor | None, old: Tensor | None) -> None:
    """Move distinct rows [U] whose gradients [U, D] lie open; `old` [U, D] are the weights before, for the average."""
    library().rows_move(ctypes.byref(how), rows.data_ptr(), at(grad), at(old), len(rows), threads())
