"""Checkpoints: where a run stands, so that it can go on as if it had never stopped.

Tensors hold what must come back bit by bit: weights, the state of both optimisers, the weight average, the
states of random generators (`torch.get_rng_state()`). The state is plain JSON: step, epoch, the loader's
position, the best value so far.

    last/tensors.safetensors        of one process
    last/tensors/shard-...          of several ranks: each wrote the rows that it holds, in the form of safetensors that
                                    torch.distributed.checkpoint reads
    last/state.json  manifest.json

Any number of ranks reads either. Both are private to the run, and hold no pickle.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from funnelrank import ranks
from funnelrank.durable import find_folder, remove_folder, write_failure
from funnelrank.errors import TrainingError
from funnelrank.sealed import MANIFEST, open_sealed, read_json, refuse_strangers, to_json, write_sealed
from funnelrank.tensors import load_tensors, save_tensors

TENSORS, STATE, SHARDS = "tensors.safetensors", "state.json", "tensors"
DCP = "DCP_SHARDING_INFO"        # where torch.distributed.checkpoint looks for the place of a shard in its tensor


class Part(NamedTuple):
    """Rows of a tensor of `rows` that are here: `here` of them, from `first` on."""

    first: int
    here: int
    rows: int

    def of(self, whole: Tensor) -> Tensor:
        return whole[self.first:self.first + self.here]


def save_checkpoint(folder: Path, name: str, tensors: Mapping[str, Tensor], state: Mapping[str, Any],
                    parts: Mapping[str, Part] | None = None) -> None:
    """Writes `folder/name`, complete or not at all. The one before is removed when this one is on the disk.

    Of several ranks all call it: each writes its `parts`, those of `tensors` of which other rows lie with others.

    `state` must come back from JSON as it went: keys are texts, numbers are finite, None for "nothing yet".
    Anything else is a ValueError or TypeError here, not a surprise after a crash.

    Raises TrainingError if the disk is full or cannot be written; the one before is then still there.
    """
    said = to_json(_plain(dict(state), "state"))
    target = Path(folder) / name
    if ranks.size() == 1:
        write_sealed(target, "checkpoint", {TENSORS: partial(_save, tensors), STATE: said}, {})
        return
    write = lambda path: _save_shards(Path(ranks.agreed(str(path))), tensors, parts or {}, target)
    if ranks.first():
        write_sealed(target, "checkpoint", {SHARDS: write, STATE: said}, {})
    else:
        write(Path())
    ranks.wait()


def load_checkpoint(folder: Path, name: str, parts: Mapping[str, Part] | None = None,
                    into: Mapping[str, Tensor] | None = None) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors on the CPU and the state, or None if no checkpoint of that name was ever completed. Of several ranks all
    call it, and of each of `parts` get their own rows: read where `into` holds them, since a rank may have no room for
    them twice.

    Raises ArtefactError if it was changed or cut off since.
    """
    path = Path(folder) / name
    found = ranks.led(lambda: None if find_folder(path) is None else str(open_sealed(path, "checkpoint").path))
    if found is None:
        return None
    state = read_json(Path(found) / STATE, f"checkpoint {path}")
    if not parts and (Path(found) / TENSORS).exists():
        return load_tensors(Path(found) / TENSORS), state
    return _load_shards(Path(found), parts or {}, into or {}), state


def discard_checkpoints(folder: Path) -> None:
    """Removes the checkpoints of a run that is not gone on with. Raises ArtefactError where one is something else."""
    paths = [Path(folder) / name for name in ("last", "best")]
    for path in paths:
        refuse_strangers(path, "checkpoint")
    for path in paths:
        remove_folder(path)


def tensors_hash(folder: Path, name: str) -> str:
    """The hash of a checkpoint's tensors, as its seal says it. Raises ArtefactError where there is none."""
    path = Path(folder) / name / MANIFEST
    files = read_json(path, f"checkpoint {path.parent}")["files"]
    if TENSORS in files:
        return str(files[TENSORS]["sha256"])
    return hashlib.sha256(to_json({n: said["sha256"] for n, said in sorted(files.items()) if n != STATE})).hexdigest()


def _save_shards(folder: Path, tensors: Mapping[str, Tensor], parts: Mapping[str, Part], target: Path) -> None:
    """Of each part the rows that are here, and of the first rank all else, into a folder that all ranks see. A part has
    a file of its own: whoever reads one maps it whole.

    torch.distributed.checkpoint's own writer makes a copy of all that it writes; where a rank's memory did not hold it
    twice, it was seen to stand still for ever.
    """
    def write() -> None:
        try:
            folder.mkdir(exist_ok=True)
            if ranks.first():
                save_tensors(folder / "shard-all.safetensors", {n: t for n, t in tensors.items() if n not in parts})
            for k, (name, part) in enumerate(sorted(parts.items())):
                if part.here:
                    start = [part.first] + [0] * (tensors[name].dim() - 1)
                    save_tensors(folder / f"shard-{ranks.rank()}-{k}.safetensors", {name: tensors[name]},
                                 {DCP: to_json({name: {"saved_offsets": start}}).decode()})
        except OSError as error:
            if (failed := write_failure(error, folder)) is None:
                raise
            raise TrainingError(f"checkpoint {target}, rank {ranks.rank()}: {failed}") from error

    ranks.each(write)


def _load_shards(folder: Path, parts: Mapping[str, Part], into: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What either kind of checkpoint holds; of `parts` the rows that are here, in their place in `into`."""
    import torch.distributed.checkpoint as dcp
    with _quiet():
        reader = dcp.HuggingFaceStorageReader(str(folder / SHARDS if (folder / SHARDS).exists() else folder))
        said = reader.read_metadata().state_dict_metadata
        tensors = {}
        for name, about in sorted(said.items()):
            rows = parts[name].here if name in parts else about.size[0] if about.size else None
            shape, dtype = (rows, *about.size[1:]) if rows is not None else (), about.properties.dtype
            there = into[name].detach() if name in into and name in parts else None
            tensors[name] = there if there is not None and (there.shape, there.dtype) == (shape, dtype) else (
                torch.empty(shape, dtype=dtype))
        dcp.load({name: _shard(t, parts[name]) if name in parts else t for name, t in tensors.items()},
                 storage_reader=reader)
    return tensors


def _shard(here: Tensor, part: Part) -> Any:
    """Rows of a larger tensor, in the form in which torch.distributed.checkpoint knows where they belong."""
    from torch.distributed._shard.metadata import ShardMetadata
    from torch.distributed._shard.sharded_tensor import Shard, init_from_local_shards
    start = [part.first] + [0] * (here.dim() - 1)
    mine = [Shard(here, ShardMetadata(start, list(here.shape), f"rank:{ranks.rank()}/cpu"))] if part.here else []
    return init_from_local_shards(mine, part.rows, *here.shape[1:])


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch.distributed.checkpoint says of its own future."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    save_tensors(path, tensors)


def _plain(value: Any, where: str) -> Any:
    if isinstance(value, dict):
        if odd := [key for key in value if type(key) is not str]:
            raise TypeError(f"{where}: key {odd[0]!r} is no text, so JSON would change it")
        return {key: _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if not isinstance(value, str | int | float | bool | None):
        raise TypeError(f"{where}: {value!r} is a {type(value).__name__}, which JSON would change")
    return value
