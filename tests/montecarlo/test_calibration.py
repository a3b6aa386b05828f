"""Simulation-based calibration: correct methods pass, and deliberate errors are found."""

from dataclasses import dataclass

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

import probdl
from benchmarks.models import SCHOOLS
from probdl.io import idata
from probdl.methods.base import METHODS, Method
from probdl.model.sites import discover
from probdl.models import eight_schools
from probdl.montecarlo import calibrate
from probdl.montecarlo.calibration import _describe_error
from probdl.plots import plot_calibration
from probdl.results.fit import Fit

Y = torch.zeros(3)


def location(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("obs", len(y)):
        pyro.sample("y", dist.Normal(mu, 2.0), obs=y)


@dataclass(frozen=True, repr=False)
class Wrong(Method):
    """The exact posterior of this model, shifted or stretched."""

    draws: int = 99
    shift: float = 0.0
    stretch: float = 1.0

    def run(self, program, seed, progress):
        variance = 1 / (1 + 3 / 4)
        mean = variance * program.arguments["y"].sum().item() / 4
        noise = self.stretch * np.random.default_rng(seed).standard_normal(self.draws)
        mu = mean + variance**0.5 * (noise + self.shift)
        return Fit(self, program, discover(program), {"mu": mu[None]}, {}, seed, [])


def wrong(**settings):
    return Wrong(**settings)


def test_an_exact_method_is_calibrated():
    found = calibrate(location, wrong(), (Y,), simulations=500, seed=2)
    assert found.calibrated
    assert not found.diagnose()
    assert found.ranks.shape == (500, 1)
    assert found.ranks.min() >= 0
    assert found.ranks.max() <= 99
    assert not found.table.outside_band["mu"]


@pytest.mark.parametrize(
    ("settings", "how"),
    [
        ({"shift": 0.4}, "biased upwards"),
        ({"shift": -0.4}, "biased downwards"),
        ({"stretch": 0.7}, "underdispersed"),
        ({"stretch": 1.5}, "overdispersed"),
    ],
)
def test_deliberate_errors_are_found(settings, how):
    with pytest.warns(probdl.FindingWarning, match=f"the draws are {how}"):
        found = calibrate(location, wrong(**settings), (Y,), simulations=500, seed=1)
    assert not found.calibrated
    assert found.table.outside_band["mu"]
    assert found.findings[0].check == "calibration"
    assert found.findings[0].sites == ("mu",)


def test_ranks_that_are_not_uniform_differ_in_shape_if_mean_and_variance_agree():
    ranks = np.repeat([0.05, 0.35, 0.65, 0.95], 50)  # mean 1/2, and a variance of 0.11
    assert _describe_error(ranks) == "the draws are underdispersed"
    ranks = np.repeat([0.5 - 12**-0.5, 0.5 + 12**-0.5], 50)  # a variance of 1/12
    assert _describe_error(ranks) == "the draws and the posterior differ in shape"


def test_nuts_is_calibrated_on_eight_schools():
    method = probdl.NUTS(draws=500, warmup=500, chains=1, target_accept=0.9)
    data = (SCHOOLS[0], np.zeros(8))
    found = calibrate(eight_schools, method, data, simulations=250, seed=1)
    assert found.calibrated
    assert list(found.table.index[:3]) == ["mu", "tau", "theta_trans[0]"]
    # The number of intervals that hold the true value, for each of the ten scalars.
    inside = ((found.ranks >= 5) & (found.ranks < 95)).mean("simulation") * 250
    low, high = stats.binom.interval(0.9999, 250, 0.9)
    assert np.all((low <= inside) & (inside <= high))


def test_nuts_covers_a_logistic_regression():
    """90 % intervals under the prior cover 90 % of 500 data sets."""
    x = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))

    def model(y):
        beta = pyro.sample("beta", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("obs", len(y)):
            pyro.sample("y", dist.Bernoulli(logits=x.to(beta.dtype) @ beta), obs=y)

    method = probdl.NUTS(draws=400, warmup=400, chains=1)
    found = calibrate(model, method, (torch.zeros(60),), simulations=500, seed=2)
    covered = ((found.ranks >= 5) & (found.ranks < 95)).sum("simulation")
    low, high = stats.binom.interval(0.9999, 500, 0.9)
    assert np.all((low <= covered) & (covered <= high))
    assert found.calibrated


def test_a_mean_field_guide_is_reported_as_too_narrow():
    """Two strongly correlated parameters: the marginals of a mean-field guide are too narrow."""

    def model(y):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        with pyro.plate("obs", len(y)):
            pyro.sample("y", dist.Normal(a + b, 0.5), obs=y)

    method = probdl.SVI(guide="normal", steps=1000, draws=99, learning_rate=0.05)
    with pytest.warns(probdl.FindingWarning, match="underdispersed"):
        found = calibrate(model, method, (torch.zeros(5),), simulations=80, seed=4)
    assert not found.calibrated


def test_the_band_holds_simultaneously_for_all_points():
    points, low, high = idata.ecdf_band(100, 99, 0.9)
    rng = np.random.default_rng(0)
    out = 0
    for _ in range(1000):
        shares = np.sort(rng.integers(1, 101, size=100) / 100)
        ecdf = np.searchsorted(shares, points, side="right") / 100
        out += bool(((ecdf < low) | (ecdf > high)).any())
    lower, upper = stats.binom.interval(0.9999, 1000, 0.1)
    assert 0.5 * lower <= out <= upper  # the ranks are discrete, so the band may be wide


def test_ranks_repeat_and_do_not_depend_on_workers():
    one, two = (
        calibrate(location, wrong(), (Y,), simulations=30, seed=3, workers=w) for w in (1, 2)
    )
    np.testing.assert_array_equal(one.ranks, two.ranks)


def test_the_plot_shows_each_parameter():
    found = calibrate(location, wrong(), (Y,), simulations=40, seed=1)
    ax = plot_calibration(found)
    assert len(ax.lines) == 1
    assert np.abs(ax.lines[0].get_ydata()).max() == pytest.approx(
        found.table.ecdf_distance["mu"], abs=1e-9
    )


def test_invalid_input_is_an_error():
    with pytest.raises(probdl.SettingError, match="returns 1 draws"):
        calibrate(location, "mle", (Y,), simulations=30)
    with pytest.raises(probdl.SettingError, match="simulations=5"):
        calibrate(location, "nuts", (Y,), simulations=5)

    def flat(y):
        mu = pyro.sample("mu", dist.ImproperUniform(dist.constraints.real, (), ()))
        with pyro.plate("obs", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    with pytest.raises(probdl.ModelError, match="flat"):
        calibrate(flat, "nuts", (Y,), simulations=30)


def test_the_method_of_this_file_is_not_registered():
    assert "wrong" not in METHODS  # the class above has no name of its own
