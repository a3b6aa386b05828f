"""Find models that catch a failure of linear algebra, as of a matrix that is not positive definite.

In compiled code, such a failure is a log density of -inf. A model may handle it in another way, as
by adding to the diagonal in ``except torch.linalg.LinAlgError``. To find out, each place where a
failure is possible is made to fail once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from probdl.model.recorder import DispatchMode, calls

__all__ = ["catches_failures"]

MAX_PLACES = 10


class _Failing(DispatchMode):
    """Notes where failures are possible, and makes one of them happen.

    Attributes:
        places: the calls on the way to each of them, with the number of calls before the first.
    """

    def __init__(self, at: int | None = None) -> None:
        super().__init__()
        self.places: dict[Any, int] = {}
        self._at, self._count = at, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func is torch.ops.aten._linalg_check_errors.default:
            self.places.setdefault(calls(sys._getframe(1)), self._count)
            self._count += 1
            if self._at == self._count - 1:
                raise LinAlgError("linalg: the factorization failed.")
        return func(*args, **(kwargs or {}))


def catches_failures(function: Callable[..., Tensor], inputs: Sequence[Tensor]) -> bool:
    """Return whether a function of inputs has a finite value although linear algebra fails."""
    mode = _Failing()
    _value(function, inputs, mode)
    for first in [*mode.places.values()][:MAX_PLACES]:
        value = _value(function, inputs, _Failing(first))
        if value is not None and bool(torch.isfinite(value).all()):
            return True
    return False


def _value(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], mode: _Failing
) -> Tensor | None:
    try:
        with torch.random.fork_rng(devices=[]), mode:
            return function(*inputs)
    except Exception:  # the failure, or what the model makes of it
        return None
