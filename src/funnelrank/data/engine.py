"""Where expressions about train run, if not here: DuckDB in this process, or Spark. Both take the same ones.

    with open_engine(said, ...) as engine:
        engine.read(paths, "train")          parquet files become a table
        engine.put(table, "known")           so do rows that are here
        engine.fetch(expression, most)       the rows of an expression over them, as an Arrow table

Ibis writes the query, and the engine answers in Arrow, so that counts come back as the whole numbers they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from funnelrank.durable import scratch_folder, write_failure
from funnelrank.errors import ConfigError, DataError
from funnelrank.settings import AnyEngine

EXTRA = {"duckdb": "scale", "spark": "spark"}
LEAST = 1 << 27               # bytes that DuckDB may always hold


@contextmanager
def open_engine(said: AnyEngine, memory: int, threads: int, scratch: Path) -> Iterator[DuckDB | Spark]:
    """The engine that a config names, connected; DuckDB holds `memory` bytes and writes what is beyond into `scratch`.

    Raises ConfigError where its libraries are missing or it cannot be reached, DataError for what fails within it.
    """
    try:
        import ibis
        if said.name == "duckdb":
            import duckdb  # noqa: F401
        else:
            _ = ibis.pyspark                   # Ibis writes Spark's SQL only once this is there
    except ImportError as error:
        raise ConfigError(f"data.engine: {said.name} needs a library that is not installed ({error}); "
                          f"pip install 'funnelrank[{EXTRA[said.name]}]'") from None
    if said.name == "spark":
        with _spark(said.connection) as session:
            yield Spark(session)
        return
    try:
        with scratch_folder(scratch / "engine") as folder, _duckdb(said.connection, memory, threads, folder) as con:
            yield DuckDB(con)
    except OSError as error:
        if (said_so := write_failure(error, scratch)) is None:
            raise
        raise DataError(f"data.engine: what DuckDB writes beside its memory, in {scratch}: {said_so} with data.cache"
                        ) from error


class DuckDB:
    name, dialect = "duckdb", "duckdb"

    def __init__(self, connection: Any):
        import duckdb
        self._con, self._errors = connection, duckdb.Error

    def read(self, paths: list[str], name: str) -> None:
        with _one_sentence(self.name, self._errors):
            # by default DuckDB takes a footer's least and most for a promise that no value is NaN (duckdb issue 25521)
            listed = ", ".join("'" + path.replace("'", "''") + "'" for path in paths)
            self._con.execute(f"CREATE VIEW {name} AS FROM read_parquet([{listed}], union_by_name = true, "
                              "hive_partitioning = false, can_have_nan = true)")

    def put(self, table: pa.Table, name: str) -> None:
        self._con.register(name, table)

    def fetch(self, expression: Any, most: int | None = None) -> pa.Table:
        """Its rows, `most` of them at most."""
        with _one_sentence(self.name, self._errors):
            return self._con.sql(_query(expression, most, self.dialect)).to_arrow_table()


class Spark:
    name, dialect = "spark", "pyspark"

    def __init__(self, session: Any):
        from py4j.protocol import Py4JError
        from pyspark.errors import PySparkException
        self._session, self._errors = session, (PySparkException, Py4JError)

    def read(self, paths: list[str], name: str) -> None:
        with _one_sentence(self.name, self._errors):
            # a path alone is of whatever file system Spark was told to begin with
            urls = [path if "://" in path else f"file://{path}" for path in paths]
            self._session.read.option("mergeSchema", "true").parquet(*urls).createOrReplaceTempView(name)

    def put(self, table: pa.Table, name: str) -> None:
        # large strings are a type that Spark does not read
        kinds = [pa.string() if pa.types.is_large_string(kind) else kind for kind in table.schema.types]
        table = table.cast(pa.schema(list(zip(table.column_names, kinds))))
        with _one_sentence(self.name, self._errors):
            self._session.createDataFrame(table).createOrReplaceTempView(name)

    def fetch(self, expression: Any, most: int | None = None) -> pa.Table:
        """Its rows, `most` of them at most."""
        with _one_sentence(self.name, self._errors):
            return self._session.sql(_query(expression, most, self.dialect)).toArrow()


def _query(expression: Any, most: int | None, dialect: str) -> str:
    import ibis
    return str(ibis.to_sql(expression if most is None else expression.limit(most), dialect=dialect))


@contextmanager
def _duckdb(connection: str | None, memory: int, threads: int, folder: Path) -> Iterator[Any]:
    import duckdb
    try:
        con = duckdb.connect(connection or ":memory:", config={
            "memory_limit": f"{max(LEAST, memory)}B", "threads": threads, "temp_directory": str(folder),
            "preserve_insertion_order": False})
    except duckdb.Error as error:
        raise ConfigError(f"data.engine.connection: DuckDB cannot open '{connection}' ({_first_line(error)}); it is a "
                          "database's file, or is left out") from None
    with con:
        yield con


@contextmanager
def _spark(connection: str | None) -> Iterator[Any]:
    """The running session if there is one, which stays; else one of our own, which ends."""
    from py4j.protocol import Py4JError
    from pyspark.errors import PySparkException
    from pyspark.sql import SparkSession
    if (session := SparkSession.getActiveSession()) is not None:
        yield session
        return
    builder = SparkSession.builder.appName("funnelrank").config("spark.ui.showConsoleProgress", "false")
    try:
        session = (builder.master(connection) if connection else builder).getOrCreate()
    except (PySparkException, Py4JError) as error:
        raise ConfigError(f"data.engine.connection: Spark cannot be started at '{connection or 'its own default'}' "
                          f"({_first_line(error)}); it needs Java 17 and the URL of a master, as spark://host:7077, "
                          "yarn or local[4]") from None
    try:
        yield session
    finally:
        session.stop()


@contextmanager
def _one_sentence(engine: str, errors: Any) -> Iterator[None]:
    """What an engine raises, as a DataError."""
    try:
        yield
    except errors as error:
        raise DataError(f"data.engine: {engine} could not count the rows of train ({_first_line(error)})") from error


def _first_line(error: BaseException) -> str:
    text = " ".join(str(error).strip().split("\n")[0].split())
    return text[:300] + " ..." if len(text) > 300 else text or type(error).__name__
