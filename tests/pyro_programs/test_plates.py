"""Plates that take a random part of the rows."""

import functools

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch.distributions import constraints

import probdl

generator = torch.Generator().manual_seed(0)
X = torch.randn(60, generator=generator)
Y = 1.5 * X + 0.3 * torch.randn(60, generator=generator)
PRECISION = float((X**2).sum()) / 0.3**2 + 1 / 25
MEAN, SD = float((X * Y).sum()) / 0.3**2 / PRECISION, PRECISION**-0.5


def line(x, y):
    slope = pyro.sample("slope", dist.Normal(0.0, 5.0))
    with pyro.plate("rows", len(x), subsample_size=10) as rows:
        pyro.sample("y", dist.Normal(slope * x[rows], 0.3), obs=y[rows])


def line_by_subsample(x, y):
    slope = pyro.sample("slope", dist.Normal(0.0, 5.0))
    with pyro.plate("rows", len(x), subsample_size=20):
        batch = pyro.subsample(x, event_dim=0), pyro.subsample(y, event_dim=0)
        pyro.sample("y", dist.Normal(slope * batch[0], 0.3), obs=batch[1])


def line_in_a_loop(x, y):
    slope = pyro.sample("slope", dist.Normal(0.0, 5.0))
    with pyro.plate("rows", size=60, subsample_size=30, dim=-1) as rows:
        pyro.sample("y", dist.Normal(slope * x.index_select(0, rows), 0.3), obs=y[rows])


def guide(x, y):
    pyro.plate("rows", len(x), subsample_size=10)
    loc = pyro.param("loc", torch.tensor(0.0))
    scale = pyro.param("scale", torch.tensor(0.1), constraint=constraints.positive)
    pyro.sample("slope", dist.Normal(loc, scale))


@pytest.mark.parametrize("model", [line, line_by_subsample, line_in_a_loop])
@pytest.mark.parametrize("method", ["nuts", "laplace", "pathfinder", "map"])
def test_methods_that_need_the_density_use_all_rows(model, method):
    fit = probdl.infer(model, X, Y, method=method, seed=1)
    assert abs(fit.draws["slope"].mean() - MEAN) < 0.2 * SD
    if method != "map":
        assert abs(fit.draws["slope"].std() - SD) < 0.15 * SD
    assert fit.log_likelihood()["y"].shape[2:] == (60,)
    assert fit.predict()["y"].shape[2:] == (60,)


@pytest.mark.parametrize("model", [line, line_by_subsample, line_in_a_loop])
@pytest.mark.parametrize("given", [None, "normal", guide, AutoNormal])
def test_steps_of_svi_use_the_part_that_the_model_takes(model, given):
    if given is guide and model is not line:
        pytest.skip("the guide takes as many rows as the model")
    method = probdl.SVI(guide=given, steps=3000, learning_rate=0.01)
    fit = probdl.infer(model, X, Y, method=method, seed=1)
    assert abs(fit.draws["slope"].mean() - MEAN) < 0.5 * SD
    assert SD / 1.5 < fit.draws["slope"].std() < 1.5 * SD
    # The ELBO of a part is noisy: its scale is that of all rows.
    at_end = fit.stats["elbo"][-1000:]
    full = elbo_of_all_rows()
    assert at_end.std() > 3 * full.std()
    assert abs(at_end.mean() - full.mean()) < 5 * at_end.std() / 1000**0.5
    assert fit.log_likelihood()["y"].shape == (1, 1000, 60)
    assert fit.stats["engine"] != "eager"


@functools.cache
def elbo_of_all_rows():
    method = probdl.SVI(guide="normal", steps=3000, learning_rate=0.01)
    return probdl.infer(whole_line, X, Y, method=method, seed=1).stats["elbo"][-1000:]


def whole_line(x, y):
    slope = pyro.sample("slope", dist.Normal(0.0, 5.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.Normal(slope * x, 0.3), obs=y)


def test_sites_of_the_rows():
    def model(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
        with pyro.plate("rows", len(y), subsample_size=20) as rows:
            z = pyro.sample("z", dist.Normal(mean, 1.0))
            pyro.sample("y", dist.Normal(z, 0.5), obs=y[rows])

    y = 2 + torch.randn(60, generator=torch.Generator().manual_seed(1))
    method = probdl.SVI(steps=6000, learning_rate=0.02)
    fit = probdl.infer(model, y, method=method, seed=1)
    assert fit.draws["z"].shape == (1, 1000, 60)
    mean = float(y.sum()) / 1.25 / (60 / 1.25 + 1 / 25)
    assert abs(fit.draws["mean"].mean() - mean) < 0.1
    expected = (4 * y + mean) / 5
    assert (torch.from_numpy(fit.draws["z"]).mean((0, 1)) - expected).abs().max() < 0.4


def test_batch_size_and_subsample_size_are_not_combined():
    with pytest.raises(probdl.SettingError, match="subsample_size= of plate 'rows'"):
        probdl.infer(line, X, Y, method=probdl.SVI(batch_size=10, steps=10), seed=1)


def test_rows_that_are_not_there():
    def model(x, y):
        slope = pyro.sample("slope", dist.Normal(0.0, 5.0))
        with pyro.plate("rows", 10_000, subsample_size=len(x)):
            pyro.sample("y", dist.Normal(slope * x, 0.3), obs=y)

    with pytest.raises(probdl.ProbdlError, match=r"all 10000 rows of plate 'rows'.*DataLoader"):
        probdl.infer(model, X, Y, seed=1)
