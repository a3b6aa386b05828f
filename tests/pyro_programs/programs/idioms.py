"""Idioms: handlers, plates, masks, shapes of arguments, parameters, guides of other kinds."""

from __future__ import annotations

import functools

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.contrib.autoname import scope
from pyro.infer import autoguide
from pyro.infer.autoguide import AutoGuideList, AutoNormal
from pyro.infer.reparam import TransformReparam
from torch.distributions import constraints

from tests.pyro_programs.programs.registry import about, exact, program, seeded

Y = torch.tensor([1.2, 0.3, 2.0, 1.1, 0.9])
N = len(Y)
_variance = 1 / (1 + N)
POSTERIOR = exact(mu=(Y.sum() * _variance, _variance**0.5))


def model(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("n", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def _weighted(weight):
    variance = 1 / (1 + weight * N)
    return exact(mu=(weight * Y.sum() * variance, variance**0.5))


def keyword(*, y, prior_sd=1.0, note=None):
    mu = pyro.sample("mu", dist.Normal(0.0, prior_sd))
    with pyro.plate("n", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def nested(data):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    for name, values in data["groups"].items():
        with pyro.plate(name, len(values)):
            pyro.sample(f"y_{name}", dist.Normal(mu, 1.0), obs=values)


def to_event(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(mu, 1.0).expand([len(y)]).to_event(1), obs=y)


def factor(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    pyro.factor("y", dist.Normal(mu, 1.0).log_prob(y).sum())


def masked(y, seen):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("n", len(y)), poutine.mask(mask=seen):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def by_obs_mask(y, seen):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("n", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y, obs_mask=seen)


def casts(y):
    """A float32 tensor made in the model."""
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("n", len(y)):
        pyro.sample("y", dist.Normal(mu * (y > -9).float(), 1.0), obs=y)


def subsampled(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("n", len(y), subsample_size=3) as rows:
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y[rows])


def deterministic(y):
    root = pyro.sample("root", dist.Normal(0.0, 1.0))
    mu = pyro.deterministic("mu", 1.0 * root)
    with pyro.plate("n", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def delayed(y):
    """pyro.param with a tensor, and a constraint."""
    scale = pyro.param("scale", torch.rand(()), constraint=constraints.positive)
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("n", len(y)):
        pyro.sample("y", dist.Normal(mu, scale), obs=y)


SEEN = torch.arange(N) < 3
_of_three = exact(mu=(Y[:3].sum() / 4, 0.5))
program("keyword arguments", functools.partial(keyword, y=Y), (), POSTERIOR)
program(
    "nested arguments", nested, ({"groups": {"a": Y[:2], "b": Y[2:]}, "note": None},), POSTERIOR
)
program("to_event instead of a plate", to_event, (Y,), POSTERIOR)
program("factor", factor, (Y,), POSTERIOR)
program("poutine.mask", masked, (Y, SEEN), _of_three)
program("obs_mask", by_obs_mask, (Y, SEEN), _of_three)
program("obs_mask, SVI", by_obs_mask, (Y, SEEN), _of_three, "svi", guide="multivariate_normal")
program("float()", casts, (Y,), POSTERIOR)
program("deterministic", deterministic, (Y,), POSTERIOR)
program(
    "scale as a decorator",
    poutine.scale(scale=2.0)(to_event),
    (Y,),
    exact(mu=(2 * Y.sum() / (2 + 2 * N), (2 + 2 * N) ** -0.5)),
)
program("condition", poutine.condition(model, data={}), (Y,), POSTERIOR)
program("substitute", poutine.substitute(model, data={}), (Y,), POSTERIOR)
program("seed", poutine.seed(model, 0), (Y,), POSTERIOR)
program("infer_config", poutine.infer_config(model, lambda site: {}), (Y,), POSTERIOR)
program("lambda", lambda y: model(y), (Y,), POSTERIOR)
program(
    "NaN that the model masks",
    lambda y: masked(y, ~torch.isnan(y)),
    (torch.where(SEEN, Y, torch.nan),),
    _of_three,
)
program(
    "subsample_size",
    subsampled,
    (Y,),
    POSTERIOR,
    "svi",
    guide="normal",
    engine="graph",  # the rows of a step are random
    steps=6000,
    learning_rate=0.005,
)


def _fitted_scale(fit):
    assert 0.3 < fit.stats["params"]["scale"] < 1.5


program("pyro.param", delayed, (Y,), _fitted_scale, "svi", guide="normal")


def two(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    shift = pyro.sample("shift", dist.Normal(0.0, 0.5))
    with pyro.plate("n", len(y)):
        pyro.sample("y", dist.Normal(mu + 0 * shift, 1.0), obs=y)


TWO = exact(mu=(Y.sum() * _variance, _variance**0.5), shift=(0.0, 0.5))
_list = AutoGuideList(two)
_list.append(AutoNormal(poutine.block(two, expose=["mu"])))
_list.append(autoguide.AutoDiagonalNormal(poutine.block(two, expose=["shift"])))
program("AutoGuideList", two, (Y,), TWO, "svi", guide=_list)
program(
    "AutoLowRank",
    two,
    (Y,),
    TWO,
    "svi",
    guide=autoguide.AutoLowRankMultivariateNormal(two),
)
program("AutoIAF", two, (Y,), TWO, "svi", guide=autoguide.AutoIAFNormal)
program("AutoStructured", two, (Y,), TWO, "svi", guide=autoguide.AutoStructured(two))
program("a messenger guide", two, (Y,), TWO, "svi", guide=autoguide.AutoNormalMessenger(two))
program("a function that makes a guide", two, (Y,), TWO, "svi", guide=lambda m: AutoNormal(m))


def wrapped(y):
    mu = pyro.sample(
        "mu", dist.TransformedDistribution(dist.Normal(0.0, 1.0), [dist.transforms.ExpTransform()])
    )
    with pyro.plate("n", len(y)):
        pyro.sample("y", dist.Normal(mu.log(), 1.0), obs=y)


def _log_normal(fit):
    draws = np.log(fit.draws["mu"])
    assert abs(draws.mean() - Y.mean() * N / (N + 1)) < 0.1
    assert abs(draws.std() / _variance**0.5 - 1) < 0.2


program(
    "TransformReparam",
    poutine.reparam(wrapped, config={"mu": TransformReparam()}),
    (Y,),
    _log_normal,
)


def angles(y):
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 3.0).to_event(1))
    with pyro.plate("n", len(y)):
        pyro.sample("y", dist.ProjectedNormal(loc), obs=y)


def _points_right(fit):
    loc = fit.draws["loc"].mean((0, 1))
    assert loc[0] > abs(loc[1])


DIRECTIONS = torch.randn(40, 2, generator=seeded(0)) * 0.4 + torch.tensor([1.0, 0.0])
DIRECTIONS = DIRECTIONS / DIRECTIONS.norm(dim=-1, keepdim=True)
program("ProjectedNormal", angles, (DIRECTIONS,), _points_right)


def compass(y):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    concentration = pyro.sample("concentration", dist.Gamma(2.0, 0.5))
    with pyro.plate("n", len(y)):
        pyro.sample("y", dist.VonMises(loc, concentration), obs=y)


TURNS = 0.5 + 0.5 * torch.randn(50, generator=seeded(1))
program("VonMises", compass, (TURNS,), about(loc=0.5))


def scopes(y):
    with scope(prefix="outer"):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("n", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


program("scope", scopes, (Y,), exact(**{"outer/mu": (Y.sum() * _variance, _variance**0.5)}))


def plates(y):
    """Two plates that cross."""
    rows, columns = y.shape
    a = pyro.plate("rows", rows, dim=-2)
    b = pyro.plate("columns", columns, dim=-1)
    with a:
        r = pyro.sample("r", dist.Normal(0.0, 1.0))
    with b:
        c = pyro.sample("c", dist.Normal(0.0, 1.0))
    with a, b:
        pyro.sample("y", dist.Normal(r + c, 0.5), obs=y)


ROWS = torch.tensor([[1.0], [0.0], [-1.0]])
CROSSED = ROWS + torch.tensor([0.5, -0.5]) + 0.5 * torch.randn(3, 2, generator=seeded(2))
program("crossed plates", plates, (CROSSED,), about(r=ROWS))


def in_a_loop(y):
    total = 0.0
    for i in pyro.plate("terms", 3):
        total = total + pyro.sample(f"x_{i}", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(total, 1.0), obs=y)


program("a sequential plate", in_a_loop, (torch.tensor(2.0),), exact(x_0=(0.5, 0.75**0.5)))


def flat():
    z = pyro.sample("z", dist.Normal(0.0, 1.0).mask(False))
    pyro.factor("density", -0.5 * ((z - 2) / 0.5) ** 2)


program("a flat prior by mask(False)", flat, (), exact(z=(2.0, 0.5)))
