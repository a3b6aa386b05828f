"""Guides as Pyro's users pass them."""

import functools

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.contrib.mue.models import ProfileHMM
from pyro.distributions import transforms
from pyro.infer import autoguide
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoDiscreteParallel,
    AutoGuideList,
    AutoIAFNormal,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
    AutoNormalizingFlow,
    AutoNormalMessenger,
    AutoStructured,
    init_to_value,
)
from torch.distributions import constraints

import probdl

generator = torch.Generator().manual_seed(0)
X = torch.randn(40, generator=generator)
X = X - X.mean()  # so that the posterior of the line has no correlation
Y = 0.5 + 1.5 * X + 0.3 * torch.randn(40, generator=generator)
NOISE = 0.3


def line(x, y):
    slope = pyro.sample("slope", dist.Normal(0.0, 5.0))
    level = pyro.sample("level", dist.Normal(0.0, 5.0))
    with pyro.plate("n", len(x)):
        pyro.sample("y", dist.Normal(slope * x + level, NOISE), obs=y)


def exact(x):
    """Return the mean and the standard deviation of the coefficient of one predictor."""
    precision = float((x**2).sum()) / NOISE**2 + 1 / 25
    return float((x * Y).sum()) / NOISE**2 / precision, precision**-0.5


EXACT = {"slope": exact(X), "level": exact(torch.ones(40))}


def listed(model):
    guide = AutoGuideList(model)
    guide.append(AutoDiagonalNormal(poutine.block(model, expose=["slope"])))
    guide.append(AutoNormal(poutine.block(model, hide=["slope"])))
    return guide


def listed_with_function(model):
    guide = AutoGuideList(model)
    guide.append(AutoNormal(poutine.block(model, hide=["level"])))

    def level(x, y):
        loc = pyro.param("loc", torch.tensor(0.0))
        scale = pyro.param("scale", torch.tensor(0.1), constraint=constraints.positive)
        return {"level": pyro.sample("level", dist.Normal(loc, scale))}

    guide.append(level)
    return guide


MADE = {
    "AutoNormal": AutoNormal,
    "AutoDiagonalNormal": AutoDiagonalNormal,
    "AutoMultivariateNormal": AutoMultivariateNormal,
    "AutoLowRankMultivariateNormal": functools.partial(AutoLowRankMultivariateNormal, rank=1),
    "AutoStructured": functools.partial(
        AutoStructured,
        conditionals={"slope": "normal", "level": "normal"},
        dependencies={"level": {"slope": "linear"}},
    ),
    "AutoNormalMessenger": AutoNormalMessenger,
    "AutoHierarchicalNormalMessenger": autoguide.AutoHierarchicalNormalMessenger,
    "AutoRegressiveMessenger": autoguide.AutoRegressiveMessenger,
    "a scale": functools.partial(AutoNormal, init_scale=0.01),
    "a start": functools.partial(AutoNormal, init_loc_fn=init_to_value(values={"slope": X.sum()})),
    "AutoGuideList": listed,
    "a function in a list": listed_with_function,
    "block": lambda model: AutoDiagonalNormal(poutine.block(model, expose=["slope", "level"])),
}


def fitted(guide, model=line, **settings):
    settings = {"steps": 2500, "learning_rate": 0.02} | settings
    return probdl.infer(model, X, Y, method=probdl.SVI(guide=guide, **settings), seed=1)


def check(fit):
    for name, (mean, sd) in EXACT.items():
        assert abs(fit.draws[name].mean() - mean) < 0.3 * sd
        assert sd / 1.3 < fit.draws[name].std() < 1.3 * sd


@pytest.mark.parametrize("name", MADE)
def test_a_guide_of_the_model(name):
    pyro.clear_param_store()
    guide = MADE[name](line)
    fit = fitted(guide)
    check(fit)
    assert not list(guide.parameters())
    assert list(pyro.get_param_store()) == []
    with poutine.trace() as tr:  # it still is a guide of the model
        guide(X, Y)
    pyro.clear_param_store()
    assert {"slope", "level"} <= set(tr.trace.nodes)


@pytest.mark.parametrize("name", ["AutoNormal", "AutoGuideList", "AutoNormalMessenger"])
def test_a_function_that_makes_a_guide(name):
    def make(model):
        return MADE[name](model)

    check(fitted(make))
    check(fitted(lambda m: MADE[name](m)))


def test_a_guide_of_one_argument_is_no_maker_of_guides():
    def model(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
        with pyro.plate("n", len(y)):
            pyro.sample("y", dist.Normal(mean, NOISE), obs=y)

    def guide(data):
        loc = pyro.param("loc", data.mean())
        pyro.sample("mean", dist.Normal(loc, pyro.param("scale", torch.tensor(0.05))))

    method = probdl.SVI(guide=guide, steps=1500)
    fit = probdl.infer(model, Y, method=method, seed=1)
    assert abs(fit.draws["mean"].mean() - EXACT["level"][0]) < 0.3 * EXACT["level"][1]
    assert set(fit.stats["params"]) == {"loc", "scale"}


def test_a_trained_guide_goes_on_from_where_it_is():
    guide = AutoNormal(line)
    svi = pyro.infer.SVI(line, guide, pyro.optim.Adam({"lr": 0.02}), pyro.infer.Trace_ELBO())
    torch.manual_seed(0)
    for _ in range(1000):
        svi.step(X, Y)
    before = {name: value.clone() for name, value in guide.named_parameters()}
    fit = fitted(guide, steps=10, learning_rate=1e-6)
    pyro.clear_param_store()
    for name, (mean, sd) in EXACT.items():
        assert abs(fit.draws[name].mean() - mean) < sd
    assert all(torch.equal(value, before[name]) for name, value in guide.named_parameters())


@pytest.mark.parametrize(
    "flow",
    [
        functools.partial(AutoNormalizingFlow, init_transform_fn=transforms.affine_autoregressive),
        lambda model: AutoIAFNormal(model, hidden_dim=[8]),
    ],
)
def test_flows(flow):
    fit = fitted(flow, steps=4000)
    for name, (mean, sd) in EXACT.items():
        assert abs(fit.draws[name].mean() - mean) < 2 * sd
    assert fit.stats["engine"] != "eager"


def test_a_delta_guide_is_the_mode():
    fit = fitted(AutoDelta(line))
    for name, (mean, sd) in EXACT.items():  # the posterior is normal
        assert abs(fit.draws[name].item() - mean) < 0.02 * sd


class Line(pyro.nn.PyroModule):
    """The same line as a module, with a network parameter that training must reach."""

    def __init__(self):
        super().__init__()
        self.offset = torch.nn.Parameter(torch.tensor(0.0))
        self.slope = pyro.nn.PyroSample(dist.Normal(0.0, 5.0))

    def forward(self, x, y):
        mean = self.slope * x + self.offset
        with pyro.plate("n", len(x)):
            pyro.sample("y", dist.Normal(mean, NOISE), obs=y)


def test_a_guide_of_a_module_trains_the_copy_of_the_module():
    module = Line()
    fit = fitted(AutoNormal(module), module, steps=4000)
    mean, sd = EXACT["slope"]
    assert abs(fit.draws["slope"].mean() - mean) < 0.3 * sd
    assert abs(float(fit.stats["params"]["offset"]) - float(Y.mean())) < 0.02
    assert module.offset.item() == 0.0


def test_a_list_with_discrete_sites():
    def mixture(x, y):
        share = pyro.sample("share", dist.Beta(1.0, 1.0))
        with pyro.plate("n", len(y)):
            z = pyro.sample("z", dist.Bernoulli(share), infer={"enumerate": "parallel"})
            pyro.sample("y", dist.Normal(10 * z, 1.0), obs=y)

    y = torch.cat([torch.zeros(10), 10 * torch.ones(30)])
    guide = AutoGuideList(mixture)
    guide.append(AutoNormal(poutine.block(mixture, expose=["share"])))
    guide.append(AutoDiscreteParallel(poutine.block(mixture, expose=["z"])))
    method = probdl.SVI(guide=guide, steps=1500, learning_rate=0.02)
    fit = probdl.infer(mixture, X, y, method=method, seed=1)
    exact_mean, exact_sd = 31 / 42, (31 * 11 / 42**2 / 43) ** 0.5
    assert abs(fit.draws["share"].mean() - exact_mean) < 0.3 * exact_sd
    # Without the second guide, the discrete site is summed out.
    fit = probdl.infer(mixture, X, y, method=probdl.SVI(guide=AutoNormal(mixture)), seed=1)
    assert abs(fit.draws["share"].mean() - exact_mean) < 0.3 * exact_sd


def test_a_guide_samples_a_site_without_finite_support():
    def model(y):
        n = pyro.sample("n", dist.Poisson(3.0))
        pyro.sample("y", dist.Normal(n, 1.0), obs=y)

    def guide(y):
        pyro.sample("n", dist.Poisson(pyro.param("log_rate", torch.tensor(1.0)).exp()))

    method = probdl.SVI(guide=guide, steps=200, learning_rate=0.02, draws=2000)
    fit = probdl.infer(model, torch.tensor(4.0), method=method, seed=1)
    n = torch.arange(60.0)
    joint = dist.Poisson(3.0).log_prob(n) + dist.Normal(n, 1.0).log_prob(torch.tensor(4.0))
    weights = np.exp(fit.stats["log_weights"][0])
    mean = float((joint.softmax(0) * n).sum())
    assert abs((weights * fit.draws["n"][0]).sum() / weights.sum() - mean) < 0.15
    assert abs(fit.stats["log_evidence"] - float(joint.logsumexp(0))) < 0.1
    assert (fit.draws["n"] == fit.draws["n"].round()).all()
    assert fit.predict()["y"].shape == (1, 2000)
    with pytest.raises(probdl.ModelError, match="pass a guide that samples the site"):
        probdl.infer(model, torch.tensor(4.0), seed=1)


def test_a_guide_samples_several_values_with_a_baseline():
    def model(y):
        z = pyro.sample("z", dist.Bernoulli(torch.tensor([0.5, 0.2])).to_event(1))
        pyro.sample("y", dist.Normal(2 * z, 1.0).to_event(1), obs=y)

    def guide(y):
        p = pyro.param("p", torch.tensor([0.5, 0.5]), constraint=constraints.unit_interval)
        baseline = {"use_decaying_avg_baseline": True, "baseline_beta": 0.9}
        pyro.sample("z", dist.Bernoulli(p).to_event(1), infer={"baseline": baseline})

    y = torch.tensor([1.5, 1.0])
    method = probdl.SVI(guide=guide, steps=600, learning_rate=0.05)
    fit = probdl.infer(model, y, method=method, seed=1)
    odds = torch.tensor([1.0, 0.25]) * (2 * y - 2).exp()
    exact = (odds / (1 + odds)).numpy()
    np.testing.assert_allclose(fit.stats["params"]["p"], exact, atol=0.1)
    with pytest.raises(probdl.ModelError, match="in one event, as by to_event"):
        probdl.infer(model, y, seed=1)


def test_a_guide_with_data_of_its_own():
    """As in pyro.contrib.cevae, a guide may learn to predict what the model does not need."""

    def guide(x, y):
        weight = pyro.param("weight", torch.tensor(0.0))
        with pyro.plate("n", len(x)):
            pyro.sample("again", dist.Normal(weight * x, NOISE), obs=y - y.mean())
        for name in EXACT:
            loc = pyro.param(f"{name}_loc", torch.tensor(0.0))
            scale = pyro.param(f"{name}_scale", torch.tensor(0.1), constraint=constraints.positive)
            pyro.sample(name, dist.Normal(loc, scale))

    fit = fitted(guide, steps=4000)
    check(fit)
    assert abs(float(fit.stats["params"]["weight"]) - float((X * Y).sum() / (X**2).sum())) < 0.05
    with pytest.raises(probdl.ModelError, match="train it to predict the site badly"):
        fitted(guide, elbo="trace")


def test_a_profile_hmm():
    mue = ProfileHMM(6, 4, prior_scale=1.0, indel_prior_bias=10.0)
    letters = torch.randint(0, 4, (5, 6), generator=torch.Generator().manual_seed(0))
    data = torch.eye(4)[letters]
    method = probdl.SVI(guide=mue.guide, steps=60, draws=20)
    fit = probdl.infer(mue.model, data, torch.tensor(1.0), method=method, seed=1)
    assert fit.stats["elbo"][-20:].mean() > fit.stats["elbo"][:20].mean()


def test_two_fits_of_one_guide_do_not_share_it():
    guide = AutoNormal(line)
    first = fitted(guide, steps=200)
    second = fitted(guide, steps=200)
    np.testing.assert_array_equal(first.draws["slope"], second.draws["slope"])
    assert first.proposal.program.model is not second.proposal.program.model
