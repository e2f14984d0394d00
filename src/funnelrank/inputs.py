"""The line between names and maths: what a model is given (Inputs), what it asks for (Needs), and the sizes (Spec).

B rows, T tasks, O outputs, S scenarios, F fields, D width of a field, W width of flat, L history, V views, H hidden.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor


class History(NamedTuple):
    """A history that a part asked for unpooled, paired with the row's own item.

        row 0  [a b]      values  [a b c]      each a vector [D]
        row 1  []         offsets [0 2 2 3]
        row 2  [c]        target  [t0 t1 t2]
    """

    values: Tensor      # [n, D]
    offsets: Tensor     # [B + 1]
    target: Tensor      # [B, D]


class Padded(NamedTuple):
    """The same side by side, as graphs want it whose shapes may not depend on what stands in the rows.

    Entries begin at the left. Places that hold none are vectors of zeros.
    """

    values: Tensor      # [B, L, D]
    there: Tensor       # [B, L] bool
    target: Tensor      # [B, D]


@dataclass
class Inputs:
    """Numbers without names. A part that gates or normalises changes `flat` and `fields` together."""

    flat: Tensor                                              # [B, W] everything, ordered by role
    fields: Tensor | None = None                              # [B, F, D] embedded features of one width
    groups: Mapping[str, Tensor] = field(default_factory=dict)        # role or group -> [B, W_g]
    histories: Mapping[str, History | Padded] = field(default_factory=dict)
    linear: Tensor | None = None                              # [B, F, O] a weight per id and output (first order)
    crosses: Tensor | None = None                             # [B, C, O] the same of declared crosses
    numbers: Tensor | None = None                             # [B, N]
    scenario: Tensor | None = None                            # [B] int64 ids; 0 null, 1 unseen
    raw: Tensor | None = None                                 # [B, W] flat, before a part normalised it


@dataclass(frozen=True)
class Needs:
    """What a part reads beside `flat`. The ranker hands the union of its parts' needs to the Embedding."""

    fields: bool = False
    linear: bool = False
    crosses: bool = False              # as weights only: they leave flat, fields and linear
    numbers: bool = False              # on their own, beside flat
    histories: bool = False            # jagged instead of pooled into flat
    scenario: bool = False             # which scenario a row is of; the config must name its column
    groups: tuple[str, ...] = ()

    def __or__(self, other: Needs) -> Needs:
        return Needs(self.fields or other.fields, self.linear or other.linear, self.crosses or other.crosses,
                     self.numbers or other.numbers, self.histories or other.histories, self.scenario or other.scenario,
                     tuple(dict.fromkeys((*self.groups, *other.groups))))


class Relation(NamedTuple):
    """Task `child` may learn from task `parent` (positions)."""

    parent: int
    child: int


@dataclass(frozen=True)
class Spec:
    """The same as sizes: all that a part needs to know to build itself."""

    flat: int                                                 # W
    tasks: int                                                # T
    scenarios: int = 0                                        # S; ids 0 (null) and 1 (unseen) included
    fields: tuple[int, int] | None = None                     # F, D
    starts: tuple[int, ...] = ()                              # where each field starts in flat
    widths: tuple[int, ...] = ()                              # and how wide each is
    number_columns: tuple[int, ...] = ()                      # where each number stands in flat
    number_starts: tuple[int, ...] = ()                       # the same in the order of `numbers`
    embedded: int = 0                                         # F, whatever their widths
    numbers: int = 0                                          # N
    groups: Mapping[str, int] = field(default_factory=dict)   # role or group -> W_g
    columns: Mapping[str, tuple[int, ...]] = field(default_factory=dict)      # role or group -> its columns in flat
    histories: Mapping[str, int] = field(default_factory=dict)   # history -> D
    relations: tuple[Relation, ...] = ()                      # parents stand before children
    outputs: tuple[int, ...] = ()                             # per task, how many of the O are its own; () is one
    log_odds: tuple[float, ...] = ()                          # per output, where its bias starts
    raw: int = 0                                              # width of Inputs.raw, where a part keeps it
    views: int = 1                                            # V, of what the slot before gives
    views_per: Literal["task", "scenario"] = "task"           # what V > 1 views are of
    hidden: int = 0                                           # H, likewise

    @property
    def owners(self) -> tuple[int, ...]:
        """Per output, the task that owns it: (0, 1, 2, 2, 2) where the last of three tasks has three."""
        return tuple(t for t, n in enumerate(self.outputs or (1,) * self.tasks) for _ in range(n))

    @property
    def known(self) -> int:
        """Scenarios that have a name: all but null and unseen."""
        return max(self.scenarios - 2, 0)


def with_flat(x: Inputs, flat: Tensor, spec: Spec) -> Inputs:
    """The same rows with other numbers in flat [B, W]; fields follow, unless they are columns of flat no longer."""
    if x.fields is None or not spec.starts:
        return replace(x, flat=flat)
    D = spec.fields[1]
    return replace(x, flat=flat, fields=torch.stack([flat[:, s:s + D] for s in spec.starts], 1))
