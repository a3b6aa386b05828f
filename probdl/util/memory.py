"""The memory of the machine."""

from __future__ import annotations

import os

__all__ = ["machine_memory"]


def machine_memory(*, unknown: float) -> float:
    """Return the size of the memory in bytes, or ``unknown`` if the system does not report it."""
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return unknown
