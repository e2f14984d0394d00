"""Statistics of train by the engine that data.engine names, as far as it can give what our own pass gives.

    vocabularies   of ids, lists and crosses of the log: equal, ties by value included
    attributes     of a dimension table: keys are counted there, the table's rows are added up here
    numbers        mean and deviation equal but for how sums are rounded; least and most, and so `minmax`, equal
    buckets        boundaries equal to ours where ours are exact, up to 2 million values; or approximate, if asked
    rates          of labels, by period: equal

What an engine cannot give the same is `left` to our own pass over the rows, and said: columns made from event logs,
rates of lists (they ask for each user's first row in the files' order), times, and whatever it would find fault with,
such as ids that are fractions: so errors are ours. A space is counted in one place; one such feature leaves all of it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from funnelrank.data.columns import Reader, crossed_codes
from funnelrank.data.engine import DuckDB, Spark, open_engine
from funnelrank.data.events import HistorySource
from funnelrank.data.numbers import UNIFORM, NumberStatistics, OwnBuckets, Summary, at_ranks, logged
from funnelrank.data.parse import Values, newest
from funnelrank.data.rates import Lines, summed_lines
from funnelrank.data.sift import Sifted
from funnelrank.data.vocab import TYPE, Counts, Family, Vocab, hash_values
from funnelrank.errors import ConfigError, DataError
from funnelrank.schema import Schema, table_of
from funnelrank.settings import AnyEngine

if TYPE_CHECKING:
    from funnelrank.data.source import Source

IDS, NUMBERS = (pa.int64(), pa.large_string()), (pa.int64(), pa.float64(), pa.bool_())
COMMON = {"kind", "column", "by", "role", "space", "min_count", "max_size", "hash_buckets", "num_buckets", "vocab_list",
          "vocab_file", "unknown"}
KNOWN = {     # keys that expressions here honour; a feature that says another is left to our own pass
    "bag": {"separator", "max_len", "pool"}, "sequence": {"separator", "max_len", "latest", "target", "pool"},
    "number": {"log", "scale", "clip", "indicator", "buckets", "boundaries"}, "cross": {"of"}, "length": {"of"},
    "gap": {"since", "until"}, "rate": {"of", "task", "period", "strength"}}
MOST_HEAVY = 64           # numbers with a bucket of their own where quantiles are approximate
SHARE, LINE = 4, 32       # an answer may hold memory / SHARE, at LINE bytes a row


@dataclass
class Found:
    """What an engine counted; `left` are the features whose statistics our own pass has to gather."""

    counts: dict[str, tuple[pa.Array, np.ndarray]] = field(default_factory=dict)      # by space
    scenario: pa.Array | None = None
    numbers: dict[str, NumberStatistics] = field(default_factory=dict)
    rates: dict[str, Lines] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)


def ask(said: AnyEngine, schema: Schema, source: Source | Sifted | HistorySource, reader: Reader, *,
        scenario: Family | None, old: Mapping[str, Vocab], threads: int, scratch: Path | None,
        says: Callable[[dict[str, Any]], None]) -> Found:
    """Everything about train that the engine can say. `reader` knows the families of the id spaces, `scenario` is that
    of the scenarios; of `old` vocabularies, values are counted however rare they are.

    Raises ConfigError for rows that no engine reads, DataError for what fails there and for answers that pass
    data.memory.
    """
    files = _files(source)
    with open_engine(said, source.memory // 2, threads, scratch or Path(tempfile.gettempdir())) as engine:
        engine.read(files.paths_of_parquet, "train")
        asked = _Asked(engine, said, schema, files, reader, old)
        found = asked.everything(scenario)
    says({"event": "engine", "engine": said.name, "quantiles": said.quantiles, "left": found.left,
          "buckets": [n for n in found.numbers if schema.features[n].kind == "number" and schema.features[n].buckets]})
    return found


def _files(source: Any) -> Source:
    """The files behind train. Raises ConfigError where an engine could not read the same rows from them."""
    live = source.live if isinstance(source, HistorySource) else source
    if isinstance(live, Sifted):
        raise ConfigError("data.engine: data.on_error: skip leaves out single rows, which no engine does; set one of "
                          "them, not both")
    if live.paths_of_parquet is None:
        raise ConfigError("data.engine: an engine reads parquet files, and train is a table in memory or of another "
                          "format; write it as parquet, or leave data.engine out")
    return live


class _Asked:
    """One engine, and what of the schema it can answer."""

    def __init__(self, engine: DuckDB | Spark, said: AnyEngine, schema: Schema, source: Source, reader: Reader,
                 old: Mapping[str, Vocab]):
        from funnelrank.data import queries
        self.q, self.engine, self.said = queries, engine, said
        self.schema, self.source, self.reader, self.old = schema, source, reader, old
        raw = source.raw_types
        self.train = queries.train(source.columns, raw)
        self.kinds = {c: source.columns.field(c).type for c in self.train.columns}
        self.most = max(1000, source.memory // SHARE // LINE)
        self._put_so_far = 0
        self._keys: dict[tuple[str, str, bool], np.ndarray] = {}
        self.ids = self._ids()

    def everything(self, scenario: Family | None) -> Found:
        found, schema = Found(), self.schema
        long = self._too_long()
        can = {name for name in schema.features if self._can(name, long)}
        for name, space in schema.spaces.items():
            members = [n for n, f in schema.features.items() if getattr(f, "space", None) == name]
            crosses = [n for n in members if schema.features[n].kind == "cross"]
            if space.made != "fitted":
                continue
            if not set(members) <= can or (crosses and len(members) > 1):
                can -= set(members)
            elif crosses:
                found.counts[name] = self._crossed(crosses[0])
            else:
                found.counts[name] = self._counted(name, members)
        found.numbers = self._numbers([n for n in schema.of_kind("number", "length", "gap") if n in can])
        found.rates = {n: self._rates(n) for n in schema.of_kind("rate") if n in can}
        found.left = [n for n, f in schema.features.items() if n not in can and (
            f.kind in ("number", "vector", "gap", "length", "rate") or schema.cut_as(n) == n
            or getattr(f, "space", None) in schema.spaces and schema.spaces[f.space].made == "fitted")]
        if scenario and self._plain(schema.scenario):
            counts = self.q.counted([self.q.stream(self.train, self.ids[schema.scenario], scenario)])
            found.scenario = _column(self._fetch(counts, "the scenarios"), "value", TYPE[scenario])
        elif scenario:
            found.left.append("data.scenario")
        return found

    # ---- what can be asked

    def _ids(self) -> dict[str, Any]:
        """Columns of whole numbers, in whichever type, and of texts -> their values as int64 or text."""
        ids = {c: self.train[c] for c, kind in self.kinds.items() if kind in IDS}
        ids |= {c: self.train[c].cast("int64") for c, kind in self.kinds.items() if kind == pa.bool_()}
        of = self.schema.features.values()
        read = {self.schema.scenario, *(f.column for f in of if f.kind == "id"), *(f.by for f in of)}
        floats = [c for c in self.train.columns if c in read and self.kinds[c] == pa.float64()]
        if floats:
            wrong = {f"n{i}": self.q.not_whole(self.train[c]).sum() for i, c in enumerate(floats)}
            found = self._fetch(self.train.agg(**wrong)).to_pylist()[0]
            ids |= {c: self.q.whole(self.train[c]) for i, c in enumerate(floats) if not found[f"n{i}"]}
        return ids

    def _can(self, name: str, long: set[str]) -> bool:
        f = self.schema.features[name]
        if not f.model_dump(exclude_defaults=True).keys() <= COMMON | KNOWN.get(f.kind, set()) or (
                f.kind in ("bag", "sequence") and self.schema.cut_as(name)):
            return False
        match f.kind:
            case "id":
                return self._key(name) if table_of(f.column) else self._plain(f.column, name)
            case "bag" | "sequence":
                return self._can_list(name, long)
            case "cross":
                parts = [self.schema.features[n] for n in f.of]
                return all(p.kind == "id" and not table_of(p.column) for p in parts) and all(
                    self._can(n, long) for n in f.of)
            case "number":
                return self._key(name) if table_of(f.column) else self._kind(f.column) in NUMBERS
            case "gap":
                return {self._kind(f.since), self._kind(f.until)} <= {pa.int64(), pa.float64()}
            case "length":
                return not table_of(self.schema.features[f.of].column) and self._can(f.of, long)
            case "rate":
                return f.task is not None and self._can_rate(name, long)
        return False

    def _can_list(self, name: str, long: set[str]) -> bool:
        f = self.schema.features[name]
        if not table_of(f.column):
            return self._listed(f.column, f.separator) and self._fits(f.column, self.reader.families[f.space])
        separator = self.reader.separator_of(f.by)
        if self._plain(f.by) and separator is None:
            return self._key(name)
        return self._listed(f.by, separator) and self._key_fits(name) and name not in long

    def _can_rate(self, name: str, long: set[str]) -> bool:
        f = self.schema.features[name]
        of, label = self.schema.features[f.of], next(t.label for t in self.schema.tasks if t.name == f.task)
        whole = f.period is not None and f.period == int(f.period) and self._kind(self.schema.time) == pa.int64()
        if not whole or self._kind(label) not in NUMBERS or of.kind == "number":
            return False
        if of.kind == "bag" and table_of(of.column):
            return False
        return self._can(f.of, long)

    def _kind(self, column: str | None) -> pa.DataType | None:
        return self.kinds.get(column)

    def _plain(self, column: str | None, name: str | None = None) -> bool:
        """A column of whole numbers or texts; of integers, where the space of feature `name` holds them."""
        return column in self.ids and (
            name is None or self._fits(column, self.reader.families[self.schema.features[name].space]))

    def _listed(self, column: str, separator: str | None) -> bool:
        kind = self._kind(column)
        if kind == pa.large_string():
            return separator is not None
        return kind is not None and pa.types.is_large_list(kind) and kind.value_type in IDS

    def _fits(self, column: str, family: Family) -> bool:
        """Whole numbers become texts anywhere; only our own reading of texts as whole numbers names the wrong one."""
        kind = self._kind(column)
        return family == "string" or (kind.value_type if pa.types.is_large_list(kind) else kind) != pa.large_string()

    def _key(self, name: str) -> bool:
        """Whether a table is looked up by one key a row that an engine can count."""
        return self._plain(self.schema.features[name].by) and self._key_fits(name)

    def _key_fits(self, name: str) -> bool:
        return self._fits(self.schema.features[name].by, self.reader.tables[self.reader.lookup(name)[0]].key.family)

    def _elements(self, column: str, separator: str | None) -> Any:
        return self.q.elements(self.train, column, separator if self._kind(column) == pa.large_string() else None)

    def _too_long(self) -> set[str]:
        """Sequences looked up by lists that are longer than they may be: which elements stay is not asked there."""
        asked = {n: f for n, f in self.schema.of_kind("bag", "sequence").items() if table_of(f.column)
                 and f.max_len is not None and self._listed(f.by, self.reader.separator_of(f.by))}
        if not asked:
            return set()
        lists = [self._elements(f.by, self.reader.separator_of(f.by)) for f in asked.values()]
        found = self._fetch(self.train.agg(**{f"n{i}": v.length().max() for i, v in enumerate(lists)})).to_pylist()[0]
        return {n for i, (n, f) in enumerate(asked.items())
                if self._ragged_inside(n) or (found[f"n{i}"] or 0) > f.max_len}

    def _ragged_inside(self, name: str) -> bool:
        """Whether the table has several values a row."""
        table, column = self.reader.lookup(name)
        kind = self.reader.tables[table].table.schema.field(column).type
        return pa.types.is_nested(kind) or getattr(self.schema.features[name], "separator", None) is not None

    # ---- ids

    def _counted(self, name: str, members: list[str]) -> tuple[pa.Array, np.ndarray]:
        """A space's values and counts, as Vocab.fit or Vocab.grown want them."""
        space, family = self.schema.spaces[name], self.reader.families[name]
        here, streams = Counts(family), []
        for n in members:
            f = self.schema.features[n]
            if table_of(f.column):
                self._add_attributes(here, n)
            else:
                values = self.ids[f.column] if f.kind == "id" else self.q.latest(
                    self._elements(f.column, f.separator), f.max_len, getattr(f, "latest", "last")).unnest()
                streams.append(self.q.stream(self.train, values, family))
        old = self.old.get(name)
        old = old if old is not None and old.space.made == "fitted" else None
        if not streams:
            return here.total()
        counts = self.q.counted(streams)
        if len(members) > len(streams):
            counts = self.q.summed(self._with(counts, *here.total()))
        known = None if old is None else self._put(pa.table({"value": old.known()}))
        wanted = self.q.frequent(counts, space.min_count, None if old else space.max_size, known)
        answer = self._fetch(wanted, f"id space '{name}': its values")
        return _column(answer, "value", TYPE[family]), _whole(answer, "count")

    def _with(self, counts: Any, values: pa.Array, times: np.ndarray) -> Any:
        return counts.union(self._put(pa.table({"value": values, "count": pa.array(times, pa.int64())})))

    def _add_attributes(self, counts: Counts, name: str) -> None:
        """Counts of a table's column: each row of the table as often as the log names its key."""
        f, times = self.schema.features[name], self._times(name)
        if not self._ragged_inside(name):
            counts.add(self.reader.table_ids(name), times)
            return
        listed = self.reader.table_list(name)
        values, offsets, _ = newest(listed, f)
        counts.add(values.array(), np.repeat(times, np.diff(offsets)))

    def _times(self, name: str) -> np.ndarray:
        """How often the log's column, or the lists in it, name each row of the table that a feature is looked up in."""
        f, (table, _) = self.schema.features[name], self.reader.lookup(name)
        by, separator = f.by, self.reader.separator_of(f.by)
        listed = f.kind in ("bag", "sequence") and (by not in self.ids or separator is not None)
        if (by, table, listed) not in self._keys:
            keys = self.reader.tables[table].key
            values = self._elements(by, separator).unnest() if listed else self.ids[by]
            counts = self.q.counted([self.q.stream(self.train, values, keys.family)])
            answer = self._fetch(self._among(counts, keys), f"the keys of table '{table}' in '{by}'")
            times = np.zeros(len(keys), np.int64)
            times[keys.find(_column(answer, "value", TYPE[keys.family]))] = _whole(answer, "count")
            self._keys[by, table, listed] = times
        return self._keys[by, table, listed]

    def _among(self, counts: Any, keys: Any) -> Any:
        """Only the values that are keys."""
        there = self._put(pa.table({"value": keys.values}))
        return counts.semi_join(there, "value")

    def _crossed(self, name: str) -> tuple[pa.Array, np.ndarray]:
        f = self.schema.features[name]
        space, names = self.schema.spaces[f.space], [f"part{i}" for i in range(len(f.of))]
        parts = self.train.select(**dict(zip(names, (self._typed(n) for n in f.of)))).drop_null()
        counts = parts.group_by(names).agg(count=lambda t: t.count())
        if f.space not in self.old:
            counts = counts.filter(counts["count"] >= space.min_count)
        answer = self._fetch(counts, f"id space '{f.space}': its values")
        return self._cross_codes(answer, names, f.of), _whole(answer, "count")

    def _typed(self, name: str) -> Any:
        """An id of the log in the family of its space."""
        f = self.schema.features[name]
        return self.ids[f.column].cast(self.q.TYPE[self.reader.families[f.space]])

    def _cross_codes(self, answer: pa.Table, columns: list[str], parts: list[str]) -> pa.Array:
        """Ids of several columns as one, as Rows.crossed makes it."""
        hashes = [hash_values(_column(answer, c, TYPE[self.reader.family(n)])) for c, n in zip(columns, parts)]
        return pa.array(crossed_codes(hashes).view(np.int64))

    # ---- numbers

    def _numbers(self, names: list[str]) -> dict[str, NumberStatistics]:
        found = {}
        said = {n: self.schema.features[n] if self.schema.features[n].kind == "number" else UNIFORM for n in names}
        columns = {n: self._values_of(n) for n in names if said[n] is UNIFORM or not table_of(said[n].column)}
        answer = self._fetch(self.q.summary(self.train, columns, {n for n in columns if said[n].log})).to_pylist()[0]
        for i, n in enumerate(columns):
            count, mean, deviation, low, high = (answer[f"{k}{i}"] or 0 for k in (
                "count", "mean", "deviation", "low", "high"))
            ends = (float(logged(np.array([v]))[0]) if said[n].log else float(v) for v in (low, high))
            cuts = self._cuts(n, columns[n], said[n].buckets, count, low) if said[n].buckets else []
            found[n] = NumberStatistics.known(said[n], Summary(count, *ends, mean, deviation), answer["rows"] - count,
                                              cuts)
        for n in (n for n in names if n not in columns):
            found[n] = NumberStatistics(said[n])
            found[n].add_times(self.reader.table_numbers(n)[:-1], self._times(n), answer["rows"])
        return found

    def _values_of(self, name: str) -> Any:
        """A number of the log as an expression."""
        f = self.schema.features[name]
        match f.kind:
            case "length":
                of = self.schema.features[f.of]
                return self._elements(of.column, of.separator).length().fill_null(0)
            case "gap":
                return self.train[f.until] - self.train[f.since]
        return self.train[f.column]

    def _cuts(self, name: str, values: Any, buckets: int, known: int, low: float) -> list[float]:
        if not known:
            return []
        if self.said.quantiles == "approximate":
            return self._approximate_cuts(values, buckets, low)
        whose = f"features.{name}: its values"
        answer = self._fetch(self.q.heaviest(self.train, values, buckets), whose)
        counts = _whole(answer, "count")
        own = OwnBuckets(_doubles(answer, "value"), counts, _doubles(answer, "following"), known, low, buckets)
        rest = known - int(counts[:len(own.values)].sum())
        answer = self._fetch(self.q.cuts(self.train, values, own.left, rest, own.values), whose)
        upto = _whole(answer, "upto")
        order = np.argsort(upto)
        return own.with_cuts(at_ranks(_doubles(answer, "value")[order], upto[order], own.left))

    def _approximate_cuts(self, values: Any, buckets: int, low: float) -> list[float]:
        """A number that is several of the quantiles is there about as often as so many buckets would be filled."""
        quantiles = lambda *asked: np.array(self._fetch(self.q.approximate(self.train, values, *asked)).to_pylist()[0][
            "cuts"] or [], np.float64)
        found, times = np.unique(quantiles(buckets), return_counts=True)
        heavy = np.lexsort((found, -times))[:int((times > 1).sum())][:MOST_HEAVY]
        if not len(heavy):
            return sorted(found[found > low].tolist())
        after = self._fetch(self.q.following(self.train, values, found[heavy].tolist())).to_pylist()[0]
        after = np.array([after[f"f{i}"] for i in range(len(heavy))], np.float64)
        own = OwnBuckets(found[heavy], times[heavy], after, buckets, low, buckets)
        return own.with_cuts(quantiles(own.left, own.values) if own.left > 1 else np.zeros(0))

    # ---- rates

    def _rates(self, name: str) -> Lines:
        f = self.schema.features[name]
        of, label = self.schema.features[f.of], next(t.label for t in self.schema.tasks if t.name == f.task)
        beside = {"label": self.q.labelled(self.train[label]),
                  "period": self.q.period(self.train[self.schema.time], int(f.period))}
        if of.kind == "cross":
            keys = [f"part{i}" for i in range(len(of.of))]
            rows = self.train.select(**dict(zip(keys, (self._typed(n) for n in of.of))), **beside)
        elif table_of(of.column):
            table = self.reader.tables[self.reader.lookup(f.of)[0]]
            keys, rows = ["value"], self.q.stream(self.train, self.ids[of.by], table.key.family, **beside)
        else:
            values = self.ids[of.column] if of.kind == "id" else self._elements(of.column, of.separator).unnest()
            keys, rows = ["value"], self.q.stream(self.train, values, self.reader.family(f.of), **beside)
        counts = self.q.by_period(rows.drop_null([*keys, "label", "period"]), keys)
        if of.kind != "cross" and table_of(of.column):
            counts = self._among(counts, table.key)
        answer = self._fetch(counts, f"features.{name}: the counts behind its rates")
        period, good, seen = (_whole(answer, c) for c in ("period", "good", "seen"))
        if of.kind == "cross":
            codes, known = hash_values(self._cross_codes(answer, keys, of.of)), None
        elif table_of(of.column):
            places = table.key.find(_column(answer, "value", TYPE[table.key.family]))
            base = self.reader.table_ids(f.of)
            values = Values(base, places)
            codes, known = values.map(hash_values(base), 0), values.map(base.is_valid().to_numpy(False), False)
        else:
            codes, known = hash_values(_column(answer, "value", TYPE[self.reader.family(f.of)])), None
        lines = Lines(codes, period, good.astype(np.float64), seen.astype(np.float64))
        return summed_lines(lines if known is None else Lines(*(a[known] for a in lines)))

    # ---- the engine

    def _fetch(self, expression: Any, what: str = "an answer") -> pa.Table:
        answer = self.engine.fetch(expression, self.most + 1)
        if len(answer) > self.most:
            raise DataError(f"data.engine: {what} are more than {self.most:,}, which pass data.memory; a larger "
                            "min_count, a max_size, hash_buckets, or more data.memory would do")
        return answer

    def _put(self, table: pa.Table) -> Any:
        self._put_so_far += 1
        name = f"here{self._put_so_far}"
        self.engine.put(table, name)
        return self.q.here(table, name)


def _whole(answer: pa.Table, name: str) -> np.ndarray:
    return _column(answer, name, pa.int64()).to_numpy()


def _doubles(answer: pa.Table, name: str) -> np.ndarray:
    """NaN for null."""
    return _column(answer, name, pa.float64()).to_numpy(zero_copy_only=False)


def _column(answer: pa.Table, name: str, kind: pa.DataType) -> pa.Array:
    return pa.concat_arrays([pa.array([], kind), *answer[name].cast(kind).chunks])
