"""Data with NaN, which a model masks, imputes or marginalises."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

import probdl

generator = torch.Generator().manual_seed(0)
X = torch.randn(40, generator=generator)
FULL = 1.5 * X + 0.3 * torch.randn(40, generator=generator)
MISSING = torch.arange(40) % 4 == 0
Y = torch.where(MISSING, torch.nan, FULL)


def exact():
    """Return the mean and the standard deviation of the slope, given the observed rows."""
    x, y = X[~MISSING], FULL[~MISSING]
    precision = float((x**2).sum()) / 0.3**2 + 1 / 25
    return float((x * y).sum()) / 0.3**2 / precision, precision**-0.5


def by_handler(x, y):
    slope = pyro.sample("slope", dist.Normal(0.0, 5.0))
    with pyro.plate("n", len(x)), poutine.mask(mask=~torch.isnan(y)):
        pyro.sample("y", dist.Normal(slope * x, 0.3), obs=y)


def by_distribution(x, y):
    slope = pyro.sample("slope", dist.Normal(0.0, 5.0))
    with pyro.plate("n", len(x)):
        pyro.sample("y", dist.Normal(slope * x, 0.3).mask(~torch.isnan(y)), obs=y)


def by_event(x, y):
    slope = pyro.sample("slope", dist.Normal(0.0, 5.0))
    likelihood = dist.Normal(slope * x, 0.3).mask(~torch.isnan(y)).to_event(1)
    pyro.sample("y", likelihood, obs=y)


def by_zeros(x, y):
    slope = pyro.sample("slope", dist.Normal(0.0, 5.0))
    observed = ~torch.isnan(y)
    with pyro.plate("n", len(x)), poutine.mask(mask=observed):
        pyro.sample("y", dist.Normal(slope * x, 0.3), obs=torch.where(observed, y, 0.0))


def by_nan_masked_normal(x, y):
    slope = pyro.sample("slope", dist.Normal(0.0, 5.0))
    with pyro.plate("n", len(x)):
        pyro.sample("y", dist.NanMaskedNormal(slope * x, 0.3), obs=y)


def by_imputation(x, y):
    slope = pyro.sample("slope", dist.Normal(0.0, 5.0))
    missing = torch.isnan(y)
    imputed = pyro.sample("imputed", dist.Normal(0.0, 10.0).expand([10]).to_event(1))
    y = y.clone()
    y[missing] = imputed
    with pyro.plate("n", len(x)):
        pyro.sample("y", dist.Normal(slope * x, 0.3), obs=y)


@pytest.mark.parametrize(
    "model", [by_handler, by_distribution, by_event, by_zeros, by_nan_masked_normal]
)
@pytest.mark.parametrize("method", ["nuts", "laplace", "svi", "importance"])
def test_rows_that_are_masked(model, method):
    fit = probdl.infer(model, X, Y, method=method, seed=1)
    mean, sd = exact()
    draws = fit.draws["slope"]
    if method == "importance":
        assert abs(draws.mean() - mean) < 3 * sd
        return
    assert abs(draws.mean() - mean) < 0.3 * sd
    assert abs(draws.std() - sd) < 0.2 * sd
    if method == "nuts":
        assert fit.stats["engine"] == "native"


@pytest.mark.parametrize("model", [by_handler, by_nan_masked_normal])
def test_scores_cover_the_observed_rows(model):
    fit = probdl.infer(model, X, Y, method="laplace", seed=1)
    held = fit.log_likelihood()["y"]
    assert held.shape == (1, 1000, 40)
    assert (held[..., MISSING] == 0).all()
    assert np.isfinite(held).all()
    assert int(fit.loo().n_data_points) == 30
    assert np.isfinite(fit.predict()["y"]).all()
    # New data may have NaN where those of the fit have.
    assert np.isfinite(fit.log_predictive(X, Y).total)


def test_rows_that_are_imputed():
    fit = probdl.infer(by_imputation, X, Y, seed=1)
    mean, sd = exact()
    assert abs(fit.draws["slope"].mean() - mean) < 0.3 * sd
    expected = mean * X[MISSING].numpy()
    assert np.abs(fit.draws["imputed"].mean((0, 1)) - expected).max() < 0.1


def test_missing_elements_of_a_normal_vector():
    y = torch.randn(30, 2, generator=torch.Generator().manual_seed(1))
    y[::3, 0] = torch.nan
    covariance = torch.tensor([[1.0, 0.8], [0.8, 1.0]])

    def model(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("n", len(y)):
            loc = mean * torch.ones(2)
            pyro.sample("y", dist.NanMaskedMultivariateNormal(loc, covariance), obs=y)

    fit = probdl.infer(model, y, seed=1)
    ones, inverse = torch.ones(2), torch.linalg.inv(covariance)
    whole = ~y.isnan().any(1)
    precision = 1 + float(whole.sum()) * float(ones @ inverse @ ones) + float((~whole).sum())
    total = float((y[whole] @ inverse @ ones).sum() + y[~whole, 1].sum())
    assert abs(fit.draws["mean"].mean() - total / precision) < 0.1 * precision**-0.5
    assert abs(fit.draws["mean"].std() - precision**-0.5) < 0.1 * precision**-0.5


def test_nan_that_reaches_the_density_is_an_error():
    def model(x, y):
        slope = pyro.sample("slope", dist.Normal(0.0, 5.0))
        with pyro.plate("n", len(x)):
            pyro.sample("y", dist.Normal(slope * x, 0.3), obs=y)

    with pytest.raises(probdl.DataError, match=r"10 of 40 values are NaN"):
        probdl.infer(model, X, Y, seed=1)
    with pytest.raises(probdl.DataError, match="Argument 'x': 10 of 40 values are NaN"):
        probdl.infer(model, Y, FULL, seed=1)
    with pytest.raises(probdl.DataError, match="Argument 'x'"):
        probdl.infer(by_handler, torch.where(MISSING.flip(0), torch.nan, X), Y, seed=1)
