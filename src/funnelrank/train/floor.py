"""The least time in which a CPU could do a training step: its products at the best rate, its rows at the best rate.

    floor = 2 multiply_adds / FLOP_per_second + bytes / bytes_per_second

    multiply_adds   of every matrix product that a step of the network needs, forward and backward, counted as they run
    bytes           looked-up rows read; what the lookup writes; its gradient read; and for each distinct row its
                    weight, optimiser state and average read and written
    rates           the best that this machine shows on the network's own shapes, and on copies larger than its caches

Optimistic on purpose: activations, normalisation, losses, the dense optimiser and the loader count as nothing. Rates
are per CPU second of `torch.get_num_threads()` threads, and so is the floor.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from funnelrank.batch import Batch
from funnelrank.embedding.tables import Embedding
from funnelrank.inputs import History, Inputs
from funnelrank.nn import mix
from funnelrank.nn.affine import affine
from funnelrank.nn.linear import without_blocks
from funnelrank.nn.watch import as_written
from funnelrank.ranker import RankingModel
from funnelrank.train.optim import Average, RowUpdates

BEYOND_CACHES = 1 << 28            # bytes of each side of a copy


class Product(NamedTuple):
    """n products [m, k] x [k, p]."""

    n: int
    m: int
    k: int
    p: int


@dataclass(frozen=True)
class Work:
    """What one step has to do, whatever the implementation."""

    rows: int
    products: tuple[Product, ...]
    bytes: int

    @property
    def multiply_adds(self) -> int:
        return sum(map(prod, self.products))


@dataclass(frozen=True)
class Machine:
    """Best rates per CPU second."""

    flops: float
    bytes: float


def floor_ms(work: Work, machine: Machine) -> float:
    """CPU milliseconds below which no step of this work can come."""
    return 1e3 * (2 * work.multiply_adds / machine.flops + work.bytes / machine.bytes)


# ---- the work

def work_of(model: RankingModel, batch: Batch, updates: RowUpdates, average: Average | None = None) -> Work:
    """The work of a training step on `batch`. The model, its gradients and the random state stay as they are."""
    return Work(len(batch), tuple(products(model, batch)), row_bytes(model.embedding, batch, updates, average))


def products(model: RankingModel, batch: Batch, backward: bool = True) -> list[Product]:
    """Every matrix product of the network, forward and, unless that is left out, backward to its inputs.

    On a copy of the network in float64, in which no kernel of ours does products that could not be seen.
    """
    slots = deepcopy(model.slots).double().train()
    with torch.random.fork_rng(devices=[]):
        with torch.no_grad():
            x = model.embedding(batch)
        x = _leaves(x)
        with without_blocks(), mix.kernels.off(), _Products() as seen:
            logits = slots(x)
            if backward:
                logits.sum().backward()
    return seen.found


class Ran(NamedTuple):
    """What one module of the network did."""

    gave: Any                            # of its last call, in float64
    products: tuple[Product, ...]        # of all its calls, those of modules inside it included


def ran(model: RankingModel, batch: Batch, paths: Collection[str]) -> dict[str, Ran]:
    """The forward pass as `products` runs it, by modules' paths below `model.slots`; one that did not run is absent."""
    slots, found, gave = deepcopy(model.slots).double().train(), {}, {}
    begun: list[int] = []
    with torch.random.fork_rng(devices=[]), torch.no_grad(), as_written(), without_blocks(), _Products() as seen:
        def begins(module: Any, given: Any) -> None:
            begun.append(len(seen.found))

        def ends(path: str) -> Callable[..., None]:
            def hook(module: Any, given: Any, answer: Any) -> None:
                gave[path] = answer
                found.setdefault(path, []).extend(seen.found[begun.pop():])
            return hook
        for path in paths:
            module = slots.get_submodule(path)
            module.register_forward_pre_hook(begins)
            module.register_forward_hook(ends(path))
        slots(_leaves(model.embedding(batch)))
    return {path: Ran(gave[path], tuple(found[path])) for path in found}


def multiply_adds(model: RankingModel, batch: Batch) -> int:
    """Of all matrix products of the network, forward."""
    return sum(map(prod, products(model, batch, backward=False)))


class _Products(TorchDispatchMode):
    """Notes the shapes of all products while it is entered."""

    PLACES = {"aten::mm": 0, "aten::bmm": 0, "aten::addmm": 1, "aten::baddbmm": 1, "aten::mv": 0,
              "aten::addmv": 1}                                      # of the left operand

    def __init__(self):
        super().__init__()
        self.found: list[Product] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        if name in self.PLACES:
            left, right = (args[self.PLACES[name] + i].shape for i in (0, 1))
            n, right = (left[0], right[1:]) if len(left) == 3 else (1, right)
            self.found.append(Product(n, *left[-2:], right[1] if len(right) > 1 else 1))
        return func(*args, **(kwargs or {}))


def _leaves(x: Inputs) -> Inputs:
    """The same inputs, each a leaf that wants a gradient, as the embedding's outputs do."""
    def leaf(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.detach().double().requires_grad_() if value.is_floating_point() else value
        if isinstance(value, History):
            return History(leaf(value.values), value.offsets, leaf(value.target))
        return {k: leaf(v) for k, v in value.items()} if isinstance(value, dict) else value
    return replace(x, **{f.name: leaf(getattr(x, f.name)) for f in fields(x)})


def row_bytes(embedding: Embedding, batch: Batch, updates: RowUpdates, average: Average | None = None) -> int:
    """Bytes that a step has to move between memory and the core for its rows; see the head of this file."""
    layout, total = embedding.layout, 0
    bags = {f: batch.bags(k)[0].long() for k, f in enumerate(layout.lists)}
    ids = {f: batch.ids[:, i].long() for i, f in enumerate(layout.ids)} | bags
    for name, table in embedding.tables.items():
        held = [f for f in ids if name == "linear" or embedding.width_of[f] == table.width]
        if not held:
            continue
        rows = torch.cat([ids[f] + table.offset[layout.space[f]] for f in held])
        written = sum(len(ids[f]) if f in layout.ids or (f in embedding.histories and name != "linear") else len(batch)
                      for f in held)
        row = table.weight.element_size() * table.width
        kept = [table.weight, *updates.state[name].values()]
        kept += [average.rows[name], average.seen[name].unsqueeze(1)] if average else []
        total += row * (len(rows) + 2 * written)
        total += 2 * len(rows.unique()) * sum(t.element_size() * t.shape[1] for t in kept)
    return total


# ---- the machine

def measure_machine(shapes: Iterable[Product], seconds: float = 0.05) -> Machine:
    """Best rates over all `shapes`, and over copies; about `seconds` for each shape and ten times that for copies."""
    flops = max((2 * prod(s) / _best(way, seconds) for s in set(shapes) for way in _ways(s)), default=float("inf"))
    source = torch.ones(BEYOND_CACHES // 4)
    target = torch.ones_like(source)
    return Machine(flops, 2 * source.nbytes / _best(lambda: target.copy_(source), 10 * seconds))


def _ways(shape: Product) -> list[Callable[[], Any]]:
    """The product as layers do it, x W^T: by torch, into memory that is already there, and by nn/affine.py."""
    n, m, k, p = shape
    x, weight, out = torch.randn(n, m, k), torch.randn(n, p, k), torch.empty(n, m, p)
    if n > 1:
        return [lambda: torch.bmm(x, weight.transpose(1, 2), out=out)]
    x, weight, out = x[0], weight[0], out[0]
    return [lambda: torch.mm(x, weight.T, out=out), lambda: affine(x, weight, None)]


def _best(work: Callable[[], Any], seconds: float) -> float:
    """Least CPU seconds of one call, over at least three spans of time long enough to be read off a clock."""
    work()
    calls, best, end = 1, float("inf"), None
    while True:
        start = time.process_time()
        for _ in range(calls):
            work()
        spent = time.process_time() - start
        if spent < seconds / 10 and calls < 1 << 20:
            calls *= 2
            continue
        best = min(best, spent / calls)
        end = end or start + max(seconds, 3 * spent)
        if time.process_time() >= end:
            return best
