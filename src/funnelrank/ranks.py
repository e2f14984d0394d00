"""The processes that train one model together under torchrun, called ranks, and what they tell each other.

Outside torchrun there is one rank, and every function here gives back what it was given. Inside, all ranks call the
same functions in the same order; where one is gone, the others get a TrainingError instead of waiting for it.
"""

from __future__ import annotations

import atexit
import datetime
import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from funnelrank.errors import ConfigError, FunnelrankError, TrainingError

PATIENCE = datetime.timedelta(days=2)        # while the first one reads and encodes; a dead one is felt at once
MEETING = datetime.timedelta(minutes=2)      # of ranks that start: gloo was seen to wait for ever after a restart
LOST = ("gloo", "Connection", "connection", "Broken pipe", "timed out", "Timed out", "recvBytes", "peer")

Value = TypeVar("Value")


@contextmanager
def joined() -> Iterator[None]:
    """Join the other processes that torchrun started, for as long as the block lasts. Raises TrainingError for a rank
    that was lost on the way."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or not dist.is_torchelastic_launched() or dist.is_initialized():
        yield
        return
    # A thread of the group that lets go of a tensor while the interpreter ends aborts the process; threads end with the
    # last that holds the group. These two hold it for good, as defaults of arguments, if first imported while it is
    # there; sharded tables hold it until they are collected.
    import torch.distributed.nn
    import torch.distributed.optim  # noqa: F401
    atexit.register(_collect)
    try:
        # one store outlives all restarts, and gloo would find addresses of the dead in it; launchers of several
        # machines count restarts differently, so there TORCH_DISABLE_SHARE_RDZV_TCP_STORE helps (docs/scale.md)
        store, here, among = next(dist.rendezvous("env://", timeout=MEETING))
        if os.environ.get("LOCAL_WORLD_SIZE") == str(among):
            store = dist.PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT')}", store)
        dist.init_process_group("gloo", store=store, rank=here, world_size=among, timeout=MEETING)
        dist.distributed_c10d._set_pg_timeout(PATIENCE, dist.group.WORLD)
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and not any(word in str(error) for word in LOST):
            raise
        raise TrainingError(f"rank {rank()}: another process of this run is gone ({str(error).splitlines()[0][:200]}); "
                            "torchrun starts all of them again where --max-restarts is above 0, and they go on from "
                            "the last checkpoint") from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _collect() -> None:
    for _ in range(3):                                     # what one collection closes may let go of more
        gc.collect()


def size() -> int:
    """How many ranks there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of them this one is, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def first() -> bool:
    """Whether this is the rank that writes and speaks for all."""
    return rank() == 0


def neighbours() -> int:
    """How many ranks share this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if size() > 1 else 1


def share(rows: int, of: int | None = None, by: int | None = None) -> tuple[int, int]:
    """The first row of `rows` that belongs to this rank (or to rank `of` of `by`), and the one behind its last."""
    r, n = rank() if of is None else of, by or size()
    return rows * r // n, rows * (r + 1) // n


# ---- tensors

def add(tensor: Tensor) -> Tensor:
    """The sum over ranks, in place."""
    if size() > 1:
        dist.all_reduce(tensor)
    return tensor


def most(tensor: Tensor) -> Tensor:
    """The largest over ranks, number by number, in place."""
    if size() > 1:
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return tensor


def gather(rows: Tensor, lengths: list[int] | None = None) -> list[Tensor]:
    """Every rank's `rows` [n_r, ...]. `lengths` are the n_r, where they are known; otherwise they are asked for."""
    if size() == 1:
        return [rows]
    if lengths is None:
        lengths = torch.stack(gather(torch.tensor([len(rows)]), [1] * size())).flatten().tolist()
    longest = max(lengths)
    if longest == 0:
        return [rows] * size()
    padded = rows.contiguous()
    if len(rows) < longest:
        padded = torch.cat([rows, rows.new_zeros(longest - len(rows), *rows.shape[1:])])
    every = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(every, padded)
    return [part[:n] for part, n in zip(every, lengths)]


class _Summed(torch.autograd.Function):
    """Each rank's loss reads the sum, so each rank's part of it owes all of their gradients."""

    @staticmethod
    def forward(ctx, x):
        return add(x.clone())

    @staticmethod
    def backward(ctx, g):
        return add(g.clone())


def summed(x: Tensor) -> Tensor:
    """The sum over ranks, through which gradients flow."""
    return _Summed.apply(x) if size() > 1 else x


class _Beside(torch.autograd.Function):
    """Own rows stand among those of the others, whose gradients are their own ranks' business."""

    @staticmethod
    def forward(ctx, own, lengths):
        ctx.place = slice(sum(lengths[:rank()]), sum(lengths[:rank() + 1]))
        return torch.cat(gather(own, lengths))

    @staticmethod
    def backward(ctx, g):
        return g[ctx.place], None


def beside(own: Tensor, lengths: list[int]) -> Tensor:
    """Every rank's rows in one tensor [sum of lengths, ...]; gradients flow to this rank's."""
    return _Beside.apply(own, lengths) if size() > 1 else own


# ---- everything else

def wait() -> None:
    """Until all ranks are here."""
    if size() > 1:
        dist.barrier()


def every(value: Value) -> list[Value]:
    """What each rank says."""
    if size() == 1:
        return [value]
    said: list[Any] = [None] * size()
    dist.all_gather_object(said, value)
    return said


def agreed(value: Value) -> Value:
    """What the first rank says."""
    if size() == 1:
        return value
    said = [value]
    dist.broadcast_object_list(said)
    return said[0]


def led(work: Callable[[], Value]) -> Value:
    """What `work` gives on the first rank, which alone does it; what it refuses is refused on every rank."""
    if size() == 1:
        return work()
    if first():
        try:
            done = work()
        except FunnelrankError as error:
            agreed((None, str(error)))
            raise
        agreed((done, None))
        return done
    done, failed = agreed(None)
    if failed is not None:
        raise ConfigError(failed)
    return done


def each(work: Callable[[], Value]) -> Value:
    """What `work` gives, which every rank does a part of; what one of them refuses is refused on all."""
    if size() == 1:
        return work()
    done, failed = None, None
    try:
        done = work()
    except FunnelrankError as error:
        failed = error
    if said := [text for text in every(failed and str(failed)) if text]:
        raise ConfigError(said[0]) from failed
    return done
