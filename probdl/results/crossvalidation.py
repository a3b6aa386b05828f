r"""Cross-validation by fitting again: without one row of the data, or without a fold of them.

.. math:: \mathrm{elpd} = \sum_i \log p(y_i | y_{-i})
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from probdl.errors import ModelError, ProbdlError, SettingError
from probdl.model import predictive
from probdl.model.sites import data_plate, discover
from probdl.util.isolation import isolated
from probdl.util.parallel import parallel_map
from probdl.util.seeds import stream

__all__ = ["CrossValidation", "cross_validate", "held_out"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class CrossValidation:
    """The expected log predictive density of new data, by cross-validation.

    Attributes:
        elpd: the sum over rows of their log predictive density, in nats, each given the folds
            that it is not in.
        standard_error: of the sum.
        pointwise: of each row, (rows,).
        folds: which fold each row is in.
    """

    elpd: float
    standard_error: float
    pointwise: Array
    folds: NDArray[np.int64]

    def __repr__(self) -> str:
        return (
            f"CrossValidation(elpd={self.elpd:.2f} ± {self.standard_error:.2g}, "
            f"{len(self.pointwise)} rows in {self.folds.max() + 1} folds)"
        )


def held_out(fit: Any, groups: Sequence[Any], *, workers: int | None, progress: bool | None) -> Any:
    """Fit again without some rows, for each group of them; return their log densities, in order.

    Data of the same shape are fitted by the same compiled code, so leaving out groups of one size
    compiles once.

    Args:
        fit: a fit, by any method.
        groups: index arrays of rows along the data plate.
        workers: how many processes.
        progress: whether to show progress.

    Raises:
        ModelError: the model has no data plate, or a fit fails.
    """
    program, structure = fit.program, fit.structure
    plate, size = data_plate(program, structure)
    tensors = program.tensors()

    def at(rows: Any) -> Any:
        index = torch.as_tensor(np.asarray(rows))
        return program.with_tensors([t[index] if t.ndim and len(t) == size else t for t in tensors])

    def work(number: int) -> Array | str:
        rows = np.asarray(groups[number])
        kept = np.setdiff1d(np.arange(size), rows)
        seed = stream(fit.seed, "fold", number)
        try:
            with isolated(seed):
                again = fit.method.run(at(kept), seed, False)
                held = at(rows)
                points, _ = predictive.log_likelihood(
                    held, discover(held), again.tensors(), quiet=True
                )
        except ProbdlError as error:
            return str(error)
        if len(points) != len(structure.of("observed")):
            return "its rows have no log likelihoods of their own"
        total = np.zeros(len(rows))
        for score in points.values():
            mean = predictive.log_mean_exp(score)
            if mean.ndim < 1 or len(mean) != len(rows):
                return f"an observed site does not run along the plate '{plate}'"
            total += mean.reshape(len(rows), -1).sum(1).numpy()
        return total

    found = parallel_map(
        work, len(groups), workers=workers, description="fitting again", progress=progress
    )
    for number, scores in enumerate(found):
        if isinstance(scores, str):
            raise ModelError(f"the fit without group {number} of the rows failed: {scores}.")
    return found


def cross_validate(
    fit: Any, k: int, *, workers: int | None = None, progress: bool | None = None
) -> CrossValidation:
    """Cross-validate a fit in k folds, drawn at random; see ``Fit.cross_validate``."""
    _, size = data_plate(fit.program, fit.structure)
    if not 2 <= k <= size:
        raise SettingError(f"k={k} folds: at least 2, and at most the {size} rows of the data.")
    order = np.random.default_rng(stream(fit.seed, "folds")).permutation(size)
    groups = [np.sort(part) for part in np.array_split(order, k)]
    scores = held_out(fit, groups, workers=workers, progress=progress)
    if len(scores) < k:
        raise KeyboardInterrupt
    pointwise, folds = np.empty(size), np.empty(size, np.int64)
    for number, (rows, of_rows) in enumerate(zip(groups, scores, strict=True)):
        pointwise[rows], folds[rows] = of_rows, number
    error = math.sqrt(size) * float(pointwise.std(ddof=1))
    return CrossValidation(float(pointwise.sum()), error, pointwise, folds)
