"""Models with Python control flow on the value of a site: no method bakes a branch in."""

import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

import probdl
from probdl.compile.tracing.trace import UntraceableError, trace
from probdl.model.density import LogDensity

pytestmark = pytest.mark.filterwarnings("ignore:The model cannot be evaluated for all draws")

TESTS = {
    "if": lambda mu: mu > 0.5,
    "item": lambda mu: mu.item() > 0.5,
    "numpy": lambda mu: mu.detach().numpy() > 0.5,
    "tolist": lambda mu: mu.tolist() > 0.5,
    "list": lambda mu: [False, True][(2 * mu).long()],
}


def branching(test):
    def model(y):
        mu = pyro.sample("mu", dist.Uniform(0.0, 1.0))
        loc = torch.tensor(100.0) if test(mu) else 10 * mu
        pyro.deterministic("loc", loc)
        pyro.sample("y", dist.Normal(loc, 0.1), obs=y)

    return model


# y = 1 leaves mu in N(0.1, 0.01), inside the prior: p(y) = 1/10.
Y, EXACT = torch.tensor(1.0), np.log(0.1)


@pytest.mark.parametrize("test", TESTS)
@pytest.mark.parametrize("seed", [3, 4])
def test_importance_sampling_takes_the_branch_of_each_draw(test, seed):
    method = probdl.Importance(num_samples=2000, draws=500)
    with pytest.warns(UserWarning, match="once per draw"):
        fit = probdl.infer(branching(TESTS[test]), Y, method=method, seed=seed)
    error = fit.stats["log_evidence_standard_error"]
    assert abs(fit.stats["log_evidence"] - EXACT) < 4 * error < 1
    count = min(fit.stats["ess"], 500) / 2
    assert abs(fit.draws["mu"].mean() - 0.1) < 4 * 0.01 / np.sqrt(count)
    assert fit.draws["mu"].std() == pytest.approx(0.01, rel=4 / np.sqrt(count))
    np.testing.assert_allclose(fit.draws["loc"], 10 * fit.draws["mu"])


@pytest.mark.parametrize("test", TESTS)
def test_the_prior_predictive_takes_the_branch_of_each_draw(test):
    method = probdl.Importance(num_samples=100, draws=50)
    fit = probdl.infer(branching(TESTS[test]), Y, method=method, seed=1)
    idata = fit.to_idata(prior=200, predictive=False)
    high = idata.prior_predictive["y"].values > 50
    np.testing.assert_array_equal(high, idata.prior["mu"].values > 0.5)
    assert high.mean() == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(200))


def test_a_threshold_model_without_if_stays_fast():
    def model(y):
        mu = pyro.sample("mu", dist.Uniform(0.0, 1.0))
        pyro.sample("y", dist.Normal(torch.where(mu > 0.5, 100.0, 10 * mu), 0.1), obs=y)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit = probdl.infer(model, Y, method="importance", seed=4)
    assert abs(fit.stats["log_evidence"] - EXACT) < 4 * fit.stats["log_evidence_standard_error"]


@pytest.mark.parametrize("test", TESTS)
def test_a_branch_is_not_compiled(test):
    density = LogDensity.from_model(branching(TESTS[test]), (Y,))
    with pytest.raises(UntraceableError, match="depends on the value of a site"):
        trace(density, torch.zeros(1).double())


def test_a_shape_that_depends_on_a_site_is_not_compiled():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(torch.zeros(4), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(float(len(mu[mu > 0])), 1.0), obs=y)

    with pytest.raises(UntraceableError, match="depends on the value of a site"):
        trace(LogDensity.from_model(model, (Y,)), torch.zeros(4).double())


def test_a_shape_that_depends_on_the_data_is_a_constant_of_the_trace():
    def model(y, seen):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu * len(y[seen]), 1.0), obs=y[seen].mean())

    density = LogDensity.from_model(model, (torch.ones(3), torch.tensor([True, False, True])))
    assert not trace(density, torch.zeros(1).double()).reads_data


@pytest.mark.parametrize("noise", ["torch", "numpy", "branch"])
def test_random_numbers_outside_of_sites(noise):
    draw = {
        "torch": lambda: torch.randn(()),
        "numpy": lambda: np.random.normal(),  # noqa: NPY002
        "branch": lambda: 1.0 if torch.rand(()) > 0.5 else -1.0,
    }[noise]

    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        shift = pyro.deterministic("shift", torch.as_tensor(draw(), dtype=torch.float64))
        pyro.sample("y", dist.Normal(mu + shift, 1.0), obs=y)

    with pytest.raises(probdl.ModelError, match="is random"):
        probdl.infer(model, Y, method="laplace", seed=1)
    # Importance sampling integrates over them, and draws of `shift` belong to those of `mu`.
    fit = probdl.infer(model, Y, method=probdl.Importance(num_samples=4000, draws=2000), seed=1)
    if noise == "branch":
        exact = np.log(stats.norm.pdf(1, [1, -1], np.sqrt(2)).mean())
    else:
        exact = stats.norm.logpdf(1, 0, np.sqrt(3))
        assert fit.draws["shift"].mean() == pytest.approx(1 / 3, abs=4 * 0.82 / np.sqrt(1000))
        found = np.corrcoef(fit.draws["mu"][0], fit.draws["shift"][0])[0, 1]
        assert found == pytest.approx(-0.5, abs=0.1)
    assert abs(fit.stats["log_evidence"] - exact) < 4 * fit.stats["log_evidence_standard_error"]


def test_an_adaptive_solver_that_is_slow_or_fails_far_out_is_fitted():
    """The steps become ever smaller where the equation is stiff, and none is small enough at last.

    Checks of the density far from the posterior end after seconds, and MAP steps back.
    """

    def decay(rate, y0, end):
        t, y, h = 0.0, y0, 0.1
        while t < end:
            h = min(h, end - t)
            slope = -rate * y
            middle = y + h / 2 * slope
            following = y - h * rate * middle
            error = float((following - (y + h * slope)).abs().max() / 1e-3)
            if error <= 1:
                t, y = t + h, following
            h *= min(2.0, max(0.2, 0.9 * (error + 1e-12) ** -0.5))
            assert h > 1e-7, "the step is too small"
        return y

    def model(y):
        rate = pyro.sample("rate", dist.LogNormal(0.0, 1.0))
        start = pyro.sample("start", dist.HalfNormal(2.0))
        with pyro.plate("row", len(y)):
            pyro.sample("y", dist.Normal(decay(rate, start, 1.0), 0.1), obs=y)

    y = 2 * np.exp(-0.7) + 0.1 * np.random.default_rng(0).normal(size=10)
    with pytest.warns(probdl.FindingWarning, match="control flow in Python"):
        fit = probdl.infer(model, y, method="map", seed=1)
    decayed = fit.draws["start"] * np.exp(-fit.draws["rate"])
    assert decayed.item() == pytest.approx(y.mean(), abs=0.01)


def test_an_evaluation_without_end_is_stopped_by_the_time_limit():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        while abs(mu) > 0.5:
            mu = mu + 0.0
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    with pytest.raises(probdl.TimeLimitError):
        probdl.infer(model, Y, method="map", seed=1, time_limit=2)
