"""Mapping over draws gives what a loop gives."""

import warnings

import pyro.distributions as dist
import pytest
import torch

from probdl.state import evaluation
from probdl.vectorize import vectorize

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
        warnings.simplefilter("error")  # the slow way counts as failure
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


def test_a_value_written_in_place_is_read_in_place():
    def fn(d):
        noise = torch.empty(3)
        noise.normal_()  # the result of the call is not used
        return noise + d

    torch.manual_seed(0)
    x = vectorize(fn, DRAWS.repeat(100)) - DRAWS.repeat(100)[:, None]
    assert len(x.unique()) > 0.99 * x.numel()
    assert abs(x.mean().item()) < 4 / x.numel() ** 0.5
    assert x.std().item() == pytest.approx(1.0, abs=0.03)


def test_control_flow_on_a_value_is_run_draw_by_draw_and_told():
    def fn(d):
        return d if d > 1 else -d

    with pytest.warns(UserWarning, match="once a draw, which is slow"):
        x = vectorize(fn, DRAWS)
    torch.testing.assert_close(x, torch.where(DRAWS > 1, DRAWS, -DRAWS))


def test_a_single_draw_and_a_nested_result():
    x = vectorize(lambda d: {"a": d["x"] * 2, "b": torch.ones(2)}, {"x": torch.ones(1, 3)})
    assert x["a"].shape == (1, 3)
    assert x["b"].shape == (1, 2)
