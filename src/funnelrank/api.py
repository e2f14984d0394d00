"""The whole flow as functions, one a step, and Ranker, which is the same in the shape of fit / evaluate / predict.

    config = load_config("demo.yaml")             what to do
    data = open_data(config)                      files found, their columns checked
    encoder = prepare(config, data)               vocabularies and statistics of train
    splits = encode(config, data, encoder)        encoded rows, memory-mapped
    model = build(config, encoder, splits)        an nn.Module: Batch -> Prediction
    trained = fit(config, model, encoder, splits)
    rows = measure_split(config, model, encoder, splits["test"], "test")      the metrics, as rows

`train(config)` does all of it and leaves a run folder.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from funnelrank.artefact import load_tensors, open_artefact, save_tensors, write_artefact
from funnelrank.batch import Batch
from funnelrank.config import Config, dump
from funnelrank.config import load as load_config
from funnelrank.data.cache import EncodedSplit, open_encoded
from funnelrank.data.encode import Encoder
from funnelrank.data.frozen import frozen as freeze
from funnelrank.data.loader import Loader, pack
from funnelrank.data.source import Source, open_source
from funnelrank.data.tables import Dimension, open_tables
from funnelrank.data.writer import ParquetWriter
from funnelrank.describe import describe as describe_config
from funnelrank.describe import describe_ranker
from funnelrank.errors import ArtefactError, ConfigError, DataError, listing
from funnelrank.evaluate import report as pictures
from funnelrank.evaluate import table
from funnelrank.evaluate.score import predict_batches, score
from funnelrank.ranker import RankingModel
from funnelrank.schema import Schema
from funnelrank.settings import Train
from funnelrank.train.optim import RowUpdates
from funnelrank.train.trainer import Event, Judged, Report, Trained, Trainer

SPLITS = ("train", "valid", "test")
LISTS = ("sequence", "bag")


def _silent(event: Event) -> None:
    pass


@dataclass
class Data:
    """What a config's files hold: a source per split that has one, and the dimension tables."""

    sources: dict[str, Source]
    tables: dict[str, Dimension]


@dataclass
class Run:
    """A finished training: its folder, its metrics as rows, and how training went."""

    folder: Path
    rows: list[dict[str, Any]]
    trained: Trained
    seconds: float = 0.0
    ranker: Ranker | None = field(default=None, repr=False)


# ---- the steps

def open_data(config: Config, **given: Any) -> Data:
    """Find the files of every split, check that the columns are there, and load the dimension tables.

    `train=`, `valid=`, `test=` replace the config's paths; each may be a path or a pyarrow, pandas or polars table.
    """
    data, schema = config.settings.data, config.schema
    sources = {}
    for split in SPLITS:
        rows = given.get(split, getattr(data, split))
        if rows is not None:
            sources[split] = open_source(rows, data, split)
            sources[split].require(schema.log_columns(), who_reads(schema))
    if not sources:
        raise ConfigError("data.train: no rows; name a file, a folder, a glob or a URL")
    return Data(sources, open_tables(schema, data))


def who_reads(schema: Schema) -> dict[str, str]:
    """Column of the log -> the config key that reads it, for messages."""
    who: dict[str, str] = {}
    for name, f in schema.features.items():
        for column in (f.since, f.until) if f.kind == "gap" else (f.by, f.column):
            if column:
                who.setdefault(column, f"features.{name}")
    for key in ("scenario", "user", "time", "weight"):
        if getattr(schema, key):
            who.setdefault(getattr(schema, key), f"data.{key}")
    return who | {t.label: f"tasks.{t.name}.label" for t in schema.tasks}


def prepare(config: Config, data: Data, report: Report = _silent) -> Encoder:
    """Fit vocabularies, scales and list numbers on train."""
    source = data.sources.get("train")
    if source is None:
        raise ConfigError("data.train: no rows to fit on; name a file, a folder, a glob or a URL")
    return Encoder.fit(config.schema, source, data.tables, _progress(report, "fit", source))


def encode(config: Config, data: Data, encoder: Encoder, report: Report = _silent) -> dict[str, EncodedSplit]:
    """Encode each split once into the cache, or open what is there. With frozen histories: also 'test/frozen'."""
    folder = Path(config.settings.data.cache or Path(config.settings.train.out).parent / ".funnelrank-cache")
    sources = dict(data.sources)
    if freezes(config):
        sources |= {f"{s}/frozen": freeze(sources[s], config.schema) for s in ("valid", "test") if s in sources}
    return {split: open_encoded(encoder, source, config.settings.data, folder, split == "train",
                                _progress(report, f"encode {split}", source))
            for split, source in sources.items()}


def freezes(config: Config) -> bool:
    """Whether GAUC is also measured on frozen histories: there are users, and lists that change under them."""
    lists = any(f.kind in LISTS for f in config.schema.features.values())
    return bool(config.settings.evaluate.frozen and config.schema.user and lists)


def build(config: Config, encoder: Encoder, splits: Mapping[str, EncodedSplit]) -> RankingModel:
    """A fresh model, its weights drawn from train.seed, its heads starting at train's label rates."""
    settings = config.settings
    torch.manual_seed(settings.train.seed)
    labels = label_statistics(splits["train"].labels, config.schema.task_names) if "train" in splits else {}
    return RankingModel(settings, config.schema, encoder.layout, labels).to(device_of(settings.train))


def device_of(settings: Train) -> torch.device:
    try:
        device = torch.device(settings.device)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"train.device: '{settings.device}' cannot be used here ({str(error).splitlines()[0]}); "
                          "'cpu' always can") from None
    return device


def label_statistics(labels: np.ndarray, tasks: list[str]) -> dict[str, dict[str, float]]:
    """Mean and standard deviation of each task's observed train labels."""
    count, total, square = (np.zeros(len(tasks)) for _ in range(3))
    for start in range(0, len(labels), 1 << 20):
        y = np.asarray(labels[start:start + (1 << 20)], dtype=np.float64)
        count += (~np.isnan(y)).sum(0)
        total += np.nansum(y, 0)
        square += np.nansum(y * y, 0)
    out = {}
    for t, task in enumerate(tasks):
        if count[t]:
            mean = total[t] / count[t]
            out[task] = {"mean": mean, "std": math.sqrt(max(square[t] / count[t] - mean * mean, 0.0)) or 1.0}
    return out


def fit(config: Config, model: RankingModel, encoder: Encoder, splits: Mapping[str, EncodedSplit], *,
        folder: Path | None = None, report: Report = _silent) -> Trained:
    """Train on splits["train"], judged by splits["valid"] where there is one; the model keeps its best weights."""
    settings = config.settings.train
    if settings.threads:
        torch.set_num_threads(settings.threads)
    judge = None
    if "valid" in splits:
        # a metric that does not exist is found before an hour is spent, not after
        metric = settings.early_stopping.metric
        table.check_name(metric, {t.name: t.kind for t in config.schema.tasks})
        direction = table.direction(metric)

        def judge() -> Judged:
            rows = measure_split(config, model, encoder, splits["valid"], "valid")
            return Judged(table.value(rows, metric), direction,
                          {f"valid/{k}": v for k, v in table.wide(rows, "valid").items()})

    loader = Loader(splits["train"], encoder.layout, settings.batch_size, shuffle=True, seed=settings.seed)
    weights = torch.tensor([t.weight for t in config.schema.tasks], device=model.funnel.loc.device)
    trainer = Trainer(model, settings, weights, folder=Path(folder or settings.out) / "checkpoints", report=report,
                      judge=judge)
    return trainer.run(loader, RowUpdates(model.embedding, config.settings.embedding.optimiser))


def measure_split(config: Config, model: RankingModel, encoder: Encoder, split: EncodedSplit, name: str, *,
                  frozen: EncodedSplit | None = None, truth: Mapping[str, np.ndarray] | None = None,
                  keep: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """Metrics of one split, as rows of metrics.json. `keep`, a dict, receives reliability bins per task."""
    evaluate = config.settings.evaluate
    load = lambda rows: Loader(rows, encoder.layout, evaluate.batch_size, shuffle=False, seed=0).epoch(0)
    scores = score(model, config.schema, load(split), name)
    held = score(model, config.schema, load(frozen), name) if frozen is not None else None
    if keep is not None:
        keep.update(table.reliability(scores, evaluate))
    return table.measure(name, scores, evaluate, encoder.layout.scenarios if config.schema.scenario else None,
                         frozen=held, truth=truth)


def true_probabilities(config: Config, source: Source) -> dict[str, np.ndarray]:
    """The columns of evaluate.truth, one array [n] per task; empty where the config names none."""
    columns = {t: c for t, c in config.settings.evaluate.truth.items() if c in source.columns.names}
    if not columns:
        return {}
    parts = [source.read(unit, list(columns.values())) for unit in source.units]
    whole = pa.concat_tables(parts)
    return {t: whole[c].cast(pa.float64()).to_numpy(zero_copy_only=False) for t, c in columns.items()}


# ---- a whole run

def train(config: Config, *, report: Report = _silent, **given: Any) -> Run:
    """All steps, into the run's folder: artefact/, metrics.json, report.html, events.jsonl, checkpoints/."""
    started, clock = datetime.datetime.now(datetime.UTC), time.perf_counter()
    folder = Path(config.settings.train.out)
    folder.mkdir(parents=True, exist_ok=True)
    events: list[Event] = []
    with Recorder(folder / "events.jsonl", events, report, config.settings.train.tensorboard and folder) as record:
        data = open_data(config, **given)
        encoder = prepare(config, data, record)
        splits = encode(config, data, encoder, record)
        model = build(config, encoder, splits)
        trained = fit(config, model, encoder, splits, folder=folder, report=record)
        rows, reliability = [], {}
        for split in ("valid", "test"):
            if split in splits:
                reliability = {}                           # of the last split measured
                rows += measure_split(config, model, encoder, splits[split], split,
                                      frozen=splits.get(f"{split}/frozen"),
                                      truth=true_probabilities(config, data.sources[split]), keep=reliability)
        seconds = time.perf_counter() - clock
        about = {"name": config.name, "seed": config.settings.train.seed, "started": started.isoformat(" ", "seconds"),
                 "seconds": round(seconds, 1), "training": dataclasses.asdict(trained), "versions": versions()}
        ranker = Ranker._made(config, encoder, model)
        ranker.about, ranker.rows = about, rows
        ranker.save(folder / "artefact")
        write_text(folder / "metrics.json", table.to_json(rows))
        pictures.write_report(folder / "report.html", {
            "name": config.name, "config": dump(config), "metrics": rows, "events": events, "reliability": reliability,
            "counts": {s: dict(e.counts) for s, e in splits.items() if "/" not in s},
            "coverage": {s: e.coverage for s, e in splits.items() if "/" not in s},
            "contradictions": {s: e.contradictions for s, e in splits.items() if "/" not in s}, "about": about})
        record({"event": "done", "folder": str(folder), "seconds": round(seconds, 2),
                "training": dataclasses.asdict(trained)})
    return Run(folder, rows, trained, seconds, ranker)


def versions() -> dict[str, str]:
    return {"funnelrank": version("funnelrank"), "torch": torch.__version__, "python": platform.python_version()}


def write_text(path: Path, text: str) -> None:
    """Replace a file in one step."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)


class Recorder:
    """Events go to events.jsonl, to a list for the report, to the caller, and to TensorBoard where asked."""

    def __init__(self, path: Path, kept: list[Event], report: Report, tensorboard: Path | bool | None = None):
        self.path, self.kept, self.report, self.board = path, kept, report, None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise ConfigError("train.tensorboard: TensorBoard is not installed; "
                                  "pip install 'funnelrank[tensorboard]', or leave the key out") from None
            self.board = SummaryWriter(str(tensorboard))

    def __enter__(self) -> Recorder:
        self.file = self.path.open("w", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        if self.board:
            self.board.close()

    def __call__(self, event: Event) -> None:
        event = {"time": round(time.time(), 3), **event}
        if event["event"] != "progress":
            self.kept.append(event)
            self.file.write(json.dumps(event) + "\n")
            self.file.flush()
        if self.board:
            scalars = event.get("loss") or event.get("metrics") or {}
            for name, value in scalars.items():
                if value is not None:
                    self.board.add_scalar(f"{event['event']}/{name}", value, event["step"])
        self.report(event)


def _progress(report: Report, stage: str, source: Source) -> Callable[[int], None]:
    """A callback that takes rows done so far."""
    return lambda done: report({"event": "progress", "stage": stage, "rows": done, "total": source.rows})


# ---- scoring from an artefact

class Ranker:
    """A config, and once fitted the encoder and the model that belong to it.

    >>> ranker = Ranker("demo.yaml").fit()                       # doctest: +SKIP
    >>> ranker.predict(frame)["buy"]                             # doctest: +SKIP
    >>> ranker.save("artefact"); Ranker.load("artefact")         # doctest: +SKIP
    """

    def __init__(self, config: str | Path | Mapping[str, Any] | Config, *sets: str):
        self.config = config if isinstance(config, Config) else load_config(config, sets)
        self.encoder: Encoder | None = None
        self.model: RankingModel | None = None
        self.about: dict[str, Any] = {}
        self.rows: list[dict[str, Any]] = []

    @classmethod
    def _made(cls, config: Config, encoder: Encoder, model: RankingModel) -> Ranker:
        ranker = cls(config)
        ranker.encoder, ranker.model = encoder, model
        return ranker

    def fit(self, train: Any = None, valid: Any = None, test: Any = None, report: Report = _silent) -> Ranker:
        """Train on the config's rows, or on those given: paths, or pyarrow, pandas or polars tables."""
        given = {k: v for k, v in (("train", train), ("valid", valid), ("test", test)) if v is not None}
        if train is not None:                       # rows given by hand do not mix with the config's files
            given = {"train": None, "valid": None, "test": None} | given
        run = globals()["train"](self.config, report=report, **given)
        self.encoder, self.model = run.ranker.encoder, run.ranker.model
        self.about, self.rows = run.ranker.about, run.rows
        return self

    def evaluate(self, rows: Any = None, split: str = "test", report: Report = _silent) -> list[dict[str, Any]]:
        """Metrics of labelled rows (default: the config's split), as rows of metrics.json."""
        source = self._source(rows, split)
        self._fitted().require(source, labels=True)
        load = lambda s: self._batches(s, labels=True, report=report)
        scores = score(self.model, self.config.schema, load(source), split)
        held = score(self.model, self.config.schema, load(freeze(source, self.config.schema)),
                     split) if freezes(self.config) else None
        return table.measure(split, scores, self.config.settings.evaluate,
                             self.encoder.layout.scenarios if self.config.schema.scenario else None,
                             frozen=held, truth=true_probabilities(self.config, source))

    def predict(self, rows: Any, keep: list[str] | tuple[str, ...] = ()) -> pa.Table:
        """A table with a column per task, `child|parent` for steps given the one before, and the columns of `keep`."""
        return pa.concat_tables(self.predict_parts(rows, keep))

    def predict_parts(self, rows: Any, keep: list[str] | tuple[str, ...] = (),
                      report: Report = _silent) -> Iterator[pa.Table]:
        """`predict`, a bounded part of the rows at a time, in their order."""
        source = self._source(rows, "test")
        self._fitted().require(source, labels=False)
        if missing := [c for c in keep if c not in source.columns.names]:
            raise DataError(f"keep: no column {listing(missing)} in the rows; columns are "
                            f"{listing(source.columns.names)}")
        if clash := set(keep) & set(self.outputs()):
            raise ConfigError(f"keep: {listing(sorted(clash))} is also the name of a prediction; leave it out")
        done = 0
        scenario = self.config.schema.scenario
        columns = list(dict.fromkeys([*self._columns(labels=False), *keep,
                                      *([scenario] if scenario in source.columns.names else [])]))
        for unit in source.units:
            raw = source.read(unit, columns)
            encoded = self.encoder.encode(raw, source.where(unit), labels=False)
            parts = [self._served(said) for _, said in predict_batches(
                self.model, self.config.schema, self._packed(encoded), corrected=True)]
            columns_out = {name: pa.array(np.concatenate([p[name] for p in parts])) if parts
                           else pa.array([], pa.float32()) for name in self.outputs()}
            done += len(raw)
            report({"event": "progress", "stage": "predict", "rows": done, "total": source.rows})
            yield pa.table({**{c: raw[c] for c in keep}, **columns_out})

    def outputs(self) -> list[str]:
        """Names of the served columns: `click`, `buy`, `buy|click`. `buy` is always over all impressions."""
        names = []
        for t in self.config.schema.tasks:
            names += [t.name, f"{t.name}|{t.after}"] if t.after else [t.name]
        return names

    def save(self, folder: str | Path) -> Path:
        """Write the artefact: complete or not at all. See docs/artefact.md for what is in it."""
        self._fitted()
        write_artefact(Path(folder), {
            "config.yaml": dump(self.config).encode(),
            "schema.json": self.config.schema.model_dump_json(by_alias=True, indent=1).encode(),
            "encoder": self.encoder.save,
            "model.safetensors": lambda path: save_tensors(path, self.model.state_dict()),
            "metrics.json": table.to_json(self.rows).encode(),
        }, self.about)
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path) -> Ranker:
        """An artefact, or the run folder that holds one, verified name by name and hash by hash before use."""
        folder = Path(folder)
        if not (folder / "manifest.json").exists() and (folder / "artefact").is_dir():
            folder = folder / "artefact"
        artefact = open_artefact(folder)
        path = artefact.path
        config = load_config(path / "config.yaml")
        schema = Schema.model_validate_json((path / "schema.json").read_bytes())
        if schema != config.schema:
            raise ArtefactError(f"{path}: schema.json is not what config.yaml resolves to; the artefact was written by "
                                "another version, or by hand")
        ranker = cls(dataclasses.replace(config, name=artefact.about.get("name", config.name)))
        ranker.encoder = Encoder.load(path / "encoder")
        ranker.model = RankingModel(config.settings, schema, ranker.encoder.layout, {})
        expected = {k: (tuple(v.shape), v.dtype) for k, v in ranker.model.state_dict().items()}
        ranker.model.load_state_dict(load_tensors(path / "model.safetensors", expected))
        ranker.model.eval()
        ranker.about, ranker.rows = dict(artefact.about), json.loads((path / "metrics.json").read_text())
        return ranker

    def require(self, source: Source, labels: bool) -> None:
        """Raise DataError unless the rows have every column that scoring (and labels, for metrics) needs."""
        source.require(self._columns(labels), who_reads(self.config.schema))

    def _columns(self, labels: bool) -> list[str]:
        schema = self.config.schema
        columns = schema.log_columns(labels)
        if labels:
            return columns
        # who a row belongs to is for metrics; to score it, only a feature needs to know
        needed = {c for f in schema.features.values() for c in (f.column, f.by, getattr(f, "since", None),
                                                                getattr(f, "until", None)) if c}
        return [c for c in columns if c in needed]

    def _fitted(self) -> Ranker:
        if self.model is None:
            raise ConfigError("this Ranker is not fitted; call fit(), or Ranker.load(folder)")
        return self

    def _source(self, rows: Any, split: str) -> Source:
        rows = rows if rows is not None else getattr(self.config.settings.data, split, None)
        if rows is None:
            raise ConfigError(f"data.{split}: the config names no rows for this split; name them")
        return open_source(rows, self.config.settings.data, split)

    def _packed(self, encoded: Any) -> Iterator[Batch]:
        size = self.config.settings.evaluate.batch_size
        for start in range(0, len(encoded), size):
            yield pack(encoded, np.arange(start, min(start + size, len(encoded))))

    def _batches(self, source: Source, labels: bool, report: Report) -> Iterator[Batch]:
        done, columns = 0, self._columns(labels)
        for unit in source.units:
            raw = source.read(unit, columns)
            yield from self._packed(self.encoder.encode(raw, source.where(unit), labels=labels))
            done += len(raw)
            report({"event": "progress", "stage": "score", "rows": done, "total": source.rows})

    def _served(self, said: Any) -> dict[str, np.ndarray]:
        columns = {}
        for t, task in enumerate(self.config.schema.tasks):
            columns[task.name] = said.mean[:, t].cpu().numpy()
            if task.after:
                columns[f"{task.name}|{task.after}"] = said.given[:, t].cpu().numpy()
        return columns


def evaluate(artefact: str | Path, rows: Any = None, *, split: str = "test", out: str | Path | None = None,
             report: Report = _silent) -> list[dict[str, Any]]:
    """Metrics of an artefact on labelled rows; written to `out` as metrics.json where given."""
    found = Ranker.load(artefact).evaluate(rows, split, report)
    if out is not None:
        write_text(Path(out), table.to_json(found))
    return found


def predict(artefact: str | Path, rows: Any, out: str | Path, *, keep: list[str] | tuple[str, ...] = (),
            report: Report = _silent) -> int:
    """Score rows into a parquet file, part by part; the file appears when it is complete. Returns the rows written."""
    ranker = Ranker.load(artefact)
    with ParquetWriter(Path(out)) as writer:
        for part in ranker.predict_parts(rows, keep, report):
            writer.write(part)
    return writer.rows


def describe(what: Config | str | Path, shapes: bool = False) -> str:
    """A config, or an artefact's folder, in words; with `shapes`, sizes and parameters too (of an artefact)."""
    if isinstance(what, Config):
        if shapes:
            raise ConfigError(f"describe --shapes: sizes are known once '{what.name}' is fitted; name its artefact")
        return describe_config(what)
    ranker = Ranker.load(what)
    return describe_ranker(ranker) if shapes else describe_config(ranker.config)
