r"""Weighted draws of a wide density, with which an approximation is compared.

Importance weights of an approximation's own draws say little where it has no draws. Student's t
distribution at the same place covers the tails. Its location and scale are fitted to its weighted
draws several times (adaptive importance sampling), so the approximation need not be close.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

from probdl.compile import Evaluator
from probdl.compile.runtime.native_density import NativeDensity
from probdl.findings import EXPECTATION_K_MAX, PARETO_K_MAX
from probdl.io.pareto import psis
from probdl.model.density import LogDensity
from probdl.results.weights import Reference, log_evidence_of, weights_ess
from probdl.util.clock import check_time_limit

__all__ = ["find_reference", "has_reference"]

Array = NDArray[np.float64]

DIM_MAX = 30  # in more dimensions, t distributions and posteriors have little in common
FREEDOM = 5.0  # of Student's t distribution
# Draws; the location and scale of each round come from the one before.
FIRST_ROUNDS = (1000, 2000)
LAST_ROUND_MIN, LAST_ROUND_MAX = 4000, 20_000
# Of the draws of the last round. The t distribution comes closer to a posterior with one mode and
# without a bend, in up to ten dimensions.
ESS_SHARE_MIN = 0.25
# With weights as even as these, a bound on k-hat that holds for means of the draws is enough.
EVEN_SHARE_MIN = 0.79
CALL_WORK = 3000  # values that native code evaluates in the time of a call of torch
WORK_MAX = 2e7  # draws times observed values that one evaluation of all draws may take


def find_reference(
    density: LogDensity, evaluator: Evaluator, z: Array, seed: int
) -> Reference | None:
    """Return weighted draws of the posterior, or None if the weights are not reliable.

    Args:
        density: the log density on R^d.
        evaluator: evaluates it. There is no reference without native code, which is fast and where
            a failure of linear algebra is a density of zero.
        z: draws (n, d) of an approximation.
        seed: all random numbers derive from it.
    """
    if not (isinstance(evaluator, NativeDensity) and has_reference(density)):
        return None
    last = min(LAST_ROUND_MAX, int(WORK_MAX / (_elements(density) + CALL_WORK * evaluator.calls)))
    if last < LAST_ROUND_MIN:
        return None
    rng = np.random.default_rng(seed)
    log_weights: Array = np.full(len(z), -math.log(len(z)))
    for count in (*FIRST_ROUNDS, last):
        try:
            mean, root = _moments(z, log_weights)
        except np.linalg.LinAlgError:  # the draws are not finite, or in a subspace
            return None
        z, log_q = _draw(mean, root, count, rng)
        check_time_limit()
        ratios = evaluator.values(z) - log_q
        ratios = np.where(np.isfinite(ratios), ratios, -np.inf)
        if not np.isfinite(ratios).any():
            return None
        log_weights, pareto_k = psis(ratios)
    share = weights_ess(log_weights) / len(log_weights)
    k_max = PARETO_K_MAX if share > EVEN_SHARE_MIN else EXPECTATION_K_MAX
    if not pareto_k < k_max or share < ESS_SHARE_MIN:
        return None
    values = density.constrain(torch.from_numpy(z))
    log_evidence = log_evidence_of(ratios)
    if any(block.site.distribution == "VonMises" for block in density.blocks.values()):
        log_evidence = math.nan  # the draws are on several turns
    draws = {name: values[name].numpy() for name in density.blocks}
    return Reference(draws, log_weights, log_evidence)


def has_reference(density: LogDensity) -> bool:
    """Return whether the dimension and the data are small enough for a reference."""
    return density.dim <= DIM_MAX and LAST_ROUND_MIN * _elements(density) <= WORK_MAX


def _elements(density: LogDensity) -> int:
    return max(density.structure.count_values("observed"), density.dim)


def _moments(z: Array, log_weights: Array) -> tuple[Array, Array]:
    """Return the weighted mean (d,), and a root (d, d) of the weighted covariance.

    Raises:
        LinAlgError: the covariance is singular.
    """
    w = np.exp(log_weights)
    mean = w @ z
    centred = z - mean
    scale = np.sqrt(w @ centred**2)
    correlation = (w * (centred / scale).T) @ (centred / scale)
    return mean, scale[:, None] * np.linalg.cholesky(correlation)


def _draw(mean: Array, root: Array, count: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Return draws (count, d) of Student's t distribution, and their log densities (count,)."""
    dim = len(mean)
    noise = rng.standard_normal((count, dim))
    noise *= np.sqrt(FREEDOM / rng.chisquare(FREEDOM, (count, 1)))
    constant = math.lgamma((FREEDOM + dim) / 2) - math.lgamma(FREEDOM / 2)
    constant -= dim / 2 * math.log(FREEDOM * math.pi) + np.log(np.diag(root)).sum()
    log_q = constant - (FREEDOM + dim) / 2 * np.log1p((noise**2).sum(1) / FREEDOM)
    return mean + noise @ root.T, log_q
