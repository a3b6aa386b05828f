"""The processor's cores."""

from __future__ import annotations

import os

__all__ = ["core_count"]


def core_count() -> int:
    """Return the number of cores that this process may use.

    >>> core_count() >= 1
    True
    """
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
