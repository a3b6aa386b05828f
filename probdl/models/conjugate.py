"""Conjugate models, whose posterior has a closed form (Gelman et al., *BDA3*, chapter 2)."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
from torch import Tensor

__all__ = ["beta_binomial", "gamma_poisson", "normal_normal"]


def beta_binomial(
    trials: Tensor, successes: Tensor | None = None, a: float = 1.0, b: float = 1.0
) -> None:
    r"""P ~ Beta(a, b), successes_i ~ Binomial(trials_i, p).

    The posterior of p is Beta(a + sum successes, b + sum (trials - successes)).

    Args:
        trials: the number of trials of each observation, shape (n,).
        successes: the number of successes of each observation, shape (n,).
        a: the first parameter of the prior, the prior number of successes plus one.
        b: the second parameter of the prior, the prior number of failures plus one.

    >>> import numpy as np, probdl
    >>> fit = probdl.infer(beta_binomial, np.array([10]), np.array([7]), method="mle", seed=1)
    >>> round(fit.draws["p"].item(), 6)
    0.7
    """
    p = pyro.sample("p", dist.Beta(a, b))
    with pyro.plate("obs", len(trials)):
        pyro.sample("successes", dist.Binomial(trials, p), obs=successes)


def gamma_poisson(
    exposure: Tensor, count: Tensor | None = None, shape: float = 1.0, rate: float = 1.0
) -> None:
    r"""Intensity ~ Gamma(shape, rate), count_i ~ Poisson(intensity * exposure_i).

    The posterior of the intensity is Gamma(shape + sum count, rate + sum exposure).

    Args:
        exposure: the exposure of each count, such as a duration or an area, shape (n,).
        count: the counts, shape (n,).
        shape: the shape of the prior.
        rate: the rate of the prior, in units of exposure.

    >>> import numpy as np, probdl
    >>> exposure, count = np.array([2.0, 2.0]), np.array([1, 3])
    >>> fit = probdl.infer(gamma_poisson, exposure, count, method="map", seed=1)
    >>> round(fit.draws["intensity"].item(), 6)       # (1 + 4 - 1) / (1 + 4)
    0.8
    """
    intensity = pyro.sample("intensity", dist.Gamma(shape, rate))
    with pyro.plate("obs", len(exposure)):
        pyro.sample("count", dist.Poisson(intensity * exposure), obs=count)


def normal_normal(
    sigma: Tensor, y: Tensor | None = None, mean: float = 0.0, scale: float = 1.0
) -> None:
    r"""Mu ~ Normal(mean, scale), y_i ~ Normal(mu, sigma_i).

    The posterior of mu is normal with precision 1/scale² + sum 1/sigma², and its mean is the
    precision-weighted mean of prior and observations.

    Args:
        sigma: the known standard deviation of each observation, shape (n,).
        y: the observations, shape (n,).
        mean: the prior mean.
        scale: the prior standard deviation.

    >>> import numpy as np, probdl
    >>> fit = probdl.infer(normal_normal, np.ones(3), np.ones(3), method="map", seed=1)
    >>> round(fit.draws["mu"].item(), 6)
    0.75
    """
    mu = pyro.sample("mu", dist.Normal(mean, scale))
    with pyro.plate("obs", len(sigma)):
        pyro.sample("y", dist.Normal(mu, sigma), obs=y)
