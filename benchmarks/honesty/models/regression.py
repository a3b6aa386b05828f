"""Regressions with one to three parameters, by quadrature."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from scipy import stats
from scipy.special import expit, gammaln

from benchmarks.honesty.case import UNDEFINED, Case, case
from benchmarks.honesty.known import solve


def _line(x, y):
    b = pyro.sample("b", dist.Normal(0.0, 10.0))
    s = pyro.sample("s", dist.HalfNormal(5.0))
    with pyro.plate("obs", len(x)):
        pyro.sample("y", dist.Normal(b * x, s), obs=y)


def _linear(rows: int) -> Case:
    rng = np.random.default_rng(5)
    x = rng.normal(size=rows)
    y = 2 * x + 0.7 * rng.normal(size=rows)
    xx, xy, yy = x @ x, x @ y, y @ y

    def log_likelihood(at):
        b, s = at["b"], at["s"]
        square = yy - 2 * b * xy + b**2 * xx
        return -rows * (np.log(s) + 0.5 * np.log(2 * np.pi)) - square / (2 * s**2)

    def log_prior(at):
        return stats.norm.logpdf(at["b"], 0, 10) + stats.halfnorm.logpdf(at["s"], 0, 5)

    return Case(_line, (x, y), **solve(log_likelihood, log_prior, {"b": (0, 4), "s": (0.1, 3)}))


@case("y ~ N(b x, s), 50 rows")
def linear_50() -> Case:
    return _linear(50)


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
