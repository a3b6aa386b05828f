"""Chains that start from the draws of an earlier fit, such as to other data or another prior."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probdl.compile import Evaluator
from probdl.errors import ModelError
from probdl.methods.mcmc.metric import Metric, low_rank
from probdl.model.density import LogDensity

__all__ = ["EarlierDraws"]

Array = NDArray[np.float64]

POINTS = 200  # draws of which the metric is
POINTS_MIN = 10
ATTEMPTS = 100  # to find a draw with a density, for a start


class EarlierDraws:
    """The draws of a fit as starting points and for the metric of another density.

    Args:
        fit: the fit, of a model with the same latent sites.
        density: the density to be sampled.
        evaluator: evaluates it.

    Raises:
        ModelError: the sites differ, or the density is zero at most draws.
    """

    def __init__(self, fit: Any, density: LogDensity, evaluator: Evaluator) -> None:
        for name, block in density.blocks.items():
            shape = None if name not in fit.draws else fit.draws[name].shape[2:]
            if shape != block.site.shape:
                there = "does not have it" if shape is None else f"has it in the shape {shape}"
                raise ModelError(
                    f"NUTS(start=fit): site '{name}' has the shape {block.site.shape} here, and "
                    f"the fit {there}. Start from a fit of a model with the same sites."
                )
        values = {name: fit.draws[name] for name in density.blocks}
        z = density.unconstrain(values).numpy().reshape(-1, density.dim)
        inside: Array = z[np.isfinite(z).all(1)]  # the supports of the sites
        self._z, self._evaluator = inside, evaluator
        if not len(inside) or self._start(0) is None:
            raise ModelError(
                "NUTS(start=fit): the density of this model is zero at the draws of the fit, which "
                "may be outside the supports of its sites. Leave out start."
            )

    def __call__(self, seed: int) -> Tensor:
        """Return the starting point of a chain, given its seed: one of the draws."""
        start = self._start(seed)
        if start is None:
            raise ModelError("The density is zero at the draws that a chain was to start from.")
        return start

    def _start(self, seed: int) -> Tensor | None:
        rng = np.random.default_rng(seed)
        for _ in range(ATTEMPTS):
            point = torch.from_numpy(self._z[rng.integers(len(self._z))].copy())
            value, gradient = self._evaluator.value_and_grad(point)
            if torch.isfinite(value) and torch.isfinite(gradient).all():
                return point
        return None

    def metric(self, cutoff: float) -> Metric | None:
        """Return the metric of the density, by its gradients at some of the draws.

        Args:
            cutoff: see ``low_rank``; infinite for a diagonal metric.

        Returns:
            None if the draws are too few, as those of a point estimate.
        """
        count = min(POINTS, len(self._z))
        chosen = self._z[np.linspace(0, len(self._z) - 1, count).astype(int)]
        points, gradients = [], []
        for point in np.unique(chosen, axis=0):
            value, gradient = self._evaluator.value_and_grad(torch.from_numpy(point.copy()))
            if torch.isfinite(value) and torch.isfinite(gradient).all():
                points.append(point)
                gradients.append(gradient.numpy())
        if len(points) < POINTS_MIN:
            return None
        return low_rank(np.stack(points), np.stack(gradients), cutoff)
