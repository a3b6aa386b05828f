"""Hierarchical normal models: an integral over the scale of the groups, the rest in closed form."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyro
import pyro.distributions as dist
from scipy import special, stats

from benchmarks.honesty.case import UNDEFINED, Array, Case, Known, case
from benchmarks.honesty.known import moments
from probdl.models import eight_schools as noncentered

SIGMA = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
Y = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])


def groups(
    y: Array, sigma: Array, mu_sd: float, log_prior: Callable[[Array], Array], tau_max: float
) -> tuple[dict[str, Known], float]:
    """Return the moments of mu, tau and theta, and the log evidence.

    The model is y_j ~ N(theta_j, sigma_j), theta_j ~ N(mu, tau), mu ~ N(0, mu_sd). Given tau, all
    is normal; means and second moments are then averaged over p(tau | y).
    """

    def given(tau: Array) -> tuple[Array, Array, Array, Array, Array]:
        """Return log p(y | tau), and mean and variance of mu and of theta, by row of tau."""
        variance = tau**2 + sigma**2
        precision = (1 / variance).sum(-1, keepdims=True) + mu_sd**-2
        mu = (y / variance).sum(-1, keepdims=True) / precision
        log_y = stats.norm.logpdf(y, mu, np.sqrt(variance)).sum(-1, keepdims=True)
        log_y += stats.norm.logpdf(mu, 0, mu_sd) + 0.5 * np.log(2 * np.pi / precision)
        # theta_j given mu is shrunk to mu by the share sigma_j^2 / (tau^2 + sigma_j^2).
        shrunk = sigma**2 / variance
        theta = shrunk * mu + (1 - shrunk) * y
        theta_variance = (1 - shrunk) * sigma**2 + shrunk**2 / precision
        return log_y, mu, 1 / precision, theta, theta_variance

    def log_density(at):
        return given(at["tau"])[0] + log_prior(at["tau"])

    answer, evidence = moments(log_density, {"tau": (1e-9, tau_max)})
    nodes, weights = special.roots_legendre(4000)
    tau = (nodes[:, None] + 1) * tau_max / 2
    mass = np.exp(log_density({"tau": tau}) - evidence)[:, 0] * weights
    mass /= mass.sum()
    _, mu, mu_variance, theta, theta_variance = given(tau)
    columns = {"mu": (mu[:, 0], mu_variance[:, 0])}
    columns |= {f"theta[{j}]": (theta[:, j], theta_variance[:, j]) for j in range(len(y))}
    found = dict(answer)
    for label, (mean, variance) in columns.items():
        overall = mass @ mean
        found[label] = Known(overall, (mass @ (variance + mean**2) - overall**2) ** 0.5)
    return found, evidence


def _schools() -> tuple[dict[str, Known], float]:
    # The prior half-Cauchy has no end, but beyond 500 the likelihood leaves 1e-6 of the mass.
    return groups(Y, SIGMA, 5.0, lambda tau: stats.halfcauchy.logpdf(tau, 0, 5), 500.0)


def _with_theta(draws):
    theta = draws["mu"][..., None] + draws["tau"][..., None] * draws["theta_trans"]
    found = {"mu": draws["mu"], "tau": draws["tau"]}
    return found | {f"theta[{j}]": theta[..., j] for j in range(theta.shape[-1])}


@case("eight schools, non-centred")
def eight_schools() -> Case:
    posterior, evidence = _schools()
    return Case(
        noncentered,
        (SIGMA, Y),
        mle=UNDEFINED,  # nine means for eight schools
        posterior=posterior,
        log_evidence=evidence,
        scalars=_with_theta,
        methods=("mle", "laplace", "pathfinder", "nuts", "metropolis", "svi", "importance", "hmc"),
    )


@case("eight schools, centred: a funnel, and a density without a maximum")
def eight_schools_centered() -> Case:
    def model(sigma, y):
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = pyro.sample("tau", dist.HalfCauchy(5.0))
        with pyro.plate("schools", len(y)):
            theta = pyro.sample("theta", dist.Normal(mu, tau))
            pyro.sample("y", dist.Normal(theta, sigma), obs=y)

    posterior, evidence = _schools()
    return Case(
        model,
        (SIGMA, Y),
        mle=UNDEFINED,  # mu and tau are not in the likelihood
        map=UNDEFINED,
        posterior=posterior,
        log_evidence=evidence,
    )


@case("20 group means around a common mean, centred, their scale well known")
def group_means() -> Case:
    rng = np.random.default_rng(33)
    sigma = rng.uniform(0.5, 1.5, 20)
    y = rng.normal(1.0, 2.0, 20) + sigma * rng.normal(size=20)

    def model(sigma, y):
        mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
        tau = pyro.sample("tau", dist.HalfNormal(3.0))
        with pyro.plate("groups", len(y)):
            theta = pyro.sample("theta", dist.Normal(mu, tau))
            pyro.sample("y", dist.Normal(theta, sigma), obs=y)

    posterior, evidence = groups(y, sigma, 3.0, lambda tau: stats.halfnorm.logpdf(tau, 0, 3), 20.0)
    return Case(model, (sigma, y), map=UNDEFINED, posterior=posterior, log_evidence=evidence)
