"""Programs that compute in one dtype: values, and the shapes of what they draw."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import probdl
from probdl.compile import choose
from probdl.model.precision import Precision

SCALE = torch.tensor([[1.0], [2.0], [3.0]])
PROBS = torch.tensor([0.2, 0.3, 0.5])


@pytest.mark.parametrize(
    "make",
    [
        lambda: dist.Bernoulli(PROBS),
        lambda: dist.Binomial(9, PROBS),
        lambda: dist.Cauchy(0.0, SCALE),
        lambda: dist.Exponential(SCALE),
        lambda: dist.Geometric(PROBS),
        lambda: dist.HalfCauchy(SCALE),
        lambda: dist.Laplace(0.0, SCALE),
        lambda: dist.Multinomial(9, PROBS),
        lambda: dist.Uniform(0.0, SCALE),
        lambda: dist.StudentT(4.0, 0.0, SCALE),
    ],
)
def test_draws_of_a_program_in_one_dtype_have_their_shapes(make):
    with Precision(torch.float64).enforced():
        drawn = make()
        sample = drawn.sample((7,))
        assert drawn.sample().shape == drawn.shape()
    assert sample.shape == (7, *drawn.shape())
    assert sample.dtype == torch.float64


def test_predictions_of_a_program_of_two_dtypes_are_one_for_each_row():
    offset = torch.tensor(0.5)  # float32

    def model(x, y=None):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("y", dist.Laplace(a * x + offset, 0.1), obs=y)

    x = np.linspace(0.0, 1.0, 12)
    fit = probdl.infer(model, x, 2 * x, method="laplace", seed=1)
    drawn = fit.predict(x)["y"]
    assert drawn.shape[-1] == 12
    assert (np.diff(drawn.reshape(-1, 12), axis=1) != 0).all()


@pytest.mark.parametrize(
    ("prior", "integers"),
    [
        (lambda n: dist.Normal(n, 2.5), [3, 7]),
        (lambda n: dist.Normal(n, 2), [3, 7]),
        (lambda n: dist.StudentT(4.5, n, 1.5), [3, 7]),
        (lambda n: dist.Gamma(n, 0.5), [3, 7]),
        (lambda n: dist.Gamma(torch.tensor(2.5), n), [1, 2]),
        (lambda n: dist.InverseGamma(n, n), [2, 3]),
        (lambda n: dist.HalfCauchy(n), [2, 3]),
        (lambda n: dist.Beta(n, 2.5), [2, 3]),
        (lambda n: dist.Uniform(0.5, n), [2, 3]),
    ],
)
def test_integers_as_parameters_are_real_numbers(prior, integers):
    def model(n):
        x = pyro.sample("x", prior(n).to_event(1))
        pyro.sample("y", prior(n).to_event(1), obs=torch.full((2,), 0.9) + 0 * x)

    models = [
        probdl.LogDensity.from_model(model, (np.array(integers, dtype=d),)) for d in (int, float)
    ]
    z = torch.tensor([0.3, -0.4], dtype=torch.float64)
    assert models[0](z).item() == pytest.approx(models[1](z).item(), rel=1e-12)
    compiled, _ = choose(models[0], "native", 0)
    assert float(compiled.value_and_grad(z)[0]) == pytest.approx(models[1](z).item(), rel=1e-12)
    fit = probdl.infer(model, np.array(integers), method=probdl.Laplace(draws=25), seed=0)
    assert fit.predict()["y"].shape == (1, 25, 2)


def test_bytes_of_numpy_are_numbers_and_bytes_of_torch_are_masks():
    def model(n, mask, y):
        x = pyro.sample("x", dist.Normal((n**2).double().sum(), 1.0))
        pyro.sample("y", dist.Normal(x, 1.0).expand([1]).to_event(1), obs=y[mask])

    n, mask = np.array([16, 1], dtype=np.uint8), torch.tensor([0, 1], dtype=torch.uint8)
    density = probdl.LogDensity.from_model(model, (n, mask, torch.tensor([1.0, 2.0])))
    exact = dist.Normal(257.0, 1.0).log_prob(torch.tensor(3.0)) + dist.Normal(3.0, 1.0).log_prob(
        torch.tensor(2.0)
    )
    assert density(torch.tensor([3.0])).item() == pytest.approx(exact.item(), rel=1e-6)


def test_a_fit_keeps_its_data():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("n", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    y = torch.ones(5, dtype=torch.float64)
    fit = probdl.infer(model, y, method="map", seed=0)
    before = fit.log_likelihood()["y"]
    y += 3.0
    np.testing.assert_array_equal(fit.log_likelihood()["y"], before)
