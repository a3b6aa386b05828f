"""The number of threads of NumPy's and SciPy's linear algebra."""

from __future__ import annotations

import functools
from typing import Any

from threadpoolctl import ThreadpoolController

from probdl.util.lazy import linalg

__all__ = ["one_blas_thread"]


@functools.cache
def _libraries() -> ThreadpoolController:
    _ = linalg.lapack  # threadpoolctl only finds libraries that are loaded
    return ThreadpoolController()


def one_blas_thread() -> Any:
    """Run NumPy's and SciPy's linear algebra on one thread, which is faster for small matrices.

    On busy cores the threads wait for one another: a step of L-BFGS in three dimensions then takes
    1.5 milliseconds.
    """
    return _libraries().limit(limits=1, user_api="blas")
