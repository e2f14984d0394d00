"""A run that goes on from another: what it takes over, and what it says of it.

    before = open_before(folder, ranker, config, anew)                       the run that ended
    encoder = prepare(config, data, report, before.encoder_for(config))      vocabularies grow, statistics stay
    start, said = before.onto(config, encoder, build(config, encoder, splits))
    fit(..., start=start)
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from funnelrank.config import Config
from funnelrank.data.encode import Encoder, Old
from funnelrank.data.grow import carried_over, growth, rows_before, same_features
from funnelrank.errors import ConfigError, did_you_mean, listing
from funnelrank.ranker import RankingModel
from funnelrank.sealed import MANIFEST
from funnelrank.train.carry import OPTIMISER, Carried, carry
from funnelrank.train.checkpoint import load_checkpoint, tensors_hash
from funnelrank.train.expected import check_state
from funnelrank.train.moves import SLOTS, Model


@dataclass(frozen=True)
class Before:
    """A finished run: its config, encoder and model, and the tensors and state of its checkpoint.

    tensors and state are None where only weights are taken over; `anew` names what starts anew all the same; `about`
    says which run it was, and `manifest` is its artefact's hash.
    """

    config: Config
    encoder: Encoder
    model: RankingModel
    tensors: Mapping[str, Tensor] | None
    state: Mapping[str, Any] | None
    anew: frozenset[str]
    about: Mapping[str, Any]
    manifest: str = ""

    @property
    def mark(self) -> dict[str, Any]:
        """What tells this beginning of a run from every other one; the path only says where it was."""
        return {"run": self.about["folder"], "manifest": self.manifest, "anew": sorted(self.anew)}

    def encoder_for(self, config: Config) -> Old:
        """What an encoder for `config` goes on from. Raises ConfigError for features that mean something else now."""
        return carried_over(self.encoder, config.schema, self.anew, config.settings.data.retire)

    def onto(self, config: Config, encoder: Encoder, model: RankingModel) -> tuple[Carried, dict[str, Any]]:
        """The start of `model`'s training, and what was carried, added and dropped.

        Raises ConfigError for what can neither be carried nor be new.
        """
        same = same_features(self.encoder.schema, encoder.schema, self.anew)
        rows = rows_before(self.encoder, encoder, same)
        tensors = self.tensors or {f"model.{k}": v for k, v in self.model.state_dict().items()}
        start = carry(Model(self.model, self.config.settings), Model(model, config.settings, self.anew), tensors,
                      self.state, rows)
        old, new = self.encoder, encoder
        said = {"from": dict(self.about), "trainings": self.about["trainings"], "anew": sorted(self.anew),
                "optimiser": "anew" if self.state is None else "carried",
                "features": _compared(old.schema.features, new.schema.features, self.anew),
                "tasks": _compared(old.schema.task_names, new.schema.task_names, self.anew),
                "scenarios": _compared(old.layout.scenarios, new.layout.scenarios),
                "spaces": growth(old, new, rows), "weights": start.weights,
                "tables": {t: {"rows": len(new.tables[t].key),
                               "before": len(old.tables[t].key) if t in old.tables else None} for t in new.tables}}
        return start, said


class Ranked(Protocol):
    """What is asked of a loaded artefact."""

    config: Config
    encoder: Encoder
    model: RankingModel
    about: dict[str, Any]
    continued: dict[str, Any] | None


def open_before(folder: Path, ranker: Ranked, config: Config, anew: Collection[str]) -> Before:
    """The run whose artefact at `folder` is `ranker`, as `config` is to go on from it.

    The optimisers' state is in the run's checkpoints, beside its artefact; the artefact says which, and its hash.
    Raises ConfigError where it is not there and not waived by `anew`.
    """
    known = {*ranker.config.schema.features, *config.schema.features, *ranker.config.schema.task_names,
             *config.schema.task_names, *SLOTS, OPTIMISER}
    if unknown := sorted(set(anew) - known):
        raise ConfigError(f"--anew: no feature, task or slot {listing(unknown)}" + did_you_mean(unknown[0], known))
    mine = Path(config.settings.train.out).resolve()
    if mine in (folder.resolve().parent, folder.resolve()):
        raise ConfigError(f"train.out: {config.settings.train.out} is the run to continue from, whose state would be "
                          "overwritten while it is needed; choose another folder")
    tensors, state = _kept(folder, ranker) if OPTIMISER not in anew else (None, None)
    about = {"name": ranker.about.get("name"), "started": ranker.about.get("started"), "folder": str(folder.resolve()),
             "trainings": 1 + (ranker.continued["trainings"] if ranker.continued else 0)}
    return Before(ranker.config, ranker.encoder, ranker.model, tensors, state, frozenset(anew), about,
                  hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest())


def _kept(folder: Path, ranker: Ranked) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
    """Tensors and state of the checkpoint that an artefact was made from."""
    said = ranker.about.get("state")
    said = said if isinstance(said, dict) else {}
    where = folder.parent / "checkpoints" / str(said.get("checkpoint"))
    found = load_checkpoint(where.parent, where.name) if said.get("checkpoint") in ("best", "last") else None
    if found is None or tensors_hash(where.parent, where.name) != said.get("sha256"):
        why = "is not there" if found is None else "is of another training"
        raise ConfigError(f"artefact {folder}: the state of its optimisers, {where}, {why}; continue from the run's "
                          f"own folder, or with the weights alone by --anew {OPTIMISER}")
    check_state(ranker.model, ranker.config.settings, *found, f"checkpoint {where}")
    return found


def _compared(old: Any, new: Any, anew: Any = ()) -> dict[str, list[str]]:
    """Names that both have and that go on, those that are new or start anew, and those that are gone."""
    return {"carried": [n for n in new if n in old and n not in anew],
            "added": [n for n in new if n not in old or n in anew], "dropped": [n for n in old if n not in new]}
