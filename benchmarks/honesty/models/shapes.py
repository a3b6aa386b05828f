"""Densities of difficult shapes: funnels, several modes, heavy tails."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from scipy import stats

from benchmarks.honesty.case import UNDEFINED, Case, Known, case
from benchmarks.honesty.known import gaussian, solve


@case("Neal's funnel in 3 dimensions, whose marginal v ~ N(0, 3)")
def neal_funnel() -> Case:
    def model():
        v = pyro.sample("v", dist.Normal(0.0, 3.0))
        pyro.sample("x", dist.Normal(torch.zeros(2), (v / 2).exp()).to_event(1))

    # At x = 0 the log density is -v**2 / 18 - v, whose maximum is at v = -9.
    mode = {
        "v": Known(-9.0, 3.0),
        "x[0]": Known(0.0, np.exp(-4.5)),
        "x[1]": Known(0.0, np.exp(-4.5)),
    }
    return Case(
        model,
        (),
        map=mode,
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


@case("four normals with correlations of 0.99 and scales from 0.001 to 1,000")
def normal_scales() -> Case:
    scales, mean = np.array([1e-3, 1e-1, 1e1, 1e3]), np.array([1e-3, 0.0, -5.0, 500.0])
    covariance = (0.01 * np.eye(4) + 0.99) * np.outer(scales, scales)
    tensors = torch.as_tensor(mean), torch.as_tensor(covariance)

    def model():
        pyro.sample("x", dist.MultivariateNormal(*tensors))

    answer = {f"x[{i}]": Known(mean[i], scales[i]) for i in range(4)}
    return Case(model, (), map=answer, posterior=answer, log_evidence=0.0)


@case("a banana: x ~ N(0, 1), z ~ N(x², 0.2)")
def banana() -> Case:
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("z", dist.Normal(x**2, 0.2))

    return Case(
        model,
        (),
        map={"x": Known(0.0, 1.0), "z": Known(0.0, 0.2)},
        posterior={"x": Known(0.0, 1.0), "z": Known(1.0, (2 + 0.04) ** 0.5)},
        log_evidence=0.0,
    )


@case("StudentT(5), no data")
def student_prior() -> Case:
    def model():
        pyro.sample("x", dist.StudentT(5.0, 1.0, 2.0))

    answer = {"x": Known(1.0, 2 * (5 / 3) ** 0.5)}
    # The curvature of log p at the mode is (5 + 1) / (5 * 2**2).
    return Case(
        model, (), map={"x": Known(1.0, (20 / 6) ** 0.5)}, posterior=answer, log_evidence=0.0
    )


@case("LogNormal(0, 0.5), no data: its normal approximation on R is exact")
def lognormal_prior() -> Case:
    def model():
        pyro.sample("x", dist.LogNormal(0.0, 0.5))

    law = stats.lognorm(0.5)
    # At the mode exp(-0.25), the curvature of log p is -1 / (0.5 mode)**2.
    mode = np.exp(-0.25)
    return Case(
        model,
        (),
        map={"x": Known(mode, 0.5 * mode)},
        posterior={"x": Known(law.mean(), law.std())},
        log_evidence=0.0,
    )


@case("mu ~ Uniform(0, 1) and data that push it to 1")
def bounded_mean() -> Case:
    y = np.array([1.1, 1.9, 1.5, 2.1, 1.4])

    def model(y):
        mu = pyro.sample("mu", dist.Uniform(0.0, 1.0))
        with pyro.plate("obs", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    edge = {"mu": Known(1.0, np.nan)}
    return Case(
        model,
        (y,),
        **solve(
            lambda at: stats.norm.logpdf(y, at["mu"], 1).sum(-1, keepdims=True),
            lambda at: 0 * at["mu"],
            {"mu": (0, 1)},
            mle=edge,
            map=edge,
        ),
    )


@case("y ~ Uniform(0, t), t ~ Pareto(10, 1), y up to 5,000: far from where chains start")
def uniform_pareto() -> Case:
    y = np.array([812.0, 4961.0, 3370.0, 2204.0, 4403.0, 1309.0])
    n, top = len(y), y.max()

    def model(y):
        t = pyro.sample("t", dist.Pareto(10.0, 1.0))
        with pyro.plate("obs", len(y)):
            pyro.sample("y", dist.Uniform(0.0, t), obs=y)

    # The posterior is Pareto(max y, 1 + n).
    law = stats.pareto(1 + n, scale=top)
    evidence = np.log(10.0 / (1 + n)) - (1 + n) * np.log(top)
    edge = {"t": Known(top, np.nan)}
    return Case(
        model,
        (y,),
        mle=edge,
        map=edge,
        posterior={"t": Known(law.mean(), law.std())},
        log_evidence=evidence,
    )


@case("y ~ N(mu, 1), mu ~ N(0, 1000), y near 5,000: far from where chains start")
def far_away() -> Case:
    return _far(1e3, 5.0)


@case("y ~ N(mu, 10^20), mu ~ N(0, 10^20): everything in units of 10^20")
def huge_numbers() -> Case:
    return _far(1e20, 1e20)


def _far(prior: float, sigma: float) -> Case:
    y = 5 * prior + sigma * np.array([0.3, -0.8, 1.1, 0.2])

    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, prior))
        with pyro.plate("obs", len(y)):
            pyro.sample("y", dist.Normal(mu, sigma), obs=y)

    precision = len(y) / sigma**2 + prior**-2
    mean, sd = y.sum() / sigma**2 / precision, precision**-0.5
    evidence = stats.norm(mean, sigma).logpdf(y).sum() + stats.norm(0, prior).logpdf(mean)
    return Case(
        model,
        (y,),
        mle={"mu": Known(y.mean(), sigma / len(y) ** 0.5)},
        map={"mu": Known(mean, sd)},
        posterior={"mu": Known(mean, sd)},
        log_evidence=evidence - stats.norm(mean, sd).logpdf(mean),
    )


@case("a direction near ±π: 20 VonMises observations; judged by its sine and cosine")
def direction() -> Case:
    y = stats.vonmises.rvs(3.0, np.pi - 0.05, size=20, random_state=np.random.default_rng(16))

    def model(y):
        mu = pyro.sample("mu", dist.VonMises(0.0, 0.1))
        with pyro.plate("obs", len(y)):
            pyro.sample("y", dist.VonMises(mu, 3.0), obs=y)

    angles = np.linspace(-np.pi, np.pi, 20_001)[:-1]
    density = stats.vonmises.logpdf(y, 3.0, angles[:, None]).sum(1)
    density += stats.vonmises.logpdf(angles, 0.1)
    mass = np.exp(density - density.max())
    evidence = density.max() + np.log(mass.mean() * 2 * np.pi)
    mass /= mass.sum()
    answer = {}
    for name, values in (("sin", np.sin(angles)), ("cos", np.cos(angles))):
        mean = float(mass @ values)
        answer[name] = Known(mean, float(mass @ (values - mean) ** 2) ** 0.5)

    return Case(
        model,
        (y,),
        posterior=answer,
        log_evidence=evidence,
        scalars=lambda draws: {"sin": np.sin(draws["mu"]), "cos": np.cos(draws["mu"])},
        sites={"sin": "mu", "cos": "mu"},
    )


@case("correlation of two standard normals, 25 rows")
def correlation() -> Case:
    rng = np.random.default_rng(17)
    u = rng.normal(size=(25, 2))
    y = np.stack([u[:, 0], 0.8 * u[:, 0] + 0.6 * u[:, 1]], 1)

    def model(y):
        r = pyro.sample("r", dist.Uniform(-1.0, 1.0))
        one = torch.ones_like(r)
        covariance = torch.stack([torch.stack([one, r]), torch.stack([r, one])])
        with pyro.plate("obs", len(y)):
            pyro.sample("y", dist.MultivariateNormal(torch.zeros(2), covariance), obs=y)

    def log_likelihood(at):
        r, (a, b) = at["r"], y.T
        square = (a**2 - 2 * r * a * b + b**2) / (1 - r**2)
        return (-0.5 * (square + np.log1p(-(r**2))) - np.log(2 * np.pi)).sum(-1, keepdims=True)

    def log_prior(at):
        return 0 * at["r"] - np.log(2)

    return Case(model, (y,), **solve(log_likelihood, log_prior, {"r": (-1, 1)}))


@case("flat priors on a and b, y ~ N(a + b, 1): an improper posterior")
def improper() -> Case:
    def model(y):
        a = pyro.sample("a", dist.ImproperUniform(dist.constraints.real, (), ()))
        b = pyro.sample("b", dist.ImproperUniform(dist.constraints.real, (), ()))
        with pyro.plate("obs", len(y)):
            pyro.sample("y", dist.Normal(a + b, 1.0), obs=y)

    y = np.random.default_rng(18).normal(size=15)
    return Case(model, (y,), mle=UNDEFINED, map=UNDEFINED, posterior=UNDEFINED)


@case("a flat prior on a scale that the data leave free: an improper posterior")
def improper_scale() -> Case:
    def model(y):
        tau = pyro.sample("tau", dist.ImproperUniform(dist.constraints.positive, (), ()))
        mu = pyro.sample("mu", dist.Normal(0.0, tau))
        with pyro.plate("obs", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    y = np.random.default_rng(18).normal(size=15)
    return Case(model, (y,), mle=UNDEFINED, map=UNDEFINED, posterior=UNDEFINED)


@case("y ~ N(a + b, 1) with proper priors: a and b are known only together")
def sum_of_two() -> Case:
    def model(y):
        a = pyro.sample("a", dist.Normal(0.0, 10.0))
        b = pyro.sample("b", dist.Normal(0.0, 10.0))
        with pyro.plate("obs", len(y)):
            pyro.sample("y", dist.Normal(a + b, 1.0), obs=y)

    y = np.random.default_rng(19).normal(3.0, 1.0, 40)
    known = gaussian(["a", "b"], len(y) * np.ones((2, 2)) + np.eye(2) / 100, y.sum() * np.ones(2))
    evidence = stats.multivariate_normal(cov=np.eye(len(y)) + 200).logpdf(y)
    return Case(model, (y,), mle=UNDEFINED, map=known, posterior=known, log_evidence=evidence)
