"""Pathfinder: exact for normal posteriors, findings for others, and starting points for NUTS."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

import probdl
from probdl.models import linear_regression


def correlated(y):
    covariance = torch.tensor([[4.0, 1.9], [1.9, 1.0]])
    x = pyro.sample("x", dist.MultivariateNormal(torch.tensor([1.0, -2.0]), covariance))
    pyro.sample("y", dist.Normal(x, 2.0).to_event(1), obs=y)


@pytest.mark.parametrize("paths", [1, 4])
def test_a_normal_posterior_is_found_exactly(paths):
    y = torch.tensor([0.5, -1.0])
    fit = probdl.infer(correlated, y, method=probdl.Pathfinder(paths=paths, draws=4000), seed=1)
    prior = np.array([[4.0, 1.9], [1.9, 1.0]])
    covariance = np.linalg.inv(np.linalg.inv(prior) + np.eye(2) / 4)
    mean = covariance @ (np.linalg.solve(prior, [1.0, -2.0]) + y.numpy() / 4)
    sd = np.sqrt(np.diag(covariance))
    draws = fit.draws["x"][0]
    np.testing.assert_array_less(np.abs(draws.mean(0) - mean) / sd, 4.5 / np.sqrt(4000 / 2))
    np.testing.assert_allclose(np.cov(draws.T), covariance, rtol=0.15)
    exact = stats.multivariate_normal([1.0, -2.0], prior + 4 * np.eye(2)).logpdf(y)
    assert fit.stats["log_evidence"] == pytest.approx(exact, abs=0.02)
    assert fit.stats["elbo"].shape == (paths,)
    assert fit.stats["engine"] == "native"
    assert not fit.diagnose()


def test_a_regression_agrees_with_nuts():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(100, 4))
    y = x @ [1.0, -1.0, 0.5, 0.0] + rng.normal(size=100)
    fit = probdl.infer(linear_regression, x, y, method="pathfinder", seed=1)
    nuts = probdl.infer(linear_regression, x, y, method="nuts", seed=1)
    for name in ("intercept", "beta", "sigma"):
        sd = nuts.draws[name].std((0, 1))
        gap = fit.draws[name].mean((0, 1)) - nuts.draws[name].mean((0, 1))
        assert (np.abs(gap) / sd < 0.2).all()
        np.testing.assert_allclose(fit.draws[name].std((0, 1)) / sd, 1.0, atol=0.2)
    assert fit.stats["pareto_k"] < 0.7


def test_heavy_tails_are_reported():
    def cauchy():
        pyro.sample("x", dist.Cauchy(torch.zeros(5), 1.0).to_event(1))

    with pytest.warns(probdl.FindingWarning, match="Pareto k-hat"):
        fit = probdl.infer(cauchy, method=probdl.Pathfinder(draws=2000), seed=1)
    assert fit.stats["pareto_k"] > 0.7


def test_nuts_starts_from_a_path():
    # The posterior is narrow and far away: with random starts, so short a warm-up is not enough.
    def far(y):
        x = pyro.sample("x", dist.Normal(1000.0, torch.tensor([0.01, 0.02])).to_event(1))
        pyro.sample("y", dist.Normal(x.sum(), 1.0), obs=y)

    method = probdl.NUTS(init="pathfinder", warmup=100, draws=500)
    fit = probdl.infer(far, torch.tensor(2000.0), method=method, seed=1)
    assert not [f for f in fit.diagnose() if f.check == "rhat"]
    np.testing.assert_allclose(fit.draws["x"].mean((0, 1)), 1000.0, atol=0.01)
    first = fit.draws["x"][:, 0]
    np.testing.assert_allclose(first, 1000.0, atol=0.2)
    eager = probdl.NUTS(init="pathfinder", warmup=30, draws=30, chains=1, engine="eager")
    draws = probdl.infer(correlated, torch.zeros(2), method=eager, seed=1).draws["x"]
    assert np.isfinite(draws).all()


def test_the_same_seed_gives_the_same_fit():
    fits = [
        probdl.infer(correlated, torch.zeros(2), method="pathfinder", seed=s) for s in (1, 1, 2)
    ]
    np.testing.assert_array_equal(fits[0].draws["x"], fits[1].draws["x"])
    assert not np.array_equal(fits[0].draws["x"], fits[2].draws["x"])


def test_a_density_without_a_maximum_is_refused():
    def rising(y):
        x = pyro.sample("x", dist.ImproperUniform(dist.constraints.real, (), ()))
        pyro.factor("f", x + 0 * y)

    with pytest.raises(probdl.ModelError, match="no usable curvature"):
        probdl.infer(rising, torch.tensor(0.0), method="pathfinder", seed=1)
    with pytest.raises(probdl.SettingError, match="at least 25"):
        probdl.Pathfinder(draws=3)
    with pytest.raises(probdl.SettingError, match="'pathfinder'"):
        probdl.NUTS(init="pathfindr")


def groups(group, y):
    mean = pyro.sample("mean", dist.Normal(50.0, 20.0))
    between = pyro.sample("between", dist.HalfNormal(10.0))
    within = pyro.sample("within", dist.HalfNormal(10.0))
    with pyro.plate("group", 12):
        effect = pyro.sample("effect", dist.Normal(mean, between))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Normal(effect[group], within), obs=y)


@pytest.mark.parametrize("method", ["pathfinder", "svi"])
def test_centred_groups_far_from_zero_are_found(method):
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(12), 16)
    y = 60 + rng.normal(0, 6, 12)[group] + rng.normal(0, 5, 192)
    for seed in (1, 2, 3):
        fit = probdl.infer(groups, group, y, method=method, seed=seed)
        assert fit.draws["within"].mean() == pytest.approx(5.0, abs=0.5)
        assert fit.draws["mean"].mean() == pytest.approx(60.0, abs=3.0)


def test_weighted_draws_that_repeat_say_nothing_about_tails():
    def model():
        x = pyro.sample("x", dist.Normal(torch.zeros(40), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(torch.zeros(40), x.exp()).to_event(1))

    fit = probdl.infer(model, method=probdl.Pathfinder(draws=1000), seed=1)
    found = {finding.check for finding in fit.diagnose()}
    assert "pareto_k" in found
    assert "heavy_tail" not in found


@pytest.mark.filterwarnings("ignore::probdl.FindingWarning")
@pytest.mark.parametrize("concentration", [0.05, 0.1, 0.2])
def test_an_evidence_that_is_off_is_reported(concentration):
    """Weights with a heavy tail may find the moments, but not the evidence."""
    counts, prior = torch.tensor([9.0, 1.0, 0.0, 0.0, 0.0]), torch.full((5,), concentration)

    def model(counts):
        p = pyro.sample("p", dist.Dirichlet(prior))
        pyro.sample("counts", dist.Multinomial(10, p), obs=counts)

    exact = dist.DirichletMultinomial(prior, 10).log_prob(counts).item()
    for seed in range(3):
        fit = probdl.infer(model, counts, method="pathfinder", seed=seed)
        found = {f.check for f in fit.findings}
        if abs(fit.stats["log_evidence"] - exact) > 0.15:
            assert found & {"evidence", "pareto_k", "weights", "biased_moments"}
        elif abs(fit.stats["log_evidence"] - exact) < 0.05:
            assert "evidence" not in found
