"""Regression models."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
from torch import Tensor

__all__ = ["linear_regression", "logistic_regression"]


def linear_regression(
    x: Tensor, y: Tensor | None = None, scale: float = 10.0, noise: float | None = None
) -> None:
    r"""y_i ~ Normal(intercept + x_i beta, sigma), with normal priors on the coefficients.

    Args:
        x: the predictors, shape (n, p), ideally of about unit scale.
        y: the response, shape (n,).
        scale: the prior standard deviation of intercept and coefficients.
        noise: sigma, if it is known (the posterior is then normal); None: sigma ~ HalfNormal(10).

    >>> import numpy as np, probdl
    >>> x = np.array([[0.0], [1.0], [2.0]])
    >>> fit = probdl.infer(linear_regression, x, x[:, 0] * 2 + 1, noise=1.0, method="mle", seed=1)
    >>> fit.draws["beta"].round(6).item()
    2.0
    """
    intercept = pyro.sample("intercept", dist.Normal(0.0, scale))
    with pyro.plate("predictor", x.shape[-1]):
        beta = pyro.sample("beta", dist.Normal(0.0, scale))
    sigma = pyro.sample("sigma", dist.HalfNormal(10.0)) if noise is None else noise
    mean = intercept + x @ beta
    with pyro.plate("obs", len(x)):
        pyro.sample("y", dist.Normal(mean, sigma), obs=y)


def logistic_regression(x: Tensor, y: Tensor | None = None, scale: float = 2.5) -> None:
    r"""y_i ~ Bernoulli(logit = intercept + x_i beta), with normal priors on the coefficients.

    Args:
        x: the predictors, shape (n, p), ideally of about unit scale.
        y: the classes, 0 or 1, shape (n,).
        scale: the prior standard deviation; 2.5 keeps most probabilities away from 0 and 1 (Gelman,
            Jakulin, Pittau and Su, *Annals of Applied Statistics* 2, 2008).

    >>> import numpy as np, probdl
    >>> x, y = np.array([[0.0], [0.0], [1.0], [1.0]]), np.array([0, 1, 0, 1])
    >>> fit = probdl.infer(logistic_regression, x, y, method="map", seed=1)
    >>> abs(fit.draws["beta"].item()) < 1e-6
    True
    """
    intercept = pyro.sample("intercept", dist.Normal(0.0, scale))
    with pyro.plate("predictor", x.shape[-1]):
        beta = pyro.sample("beta", dist.Normal(0.0, scale))
    logits = intercept + x @ beta
    with pyro.plate("obs", len(x)):
        pyro.sample("y", dist.Bernoulli(logits=logits), obs=y)
