"""Rows as tensors, and what stands in which column of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Which feature is which column of a Batch, and how many ids each id space has. Made by a fitted Encoder.

    A feature of several numbers has several columns (`match(author,shown)` has `.count` and `.recency`).
    """

    ids: tuple[str, ...]                  # F features with one id a row
    numbers: tuple[str, ...]              # N columns of numbers
    lists: tuple[str, ...]                # K features with several ids a row
    tasks: tuple[str, ...]                # T
    space: Mapping[str, str]              # id or list feature -> id space
    size: Mapping[str, int]               # id space -> ids in it, PAD and OOV included
    role: Mapping[str, str]               # feature, or column of numbers -> role
    pool: Mapping[str, str]               # list feature -> mean | sum
    target: Mapping[str, str]             # list feature -> id feature it is paired with, where there is one
    feature: Mapping[str, str]            # column of numbers -> the feature it belongs to
    scenarios: tuple[str, ...]            # names; scenario id s + 2 is scenarios[s] (0 null, 1 unseen in train)
    weighted: bool = False                # some list carries a weight per id
    crosses: tuple[str, ...] = ()         # those of `ids` that are crosses of others


@dataclass
class Batch:
    """B rows. Lists are packed feature by feature, as values and offsets:

                row 0    row 1    row 2
    list a      [5 7]    []       [2]
    list b      [9]      [4 4 8]  []         values  [5 7 2 9 4 4 8]
                                             offsets [0 2 2 3 4 7 7]     bag (k, b) is number k * B + b
    """

    ids: Tensor               # [B, F] int32, each in its own space
    numbers: Tensor           # [B, N] float32, scaled, missing already filled
    values: Tensor            # [n] int32
    offsets: Tensor           # [K * B + 1] int64
    scenario: Tensor          # [B] int32; 0 null, 1 unseen in train
    labels: Tensor            # [B, T] float32, NaN where not observed
    weight: Tensor            # [B] float32
    user: Tensor              # [B] int64, a code that is equal for equal users
    value_weights: Tensor | None = None   # [n] float32, where a list carries weights

    def __len__(self) -> int:
        return self.ids.shape[0]

    def to(self, device: torch.device | str) -> Batch:
        """The same rows on `device`: the only copy a step makes."""
        moved = {f.name: v.to(device, non_blocking=True) for f in fields(self)
                 if (v := getattr(self, f.name)) is not None}
        return replace(self, **moved)

    def bags(self, k: int) -> tuple[Tensor, Tensor]:
        """List feature k alone: values [m] and offsets [B + 1] that start at 0."""
        B = len(self)
        offsets = self.offsets[k * B:(k + 1) * B + 1]
        return self.values[offsets[0]:offsets[-1]], offsets - offsets[0]
