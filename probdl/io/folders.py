"""Replace the files of a folder atomically: after a crash, all files are old or all are new.

New files are written next to the old ones, under temporary names. When all are on disk, renaming
the new index to ``fit.json.commit`` commits them. Then each file is renamed to its final name; the
next writer completes this step if a crash interrupted it, and a reader finds the files under either
name.

The index holds a checksum of each file and of itself. They detect damage and mixtures of two fits,
not malice: whoever can write the folder can compute them. So nothing in a folder is trusted: only
files with known names are opened, if they are plain files, and what is checked is what is read.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import IO, Any

from probdl.errors import DataError, SettingError
from probdl.io.files import create_file, open_plain, try_lock
from probdl.util.settings import is_path

__all__ = [
    "ARRAYS",
    "FORMAT",
    "IDATA",
    "INDEX",
    "folder_path",
    "open_folder",
    "read_index",
    "replace_folder",
]

INDEX = "fit.json"
IDATA = "idata.nc"
ARRAYS = "arrays.safetensors"
FORMAT = 1  # version of the folder's format; later versions are refused
MAX_INDEX_BYTES = 2**26  # of 100,000 sites and more
READ_WAIT_S = 10.0  # for a writer; a reader then goes on, and notices a mixture
WRITE_WAIT_S = 600.0  # for another writer
READ_ATTEMPTS = 5  # while others write without locks
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
    if not is_path(path):
        raise SettingError(f"{name!r} is not a path. Pass a path, such as 'fits/first'.")
    return Path(path)


def replace_folder(
    folder: Path, index: Mapping[str, Any], writers: Mapping[str, Callable[[IO[bytes]], None]]
) -> None:
    """Write the files of a folder and its index, either all or none.

    Args:
        folder: created if it does not exist. Other files in it are left alone.
        index: the contents of the index, as JSON values.
        writers: by file name, a function that writes the file.

    Raises:
        SettingError: the folder cannot be written; its contents are unchanged.
    """
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            locked = stack.enter_context(_locked(folder, WRITE_WAIT_S))
        except OSError as error:
            raise _save_failed(folder, error.strerror or str(error)) from None
        if not locked:
            raise _save_failed(folder, "another process has been writing it for long")
        _replace(folder, index, writers)


def _replace(
    folder: Path, index: Mapping[str, Any], writers: Mapping[str, Callable[[IO[bytes]], None]]
) -> None:
    new: list[Path] = []
    try:
        for name in (*writers, INDEX):
            if os.path.isdir(folder / name):
                raise _save_failed(folder, f"{name} in it is a folder")
        _complete_commit(folder, writers)
        files = {}
        for name, write in writers.items():
            new.append(path := folder / (name + _NEW_SUFFIX))
            _write(path, write)
            with open_plain(path) as file:
                files[name] = {"bytes": os.fstat(file.fileno()).st_size, "sha256": _checksum(file)}
        new.append(path := folder / (INDEX + _NEW_SUFFIX))
        whole = {"format": FORMAT, "files": files, **index}
        text = json.dumps(whole | {"sha256": _digest(whole)}, indent=1)
        encoded = (text + "\n").encode()
        if len(encoded) > MAX_INDEX_BYTES:
            raise _save_failed(
                folder,
                f"its index needs {len(encoded) / 2**20:.4g} MiB, more than the "
                f"{MAX_INDEX_BYTES >> 20} MiB that are read; the model has very many sites",
            )
        _write(path, lambda file: file.write(encoded))
        os.replace(path, folder / (INDEX + _COMMIT_SUFFIX))
    except BaseException as error:
        for path in new:
            with suppress(OSError):
                path.unlink(missing_ok=True)
        if isinstance(error, (OSError, RuntimeError)):  # HDF5 raises RuntimeError
            reason = getattr(error, "strerror", None) or str(error)
            raise _save_failed(folder, reason) from None
        raise
    _complete_commit(folder, writers)


def _write(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Write a new file, and flush it to disk, so that it is complete before it is renamed."""
    with create_file(path) as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())


def _save_failed(folder: Path, reason: str) -> SettingError:
    kept = " The previous fit is unchanged." if os.path.exists(folder / INDEX) else ""
    return SettingError(
        f"The fit could not be saved in {folder}: {reason}.{kept} Free disk space, or save it in "
        "another folder."
    )


@contextmanager
def _locked(folder: Path, wait_s: float, *, shared: bool = False) -> Iterator[bool]:
    """Hold a lock on a folder, exclusive or shared; yield False if others held it for too long.

    The operating system locks the folder itself: no lock file is left behind, and the lock ends
    with the process. Systems without such locks (Windows, some network disks) do not protect
    against two writers at the same time.
    """
    if os.name == "nt":  # where folders cannot be opened
        yield True
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        end = time.monotonic() + wait_s
        while (locked := try_lock(descriptor, shared=shared)) is False and time.monotonic() < end:
            time.sleep(0.01)
        yield locked is not False
    finally:
        os.close(descriptor)


@contextmanager
def open_folder(
    folder: Path, names: Collection[str]
) -> Iterator[tuple[dict[str, Any], dict[str, BufferedReader]]]:
    """Open a folder for reading; yield its index, and its files by name.

    All of them belong to one fit, also if another process replaces it meanwhile.

    Args:
        folder: the folder.
        names: the names of the files, the only ones that are opened.

    Raises:
        DataError: there is no index, its format is newer, or a file is missing or damaged.
    """
    with ExitStack() as stack:
        index, files = _open_one_fit(folder, names, stack)
        yield index, files


def read_index(folder: Path) -> dict[str, Any]:
    """Return the index of a folder.

    Raises:
        DataError: there is none, or it is damaged or of a later version.
    """
    with open_folder(folder, ()) as (index, _):
        return index


def _open_one_fit(
    folder: Path, names: Collection[str], stack: ExitStack
) -> tuple[dict[str, Any], dict[str, BufferedReader]]:
    for attempts_left in reversed(range(READ_ATTEMPTS)):
        with ExitStack() as opened, ExitStack() as lock:
            if os.path.isdir(folder):
                with suppress(OSError):
                    lock.enter_context(_locked(folder, READ_WAIT_S, shared=True))
            index, pending = _open_index(folder)
            try:
                files = {n: opened.enter_context(_open(folder, n, pending)) for n in names}
                lock.close()  # open files stay what they are, and checksums take long
                for name, file in files.items():
                    _check_file(folder / name, file, index)
            except DataError:
                if not attempts_left:
                    raise
                continue
            stack.push(opened.pop_all())
            return index, files
    raise AssertionError


def _open_index(folder: Path) -> tuple[dict[str, Any], bool]:
    """Return the index of a folder, and whether a writer has still to rename its files."""
    for name in (INDEX + _COMMIT_SUFFIX, INDEX):
        with suppress(FileNotFoundError):
            return _read_index(folder, name), name != INDEX
    what = "is not a folder" if os.path.isfile(folder) else f"contains no {INDEX}"
    what = what if os.path.exists(folder) else "does not exist, or cannot be entered"
    raise DataError(
        f"There is no saved fit at {folder}: it {what}. Pass the folder that fit.save() wrote."
    )


def _read_index(folder: Path, name: str) -> dict[str, Any]:
    path = folder / name
    with open_plain(path, MAX_INDEX_BYTES) as file:
        try:
            index = json.loads(file.read().decode())
            digest = _digest({k: v for k, v in index.items() if k != "sha256"})
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read: {error}. {_DAMAGE_REMEDY}") from None
        except RecursionError:
            raise DataError(f"{path} is nested too deeply. {_DAMAGE_REMEDY}") from None
        except AttributeError:
            raise DataError(f"{path} is not the index of a saved fit. {_DAMAGE_REMEDY}") from None
    if type(index.get("format")) is not int:
        raise DataError(f"{path} is not the index of a saved fit. {_DAMAGE_REMEDY}")
    if index["format"] > FORMAT:
        raise DataError(
            f"The fit in {folder} has format {index['format']}, written by a later version of "
            f"probdl; this version reads format {FORMAT}. Update probdl."
        )
    if index.pop("sha256", None) != digest:
        raise DataError(f"{path} does not match its checksum. {_DAMAGE_REMEDY}")
    return index


def _open(folder: Path, name: str, pending: bool) -> BufferedReader:
    if pending:
        with suppress(FileNotFoundError):
            return open_plain(folder / (name + _NEW_SUFFIX))
    try:
        return open_plain(folder / name)
    except FileNotFoundError:
        raise DataError(f"{folder / name} is missing. {_DAMAGE_REMEDY}") from None


def _check_file(path: Path, file: BufferedReader, index: Mapping[str, Any]) -> None:
    try:
        recorded = index["files"][path.name]
        size, checksum = recorded["bytes"], recorded["sha256"]
    except (KeyError, TypeError):
        raise DataError(f"{path.parent / INDEX} does not list {path.name}.") from None
    found = os.fstat(file.fileno()).st_size
    if found != size:
        raise DataError(f"{path} has {found} bytes instead of {size}. {_DAMAGE_REMEDY}")
    if _checksum(file) != checksum:
        raise DataError(f"{path} does not match its checksum. {_DAMAGE_REMEDY}")


def _complete_commit(folder: Path, names: Collection[str]) -> None:
    """Rename the new files of a committed index to their final names."""
    committed = folder / (INDEX + _COMMIT_SUFFIX)
    if not os.path.lexists(committed):
        return
    try:
        listed = _read_index(folder, committed.name)["files"]
    except (DataError, KeyError, FileNotFoundError):  # such an index does not name its files
        committed.unlink()
        return
    for name in names:
        if name in listed and (new := folder / (name + _NEW_SUFFIX)).exists():
            os.replace(new, folder / name)
    os.replace(committed, folder / INDEX)


def _digest(index: Mapping[str, Any]) -> str:
    """Return the checksum of an index; the index must not contain its own checksum."""
    return hashlib.sha256(json.dumps(index, sort_keys=True).encode()).hexdigest()


def _checksum(file: BufferedReader) -> str:
    file.seek(0)
    checksum = hashlib.file_digest(file, "sha256").hexdigest()
    file.seek(0)
    return checksum
