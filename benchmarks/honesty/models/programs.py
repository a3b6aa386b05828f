"""Programs that change the density on the way: masks, factors, scales, subsamples, branches."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from scipy import stats
from scipy.special import gammaln
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.honesty.case import Case, Known, case
from benchmarks.honesty.known import solve
from benchmarks.honesty.models.regression import line, line_answers, line_data


def _normal_mean(y: np.ndarray, weight: float = 1.0) -> dict:
    """Return the answers for y ~ N(mu, 2), mu ~ N(0, 5), with a power of the likelihood."""
    return solve(
        lambda at: weight * stats.norm.logpdf(y, at["mu"], 2).sum(-1, keepdims=True),
        lambda at: stats.norm.logpdf(at["mu"], 0, 5),
        {"mu": (-30, 30)},
    )


@case("17 of 40 rows are masked, and hold -100")
def masked() -> Case:
    rng = np.random.default_rng(30)
    y, seen = rng.normal(3.0, 2.0, 40), np.arange(40) % 7 < 4
    y[~seen] = -100.0

    def model(y, seen):
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        with pyro.plate("obs", len(y)), poutine.mask(mask=seen):
            pyro.sample("y", dist.Normal(mu, 2.0), obs=y)

    return Case(model, (y, seen), **_normal_mean(y[seen]))


@case("a likelihood raised to the power 0.25 by poutine.scale")
def scaled() -> Case:
    y = np.random.default_rng(31).normal(3.0, 2.0, 30)

    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        with pyro.plate("obs", len(y)), poutine.scale(scale=0.25):
            pyro.sample("y", dist.Normal(mu, 2.0), obs=y)

    return Case(model, (y,), **_normal_mean(y, 0.25))


@case("exponential times, right-censored by pyro.factor in a plate, 60 rows")
def censored() -> Case:
    rng = np.random.default_rng(32)
    time = rng.exponential(2.0, 60)
    event = time < 2.5
    time = np.minimum(time, 2.5)

    def model(time, event):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        seen, cut = time[event], time[~event]
        with pyro.plate("seen", len(seen)):
            pyro.sample("y", dist.Exponential(rate), obs=seen)
        with pyro.plate("cut", len(cut)):
            pyro.factor("censored", -rate * cut)

    n, total = int(event.sum()), time.sum()
    a, b = 2.0 + n, 1.0 + total
    return Case(
        model,
        (time, event),
        mle={"rate": Known(n / total, n**0.5 / total)},
        map={"rate": Known((a - 1) / b, (a - 1) ** 0.5 / b)},
        posterior={"rate": Known(a / b, a**0.5 / b)},
        log_evidence=float(gammaln(a) - a * np.log(b)),
    )


@case("y ~ N(b x, s) by SVI in batches of 100 of 1,000 rows")
def batches() -> Case:
    x, y = line_data(1000)
    answers = line_answers(x, y)
    return Case(line, (x, y), **answers, methods=("svi",), settings={"svi": {"batch_size": 100}})


@case("y ~ N(b x, s) by SVI on a DataLoader of 1,037 rows in batches of 100")
def loader() -> Case:
    x, y = line_data(1037)
    data = TensorDataset(torch.from_numpy(x), torch.from_numpy(y))
    batches = DataLoader(data, batch_size=100, shuffle=True)
    return Case(line, (batches,), **line_answers(x, y), methods=("svi",))


@case("the same, with a plate of all rows and the batch as its subsample")
def loader_subsample() -> Case:
    def model(x, y):
        b = pyro.sample("b", dist.Normal(0.0, 10.0))
        s = pyro.sample("s", dist.HalfNormal(5.0))
        with pyro.plate("obs", 1037, subsample_size=len(x)):
            pyro.sample("y", dist.Normal(b * x, s), obs=y)

    x, y = line_data(1037)
    data = TensorDataset(torch.from_numpy(x), torch.from_numpy(y))
    batches = DataLoader(data, batch_size=100, shuffle=True)
    return Case(model, (batches,), **line_answers(x, y), methods=("svi",))


@case("a plate that draws a subsample of 50 of 500 rows by itself")
def subsample() -> Case:
    def model(x, y):
        b = pyro.sample("b", dist.Normal(0.0, 10.0))
        s = pyro.sample("s", dist.HalfNormal(5.0))
        with pyro.plate("obs", len(x), subsample_size=50) as rows:
            pyro.sample("y", dist.Normal(b * x[rows], s), obs=y[rows])

    x, y = line_data(500)
    return Case(model, (x, y), **line_answers(x, y))


@case("an if on the value of a site")
def control_flow() -> Case:
    def model(y):
        mu = pyro.sample("mu", dist.Uniform(0.0, 1.0))
        loc = torch.tensor(100.0) if mu > 0.5 else 10 * mu
        pyro.sample("y", dist.Normal(loc, 0.1), obs=y)

    def log_likelihood(at):
        return stats.norm.logpdf(1.0, np.where(at["mu"] > 0.5, 100, 10 * at["mu"]), 0.1)

    return Case(
        model,
        (torch.tensor(1.0),),
        **solve(log_likelihood, lambda at: 0 * at["mu"], {"mu": (0, 1)}),
        methods=("mle", "map", "importance"),  # on the eager engine the others take minutes
    )
