"""Compiled code against Pyro itself, before it is trusted."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from probdl.errors import ProbdlError
from probdl.model.density import LogDensity
from probdl.util.clock import look

__all__ = ["TOLERANCE", "MismatchError", "verify"]

# Of the value, and of the largest element of the gradient. Sums in another order differ by some
# tens of rounding errors; the square root of the rounding error leaves room for ill-conditioned
# models, and a wrong formula is never this near.
TOLERANCE = torch.finfo(torch.float64).eps ** 0.5


class MismatchError(ProbdlError, RuntimeError):
    """Compiled code gives other numbers than the model."""


def verify(compiled: Any, density: LogDensity, points: Tensor) -> float:
    """Compare value and gradient at points (n, d) with those of the model itself.

    Returns:
        The largest error, relative to 1 + the size of what was compared.

    Raises:
        MismatchError: an error is above ``TOLERANCE``, or only one side is finite.
    """
    worst = 0.0
    for point in points:
        look()
        value, grad = density.value_and_grad(point)
        if not (torch.isfinite(value) and torch.isfinite(grad).all()):
            continue  # a point of density zero, or where its gradient fails: no one goes there
        found, found_grad = compiled.value_and_grad(point)
        error = max(
            float(abs(found - value) / (1 + abs(value))),
            float((found_grad - grad).abs().max() / (1 + grad.abs().max())),
        )
        worst = max(worst, error) if not math.isnan(error) else math.inf
    if worst > TOLERANCE:
        raise MismatchError(
            f"its compiled code disagrees with the model (largest relative error {worst:.2g})"
        )
    return worst
