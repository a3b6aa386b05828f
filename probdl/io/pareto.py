r"""Pareto-smoothed importance sampling.

It gives ArviZ's figures, whose import takes longer than a small fit.

Source: Vehtari, Simpson, Gelman, Yao and Gabry, "Pareto smoothed importance sampling", Journal of
Machine Learning Research 25 (2024); Zhang and Stephens, "A new and efficient estimation method for
the generalized Pareto distribution", Technometrics 51 (2009), for the fit of the tail.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["psis"]

Array = NDArray[np.float64]

TAIL_MIN = 5  # ratios that a tail is fitted to
EQUAL = 1e-9  # a smaller range of log ratios is rounding
NEGLIGIBLE = 10 * np.finfo(float).eps  # share of a shape in its posterior


def psis(log_ratios: Array) -> tuple[Array, float]:
    r"""Pareto-smooth log importance ratios (n,), and return log weights (n,) and k-hat.

    The largest :math:`m = \min(n / 5, 3 \sqrt n)` ratios are replaced by the expected order
    statistics of a generalised Pareto distribution of shape :math:`\hat k`, which is fitted to
    them, but by no more than the largest ratio. The weights add up to 1.

    Equal ratios have no tail: k-hat is then -inf. It is inf if no distribution can be fitted.
    """
    count = len(log_ratios)
    of_tail = int(3 * count**0.5 if count > 225 else count / 5)
    with np.errstate(all="ignore"):  # the fit of a very heavy tail overflows
        log_weights = np.asarray(log_ratios, np.float64) - np.max(log_ratios)
        if log_weights.min() > -EQUAL:
            return np.full(count, -math.log(count)), -math.inf
        k = math.inf
        if of_tail >= TAIL_MIN:
            below, *tail = np.argsort(log_weights)[-of_tail - 1 :]
            cutoff = math.exp(log_weights[below])
            k, scale = _fit(np.exp(log_weights[tail]) - cutoff)
            if math.isfinite(k) and scale > 0:
                log_survival = np.log1p(-(np.arange(of_tail) + 0.5) / of_tail)
                excess = scale * (np.expm1(-k * log_survival) / k if k else -log_survival)
                log_weights[tail] = np.minimum(np.log(cutoff + excess), 0.0)
        return log_weights - np.log(np.exp(log_weights).sum()), k


def _fit(excesses: Array) -> tuple[float, float]:
    """Return shape and scale of a generalised Pareto distribution, from sorted values (m,).

    They are posterior means under a weak prior of the shape. The shape is inf if the values are
    far from any such distribution.
    """
    count = len(excesses)
    place = int(count / 4 + 0.5) - 1
    quartile = excesses[place]
    if quartile <= (excesses[0] if place else 0.0):  # equal values
        return math.inf, math.nan
    grid = 30 + int(count**0.5)
    places = 1 - np.sqrt(grid / (np.arange(grid) + 0.5))
    thetas = places / (3 * quartile) + 1 / excesses[-1]  # each is -k / scale
    shapes = np.log1p(-thetas[:, None] * excesses).mean(1)
    profile = count * (np.log(-thetas / shapes) - shapes - 1)
    shares = np.exp(profile - profile.max())
    shares /= shares.sum()
    kept = shares >= NEGLIGIBLE
    theta = shares[kept] @ thetas[kept] / shares[kept].sum()
    shape = np.log1p(-theta * excesses).mean()
    k = (count * shape + 10 * 0.5) / (count + 10)
    return (math.inf if math.isnan(k) else float(k)), float(-shape / theta)
