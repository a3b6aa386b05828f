"""Labelled predictions, and draws from a model before any fit."""

import warnings

import arviz as az
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr

import probdl
from probdl.io.idata import groups
from probdl.models import eight_schools

SIGMA, Y = np.array([10.0, 5.0, 20.0]), np.array([1.0, 20.0, 3.0])
COORDS = {"school": ["A", "B", "C"]}


def line(x, y=None):
    slope = pyro.sample("slope", dist.Normal(0.0, 2.0))
    with pyro.plate("day", len(x)):
        mean = pyro.deterministic("mean", slope * x)
        return pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


@pytest.fixture(scope="module")
def fit():
    return probdl.infer(eight_schools, SIGMA, Y, method="laplace", seed=1, coords=COORDS)


@pytest.mark.filterwarnings("ignore::probdl.FindingWarning")
def test_predictions_have_names_and_labels(fit):
    found = fit.predictions()
    assert isinstance(found, xr.Dataset)
    assert found["y"].dims == ("chain", "draw", "school")
    np.testing.assert_array_equal(np.asarray(found["y"]), fit.predict()["y"])
    np.testing.assert_array_equal(found["y"].sel(school="B"), fit.predict()["y"][..., 1])
    assert len(found["y"].to_dataframe()) == 3000
    assert az.hdi(found["y"]) is not None


def test_labels_at_new_arguments_match_and_name_them(fit):
    found = fit.predictions(np.array([5.0, 5.0]), coords={"school": ["C", "new"]})
    assert found["theta"]["school"].values.tolist() == ["C", "new"]
    np.testing.assert_array_equal(found["theta"].sel(school="C"), fit.draws["theta"][..., 2])


def test_labels_of_rows_need_not_be_in_the_fit():
    x = np.arange(10.0)
    fit = probdl.infer(line, x, 2 * x, method="laplace", seed=1)
    days = ["Mon", "Tue", "Wed"]
    found = fit.predictions(np.array([1.0, 2.0, 3.0]), coords={"day": days})
    assert found["y"]["day"].values.tolist() == days
    assert float(found["mean"].sel(day="Tue").mean()) == pytest.approx(4.0, abs=0.2)
    assert fit.predictions(np.zeros(10))["y"]["day"].values.tolist() == [*range(10)]
    assert fit.predictions(num_samples=4).sizes["day"] == 4


def test_labels_of_the_fits_rows_are_not_those_of_others():
    x = np.arange(3.0)
    fit = probdl.infer(line, x, x, method="laplace", seed=1, coords={"day": [5, 6, 7]})
    assert fit.predictions()["y"]["day"].values.tolist() == [5, 6, 7]
    assert fit.predictions(np.ones(3))["y"]["day"].values.tolist() == [0, 1, 2]


def test_labels_that_do_not_fit_are_an_error(fit):
    with pytest.raises(probdl.SettingError, match="did you mean 'school'"):
        fit.predictions(coords={"schol": ["A", "B", "C"]})
    x = np.arange(4.0)
    other = probdl.infer(line, x, x, method="laplace", seed=1)
    with pytest.raises(probdl.SettingError, match="2 labels, but the predictions have length 3"):
        other.predictions(np.ones(3), coords={"day": ["a", "b"]})


def test_predictions_join_the_container(fit):
    found = fit.predictions(np.array([5.0, 5.0]), coords={"school": ["C", "D"]})
    container = fit.to_idata(predictions=found)
    assert "predictions" in groups(container)
    np.testing.assert_array_equal(container.predictions["y"], found["y"])
    assert container.posterior["theta"]["school"].values.tolist() == ["A", "B", "C"]


def test_new_sites_of_a_forecast_are_predicted():
    def walk(y, horizon=0):
        scale = pyro.sample("scale", dist.HalfNormal(1.0))
        with pyro.plate("time", len(y) - 1):
            pyro.sample("y", dist.Normal(y[:-1], scale), obs=y[1:])
        if horizon:
            with pyro.plate("future", horizon):
                steps = pyro.sample("steps", dist.Normal(0.0, scale))
            pyro.deterministic("forecast", y[-1] + steps.cumsum(-1), event_dim=1)

    y = np.random.default_rng(0).normal(size=60).cumsum()
    fit = probdl.infer(walk, y, method="laplace", seed=1)
    found = fit.predictions(y, horizon=28, coords={"future": [f"+{h}" for h in range(1, 29)]})
    assert found["forecast"].shape == (1, 1000, 28)
    sd = fit.draws["scale"].mean() * 28**0.5
    assert float(found["forecast"][..., -1].std()) == pytest.approx(sd, rel=0.2)


def test_probabilities_of_classes():
    rng = np.random.default_rng(0)
    x = rng.normal(size=80)

    def classes(x, y=None):
        with pyro.plate("class", 3):
            slope = pyro.sample("slope", dist.Normal(0.0, 2.0))
        with pyro.plate("row", len(x)):
            pyro.sample("y", dist.Categorical(logits=x[:, None] * slope), obs=y)

    y = rng.integers(0, 3, size=80)
    fit = probdl.infer(classes, x, y, method=probdl.Laplace(draws=4000), seed=1)
    found = fit.predict_proba(np.array([-1.0, 0.5]))["y"]
    np.testing.assert_allclose(found.sum(-1), 1.0)
    logits = np.array([-1.0, 0.5])[:, None] * fit.draws["slope"][0][:, None, :]
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(found, shares.mean(0))
    assert fit.predict_proba()["y"].shape == (80, 3)
    other = probdl.infer(line, x, x, method="map", seed=1)
    with pytest.raises(probdl.ModelError, match="has no classes"):
        other.predict_proba(np.ones(2))


@pytest.mark.filterwarnings("ignore::probdl.FindingWarning")
@pytest.mark.parametrize("method", ["map", probdl.NUTS(draws=20, warmup=50, chains=2)])
def test_a_model_that_observes_nothing_predicts_nothing(method, tmp_path):
    def model(y):
        x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.factor("f", -((x.sum() - y.sum()) ** 2))

    fit = probdl.infer(model, torch.ones(3), method=method, seed=0)
    assert fit.predict() == fit.predict(torch.ones(2)) == fit.predict(out=tmp_path) == {}
    assert not fit.predictions()


def test_draws_before_any_fit():
    prior = probdl.prior_predictive(
        eight_schools, SIGMA, Y, num_samples=4000, seed=1, coords=COORDS
    )
    assert set(groups(prior)) == {"prior", "prior_predictive", "observed_data", "constant_data"}
    assert prior.prior_predictive["y"].dims == ("chain", "draw", "school")
    assert prior.prior["theta"]["school"].values.tolist() == ["A", "B", "C"]
    assert float(prior.prior["mu"].std()) == pytest.approx(5.0, rel=4 / 8000**0.5)
    np.testing.assert_array_equal(prior.observed_data["y"], Y)
    again = probdl.prior_predictive(eight_schools, SIGMA, Y, num_samples=4000, seed=1)
    np.testing.assert_array_equal(again.prior["mu"], prior.prior["mu"])


def test_data_that_were_not_given_are_predicted():
    prior = probdl.prior_predictive(line, np.ones(5), seed=1)
    assert prior.prior_predictive["y"].shape == (1, 500, 5)
    assert set(prior.prior.data_vars) == {"slope", "mean"}
    assert "observed_data" not in groups(prior)


def test_categories_label_draws_before_any_fit():
    def model(town, y=None):
        with pyro.plate("town", int(town.max()) + 1):
            level = pyro.sample("level", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(town)):
            pyro.sample("y", dist.Normal(level[town], 1.0), obs=y)

    prior = probdl.prior_predictive(model, pd.Series(["b", "a", "b"]), seed=1)
    assert prior.prior["level"]["town"].values.tolist() == ["a", "b"]


def test_what_has_no_prior_draws_is_an_error():
    def improper(y):
        mean = pyro.sample("mean", dist.ImproperUniform(dist.constraints.real, (), ()))
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    with pytest.raises(probdl.ProbdlError, match=r"[Ii]mproper|mean"):
        probdl.prior_predictive(improper, torch.tensor(1.0))
    with pytest.raises(probdl.SettingError, match="num_samples"):
        probdl.prior_predictive(line, np.ones(2), num_samples=0)


def walk(y, horizon=0, later=None):
    """A random walk, whose next values are drawn or observed with noise."""
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    with pyro.plate("year", len(y) - 1):
        pyro.sample("y", dist.Normal(y[:-1], sigma), obs=y[1:])
    count = horizon if later is None else len(later)
    if count:
        with pyro.plate("future", count):
            step = pyro.sample("step", dist.Normal(0.0, 1.0))
        path = y[-1] + sigma * torch.cumsum(step, -1)
        pyro.deterministic("forecast", path, event_dim=1)
        if later is not None:
            with pyro.plate("ahead", count):
                pyro.sample("later", dist.Normal(path, 0.5), obs=later)


def test_labels_of_the_future_and_the_joint_score_of_a_forecast():
    y = np.cumsum(0.3 * np.random.default_rng(0).normal(size=40))
    years = np.arange(2000, 2037)
    fit = probdl.infer(walk, y[:38], coords={"year": years}, method="laplace", seed=1)
    future = {"future": [2038, 2039]}
    assert fit.predict(y[:38], horizon=2, coords=future)["forecast"].shape == (1, 1000, 2)
    forecast = fit.predictions(y[:38], horizon=2, coords=future)
    assert forecast["year"].values.tolist() == years.tolist()  # the past is that of the fit
    assert fit.predictions(y[1:39])["year"].values.tolist() == list(range(37))  # and this is not
    with pytest.raises(probdl.SettingError, match="which the fit has not"):
        fit.predict(y[:38], horizon=2, coords={"futur": [2038, 2039]})
    scores = fit.log_predictive(y[:38], later=y[38:], coords=future)
    # Given sigma, the two steps are normal with the covariance of a random walk.
    sigma = fit.draws["sigma"][0]
    cov = sigma[:, None, None] ** 2 * np.array([[1, 1], [1, 2]]) + 0.25 * np.eye(2)
    residual = np.broadcast_to(y[38:] - y[37], (len(sigma), 2))
    quadratic = np.einsum("si,si->s", residual, np.linalg.solve(cov, residual[..., None])[..., 0])
    log_densities = -0.5 * (quadratic + np.linalg.slogdet(2 * np.pi * cov)[1])
    exact = np.log(np.exp(log_densities).mean())
    value, error = scores.joints["later"]
    assert abs(value - exact) < 4 * error < 0.5
    assert scores.joint != value


def test_a_joint_score_that_few_draws_carry_has_no_error():
    def model(x, y):
        slopes = pyro.sample("slopes", dist.Normal(torch.zeros(40), 1.0).to_event(1))
        with pyro.plate("row", len(x)):
            pyro.sample("y", dist.Normal(x @ slopes, 1.0), obs=y)

    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 40))
    y = x @ rng.normal(size=40) + rng.normal(size=300)
    fit = probdl.infer(model, x[:50], y[:50], method="laplace", seed=1)
    with pytest.warns(probdl.FindingWarning, match=r"Few draws carry joint and joints\['y'\]"):
        score = fit.log_predictive(x[50:], y[50:])
    assert np.isinf(score.joint_standard_error)
    assert np.isinf(score.joints["y"].standard_error)
    assert "unreliable" in repr(score)
    assert "unreliable" not in repr(fit.log_predictive(x[50:51], y[50:51]))


def test_the_dimensions_of_new_sites_have_names_and_labels():
    fit = probdl.infer(noise_to_come, np.arange(6.0), method="laplace", seed=1)
    days = np.array(["2026-01-01", "2026-01-02"], "datetime64[ns]")
    found = fit.predictions(
        np.arange(6.0), horizon=2, dims={"forecast": ["day"]}, coords={"day": days}
    )
    assert found["forecast"].dims == ("chain", "draw", "day")
    assert (found["day"].values == days).all()
    for dims, message in {
        "forcast": "'forcast', which is not in the model",
        "forecast": "has 3 labels, but",
    }.items():
        with pytest.raises(probdl.SettingError, match=message):
            fit.predictions(
                np.arange(6.0), horizon=2, dims={dims: ["day"]}, coords={"day": [1, 2, 3]}
            )


def noise_to_come(y, horizon=0):
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    with pyro.plate("time", len(y)):
        pyro.sample("y", dist.Normal(0.0, sigma), obs=y)
    if horizon:
        steps = pyro.sample("steps", dist.Normal(0.0, sigma).expand([horizon]).to_event(1))
        pyro.deterministic("forecast", y[-1] + steps.cumsum(-1), event_dim=1)


def test_the_score_of_a_forecast_does_not_warn_of_that_of_the_past():
    rng = np.random.default_rng(1)
    y = 10 + np.cumsum(0.3 * rng.normal(size=72)) + 0.6 * rng.normal(size=72)

    def local_level(y, later=None):
        noise = pyro.sample("noise", dist.HalfNormal(2.0))
        drift = pyro.sample("drift", dist.HalfNormal(1.0))
        with pyro.plate("step", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
        level = 10 + drift * z.cumsum(-1)
        with pyro.plate("time", len(y)):
            pyro.sample("y", dist.Normal(level, noise), obs=y)
        if later is not None:
            with pyro.plate("ahead", len(later)):
                ahead = drift * pyro.sample("ahead_z", dist.Normal(0.0, 1.0)).cumsum(-1)
                pyro.sample("later", dist.Normal(level[-1] + ahead, noise), obs=later)

    fit = probdl.infer(local_level, y[:60], method=probdl.NUTS(target_accept=0.95), seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        score = fit.log_predictive(y[:60], y[60:])
    assert np.isinf(score.joints["y"].standard_error)
    assert np.isfinite(score.joints["later"].standard_error)
    assert f"joints['later']={score.joints['later'].value:.2f} ±" in repr(score)
    missed = y[60:].copy()
    missed[:] = 0.0
    with pytest.warns(probdl.FindingWarning, match=r"joints\['later'\]"):
        fit.log_predictive(y[:60], missed)


def test_an_improper_prior_has_no_prior_predictive():
    def model(y):
        mu = pyro.sample("mu", dist.ImproperUniform(dist.constraints.real, (), ()))
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    with pytest.raises(probdl.ModelError, match="The prior of 'mu' is flat"):
        probdl.prior_predictive(model, torch.tensor(1.0))
    with pytest.raises(probdl.ModelError, match="The prior of 'mu' is flat"):
        probdl.montecarlo.calibrate(model, "laplace", (torch.tensor(1.0),), simulations=20)
