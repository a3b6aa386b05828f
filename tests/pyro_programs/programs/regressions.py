"""Regressions and hierarchies: baseball, eight schools, LKJ, sparse regression, BoTorch's model."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoDiagonalNormal, AutoMultivariateNormal, AutoNormal
from pyro.infer.reparam import LocScaleReparam
from pyro.nn import PyroModule, PyroSample

from tests.pyro_programs.programs.registry import about, exact, program, seeded

X = torch.randn(40, generator=seeded(0))
Y = 1.5 * X - 0.5 + 0.7 * torch.randn(40, generator=seeded(1))
NOISE = 0.7


def _conjugate(sd_of_prior: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return means and standard deviations of slope and intercept, with the noise known."""
    design = torch.stack([X, torch.ones(40)], 1).double()
    covariance = torch.linalg.inv(design.T @ design / NOISE**2 + torch.eye(2) / sd_of_prior**2)
    return covariance @ design.T @ Y.double() / NOISE**2, covariance.diagonal().sqrt()


MEAN, SD = _conjugate()
LINE = exact(a=(MEAN[0], SD[0]), b=(MEAN[1], SD[1]))


def line(x, y):
    a = pyro.sample("a", dist.Normal(0.0, 3.0))
    b = pyro.sample("b", dist.Normal(0.0, 3.0))
    with pyro.plate("n", len(x)):
        pyro.sample("y", dist.Normal(a * x + b, NOISE), obs=y)


program("line", line, (X, Y), LINE)
program("line, AutoNormal", line, (X, Y), LINE, "svi", guide=AutoNormal(line))
program("line, AutoDiagonalNormal", line, (X, Y), LINE, "svi", guide=AutoDiagonalNormal(line))
program("line, full rank", line, (X, Y), LINE, "svi", guide=AutoMultivariateNormal(line))


def line_guide(x, y):
    for name in "ab":
        loc = pyro.param(f"{name}_loc", torch.tensor(0.0))
        scale = pyro.param(f"{name}_scale", torch.tensor(0.1), constraint=dist.constraints.positive)
        pyro.sample(name, dist.Normal(loc, scale))


program("line, own guide", line, (X, Y), LINE, "svi", guide=line_guide)


class BayesianLinear(PyroModule):
    def __init__(self):
        super().__init__()
        self.weight = PyroSample(dist.Normal(0.0, 3.0))
        self.bias = PyroSample(dist.Normal(0.0, 3.0))

    def forward(self, x, y=None):
        mean = self.weight * x + self.bias
        with pyro.plate("n", len(x)):
            return pyro.sample("y", dist.Normal(mean, NOISE), obs=y)


MODULE = exact(weight=(MEAN[0], SD[0]), bias=(MEAN[1], SD[1]))
program("PyroModule", BayesianLinear(), (X, Y), MODULE)
_module = BayesianLinear()
program("PyroModule, AutoNormal", _module, (X, Y), MODULE, "svi", guide=AutoNormal(_module))


def logistic(x, y):
    beta = pyro.sample("beta", dist.Normal(torch.zeros(3), 2.0).to_event(1))
    with pyro.plate("n", len(x)):
        pyro.sample("y", dist.Bernoulli(logits=x @ beta), obs=y)


BETA = torch.tensor([1.0, -1.0, 0.5])
DESIGN = torch.randn(200, 3, generator=seeded(2))
LABELS = torch.bernoulli(torch.sigmoid(DESIGN @ BETA), generator=seeded(3))
program("logistic regression", logistic, (DESIGN, LABELS), about(beta=BETA))
program(
    "logistic regression, SVI", logistic, (DESIGN, LABELS), about(beta=BETA), "svi", guide="normal"
)


def poisson(x, y):
    beta = pyro.sample("beta", dist.Normal(torch.zeros(3), 2.0).to_event(1))
    with pyro.plate("n", len(x)):
        pyro.sample("y", dist.Poisson((x @ beta).exp()), obs=y)


COUNTS = torch.poisson((DESIGN @ (0.5 * BETA)).exp(), generator=seeded(4))
program("Poisson regression", poisson, (DESIGN, COUNTS), about(beta=0.5 * BETA))


def negative_binomial(x, y):
    beta = pyro.sample("beta", dist.Normal(torch.zeros(3), 2.0).to_event(1))
    shape = pyro.sample("shape", dist.Gamma(2.0, 0.5))
    with pyro.plate("n", len(x)):
        rate = (x @ beta).exp()
        pyro.sample("y", dist.GammaPoisson(shape, shape / rate), obs=y)


program("negative binomial regression", negative_binomial, (DESIGN, COUNTS), about(beta=0.5 * BETA))


def robust(x, y):
    a = pyro.sample("a", dist.Normal(0.0, 3.0))
    b = pyro.sample("b", dist.Normal(0.0, 3.0))
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    with pyro.plate("n", len(x)):
        pyro.sample("y", dist.StudentT(4.0, a * x + b, scale), obs=y)


program("robust regression", robust, (X, Y), about(a=1.5, b=-0.5))


def ordinal(x, y):
    slope = pyro.sample("slope", dist.Normal(0.0, 2.0))
    cuts = pyro.sample(
        "cuts",
        dist.TransformedDistribution(
            dist.Normal(torch.zeros(2), 2.0).to_event(1), dist.transforms.OrderedTransform()
        ),
    )
    with pyro.plate("n", len(x)):
        pyro.sample("y", dist.OrderedLogistic(slope * x, cuts), obs=y)


LEVELS = (1.5 * DESIGN[:, 0] + torch.logit(torch.rand(200, generator=seeded(5)))[:, None].T)[0]
LEVELS = (LEVELS > -1).long() + (LEVELS > 1).long()
program("ordinal regression", ordinal, (DESIGN[:, 0], LEVELS), about(slope=1.5, cuts=[-1.0, 1.0]))


# Baseball: binomial proportions, pooled in four ways.
AT_BATS = torch.full((18,), 45.0)
HITS = torch.tensor([18.0, 17, 16, 15, 14, 14, 13, 12, 11, 11, 10, 10, 10, 10, 10, 9, 8, 7])


def fully_pooled(at_bats, hits):
    phi = pyro.sample("phi", dist.Uniform(0, 1))
    with pyro.plate("players", len(hits)):
        return pyro.sample("obs", dist.Binomial(at_bats, phi), obs=hits)


def _beta(a, b):
    return a / (a + b), (a * b / ((a + b) ** 2 * (a + b + 1))) ** 0.5


_pooled = _beta(1 + HITS.sum(), 1 + (AT_BATS - HITS).sum())
program("baseball, fully pooled", fully_pooled, (AT_BATS, HITS), exact(phi=_pooled))


def not_pooled(at_bats, hits):
    with pyro.plate("players", len(hits)):
        phi = pyro.sample("phi", dist.Uniform(0, 1))
        return pyro.sample("obs", dist.Binomial(at_bats, phi), obs=hits)


_each = _beta(1 + HITS, 1 + AT_BATS - HITS)
program("baseball, not pooled", not_pooled, (AT_BATS, HITS), exact(phi=_each))


def partially_pooled(at_bats, hits):
    m = pyro.sample("m", dist.Uniform(0, 1))
    kappa = pyro.sample("kappa", dist.Pareto(1, 1.5))
    with pyro.plate("players", len(hits)):
        phi = pyro.sample("phi", dist.Beta(m * kappa, (1 - m) * kappa))
        return pyro.sample("obs", dist.Binomial(at_bats, phi), obs=hits)


program("baseball, partially pooled", partially_pooled, (AT_BATS, HITS), about(m=0.265))


def with_logit(at_bats, hits):
    loc = pyro.sample("loc", dist.Normal(-1, 1))
    scale = pyro.sample("scale", dist.HalfCauchy(scale=1))
    with pyro.plate("players", len(hits)):
        alpha = pyro.sample("alpha", dist.Normal(loc, scale))
        return pyro.sample("obs", dist.Binomial(at_bats, logits=alpha), obs=hits)


program("baseball, with logit", with_logit, (AT_BATS, HITS), about(loc=-1.02))

SIGMA = torch.tensor([15.0, 10, 16, 11, 9, 11, 10, 18])
EFFECT = torch.tensor([28.0, 8, -3, 7, -1, 1, 18, 12])


def schools(sigma):
    eta = pyro.sample("eta", dist.Normal(torch.zeros(8), torch.ones(8)).to_event(1))
    mu = pyro.sample("mu", dist.Normal(torch.zeros(1), 10 * torch.ones(1)).to_event(1))
    tau = pyro.sample("tau", dist.HalfCauchy(scale=25 * torch.ones(1)).to_event(1))
    theta = mu + tau * eta
    return pyro.sample("obs", dist.Normal(theta, sigma).to_event(1))


def conditioned(model, sigma, y):
    return poutine.condition(model, data={"obs": y})(sigma)


program(
    "eight schools, condition", conditioned, (schools, SIGMA, EFFECT), about(mu=[6.0], within=0.5)
)


def centred_schools(sigma, y):
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    tau = pyro.sample("tau", dist.HalfCauchy(25.0))
    with pyro.plate("schools", 8):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


program(
    "eight schools, LocScaleReparam",
    poutine.reparam(centred_schools, config={"theta": LocScaleReparam(0.0)}),
    (SIGMA, EFFECT),
    about(mu=6.0, within=0.5),
)


def correlations(y):
    scales = pyro.sample("scales", dist.LogNormal(torch.zeros(2), 1.0).to_event(1))
    root = pyro.sample("root", dist.LKJCholesky(2, 2.0))
    tril = scales[..., None] * root
    with pyro.plate("n", len(y)):
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(2), scale_tril=tril), obs=y)


PAIRS = torch.randn(150, 2, generator=seeded(6)) @ torch.tensor([[1.0, 0.0], [0.8, 0.6]]).T
program("LKJ", correlations, (PAIRS,), about(scales=[1.0, 1.0]))


def horseshoe(x, y):
    tau = pyro.sample("tau", dist.HalfCauchy(0.5))
    lam = pyro.sample("lam", dist.HalfCauchy(torch.ones(6)).to_event(1))
    z = pyro.sample("z", dist.Normal(torch.zeros(6), 1.0).to_event(1))
    beta = pyro.deterministic("beta", tau * lam * z, event_dim=1)
    with pyro.plate("n", len(x)):
        pyro.sample("y", dist.Normal(x @ beta, 0.5), obs=y)


WIDE = torch.randn(60, 6, generator=seeded(7))
SPARSE = torch.tensor([2.0, 0, 0, -1.5, 0, 0])
ANSWER = WIDE @ SPARSE + 0.5 * torch.randn(60, generator=seeded(8))
program("horseshoe", horseshoe, (WIDE, ANSWER), about(beta=SPARSE))


def kernel_regression(x, y):
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    eta = pyro.sample("eta", dist.HalfCauchy(1.0))
    lam = pyro.sample("lam", dist.HalfCauchy(torch.ones(6)).to_event(1))
    scaled = lam * x
    k = eta**2 * (scaled @ scaled.t()) + (sigma**2 + 1e-4) * torch.eye(len(x))
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(x)), covariance_matrix=k), obs=y)


program("sparse regression by a kernel", kernel_regression, (WIDE, ANSWER), about(sigma=0.5))


def saas(x, y):
    """BoTorch's fully Bayesian Gaussian process, as it was written for Pyro."""
    scale = pyro.sample("outputscale", dist.Gamma(2.0, 0.15))
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    noise = pyro.sample("noise", dist.Gamma(0.9, 10.0))
    tausq = pyro.sample("kernel_tausq", dist.HalfCauchy(0.1))
    inverse = pyro.sample(
        "_kernel_inv_length_sq", dist.HalfCauchy(torch.ones(x.shape[-1])).to_event(1)
    )
    length = pyro.deterministic("lengthscale", (tausq * inverse).rsqrt(), event_dim=1)
    scaled = x / length
    squares = (scaled[:, None] - scaled).square().sum(-1)
    distance = math.sqrt(5) * squares.clamp_min(1e-15).sqrt()
    k = scale * (distance + 1 + distance**2 / 3) * torch.exp(-distance)
    k = k + (noise + 1e-4) * torch.eye(len(x))
    pyro.sample(
        "Y",
        dist.MultivariateNormal(mean.view(-1).expand(len(x)), covariance_matrix=k),
        obs=y.squeeze(-1),
    )


def _finds_the_input(fit):
    lengths = fit.draws["lengthscale"].reshape(-1, 4)
    import numpy as np

    assert np.median(lengths[:, 0]) < 0.5 * np.median(lengths[:, 1:])


UNIT = torch.rand(20, 4, generator=seeded(9))
program("BoTorch's SAAS", saas, (UNIT, torch.sin(6 * UNIT[:, :1])), _finds_the_input)
