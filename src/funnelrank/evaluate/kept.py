"""What a run keeps of its test rows so that it can be compared: scores, labels, users, scenarios; a sealed folder.

    runs/shop/scores/manifest.json    kind "scores"; about: split, tasks, scenarios, settings, and what rows these are
    runs/shop/scores/rows.safetensors

No feature and no id is in it; users are codes. Of a split with more rows than `evaluate.keep_scores`, whole users are
kept, chosen by their code, so that every run keeps the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from funnelrank import settings
from funnelrank.evaluate.measure import NULL, UNSEEN, Scores
from funnelrank.sealed import open_sealed, write_sealed
from funnelrank.tensors import load_tensors, save_tensors

FILE = "rows.safetensors"
GOLDEN = np.uint64(0x9E3779B97F4A7C15)      # spreads codes that stand close together


@dataclass(frozen=True)
class Kept:
    """One trained model on the rows of one split."""

    name: str
    split: str
    scores: Scores
    frozen: Scores | None                # log_p alone is of the frozen histories
    scenarios: list[str]                 # names of codes 2, 3, ...
    evaluate: settings.Evaluate
    rows_of: dict[str, Any]              # what rows these are: two of the same have equal scores' places
    about: dict[str, Any]


def keep_scores(folder: Path, split: str, scores: Scores, frozen: Scores | None, scenarios: Sequence[str],
                evaluate: settings.Evaluate, about: dict[str, Any]) -> None:
    """Seal the scores of a split into `folder`, as many rows as evaluate.keep_scores allows; 0 keeps none."""
    total = len(scores.labels)
    if not evaluate.keep_scores or not total:
        return
    chosen = _chosen(scores.user, total, evaluate.keep_scores)
    cut = lambda a: None if a is None else np.ascontiguousarray(np.asarray(a)[chosen])
    arrays = {"log_p": cut(scores.log_p), "log_not_p": cut(scores.log_not_p), "labels": cut(scores.labels),
              "mean": cut(scores.mean) if set(scores.kinds) != {"binary"} else None,
              "scenario": cut(scores.scenario), "user": cut(scores.user),
              "frozen": None if frozen is None else cut(frozen.log_p)}
    arrays |= {f"classes {task}": cut(p) for task, p in scores.classes.items()}
    arrays = {k: v for k, v in arrays.items() if v is not None}
    kept = replace(scores, labels=arrays["labels"], scenario=arrays.get("scenario"), user=arrays.get("user"))
    write_sealed(folder, "scores", {FILE: lambda path: save_tensors(
        path, {k: torch.from_numpy(v) for k, v in arrays.items()})}, {
        **about, "split": split, "tasks": list(scores.tasks), "kinds": list(scores.kinds),
        "parents": list(scores.parents), "scenarios": [str(s) for s in scenarios],
        "evaluate": evaluate.model_dump(mode="json"), "of": total, "rows": rows_of(kept, scenarios)})


def open_scores(folder: Path) -> Kept:
    """What keep_scores wrote, verified. ArtefactError where a file is missing or was changed."""
    sealed = open_sealed(folder, "scores")
    about, arrays = sealed.about, {k: v.numpy() for k, v in load_tensors(sealed.path / FILE).items()}
    scores = Scores(about["tasks"], about["kinds"], about["parents"], arrays["log_p"], arrays["log_not_p"],
                    arrays.get("mean", arrays["log_p"]), arrays["labels"], arrays.get("scenario"), arrays.get("user"),
                    {k.removeprefix("classes "): v for k, v in arrays.items() if k.startswith("classes ")})
    frozen = replace(scores, log_p=arrays["frozen"]) if "frozen" in arrays else None
    return Kept(about.get("name", folder.parent.name), about["split"], scores, frozen, about["scenarios"],
                settings.Evaluate.model_validate(about["evaluate"]), about["rows"] | {"of": about["of"]}, about)


def _chosen(user: np.ndarray | None, rows: int, most: int) -> np.ndarray | slice:
    """Which rows to keep: those of users (or rows) whose mixed code is low, at most `most` rows."""
    if rows <= most:
        return slice(None)
    mixed = (np.arange(rows) if user is None else np.asarray(user)).astype(np.uint64) * GOLDEN
    return mixed < np.partition(mixed, most)[most]


def rows_of(scores: Scores, scenarios: Sequence[str]) -> dict[str, Any]:
    """Hashes of everything about the rows that is no model's doing."""
    names = np.array([NULL, UNSEEN, *map(str, scenarios)])
    place = None if scores.scenario is None else np.char.encode(names, "utf-8")[scores.scenario]
    return {"rows": len(scores.labels), "user": _hash(scores.user), "scenario": _hash(place),
            "labels": {task: _hash(scores.labels[:, t].astype("<f4")) for t, task in enumerate(scores.tasks)}}


def _hash(column: np.ndarray | None) -> str | None:
    if column is None:
        return None
    return hashlib.sha256(np.ascontiguousarray(column).tobytes()).hexdigest()[:16]
