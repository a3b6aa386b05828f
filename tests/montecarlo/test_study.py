"""Studies of estimators against theory: bias, variance, rates, coverage; and warnings."""

from dataclasses import dataclass

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

import probdl
from probdl.models import logistic_regression
from probdl.montecarlo import study
from probdl.montecarlo.simulate import Simulator
from probdl.plots import plot_study
from probdl.util.isolation import isolated
from probdl.util.seeds import stream

QUICK = probdl.MLE(starts=1)
SIZES = [5, 10, 20, 50, 100]


def normal(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    variance = pyro.sample("variance", dist.Exponential(0.1))
    with pyro.plate("obs", len(y)):
        pyro.sample("y", dist.Normal(mu, variance.sqrt()), obs=y)


@pytest.fixture(scope="module")
def found():
    truth = {"mu": 1.0, "variance": 4.0}
    return study(normal, QUICK, truth, sizes=SIZES, replicates=600, seed=1)


def test_the_bias_of_the_ml_variance_matches_theory(found):
    of = found.sel(parameter="variance")
    expected = -4.0 / np.array(SIZES)
    assert np.all(np.abs(of.bias.values - expected) < 4 * of.bias_se.values)
    assert np.all(np.abs(found.sel(parameter="mu").bias) < 4 * found.sel(parameter="mu").bias_se)


def test_variance_and_mse_match_the_sampling_distributions(found):
    n = np.array(SIZES)
    mean, variance = (found.sel(parameter=p) for p in ("mu", "variance"))
    assert np.all(np.abs(mean.variance - 4 / n) < 4 * mean.variance_se)
    assert np.all(np.abs(variance.variance - 32 * (n - 1) / n**2) < 4 * variance.variance_se)
    mse = 32 * (n - 1) / n**2 + (4 / n) ** 2
    assert np.all(np.abs(variance.mse - mse) < 4 * variance.mse_se)


def test_the_mean_is_consistent_at_the_rate_of_one_over_n(found):
    of = found.sel(parameter="mu")
    assert abs(of.variance_rate + 1) < max(0.05, 4 * float(of.variance_rate_se))
    assert of.variance_rate_se < 0.04


def test_estimates_are_kept(found):
    assert found.estimate.dims == ("size", "replicate", "parameter")
    assert found.estimate.shape == (5, 600, 2)
    assert not found.estimate.isnull().any()
    assert found.failed.sum() == 0
    again = study(
        normal, QUICK, {"mu": 1.0, "variance": 4.0}, sizes=[5], replicates=20, seed=1, workers=1
    )
    spread = study(
        normal, QUICK, {"mu": 1.0, "variance": 4.0}, sizes=[5], replicates=20, seed=1, workers=2
    )
    np.testing.assert_array_equal(again.estimate, spread.estimate)


def test_coverage_of_wald_intervals_on_logistic_regression():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(500, 2))
    truth = {"intercept": -0.3, "beta": [1.0, -0.5]}
    made = study(
        logistic_regression,
        QUICK,
        truth,
        sizes=[500],
        replicates=500,
        arguments=lambda n: (x[:n], np.zeros(n)),
        interval_prob=0.9,
        seed=2,
    )
    low, high = stats.binom.interval(0.9999, 500, 0.9)
    covered = made.coverage.values * 500
    assert np.all((low <= covered) & (covered <= high))


def test_a_posterior_is_an_estimator_too():
    """The posterior mean of a normal mean under N(0, 1): n / (n + 1) times the sample mean."""

    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("obs", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    method = probdl.Laplace(draws=2000)
    made = study(model, method, {"mu": 2.0}, sizes=[4], replicates=200, seed=3)
    of = made.isel(size=0, parameter=0)
    assert abs(of.bias + 2.0 / 5) < 4 * of.bias_se
    assert abs(of.variance - (4 / 5) ** 2 / 4) < 4 * of.variance_se + 0.002


def test_data_from_another_distribution_give_the_projection_with_a_warning():
    """A normal fitted to exponential data tends to their mean and variance."""

    def generator(n, seed):
        return np.random.default_rng(seed).exponential(2.0, size=n)

    with pytest.warns(probdl.FindingWarning, match="do not come from the model"):
        made = study(
            normal, QUICK, {"mu": 0.0}, sizes=[400], replicates=100, generator=generator, seed=4
        )
    assert made.attrs["target"] == "kl_projection"
    # With 100,000 rows, the standard errors are 0.006 and 0.036.
    assert np.all(np.abs(made.truth.values - [2.0, 4.0]) < [0.025, 0.15])
    assert np.all(np.abs(made.bias) < 4 * made.bias_se + 0.03)
    coverage = float(made.coverage.sel(parameter="variance").squeeze())
    assert coverage < 0.7  # normal theory does not hold for a wrong model


@pytest.mark.filterwarnings("ignore::probdl.FindingWarning")
def test_interchangeable_parameters_are_not_identified():
    def mixture(y):
        with pyro.plate("component", 2):
            mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        with pyro.plate("obs", len(y)):
            component = dist.Categorical(torch.tensor([0.5, 0.5]))
            pyro.sample("y", dist.MixtureSameFamily(component, dist.Normal(mu, 1.0)), obs=y)

    rng = np.random.default_rng(0)
    y = np.concatenate([rng.normal(-3, 1, 60), rng.normal(3, 1, 60)])
    fit = probdl.infer(mixture, y, method=probdl.MLE(starts=8), seed=1)
    assert "not_identified" in [f.check for f in fit.diagnose()]
    drawn = probdl.infer(mixture, y, method=probdl.NUTS(draws=300, warmup=300), seed=2)
    assert abs(np.diff(drawn.draws["mu"].mean(1)[:, 0])).max() > 3  # the chains are at both modes
    assert "multimodal" in [f.check for f in drawn.diagnose()]


def test_unidentified_parameters_are_reported():
    def redundant(y):
        a, b = pyro.sample("a", dist.Normal(0.0, 1.0)), pyro.sample("b", dist.Normal(0.0, 1.0))
        with pyro.plate("obs", len(y)):
            pyro.sample("y", dist.Normal(a + b, 1.0), obs=y)

    with pytest.warns(probdl.FindingWarning, match="are not identified"):
        made = study(redundant, QUICK, {"a": 1.0, "b": 0.0}, sizes=[20], replicates=10)
    assert made.attrs["findings"]["flat"] == 10


def test_sites_without_a_true_value_are_drawn():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("obs", len(y)):
            theta = pyro.sample("theta", dist.Normal(mu, 1.0))
            pyro.sample("y", dist.Normal(theta, 1.0), obs=y)

    method = probdl.Laplace(draws=200)
    made = study(model, method, {"mu": 0.5}, sizes=[30], replicates=30, seed=1)
    assert list(made.parameter.values) == ["mu"]
    assert 0.02 < float(made.variance.squeeze()) < 0.2  # 2 / 30, shrunk a little


def test_a_plot_shows_all_sizes(found):
    axes = plot_study(found, ["variance"])
    assert axes.shape == (2, 1)
    line = axes[0, 0].lines[0].get_xydata()
    np.testing.assert_allclose(line[:, 1], found.mse.sel(parameter="variance"))
    with pytest.raises(probdl.SettingError, match="no parameter 'sigma'"):
        plot_study(found, ["sigma"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"truth": None}, "Pass truth="),
        ({"truth": {"nu": 1.0}}, "is not a site of the model"),
        ({"truth": {"mu": [1.0, 2.0]}}, "has shape"),
        ({"sizes": [0, 5]}, "distinct integers of at least 1"),
        ({"replicates": 1}, "at least 2"),
        ({"interval_prob": 1.0}, "above 0 and below 1"),
    ],
)
def test_invalid_settings_are_an_error(settings, message):
    options = {"truth": {"mu": 0.0}, "sizes": [5], "replicates": 2, **settings}
    with pytest.raises(probdl.SettingError, match=message):
        study(normal, QUICK, options.pop("truth"), **options)


def test_observations_computed_from_arguments_are_an_error():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("obs", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=2 * y)

    with pytest.raises(probdl.ModelError, match="computed from the model's arguments"):
        study(model, QUICK, {"mu": 0.0}, sizes=[5], replicates=2)


@pytest.mark.parametrize("method", [probdl.MLE(), probdl.MAP()], ids=["mle", "map"])
def test_refits_equal_full_fits(method):
    """The work that a study skips from the second data set on does not change its estimates."""
    made = study(normal, method, {"mu": 1.0, "variance": 4.0}, sizes=[20], replicates=4, seed=5)
    simulated = Simulator(normal, (np.zeros(20),))
    with isolated(stream(5, "data", 20)):
        sets = simulated.at({"mu": 1.0, "variance": 4.0}, 4)
    for i, tensors in enumerate(sets):
        fit = probdl.infer(normal, tensors[0], method=method, seed=stream(5, "fit", i))
        for j, name in enumerate(("mu", "variance")):
            found = float(made.estimate[0, i, j])
            assert found == pytest.approx(fit.draws[name].item(), rel=1e-7)
            width = stats.norm.ppf(0.95) * fit.stats["standard_error"][name]
            assert float(made.high[0, i, j]) == pytest.approx(found + float(width), rel=1e-6)


def test_ctrl_c_returns_partial_results():
    calls = []

    @dataclass(frozen=True, repr=False)
    class Interrupted(probdl.MLE):
        def refit(self, fit, program, seed):
            calls.append(1)
            if len(calls) == 15:
                raise KeyboardInterrupt
            return super().refit(fit, program, seed)

    with pytest.warns(probdl.FindingWarning, match="Interrupted at n = 10"):
        made = study(
            normal, Interrupted(starts=1), {"mu": 1.0}, sizes=[5, 10, 20], replicates=10,
            workers=1,
        )  # fmt: skip
    assert list(made["size"].values) == [5, 10]
    assert list(made.estimate.notnull().sum("replicate").squeeze().values) == [10, 6]
    assert np.isfinite(made.bias).all()
