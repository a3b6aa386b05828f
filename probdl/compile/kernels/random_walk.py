"""Random-walk Metropolis on whatever evaluates a density: in C where that is native code."""

from __future__ import annotations

import ctypes
import functools
import math
from importlib.resources import files
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from probdl.compile.codegen.emit import Source
from probdl.compile.runtime.library import loaded
from probdl.compile.runtime.toolchain import CompilerError

__all__ = ["Walk"]

Array = NDArray[np.float64]


@functools.cache
def _random_walk() -> Any:
    text = files("probdl.compile.kernels").joinpath("random_walk.c").read_text()
    function = loaded(Source(text, 0, 0), "walk").walk
    function.restype = ctypes.c_uint64
    function.argtypes = [ctypes.c_void_p] * 2 + [ctypes.c_uint64] * 2 + [ctypes.c_void_p] * 5
    return function


class Walk:
    """One chain.

    Args:
        evaluator: what evaluates the density.
        start: where the chain starts, (d,).

    Attributes:
        z: where it is.
        value: the log density there.
        failure: why its steps are taken in Python though the density is native code, if they are.
    """

    def __init__(self, evaluator: Any, start: Array) -> None:
        self._evaluator = evaluator
        self.z = np.ascontiguousarray(start, np.float64).copy()
        self.value = np.array(self._at(self.z))
        self._room = np.empty(2 * len(start))
        self.failure: CompilerError | None = None
        self._function: Any = None
        if evaluator.engine == "native":
            try:
                self._function = _random_walk()
            except CompilerError as error:
                self.failure = error

    def _at(self, z: Array) -> float:
        with torch.no_grad():
            return float(self._evaluator(torch.from_numpy(z)))

    def steps(self, moves: Array, log_u: Array) -> int:
        """Propose moves (n, d) one after another; return how many were accepted.

        Args:
            moves: to where from the present point.
            log_u: (n,), logs of uniforms, below which the change of the log density is rejected.
        """
        if self._function is not None:
            moves, log_u = np.ascontiguousarray(moves), np.ascontiguousarray(log_u)
            return int(
                self._function(
                    self._evaluator.address,
                    self._evaluator.user,
                    len(self.z),
                    len(moves),
                    moves.ctypes.data,
                    log_u.ctypes.data,
                    self.z.ctypes.data,
                    self.value.ctypes.data,
                    self._room.ctypes.data,
                )
            )
        accepted = 0
        for move, threshold in zip(moves, log_u, strict=True):
            ahead = self.z + move
            there = self._at(ahead)
            if math.isfinite(there) and threshold < there - float(self.value):
                self.z, accepted = ahead, accepted + 1
                self.value[...] = there
        return accepted
