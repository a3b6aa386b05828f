"""How large the operations of a step are: whether more than one thread can gain anything.

Torch itself divides element-wise work from 32768 elements on. Matrix products it leaves to BLAS,
which takes all threads for products of a few microseconds as well; where other work has the cores,
each then waits for a thread that has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["Workload"]

aten = torch.ops.aten

ELEMENTS = 32768  # at::internal::GRAIN_SIZE
MULTIPLICATIONS = 1_000_000  # about 50 microseconds on one core, where two gain little

_LEFT = {aten.mm: 0, aten.bmm: 0, aten.mv: 0, aten.dot: 0, aten.addmm: 1, aten.baddbmm: 1}


class Workload(TorchDispatchMode):
    """Notes the largest of the operations that run within it."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0
        self.multiplications = 0

    @property
    def parallel(self) -> bool:
        """Whether an operation is large enough for more than one thread."""
        return self.elements >= ELEMENTS or self.multiplications >= MULTIPLICATIONS

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Run an operation and note its size."""
        result = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, result)) if isinstance(x, Tensor)]
        self.elements = max(self.elements, *(x.numel() for x in tensors), 0)
        self.multiplications = max(self.multiplications, _multiplications(func, args, result))
        return result


def _multiplications(func: Any, args: Sequence[Any], result: Any) -> int:
    """Count the multiplications of a matrix product or a convolution."""
    operation = func.overloadpacket
    if operation in _LEFT:
        return int(result.numel() * args[_LEFT[operation]].shape[-1])
    if operation is aten.convolution:
        return int(result.numel() * args[1][0].numel())
    # Its results are gradients; each takes as much as the product that it belongs to.
    if operation is aten.convolution_backward:
        return int(args[0].numel() * args[2][0].numel())
    return 0
