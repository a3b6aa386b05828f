"""Missing observations: left out by `missing="mask"`, imputed by a latent site, or in a table."""

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch

import probdl

RNG = np.random.default_rng(3)
FULL = RNG.normal(2.0, 1.0, size=60)
GAPS = RNG.permutation(60)[:12]
Y = FULL.copy()
Y[GAPS] = np.nan
KEPT = FULL[~np.isnan(Y)]
NUTS = probdl.NUTS(draws=500, warmup=300, chains=2)


def normal(y):
    mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def vectors(y):
    mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mean, torch.ones(y.shape[1])).to_event(1), obs=y)


def correlated(y):
    mean = pyro.sample("mean", dist.Normal(torch.zeros(2), 10.0).to_event(1))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.MultivariateNormal(mean, torch.eye(2)), obs=y)


def imputing(y):
    mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
    missing = torch.isnan(y)
    with pyro.plate("gaps", 12):
        gap = pyro.sample("gap", dist.Normal(0.0, 1.0).mask(False))
    y = torch.where(missing, 0.0, y).masked_scatter(missing, gap)
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def posterior_of(values):
    precision = len(values) + 1 / 100
    return values.sum(0) / precision, precision**-0.5


def test_missing_observations_are_left_out_and_counted():
    fit = probdl.infer(normal, Y, method=NUTS, seed=1, missing="mask")
    mean, sd = posterior_of(KEPT)
    assert fit.stats["engine"] == "native"
    draws = fit.draws["mean"]
    assert draws.mean() == pytest.approx(mean, abs=5 * sd / 400**0.5)
    assert draws.std() == pytest.approx(sd, rel=0.15)
    (finding,) = [f for f in fit.diagnose() if f.check == "missing"]
    assert "12 of 60" in finding.message
    np.testing.assert_array_equal(fit.idata.observed_data["y"], KEPT)
    assert fit.loo().n_data_points == 48
    assert fit.log_predictive().count == 48
    assert fit.predict()["y"].shape == (2, 500, 60)
    assert fit.log_predictive(np.array([1.0, np.nan])).count == 1


@pytest.mark.parametrize("method", ["map", "laplace", "svi", "pathfinder", "importance"])
def test_every_method_leaves_them_out(method):
    fit = probdl.infer(normal, pd.Series(Y), method=method, seed=1, missing="mask")
    mean, sd = posterior_of(KEPT)
    assert fit.draws["mean"].mean() == pytest.approx(mean, abs=0.25 * sd)


def test_nullable_columns_of_pandas():
    column = pd.Series(np.where(np.isnan(Y), None, Y)).astype("Float64")
    fit = probdl.infer(normal, column, method="laplace", seed=1, missing="mask")
    assert fit.whole.sites["y"].count == 48


def test_elements_of_vectors():
    y = FULL.reshape(20, 3).copy()
    y[np.arange(20), np.arange(20) % 3] = np.nan
    fit = probdl.infer(vectors, y, method="laplace", seed=1, missing="mask")
    mean, sd = posterior_of(y[~np.isnan(y)])
    assert fit.draws["mean"].mean() == pytest.approx(mean, abs=0.25 * sd)
    assert np.isnan(fit.idata.observed_data["y"]).sum() == 20


def test_events_of_a_correlated_vector():
    y = FULL.reshape(30, 2).copy()
    y[:5] = np.nan
    fit = probdl.infer(correlated, y, method="map", seed=1, missing="mask")
    np.testing.assert_allclose(fit.draws["mean"][0, 0], posterior_of(y[5:])[0], rtol=1e-4)
    y[7, 0] = np.nan
    with pytest.raises(probdl.DataError, match="NanMaskedMultivariateNormal"):
        probdl.infer(correlated, y, method="map", missing="mask")


def test_missing_values_without_the_wish_are_a_mistake():
    with pytest.raises(probdl.DataError, match=r"12 of 60 values.*missing='mask'"):
        probdl.infer(normal, Y, method="map")
    with pytest.raises(probdl.SettingError, match="missing must be"):
        probdl.infer(normal, Y, method="map", missing="drop")


def test_a_predictor_with_missing_values_is_named():
    def line(x, y):
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)

    with pytest.raises(probdl.DataError, match="Argument 'x'"):
        probdl.infer(line, np.where(np.arange(60) == 3, np.nan, FULL), Y, missing="mask")


def test_a_saved_fit_leaves_them_out_as_well(tmp_path):
    fit = probdl.infer(normal, Y, method="laplace", seed=1, missing="mask")
    loaded = probdl.load(fit.save(tmp_path / "fit"), model=normal)
    assert loaded.log_predictive().total == pytest.approx(fit.log_predictive().total)
    assert probdl.load(tmp_path / "fit", Y, model=normal).whole.sites["y"].count == 48


def test_a_saved_fit_without_its_model_says_that_it_cannot_predict_them(tmp_path):
    fit = probdl.infer(normal, Y, method="laplace", seed=1, missing="mask")
    assert np.isfinite(fit.predict()["y"]).all()
    loaded = probdl.load(fit.save(tmp_path / "fit"))
    with pytest.warns(UserWarning, match=r"12 elements of 'y'.*model="):
        predicted = loaded.predictions()["y"]
    np.testing.assert_array_equal(np.isnan(predicted).any(("chain", "draw")), np.isnan(Y))


def test_imputed_values_are_no_observations():
    fit = probdl.infer(imputing, Y, method=NUTS, seed=1)
    mean, sd = posterior_of(KEPT)
    assert fit.draws["mean"].mean() == pytest.approx(mean, abs=5 * sd / 400**0.5)
    np.testing.assert_array_equal(np.sort(fit.idata.observed_data["y"]), np.sort(KEPT))
    elpd = fit.loo()
    assert elpd.n_data_points == 48
    assert (np.asarray(elpd.pareto_k) < 0.7).all()
    assert fit.log_predictive().count == 48


def test_minibatches_without_missing_values_at_first():
    y = torch.tensor(np.concatenate([KEPT, Y[GAPS]]))
    loader = torch.utils.data.DataLoader(y, batch_size=20)
    method = probdl.SVI(steps=2000, learning_rate=0.02)
    fit = probdl.infer(normal, loader, method=method, seed=1, missing="mask")
    assert fit.draws["mean"].mean() == pytest.approx(posterior_of(KEPT)[0], abs=0.1)


def test_missing_values_that_others_are_computed_from_are_an_error():
    def joint(x, z):
        mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        slope = pyro.sample("slope", dist.Normal(0.0, 10.0))
        with pyro.plate("rows", len(x)):
            drawn = pyro.sample("x", dist.Normal(mean, 2.0), obs=x)
            pyro.sample("z", dist.Normal(slope * drawn, 1.0), obs=z)

    with pytest.raises(probdl.DataError, match="'z' is computed from the missing values of 'x'"):
        probdl.infer(joint, Y, 2 * FULL, method="laplace", missing="mask")
    fit = probdl.infer(joint, FULL, 2 * Y, method="laplace", seed=1, missing="mask")
    assert {s.name: s.count for s in fit.whole.of("observed")} == {"x": 60, "z": 48}


@pytest.mark.parametrize("form", ["product", "where", "all"])
def test_observations_that_are_shifted_by_a_latent_value_are_observations(form):
    def shifted(y, batch):
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        changed = {
            "product": y - shift * batch,
            "where": torch.where(batch > 0, y - shift, y),
            "all": y - shift,
        }[form]
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(1.0, 1.0), obs=changed)

    fit = probdl.infer(shifted, FULL, np.arange(60) % 2, method="laplace", seed=1)
    assert fit.log_predictive().count == 60
    assert fit.idata.observed_data["y"].shape == (60,)


def test_missing_values_that_the_model_replaces_are_reported():
    def signs(y):
        rate = pyro.sample("rate", dist.Beta(1.0, 1.0))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Bernoulli(rate), obs=(y > 0).double())

    fit = probdl.infer(signs, Y, method="laplace", seed=1, missing="mask")
    (finding,) = [f for f in fit.diagnose() if f.check == "missing"]
    assert finding.severity == "warning"
    assert "no observation is left out" in finding.message


def walk(y, *, scatter=False):
    """Impute missing values of a random walk."""
    missing = torch.isnan(y)
    scale = pyro.sample("scale", dist.HalfNormal(2.0))
    with pyro.plate("gaps", int(missing.sum())):
        gap = pyro.sample("gap", dist.Normal(0.0, 5.0))
    if scatter:
        full = torch.where(missing, 0.0, y).masked_scatter(missing, gap)
    else:
        full = y.clone()
        full[missing] = gap
    with pyro.plate("time", len(y) - 1):
        pyro.sample("y", dist.Normal(full[:-1], scale), obs=full[1:])


@pytest.mark.parametrize("scatter", [False, True])
@pytest.mark.parametrize("missing", [None, "mask"])
def test_imputed_values_of_a_part_of_the_data_are_no_observations(scatter, missing):
    y = np.cumsum(np.random.default_rng(0).normal(size=60))
    y[10:20] = np.nan
    fit = probdl.infer(walk, y, scatter=scatter, missing=missing, method="laplace", seed=1)
    assert fit.stats["engine"] == "native"
    assert fit.whole.sites["y"].count == 49
    observed = np.asarray(fit.idata.observed_data["y"])
    np.testing.assert_allclose(observed, y[1:][~np.isnan(y[1:])])


def test_the_prior_predictive_takes_the_arguments_of_a_fit():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("row", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    y = np.array([1.0, np.nan])
    prior = probdl.prior_predictive(model, y, missing="mask", num_samples=5, seed=1)
    assert prior.prior_predictive["y"].shape == (1, 5, 1)  # of what was observed
    with pytest.raises(probdl.SettingError, match="missing must be 'mask' or None"):
        probdl.prior_predictive(model, y, missing="drop")


def test_the_advice_for_missing_values_that_are_no_observations_is_not_to_leave_them_out():
    def autoregression(y):
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        with pyro.plate("time", len(y) - 1):
            pyro.sample("y", dist.Normal(b * y[:-1], 1.0), obs=y[1:])

    y = np.random.default_rng(0).normal(size=20)
    y[5] = np.nan
    with pytest.raises(probdl.DataError, match="impute the missing ones by a latent site") as error:
        probdl.infer(autoregression, y, missing="mask")
    assert "missing='mask'" not in str(error.value)


def imputed(kind, y, mask):
    """Return data in which latent values ``z`` replace the missing ones, of several forms."""
    count = len(mask)
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    z = pyro.sample("z", dist.Normal(torch.zeros(count), 3.0).to_event(1))
    given = y["y"] if isinstance(y, dict) else y
    if kind == "standardised":
        known = given[~torch.isnan(given)]
        full = torch.where(torch.isnan(given), z, (given - known.mean()) / known.std())
    elif kind == "in two parts":
        full = torch.where(mask, z, torch.cat([given[:20], given[20:]]))
    elif kind == "rescaled":
        full = torch.where(mask, z, given / 1e17)
    else:
        full = torch.where(mask, z, given.double())
    with pyro.plate("row", count):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=full)


@pytest.mark.parametrize("kind", ["integers", "standardised", "in a dict", "rescaled", "plain"])
def test_imputed_values_are_no_observations_in_other_forms_of_data(kind):
    rng = np.random.default_rng(0)
    mask = np.zeros(40, bool)
    mask[[3, 10, 11, 30]] = True
    y = rng.normal(size=40)
    if kind == "integers":
        y = rng.poisson(4.0, size=40)
    elif kind == "rescaled":
        y = y * 1e17
    else:
        y[mask] = np.nan
    data = {"y": y} if kind == "in a dict" else y
    fit = probdl.infer(imputed, kind, data, mask, method="laplace", seed=1)
    assert fit.whole.sites["y"].count == 36


def test_imputed_values_of_one_of_two_arguments():
    def model(a, b):
        missing = torch.isnan(a)
        z = pyro.sample("z", dist.Normal(torch.zeros(len(a)), 3.0).to_event(1))
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        with pyro.plate("row", len(a) + len(b)):
            full = torch.cat([torch.where(missing, z, a), b])
            pyro.sample("y", dist.Normal(mu, 1.0), obs=full)

    a = np.random.default_rng(0).normal(size=20)
    b = np.random.default_rng(1).normal(size=20)
    a[:4] = np.nan
    fit = probdl.infer(model, a, b, method="laplace", seed=1)
    assert fit.whole.sites["y"].count == 36


def test_as_many_gaps_as_groups_are_no_reason_to_draw_the_groups_anew():
    """Twelve missing months are not the effects of the twelve seasons."""

    def seasonal(month, y=None):
        with pyro.plate("season", 12):
            effect = pyro.sample("effect", dist.Normal(0.0, 50.0))
        with pyro.plate("date", len(month)):
            pyro.sample("y", dist.Normal(effect[month], 0.5), obs=y)

    month = np.arange(48) % 12
    y = 10 + 0.5 * np.random.default_rng(0).normal(size=48)
    y[:12] = np.nan
    fit = probdl.infer(seasonal, month, y, method="laplace", missing="mask", seed=1)
    assert "latent site" not in str(fit.diagnose())
    predicted = fit.predict(np.array([3, 4, 11]))["y"]
    assert abs(predicted.mean((0, 1)) - y[12:].reshape(3, 12)[:, [3, 4, 11]].mean(0)).max() < 0.1
    assert predicted.std((0, 1)).max() < 0.8  # sqrt(0.5**2 + 0.5**2 / 3) = 0.58


def test_gaps_whose_places_are_known_outside_of_the_model_are_imputed():
    x = np.random.default_rng(0).normal(size=30)
    x[[3, 7]] = np.nan
    places = torch.tensor([3, 7])

    def model(x):
        with pyro.plate("gaps", 2):
            gap = pyro.sample("gap", dist.Normal(0.0, 1.0))
        full = torch.where(torch.isnan(x), torch.zeros(()), x).index_put((places,), gap)
        loc = pyro.sample("loc", dist.Normal(0.0, 5.0))
        with pyro.plate("row", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=full)

    fit = probdl.infer(model, x, method="laplace", missing="mask", seed=1)
    assert "A latent site takes their place" in str(fit.diagnose())


def test_a_site_whose_values_are_all_missing_is_left_out():
    """Each step of a loop is a site, so a missing one is missing as a whole."""

    def loop(y):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        for t in range(len(y)):
            pyro.sample(f"y_{t}", dist.Normal(m, 1.0), obs=y[t])

    y = np.array([1.0, np.nan, 2.0, np.nan])
    fit = probdl.infer(loop, y, method="laplace", missing="mask", seed=1)
    assert fit.draws["m"].mean() == pytest.approx(1.0, abs=4 * 0.58 / 1000**0.5)  # 3 / (1 + 2)
    assert fit.log_predictive().count == 2
    (finding,) = [f for f in fit.diagnose() if f.check == "missing"]
    assert "2 of 2 observed values of 'y_1', 'y_3'" in finding.message


def test_data_that_are_all_missing_are_a_warning():
    def model(y):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("row", len(y)):
            pyro.sample("y", dist.Normal(m, 1.0), obs=y)

    with pytest.warns(probdl.FindingWarning, match="All observed values are missing"):
        probdl.infer(model, np.full(3, np.nan), method="laplace", missing="mask", seed=1)


def test_nan_in_a_predictor_is_named_where_a_deterministic_site_uses_it():
    def model(x, y=None):
        a = pyro.sample("a", dist.Normal(0.0, 5.0))
        with pyro.plate("row", len(x)):
            mean = pyro.deterministic("mean", a * x)
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    x, y = np.array([0.0, 1.0, np.nan]), np.array([1.0, np.nan, 2.0])
    with pytest.raises(probdl.DataError, match="'x'"):
        probdl.infer(model, x, y, method="laplace", missing="mask", seed=1)
