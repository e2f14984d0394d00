"""The encoded rows of a split: made once, kept on disk, read as memory maps by every epoch after.

    <folder>/encoded-<key>/   rows.bin                                  a record a row, little-endian
                              list0.values.bin list0.weights.bin ...    of all rows, one after another
                              meta.json    shapes, types, counts, coverage, and what the key was made from
                              meta.sum     checksums of these files (CRC-32), held against them at every later opening

    <folder>/part-<key>/      the same of one file of several, encoded by a task of its own; joined, and then removed

A record has all columns of its row side by side, so that a row of a shuffled batch is one place in memory, and one for
each list (docs/speed.md says what that gains). A column is a view of its part of every record.

The key is a hash of the encoder, the files and the label policy: whatever changes makes another cache. Rows are encoded
unit by unit, so that never more than one unit is in memory. The folder appears when it is complete; what is half
written, cut off or damaged since, is never used. A folder of caches keeps the KEEP that were used last, and any that a
running process reads; older ones are removed when another is made.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO
from zlib import crc32

import numpy as np

from funnelrank.batch import Layout
from funnelrank.data.ahead import in_order
from funnelrank.data.derive import gather
from funnelrank.data.encode import Encoder
from funnelrank.data.encoded import Encoded, List
from funnelrank.data.labels import apply_policy, contradictions, describe
from funnelrank.data.source import Source
from funnelrank.durable import (
    discard_unused,
    find_folder,
    hold,
    new_folder,
    remove_folder,
    spell_size,
    sweep,
    write_failure,
)
from funnelrank.errors import ArtefactError, DataError
from funnelrank.schema import Schema
from funnelrank.sealed import read_json, to_json
from funnelrank.settings import Data

FORMAT = 3
KEY = 32                 # hex digits
KEEP = 20                # a run needs up to five: train, valid, test, and two with frozen histories
COPIED = 1 << 18         # rows of a part copied at a time
META, SUMS = "meta.json", "meta.sum"
ROWS = "rows"
ROWWISE = ("ids", "numbers", "scenario", "labels", "weight", "user")
LISTWISE = {"values": "<i4", "weights": "<f4"}

Progress = Callable[[int], None]      # told how many rows are done
Says = Callable[[dict[str, Any]], None]


@dataclass
class EncodedSplit(Encoded):
    """A whole split. Arrays are memory maps, or in memory where there is no folder; all are read only.

    counts          per feature, summed over the split as it was read, before any row was dropped
    coverage        per task: rows, observed, positives (None where the task is not binary), after the policy
    contradictions  the report of `labels.apply_policy`; policy None for a split whose labels are left alone
    skipped         what data.on_error: skip left out, as `Skipped.to_json` says it; empty under `raise`
    folder          where the arrays lie
    """

    coverage: dict[str, dict[str, int | None]] = field(default_factory=dict)
    contradictions: dict[str, Any] = field(default_factory=dict)
    skipped: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None

    @property
    def rows(self) -> int:
        return len(self)


def open_encoded(encoder: Encoder, source: Source, data: Data, folder: Path | None, policy: bool,
                 progress: Progress | None = None, threads: int = 1, says: Says = lambda event: None) -> EncodedSplit:
    """The encoded rows of `source`, from the cache in `folder` or encoded into it now; in memory if folder is None.

    `policy` is for train: apply data.contradictions and data.fill_implied (by default not under the joint
    reading). Labels of other splits are left alone. Two processes that want the same cache make it once: the second
    waits for the first. `threads` units are encoded at once, where data.memory holds them, and give the same. Before
    rows are written, `says` gets an event of how much disk they will take.

    Raises DataError for rows that cannot be encoded, for contradictions under `raise`, where no row is left, where a
    file changes meanwhile, and where the disk has no room; nothing half-written stays.
    """
    rules = _rules(encoder, data, policy)
    if folder is None:
        arrays = _InMemory()
        meta = _encode(encoder, source, rules, arrays, progress, threads, [])
        return _split(arrays.whole, meta, None)
    made_from, target = _whole(encoder, source, rules, Path(folder))
    found = _open(target)
    if found is None:
        sweep(Path(folder), target.name, wait=True)
        found = _open(target)
    if found is None:
        sweep(Path(folder), "encoded-" + "[0-9a-f]" * KEY)
        parts = _parts_of(encoder, source, rules, Path(folder))
        _write(target, made_from, encoder, source, rules, progress, threads, says, parts)
        found = _open(target, written=True)
        assert found is not None, target
        for part in parts:
            remove_folder(part)
        discard_unused(Path(folder), "encoded-" + "[0-9a-f]" * KEY, KEEP)
    return found


def encode_file(encoder: Encoder, source: Source, number: int, data: Data, folder: Path, policy: bool,
                progress: Progress | None = None, threads: int = 1, says: Says = lambda event: None) -> bool:
    """Encode one file of a split into the cache, for `open_encoded` to join; False where that was done before, of it
    or of the whole split.

    Raises DataError as open_encoded does.
    """
    rules, files = _rules(encoder, data, policy), source.files()
    one = files[number]
    if len(files) == 1:                                   # a part that is the whole
        before = set(folder.glob("encoded-*"))
        return open_encoded(encoder, source, data, folder, policy, progress, threads, says).folder not in before
    made_from, target = _part(encoder, one, rules, folder)
    if find_folder(_whole(encoder, source, rules, folder)[1]) is not None or _open(target) is not None:
        return False
    sweep(folder, target.name)
    _write(target, made_from, encoder, one, rules, progress, threads, says, [], is_part=True)
    return True


def _rules(encoder: Encoder, data: Data, policy: bool) -> dict[str, Any]:
    fill = data.fill_implied if data.fill_implied is not None else encoder.schema.nested
    return {"contradictions": data.contradictions if policy else None, "fill_implied": policy and fill}


def _whole(encoder: Encoder, source: Source, rules: Mapping[str, Any], folder: Path) -> tuple[dict[str, Any], Path]:
    """What a split's rows are made from, and where they lie."""
    made_from = {"format": FORMAT, "encoder": encoder.hash(), "source": source.fingerprint(), **rules}
    return made_from, folder / f"encoded-{hashlib.sha256(to_json(made_from)).hexdigest()[:KEY]}"


def _part(encoder: Encoder, one: Source, rules: Mapping[str, Any], folder: Path) -> tuple[dict[str, Any], Path]:
    """What a file's part is made from, types that all files agreed on among it, and where it lies."""
    columns = [c for c in encoder.schema.log_columns() if c in one.columns.names]
    made_from = {"format": FORMAT, "encoder": encoder.hash(), "source": one.fingerprint(), **rules,
                 "columns": {c: str(one.columns.field(c).type) for c in columns}}
    return made_from, folder / f"part-{hashlib.sha256(to_json(made_from)).hexdigest()[:KEY]}"


def _parts_of(encoder: Encoder, source: Source, rules: Mapping[str, Any], folder: Path) -> list[Path]:
    """Where the parts of this source's files lie, if any file has one."""
    apart = all(hasattr(s, "files") for s in (source, getattr(source, "live", source)))     # sifted rows have none
    if not apart or not any(folder.glob("part-" + "[0-9a-f]" * KEY)):
        return []
    files = source.files()
    return [_part(encoder, one, rules, folder)[1] for one in files] if len(files) > 1 else []


def _write(target: Path, made_from: dict[str, Any], encoder: Encoder, source: Source, rules: Mapping[str, Any],
           progress: Progress | None, threads: int, says: Says, parts: list[Path], is_part: bool = False) -> None:
    """`parts`: where the part of each file is, if anybody made it; rows of others are encoded here."""
    arrays = None
    try:
        with new_folder(target) as new, _OnDisk(new, source, says) as arrays:
            meta = _encode(encoder, source, rules, arrays, progress, threads, parts, is_part)
            if source.changed():
                raise DataError(f"data.{source.split}: a file changed while it was encoded; run again once all are "
                                "complete")
            said = to_json({"made_from": made_from, "lengths": arrays.lengths, **meta})
            (new / META).write_bytes(said)
            (new / SUMS).write_bytes(to_json({**arrays.sums, META: crc32(said)}))
    except OSError as error:
        said = write_failure(error, target.parent, arrays and arrays.needed())
        if said is None:
            raise
        raise DataError(f"cache {target.parent}, for the encoded rows of data.{source.split}: {said} with "
                        "data.cache") from error


def _encode(encoder: Encoder, source: Source, rules: Mapping[str, Any], arrays: "_InMemory | _OnDisk",
            progress: Progress | None, threads: int, parts: list[Path], is_part: bool = False) -> dict[str, Any]:
    """Adds every unit's arrays to `arrays` under the label rules; returns what there is to report, for JSON."""
    schema = encoder.schema
    report = {"policy": rules["contradictions"], "edges": [], "dropped": 0, "repaired": 0, "filled": {}}
    coverage = {task.name: {"rows": 0, "observed": 0, "positives": 0 if task.kind == "binary" else None}
                for task in schema.tasks}
    rows, done, weighted, counts = 0, 0, None, {}
    widths = _widths(encoder.layout)
    record, ends = _record(**widths), [0] * widths["lists"]
    with closing(_files(encoder, source, rules, threads, parts)) as pieces:
        for encoded, read, said in pieces:
            counts = _sum(counts, encoded.counts)
            _add_report(report, said)
            _cover(coverage, encoded.labels, schema)
            first, weighted = weighted is None, [listed.weights is not None for listed in encoded.lists]
            done += read
            arrays.add(_parts(encoded, record, ends, first), done)
            rows += len(encoded)
            if progress:
                progress(done)
    if not rows and not is_part:
        raise DataError(f"data.{source.split}: each of the {done} rows contradicts the funnel and is dropped; set "
                        "data.contradictions to keep or repair")
    return {"rows": rows, "widths": widths, "weighted": weighted, "counts": counts, "coverage": coverage,
            "contradictions": report, "skipped": source.skipped.to_json() if source.skipped else {}}


Piece = tuple[Encoded, int, dict[str, Any]]       # rows that stay, how many were read, and the report on their labels


def _files(encoder: Encoder, source: Source, rules: Mapping[str, Any], threads: int, parts: list[Path]
           ) -> Iterator[Piece]:
    """A source's rows in their order, encoded here or copied from the parts of its files that are there."""
    if not parts:
        yield from _units(encoder, source, rules, threads)
        return
    for one, path in zip(source.files(), parts):
        part = _open(path)
        yield from _units(encoder, one, rules, threads) if part is None else _copied(part, one.rows)


def _units(encoder: Encoder, source: Source, rules: Mapping[str, Any], threads: int) -> Iterator[Piece]:
    schema, policy = encoder.schema, rules["contradictions"]
    work = lambda table, unit: encoder.encode(table, source.where(unit))
    with closing(in_order(source, schema.log_columns(), work, threads)) as units:
        for unit, encoded in units:
            where = source.where(unit)
            if policy is None:
                said = {"edges": [describe(edge, where, unit.start) for edge in contradictions(encoded.labels, schema)]}
            else:
                labels, keep, said = apply_policy(encoded.labels, schema, policy, rules["fill_implied"], where,
                                                  unit.start)
                encoded = replace(encoded, labels=labels)
                if not keep.all():
                    encoded = _take(encoded, np.flatnonzero(keep))
            yield encoded, unit.rows, said


def _copied(part: EncodedSplit, read: int) -> Iterator[Piece]:
    """A part's rows, COPIED at a time; its counts and its report come with the first of them."""
    for start in range(0, max(len(part), 1), COPIED):
        stop = min(start + COPIED, len(part))
        lists = [List(values[offsets[start]:offsets[stop]], offsets[start:stop + 1] - offsets[start],
                      None if weights is None else weights[offsets[start]:offsets[stop]])
                 for values, offsets, weights in part.lists]
        rows = Encoded(**{name: getattr(part, name)[start:stop] for name in ROWWISE}, lists=lists,
                       counts={} if start else part.counts)
        yield rows, read - start if stop == len(part) else COPIED, {"edges": []} if start else part.contradictions


class _InMemory:
    """Arrays that grow by parts."""

    def __init__(self):
        self._parts: dict[str, list[np.ndarray]] = {}

    def add(self, parts: Mapping[str, np.ndarray], done: int) -> None:
        for name, part in parts.items():
            self._parts.setdefault(name, []).append(part)

    def whole(self, name: str) -> np.ndarray:
        array = np.concatenate(self._parts.pop(name))
        array.flags.writeable = False
        return array


class _OnDisk:
    """The same as one file each in `folder`, little-endian, row by row."""

    def __init__(self, folder: Path, source: Source, says: Says):
        self.folder, self.source, self.says, self.lengths, self.sums = folder, source, says, {}, {}
        self._files: dict[str, BinaryIO] = {}
        self._bytes = self._done = 0

    def add(self, parts: Mapping[str, np.ndarray], done: int) -> None:
        """`done` is how many rows of the source these parts complete."""
        first = not self._done
        self._bytes, self._done = self._bytes + sum(part.nbytes for part in parts.values()), done
        if first:
            self._announce()
        for name, part in parts.items():
            if name not in self._files:
                self._files[name] = open(self.folder / f"{name}.bin", "wb", buffering=1 << 20)  # noqa: SIM115
            flat = np.ascontiguousarray(part).view(np.uint8)
            self._files[name].write(flat.data)
            self.sums[name] = crc32(flat, self.sums.get(name, 0))
            self.lengths[name] = self.lengths.get(name, 0) + len(part)

    def needed(self) -> int | None:
        """Bytes for all rows of the source, guessed from those so far."""
        return self._bytes * self.source.rows // self._done if self._done else None

    def _announce(self) -> None:
        folder, needed, free = self.folder.parent, self.needed(), shutil.disk_usage(self.folder).free
        self.says({"event": "disk", "what": f"encoded rows of {self.source.split}", "folder": str(folder),
                   "bytes": needed, "free": free})
        if needed > free:
            raise DataError(f"cache {folder}: the encoded rows of data.{self.source.split} take about "
                            f"{spell_size(needed)}, and {spell_size(free)} are free; make room or choose a folder "
                            "elsewhere with data.cache")

    def __enter__(self) -> "_OnDisk":
        return self

    def __exit__(self, *error) -> None:
        with ExitStack() as closing:         # closes every one, whichever of them fails
            for file in self._files.values():
                closing.callback(file.close)


def _open(target: Path, written: bool = False) -> EncodedSplit | None:
    """A complete split, or None: not there, or damaged, and then to be made again. One that this process has just
    `written` is not read again to be held against its sums."""
    if (path := find_folder(target)) is None:
        return None
    try:
        meta = read_json(path / META, f"cache {path}")
        sums = read_json(path / SUMS, f"cache {path}")
        if crc32((path / META).read_bytes()) != sums[META]:
            return None
        record = _record(**meta["widths"])
        maps = {name: _map(path / f"{name}.bin", length, record if name == ROWS else LISTWISE[name.partition(".")[2]])
                for name, length in meta["lengths"].items()}
    except (OSError, ArtefactError, LookupError, TypeError):
        return None
    if any(array is None or not written and crc32(array.view(np.uint8)) != sums.get(name, 0)
           for name, array in maps.items()):
        return None
    split = _split(maps.pop, meta, path)
    hold(path, split)
    return split


def _map(path: Path, length: int, dtype: np.dtype | str) -> np.ndarray | None:
    if path.stat().st_size != length * np.dtype(dtype).itemsize:
        return None
    if not length:
        return np.empty(0, dtype)            # nothing to map
    # A plain array over the map: slices of np.memmap itself cost several times as much.
    return np.asarray(np.memmap(path, dtype, "r", shape=(length,)))


def _split(array: Callable[[str], np.ndarray], meta: Mapping[str, Any], folder: Path | None) -> EncodedSplit:
    rows = array(ROWS)
    lists = [List(array(f"list{k}.values"), rows["ends"][:, k], array(f"list{k}.weights") if weighted else None)
             for k, weighted in enumerate(meta["weighted"])]
    return EncodedSplit(**{name: rows[name][1:] for name in ROWWISE}, lists=lists, counts=meta["counts"],
                        coverage=meta["coverage"], contradictions=meta["contradictions"],
                        skipped=meta.get("skipped", {}), folder=folder)


def _widths(layout: Layout) -> dict[str, int]:
    return {"ids": len(layout.ids), "numbers": len(layout.numbers), "labels": len(layout.tasks),
            "lists": len(layout.lists)}


def _record(ids: int, numbers: int, labels: int, lists: int) -> np.dtype:
    """One row: its columns, and where each of its lists ends. They begin where those of the record before it end, just
    before its own columns; a record of zeros stands before the first row's."""
    return np.dtype([("ids", "<i4", (ids,)), ("numbers", "<f4", (numbers,)), ("labels", "<f4", (labels,)),
                     ("scenario", "<i4"), ("weight", "<f4"), ("user", "<i8"), ("ends", "<i8", (lists,))], align=True)


def _parts(encoded: Encoded, record: np.dtype, ends: list[int], first: bool) -> dict[str, np.ndarray]:
    """Arrays by name; lists go on from `ends`, where each one's values ended so far, and move it on."""
    rows = np.zeros(len(encoded) + first, record)
    own = rows[int(first):]
    for name in ROWWISE:
        own[name] = getattr(encoded, name)
    parts = {ROWS: rows}
    for k, (values, offsets, weights) in enumerate(encoded.lists):
        own["ends"][:, k] = offsets[1:] + ends[k]
        parts[f"list{k}.values"] = np.asarray(values, LISTWISE["values"])
        if weights is not None:
            parts[f"list{k}.weights"] = np.asarray(weights, LISTWISE["weights"])
        ends[k] += len(values)
    return parts


def _take(encoded: Encoded, rows: np.ndarray) -> Encoded:
    lists = []
    for values, offsets, weights in encoded.lists:
        places, taken = gather(offsets, rows)
        lists.append(List(values[places], taken, None if weights is None else weights[places]))
    return replace(encoded, lists=lists, **{name: getattr(encoded, name)[rows] for name in ROWWISE})


def _sum(a: Any, b: Any) -> Any:
    """Counts of two parts of a split: nested mappings of whole numbers."""
    if not isinstance(b, Mapping):
        return a + int(b)
    nothing = {key: {} if isinstance(b[key], Mapping) else 0 for key in b if key not in a}
    return {**a, **{key: _sum({**a, **nothing}[key], value) for key, value in b.items()}}


def _add_report(report: dict[str, Any], said: Mapping[str, Any]) -> None:
    for edge in said["edges"]:
        same = next((e for e in report["edges"] if (e["child"], e["parent"]) == (edge["child"], edge["parent"])), None)
        if same is None:
            report["edges"].append(dict(edge))
        else:
            same["rows"] += edge["rows"]
            same["positives"] += edge["positives"]
            same["first"] = same["first"] or edge["first"]
    for key in ("dropped", "repaired"):
        report[key] += said.get(key, 0)
    report["filled"] = _sum(report["filled"], said.get("filled", {}))


def _cover(coverage: dict[str, dict[str, int | None]], labels: np.ndarray, schema: Schema) -> None:
    for t, task in enumerate(schema.tasks):
        told = coverage[task.name]
        told["rows"] += len(labels)
        told["observed"] += int((~np.isnan(labels[:, t])).sum())
        if task.kind == "binary":
            told["positives"] += int((labels[:, t] == 1).sum())
