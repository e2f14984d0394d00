"""A ranking model is five slots that know only numbers; a config names what stands in each.

    x = prepare(x)                            Inputs -> Inputs, a chain
    h = represent(x)                          Inputs -> [B, V, H]
    h = transfer(h)                           [B, V, H] -> [B, T, H']
    z = predict(h, x) + sum_k side_k(x)       -> logits [B, T]
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from functools import reduce
from operator import or_
from typing import Any

import pydantic
import torch
from torch import Tensor, nn

from funnelrank.errors import ConfigError, did_you_mean, listing
from funnelrank.inputs import Inputs, Needs, Spec
from funnelrank.models import MODELS, PARTS

CHAINS = ("prepare", "side")                                     # slots that hold any number of parts
SLOTS = ("prepare", "represent", "transfer", "predict", "side")
OWN_KEYS = ("name", "reading", "calibrator", "relations")        # keys of `model:` that are no slots


def fill_slots(model: Mapping[str, Any]) -> dict[str, Any]:
    """The `model:` section with the recipe's slots filled in, every part as {name: ..., keys}.

    >>> fill_slots({"name": "shared_bottom", "predict": "linear"})["predict"]
    {'name': 'linear'}
    """
    name = model.get("name")
    if name is not None and name not in MODELS:
        raise ConfigError(f"model.name: no model '{name}'; models are {listing(MODELS)}" + did_you_mean(name, MODELS))
    recipe = MODELS[name] if name is not None else {}
    for key in model:
        if key not in SLOTS + OWN_KEYS:
            raise ConfigError(f"model.{key}: unknown key; keys are {listing(OWN_KEYS + SLOTS, 12)}"
                              + did_you_mean(key, OWN_KEYS + SLOTS))
    filled: dict[str, Any] = {k: model[k] for k in OWN_KEYS if k in model}
    if "calibrator" in recipe:
        filled.setdefault("calibrator", None)                    # None: the recipe's own weight, where it can act
    for slot in SLOTS:
        if slot in CHAINS:
            parts = model.get(slot, recipe.get(slot, []))
            filled[slot] = [_named(slot, p, None) for p in (parts if isinstance(parts, list) else [parts])]
        elif slot in model or slot in recipe:
            part = _named(slot, model.get(slot), recipe.get(slot)) if model.get(slot, "") is not None else None
            filled[slot] = part
    for slot in ("represent", "predict"):
        if not filled.get(slot) and not filled["side"]:
            raise ConfigError(f"model.{slot}: nothing stands here; name a model, or a part: "
                              + listing(PARTS[slot]))
    return filled


def _named(slot: str, said: Any, recipe: Mapping[str, Any] | None) -> dict[str, Any]:
    said = {"name": said} if isinstance(said, str) else dict(said or {})
    name = said.get("name", recipe["name"] if recipe else None)
    if name not in PARTS[slot]:
        raise ConfigError(f"model.{slot}.name: no {slot} part '{name}'; parts are {listing(PARTS[slot])}"
                          + did_you_mean(str(name), PARTS[slot]))
    if recipe and name == recipe["name"]:
        return {**recipe, **said}
    if recipe and "per" in recipe and "per" in part_settings(PARTS[slot][name]).model_fields:
        said.setdefault("per", recipe["per"])
    return {"name": name, **said}


def part_settings(part: type) -> type[pydantic.BaseModel]:
    """What a config may say of a part: its constructor's keyword parameters, as a pydantic model."""
    fields: dict[str, Any] = {}
    for name, parameter in inspect.signature(part.__init__, eval_str=True).parameters.items():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            default = ... if parameter.default is inspect.Parameter.empty else parameter.default
            fields[name] = (parameter.annotation, default)
    return pydantic.create_model(part.__name__, __config__=pydantic.ConfigDict(extra="forbid", validate_default=True),
                                 __doc__=inspect.getdoc(part), **fields)


def build_part(slot: str, said: Mapping[str, Any], spec: Spec) -> nn.Module:
    part = PARTS[slot][said["name"]]
    settings = part_settings(part)
    try:
        keys = settings.model_validate({k: v for k, v in said.items() if k != "name"})
    except pydantic.ValidationError as error:
        messages = []
        for e in error.errors():
            where = ".".join(["model", slot, *map(str, e["loc"])])
            found = f"unknown key; keys are {listing(settings.model_fields)}" + did_you_mean(
                str(e["loc"][-1]), settings.model_fields) if e["type"] == "extra_forbidden" else (
                f"{e['msg'][0].lower()}{e['msg'][1:]}, found {e['input']!r}")
            messages.append(f"{where}: {found}")
        raise ConfigError(*messages) from None
    return part(spec, **{k: getattr(keys, k) for k in settings.model_fields})


class Slots(nn.Module):
    """The five slots in a row: Inputs -> logits [B, O]."""

    def __init__(self, filled: Mapping[str, Any], spec: Spec):
        super().__init__()
        self.prepare = nn.ModuleList()
        for said in filled["prepare"]:
            part = build_part("prepare", said, spec)
            spec = part.spec                                     # a preparing part says what it makes of its inputs
            self.prepare.append(part)
        self.side = nn.ModuleList(build_part("side", said, spec) for said in filled["side"])
        self.represent = self.transfer = self.predict = None
        if filled.get("represent"):
            self.represent = build_part("represent", filled["represent"], spec)
            spec = replace(spec, views=self.represent.views, hidden=self.represent.hidden)
            if filled.get("transfer"):
                self.transfer = build_part("transfer", filled["transfer"], spec)
                spec = replace(spec, views=self.transfer.views, hidden=self.transfer.hidden)
            if spec.views not in (1, spec.tasks):
                raise ConfigError(f"model.represent: gives {spec.views} views; {spec.tasks} tasks need one each, or "
                                  "one that all share")
            self.predict = build_part("predict", filled["predict"], spec)
        elif self.side:                                          # a sum of logits needs w_0
            self.bias = nn.Parameter(torch.tensor(spec.log_odds or (0.0,) * spec.tasks))
        self.tasks = spec.tasks

    @staticmethod
    def needs(filled: Mapping[str, Any]) -> Needs:
        """What the parts will ask the Embedding for, before they are built."""
        parts = [PARTS[slot][said["name"]] for slot in CHAINS for said in filled[slot]]
        parts += [PARTS[slot][filled[slot]["name"]] for slot in SLOTS if slot not in CHAINS and filled.get(slot)]
        return reduce(or_, (part.needs for part in parts), Needs())

    def forward(self, x: Inputs) -> Tensor:
        for part in self.prepare:
            x = part(x)
        if self.represent is None:
            logits = self.bias
        else:
            h = self.represent(x)
            if self.transfer is not None:
                h = self.transfer(h)
            logits = self.predict(h, x)
        for part in self.side:
            logits = logits + part(x)
        return logits
