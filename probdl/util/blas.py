"""The number of threads of NumPy's and SciPy's linear algebra."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import ThreadpoolController

from probdl.util.lazy import linalg

__all__ = ["blas_kernels", "one_blas_thread", "one_torch_thread"]


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


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Run torch on one thread, which is faster for small tensors.

    On busy cores the threads of an operation wait for one another: a Hessian that takes 0.3 seconds
    on one thread then takes 7 seconds on two.
    """
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(before)


def blas_kernels() -> str:
    """Describe SciPy's BLAS, and say if it does not use the vector instructions of the processor.

    OpenBLAS chooses its kernels by the model of the processor, and takes old ones for a new model.
    """
    _libraries.cache_clear()  # SciPy's may have been loaded since
    found = [
        library
        for library in _libraries().info()
        if library["user_api"] == "blas" and "numpy.libs" not in library["filepath"]
    ]
    if not found:
        return "not known"
    name = found[-1]["internal_api"]
    version, kernels = found[-1].get("version") or "", found[-1].get("architecture") or ""
    text = f"{name} {version}, kernels for {kernels or 'an unknown processor'}"
    if kernels in ("Haswell", "Zen") and _has_avx512():
        text += (
            ". The processor has AVX-512, which they do not use: large matrices may be up to twice "
            "as fast with OPENBLAS_CORETYPE=SKYLAKEX in the environment"
        )
    return text


def _has_avx512() -> bool:
    try:
        return "avx512f" in Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return False
