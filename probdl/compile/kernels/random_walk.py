"""Random-walk Metropolis on any evaluator of a density; in C if that is native code."""

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
from probdl.compile.runtime.callback import raise_interrupt
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
    """One chain of random-walk Metropolis.

    Args:
        evaluator: the evaluator of the density.
        start: the initial point, (d,).

    Attributes:
        z: the current point, (d,).
        value: the log density there.
        failure: the reason why the steps run in Python although the density is native, or None.
    """

    def __init__(self, evaluator: Any, start: Array) -> None:
        self._evaluator = evaluator
        self.z = np.ascontiguousarray(start, np.float64).copy()
        self.value = np.array(self._log_density(self.z))
        self._work = np.empty(2 * len(start))
        self.failure: CompilerError | None = None
        self._function: Any = None
        if evaluator.engine == "native":
            try:
                self._function = _random_walk()
            except CompilerError as error:
                self.failure = error

    def _log_density(self, z: Array) -> float:
        with torch.no_grad():
            return float(self._evaluator(torch.from_numpy(z)))

    def steps(self, moves: Array, log_u: Array) -> int:
        """Propose moves one after another, and return the number of accepted ones.

        Args:
            moves: the proposed displacements from the current point, (n, d).
            log_u: logs of uniform random numbers, (n,); a move is accepted if the change of the log
                density is larger.
        """
        if self._function is not None:
            moves, log_u = np.ascontiguousarray(moves), np.ascontiguousarray(log_u)
            accepted = self._function(
                self._evaluator.address,
                self._evaluator.user,
                len(self.z),
                len(moves),
                moves.ctypes.data,
                log_u.ctypes.data,
                self.z.ctypes.data,
                self.value.ctypes.data,
                self._work.ctypes.data,
            )
            raise_interrupt()
            return int(accepted)
        accepted = 0
        for move, threshold in zip(moves, log_u, strict=True):
            proposal = self.z + move
            log_density = self._log_density(proposal)
            if math.isfinite(log_density) and threshold < log_density - float(self.value):
                self.z, accepted = proposal, accepted + 1
                self.value[...] = log_density
        return accepted
