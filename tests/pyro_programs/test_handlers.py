"""Pyro's effect handlers, as decorators and around a model."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from pyro.infer.reparam import LocScaleReparam

import probdl


def mean_of(y, scale=1.0):
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(a, scale).expand([3]).to_event(1), obs=y)


HANDLED = {
    "scale": (poutine.scale(scale=2.0)(mean_of), 0.75, 8**-0.5),
    "scale, called": (poutine.scale(mean_of, scale=2.0), 0.75, 8**-0.5),
    "mask": (poutine.mask(mask=True)(mean_of), 0.75, 0.5),
    "condition": (poutine.condition(data={"y": torch.zeros(3)})(mean_of), 0.0, 0.5),
    "reparam": (poutine.reparam(config={"a": LocScaleReparam(0.0)})(mean_of), 0.75, 0.5),
    "two": (poutine.scale(scale=2.0)(poutine.mask(mask=True)(mean_of)), 0.75, 8**-0.5),
}


@pytest.mark.parametrize("name", HANDLED)
def test_handlers_as_decorators(name):
    model, mean, sd = HANDLED[name]
    fit = probdl.infer(model, torch.ones(3), seed=1)
    assert abs(fit.draws["a"].mean() - mean) < 0.1 * sd
    assert abs(fit.draws["a"].std() - sd) < 0.1 * sd
    assert fit.stats["engine"] == "native"
    assert "mean_of" in repr(fit)


def test_a_decorated_model_is_saved_and_loaded(tmp_path):
    model = poutine.scale(scale=2.0)(mean_of)
    fit = probdl.infer(model, torch.ones(3), method="laplace", seed=1)
    again = probdl.load(fit.save(tmp_path / "fit"), model=model)
    assert again.predict()["y"].shape == (1, 1000, 3)


def test_arguments_of_a_decorated_model_have_names():
    model = poutine.scale(scale=1.0)(mean_of)
    fit = probdl.infer(model, scale=2.0, y=torch.ones(3), seed=1)
    assert abs(fit.draws["a"].mean() - (3 / 4) / (1 + 3 / 4)) < 0.1
    with pytest.raises(probdl.ModelError, match="got an unexpected keyword argument 'z'"):
        probdl.infer(model, torch.ones(3), z=1)


def test_enumeration_as_a_decorator():
    @config_enumerate
    def model(y):
        share = pyro.sample("share", dist.Beta(1.0, 1.0))
        with pyro.plate("n", len(y)):
            z = pyro.sample("z", dist.Bernoulli(share))
            pyro.sample("y", dist.Normal(20 * z, 1.0), obs=y)

    fit = probdl.infer(model, torch.tensor([0.0, 20.0, 20.0]), seed=1)
    assert abs(fit.draws["share"].mean() - 0.6) < 0.03  # Beta(3, 2)


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.level = torch.nn.Parameter(torch.tensor(0.0))

    def forward(self, y):
        with pyro.plate("n", len(y)):
            pyro.sample("y", dist.Normal(self.level, 1.0), obs=y)


def test_the_network_in_a_handler_is_a_copy():
    network = Network()
    fit = probdl.infer(poutine.scale(scale=2.0)(network), torch.tensor([1.0, 3.0]), method="mle")
    assert abs(fit.draws["level"].item() - 2.0) < 1e-6
    assert network.level.item() == 0.0


def test_a_random_start_of_a_parameter():
    def model(y):
        w = pyro.param("w", torch.rand(2))
        pyro.sample("y", dist.Normal(w, 1.0).to_event(1), obs=y)

    y = torch.tensor([1.0, 2.0])
    for method in ("mle", "map"):
        fit = probdl.infer(model, y, method=method, seed=1)
        assert fit.stats["engine"] == "native"
        assert abs(torch.from_numpy(fit.draws["w"]).reshape(2) - y).max() < 1e-6


def test_counts_of_categories():
    def model(y):
        p = pyro.sample("p", dist.Dirichlet(torch.ones(3)))
        with pyro.plate("n", len(y)):
            pyro.sample("y", dist.Multinomial(10, p), obs=y)

    y = torch.tensor([[3.0, 2.0, 5.0], [1.0, 4.0, 5.0]])
    fit = probdl.infer(model, y, seed=1)
    assert fit.stats["engine"] == "native"
    a = 1 + y.sum(0)  # the posterior is Dirichlet
    mean = a / a.sum()
    sd = (mean * (1 - mean) / (a.sum() + 1)).sqrt()
    assert ((torch.from_numpy(fit.draws["p"]).mean((0, 1)) - mean).abs() < 0.1 * sd).all()


def test_a_conditioned_model_at_arguments_of_another_size():
    def model(x):
        a = pyro.sample("a", dist.Normal(0.0, 5.0))
        with pyro.plate("n", len(x)):
            return pyro.sample("y", dist.Normal(a * x, 0.1))

    x = torch.linspace(1.0, 2.0, 30)
    fit = probdl.infer(pyro.condition(model, data={"y": 3 * x}), x, method="laplace", seed=1)
    new = fit.predict(torch.tensor([1.0, 10.0]))["y"]
    assert new.shape == (1, 1000, 2)
    assert abs(new[..., 1].mean() - 30) < 0.2


def test_unit_vectors_of_single_precision():
    y = dist.ProjectedNormal(torch.tensor([3.0, 0.0])).sample([5])

    def model(y):
        c = pyro.sample("c", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
        pyro.sample("y", dist.ProjectedNormal(c).expand([5]).to_event(1), obs=y)

    fit = probdl.infer(model, y, seed=1)
    assert fit.stats["engine"] == "native"
    with pytest.raises(probdl.DataError, match="outside the support"):
        probdl.infer(model, 1.001 * y, seed=1)
