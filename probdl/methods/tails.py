r"""Check whether the moments of a posterior exist, by the density far out along each coordinate.

Where the density of a scalar x falls like :math:`|x|^{-a}`, its mean exists only if :math:`a > 2`,
and its variance only if :math:`a > 3`. Draws show this late and by chance: ten thousand draws of a
Cauchy distribution have a mean and a standard deviation like any others.
"""

from __future__ import annotations

import math
from contextlib import nullcontext

import numpy as np
import torch
from numpy.typing import NDArray

from probdl.compile import Evaluator
from probdl.findings import Finding
from probdl.model.density import LogDensity
from probdl.util.deadline import deadline

__all__ = ["check_tails"]

# The conditional density of a site with such a prior falls faster than any power, unless the
# likelihood rises.
LIGHT = {
    *("Normal", "MultivariateNormal", "LowRankMultivariateNormal", "HalfNormal", "Exponential"),
    *("Gamma", "Laplace", "Logistic", "Gumbel", "Chi2", "Beta", "Uniform", "Dirichlet", "VonMises"),
    *("LKJCholesky", "LKJ", "Kumaraswamy", "AsymmetricLaplace"),
}
COORDINATES_MAX = 100  # of all sites together, but at least one of each
FAR = (1e4, 1e6, 1e8)  # distances, in standard deviations of the draws
FAR_ON_LOG_SCALE = (15.0, 25.0, 35.0)  # of positive sites: factors of 3e6 to 2e15
STEADY_MAX = 0.05  # difference of two powers by which they are the same
HEAVY_MAX = 3.0 + STEADY_MAX
SECONDS_MAX = 5.0  # of models that run in Python, which may take very long far out
POINTS = 3  # draws at which the other coordinates are held


def check_tails(density: LogDensity, evaluator: Evaluator, z: NDArray[np.float64]) -> list[Finding]:
    """Report sites whose posterior has no mean or no variance.

    Args:
        density: the log density on R^d.
        evaluator: evaluates it.
        z: draws (..., d).
    """
    draws = z.reshape(-1, density.dim)
    points = draws[np.linspace(0, len(draws) - 1, POINTS).astype(int)]
    heavy: dict[str, tuple[float, str]] = {}
    candidates = {
        name: block
        for name, block in density.blocks.items()
        if block.coordinates != "other" and block.site.distribution not in LIGHT
    }
    each = max(1, COORDINATES_MAX // max(1, len(candidates)))
    in_python = evaluator.engine == "eager"  # other engines take the same time everywhere
    with deadline(SECONDS_MAX) if in_python else nullcontext():
        for name, block in candidates.items():
            log_scale = block.coordinates == "log"
            for i in range(block.start, block.start + min(block.size, each)):
                far = np.array(FAR_ON_LOG_SCALE if log_scale else FAR)
                far *= 1 if log_scale else draws[:, i].std()
                for shifts in [far] if log_scale else [far, -far]:
                    powers = [_power(evaluator, point, i, shifts, log_scale) for point in points]
                    if max(powers) < heavy.get(name, (HEAVY_MAX, ""))[0]:
                        heavy[name] = max(powers), density.labels[i]
    if not heavy:
        return []
    power, label = min(heavy.values())
    lacks = "mean" if power <= 2 + STEADY_MAX else "variance"
    if power <= 1 + STEADY_MAX:
        lacks = "integral"
    also = f" (the heaviest of {len(heavy)} such sites)" if len(heavy) > 1 else ""
    return [
        Finding(
            "warning",
            "heavy_tail",
            f"The posterior of '{label}'{also} falls only like the power -{power:.2g} of its "
            f"value, so it has no {lacks}. Means and standard deviations of draws depend on a few "
            "extreme draws.",
            "Report the median and quantiles, or use a prior with lighter tails.",
            tuple(heavy),
        )
    ]


def _power(
    evaluator: Evaluator,
    point: NDArray[np.float64],
    i: int,
    shifts: NDArray[np.float64],
    log_scale: bool,
) -> float:
    """Return a, if the density of the site falls like x**(-a) far along a coordinate, else inf."""
    values = []
    for shift in shifts:
        ahead = point.copy()
        ahead[i] += shift
        values.append(float(evaluator.value_and_grad(torch.from_numpy(ahead))[0]))
    # On the log scale, the density has a Jacobian x.
    log_x = shifts if log_scale else np.log(np.abs(shifts))
    with np.errstate(all="ignore"):
        slopes = np.diff(values) / np.diff(log_x)
    if not np.isfinite(slopes).all() or abs(slopes[0] - slopes[1]) > STEADY_MAX:
        return math.inf
    return float(log_scale - slopes[1])
