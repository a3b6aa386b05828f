r"""Cholesky factors whose gradient is one operation.

Torch's gradient takes one product and two triangular systems, :math:`4 n^3` operations, where
:math:`\frac23 n^3` are enough. While a function is recorded, its factors are replaced by these.

Source: Murray, "Differentiation of the Cholesky decomposition", arXiv 1602.07527.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from probdl.compile.codegen.own import cholesky_backward

__all__ = ["REPLACEMENTS"]

MIN_SIZE = 16  # smaller factors are loops that share others of the model


class _Cholesky(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, matrix: Tensor) -> tuple[Tensor, Tensor]:
        factor, info = torch.linalg.cholesky_ex(matrix)
        ctx.save_for_backward(factor)
        ctx.mark_non_differentiable(info)
        return factor, info

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> Tensor:
        (factor,) = ctx.saved_tensors
        return cholesky_backward(factor, grad)  # type: ignore[no-any-return]


def _cholesky_ex(*args: Any, **kwargs: Any) -> Any:
    if not _is_replaced(args, kwargs):
        return torch.linalg.cholesky_ex(*args, **kwargs)
    return torch.return_types.linalg_cholesky_ex(_Cholesky.apply(*args))  # type: ignore[attr-defined]


def _cholesky(*args: Any, **kwargs: Any) -> Any:
    if not _is_replaced(args, kwargs):
        return torch.linalg.cholesky(*args, **kwargs)
    factor, info = _Cholesky.apply(*args)
    torch.ops.aten._linalg_check_errors(info, "linalg.cholesky", is_matrix=info.ndim == 0)
    return factor


def _is_replaced(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Return whether the arguments are one large matrix, without options."""
    if kwargs or len(args) != 1:
        return False
    (x,) = args
    return bool(x.requires_grad) and x.dtype == torch.float64 and x.shape[-1] >= MIN_SIZE


REPLACEMENTS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.linalg.cholesky: _cholesky,
    torch.linalg.cholesky_ex: _cholesky_ex,
}
"""Functions of torch, and what is recorded instead."""
