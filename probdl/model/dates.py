"""Dates as labels, which NumPy, pandas and Python write in many types."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["as_dates", "comparable", "in_nanoseconds"]


def as_dates(labels: Any) -> NDArray[np.datetime64] | None:
    """Return labels that are dates without a time zone in one type; None if they are others.

    That type is ``datetime64[ns]``, as in files, or ``datetime64[us]`` for dates that it cannot
    hold.

    >>> import datetime
    >>> as_dates([datetime.date(2026, 1, 31)]).astype(str).tolist()
    ['2026-01-31T00:00:00.000000000']
    >>> as_dates(["2026-01-31"]) is None
    True
    """
    array = np.asarray(labels)
    if array.dtype.kind == "O" and array.size and all(map(_is_date, array.tolist())):
        array = np.array([np.datetime64(label) for label in array.tolist()])
    if array.dtype.kind != "M":
        return None
    return _in_one_unit(array)


def comparable(first: Any, second: Any) -> tuple[list[Any], list[Any]]:
    """Return labels of two origins such that the same ones are equal.

    If one are dates, texts in the other are read as dates.

    Raises:
        ValueError: they are no dates.
    """
    dates = as_dates(first), as_dates(second)
    if dates[0] is None and dates[1] is None:
        return np.asarray(first).tolist(), np.asarray(second).tolist()
    found = []
    for labels, own in zip((first, second), dates, strict=True):
        if own is None:
            own = _in_one_unit(np.array([np.datetime64(str(label)) for label in labels]))
        found.append([label.rstrip("0") for label in own.astype(str).tolist()])  # of any unit
    return found[0], found[1]


def _is_date(label: Any) -> bool:
    return hasattr(label, "isoformat") and getattr(label, "tzinfo", None) is None


def _in_one_unit(array: NDArray[np.datetime64]) -> NDArray[np.datetime64]:
    return array.astype("datetime64[ns]" if in_nanoseconds(array) else "datetime64[us]")


def in_nanoseconds(array: NDArray[np.datetime64]) -> bool:
    """Return whether ``datetime64[ns]``, and so a file, can hold all dates: from 1678 to 2261."""
    seconds = array.astype("datetime64[s]").astype(np.int64)
    return bool((abs(seconds) < 2**63 // 10**9).all())
