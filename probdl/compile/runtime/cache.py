"""Compiled code on disk, by what it was compiled from.

An entry is a shared library followed by a digest of itself, so that one that was cut short is
seen before it is loaded. It is written under another name, loaded, and then renamed: two processes
that compile the same code at once do no harm, nor does one that is killed, and what does not load
is not kept. Old entries go when all together grow too large.

Entries are loaded as code, so nobody else may be able to write them. A folder that cannot be used,
for this or another reason, is replaced by a private one, which goes with the process.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import hashlib
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from platformdirs import user_cache_path

from probdl.findings import Finding

__all__ = ["clear", "findings", "folder", "get", "size"]

T = TypeVar("T")

LIMIT = 512 * 2**20  # bytes in all; an entry takes about 30 kB
_DIGEST = 32
_ABANDONED = 3600.0  # seconds after which a file that is being written is taken to be left over
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH

_PASSING = {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.EINTR}

_failed: dict[Path, Exception] = {}  # why nothing could be written to a folder, or loaded from it
_private: dict[int, Path] = {}  # by process: a fork has its own


def folder() -> Path:
    """Return where compiled code is kept; ``PROBDL_CACHE`` in the environment overrides it."""
    override = os.environ.get("PROBDL_CACHE")
    return Path(override).absolute() if override else user_cache_path("probdl") / "compiled"


def get(key: str, make: Callable[[Path], None], load: Callable[[Path], T]) -> T:
    """Return what an entry holds; where there is none, or it does not load, have it made.

    Args:
        key: names the entry, and tells all that it depends on.
        make: writes the library to the path that it is given.
        load: loads the library at a path.

    Raises:
        OSError: what was made loads from no folder; the message says why.
    """
    place = folder()
    if getattr(_failed.get(place), "errno", None) in _PASSING:
        del _failed[place]  # a full disk may have space again
    usable = not _problem(place)
    entry = (place if usable else _private_folder()) / f"{key}.so"
    if _is_sound(entry):
        with contextlib.suppress(OSError, AttributeError):
            found = load(entry)
            os.utime(entry)  # the oldest go first
            return found
        _remove(entry)
    content = _made(make)
    if usable:
        try:
            found = _stored(entry, content, load)
        except (OSError, AttributeError) as error:
            _failed[place] = error
        else:
            _shrink(keep=entry)
            return found
    try:
        return _stored(_private_folder() / f"{key}.so", content, load)
    except (OSError, AttributeError) as error:
        # What was made is to blame, and not the folder.
        why = str(_failed.pop(place, error))
        raise OSError(why if why == str(error) else f"{why}; {error}") from None


def findings() -> list[Finding]:
    """Report that a private folder serves in the place of the cache folder, and why."""
    why = _problem(folder())
    if not why:
        return []
    return [
        Finding(
            "warning",
            "cache",
            f"the cache folder {folder()} cannot be used: {why}. A private temporary folder "
            "serves, so every process compiles its models again.",
            "Set PROBDL_CACHE to a folder that only you can write, on a disk that programs may be "
            "run from.",
        )
    ]


def size() -> tuple[int, int]:
    """Return how many entries there are, and their bytes."""
    entries = _entries("*.so")
    return len(entries), sum(_bytes(p) for p in entries)


def clear() -> int:
    """Remove all compiled code; return how many entries there were."""
    # What another process writes at this moment is left to it.
    old = [path for path in _entries("*.tmp") if time.time() - _age(path) > _ABANDONED]
    entries = [*_entries("*.so"), *old]
    for path in entries:
        _remove(path)
    return len(entries)


# -- folders ------------------------------------------------------------------------------------


def _problem(place: Path) -> str:
    """Say why a folder is not used; '' if it is."""
    return str(_failed.get(place, "")) or _unusable(place)


def _private_folder() -> Path:
    """Return a folder that only this user can read, and that goes with the process."""
    process = os.getpid()
    if process not in _private:
        place = _private[process] = Path(tempfile.mkdtemp(prefix="probdl-"))

        def remove() -> None:
            if os.getpid() == process:  # not in a fork, which inherits this
                shutil.rmtree(place, ignore_errors=True)

        atexit.register(remove)
    return _private[process]


def _unusable(place: Path) -> str:
    """Say why code cannot be kept in a folder, which is made if it is not there; '' if it can."""
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = place.stat()
        why = _reachable(place)
    except (FileExistsError, NotADirectoryError):
        return "it is not a folder, or a part of its path is not"
    except OSError as error:
        return error.strerror or str(error)
    if not stat.S_ISDIR(status.st_mode):
        return "it is not a folder"
    if why:
        return why
    if why := _shared(status):
        if os.environ.get("PROBDL_CACHE") or status.st_uid != os.getuid():
            return why
        # Our own folder, of a process that let its group write: each entry is looked at anyway.
        with contextlib.suppress(OSError):
            place.chmod(0o700)
    return ""


def _reachable(place: Path) -> str:
    """Say how another user can put something else in a folder's place; '' if nobody can."""
    if not hasattr(os, "getuid"):  # Windows
        return ""
    for parent in place.resolve().parents:
        status = parent.stat()
        open_to_all = status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX
        if open_to_all or status.st_uid not in (0, os.getuid()):
            return f"other users can replace it, since they can write to {parent}"
    return ""


def _shared(status: os.stat_result) -> str:
    """Say how another user can write what has this status; '' if nobody can."""
    if not hasattr(os, "getuid"):  # Windows
        return ""
    if status.st_uid != os.getuid():
        return "another user owns it"
    return "other users can write to it" if status.st_mode & _OTHERS_WRITE else ""


# -- entries ------------------------------------------------------------------------------------


def _is_sound(path: Path) -> bool:
    """Return whether an entry is a whole file that only this user can write."""
    try:  # a pipe would wait for a writer, and a link lead elsewhere
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | _NOFOLLOW)
    except OSError:
        return False
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode) or _shared(status) or status.st_size > LIMIT:
            return False
        with open(handle, "rb", closefd=False) as file:
            content = file.read()
    except OSError:
        return False
    finally:
        os.close(handle)
    body, digest = content[:-_DIGEST], content[-_DIGEST:]
    return hashlib.sha256(body).digest() == digest


_NOFOLLOW: int = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)


def _made(make: Callable[[Path], None]) -> bytes:
    """Have a library made, and return its bytes."""
    with tempfile.TemporaryDirectory(prefix="probdl-") as scratch:
        path = Path(scratch) / "made.so"
        make(path)
        return path.read_bytes()


def _stored(path: Path, content: bytes, load: Callable[[Path], T]) -> T:
    """Write an entry under another name, load it from there, and rename it."""
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content + hashlib.sha256(content).digest())
        temporary.chmod(0o700)
        found = load(temporary)
        temporary.replace(path)
    finally:
        _remove(temporary)
    return found


def _entries(pattern: str) -> list[Path]:
    try:
        return list(folder().glob(pattern))
    except OSError:
        return []


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):  # it is gone, or no file
        path.unlink(missing_ok=True)


def _bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # removed by another process
        return 0


def _age(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _shrink(keep: Path) -> None:
    total = 0
    for path in sorted(_entries("*.so"), key=_age, reverse=True):
        total += _bytes(path)
        if total > LIMIT and path != keep:
            _remove(path)
