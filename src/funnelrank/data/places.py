"""Where rows lie: paths, globs, folders and URLs become files, each with its format and what its folders say.

A relative path starts at data.dir. A folder or a glob gives the data files below it in the order of their names,
without those whose name begins with a dot or an underscore; `key=value` folders are columns of their files.
"""

import os
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import fsspec
import pyarrow as pa
import pyarrow.fs as pafs

from funnelrank.data.kinds import reading, sentence
from funnelrank.errors import ConfigError, DataError, did_you_mean, listing
from funnelrank.settings import Data

SUFFIXES = {"parquet": (".parquet", ".parq", ".pq"), "csv": (".csv", ".tsv"),
            "arrow": (".arrow", ".arrows", ".feather", ".ipc")}
COMPRESSION = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}


@dataclass
class Place:
    """One file: where it is, what it is called in sentences, and what its folders say about its rows."""

    fs: Any
    path: str
    name: str
    format: str
    partition: dict[str, Any] = field(default_factory=dict)
    opened: dict[str, Any] = field(default_factory=dict)      # its fingerprint when it was opened

    @property
    def local(self) -> bool:
        return _is_local(self.fs)

    def refuse_empty(self) -> None:
        if self.fs.size(self.path) == 0:
            raise DataError(f"{self.name}: is empty (0 bytes)")

    def open(self) -> pa.NativeFile:
        if self.local:
            return pa.OSFile(self.path, "rb")
        return pafs.PyFileSystem(pafs.FSSpecHandler(self.fs)).open_input_file(self.path)

    def fingerprint(self) -> dict[str, Any]:
        if self.local:
            stat = os.stat(self.path)
            return {"path": self.path, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
        info = self.fs.info(self.path)
        keys = ("mtime", "LastModified", "last_modified", "updated", "modified", "created", "ETag", "etag")
        return {"path": self.fs.unstrip_protocol(self.path), "size": info.get("size"),
                "mtime_ns": str(next((info[k] for k in keys if info.get(k) is not None), None))}


def _is_local(fs: Any) -> bool:
    return "file" in ((fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol)


def find_files(paths: list[str], data: Data, where: str) -> list[Place]:
    """Every file that the paths name, each once, folders and globs in the order of their names. `where` begins the
    sentence of an error, as data.train."""
    places: dict[str, Place] = {}
    for written in paths:
        with reading(f"{where}: '{written}'"):
            found = _expand(written, data, where)
        for place in found:
            if place.path in places:
                raise DataError(f"{where}: {place.name} is named twice; its rows would count double")
            places[place.path] = place
    return list(places.values())


def _expand(written: str, data: Data, where: str) -> list[Place]:
    if not written.strip():
        raise ConfigError(f"{where}: '{written}' is no path; name a file, a folder or a glob")
    home, written = data.dir or os.getcwd(), os.path.expanduser(written)
    full = written if "://" in written or os.path.isabs(written) else f"{home.rstrip('/')}/{written}"
    full = full if "://" in full else os.path.abspath(full)
    try:
        fs, path = fsspec.core.url_to_fs(full)
        root = fsspec.core.url_to_fs(home if "://" in home else os.path.abspath(home))[1]
    except (ImportError, ValueError) as e:
        raise ConfigError(f"{where}: '{written}' cannot be opened: {sentence(e)}") from e
    if fs.isfile(path):
        return [_place(fs, path, root, data.format, where)]
    if fs.isdir(path):
        hits = [path]
    elif not any(c in written for c in "*?["):
        if _is_local(fs) and os.path.lexists(path):
            raise DataError(f"{where}: '{written}' is no plain file, or a link to nothing; name a file")
        raise DataError(f"{where}: no file or folder '{_short(written)}'{_siblings(fs, path)}")
    elif not (hits := sorted(fs.glob(path))):
        raise DataError(f"{where}: no file matches '{written}'{_siblings(fs, path)}")
    inside = sorted({f for hit in hits for f in (fs.find(hit) if fs.isdir(hit) else [hit])
                     if not _hidden(f[len(hit):] or os.path.basename(f))})
    formats = {f: _format(f) for f in inside}
    kept = [f for f in inside if formats[f] and formats[f] == (data.format or formats[f])]
    if data.format and not kept:
        kept = [f for f in inside if not formats[f]]
    if not inside:
        raise DataError(f"{where}: '{written}' holds no files")
    if not kept:
        raise DataError(f"{where}: '{written}' holds no data files"
                        + (f" of format {data.format}" if data.format else "")
                        + f"; it holds {listing(os.path.basename(f) for f in inside)}")
    if len(kinds := sorted({formats[f] for f in kept if formats[f]})) > 1:
        raise DataError(f"{where}: '{written}' holds {listing(kinds)} files; say which with data.format")
    return [_place(fs, f, root, data.format, where) for f in kept]


def _place(fs: Any, path: str, root: str, format: str | None, where: str) -> Place:
    root = root.rstrip("/") + "/"
    name = path[len(root):] if path.startswith(root) else path if _is_local(fs) else fs.unstrip_protocol(path)
    if (format := format or _format(path)) is None:
        raise DataError(f"{where}: {name} has no suffix that tells its format; rename it, or set "
                        "data.format to parquet, csv or arrow")
    pairs = [p.partition("=") for p in name.split("/")[:-1] if "=" in p]
    partition = {unquote(k): None if v == "__HIVE_DEFAULT_PARTITION__" else unquote(v) for k, _, v in pairs if k}
    return Place(fs, path, name, format, partition)


def split_compression(path: str) -> tuple[str, str | None]:
    stem, suffix = os.path.splitext(path.lower())
    return (stem, COMPRESSION[suffix]) if suffix in COMPRESSION else (path.lower(), None)


def _format(path: str) -> str | None:
    stem, compression = split_compression(path)
    found = next((f for f, suffixes in SUFFIXES.items() if stem.endswith(suffixes)), None)
    return found if found == "csv" or not compression else None


def _hidden(path: str) -> bool:
    """Spark's _SUCCESS and _metadata, and everything under a name that begins with a dot."""
    return any(p.startswith((".", "_")) and "=" not in p for p in path.split("/"))


def _short(path: str) -> str:
    return path if len(path) <= 200 else f"{path[:100]}...{path[-100:]}"


def _siblings(fs: Any, path: str) -> str:
    parent, _, last = path.rstrip("/").rpartition("/")
    if not fs.isdir(parent):
        return f"; there is no folder '{parent}'"
    names = [os.path.basename(p.rstrip("/")) for p in fs.ls(parent, detail=False)]
    return did_you_mean(last, names) or f"; '{parent}' holds {listing(sorted(names), 5)}"
