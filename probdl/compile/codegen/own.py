"""Operations that torch does not have."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["cholesky_backward"]


def _cholesky_backward(factor: Tensor, grad: Tensor) -> Tensor:
    inner = (factor.mT @ grad.tril()).tril()
    inner = 0.5 * (inner + inner.tril(-1).mT)
    inner = torch.linalg.solve_triangular(factor.mT, inner, upper=True)
    return torch.linalg.solve_triangular(factor, inner, upper=False, left=False)


if not hasattr(torch.ops.probdl, "cholesky_backward"):  # else this module was loaded before
    _library = torch.library.Library("probdl", "FRAGMENT")
    _library.define("cholesky_backward(Tensor factor, Tensor grad) -> Tensor")
    _library.impl("cholesky_backward", _cholesky_backward, "CPU")

cholesky_backward = torch.ops.probdl.cholesky_backward
"""From the gradient for a lower Cholesky factor (..., n, n), that for the symmetric matrix."""
