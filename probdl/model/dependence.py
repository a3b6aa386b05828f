"""Which tensors of a run are computed from the data."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from probdl.util.calls import call_leaves

__all__ = ["Dependence"]


class Dependence(TorchFunctionMode):
    """Follow tensors through the calls of torch within a context.

    >>> import torch
    >>> data, other = torch.ones(3), torch.ones(())
    >>> with Dependence([data]) as dependence:
    ...     mean, shifted = data[:2].mean(), other + 1
    >>> dependence.covers(mean), dependence.covers(shifted)
    (True, False)
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()
        self._found = {id(t): t for t in tensors}  # held, so that no other tensor has their ids

    def covers(self, *values: Any) -> bool:
        """Return whether one of the values is computed from the tensors."""
        return any(id(value) in self._found for value in values)

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        if self.covers(*call_leaves(args, kwargs)):
            written = args[:1] if func is Tensor.__setitem__ else ()
            for value in (*tree_leaves(result), *written):
                if isinstance(value, Tensor):
                    self._found[id(value)] = value
        return result
