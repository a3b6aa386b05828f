"""Let a program compute in one floating-point dtype, whatever its code asks for."""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.distributions.utils import broadcast_all
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from probdl.util.calls import frame_outside

__all__ = ["Precision"]

_CASTS = {
    Tensor.float: torch.float32,
    Tensor.half: torch.float16,
    Tensor.bfloat16: torch.bfloat16,
    Tensor.double: torch.float64,
}
_DTYPE = Tensor.dtype.__get__  # type: ignore[attr-defined]
_VIEWS = {Tensor.T.__get__, Tensor.mT.__get__, Tensor.H.__get__, Tensor.mH.__get__}  # type: ignore[attr-defined]
_OF_PARAMETERS = {torch.tensor, torch.broadcast_tensors}
_BROADCAST = {  # with its list comprehension, which has its own code before Python 3.12
    broadcast_all.__code__,
    *(x for x in broadcast_all.__code__.co_consts if isinstance(x, types.CodeType)),
}
_BETWEEN = ("probdl.", "torch.overrides", "torch.functional")  # a distribution and a mode
# Parts of torch's messages about mixed dtypes, and about drawing from integers.
_DTYPE_ERRORS = ("dtype", "scalar type", "not implemented for 'Long'")


class Precision:
    """The dtype that one or several programs compute in.

    Most programs use a single dtype anyway. The first run shows whether one does; the others are
    then run under a mode of torch, which costs some microseconds for each operation.

    A float32 program may compute in float64 where it says so, for precision, as long as it works.

    Args:
        dtype: the dtype.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._mixed: bool | None = None if dtype == torch.float64 else False

    @contextmanager
    def enforced(self) -> Iterator[None]:
        """Compute in the one dtype within a context."""
        if self._mixed is False:
            yield
            return
        mode = _OneDtype(self.dtype)
        with mode:
            yield
        self._mixed = bool(self._mixed) or mode.needed

    def explains(self, error: Exception) -> bool:
        """Return whether a program failed since it mixes dtypes; then it no longer does."""
        if self._mixed or not any(part in str(error) for part in _DTYPE_ERRORS):
            return False
        self._mixed = True
        return True


@functools.lru_cache(maxsize=10_000)
def _kind(func: Any) -> str:
    """Return what a function of torch does with dtypes."""
    name = getattr(func, "__name__", "")
    if name == "__get__" and func is not _DTYPE:
        return "view" if func in _VIEWS else "attribute"
    if func in _CASTS:
        return "cast"
    if name.endswith("_") and (name == "__setitem__" or not name.endswith("__")):
        return "write"
    return "plain"


def _distribution_of(func: Any) -> str:
    """Return the module of the distribution that gives its parameters one dtype by a function.

    It is that of the first tensor, so 2.5 would be 2 in ``Normal(x, 2.5)`` with integers ``x``, and
    values would be integers in ``Gamma(2.0, x)``. '' if the function has another purpose.
    """
    if func not in _OF_PARAMETERS:
        return ""
    frame = frame_outside(sys._getframe(2), _BETWEEN)
    if frame.f_code not in _BROADCAST:
        return ""
    while frame.f_code in _BROADCAST:
        frame = frame.f_back
    return str(frame.f_globals.get("__name__", "")) or "unknown"


def _is_integer(x: Any) -> bool:
    return isinstance(x, Tensor) and not (x.is_floating_point() or x.is_complex())


class _OneDtype(TorchFunctionMode):
    """Compute in one floating-point dtype, whatever the program asks for.

    Tensors of another dtype (data or networks in a closure, priors made before the run) are cast
    where torch functions receive them, and ``x.float()`` or ``dtype=torch.float32`` gives the one
    dtype: otherwise a matrix product of two dtypes is an error in torch, and a value that was
    rounded to float32 limits the precision of all that follows.

    Args:
        dtype: the dtype.

    Attributes:
        needed: whether anything was cast so far.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.needed = False

    def _is_plain(self, x: Any) -> bool:
        kind = type(x)
        return (kind is Tensor and x.dtype is self.dtype) or kind is float or kind is int

    def _is_other(self, x: Any) -> bool:
        if isinstance(x, Tensor):
            return x.is_floating_point() and x.dtype != self.dtype
        return isinstance(x, torch.dtype) and x.is_floating_point and x != self.dtype

    def _cast(self, x: Any) -> Any:
        if not self._is_other(x):
            return x
        self.needed = True
        return x.to(self.dtype) if isinstance(x, Tensor) else self.dtype

    def _cast_all(self, x: Any) -> Any:
        if isinstance(x, torch.Size):  # as a list, Tensor.new() would take it as the numbers
            return x
        nested = isinstance(x, (list, tuple, dict)) and x
        return tree_map(self._cast, x) if nested else self._cast(x)

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kind, kwargs = _kind(func), kwargs or {}
        if kind == "plain" and not kwargs and all(map(self._is_plain, args)):  # most calls
            result = func(*args)
            return result if self._is_plain(result) else self._cast(result)
        if kind == "attribute":
            return func(*args)
        if kind == "view":
            return self._cast(func(*args))
        if kind == "cast":
            self.needed |= _CASTS[func] != self.dtype
            func, kwargs = Tensor.to, {**kwargs, "dtype": self.dtype}
        if module := _distribution_of(func):
            if func is torch.tensor:
                self.needed |= type(args[0]) is float and not kwargs["dtype"].is_floating_point
                kwargs = {**kwargs, "dtype": self.dtype}
            else:
                self.needed |= not module.endswith("binomial") and any(map(_is_integer, args))
            args = tuple(x.to(self.dtype) if _is_integer(x) else x for x in args)
        written = ()
        if kind == "write":
            written, args = args[:1], args[1:]  # must stay the same tensor
        result = func(*written, *map(self._cast_all, args), **self._cast_all(kwargs))
        # Made of an array of another dtype, or cast by a name such as "torch.FloatTensor".
        return result if written else self._cast(result)
