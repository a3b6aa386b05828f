"""Importance sampling: known evidence and posterior, weights, and unsuitable proposals."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

import probdl
from probdl.io.idata import groups
from probdl.methods.approximate import weighting
from probdl.models import beta_binomial, linear_regression


def location(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("obs", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


Y = np.array([0.3, 1.0, -0.2])
EXACT = stats.multivariate_normal(np.zeros(3), np.eye(3) + 1.0).logpdf(Y)


def test_the_prior_finds_evidence_and_posterior():
    fit = probdl.infer(location, Y, method=probdl.Importance(draws=4000), seed=1)
    error = fit.stats["log_evidence_standard_error"]
    assert 0 < error < 0.05
    assert abs(fit.stats["log_evidence"] - EXACT) < 4 * error
    size = min(fit.stats["ess"], 4000)
    assert abs(fit.draws["mu"].mean() - Y.sum() / 4) < 4 * 0.5 / np.sqrt(size / 2)
    assert fit.draws["mu"].std() == pytest.approx(0.5, rel=4 / np.sqrt(size))
    assert fit.stats["log_weights"].shape == (10_000,)
    np.testing.assert_allclose(np.exp(fit.stats["log_weights"]).sum(), 1.0)
    assert fit.stats["pareto_k"] < 0.7
    assert {"posterior", "log_likelihood"} <= set(groups(fit.idata))


def test_a_conjugate_model_with_bounded_support():
    fit = probdl.infer(beta_binomial, np.array([10]), np.array([7]), method="importance", seed=1)
    exact = stats.betabinom(10, 1, 1).logpmf(7)
    assert abs(fit.stats["log_evidence"] - exact) < 4 * fit.stats["log_evidence_standard_error"]


def test_the_effective_sample_size_is_that_of_the_weights():
    def wide(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    # Prior sd s, posterior about N(0, 1): E[w]² / E[w²] = sqrt(1 + 2 s²) / (1 + s²).
    fit = probdl.infer(
        wide, torch.tensor(0.0), method=probdl.Importance(num_samples=50_000), seed=2
    )
    share = np.sqrt(1 + 2 * 10.0**2) / (1 + 10.0**2)
    assert fit.stats["ess"] / 50_000 == pytest.approx(share, rel=0.05)


def test_a_trained_guide_is_a_better_proposal():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 2))
    y = x @ [1.0, -1.0] + rng.normal(size=50)
    design = np.c_[np.ones(50), x]
    covariance = np.eye(50) + 100.0 * design @ design.T
    exact = stats.multivariate_normal(np.zeros(50), covariance).logpdf(y)

    def fit(method):
        return probdl.infer(linear_regression, x, y, noise=1.0, method=method, seed=1)

    trained = fit(probdl.SVI(guide="multivariate_normal"))
    guided = fit(probdl.Importance(guide=trained))
    assert guided.stats["ess"] > 8000
    error = guided.stats["log_evidence_standard_error"]
    assert abs(guided.stats["log_evidence"] - exact) < 4 * error
    with pytest.warns(probdl.FindingWarning, match="the proposal"):
        prior = fit("importance")
    assert prior.stats["ess"] < 100


def test_a_guide_function_is_a_proposal():
    def guide(y):
        pyro.sample("mu", dist.Normal(0.3, 0.6))

    fit = probdl.infer(location, Y, method=probdl.Importance(guide=guide), seed=1)
    assert abs(fit.stats["log_evidence"] - EXACT) < 4 * fit.stats["log_evidence_standard_error"]
    assert fit.stats["ess"] > 5000


def test_discrete_sites_are_summed_out():
    def mixture(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        z = pyro.sample("z", dist.Bernoulli(0.3))
        pyro.sample("y", dist.Normal(mu + 2 * z, 1.0), obs=y)

    fit = probdl.infer(mixture, torch.tensor(1.0), method="importance", seed=1)
    sd = np.sqrt(2)
    exact = np.log(0.7 * stats.norm(0, sd).pdf(1.0) + 0.3 * stats.norm(2, sd).pdf(1.0))
    assert abs(fit.stats["log_evidence"] - exact) < 4 * fit.stats["log_evidence_standard_error"]


def test_a_proposal_far_from_the_posterior_is_reported():
    # Whether k-hat sees it as well depends on the few draws nearest to the posterior.
    seen = r"\(pareto_k\).*the proposal does not match|\(weights\).*the proposal are uneven"
    with pytest.warns(probdl.FindingWarning, match=seen):
        fit = probdl.infer(location, np.full(200, 5.0), method="importance", seed=1)
    assert fit.stats["ess"] < 100


def test_models_that_cannot_be_sampled_are_refused():
    def flat(y):
        mu = pyro.sample("mu", dist.ImproperUniform(dist.constraints.real, (), ()))
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    with pytest.raises(probdl.ModelError, match="prior of 'mu' is flat"):
        probdl.infer(flat, torch.tensor(0.0), method="importance", seed=1)

    def other(y):
        pyro.sample("nu", dist.Normal(0.0, 1.0))

    with pytest.raises(probdl.ModelError, match="The model has 'mu'; the guide has 'nu'"):
        probdl.infer(location, Y, method=probdl.Importance(guide=other), seed=1)
    with pytest.raises(probdl.SettingError, match="at least 25"):
        probdl.Importance(num_samples=5)


def test_more_weights_than_torchs_multinomial_accepts(monkeypatch):
    log_weights = np.log(np.array([0.0, 0.2, 0.5, 0.0, 0.3]) + 1e-300)
    monkeypatch.setattr(weighting, "MULTINOMIAL_MAX", 4)
    chosen = weighting.resample(log_weights, 40_000, torch.Generator().manual_seed(1))
    shares = np.bincount(chosen.numpy(), minlength=5) / 40_000
    np.testing.assert_allclose(shares, [0, 0.2, 0.5, 0, 0.3], atol=4 * 0.5 / 200)
    assert shares[0] == shares[3] == 0
