"""Histories made from event logs: columns of rows that hold what the user did before.

An event belongs to a row's history if it is of the same user and strictly earlier (by more than `delay`): never the
row itself, nor a row of the same moment, even where the event log is the log itself. Events of one moment keep their
order in the files. A row without a user or a time has no history (null), a user without earlier events an empty one.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from funnelrank.data import derive
from funnelrank.data.ahead import each
from funnelrank.data.frozen import moments
from funnelrank.data.kinds import column_type, whole
from funnelrank.data.parse import MICROSECONDS
from funnelrank.data.sift import Sifted
from funnelrank.data.source import LEAST, UNIT_SHARE, Source, TooWide, Unit, open_source
from funnelrank.data.tables import KeyIndex, canonical
from funnelrank.errors import ConfigError, DataError, listing
from funnelrank.schema import EventColumns, MadeColumn, Schema
from funnelrank.settings import Data

DAY = 86400.0


class Span(NamedTuple):
    """Events of a user before a row's moment: places start[i] up to, not including, stop[i] [n]."""

    start: np.ndarray
    stop: np.ndarray
    null: np.ndarray             # [n] bool: the row has no user, or no time


class EventLog:
    """One event log in memory, in the order of users, their times, and the files."""

    def __init__(self, name: str, table: pa.Table, said: EventColumns, files: Mapping[str, Any], where: str):
        """`table`: the columns in use. Raises DataError for times that do not sort and users that are no ids."""
        self.name, self.said, self.files, self.where = name, said, dict(files), where
        users = canonical(table[said.user], f"{where}: column '{said.user}'")
        self.kind = table.schema.field(said.time).type
        times, known = moments(table[said.time], f"{where}: column '{said.time}'")
        known &= users.is_valid().to_numpy(zero_copy_only=False)
        rows = np.flatnonzero(known)
        coded = users.take(pa.array(rows)).dictionary_encode()
        codes, times = coded.indices.to_numpy().astype(np.int64), times[rows]
        order = np.lexsort((times, codes))                       # stable: events of one moment as the files have them
        self.users = KeyIndex(coded.dictionary)
        self._moments = np.unique(times)
        self._keys = self._key(codes[order], np.searchsorted(self._moments, times[order]))
        self._first = np.searchsorted(codes[order], np.arange(len(coded.dictionary)))
        self._table = table.take(pa.array(rows[order])).combine_chunks()
        self._kept: dict[tuple, tuple[np.ndarray, np.ndarray]] = {}

    def before(self, users: pa.ChunkedArray, times: pa.ChunkedArray, where: str) -> Span:
        """Which events came before each row."""
        self._comparable(times.type, where)
        at, known = moments(times, f"{where}, data.time")
        found = self.users.find(users, f"{where}, data.user")
        delay = self.said.delay
        if delay and pa.types.is_temporal(self.kind):
            delay = delay / DAY if pa.types.is_date(self.kind) else round(delay * MICROSECONDS)
        codes = np.where(known, found, -1)
        stop = np.searchsorted(self._keys, self._key(codes, np.searchsorted(self._moments, at - delay)))
        start = np.append(self._first, 0)[codes]
        null = ~known | users.is_null().to_numpy()
        return Span(start, np.where(codes < 0, start, stop), null)

    def column(self, made: MadeColumn, span: Span, limit: int, kind: pa.DataType) -> pa.Array:
        """The made column [n] of rows, of type `kind`; raises TooWide where it passes `limit` bytes."""
        places, running = self._taken(made)
        start, stop = running[span.start], running[span.stop]
        if made.nth is not None:
            at, absent = stop - made.nth, stop - made.nth < start
            taken = np.append(places, 0)[np.where(absent, len(places), at)]
            return whole(self._table[self.said.time].take(pa.array(taken, mask=absent))).cast(kind)
        counts = np.minimum(stop - start, made.max_len)
        offsets = np.concatenate([[0], np.cumsum(counts)])
        if 8 * offsets[-1] > limit and len(counts) > 1:
            raise TooWide(f"the histories of {len(counts):,} rows pass data.memory")
        within = np.arange(offsets[-1]) + np.repeat(stop - counts - offsets[:-1], counts)
        items = whole(self._table[made.item].take(pa.array(places[within])))
        return pa.LargeListArray.from_arrays(pa.array(offsets, mask=np.append(span.null, False)), items).cast(kind)

    def item_type(self, made: MadeColumn) -> pa.DataType:
        kind = self._table.schema.field(made.item).type
        return self.kind if made.nth is not None else pa.large_list(kind)

    def _taken(self, made: MadeColumn) -> tuple[np.ndarray, np.ndarray]:
        """Places of the events that `made` takes [k], and how many of them stand before each place [e + 1]."""
        key = (made.item, made.where)
        if key not in self._kept:
            taken = self._table[made.item].is_valid().to_numpy()
            for column, values in made.where:
                taken = taken & self._equal(column, values)
            self._kept[key] = np.flatnonzero(taken), derive.running(taken)
        return self._kept[key]

    def _equal(self, column: str, values: tuple[str | int, ...]) -> np.ndarray:
        where = f"{self.where}: column '{column}'"
        found = canonical(self._table[column], where)
        text = pa.types.is_large_string(found.type)
        if wrong := [v for v in values if isinstance(v, str) != text]:
            raise DataError(f"{where} holds {'text' if text else 'whole numbers'}, and a history's `where` asks for "
                            f"{wrong[0]!r}; write the values as the column has them")
        return pc.is_in(found, value_set=pa.array(values, found.type)).to_numpy(zero_copy_only=False)

    def _key(self, codes: np.ndarray, moments: np.ndarray) -> np.ndarray:
        return codes * (len(self._moments) + 1) + moments

    def _comparable(self, kind: pa.DataType, where: str) -> None:
        family = lambda k: str(k).split("[")[0] if pa.types.is_temporal(k) else "number"
        if family(kind) != family(self.kind) and not pa.types.is_null(kind):
            raise DataError(f"{where}: data.time is {column_type(kind)}, and the times of event log '{self.name}' are "
                            f"{column_type(self.kind)}; write both as one kind")


def open_events(schema: Schema, data: Data, given: Mapping[str, Any] | None = None) -> dict[str, EventLog]:
    """Every event log that features read, the columns in use only. `given` replaces the config's paths by name.

    Raises DataError for missing columns, and where the event logs together pass data.memory; ConfigError for a given
    name that no history reads.
    """
    given = given or {}
    if unknown := [name for name in given if name not in schema.events]:
        raise ConfigError(f"events: no history reads an event log '{unknown[0]}'; those read are "
                          f"{listing(schema.events)}")
    logs, held = {}, 0
    for name, said in schema.events.items():
        split = f"events.{name}.path"
        source = open_source(given.get(name, data.events[name].path), data.model_copy(update={"on_error": "raise"}),
                             split)
        who = {said.user: f"data.events.{name}.user", said.time: f"data.events.{name}.time"}
        for column, made in schema.made.items():
            if made.of == name:
                feature = f"features.{column.split(':')[1]}"
                who.setdefault(made.item, f"{feature}.item")
                for condition, _ in made.where:
                    who.setdefault(condition, f"{feature}.where")
        source.require(list(who), who)
        pieces = []
        for unit, table in each(source, list(who)):
            pieces.append(table)
            held += table.nbytes
            if held > data.memory:
                raise DataError(f"data.{split}: the event logs pass data.memory ({data.memory / 1e9:.3g} GB) at "
                                f"{source.where(unit)}; raise data.memory, or keep fewer events")
        logs[name] = EventLog(name, pa.concat_tables(pieces), said, source.fingerprint(), source.name)
    return logs


def with_histories(source: Source | Sifted, schema: Schema, events: Mapping[str, EventLog]) -> Source | HistorySource:
    """The same rows, with the columns that are made from event logs; the source itself where there are none."""
    return HistorySource(source, schema, events) if schema.made else source


class HistorySource:
    """A Source (same rows and units) that also has columns made from event logs."""

    def __init__(self, live: Source | Sifted, schema: Schema, events: Mapping[str, EventLog]):
        self.live, self.skipped = live, live.skipped
        self.split, self.name, self.memory = live.split, live.name, live.memory
        self._made, self._events, self._who = schema.made, events, (schema.user, schema.time)
        self.columns = live.columns
        for column, made in self._made.items():
            if column not in self.columns.names:
                self.columns = self.columns.append(pa.field(column, events[made.of].item_type(made)))

    def files(self) -> list[HistorySource]:
        """As Source.files, each with its histories."""
        found = []
        for live in self.live.files():
            one = copy(self)
            one.live, one.name = live, live.name
            found.append(one)
        return found

    @property
    def units(self) -> list[Unit]:
        return self.live.units

    @property
    def rows(self) -> int:
        return self.live.rows

    @property
    def paths(self) -> list[str]:
        return self.live.paths

    def is_part(self, unit: Unit) -> bool:
        return self.live.is_part(unit)

    def at_once(self, threads: int) -> int:
        return self.live.at_once(threads)

    def where(self, unit: Unit) -> str:
        return self.live.where(unit)

    def require(self, columns: list[str], who: Mapping[str, str] | None = None) -> None:
        said = {self._who[0]: "data.user", self._who[1]: "data.time"} | dict(who or {})
        self.live.require(self._of_files(columns), said)

    def changed(self) -> bool:
        return self.live.changed()

    def fingerprint(self) -> dict[str, Any]:
        return self.live.fingerprint() | {"events": {name: log.files for name, log in self._events.items()}}

    def read(self, unit: Unit, columns: list[str]) -> pa.Table:
        """As Source.read; raises TooWide where histories pass the unit's share of data.memory."""
        made = [c for c in dict.fromkeys(columns) if c in self._made]
        if not made:
            return self.live.read(unit, columns)
        live, where = self.live.read(unit, self._of_files(columns)), self.where(unit)
        limit = max(LEAST, self.memory // UNIT_SHARE) // len(made)
        spans = {name: log.before(*(live[c] for c in self._who), where) for name, log in self._events.items()}
        arrays = {c: self._events[m.of].column(m, spans[m.of], limit, self.columns.field(c).type)
                  for c, m in self._made.items() if c in made}
        return pa.table([arrays[c] if c in arrays else live[c] for c in columns], names=columns)

    def _of_files(self, columns: list[str]) -> list[str]:
        return list(dict.fromkeys([*(c for c in columns if c not in self._made), *self._who]))
