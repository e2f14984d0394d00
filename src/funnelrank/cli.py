"""The command line: parses, calls one function of the library, shows what it says. console.py prints.

Exit codes: 0 done; 2 what the user wrote or gave is wrong (one message on stderr); 1 a fault of ours; 130 Ctrl-C; 143
ended from outside.
Whatever is slow to import is imported inside the command that needs it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args, get_origin

from cyclopts import App, CycloptsError, MissingArgumentError, Parameter

from funnelrank.console import (
    Console,
    complain,
    many_ranks,
    other_rank,
    printable,
    say,
    show_metrics,
    show_table,
    silence,
)
from funnelrank.errors import ConfigError, FunnelrankError
from funnelrank.stopping import Terminated, interruptible

if TYPE_CHECKING:
    from funnelrank.config import Config

Sets = Annotated[list[str] | None, Parameter(name="--set", negative=(), help=(
    "Edit one key of the config, as in --set train.batch_size=512. May be given many times; lists by position: "
    "'model.represent.hidden[0]=64'."))]
Code = Annotated[bool, Parameter(name="--allow-code", negative=(), help=(
    "Import and run parts of the model that are named as module:Class, code of yours or of whoever wrote this."))]
Split = Literal["test", "valid", "train"]
Words = Annotated[list[str] | None, Parameter(negative=())]

app = App(
    name="funnelrank", help_format="plaintext", suppress_keyboard_interrupt=False,
    version=lambda: _version(),
    help="""Multi-task, multi-scenario ranking of multi-step conversions.

    A first run:

      funnelrank simulate runs/demo-log      write a log to learn from
      funnelrank check examples/demo.yaml    is the config right?
      funnelrank train examples/demo.yaml    train, measure, leave runs/demo/
      funnelrank predict runs/demo runs/demo-log/test.parquet --out scores.parquet

    Every command has a --help of its own, and takes --debug, which shows
    where in the program an error arose. Exit codes: 0 done; 2 the config,
    the data or the command is wrong; 1 a fault of funnelrank itself.""")


@app.command
def check(config: Path, /, *, sets: Sets = None, data: Annotated[bool, Parameter(negative=())] = False,
          allow_code: Code = False) -> None:
    """Say everything that is wrong with a config, before an hour is spent.

    Faults (exit code 2) are what no run can honour; notes are settings that do nothing. For example:

      funnelrank check demo.yaml
      funnelrank check demo.yaml --data

    Parameters
    ----------
    config
        The YAML file.
    data
        Also build the network, and read the data: columns, types, label values, the funnel's order, scenarios,
        vocabularies.
    """
    from funnelrank import check as checks
    read = _load(config, sets, allow_code)
    notes = checks.notes(read.settings, read.schema)
    if data:
        from funnelrank.data.verify import verify
        from funnelrank.network import faults_of_building
        faults = faults_of_building(read)
        with Console() as console:
            said = verify(read.schema, read.settings, console.watch)
        notes += said.notes
        for line in said.summary:
            say(line)
        if faults := [*faults, *said.faults]:
            raise ConfigError(*(read.placed(m) for m in faults), *(f"note: {read.placed(m)}" for m in notes))
    for note in notes:
        say(f"note: {read.placed(note)}")
    features, listed = len(read.settings.features.columns), len(read.schema.features)
    say(f"{config}: good. {features} features ({listed - features} more numbers read off lists), "
        f"tasks {', '.join(t.name for t in read.schema.tasks)}" + ("" if data else "; the data was not read (--data)"))


@app.command
def train(config: Path, /, *, sets: Sets = None, seeds: int | None = None,
          fresh: Annotated[bool, Parameter(negative=())] = False,
          profile: Annotated[bool, Parameter(negative=())] = False, continue_from: Path | None = None,
          anew: Words = None, allow_code: Code = False) -> None:
    """Train a model, measure it, and leave a run folder.

    The folder holds artefact/, metrics.json, report.html and events.jsonl. A run that was stopped, however it was,
    goes on from its last checkpoint when the same command is given again. For example:

      funnelrank train demo.yaml
      funnelrank train demo.yaml --seeds 5
      funnelrank train demo.yaml --set train.seed=1 --set train.out=runs/demo-1
      funnelrank train demo.yaml --set data.dir=/data/october
      funnelrank train demo.yaml --continue-from runs/demo --set train.out=runs/demo-2

    Parameters
    ----------
    config
        The YAML file. The run's folder is train.out, by default runs/<name of the file>.
    fresh
        Begin anew, whatever run is in the folder.
    profile
        Print where a training step's time goes, and its share of the least that this machine could need.
    seeds
        Train so many times, from train.seed on, each into a folder of its own, and sum up mean, sd and range.
    continue_from
        A run folder to go on from, on new rows: vocabularies grow, weights and optimisers are carried.
    anew
        With --continue-from: features, tasks, slots of the model, or 'optimiser', that start anew, separated by commas.
    """
    if anew and continue_from is None:
        raise ConfigError("--anew: only a run that continues another has anything to start anew; add --continue-from")
    read = _load(config, sets, allow_code)
    said = {"fresh": fresh, "profile": profile, "continue_from": continue_from, "anew": _names(anew)}
    if seeds is not None:
        from funnelrank import runs
        from funnelrank.evaluate.seeds import show
        with Console() as console:
            several = runs.train_seeds(read, seeds, report=console.watch, **said)
        for split in dict.fromkeys(row["split"] for row in several.rows):
            say(f"\n{split}, {seeds} seeds: mean, sd, [least most]")
            show_table(show(several.rows, split), texts=("task",))
        return say(f"\n{several.folder}: seed-*/, summary.json, summary.md")
    from funnelrank import api
    with Console() as console:
        run = api.train(read, report=console.watch, **said)
    splits = {row["split"] for row in run.rows}
    for split in ("test", "valid"):
        if split in splits:
            show_metrics(run.rows, split)
            break
    return say(f"{run.folder}: artefact, metrics.json, report.html, events.jsonl; {run.seconds:.0f} s")


@app.command
def replay(run: Path, /, *, step: int | None = None, continue_from: Path | None = None,
           allow_code: Code = False) -> None:
    """Look at the batch that stopped a run, or at that of any step.

    Trains up to it again, from the last checkpoint where that is earlier, and writes nothing. Prints losses, the
    largest gradients and inputs, and the rows with the largest losses. For example:

      funnelrank replay runs/demo
      funnelrank replay runs/demo --step 812

    Parameters
    ----------
    run
        The run's folder.
    step
        Counted from 1. Default: the step that stopped the run.
    continue_from
        Where the run that this one continued is now, if it was moved.
    """
    from funnelrank import again
    with Console() as console:
        seen = again.replay(run, step, console.watch, continue_from, allow_code)
    say(f"step {seen.step}: epoch {seen.position['epoch'] + 1}, batch {seen.position['batch']} (from 0)")
    for said in seen.culprits:
        say(f"  {said}")
    for title, lines in (
            ("loss", [f"{task:<40} {value:.6g}" for task, value in seen.losses.items()]),
            ("largest gradients", [f"{name:<40} {value:.3g}" for name, value in seen.gradients]),
            ("largest inputs", [f"{name:<40} {value:.3g}" for name, value in seen.features]),
            ("largest losses of rows", [f"row {row} of the batch, {task:<20} {value:.6g}"
                                        for row, task, value in seen.rows])):
        say(f"\n{title}")
        for line in lines:
            say(f"  {line}")


@app.command
def reproduce(artefact: Path, /, *, out: Path | None = None, continue_from: Path | None = None,
              allow_code: Code = False) -> None:
    """Train again what an artefact records, and compare weights and metrics bit by bit.

    Same config, data, seed, code and threads give the same bits on the same machine. Exit code 2 where they differ;
    what else differs (versions, machine, files) is said. For example:

      funnelrank reproduce runs/demo

    Parameters
    ----------
    artefact
        A run folder, or the artefact/ in it.
    out
        Keep the second run here. Default: nothing of it is kept.
    continue_from
        Where the run that this one continued is now, if it was moved.
    """
    from funnelrank import again
    from funnelrank.errors import TrainingError
    with Console() as console:
        found = again.reproduce(artefact, out, console.watch, continue_from, allow_code)
    for line in found.circumstances:
        say(f"not as the first time: {line}")
    for name, size in list(found.weights.items())[:10]:
        say(f"differs: {name} by up to {size:.3g}")
    for name, (then, now) in list(found.metrics.items())[:10]:
        say(f"differs: {name} was {then}, now {now}")
    if not found.equal:
        raise TrainingError(f"{artefact}: not reproduced; {len(found.weights)} of {found.tensors} tensors and "
                            f"{len(found.metrics)} of {found.rows} metrics differ")
    say(f"{artefact}: reproduced; {found.tensors} tensors and {found.rows} metrics are equal to the last bit")


@app.command
def encode(config: Path, /, *, sets: Sets = None, fit: Annotated[bool, Parameter(negative=())] = False,
           share: str | None = None, allow_code: Code = False) -> None:
    """Fit vocabularies and encode every split into data.cache, for trainings to come.

    Without options all of it, in this process. For large logs in two steps: --fit once, and then any number of tasks
    that a scheduler spreads over machines, each with a share of the files. A training joins what they made. For
    example:

      funnelrank encode demo.yaml
      funnelrank encode demo.yaml --fit
      funnelrank encode demo.yaml --share 3/16

    Parameters
    ----------
    config
        The YAML file.
    fit
        Only vocabularies and statistics of train.
    share
        K/N: encode only the K-th of N shares of all splits' files. A task that was stopped is given again.
    """
    if fit and share:
        raise ConfigError("--share: shares begin once --fit has ended; give one of them at a time")
    part = _share(share) if share is not None else None
    from funnelrank import flow
    read = _load(config, sets, allow_code)
    with Console() as console:
        data = flow.open_data(read, console.watch)
        if part:
            made, of = flow.encode_share(read, data, part, console.watch)
        else:
            encoder = flow.prepare(read, data, console.watch)
            folder = flow.keep_encoder(read, data, encoder)
            splits = {} if fit else flow.encode(read, data, encoder, console.watch)
    if part:
        return say(f"{flow.cache_of(read)}: {of} files in share {share}, {made} of them encoded now")
    values = ", ".join(f"{name} {vocab.size:,}" for name, vocab in encoder.vocabs.items())
    say(f"{folder}: vocabularies and statistics; ids of {values}")
    for split, rows in splits.items():
        say(f"{rows.folder}: {split}, {rows.rows:,} rows")
    return None


@app.command
def evaluate(artefact: Path, /, *, rows: Words = None, split: Split = "test",
             by: Words = None, events: Words = None, out: Path | None = None,
             allow_code: Code = False) -> None:
    """Measure a trained model on labelled rows.

    Prints ranking and calibration of each task, over all rows and in each scenario. For example:

      funnelrank evaluate runs/demo
      funnelrank evaluate runs/demo --rows data/october.parquet --out october.json
      funnelrank evaluate runs/demo --by country,hour

    Parameters
    ----------
    artefact
        A run folder, or the artefact/ in it.
    rows
        Files, folders, globs or URLs with labels, instead of those that the config names.
    split
        Which of the config's splits to read: test, valid or train. With --rows: what to call the rows.
    by
        Columns of the rows, separated by commas: is the model calibrated within each of their values?
    events
        NAME=PATH, an event log of the config read from another place; once for each.
    out
        Also write the metrics here, in the form of metrics.json.
    """
    from funnelrank import api
    with Console() as console:
        found = api.evaluate(artefact, _given(rows), split=split, out=out, by=_split(by), report=console.watch,
                             events=_events(events), allow_code=allow_code)
    show_metrics([row for row in found if "values" not in row], split)
    if by:
        from funnelrank.evaluate.fields import show_fields
        show_table(show_fields([row for row in found if "values" in row]), texts=("task", "column", "value"))


@app.command
def compare(runs: list[Path], /, *, metrics: Words = None, scenarios: bool = True, out: Path | None = None) -> None:
    """Test runs against the first one, on the same test rows.

    Paired differences per task and scenario, corrected for how many are asked, and what they show, in words. Folders
    of `train --seeds` count as one run each. For example:

      funnelrank compare runs/shared_bottom runs/aitm
      funnelrank compare runs/a runs/b runs/c --metrics auc,logloss,ece --out runs/compared

    Parameters
    ----------
    runs
        Folders of finished runs, or of several seeds. The first is what the others are held against.
    metrics
        Which differences to test; by default auc, gauc_frozen (or gauc) and logloss, rmse of values, gini of amounts,
        accuracy and logloss of classes.
    scenarios
        Also test within each scenario.
    out
        A folder to write comparison.json and comparison.md into.
    """
    from funnelrank import runs as several
    from funnelrank.evaluate.compare import shown, words
    found = several.compare(runs, _split(metrics) or None, by_scenario=scenarios, out=out)
    say(f"{found.split}, held against {found.base}")
    show_table(shown(found), texts=("run", "task", "scenario", "metric", "verdict"))
    say("")
    for line in (*words(found), "", *found.notes):
        say(line)


@app.command
def transfer(config: Path, /, *, sets: Sets = None, tasks: Words = None, scenarios: Words = None,
             metrics: Words = None, seeds: int = 1, allow_code: Code = False) -> None:
    """What does learning together cost or gain each task and each scenario?

    Trains the config as it is, a model of each task alone and one of each scenario's rows alone, each into a folder of
    its own, and tests the joint model against them on the same test rows. Stopped, it goes on when given again. For
    example:

      funnelrank transfer demo.yaml
      funnelrank transfer demo.yaml --tasks buy --scenarios home,search --seeds 3

    Parameters
    ----------
    config
        The YAML file. Runs go to <train.out>-transfer.
    tasks
        Which to train alone, separated by commas; default all, 'none' for none.
    scenarios
        Which to train alone; default the eight with the most rows, 'none' for none.
    metrics
        Which differences to test; by default auc, gauc_frozen (or gauc) and logloss, rmse of values, gini of amounts,
        accuracy and logloss of classes.
    seeds
        Trainings of each; of several, means are compared, and the spread between them is part of the intervals.
    """
    from funnelrank import transfer as together
    which = lambda words: None if words is None else [w for w in _split(words) if w != "none"]
    with Console() as console:
        found = together.transfer(_load(config, sets, allow_code), tasks=which(tasks), scenarios=which(scenarios),
                                  metrics=_split(metrics) or None, seeds=seeds, report=console.watch)
    say(f"{found.split}, the joint model against models trained apart")
    show_table(together.shown(found), texts=("of", "apart", "task", "metric", "verdict"))
    say("")
    for line in (*together.words(found), "", *found.notes, f"{found.folder}: transfer.json, transfer.md, a run each"):
        say(line)


@app.command
def tune(config: Path, /, *, sets: Sets = None, jobs: int = 1, fresh: Annotated[bool, Parameter(negative=())] = False,
         allow_code: Code = False) -> None:
    """Search for better values of any keys, as the config's section `tune` says.

    Every trial is trained and judged on valid; test is not read. Leaves best.yaml, a config to train, and tune.html in
    <train.out>-tune. Stopped, or killed, it goes on when given again. For example:

      funnelrank tune demo.yaml
      funnelrank tune demo.yaml --jobs 4 --set tune.trials=100
      funnelrank train runs/demo-tune/best.yaml --seeds 5

    Parameters
    ----------
    config
        The YAML file.
    jobs
        Processes that search at once.
    fresh
        Forget the search that is in the folder.
    """
    read = _load(config, sets, allow_code)
    try:
        from funnelrank import tune as search
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("funnelrank"):
            raise
        raise ConfigError(f"tune: needs the library '{error.name}', which is not installed; "
                          "pip install 'funnelrank[tune]'") from None
    with Console() as console:
        found = search.tune(read, jobs=jobs, fresh=fresh, report=console.watch)
    show_table(search.shown(found), texts=("trial",))
    for line in ("", *search.words(found), f"{found.folder}: tune.html, tune.md, tune.json"
                 + (", best.yaml" if found.best else "")):
        say(line)


@app.command
def leaderboard(runs: list[Path], /, *, metric: str = "test/auc") -> None:
    """List finished runs by one number, the best first.

    For example:

      funnelrank leaderboard runs/*
      funnelrank leaderboard runs/* --metric test/buy/logloss

    Parameters
    ----------
    runs
        Folders of finished runs, or of several seeds.
    metric
        A number of metrics.json over all rows: test/auc is the mean over tasks, test/buy/auc of one.
    """
    from funnelrank import runs as several
    show_table(several.leaderboard(runs, metric), texts=("run",))


@app.command
def doctor(what: Path, /, *, sets: Sets = None, fail_on: Literal["error", "warning", "note", "never"] = "error",
           skip: Words = None, data: bool = True, rows: int = 2_000_000, format: Literal["text", "json"] = "text",
           out: Path | None = None, allow_code: Code = False) -> int:
    """Find what ruins results: leaks, splits that overlap, dead columns; in a run also dead units, gates, skew.

    Of a config it reads the rows once and trains nothing; of a run it looks at the model, too. Exit code 1 where
    there is a finding at or above --fail-on. For example:

      funnelrank doctor demo.yaml
      funnelrank doctor runs/demo --fail-on warning --skip repeated_rows
      funnelrank doctor runs/demo --format json --out findings.json

    Parameters
    ----------
    what
        A YAML file, a run folder, or the artefact/ in it.
    fail_on
        The least grave finding that makes the exit code 1.
    skip
        Names of detectors to leave out, as they stand in brackets behind findings, separated by commas.
    data
        Of a run: also look at its rows. --no-data looks at the model only.
    rows
        Read so many rows of a split; of more, evenly spaced parts.
    format
        text for people, json for programs.
    out
        Also write the findings here, as JSON.
    """
    from funnelrank.doctor import examine
    if what.is_dir() and sets:
        raise ConfigError("--set: a run's config cannot be edited; name the YAML file instead")
    if rows < 1:
        raise ConfigError(f"--rows: found {rows}; at least 1 row is read")
    with Console() as console:
        found = examine(what if what.is_dir() else _load(what, sets, allow_code), data=data or not what.is_dir(),
                        skip=_split(skip), most=rows, report=console.watch if format == "text" else lambda event: None,
                        allow_code=allow_code)
    if out is not None:
        from funnelrank.api import write_text
        write_text(out, found.to_json())
    for line in found.lines() if format == "text" else [found.to_json().rstrip()]:
        say(printable(line))
    return 1 if found.worst(fail_on) else 0


@app.command
def explain(artefact: Path, /, *, rows: Words = None, split: Split | None = None, by: Words = None, most: int = 50_000,
            repeats: int = 1, select: Annotated[bool, Parameter(negative=())] = False, out: Path | None = None,
            allow_code: Code = False) -> None:
    """What do a trained model's answers come from, and how few features would do?

    Deals each feature's values to other rows, and says what that costs each task in each scenario; shows what gates
    listen to. Writes explain.html, .md and .json. For example:

      funnelrank explain runs/demo
      funnelrank explain runs/demo --by device --repeats 3
      funnelrank explain runs/demo --select

    Parameters
    ----------
    artefact
        A run folder, or the artefact/ in it.
    rows
        Files, folders, globs or URLs with labels, instead of those that the config names.
    split
        Which of the config's splits to read: by default valid, or test where there is none.
    by
        Columns of the rows, separated by commas: what do gates weigh for each of their values?
    most
        Look at so many rows, drawn at random of more.
    repeats
        Deal each feature so often, and take the mean.
    select
        Also train on fewer and fewer features, the least important left out first, and say what that costs on valid.
        Runs go to <run>-select, and so does selected.yaml, a config of the fewest that are not shown to be worse.
    out
        The folder to write into. Default: explain/ in the run's folder.
    """
    import json

    from funnelrank import explain as why
    from funnelrank.api import write_text
    from funnelrank.evaluate import explained
    with Console() as console:
        found = why.explain(artefact, _given(rows), split=split, by=_split(by), most=most, repeats=repeats,
                            report=console.watch, allow_code=allow_code)
        chosen = why.select(artefact, found, report=console.watch, allow_code=allow_code) if select else None
    said, shown = (why.words(chosen) if chosen else []), why.shown(found)
    folder = out or (artefact.parent if artefact.name == "artefact" else artefact) / "explain"
    parts = found.to_json(), chosen and chosen.to_json()
    write_text(folder / "explain.json", json.dumps(parts[0] | {"selected": parts[1]}, ensure_ascii=False,
                                                   allow_nan=False, indent=1) + "\n")
    write_text(folder / "explain.html", explained.page(*parts, said))
    write_text(folder / "explain.md", explained.markdown(parts[0], shown.columns, shown.rows, said))
    say(f"on {found.looked:,} rows of {found.split}: what it costs to deal a feature's values to other rows")
    show_table(shown, texts=("feature",))
    for line in ("", *said, f"{folder}: explain.html, explain.md, explain.json"
                 + (f"; {chosen.folder}: a run each, selected.yaml" if chosen and why.cheapest(chosen) else "")):
        say(line)


@app.command
def predict(artefact: Path, rows: list[str], /, *, out: Path, keep: Words = None, events: Words = None,
            allow_code: Code = False) -> None:
    """Score rows into a parquet file.

    It has a column per task, and 'buy|click' for a step given the one before it. For example:

      funnelrank predict runs/demo data/tomorrow.parquet --out scores.parquet --keep user_id,item_id

    Parameters
    ----------
    artefact
        A run folder, or the artefact/ in it.
    rows
        Files, folders, globs or URLs. They need no labels.
    out
        The parquet file to write. It appears when it is complete.
    keep
        Columns of the rows to copy beside the scores, separated by commas.
    events
        NAME=PATH, the event log that histories are made from, read from another place than the config says.
    """
    from funnelrank import api
    with Console() as console:
        written = api.predict(artefact, _given(rows), out, keep=_split(keep), report=console.watch,
                              events=_events(events), allow_code=allow_code)
    say(f"{out}: {written:,} rows")


@app.command
def export(artefact: Path, /, *, to: Literal["onnx", "aoti", "triton", "torch", "serve"], out: Path,
           tables: Literal["fp32", "fp16", "int8"] = "fp32", rows: Words = None,
           verify: Annotated[bool, Parameter(negative=())] = False, allow_code: Code = False) -> None:
    """Write a trained model as one graph for other runtimes.

    From encoded ids to every output. Prints its size, load time, p50, and how far each output is from the model's own.
    For example:

      funnelrank export runs/demo --to onnx --out exported/demo --verify
      funnelrank export runs/demo --to serve --out served/demo
      funnelrank export runs/demo --to triton --out models
      funnelrank export runs/demo --to onnx --tables int8 --rows test.parquet --out small

    Parameters
    ----------
    artefact
        A run folder, or the artefact/ in it.
    to
        onnx; aoti, compiled for this kind of machine; triton, a model repository; torch, for torch.export.load; serve,
        for funnelrank serve: ONNX with the encoder beside it, which answers without torch.
    out
        A folder that is not there yet; of --to serve one that is there is replaced in one step.
    tables
        How embedding rows are kept. With --rows that have labels, the loss in AUC is measured.
    rows
        Rows to run through the graph, instead of the few that are in the artefact.
    verify
        Exit code 2 where an output differs by more than 1e-5.
    """
    from funnelrank import api
    done, measured = api.export(artefact, to, out, tables=tables, rows=_given(rows), verify=verify,
                                allow_code=allow_code)
    for name, apart in done.differences.items():
        say(f"{name:<30} differs by {apart:.2g} at most")
    for task, (before, after) in measured.items():
        say(f"AUC of {task:<23} {before:.5f}, with {tables} tables {after:.5f} ({after - before:+.5f})")
    from funnelrank.durable import spell_size
    say(f"{done.folder}: {spell_size(done.bytes)}, loads in {done.load_seconds:.2f} s, p50 {done.p50_ms:.2f} ms for "
         f"{done.rows} rows")


@app.command
def serve(artefacts: list[str], /, *, host: str = "127.0.0.1", port: int = 8000, grpc_port: int | None = None,
          threads: int = 1,
          wait_ms: float = 0.0, batch_rows: int = 2048, queue_rows: int = 20_000, timeout_ms: float = 10_000,
          max_rows: int = 10_000, max_body_mb: float = 32, max_list: int = 10_000, max_text: int = 1_000,
          token_file: Path | None = None, tls_cert: Path | None = None, tls_key: Path | None = None,
          watch: float = 0.0, drain: float = 0.0, access_log: bool = True,
          check: Annotated[bool, Parameter(negative=())] = False, allow_code: Code = False) -> None:
    """Answer requests over HTTP and gRPC, by the Open Inference Protocol v2.

    Loads each artefact, verifies it on its golden request, and then listens. SIGTERM ends it when every request that
    came is answered; SIGHUP looks for new versions. For example:

      funnelrank serve runs/demo
      funnelrank serve shop=runs/shop mail=runs/mail --port 9000 --watch 5
      funnelrank serve runs/demo --check
      funnelrank export runs/demo --to serve --out served/demo && funnelrank serve served/demo

    Parameters
    ----------
    artefacts
        Run folders, or the artefact/ in them, or folders that export --to serve wrote, which start sooner and answer
        faster; NAME=FOLDER gives a name, which is otherwise the run's.
    host
        Where to listen. Beyond this machine: 0.0.0.0, with a token or behind something that asks for one.
    grpc_port
        Also listen here, for gRPC.
    threads
        Of the one thread that scores.
    wait_ms
        How long a request may wait for others to be scored with; 0 takes what waits already.
    batch_rows
        Rows that are scored together.
    queue_rows
        Rows that may wait; more are refused with 503.
    timeout_ms
        Longer than this no request waits: 504.
    max_rows
        Rows of a request.
    max_body_mb
        Megabytes of a request.
    max_list
        Entries of one list.
    max_text
        Bytes of one text.
    token_file
        A file whose first line requests must bring, as Authorization: Bearer TOKEN.
    tls_cert
        A certificate file, for https; with --tls-key.
    watch
        Seconds between looks for a new version of an artefact; 0: only when asked.
    drain
        Seconds that a stopping server still takes requests, while it says that it is not ready.
    access_log
        A line of JSON for each request, on stdout.
    check
        Load, verify, say so, and end.
    """
    folders = _named(artefacts)
    try:
        from funnelrank.serve import server
        from funnelrank.serve.protocol import Limits
        if grpc_port is not None:
            from funnelrank.serve import grpc_server  # noqa: F401  (is its library there?)
    except ModuleNotFoundError as error:
        raise ConfigError(f"serve: needs the library '{error.name}', which is not installed; "
                          "pip install 'funnelrank[serve]'") from None
    if (tls_cert is None) != (tls_key is None):
        raise ConfigError("--tls-cert: a certificate and its key go together; give --tls-cert and --tls-key")
    token = _token(token_file)
    if check:
        for name, servable in server.load(folders, threads, allow_code).items():
            say(f"{name}: good. Version {servable.version}, {len(servable.columns)} inputs, outputs "
                f"{', '.join(servable.outputs)}; its golden request differs by {servable.verify():.2g}")
        return
    limits = Limits(body=int(max_body_mb * 2**20), rows=max_rows, length=max_list, text=max_text)
    server.serve(folders, server.Serving(
        host=host, port=port, grpc_port=grpc_port, threads=threads, wait=wait_ms / 1e3,
        batch_rows=batch_rows, queue_rows=queue_rows, timeout=timeout_ms / 1e3, limits=limits, token=token,
        tls=(tls_cert, tls_key) if tls_cert and tls_key else None, watch=watch, drain=drain, access_log=access_log,
        allow_code=allow_code))


@app.command
def describe(what: Path, /, *, sets: Sets = None, shapes: Annotated[bool, Parameter(negative=())] = False,
             network: Annotated[bool, Parameter(negative=())] = False, svg: Path | None = None,
             allow_code: Code = False) -> None:
    """Show what a config or an artefact comes to.

    Every feature, id space, task and part of the model, with all defaults filled in. For example:

      funnelrank describe demo.yaml
      funnelrank describe runs/demo --shapes
      funnelrank describe demo.yaml --network --svg demo.svg

    Parameters
    ----------
    what
        A YAML file, a run folder, or the artefact/ in it.
    shapes
        Also list sizes and parameters. Of a YAML file this reads the train rows once.
    network
        Also show the network: what each part or block reads and gives, its parameters and multiply-adds, and which
        features reach which task.
    svg
        A file to draw the network into, as a picture that a browser shows.
    """
    if sets and what.is_dir():
        raise ConfigError("--set: an artefact's config cannot be edited; describe the YAML file instead")
    if not what.is_dir() and not (shapes or network or svg):
        from funnelrank.describe import describe as describe_config  # without torch, so at once
        say(describe_config(_load(what, sets, allow_code)))
        return
    from funnelrank import api
    found = what if what.is_dir() else _load(what, sets, allow_code)
    say(api.describe(found, shapes, allow_code))
    if network or svg:
        from funnelrank.network import words
        from funnelrank.picture import svg as drawing
        model = api.network(found, shapes, allow_code)
        if network:
            say("\n" + words(model))
        if svg:
            api.write_text(svg, drawing(model))
            say(f"\n{svg}: {len(model.boxes)} boxes")


@app.command(name="import")
def import_config(configs: list[Path], /, *, out: Path | None = None,
                  strict: Annotated[bool, Parameter(negative=())] = False,
                  anyway: Annotated[bool, Parameter(negative=())] = False,
                  system: Annotated[Literal["easyrec", "torch_easyrec", "fuxictr"] | None, Parameter("--from")] = None,
                  experiment: Annotated[str | None, Parameter("--expid")] = None) -> None:
    """Make a config of ours from one of EasyRec, TorchEasyRec or FuxiCTR.

    Writes the config, with the source's lines behind #, and a table of what became of every key: carried, approximated,
    ignored or refused. Where something is refused nothing is written. For example:

      funnelrank import dbmtl_on_taobao.config
      funnelrank import dbmtl_on_taobao.config --out shop.yaml --strict
      funnelrank import config/ --expid DCNv2_test

    Parameters
    ----------
    configs
        The source: a .config file; for FuxiCTR the folder with dataset_config.yaml and model_config.yaml, or the two.
    out
        The YAML file to write; the table stands beside it, as NAME.import.md. Default: the source's name, here.
    strict
        Refuse what can only be approximated, too.
    anyway
        Write the config without what is refused.
    system
        Whose config it is, where it does not show.
    experiment
        Which of FuxiCTR's experiments, where the file has several.
    """
    from funnelrank import imports
    found, written = imports.write(configs, out, strict=strict, anyway=anyway, system=system, experiment=experiment)
    for row in (row for verdict in ("approximated", "refused") for row in found.of(verdict)):
        say(printable(f"{row.verdict}: {row.where}: {row.path}: {row.said}"))
    say(f"{written}: {found.counts()}; every key path is in {imports.page_of(written)}")


@app.command
def simulate(out: Path, /, *, rows: int = 200_000, users: int = 5_000, items: int = 2_000, scenarios: int = 4,
             days: int = 10, funnel: str = "click,cart,buy", side_tasks: str = "like", spend: bool = True,
             seed: int = 0, null_rate: float = 0.02, missing_labels: float = 0.02, delay_hours: float = 0.0,
             drift: float = 0.2, launches: float = 0.0, alike: float = 1.0, mood: float = 0.0,
             next_rate: float = 0.3) -> None:
    """Write a log whose true probabilities are known.

    Writes train, valid, test, users and items as parquet files. For example:

      funnelrank simulate runs/demo-log
      funnelrank simulate logs/big --rows 1000000 --funnel view,click,buy

    Parameters
    ----------
    out
        The folder to write into.
    rows
        Impressions, over all three splits.
    users
        How many there are; so for items and scenarios.
    days
        The last tenth (at least one day) is test, the tenth before it valid.
    funnel
        Names of its steps, first to last.
    side_tasks
        Names of tasks beside the funnel; '' for none.
    spend
        Also write the money spent, a regression label.
    null_rate
        Share of nulls in columns that may have them.
    missing_labels
        Share of each task's labels that was not observed.
    delay_hours
        The last step's label is not yet known on the last so many hours of train.
    drift
        How far days wander; 0 for days that are alike.
    launches
        Share of items that nobody is shown before a day of their own.
    alike
        How far what brings about the first step moves the next ones; 0 for not at all.
    mood
        Spread of what moves all steps of a row and stands in no column.
    next_rate
        Share of those who took a step that take the next one.
    """
    from funnelrank.simulate import simulate as make
    made = make(out, rows=rows, users=users, items=items, scenarios=scenarios, days=days, funnel=_split([funnel]),
                side_tasks=_split([side_tasks]), spend=spend, seed=seed, null_rate=null_rate,
                missing_labels=missing_labels, delay_hours=delay_hours, drift=drift, launches=launches,
                alike=alike, mood=mood, next_rate=next_rate)
    say(f"{out}: " + ", ".join(f"{split} {n:,}" for split, n in made["rows"].items()) + " rows; rates "
        + ", ".join(f"{t} {'-' if p is None else format(p, '.4f')}" for t, p in made["rates"].items()))


# ---- parsing

def _load(path: Path, sets: Sequence[str] | None, allow_code: bool = False) -> Config:
    from funnelrank import config
    return config.load(path, sets or (), allow_code=allow_code)


def _share(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise ConfigError(f"--share: found '{text}'; a share is K/N, from 1/N to N/N, as in --share 3/16")
    return int(found[1]), int(found[2])


def _split(words: Sequence[str] | None) -> list[str]:
    """['a,b', 'c'] -> ['a', 'b', 'c']."""
    return [piece.strip() for word in words or () for piece in word.split(",") if piece.strip()]


def _names(words: Sequence[str] | None) -> list[str]:
    """['a,b', 'match(x,y)'] -> ['a', 'b', 'match(x,y)']: commas inside brackets do not separate."""
    pieces = [piece.strip() for word in words or () for piece in re.findall(r"(?:[^,(]|\([^)]*\))+", word)]
    return [piece for piece in pieces if piece]


def _named(artefacts: Sequence[str]) -> dict[str, Path]:
    """NAME=FOLDER, or the name of the run's folder."""
    named: dict[str, Path] = {}
    for said in artefacts:
        name, equals, folder = said.partition("=")
        path = Path(folder if equals else said)
        name = name if equals else (path.parent.name if path.name == "artefact" else path.resolve().name)
        if not re.fullmatch(r"[A-Za-z0-9_.-]{1,100}", name):
            raise ConfigError(f"{said}: '{name}' cannot be a model's name; letters, digits, '_', '-' and '.' do; "
                              "write NAME=FOLDER")
        if name in named:
            raise ConfigError(f"{said}: the name '{name}' is already that of {named[name]}; write NAME=FOLDER")
        named[name] = path
    return named


def _token(file: Path | None) -> str | None:
    if file is None:
        return None
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--token-file: {file} cannot be read ({getattr(error, 'strerror', None) or error}); its "
                          "first line is the token") from None
    if not lines or not lines[0].strip():
        raise ConfigError(f"--token-file: the first line of {file} is empty; it is the token")
    return lines[0].strip()


def _given(rows: Sequence[str] | None) -> str | list[str] | None:
    """Paths of the command line start at the current folder, not at the config's data.dir."""
    from funnelrank.fill import URL
    if not rows:
        return None
    return [r if URL.match(r) else str(Path.cwd() / Path(r).expanduser()) for r in rows]


def _events(words: Sequence[str] | None) -> dict[str, list[str]]:
    """['log=a.parquet', 'log=b.parquet'] -> {'log': both}."""
    found: dict[str, list[str]] = {}
    for word in words or ():
        name, said, path = word.partition("=")
        if not (name and said and path):
            raise ConfigError(f"--events: found '{word}'; must be NAME=PATH, as in log=data/events.parquet")
        found.setdefault(name, []).extend(_given([path]))
    return found


def _version() -> str:
    from importlib.metadata import version
    return version("funnelrank")


# ---- the entry point

def main(tokens: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    tokens = list(sys.argv[1:] if tokens is None else tokens)
    debug = "--debug" in tokens
    if other_rank():
        silence()
    try:
        if many_ranks() and tokens[:1] != ["train"]:
            raise ConfigError(f"torchrun starts `{' '.join(tokens[:1])}` several times, and only train shares work; "
                              "give this command without torchrun")
        with interruptible():
            code = app([t for t in tokens if t != "--debug"], exit_on_error=False, print_error=False,
                       result_action="return_value")
    except Terminated:
        return 143 if other_rank() else _failed(143, "stopped: this process was asked to end; what is complete on disk "
                                                     "stays", debug)
    except KeyboardInterrupt:
        return 130 if other_rank() else _failed(130, "stopped; what is complete on disk stays", debug)
    except SystemExit:                  # rich's word for a reader of --help that went away
        return 0
    except (FunnelrankError, CycloptsError) as error:
        if other_rank() and isinstance(error, ConfigError | CycloptsError):      # the first one says it
            return 2
        return _failed(2, _sentence(error), debug)
    except OSError as error:            # a folder without permission, a full disk: whoever owns the machine can act
        return _failed(2, f"{error.filename or 'this machine'}: {error.strerror or error}", debug)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not re.search(r"can't allocate|out of memory", str(error)):
            return _fault(error, debug)
        asked = re.search(r"[\d.]+ (bytes|[KMGTP]iB)", str(error))
        return _failed(2, "the memory does not hold this" + (f" ({asked[0]} asked for at once)" if asked else "")
                       + "; smaller embedding.width, hash_buckets, max_size, batch_size or data.memory would do", debug)
    except Exception as error:          # the outermost place: whatever arrives here is a fault of ours
        return _fault(error, debug)
    return code if isinstance(code, int) else 0


def _sentence(error: FunnelrankError | CycloptsError) -> str:
    """What is wrong; where an option is missing that has a few values, those too."""
    hint = error.argument.hint if isinstance(error, MissingArgumentError) and error.argument else None
    values = get_args(hint) if get_origin(hint) is Literal else ()
    return f"{str(error).rstrip('.')}: one of {', '.join(values)}" if values else str(error)


def _fault(error: Exception, debug: bool) -> int:
    parts = sys.modules.get("funnelrank.own_parts")
    if parts and (where := parts.blamed(error)):
        return _failed(2, f"{where}: {type(error).__name__}: {error} (a part of your own; --debug shows more)", debug)
    return _failed(1, f"a fault of funnelrank, not of yours: {type(error).__name__}: {error}\n"
                      "Run again with --debug to see where, and report it with what that shows.", debug)


def _failed(code: Literal[1, 2, 130, 143], message: str, debug: bool) -> int:
    if debug:
        import traceback
        traceback.print_exc()
    complain(message)
    return code
