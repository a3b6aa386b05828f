"""Replace the files of a folder atomically: after a crash, all files are old or all are new.

New files are written next to the old ones, under temporary names. When all are on disk, renaming
the new index to ``fit.json.commit`` commits them. Then each file is renamed to its final name; the
next writer completes this step if a crash interrupted it, and a reader finds the files under either
name. The index holds a checksum of each file and of itself, so damage is detected.
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

__all__ = ["FORMAT", "folder_path", "read_index", "replace_folder"]

INDEX = "fit.json"
FORMAT = 1  # version of the folder's format; later versions are refused
_NEW_SUFFIX, _COMMIT_SUFFIX = ".new", ".commit"
_DAMAGE_REMEDY = "The file is damaged; save the fit again, or restore the folder from a backup."


def folder_path(name: Any) -> Path:
    """Return the argument of a user as the path of a folder.

    Raises:
        SettingError: the argument is not a path.
    """
    try:
        path = os.fspath(name)
    except TypeError:
        path = ""
    if not isinstance(path, str) or not path or "\0" in path:
        raise SettingError(f"{name!r} is not a path. Pass a path, such as 'fits/first'.")
    return Path(path)


def replace_folder(
    folder: Path, index: Mapping[str, Any], writers: Mapping[str, Callable[[Path], None]]
) -> None:
    """Write the files of a folder and its index, either all or none.

    Args:
        folder: created if it does not exist. Other files in it are left alone.
        index: the contents of the index, as JSON values.
        writers: by file name, a function that writes the file to a path.

    Raises:
        SettingError: the folder cannot be written; its contents are unchanged.
    """
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(_locked(folder))
        except OSError as error:
            raise _save_failed(folder, error) from None
        _replace(folder, index, writers)


def _replace(
    folder: Path, index: Mapping[str, Any], writers: Mapping[str, Callable[[Path], None]]
) -> None:
    new: list[Path] = []
    try:
        _complete_commit(folder)
        files = {}
        for name, write in writers.items():
            new.append(path := folder / (name + _NEW_SUFFIX))
            write(path)
            files[name] = {"bytes": path.stat().st_size, "sha256": _checksum(path)}
            _fsync(path)
        new.append(path := folder / (INDEX + _NEW_SUFFIX))
        whole = {"format": FORMAT, "files": files, **index}
        text = json.dumps(whole | {"sha256": _digest(whole)}, indent=1, ensure_ascii=False)
        path.write_text(text + "\n", encoding="utf-8")
        _fsync(path)
        os.replace(path, folder / (INDEX + _COMMIT_SUFFIX))
    except BaseException as error:
        for path in new:
            path.unlink(missing_ok=True)
        if isinstance(error, (OSError, RuntimeError)):  # HDF5 raises RuntimeError
            raise _save_failed(folder, error) from None
        raise
    _complete_commit(folder)


def _save_failed(folder: Path, error: Exception) -> SettingError:
    reason = getattr(error, "strerror", None) or error
    kept = " The previous fit is unchanged." if (folder / INDEX).exists() else ""
    return SettingError(
        f"The fit could not be saved in {folder}: {reason}.{kept} Free disk space, or save it in "
        "another folder."
    )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold an exclusive lock on a folder while it is written.

    The operating system locks the folder itself: no lock file is left behind, and the lock ends
    with the process. Systems without such locks (Windows, some network disks) do not protect
    against two writers at the same time.
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
    """Return the index of a folder, and the path of each of its files.

    Raises:
        DataError: there is no index, its format is newer, or a file is missing or damaged.
    """
    committed = folder / (INDEX + _COMMIT_SUFFIX)
    pending = committed.exists()
    path = committed if pending else folder / INDEX
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        what = "is not a folder" if folder.is_file() else f"contains no {INDEX}"
        what = what if folder.exists() else "does not exist"
        raise DataError(
            f"There is no saved fit at {folder}: it {what}. Pass the folder that fit.save() wrote."
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}. {_DAMAGE_REMEDY}") from None
    if not isinstance(index, dict) or not isinstance(index.get("format"), int):
        raise DataError(f"{path} is not the index of a saved fit. {_DAMAGE_REMEDY}")
    if index["format"] > FORMAT:
        raise DataError(
            f"The fit in {folder} has format {index['format']}, written by a later version of "
            f"probdl; this version reads format {FORMAT}. Update probdl."
        )
    if index.pop("sha256", None) != _digest(index):
        raise DataError(f"{path} does not match its checksum. {_DAMAGE_REMEDY}")
    paths = {}
    try:
        for name, recorded in index["files"].items():
            paths[name] = folder / name
            if pending and (folder / (name + _NEW_SUFFIX)).exists():
                paths[name] = folder / (name + _NEW_SUFFIX)
            _check_file(paths[name], recorded)
    except (KeyError, TypeError, AttributeError):
        raise DataError(f"{path} does not list the files of the fit. {_DAMAGE_REMEDY}") from None
    return index, paths


def _check_file(path: Path, recorded: Mapping[str, Any]) -> None:
    if not path.exists():
        raise DataError(f"{path} is missing. {_DAMAGE_REMEDY}")
    size = path.stat().st_size
    if size != recorded["bytes"]:
        raise DataError(f"{path} has {size} bytes instead of {recorded['bytes']}. {_DAMAGE_REMEDY}")
    if _checksum(path) != recorded["sha256"]:
        raise DataError(f"{path} does not match its checksum. {_DAMAGE_REMEDY}")


def _complete_commit(folder: Path) -> None:
    """Rename the new files of a committed index to their final names."""
    committed = folder / (INDEX + _COMMIT_SUFFIX)
    if not committed.exists():
        return
    try:
        names = [*json.loads(committed.read_text(encoding="utf-8"))["files"]]
    except (ValueError, KeyError, TypeError):  # a damaged index does not name its files
        committed.unlink()
        return
    for name in names:
        if (new := folder / (name + _NEW_SUFFIX)).exists():
            os.replace(new, folder / name)
    os.replace(committed, folder / INDEX)


def _digest(index: Mapping[str, Any]) -> str:
    """Return the checksum of an index; the index must not contain its own checksum."""
    return hashlib.sha256(json.dumps(index, sort_keys=True).encode()).hexdigest()


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    """Flush a file to disk, so that it is complete before it is renamed."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
