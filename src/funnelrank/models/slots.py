"""A ranking model is five slots that know only numbers; a config names what stands in each.

    x = prepare(x)                            Inputs -> Inputs, a chain
    h = represent(x)                          Inputs -> [B, V, H]
    h = transfer(h)                           [B, V, H] -> [B, T, H']
    z = predict(h, x) + sum_k side_k(x)       -> [B, O], of which each task owns a slice; O = T of binary tasks

A part is a module made from a Spec and the config's keys. It declares, as class attributes, what others must know:

    needs              what it asks the Embedding for
    reads              of flat, fields and raw, those whose makers learn through it (what it only looks at behind a
                       stop-gradient does not count); {name: None}, or {name: key} if only where `key` says something.
                       Undeclared: flat. Groups that it names in `groups` count by themselves
    changes            prepare: which of flat and fields are others behind it. Undeclared: both
    keeps              prepare: the key that says whether flat as it was stays beside what is new (undeclared: it does)
    makes, sets_raw    prepare: groups that it adds; that it keeps flat as it found it in raw
    takes_scenarios    predict: it can read a view for each scenario
    weighs             what it weighs against each other (train/axes.py)

A part may have a method `penalty()`, a scalar that is minimised beside the losses.


From these `check` (check.py) refuses what makes no sense together, before anything is built.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import reduce
from operator import add, or_
from typing import Any

import torch
from torch import Tensor, nn

from funnelrank.check import asked_groups
from funnelrank.errors import ConfigError
from funnelrank.fill import CHAINS
from funnelrank.inputs import Inputs, Needs, Spec
from funnelrank.models import PARTS, part_class
from funnelrank.own_parts import built, is_own


def build_part(slot: str, said: Mapping[str, Any], spec: Spec) -> nn.Module:
    """{name: mlp, hidden: [64]} -> MLPBody(spec, hidden=[64]). The config's keys are the constructor's."""
    name, keys = said["name"], {k: v for k, v in said.items() if k != "name"}
    if not is_own(name):
        return PARTS[slot][name](spec, **keys)
    part = built(slot, name, spec, **keys)
    _watch(part, slot, name, spec)
    return part


class Slots(nn.Module):
    """The five slots in a row: Inputs -> logits [B, O].

    `model` is the config's section with every slot filled in, as `config.load` gives it: each part {name: ..., keys}.
    """

    def __init__(self, model: Mapping[str, Any], spec: Spec):
        super().__init__()
        self.said = model
        self.prepare = nn.ModuleList()
        for said in model.get("prepare", ()):
            part = build_part("prepare", said, spec)
            spec = part.spec                                     # a preparing part says what it makes of its inputs
            self.prepare.append(part)
        self.side = nn.ModuleList(build_part("side", said, spec) for said in model.get("side", ()))
        self.represent = self.transfer = self.predict = None
        if model.get("represent"):
            self.represent = build_part("represent", model["represent"], spec)
            spec = replace(spec, views=self.represent.views, hidden=self.represent.hidden,
                           views_per=getattr(self.represent, "views_per", "task"))
            if model.get("transfer"):
                self.transfer = build_part("transfer", model["transfer"], spec)
                spec = replace(spec, views=self.transfer.views, hidden=self.transfer.hidden)
            if spec.views_per == "task" and spec.views not in (1, spec.tasks):
                raise ConfigError(f"model.represent: gives {spec.views} views; {spec.tasks} tasks need one each, or "
                                  "one that all share")
            self.predict = build_part("predict", model["predict"], spec)
        elif self.side:                                          # a sum of logits needs w_0
            bias = torch.tensor(spec.log_odds or (0.0,) * len(spec.owners), dtype=torch.get_default_dtype())
            self.bias = nn.Parameter(bias)
        self.tasks = spec.tasks

    @staticmethod
    def needs(model: Mapping[str, Any]) -> Needs:
        """What the parts will ask the Embedding for, before they are built."""
        said = [(slot, part) for slot in CHAINS for part in model.get(slot, ())]
        said += [(slot, model[slot]) for slot in PARTS if slot not in CHAINS and model.get(slot)]
        parts = [(part_class(slot, part["name"]), part) for slot, part in said]
        made = {group for part, _ in parts for group in getattr(part, "makes", ())}
        groups = tuple(g for g in asked_groups(model) if g not in made)
        asked = (part.asks(keys) if hasattr(part, "asks") else part.needs for part, keys in parts)
        return reduce(or_, asked, Needs(groups=groups))

    def penalty(self) -> Tensor | None:
        """What parts ask for beside the losses; None: nothing."""
        parts = [*self.prepare, *self.side, self.represent, self.transfer, self.predict]
        asked = [part.penalty() for part in parts if hasattr(part, "penalty")]
        return reduce(add, asked) if asked else None

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


GIVES = {"prepare": ("spec",), "represent": ("views", "hidden"), "transfer": ("views", "hidden")}


def _watch(part: nn.Module, slot: str, name: str, spec: Spec) -> None:
    """Holds a part of the user's own to what its slot gives: attributes now, the shape of its answers as they come."""
    where, outputs = f"model.{slot}: '{name}'", len(spec.owners)
    for attribute in GIVES.get(slot, ()):
        if not isinstance(getattr(part, attribute, None), Spec if attribute == "spec" else int):
            raise ConfigError(f"{where} has no `{attribute}`; a part of `{slot}` says " + (
                "in self.spec what it makes of its inputs" if slot == "prepare" else
                "in self.views and self.hidden (whole numbers) what shape [B, views, hidden] it gives"))

    def check(module: nn.Module, given: tuple, answer: Any) -> None:
        if slot == "prepare":
            if not isinstance(answer, Inputs):
                raise ConfigError(f"{where} gave a {type(answer).__name__}; a part of `prepare` gives Inputs")
            return
        rows = (given[0].flat if isinstance(given[0], Inputs) else given[0]).shape[0]      # of a graph: any number
        wanted = (rows, part.views, part.hidden) if slot in ("represent", "transfer") else (rows, outputs)
        if not isinstance(answer, Tensor) or tuple(answer.shape) != wanted:
            found = list(answer.shape) if isinstance(answer, Tensor) else f"a {type(answer).__name__}"
            raise ConfigError(f"{where} gave {found}; of {rows} rows this slot gives {list(wanted)}, "
                              + ("[B, views, hidden]" if len(wanted) == 3 else "[B, outputs]"))
    part.register_forward_hook(check)
