"""The compiled kernels of csrc/: one shared library of plain C functions over raw pointers, called through ctypes.

It is optional. Whoever calls it keeps every buffer, checks every shape, and has another way where it is not there.
"""

from __future__ import annotations

import ctypes
import os
import warnings
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

LIBRARY = Path(__file__).with_name("_kernels.so")
VERSION = 12                                        # of the interface; csrc/rows.cpp says the same
FEW = 4096                                          # keys that numpy sorts faster
_NUMBER, _POINTER = ctypes.c_int64, ctypes.c_void_p
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3       # of glibc's malloc.h
FUNCTIONS = {                                       # name -> result, arguments
    "rows_gather": (_NUMBER, [_POINTER, _NUMBER]),
    "rows_reduce": (_NUMBER, [_POINTER, _POINTER]),
    "rows_collect": (None, [_POINTER, _NUMBER, _POINTER, _NUMBER, *[_POINTER] * 3]),
    "rows_level": (ctypes.c_char_p, [_NUMBER]),
    "rows_move": (None, [*[_POINTER] * 4, _NUMBER, _NUMBER]),
    "rows_large_pages": (None, [_POINTER, _NUMBER]),
    "norm_forward": (None, [_POINTER]),
    "norm_backward": (None, [_POINTER]),
    "dice_forward": (None, [_POINTER]),
    "dice_backward": (None, [_POINTER]),
    "unit_forward": (None, [_POINTER]),
    "unit_backward": (None, [_POINTER]),
    "spread_forward": (None, [_POINTER]),
    "spread_backward": (None, [_POINTER]),
    "pool_forward": (None, [_POINTER]),
    "pool_backward": (None, [_POINTER]),
    "mix_forward": (None, [_POINTER]),
    "mix_backward": (None, [_POINTER]),
    "gate_forward": (None, [_POINTER]),
    "gate_backward": (None, [_POINTER]),
    "pairs_forward": (None, [_POINTER]),
    "pairs_backward": (None, [_POINTER]),
    "small_forward": (None, [_POINTER]),
    "small_backward": (None, [_POINTER]),
    "take_rows": (_NUMBER, [_POINTER]),
    "take_values": (None, [_POINTER]),
    "sort_keys": (None, [_POINTER, _POINTER, _NUMBER, _NUMBER]),
    "keys_index": (_NUMBER, [_NUMBER, _POINTER, _POINTER, _NUMBER, _POINTER, _POINTER]),
    "keys_find": (None, [_NUMBER, *[_POINTER] * 4, _NUMBER, _POINTER, _POINTER]),
    "lists_find": (None, [_NUMBER, _POINTER, _NUMBER, _NUMBER, _POINTER, _POINTER]),
    "lists_offsets": (_NUMBER, [_NUMBER, _POINTER, _NUMBER, _POINTER, _POINTER]),
    "lists_places": (None, [_POINTER, _NUMBER, *[_POINTER] * 3]),
    "lists_inside": (_NUMBER, [_NUMBER, *[_POINTER, _NUMBER, _POINTER] * 2, _POINTER]),
    "lists_match": (_NUMBER, [_NUMBER, *[_POINTER] * 3, _NUMBER, _POINTER, _NUMBER, *[_POINTER] * 2]),
    "lists_match_sets": (_NUMBER, [_NUMBER, _POINTER, _POINTER, _NUMBER, _POINTER, _NUMBER, _POINTER, _POINTER,
                                   _NUMBER, _POINTER, _POINTER]),
}


@cache
def library() -> ctypes.CDLL | None:
    """The kernels; None, said once, where there are none that fit."""
    try:
        found = ctypes.CDLL(str(LIBRARY))
        found.rows_version.restype = _NUMBER
        if found.rows_version() != VERSION or not all(hasattr(found, name) for name in FUNCTIONS):
            raise OSError("they were built from another version; install the package again")
    except (OSError, AttributeError) as error:
        why = error if LIBRARY.exists() else "the package was installed without a C++ compiler"
        warnings.warn(f"no compiled kernels: {why}; torch and numpy do their work, more slowly", stacklevel=3)
        return None
    for name, (result, arguments) in FUNCTIONS.items():
        function = getattr(found, name)
        function.restype, function.argtypes = result, arguments
    return found


def struct(**fields: str) -> type[ctypes.Structure]:
    """A C struct; the names of its int64 (n), pointer (p), double (d) and float (f) members, in order."""
    types = {"n": ctypes.c_int64, "p": ctypes.c_void_p, "d": ctypes.c_double, "f": ctypes.c_float}
    return type("Struct", (ctypes.Structure,), {"_fields_": [(name, types[k[0]]) for k, names in fields.items()
                                                             for name in names.split()]})


ID, POOL, JAGGED, NUMBER = range(4)                 # kinds of items


class Item(NamedTuple):
    """One feature's way from the batch to columns of an output."""

    kind: int
    source: int          # column of ids or numbers, or number of the list
    table: int
    offset: int          # the space: rows offset .. offset + size of the table
    size: int
    output: int
    column: int
    width: int
    mean: int = 0


class Copy(NamedTuple):
    """The columns of an item once more, in another output."""

    item: int
    output: int
    column: int


# What rows_gather and rows_reduce are called with.
Work = struct(n="rows id_columns number_columns values tables items copies threads",
              p="id number value offset weight item copy table step output stride",
              n2="bad_item bad_row bad_id")


def threads() -> int:
    """Shares of the work: as many threads as torch uses."""
    import torch  # not needed to read data, and slow to come

    return min(torch.get_num_threads(), 256)


def at(tensor: Tensor | None) -> int | None:
    """Where a contiguous CPU tensor's numbers lie."""
    return None if tensor is None else tensor.data_ptr()


def sort_keys(keys: np.ndarray) -> None:
    """Sort uint32 or uint64 keys [n] in place."""
    native = library() if len(keys) >= FEW and keys.flags.c_contiguous else None
    if native is None:
        keys.sort()
    else:
        scratch = np.empty_like(keys)
        native.sort_keys(keys.ctypes.data, scratch.ctypes.data, len(keys), keys.itemsize)


def keep_freed_memory() -> None:
    """Ask glibc's malloc to keep what a step frees for the next one, up to 1 GB, instead of giving it back.

    A step's activations are otherwise mapped and zeroed by the kernel anew each time: 2 to 5 % of a step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt:
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)         # the most that it takes
        mallopt(_M_TRIM_THRESHOLD, 1 << 30)
