"""The matrix of second derivatives of a log density."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from probdl.util.clock import check_time_limit

__all__ = ["hessian"]

# After the first rows, the others are computed together if they would take more seconds than this.
FIRST_ROWS, SECONDS = 3, 0.7
ROWS, ROWS_MIN = 64, 4  # together
NUMBERS = 2**20  # of the rows together, each with the largest tensor of the data
SAME = 1e-10  # relative error of a row


def hessian(density: Callable[[Tensor], Tensor], z: Tensor, numbers: int) -> Tensor:
    """Return the matrix of second derivatives (d, d) of a function at ``z`` (d,).

    Args:
        density: the function.
        z: the point.
        numbers: of the largest tensor of its data.
    """
    with torch.inference_mode(False), torch.enable_grad():
        z = z.detach().clone().requires_grad_()
        (grad,) = torch.autograd.grad(density(z), z, create_graph=True)
        if not grad.requires_grad:  # linear
            return torch.zeros(len(z), len(z), dtype=z.dtype)
        rows: list[Tensor] = []
        started = time.perf_counter()
        while len(rows) < len(z):
            check_time_limit()
            # For an argument grad_outputs, torch imports SymPy, which takes half a second.
            (row,) = torch.autograd.grad(
                grad[len(rows)], z, retain_graph=True, materialize_grads=True
            )
            rows.append(row)
            left = (time.perf_counter() - started) * (len(z) / len(rows) - 1)
            if len(rows) == FIRST_ROWS and left > SECONDS:
                size = min(ROWS, NUMBERS // max(numbers, len(z)))
                rows += _rows_together(grad, z, rows, size)
        return torch.stack(rows)


def _rows_together(grad: Tensor, z: Tensor, rows: list[Tensor], size: int) -> list[Tensor]:
    """Return the rows after some, in parts of a size; none if an operation is not able to.

    A loop over time takes as long for many rows as for one.
    """
    if size < ROWS_MIN:
        return []
    found: list[Tensor] = []
    unit = torch.eye(len(z), dtype=z.dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # torch would take one row after another
        try:
            # The last of the rows that are known shows that they agree.
            for of in unit[len(rows) - 1 :].split(size):
                check_time_limit()
                (part,) = torch.autograd.grad(
                    grad,
                    z,
                    of,
                    retain_graph=True,
                    is_grads_batched=True,
                    materialize_grads=True,
                )
                found += part
        except (RuntimeError, UserWarning):
            return []
    known, *others = found
    error = (known - rows[-1]).abs().max()
    return others if error <= SAME * rows[-1].abs().max() else []
