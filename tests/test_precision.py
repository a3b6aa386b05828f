"""Programs that compute in one dtype: values, and the shapes of what they draw."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import probdl
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
