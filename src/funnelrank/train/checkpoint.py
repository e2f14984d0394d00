"""Checkpoints: where a run stands, so that it can go on as if it had never stopped.

Tensors hold what must come back bit by bit: weights, the state of both optimisers, the weight average, the
states of random generators (`torch.get_rng_state()`). The state is plain JSON: step, epoch, the loader's
position, the best value so far.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from funnelrank.durable import find_folder, remove_folder
from funnelrank.sealed import MANIFEST, open_sealed, read_json, refuse_strangers, to_json, write_sealed
from funnelrank.tensors import load_tensors, save_tensors

TENSORS, STATE = "tensors.safetensors", "state.json"


def save_checkpoint(folder: Path, name: str, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Writes `folder/name`, complete or not at all. The one before is removed when this one is on the disk.

    `state` must come back from JSON as it went: keys are texts, numbers are finite, None for "nothing yet".
    Anything else is a ValueError or TypeError here, not a surprise after a crash.

    Raises TrainingError if the disk is full or cannot be written; the one before is then still there.
    """
    files = {TENSORS: partial(_save, tensors), STATE: to_json(_plain(dict(state), "state"))}
    write_sealed(Path(folder) / name, "checkpoint", files, {})


def load_checkpoint(folder: Path, name: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors on the CPU and the state, or None if no checkpoint of that name was ever completed.

    Raises ArtefactError if it was changed or cut off since.
    """
    path = Path(folder) / name
    if find_folder(path) is None:
        return None
    sealed = open_sealed(path, "checkpoint")
    return load_tensors(sealed.path / TENSORS), read_json(sealed.path / STATE, f"checkpoint {path}")


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
    return str(read_json(path, f"checkpoint {path.parent}")["files"][TENSORS]["sha256"])


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
