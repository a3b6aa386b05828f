"""Checks of a model on a part of very many rows."""

import pyro
import pyro.distributions as dist
import pytest
import torch

import probdl
from probdl.compile import choose

X = torch.linspace(0.1, 2.0, 500, dtype=torch.float64)


@pytest.fixture(autouse=True)
def few_are_many(monkeypatch):
    monkeypatch.setattr("probdl.model.program.MANY_NUMBERS", 400)
    monkeypatch.setattr("probdl.compile.shortening.FEW_ROWS", 50)


def chosen(model, *args):
    return choose(probdl.LogDensity.from_model(model, args), "native", 0)[0]


def test_a_model_of_many_rows_is_mostly_checked_on_few():
    lengths = []

    def model(x):
        lengths.append(len(x))
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=x)

    compiled = chosen(model, X)
    assert compiled.engine == "native"
    assert lengths.count(50) >= 4
    assert lengths.count(500) <= 6


@pytest.mark.parametrize("rows", [500, 499])  # a constant of the model keeps the data from a cut
def test_mistakes_are_found_in_many_rows(rows):
    constant = torch.ones(rows)

    def random(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0)) + torch.randn(())
        pyro.sample("y", dist.Normal(mu * constant, 1.0).to_event(1), obs=x)

    def detached(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0)).detach()
        pyro.sample("y", dist.Normal(mu * constant, 1.0).to_event(1), obs=x)

    def invalid_in_the_last_row(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        scale = torch.where(torch.arange(len(x)) < len(x) - 1, 1.0, -1.0)
        noise = dist.Normal(mu * constant, scale, validate_args=False)
        pyro.factor("y", -0.5 * ((x - noise.loc) / noise.scale).square().sum())
        pyro.sample("of", noise.mask(False).to_event(1), obs=x)

    x = X[:rows]
    with pytest.raises(probdl.ModelError, match="random"):
        chosen(random, x)
    with pytest.raises(probdl.ModelError, match="gradient"):
        chosen(detached, x)
    with pytest.raises(probdl.ModelError, match="scale = -1"):
        chosen(invalid_in_the_last_row, x)


def test_a_latent_value_for_each_row_is_checked_on_all():
    def model(x):
        with pyro.plate("rows", len(x)):
            mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(mu, 1.0), obs=x)

    compiled = chosen(model, X)
    _value, grad = compiled.value_and_grad(torch.zeros(500, dtype=torch.float64))
    assert torch.allclose(grad, X)
