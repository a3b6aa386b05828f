"""Categories at other arguments, their order, and the classes of observed sites."""

import warnings

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import probdl
from probdl.errors import DataError, FindingWarning
from probdl.models import logistic_regression

COUNTIES = ["Aa", "Ab", "Ac", "Ad"]


def by_county(county, u, y=None):
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    with pyro.plate("county", len(u)):
        a = pyro.sample("a", dist.Normal(b * u, 0.1))
    with pyro.plate("row", len(county)):
        pyro.sample("y", dist.Normal(a[county], 0.5), obs=y)


def slope(floor, y=None):
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    with pyro.plate("row", len(floor)):
        pyro.deterministic("mu", b * floor)
        pyro.sample("y", dist.Normal(b * floor, 0.5), obs=y)


def ordinal(x, y=None):
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    with pyro.plate("row", len(x)):
        pyro.sample("y", dist.OrderedLogistic(b * x, torch.tensor([-1.0, 0.0, 1.0])), obs=y)


def fitted(model, *data, **settings):
    return probdl.infer(model, *data, method="laplace", seed=1, progress=False, **settings)


@pytest.fixture(scope="module")
def of_counties():
    u = np.array([-1.0, 0.0, 1.0, 2.0])
    codes = np.tile(np.arange(4), 10)
    y = 2 * u[codes] + np.random.default_rng(0).normal(size=40) * 0.5
    return fitted(by_county, np.array(COUNTIES)[codes], u, y)


def severities(fit, check):
    return [f.severity for f in fit.diagnose() if f.check == check]


@pytest.mark.filterwarnings("ignore")
def test_a_new_category_whose_code_would_be_a_number_is_refused():
    fit = fitted(slope, ["basement", "first"] * 10, np.tile([0.0, -1.0], 10))
    with pytest.raises(DataError, match="new category 'attic', but the model uses the codes"):
        fit.predict(["basement", "attic"])
    assert fit.predict(["first", "basement"])["mu"].shape[-1] == 2


def test_values_by_category_must_follow_the_order_of_the_codes(of_counties):
    u = np.array([-1.0, 5.0, 0.0, 1.0, 2.0])
    listed = ["Aa", "New", "Ab", "Ac", "Ad"]
    with pytest.raises(DataError, match=r"'u' has a value for each category of 'county'.*'New'"):
        of_counties.predict(pd.Categorical(["New", "Ab"], categories=listed), u)
    order = [0, 2, 3, 4, 1]
    after = pd.Categorical(["New", "Ab"], categories=[*COUNTIES, "New"])
    mean = of_counties.predict(after, u[order])["y"].mean((0, 1))
    np.testing.assert_allclose(mean, [10.0, 0.0], atol=0.6)


def test_categories_without_rows_keep_their_place(of_counties):
    u = np.array([-1.0, 0.0, 1.0, 2.0, 4.0, 5.0])
    after = pd.Categorical(["Y", "Ab"], categories=[*COUNTIES, "X", "Y"])
    mean = of_counties.predict(after, u)["y"].mean((0, 1))
    np.testing.assert_allclose(mean, [10.0, 0.0], atol=0.6)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("texts", [["u", "v"], np.array(["u", "v"]), pd.Categorical(["u", "v"])])
def test_texts_in_the_place_of_numbers_are_refused(texts):
    fit = fitted(slope, np.array([0.0, 1.0] * 10), np.tile([0.0, -1.0], 10))
    with pytest.raises(DataError, match=r"'floor' of the model holds categories .* holds numbers"):
        fit.predict(texts)


def test_numbers_in_the_place_of_texts_are_reported(of_counties):
    u = np.array([-1.0, 0.0, 1.0, 2.0])
    with pytest.warns(UserWarning, match="has the categories 'Aa', 'Ab', 'Ac', … in the fit"):
        of_counties.predict(np.array([0, 1]), u)


def test_a_series_by_category_in_another_order_is_reported():
    u = pd.Series([2.0, -1.0, 0.0, 1.0], index=["Ad", "Aa", "Ab", "Ac"])
    message = "'u' is a Series by the categories of 'county'.*at position 0 it has 'Ad'.*'Aa'"
    with pytest.raises(DataError, match=message):
        fitted(by_county, np.tile(COUNTIES, 5), u, np.zeros(20))
    fitted(by_county, np.tile(COUNTIES, 5), u.loc[["Aa", "Ab", "Ac", "Ad"]], np.zeros(20))


def test_labels_in_another_order_than_the_codes_are_reported():
    def model(kind, y):
        with pyro.plate("group", 4):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(a[kind.sum() * 0], 1.0).expand(y.shape).to_event(1), obs=y)

    with pytest.warns(UserWarning, match="in another order than their codes"):
        fitted(model, np.tile(COUNTIES, 5), np.zeros(20), coords={"group": COUNTIES[::-1]})


def test_texts_of_ordered_classes_are_reported_unless_they_have_an_order():
    texts = np.tile(["poor", "fair", "good", "great"], 10)
    x = np.linspace(-1, 1, 40)
    with pytest.warns(FindingWarning, match="fair < good < great < poor"):
        fit = fitted(ordinal, x, texts)
    assert severities(fit, "categories") == ["warning"]
    order = ["poor", "fair", "good", "great"]
    fit = fitted(ordinal, x, pd.Categorical(texts, categories=order, ordered=True))
    assert severities(fit, "categories") == []
    assert fit.classes == {"y": order}


def test_classes_of_codes_are_the_values_of_the_distribution():
    fit = fitted(ordinal, np.linspace(-1, 1, 40), np.tile([0, 1, 2, 3], 10))
    assert fit.classes == {"y": [0, 1, 2, 3]}


def test_categories_of_which_only_the_number_is_used_are_no_finding():
    def pooled(county, y=None):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("row", len(county)):
            pyro.sample("y", dist.Normal(m, 1.0), obs=y)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit = fitted(pooled, np.tile(COUNTIES, 5), np.zeros(20))
    assert severities(fit, "categories") == []
    assert fit.predict(["Aa", "New"])["y"].shape[-1] == 2


@pytest.mark.filterwarnings("ignore")
def test_labels_of_groups_that_predictions_do_not_have():
    def model(school, count, y=None):
        with pyro.plate("schools", count):
            a = pyro.sample("a", dist.Normal(0.0, 3.0))
        with pyro.plate("row", len(school)):
            pyro.sample("y", dist.Normal(a[school], 0.5), obs=y)

    codes = np.tile(np.arange(4), 10)
    fit = fitted(model, codes, 4, 2.0 * codes, coords={"schools": list("abcd")})
    found = fit.predictions(np.array([0, 1]), 2, coords={"schools": ["d", "a"]})
    np.testing.assert_allclose(found["y"].mean(("chain", "draw")), [6.0, 0.0], atol=0.5)


def imputed(x, y=None):
    missing = torch.isnan(x)
    with pyro.plate("gap", int(missing.sum())):
        gaps = pyro.sample("gaps", dist.Normal(0.0, 1.0))
    x = torch.where(missing, torch.zeros(()), x).masked_scatter(missing, gaps)
    b = pyro.sample("b", dist.Normal(0.0, 1.0))
    with pyro.plate("row", len(x)):
        pyro.sample("y", dist.Normal(b * x, 1.0), obs=y)


def test_imputed_values_are_not_reported_as_replaced():
    x = np.random.default_rng(0).normal(size=30)
    y = x + 0.1
    x[:5] = np.nan
    fit = fitted(imputed, x, y, missing="mask")
    assert severities(fit, "missing") == []


def test_imputed_values_are_not_those_of_other_rows():
    x = np.random.default_rng(0).normal(size=60)
    y = 3 * x + np.random.default_rng(1).normal(size=60)
    x[:5] = np.nan
    fit = fitted(imputed, x, y)
    other = np.zeros(12)
    other[:5] = np.nan
    draws = fit.predict(other)["y"][..., :5]
    error = 5 * draws.std() / np.sqrt(draws.shape[1])  # five standard errors
    np.testing.assert_allclose(draws.mean((0, 1)), 0.0, atol=error)
    more = np.concatenate([x, [0.0]])
    kept = fit.predict(more)["y"][..., :5].mean((0, 1))
    np.testing.assert_allclose(kept, fit.predict()["y"][..., :5].mean((0, 1)), atol=error)


def test_containers_say_what_the_codes_of_classes_mean(tmp_path):
    x, y = np.linspace(-2, 2, 40)[:, None], np.repeat(["not sure", "yes"], 20)
    fit = probdl.infer(logistic_regression, x, y, method="laplace", seed=1)
    fit.save(tmp_path / "fit")
    loaded = probdl.load(tmp_path / "fit")
    for variable in (
        fit.predictions(x[:3])["y"],
        fit.idata["posterior_predictive"]["y"],
        loaded.idata["observed_data"]["y"],
    ):
        assert variable.attrs["flag_values"].tolist() == [0, 1]
        assert variable.attrs["flag_meanings"] == "not_sure yes"
    codes = probdl.infer(logistic_regression, x, np.repeat([0, 1], 20), method="laplace", seed=1)
    assert "flag_values" not in codes.predictions(x[:3])["y"].attrs


def test_a_class_that_the_distribution_lacks_is_named():
    x, y = np.linspace(-2, 2, 40)[:, None], np.repeat(["no", "yes"], 20)
    fit = probdl.infer(logistic_regression, x, y, method="laplace", seed=1)
    with pytest.raises(DataError, match=r"= 2.0, the code of 'maybe'\).*'no', 'yes', 'maybe'\."):
        fit.log_predictive(x[:2], ["maybe", "no"])
    with pytest.raises(DataError, match="the code of 'yes'"):
        probdl.infer(logistic_regression, x, np.resize(["maybe", "no", "yes"], 40), seed=1)


def random_walk(n, y=None):
    time = pyro.plate("time", n)
    with time:
        step = pyro.sample("step", dist.Normal(0.0, 1.0))
    with time:
        pyro.sample("y", dist.Normal(step.cumsum(-1), 0.3), obs=y)


@pytest.fixture(scope="module")
def walk():
    """A fit of a random walk whose steps have dates as labels."""
    y = np.random.default_rng(0).normal(size=20).cumsum() + 10
    days = pd.date_range("2020-01-01", periods=24, freq="MS")
    fit = probdl.infer(random_walk, 20, y, method="laplace", coords={"time": days[:20]}, seed=1)
    return fit, y, days


SPELLINGS = {
    "the same": lambda days: days,
    "seconds": lambda days: days.as_unit("s"),
    "nanoseconds": lambda days: days.as_unit("ns"),
    "months": lambda days: days.values.astype("datetime64[M]"),
    "days": lambda days: days.values.astype("datetime64[D]"),
    "timestamps": list,
    "dates of Python": lambda days: [day.date() for day in days],
    "times of Python": lambda days: [day.to_pydatetime() for day in days],
    "texts": lambda days: [f"{day:%Y-%m-%d}" for day in days],
    "texts of timestamps": lambda days: [str(day) for day in days],
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("loaded", [False, True])
def test_dates_are_the_same_in_every_spelling(walk, spelling, loaded, tmp_path):
    fit, y, days = walk
    if loaded:
        fit.save(tmp_path / "fit")
        fit = probdl.load(tmp_path / "fit", model=random_walk)
    predicted = fit.predict(24, coords={"time": SPELLINGS[spelling](days)})["y"]
    assert abs(predicted[..., 4:20].mean((0, 1)) - y[4:]).max() < 0.5
    assert fit.predictions(24, coords={"time": SPELLINGS[spelling](days)}).sizes["time"] == 24


@pytest.mark.parametrize("spelling", [s for s in SPELLINGS if "texts" not in s])
def test_a_fit_takes_dates_in_every_spelling(walk, spelling, tmp_path):
    _, y, days = walk
    labels = SPELLINGS[spelling](days)
    fit = probdl.infer(random_walk, 20, y, method="laplace", coords={"time": labels[:20]}, seed=1)
    fit.save(tmp_path / "fit")
    again = probdl.load(tmp_path / "fit", model=random_walk)
    assert [*again.summary().index] == [*fit.summary().index]
    for each in (fit, again):
        predicted = each.predict(24, coords={"time": days})["y"]
        assert abs(predicted[..., 4:20].mean((0, 1)) - y[4:]).max() < 0.5
    assert fit.idata["posterior"]["step"].sel(time="2020-03-01").shape == (1, 1000)


def test_labels_of_another_kind_are_reported(walk):
    fit, y, _ = walk
    with pytest.raises(probdl.SettingError, match="cannot be read as dates"):
        fit.predict(2, coords={"time": ["a", "b"]})
    numbered = probdl.infer(
        random_walk, 20, y, method="laplace", coords={"time": range(20)}, seed=1
    )
    with pytest.warns(UserWarning, match="of another type, such as '0'"):
        numbered.predict(20, coords={"time": [str(i) for i in range(20)]})


def test_a_time_zone_is_refused():
    days = pd.date_range("2020-01-01", periods=3, tz="Europe/Rome")
    with pytest.raises(probdl.SettingError, match="without a time zone"):
        probdl.infer(random_walk, 3, np.zeros(3), coords={"time": days}, seed=1)


def test_images_have_no_classes():
    x = (torch.rand(40, 4, 4, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    vae = probdl.models.VAE.mlp((4, 4), latent_dim=2, hidden=8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FindingWarning)
        fit = probdl.infer(vae, x, method=probdl.SVI(steps=50), seed=1)
    assert fit.classes == {}
    with pytest.raises(probdl.ModelError, match="each row has several values"):
        fit.predict_proba(x[:3])


def test_classes_without_rows_have_numbers_and_new_ones_are_an_error():
    """Four classes in the distribution, three in the data: a new text must not use the fourth."""

    def net(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2, 4]).to_event(2))
        with pyro.plate("row", len(x)):
            pyro.sample("y", dist.Categorical(logits=x @ w), obs=y)

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 2)), np.array(["a", "c", "d"])[rng.integers(0, 3, 60)]
    with pytest.warns(probdl.FindingWarning, match="classes 3 have no name"):
        fit = probdl.infer(net, x, y, method="laplace", seed=1)
    assert fit.classes == {"y": ["a", "c", "d", 3]}
    assert fit.predict_proba(x[:5])["y"].shape == (5, 4)
    with pytest.raises(probdl.DataError, match="the class 'b'"):
        fit.log_predictive(x[:2], np.array(["a", "b"]))
    assert fit.predict(x[:2], np.array(["a", "b"]))["y"].shape == (1, 1000, 2)  # drawn anyway


def test_probabilities_of_classes_are_of_all_rows_of_a_loader():
    def net(x, y=None):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2, 3]).to_event(2))
        with pyro.plate("row", len(x)):
            pyro.sample("y", dist.Categorical(logits=x @ w), obs=y)

    rng = np.random.default_rng(0)
    x, y = torch.tensor(rng.normal(size=(25, 2))), torch.tensor(rng.integers(0, 3, 25))
    loader = DataLoader(TensorDataset(x, y), batch_size=10, shuffle=True)
    fit = probdl.infer(net, loader, method=probdl.SVI(epochs=20, draws=50), seed=1)
    np.testing.assert_allclose(fit.predict_proba()["y"], fit.predict_proba(x)["y"])


def test_probabilities_of_classes_beside_an_observed_number():
    def both(x, y=None, w=None):
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        with pyro.plate("row", len(x)):
            pyro.sample("w", dist.Normal(slope * x, 1.0), obs=w)
            pyro.sample("y", dist.Bernoulli(logits=slope * x), obs=y)

    x = np.linspace(-1, 1, 20)
    fit = probdl.infer(both, x, np.repeat([0.0, 1.0], 10), x, method="laplace", seed=1)
    found = fit.predict_proba(x[:3])
    slope = fit.draws["slope"][0, :, None]
    np.testing.assert_allclose(found["y"][:, 1], (1 / (1 + np.exp(-slope * x[:3]))).mean(0))
    assert list(found) == ["y"]


def of_persons(person, home, y=None):
    """``home`` has the region of each person, in the order of their codes."""
    with pyro.plate("region", int(home.max()) + 1):
        level = pyro.sample("level", dist.Normal(0.0, 5.0))
    with pyro.plate("person", int(person.max()) + 1):
        own = pyro.sample("own", dist.Normal(level[home][: int(person.max()) + 1], 0.1))
    with pyro.plate("row", len(person)):
        pyro.sample("y", dist.Normal(own[person], 0.1), obs=y)


@pytest.fixture(scope="module")
def persons():
    person = np.repeat(["Ann", "Bob", "Cleo"], 10)
    y = np.repeat([1.0, 2.0, 1.0], 10) + 0.1 * np.random.default_rng(0).normal(size=30)
    return probdl.infer(of_persons, person, ["N", "S", "N"], y, method="laplace", seed=1)


def test_values_of_new_categories_in_another_order_than_the_rows_are_reported(persons):
    homes = ["N", "S", "N", "N", "S"]
    with pytest.warns(UserWarning, match="in the order of their codes, 'Abe', 'Zed'"):
        found = persons.predict(["Zed", "Abe"], homes)["y"].mean((0, 1))
    np.testing.assert_allclose(found, [2, 1], atol=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = persons.predict(["Abe", "Zed"], homes)["y"].mean((0, 1))
        np.testing.assert_allclose(found, [1, 2], atol=0.1)
        ordered = pd.Categorical(["Zed"], categories=["Ann", "Bob", "Cleo", "Zed"])
        np.testing.assert_allclose(
            persons.predict(ordered, homes[:3] + ["S"])["y"].mean(), 2, atol=0.1
        )


def test_a_part_of_the_categories_has_no_other_order(persons):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = persons.predict(pd.Categorical(["Bob"]), ["N", "S", "N"])["y"].mean()
    assert found == pytest.approx(2, abs=0.1)


def test_probabilities_of_classes_do_not_warn_of_joint_scores():
    def model(x, y=None):
        w = pyro.sample("w", dist.Normal(torch.zeros(8, 3), 1.0).to_event(2))
        with pyro.plate("row", len(x)):
            pyro.sample("y", dist.Categorical(logits=x @ w), obs=y)

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(200, 8)), rng.integers(3, size=200)
    fit = probdl.infer(model, x[:20], y[:20], method="laplace", seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit.predict_proba(x[20:])


def test_values_for_the_new_groups_only_are_refused_with_the_order_that_is_needed():
    def model(school, size, y=None):
        effect = pyro.sample("effect", dist.Normal(0.0, 1.0))
        sigma = pyro.sample("sigma", dist.LogNormal(0.0, 1.0))
        with pyro.plate("row", len(school)):
            pyro.sample("y", dist.Normal(effect * size[school], sigma), obs=y)

    rng = np.random.default_rng(0)
    names = np.array(["Ash", "Elm", "Oak", "Yew"])
    fit = probdl.infer(
        model, np.repeat(names, 5), rng.normal(size=4), rng.normal(size=20), method="map", seed=1
    )
    with pytest.raises(probdl.ModelError) as caught:
        fit.predictions(["Ash", "New"], np.array([0.1, 0.2]))
    assert "codes from 0, in this order: 'Ash', 'Elm', 'Oak', 'Yew', 'New' (5)" in str(caught.value)
    assert "An argument with a value for each of them has them in this order." in str(caught.value)
