"""The density of a model on a part of its data."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from probdl.errors import ProbdlError
from probdl.model.density import LogDensity
from probdl.model.sites import discover

__all__ = ["FAILURES", "on_few_rows", "shortened"]

FEW_ROWS = 100_000
FAILURES = (ProbdlError, RuntimeError, TypeError, ValueError, LookupError, AttributeError)


def shortened(density: LogDensity, length: int, to: int) -> LogDensity:
    """Return the density of a model on the first rows of its data.

    Args:
        density: the density on all data.
        length: the number of rows, as in :meth:`Program.shortened`.
        to: the number of rows that are left.

    Raises:
        ValueError: what is known of the data holds for all rows only.
        Exception: one of ``FAILURES``, if the model does not run on fewer rows.
    """
    program = density.program.shortened(length, to)
    if program is None:
        raise ValueError("the data cannot be cut")
    return LogDensity(
        program,
        discover(program),
        prior=density.prior,
        jacobian=density.jacobian,
        params=any(block.site.kind == "param" for block in density.blocks.values()),
    )


def on_few_rows(density: LogDensity, z: Tensor) -> LogDensity:
    """Return the density of a model on the first of very many rows, or the density itself.

    What depends on the code of a model, and not on the values of its data, can be checked there in
    a fraction of the time.

    Args:
        density: the density on all data.
        z: a point (d,), at which both densities are finite.
    """
    sizes = Counter(n for x in density.program.tensors() for n in x.shape if n > FEW_ROWS)
    if not density.program.is_large or not sizes:
        return density
    try:
        few = shortened(density, sizes.most_common(1)[0][0], FEW_ROWS)
        return few if few.dim == density.dim and torch.isfinite(few(z)) else density
    except FAILURES:
        return density
