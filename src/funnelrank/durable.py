"""Folders that stand on disk whole or not at all, whenever the process or the machine stops.

    .demo.3f9a01c2.tmp   being written, and locked by its writer; swept away later if that was killed
    demo                 complete
    .demo.old            the one before, complete, for the instant between two renames

A folder is written under the first name, every file and then the folder is flushed to the disk, and a rename
puts it in place. Whoever looks for `demo` in the instant between the renames gets `.demo.old` back under its
own name.
"""

import contextlib
import errno
import os
import secrets
import shutil
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path

try:
    import fcntl
except ImportError:      # Windows: nothing is locked, so nothing left behind is swept away
    fcntl = None

FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk's quota is used up",
        errno.EFBIG: "a file may not grow so large here"}
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENOENT,
           errno.ENAMETOOLONG, errno.ELOOP, errno.EIO)
HEX = "[0-9a-f]" * 8     # narrow, so that no other program's folder is taken for ours


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """An empty folder that becomes `target` when the block ends, or is gone when it raises.

    A folder that is at `target` already stays untouched until the new one is on the disk. Files get mode
    0644, folders 0755. A link at `target` stays a link; what it points to is replaced. Raises OSError as
    writing does.
    """
    target = Path(os.path.realpath(target))
    target.parent.mkdir(parents=True, exist_ok=True)
    sweep(target.parent, escape(target.name))
    temporary, lock = _begin(target)
    try:
        yield temporary
        _flush(temporary)
        _put(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)     # not there any more unless something was raised
        _unlock(lock)


@contextmanager
def scratch_folder(target: Path) -> Iterator[Path]:
    """An empty folder under a temporary name of `target`'s, gone when the block ends; what killed processes left of
    others is swept away first. Raises OSError as writing does.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    sweep(target.parent, escape(target.name))
    temporary, lock = _begin(target)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        _unlock(lock)


def replace_file(target: Path, content: bytes) -> None:
    """Puts a file in place in one step, once its bytes are on the disk. What was there stays if that fails."""
    temporary = target.with_name(f".{target.name}.new")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    flush_names(target.parent)


def lock_file(descriptor: int) -> bool:
    """Whether this process now holds an open file alone, until it closes it or dies.

    True, too, where the file system has no locks: then nobody can hold it.
    """
    if fcntl is None:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def remove_folder(target: Path) -> None:
    """Removes a folder and the one before it, so that nobody ever finds it half removed."""
    target = Path(os.path.realpath(target))
    if not target.parent.is_dir():
        return
    sweep(target.parent, escape(target.name))
    with _alone(target.parent):
        for path in (_old(target), target):          # the one before first: it would be put back
            rubbish = _temporary(target)
            with contextlib.suppress(FileNotFoundError):
                os.rename(path, rubbish)
                shutil.rmtree(rubbish, ignore_errors=True)
        flush_names(target.parent)


def find_folder(target: Path) -> Path | None:
    """Where the folder `target` is complete: at its place, put back there first if need be. None if nowhere."""
    target = Path(os.path.realpath(target))
    if target.is_dir():
        return target
    with _alone(target.parent):          # a writer may be between its two renames
        _put_back(target)
        return next((path for path in (target, _old(target)) if path.is_dir()), None)


@contextmanager
def held_folder(target: Path) -> Iterator[Path | None]:
    """Where `find_folder` finds it, and no other process replaces it within the block."""
    target = Path(os.path.realpath(target))
    find_folder(target)
    with _alone(target.parent, among_readers=True):
        yield next((path for path in (target, _old(target)) if path.is_dir()), None)


def sweep(folder: Path, name: str, wait: bool = False) -> None:
    """Removes what killed writers of folders `name`, a glob pattern, left in `folder`.

    With `wait`, first waits for those still writing to end.
    """
    for path in folder.glob(f".{name}.{HEX}.tmp"):
        lock = _lock(path, wait)
        if lock is not None:
            shutil.rmtree(path, ignore_errors=True)
            _unlock(lock)


def hold(folder: Path, holder: object) -> None:
    """Marks a complete folder as used now, and by `holder` for as long as that object lives."""
    with contextlib.suppress(OSError):          # the disk may only be read
        os.utime(folder)
    if (lock := _lock(folder, wait=False, shared=True)) is not None:
        weakref.finalize(holder, _unlock, lock)


def discard_unused(folder: Path, name: str, keep: int) -> None:
    """Of the folders `name`, a glob pattern, in `folder`, removes all but the `keep` that were used last.

    One that a running process holds stays, however old. Where the file system has no locks, nothing is removed.
    """
    def used(path: Path) -> float:
        try:
            return path.stat().st_mtime
        except OSError:                         # another process removed it
            return 0.0

    for path in sorted(folder.glob(name), key=used, reverse=True)[keep:]:
        if (lock := _lock(path, wait=False)) is None:
            continue
        rubbish = _temporary(path)              # renamed first, so that nobody opens it half removed
        with contextlib.suppress(OSError):
            os.rename(path, rubbish)
            shutil.rmtree(rubbish, ignore_errors=True)
        _unlock(lock)


def write_failure(error: OSError, folder: Path, needed: int | None = None) -> str | None:
    """What a person can do about a failed write, as the end of a sentence, or None if it is a fault of ours.

    `needed` is how many bytes were to be written in all, where that is known.
    """
    if error.errno in FULL:
        free = shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.exists())).free
        wanted = f"about {spell_size(needed)} needed, " if needed else ""
        return f"{FULL[error.errno]} ({wanted}{spell_size(free)} free); make room or choose a folder elsewhere"
    if error.errno in REFUSED:
        return f"cannot be written ({os.strerror(error.errno)}); choose a folder that can"
    return None


def spell_size(size: float) -> str:
    """1_234_567 bytes -> '1.2 MB'."""
    for unit in ("bytes", "KB", "MB", "GB"):
        if size < 1000:
            break
        size, unit = size / 1000, {"bytes": "KB", "KB": "MB", "MB": "GB", "GB": "TB"}[unit]
    return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"


def _old(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


def _temporary(target: Path) -> Path:
    return target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")


def _begin(target: Path) -> tuple[Path, int | None]:
    """A fresh temporary folder, and the lock that says its writer lives: None where locks are not to be had."""
    for last in (False, False, True):
        path = _temporary(target)
        path.mkdir(mode=0o755)
        lock = _lock(path, wait=False)
        if (lock is not None or last) and path.exists():
            return path, lock
        _unlock(lock)            # another process took it for one left behind, before it was locked
        shutil.rmtree(path, ignore_errors=True)
    raise OSError(errno.EBUSY, "another process keeps removing what is written", str(target))


def _lock(path: Path, wait: bool, shared: bool = False) -> int | None:
    if fcntl is None:
        return None
    try:
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except OSError:              # its writer lives, or the file system has no locks
        os.close(lock)
        return None
    return lock


def _unlock(lock: int | None) -> None:
    if lock is not None:
        fcntl.flock(lock, fcntl.LOCK_UN)     # closing is not enough if a forked child holds a copy
        os.close(lock)


def _flush(folder: Path) -> None:
    for place, _, names in os.walk(folder, topdown=False):
        for name in names:
            path = Path(place, name)
            path.chmod(0o644)
            with open(path, "r+b") as file:
                os.fsync(file.fileno())
        os.chmod(place, 0o755)
        flush_names(Path(place))


def flush_names(folder: Path) -> None:
    if os.name == "nt":          # folders cannot be opened there
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _put(temporary: Path, target: Path) -> None:
    """Renames `temporary` to `target`. At every moment one of `target` and its `.old` is complete."""
    old = _old(target)
    with _alone(target.parent):
        _put_back(target)
        if target.exists():
            _discard_old(target)
            os.rename(target, old)
        os.rename(temporary, target)
        flush_names(target.parent)
        _discard_old(target)


def _put_back(target: Path) -> None:
    """Gives the one before its name back, if a writer was killed between its two renames."""
    if not target.exists():
        with contextlib.suppress(OSError):      # there is none, or the disk may only be read
            os.rename(_old(target), target)


@contextmanager
def _alone(parent: Path, among_readers: bool = False) -> Iterator[None]:
    """No other process renames in `parent` meanwhile, where the file system has locks."""
    lock = _lock(parent, wait=True, shared=among_readers)
    try:
        yield
    finally:
        _unlock(lock)


def _discard_old(target: Path) -> None:
    """Removes the one before under a temporary name, so that it is never seen half removed under its own."""
    rubbish = _temporary(target)
    try:
        os.rename(_old(target), rubbish)
    except FileNotFoundError:
        return
    shutil.rmtree(rubbish, ignore_errors=True)
