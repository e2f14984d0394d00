"""Several runs: the seeds of one config, comparisons, and a leaderboard.

    runs/shop/seed-0/ ... seed-4/     each a whole run
    runs/shop/summary.json, .md       mean, standard deviation and range over them
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from funnelrank.api import Run, train, write_text
from funnelrank.config import Config
from funnelrank.errors import ArtefactError, ConfigError
from funnelrank.evaluate import compare as comparing
from funnelrank.evaluate import seeds
from funnelrank.evaluate.compare import Comparison, Contestant
from funnelrank.evaluate.kept import Kept, open_scores
from funnelrank.evaluate.table import Shown
from funnelrank.flow import silent
from funnelrank.train.events import Report

SUMMARY = "summary.json"


@dataclass
class Seeds:
    """The finished runs of one config, and their summary as rows."""

    folder: Path
    runs: list[Run]
    rows: list[dict[str, Any]]


def train_seeds(config: Config, count: int, *, report: Report = silent, **given: Any) -> Seeds:
    """Train `config` with seeds train.seed, train.seed + 1, ..., each into a folder of its own under train.out.

    `given` as `train` takes it: `fresh`, `continue_from` (one run, that all seeds go on from), rows by hand. Encoded
    rows are shared. ConfigError for a count below 2.
    """
    if count < 2:
        raise ConfigError(f"seeds: {count} asked for; a spread needs 2 or more")
    settings = config.settings
    folder, first = Path(settings.train.out), settings.train.seed
    cache = settings.data.cache or str(folder.parent / ".funnelrank-cache")
    runs = []
    for seed in range(first, first + count):
        report({"event": "seed", "seed": seed, "of": count, "folder": str(folder / f"seed-{seed}")})
        one = settings.model_copy(update={
            "data": settings.data.model_copy(update={"cache": cache}),
            "train": settings.train.model_copy(update={"seed": seed, "out": str(folder / f"seed-{seed}")})})
        run = train(dataclasses.replace(config, settings=one), report=report, **given)
        run.ranker = None                      # models of all seeds at once may not fit
        runs.append(run)
    rows = seeds.summary([run.rows for run in runs])
    numbers = list(range(first, first + count))
    write_text(folder / SUMMARY, json.dumps({"name": config.name, "seeds": numbers, "rows": rows}, indent=1,
                                            ensure_ascii=False, allow_nan=False) + "\n")
    write_text(folder / "summary.md", seeds.markdown(config.name, rows, numbers))
    return Seeds(folder, runs, rows)


def compare(folders: Sequence[str | Path], metrics: Sequence[str] | None = None, *, by_scenario: bool = True,
            out: str | Path | None = None) -> Comparison:
    """Each run against the first, on the rows both were measured on; written to `out` as comparison.json and .md.

    A folder of several seeds counts as one run. Raises DataError where test rows differ.
    """
    if not folders:
        raise ConfigError("compare: no run was named; name two or more")
    names = _names(folders)
    found = comparing.compare([Contestant(name, _kept(Path(f))) for name, f in zip(names, folders)],
                              metrics or (), by_scenario)
    if out is not None:
        write_text(Path(out) / "comparison.json", json.dumps(found.to_json(), indent=1, ensure_ascii=False,
                                                             allow_nan=False) + "\n")
        write_text(Path(out) / "comparison.md", comparing.markdown(found))
    return found


def leaderboard(folders: Sequence[str | Path], metric: str = "test/auc") -> Shown:
    """Finished runs, the best first, by one number of their metrics.json."""
    return seeds.leaderboard({name: [_metrics(f) for f in _members(Path(folder))]
                              for name, folder in zip(_names(folders), folders)}, metric)


def _members(folder: Path) -> list[Path]:
    """The folder itself, or its seeds' folders in their order; those that the summary names, where there is one."""
    if not folder.is_dir():
        raise ArtefactError(f"{folder}: there is no such folder; name a run's folder, as runs/shop")
    if (folder / SUMMARY).exists():
        return [folder / f"seed-{s}" for s in json.loads((folder / SUMMARY).read_text(encoding="utf-8"))["seeds"]]
    return [folder]


def _kept(folder: Path) -> list[Kept]:
    members = _members(folder)
    for member in members:
        if not (member / "scores").is_dir():
            raise ArtefactError(f"{member}: keeps no scores of its test rows (no scores/ in it); train it again, with "
                                "evaluate.keep_scores above 0, to compare it")
    return [open_scores(member / "scores") for member in members]


def _metrics(folder: Path) -> list[dict[str, Any]]:
    try:
        return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ArtefactError(f"{folder}: has no readable metrics.json, so it is no finished run"
                            + (f"; name the runs in it, as {folder}/*" if any(folder.glob("*/metrics.json")) else "")
                            ) from None


def _names(folders: Sequence[str | Path]) -> list[str]:
    """The last part of each path, or the whole path where two would be alike."""
    short = [re.sub(r"/artefact$", "", Path(f).as_posix()).rsplit("/", 1)[-1] for f in folders]
    return [s if short.count(s) == 1 else str(f) for s, f in zip(short, folders)]
