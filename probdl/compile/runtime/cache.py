"""The cache of compiled code on disk.

An entry is a shared library followed by its digest, so that a truncated one is detected before it
is loaded. An entry is written under a temporary name, loaded, and then renamed. Therefore several
processes may compile the same code at once, a killed process leaves no damaged entry, and a
library that does not load is not kept. When the cache grows too large, the oldest entries are
removed.

Entries are loaded as code, so other users must not be able to write them. A folder that cannot be
used, for this or another reason, is replaced by a private one that is removed with the process.
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

MAX_BYTES = 512 * 2**20  # of all entries; one takes about 30 kB
_DIGEST_BYTES = 32
_ABANDONED_AFTER = 3600.0  # seconds since a temporary file was written
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH

_TRANSIENT_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.EINTR}

_failed: dict[Path, Exception] = {}  # by folder that code cannot be written to or loaded from
_private: dict[int, Path] = {}  # by process id: a forked process has its own


def folder() -> Path:
    """Return the cache folder: ``$PROBDL_CACHE``, or the user's cache folder of the system."""
    override = os.environ.get("PROBDL_CACHE")
    return Path(override).absolute() if override else user_cache_path("probdl") / "compiled"


def get(key: str, make: Callable[[Path], None], load: Callable[[Path], T]) -> T:
    """Load an entry of the cache; compile it first if there is none, or if it does not load.

    Args:
        key: the name of the entry, a hash of all that it depends on.
        make: a function that writes the library to a path.
        load: a function that loads the library at a path.

    Raises:
        OSError: the new library cannot be loaded; the message gives the reason.
    """
    place = folder()
    if getattr(_failed.get(place), "errno", None) in _TRANSIENT_ERRORS:
        del _failed[place]  # for example, a full disk may have space again
    usable = not _problem(place)
    entry = (place if usable else _private_folder()) / f"{key}.so"
    if _is_sound(entry):
        with contextlib.suppress(OSError, AttributeError):
            found = load(entry)
            os.utime(entry)  # mark as recently used
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
        # The library is at fault, and not the folder.
        why = str(_failed.pop(place, error))
        raise OSError(why if why == str(error) else f"{why}; {error}") from None


def findings() -> list[Finding]:
    """Report if a private folder is used instead of the cache folder, and why."""
    why = _problem(folder())
    if not why:
        return []
    return [
        Finding(
            "warning",
            "cache",
            f"The cache folder {folder()} cannot be used: {why}. A private temporary folder is "
            "used instead, so every process compiles its models again.",
            "Set PROBDL_CACHE to a folder that only you can write to, on a disk that allows "
            "running programs.",
        )
    ]


def size() -> tuple[int, int]:
    """Return the number of entries, and their total size in bytes."""
    entries = _entries("*.so")
    return len(entries), sum(_bytes(p) for p in entries)


def clear() -> int:
    """Remove all compiled code, and return the number of removed files."""
    # Keep the temporary files that another process is writing.
    old = [path for path in _entries("*.tmp") if time.time() - _age(path) > _ABANDONED_AFTER]
    entries = [*_entries("*.so"), *old]
    for path in entries:
        _remove(path)
    return len(entries)


# -- folders ------------------------------------------------------------------------------------


def _problem(place: Path) -> str:
    """Return the reason why a folder is not used, or '' if it is."""
    return str(_failed.get(place, "")) or _unusable(place)


def _private_folder() -> Path:
    """Return a folder that only this user can read, and that is removed with the process."""
    process = os.getpid()
    if process not in _private:
        place = _private[process] = Path(tempfile.mkdtemp(prefix="probdl-"))

        def remove() -> None:
            if os.getpid() == process:  # not in a forked process, which inherits this
                shutil.rmtree(place, ignore_errors=True)

        atexit.register(remove)
    return _private[process]


def _unusable(place: Path) -> str:
    """Create a folder if necessary; return the reason why it cannot hold code, or '' if valid."""
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = place.stat()
        why = _replaceable(place)
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
        # Our own folder, created with a lax umask. Each entry is checked anyway.
        with contextlib.suppress(OSError):
            place.chmod(0o700)
    return ""


def _replaceable(place: Path) -> str:
    """Return how another user can replace a folder, or '' if nobody can."""
    if not hasattr(os, "getuid"):  # Windows
        return ""
    for parent in place.resolve().parents:
        status = parent.stat()
        open_to_all = status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX
        if open_to_all or status.st_uid not in (0, os.getuid()):
            return f"other users can replace it, since they can write to {parent}"
    return ""


def _shared(status: os.stat_result) -> str:
    """Return how another user can write to a file with this status, or '' if nobody can."""
    if not hasattr(os, "getuid"):  # Windows
        return ""
    if status.st_uid != os.getuid():
        return "another user owns it"
    return "other users can write to it" if status.st_mode & _OTHERS_WRITE else ""


# -- entries ------------------------------------------------------------------------------------


def _is_sound(path: Path) -> bool:
    """Return whether an entry is a complete file that only this user can write."""
    try:  # do not wait at a pipe, and do not follow a link
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | _NOFOLLOW)
    except OSError:
        return False
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode) or _shared(status) or status.st_size > MAX_BYTES:
            return False
        with open(handle, "rb", closefd=False) as file:
            content = file.read()
    except OSError:
        return False
    finally:
        os.close(handle)
    body, digest = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
    return hashlib.sha256(body).digest() == digest


_NOFOLLOW: int = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)


def _made(make: Callable[[Path], None]) -> bytes:
    """Call ``make``, and return the bytes of the library."""
    with tempfile.TemporaryDirectory(prefix="probdl-") as scratch:
        path = Path(scratch) / "made.so"
        make(path)
        return path.read_bytes()


def _stored(path: Path, content: bytes, load: Callable[[Path], T]) -> T:
    """Write an entry under a temporary name, load it, and rename it."""
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
    with contextlib.suppress(OSError):  # already removed, or not a file
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
        if total > MAX_BYTES and path != keep:
            _remove(path)
