"""Write arrays that do not fit into memory to files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from probdl.errors import SettingError
from probdl.io.files import create_file

__all__ = ["write_arrays"]


def write_arrays(
    folder: str | os.PathLike[str], parts: Iterable[Mapping[str, Tensor]], lead: tuple[int, ...]
) -> dict[str, NDArray[Any]]:
    """Write arrays part by part to ``.npy`` files, and return them memory-mapped.

    Earlier files of the same names are replaced; arrays that are mapped to them stay as they are.

    Args:
        folder: the folder of the files ``<name>.npy``; it is created if it does not exist.
        parts: consecutive rows by name, each of shape (n, *shape).
        lead: the leading shape of the whole arrays, (*lead, *shape).

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
            f"The predictions could not be written to {path}: {error.strerror or error}. Free disk "
            "space, or choose another folder."
        ) from None
    return {name: np.load(file, mmap_mode="r") for name, file in paths.items()}


def _write_header(file: Any, rows: NDArray[Any], lead: tuple[int, ...]) -> None:
    header = {
        "descr": np.lib.format.dtype_to_descr(rows.dtype),
        "fortran_order": False,
        "shape": (*lead, *rows.shape[1:]),
    }
    np.lib.format.write_array_header_1_0(file, header)
