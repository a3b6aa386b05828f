"""Write arrays that do not fit into memory to files."""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from probdl.errors import SettingError
from probdl.io.files import create_file

__all__ = ["mapped_array", "write_arrays"]


def mapped_array(folder: str | os.PathLike[str], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return an array of zeros that is mapped to a file without a name, which ends with it.

    Raises:
        SettingError: the file cannot be written, as when the disk is full.
    """
    path = Path(folder)
    size = math.prod(shape) * np.dtype(np.float64).itemsize
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path) as file:
            _allocate(file, size)
            return np.memmap(file, np.float64, "r+", shape=shape)
    except OSError as error:
        raise SettingError(
            f"A file of {size / 2**30:.3g} GiB could not be written to {path}: "
            f"{error.strerror or error}. Free disk space, or choose another folder."
        ) from None


def _allocate(file: IO[bytes], size: int) -> None:
    """Write zeros. Of a file with holes, a full disk would end the process later."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
        return
    zeros = bytes(2**24)
    for start in range(0, size, len(zeros)):
        file.write(zeros[: size - start])
    file.flush()


def write_arrays(
    folder: str | os.PathLike[str],
    parts: Iterable[Mapping[str, Tensor]],
    lead: tuple[int, ...],
    *,
    what: str = "predictions",
    by_columns: bool = False,
) -> dict[str, NDArray[Any]]:
    """Write arrays part by part to ``.npy`` files, and return them memory-mapped.

    Earlier files of the same names are replaced; arrays that are mapped to them stay as they are.

    Args:
        folder: the folder of the files ``<name>.npy``; it is created if it does not exist.
        parts: consecutive rows by name, each of shape (n, *shape).
        lead: the leading shape of the whole arrays, (*lead, *shape).
        what: a noun for them.
        by_columns: whether they will be read by columns, so that the system reads no more.

    Returns:
        The arrays. What is assigned to them stays in memory.

    Raises:
        SettingError: the files cannot be written.
    """
    path = Path(folder)
    files: dict[str, Any] = {}
    paths: dict[str, Path] = {}
    try:
        path.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            for part in parts:
                for name, rows in part.items():
                    array = np.ascontiguousarray(rows.numpy())
                    if name not in files:
                        paths[name] = path / f"{quote(name, safe=' []')}.npy"
                        files[name] = stack.enter_context(create_file(paths[name]))
                        _write_header(files[name], array, lead)
                    files[name].write(array.data)
    except OSError as error:
        for name in paths:
            paths[name].unlink(missing_ok=True)
        raise SettingError(
            f"The {what} could not be written to {path}: {error.strerror or error}. Free disk "
            "space, or choose another folder."
        ) from None
    return {name: _mapped(file, by_columns) for name, file in paths.items()}


def _mapped(file: Path, by_columns: bool) -> NDArray[Any]:
    array = np.load(file, mmap_mode="c")
    if by_columns and array.size and hasattr(mmap, "MADV_RANDOM"):
        array._mmap.madvise(mmap.MADV_RANDOM)
    return array  # type: ignore[no-any-return]


def _write_header(file: Any, rows: NDArray[Any], lead: tuple[int, ...]) -> None:
    header = {
        "descr": np.lib.format.dtype_to_descr(rows.dtype),
        "fortran_order": False,
        "shape": (*lead, *rows.shape[1:]),
    }
    np.lib.format.write_array_header_1_0(file, header)
