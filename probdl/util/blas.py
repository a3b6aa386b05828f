"""The number of threads of NumPy's and SciPy's linear algebra."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path

import torch
from threadpoolctl import ThreadpoolController

from probdl.util.lazy import after_scipy

__all__ = ["blas_kernels", "one_blas_thread", "one_torch_thread", "threads_for"]

SMALL = 2**22  # numbers; to compute them takes one thread some 20 milliseconds


_limited: list[ExitStack] = []  # the contexts of ``one_blas_thread`` that are open


@functools.cache
def _libraries(*, with_scipy: bool) -> ThreadpoolController:
    return ThreadpoolController()  # of the libraries that are loaded


def _limit(stack: ExitStack) -> None:
    libraries = _libraries(with_scipy="scipy.linalg" in sys.modules)
    stack.enter_context(libraries.limit(limits=1, user_api="blas"))


def one_blas_thread() -> ExitStack:
    """Run NumPy's and SciPy's linear algebra on one thread, which is faster for small matrices.

    On busy cores the threads wait for one another: a step of L-BFGS in three dimensions then takes
    1.5 milliseconds. SciPy's library is included when it is loaded, which takes a fifth of a second
    and may not be needed. Without ``with``, the limit stays.
    """
    stack = ExitStack()
    _limit(stack)
    _limited.append(stack)
    stack.callback(_limited.remove, stack)
    return stack


@after_scipy.append
def _limit_scipy() -> None:
    for stack in _limited:
        _limit(stack)


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


def threads_for(numbers: int) -> AbstractContextManager[None]:
    """Run torch on one thread if it computes few numbers.

    On busy cores, or with a share of a core, an exponential of 4,000 numbers takes 5 microseconds
    on one thread and 5 milliseconds on two.
    """
    return one_torch_thread() if numbers < SMALL else nullcontext()


def blas_kernels() -> str:
    """Describe SciPy's BLAS, and say if it does not use the vector instructions of the processor.

    OpenBLAS chooses its kernels by the model of the processor, and takes old ones for a new model.
    """
    found = [
        library
        for library in ThreadpoolController().info()
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
