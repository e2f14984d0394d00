"""`funnelrank tune`: which values of a config's keys do best on valid? Optuna asks, short trainings answer.

    runs/shop-tune/study.db       every trial, by Optuna; a search that was stopped goes on from it
    runs/shop-tune/trials/3/      events.jsonl of trial 3; its checkpoints while it is not finished
    runs/shop-tune/best.yaml      the config with what was best: one to train
    runs/shop-tune/tune.html, .md, .json

A trial is the config with some keys edited, as `--set` edits them, trained without test and judged by tune.metric on
valid, at its best evaluation. The config as written is the first one, where its values lie in the ranges.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from optuna.trial import FrozenTrial, Trial, TrialState

from funnelrank.api import write_text
from funnelrank.config import Config, edited, plain
from funnelrank.config import load as load_config
from funnelrank.data.loader import pack
from funnelrank.document import write as yaml
from funnelrank.durable import lock_file
from funnelrank.errors import ConfigError, FunnelrankError, TrainingError
from funnelrank.evaluate import table, tuned
from funnelrank.evaluate.table import Shown
from funnelrank.flow import build, encode, fit, open_data, prepare, silent
from funnelrank.ranker import RankingModel
from funnelrank.settings import Range, Tune
from funnelrank.stopping import interruptible
from funnelrank.train.checkpoint import discard_checkpoints
from funnelrank.train.events import Event, Recorder, Report
from funnelrank.train.health import NotFinite
from funnelrank.train.standing import deciding, differences

STUDY = "study.db"
FIRST = 10              # trials before TPE has anything to go by, and before any is ended early
EVERY = 1.0             # seconds between looks at what other processes have done
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


@dataclass(frozen=True)
class Search:
    """What a process needs to know to take part."""

    source: str | Mapping[str, Any]
    sets: tuple[str, ...]
    allow_code: bool
    folder: str
    tune: Tune
    metric: str
    until: float | None          # no trial begins after this, in seconds since 1970
    parent: int

    def config(self, edits: Sequence[str] = (), out: str = "") -> Config:
        """A trial's config: without test, and with nothing measured but what it is judged by."""
        own = [f"train.out={out or self.folder}", "train.track=[]", "data.test=null", "evaluate.frozen=false",
               "evaluate.keep_scores=0", f"train.early_stopping.metric={self.metric}", "tune={}"]
        return load_config(self.source, [*self.sets, *edits, *own], allow_code=self.allow_code)


@dataclass(frozen=True)
class Tuned:
    """trials: {number, state, value, edits, parameters, latency_ms, seconds, note}, in their order."""

    folder: Path
    name: str
    metric: str
    trials: list[dict[str, Any]]
    best: dict[str, Any] | None
    written: dict[str, Any] | None         # the trial of the config as written, where there was one
    importances: dict[str, float]
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "metric": self.metric, "best": self.best and self.best["number"],
                "written": self.written and self.written["number"], "importances": self.importances,
                "notes": self.notes, "trials": self.trials}


class Ended(Exception):
    """A trial that is not worth its end."""


class Orphaned(BaseException):
    """The process that began this one is gone."""


def tune(config: Config, *, jobs: int = 1, fresh: bool = False, report: Report = silent) -> Tuned:
    """Search, or go on with the search in <train.out>-tune; writes best.yaml and the pages, and returns what was found.

    jobs     processes at once, each with train.threads threads, or its share of the cores
    fresh    forget the search that is there

    Raises ConfigError for keys or values that the config cannot have, and where another search is in the folder.
    """
    said = config.settings.tune
    if not said.over:
        raise ConfigError("tune.over: names no key to try values of; add one, as "
                          "tune: {over: {train.optimiser.lr: {low: 1e-4, high: 1e-2, log: true}}}")
    if jobs < 1:
        raise ConfigError(f"--jobs: found {jobs}; at least one process searches")
    if config.settings.data.valid is None:
        raise ConfigError("data.valid: trials are judged on valid rows, and the config names none")
    metric = said.metric or config.settings.train.early_stopping.metric
    table.check_name(metric, {t.name: t.kind for t in config.schema.tasks}, where="tune.metric")
    way = table.direction(metric, "tune.metric")
    folder = Path(f"{config.settings.train.out}-tune")
    threads = config.settings.train.threads or max(1, (os.cpu_count() or 1) // jobs)
    cache = config.settings.data.cache or str(folder.parent / ".funnelrank-cache")
    search = Search(str(config.path) if config.path else plain(config.settings),
                    (*config.sets, f"train.threads={threads}", f"data.cache={json.dumps(cache)}"), config.allow_code,
                    str(folder), said, metric, time.time() + said.seconds if said.seconds else None, os.getpid())
    check(search)
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        study = _study(search, way, config, fresh)
        _take_up_the_dead(study)
        _begin_as_written(study, config, said)
        before = len(study.trials)
        with _quiet():
            _search(search, jobs, study, report, way)
            found = _result(study, search, config, way)
    if len(study.trials) == before and not found.trials:
        raise ConfigError("tune: no trial was begun")
    _write(found, config, search)
    return found


def check(search: Search) -> None:
    """Raise ConfigError for a key, or a value, that the config cannot have, before an hour is spent."""
    faults = []
    for key, values in search.tune.over.items():
        if key.split(".")[0] in ("data", "tune", "evaluate") or key == "train.out":
            faults.append(f"tune.over: '{key}' decides what trials are measured on, so trials could not be compared; "
                          "leave it out")
            continue
        for value in [values.low, values.high] if isinstance(values, Range) else values:
            try:
                search.config([f"{key}={json.dumps(value)}"])
            except ConfigError as error:
                faults += [f"tune.over: {message}" for message in error.messages]
    if faults:
        raise ConfigError(*dict.fromkeys(faults))


# ---- the study

@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    with (folder / "search.lock").open("a") as file:
        if not lock_file(file.fileno()):
            raise ConfigError(f"{folder}: another search is at work here just now; wait for its end, or give this one "
                              "more processes with --jobs")
        yield


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)


def _open(folder: str, tune: Tune, process: int) -> optuna.Study:
    with _quiet():
        begun = len(optuna.load_study(study_name="tune", storage=_storage(folder)).get_trials(deepcopy=False))
        seed = tune.seed + 1000 * process + begun            # a search that goes on does not ask the same again
        sampler = optuna.samplers.RandomSampler(seed) if tune.sampler == "random" else optuna.samplers.TPESampler(
            n_startup_trials=FIRST, seed=seed, multivariate=True, group=True, constant_liar=True)
        pruner = optuna.pruners.MedianPruner(n_startup_trials=FIRST, n_warmup_steps=1) if tune.prune else (
            optuna.pruners.NopPruner())
        return optuna.load_study(study_name="tune", storage=_storage(folder), sampler=sampler, pruner=pruner)


def _storage(folder: str) -> str:
    return f"sqlite:///{Path(folder).absolute() / STUDY}?timeout=60"


def _study(search: Search, way: int, config: Config, fresh: bool) -> optuna.Study:
    path = Path(search.folder) / STUDY
    if fresh:
        path.unlink(missing_ok=True)
    tune = search.tune.model_dump(mode="json")
    made_from = {"config": deciding(plain(config.settings)) | {"data": plain(config.settings)["data"] | {
        "cache": None}}, "tune": {k: v for k, v in tune.items() if k in ("over", "limits")}, "metric": search.metric,
        "data": open_data(search.config()).fingerprint()}
    made_from = json.loads(json.dumps(made_from))
    with _quiet():
        study = optuna.create_study(study_name="tune", storage=_storage(search.folder), load_if_exists=True,
                                    direction="maximize" if way > 0 else "minimize")
    was = study.user_attrs.get("made_from")
    if was is None:
        study.set_user_attr("made_from", made_from)
    elif changed := differences(was, made_from):
        raise ConfigError(f"{search.folder}: holds a search of another config or data ({'; '.join(changed[:3])}); "
                          "choose another train.out, or begin anew with --fresh")
    return _open(search.folder, search.tune, 0)


def _take_up_the_dead(study: optuna.Study) -> None:
    """Nobody else searches here, so trials that run are those of killed processes: they are asked again, and go on from
    their last checkpoint."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
        if trial.params:
            study.enqueue_trial(trial.params, user_attrs=trial.user_attrs | {
                "again": trial.user_attrs.get("again", trial.number)})


def _begin_as_written(study: optuna.Study, config: Config, tune: Tune) -> None:
    if study.trials:
        return
    params, settings = {}, plain(config.settings)
    for key, values in tune.over.items():
        value: Any = settings
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if isinstance(values, Range):
            if not (isinstance(value, int | float) and values.low <= value <= values.high):
                return
            params[key] = value
        elif value in values or isinstance(value, dict) and value.get("name") in values:
            params[key] = _label(value if value in values else value["name"])
        else:
            return
    study.enqueue_trial(params, user_attrs={"written": True})


def _asked(trial: Trial, tune: Tune) -> list[str]:
    """What Optuna wants tried, as edits of the config."""
    edits = []
    for key, said in tune.over.items():
        if isinstance(said, Range):
            whole = all(isinstance(x, int) for x in (said.low, said.high, said.step or 0))
            suggest = trial.suggest_int if whole else trial.suggest_float
            step = {"step": said.step} if said.step is not None else {}
            value = suggest(key, said.low, said.high, log=said.log, **step)
        else:
            labels = {_label(v): v for v in said}
            value = labels[trial.suggest_categorical(key, list(labels))]
        edits.append(f"{key}={json.dumps(value)}")
    return edits


def _label(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


# ---- searching

def _search(search: Search, jobs: int, study: optuna.Study, report: Report, way: int) -> None:
    told = {t.number for t in study.trials if t.state.is_finished()}

    def tell() -> None:
        best = None
        for t in study.get_trials(deepcopy=False):
            if t.state == TrialState.COMPLETE:
                best = t.value if best is None else max(way * best, way * t.value) * way
            if t.state.is_finished() and t.number not in told:
                told.add(t.number)
                report({"event": "trial", "number": t.number, "done": sum(map(_counts, study.trials)),
                        "of": search.tune.trials, "metric": search.metric,
                        "value": t.value, "best": best, "state": t.state.name, "params": dict(t.params),
                        "note": t.user_attrs.get("note")})
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=work_alone, args=(search, process), daemon=True) for process in range(1, jobs)]
    try:
        for worker in workers:
            worker.start()
        work(search, 0, tell)
        while any(w.is_alive() for w in workers):
            time.sleep(EVERY)
            tell()
        tell()
    finally:
        for worker in workers:
            worker.terminate()               # a checkpoint is written first, where a trial is under way
        for worker in workers:
            worker.join()
    if broken := [w.exitcode for w in workers if w.exitcode]:
        raise TrainingError(f"{len(broken)} of {jobs} searching processes ended with code {broken[0]}; what they found "
                            "is kept, and the same command goes on")


def work_alone(search: Search, process: int) -> None:
    """`work` as a process of its own."""
    with interruptible(), _quiet(), contextlib.suppress(KeyboardInterrupt, Orphaned):
        work(search, process)


def work(search: Search, process: int, tell: Callable[[], None] = lambda: None) -> None:
    """Trials one after another, as long as any are left to begin."""
    torch.set_num_threads(search.config().settings.train.threads)
    study, prepared = _open(search.folder, search.tune, process), {}
    while (trial := _next(study, search)) is not None:
        _run(study, trial, search, prepared)
        tell()


def _next(study: optuna.Study, search: Search) -> Trial | None:
    """A trial to run, counted and taken by one process at a time."""
    if search.until is not None and time.time() > search.until:
        return None
    with (Path(search.folder) / "next.lock").open("a") as file:
        while not lock_file(file.fileno()):
            time.sleep(0.02)
        begun = sum(t.state == TrialState.RUNNING or _counts(t) for t in study.get_trials(deepcopy=False))
        return study.ask() if begun < search.tune.trials else None


def _counts(trial: FrozenTrial) -> bool:
    """Whether it came to an end of its own; one that was killed stands under the number it had next."""
    return trial.state in FINISHED or trial.state == TrialState.FAIL and bool(trial.user_attrs.get("note"))


def _run(study: optuna.Study, trial: Trial, search: Search, prepared: dict[str, Any]) -> None:
    """One trial to its end: told to the study, whatever that is."""
    clock = time.perf_counter()
    folder = Path(search.folder) / "trials" / str(trial.user_attrs.get("again", trial.number))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        value = _trained(trial, search.config(_asked(trial, search.tune), str(folder)), search, folder, prepared)
    except Ended as why:
        trial.set_user_attr("note", str(why))
        state, value = TrialState.PRUNED, None
    except (FunnelrankError, NotFinite) as error:
        trial.set_user_attr("note", error.messages[0])
        state, value = TrialState.FAIL, None
    else:
        state = TrialState.COMPLETE if value is not None else TrialState.FAIL
        if value is None:
            trial.set_user_attr("note", f"{search.metric} has no value on valid")
    trial.set_user_attr("seconds", round(time.perf_counter() - clock, 2))
    study.tell(trial, value, state)
    discard_checkpoints(folder / "checkpoints")


def _trained(trial: Trial, config: Config, search: Search, folder: Path, prepared: dict[str, Any]) -> float | None:
    events: list[Event] = []
    key = json.dumps([config.schema.model_dump(mode="json"), config.settings.data.model_dump(mode="json")])
    if prepared.get("key") != key:
        data = open_data(config)
        encoder = prepare(config, data)
        prepared.update(key=key, encoder=encoder, splits=encode(config, data, encoder))
    encoder, splits = prepared["encoder"], prepared["splits"]
    model = build(config, encoder, splits)
    _hold_to_limits(trial, model, splits["valid"], search.tune)

    def listen(event: Event) -> None:
        if os.getpid() != search.parent and os.getppid() != search.parent:
            raise Orphaned
        if event["event"] == "evaluate" and event["value"] is not None:
            nth = sum(e["event"] == "evaluate" for e in events)        # events of an earlier try included
            trial.report(event["value"], nth)
            if trial.should_prune():
                raise Ended(f"at its evaluation {nth} below the median of others")
    with Recorder(folder / "events.jsonl", events, listen) as record:
        again = "again" in trial.user_attrs
        if not again:
            record.begin_anew()
        return fit(config, model, encoder, splits, folder=folder, report=record, resume=again).best


def _hold_to_limits(trial: Trial, model: RankingModel, rows: Any, tune: Tune) -> None:
    """Counts and times the model; raises Ended where it is beyond a limit."""
    limits, over = tune.limits, []
    size = sum(p.numel() for p in model.parameters())
    trial.set_user_attr("parameters", size)
    if limits.parameters is not None:
        trial.set_constraint("parameters", size / limits.parameters - 1)
        if size > limits.parameters:
            over.append(f"{size:,} parameters, above {limits.parameters:,}")
    if limits.latency_ms is not None and not over:
        taken = latency(model, pack(rows, np.arange(limits.rows) % len(rows)))
        trial.set_user_attr("latency_ms", round(taken, 3))
        trial.set_constraint("latency", taken / limits.latency_ms - 1)
        if taken > limits.latency_ms:
            over.append(f"{taken:.2f} ms for {limits.rows} rows, above {limits.latency_ms:g}")
    if over:
        raise Ended("; ".join(over))


@torch.inference_mode()
def latency(model: RankingModel, batch: Any) -> float:
    """Milliseconds to score a batch on one thread: the best of five medians of ten."""
    training, threads = model.training, torch.get_num_threads()
    model.eval()
    torch.set_num_threads(1)
    batch = batch.to(next(iter(model.funnel.buffers())).device)
    try:
        model.served(batch)
        medians = []
        for _ in range(5):
            spent = []
            for _ in range(10):
                start = time.perf_counter()
                model.served(batch)
                spent.append(time.perf_counter() - start)
            medians.append(statistics.median(spent))
        return 1e3 * min(medians)
    finally:
        torch.set_num_threads(threads)
        model.train(training)


# ---- what came of it

def _result(study: optuna.Study, search: Search, config: Config, way: int) -> Tuned:
    trials = []
    for t in study.get_trials(deepcopy=False):
        if not _counts(t):
            continue
        trials.append({"number": t.number, "state": t.state.name, "value": t.value, "params": dict(t.params),
                       "parameters": t.user_attrs.get("parameters"), "latency_ms": t.user_attrs.get("latency_ms"),
                       "seconds": t.user_attrs.get("seconds"), "note": t.user_attrs.get("note"),
                       "written": bool(t.user_attrs.get("written"))})
    done = [t for t in trials if t["state"] == "COMPLETE"]
    best = max(done, key=lambda t: way * t["value"], default=None)
    notes, importances = [], {}
    try:
        importances = {k: float(v) for k, v in optuna.importance.get_param_importances(
            study, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0)).items()}
    except (RuntimeError, ValueError) as error:
        notes.append(f"Importances of keys cannot be told: {error}")
    except ImportError:
        notes.append("Importances of keys need scikit-learn; pip install 'funnelrank[tune]'")
    written = next((t for t in done if t["written"]), None)
    if written is None:
        notes.append("The config as written was not tried: one of its values lies outside of what tune.over names, or "
                     "its trial did not end.")
    return Tuned(Path(search.folder), config.name, search.metric, trials, best, written, importances, notes)


def _write(found: Tuned, config: Config, search: Search) -> None:
    facts = found.to_json()
    write_text(found.folder / "tune.json", json.dumps(facts, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    write_text(found.folder / "tune.html", tuned.page(facts))
    write_text(found.folder / "tune.md", tuned.markdown(facts))
    if found.best is None:
        return
    values = {k: v if isinstance(search.tune.over[k], Range) else {_label(x): x for x in search.tune.over[k]}[v]
              for k, v in found.best["params"].items()}
    said = edited(config, [f"{k}={json.dumps(v)}" for k, v in values.items()])
    said.pop("tune", None)
    said["data"] = {**(said.get("data") or {}), "dir": config.settings.data.dir}
    said["train"] = {**(said.get("train") or {}), "out": f"{config.settings.train.out}-best"}
    write_text(found.folder / "best.yaml", f"# trial {found.best['number']} of {found.folder.name}: {found.metric} "
                                           f"{found.best['value']:.4f} on valid\n{yaml(said)}\n")


def words(found: Tuned) -> list[str]:
    """What was found, a sentence each."""
    return tuned.words(found.to_json())


def shown(found: Tuned, most: int = 10) -> Shown:
    """The best trials."""
    way = table.direction(found.metric)
    done = sorted((t for t in found.trials if t["state"] == "COMPLETE"), key=lambda t: -way * t["value"])
    keys = list(dict.fromkeys(k for t in done for k in t["params"]))
    figure = lambda v: f"{v:.4g}" if isinstance(v, float) else str(v)
    return Shown(["trial", found.metric, *keys], [[str(t["number"]) + (" (as written)" if t["written"] else ""),
                                                   f"{t['value']:.4f}", *(figure(t["params"].get(k)) for k in keys)]
                                                  for t in done[:most]])
