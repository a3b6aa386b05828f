"""A compiled log density that samplers can call, from Python or from C."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probdl.compile.codegen.emit import Source
from probdl.compile.codegen.statements import laid_out, real
from probdl.compile.runtime.callback import raise_interrupt
from probdl.compile.runtime.library import loaded

__all__ = ["NativeDensity", "differentiable"]


class _Bound(ctypes.Structure):
    """The struct `Bound` of prelude.h."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("work", ctypes.c_void_p),
        ("busy", ctypes.c_void_p),
        ("slots", ctypes.c_uint64),
        ("threads", ctypes.c_uint64),
    )


class NativeDensity:
    """A compiled log density on one data set.

    Args:
        source: the code.
        dim: the dimension d of the point.
        arrays: the arrays that the code reads.
        threads: the number of threads that may call it at once.
        guard: the size, in numbers, of the memory behind each array and, in ``value_and_grad``,
            behind the point, for code that may read more.

    Attributes:
        dim: the dimension d of the point.
        calls: the number of operations that torch computes; each takes some 20 microseconds.
        address: the address of the C function ``int64_t logp(uint64_t dim, const double *z,
            double *grad, double *value, const void *user)``. It returns 0, or 1 if the value or
            the gradient is not finite. It may run in several threads at once.
        user: the address to pass as ``user``.
        expand: the address of the identity function that nutpie requires.
    """

    engine = "native"

    def __init__(
        self,
        source: Source,
        dim: int,
        arrays: Sequence[Tensor],
        threads: int,
        *,
        guard: int = 0,
    ) -> None:
        library = loaded(source, "logp", "expand")
        library.logp.restype = ctypes.c_int64
        library.logp.argtypes = [ctypes.c_uint64] + [ctypes.c_void_p] * 4
        self.dim = dim
        self.calls = len(source.calls)
        self._function = library.logp
        self.address = ctypes.cast(library.logp, ctypes.c_void_p).value
        self.expand = ctypes.cast(library.expand, ctypes.c_void_p).value
        slots = threads if source.work else 0
        # This object owns all memory that the code points to.
        self._guard = guard
        self._arrays = [_guarded(laid_out(real(a)), guard) for a in arrays]
        self._work = [np.empty(source.work) for _ in range(slots)]
        self._busy = np.zeros(max(slots, 1), np.uint32)
        self._data_pointers = np.array([a.data_ptr() for a in self._arrays] or [0], np.uintp)
        self._work_pointers = np.array([a.ctypes.data for a in self._work] or [0], np.uintp)
        self._bound = _Bound(
            self._data_pointers.ctypes.data,
            self._work_pointers.ctypes.data,
            self._busy.ctypes.data,
            slots,
            max(1, torch.get_num_threads() // threads),
        )
        self.user = ctypes.addressof(self._bound)

    def value_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log density at ``z`` (d,) and its gradient (d,)."""
        # The addresses of NumPy's arrays would cost several times as much as a small density.
        point = z.detach().to(torch.float64).contiguous()
        if self._guard:
            point = torch.cat([point, point.new_zeros(self._guard)])
        grad, value = point.new_empty(self.dim), point.new_empty(())
        addresses = point.data_ptr(), grad.data_ptr(), value.data_ptr()
        self._function(self.dim, *addresses, self.user)
        raise_interrupt()
        return value, grad

    def values(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the log densities (n,) at ``points`` (n, d)."""
        points = np.ascontiguousarray(points, np.float64)
        found, grad = np.empty(len(points)), np.empty(self.dim)
        # Addresses cost several times as much as the call.
        point, value, to = points.ctypes.data, found.ctypes.data, grad.ctypes.data
        for i in range(len(points)):
            self._function(self.dim, point + 8 * self.dim * i, to, value + 8 * i, self.user)
            raise_interrupt()
        return found

    def evaluate(self, z: Tensor, grad: Tensor, value: NDArray[np.float64]) -> None:
        """Write the gradient at ``z`` (d,) to ``grad`` (d,), and the value to ``value`` ()."""
        self._function(self.dim, z.data_ptr(), grad.data_ptr(), value.ctypes.data, self.user)
        raise_interrupt()

    def __call__(self, z: Tensor) -> Tensor:
        """Return the log density at ``z`` (d,), as a scalar that autograd can differentiate."""
        return differentiable(self, z)


def _guarded(x: Tensor, guard: int) -> Tensor:
    """Return an array in the same order, with memory behind it."""
    if not guard:
        return x
    memory = torch.zeros(x.numel() + guard, dtype=x.dtype)
    return memory.as_strided(x.shape, x.stride()).copy_(x)


def differentiable(density: Any, z: Tensor) -> Tensor:
    """Return a density that computes its own gradient as a scalar that autograd can use."""
    return _Differentiable.apply(z, density)  # type: ignore[no-any-return]


class _Differentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, density: Any) -> Tensor:
        value, ctx.grad = density.value_and_grad(z)
        return value

    @staticmethod
    def backward(ctx: Any, up: Tensor) -> tuple[Tensor, None]:
        return up * ctx.grad, None
