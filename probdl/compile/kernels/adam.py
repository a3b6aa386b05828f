"""Adam on a native step: one call runs a block of steps, without Python in between."""

from __future__ import annotations

import ctypes
import functools
from importlib.resources import files
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probdl.compile.codegen.emit import Source
from probdl.compile.kernels.noise import NoiseSpec, noise_source
from probdl.compile.runtime.library import loaded
from probdl.compile.step import NativeStep, Parameters

__all__ = ["NativeAdam"]

Losses = NDArray[np.float64]


class _Run(ctypes.Structure):
    """The struct `Run` of adam.c."""

    _fields_ = (
        ("beta1", ctypes.c_double),
        ("beta2", ctypes.c_double),
        ("epsilon", ctypes.c_double),
        ("clip_norm", ctypes.c_double),
        ("dim", ctypes.c_uint64),
        ("arrays", ctypes.c_uint64),
        ("z", ctypes.c_void_p),
        ("grad", ctypes.c_void_p),
        ("first", ctypes.c_void_p),
        ("second", ctypes.c_void_p),
        ("good", ctypes.c_void_p),
        ("units", ctypes.c_void_p),
        ("noise", ctypes.c_void_p),
        ("specs", ctypes.c_void_p),
    )


@functools.cache
def _adam() -> Any:
    text = noise_source() + files("probdl.compile.kernels").joinpath("adam.c").read_text()
    function = loaded(Source(text, 0, 0), "adam").adam
    function.restype = ctypes.c_uint64
    pointer, number = ctypes.c_void_p, ctypes.c_uint64
    function.argtypes = [*[pointer] * 3, *[number] * 2, *[pointer] * 2, *[number] * 2]
    function.argtypes += [pointer] * 2
    return function


class NativeAdam:
    """Adam with the default settings of ``torch.optim.Adam``.

    Args:
        parameters: the trained parameters.
        step: the compiled loss, at fixed data.
        clip_norm: the largest norm of a gradient; longer ones are scaled down. None: no limit.
        key: determines the noise of each step, if it is drawn in C.

    Raises:
        CompilerError: there is no compiler, or it failed.
    """

    def __init__(
        self, parameters: Parameters, step: NativeStep, clip_norm: float | None, key: int
    ) -> None:
        self._function = _adam()
        self._step = step
        flat = parameters.flat
        self._state = [torch.zeros_like(flat) for _ in range(3)]  # gradient, two moments
        self.good = flat.clone()
        units = parameters.units
        self._units = torch.ones_like(flat) if units is None else units.contiguous()
        noise = step.noise
        self._sizes = np.array([x.numel() for x in noise] or [0], np.uint64)
        self._noise = np.array([x.data_ptr() for x in noise] or [0], np.uintp)
        specs = step.noise_specs
        self._specs = None
        if specs is not None:
            self._specs = (NoiseSpec * max(len(specs), 1))(*(spec for spec, _ in specs))
        self._key = key
        self._drawn: list[Tensor] = []
        self._drawn_pointers = np.zeros(1, np.uintp)
        self._first = 0
        self._run = _Run(
            0.9,
            0.999,
            1e-8,
            clip_norm or 0.0,
            len(flat),
            len(noise),
            flat.data_ptr(),
            *(x.data_ptr() for x in self._state),
            self.good.data_ptr(),
            self._units.data_ptr(),
            self._noise.ctypes.data,
            0 if self._specs is None else ctypes.addressof(self._specs),
        )

    @property
    def draws_noise(self) -> bool:
        """Whether the noise is drawn in C, where a step's noise does not depend on its block."""
        return self._specs is not None

    def begin_block(self, done: int, size: int) -> None:
        """Let torch draw the noise of the next ``size`` steps, if C does not.

        Args:
            done: the number of previous steps.
            size: the number of steps.
        """
        if self._specs is not None:
            return
        self._first = done
        self._drawn = [x.contiguous() for x in self._step.draw(size)]
        self._drawn_pointers = np.array([x.data_ptr() for x in self._drawn] or [0], np.uintp)

    def run(self, done: int, rates: NDArray[np.float64], key: int | None = None) -> Losses:
        """Take the next steps, one at each learning rate.

        Args:
            done: the number of previous steps.
            rates: the learning rates of the steps.
            key: another key than that of the training.

        Returns:
            The losses; fewer than the rates if the next loss or its gradient is not finite. The
            parameters are then at that point, and ``good`` is the point before it.
        """
        rates, count = np.ascontiguousarray(rates, np.float64), len(rates)
        losses = np.empty(count)
        code = self._step.code
        taken = self._function(
            code.address,
            code.user,
            ctypes.addressof(self._run),
            count,
            done,
            rates.ctypes.data,
            losses.ctypes.data,
            self._key if key is None else key,
            done - self._first,
            self._drawn_pointers.ctypes.data,
            self._sizes.ctypes.data,
        )
        return losses[:taken]

    def state(self) -> dict[str, Tensor]:
        """Return the state to save in a checkpoint."""
        return {"first": self._state[1], "second": self._state[2]}

    def load(self, state: dict[str, Tensor]) -> None:
        """Restore the state from a checkpoint.

        Raises:
            ValueError: it is of other parameters.
        """
        for moment, saved in zip(self._state[1:], (state["first"], state["second"]), strict=True):
            if saved.shape != moment.shape:
                raise ValueError(f"a moment has shape {tuple(saved.shape)}")
            moment.copy_(saved)
