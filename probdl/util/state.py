"""Seeds that derive from one another, the machine's memory, and threads of linear algebra."""

from __future__ import annotations

import functools
import os
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

from probdl.util.lazy import linalg

__all__ = ["machine_memory", "one_blas_thread", "stream"]


def machine_memory(*, unknown: float) -> float:
    """Return the bytes of memory of this machine, or ``unknown`` where it does not tell."""
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):  # Windows does not tell this way
        return unknown


@functools.cache
def _libraries() -> ThreadpoolController:
    _ = linalg.lapack  # SciPy's library must be loaded to be found
    return ThreadpoolController()


def one_blas_thread() -> Any:
    """Run NumPy's and SciPy's linear algebra on one thread, which for small matrices is faster.

    Where other work has the cores, their threads wait for one another: a step of L-BFGS in three
    dimensions then takes a millisecond and a half.
    """
    return _libraries().limit(limits=1, user_api="blas")


def stream(seed: int, purpose: str, *index: int) -> int:
    """Derive the seed of a purpose, such as one block of steps, independent of all others."""
    sequence = np.random.SeedSequence([seed, *purpose.encode(), *index])
    return int(sequence.generate_state(1, np.uint32)[0])
