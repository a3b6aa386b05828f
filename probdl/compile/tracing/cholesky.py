r"""Cholesky factors whose gradient is one operation.

Torch's gradient takes one product and two triangular systems, :math:`4 n^3` operations, where
:math:`\frac23 n^3` are enough. While a function is recorded, its factors are replaced by these.

Source: Murray, "Differentiation of the Cholesky decomposition", arXiv 1602.07527.
"""

from __future__ import annotations

from collections.abc import Callable
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


def _cholesky_ex(matrix: Tensor, *, upper: bool = False, check_errors: bool = False) -> Any:
    if upper or not _is_replaced(matrix):
        return torch.linalg.cholesky_ex(matrix, upper=upper, check_errors=check_errors)
    factor, info = _Cholesky.apply(matrix)
    if check_errors:
        _check(info, matrix)
    return torch.return_types.linalg_cholesky_ex((factor, info))  # type: ignore[attr-defined]


def _cholesky(matrix: Tensor, *, upper: bool = False) -> Tensor:
    if upper or not _is_replaced(matrix):
        return torch.linalg.cholesky(matrix, upper=upper)
    factor, info = _Cholesky.apply(matrix)
    _check(info, matrix)
    return factor  # type: ignore[no-any-return]


def _is_replaced(matrix: Tensor) -> bool:
    return matrix.requires_grad and matrix.dtype == torch.float64 and matrix.shape[-1] >= MIN_SIZE


def _check(info: Tensor, matrix: Tensor) -> None:
    torch.ops.aten._linalg_check_errors(info, "linalg.cholesky", is_matrix=matrix.ndim == 2)


REPLACEMENTS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.linalg.cholesky: _cholesky,
    torch.linalg.cholesky_ex: _cholesky_ex,
}
"""Functions of torch, and what is recorded instead."""
