"""Models and data for the benchmarks of the engine."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch

from probdl.models import eight_schools, logistic_regression
from tests.reference.files import read
from tests.reference.posteriors import POSTERIORS, gaussian_process

RNG = np.random.default_rng(0)

SCHOOLS = (
    np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]),
    np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]),
)


def hierarchical_regression(x, group, y, groups=50):
    """Partially pooled intercepts by group and a common slope: 54 parameters."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfNormal(2.0))
    slope = pyro.sample("slope", dist.Normal(0.0, 2.0))
    sigma = pyro.sample("sigma", dist.HalfNormal(2.0))
    with pyro.plate("group", groups):
        offset = pyro.sample("offset", dist.Normal(0.0, 1.0))
    mean = mu + tau * offset[group] + slope * x
    with pyro.plate("obs", len(x)):
        pyro.sample("y", dist.Normal(mean, sigma), obs=y)


def bayesian_network(x, y, width=16):
    """A network with one hidden layer whose weights are sites."""
    inputs = x.shape[-1]
    w1 = pyro.sample("w1", dist.Normal(torch.zeros(inputs, width), 1.0).to_event(2))
    b1 = pyro.sample("b1", dist.Normal(torch.zeros(width), 1.0).to_event(1))
    w2 = pyro.sample("w2", dist.Normal(torch.zeros(width), 1.0).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    mean = torch.tanh(x @ w1 + b1) @ w2 / width**0.5
    with pyro.plate("obs", len(x)):
        pyro.sample("y", dist.Normal(mean, sigma), obs=y)


def mixture(y):
    """A mixture of three normal components with enumerated assignments."""
    weight = pyro.sample("weight", dist.Dirichlet(torch.ones(3)))
    mu = pyro.sample("mu", dist.Normal(torch.tensor([-3.0, 0.0, 3.0]), 1.0).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfNormal(torch.ones(3)).to_event(1))
    with pyro.plate("obs", len(y)):
        k = pyro.sample("k", dist.Categorical(weight))
        pyro.sample("y", dist.Normal(mu[k], sigma[k]), obs=y)


def _named() -> dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]:
    x, group = RNG.normal(size=500), RNG.integers(0, 50, 500)
    y = 1 + RNG.normal(size=50)[group] + 0.5 * x + RNG.normal(size=500)
    wide = RNG.normal(size=(500, 20))
    classes = (RNG.random(500) < 1 / (1 + np.exp(-wide @ RNG.normal(size=20) / 3))).astype(float)
    line = np.linspace(0.0, 10.0, 60)
    inputs = RNG.normal(size=(100, 4))
    garch = POSTERIORS["garch-garch11"].model
    return {
        "eight schools": (eight_schools, SCHOOLS),
        "hierarchical regression, 54 parameters, 500 rows": (
            hierarchical_regression,
            (x, group, y),
        ),
        "logistic regression, 500 x 20": (logistic_regression, (wide, classes)),
        "Gaussian process, 60 points": (
            gaussian_process,
            (line, np.sin(line) + 0.3 * RNG.normal(size=60)),
        ),
        "Bayesian network, 100 x 4 x 16": (
            bayesian_network,
            (inputs, np.sin(inputs[:, 0]) + 0.1 * RNG.normal(size=100)),
        ),
        "mixture of three, 200 points, enumerated": (
            mixture,
            (RNG.normal(size=200) + 3 * RNG.integers(-1, 2, 200),),
        ),
        "GARCH, a loop of 100 steps": (garch, (RNG.normal(size=100), 1.0)),
    }


NAMED = _named()


def references() -> Iterator[tuple[str, Callable[..., Any], tuple[Any, ...]]]:
    """Yield the reference posteriors, if PROBDL_SHARED names the folder that contains them."""
    folder = os.environ.get("PROBDL_SHARED")
    for name, posterior in POSTERIORS.items() if folder else ():
        data, _, _ = read(Path(str(folder)) / "posteriordb", name)
        yield name.split("-", 1)[1], posterior.model, posterior.arguments(data)
