"""The size of the operations of a step, to decide whether several threads can be faster than one.

Torch itself splits element-wise operations of at least 32768 elements. It leaves matrix products
to BLAS, which uses all threads even for products that take a few microseconds. If other processes
keep the cores busy, each such product waits for a thread without a core.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from probdl.model.recorder import DispatchMode

__all__ = ["Workload"]

aten = torch.ops.aten

MIN_PARALLEL_ELEMENTS = 32768  # at::internal::GRAIN_SIZE
MIN_PARALLEL_MULTIPLICATIONS = 1_000_000  # about 50 microseconds on one core

# By matrix product: the position of the left factor among the arguments.
_LEFT_FACTOR = {aten.mm: 0, aten.bmm: 0, aten.mv: 0, aten.dot: 0, aten.addmm: 1, aten.baddbmm: 1}


class Workload(DispatchMode):
    """Records the size of the largest operation that runs inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0
        self.multiplications = 0

    @property
    def parallel(self) -> bool:
        """Whether an operation is large enough for more than one thread."""
        return (
            self.elements >= MIN_PARALLEL_ELEMENTS
            or self.multiplications >= MIN_PARALLEL_MULTIPLICATIONS
        )

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Run an operation and record its size."""
        result = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, result)) if isinstance(x, Tensor)]
        self.elements = max(self.elements, *(x.numel() for x in tensors), 0)
        self.multiplications = max(self.multiplications, _multiplications(func, args, result))
        return result


def _multiplications(func: Any, args: Sequence[Any], result: Any) -> int:
    """Count the multiplications of a matrix product or a convolution."""
    operation = func.overloadpacket
    if operation in _LEFT_FACTOR:
        return int(result.numel() * args[_LEFT_FACTOR[operation]].shape[-1])
    if operation is aten.convolution:
        return int(result.numel() * args[1][0].numel())
    # Each resulting gradient takes as many multiplications as the convolution.
    if operation is aten.convolution_backward:
        return int(args[0].numel() * args[2][0].numel())
    return 0
