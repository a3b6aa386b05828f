"""Statistics of large arrays in parts, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probdl.util.cores import core_count

__all__ = ["by_columns", "slices"]

NUMBERS = 2**22  # at a time: 32 MiB in float64
THREADS_MAX = 4  # which share that memory


def by_columns(statistic: Callable[[NDArray[Any]], NDArray[Any]], x: NDArray[Any]) -> NDArray[Any]:
    """Evaluate a statistic of the columns of an array (..., n) in parts of them, on all cores.

    Args:
        statistic: maps arrays (..., k) of k columns to arrays (..., k), in several threads.
        x: the array, which may be mapped to a file.

    >>> by_columns(lambda part: part.max(0), np.array([[1, 5], [3, 2]]))
    array([3, 5])
    """

    def of_part(part: slice) -> NDArray[Any]:
        return statistic(np.ascontiguousarray(x[..., part]))

    if x.size <= NUMBERS:
        return of_part(slice(None))
    threads = min(core_count(), THREADS_MAX)
    parts = slices(x.shape[-1], threads * x.size)
    with ThreadPoolExecutor(threads) as pool:
        # The context has the time limit.
        found = [pool.submit(copy_context().run, of_part, part) for part in parts]
        try:
            return np.concatenate([part.result() for part in found], -1)
        finally:
            pool.shutdown(cancel_futures=True)  # after Ctrl-C, or if the time is up


def slices(count: int, numbers: int) -> Iterator[slice]:
    """Yield slices of ``count`` rows or columns that have ``numbers`` numbers together."""
    size = max(1, count * NUMBERS // max(numbers, 1))
    for start in range(0, max(count, 1), size):
        yield slice(start, start + size)
