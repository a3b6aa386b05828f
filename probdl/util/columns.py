"""Statistics of large arrays in parts, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["by_columns", "slices"]

NUMBERS = 2**22  # at a time: 32 MiB in float64


def by_columns(statistic: Callable[[NDArray[Any]], NDArray[Any]], x: NDArray[Any]) -> NDArray[Any]:
    """Evaluate a statistic of the columns of an array (..., n) in parts of them.

    Args:
        statistic: maps arrays (..., k) of k columns to arrays (..., k).
        x: the array, which may be mapped to a file.

    >>> by_columns(lambda part: part.max(0), np.array([[1, 5], [3, 2]]))
    array([3, 5])
    """
    parts = slices(x.shape[-1], x.size)
    found = [statistic(np.ascontiguousarray(x[..., part])) for part in parts]
    return found[0] if len(found) == 1 else np.concatenate(found, -1)


def slices(count: int, numbers: int) -> Iterator[slice]:
    """Yield slices of ``count`` rows or columns that have ``numbers`` numbers together."""
    size = max(1, count * NUMBERS // max(numbers, 1))
    for start in range(0, max(count, 1), size):
        yield slice(start, start + size)
