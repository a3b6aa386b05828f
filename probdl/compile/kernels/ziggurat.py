"""Normal numbers of a step drawn in C by the ziggurat method, for use in loops of C."""

from __future__ import annotations

import ctypes
import functools
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probdl.compile.codegen.emit import Source
from probdl.compile.kernels.noise import noise_source
from probdl.compile.runtime.library import loaded

__all__ = ["draw_normals", "ziggurat_source"]


def ziggurat_source() -> str:
    """Return the C code, whose ``prepare_ziggurat`` is to be called first."""
    return noise_source() + files("probdl.compile.kernels").joinpath("ziggurat.c").read_text()


@functools.cache
def _library() -> Any:
    library = loaded(Source(ziggurat_source(), 0, 0), "prepare_ziggurat", "fill_normals")
    library.fill_normals.restype = None
    library.fill_normals.argtypes = [*[ctypes.c_uint64] * 4, ctypes.c_void_p]
    library.prepare_ziggurat()
    return library


def draw_normals(key: int, steps: int, size: int, first: int = 0) -> NDArray[np.float64]:
    """Draw the standard normal numbers of several steps: (steps, size).

    Args:
        key: the key of the generator, in [0, 2^64).
        steps: the number of steps.
        size: the number of numbers in a step.
        first: the number of the first step.

    Raises:
        CompilerError: there is no compiler, or it failed.
    """
    out = np.empty((steps, size))
    _library().fill_normals(key, first, steps, size, out.ctypes.data)
    return out
