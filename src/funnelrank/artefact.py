"""The artefact: a folder with everything that scoring needs, verified before any of it is used.

config, schema, encoder, model.safetensors, metrics, and a manifest with the format version and the hash of
every file. What it means for a folder to be sealed, and how one replaces another, is said in sealed.py and
durable.py.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from funnelrank.errors import ArtefactError
from funnelrank.sealed import Content, open_sealed, write_sealed
from funnelrank.sealed import Sealed as Artefact

__all__ = ["SERVED", "Artefact", "artefact_folder", "open_artefact", "understood", "write_artefact"]


SERVED = "served artefact"      # what a manifest calls a folder that `export --to serve` wrote


def write_artefact(folder: Path, files: Mapping[str, Content], about: Mapping[str, Any]) -> None:
    """Writes an artefact, complete or not at all; one that is there is replaced when the new one is on disk.

    `files` maps a name to bytes, or to a function that writes a file or a folder of files at the path it is
    given: `{"config.yaml": b"...", "encoder": encoder.save}`. `about` is what JSON can hold.

    Raises ArtefactError if `folder` holds anything but an artefact, and TrainingError if the disk is full or
    cannot be written; what was at `folder` is then untouched.
    """
    write_sealed(Path(folder), "artefact", files, about)


def open_artefact(folder: Path) -> Artefact:
    """The folder's path, manifest and `about`, after every name, size and hash was verified.

    Raises ArtefactError naming the file and what is wrong with it: missing, cut off, changed, added later, a
    link, or a manifest of another format. If a writer was killed while it replaced the artefact, the one
    before is opened.
    """
    return open_sealed(Path(folder), "artefact")


def artefact_folder(folder: Path) -> Path:
    """The artefact of a run's folder, or the folder itself. Raises ArtefactError for a run that has not finished."""
    if not (folder / "manifest.json").exists():
        if (folder / "artefact").is_dir():
            return folder / "artefact"
        if (folder / "events.jsonl").exists():
            raise ArtefactError(f"{folder}: this run has not finished, so there is no artefact; train it again")
    return folder


@contextmanager
def understood(folder: Path) -> Iterator[None]:
    """Around the reading of verified files: seals show what changed later, not who wrote it.

    Raises ArtefactError where files that match their seals are not what this version writes.
    """
    try:
        yield
    except (ValueError, TypeError, LookupError, AttributeError, NotImplementedError, OSError) as error:
        said = str(error).split("\n")[0][:200]
        raise ArtefactError(f"artefact {folder}: its files match their seals, but are not what this version of "
                            f"funnelrank writes ({type(error).__name__}: {said}); train again, or use the version "
                            "that wrote it") from error
