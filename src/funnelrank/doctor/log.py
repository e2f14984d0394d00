"""What detectors of data look at, read in one pass over each split, within bounded memory.

Of every row that is read (all, or evenly spaced units of a split that has more than MOST_ROWS): labels, user, scenario,
time, and hashes of all that is read of it. Of a sample of them: the raw value of every feature, before vocabularies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from funnelrank.config import Config
from funnelrank.data.ahead import each
from funnelrank.data.columns import Reader, Rows
from funnelrank.data.derive import row_of
from funnelrank.data.labels import read_labels, read_weights
from funnelrank.data.parse import is_list, numbers, one_chunk
from funnelrank.data.sift import families_of
from funnelrank.data.source import Source
from funnelrank.data.tables import canonical
from funnelrank.data.vocab import hash_values, nulls, splitmix64
from funnelrank.errors import DataError
from funnelrank.flow import Data
from funnelrank.schema import COMPUTED, Schema, table_of

MOST_ROWS = 2_000_000       # of a split, read in full
SAMPLE = 60_000             # rows of a split whose features are kept
MOST_KEYS = 6               # columns of ids of which every row's is kept
LATEST = 10                 # elements of a list that are kept
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
DERIVED = ("match", "pair")  # kinds of columns that compare two others
EPOCHS = ((1e9, 2.2e9), (1e12, 2.2e12), (1e15, 2.2e15), (1e18, 2.2e18))     # 2001 to 2039 in s, ms, us, ns


@dataclass
class Column:
    """The raw values of one feature on the sampled rows [m] of one split.

    Ids have `codes` (hashes; 0 where missing), and `values` too where they are whole numbers. Lists have `lengths`, and
    the hashes of each row's latest elements.
    """

    missing: np.ndarray                      # bool [m]
    values: np.ndarray | None = None         # float64 [m], NaN where missing
    codes: np.ndarray | None = None          # uint64 [m]
    texts: pa.Array | None = None            # [m], to name a value of `codes`
    lengths: np.ndarray | None = None        # int64 [m]
    tokens: np.ndarray | None = None         # uint64 [k]
    offsets: np.ndarray | None = None        # int64 [m + 1]
    lost: int = 0                            # rows whose key the table does not have


@dataclass(frozen=True)
class About:
    """What a column is: which feature reads it, and from where."""

    name: str
    kind: str                                # number | id | list | match | pair
    source: str                              # 'price', or 'items.price'
    by: str | None = None                    # the log's column that a table is looked up by
    other: str | None = None                 # of a pair: the feature whose value it may be

    @property
    def where(self) -> str:
        return f"features.{self.name}"

    @property
    def told(self) -> str:
        if self.kind == "pair":
            return f"whether column '{self.source}' is the row's '{self.other}'"
        if self.kind == "match":
            return f"whether list '{self.source}' holds the row's item"
        return f"column '{self.source}'"


@dataclass
class Split:
    name: str
    rows: int                                # that the split has
    labels: np.ndarray                       # float32 [n, T], NaN where not observed; n rows were read
    user: np.ndarray | None                  # uint64 [n], 0 where null
    scenario: np.ndarray | None              # uint64 [n], 0 where null
    time: np.ndarray | None                  # float64 [n], NaN where null
    weight: np.ndarray | None                # float32 [n]
    asked: np.ndarray                        # uint64 [n], a hash of all that is read of a row but labels
    key: np.ndarray                          # uint64 [n], labels included
    blocks: np.ndarray                       # where each unit begins; rows of one unit are neighbours
    sample: np.ndarray                       # [m] rows, rising
    keys: dict[str, np.ndarray] = field(default_factory=dict)        # of some id columns: uint64 [n], 0 where null
    columns: dict[str, Column] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.labels)

    def label(self, t: int) -> np.ndarray:
        """Of the sampled rows [m]."""
        return self.labels[self.sample, t]


@dataclass
class Log:
    config: Config
    splits: dict[str, Split]
    about: dict[str, About]
    time: str | None                         # the column of `Split.time`; it may be undeclared
    identified: bool                         # whether two rows that are alike must be one row written twice
    scenarios: dict[int, str] = field(default_factory=dict)
    files: dict[str, list[str]] = field(default_factory=dict)
    memory: int = 0
    tables: Mapping[str, Any] = field(default_factory=dict)

    @property
    def schema(self) -> Schema:
        return self.config.schema

    @property
    def train(self) -> Split:
        return self.splits["train"]

    @property
    def held_out(self) -> list[Split]:
        return [s for n, s in self.splits.items() if n != "train"]

    @cached_property
    def binary(self) -> list[tuple[int, str]]:
        return [(t, task.name) for t, task in enumerate(self.schema.tasks) if task.kind == "binary"]

    def once(self, key: tuple, make: Callable[[], Any]) -> Any:
        """What several detectors need is made once."""
        kept = self.__dict__.setdefault("_kept", {})
        if key not in kept:
            kept[key] = make()
        return kept[key]


def read_log(config: Config, data: Data, progress: Callable[[str, int, int], None] = lambda *said: None,
             most: int = MOST_ROWS) -> Log:
    """Raises DataError where rows cannot be read, or have labels that their task cannot have."""
    schema = config.schema
    if "train" not in data.sources:
        raise DataError("data.train: no rows; a doctor holds other splits against them")
    reader = Reader(schema, data.tables, families_of(schema, data.sources["train"], data.tables))
    about = _about(schema)
    time = schema.time or _time_among(data.sources["train"])
    log = Log(config, {}, about, time, bool(schema.user and schema.time), memory=config.settings.data.memory,
              tables=data.tables)
    for name, source in data.sources.items():
        log.splits[name] = _read(log, source, reader, progress, most)
        log.files[name] = [str(f["path"]) for f in source.fingerprint().get("files", [])]
    return log


def _about(schema: Schema) -> dict[str, About]:
    """Each column once, however many features read it; a number rather than an id, since it says more."""
    found: dict[tuple, About] = {}
    for name, f in schema.features.items():
        if f.kind in ("gap", "vector", *COMPUTED):
            continue
        if f.kind == "number" and f.expression:
            found[name,] = About(name, "number", f.expression)
            continue
        kind = {"number": "number", "id": "id"}.get(f.kind, "list")
        key = (f.column, f.by, *(getattr(f, k, None) for k in ("separator", "key")),
               f.pool if kind == "number" else None)
        if key not in found or (kind == "number" and found[key].kind == "id"):
            found[key] = About(name, kind, f.column, f.by)
    about = {a.name: a for a in found.values()}
    for name, f in schema.of_kind("gap").items():
        about[name] = About(name, "number", f"{f.until} - {f.since}")
    for name, f in schema.of_kind("sequence").items():
        if f.target and schema.features[f.target].kind == "id" and name in about and not table_of(f.column):
            about[f"{f.target} in {name}"] = About(name, "match", f.column)
    ids = [(n, f) for n, f in schema.of_kind("id").items() if n in about and not table_of(f.column)]
    for (a, f), (b, g) in combinations(ids, 2):
        if f.space == g.space:
            about[f"{b} is {a}"] = About(b, "pair", g.column, other=a)
    if schema.scenario and not any(a.source == schema.scenario for a in about.values()):
        about["data.scenario"] = About("data.scenario", "id", schema.scenario)
    return about


def _time_among(source: Source) -> str | None:
    """A column of times that the config does not declare: of a time type, or whole numbers that are an epoch's."""
    first = None
    for field_ in source.columns:
        if pa.types.is_timestamp(field_.type):
            return field_.name
        if pa.types.is_int64(field_.type):
            if first is None:
                columns = [f.name for f in source.columns if pa.types.is_int64(f.type)]
                first = source.read(source.units[0], columns).slice(0, 1000)
            values = one_chunk(first[field_.name]).drop_null().to_numpy()
            if len(values) > 20 and any(low < values.min() and values.max() < high for low, high in EPOCHS) and (
                    len(np.unique(values)) > len(values) // 4):
                return field_.name
    return None


def _keys(schema: Schema, source: Source) -> list[str]:
    """Columns of ids that may come again on many rows: the user, keys of tables, candidates, other ids of the log."""
    ids = schema.of_kind("id").values()
    targets = [schema.features[f.target].column for f in schema.of_kind("sequence").values() if f.target]
    asked = [schema.user, *(f.by for f in schema.of_kind("id", "number").values() if f.by), *targets,
             *(f.column for f in ids if not table_of(f.column))]
    simple = lambda c: c in source.columns.names and not is_list(source.columns.field(c).type) and not (
        pa.types.is_floating(source.columns.field(c).type))
    return [c for c in dict.fromkeys(c for c in asked if c) if simple(c)][:MOST_KEYS]


class _Chosen:
    """Some units of a source, as `ahead.each` reads them."""

    def __init__(self, source: Source, most: int):
        units, rows = source.units, source.rows
        if rows > most:
            step = max(1, round(rows / most))
            units = units[::step]
        self.units, self.read, self.is_part, self.at_once = units, source.read, source.is_part, source.at_once
        self.rows = sum(u.rows for u in units)


def _read(log: Log, source: Source, reader: Reader, progress: Callable[[str, int, int], None], most: int) -> Split:
    schema, T = log.schema, len(log.schema.tasks)
    asked_columns = [c for c in schema.log_columns(labels=False) if c in source.columns.names]
    if log.time and log.time not in asked_columns and log.time in source.columns.names:
        asked_columns.append(log.time)
    labels = [t.label for t in schema.tasks]
    if not log.identified:                   # nothing that is declared tells rows apart: all that the files hold does
        asked_columns = list(dict.fromkeys([*asked_columns, *(c for c in source.columns.names if c not in labels)]))
    columns = list(dict.fromkeys([*asked_columns, *labels, *([schema.weight] if schema.weight else [])]))
    chosen = _Chosen(source, most)
    n = chosen.rows
    sample = np.sort(np.random.default_rng(0).permutation(n)[:SAMPLE])
    split = Split(
        source.split, source.rows, np.empty((n, T), np.float32), *(
            np.zeros(n, np.uint64) if c else None for c in (schema.user, schema.scenario)),
        np.full(n, np.nan) if log.time in source.columns.names else None,
        np.ones(n, np.float32) if schema.weight else None, np.zeros(n, np.uint64), np.zeros(n, np.uint64),
        np.empty(0), sample)
    split.keys = {c: np.zeros(n, np.uint64) for c in _keys(schema, source)}
    parts: dict[str, list[Column]] = {name: [] for name in log.about}
    start, blocks = 0, []
    for unit, table in each(chosen, columns):
        where, rows = source.where(unit), slice(start, start + unit.rows)
        blocks.append(start)
        split.labels[rows] = read_labels(table, schema, where)
        for column, out in ((schema.user, split.user), (schema.scenario, split.scenario), *split.keys.items()):
            if out is not None:
                out[rows] = hash_values(canonical(table[column], f"{where}: column '{column}'"))
        if schema.scenario:
            _name_scenarios(log, table[schema.scenario])
        if split.time is not None:
            split.time[rows] = numbers(one_chunk(table[log.time]), f"{where}: column '{log.time}'")
        if split.weight is not None:
            split.weight[rows] = read_weights(one_chunk(table[schema.weight]), f"{where}: column '{schema.weight}'")
        split.asked[rows] = _hashed(table, asked_columns)
        split.key[rows] = splitmix64(split.asked[rows] ^ _hashed(table, labels))
        a, b = np.searchsorted(sample, [start, start + unit.rows])
        if a < b:
            taken = reader.rows(table.take(pa.array(sample[a:b] - start)), where)
            for name, about in log.about.items():
                parts[name].append(_column(schema, taken, name, about))
        start += unit.rows
        progress(source.split, start, n)
    split.blocks = np.array(blocks)
    split.columns = {name: _joined(found) for name, found in parts.items() if found}
    return split


def _name_scenarios(log: Log, column: pa.ChunkedArray) -> None:
    if len(log.scenarios) < 1000:
        values = pc.unique(column).drop_null()
        log.scenarios.update(zip(hash_values(canonical(values, "scenario")).tolist(), map(str, values.to_pylist())))


def _hashed(table: pa.Table, columns: list[str]) -> np.ndarray:
    """A hash of each row [n] uint64 over these columns."""
    whole = np.zeros(table.num_rows, np.uint64)
    for i, column in enumerate(columns):
        whole = splitmix64(whole ^ (_hash(one_chunk(table[column])) + np.uint64(i * int(GOLDEN) % 2**64)))
    return whole


def _hash(array: pa.Array) -> np.ndarray:
    """A hash of each value [n] uint64, whatever its type; one of a list is of its elements in their order."""
    if pa.types.is_map(array.type) or pa.types.is_struct(array.type):
        return hash_values(array.cast(pa.string()) if pa.types.is_struct(array.type) else pa.array(
            [str(v) for v in array.to_pylist()], pa.large_string()))
    if is_list(array.type):
        lengths = pc.list_value_length(array).fill_null(0).to_numpy().astype(np.int64)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        place = (np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)).astype(np.uint64)
        mixed = splitmix64(_hash(array.flatten()) + place * GOLDEN)
        sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(mixed)])
        return sums[offsets[1:]] - sums[offsets[:-1]] + nulls(array) * np.uint64(1)
    if pa.types.is_floating(array.type) or pa.types.is_decimal(array.type):
        values = array.cast(pa.float64(), safe=False).fill_null(np.nan).to_numpy(zero_copy_only=False)
        return splitmix64(np.ascontiguousarray(np.where(np.isnan(values), np.nan, values)).view(np.uint64))
    return hash_values(canonical(array, "a row"))


def _column(schema: Schema, rows: Rows, name: str, about: About) -> Column:
    if about.kind == "match":
        return _match(schema, rows, about)
    if about.kind == "pair":
        a, b = (rows.ids(n).values.array() for n in (about.name, about.other))
        missing = nulls(a) | nulls(b)
        return Column(missing, np.where(missing, np.nan, hash_values(a) == hash_values(b)))
    f = schema.features.get(about.name)
    if f is None:                                                   # the scenario's column, which no feature reads
        return _coded(canonical(rows.column(about.source), rows.place(about.source)))
    if f.kind == "gap":
        values, _ = rows.gap(f.since, f.until)
        return Column(np.isnan(values), values)
    if about.kind == "number":
        values, counts = rows.numbers(name)
        return Column(np.isnan(values), values, lost=counts.get("missing_keys", 0))
    if about.kind == "id":
        found = rows.ids(name)
        column = _coded(found.values.array())
        column.lost = found.missing_keys
        return column
    listed = rows.list(name)
    lengths = np.diff(listed.offsets)
    keep = np.minimum(lengths, LATEST)
    ends = np.concatenate([[0], np.cumsum(keep)])
    first = listed.offsets[:-1] if getattr(f, "latest", "last") == "first" else listed.offsets[1:] - keep
    places = np.repeat(first - ends[:-1], keep) + np.arange(ends[-1])
    values = listed.values.at(places).array() if ends[-1] else pa.array([], pa.int64())
    return Column(listed.null, lengths=lengths, tokens=hash_values(values), offsets=ends, lost=listed.missing_keys)


def _coded(array: pa.Array) -> Column:
    missing, codes = nulls(array), hash_values(array)
    values = None
    if pa.types.is_int64(array.type):
        values = np.where(missing, np.nan, array.fill_null(0).to_numpy(zero_copy_only=False).astype(np.float64))
    return Column(missing, values, np.where(missing, np.uint64(0), codes), array)


def _match(schema: Schema, rows: Rows, about: About) -> Column:
    """0: the row's own id is not in the list; 1: it is; 2: it is the latest; NaN without a list or an id."""
    f = schema.features[about.name]
    own, listed = rows.ids(f.target).values.array(), rows.list(about.name)
    mine, tokens = hash_values(own), hash_values(listed.values.array())
    lengths = np.diff(listed.offsets)
    missing = nulls(own) | (lengths == 0)
    same = tokens == np.repeat(mine, lengths)
    inside = np.bincount(row_of(listed.offsets)[same], minlength=len(mine)) > 0
    at = listed.offsets[:-1] if f.latest == "first" else listed.offsets[1:] - 1
    latest = np.zeros(len(mine), bool)
    latest[~missing] = tokens[at[~missing]] == mine[~missing]
    return Column(missing, np.where(missing, np.nan, inside + 1.0 * latest))


def _joined(parts: list[Column]) -> Column:
    cat = lambda k: None if getattr(parts[0], k) is None else np.concatenate([getattr(p, k) for p in parts])
    offsets = None
    if parts[0].offsets is not None:
        ends = np.cumsum([0, *(len(p.tokens) for p in parts)])
        offsets = np.concatenate([[0], *(p.offsets[1:] + e for p, e in zip(parts, ends))])
    values = cat("values") if all(p.values is not None for p in parts) else None
    texts = None if parts[0].texts is None else pa.concat_arrays([p.texts for p in parts])
    return Column(cat("missing"), values, cat("codes"), texts, cat("lengths"), cat("tokens"), offsets,
                  sum(p.lost for p in parts))
