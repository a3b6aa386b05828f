"""A chain of the No-U-Turn sampler on native code, whose state is a value."""

from __future__ import annotations

import ctypes
import functools
from importlib.resources import files
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from probdl.compile.codegen.emit import Source
from probdl.compile.kernels.ziggurat import ziggurat_source
from probdl.compile.runtime.callback import raise_interrupt
from probdl.compile.runtime.called_density import CalledDensity
from probdl.compile.runtime.library import loaded
from probdl.compile.runtime.native_density import NativeDensity

__all__ = ["RECORD", "NutsChain", "NutsTask", "check_compiled"]

Array = NDArray[np.float64]

RECORD = np.dtype(
    [
        *((name, np.float64) for name in ("lp", "energy", "acceptance_rate", "step_size")),
        *(
            (name, np.uint64)
            for name in ("n_steps", "tree_depth", "diverging", "reached_max_treedepth")
        ),
    ]
)
"""What is recorded of each transition: the struct ``Record`` of nuts.c."""


class _Moments(ctypes.Structure):
    _fields_ = (
        ("count", ctypes.c_uint64),
        *((name, ctypes.c_void_p) for name in ("mean", "squares", "grad_mean", "grad_squares")),
    )


class _Chain(ctypes.Structure):
    _fields_ = (
        *((n, ctypes.c_uint64) for n in ("dim", "rank", "key", "transition", "max_depth")),
        *((n, ctypes.c_double) for n in ("target", "value", "step")),
        *((n, ctypes.c_double) for n in ("log_step", "log_mean_step", "mean_error", "centre")),
        ("adapted", ctypes.c_uint64),
        *((n, ctypes.c_void_p) for n in ("z", "grad", "scale", "directions", "variances", "work")),
        ("now", _Moments),
        ("next", _Moments),
    )


class NutsTask(ctypes.Structure):
    """A number of transitions; ``stop`` can be set, and ``done`` read, by another thread."""

    _fields_ = (
        *((n, ctypes.c_uint64) for n in ("transitions", "adapt_step", "adapt_scale", "window")),
        ("stop", ctypes.c_int64),
        ("done", ctypes.c_uint64),
        ("divergences", ctypes.c_uint64),
        *((n, ctypes.c_void_p) for n in ("draws", "grads", "records")),
    )


@functools.cache
def _library() -> Any:
    text = ziggurat_source() + files("probdl.compile.kernels").joinpath("nuts.c").read_text()
    names = "nuts", "find_step", "work_arrays", "prepare_ziggurat"
    library = loaded(Source(text, 0, 0), *names)
    library.work_arrays.restype, library.work_arrays.argtypes = ctypes.c_uint64, [ctypes.c_uint64]
    library.prepare_ziggurat()
    for function, count in ((library.nuts, 4), (library.find_step, 3)):
        function.restype = None
        function.argtypes = [ctypes.c_void_p] * count
    return library


def check_compiled() -> None:
    """Compile the sampler, unless it is compiled already.

    Raises:
        CompilerError: there is no compiler, or it failed.
    """
    _library()


class NutsChain:
    """One chain: its position, metric, step size and random state.

    The metric is ``S (I + U' (L - I) U) S`` with S of ``scale``, U of ``directions`` and L of
    ``variances``: the covariance of the posterior, as far as it is known.

    Args:
        density: the log density.
        start: the initial point, (d,).
        key: the key of the random numbers, in [0, 2^64).
        target: the acceptance rate to which the step size is adapted.
        max_depth: the largest number of doublings of a trajectory, at most 30.

    Raises:
        CompilerError: there is no compiler, or it failed.
    """

    def __init__(
        self,
        density: NativeDensity | CalledDensity,
        start: Array,
        key: int,
        target: float,
        max_depth: int,
    ) -> None:
        self._functions = _library()
        self.density = density
        dim = len(start)
        self.z = np.array(start, np.float64)
        self.grad, self.scale = np.empty(dim), np.ones(dim)
        value = np.empty(())
        density.evaluate(torch.from_numpy(self.z), torch.from_numpy(self.grad), value)
        self.directions, self.variances = np.empty((0, dim)), np.empty(0)
        self._work: Array | None = None
        self._work_arrays = self._functions.work_arrays(max_depth)
        self._moments = np.zeros((2, 4, dim))
        self._state = _Chain(
            dim=dim, key=key, max_depth=max_depth, target=target, value=float(value), step=0.1
        )
        self._max_depth = max_depth
        for moments, arrays in zip((self._state.now, self._state.next), self._moments, strict=True):
            for name, array in zip(
                ("mean", "squares", "grad_mean", "grad_squares"), arrays, strict=True
            ):
                setattr(moments, name, array.ctypes.data)
        self._state.z, self._state.grad = self.z.ctypes.data, self.grad.ctypes.data
        self.set_metric(self.scale, self.directions, self.variances)

    def set_metric(self, scale: Array, directions: Array, variances: Array) -> None:
        """Set the metric; ``directions`` are orthonormal rows (r, d)."""
        dim, rank = len(self.z), len(variances)
        self.scale = np.ascontiguousarray(scale, np.float64)
        self.directions = np.ascontiguousarray(directions, np.float64)
        self.variances = np.ascontiguousarray(variances, np.float64)
        if self._work is None or len(self._work) < self._work_arrays * dim + rank:
            self._work = np.empty(self._work_arrays * dim + rank)
        state = self._state
        state.rank, state.work = rank, self._work.ctypes.data
        state.scale = self.scale.ctypes.data
        state.directions, state.variances = self.directions.ctypes.data, self.variances.ctypes.data

    def find_step(self) -> None:
        """Find a first step size for this metric, from which it is adapted."""
        args = self.density.address, self.density.user
        self._functions.find_step(*args, ctypes.addressof(self._state))
        raise_interrupt()

    def use_mean_step(self) -> None:
        """Set the step size to its mean over the adaptation."""
        self._state.step = float(np.exp(self._state.log_mean_step))

    def go_on(self, step: float, transition: int) -> None:
        """Take up the step size and the number of the next transition of an earlier chain."""
        self._state.step, self._state.transition = step, transition

    def limit_depth(self, depth: int | None) -> None:
        """Limit the doublings of a trajectory, for some time, to less than ``max_depth``."""
        most = self._max_depth
        self._state.max_depth = most if depth is None else min(depth, most)

    @property
    def value(self) -> float:
        """The log density at the position."""
        return float(self._state.value)

    @property
    def step(self) -> float:
        """The step size."""
        return float(self._state.step)

    def run(self, task: NutsTask) -> None:
        """Make the transitions of a task, until ``task.stop`` is set. This releases the GIL."""
        args = self.density.address, self.density.user
        self._functions.nuts(*args, ctypes.addressof(self._state), ctypes.addressof(task))
        raise_interrupt()
