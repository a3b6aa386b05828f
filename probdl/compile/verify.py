"""Verification of compiled code against Pyro, before it is used."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probdl.errors import ProbdlError
from probdl.util.clock import check_time_limit

__all__ = ["TOLERANCE", "MismatchError", "verify"]

# Relative, for the value and for the largest element of the gradient. Sums in another order differ
# by tens of rounding errors. The square root of the rounding error leaves room for ill-conditioned
# models, and a wrong formula has a larger error.
TOLERANCE = torch.finfo(torch.float64).eps ** 0.5
# Rounding errors of one site, relative to the largest element of the gradient, are this times the
# tolerance: 1e-14.
CANCELLED = 1e-6


class MismatchError(ProbdlError, RuntimeError):
    """Compiled code and the model compute different numbers."""


def verify(
    compiled: Any,
    density: Any,
    points: Tensor,
    *,
    gradient: bool = True,
    finite: bool = False,
    starts: Sequence[int] = (0,),
) -> float:
    """Compare value and gradient of compiled code with those of the model at points (n, d).

    Args:
        compiled: evaluates the compiled code by ``value_and_grad``.
        density: evaluates the model by ``value_and_grad``.
        points: the points.
        gradient: whether to compare the gradients; the model, if not, is called for its value.
        finite: whether both are finite at the points.
        starts: where parts of the gradient start that are compared each by itself, such as the
            sites: a change of one may be small beside the largest element of all. Where large
            terms cancel, this may also report rounding errors.

    Returns:
        The largest error relative to 1 + |value|, or to 1 + the largest element of the gradient.

    Raises:
        MismatchError: an error is above ``TOLERANCE``, or only the model is finite.
    """
    worst = 0.0
    for point in points:
        check_time_limit()
        found, found_grad = compiled.value_and_grad(point)
        if gradient:
            value, grad = density.value_and_grad(point)
        else:
            with torch.no_grad():
                value, grad = density(point), found_grad
        if not (torch.isfinite(value) and torch.isfinite(grad).all()):
            if finite:
                raise MismatchError("its compiled code is finite where the model is not")
            continue  # no method accepts such a point
        sizes = np.maximum.reduceat(grad.abs().numpy(), starts)
        errors = np.maximum.reduceat((found_grad - grad).abs().numpy(), starts)
        of_value = float(abs(found - value) / (1 + abs(value)))
        of_grad = (errors / (1 + sizes + CANCELLED * sizes.max())).max()
        error = float(np.maximum(of_value, of_grad))  # NaN if one is
        worst = max(worst, error) if not math.isnan(error) else math.inf
    if worst > TOLERANCE:
        raise MismatchError(
            f"its compiled code disagrees with the model (largest relative error {worst:.2g})"
        )
    return worst
