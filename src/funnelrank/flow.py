"""The flow as functions, one a step: from a config to metrics.

    config = load_config("demo.yaml")             what to do
    data = open_data(config)                      files found, their columns checked
    encoder = prepare(config, data)               vocabularies and statistics of train
    splits = encode(config, data, encoder)        encoded rows, memory-mapped
    model = build(config, encoder, splits)        an nn.Module: Batch -> Prediction
    trained = fit(config, model, encoder, splits)
    rows = measure_split(config, model, encoder, splits["test"], "test")      the metrics, as rows
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from funnelrank import ranks
from funnelrank.config import Config
from funnelrank.data.ahead import each
from funnelrank.data.cache import KEEP, KEY, EncodedSplit, encode_file, open_encoded
from funnelrank.data.encode import Encoder, Old
from funnelrank.data.events import open_events, with_histories
from funnelrank.data.frozen import frozen as freeze
from funnelrank.data.frozen import frozen_columns
from funnelrank.data.loader import Loader
from funnelrank.data.parse import numbers, one_chunk
from funnelrank.data.seen import Seen, groups_of
from funnelrank.data.sift import Sifted, sift
from funnelrank.data.source import Source, open_source
from funnelrank.data.tables import Dimension, open_tables
from funnelrank.data.vectors import Vectors, open_vectors
from funnelrank.durable import discard_unused, find_folder, held_folder, new_folder, write_failure
from funnelrank.errors import ConfigError, DataError, FunnelrankError
from funnelrank.evaluate import table
from funnelrank.evaluate.calibrate import described, fit_calibration, sampling_weights
from funnelrank.evaluate.measure import NULL, Scores, measure, reliability
from funnelrank.evaluate.score import score
from funnelrank.evaluate.views import cold_rows, funnel_rows, gauc_rows
from funnelrank.kernels import keep_freed_memory
from funnelrank.ranker import RankingModel
from funnelrank.schema import Schema, who_reads
from funnelrank.sealed import read_json, to_json
from funnelrank.settings import Data as DataSettings
from funnelrank.settings import Train
from funnelrank.start import start_from, start_from_vectors
from funnelrank.train.carry import Carried
from funnelrank.train.events import Event, Report
from funnelrank.train.health import Look
from funnelrank.train.optim import RowUpdates, row_updates
from funnelrank.train.profile import Profile
from funnelrank.train.trainer import Judged, Trained, Trainer

SPLITS = ("train", "valid", "test")
PROFILED = 100          # first steps of every run, whose time by part is in its report
KEPT = "kept.json"           # beside an encoder in the cache: its hash


def silent(event: Event) -> None:
    pass


@dataclass
class Data:
    """What a config's files hold: a source per split that has one, and the dimension tables."""

    sources: dict[str, Source | Sifted]
    tables: dict[str, Dimension]
    vectors: dict[str, Vectors] = field(default_factory=dict)

    def fingerprint(self) -> dict[str, Any]:
        """The files behind it, or the content of tables given by hand: 'train', 'valid', 'test', 'tables.items'."""
        return {**{split: source.fingerprint() for split, source in self.sources.items()},
                **{f"tables.{name}": table.files for name, table in self.tables.items()},
                **{f"vectors.{name}": found.fingerprint() for name, found in self.vectors.items()}}


def open_data(config: Config, report: Report = silent, events: Mapping[str, Any] | None = None, **given: Any) -> Data:
    """Find the files of every split, check that the columns are there, and load dimension tables and event logs.

    `train=`, `valid=`, `test=` replace the config's paths, `events={name: ...}` those of event logs; each may be a path
    or a pyarrow, pandas or polars table.
    Under data.on_error: skip, reads every split once, to leave out what cannot be used.
    """
    data, schema = config.settings.data, config.schema
    sources = {}
    for split in SPLITS:
        rows = given.get(split, getattr(data, split))
        if rows is not None:
            sources[split] = rows if isinstance(rows, Source | Sifted) else open_source(
                rows, by_hand(data) if split in given else data, split)
            sources[split].require(schema.of_files().log_columns(), who_reads(schema))
            views = {c: f"evaluate.{key}" for key in ("cold", "gauc_by") for c in getattr(
                config.settings.evaluate, key) or () if key == "cold" or split != "train"}
            sources[split].require(list(views), views)
    if not sources:
        raise ConfigError("data.train: no rows; name a file, a folder, a glob or a URL")
    tables = open_tables(schema, data)
    if data.on_error == "skip":
        for split, source in sources.items():
            sources[split] = sift(source, schema.of_files(), tables, sources.get("train"),
                                  threads=threads_of(config.settings.train),
                                  progress=progress(report, f"sift {split}", source))
            if found := source.skipped:
                report({"event": "skipped", "split": split, "words": found.words(), **found.to_json()})
    logs = open_events(schema, data, events)
    return Data({split: with_histories(source, schema, logs) for split, source in sources.items()}, tables,
                open_vectors(data))


def by_hand(data: DataSettings) -> DataSettings:
    """Paths that a caller gives start at the current folder, not where the config's data lie."""
    return data.model_copy(update={"dir": str(Path.cwd())})


def prepare(config: Config, data: Data, report: Report = silent, old: Old | None = None) -> Encoder:
    """Fit vocabularies, scales and list numbers on train, or open those that `keep_encoder` kept in the cache; going on
    from `old`, vocabularies grow and scales stay.
    """
    source = data.sources.get("train")
    if source is None:
        raise ConfigError("data.train: no rows to fit on; name a file, a folder, a glob or a URL")
    if old is None and (kept := kept_encoder(config, data)) is not None:
        report({"event": "fitted", "folder": str(fitted_folder(config, data))})
        return kept
    return Encoder.fit(config.schema, source, data.tables, progress(report, "fit", source),
                       threads_of(config.settings.train), old, cache_of(config), report, config.settings.data.engine)


def encode(config: Config, data: Data, encoder: Encoder, report: Report = silent) -> dict[str, EncodedSplit]:
    """Encode each split once into the cache, or open what is there. With frozen histories: also 'test/frozen'."""
    folder = cache_of(config)
    sources = dict(data.sources)
    sources |= {f"{s}/frozen": freeze(sources[s], config.schema) for s in ("valid", "test")
                if s in sources and freezes(config, sources[s])}
    return {split: open_encoded(encoder, source, config.settings.data, folder, split == "train",
                                progress(report, f"encode {split}", source), threads_of(config.settings.train), report)
            for split, source in sources.items()}


def fitted_folder(config: Config, data: Data) -> Path:
    """Where the cache keeps the encoder of this schema, fitted on these files."""
    said, schema = config.settings.data, config.schema
    files = [space.file for space in schema.spaces.values() if space.file]
    made_from = {"schema": schema.model_dump(mode="json"), "source": data.sources["train"].fingerprint(),
                 "tables": {name: table.files for name, table in data.tables.items()},
                 "engine": said.engine and said.engine.model_dump(mode="json"),
                 "files": {file: _digest(file) for file in files}}
    return cache_of(config) / f"fitted-{hashlib.sha256(to_json(made_from)).hexdigest()[:KEY]}"


def _digest(file: str) -> str | None:
    """None where it cannot be read, which fitting says."""
    try:
        return hashlib.sha256(Path(file).read_bytes()).hexdigest()
    except OSError:
        return None


def keep_encoder(config: Config, data: Data, encoder: Encoder) -> Path:
    """Writes a fitted encoder into the cache, for every later run of this config on these files."""
    folder = fitted_folder(config, data)
    try:
        with new_folder(folder) as new:
            encoder.save(new)
            (new / KEPT).write_bytes(to_json({"hash": encoder.hash()}))
        discard_unused(folder.parent, "fitted-" + "[0-9a-f]" * KEY, KEEP)
    except OSError as error:
        if (said := write_failure(error, folder.parent)) is None:
            raise
        raise DataError(f"cache {folder.parent}, for vocabularies: {said} with data.cache") from error
    return folder


def kept_encoder(config: Config, data: Data) -> Encoder | None:
    """What `keep_encoder` wrote, or None: not there, or damaged, and then to be fitted again."""
    if not cache_of(config).is_dir() or (folder := find_folder(fitted_folder(config, data))) is None:
        return None
    with held_folder(folder) as found:
        try:
            encoder = Encoder.load(found)
            return encoder if read_json(found / KEPT, str(found))["hash"] == encoder.hash() else None
        except (FunnelrankError, OSError, LookupError, TypeError, ValueError):
            return None


def encode_share(config: Config, data: Data, share: tuple[int, int], report: Report = silent) -> tuple[int, int]:
    """Encode the k-th of n shares of all splits' files, one after another, each into a part of the cache that `encode`
    joins: how many were encoded now, and how many are in the share.

    Raises ConfigError where no encoder was kept in the cache, and under data.on_error: skip.
    """
    number, of = share
    if config.settings.data.on_error == "skip":
        raise ConfigError("data.on_error: skip passes over all files before the first is encoded; encode such a log "
                          "without --share")
    encoder = kept_encoder(config, data)
    if encoder is None:
        raise ConfigError(f"{cache_of(config)}: holds no vocabularies of this config and these files; run `funnelrank "
                          "encode CONFIG --fit` once before the shares, with the same data.cache")
    return _encode_files(config, data, encoder, (number - 1, of), threads_of(config.settings.train), report)


def encode_as_rank(config: Config, data: Data, encoder: Encoder, report: Report = silent) -> None:
    """Under torchrun: every rank encodes its share of the files, for `encode` to join. What one of them refuses is
    refused on all. Nothing under data.on_error: skip, which has no shares.
    """
    if config.settings.data.on_error != "skip":
        threads = max(1, threads_of(config.settings.train) // ranks.neighbours())
        ranks.each(lambda: _encode_files(config, data, encoder, (ranks.rank(), ranks.size()), threads, report))


def _encode_files(config: Config, data: Data, encoder: Encoder, share: tuple[int, int], threads: int,
                  report: Report) -> tuple[int, int]:
    """Share k of n, from 0: how many files were encoded now, and how many are in it."""
    every = [(split, one, i) for split, source in data.sources.items() for i, one in enumerate(source.files())]
    mine, made = every[share[0]::share[1]], 0
    for split, one, i in mine:
        made += encode_file(encoder, data.sources[split], i, config.settings.data, cache_of(config), split == "train",
                            progress(report, f"encode {split}, file {i + 1}", one), threads, report)
    return made, len(mine)


def cache_of(config: Config) -> Path:
    """Where encoded rows, and statistics that pass data.memory, are written."""
    return Path(config.settings.data.cache or Path(config.settings.train.out).parent / ".funnelrank-cache")


def threads_of(settings: Train) -> int:
    """Threads that read and encode: train.threads, or one a core."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return settings.threads or cores


def freezes(config: Config, source: Source) -> bool:
    """Whether GAUC is also measured on frozen histories: there are users, and lists that change under them."""
    return bool(config.settings.evaluate.frozen and config.schema.user and frozen_columns(source, config.schema))


def build(config: Config, encoder: Encoder, splits: Mapping[str, EncodedSplit],
          report: Report = silent) -> RankingModel:
    """A fresh model, or under torchrun this rank's part of it: its weights drawn from train.seed, its heads starting at
    train's label rates, its tables where embedding.init_from and data.vectors say."""
    settings = config.settings
    torch.manual_seed(settings.train.seed)
    labels = label_statistics(splits["train"].labels, config.schema) if "train" in splits else {}
    model = RankingModel(settings, config.schema, encoder.layout, labels, apart=True)
    if settings.embedding.init_from:
        start_from(Path(settings.embedding.init_from), model.embedding, encoder, config.allow_code)
    for said in start_from_vectors(settings, model.embedding, encoder):
        report({"event": "pretrained", **said})
    return model.to(device_of(settings.train))


def device_of(settings: Train) -> torch.device:
    try:
        device = torch.device(settings.device)
        torch.zeros(1, device=device).item()             # `meta` has no numbers
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"train.device: '{settings.device}' cannot be used here ({str(error).splitlines()[0]}); "
                          "'cpu' always can") from None
    return device


def label_statistics(labels: np.ndarray, schema: Schema) -> dict[str, dict[str, Any]]:
    """What each task's observed train labels say: where heads start. Without tasks that nothing was observed of.

    mean, std                      of all of them
    positive, log_mean, log_std    of a ziln: the share above 0, mean and standard deviation of their logarithms
    shares                         of classes

    Under every reading but joint those of a step are taken where the step before it happened.
    """
    parents = schema.parents if schema.nested else [None] * len(schema.tasks)
    classes = {t: np.zeros(len(task.classes)) for t, task in enumerate(schema.tasks) if task.classes}
    plain, logs = np.zeros((3, len(parents))), np.zeros((3, len(parents)))       # count, sum, sum of squares
    for start in range(0, len(labels), 1 << 20):
        y = np.array(labels[start:start + (1 << 20)], dtype=np.float64)
        for t, parent in enumerate(parents):
            seen = ~np.isnan(y[:, t]) if parent is None else ~np.isnan(y[:, t]) & (y[:, parent] == 1)
            plain[:, t] += _sums(y[seen, t])
            if t in classes:
                classes[t] += np.bincount(y[seen, t].astype(np.int64), minlength=len(classes[t]))
            if schema.tasks[t].kind == "ziln":
                logs[:, t] += _sums(np.log(y[seen & (y[:, t] > 0), t]))
    out = {}
    for t, task in enumerate(schema.tasks):
        if n := plain[0, t]:
            out[task.name] = dict(zip(("mean", "std"), _moments(*plain[:, t])))
            if t in classes:
                out[task.name]["shares"] = (classes[t] / n).tolist()
            if task.kind == "ziln":
                out[task.name] |= {"positive": logs[0, t] / n, **(dict(zip(
                    ("log_mean", "log_std"), _moments(*logs[:, t]))) if logs[0, t] else {})}
    return out


def _sums(y: np.ndarray) -> tuple[float, float, float]:
    return len(y), y.sum(), np.square(y).sum()


def _moments(n: float, total: float, square: float) -> tuple[float, float]:
    """Mean and standard deviation; 1 where there is no spread."""
    return total / n, math.sqrt(max(square / n - (total / n) ** 2, 0.0)) or 1.0


def fit(config: Config, model: RankingModel, encoder: Encoder, splits: Mapping[str, EncodedSplit], *,
        folder: Path | None = None, report: Report = silent, resume: bool = False, profile: bool = False,
        start: Carried | None = None) -> Trained:
    """Train on splits["train"], judged by splits["valid"] where there is one; the model keeps its best weights.

    With `resume`, from the last checkpoint in the folder on; otherwise checkpoints that are there are removed.
    `profile` reports where a step's time goes, as the event "profile". `start`: what training goes on from; see
    continued.py.
    """
    trainer, loader, updates = _trainer(config, model, encoder, splits, folder, report, profile)
    trained = trainer.run(loader, updates, resume, start and (start.tensors, start.state))
    model.embedding.settle(splits["train"].counts, {n: s.min_count for n, s in encoder.schema.spaces.items()})
    return trained


def replay(config: Config, model: RankingModel, encoder: Encoder, splits: Mapping[str, EncodedSplit], step: int, *,
           folder: Path | None = None, start: Carried | None = None) -> Look:
    """The batch of one step of a run, looked at: losses, gradients, the rows that weigh most. Writes nothing."""
    trainer, loader, updates = _trainer(config, model, encoder, splits, folder, silent)
    return trainer.replay(loader, updates, step, start and (start.tensors, start.state))


def _trainer(config: Config, model: RankingModel, encoder: Encoder, splits: Mapping[str, EncodedSplit],
             folder: Path | None, report: Report, profile: bool = False) -> tuple[Trainer, Loader, RowUpdates]:
    settings = config.settings.train
    if settings.threads:
        torch.set_num_threads(settings.threads)
    keep_freed_memory()
    if settings.compile:
        model.slots.compile()
    judge = None
    if "valid" not in splits and model.calibration:
        raise ConfigError(f"calibrate.method: {config.settings.calibrate.method} is fitted on valid, and there are no "
                          "such rows; name data.valid, or set it to none")
    if "valid" in splits:
        # a metric that does not exist is found before an hour is spent, not after
        metric = settings.early_stopping.metric
        table.check_name(metric, {t.name: t.kind for t in config.schema.tasks})
        direction = table.direction(metric)

        def judge() -> Judged | None:
            rows = measure_split(config, model, encoder, splits["valid"], "valid", intervals=False)
            return rows and Judged(table.value(rows, metric), direction,
                          {f"valid/{k}": v for k, v in table.wide(rows, "valid").items()})

    loader = Loader(splits["train"], encoder.layout, settings.batch_size, shuffle=True, seed=settings.seed,
                    memory=config.settings.data.memory, apart=model.embedding.apart)
    weights = torch.tensor([t.weight for t in config.schema.tasks], device=model.funnel.loc.device)
    trainer = Trainer(model, settings, weights, folder=Path(folder or settings.out) / "checkpoints", report=report,
                      judge=judge, profile=Profile(model, None if profile else PROFILED))
    return trainer, loader, row_updates(model.embedding, config.settings.embedding)


def calibrate(config: Config, model: RankingModel, encoder: Encoder, splits: Mapping[str, EncodedSplit],
              report: Report = silent) -> None:
    """Fit the calibrators of a trained model on valid. They stay in it; does nothing with calibrate.method: none."""
    said = config.settings.calibrate
    if model.calibration is None:
        return
    loader = Loader(splits["valid"], encoder.layout, config.settings.evaluate.batch_size, shuffle=False, seed=0,
                    apart=model.embedding.apart)
    scores = score(model, config.schema, loader.epoch(0), "valid", corrected=True)
    if scores is not None:
        weight = sampling_weights(config.schema, "valid", scores.labels)
        found = fit_calibration(model.calibration, scores, said.method, said.by == "scenario", weight)
        report({"event": "calibrate", "method": said.method, "tasks": described(found)})
    if model.embedding.apart:
        model.calibration.load_state_dict(ranks.agreed(model.calibration.state_dict()))


def measure_split(config: Config, model: RankingModel, encoder: Encoder, split: EncodedSplit, name: str, *,
                  frozen: EncodedSplit | None = None, truth: Mapping[str, np.ndarray] | None = None,
                  keep: dict[str, Any] | None = None, intervals: bool = True) -> list[dict[str, Any]]:
    """Metrics of one split, as rows of metrics.json; none on a rank that is not the first. `keep`, a dict, receives
    what they were measured on: `scores`, `frozen`, and `reliability`, the bins per task."""
    evaluate = config.settings.evaluate
    if not intervals:
        evaluate = evaluate.model_copy(update={"intervals": "none"})
    load = lambda rows: Loader(rows, encoder.layout, evaluate.batch_size, shuffle=False, seed=0,
                               apart=model.embedding.apart).epoch(0)
    scores = score(model, config.schema, load(split), name)
    held = score(model, config.schema, load(frozen), name) if frozen is not None else None
    if scores is None:
        return []
    if keep is not None:
        keep.update(scores=scores, frozen=held, reliability=reliability(scores, evaluate))
    return measure(name, scores, evaluate, encoder.layout.scenarios if config.schema.scenario else None,
                         frozen=held, truth=truth)


def cold_columns(config: Config, train: Source) -> list[str]:
    """evaluate.cold, or its default: the user, and what histories are compared with, where train has the columns."""
    schema, said = config.schema, config.settings.evaluate.cold
    if said is not None:
        return said
    targets = [schema.features[f.target].column for f in schema.of_kind("sequence").values()
               if f.target and schema.features[f.target].kind == "id"]
    usual = [schema.user, *targets]
    return [c for c in dict.fromkeys(usual) if c in train.columns.names and not pa.types.is_floating(
        train.columns.field(c).type)]


def other_views(config: Config, split: str, scores: Scores, scenarios: Sequence[str], source: Source,
                seen: Sequence[Seen] = ()) -> list[dict[str, Any]]:
    """Rows of evaluate/views.py: each step given the one before, cold starts by `seen`, GAUC by evaluate.gauc_by."""
    evaluate = config.settings.evaluate
    rows = funnel_rows(split, scores, evaluate, scenarios if config.schema.scenario else None)
    rows += cold_rows(split, scores, evaluate, {s.column: s.of(source) for s in seen})
    for column in evaluate.gauc_by:
        rows += gauc_rows(split, scores, evaluate, column, groups_of(source, column))
    return rows


def true_probabilities(config: Config, source: Source) -> dict[str, np.ndarray]:
    """The columns of evaluate.truth, one array [n] per task; empty where the config names none."""
    columns = {t: c for t, c in config.settings.evaluate.truth.items() if c in source.columns.names}
    if not columns:
        return {}
    parts = [table for _, table in each(source, list(columns.values()))]
    whole = pa.concat_tables(parts)
    return {t: numbers(one_chunk(whole[c]), f"{source.name}: column '{c}' (evaluate.truth.{t})")
            for t, c in columns.items()}


def values_of(source: Source, column: str) -> tuple[np.ndarray, list[str]]:
    """A column of any simple kind as codes [n] and the values' texts; nulls are the value `(null)`."""
    parts = [table[column] for _, table in each(source, [column])]
    whole = one_chunk(pa.chunked_array([chunk for part in parts for chunk in part.chunks]))
    if pa.types.is_nested(whole.type):
        raise DataError(f"{source.name}: column '{column}' holds lists; rows are put together by a column of single "
                        "values")
    coded = (whole.dictionary_decode() if pa.types.is_dictionary(whole.type) else whole).dictionary_encode()
    names = [str(v) for v in coded.dictionary.to_pylist()] + [NULL]
    return coded.indices.fill_null(len(names) - 1).to_numpy(zero_copy_only=False).astype(np.int64), names


def progress(report: Report, stage: str, source: Source) -> Callable[[int], None]:
    """A callback that takes rows done so far."""
    return lambda done: report({"event": "progress", "stage": stage, "rows": done, "total": source.rows})
