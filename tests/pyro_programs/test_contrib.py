"""Models of pyro.contrib: forecasts and Gaussian processes."""

import numpy as np
import pyro
import pyro.contrib.gp as gp
import pyro.distributions as dist
import pytest
import torch
from pyro.contrib.forecast import ForecastingModel
from pyro.nn import PyroSample

import probdl


class Regression(ForecastingModel):
    def model(self, zero_data, covariates):
        b = pyro.sample("b", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        self.predict(dist.Normal(0.0, 0.5), (covariates * b).sum(-1, keepdim=True))


class Walk(ForecastingModel):
    def model(self, zero_data, covariates):
        with self.time_plate:
            step = pyro.sample("step", dist.Normal(0.0, 0.5))
        self.predict(dist.Normal(0.0, 0.1), step.cumsum(-1)[..., None])


def test_a_forecast_at_longer_covariates():
    torch.manual_seed(0)
    x = torch.randn(30, 2).double()
    y = (x[:20] @ torch.tensor([[1.0], [-1.0]]).double()) + 0.5 * torch.randn(20, 1).double()
    fit = probdl.infer(Regression(), y, x[:20], method=probdl.NUTS(draws=1000), seed=1)
    assert fit.stats["engine"] == "native"
    forecast = fit.predict(y, x)["forecast"].reshape(-1, 10)
    cov = torch.linalg.inv(x[:20].T @ x[:20] / 0.25 + torch.eye(2))
    mean = x[20:] @ (cov @ (x[:20].T @ y / 0.25))[:, 0]
    sd = (0.25 + (x[20:] @ cov * x[20:]).sum(1)).sqrt()
    np.testing.assert_allclose(forecast.mean(0), mean, atol=0.06)
    np.testing.assert_allclose(forecast.std(0), sd, rtol=0.08)


def test_a_forecast_goes_on_from_the_last_level():
    y = torch.linspace(0.0, 2.0, 9)[:, None]
    fit = probdl.infer(Walk(), y, torch.zeros(9, 0), method=probdl.NUTS(draws=1000), seed=1)
    forecast = fit.predict(y, torch.zeros(14, 0))["forecast"].reshape(-1, 5)
    level = fit.draws["step"].sum(-1)
    assert level.mean() == pytest.approx(2.0, abs=0.05)
    np.testing.assert_allclose(forecast.mean(0), level.mean(), atol=0.12)
    ahead = level.var() + 0.25 * np.arange(1, 6) + 0.01
    np.testing.assert_allclose(forecast.var(0), ahead, rtol=0.1)


def _process(**priors):
    x = torch.linspace(0.0, 3.0, 12).double()
    kernel = gp.kernels.RBF(input_dim=1)
    for name, prior in priors.items():
        setattr(kernel, name, PyroSample(prior))
    return gp.models.GPRegression(x, torch.sin(2 * x), kernel, noise=torch.tensor(0.1)).double()


@pytest.mark.filterwarnings("ignore::probdl.FindingWarning")
def test_a_gaussian_process_is_compiled():
    """Its model writes to the diagonal of the kernel matrix in place."""
    model = _process(lengthscale=dist.LogNormal(0.0, 1.0))
    fit = probdl.infer(model.model, method=probdl.NUTS(draws=1000), seed=1)
    assert fit.stats["engine"] == "native"
    grid = torch.exp(torch.linspace(-3, 3, 400)).double()
    x, y = model.X[:, None], model.y
    log_p = [
        dist.MultivariateNormal(
            torch.zeros(12).double(),
            torch.exp(-0.5 * ((x - x.T) / s) ** 2) + (0.1 + model.jitter) * torch.eye(12).double(),
        ).log_prob(y)
        - 0.5 * s.log() ** 2
        for s in grid
    ]  # on the scale of log s, on which the grid is even
    weights = torch.stack(log_p).softmax(0)
    mean = (weights * grid.log()).sum().item()
    sd = (weights * (grid.log() - mean) ** 2).sum().sqrt().item()
    drawn = np.log(fit.draws["kernel.lengthscale"])
    assert drawn.mean() == pytest.approx(mean, abs=0.1 * sd)
    assert drawn.std() == pytest.approx(sd, rel=0.1)


def test_a_sparse_gaussian_process_is_compiled():
    torch.manual_seed(0)
    x = torch.linspace(0.0, 3.0, 12).double()
    model = gp.models.SparseGPRegression(
        x, torch.sin(2 * x), gp.kernels.RBF(input_dim=1), Xu=x[::3].clone()
    ).double()
    fit = probdl.infer(model.model, method="mle", seed=1)
    assert fit.stats["engine"] == "native"
    fitted = fit.draws["noise"].item()
    assert 0 < fitted < 0.1
