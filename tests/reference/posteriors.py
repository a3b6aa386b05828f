"""The reference posteriors as Pyro programs, written as a user would write them.

Each entry of ``POSTERIORS`` maps the data of a file in the posteriordb folder to the arguments of a
model, and draws of the model's sites to the parameters in the file. The README of the folder
describes the models; priors that it does not name are flat.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints

from probdl.models import eight_schools

real, positive = constraints.real, constraints.positive


def flat(name, support=real, event_shape=()):
    """Sample a site with a flat prior."""
    return pyro.sample(name, dist.ImproperUniform(support, (), event_shape))


def flat_regression(x, y=None, scale=None):
    """y ~ N(x beta, sigma), beta flat, sigma flat or half-Cauchy(scale)."""
    with pyro.plate("predictor", x.shape[-1]):
        beta = pyro.sample("beta", dist.ImproperUniform(real, (), ()))
    if scale is None:
        sigma = flat("sigma", positive)
    else:
        sigma = pyro.sample("sigma", dist.HalfCauchy(scale))
    with pyro.plate("obs", len(x)):
        pyro.sample("y", dist.Normal(x @ beta, sigma), obs=y)


def normal_regression(x, y=None):
    with pyro.plate("predictor", x.shape[-1]):
        beta = pyro.sample("beta", dist.Normal(0.0, 10.0))
    sigma = pyro.sample("sigma", dist.HalfNormal(10.0))
    with pyro.plate("obs", len(x)):
        pyro.sample("y", dist.Normal(x @ beta, sigma), obs=y)


def diamonds(x, y=None):
    centred = x - x.mean(0)
    with pyro.plate("predictor", x.shape[-1]):
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
    intercept = pyro.sample("Intercept", dist.StudentT(3.0, 8.0, 10.0))
    sigma = flat("sigma", positive)
    pyro.factor("sigma_prior", dist.StudentT(3.0, 0.0, 10.0).log_prob(sigma))
    with pyro.plate("obs", len(x)):
        pyro.sample("y", dist.Normal(intercept + centred @ b, sigma), obs=y)


def autoregression(y, order):
    alpha = pyro.sample("alpha", dist.Normal(0.0, 10.0))
    with pyro.plate("lag", order):
        beta = pyro.sample("beta", dist.Normal(0.0, 10.0))
    sigma = pyro.sample("sigma", dist.HalfCauchy(2.5))
    past = torch.stack([y[order - k : len(y) - k] for k in range(1, order + 1)], -1)
    with pyro.plate("time", len(y) - order):
        pyro.sample("y", dist.Normal(alpha + past @ beta, sigma), obs=y[order:])


def garch(y, sigma1):
    mu = flat("mu")
    alpha0 = flat("alpha0", positive)
    alpha1 = flat("alpha1", constraints.unit_interval)
    beta1 = flat("beta1", constraints.interval(0.0, 1.0 - alpha1))
    sigma = [torch.as_tensor(sigma1)]
    for t in range(1, len(y)):
        sigma.append((alpha0 + alpha1 * (y[t - 1] - mu) ** 2 + beta1 * sigma[t - 1] ** 2).sqrt())
    with pyro.plate("time", len(y)):
        pyro.sample("y", dist.Normal(mu, torch.stack(sigma)), obs=y)


def hidden_markov(y):
    """The forward algorithm, as a loop over the observations."""
    theta = torch.stack(
        [pyro.sample(name, dist.Dirichlet(torch.ones(2))) for name in ("theta1", "theta2")]
    )
    mu = flat("mu", constraints.positive_ordered_vector, (2,))
    pyro.factor("mu_prior", dist.Normal(torch.tensor([3.0, 10.0]), 1.0).log_prob(mu).sum())
    emission = dist.Normal(mu, 1.0)
    forward = emission.log_prob(y[0])
    for t in range(1, len(y)):
        forward = torch.logsumexp(forward[:, None] + theta.log(), 0) + emission.log_prob(y[t])
    pyro.factor("likelihood", torch.logsumexp(forward, 0))


def gaussian_mixture(y):
    mu = flat("mu", constraints.ordered_vector, (2,))
    pyro.factor("mu_prior", dist.Normal(0.0, 2.0).log_prob(mu).sum())
    with pyro.plate("component", 2):
        sigma = pyro.sample("sigma", dist.HalfNormal(2.0))
    theta = pyro.sample("theta", dist.Beta(5.0, 5.0))
    with pyro.plate("obs", len(y)):
        k = pyro.sample("k", dist.Categorical(torch.stack([theta, 1 - theta])))
        pyro.sample("y", dist.Normal(mu[k], sigma[k]), obs=y)


def gaussian_process(x, y=None):
    rho = pyro.sample("rho", dist.Gamma(25.0, 4.0))
    alpha = pyro.sample("alpha", dist.HalfNormal(2.0))
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    kernel = alpha**2 * torch.exp(-((x[:, None] - x) ** 2) / (2 * rho**2))
    covariance = kernel + sigma * torch.eye(len(x))
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(x)), covariance), obs=y)


@dataclass(frozen=True)
class Posterior:
    """A model, with functions from data to its arguments and from its draws to parameters."""

    model: Callable[..., Any]
    arguments: Callable[[dict[str, np.ndarray]], tuple]
    parameters: Callable[[dict[str, np.ndarray], dict[str, np.ndarray]], dict[str, np.ndarray]] = (
        lambda draws, data: draws
    )


def _columns(*columns):
    return np.stack(np.broadcast_arrays(*columns), -1).astype(float)


def _kidscore(d):
    hs, iq = d["mom_hs"], d["mom_iq"]
    return _columns(1.0, hs, iq, hs * iq), d["kid_score"], 2.5


def _logearn(d):
    height, male = d["height"], d["male"]
    return _columns(1.0, height, male, height * male), np.log(d["earn"])


def _mesquite(d):
    names = ("diam1", "diam2", "canopy_height", "total_height", "density")
    return _columns(1.0, *(np.log(d[n]) for n in names), d["group"]), np.log(d["weight"])


def _nes(d):
    age = [d["age_discrete"] == k for k in (2, 3, 4)]
    rest = (d["educ1"], d["gender"], d["income"])
    return _columns(1.0, d["real_ideo"], d["race_adj"], *age, *rest), d["partyid7"]


def _diamonds(draws, data):
    shift = draws["b"] @ data["X"][:, 1:].mean(0)
    return draws | {"b_Intercept": draws["Intercept"] - shift}


POSTERIORS = {
    "eight_schools-eight_schools_noncentered": Posterior(
        eight_schools, lambda d: (d["sigma"], d["y"])
    ),
    "arK-arK": Posterior(autoregression, lambda d: (d["y"], int(d["K"]))),
    "garch-garch11": Posterior(garch, lambda d: (d["y"], float(d["sigma1"]))),
    "hmm_example-hmm_example": Posterior(hidden_markov, lambda d: (d["y"],)),
    "low_dim_gauss_mix-low_dim_gauss_mix": Posterior(gaussian_mixture, lambda d: (d["y"],)),
    "gp_pois_regr-gp_regr": Posterior(gaussian_process, lambda d: (d["x"], d["y"])),
    "kidiq-kidscore_interaction": Posterior(flat_regression, _kidscore),
    "earnings-logearn_interaction": Posterior(flat_regression, _logearn),
    "earnings-earn_height": Posterior(
        flat_regression, lambda d: (_columns(1.0, d["height"]), d["earn"])
    ),
    "mesquite-logmesquite": Posterior(flat_regression, _mesquite),
    "sblrc-blr": Posterior(normal_regression, lambda d: (d["X"], d["y"])),
    "nes1972-nes": Posterior(flat_regression, _nes),
    "diamonds-diamonds": Posterior(diamonds, lambda d: (d["X"][:, 1:], d["Y"]), _diamonds),
}
