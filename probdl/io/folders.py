"""A folder of files that is replaced as a whole: a kill leaves the old ones or the new ones.

New files are written beside the old under names of their own. Once all are on the disk, one rename
makes the new index, ``fit.json.commit``, and with it the new files are what the folder holds; the
renames that follow only tidy up. Whoever reads or writes next finishes what a kill left undone.
The index holds a checksum of each file and of itself, so that damage is known as such.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from probdl.errors import DataError, SettingError

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["FORMAT", "folder_named", "read_index", "replace_folder"]

INDEX = "fit.json"
FORMAT = 1  # of the folder; a later one is refused
_NEW, _COMMIT = ".new", ".commit"


def folder_named(name: Any) -> Path:
    """Return the path of a folder that a user named.

    Raises:
        SettingError: it is no path.
    """
    try:
        path = os.fspath(name)
    except TypeError:
        path = ""
    if not isinstance(path, str) or not path or "\0" in path:
        raise SettingError(f"{name!r} names no folder. Pass a path, such as 'fits/first'.")
    return Path(path)


def replace_folder(
    folder: Path, index: Mapping[str, Any], writers: Mapping[str, Callable[[Path], None]]
) -> None:
    """Write the files of a folder and its index, all or none.

    Args:
        folder: made where it is not there. Other files in it are left alone.
        index: what the index holds, as JSON.
        writers: by file name, what writes that file to a path.

    Raises:
        SettingError: the folder cannot be made or written; what it held is unchanged.
    """
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_alone(folder))
        except OSError as error:
            raise _failed(folder, error) from None
        _replace(folder, index, writers)


def _replace(
    folder: Path, index: Mapping[str, Any], writers: Mapping[str, Callable[[Path], None]]
) -> None:
    new: list[Path] = []
    try:
        _finish(folder)
        files = {}
        for name, write in writers.items():
            new.append(path := folder / (name + _NEW))
            write(path)
            files[name] = {"bytes": path.stat().st_size, "sha256": _checksum(path)}
            _to_disk(path)
        new.append(path := folder / (INDEX + _NEW))
        whole = {"format": FORMAT, "files": files, **index}
        text = json.dumps(whole | {"sha256": _digest(whole)}, indent=1, ensure_ascii=False)
        path.write_text(text + "\n", encoding="utf-8")
        _to_disk(path)
        os.replace(path, folder / (INDEX + _COMMIT))
    except BaseException as error:
        for path in new:
            path.unlink(missing_ok=True)
        if isinstance(error, (OSError, RuntimeError)):  # the latter of HDF5
            raise _failed(folder, error) from None
        raise
    _finish(folder)


def _failed(folder: Path, error: Exception) -> SettingError:
    why = getattr(error, "strerror", None) or error
    kept = " The fit that was there is unchanged." if (folder / INDEX).exists() else ""
    return SettingError(
        f"the fit could not be saved in {folder}: {why}.{kept} Free some space, or save it in "
        "another folder."
    )


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until nobody else writes into a folder, and keep others waiting meanwhile.

    The lock is the system's, on the folder itself: it leaves no file, and a kill ends it. Where
    there is none (on Windows, on some network disks), two at a time get in each other's way.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def read_index(folder: Path) -> tuple[dict[str, Any], dict[str, Path]]:
    """Return the index of a folder, and where each of its files is.

    Raises:
        DataError: there is none, or it is of a later version, or a file is missing or damaged.
    """
    committed = folder / (INDEX + _COMMIT)
    pending = committed.exists()
    path = committed if pending else folder / INDEX
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        what = "is not a folder" if folder.is_file() else f"holds no {INDEX}"
        what = what if folder.exists() else "does not exist"
        raise DataError(
            f"there is no saved fit at {folder}: it {what}. Name the folder that fit.save() wrote."
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}. {_AGAIN}") from None
    if not isinstance(index, dict) or not isinstance(index.get("format"), int):
        raise DataError(f"{path} is not the index of a saved fit. {_AGAIN}")
    if index["format"] > FORMAT:
        raise DataError(
            f"the fit in {folder} is of format {index['format']}, which a later version of probdl "
            f"wrote; this one reads format {FORMAT}. Update probdl to read it."
        )
    if index.pop("sha256", None) != _digest(index):
        raise DataError(f"{path} does not hold what was written: its checksum differs. {_AGAIN}")
    paths = {}
    try:
        for name, told in index["files"].items():
            paths[name] = folder / name
            if pending and (folder / (name + _NEW)).exists():
                paths[name] = folder / (name + _NEW)
            _check(paths[name], told)
    except (KeyError, TypeError, AttributeError):
        raise DataError(f"{path} does not tell what files there are. {_AGAIN}") from None
    return index, paths


_AGAIN = "The file is damaged; save the fit again, or restore the folder from a copy."


def _check(path: Path, told: Mapping[str, Any]) -> None:
    if not path.exists():
        raise DataError(f"{path} is missing. {_AGAIN}")
    size = path.stat().st_size
    if size != told["bytes"]:
        raise DataError(f"{path} has {size} bytes, and {told['bytes']} were written. {_AGAIN}")
    if _checksum(path) != told["sha256"]:
        raise DataError(f"{path} does not hold what was written: its checksum differs. {_AGAIN}")


def _finish(folder: Path) -> None:
    """Give the new files of a committed index their names."""
    committed = folder / (INDEX + _COMMIT)
    if not committed.exists():
        return
    try:
        names = [*json.loads(committed.read_text(encoding="utf-8"))["files"]]
    except (ValueError, KeyError, TypeError):  # damaged; what it named cannot be known
        committed.unlink()
        return
    for name in names:
        if (new := folder / (name + _NEW)).exists():
            os.replace(new, folder / name)
    os.replace(committed, folder / INDEX)


def _digest(index: Mapping[str, Any]) -> str:
    """Return the checksum of an index, without that entry."""
    return hashlib.sha256(json.dumps(index, sort_keys=True).encode()).hexdigest()


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _to_disk(path: Path) -> None:
    """Have the system write a file out, so that no rename comes before what it names."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
