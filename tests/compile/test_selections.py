"""Selections by a constant mask, such as those of an enumerated change point."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import probdl
from probdl import LogDensity
from probdl.compile import choose
from probdl.compile.tracing import selections
from probdl.compile.tracing.trace import trace

TIMES = 120
TIME = np.arange(TIMES)


def change(times):
    count = len(times)
    return pyro.sample("change", dist.Categorical(torch.ones(count) / count))


def rates(y):
    """Two rates of counts; times are positions."""
    early = pyro.sample("early", dist.Exponential(1.0))
    late = pyro.sample("late", dist.Exponential(1.0))
    rate = torch.where(torch.arange(len(y)) < change(y), early, late)
    with pyro.plate("time", len(y)):
        pyro.sample("y", dist.Poisson(rate), obs=y)


def years(y, year):
    """The times are data; the mean and the scale change."""
    with pyro.plate("part", 2):
        level = pyro.sample("level", dist.Normal(0.0, 5.0))
        scale = pyro.sample("scale", dist.HalfNormal(5.0))
    switch = change(y)
    is_late = year >= 1900 + switch
    with pyro.plate("time", len(y)):
        loc = torch.where(is_late, level[1], level[0])
        sd = torch.where(year < 1900 + switch, scale[0], scale[1])
        pyro.sample("y", dist.Normal(loc, sd), obs=y)


def slopes(y):
    """Each branch differs by time, and the second has an effect for each time."""
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("shift", len(y)):
        shift = pyro.sample("shifts", dist.Normal(0.0, 1.0))
    time = torch.arange(len(y)) / len(y)
    mean = torch.where(torch.arange(len(y)) < change(y), slope * time, shift.exp())
    with pyro.plate("time", len(y)):
        pyro.sample("y", dist.StudentT(4.0, mean, 0.5), obs=y)


def impossible(y):
    """The first branch does not allow some of the data."""
    width = pyro.sample("width", dist.Uniform(1.0, 2.0))
    scale = pyro.sample("scale", dist.HalfNormal(5.0))
    inside = torch.where(y.abs() < 1.0, -torch.log(2 * width), torch.tensor(-math.inf))
    outside = dist.Normal(0.0, scale).log_prob(y)
    early = torch.arange(len(y)) < change(y).unsqueeze(-1)
    pyro.factor("y", torch.where(early, inside, outside).sum(-1))


def two_changes(y):
    """Two masks."""
    with pyro.plate("part", 3):
        level = pyro.sample("level", dist.Normal(0.0, 5.0))
    first = pyro.sample("first", dist.Categorical(torch.ones(12) / 12))
    second = pyro.sample("second", dist.Categorical(torch.ones(12) / 12))
    time = torch.arange(len(y)) // 10
    inner = torch.where(time < second, level[1], level[2])
    with pyro.plate("time", len(y)):
        pyro.sample("y", dist.Normal(torch.where(time < first, level[0], inner), 1.0), obs=y)


def with_noise(low, high):
    return np.where(TIME < 70, low, high) + np.random.default_rng(0).normal(size=TIMES)


CASES = {
    "rates": (rates, (np.random.default_rng(0).poisson(np.where(TIME < 70, 3.0, 5.0)) * 1.0,)),
    "years": (years, (with_noise(0.0, 2.0), 1900.0 + TIME)),
    "slopes": (slopes, (with_noise(0.0, 1.0),)),
    "impossible": (impossible, (np.where(TIME < 60, 0.5, with_noise(0.0, 0.0)),)),
    "two_changes": (two_changes, (with_noise(0.0, 2.0),)),
}


@pytest.mark.parametrize("name", CASES)
def test_they_leave_the_density_as_it_is(name):
    model, data = CASES[name]
    density = LogDensity.from_model(model, data)
    generator = torch.Generator().manual_seed(0)
    points = [density.initial(generator) for _ in range(5)]
    compiled, _ = choose(density, "native", 0)
    for z in points:
        value, grad = compiled.value_and_grad(z)
        expected, of_model = density.value_and_grad(z)
        assert float(value) == pytest.approx(float(expected), rel=1e-9)
        torch.testing.assert_close(grad, of_model, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", ["rates", "years", "slopes"])
def test_no_operation_of_the_density_has_an_element_for_each_time_and_each_change(name):
    model, data = CASES[name]
    density = LogDensity.from_model(model, data)
    traced = trace(density, density.initial(torch.Generator().manual_seed(0)))
    largest = max(map(_elements, traced.density.nodes))
    assert largest < TIMES**2 / 4


def _elements(node):
    return selections._varying(node.meta["val"]) if "val" in node.meta else 0


def test_other_data_of_the_same_shape_have_their_own_mask():
    model, (y, year) = CASES["years"]
    probdl.infer(model, y, year, method="map", seed=1)
    other = LogDensity.from_model(model, (y, year + 7.0))
    compiled, _ = choose(other, "native", 0)
    z = other.initial(torch.Generator().manual_seed(3))
    assert float(compiled.value_and_grad(z)[0]) == pytest.approx(float(other(z)), rel=1e-9)


def test_the_change_point_of_a_long_series_is_found():
    count = 1000
    rng = np.random.default_rng(1)
    y = rng.poisson(np.where(np.arange(count) < 600, 3.0, 6.0)).astype(float)
    fit = probdl.infer(rates, y, seed=1)
    means = [float(fit.draws[name].mean()) for name in ("early", "late")]
    assert means[0] == pytest.approx(y[:600].mean(), abs=0.2)
    assert means[1] == pytest.approx(y[600:].mean(), abs=0.3)
