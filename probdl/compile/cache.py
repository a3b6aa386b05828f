"""Compiled code on disk, by what it was compiled from.

An entry is a shared library followed by a digest of itself, so that one that was cut short is
seen before it is loaded. It is written under another name and then renamed: two processes that
compile the same code at once do no harm, nor does one that is killed. Old entries go when all
together grow too large.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from platformdirs import user_cache_path

__all__ = ["clear", "folder", "get", "size"]

LIMIT = 512 * 2**20  # bytes in all; an entry takes about 30 kB
_DIGEST = 32


def folder() -> Path:
    """Return where compiled code is kept; ``PROBDL_CACHE`` in the environment overrides it."""
    override = os.environ.get("PROBDL_CACHE")
    return Path(override) if override else user_cache_path("probdl") / "compiled"


def get(key: str, make: Callable[[Path], None]) -> Path:
    """Return the entry of a key; where there is none, or it is damaged, have it made.

    Args:
        key: names the entry, and tells all that it depends on.
        make: writes the library to the path that it is given.
    """
    path = folder() / f"{key}.so"
    if _is_whole(path):
        with contextlib.suppress(OSError):
            os.utime(path)  # the oldest go first
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        make(temporary)
        content = temporary.read_bytes()
        temporary.write_bytes(content + hashlib.sha256(content).digest())
        temporary.chmod(0o755)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _shrink(keep=path)
    return path


def size() -> tuple[int, int]:
    """Return how many entries there are, and their bytes."""
    entries = list(folder().glob("*.so"))
    return len(entries), sum(_bytes(p) for p in entries)


def clear() -> int:
    """Remove all compiled code; return how many entries there were."""
    entries = [*folder().glob("*.so"), *folder().glob("*.tmp")]
    for path in entries:
        path.unlink(missing_ok=True)
    return len(entries)


def _is_whole(path: Path) -> bool:
    try:
        content = path.read_bytes()
    except OSError:
        return False
    body, digest = content[:-_DIGEST], content[-_DIGEST:]
    return hashlib.sha256(body).digest() == digest


def _bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # removed by another process
        return 0


def _shrink(keep: Path) -> None:
    entries = sorted(
        ((p.stat().st_mtime, _bytes(p), p) for p in folder().glob("*.so") if p.exists()),
        reverse=True,
    )
    total = 0
    for _, length, path in entries:
        total += length
        if total > LIMIT and path != keep:
            path.unlink(missing_ok=True)
