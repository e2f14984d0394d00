"""data.on_error: skip. One pass that finds what cannot be used, and a source without it.

    file         cannot be opened, or stands apart from the others in a column that is read       (source.py does this)
    row group    cannot be decoded, or fails on more than MOST rows that only halving can single out
    row          a label its task cannot have, a weight below 0, a value that is no number or no id of its space

Whoever reads the sifted source (statistics, encoding, frozen lists, true probabilities) sees the same rows. A fault
that an empty slice of the rows has, too, is of the column and not of a row, and is raised.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from funnelrank.data.ahead import in_order
from funnelrank.data.columns import Reader
from funnelrank.data.frozen import sortable
from funnelrank.data.labels import read_labels, read_weights, wrong_labels, wrong_weights
from funnelrank.data.parse import is_list, one_chunk
from funnelrank.data.skipped import Skipped
from funnelrank.data.source import Source, TooWide, Unit
from funnelrank.data.tables import Dimension, canonical
from funnelrank.data.vocab import Family, is_whole, to_family
from funnelrank.errors import DataError
from funnelrank.schema import Schema, table_of

MOST = 256               # rows of a unit singled out by halving


def sift(source: Source, schema: Schema, tables: Mapping[str, Dimension], fitted: Source | None = None,
         families: Mapping[str, Family] | None = None, threads: int = 1,
         progress: Callable[[int], None] | None = None) -> Sifted:
    """The rows of `source` that `schema` can use; its columns must be there. What values must be is settled by train,
    which `fitted` is, or by the `families` of an encoder. Raises DataError where no row is left.
    """
    fitted = fitted or source
    check = _Check(schema, Reader(schema, tables, families or families_of(schema, fitted, tables)),
                   scenario_family(schema, fitted))
    columns = [c for c in schema.log_columns() if c in source.columns.names]
    lost: dict[Unit, np.ndarray] = {}
    skipped, units, done, left = source.skipped, [], 0, 0
    raw = _Raw(source)
    for line in source.ragged:
        skipped.row(1, DataError(line))

    def work(raw: pa.Table | DataError, unit: Unit) -> _Unit:
        found = _Unit(source, unit, columns, check)
        found.look(raw)
        return found

    with closing(in_order(raw, columns, work, threads)) as seen:
        for unit, found in seen:
            found.tell(skipped)
            units.append(unit)
            if len(found.wrong):
                lost[unit] = found.wrong
            left += unit.rows - len(found.wrong)
            done += unit.rows
            if progress:
                progress(done)
    if not left:
        raise DataError(f"data.{source.split}: none of the {sum(u.rows for u in units):,} rows can be used, and "
                        f"data.on_error is skip; the first sentence: {skipped.samples[0]}")
    return Sifted(source, units, lost)


class Sifted:
    """A Source without some of its rows. Units without a row that is kept are none."""

    def __init__(self, live: Source, units: list[Unit], lost: Mapping[Unit, Collection[int]]):
        """`units` of the live source; `lost`: of each that is not whole, the rows [k] that it is without, rising."""
        self.live, self.skipped = live, live.skipped
        self.split, self.name, self.memory, self.columns = live.split, live.name, live.memory, live.columns
        self._lost = {_key(unit): (unit, rows) for unit, rows in lost.items()}

        kept = [replace(u, rows=u.rows - len(lost.get(u, ()))) for u in units]
        self.units = [u for u in kept if u.rows]
        self.rows = sum(u.rows for u in self.units)

    @property
    def paths(self) -> list[str]:
        return self.live.paths

    def is_part(self, unit: Unit) -> bool:
        return self.live.is_part(self._live(unit))

    def at_once(self, threads: int) -> int:
        return self.live.at_once(threads)

    def where(self, unit: Unit) -> str:
        lost = self._live(unit).rows - unit.rows
        return self.live.where(self._live(unit)) + (f", without {lost:,} skipped" if lost else "")

    def require(self, columns: list[str], who: Mapping[str, str] | None = None) -> None:
        self.live.require(columns, who)

    def changed(self) -> bool:
        return self.live.changed()

    def fingerprint(self) -> dict[str, Any]:
        return self.live.fingerprint() | {"skipped": self.skipped.to_json()}

    def read(self, unit: Unit, columns: list[str]) -> pa.Table:
        if _key(unit) not in self._lost:
            return self.live.read(unit, columns)
        live, lost = self._lost[_key(unit)]
        kept = np.delete(np.arange(live.rows), np.asarray(lost))
        return self.live.typed(self.live.raw(live, columns).take(pa.array(kept)), live, columns)

    def _live(self, unit: Unit) -> Unit:
        return self._lost.get(_key(unit), (unit,))[0]


def _key(unit: Unit) -> tuple[int, int, int]:
    return unit.file, unit.part, unit.offset


class _Raw:
    """A source as `in_order` reads it, whose errors are results. What comes behind one in its part is not tried."""

    def __init__(self, source: Source):
        self.source, self._failed = source, {}
        self.units, self.is_part, self.at_once = source.units, source.is_part, source.at_once

    def read(self, unit: Unit, columns: list[str]) -> pa.Table | DataError:
        if (unit.file, unit.part) not in self._failed:
            try:
                return self.source.raw(unit, columns)
            except TooWide as error:
                if unit.rows > 1:
                    raise                                  # its halves are tried
                return error
            except DataError as error:
                self._failed[unit.file, unit.part] = error
        return self._failed[unit.file, unit.part]


class _Unit:
    """What of one unit is wrong: rows [k], and what to tell of them."""

    def __init__(self, source: Source, unit: Unit, columns: list[str], check: _Check):
        self.source, self.unit, self.columns, self.check = source, unit, columns, check
        self.wrong: Collection[int] = ()                   # rows, rising
        self.whole: DataError | None = None
        self.said: list[tuple[int, DataError]] = []

    def look(self, raw: pa.Table | DataError) -> None:
        if isinstance(raw, DataError):
            self.whole, self.wrong = raw, range(self.unit.rows)
            return
        try:
            self._try(raw, 0)
            return
        except DataError as error:
            first = error
        self._try(raw.slice(0, 0), 0)                      # what fails here is no row's fault
        rows, bad = np.arange(self.unit.rows), self._outcomes(raw)
        if bad.any():
            rows = rows[~bad]
            raw = raw.take(pa.array(rows))
        found: list[int] = []
        for row, error in self._halve(raw, rows):
            found.append(row)
            self.said.append((1, error))
            if len(found) > MOST:
                self.whole, self.wrong, self.said = first, range(self.unit.rows), []
                return
        self.wrong = np.sort(np.concatenate([np.flatnonzero(bad), np.array(found, np.int64)]))

    def tell(self, skipped: Skipped) -> None:
        if self.whole:
            skipped.group(self.unit.rows, self.whole)
        for rows, error in self.said:
            skipped.row(rows, error)

    def _outcomes(self, raw: pa.Table) -> np.ndarray:
        """Rows [n] bool whose label or weight is wrong, found at once however many they are."""
        bad, schema, where = np.zeros(len(raw), bool), self.check.schema, self.source.where(self.unit)
        found = []
        for task in schema.tasks:
            with contextlib.suppress(DataError):           # a text that is no number: halving finds its row
                found.append(wrong_labels(self.source.typed(raw, self.unit, [task.label]), task, where))
        if schema.weight:
            with contextlib.suppress(DataError):
                column = one_chunk(self.source.typed(raw, self.unit, [schema.weight])[schema.weight])
                found.append(wrong_weights(column, f"{where}: column '{schema.weight}'"))
        for wrong, error in filter(None, found):
            self.said.append((int((wrong & ~bad).sum()), error))
            bad |= wrong
        return bad

    def _halve(self, raw: pa.Table, rows: np.ndarray) -> Iterator[tuple[int, DataError]]:
        """Rows that fail alone, and why; `rows` are those of `raw`, counted within the unit."""
        if not len(rows):
            return
        try:
            self._try(raw, int(rows[0]))
        except DataError as error:
            if len(rows) == 1:
                yield int(rows[0]), error
                return
            middle = len(rows) // 2
            yield from self._halve(raw.slice(0, middle), rows[:middle])
            yield from self._halve(raw.slice(middle), rows[middle:])

    def _try(self, raw: pa.Table, start: int) -> None:
        where = self.source.where(self.unit)
        if raw.num_rows == 1:
            where = f"{where}, row {self.unit.start + start} of the file, from 0"
        self.check(self.source.typed(raw, self.unit, self.columns, start), where)


class _Check:
    """Raises DataError for rows that the encoder could not encode."""

    def __init__(self, schema: Schema, reader: Reader, scenario: Family):
        self.schema, self.reader, self.scenario = schema, reader, scenario

    def __call__(self, table: pa.Table, where: str) -> None:
        schema, rows = self.schema, self.reader.rows(table, where)
        for name, f in schema.features.items():
            match f.kind:
                case "number":
                    rows.numbers(name)
                case "vector":
                    rows.vector(name)
                case "cross" if f.columns:
                    rows.crossed(name)
                case "gap":
                    rows.gap(f.since, f.until)
                case "id":
                    rows.ids(name)
                case "bag" | "sequence":
                    rows.list(name)
        if rows.has(schema.scenario):
            place = rows.place(schema.scenario)
            to_family(canonical(rows.column(schema.scenario), place), self.scenario, place, "data.scenario in train")
        if rows.has(schema.user):
            canonical(rows.column(schema.user), rows.place(schema.user))
        if rows.has(schema.time) and schema.user:
            sortable(table[schema.time], rows.place(schema.time))
        if rows.has(schema.weight):
            read_weights(rows.column(schema.weight), rows.place(schema.weight))
        read_labels(table, schema, where)


def scenario_family(schema: Schema, fitted: Source) -> Family:
    """As fitting decides; 'string', which takes all, where that cannot be said."""
    if schema.scenario not in fitted.columns.names:
        return "string"
    kind = fitted.columns.field(schema.scenario).type
    return "int" if not pa.types.is_null(kind) and kind != pa.large_string() else "string"


def families_of(schema: Schema, source: Source, tables: Mapping[str, Dimension]) -> dict[str, str]:
    """Space -> 'int' or 'string', as fitting decides, but for columns that may be missing or of a wrong type."""
    found: dict[str, set[str]] = {name: set() for name in schema.spaces}
    for n, f in schema.of_kind("id", "bag", "sequence").items():
        if f.default is not None and not is_whole(str(f.default)):
            found[f.space].add("string")
        if schema.cut_as(n):
            continue
        table = table_of(f.column)
        columns = source.columns if not table else tables[table].table.schema if table in tables else pa.schema([])
        name = f.column.split(".", 1)[1] if table else f.column
        if name not in columns.names:
            continue
        kind = columns.field(name).type
        if f.kind == "id" and f.key is not None:
            if not pa.types.is_map(kind):
                found[f.space].add("pieces")
                continue
            kind = kind.item_type
        cut = f.kind != "id" and f.separator is not None and not is_list(kind)
        if is_list(kind):
            kind = kind.key_type if pa.types.is_map(kind) else kind.value_type
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind)
        found[f.space].add("pieces" if cut else "string" if text else "int")
    return {name: "int" if schema.spaces[name].made == "range" or said == {"int"} or said == {"int", "pieces"}
            else "string" for name, said in found.items()}
