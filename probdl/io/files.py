"""Open files that somebody else may have made, and create new ones.

Only plain files are read, and no link is followed: a pipe would never end, a device has no size,
and a link leads out of the folder. What is opened stays the same file, whatever others do to its
name. New files never replace what a link leads to.
"""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import IO

from probdl.errors import DataError
from probdl.util.memory import machine_memory

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["create_file", "open_plain", "try_lock"]

# Not all systems have all of them. Without O_NONBLOCK, opening a pipe waits for its other end.
_SAFE = (
    getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
)


def open_plain(path: Path, max_bytes: float | None = None) -> BufferedReader:
    """Open a plain file for reading.

    Args:
        path: the file.
        max_bytes: the largest size in bytes; None is the memory of the machine.

    Raises:
        FileNotFoundError: there is none.
        DataError: it is a link, a folder, a pipe or a device, it is too large, or it cannot be
            read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | _SAFE)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(path) from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _not_plain(path, "a symbolic link") from None
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe or a device"
            raise _not_plain(path, kind)
        limit = machine_memory(unknown=2**36) if max_bytes is None else max_bytes
        if status.st_size > limit:
            raise DataError(
                f"{path} has {status.st_size / 2**20:.4g} MiB, more than the {limit / 2**20:.4g} "
                "MiB that can be read."
            )
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def create_file(path: Path) -> IO[bytes]:
    """Create a file in the place of what has its name, which may be a link, and open it to write.

    Raises:
        OSError: it cannot be created.
    """
    path.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _SAFE
    return os.fdopen(os.open(path, flags, 0o666), "wb")


def try_lock(descriptor: int, *, shared: bool = False) -> bool | None:
    """Lock an open file or folder without waiting, until it is closed or the process ends.

    Returns:
        Whether it could be locked; None where there are no such locks (Windows, some disks).
    """
    if fcntl is None:
        return None
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _not_plain(path: Path, kind: str) -> DataError:
    return DataError(
        f"{path} is {kind}, and only plain files are read. If you trust it, replace it by a copy "
        "of what it leads to."
    )
