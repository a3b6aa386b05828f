"""The Laplace approximation: evidence, weights, and models without an approximation."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

import probdl
from probdl.models import eight_schools, linear_regression
from probdl.results.weights import check_weights


def test_log_evidence_of_a_normal_model_is_exact():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, 3))
    y = x @ [1.0, -1.0, 0.5] + rng.normal(size=20)
    method = probdl.Laplace(draws=500)
    fit = probdl.infer(linear_regression, x, y, scale=2.0, noise=1.5, method=method, seed=1)
    design = np.c_[np.ones(20), x]
    covariance = 1.5**2 * np.eye(20) + 2.0**2 * design @ design.T
    exact = stats.multivariate_normal(np.zeros(20), covariance).logpdf(y)
    assert fit.stats["log_evidence"] == pytest.approx(exact, abs=1e-6)
    np.testing.assert_allclose(np.exp(fit.stats["log_weights"]).sum(), 1.0)
    assert fit.stats["lp"].shape == (1, 500)


def test_a_posterior_with_heavier_tails_has_a_high_pareto_k():
    def model():
        pyro.sample("x", dist.Cauchy(torch.zeros(3), 1.0).to_event(1))

    with pytest.warns(probdl.FindingWarning, match="Pareto k-hat"):
        fit = probdl.infer(model, method=probdl.Laplace(draws=4000), seed=1)
    assert fit.stats["pareto_k"] > 0.7


def test_an_approximation_that_is_much_too_wide_is_reported(schools):
    # At the mode of log tau there is little posterior mass.
    method = probdl.Laplace(draws=10_000)
    with pytest.warns(probdl.FindingWarning, match=r"Pareto k-hat of its importance ratios"):
        fit = probdl.infer(eight_schools, *schools, method=method, seed=1)
    assert fit.stats["pareto_k"] > 0.7


def test_few_effective_draws_are_reported_even_with_bounded_ratios():
    weights = np.full(1000, 1e-300)
    weights[:50] = 1 / 50  # fifty draws near the posterior mass, the others far away
    (finding,) = check_weights(np.log(weights), 0.1, "the normal approximation")
    assert "effective sample size 50 of 1000 draws" in finding.message
    assert "Do not base posterior estimates on these draws" in finding.message
    (finding,) = check_weights(np.log(weights), 0.1, "the proposal", resampled=True)
    assert finding.check == "weights"
    assert "estimates are imprecise" in finding.message
    assert check_weights(np.full(1000, -np.log(1000)), 0.1, "the normal approximation") == []


def test_a_direction_without_curvature_is_named():
    def model(y):
        a = pyro.sample("a", dist.ImproperUniform(dist.constraints.real, (), ()))
        b = pyro.sample("b", dist.ImproperUniform(dist.constraints.real, (), ()))
        pyro.sample("y", dist.Normal(a + b, 1.0), obs=y)

    with pytest.raises(probdl.ModelError, match=r"no strict maximum.*along [ab], [ab]"):
        probdl.infer(model, np.ones(3), method="laplace", seed=1)


def test_params_are_held_and_reported():
    def model(y):
        shift = pyro.param("shift", torch.tensor(5.0))
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + shift, 1.0), obs=y)

    with pytest.warns(probdl.FindingWarning, match="'shift' have no prior"):
        fit = probdl.infer(model, np.array([6.0]), method="laplace", seed=1)
    assert fit.stats["mode"][0] == pytest.approx(0.5)  # of y - shift = 1
    error = 1.5**0.5 / 1000**0.5
    assert abs(fit.predict()["y"].mean() - 5.5) < 4 * error


def test_a_lower_mode_with_a_share_of_the_posterior_is_reported():
    def two_modes(gap):
        x = pyro.sample("x", dist.Normal(0.0, 10.0))
        pair = torch.stack([dist.Normal(-5.0, 1.0).log_prob(x), dist.Normal(5.0, 1.0).log_prob(x)])
        pyro.factor("mixture", torch.logsumexp(pair + torch.stack([gap * 0, -gap]), 0))

    fit = probdl.infer(two_modes, torch.tensor(1.0), method=probdl.Laplace(starts=10), seed=1)
    assert [f.severity for f in fit.diagnose() if f.check == "multimodal"] == ["error"]
    far = probdl.infer(two_modes, torch.tensor(8.0), method=probdl.Laplace(starts=10), seed=1)
    assert "multimodal" not in [f.check for f in far.diagnose()]


def test_a_skewed_posterior_is_reported():
    def variance(y):
        v = pyro.sample("v", dist.InverseGamma(2.0, 1.0))
        with pyro.plate("obs", len(y)):
            pyro.sample("y", dist.Normal(0.0, v.sqrt()), obs=y)

    rng = np.random.default_rng(0)
    y = rng.normal(size=8) * 2
    with pytest.warns(probdl.FindingWarning, match="does not match the posterior"):
        fit = probdl.infer(variance, y, method="laplace", seed=1)
    assert {f.check for f in fit.diagnose()} & {"biased_moments", "pareto_k"}


def test_a_scale_that_its_prior_lets_go_to_zero_gets_another_remedy():
    """The level of each time fits its observation, and a half-normal prior is not 0 at 0."""

    def walk(y):
        scale = pyro.sample("scale", dist.HalfNormal(10.0))
        with pyro.plate("time", len(y)):
            level = pyro.sample("level", dist.Normal(0.0, 100.0))
            pyro.sample("y", dist.Normal(level, scale), obs=y)

    y = np.random.default_rng(0).normal(size=20)
    with pytest.raises(probdl.ModelError) as error:
        probdl.infer(walk, y, method="laplace", seed=1)
    assert "proper prior" not in str(error.value)
    assert "method='nuts'" in str(error.value)
