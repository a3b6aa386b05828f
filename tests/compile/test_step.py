"""Compiled training steps: the same estimator as Pyro's, with new random numbers at each step."""

import functools

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import RenyiELBO, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO, config_enumerate
from torch import nn
from torch.distributions import constraints

import probdl
from probdl.compile.step import BLOCK, Parameters, choose_step
from probdl.methods.variational.objective import Objective, resolve_elbo
from probdl.model.program import Program
from probdl.model.sites import discover
from probdl.util.isolation import evaluation, isolated

Y = torch.tensor([0.5, -0.3, 1.2, 2.0, 0.1])


def model(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    sigma = pyro.sample("sigma", dist.Gamma(2.0, 1.0))
    with pyro.plate("obs", len(y)):
        pyro.sample("y", dist.Normal(mu, sigma), obs=y)


def guide(y):
    loc = pyro.param("loc", torch.tensor(0.3))
    scale = pyro.param("scale", torch.tensor(0.4), constraint=constraints.positive)
    pyro.sample("mu", dist.Normal(loc, scale))
    width = pyro.param("width", torch.tensor(0.2), constraint=constraints.positive)
    pyro.sample("sigma", dist.LogNormal(0.1, width))


def mixture(y):
    mu = pyro.sample("mu", dist.Normal(torch.zeros(2), 2.0).to_event(1))
    with pyro.plate("obs", len(y)):
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7])))
        pyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)


def mixture_guide(y):
    loc = pyro.param("loc", torch.tensor([-0.5, 1.0]))
    scale = pyro.param("scale", torch.tensor([0.4, 0.3]), constraint=constraints.positive)
    pyro.sample("mu", dist.Normal(loc, scale).to_event(1))


def score_guide(y):
    """A guide that is not reparameterized, so its gradient is a score-function estimate."""
    loc = pyro.param("loc", torch.tensor(0.3))
    scale = pyro.param("scale", torch.tensor(0.4), constraint=constraints.positive)
    pyro.sample("mu", dist.Normal(loc, scale).has_rsample_(False))
    pyro.sample("sigma", dist.Delta(torch.tensor(0.8)))


ESTIMATORS = {
    "trace": (model, guide, Trace_ELBO(), 1),
    "mean_field": (model, guide, TraceMeanField_ELBO(), 1),
    "renyi": (model, guide, RenyiELBO(num_particles=3), 3),
    "enum": (mixture, mixture_guide, TraceEnum_ELBO(max_plate_nesting=1), 1),
    "particles": (model, guide, Trace_ELBO(num_particles=4), 4),
}


def step_of(model, guide, elbo, particles, engine="auto", args=(Y,)):
    program = Program(model, args)
    structure = discover(program)
    companion = program.companion(guide)
    estimator = resolve_elbo(elbo, particles, structure)
    objective = Objective(program, companion, structure, estimator)
    parameters = Parameters(objective.leaves)
    step, findings = choose_step(objective, parameters, program.tensors(), engine, 1)
    return step, findings, parameters, program.tensors()


@pytest.mark.parametrize("name", ESTIMATORS)
def test_value_and_gradient_agree_in_distribution_with_pyros(name):
    model, guide, theirs, particles = ESTIMATORS[name]
    count = 2000
    with isolated(1), evaluation():
        step, _, parameters, data = step_of(
            model, guide, "trace" if name == "particles" else name, particles
        )
        assert step.engine == "native"
        ours = []
        for i in range(count):
            if i % BLOCK == 0:
                step.begin_block()
            loss = step(data)
            ours.append([loss, *parameters.grad().tolist()])
        enumerated = config_enumerate(model) if name == "enum" else model
        expected = []
        for _ in range(count):
            with poutine.trace(param_only=True) as capture:
                loss = theirs.loss_and_grads(enumerated, guide, Y.double())
            leaves = [n["value"].unconstrained() for n in capture.trace.nodes.values()]
            unique = list({id(leaf): leaf for leaf in leaves}.values())
            expected.append([loss, *torch.cat([x.grad.reshape(-1) for x in unique]).tolist()])
            for leaf in unique:
                leaf.grad = None
    a, b = np.array(ours), np.array(expected)
    error = np.sqrt((a.var(0) + b.var(0)) / count)
    np.testing.assert_array_less(np.abs(a.mean(0) - b.mean(0)), 4 * error)
    # Compare variances too, with standard errors from the fourth moments.
    spread = [np.square(x - x.mean(0)) for x in (a, b)]
    error = np.sqrt(sum(s.var(0) for s in spread) / count)
    np.testing.assert_array_less(np.abs(spread[0].mean(0) - spread[1].mean(0)), 4 * error)


@pytest.mark.parametrize("engine", ["native", "inductor", "graph", "eager"])
def test_every_step_draws_new_random_numbers(engine):
    with isolated(2), evaluation():
        step, _, _, data = step_of(model, guide, "trace", 1, engine)
        assert step.engine == engine
        losses = []
        for i in range(3 * BLOCK):
            if i % BLOCK == 0:
                step.begin_block()
            losses.append(step(data))
    losses = np.array(losses)
    assert len(set(losses)) == len(losses)
    # White noise: no correlation between successive steps, or between successive blocks.
    for lag in (1, BLOCK):
        r = np.corrcoef(losses[lag:], losses[:-lag])[0, 1]
        assert abs(r) < 4 / np.sqrt(len(losses) - lag)


def test_each_minibatch_of_few_columns_is_read():
    def line(x, y):
        w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("obs", len(x)):
            pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)

    def at_a_point(x, y):
        w = pyro.param("point", torch.ones(3))
        pyro.sample("w", dist.Delta(w).to_event(1))

    with isolated(1), evaluation():
        batches = [(torch.randn(40, 3), torch.randn(40)) for _ in range(2)]
        step, *_ = step_of(line, at_a_point, "trace", 1, "native", batches[0])
        step.begin_block()
        found = [step(batch) for batch in [*batches, batches[0]]]
    w = dist.Normal(torch.zeros(3).double(), 1.0).log_prob(torch.ones(3).double()).sum()
    for loss, (x, y) in zip(found, [*batches, batches[0]], strict=True):
        known = w + dist.Normal(x.sum(1), 1.0).log_prob(y).sum()
        assert loss == pytest.approx(-float(known), rel=1e-9)


def test_adam_in_c_agrees_with_torch(monkeypatch):
    monkeypatch.setattr("probdl.compile.step.specify_noise", lambda _: None)  # torch's in both

    def fit(optimizer):
        method = probdl.SVI(
            guide="normal", steps=1000, optimizer=optimizer, clip_norm=5.0, learning_rate=0.02
        )
        return probdl.infer(model, Y, method=method, seed=1)

    ours, theirs = fit("Adam"), fit(functools.partial(torch.optim.Adam, lr=0.02))
    np.testing.assert_allclose(ours.stats["elbo"], theirs.stats["elbo"], rtol=1e-8)
    for name, value in theirs.stats["params"].items():
        np.testing.assert_allclose(ours.stats["params"][name], value, rtol=1e-8)


@pytest.mark.filterwarnings("ignore::probdl.FindingWarning")
def test_steps_in_c_do_not_depend_on_how_many_are_taken_at_once(monkeypatch):
    def fit():
        return probdl.infer(model, Y, method=probdl.SVI(guide="normal", steps=2500), seed=1)

    whole = fit()
    monkeypatch.setattr("probdl.methods.variational.training.RESPONSE_S", 1e-9)  # a step each
    single = fit()
    np.testing.assert_array_equal(single.stats["elbo"], whole.stats["elbo"])
    for name, value in whole.stats["params"].items():
        np.testing.assert_array_equal(single.stats["params"][name], value)


def test_a_guide_that_is_not_reparameterized_runs_as_a_graph():
    with isolated(1), evaluation():
        step, findings, _, data = step_of(model, score_guide, "trace", 1)
        losses = {step(data) for _ in range(20)}
    assert step.engine == "graph"
    assert not findings
    assert len(losses) == 20


def test_control_flow_on_values_runs_eagerly_and_is_reported():
    def branching(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        width = 1.0 if mu > 0 else 2.0
        pyro.sample("y", dist.Normal(mu, width).expand([len(y)]).to_event(1), obs=y)

    method = probdl.SVI(steps=20, draws=30)
    with pytest.warns(probdl.FindingWarning, match="steps run on the eager engine"):
        fit = probdl.infer(branching, Y, method=method, seed=1)
    assert fit.stats["engine"] == "eager"
    with pytest.raises(probdl.ModelError, match="control flow in Python depends on"):
        probdl.infer(branching, Y, method=probdl.SVI(steps=20, engine="native"), seed=1)


def test_running_statistics_are_kept():
    class Normalised(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))

        def forward(self, x, y=None):
            pyro.module("net", self.net)
            mean = self.net(x)[:, 0]
            with pyro.plate("obs", len(x)):
                pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    torch.manual_seed(0)
    x = torch.randn(50, 1) + 3
    module = Normalised()
    fits = [
        probdl.infer(module, x, x[:, 0], method=probdl.SVI(steps=50, engine=engine), seed=1)
        for engine in ("auto", "eager")
    ]
    assert [fit.stats["engine"] for fit in fits] == ["graph", "eager"]
    mean, expected = (fit.model.net[1].running_mean for fit in fits)
    assert mean.abs().max() > 0.01
    torch.testing.assert_close(mean, expected)
