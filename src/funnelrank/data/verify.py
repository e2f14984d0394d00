"""`check --data`: reads every split once and compares what it finds with what the config says of it.

Columns and their types, label values, the funnel's order, scenarios, and vocabularies too small for the data. Every
fault is collected, one a feature and split, instead of stopping at the first. Nothing is fitted and nothing written.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from funnelrank.data.ahead import each
from funnelrank.data.columns import Reader, Rows
from funnelrank.data.events import open_events, with_histories
from funnelrank.data.fit_rates import period_of
from funnelrank.data.frozen import sortable
from funnelrank.data.labels import contradictions, read_labels, read_weights
from funnelrank.data.parse import Values, numbers, one_chunk
from funnelrank.data.sift import families_of, scenario_family, sift
from funnelrank.data.source import Source, open_source
from funnelrank.data.spill import SHARE
from funnelrank.data.tables import Dimension, canonical, open_tables
from funnelrank.data.vectors import Vectors
from funnelrank.data.vocab import Counts, Vocab, to_family
from funnelrank.errors import DataError, FunnelrankError, listing
from funnelrank.schema import COMPUTED, Schema, Space, table_of, who_reads
from funnelrank.settings import Settings

SPLITS = ("train", "valid", "test")
MANY_SCENARIOS = 1000


@dataclass
class Found:
    """faults: no run can go on. notes: worth a look. summary: one line a split."""

    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    summary: list[str] = field(default_factory=list)


def verify(schema: Schema, settings: Settings, report: Callable[[dict[str, Any]], None] = lambda event: None) -> Found:
    """Everything that is wrong or odd about the files of a config. `report` gets progress events."""
    found, sources, tables = Found(), {}, {}
    who = who_reads(schema)
    for split in SPLITS:
        if (rows := getattr(settings.data, split)) is not None:
            with _collected(found):
                sources[split] = open_source(rows, settings.data, split)
                sources[split].require(schema.of_files().log_columns(), who)
    if "train" not in sources and settings.data.train is None:
        found.faults.append("data.train: missing; name a file, a folder, a glob or a URL")
    with _collected(found):
        tables = open_tables(schema, settings.data)
    events = None
    with _collected(found):
        events = open_events(schema, settings.data)
    for name, said in settings.data.vectors.items():
        with _collected(found):
            for _ in Vectors(name, said, settings.data).parts():
                pass
    seen: dict[str, _Split] = {}
    fitted = sources.get("train")
    for split, source in sources.items():
        if settings.data.on_error == "skip":
            with _collected(found):
                source = sift(source, schema.of_files(), tables, fitted)
            if source.skipped:
                found.notes.append(f"data.on_error: skip leaves out {source.skipped.words()} of data.{split} (first: "
                                   f"{source.skipped.samples[0]})")
        if events is None:
            break                                  # what is wrong with them is said
        with _collected(found):
            source = with_histories(source, schema, events)
            one = _Split(schema, settings, source, tables, found, fitted or source)
            one.read(lambda done, s=source: report(
                {"event": "progress", "stage": f"check {s.split}", "rows": done, "total": s.rows}))
            seen[split] = one
    found.notes += _shared(sources)
    for one in seen.values():
        one.finish(seen["train"].scenarios if "train" in seen else None)
    if "train" in seen:
        found.notes += _vocabularies(schema, seen["train"])
    return found


class _collected:
    """What is wrong in this block goes to `found.faults`; the rest of the check goes on."""

    def __init__(self, found: Found):
        self.found = found

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        if not isinstance(error, FunnelrankError):
            return False
        self.found.faults += [m for m in error.messages if m not in self.found.faults]
        return True


class _Split:
    """One pass over one split."""

    def __init__(self, schema: Schema, settings: Settings, source: Source, tables: Mapping[str, Dimension],
                 found: Found, fitted: Source):
        self.schema, self.settings, self.source, self.found = schema, settings, source, found
        truth = settings.evaluate.truth
        self.columns = [c for c in dict.fromkeys([*schema.log_columns(), *truth.values()]) if c in source.columns.names]
        found.notes += [f"evaluate.truth.{task}: no column '{c}' in data.{source.split}" for task, c in truth.items()
                        if c not in self.columns and source.split == "test"]
        self.reader = Reader(schema, tables, families_of(schema, fitted, tables))   # what train holds, all must hold
        self.scenario = scenario_family(schema, fitted)
        self.features = [n for n, f in schema.features.items() if self._readable(n, f, tables)]
        self.labelled = all(t.label in self.columns for t in schema.tasks)
        spaces = {f.space: schema.spaces[f.space] for n, f in schema.of_kind("id", "bag", "sequence").items()
                  if not schema.cut_as(n)}
        self.counts = {name: Counts(self.reader.families[name]) for name, space in spaces.items()
                       if source.split == "train" and (space.made != "fitted" or space.max_size)}
        self.observed, self.positives = (np.zeros(len(schema.tasks), np.int64) for _ in range(2))
        self.clashes: dict[tuple[str, str], tuple[int, int, str]] = {}
        self.scenarios: Counter = Counter()

    def _readable(self, name: str, f: Any, tables: Mapping[str, Dimension]) -> bool:
        if f.kind == "rate":
            return f.task is not None and self.schema.time in self.columns
        if f.kind in COMPUTED and not getattr(f, "columns", None):
            return False                                   # computed from features that are read themselves
        there = self.schema.reads(name) <= set(self.columns)
        table = None if f.kind in ("gap", "cross") else table_of(f.column)
        return there and (table is None or table in tables)

    def read(self, progress: Callable[[int], None]) -> None:
        done = 0
        for unit, table in each(self.source, self.columns):
            where = self.source.where(unit)
            rows = self.reader.rows(table, where)
            for name in list(self.features):
                before = len(self.found.faults)
                with _collected(self.found):
                    self._feature(rows, name)
                if len(self.found.faults) > before:
                    self.features.remove(name)             # once is enough
            with _collected(self.found):
                self._labels(table, where)
            with _collected(self.found):
                self._context(table, rows, where)
            done += unit.rows
            progress(done)

    def _feature(self, rows: Rows, name: str) -> None:
        f = self.schema.features[name]
        match f.kind:
            case "number":
                rows.numbers(name)
            case "gap":
                rows.gap(f.since, f.until)
            case "rate":
                period_of(self.schema, rows, name)
            case "vector":
                rows.vector(name)
            case "cross":
                if not f.of:
                    rows.crossed(name)
            case "id":
                self._count(f.space, rows.ids(name).values)
            case _:
                self._count(f.space, rows.list(name).values)

    def _count(self, space: str, values: Values) -> None:
        if space in self.counts:
            self.counts[space].add(values.base, values.times())
            if sum(c.nbytes for c in self.counts.values()) * SHARE > self.source.memory:
                self.counts[space].merge()
            if sum(c.nbytes for c in self.counts.values()) * SHARE > self.source.memory:
                del self.counts[space]
                self.found.notes.append(f"id space '{space}': data.memory does not hold the counts of its values, so "
                                        "they were not compared with its size")

    def _context(self, table: pa.Table, rows: Rows, where: str) -> None:
        """Scenario, time, weight and true probabilities: what a row has beside features and labels."""
        schema = self.schema
        if schema.scenario in self.columns:
            place = rows.place(schema.scenario)
            values = to_family(canonical(table[schema.scenario], place), self.scenario, place, "data.scenario in train")
            said = pc.value_counts(values)
            if len(self.scenarios) <= 100 * MANY_SCENARIOS:
                self.scenarios.update(dict(zip(said.field("values").to_pylist(), said.field("counts").to_pylist())))
        if schema.weight in self.columns:
            read_weights(rows.column(schema.weight), rows.place(schema.weight))
        if schema.time in self.columns and schema.user:
            sortable(table[schema.time], rows.place(schema.time))
        for task, column in self.settings.evaluate.truth.items():
            if column in self.columns:
                numbers(one_chunk(table[column]), f"{rows.place(column)} (evaluate.truth.{task})")

    def _labels(self, table: pa.Table, where: str) -> None:
        if not self.labelled:
            return
        try:
            labels = read_labels(table, self.schema, where)
        except DataError:
            self.labelled = False
            raise
        self.observed += (~np.isnan(labels)).sum(0)
        self.positives += (labels > 0).sum(0)
        for edge in contradictions(labels, self.schema):
            rows, positives, first = self.clashes.get((edge.child, edge.parent), (0, 0, ""))
            if edge.rows and not first:
                first = f"{where}, row {edge.first}"
            self.clashes[edge.child, edge.parent] = rows + edge.rows, positives + edge.positives, first

    def finish(self, known: Mapping[Any, int] | None) -> None:
        """Faults and notes that only the whole split shows. `known`: the scenarios of train."""
        split, notes = self.source.split, self.found.notes
        if self.labelled:
            for t, task in enumerate(self.schema.tasks):
                if not self.observed[t]:
                    notes.append(f"tasks.{task.name}: no row of data.{split} has a label")
                elif task.kind == "binary" and self.positives[t] in (0, self.observed[t]):
                    only = 1 if self.positives[t] else 0
                    notes.append(f"tasks.{task.name}: every label in data.{split} is {only}, so rankings cannot be "
                                 "measured" + (" or learnt" if split == "train" else ""))
            for (child, parent), (rows, positives, first) in self.clashes.items():
                if rows:
                    self._contradiction(child, parent, rows, positives, first)
        if len(self.scenarios) > MANY_SCENARIOS:
            notes.append(f"data.scenario: '{self.schema.scenario}' has {len(self.scenarios):,} values in data.{split}; "
                         "is it an id rather than a scenario?")
        elif known is not None and split != "train" and (new := [s for s in self.scenarios if s not in known]):
            rows = sum(self.scenarios[s] for s in new)
            notes.append(f"data.scenario: {listing(map(str, new))} of data.{split} {'is' if len(new) == 1 else 'are'} "
                         f"not in train ({rows:,} rows); such rows are scored as an unseen scenario")
        tasks = ", ".join(f"{t.name} {self._rate(i)}" for i, t in enumerate(self.schema.tasks))
        self.found.summary.append(f"{split}: {self.source.rows:,} rows" + (f"; {tasks}" if self.labelled else ""))

    def _rate(self, t: int) -> str:
        seen = int(self.observed[t])
        share = f"{self.positives[t] / seen:.4f}" if seen and self.schema.tasks[t].kind == "binary" else "-"
        return share + ("" if seen == self.source.rows else f" ({seen / self.source.rows:.1%} observed)")

    def _contradiction(self, child: str, parent: str, rows: int, positives: int, first: str) -> None:
        policy, split = self.settings.data.contradictions, self.source.split
        said = (f"{rows:,} of {positives:,} positives of '{child}' have '{parent}' = 0 in data.{split} "
                f"(first: {first})")
        if split == "train" and policy == "raise":
            self.found.faults.append(f"tasks.{child}.after: {said}; correct the labels, or set data.contradictions to "
                                     "keep, drop or repair")
        else:
            does = {"keep": "they stay as they are", "drop": "such rows are dropped", "repair": "the 0s become 1"}[
                policy] if split == "train" else "labels of this split are never changed"
            self.found.notes.append(f"tasks.{child}.after: {said}; {does}")


def _shared(sources: Mapping[str, Source]) -> Iterator[str]:
    """Files that stand in two splits: whoever learns a row by heart is then praised for it."""
    files = {split: {f["path"] for f in source.fingerprint().get("files", [])} for split, source in sources.items()}
    for a, b in combinations(files, 2):
        if both := files[a] & files[b]:
            yield (f"data.{b}: {listing(sorted(os.path.basename(p) for p in both), 3)} of it "
                   f"{'is' if len(both) == 1 else 'are'} in data.{a}, too; a model is then measured on what it learnt")


def _vocabularies(schema: Schema, train: _Split) -> Iterator[str]:
    """Id spaces that are smaller than what train holds."""
    for name, counts in train.counts.items():
        space, (values, seen) = schema.spaces[name], counts.total()
        owner = next(n for n, f in schema.features.items() if getattr(f, "space", None) == name)
        rows = int(seen.sum())
        if space.made == "hash" and len(values) > space.size:
            yield (f"features.{owner}.hash_buckets: {space.size:,} buckets for {len(values):,} values of train; "
                   "unlike values will share a vector")
        elif space.made == "range":
            yield from _outside(values, seen, space, f"features.{owner}.num_buckets", rows)
        elif space.made == "list":
            known = Vocab.listed(space, train.reader.families[name])
            lost = known.ids(values, f"id space '{name}'") < 2
            if lost.any():
                key = "vocab_file" if space.file else "vocab_list"
                yield (f"features.{owner}.{key}: {int(lost.sum()):,} values of train are not in it "
                       f"({seen[lost].sum() / rows:.1%} of its ids, as {_examples(values, lost)}); they become "
                       f"{_become(space)}")
        elif space.max_size and (often := int((seen >= space.min_count).sum())) > space.max_size:
            yield (f"features.{owner}.max_size: {space.max_size:,}, but {often:,} values of train were seen at least "
                   f"{space.min_count} times; the rarer ones become OOV")


def _outside(values: pa.Array, seen: np.ndarray, space: Space, key: str, rows: int) -> Iterable[str]:
    numbers = values.to_numpy(zero_copy_only=False)
    lost = (numbers < 0) | (numbers >= space.size)
    if lost.any():
        yield (f"{key}: {space.size:,} means ids 0 to {space.size - 1:,}, but train holds {numbers.min():,} to "
               f"{numbers.max():,} ({seen[lost].sum() / rows:.1%} of its ids are outside and become {_become(space)})")


def _become(space: Space) -> str:
    return "OOV" if space.unknown is None else str(space.unknown)


def _examples(values: pa.Array, which: np.ndarray) -> str:
    return listing(map(str, values.filter(pa.array(which)).slice(0, 3).to_pylist()))
