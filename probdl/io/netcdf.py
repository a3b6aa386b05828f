"""Check a netCDF file of unknown origin before its contents are read.

HDF5, the format below netCDF, can take the contents of a dataset from other files, link to other
files, and claim any size: a file of 24 kB may hold 800 GB of zeros.
"""

from __future__ import annotations

import os
from io import BufferedReader
from typing import Any

from probdl.errors import DataError
from probdl.util.lazy import h5py
from probdl.util.memory import machine_memory

__all__ = ["check_netcdf"]

DEFLATE_MAX = 1032  # bytes that one compressed byte can hold
SMALL_BYTES = 2**20  # that any file may claim


def check_netcdf(file: BufferedReader) -> None:
    """Check that a file refers to itself only, and that its contents fit into memory.

    Args:
        file: an open file; it is read from its start, and left there.

    Raises:
        DataError: they do not.
        OSError: it is no HDF5 file.
    """
    name = file.name
    size = os.fstat(file.fileno()).st_size
    limit = min(DEFLATE_MAX * size + SMALL_BYTES, machine_memory(unknown=2**36))
    claimed = 0
    with h5py.File(file, "r") as opened:
        seen: set[int] = set()
        groups = [opened["/"]]
        while groups:
            group = groups.pop()
            if (address := h5py.h5o.get_info(group.id).addr) in seen:
                raise DataError(f"{name} is damaged: a group of it contains itself.")
            seen.add(address)
            for key in group:
                link = group.get(key, getlink=True)
                if not isinstance(link, h5py.HardLink):
                    raise DataError(f"{name} is refused, because '{key}' in it is a link.")
                found = group[key]
                if isinstance(found, h5py.Group):
                    groups.append(found)
                elif isinstance(found, h5py.Dataset):
                    claimed += _bytes(found, name, key)
    if claimed > limit:
        raise DataError(
            f"{name} is refused: it has {size} bytes, but its arrays need "
            f"{claimed / 2**30:.4g} GiB."
        )
    file.seek(0)


def _bytes(dataset: Any, name: str, key: str) -> int:
    """Return the number of bytes of a dataset in memory."""
    if dataset.external or dataset.is_virtual:
        raise DataError(f"{name} is refused, because the array '{key}' in it is in another file.")
    return int(dataset.size or 0) * max(int(dataset.dtype.itemsize), 1)
