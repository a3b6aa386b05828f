"""Mapping over draws gives the same results as a loop."""

import importlib
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import probdl
from probdl.model.vectorize import vectorize
from probdl.util.isolation import evaluation

DRAWS = torch.linspace(0.5, 2.0, 50, dtype=torch.float64)

LOG_PROBS = {
    "normal": lambda d: dist.Normal(d, 1.0).log_prob(torch.arange(3.0)),
    "beta": lambda d: dist.Beta(d, 2.0).log_prob(torch.tensor(0.3)),
    "beta_binomial": lambda d: dist.BetaBinomial(d, d, 10).log_prob(torch.tensor(4.0)),
    "multinomial": lambda d: dist.Multinomial(6, torch.softmax(d * torch.arange(3.0), 0)).log_prob(
        torch.tensor([1.0, 2.0, 3.0])
    ),
    "lkj": lambda d: dist.LKJCholesky(3, d).log_prob(torch.eye(3)),
    "mvn": lambda d: dist.MultivariateNormal(torch.zeros(2), d * torch.eye(2)).log_prob(
        torch.ones(2)
    ),
    "zero_inflated": lambda d: dist.ZeroInflatedPoisson(d, gate=torch.tensor(0.2)).log_prob(
        torch.arange(3.0)
    ),
}


@pytest.mark.parametrize("name", LOG_PROBS)
def test_log_probabilities_equal_those_of_a_loop(name):
    with evaluation(), warnings.catch_warnings():
        warnings.simplefilter("error")  # falling back to the loop is a failure
        mapped = vectorize(LOG_PROBS[name], DRAWS)
        looped = torch.stack([LOG_PROBS[name](d) for d in DRAWS])
    torch.testing.assert_close(mapped, looped)


SAMPLERS = {
    "normal": (lambda d: dist.Normal(d, 1.0), lambda d: d),
    "exponential": (dist.Exponential, lambda d: 1 / d),
    "gamma": (lambda d: dist.Gamma(d, 2.0), lambda d: d / 2),
    "beta": (lambda d: dist.Beta(d, 2.0), lambda d: d / (d + 2)),
    "poisson": (dist.Poisson, lambda d: d),
    "binomial": (lambda d: dist.Binomial(5, d / 3), lambda d: 5 * d / 3),
    "bernoulli": (lambda d: dist.Bernoulli(d / 3), lambda d: d / 3),
    "negative_binomial": (lambda d: dist.NegativeBinomial(d, torch.tensor(0.5)), lambda d: d),
    "student": (lambda d: dist.StudentT(9.0, d, 1.0), lambda d: d),
    "dirichlet": (lambda d: dist.Dirichlet(torch.stack([d, d])), lambda d: 0.5 + 0 * d),
    "multinomial": (lambda d: dist.Multinomial(4, torch.ones(2) / 2), lambda d: 2 + 0 * d),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_samples_differ_between_draws_and_have_the_right_mean(name):
    make, mean = SAMPLERS[name]
    draws = DRAWS.repeat(200)
    torch.manual_seed(0)
    with evaluation(), warnings.catch_warnings():
        warnings.simplefilter("error")
        x = vectorize(lambda d: make(d).sample(), draws).double()
        variance = torch.stack([make(d).variance.double() for d in DRAWS]).mean(0)
    expected = mean(draws).reshape((-1,) + (1,) * (x.ndim - 1))
    error = (variance / len(draws)).sqrt()
    assert ((x - expected).mean(0).abs() < 4 * error).all()
    assert (x[1:] != x[:-1]).any()


def test_a_value_written_in_place_is_read_back():
    def fn(d):
        noise = torch.empty(3)
        noise.normal_()  # the result of the call is not used
        return noise + d

    torch.manual_seed(0)
    x = vectorize(fn, DRAWS.repeat(100)) - DRAWS.repeat(100)[:, None]
    assert len(x.unique()) > 0.99 * x.numel()
    assert abs(x.mean().item()) < 4 / x.numel() ** 0.5
    assert x.std().item() == pytest.approx(1.0, abs=0.03)


def test_control_flow_on_a_value_runs_draw_by_draw_with_a_warning():
    def fn(d):
        return d if d > 1 else -d

    with pytest.warns(UserWarning, match="once per draw, which is slow"):
        x = vectorize(fn, DRAWS)
    torch.testing.assert_close(x, torch.where(DRAWS > 1, DRAWS, -DRAWS))


def test_a_single_draw_and_a_nested_result():
    x = vectorize(lambda d: {"a": d["x"] * 2, "b": torch.ones(2)}, {"x": torch.ones(1, 3)})
    assert x["a"].shape == (1, 3)
    assert x["b"].shape == (1, 2)


def test_large_results_are_computed_in_chunks_and_are_the_same(monkeypatch):
    vectorize_module = importlib.import_module("probdl.model.vectorize")
    draws = torch.randn(50, generator=torch.Generator().manual_seed(0))
    fn = lambda d: {"y": d * torch.arange(10.0), "z": (d + torch.arange(10.0)).sum()}  # noqa: E731
    whole = vectorize(fn, draws)
    monkeypatch.setattr(vectorize_module, "MAX_NUMBERS_PER_CHUNK", 200)
    parts = list(vectorize_module.chunks(fn, draws))
    assert len(parts) > 5
    again = vectorize(fn, draws)
    assert torch.equal(whole["y"], again["y"])
    assert torch.equal(whole["z"], again["z"])


def test_chunks_draw_different_random_numbers(monkeypatch):
    vectorize_module = importlib.import_module("probdl.model.vectorize")
    monkeypatch.setattr(vectorize_module, "MAX_NUMBERS_PER_CHUNK", 300)
    drawn = vectorize(lambda d: d + torch.randn(20), torch.zeros(40))
    assert drawn.unique().numel() == 800


def test_a_result_larger_than_the_memory_is_an_error(monkeypatch):
    vectorize_module = importlib.import_module("probdl.model.vectorize")
    monkeypatch.setattr(vectorize_module, "MAX_NUMBERS_PER_CHUNK", 2000)
    monkeypatch.setattr(vectorize_module, "machine_memory", lambda unknown: 1000.0)
    with pytest.raises(probdl.SettingError, match=r"100 draws of .* MiB each.*out=folder"):
        vectorize(lambda d: d + torch.zeros(100), torch.zeros(100))


def test_counts_that_are_the_same_for_all_draws_print_no_warning(capfd):
    seeds, germinated = torch.tensor([10.0, 20.0, 30.0]), torch.tensor([3.0, 4.0, 9.0])

    def model(seeds, y=None):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("plate", len(seeds)):
            pyro.sample("y", dist.Binomial(seeds, logits=a), obs=y)

    fit = probdl.infer(model, seeds, germinated, method="laplace", seed=1, progress=False)
    mean = fit.predict()["y"].mean((0, 1)) / seeds.numpy()
    expected = (1 / (1 + np.exp(-fit.draws["a"]))).mean()
    np.testing.assert_allclose(mean, expected, atol=4 * 0.5 / np.sqrt(10 * 1000))
    fit.to_idata(prior=50)
    assert capfd.readouterr().err == ""
