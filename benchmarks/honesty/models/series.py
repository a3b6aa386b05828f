"""Time series: normal ones in closed form or by the Kalman filter, discrete states by sums."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from scipy import stats
from scipy.special import gammaln, logsumexp

from benchmarks.honesty.case import DRAWS, Case, case
from benchmarks.honesty.known import gaussian, solve


@case("AR(1) with unknown coefficient and scale, 60 steps")
def ar1() -> Case:
    rng = np.random.default_rng(20)
    y = np.zeros(60)
    for t in range(1, 60):
        y[t] = 0.8 * y[t - 1] + rng.normal()

    def model(y):
        phi = pyro.sample("phi", dist.Uniform(-1.0, 1.0))
        s = pyro.sample("s", dist.HalfNormal(2.0))
        with pyro.plate("time", len(y) - 1):
            pyro.sample("y", dist.Normal(phi * y[:-1], s), obs=y[1:])

    def log_likelihood(at):
        return stats.norm.logpdf(y[1:], at["phi"] * y[:-1], at["s"]).sum(-1, keepdims=True)

    def log_prior(at):
        return stats.halfnorm.logpdf(at["s"], 0, 2) - np.log(2)

    box = {"phi": (-1.0, 1.0), "s": (0.1, 5.0)}
    return Case(model, (y,), **solve(log_likelihood, log_prior, box))


def _walk(steps: int) -> np.ndarray:
    rng = np.random.default_rng(21)
    return np.cumsum(0.5 * rng.normal(size=steps)) + rng.normal(size=steps)


@case("random walk with noise, variances known: 25 latent steps")
def local_level() -> Case:
    y, q, r = _walk(25), 0.5, 1.0

    def model(y):
        with pyro.plate("time", len(y)):
            step = pyro.sample("step", dist.Normal(0.0, q))
        with pyro.plate("time_obs", len(y)):
            pyro.sample("y", dist.Normal(step.cumsum(-1), r), obs=y)

    sums = np.tri(25)
    labels = [f"step[{t}]" for t in range(25)]
    precision, shift = sums.T @ sums / r**2, sums.T @ y / r**2
    known = gaussian(labels, precision + np.eye(25) / q**2, shift)
    evidence = stats.multivariate_normal(cov=q**2 * sums @ sums.T + r**2 * np.eye(25)).logpdf(y)
    return Case(
        model,
        (y,),
        mle=gaussian(labels, precision, shift),
        map=known,
        posterior=known,
        log_evidence=evidence,
    )


@case("random walk with noise, both scales unknown: 42 dimensions, judged by the two scales")
def local_level_scales() -> Case:
    y = _walk(40)

    def model(y):
        q = pyro.sample("q", dist.HalfNormal(1.0))
        r = pyro.sample("r", dist.HalfNormal(1.0))
        with pyro.plate("time", len(y)):
            step = pyro.sample("step", dist.Normal(0.0, 1.0))
        with pyro.plate("time_obs", len(y)):
            pyro.sample("y", dist.Normal(q * step.cumsum(-1), r), obs=y)

    def log_likelihood(at):
        """The Kalman filter."""
        q2, r2 = at["q"] ** 2, at["r"] ** 2
        mean, variance, total = 0.0, 0.0, 0.0
        for value in y:
            predicted = variance + q2
            spread = predicted + r2
            total = total + stats.norm.logpdf(value, mean, np.sqrt(spread))
            gain = predicted / spread
            mean, variance = mean + gain * (value - mean), predicted * (1 - gain)
        return total

    def log_prior(at):
        return stats.halfnorm.logpdf(at["q"]) + stats.halfnorm.logpdf(at["r"])

    box = {"q": (1e-6, 6.0), "r": (1e-6, 6.0)}
    return Case(
        model, (y,), **solve(log_likelihood, log_prior, box, mle=None, map=None), methods=DRAWS
    )


@case("hidden Markov model of two states, in a pyro.markov loop of 20 steps")
def hidden_markov() -> Case:
    rng = np.random.default_rng(22)
    z = np.cumsum(rng.random(20) < 0.15) % 2
    y = 2.5 * z + rng.normal(size=20)

    def model(y):
        stay = pyro.sample("stay", dist.Beta(2.0, 2.0))
        z = 0.0
        for t in pyro.markov(range(len(y))):
            p = z * stay + (1 - z) * (1 - stay)
            z = pyro.sample(f"z_{t}", dist.Bernoulli(p), infer={"enumerate": "parallel"})
            pyro.sample(f"y_{t}", dist.Normal(2.5 * z, 1.0), obs=y[t])

    def log_likelihood(at):
        stay = at["stay"]
        emission = stats.norm.logpdf(y[:, None], np.array([0.0, 2.5]))
        # The state before the first one is 0.
        zero, one = np.log(stay) + emission[0, 0], np.log1p(-stay) + emission[0, 1]
        for t in range(1, len(y)):
            zero, one = (
                np.logaddexp(zero + np.log(stay), one + np.log1p(-stay)) + emission[t, 0],
                np.logaddexp(zero + np.log1p(-stay), one + np.log(stay)) + emission[t, 1],
            )
        return np.logaddexp(zero, one)

    def log_prior(at):
        return stats.beta.logpdf(at["stay"], 2, 2)

    return Case(model, (y,), **solve(log_likelihood, log_prior, {"stay": (0, 1)}))


@case("Poisson counts with a change at an unknown step, which is enumerated, 30 steps")
def change_point() -> Case:
    rng = np.random.default_rng(23)
    y = np.concatenate([rng.poisson(2.0, 17), rng.poisson(5.0, 13)]).astype(float)

    def model(y):
        early = pyro.sample("early", dist.Gamma(2.0, 1.0))
        late = pyro.sample("late", dist.Gamma(2.0, 1.0))
        weights = y.new_ones(len(y))
        change = pyro.sample("change", dist.Categorical(weights), infer={"enumerate": "parallel"})
        with pyro.plate("time", len(y)) as t:
            rate = torch.where(t < change, early, late)
            pyro.sample("y", dist.Poisson(rate), obs=y)

    count = np.arange(len(y))  # of steps before the change
    before = np.concatenate([[0.0], np.cumsum(y)[:-1]])

    def log_likelihood(at):
        early, late = at["early"], at["late"]
        terms = before * np.log(early) - count * early
        terms = terms + (y.sum() - before) * np.log(late) - (len(y) - count) * late
        total = logsumexp(terms, -1, keepdims=True) - np.log(len(y))
        return total - gammaln(y + 1).sum()

    def log_prior(at):
        return stats.gamma.logpdf(at["early"], 2) + stats.gamma.logpdf(at["late"], 2)

    box = {"early": (1e-3, 15.0), "late": (1e-3, 15.0)}
    return Case(model, (y,), **solve(log_likelihood, log_prior, box))
