"""Comparison and cross-validation against exact held-out densities."""

import warnings
from dataclasses import replace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

import probdl
from probdl.io import idata
from probdl.results.crossvalidation import score_held_out

METHOD = probdl.NUTS(draws=1000, warmup=500, chains=2)


def location(y, scale=2.0):
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("obs", len(y)):
        pyro.sample("y", dist.Normal(mu, scale), obs=y)


def exact(y, rows, scale=2.0):
    """Return the log density of rows given all other rows, in closed form."""
    kept = np.setdiff1d(np.arange(len(y)), rows)
    precision = 1 / 100 + len(kept) / scale**2
    mean = y[kept].sum() / scale**2 / precision
    return stats.norm.logpdf(y[rows], mean, np.sqrt(1 / precision + scale**2))


@pytest.fixture(scope="module")
def y():
    return np.random.default_rng(1).normal(1.0, 2.0, size=30)


@pytest.fixture(scope="module")
def fits(y):
    return {
        "right": probdl.infer(location, y, method=METHOD, seed=1),
        "too wide": probdl.infer(location, y, 6.0, method=METHOD, seed=1),
    }


def test_the_better_model_comes_first(fits, y):
    table = probdl.compare(fits)
    assert list(table.index) == ["right", "too wide"]
    elpd = table["elpd"]
    for name, scale in (("right", 2.0), ("too wide", 6.0)):
        known = sum(exact(y, np.array([i]), scale)[0] for i in range(30))
        assert elpd[name] == pytest.approx(known, abs=0.1)
    assert (table.high_k == 0).all()
    assert (table.refitted == 0).all()
    assert table.loc["right", "weight"] > 0.9


def test_fits_by_different_methods_are_compared(y):
    fits = {
        name: probdl.infer(location, y, method=m, seed=1)
        for name, m in {"nuts": METHOD, "laplace": "laplace"}.items()
    }
    table = probdl.compare(fits)
    assert table["elpd"].max() - table["elpd"].min() == pytest.approx(0, abs=0.2)
    assert (table["elpd_diff"] <= 0).all()


def outlier_model(y, x):
    beta = pyro.sample("beta", dist.Normal(0.0, 10.0))
    with pyro.plate("obs", len(y)):
        pyro.sample("y", dist.Normal(beta * x, 1.0), obs=y)


def test_rows_with_a_high_k_are_refitted(y):
    """One row has a high leverage, so importance sampling fails for it."""
    x = np.append(np.random.default_rng(2).normal(size=15), 40.0)
    data = np.append(x[:-1], 25.0)
    fit = probdl.infer(outlier_model, data, x, method=METHOD, seed=1)
    other = probdl.infer(outlier_model, data, x, method=METHOD, seed=2)
    with pytest.warns(probdl.FindingWarning, match="k-hat is above"):
        rough = probdl.compare({"a": fit, "b": other}, refit=False)
    assert (rough.high_k >= 1).all()
    table = probdl.compare({"a": fit, "b": other})
    assert (table.refitted >= 1).all()
    assert (table.high_k == 0).all()
    precision = 1 / 100 + (x[:-1] ** 2).sum()
    mean = (x[:-1] * data[:-1]).sum() / precision
    known = stats.norm.logpdf(data[-1], 40 * mean, np.sqrt(1600 / precision + 1))
    (score,) = score_held_out(fit, [[15]], workers=1, progress=False)
    assert score[0] == pytest.approx(known, abs=0.2)


def test_cross_validation_agrees_with_exact_densities(fits, y):
    found = fits["right"].cross_validate(5)
    assert found.pointwise.shape == (30,)
    known = np.empty(30)
    for fold in range(5):
        rows = np.flatnonzero(found.folds == fold)
        assert len(rows) == 6
        known[rows] = exact(y, rows)
    np.testing.assert_allclose(found.pointwise, known, atol=0.05)
    assert found.elpd == pytest.approx(known.sum(), abs=0.3)
    assert found.standard_error == pytest.approx(known.std(ddof=1) * 30**0.5, rel=0.05)


def test_cross_validation_of_a_point_estimate(y):
    fit = probdl.infer(location, y, method="mle", seed=1)
    found = fit.cross_validate(30)
    others = (y.sum() - y) / 29
    np.testing.assert_allclose(found.pointwise, stats.norm.logpdf(y, others, 2.0), rtol=1e-6)


def test_cross_validation_with_a_latent_site_per_row(schools):
    """The effect of a held-out school is drawn from the population."""
    method = probdl.NUTS(draws=500, warmup=500, chains=2, target_accept=0.95)
    fit = probdl.infer(probdl.models.eight_schools, *schools, method=method, seed=1)
    found = fit.cross_validate(8)
    sigma, effect = schools
    # The spread of the population is between 0 and that of the data; 6 is a value in between.
    rough = stats.norm.logpdf(effect, effect.mean(), np.hypot(sigma, 6.0))
    assert np.all(np.abs(found.pointwise - rough) < 0.6)


def test_invalid_input_is_an_error(fits, y):
    fit = fits["right"]
    point = probdl.infer(location, y, method="mle", seed=1)
    other = probdl.infer(location, y + 1, method=METHOD, seed=1)
    for bad, message in (
        ({"a": fit}, "at least two fits"),
        ({"a": fit, "b": point}, "point estimate by mle"),
        ({"a": fit, "b": other}, "different data"),
    ):
        with pytest.raises(probdl.SettingError, match=message):
            probdl.compare(bad)
    for k in (1, 31):
        with pytest.raises(probdl.SettingError, match=rf"k={k}\b"):
            fit.cross_validate(k)


def test_exact_terms_replace_estimates(fits):
    result = idata.loo(fits["right"].idata, "y")
    made = idata.with_exact(result, {3: -5.0})
    name = "elpd" if idata.ARVIZ_1 else "elpd_loo"
    values = (result.elpd_i if idata.ARVIZ_1 else result.loo_i).values.copy()
    values[3] = -5.0
    assert getattr(made, name) == pytest.approx(values.sum())
    assert made.se == pytest.approx(np.sqrt(30 * values.var()))


def test_cross_validation_integrates_over_latent_sites_by_the_guide():
    torch.manual_seed(0)
    loadings = torch.randn(5, 2)
    x = torch.randn(120, 2) @ loadings.T + 0.5 * torch.randn(120, 5)

    def factors(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            weight = pyro.param("weight", torch.eye(5, 2))
            sd = pyro.param("sd", torch.tensor(1.0), constraint=dist.constraints.positive)
            pyro.sample("x", dist.Normal(z @ weight.T, sd).to_event(1), obs=x)

    def guide(x):
        weight = pyro.param("encoder", torch.zeros(5, 2))
        sd = pyro.param("width", torch.ones(2), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ weight, sd).to_event(1))

    method = probdl.SVI(guide=guide, steps=2000)
    result = probdl.infer(factors, x, method=method, seed=1).cross_validate(2, workers=1)
    for fold in (0, 1):
        held_out = result.folds == fold
        params = probdl.infer(factors, x[~held_out], method=method, seed=1).stats["params"]
        weight, sd = torch.as_tensor(params["weight"]), torch.as_tensor(params["sd"])
        covariance = weight @ weight.T + sd**2 * torch.eye(5)
        exact = dist.MultivariateNormal(torch.zeros(5), covariance).log_prob(x[held_out])
        # The two fits differ by the noise of training.
        assert result.pointwise[held_out].mean() == pytest.approx(float(exact.mean()), abs=0.15)
        correlation = np.corrcoef(result.pointwise[held_out], exact.numpy())[0, 1]
        assert correlation > 0.98


def test_cross_validation_of_a_series_needs_draws_of_its_latent_sites():
    """A guide that computes them from the data would see what is held out."""
    y = np.random.default_rng(0).normal(size=40).cumsum()

    def walk(y):
        with pyro.plate("time", len(y)):
            step = pyro.sample("step", dist.Normal(0.0, 1.0))
            sd = pyro.param("sd", torch.tensor(1.0), constraint=dist.constraints.positive)
            pyro.sample("y", dist.Normal(step.cumsum(-1), sd), obs=y)

    def guide(y):
        scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
        with pyro.plate("time", len(y)):
            pyro.sample("step", dist.Normal(torch.diff(y, prepend=torch.zeros(1)), scale))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", probdl.FindingWarning)
        fit = probdl.infer(walk, y, method=probdl.SVI(guide=guide, steps=500), seed=1)
        with pytest.raises(probdl.ModelError, match="from the rows that are held out"):
            fit.cross_validate(2, workers=1)


def test_fits_of_the_same_observations_with_other_missing_rows_are_compared():
    """A forecast by NaN at the end has more rows, but no more observations."""

    def normal(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        with pyro.plate("row", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    y = np.random.default_rng(0).normal(size=20)
    short = probdl.infer(normal, y, method="laplace", seed=1)
    long = probdl.infer(
        normal, np.append(y, [np.nan] * 4), missing="mask", method="laplace", seed=1
    )
    table = probdl.compare({"short": short, "long": long})
    assert table["elpd"].iloc[0] == pytest.approx(table["elpd"].iloc[1])


def test_one_of_several_observed_sites_is_compared():
    def two(x, y):
        slope = pyro.sample("slope", dist.Normal(0.0, 5.0))
        with pyro.plate("row", len(x)):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)
            pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)

    rng = np.random.default_rng(0)
    x = rng.normal(size=20)
    y = x + rng.normal(size=20)
    fit = probdl.infer(two, x, y, method="laplace", seed=1)
    with pytest.raises(probdl.SettingError, match="site='x'"):
        probdl.compare({"a": fit, "b": fit})
    points = fit.log_likelihood()["y"]
    table = probdl.compare({"a": fit, "b": fit}, site="y")
    exact = -np.log(np.exp(-points[0]).mean(0)).sum()  # without smoothing
    assert table["elpd"].iloc[0] == pytest.approx(exact, abs=0.05)


def autoregression(y):
    mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
    phi = pyro.sample("phi", dist.Normal(0.0, 0.5))
    with pyro.plate("time", len(y) - 1):
        pyro.sample("y", dist.Normal(mean + phi * (y[:-1] - mean), 1.0), obs=y[1:])


def trend(y):
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("time", len(y) - 1):
        pyro.sample("y", dist.Normal(slope * torch.arange(1.0, len(y)), 1.0), obs=y[1:])


def regression(y, x):
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("time", len(y) - 1):
        pyro.sample("y", dist.Normal(slope * x[1:], 1.0), obs=y[1:])


def test_terms_that_are_given_other_observations_are_not_compared_in_silence(tmp_path):
    rng = np.random.default_rng(0)
    y, x = rng.normal(size=30), rng.normal(size=30)
    lagged = probdl.infer(autoregression, y, method="laplace", seed=1)
    others = {
        "trend": probdl.infer(trend, y, method="laplace", seed=1),
        "regression": probdl.infer(regression, y, x, method="laplace", seed=1),
    }
    with pytest.warns(probdl.FindingWarning, match="'lagged' are given earlier observations"):
        probdl.compare({"lagged": lagged, **others})
    loaded = {
        name: probdl.load(fit.save(tmp_path / name))
        for name, fit in {"ar": lagged, **others}.items()
    }
    with pytest.warns(probdl.FindingWarning, match="'ar' are given earlier observations"):
        probdl.compare(loaded)
    again = probdl.load(loaded["ar"].save(tmp_path / "again"))
    with pytest.warns(probdl.FindingWarning, match="'ar' are given earlier observations"):
        probdl.compare({"ar": again, "trend": loaded["trend"]})
    for fits in ({"a": lagged, "b": lagged}, others):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            probdl.compare(fits)


def test_rows_that_are_too_many_to_refit_for_each_are_reported():
    def effects(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        with pyro.plate("row", len(y)):
            theta = pyro.sample("theta", dist.Normal(mu, 1.0))
            pyro.sample("y", dist.Normal(theta, 0.3), obs=y)

    y = np.random.default_rng(0).normal(size=20)
    fit = probdl.infer(effects, y, method=METHOD, seed=1)
    with pytest.warns(probdl.FindingWarning, match="too many to refit"):
        table = probdl.compare({"a": fit, "b": fit})
    assert (table["refitted"] == 0).all()


def test_findings_on_the_draws_are_findings_on_their_score():
    y = np.random.default_rng(0).normal(size=30)

    def model(y, scale):
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(mu, scale), obs=y)

    fits = {
        n: probdl.infer(model, y, s, method=METHOD, seed=1) for n, s in (("a", 1.0), ("b", 2.0))
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error", probdl.FindingWarning)
        probdl.compare(fits)
    found = probdl.Finding("error", "rhat", "The chains do not agree.", "Run longer chains.")
    fits["b"] = replace(fits["b"], findings=[found])
    with pytest.warns(probdl.FindingWarning, match=r"findings on those of 'b' \(rhat\)"):
        probdl.compare(fits)
