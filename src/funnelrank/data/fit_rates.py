"""A second pass over train, for rates only: counts of values in lists of first rows, and in labels by period."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from funnelrank.data.ahead import each
from funnelrank.data.columns import Reader, Rows
from funnelrank.data.frozen import first_rows, moments
from funnelrank.data.labels import read_labels
from funnelrank.data.lists import ListNumbers
from funnelrank.data.parse import MICROSECONDS
from funnelrank.data.rates import ALWAYS, Lines, Rates, Tally, periods
from funnelrank.errors import DataError
from funnelrank.schema import Schema

if TYPE_CHECKING:
    from funnelrank.data.source import Source

BLOCK = 8192                # rows worked on at once
DAY = 86400.0
NEVER = np.iinfo(np.int64).min        # the period of a row without a time: before all others


def fit_rates(schema: Schema, source: Source, reader: Reader, boundaries: Mapping[str, list[float]],
              old: Mapping[str, Rates], found: Mapping[str, Lines]) -> dict[str, Rates]:
    """The rates of every `rate` feature, going on from those of `old`; what is `found` already is not counted again.
    Raises DataError where they pass data.memory.
    """
    tallies = {name: Tally(old[name].lines if name in old else None) for name in schema.of_kind("rate")}
    for name, lines in found.items():
        tallies[name].add_lines(lines)
    asked = {name: f for name, f in schema.of_kind("rate").items() if name not in found}
    if asked:
        _count(schema, source, reader, boundaries, asked, tallies)
    return {name: Rates(tally.result(), schema.features[name].strength) for name, tally in tallies.items()}


def _count(schema: Schema, source: Source, reader: Reader, boundaries: Mapping[str, list[float]],
           asked: Mapping[str, Any], tallies: Mapping[str, Tally]) -> None:
    by_label = any(f.task for f in asked.values())
    first, done = np.empty(0, np.int64), 0
    if any(f.task is None for f in asked.values()):
        first = np.sort(first_rows(source, schema.user, schema.time)[1])
    for unit, table in each(source, _columns(schema, asked)):
        where = source.where(unit)
        labels = read_labels(table, schema, where) if by_label else None
        for start, rows in reader.blocks(table, where, BLOCK):
            numbers, part = ListNumbers(schema, rows), slice(start, start + len(rows))
            at, end = np.searchsorted(first, [done + start, done + start + len(rows)])
            chosen = np.zeros(len(rows), bool)
            chosen[first[at:end] - done - start] = True
            for name, f in asked.items():
                if f.task is None:
                    value, good, row = numbers.counted(name)
                    taken = chosen[row]
                    tallies[name].add(value[taken], np.full(int(taken.sum()), ALWAYS), good[taken])
                else:
                    value, known, offsets = numbers.rated(name, boundaries)
                    y, when = labels[part, schema.task_names.index(f.task)], period_of(schema, rows, name)
                    if offsets is not None:
                        y, when = (np.repeat(a, np.diff(offsets)) for a in (y, when))
                    taken = known & ~np.isnan(y) & (when != NEVER)
                    tallies[name].add(value[taken], when[taken], y[taken] == 1)
            if sum(tally.nbytes for tally in tallies.values()) > source.memory:
                for tally in tallies.values():
                    tally.result()
                if sum(tally.nbytes for tally in tallies.values()) > source.memory:
                    raise DataError(f"features.{next(iter(asked))}: the counts behind rates pass data.memory "
                                    f"({source.memory / 1e9:.3g} GB); raise data.memory, or count fewer values or "
                                    "longer periods")
        done += table.num_rows


def period_of(schema: Schema, rows: Rows, name: str) -> np.ndarray:
    """The period [n] int64 of each row, as a rate of labels counts them."""
    length, column = schema.features[name].period, rows.column(schema.time)
    place = rows.place(schema.time)
    times, known = moments(pa.chunked_array([column]), place)
    if pa.types.is_temporal(column.type):
        length = (length or DAY) / DAY if pa.types.is_date(column.type) else (length or DAY) * MICROSECONDS
    elif length is None:
        raise DataError(f"{place} holds numbers; say in features.{name}.period how long a period is, in their unit")
    return np.where(known, periods(np.where(known, times, 0), length), NEVER)


def _columns(schema: Schema, asked: Mapping[str, Any]) -> list[str]:
    """The columns of rows that rates are counted from."""
    columns = sorted(set().union(*(schema.reads(name) for rate in asked for name in schema.read_by(rate))))
    if any(f.task for f in asked.values()):
        columns += [schema.time, *(t.label for t in schema.tasks)]
    return list(dict.fromkeys(columns))
