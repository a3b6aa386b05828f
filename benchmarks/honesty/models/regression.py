"""Regressions with one to three parameters, by quadrature."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from scipy import special, stats
from scipy.special import expit, gammaln

from benchmarks.honesty.case import DRAWS, METHODS, POINT, UNDEFINED, Array, Case, Known, case
from benchmarks.honesty.known import gaussian, maximum, solve


def line(x, y):
    b = pyro.sample("b", dist.Normal(0.0, 10.0))
    s = pyro.sample("s", dist.HalfNormal(5.0))
    with pyro.plate("obs", len(x)):
        pyro.sample("y", dist.Normal(b * x, s), obs=y)


def line_data(rows: int) -> tuple[Array, Array]:
    rng = np.random.default_rng(5)
    x = rng.normal(size=rows)
    return x, 2 * x + 0.7 * rng.normal(size=rows)


def line_answers(x: Array, y: Array) -> dict[str, Any]:
    """Return the answers for y ~ N(b x, s), b ~ N(0, 10), s ~ HalfNormal(5)."""
    rows, xx, xy, yy = len(x), x @ x, x @ y, y @ y

    def log_likelihood(at):
        b, s = at["b"], at["s"]
        square = yy - 2 * b * xy + b**2 * xx
        return -rows * (np.log(s) + 0.5 * np.log(2 * np.pi)) - square / (2 * s**2)

    def log_prior(at):
        return stats.norm.logpdf(at["b"], 0, 10) + stats.halfnorm.logpdf(at["s"], 0, 5)

    return solve(log_likelihood, log_prior, {"b": (0, 4), "s": (0.1, 3)})


def _linear(rows: int, methods: tuple[str, ...] = (*POINT, *DRAWS)) -> Case:
    x, y = line_data(rows)
    return Case(line, (x, y), **line_answers(x, y), methods=methods)


@case("y ~ N(b x, s), 50 rows")
def linear_50() -> Case:
    return _linear(50, METHODS)


@case("y ~ N(b x, s), 200 rows")
def linear_200() -> Case:
    return _linear(200)


@case("y ~ N(b x, s), 1,037 rows")
def linear_1037() -> Case:
    return _linear(1037)


@case("y ~ N(b x, s), 10,000 rows")
def linear_10000() -> Case:
    return _linear(10_000)


@case("y ~ N(b x, s), 100,000 rows")
def linear_100000() -> Case:
    return _linear(100_000)


def _slope(x, y):
    b = pyro.sample("b", dist.Normal(0.0, 2.0))
    with pyro.plate("obs", len(x)):
        pyro.sample("y", dist.Bernoulli(logits=b * x), obs=y)


def _line_of_logits(x, y):
    a = pyro.sample("a", dist.Normal(0.0, 5.0))
    b = pyro.sample("b", dist.Normal(0.0, 5.0))
    with pyro.plate("obs", len(x)):
        pyro.sample("y", dist.Bernoulli(logits=a + b * x), obs=y)


def _log_bernoulli(y, logits):
    return -np.logaddexp(0, np.where(y > 0, -logits, logits)).sum(-1, keepdims=True)


@case("logistic regression without intercept, 40 rows")
def logistic_slope() -> Case:
    rng = np.random.default_rng(6)
    x = rng.normal(size=40)
    y = (rng.random(40) < expit(1.2 * x)).astype(float)
    return Case(
        _slope,
        (x, y),
        **solve(
            lambda at: _log_bernoulli(y, at["b"] * x),
            lambda at: stats.norm.logpdf(at["b"], 0, 2),
            {"b": (-10, 10)},
        ),
    )


def _logistic(x: np.ndarray, y: np.ndarray, **answers) -> Case:
    return Case(
        _line_of_logits,
        (x, y),
        **solve(
            lambda at: _log_bernoulli(y, at["a"] + at["b"] * x),
            lambda at: stats.norm.logpdf(at["a"], 0, 5) + stats.norm.logpdf(at["b"], 0, 5),
            {"a": (-30, 30), "b": (-30, 30)},
            **answers,
        ),
    )


@case("logistic regression, 60 rows")
def logistic_line() -> Case:
    rng = np.random.default_rng(7)
    x = rng.normal(size=60)
    return _logistic(x, (rng.random(60) < expit(-0.5 + 1.5 * x)).astype(float))


@case("logistic regression of perfectly separated classes: no maximum of the likelihood")
def logistic_separated() -> Case:
    x = np.linspace(-2, 2, 20)
    return _logistic(x, (x > 0.3).astype(float), mle=UNDEFINED)


@case("Poisson regression with exposures, 40 rows")
def poisson_offset() -> Case:
    rng = np.random.default_rng(8)
    x, exposure = rng.normal(size=40), rng.uniform(1, 50, 40)
    y = rng.poisson(exposure * np.exp(-1 + 0.4 * x)).astype(float)

    def model(x, exposure, y):
        a = pyro.sample("a", dist.Normal(0.0, 5.0))
        b = pyro.sample("b", dist.Normal(0.0, 5.0))
        with pyro.plate("obs", len(x)):
            pyro.sample("y", dist.Poisson(exposure * torch.exp(a + b * x)), obs=y)

    def log_likelihood(at):
        log_rate = np.log(exposure) + at["a"] + at["b"] * x
        return (y * log_rate - np.exp(log_rate) - gammaln(y + 1)).sum(-1, keepdims=True)

    def log_prior(at):
        return stats.norm.logpdf(at["a"], 0, 5) + stats.norm.logpdf(at["b"], 0, 5)

    box = {"a": (-5.0, 3.0), "b": (-3.0, 3.0)}
    return Case(model, (x, exposure, y), **solve(log_likelihood, log_prior, box))


@case("y ~ N(b x, s) with y in units of which it has millions, 100 rows")
def linear_bad_units() -> Case:
    x, y = line_data(100)
    y = 1e6 * y

    def model(x, y):
        b = pyro.sample("b", dist.Normal(0.0, 1e7))
        s = pyro.sample("s", dist.HalfNormal(5e6))
        with pyro.plate("obs", len(x)):
            pyro.sample("y", dist.Normal(b * x, s), obs=y)

    def log_likelihood(at):
        return stats.norm.logpdf(y, at["b"] * x, at["s"]).sum(-1, keepdims=True)

    def log_prior(at):
        return stats.norm.logpdf(at["b"], 0, 1e7) + stats.halfnorm.logpdf(at["s"], 0, 5e6)

    box = {"b": (0.0, 4e6), "s": (1e5, 3e6)}
    return Case(model, (x, y), **solve(log_likelihood, log_prior, box))


def _predictors(x, y):
    with pyro.plate("predictor", x.shape[-1]):
        beta = pyro.sample("beta", dist.Normal(0.0, 5.0))
    with pyro.plate("obs", len(x)):
        pyro.sample("y", dist.Normal(x @ beta, 1.0), obs=y)


def _known_noise(x: Array, y: Array, **answers: Any) -> Case:
    labels = [f"beta[{j}]" for j in range(x.shape[1])]
    if "mle" not in answers:
        answers["mle"] = gaussian(labels, x.T @ x, x.T @ y)
    found = gaussian(labels, x.T @ x + np.eye(len(labels)) / 25, x.T @ y)
    evidence = stats.multivariate_normal(cov=np.eye(len(y)) + 25 * x @ x.T).logpdf(y)
    return Case(_predictors, (x, y), map=found, posterior=found, log_evidence=evidence, **answers)


@case("ten predictors with correlations of 0.99, 80 rows")
def linear_correlated() -> Case:
    rng = np.random.default_rng(12)
    x = rng.normal(size=(80, 1)) + 0.1 * rng.normal(size=(80, 10))
    return _known_noise(x, x @ rng.normal(size=10) + rng.normal(size=80))


@case("a predictor that is twice another one: the likelihood has a ridge")
def linear_collinear() -> Case:
    rng = np.random.default_rng(13)
    x = rng.normal(size=(50, 1)) * np.array([1.0, 2.0])
    return _known_noise(x, x[:, 0] + rng.normal(size=50), mle=UNDEFINED)


@case("location and scale of StudentT(4) data, 30 rows")
def student_data() -> Case:
    y = stats.t.rvs(4, 3.0, 0.5, 30, random_state=np.random.default_rng(14))

    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        s = pyro.sample("s", dist.LogNormal(0.0, 1.0))
        with pyro.plate("obs", len(y)):
            pyro.sample("y", dist.StudentT(4.0, mu, s), obs=y)

    def log_likelihood(at):
        return stats.t.logpdf(y, 4, at["mu"], at["s"]).sum(-1, keepdims=True)

    def log_prior(at):
        return stats.norm.logpdf(at["mu"], 0, 10) + stats.lognorm.logpdf(at["s"], 1.0)

    return Case(model, (y,), **solve(log_likelihood, log_prior, {"mu": (-2, 8), "s": (0.01, 5)}))


@case("zero-inflated Poisson counts, 50 rows")
def zero_inflated() -> Case:
    rng = np.random.default_rng(25)
    y = (rng.poisson(2.0, 50) * (rng.random(50) > 0.3)).astype(float)

    def model(y):
        gate = pyro.sample("gate", dist.Beta(1.0, 1.0))
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with pyro.plate("obs", len(y)):
            pyro.sample("y", dist.ZeroInflatedPoisson(rate, gate=gate), obs=y)

    def log_likelihood(at):
        density = (1 - at["gate"]) * stats.poisson.pmf(y, at["rate"]) + at["gate"] * (y == 0)
        return np.log(density).sum(-1, keepdims=True)

    def log_prior(at):
        return stats.gamma.logpdf(at["rate"], 2)

    box = {"gate": (0.0, 1.0), "rate": (0.01, 10.0)}
    return Case(model, (y,), **solve(log_likelihood, log_prior, box))


@case("one row, mean and scale unknown: the likelihood is unbounded")
def single_row() -> Case:
    y = np.array([1.3])

    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        s = pyro.sample("s", dist.Gamma(3.0, 2.0))
        with pyro.plate("obs", len(y)):
            pyro.sample("y", dist.Normal(mu, s), obs=y)

    def log_joint(at):
        density = stats.norm.logpdf(y, at["mu"], at["s"]) + stats.norm.logpdf(at["mu"], 0, 2)
        return density + stats.gamma.logpdf(at["s"], 3, scale=1 / 2)

    # Given s, y and mu are normal, so that only the integral over s is left.
    nodes, weights = special.roots_legendre(2000)
    scale = 15 * (nodes + 1)
    mass = stats.norm.pdf(y, 0, np.sqrt(4 + scale**2)) * stats.gamma.pdf(scale, 3, scale=1 / 2)
    mass *= 15 * weights
    evidence = mass.sum()
    mass /= evidence
    mean, variance = 4 * y / (4 + scale**2), 4 * scale**2 / (4 + scale**2)
    mu, s = mass @ mean, mass @ scale
    return Case(
        model,
        (y,),
        mle=UNDEFINED,
        map=maximum(log_joint, {"mu": (-5.0, 5.0), "s": (0.05, 10.0)}),
        posterior={
            "mu": Known(mu, (mass @ (variance + mean**2) - mu**2) ** 0.5),
            "s": Known(s, (mass @ scale**2 - s**2) ** 0.5),
        },
        log_evidence=float(np.log(evidence)),
    )
