"""Check a netCDF file of unknown origin before its contents are read.

HDF5, the format below netCDF, can take the contents of a dataset from other files, link to other
files, and claim any size: a file of 24 kB may hold 800 GB of zeros.
"""

from __future__ import annotations

import math
import os
from io import BufferedReader
from typing import Any

from probdl.errors import DataError
from probdl.util.lazy import h5py
from probdl.util.memory import machine_memory

__all__ = ["check_netcdf"]

DEFLATE_MAX = 1032  # bytes that one compressed byte can hold
SMALL_BYTES = 2**20  # that any file may claim
GROUPS_MAX = 100  # HDF5 takes seconds for hundreds; a fit has a dozen
CHUNK_BYTES = 5000  # that HDF5 needs for a chunk, also if it is not in the file
TEXTS_AT_ONCE = 64


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
            if len(seen) > GROUPS_MAX:
                raise DataError(f"{name} is refused: it has more than {GROUPS_MAX} groups.")
            for key in group:
                link = group.get(key, getlink=True)
                if not isinstance(link, h5py.HardLink):
                    raise DataError(f"{name} is refused, because '{key}' in it is a link.")
                found = group[key]
                if isinstance(found, h5py.Group):
                    groups.append(found)
                elif isinstance(found, h5py.Dataset):
                    claimed += _bytes(found, name, key, limit)
    if claimed > limit:
        raise DataError(
            f"{name} is refused: it has {size} bytes, but its arrays need "
            f"{claimed / 2**30:.4g} GiB."
        )
    file.seek(0)


def _bytes(dataset: Any, name: str, key: str, limit: float) -> int:
    """Return about the number of bytes that a dataset takes in memory while it is read."""
    if dataset.external or dataset.is_virtual:
        raise DataError(f"{name} is refused, because the array '{key}' in it is in another file.")
    size = int(dataset.size or 0)
    parts = zip(dataset.shape, dataset.chunks or (), strict=False)
    chunks = math.prod(-(-length // part) for length, part in parts)
    width = max(int(dataset.dtype.itemsize), 1)
    if "scale_factor" in dataset.attrs or "add_offset" in dataset.attrs:
        width = max(width, 8)  # they make floating-point numbers of integers
    claimed = size * width + (chunks * CHUNK_BYTES if dataset.chunks else 0)
    if h5py.check_vlen_dtype(dataset.dtype) is None or claimed > limit:
        return claimed
    if dataset.ndim > 1:
        raise DataError(f"{name} is refused, because '{key}' in it is a table of texts.")
    for first in range(0, size, TEXTS_AT_ONCE):  # several may be the same bytes of the file
        texts = dataset[first : first + TEXTS_AT_ONCE] if dataset.ndim else [dataset[()]]
        claimed += sum(map(len, texts))
        if claimed > limit:
            break
    return claimed
