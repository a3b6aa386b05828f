"""Laplace and NUTS against posteriors that are known in closed form.

For each conjugate model, the posterior of a parameter and the predictive distribution of one new
observation are known. Means, standard deviations and densities must agree within 4 Monte Carlo
standard errors. Laplace is exact only if the posterior is normal on R^d, so its draws are weighted
by their importance weights.
"""

from dataclasses import dataclass, replace
from typing import Any

import arviz as az
import numpy as np
import pytest
from scipy import stats

import probdl
from probdl.io.idata import to_idata
from probdl.models import beta_binomial, gamma_poisson, linear_regression, normal_normal

RNG = np.random.default_rng(5)


@dataclass
class Case:
    model: Any
    args: tuple
    kwargs: dict
    site: str
    posterior: Any  # distribution of the site
    new: tuple  # arguments of a new observation
    observed: str
    predictive: Any  # distribution of the new observation
    value: Any  # at which the predictive densities are compared


TRIALS, SUCCESSES = np.array([10, 12, 8]), np.array([7, 9, 4])
EXPOSURE, COUNT = np.array([1.0, 2.0, 1.5]), np.array([3.0, 4.0, 5.0])
SIGMA, Y = np.array([1.0, 2.0, 1.5, 1.0]), np.array([1.2, 0.3, 2.4, 0.9])
X = np.c_[RNG.normal(size=30)]
RESPONSE = 1.0 + 2.0 * X[:, 0] + 0.7 * RNG.normal(size=30)


def normal_posterior():
    precision = 1 / 2.0**2 + (1 / SIGMA**2).sum()
    return ((Y / SIGMA**2).sum() + 0.5 / 2.0**2) / precision, precision**-0.5


def regression_posterior():
    design = np.c_[np.ones(30), X]
    covariance = np.linalg.inv(design.T @ design / 0.7**2 + np.eye(2) / 3.0**2)
    return covariance @ design.T @ RESPONSE / 0.7**2, covariance


MU, SD = normal_posterior()
BETA, COV = regression_posterior()
NEW = np.array([1.0, 1.5])
P = (1.5 + SUCCESSES.sum(), 2.5 + (TRIALS - SUCCESSES).sum())
RATE = (2.0 + COUNT.sum(), 1.0 + EXPOSURE.sum())

CASES = {
    "beta_binomial": Case(
        beta_binomial, (TRIALS, SUCCESSES), {"a": 1.5, "b": 2.5}, "p", stats.beta(*P),
        (np.array([6]),), "successes", stats.betabinom(6, *P), np.array([4]),
    ),
    "gamma_poisson": Case(
        gamma_poisson, (EXPOSURE, COUNT), {"shape": 2.0, "rate": 1.0}, "intensity",
        stats.gamma(RATE[0], scale=1 / RATE[1]), (np.array([2.0]),), "count",
        stats.nbinom(RATE[0], RATE[1] / (RATE[1] + 2.0)), np.array([5.0]),
    ),
    "normal_normal": Case(
        normal_normal, (SIGMA, Y), {"mean": 0.5, "scale": 2.0}, "mu", stats.norm(MU, SD),
        (np.array([0.8]),), "y", stats.norm(MU, np.hypot(SD, 0.8)), np.array([2.0]),
    ),
    "linear_regression": Case(
        linear_regression, (X, RESPONSE), {"scale": 3.0, "noise": 0.7}, "beta",
        stats.norm(BETA[1], COV[1, 1] ** 0.5), (NEW[None, 1:],), "y",
        stats.norm(NEW @ BETA, (NEW @ COV @ NEW + 0.7**2) ** 0.5), np.array([4.5]),
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return CASES[request.param]


@pytest.fixture(scope="module")
def nuts(case):
    method = probdl.NUTS(draws=1000, warmup=300, chains=2)
    return probdl.infer(case.model, *case.args, method=method, seed=11, **case.kwargs)


@pytest.fixture(scope="module")
def laplace(case):
    return probdl.infer(
        case.model, *case.args, method=probdl.Laplace(draws=4000), seed=12, **case.kwargs
    )


def mcse(x):
    """Return the Monte Carlo standard errors of mean and sd of draws (chain, draw), by ArviZ."""
    data = to_idata({"posterior": {"x": x}})
    return [float(az.mcse(data, method=kind)["x"]) for kind in ("mean", "sd")]


def weighted(fit, x):
    """Return the mean of x and its standard error, and likewise the sd, with importance weights."""
    weights = np.exp(fit.stats["log_weights"].reshape(-1))
    weights = weights / weights.sum()
    mean = (weights * x).sum()
    deviation = x - mean
    sd = (weights * deviation**2).sum() ** 0.5
    mean_error = ((weights * deviation) ** 2).sum() ** 0.5
    sd_error = (weights**2 * (deviation**2 - sd**2) ** 2).sum() ** 0.5 / (2 * sd)
    return mean, mean_error, sd, sd_error


def densities(fit, case):
    """Return the density of the new observation at each draw (chain, draw)."""
    program = fit.program.with_arguments((*case.new, case.value), case.kwargs)
    points = replace(fit, program=program).log_likelihood()[case.observed]
    return np.exp(points[..., 0])


def exact_density(case):
    discrete = isinstance(case.predictive.dist, stats.rv_discrete)
    return (case.predictive.pmf if discrete else case.predictive.pdf)(case.value).item()


def test_nuts_draws_from_the_posterior(case, nuts):
    x = nuts.draws[case.site].reshape(2, -1)
    mean_error, sd_error = mcse(x)
    assert abs(x.mean() - case.posterior.mean()) < 4 * mean_error
    assert abs(x.std() - case.posterior.std()) < 4 * sd_error


def test_nuts_predicts_and_scores_a_new_observation(case, nuts):
    new = nuts.predict(*case.new, **case.kwargs)[case.observed].reshape(2, -1)
    mean_error, sd_error = mcse(new)
    assert abs(new.mean() - case.predictive.mean()) < 4 * mean_error
    assert abs(new.std() - case.predictive.std()) < 4 * sd_error
    scored = nuts.log_predictive(*case.new, case.value, **case.kwargs)
    tolerance = 4 * mcse(densities(nuts, case))[0]
    assert abs(np.exp(scored.joint) - exact_density(case)) < tolerance
    assert scored.total == pytest.approx(scored.pointwise[case.observed].item())
    assert scored.joint == pytest.approx(scored.total)


def test_weighted_laplace_draws_agree_with_the_posterior(case, laplace):
    assert laplace.stats["pareto_k"] < 0.7
    mean, mean_error, sd, sd_error = weighted(laplace, laplace.draws[case.site].reshape(-1))
    assert abs(mean - case.posterior.mean()) < 4 * mean_error
    assert abs(sd - case.posterior.std()) < 4 * sd_error


def test_laplace_predicts_and_scores_a_new_observation(case, laplace):
    new = laplace.predict(*case.new, **case.kwargs)[case.observed].reshape(-1)
    mean, mean_error, sd, sd_error = weighted(laplace, new)
    assert abs(mean - case.predictive.mean()) < 4 * mean_error
    assert abs(sd - case.predictive.std()) < 4 * sd_error
    density = densities(laplace, case).reshape(-1)
    mean, mean_error, _, _ = weighted(laplace, density)
    assert abs(mean - exact_density(case)) < 4 * mean_error
    scored = laplace.log_predictive(*case.new, case.value, **case.kwargs)
    assert scored.joint == pytest.approx(np.log(density.mean()))


def test_laplace_is_exact_if_the_posterior_is_normal(case, laplace):
    if case.model not in (normal_normal, linear_regression):
        pytest.skip("the posterior is not normal on R^d")
    i = laplace.stats["labels"].index(case.site if case.site == "mu" else "beta[0]")
    assert laplace.stats["mode"][i] == pytest.approx(case.posterior.mean(), abs=1e-6)
    assert laplace.stats["covariance"][i, i] ** 0.5 == pytest.approx(case.posterior.std(), rel=1e-6)
    assert not laplace.diagnose()
