"""What a checkpoint must hold to be one of a model's: held against its files before they are believed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from funnelrank.errors import ArtefactError
from funnelrank.ranker import RankingModel
from funnelrank.settings import Settings
from funnelrank.train.optim import averaged_names, optimised_names, row_optimiser, row_state

FITTED = "calibration."      # fitted after training, on valid: never carried


def check_state(model: RankingModel, settings: Settings, tensors: Mapping[str, Tensor], state: Mapping[str, Any],
                where: str) -> None:
    """Raises ArtefactError unless a checkpoint is one of this model: its tensors by name and shape, its counts."""
    average, number = state.get("average"), lambda v, kinds: type(v) in kinds and v == v
    if not number(state.get("row_steps"), (int,)) or not (average is None or isinstance(average, dict) and number(
            average.get("steps"), (int,)) and number(average.get("log_decay"), (int, float))):
        raise ArtefactError(f"{where}: does not say how many steps were done; it was changed")
    if "random" in tensors and (tensors["random"].shape, tensors["random"].dtype) != (
            torch.get_rng_state().shape, torch.uint8):
        raise ArtefactError(f"{where}: holds no state of this version's random generator")
    order = optimised_names(model, settings.train.optimiser)
    shapes = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    needed = {f"model.{k}": shape for k, shape in shapes.items() if not k.startswith(FITTED)}
    for name, table in model.embedding.tables.items():
        kept = row_state(row_optimiser(name, settings.embedding), len(table.weight), table.width)
        needed |= {f"rows.{name}.{k}": shape for k, shape in kept.items()}
        if average is not None:
            needed |= {f"average.rows.{name}": tuple(table.weight.shape), f"average.seen.{name}": (len(table.weight),)}
    if average is not None:
        needed |= {f"average.dense.{i}": shapes[name] for i, name in enumerate(averaged_names(model))}
    for key, tensor in tensors.items():
        at = re.fullmatch(r"dense\.(\d{1,6})\.\w+", key)
        if at and (int(at[1]) >= len(order) or tuple(tensor.shape) not in ((), shapes[order[int(at[1])]])):
            raise ArtefactError(f"{where}: tensor '{key}' is {list(tensor.shape)}, which no weight of the model is")
    for key, shape in needed.items():
        if key not in tensors or tuple(tensors[key].shape) != shape:
            found = list(tensors[key].shape) if key in tensors else "not there"
            raise ArtefactError(f"{where}: tensor '{key}' is {found}; the model has {list(shape)}")
