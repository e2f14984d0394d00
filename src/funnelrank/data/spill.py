"""Counts of values that pass data.memory: written out as they come, summed on disk (the extra `scale`).

    Counts  --their largest parts-->  parquet files of (value, count)  --one Ibis expression on DuckDB-->  a vocabulary

While nothing passes the budget nothing is written, and neither Ibis nor DuckDB is imported. Both ways give the same
vocabulary: the most frequent values first, ties by value.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from funnelrank.data.vocab import TYPE, Counts, Family, Vocab
from funnelrank.durable import scratch_folder, spell_size, write_failure
from funnelrank.errors import ConfigError, DataError
from funnelrank.schema import Space

SHARE = 16               # counts may hold memory / SHARE; merging them takes up to seven times as much for a moment
QUERY = 2                # DuckDB may hold memory / QUERY, and a vocabulary may: never at once
LEAST = 1 << 26          # a budget that counts and vocabularies may always have
ENGINE = 1 << 27         # bytes that DuckDB may always hold
BATCH = 1 << 16          # rows that come back at a time
INDEX = 16               # bytes a value that looking it up takes beside the value itself


class Spill:
    """The budget that the counts of several id spaces share, and the folder they go to. A context: leaving it removes
    what was written.

    folder   where to make a folder of its own, when there is need; default: the machine's place for temporary files
    rows     of train, to say beforehand how much will be written
    says     gets the event of that
    """

    def __init__(self, folder: Path | None, memory: int, rows: int = 0, threads: int = 1,
                 says: Callable[[dict[str, Any]], None] = lambda event: None):
        self.home, self.rows, self.threads, self.says = folder, rows, threads, says
        self.memory = max(memory, LEAST)
        self.folder: Path | None = None
        self._written = self._kept = 0
        self._open = ExitStack()

    def __enter__(self) -> Spill:
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def make_room(self, counts: Mapping[str, Counts], done: int) -> None:
        """Writes the largest counts out where they pass the budget together. `done` rows of train are counted.

        Raises ConfigError where there is no DuckDB, DataError where the disk has no room.
        """
        if sum(c.nbytes for c in counts.values()) * SHARE <= self.memory:
            return
        for c in counts.values():
            c.merge()
        while sum(c.nbytes for c in counts.values()) * SHARE * 2 > self.memory:
            name, largest = max(counts.items(), key=lambda item: item[1].nbytes)
            self._write(name, largest, sum(c.nbytes for c in counts.values()), done)

    def vocabulary(self, space: Space, family: Family, counts: Counts, owner: str) -> Vocab:
        """The fitted vocabulary of a space. `owner`, a feature of it, is named by the DataError of one too large."""
        if not counts.spilled:
            return Vocab.fit(space, family, *counts.total())
        return Vocab(space, family, self._frequent(counts, space, owner)[0])

    def counted(self, counts: Counts, space: Space, owner: str, old: Vocab | None = None
                ) -> tuple[pa.Array, np.ndarray]:
        """Values and their counts: all, or where they went to disk those that stand min_count times or more and those
        that `old` knows. Raises DataError as `vocabulary` does.
        """
        if not counts.spilled:
            return counts.total()
        known = pa.array([], TYPE[counts.family]) if old is None else old.known()
        return self._frequent(counts, space.model_copy(update={"max_size": None}), owner, known)

    def _frequent(self, counts: Counts, space: Space, owner: str, known: pa.Array | None = None
                  ) -> tuple[pa.Array, np.ndarray]:
        """The values that stand min_count times or more, or are `known`, the most frequent first, at most max_size."""
        if counts.nbytes:
            counts.merge()
            self._write(space.name, counts, counts.nbytes, max(self.rows, 1))
        values, times = [], []
        for batch in self._query([str(path) for path in counts.spilled], space, known):
            values.append(batch["value"].cast(TYPE[counts.family]))
            times.append(batch["count"].cast(pa.int64()).to_numpy())
            self._kept += values[-1].nbytes + INDEX * len(batch)      # of all spaces together
            if self._kept * QUERY > self.memory:
                seen = sum(map(len, values))
                raise DataError(
                    f"{owner}: id space '{space.name}' has more than {seen:,} values that stand {space.min_count} "
                    f"times or more in train, which pass data.memory ({spell_size(self.memory)}); a larger min_count, "
                    "a max_size, hash_buckets, or more data.memory would do")
        return (pa.concat_arrays([pa.array([], TYPE[counts.family]), *values]),
                np.concatenate([np.zeros(0, np.int64), *times]))

    def _query(self, parts: list[str], space: Space, known: pa.Array | None) -> Iterator[pa.RecordBatch]:
        """Values and counts, as decimals: a sum has more digits than what it adds."""
        import duckdb
        import ibis
        counted = ibis.table({"value": "int64", "count": "int64"}, name="parts")
        counted = counted.group_by("value").agg(count=counted["count"].sum())
        wanted = counted["count"] >= space.min_count
        if known is not None:
            wanted |= counted["value"].isin(ibis.table({"value": "int64"}, name="known")["value"])
        wanted = counted.filter(wanted)
        wanted = wanted.order_by([ibis.desc("count"), "value"]).limit(space.max_size)
        try:
            with duckdb.connect(config={
                    "memory_limit": f"{max(ENGINE, self.memory // QUERY)}B", "threads": self.threads,
                    "temp_directory": str(self.folder / "duckdb"), "preserve_insertion_order": False}) as con:
                con.read_parquet(parts).create_view("parts")
                if known is not None:
                    con.register("known", pa.table({"value": known}))
                # Ibis writes the query; its own reader of results calls a decimal an int64
                yield from con.sql(str(ibis.to_sql(wanted, dialect="duckdb"))).to_arrow_reader(BATCH)
        except duckdb.Error as error:
            raise DataError(f"id space '{space.name}': its values could not be counted on disk in {self.folder} "
                            f"({str(error).splitlines()[0]}); more room there, or more data.memory, would do"
                            ) from error

    def _write(self, name: str, counts: Counts, held: int, done: int) -> None:
        if self.folder is None:
            self._begin(name, held, done)
        path = self.folder / f"{self._written:06d}.parquet"
        self._written += 1
        try:
            counts.spill(path)
        except OSError as error:
            raise DataError(f"id space '{name}': {write_failure(error, path.parent) or error}, with data.cache") \
                from error

    def _begin(self, name: str, held: int, done: int) -> None:
        try:
            import duckdb  # noqa: F401
            import ibis  # noqa: F401
        except ImportError as error:
            raise ConfigError(
                f"data.memory: the values of id space '{name}' pass it after {done:,} rows, and counting on disk needs "
                f"ibis and duckdb ({error}); pip install 'funnelrank[scale]', give the space hash_buckets, or raise "
                "data.memory") from None
        home = self.home or Path(tempfile.gettempdir())
        # parts are written compressed, and DuckDB keeps what it sums beside them
        needed = 2 * held * max(1, self.rows // max(done, 1))
        try:
            self.folder = self._open.enter_context(scratch_folder(home / "counts"))
            free = shutil.disk_usage(self.folder).free
        except OSError as error:
            raise DataError(f"{home}: {write_failure(error, home) or error} with data.cache") from error
        self.says({"event": "disk", "what": "counts of values that pass data.memory", "folder": str(home),
                   "bytes": needed, "free": free})
        if needed > free:
            raise DataError(f"{home}: counting the values of train on disk takes about {spell_size(needed)}, and "
                            f"{spell_size(free)} are free; make room or choose a folder elsewhere with data.cache")
