"""Conjugate models, whose posteriors are known in closed form."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from scipy import stats
from scipy.special import betaln, gammaln

from benchmarks.honesty.case import METHODS, Case, Known, case

NAN = math.nan


@case("y ~ N(mu, 2), 20 rows")
def normal_mean() -> Case:
    y = np.random.default_rng(1).normal(4.0, 2.0, 20)

    def model(y):
        mu = pyro.sample("mu", dist.Normal(1.0, 3.0))
        with pyro.plate("obs", len(y)):
            pyro.sample("y", dist.Normal(mu, 2.0), obs=y)

    precision = len(y) / 4 + 1 / 9
    mean, sd = (y.sum() / 4 + 1 / 9) / precision, precision**-0.5
    # log p(y) = log p(y | mu) + log p(mu) - log p(mu | y), at any mu
    evidence = stats.norm(mean, 2).logpdf(y).sum() + stats.norm(1, 3).logpdf(mean)
    return Case(
        model,
        (y,),
        mle={"mu": Known(y.mean(), 2 / len(y) ** 0.5)},
        map={"mu": Known(mean, sd)},
        posterior={"mu": Known(mean, sd)},
        log_evidence=evidence - stats.norm(mean, sd).logpdf(mean),
        methods=METHODS,
    )


@case("y ~ N(mu, v), v ~ InverseGamma, mu ~ N(0, 2v), 12 rows")
def normal_inverse_gamma() -> Case:
    y = np.random.default_rng(2).normal(3.0, 2.0, 12)
    n, a0, b0, k0 = len(y), 3.0, 2.0, 0.5

    def model(y):
        v = pyro.sample("v", dist.InverseGamma(a0, b0))
        mu = pyro.sample("mu", dist.Normal(0.0, (v / k0).sqrt()))
        with pyro.plate("obs", len(y)):
            pyro.sample("y", dist.Normal(mu, v.sqrt()), obs=y)

    k, a = k0 + n, a0 + n / 2
    square = ((y - y.mean()) ** 2).sum()
    b = b0 + square / 2 + k0 * n * y.mean() ** 2 / (2 * k)
    mean = n * y.mean() / k
    variance, mode = square / n, b / (a + 1.5)
    evidence = gammaln(a) - gammaln(a0) + a0 * math.log(b0) - a * math.log(b)
    return Case(
        model,
        (y,),
        mle={
            "mu": Known(y.mean(), (variance / n) ** 0.5),
            "v": Known(variance, variance * (2 / n) ** 0.5),
        },
        map={"mu": Known(mean, (mode / k) ** 0.5), "v": Known(mode, mode / (a + 1.5) ** 0.5)},
        posterior={
            "mu": Known(mean, (b / (k * (a - 1))) ** 0.5),
            "v": Known(b / (a - 1), b / ((a - 1) * (a - 2) ** 0.5)),
        },
        log_evidence=evidence + 0.5 * math.log(k0 / k) - n / 2 * math.log(2 * math.pi),
    )


def _beta(a: float, b: float) -> dict[str, Known]:
    return {"p": Known(a / (a + b), stats.beta(a, b).std())}


def _bernoulli(y):
    p = pyro.sample("p", dist.Beta(2.0, 3.0))
    with pyro.plate("obs", len(y)):
        pyro.sample("y", dist.Bernoulli(p), obs=y)


@case("Bernoulli with a Beta prior, 9 of 30")
def beta_bernoulli() -> Case:
    y = np.repeat([1.0, 0.0], [9, 21])
    a, b = 11.0, 24.0
    rate, mode = 9 / 30, (a - 1) / (a + b - 2)
    return Case(
        _bernoulli,
        (y,),
        mle={"p": Known(rate, (rate * (1 - rate) / 30) ** 0.5)},
        map={"p": Known(mode, (mode * (1 - mode) / (a + b - 2)) ** 0.5)},
        posterior=_beta(a, b),
        log_evidence=betaln(a, b) - betaln(2, 3),
    )


@case("Bernoulli, 12 of 12: the estimates are at the edge of the support")
def beta_all_successes() -> Case:
    def model(y):
        p = pyro.sample("p", dist.Beta(1.0, 1.0))
        with pyro.plate("obs", len(y)):
            pyro.sample("y", dist.Bernoulli(p), obs=y)

    return Case(
        model,
        (np.ones(12),),
        mle={"p": Known(1.0, NAN)},
        map={"p": Known(1.0, NAN)},
        posterior=_beta(13, 1),
        log_evidence=betaln(13, 1),
    )


@case("Poisson with a Gamma prior, 15 rows")
def gamma_poisson() -> Case:
    y = np.random.default_rng(3).poisson(4.0, 15).astype(float)
    a0, b0 = 2.0, 0.5

    def model(y):
        rate = pyro.sample("rate", dist.Gamma(a0, b0))
        with pyro.plate("obs", len(y)):
            pyro.sample("y", dist.Poisson(rate), obs=y)

    a, b, n = a0 + y.sum(), b0 + len(y), len(y)
    evidence = gammaln(a) - gammaln(a0) + a0 * math.log(b0) - a * math.log(b)
    return Case(
        model,
        (y,),
        mle={"rate": Known(y.mean(), (y.mean() / n) ** 0.5)},
        map={"rate": Known((a - 1) / b, (a - 1) ** 0.5 / b)},
        posterior={"rate": Known(a / b, a**0.5 / b)},
        log_evidence=evidence - gammaln(y + 1).sum(),
    )


@case("Poisson, all counts 0: the rate's maximum is at 0")
def poisson_all_zero() -> Case:
    def model(y):
        rate = pyro.sample("rate", dist.Exponential(1.0))
        with pyro.plate("obs", len(y)):
            pyro.sample("y", dist.Poisson(rate), obs=y)

    return Case(
        model,
        (np.zeros(10),),
        mle={"rate": Known(0.0, NAN)},
        map={"rate": Known(0.0, NAN)},
        posterior={"rate": Known(1 / 11, 1 / 11)},
        log_evidence=-math.log(11),
    )


@case("exponential waiting times with a Gamma prior, 25 rows")
def gamma_exponential() -> Case:
    y = np.random.default_rng(4).exponential(0.4, 25)
    a0, b0 = 3.0, 2.0

    def model(y):
        rate = pyro.sample("rate", dist.Gamma(a0, b0))
        with pyro.plate("obs", len(y)):
            pyro.sample("y", dist.Exponential(rate), obs=y)

    n, a, b = len(y), a0 + len(y), b0 + y.sum()
    evidence = gammaln(a) - gammaln(a0) + a0 * math.log(b0) - a * math.log(b)
    return Case(
        model,
        (y,),
        mle={"rate": Known(1 / y.mean(), 1 / (y.mean() * n**0.5))},
        map={"rate": Known((a - 1) / b, (a - 1) ** 0.5 / b)},
        posterior={"rate": Known(a / b, a**0.5 / b)},
        log_evidence=evidence,
    )


@case("three categories with a Dirichlet prior, 40 rows")
def dirichlet_categorical() -> Case:
    prior, y = np.array([2.0, 3.0, 4.0]), np.array([12.0, 5.0, 23.0])

    def model(rows):
        p = pyro.sample("p", dist.Dirichlet(torch.as_tensor(prior)))
        with pyro.plate("obs", len(rows)):
            pyro.sample("y", dist.Categorical(p), obs=rows)

    after = prior + y

    def estimate(counts: np.ndarray) -> dict[str, Known]:
        total = counts.sum()
        share = counts / total
        error = (share * (1 - share) / total) ** 0.5
        return {f"p[{i}]": Known(share[i], error[i]) for i in range(3)}

    law = stats.dirichlet(after)
    evidence = gammaln(prior.sum()) - gammaln(prior).sum()
    evidence += gammaln(after).sum() - gammaln(after.sum())
    return Case(
        model,
        (np.repeat([0, 1, 2], y.astype(int)),),
        mle=estimate(y),
        map=estimate(after - 1),
        posterior={f"p[{i}]": Known(law.mean()[i], law.var()[i] ** 0.5) for i in range(3)},
        log_evidence=evidence,
    )
