"""Tensors as safetensors files: names, shapes and types are held against what is expected before any is read."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from funnelrank.errors import ArtefactError, did_you_mean, listing

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
          "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
          "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64, "BOOL": torch.bool}


def save_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str] | None = None) -> None:
    """Writes tensors of any device, shape and layout as safetensors; texts `about` them go into its header. OSError
    where the disk is full."""
    seen: set[int] = set()
    ready = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        place = tensor.untyped_storage().data_ptr()
        ready[name] = tensor.clone() if place in seen else tensor     # safetensors refuses shared memory
        seen.add(place)
    try:
        save_file(ready, path, dict(about) if about else None)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def load_tensors(path: Path, expected: Mapping[str, tuple[tuple[int, ...], torch.dtype]] | None = None,
                 ) -> dict[str, Tensor]:
    """Tensors of a safetensors file, on the CPU, in memory of their own.

    `expected` says name -> (shape, dtype) of every tensor there must be; the file's header is held against it
    before any tensor is read. Raises ArtefactError naming the tensor.
    """
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            found = {name: _described(file.get_slice(name), name, path) for name in names}
            for name, (shape, dtype) in (expected or {}).items():
                if name not in found:
                    raise ArtefactError(f"{path}: no tensor '{name}'{did_you_mean(name, found)}")
                if found[name] != (tuple(shape), dtype):
                    raise ArtefactError(f"{path}: tensor '{name}' is {_spell(*found[name])}; the model has "
                                        f"{_spell(tuple(shape), dtype)}")
            extra = sorted(set(found) - set(expected)) if expected is not None else []
            if extra:
                raise ArtefactError(f"{path}: holds {listing(extra)}, of which the model knows nothing")
            return {name: file.get_tensor(name).clone() for name in found}
    except SafetensorError as error:
        raise ArtefactError(f"{path}: not readable as safetensors: {error}") from None
    except FileNotFoundError:
        raise ArtefactError(f"{path}: there is no such file") from None


def _described(piece: Any, name: str, path: Path) -> tuple[tuple[int, ...], torch.dtype]:
    if piece.get_dtype() not in DTYPES:
        raise ArtefactError(f"{path}: tensor '{name}' is of type {piece.get_dtype()}, which is not used here")
    return tuple(piece.get_shape()), DTYPES[piece.get_dtype()]


def _spell(shape: tuple[int, ...], dtype: torch.dtype) -> str:
    return f"{str(dtype).removeprefix('torch.')} {list(shape)}"
