"""Sealed folders: a manifest proves that every file is the one that was written. Artefacts and checkpoints
are such.

    manifest.json   {"format": 1, "kind": "artefact", "about": {...},
                     "files": {"model.safetensors": {"size": 1234, "sha256": "9f86..."}, ...}}

Nothing inside is used before all of it is verified, and nothing is read by pickle: JSON and safetensors only.
A file that the manifest does not name is an error: it was not there when the folder was sealed.
"""

import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from funnelrank.durable import held_folder, new_folder, write_failure
from funnelrank.errors import ArtefactError, TrainingError, did_you_mean, listing

FORMAT = 1
MANIFEST = "manifest.json"
LARGEST_JSON = 256_000_000     # bytes
LONGEST_INT = 100              # digits; the state of a random generator has 39

Content = bytes | Callable[[Path], None]


class Sealed(NamedTuple):
    """A folder whose every file was verified."""

    path: Path
    manifest: dict[str, Any]
    about: dict[str, Any]


def write_sealed(folder: Path, kind: str, files: Mapping[str, Content], about: Mapping[str, Any]) -> None:
    """Writes a sealed folder, complete or not at all; one that is there is replaced when the new one is on disk.

    `files` maps a name, which may hold '/', to bytes, or to a function that writes a file or a folder of
    files at the path it is given. `about` is what JSON can hold.

    Raises ArtefactError if `folder` holds anything that is not of a sealed folder of this kind, and
    TrainingError if the disk is full or cannot be written; what was at `folder` is then untouched.
    """
    refuse_strangers(folder, kind)
    try:
        with new_folder(folder) as new:
            for name, content in files.items():
                assert inside(name) and name != MANIFEST, name
                path = new / name
                path.parent.mkdir(parents=True, exist_ok=True)
                if callable(content):
                    content(path)
                else:
                    path.write_bytes(content)
            sealed = {name: _seal(new / name) for name in _names(new, f"{kind} {folder}")}
            manifest = {"format": FORMAT, "kind": kind, "about": about, "files": sealed}
            (new / MANIFEST).write_bytes(to_json(manifest))
    except OSError as error:
        said = write_failure(error, folder)
        if said is None:
            raise
        raise TrainingError(f"{kind} {folder}: {said}") from error


def open_sealed(folder: Path, kind: str) -> Sealed:
    """Verifies every name, size and hash of a sealed folder, and only then hands it out.

    Raises ArtefactError naming the file and what is wrong with it.
    """
    where = f"{kind} {folder}"
    with held_folder(folder) as path:
        if path is not None:
            try:
                manifest = _manifest(path, kind, where)
                _verify(path, manifest["files"], where)
            except OSError as error:
                raise ArtefactError(f"{where}: cannot be read ({error.strerror})") from error
            return Sealed(path, manifest, manifest["about"])
    near = did_you_mean(folder.name, (p.name for p in folder.parent.iterdir() if p.is_dir())
                        if folder.parent.is_dir() else ())
    raise ArtefactError(f"{where}: there is no such folder{near}")


def kind_of(folder: Path) -> str | None:
    """What a folder's manifest says that it is; None where there is no manifest to read. Nothing is verified."""
    with held_folder(folder) as path:
        if path is None or not _is_file(path / MANIFEST):
            return None
        said = read_json(path / MANIFEST, str(folder))
        return said.get("kind") if isinstance(said, dict) else None


def to_json(value: Any) -> bytes:
    """ValueError on NaN and infinities, TypeError on what JSON has no word for."""
    return json.dumps(value, allow_nan=False, indent=1, ensure_ascii=False).encode()


def read_json(path: Path, where: str) -> Any:
    """What a JSON file holds. Raises ArtefactError on anything that is not plain, finite, moderate JSON."""
    def integer(text: str) -> int:
        if len(text) > LONGEST_INT:
            raise ValueError(f"a whole number of {len(text)} digits")
        return int(text)

    def number(text: str) -> float:
        if not math.isfinite(value := float(text)):
            raise ValueError(f"{text[:20]} is no finite number")
        return value

    def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(found := dict(pairs)) < len(pairs):
            raise ValueError("a key stands twice in one object")
        return found

    try:
        if path.stat().st_size > LARGEST_JSON:
            raise ValueError(f"larger than {LARGEST_JSON} bytes")
        return json.loads(path.read_bytes().decode(), parse_int=integer, parse_float=number,
                          parse_constant=number, object_pairs_hook=distinct)
    except (ValueError, RecursionError) as error:
        raise ArtefactError(f"{where}: '{path.name}' is not readable as JSON: {error}") from None


def _manifest(path: Path, kind: str, where: str) -> dict[str, Any]:
    """A manifest that is what it must be, down to every name, size and hash in it."""
    if not _is_file(path / MANIFEST):
        raise ArtefactError(f"{where}: has no {MANIFEST}, so it is no {kind}, or its copy is not complete")
    manifest = read_json(path / MANIFEST, where)
    form = manifest.get("format") if isinstance(manifest, dict) else None
    if type(form) is not int:
        raise ArtefactError(f"{where}: {MANIFEST} does not say which format it is; it was changed")
    if form != FORMAT:
        raise ArtefactError(f"{where}: is of format {form}; this version of funnelrank reads format {FORMAT}")
    if manifest.get("kind") != kind:
        raise ArtefactError(f"{where}: holds kind {manifest.get('kind')!r}, no {kind}")
    if not isinstance(manifest.get("about"), dict) or not isinstance(manifest.get("files"), dict):
        raise ArtefactError(f"{where}: {MANIFEST} needs 'about' and 'files'; it was changed")
    for name, said in manifest["files"].items():
        if not inside(name) or name == MANIFEST:
            raise ArtefactError(f"{where}: {MANIFEST} names {name[:200]!r}, which is no file inside the folder")
        if (not isinstance(said, dict) or type(said.get("size")) is not int or said["size"] < 0
                or not re.fullmatch("[0-9a-f]{64}", str(said.get("sha256")))):
            raise ArtefactError(f"{where}: {MANIFEST} has no size and sha256 of {name[:200]!r}; it was changed")
    return manifest


def _verify(path: Path, sealed: Mapping[str, Any], where: str) -> None:
    there = set(_names(path, where))
    for name in sorted(set(sealed) | there):
        if name not in there:
            raise ArtefactError(f"{where}: file {name!r} is missing; the copy is not complete")
        if name not in sealed:
            raise ArtefactError(f"{where}: file {name!r} is not in {MANIFEST}; it was added later, move it "
                                "elsewhere")
        said, size = sealed[name], (path / name).stat().st_size
        if size != said["size"]:
            raise ArtefactError(f"{where}: file {name!r} has {size} bytes, {MANIFEST} says {said['size']}; it "
                                "was cut off or changed")
        sha256 = _seal(path / name)["sha256"]
        if sha256 != said["sha256"]:
            raise ArtefactError(f"{where}: file {name!r} has hash {sha256[:12]}..., {MANIFEST} says "
                                f"{said['sha256'][:12]}...; it changed after it was written")


def inside(name: Any) -> bool:
    """Whether a name is one of a file inside the folder: 'vocab/item.arrow', in one way of writing only."""
    parts = name.split("/") if isinstance(name, str) else [""]
    return "" not in parts and name.isprintable() and not set("\\:") & set(name) and not {"", ".", ".."} & set(parts)


def _names(folder: Path, where: str) -> list[str]:
    """Every file below a folder except the manifest, as 'a/b'. Links and the like are refused, not followed."""
    names = []
    for place, folders, files in os.walk(folder):
        for name in folders + files:
            path = Path(place, name)
            if not _is_file(path) and not (name in folders and not path.is_symlink()):
                raise ArtefactError(f"{where}: {str(path.relative_to(folder))!r} is a link or no plain file")
        names += [Path(place, name).relative_to(folder).as_posix() for name in files]
    return sorted(set(names) - {MANIFEST})


def _is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def _seal(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return {"size": os.fstat(file.fileno()).st_size, "sha256": sha256}


def refuse_strangers(folder: Path, kind: str) -> None:
    """Replacing a folder removes it, so it must hold nothing but what we once wrote."""
    where = f"{kind} {folder}"
    if folder.is_file():
        raise ArtefactError(f"{where}: is a file; choose another place")
    with held_folder(folder) as path:
        if path is None or not any(path.iterdir()):
            return
        try:
            known = set(_manifest(path, kind, where)["files"])
        except ArtefactError as error:
            raise ArtefactError(f"{where}: is in the way and not replaced, because it may be something else "
                                f"({error}); move it or choose another place") from None
        strangers = sorted(set(_names(path, where)) - known)
        if strangers:
            raise ArtefactError(f"{where}: also holds {listing(strangers)}, which would be lost; move it elsewhere, "
                                f"or choose another place for the new {kind}")
