"""A log density in Python that C code can call."""

from __future__ import annotations

import ctypes
import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from probdl.compile.runtime.callback import interrupt, is_interrupted

__all__ = ["CalledDensity"]

_DOUBLES = ctypes.POINTER(ctypes.c_double)
_FUNCTION = ctypes.CFUNCTYPE(
    ctypes.c_int64, ctypes.c_uint64, _DOUBLES, _DOUBLES, _DOUBLES, ctypes.c_void_p
)


class CalledDensity:
    """A log density in Python, with what C code needs of a ``NativeDensity``.

    Each call takes the interpreter's lock. After an error, the density is nowhere finite until the
    C code has returned and ``raise_interrupt`` raises the error.

    Args:
        dim: the dimension d of the point.
        evaluator: evaluates the density by ``value_and_grad``.
    """

    user = 0

    def __init__(self, dim: int, evaluator: Any) -> None:
        self.dim = dim
        self._evaluator = evaluator
        self._function = _FUNCTION(self._called)
        self.address = ctypes.cast(self._function, ctypes.c_void_p).value

    def evaluate(self, z: Tensor, grad: Tensor, value: NDArray[np.float64]) -> None:
        """Write the gradient at ``z`` (d,) to ``grad`` (d,), and the value to ``value`` ()."""
        value[...], found = self._evaluator.value_and_grad(z)
        grad.copy_(found)

    def _called(self, dim: int, z: Any, grad: Any, value: Any, user: Any) -> int:
        if is_interrupted():
            return 1
        try:
            point = torch.from_numpy(np.ctypeslib.as_array(z, (dim,)).copy())
            found, of = self._evaluator.value_and_grad(point)
            np.ctypeslib.as_array(grad, (dim,))[:] = of.numpy()
            value[0] = float(found)
            return 0 if math.isfinite(value[0]) and torch.isfinite(of).all() else 1
        except LinAlgError:  # a density of zero
            return 1
        except BaseException as error:
            interrupt(error)
            return 1
