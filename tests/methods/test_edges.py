"""Posteriors that reach closer to an edge of their support than numbers do."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import probdl
from probdl.io.mixing import ess_bulk
from probdl.methods.edges import check_edges


def beta(a, b):
    pyro.sample("x", dist.Beta(torch.tensor(a, dtype=torch.float64), b))


@pytest.mark.parametrize(("a", "b", "lost"), [(0.05, 0.05, True), (2.0, 0.05, True), (0.5, 0.5, 0)])
def test_probability_above_the_largest_number_below_one(a, b, lost):
    method = probdl.NUTS(draws=1000, warmup=500)
    if not lost:
        fit = probdl.infer(beta, a, b, method=method, seed=0)
        assert "edge" not in {f.check for f in fit.diagnose()}
        return
    with pytest.warns(probdl.FindingWarning, match="of the draws of 'x' are at the last numbers"):
        fit = probdl.infer(beta, a, b, method=method, seed=0)
    (finding,) = [f for f in fit.findings if f.check == "edge"]
    assert finding.sites == ("x",)
    assert "before 1," in finding.message


def findings_of(make, z):
    def model():
        with pyro.plate("n", 2):
            make()

    return check_edges(probdl.LogDensity.from_model(model), np.asarray(z))


LOW, HIGH = torch.tensor([-1.0, 3.0]), torch.tensor([2.0, 5.0])
FAR = np.array([[0.0, 0.0]] * 996 + [[0.0, -50.0]] * 2 + [[0.0, 50.0]] * 2)


def test_both_edges_of_an_interval_that_is_not_at_zero():
    (finding,) = findings_of(lambda: pyro.sample("x", dist.Uniform(LOW, HIGH)), FAR)
    assert finding.message.startswith("0.002 of the draws of 'x[1]' are at the last numbers before")
    assert not findings_of(lambda: pyro.sample("x", dist.Uniform(LOW, HIGH)), FAR * 0.5)


@pytest.mark.parametrize(
    "make",
    [
        lambda: pyro.sample("x", dist.Normal(0.0, 1.0)),
        lambda: pyro.sample("x", dist.Gamma(2.0, 1.0)),
        lambda: pyro.sample("x", dist.VonMises(0.0, 1.0)),
    ],
    ids=["plain", "log", "angle"],
)
def test_sites_without_an_edge_that_numbers_do_not_resolve(make):
    assert not findings_of(make, FAR)


def test_few_draws_at_an_edge_are_noise():
    z = np.zeros((4000, 2))
    z[:4, 0] = 60.0
    assert not findings_of(lambda: pyro.sample("x", dist.Beta(1.0, 1.0)), z)
    z[:5, 0] = 60.0
    assert findings_of(lambda: pyro.sample("x", dist.Beta(1.0, 1.0)), z)


@pytest.mark.parametrize(
    ("make", "size"),
    [
        (lambda: dist.Dirichlet(torch.tensor([0.02, 0.02, 1.0])), 2),
        (lambda: dist.LKJCholesky(3, torch.tensor(0.05)), 3),
    ],
    ids=["simplex", "correlations"],
)
def test_supports_of_which_small_numbers_say_how_far_the_edge_is(make, size):
    z = np.full((100, 2 * size), 50.0)
    assert not findings_of(lambda: pyro.sample("x", make()), z)


@pytest.mark.parametrize(
    ("make", "function", "mean", "variance"),
    [
        # A Dirichlet mean, and the mean of a squared correlation, where r = 2 Beta(c, c) - 1.
        (lambda: dist.Dirichlet(torch.full((10,), 0.02).double()), lambda x: x[..., 9], 0.1, 0.075),
        (lambda: dist.Dirichlet(torch.tensor([0.05, 0.05])), lambda x: x[..., 0], 0.5, 0.2273),
        (
            lambda: dist.LKJCholesky(2, torch.tensor(0.05)),
            lambda x: x[..., 1, 0] ** 2,
            1 / 1.1,
            3 / (1.1 * 3.1) - 1 / 1.1**2,
        ),
    ],
    ids=["Dirichlet", "two", "LKJ"],
)
def test_draws_beyond_the_last_number_below_one(make, function, mean, variance):
    method = probdl.NUTS(draws=2000, warmup=1000)
    fit = probdl.infer(lambda: pyro.sample("x", make()), method=method, seed=0)
    assert not {"edge", "rhat", "ess"} & {f.check for f in fit.findings}
    found = function(fit.draws["x"])
    (ess,) = ess_bulk(found[..., None])
    assert abs(found.mean() - mean) < 4 * np.sqrt(variance / ess)
