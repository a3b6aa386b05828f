"""Densities of difficult shapes: funnels, several modes, heavy tails."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from scipy import stats

from benchmarks.honesty.case import UNDEFINED, Case, Known, case
from benchmarks.honesty.known import solve


@case("Neal's funnel in 3 dimensions, whose marginal v ~ N(0, 3)")
def neal_funnel() -> Case:
    def model():
        v = pyro.sample("v", dist.Normal(0.0, 3.0))
        pyro.sample("x", dist.Normal(torch.zeros(2), (v / 2).exp()).to_event(1))

    return Case(
        model,
        (),
        map=UNDEFINED,
        posterior={"v": Known(0.0, 3.0)},
        log_evidence=0.0,
    )


def _square(mean: float) -> Case:
    def model(y):
        x = pyro.sample("x", dist.Normal(mean, 3.0))
        pyro.sample("y", dist.Normal(x**2, 2.0), obs=y)

    y = 16.0
    answers = {"mle": UNDEFINED} if mean else {"mle": UNDEFINED, "map": UNDEFINED}
    return Case(
        model,
        (torch.tensor(y),),
        **solve(
            lambda at: stats.norm.logpdf(y, at["x"] ** 2, 2),
            lambda at: stats.norm.logpdf(at["x"], mean, 3),
            {"x": (-8, 8)},
            **answers,
        ),
    )


@case("y ~ N(x², 2): two equal modes at ±4")
def square_symmetric() -> Case:
    return _square(0.0)


@case("y ~ N(x², 2), x ~ N(0.5, 3): two modes, one higher")
def square_asymmetric() -> Case:
    return _square(0.5)


@case("location of 8 Cauchy observations")
def cauchy_location() -> Case:
    y = stats.cauchy.rvs(2.0, 1.0, 8, random_state=np.random.default_rng(11))

    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        with pyro.plate("obs", len(y)):
            pyro.sample("y", dist.Cauchy(mu, 1.0), obs=y)

    return Case(
        model,
        (y,),
        **solve(
            lambda at: stats.cauchy.logpdf(y, at["mu"]).sum(-1, keepdims=True),
            lambda at: stats.norm.logpdf(at["mu"], 0, 10),
            {"mu": (-50, 50)},
        ),
    )


@case("a Cauchy prior and no data: the mean does not exist")
def cauchy_prior() -> Case:
    def model():
        pyro.sample("x", dist.Cauchy(0.0, 1.0))

    return Case(
        model,
        (),
        map={"x": Known(0.0, 0.5**0.5)},
        posterior=UNDEFINED,
    )
