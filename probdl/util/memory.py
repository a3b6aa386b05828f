"""The memory that a process may use."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

__all__ = ["machine_memory"]

# Of a container, in version 2 and version 1 of control groups.
_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def machine_memory(*, unknown: float) -> float:
    """Return the size of the memory in bytes, or ``unknown`` if the system does not report it.

    A container or batch job may have less than its machine.
    """
    try:
        memory = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        memory = unknown
    for path in _LIMITS:
        with suppress(OSError, ValueError):  # ValueError: the word "max"
            memory = min(memory, float(path.read_text()))
    return memory
