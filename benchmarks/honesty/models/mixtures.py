"""Models with discrete sites, which are summed by hand."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from scipy import stats

from benchmarks.honesty.case import Case, case
from benchmarks.honesty.known import solve


@case("mixture of two normals at known places; the share is unknown, 40 rows")
def mixture_share() -> Case:
    rng = np.random.default_rng(9)
    y = np.where(rng.random(40) < 0.3, rng.normal(3, 1, 40), rng.normal(0, 1, 40))

    def model(y):
        p = pyro.sample("p", dist.Beta(2.0, 2.0))
        with pyro.plate("obs", len(y)):
            k = pyro.sample("k", dist.Bernoulli(p))
            pyro.sample("y", dist.Normal(3 * k, 1.0), obs=y)

    def log_likelihood(at):
        p = at["p"]
        density = p * stats.norm.pdf(y, 3, 1) + (1 - p) * stats.norm.pdf(y, 0, 1)
        return np.log(density).sum(-1, keepdims=True)

    def log_prior(at):
        return stats.beta.logpdf(at["p"], 2, 2)

    return Case(model, (y,), **solve(log_likelihood, log_prior, {"p": (0, 1)}))


@case("mixture of two normals with unknown means, told apart by their shares: two modes, 50 rows")
def mixture_means() -> Case:
    rng = np.random.default_rng(10)
    y = np.where(rng.random(50) < 0.4, rng.normal(-2, 1, 50), rng.normal(2, 1, 50))

    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
        with pyro.plate("obs", len(y)):
            k = pyro.sample("k", dist.Categorical(torch.tensor([0.4, 0.6])))
            pyro.sample("y", dist.Normal(mu[k], 1.0), obs=y)

    def log_likelihood(at):
        density = 0.4 * stats.norm.pdf(y, at["mu[0]"], 1)
        density = density + 0.6 * stats.norm.pdf(y, at["mu[1]"], 1)
        return np.log(density).sum(-1, keepdims=True)

    def log_prior(at):
        return stats.norm.logpdf(at["mu[0]"], 0, 3) + stats.norm.logpdf(at["mu[1]"], 0, 3)

    box = {"mu[0]": (-12.0, 12.0), "mu[1]": (-12.0, 12.0)}
    return Case(model, (y,), **solve(log_likelihood, log_prior, box))
