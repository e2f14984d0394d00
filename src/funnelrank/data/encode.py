"""The Encoder: from raw rows to numbers, the same in training, evaluation and serving.

    fit      one pass over train: vocabularies, scales, boundaries, scenarios; a second one where there are rates
    encode   rows -> Encoded, in the columns of `layout`
    save     encoder.json, vocab/*.arrow, tables/*.arrow, rates/*.arrow; `load` gives an encoder with the same `hash`

What counts as missing, and what it becomes:

    id, cross        null, or a key that the table does not have: PAD. A value the vocabulary does not know: OOV
    number, gap      null, NaN, infinities: 0 after scaling, plus 1 in '<name>.missing' where there is such a column
    bucketed number  the same: PAD
    list             null and empty lists: no ids. Null elements and elements with an unknown key are dropped
    vector           null and empty lists: 0 everywhere, plus 1 in '<name>.missing'; one element: 0 in its place
    length           a null list holds nothing: 0 ids
    rate             null, and values that train did not have: 0, as the mean
    scenario         null: 0. A scenario that train did not have: 1
    user             null: -1, which groups with no other row
    weight           null, negative, not finite: DataError
    label            null, NaN: not observed
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from funnelrank.batch import Layout
from funnelrank.data.ahead import in_order
from funnelrank.data.columns import Ids, Reader, Rows
from funnelrank.data.encoded import Encoded, List
from funnelrank.data.fit import Fitting
from funnelrank.data.fit_rates import fit_rates, period_of
from funnelrank.data.labels import read_labels, read_weights
from funnelrank.data.lists import ListNumbers
from funnelrank.data.numbers import LARGEST, Scaler, bucket_ids
from funnelrank.data.parse import Values, newest, one_chunk
from funnelrank.data.plain import Plain
from funnelrank.data.rates import Rates
from funnelrank.data.source import Source
from funnelrank.data.spill import Spill
from funnelrank.data.tables import Dimension, canonical
from funnelrank.data.vocab import Vocab, digest_values, hash_values, nulls
from funnelrank.errors import DataError, listing
from funnelrank.schema import FIRST, OOV, PAD, Schema, Space, table_of, who_reads
from funnelrank.sealed import inside, read_json
from funnelrank.settings import AnyEngine

FORMAT = 1
BLOCK = 16384                   # rows worked on at once: fewer calls, and lists that stay near the core
FEW = 1024                      # rows whose plain features are worth doing together
SCENARIO = "data.scenario"      # its key among the counts; no feature's name has a dot
NO_USER = -1
SCALED = ("number", "vector", "length", "gap")


class Old(NamedTuple):
    """What a fit goes on from: statistics of features that stay as they were, and vocabularies, which grow.

    Numbers keep their scales and boundaries, so that weights that were learned on them mean what they meant.
    """

    vocabs: Mapping[str, Vocab]          # by space; that of the scenarios under ''
    scalers: Mapping[str, Scaler]
    boundaries: Mapping[str, list[float]]
    weighted: list[str]
    retire: int | None = None            # see Vocab.grown
    rates: Mapping[str, Rates] = {}      # which count on


class Encoder:
    """Fitted on train, then fixed.

    schema   what it was fitted for
    layout   which feature is which column of a Batch
    """

    def __init__(self, schema: Schema, tables: Mapping[str, Dimension], vocabs: Mapping[str, Vocab],
                 scalers: Mapping[str, Scaler], boundaries: Mapping[str, list[float]], weighted: list[str],
                 scenario: Vocab | None, rates: Mapping[str, Rates]):
        self.schema, self.tables, self.vocabs, self.scenario = schema, dict(tables), dict(vocabs), scenario
        self.scalers, self.boundaries, self.weighted = dict(scalers), dict(boundaries), list(weighted)
        self.rates = dict(rates)
        self.layout = self._layout()
        self._reader = Reader(schema, self.tables, {name: v.family for name, v in vocabs.items()}, self.boundaries)
        self._plain = Plain(schema, vocabs, self.scalers, self.boundaries)
        self._hash: str | None = None

    @classmethod
    def fit(cls, schema: Schema, source: Source, tables: Mapping[str, Dimension],
            progress: Callable[[int], None] | None = None, threads: int = 1, old: Old | None = None,
            scratch: Path | None = None, says: Callable[[dict[str, Any]], None] = lambda event: None,
            engine: AnyEngine | None = None) -> Encoder:
        """One pass over train (and another where rates are counted), going on from `old` where there is one. What
        `engine` can count is counted there instead; see statistics.py.

        `progress` is told how many rows are done; with several `threads`, rows are read ahead. Counts that pass
        data.memory go to disk, into `scratch`; `says` gets an event before. Raises DataError where columns do not fit,
        or a vocabulary passes data.memory.
        """
        source.require(schema.log_columns(), who_reads(schema))
        done, rates = 0, {}
        with Spill(scratch, source.memory, source.rows, threads, says) as spill:
            fitting = Fitting(schema, source.columns, tables, spill, old and old.vocabs, old and old.retire)
            if engine is not None:
                from funnelrank.data.statistics import ask
                found = ask(engine, schema, source, fitting.reader, scenario=fitting.scenario_family,
                            old=old.vocabs if old else {}, threads=threads, scratch=scratch, says=says)
                fitting.take(found)
                rates = found.rates
            with closing(in_order(source, fitting.columns, lambda table, unit: table, threads)) as units:
                for unit, table in units if fitting.columns else ():
                    fitting.add(table, source.where(unit))
                    del table                      # before the next one is read
                    done += unit.rows
                    if progress:
                        progress(done)
            fitted = fitting.result()
        if old:
            fitted["scalers"] |= {n: s for n, s in old.scalers.items() if n in fitted["scalers"]}
            fitted["boundaries"] |= {n: b for n, b in old.boundaries.items() if n in fitted["boundaries"]}
            fitted["weighted"] = list(dict.fromkeys([*fitted["weighted"], *old.weighted]))
        families = {name: vocab.family for name, vocab in fitted["vocabs"].items()}
        rates = fit_rates(schema, source, Reader(schema, tables, families, fitted["boundaries"]), fitted["boundaries"],
                          old.rates if old else {}, rates)
        return cls(schema, tables, **fitted, rates=rates)

    @classmethod
    def unfitted(cls, schema: Schema, size: int) -> Encoder:
        """One that nobody has fitted, for its layout: id spaces of `size` ids, three scenarios, and no number that says
        where another is missing, unless the config asks for it."""
        made = lambda name, values: Vocab(Space(name=name, made="fitted"), "int", pa.array(range(values)))
        cut = {n: [0.0] for n in schema.features if schema.cut_as(n) == n}
        scalers = {n: Scaler(False, 0.0, 1.0, None, getattr(f, "indicator", False) is True)
                   for n, f in schema.of_kind(*SCALED).items() if n not in cut}
        weighted = [n for n, f in schema.of_kind("bag").items() if f.weight_separator]
        return cls(schema, {}, {n: made(n, size - FIRST) for n in schema.spaces}, scalers, cut, weighted,
                   made("scenario", 3) if schema.scenario else None, {})

    def encode(self, table: pa.Table, where: str, labels: bool = True, only: Collection[str] | None = None) -> Encoded:
        """Rows of the log as arrays. `where` begins the sentence of an error, as 'part-0007.parquet, row group 3'.

        Without `labels` the columns of labels, weight, scenario and user may be absent: NaN, 1, null and null. With
        `only`, features that it does not name are not read: PAD, 0 and empty lists stand in their columns.
        """
        n, layout = table.num_rows, self.layout
        ids, numbers = np.zeros((n, len(layout.ids)), np.int32), np.zeros((n, len(layout.numbers)), np.float32)
        lists: list[list[List]] = [[] for _ in layout.lists]
        rows = self._reader.rows(table, where)
        scenario, user, weight = self._scenario(rows, labels), self._user(rows, labels), self._weight(rows, labels)
        counts: dict[str, dict[str, int]] = {}
        for start, block in self._reader.blocks(table, where, BLOCK):
            part = slice(start, start + BLOCK)
            columns, said = self._features(block, self.schema.features if only is None else only)
            for out, names in ((ids, layout.ids), (numbers, layout.numbers)):
                for c, name in enumerate(names):
                    if name in columns:
                        out[part, c] = columns[name]
            for parts, name in zip(lists, layout.lists):
                parts.append(columns[name] if name in columns else self._no_list(name, len(block)))
            for name, more in said.items():
                so_far = counts.setdefault(name, dict.fromkeys(more, 0))
                for key, count in more.items():
                    so_far[key] += count
        if self.schema.scenario and (labels or rows.has(self.schema.scenario)):
            counts[SCENARIO] = {"nulls": _many(scenario, PAD), "oov": _many(scenario, OOV)}
        return Encoded(
            ids, numbers, [_joined(parts) for parts in lists], scenario,
            read_labels(table, self.schema, where) if labels else np.full((n, len(layout.tasks)), np.nan, np.float32),
            weight, user, {name: {"rows": n, **said} for name, said in counts.items()})

    def save(self, folder: Path | str) -> None:
        """Writes into `folder`, which is made; no file in it is needed afterwards but these."""
        folder = Path(folder)
        (folder / "vocab").mkdir(parents=True, exist_ok=True)
        (folder / "tables").mkdir(exist_ok=True)
        files = {name: f"vocab/{i:03d}-{_file_name(name)}.arrow" for i, name in enumerate(self.vocabs)}
        kept = {name: f"tables/{i:03d}-{_file_name(name)}.arrow" for i, name in enumerate(self.tables)}
        for name, file in files.items():
            self.vocabs[name].save(folder / file)
        for name, file in kept.items():
            self.tables[name].save(folder / file)
        counted = {name: f"rates/{i:03d}-{_file_name(name)}.arrow" for i, name in enumerate(self.rates)}
        for name, file in counted.items():
            (folder / "rates").mkdir(exist_ok=True)
            self.rates[name].save(folder / file)
        if self.scenario:
            self.scenario.save(folder / "vocab" / "scenario.arrow")
        about = {"format": FORMAT, "schema": self.schema.model_dump(mode="json"), "vocabs": files, "tables": kept,
                 **({"rates": counted} if counted else {}),
                 "scenario": "vocab/scenario.arrow" if self.scenario else None, **self._numbers()}
        (folder / "encoder.json").write_text(json.dumps(about, indent=1, allow_nan=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path | str) -> Encoder:
        """What `save` wrote. Raises DataError for another format."""
        folder = Path(folder)
        about, where = read_json(folder / "encoder.json", str(folder)), folder / "encoder.json"
        if about.get("format") != FORMAT:
            raise DataError(f"{where}: has format {about.get('format')}; this version reads {FORMAT}")
        rates = about.get("rates", {})
        named = [*about["tables"].values(), *about["vocabs"].values(), *rates.values(), about["scenario"] or "none"]
        if outside := [f for f in named if not inside(f)]:
            raise DataError(f"{where}: names '{outside[0]}', which is no file inside the folder")
        schema = Schema.model_validate(about["schema"])
        for what, found, needed in (
                ("rates", rates, schema.of_kind("rate")),
                ("vocabularies", about["vocabs"], schema.spaces), ("tables", about["tables"], [
                    t for t, columns in schema.tables.items() if columns.columns]),
                ("scales and boundaries", [*about["scalers"], *about["boundaries"]],
                 {n for n in schema.features if schema.cut_as(n) == n} | {*schema.of_kind(*SCALED)})):
            if sorted(found) != sorted(needed):
                raise DataError(f"{where}: has {what} of {listing(found) or 'nothing'}; its schema needs those of "
                                f"{listing(needed) or 'nothing'}")
        if bool(about["scenario"]) != bool(schema.scenario) or not set(about["weighted"]) <= set(schema.of_kind("bag")):
            raise DataError(f"{where}: its scenarios or weighted bags are not those of its schema")
        for name, cuts in about["boundaries"].items():
            if any(type(c) not in (int, float) for c in cuts) or any(a >= b for a, b in zip(cuts, cuts[1:])):
                raise DataError(f"{where}: the boundaries of '{name}' are no rising numbers")
        return cls(
            schema,
            {name: Dimension.load(folder / file) for name, file in about["tables"].items()},
            {name: Vocab.load(folder / file) for name, file in about["vocabs"].items()},
            {name: Scaler.from_json(said) for name, said in about["scalers"].items()}, about["boundaries"],
            about["weighted"], Vocab.load(folder / about["scenario"]) if about["scenario"] else None,
            {name: Rates.load(folder / file) for name, file in rates.items()})

    def hash(self) -> str:
        """Hex digest of everything that decides what `encode` gives: two encoders with one hash encode alike."""
        if self._hash is None:
            said = self.schema.model_dump(mode="json", exclude={"reading", "negatives_kept", "spaces"})
            if not (self.schema.made or self.rates):             # else the time says what was before a row
                del said["time"]
            for f in said["features"].values():
                for key in ("role", "target", "vocab_list", "vocab_file", *(["pool"] if "space" in f else [])):
                    f.pop(key, None)
            for task in said["tasks"]:
                del task["weight"], task["within"]
            digest = hashlib.sha256()
            digest.update(json.dumps([FORMAT, said, self._numbers()], sort_keys=True).encode())
            for vocab in [*self.vocabs.values(), *([self.scenario] if self.scenario else [])]:
                vocab.digest(digest.update)
            for rates in self.rates.values():
                rates.digest(digest.update)
            for name, table in sorted(self.tables.items()):
                for column in sorted(table.table.column_names):
                    digest.update(f"{name}.{column}".encode())
                    digest_values(one_chunk(table.table.column(column)), digest.update)
            self._hash = digest.hexdigest()
        return self._hash

    def _numbers(self) -> dict[str, Any]:
        return {"scalers": {name: s.to_json() for name, s in self.scalers.items()}, "boundaries": self.boundaries,
                "weighted": self.weighted}

    def _layout(self) -> Layout:
        features = self.schema.features
        lists = self.schema.of_kind("bag", "sequence")
        ids = [n for n, f in features.items()
               if f.kind in ("id", "cross") or f.kind == "number" and n in self.boundaries]
        of = {}
        for name, f in features.items():
            if name in self.scalers:
                of |= dict.fromkeys([f"{name}.{i}" for i in range(f.size)] if f.kind == "vector" else [name], name)
                if self.scalers[name].indicator:
                    of[f"{name}.missing"] = name
            elif f.kind in ("share", "rate"):
                of[name] = name
            elif f.kind == "match":
                of[f"{name}.count"] = of[f"{name}.recency"] = name
        return Layout(
            ids=tuple(ids), numbers=tuple(of), lists=tuple(lists), tasks=tuple(self.schema.task_names),
            space={n: getattr(features[n], "space", n) for n in [*ids, *lists]},
            size={name: vocab.size for name, vocab in self.vocabs.items()},
            role={name: features[of.get(name, name)].role for name in [*ids, *lists, *of]},
            pool={name: f.pool for name, f in lists.items()},
            target={name: f.target for name, f in lists.items() if getattr(f, "target", None)},
            feature=of, weighted=bool(self.weighted), crosses=tuple(self.schema.of_kind("cross")),
            scenarios=tuple(str(value) for value in self.scenario.values()) if self.scenario else ())

    def _no_list(self, name: str, rows: int) -> List:
        weights = np.empty(0, np.float32) if name in self.weighted else None
        return List(np.empty(0, np.int32), np.zeros(rows + 1, np.int64), weights)

    def _features(self, rows: Rows, only: Collection[str]) -> tuple[dict[str, Any], dict[str, dict[str, int]]]:
        """Columns of ids and numbers [n] and lists of some features, by name, and their counts."""
        columns: dict[str, Any] = {}
        counts: dict[str, dict[str, int]] = {}
        read_off = ListNumbers(self.schema, rows)
        plain = self._plain.read(rows, only) if len(rows) <= FEW else {}
        for name in only:
            if name in plain:
                columns[name], counts[name] = plain[name]
                continue
            f = self.schema.features[name]
            match f.kind:
                case "id" | "cross":
                    columns[name], counts[name] = self._ids(rows, name)
                case "bag" | "sequence":
                    columns[name], counts[name] = self._list(rows, name)
                case "number" if name in self.boundaries:
                    values, counts[name] = rows.numbers(name)
                    columns[name] = bucket_ids(values, self.boundaries[name], FIRST)
                case "number" | "gap":
                    values, counts[name] = rows.numbers(name) if f.kind == "number" else rows.gap(f.since, f.until)
                    columns[name] = self.scalers[name](values)
                    if self.scalers[name].indicator:
                        columns[f"{name}.missing"] = np.isnan(values)
                case "vector":
                    values, missing, counts[name] = rows.vector(name)
                    scaled = self.scalers[name](values)
                    columns |= {f"{name}.{i}": scaled[:, i] for i in range(f.size)} | {f"{name}.missing": missing}
                case "length":
                    columns[name] = self.scalers[name](read_off.length(name))
                case "share":
                    columns[name] = read_off.share(name)
                case "match":
                    count, columns[f"{name}.recency"] = read_off.match(name)
                    columns[f"{name}.count"] = np.log1p(count)
                case "rate":
                    when = period_of(self.schema, rows, name) if f.task else None
                    columns[name] = self.rates[name].numbers(*read_off.rated(name, self.boundaries), when)
        return columns, counts

    def _ids(self, rows: Rows, name: str) -> tuple[np.ndarray, dict[str, int]]:
        f = self.schema.features[name]
        values, missing, filled = Ids(Values(rows.crossed(name))) if f.kind == "cross" else rows.ids(name)
        ids = self._vocab_ids(f.space, values)
        counts = {"nulls": _many(ids, PAD) - missing + filled, "oov": _many(ids, OOV)}
        if f.kind == "id" and table_of(f.column):
            counts["missing_keys"] = missing
        return self._known(f.space, ids), counts

    def _known(self, space: str, ids: np.ndarray) -> np.ndarray:
        """OOV as the value that the space reads unknown ones as."""
        unknown = self.vocabs[space].unknown
        return ids if unknown == OOV else np.where(ids == OOV, np.int32(unknown), ids)

    def _vocab_ids(self, space: str, values: Values) -> np.ndarray:
        """Ids [n] int32 of values; those of a table's column are looked up once."""
        if values.key is None:
            ids = self.vocabs[space].ids(values.base)
        else:
            ids = self._reader.keep(("ids", space, *values.key), lambda: self.vocabs[space].ids(values.base))
        return values.map(ids, PAD)

    def _list(self, rows: Rows, name: str) -> tuple[List, dict[str, int]]:
        f, listed = self.schema.features[name], rows.list(name)
        if listed.weights is not None and name not in self.weighted:
            raise DataError(f"{rows.place(f.column)} maps ids to weights, but in train '{name}' had no weights; "
                            "write both in one way")
        values, offsets, weights = newest(listed, f)
        ids = self._vocab_ids(f.space, values)
        if name in self.weighted:
            weights = np.ones(len(ids)) if weights is None else weights
            weights = np.clip(weights, -LARGEST, LARGEST).astype(np.float32)
        null = int(listed.null.sum())
        empty = int((np.diff(listed.offsets) == 0).sum()) + listed.filled
        counts = {"nulls": null, "empty": empty - null, "ids": len(ids),
                  "oov": _many(ids, OOV), "dropped": listed.dropped, "cut": listed.values.count() - len(ids)}
        if table_of(f.column):
            counts["missing_keys"] = listed.missing_keys
        return List(self._known(f.space, ids), offsets, weights), counts

    def _scenario(self, rows: Rows, labels: bool) -> np.ndarray:
        column = self.schema.scenario
        if column is None or not (labels or rows.has(column)):
            return np.zeros(len(rows), np.int32)
        place = rows.place(column)
        return self.scenario.ids(canonical(rows.column(column), place), place)

    def _user(self, rows: Rows, labels: bool) -> np.ndarray:
        """Bijection of integers, hash of texts. -1 is kept for null; the one integer that would be -1 joins another."""
        column = self.schema.user
        if column is None or not (labels or rows.has(column)):
            return np.full(len(rows), NO_USER, np.int64)
        values = canonical(rows.column(column), rows.place(column))
        codes = hash_values(values).view(np.int64)
        codes = np.where(codes == NO_USER, NO_USER - 1, codes)
        return np.where(nulls(values), NO_USER, codes)

    def _weight(self, rows: Rows, labels: bool) -> np.ndarray:
        column = self.schema.weight
        if column is None or not labels:
            return np.ones(len(rows), np.float32)
        return read_weights(rows.column(column), rows.place(column))


def joined(parts: list[Encoded]) -> Encoded:
    """The rows of several parts, one after another; without their counts."""
    cat = lambda name: np.concatenate([getattr(part, name) for part in parts])
    return Encoded(**{name: cat(name) for name in ("ids", "numbers", "scenario", "labels", "weight", "user")},
                   lists=[_joined(list(some)) for some in zip(*(part.lists for part in parts))])


def _joined(parts: list[List]) -> List:
    """The rows of several parts, one after another."""
    if len(parts) == 1:
        return parts[0]
    ends = np.cumsum([0, *(len(part.values) for part in parts)])
    offsets = [part.offsets[1:] + end for part, end in zip(parts, ends)]
    return List(np.concatenate([part.values for part in parts]), np.concatenate([[0], *offsets]),
                None if parts[0].weights is None else np.concatenate([part.weights for part in parts]))


def _many(ids: np.ndarray, one: int) -> int:
    return int(np.count_nonzero(ids == one))


def _file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)
