"""Names of dimensions, labels along them, and the forms in which data come."""

import warnings

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch

import probdl
from probdl.io import idata as containers

LAPLACE = probdl.Laplace(draws=200)
TOWNS = np.array(list("abcd"))[np.arange(40) % 4]
TABLE = pd.DataFrame(np.random.default_rng(0).normal(size=(40, 2)), columns=["age", "size"])
Y = np.random.default_rng(1).normal(size=40) + 3 * (TOWNS == "c")


def towns(town, x, y=None):
    slope = pyro.sample("slope", dist.Normal(torch.zeros(x.shape[1]), 1.0).to_event(1))
    with pyro.plate("town", int(town.max()) + 1):
        level = pyro.sample("level", dist.Normal(0.0, 2.0))
    with pyro.plate("rows", len(town)):
        pyro.sample("y", dist.Normal(level[town] + x @ slope, 1.0), obs=y)


def autoregression(y):
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("year", len(y) - 1):
        pyro.sample("y", dist.Normal(slope * y[:-1], 1.0), obs=y[1:])


def line(x, y=None):
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)


@pytest.fixture(scope="module")
def fit():
    return probdl.infer(towns, town=TOWNS, x=TABLE, y=pd.Series(Y), method=LAPLACE, seed=1)


def test_a_plate_keeps_a_name_that_is_also_an_argument(fit):
    assert fit["level"].dims == ("chain", "draw", "town")
    data = fit.idata.constant_data
    assert data["town_data"].dims == ("rows",)
    assert [*fit.summary("level").index] == ["level[a]", "level[b]", "level[c]", "level[d]"]


def test_the_plate_of_an_autoregression_is_labelled():
    years = [2001, 2002, 2003, 2004]
    fit = probdl.infer(
        autoregression, np.arange(5.0), method="laplace", seed=1, coords={"year": years}
    )
    assert fit.idata.observed_data["y"].coords["year"].values.tolist() == years
    assert fit.idata.constant_data["y"].shape == (5,)
    assert "year" not in fit.idata.constant_data["y"].dims


def test_columns_of_a_table_label_what_grows_with_it(fit):
    assert [*fit.summary("slope").index] == ["slope[age]", "slope[size]"]
    assert fit.idata.constant_data["x"].dims == ("rows", "x_column")


def test_categories_keep_their_codes_at_new_arguments(fit):
    codes = fit.predict(np.array([2, 0]), TABLE.to_numpy()[:2])["y"]
    texts = fit.predict(["c", "a"], TABLE[["size", "age"]].head(2))["y"]
    categorical = fit.predict(pd.Categorical(["c", "a"]), TABLE.head(2))["y"]
    np.testing.assert_array_equal(texts, codes)
    np.testing.assert_array_equal(categorical, codes)


def test_a_new_category_is_a_new_group(fit):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y = fit.predict(["c", "z"], TABLE.head(2))["y"]
    assert y[..., 1].std() == pytest.approx(5**0.5, rel=0.2)  # of N(0, 2^2) and the noise
    assert y[..., 0].std() < 1.5


def test_categories_survive_saving(fit, tmp_path):
    loaded = probdl.load(fit.save(tmp_path / "fit"), model=towns)
    expected = fit.predict(["d", "a"], TABLE.head(2))["y"]
    np.testing.assert_array_equal(loaded.predict(["d", "a"], TABLE.head(2))["y"], expected)
    again = probdl.load(tmp_path / "fit", town=TOWNS, x=TABLE, y=pd.Series(Y), model=towns)
    np.testing.assert_array_equal(again.predict(["d", "a"], TABLE.head(2))["y"], expected)


def test_labels_are_not_given_to_a_plate_that_merely_has_their_number():
    def model(town, y):
        with pyro.plate("treatment", 4):
            effect = pyro.sample("effect", dist.Normal(0.0, 1.0))
        with pyro.plate("town", int(town.max()) + 1):
            level = pyro.sample("level", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(town)):
            pyro.sample("y", dist.Normal(level[town] + effect[0], 1.0), obs=y)

    fit = probdl.infer(model, TOWNS, Y, method=LAPLACE, seed=1)
    assert [*fit.coords] == ["town"]
    assert fit.summary("effect").index[0] == "effect[0]"


def test_a_number_of_groups_among_the_arguments_grows_with_them():
    def model(count, town, y):
        with pyro.plate("places", count):
            level = pyro.sample("level", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(town)):
            pyro.sample("y", dist.Normal(level[town], 1.0), obs=y)

    assert probdl.infer(model, 4, TOWNS, Y, method=LAPLACE, seed=1).coords["places"] == [*"abcd"]


def test_lists_are_arrays_unless_the_model_takes_lists():
    def layers(x, widths, y):
        assert isinstance(widths, list)
        line(x, y)

    expected = probdl.infer(line, np.arange(3.0), np.ones(3), method="map", seed=1)
    fit = probdl.infer(line, [0, 1, 2], [1.0, 1.0, 1.0], method="map", seed=1)
    assert fit.draws["slope"] == pytest.approx(expected.draws["slope"])
    assert fit.predict([1.0, 2.0])["y"].shape == (1, 1, 2)
    by_layers = probdl.infer(layers, np.arange(3.0), [3, 4], np.ones(3), method="map", seed=1)
    assert by_layers.draws["slope"] == pytest.approx(expected.draws["slope"])


def test_a_table_stays_a_table_for_a_model_that_reads_it():
    def model(table):
        line(torch.tensor(table["age"].to_numpy()), torch.tensor(table["size"].to_numpy()))

    fit = probdl.infer(model, TABLE, method="map", seed=1)
    assert fit.structure.sites["y"].count == 40


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": TABLE.assign(name="x")}, "column 'name' has dtype"),
        ({"town": np.where(TOWNS == "a", None, TOWNS)}, "10 of 40 categories are missing"),
        ({"coords": {"towns": [*"abcd"]}}, "no dimension of the model; did you mean 'town'"),
        ({"coords": {"town": [*"abca"]}}, "label 'a' more than once"),
        ({"dims": {"y": ["level"]}}, "a site of the model"),
        ({"random_seed": 1}, "Here it is seed="),
        ({"cores": 4}, "share the cores"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_what_cannot_be_labelled_is_an_error_before_the_work(change, message):
    arguments = {"town": TOWNS, "x": TABLE, "y": Y, "method": LAPLACE} | change
    with pytest.raises(probdl.ProbdlError, match=message):
        probdl.infer(towns, **arguments)


def test_a_table_without_a_column_of_the_fit(fit):
    with pytest.raises(probdl.DataError, match="without the column 'age'"):
        fit.predict(["a"], TABLE[["size"]].head(1))


def test_labels_that_arviz_cannot_store_do_not_lose_the_draws():
    with pytest.warns(probdl.FindingWarning, match="left out"):
        found = containers.to_idata(
            {"posterior": {"a": np.zeros((1, 5, 2))}}, dims={"a": ["k"]}, coords={"k": [1, 2, 3]}
        )
    assert found.posterior["a"].shape == (1, 5, 2)


def test_the_summary_has_the_same_columns_under_both_versions_of_arviz(fit):
    moments = ["mean", "sd", "eti89_lb", "eti89_ub"]
    checks = ["ess_bulk", "ess_tail", "r_hat", "mcse_mean", "mcse_sd"]
    assert [*fit.summary().columns] == moments  # of independent draws
    assert [*fit.summary(kind="all").columns] == moments + checks
    assert [*fit.summary(hdi_prob=0.9).columns[2:4]] == ["hdi90_lb", "hdi90_ub"]
    assert [*fit.summary(ci_kind="hdi", kind="stats", ci_prob=0.5).columns[2:]] == [
        "hdi50_lb",
        "hdi50_ub",
    ]
    assert [*fit.summary(kind="stats_median").columns] == ["median", "mad", *moments[2:]]
    low, high = np.quantile(fit.draws["slope"][..., 0], [0.055, 0.945])
    row = fit.summary("slope", round_to="none").iloc[0]
    assert (row["eti89_lb"], row["eti89_ub"]) == pytest.approx((low, high), abs=1e-9)


def test_sites_of_a_summary_are_checked(fit):
    with pytest.raises(probdl.SettingError, match="no site 'slop': did you mean 'slope'"):
        fit.summary(["slop"])
    assert {name[:5] for name in fit.summary("~level").index} == {"slope"}
    point = probdl.infer(towns, TOWNS, TABLE, Y, method="map", seed=1)
    assert [*point.summary("slope").index] == ["slope[age]", "slope[size]"]


def test_draws_of_a_site_are_at_hand(fit):
    np.testing.assert_array_equal(fit["slope"].values, fit.draws["slope"])
    assert [*fit] == [*fit.posterior.data_vars] == ["slope", "level"]
    with pytest.raises(KeyError, match="did you mean 'slope'"):
        fit["slop"]
    with pytest.raises(AttributeError, match=r"fit\.idata\.observed_data"):
        getattr(fit, "observed_data")  # noqa: B009


def test_compare_explains_that_it_takes_fits(fit):
    with pytest.raises(probdl.SettingError, match=r"Pass the fit instead of fit\.idata"):
        probdl.compare({"a": fit.idata, "b": fit})
