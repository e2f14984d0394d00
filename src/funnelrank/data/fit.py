"""What an Encoder learns from train, in one pass: values and their counts, statistics of numbers, scenarios."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from funnelrank.data.columns import Reader, Rows
from funnelrank.data.lists import ListNumbers
from funnelrank.data.numbers import UNIFORM, NumberStatistics, Scaler
from funnelrank.data.parse import Values, is_list, newest
from funnelrank.data.spill import Spill
from funnelrank.data.tables import Dimension, canonical
from funnelrank.data.vocab import Counts, Family, Vocab, is_whole, to_family
from funnelrank.errors import ConfigError
from funnelrank.schema import Schema, Space, table_of
from funnelrank.settings import Number

if TYPE_CHECKING:
    from funnelrank.data.statistics import Found

BLOCK = 8192                # rows worked on at once


class Fitting:
    """Fed the rows of train part by part; `columns` are those it reads, `result` the arguments of an Encoder.

    spill    the budget that counts share
    old      vocabularies by space, and that of the scenarios under '', which go on growing
    retire   after so many trainings in a row without a value it leaves its vocabulary; see Vocab.grown
    """

    def __init__(self, schema: Schema, columns: pa.Schema, tables: Mapping[str, Dimension], spill: Spill,
                 old: Mapping[str, Vocab] | None = None, retire: int | None = None):
        self.schema, self._old, self._retire = schema, old or {}, retire
        self.spill, self._done = spill, 0
        self.columns = schema.model_copy(update={"user": None}).log_columns(labels=False)
        self._listed = {}
        families = _families(schema, columns, tables)
        families |= {name: v.family for name, v in self._old.items() if name in families and v.space.made == "fitted"
                     and schema.spaces[name].made == "fitted"}
        for name, space in schema.spaces.items():
            if space.made == "list":
                self._listed[name] = Vocab.listed(space, families[name])
                families[name] = self._listed[name].family
        known = {name: f.boundaries for name, f in schema.of_kind("number").items() if f.boundaries}
        self._reader = Reader(schema, tables, families, known)
        self._counts = {name: Counts(families[name]) for name, s in schema.spaces.items() if s.made == "fitted"}
        self._numbers = {name: NumberStatistics(f) for name, f in schema.of_kind("number").items()}
        self._numbers |= {name: NumberStatistics(UNIFORM) for name in schema.of_kind("length", "gap")}
        self._numbers |= {name: NumberStatistics(Number(buckets=f.buckets, boundaries=f.boundaries))
                          for name, f in schema.of_kind("bag", "sequence").items() if schema.cut_as(name) == name}
        self._vectors = {name: [NumberStatistics(f) for _ in range(f.size)]
                         for name, f in schema.of_kind("vector").items()}
        self._rows_missing = dict.fromkeys(self._vectors, 0)
        self._weighted = [name for name, f in schema.of_kind("bag").items()
                          if f.weight_separator is not None or pa.types.is_map(_type(f.column, columns, tables))]
        self._scenario = None
        if schema.scenario:
            kind = columns.field(schema.scenario).type
            self._scenario = Counts(self._old[""].family if "" in self._old else "string" if pa.types.is_null(kind)
                                    else _family(kind, f"data.scenario: column '{schema.scenario}'"))
        self._wanted = set(schema.features)
        self._given: dict[str, tuple[pa.Array, np.ndarray]] = {}
        self._scenario_given: pa.Array | None = None
        for name, f in schema.of_kind("cross").items():
            made = schema.spaces[f.space].made
            if made in ("range", "list"):
                raise ConfigError(f"features.{name}: a cross makes values of its own, which no num_buckets or "
                                  "vocabulary can hold; give it hash_buckets, or min_count and max_size")

    @property
    def reader(self) -> Reader:
        return self._reader

    @property
    def scenario_family(self) -> Family | None:
        return self._scenario.family if self._scenario else None

    def take(self, found: Found) -> None:
        """What an engine has counted already; `add` gathers the rest, and `columns` are what that reads."""
        self._given, self._scenario_given = found.counts, found.scenario
        self._numbers |= found.numbers
        self._wanted = set(found.left)
        for name in found.counts:
            del self._counts[name]
        scenario = [self.schema.scenario] if self._scenario and found.scenario is None else []
        read = {c for name, f in self.schema.features.items() if name in self._wanted and f.kind != "rate"
                for c in self.schema.reads(name)}
        self.columns = [c for c in self.columns if c in read or c in scenario]

    def add(self, table: pa.Table, where: str) -> None:
        """Some rows of train, in their order."""
        scenario = self._scenario if self._scenario_given is None else None
        held = self._counts | ({"data.scenario": scenario} if scenario else {})
        for _, block in self._reader.blocks(table, where, BLOCK):
            self._add(block)
            if scenario:
                column = self.schema.scenario
                place = block.place(column)
                scenario.add(to_family(canonical(block.column(column), place), scenario.family, place,
                                       f"the scenarios of '{column}'"))
            self._done += len(block)
            self.spill.make_room(held, self._done)

    def _add(self, rows: Rows) -> None:
        read_off = ListNumbers(self.schema, rows)
        for name, f in self.schema.features.items():
            if name not in self._wanted:
                continue
            match f.kind:
                case "number":
                    self._numbers[name].add(rows.numbers(name)[0])
                case "gap":
                    self._numbers[name].add(rows.gap(f.since, f.until)[0])
                case "length":
                    self._numbers[name].add(read_off.length(name))
                case "vector":
                    values, missing, _ = rows.vector(name)
                    self._rows_missing[name] += int(missing.sum())
                    for one, column in zip(self._vectors[name], np.ascontiguousarray(values.T)):
                        one.add(column)
                case "bag" | "sequence" if name in self._numbers:
                    listed = newest(rows.list(name), f)[0].array()       # their boundaries are not known yet: 64 bits
                    self._numbers[name].add(listed.to_numpy().view(np.float64))
                case "id" | "cross" | "bag" | "sequence" if f.space in self._counts:
                    if f.kind == "id":
                        values = rows.ids(name).values
                    elif f.kind == "cross":
                        values = Values(rows.crossed(name))
                    else:
                        values = newest(rows.list(name), f)[0]
                    self._counts[f.space].add(values.base, values.times())

    def result(self) -> dict[str, Any]:
        """Vocabularies, scalers, boundaries, weighted bags and scenarios."""
        families = self._reader.families
        vocabs = {}
        for name, space in self.schema.spaces.items():
            old = self._old.get(name)
            old = old if old is not None and old.space.made == "fitted" else None
            if name in self._given:
                values, times = self._given[name]
                vocabs[name] = old.grown(space, values, times, self._retire) if old else Vocab.fit(
                    space, families[name], values, times)
            elif name in self._counts:
                counts, owner = self._counts[name], self._owner(name)
                vocabs[name] = old.grown(space, *self.spill.counted(counts, space, owner, old), self._retire) if old \
                    else self.spill.vocabulary(space, families[name], counts, owner)
            else:
                vocabs[name] = self._listed.get(name) or Vocab(space, families[name])
        cut = {n for n in self._numbers if self.schema.cut_as(n) == n}
        scalers = {n: s.scaler(f"features.{n}") for n, s in self._numbers.items() if n not in cut}
        for name, each in self._vectors.items():
            scalers[name] = Scaler.together([s.scaler(f"features.{name}, number {i}") for i, s in enumerate(each)],
                                            self._indicates(name))
        return {
            "vocabs": vocabs, "scalers": scalers,
            "boundaries": {n: s.boundaries() for n, s in self._numbers.items() if n in cut},
            "weighted": self._weighted, "scenario": self._scenarios()}

    def _indicates(self, vector: str) -> bool:
        said = self.schema.features[vector].indicator
        return self._rows_missing[vector] > 0 if said == "auto" else said

    def _scenarios(self) -> Vocab | None:
        """Every scenario of train, in the order of their values; new ones behind those that were there."""
        if self._scenario is None:
            return None
        space = Space(name="scenario", made="fitted", min_count=1)
        values = self._scenario_given
        if values is None:
            values, _ = self.spill.counted(self._scenario, space, "data.scenario")
        values = values.take(pc.sort_indices(values))
        if "" in self._old:
            return self._old[""].grown(self._old[""].space, values, np.ones(len(values), np.int64))
        return Vocab(space, self._scenario.family, values)

    def _owner(self, space: str) -> str:
        return f"features.{next(n for n, f in self.schema.features.items() if getattr(f, 'space', None) == space)}"


def _families(schema: Schema, columns: pa.Schema, tables: Mapping[str, Dimension]) -> dict[str, Family]:
    """Text if a feature of the space holds text; integers if one does; and pieces of texts follow the others."""
    found: dict[str, set[str]] = {name: set() for name in schema.spaces}
    for name, f in schema.of_kind("id", "bag", "sequence", "cross").items():
        if f.kind == "cross":
            found[f.space].add("int")
            continue
        given = getattr(f, "default", None)
        if given is not None and not is_whole(str(given)):
            found[f.space].add("string")
        if schema.cut_as(name):
            continue
        kind = _type(f.column, columns, tables)
        if f.kind == "id" and f.key is not None:
            if pa.types.is_map(kind):
                kind = kind.item_type
            else:
                found[f.space].add("pieces")
                continue
        pieces = f.kind != "id" and (f.separator is not None or getattr(f, "weight_separator", None) is not None)
        if is_list(kind):
            kind = kind.key_type if pa.types.is_map(kind) else kind.value_type
            pieces = pieces and getattr(f, "weight_separator", None) is not None
        if pieces:
            found[f.space].add("pieces")
        elif not pa.types.is_null(kind):
            found[f.space].add(_family(kind, f"features.{name}: column '{f.column}'"))
    return {name: "int" if said and "string" not in said and "int" in said or schema.spaces[name].made == "range"
            else "string" for name, said in found.items()}


def _family(kind: pa.DataType, where: str) -> Family:
    return "int" if pa.types.is_int64(canonical(pa.nulls(0, kind), where).type) else "string"


def _type(column: str, columns: pa.Schema, tables: Mapping[str, Dimension]) -> pa.DataType:
    table = table_of(column)
    return (tables[table].table.schema.field(column.split(".", 1)[1]) if table else columns.field(column)).type
