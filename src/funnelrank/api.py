"""A whole run in one call, and Ranker, which is the same in the shape of fit / evaluate / predict / save / load.

The steps themselves are functions of flow.py. `train(config)` does all of them and leaves a run folder.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from funnelrank import own_parts, ranks
from funnelrank.artefact import artefact_folder, open_artefact, understood, write_artefact
from funnelrank.batch import Batch
from funnelrank.config import Config, dump, plain
from funnelrank.config import load as load_config
from funnelrank.continued import Before, open_before
from funnelrank.data.ahead import each
from funnelrank.data.cache import EncodedSplit
from funnelrank.data.encode import Encoder, Old
from funnelrank.data.events import open_events, with_histories
from funnelrank.data.frozen import frozen as freeze
from funnelrank.data.golden import Golden, some_rows
from funnelrank.data.loader import pack
from funnelrank.data.seen import Seen
from funnelrank.data.sift import sift
from funnelrank.data.source import Source, open_source
from funnelrank.data.writer import ParquetWriter
from funnelrank.describe import describe as describe_config
from funnelrank.describe import describe_ranker
from funnelrank.durable import replace_file, scratch_folder, write_failure
from funnelrank.errors import ArtefactError, ConfigError, DataError, TrainingError, listing
from funnelrank.evaluate import report as report_of
from funnelrank.evaluate import table
from funnelrank.evaluate.facts import bin_rows, contradiction_rows, cost_rows, feature_rows, kept_rows, label_rows
from funnelrank.evaluate.fields import field_rows
from funnelrank.evaluate.gates import gate_rows, gates_of
from funnelrank.evaluate.kept import keep_scores
from funnelrank.evaluate.measure import measure
from funnelrank.evaluate.score import predict_batches, score
from funnelrank.evaluate.views import drift_rows, score_drift_rows
from funnelrank.export import CLOSE, Exported, Form
from funnelrank.export import export as export_graph
from funnelrank.flow import (
    Data,
    build,
    by_hand,
    cache_of,
    calibrate,
    cold_columns,
    device_of,
    encode,
    encode_as_rank,
    fit,
    freezes,
    measure_split,
    open_data,
    other_views,
    prepare,
    silent,
    true_probabilities,
    values_of,
)
from funnelrank.network import Network, drawn
from funnelrank.ranker import RankingModel
from funnelrank.schema import Schema, who_reads
from funnelrank.scorer import Kind, with_tables
from funnelrank.sealed import read_json, refuse_strangers, to_json
from funnelrank.tensors import load_tensors, save_tensors
from funnelrank.train.checkpoint import tensors_hash
from funnelrank.train.events import Event, Recorder, Report
from funnelrank.train.floor import multiply_adds
from funnelrank.train.health import NotFinite
from funnelrank.train.standing import Standing, leaves
from funnelrank.train.track import Told, Trackers
from funnelrank.train.trainer import Trained

EXPORTED_ROWS = 512          # run through a graph
KNOWN_OF_SERVED = ("model", "reading", "seed", "started", "encoder", "versions")     # of `about`, in a folder to serve
LOOKED_AT = 4096             # rows of the last split that gates are looked at on
COUNTED = 256                # rows that multiply-adds are counted on
NOT_PARQUET = (".csv", ".tsv", ".json", ".jsonl", ".arrow", ".feather", ".ipc", ".gz")     # what names of files promise


@dataclass
class Run:
    """A finished training: its folder, its metrics as rows, and how training went."""

    folder: Path
    rows: list[dict[str, Any]]
    trained: Trained
    seconds: float = 0.0
    ranker: Ranker | None = field(default=None, repr=False)


def train(config: Config, *, report: Report = silent, fresh: bool = False, profile: bool = False,
          continue_from: str | Path | None = None, anew: Collection[str] = (), **given: Any) -> Run:
    """All steps, into the run's folder: artefact/, metrics.json, report.html, events.jsonl, run.json, checkpoints/.

    A run of the same config and data that did not finish is gone on with from its last checkpoint; one that did is
    returned as it is, if the same code made it.

    fresh           begin anew in either case
    profile         report where a step's time goes
    continue_from   another run, whose vocabularies grow and whose weights and optimisers go on; see docs/growing.md
    anew            features, tasks, slots of the model, or 'optimiser', that start anew all the same

    Raises ConfigError where another process trains into the folder, where it holds an unfinished run of another config,
    data or predecessor, and for what can neither be carried from the predecessor nor be new.
    """
    with ranks.joined():
        return _train(config, report, fresh, profile, continue_from, anew, given)


def _train(config: Config, report: Report, fresh: bool, profile: bool, continue_from: str | Path | None,
           anew: Collection[str], given: Mapping[str, Any]) -> Run:
    """`train`, by one process or by one rank of several: the first one writes."""
    clock = time.perf_counter()
    folder = _made_folder(config)
    if ranks.size() > 1:
        _refuse_apart(config, profile)
    if config.settings.train.threads:
        torch.set_num_threads(config.settings.train.threads)
    events: list[Event] = []
    tracked = config.settings.train.track if ranks.first() else None
    trackers = Trackers(tracked, _told(config, folder)) if tracked else None
    with (Recorder(folder / "events.jsonl", events, report, trackers) if ranks.first()
          else nullcontext(silent)) as record:
        refuse_strangers(folder / "artefact", "artefact")       # before training, not after
        device_of(config.settings.train)                        # one that is not here is refused before rows are read
        before = before_of(continue_from, config, anew) if continue_from else None
        data = open_data(config, record, **given)
        standing = Standing(folder, config, data.fingerprint(), before and before.mark)
        if ranks.led(lambda: standing.finished and not fresh):
            report({"event": "finished", "folder": str(folder)})
            return finished(folder, config.allow_code)
        old = before and before.encoder_for(config)             # what it refuses, it refuses before anything is removed
        goes_on = ranks.led(lambda: standing.begin(fresh))
        if not goes_on and ranks.first():
            record.begin_anew()
            if standing.found:
                record({"event": "anew", "folder": str(folder), "changed": standing.changed(),
                        "artefact": (folder / "artefact").exists()})
        encoder, splits = _encoded(config, data, record, old)
        model = build(config, encoder, splits, record)
        start = continued = None
        if before:
            start, continued = before.onto(config, encoder, model)
            record({"event": "continue", **continued})
            del before                                          # a whole model, its optimisers and averages
        try:
            trained = fit(config, model, encoder, splits, folder=folder, report=record, resume=goes_on,
                          profile=profile, start=start)
        except NotFinite as error:
            if ranks.first():
                standing.fail(error.facts)
                record({"event": "failed", **error.facts})
            raise
        if (shares := model.selection()) is not None:
            record({"event": "selection", "shares": shares})
        if model.calibration:
            calibrate(config, model, encoder, splits, record)
        measured = {split: _measured(config, model, encoder, splits, data, split)
                    for split in ("valid", "test") if split in splits}
        last = list(measured.values())[-1][1] if measured else {}
        facts = _facts(config, model, encoder, splits, last.get("reliability", {}))
        ranker = Ranker._made(config, encoder, model)
        ranker.continued = continued
        ranker.golden = ranker.golden_of(data.sources[next(s for s in ("valid", "test", "train") if s in splits)])
        with _whole_tables(model, folder) as tensors:
            if not ranks.first():
                ranks.wait()
                return Run(folder, [], trained, time.perf_counter() - clock)
            rows, earlier = [], None
            seen = [Seen(data.sources["train"], c) for c in cold_columns(config, data.sources["train"])]
            for split, (own, kept) in measured.items():
                rows += own
                rows += other_views(config, split, kept["scores"], encoder.layout.scenarios, data.sources[split], seen)
                rows += drift_rows(split, splits["train"], splits[split], encoder.layout)
                rows += score_drift_rows(split, earlier, kept["scores"]) if earlier else []
                earlier = kept["scores"]
                record({"event": "measured", "split": split,
                        "metrics": {f"{split}/{k}": v for k, v in table.wide(rows, split).items()}})
            rows += facts
            seconds = time.perf_counter() - clock
            ranker.rows = rows
            ranker.about = _about(ranker, standing, trained, seconds, events, tensors)
            ranker.save(folder / "artefact", tensors)
        if measured:                                       # the last split's
            keep_scores(folder / "scores", split, last["scores"], last["frozen"],
                        encoder.layout.scenarios if config.schema.scenario else (), config.settings.evaluate,
                        {"name": config.name, "seed": config.settings.train.seed})
        write_text(folder / "metrics.json", table.to_json(rows))
        shown = {"name": config.name, "config": dump(config), "metrics": rows, "events": events,
                 "skipped": {s: e.skipped for s, e in splits.items() if "/" not in s}, "about": ranker.about}
        write_text(folder / "report.html", report_of.page(shown))
        write_text(folder / "report.md", report_of.markdown(shown))
        record({"event": "done", "folder": str(folder), "seconds": round(seconds, 2),
                "training": dataclasses.asdict(trained)})
        standing.end()
        ranks.wait()
    return Run(folder, rows, trained, seconds, None if model.embedding.sharded else ranker)


def _refuse_apart(config: Config, profile: bool) -> None:
    """What one process can do and several cannot."""
    said = config.settings.train
    for wrong, key, found in ((said.device != "cpu", "train.device", f"'{said.device}'"),
                              (said.compile, "train.compile", "true"), (profile, "--profile", "asked for")):
        if wrong:
            raise ConfigError(f"{key}: {found}, which several processes under torchrun cannot do: they compute on "
                              "CPUs, without generated code, and their steps are not timed; leave it out, or train in "
                              "one process")


def _encoded(config: Config, data: Data, record: Report, old: Old | None) -> tuple[Encoder, dict[str, EncodedSplit]]:
    """Statistics of train, and every split's rows. Of several ranks the first one gathers the statistics, each encodes
    a share of the files, and the first one joins them."""
    if ranks.size() == 1:
        encoder = prepare(config, data, record, old)
        return encoder, encode(config, data, encoder, record)
    with scratch_folder(cache_of(config) / "encoder") if ranks.first() else nullcontext() as made:
        def gather() -> str:
            prepare(config, data, record, old).save(made)
            return str(made)

        def join() -> None:
            encode(config, data, encoder, record)

        encoder = Encoder.load(ranks.led(gather))
        encode_as_rank(config, data, encoder, record)
        ranks.led(join)
        splits = encode(config, data, encoder, record)
        ranks.wait()
    return encoder, splits


def _measured(config: Config, model: RankingModel, encoder: Encoder, splits: Mapping[str, EncodedSplit], data: Data,
              split: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Metrics of a split, and what they were measured on."""
    kept: dict[str, Any] = {}
    rows = measure_split(config, model, encoder, splits[split], split, frozen=splits.get(f"{split}/frozen"),
                         truth=true_probabilities(config, data.sources[split]), keep=kept)
    return rows, kept


@contextmanager
def _whole_tables(model: RankingModel, folder: Path) -> Iterator[dict[str, Tensor]]:
    """The model's tensors on the first rank, as one process would have them. Rows that lie with other ranks are brought
    together in a file, so that a model may be larger than the memory of any rank."""
    tensors = dict(model.state_dict())
    if not model.embedding.sharded:
        yield tensors
        return
    with scratch_folder(folder / "tables") if ranks.first() else nullcontext() as scratch:
        for name, held in model.embedding.tables.items():
            if held.sharded:
                tensors[f"embedding.tables.{name}.weight"] = held.whole(scratch and scratch / name)
        yield tensors


def before_of(run: str | Path, config: Config, anew: Collection[str] = ()) -> Before:
    """The run that `config` is to go on from. Raises ConfigError where it has no state to go on with."""
    folder = artefact_folder(Path(run))
    return open_before(folder, Ranker.load(folder, config.allow_code), config, anew)


def _told(config: Config, folder: Path) -> Told:
    """What trackers are told of a run; those of several seeds are told apart."""
    name = config.name if folder.name == config.name else f"{config.name}/{folder.name}"
    return Told(name, folder, dict(leaves(plain(config.settings))))


def _made_folder(config: Config) -> Path:
    folder = Path(config.settings.train.out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"train.out: {folder} cannot be made a folder ({error.strerror})") from None
    return folder


def _about(ranker: Ranker, standing: Standing, trained: Trained, seconds: float, events: list[Event],
           tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the manifest says of a run: what it was made of, by what, and how it went."""
    settings, record = ranker.config.settings, standing.record
    return {"name": ranker.config.name, "model": settings.model.get("name") or "five slots",
            "reading": ranker.config.schema.reading,
            "parameters": sum(tensors[n].numel() for n, _ in ranker.model.named_parameters()),
            "seed": settings.train.seed, "started": record["started"], "seconds": round(seconds, 1),
            "training": dataclasses.asdict(trained), "versions": record["versions"], "machine": record["machine"],
            "data": record["data"], "before": record["before"], "encoder": ranker.encoder.hash(),
            "state": {"checkpoint": trained.kept,
                      "sha256": tensors_hash(standing.folder / "checkpoints", trained.kept)},
            **({"ranks": ranks.size()} if ranks.size() > 1 else {}),
            "resumed": [e["step"] for e in events if e["event"] == "resume"]}


def _facts(config: Config, model: RankingModel, encoder: Encoder, splits: Mapping[str, EncodedSplit],
           reliability: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the report shows beside metrics, as rows of metrics.json; see evaluate/facts.py."""
    shown = {s: e for s, e in splits.items() if "/" not in s}
    last, encoded = list(shown.items())[-1]
    device = next(iter(model.funnel.buffers())).device
    some = pack(encoded, np.unique(np.linspace(0, len(encoded) - 1, min(LOOKED_AT, len(encoded))).astype(np.int64)))
    few, more = (pack(encoded, slice(0, n)).to(device) for n in (2, COUNTED))    # what a batch needs once is no row's
    own = any(own_parts.named(config.settings.model))           # of which nobody knows whether it may be computed twice
    tables = sum(t.rows * t.width for t in model.embedding.tables.values())
    after = {t.name: t.after for t in config.schema.tasks}
    return [*label_rows({s: e.coverage for s, e in shown.items()}, after),
            *contradiction_rows({s: e.contradictions for s, e in shown.items()}),
            *feature_rows({s: e.counts for s, e in shown.items()}), *bin_rows(last, reliability),
            *kept_rows(last, model.selection()),
            *gate_rows(last, gates_of(model, some.to(device), encoder.layout.scenarios), model.tasks,
                       encoder.layout.scenarios, some.scenario.numpy() if config.schema.scenario else None),
            *cost_rows(sum(p.numel() for p in model.parameters() if p.requires_grad) + tables, tables,
                       None if own or len(more) == len(few) else
                       (multiply_adds(model, more) - multiply_adds(model, few)) / (len(more) - len(few)))]


def finished(folder: Path, allow_code: bool = False) -> Run:
    """A finished run, from its folder."""
    ranker = Ranker.load(folder, allow_code)
    return Run(folder, ranker.rows, Trained(**ranker.about["training"]), ranker.about["seconds"], ranker)


_run = train          # in Ranker.fit, `train` names the rows


def write_text(path: Path, text: str) -> None:
    """Replace a file in one step. Raises TrainingError where it cannot be written; what was there stays."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, text.encode())
    except OSError as error:
        raise TrainingError(f"{path}: {write_failure(error, path.parent) or error}") from error


class Ranker:
    """A config, and once fitted the encoder and the model that belong to it.

    >>> ranker = Ranker("demo.yaml").fit()                       # doctest: +SKIP
    >>> ranker.predict(frame)["buy"]                             # doctest: +SKIP
    >>> ranker.save("artefact"); Ranker.load("artefact")         # doctest: +SKIP
    """

    def __init__(self, config: str | Path | Mapping[str, Any] | Config, *sets: str, allow_code: bool = False):
        """`allow_code` imports the parts of a model that the config names as module:Class; see docs/own_models.md."""
        self.config = config if isinstance(config, Config) else load_config(config, sets, allow_code=allow_code)
        self.encoder: Encoder | None = None
        self.model: RankingModel | None = None
        self.about: dict[str, Any] = {}
        self.rows: list[dict[str, Any]] = []
        self.continued: dict[str, Any] | None = None          # what a run that went on from another took over
        self.golden: Golden | None = None                     # some rows and what is served of them

    @classmethod
    def _made(cls, config: Config, encoder: Encoder, model: RankingModel) -> Ranker:
        ranker = cls(config)
        ranker.encoder, ranker.model = encoder, model
        return ranker

    def fit(self, train: Any = None, valid: Any = None, test: Any = None, report: Report = silent,
            fresh: bool = False, continue_from: str | Path | None = None, anew: Collection[str] = (),
            events: Mapping[str, Any] | None = None) -> Ranker:
        """Train on the config's rows, or on those given: paths, or pyarrow, pandas or polars tables; `events` by name.

        A run that is in the folder already is gone on with, or taken as it is, as `train` says; unless `fresh`.
        `continue_from` and `anew` as there.
        """
        given = {k: v for k, v in (("train", train), ("valid", valid), ("test", test)) if v is not None}
        if train is not None:                       # rows given by hand do not mix with the config's files
            given = {"train": None, "valid": None, "test": None} | given
        run = _run(self.config, report=report, fresh=fresh, continue_from=continue_from, anew=anew, events=events,
                   **given)
        self.encoder, self.model = run.ranker.encoder, run.ranker.model
        self.about, self.rows, self.continued = run.ranker.about, run.rows, run.ranker.continued
        self.golden = run.ranker.golden
        return self

    def evaluate(self, rows: Any = None, split: str = "test", report: Report = silent, by: Sequence[str] = (),
                 events: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """Metrics of labelled rows (default: the config's split), as rows of metrics.json.

        `by`: columns of the rows; adds the field-wise calibration error of each, see evaluate/fields.py. `events`:
        event logs by name, instead of the config's.
        """
        source = self._source(rows, split, self.config.settings.data.on_error)
        self._fitted().require(source, labels=True)
        if self.config.settings.data.on_error == "skip":
            source = sift(source, self.config.schema.of_files(), self.encoder.tables,
                          families={name: vocab.family for name, vocab in self.encoder.vocabs.items()})
            if found := source.skipped:
                report({"event": "skipped", "split": split, "words": found.words(), **found.to_json()})
        source.require(by, dict.fromkeys(by, "by"))
        source.require(self.config.settings.evaluate.gauc_by, dict.fromkeys(
            self.config.settings.evaluate.gauc_by, "evaluate.gauc_by"))
        source = self._with_histories(source, events)
        load = lambda s: self._batches(s, labels=True, report=report)
        scores = score(self.model, self.config.schema, load(source), split)
        held = score(self.model, self.config.schema, load(freeze(source, self.config.schema)),
                     split) if freezes(self.config, source) else None
        found = measure(split, scores, self.config.settings.evaluate,
                        self.encoder.layout.scenarios if self.config.schema.scenario else None,
                        frozen=held, truth=true_probabilities(self.config, source))
        found += other_views(self.config, split, scores, self.encoder.layout.scenarios, source)
        return found + [r for c in by for r in field_rows(split, scores, c, *values_of(source, c))]

    def predict(self, rows: Any, keep: list[str] | tuple[str, ...] = (),
                events: Mapping[str, Any] | None = None) -> pa.Table:
        """A table with a column per task, `child|parent` for steps given the one before, and the columns of `keep`.

        `events`: event logs by name, as paths or tables, that histories are made from; default: the config's paths.
        """
        return pa.concat_tables(self.predict_parts(rows, keep, events=events))

    def predict_parts(self, rows: Any, keep: list[str] | tuple[str, ...] = (),
                      report: Report = silent, events: Mapping[str, Any] | None = None) -> Iterator[pa.Table]:
        """`predict`, a bounded part of the rows at a time, in their order."""
        keep = [keep] if isinstance(keep, str) else keep
        source = self._source(rows, "test")
        self._fitted().require(source, labels=False)
        if missing := [c for c in keep if c not in source.columns.names]:
            raise DataError(f"keep: no column {listing(missing)} in the rows; columns are "
                            f"{listing(source.columns.names)}")
        if clash := set(keep) & set(self.outputs()):
            raise ConfigError(f"keep: {listing(sorted(clash))} is also the name of a prediction; leave it out")
        done, source = 0, self._with_histories(source, events)
        columns = list(dict.fromkeys([*self._read(source), *keep]))
        for unit, raw in each(source, columns):
            scores = self._scores(raw, source.where(unit))
            done += len(raw)
            report({"event": "progress", "stage": "predict", "rows": done, "total": source.rows})
            yield pa.table({**{c: raw[c] for c in keep}, **scores})

    def golden_of(self, source: Source) -> Golden:
        """A few rows of a source, and what is served of them."""
        rows = some_rows(source, self._read(source))
        return Golden(rows, pa.table(self._scores(rows, "golden rows")))

    def _scores(self, rows: pa.Table, where: str) -> dict[str, pa.Array]:
        encoded = self.encoder.encode(rows, where, labels=False)
        parts = [self._served(said) for _, said in predict_batches(self.model, self._packed(encoded), corrected=True)]
        return {name: pa.array(np.concatenate([p[name] for p in parts])) if parts else pa.array([], pa.float32())
                for name in self.outputs()}

    def _read(self, source: Source) -> list[str]:
        """Columns that scoring reads: those of features, and the scenario's where it is there."""
        scenario = self.config.schema.scenario
        return list(dict.fromkeys([*self._columns(labels=False),
                                   *([scenario] if scenario in source.columns.names else [])]))

    def outputs(self) -> list[str]:
        """Names of the served columns: `click`, `buy`, `buy|click`. `buy` is always over all impressions."""
        return [o.name for o in self.config.schema.served]

    def save(self, folder: str | Path, tensors: Mapping[str, Tensor] | None = None) -> Path:
        """Write the artefact: complete or not at all. See docs/artefact.md for what is in it. `tensors`: the model's
        weights, where they do not all lie in it."""
        self._fitted()
        write_artefact(Path(folder), {
            "config.yaml": dump(self.config).encode(),
            "schema.json": self.config.schema.model_dump_json(by_alias=True, indent=1).encode(),
            "encoder": self.encoder.save,
            "model.safetensors": lambda path: save_tensors(path, tensors or self.model.state_dict()),
            "metrics.json": table.to_json(self.rows).encode(),
            **({"golden": self.golden.save} if self.golden else {}),
            **({"continued.json": to_json(self.continued)} if self.continued else {}),
        }, self.about)
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path, allow_code: bool = False) -> Ranker:
        """An artefact, or the run folder that holds one, verified name by name and hash by hash before use.

        Raises ConfigError, before anything is imported, for one whose model names a class of the user's own, unless
        `allow_code`; the class is then looked for in the current folder and where Python itself looks.
        """
        artefact = open_artefact(artefact_folder(Path(folder)))
        path = artefact.path
        with understood(path):
            config = _sealed_config(path, artefact.about, allow_code)
            schema = Schema.model_validate_json((path / "schema.json").read_bytes())
            if schema != config.schema:
                raise ArtefactError(f"{path}: schema.json is not what config.yaml resolves to; the artefact was "
                                    "written by another version, or by hand")
            ranker = cls(dataclasses.replace(config, name=artefact.about.get("name", config.name)))
            ranker.encoder = Encoder.load(path / "encoder")
            if ranker.encoder.schema != schema:
                raise ArtefactError(f"{path}: the encoder's schema is not that of the config")
            ranker.about = dict(artefact.about)
            ranker.rows = read_json(path / "metrics.json", f"artefact {path}")
            if (path / "golden").exists():
                ranker.golden = Golden.load(path / "golden")
            if (path / "continued.json").exists():
                ranker.continued = read_json(path / "continued.json", f"artefact {path}")
                if type(ranker.continued.get("trainings")) is not int:
                    raise ArtefactError(f"{path}: continued.json does not say how many trainings went before")
        most, embedding = (path / "model.safetensors").stat().st_size // 4, config.settings.embedding
        widest = max(embedding.width, *(s.width or 0 for s in embedding.spaces.values()), 0)
        if widest > most:
            raise ArtefactError(f"{path}: an embedding of width {widest} is more numbers than model.safetensors holds")
        try:
            # shapes alone, for a config may say more than the memory holds; code that is trusted need not know of this
            with torch.device("cpu" if any(own_parts.named(config.settings.model)) else "meta"):
                expected = {k: (tuple(v.shape), v.dtype) for k, v in RankingModel(
                    config.settings, schema, ranker.encoder.layout, {}).state_dict().items()}
        except RuntimeError as error:
            raise ArtefactError(f"{path}: no model can be as large as its config says ({error})") from None
        tensors = load_tensors(path / "model.safetensors", expected)
        ranker.model = RankingModel(config.settings, schema, ranker.encoder.layout, {})
        ranker.model.load_state_dict(tensors)
        ranker.model.eval()
        return ranker

    def require(self, source: Source, labels: bool) -> None:
        """Raise DataError unless the rows have every column that scoring (and labels, for metrics) needs."""
        made, who = self.config.schema.made, self.config.schema
        columns = [c for c in self._columns(labels) if c not in made] + ([who.user, who.time] if made else [])
        source.require(list(dict.fromkeys(columns)), who_reads(self.config.schema))

    def _columns(self, labels: bool) -> list[str]:
        schema = self.config.schema
        columns = schema.log_columns(labels)
        if labels:
            return columns
        # who a row belongs to is for metrics; to score it, only a feature needs to know
        needed = {c for name in schema.features for c in schema.columns_of(name)}
        return [c for c in columns if c in needed]

    def _fitted(self) -> Ranker:
        if self.model is None:
            raise ConfigError("this Ranker is not fitted; call fit(), or Ranker.load(folder)")
        return self

    def _source(self, rows: Any, split: str, on_error: str = "raise") -> Source:
        data = self.config.settings.data.model_copy(update={"on_error": on_error})
        if isinstance(rows, Source):
            return rows
        if rows is not None:
            return open_source(rows, by_hand(data), split, "rows")
        if getattr(data, split) is None:
            raise ConfigError(f"data.{split}: the config names no rows for this split; name them")
        return open_source(getattr(data, split), data, split)

    def _with_histories(self, source: Source, events: Mapping[str, Any] | None) -> Any:
        schema, data = self.config.schema, self.config.settings.data
        given = by_hand(data) if events else data
        return with_histories(source, schema, open_events(schema, given, events))

    def _packed(self, encoded: Any) -> Iterator[Batch]:
        size = self.config.settings.evaluate.batch_size
        for start in range(0, len(encoded), size):
            yield pack(encoded, np.arange(start, min(start + size, len(encoded))))

    def _batches(self, source: Source, labels: bool, report: Report) -> Iterator[Batch]:
        done, columns = 0, self._columns(labels)
        for unit, raw in each(source, columns):
            yield from self._packed(self.encoder.encode(raw, source.where(unit), labels=labels))
            done += len(raw)
            report({"event": "progress", "stage": "score", "rows": done, "total": source.rows})

    def _served(self, said: Any) -> dict[str, np.ndarray]:
        return {o.name: self.model.funnel.answer(said, o).cpu().numpy() for o in self.config.schema.served}


def evaluate(artefact: str | Path, rows: Any = None, *, split: str = "test", out: str | Path | None = None,
             by: Sequence[str] = (), report: Report = silent,
             events: Mapping[str, Any] | None = None, allow_code: bool = False) -> list[dict[str, Any]]:
    """Metrics of an artefact on labelled rows; written to `out` as metrics.json where given. `by` and `events` as in
    Ranker."""
    found = Ranker.load(artefact, allow_code).evaluate(rows, split, report, by, events)
    if out is not None:
        write_text(Path(out), table.to_json(found))
    return found


def predict(artefact: str | Path, rows: Any, out: str | Path, *, keep: list[str] | tuple[str, ...] = (),
            report: Report = silent, events: Mapping[str, Any] | None = None, allow_code: bool = False) -> int:
    """Score rows into a parquet file, part by part; the file appears when it is complete. Returns the rows written.

    `events`: event logs by name, as in Ranker.predict."""
    if (other := Path(out).suffix.lower()) in NOT_PARQUET:
        raise ConfigError(f"out: {out} ends in {other}, and scores are written as parquet; name a file that ends in "
                          ".parquet")
    ranker = Ranker.load(artefact, allow_code)
    source = ranker._source(rows, "test")
    if os.path.realpath(out) in source.paths:
        raise ConfigError(f"out: {out} holds rows to score, which would be lost; choose another file")
    with ParquetWriter(Path(out)) as writer:
        for part in ranker.predict_parts(source, keep, report, events):
            writer.write(part)
    return writer.rows


def export(artefact: str | Path, to: Form, out: str | Path, *, tables: Kind = "fp32", rows: Any = None,
           verify: bool = False, allow_code: bool = False) -> tuple[Exported, dict[str, tuple[float, float]]]:
    """Write an artefact as one graph; see export.py. `rows` are run through it instead of the golden ones; where they
    have labels and the tables are smaller, also gives each task's AUC with the model's own tables and with those.

    With `verify`, raises ArtefactError where the graph, by its tables, differs from the model by more than 1e-5.
    """
    ranker = Ranker.load(artefact, allow_code)
    if rows is None and ranker.golden is None:
        raise ConfigError(f"{artefact}: has no golden request, so nothing is known to run through the graph; give rows")
    model, schema = ranker.model, ranker.config.schema
    source = None if rows is None else ranker._with_histories(ranker._source(rows, "test"), None)
    given = some_rows(source, ranker._read(source), EXPORTED_ROWS) if source else ranker.golden.rows
    batch = next(ranker._packed(ranker.encoder.encode(given, "rows", labels=False)))
    before = model
    if tables != "fp32":
        model = with_tables(model, tables)
    name, beside, about = ranker.about.get("name", ranker.config.name), {}, {}
    if to == "serve":
        beside, about = _to_serve(ranker, model), {k: v for k, v in ranker.about.items() if k in KNOWN_OF_SERVED}
        about |= {"name": name, "tables": tables}
    done = export_graph(model, schema, name, to, Path(out), tables=tables, rows=batch, beside=beside, about=about)
    if verify and (worst := max(done.differences, key=done.differences.get)) and done.differences[worst] > CLOSE:
        raise ArtefactError(f"{out}: output '{worst}' differs from the model by {done.differences[worst]:.2g}, and "
                            f"{CLOSE:g} is the most that may be; the files stay for a look at them")
    measured = {}
    if source and tables != "fp32" and {t.label for t in schema.tasks} <= set(source.columns.names):
        both = []
        for ranker.model in (before, model):
            overall = [row for row in ranker.evaluate(rows) if row["metric"] == "auc" and row["scenario"] is None]
            both.append({row["task"]: row["value"] for row in overall if row["task"] and row["value"] is not None})
        measured = {task: (both[0][task], both[1][task]) for task in both[0] if task in both[1]}
    return done, measured


def _sealed_config(path: Path, about: Mapping[str, Any], allow_code: bool) -> Config:
    """An artefact's config. It is sealed, so what this version does not know in it is said of the artefact."""
    try:
        return load_config(path / "config.yaml", allow_code=allow_code, beside=False)
    except ConfigError as error:
        if allow_code or own_parts.HOW in str(error):
            raise
        first, *more = error.messages
        wrote = about.get("versions") or {}
        raise ArtefactError(
            f"artefact {path}: this version of funnelrank does not know its config ({first.removeprefix(f'{path}/')}"
            f"{f'; and {len(more)} more' if more else ''}); it was written by version {wrote.get('funnelrank')}, code "
            f"{wrote.get('code')}: use that one, or train again") from None


def _to_serve(ranker: Ranker, model: RankingModel) -> dict[str, Any]:
    """What a server needs beside the graph of `model`: the encoder, and the golden request as that model answers it."""
    if ranker.golden is None:
        raise ConfigError("--to serve: the artefact has no golden request, by which a server knows that it answers as "
                          "it should; train it again")
    before, ranker.model = ranker.model, model
    golden = Golden(ranker.golden.rows, pa.table(ranker._scores(ranker.golden.rows, "golden rows")))
    ranker.model = before
    return {"encoder": ranker.encoder.save, "golden": golden.save}


def describe(what: Config | str | Path, shapes: bool = False, allow_code: bool = False) -> str:
    """A config, or an artefact's folder, in words; with `shapes`, sizes and parameters too.

    Sizes of a config's id spaces depend on its data, so `shapes` reads train once.
    """
    if isinstance(what, Config):
        if not shapes:
            return describe_config(what)
        encoder = prepare(what, open_data(what))
        return describe_ranker(Ranker._made(what, encoder, build(what, encoder, {})))
    ranker = Ranker.load(what, allow_code)
    return describe_ranker(ranker) if shapes else describe_config(ranker.config)


def network(what: Config | str | Path, shapes: bool = False, allow_code: bool = False) -> Network:
    """The model of a config, or of an artefact's folder, as boxes: see network.py, and picture.svg, which draws them.

    What only a fitted encoder knows of sizes is in it for an artefact, and with `shapes`, which reads train once.
    """
    if isinstance(what, Config):
        return drawn(what, prepare(what, open_data(what)).layout if shapes else None)
    ranker = Ranker.load(what, allow_code)
    return drawn(ranker.config, ranker.encoder.layout)
