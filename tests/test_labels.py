"""Names of dimensions, labels along them, and the forms in which data come."""

import datetime
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


def teams(home, away, y=None):
    with pyro.plate("team", max(int(home.max()), int(away.max())) + 1):
        strength = pyro.sample("strength", dist.Normal(0.0, 10.0))
    with pyro.plate("rows", len(home)):
        pyro.sample("y", dist.Normal(strength[home] - strength[away], 1.0), obs=y)


def test_arguments_that_index_one_plate_share_their_codes(tmp_path):
    home, away = np.array([*"ABAB"] * 5), np.array([*"BCCA"] * 5)
    strength = {"A": 4.0, "B": 1.0, "C": -5.0}
    y = np.array([strength[h] - strength[a] for h, a in zip(home, away, strict=True)])
    fit = probdl.infer(teams, home, away, y, method="laplace", seed=1)
    assert fit.coords["team"] == ["A", "B", "C"]
    assert not [f for f in fit.diagnose() if f.check == "categories"]
    mean = fit["strength"].mean(("chain", "draw"))
    assert float(mean.sel(team="A") - mean.sel(team="C")) == pytest.approx(9.0, abs=0.5)
    loaded = probdl.load(fit.save(tmp_path / "fit"), model=teams)
    for each in (fit, loaded):
        new = each.predict(["D"], ["E"])["y"]  # two other teams
        assert new.std() == pytest.approx(201**0.5, rel=0.1)


def test_labels_in_another_order_than_the_categories_are_an_error():
    other = {"town": ["d", "c", "b", "a"]}
    with pytest.raises(probdl.SettingError, match="are not the labels of the categories"):
        probdl.infer(towns, TOWNS, TABLE, Y, method=LAPLACE, coords=other)
    ordered = pd.Categorical(TOWNS, categories=other["town"])
    fit = probdl.infer(towns, ordered, TABLE, Y, method=LAPLACE, seed=1)
    assert fit.coords["town"] == other["town"]
    assert float(fit["level"].sel(town="c").mean()) > 2
    with pytest.raises(probdl.SettingError, match="are not the labels of the categories"):
        fit.predict(["a", "d"], TABLE.head(2), coords={"town": ["a", "b", "c", "d"]})


def test_categories_that_are_numbers_stay_labels():
    stores, y = np.repeat([3, 5, 8], 20), np.repeat([-5.0, 0.0, 5.0], 20)

    def model(store, y=None):
        with pyro.plate("store", int(store.max()) + 1):
            level = pyro.sample("level", dist.Normal(0.0, 10.0))
        with pyro.plate("rows", len(store)):
            pyro.sample("y", dist.Normal(level[store], 1.0), obs=y)

    fit = probdl.infer(model, pd.Categorical(stores), y, method=LAPLACE, seed=1)
    for new in ([8, 3], pd.Series([8, 3]), np.array([8, 3]), pd.Categorical([8, 3])):
        assert fit.predict(new)["y"].mean((0, 1)) == pytest.approx([5.0, -5.0], abs=0.5)
    days = pd.to_datetime(["2020-01-01", "2020-01-02", "2020-01-03"])
    dated = probdl.infer(
        model, pd.Categorical(days[np.arange(60) // 20]), y, method=LAPLACE, seed=1
    )
    assert dated.predict(["2020-01-03"])["y"].mean() == pytest.approx(5.0, abs=0.5)
    mixed = probdl.infer(model, np.array([*"a23"])[np.arange(60) // 20], y, method=LAPLACE, seed=1)
    assert mixed.predict(["2", "3"])["y"].shape == (1, 200, 2)


def test_rows_with_a_name_each_are_labelled_by_it():
    def model(school, y):
        with pyro.plate("school", len(school)):
            level = pyro.sample("level", dist.Normal(0.0, 10.0))
            pyro.sample("y", dist.Normal(level, 1.0), obs=y)

    names, y = np.array(["z", "m", "a"]), np.array([0.0, 5.0, 9.0])
    fit = probdl.infer(model, names, y, method=LAPLACE, seed=1)
    assert float(fit["level"].sel(school="m").mean()) == pytest.approx(5.0, abs=0.5)
    assert not [f for f in fit.diagnose() if f.check == "categories"]


def test_contrasts_of_categories_are_no_numbers():
    def model(town, y):
        base = pyro.sample("base", dist.Normal(0.0, 10.0))
        with pyro.plate("contrast", int(town.max())):
            effect = pyro.sample("effect", dist.Normal(0.0, 10.0))
        level = base + torch.cat([torch.zeros(1), effect])
        with pyro.plate("rows", len(town)):
            pyro.sample("y", dist.Normal(level[town], 1.0), obs=y)

    fit = probdl.infer(model, TOWNS, Y, method=LAPLACE, seed=1)
    assert not [f for f in fit.diagnose() if f.check == "categories"]


def test_batches_with_texts_are_refused():
    rows = [(town, y) for town, y in zip(TOWNS.tolist(), Y.tolist(), strict=True)]

    def collate(batch):
        return np.array([b[0] for b in batch]), torch.tensor([b[1] for b in batch])

    loader = torch.utils.data.DataLoader(rows, batch_size=8, collate_fn=collate)
    method = probdl.SVI(steps=10)
    with pytest.raises(probdl.DataError, match="would differ from batch to batch"):
        probdl.infer(lambda town, y: None, loader, method=method)


def test_a_list_of_observed_data_has_rows_as_an_array_has():
    def normal(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    fit = probdl.infer(normal, [1.0, 2.0, 3.0, 4.0], method="laplace", seed=1)
    assert fit.predict(num_samples=7)["y"].shape == (1, 1000, 7)


def test_columns_of_a_table_may_be_numbered():
    x = pd.DataFrame(TABLE.to_numpy())
    fit = probdl.infer(towns, TOWNS, x, Y, method=LAPLACE, seed=1)
    assert fit.predict(["a", "b"], x.head(2))["y"].shape == (1, 200, 2)
    assert [*fit.summary("slope").index] == ["slope[0]", "slope[1]"]


def test_a_point_estimate_has_no_options_of_draws():
    fit = probdl.infer(towns, TOWNS, TABLE, Y, method="map", seed=1)
    with pytest.raises(probdl.SettingError, match="is for fits with draws"):
        fit.summary(ci_prob=0.5)


# -- more than one argument or site with the same labels -------------------------------------


def forecast_by_group(g, y=None, future=None):
    with pyro.plate("group", 3):
        mean = pyro.sample("mean", dist.Normal(0.0, 20.0))
    with pyro.plate("row", len(g)):
        pyro.sample("y", dist.Normal(mean[g], 1.0), obs=y)
    if future is not None:
        with pyro.plate("ahead", len(future)):
            pyro.sample("f", dist.Normal(mean[future], 1.0))


@pytest.fixture(scope="module")
def fit_of_groups():
    rng = np.random.default_rng(0)
    g = rng.choice(["a", "b", "c"], 90)
    y = np.array([{"a": 0.0, "b": 10.0, "c": 20.0}[text] for text in g]) + rng.normal(size=90)
    return probdl.infer(forecast_by_group, g, y, method="laplace", seed=1), g


@pytest.mark.parametrize(
    "future",
    [
        pd.Series(["c", "b"]),
        ["c", "b"],
        np.array(["c", "b"]),
        pd.Categorical(["c", "b"], categories=["c", "b", "a"]),
        [2, 1],
    ],
    ids=["series", "list", "array", "categorical in another order", "codes"],
)
@pytest.mark.parametrize("loaded", [False, True])
def test_categories_that_were_not_in_the_fit_are_those_of_the_argument_that_has_them(
    fit_of_groups, future, loaded, tmp_path
):
    fit, g = fit_of_groups
    if loaded:
        fit = probdl.load(fit.save(tmp_path / "fit"), model=forecast_by_group)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Using a non-tuple sequence")
        found = fit.predictions(g, future=future)["f"].mean(("chain", "draw"))
    np.testing.assert_allclose(found, [20.0, 10.0], atol=1.0)  # 5 standard errors of the means


def test_an_index_of_a_plate_of_fixed_size_is_no_finding(fit_of_groups):
    assert not [f for f in fit_of_groups[0].diagnose() if f.check == "categories"]


def test_only_new_categories_of_an_argument_that_was_not_in_the_fit_are_refused(fit_of_groups):
    fit, g = fit_of_groups
    with pytest.raises(probdl.DataError, match=r"'future'.*had none in the fit.*'g'.*codes"):
        fit.predictions(g, future=pd.Series(["z"]))


def test_a_missing_category_in_a_list_is_named(fit_of_groups):
    fit, _ = fit_of_groups
    with pytest.raises(probdl.DataError, match="1 of 2 categories are missing"):
        fit.predictions(["a", None])


def grouped(g, y=None):
    count = int(g.max()) + 1
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("group", count):
        mean = pyro.sample("mean", dist.Normal(mu, 5.0))
    with pyro.plate("row", len(g)):
        pyro.sample("y", dist.Normal(mean[g], 1.0), obs=y)


def test_a_category_that_differs_in_case_or_spaces_only_is_reported():
    g = ["Ely", "Rye"] * 5
    fit = probdl.infer(grouped, g, np.zeros(10), method="laplace", seed=1)
    with pytest.warns(UserWarning, match="'rye ' is a new category beside 'Rye'"):
        fit.predict(["rye "])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit.predict(["Diss"])


def test_codes_of_pandas_are_indices():
    codes = pd.Series(["b", "a", "b"]).astype("category").cat.codes
    assert codes.dtype == np.int8
    fit = probdl.infer(grouped, codes, np.zeros(3), method="laplace", seed=1)
    assert fit.draws["mean"].shape[-1] == 2
    assert fit.predict(codes)["y"].shape[-1] == 3


def test_a_table_in_place_of_its_columns_is_explained():
    fit = probdl.infer(grouped, ["Ely", "Rye"] * 5, np.zeros(10), method="laplace", seed=1)
    with pytest.raises(probdl.ModelError, match=r"columns of the table by name, as in \(\*\*table"):
        fit.predict(pd.DataFrame({"g": ["Ely"]}), None, 1)


def slopes(g, y=None):
    mu = pyro.sample("mu", dist.Normal(torch.zeros(2), 10.0).to_event(1))
    with pyro.plate("group", 3):
        ab = pyro.sample("ab", dist.Normal(mu, torch.tensor([10.0, 0.1])).to_event(1))
    with pyro.plate("row", len(g)):
        pyro.sample("y", dist.Normal(ab[g, 0], 1.0), obs=y)


def test_a_summary_labels_sites_whose_dimensions_come_in_different_orders():
    g = np.repeat([0, 1, 2], 30)
    y = np.random.default_rng(0).normal(10.0 * g)
    fit = probdl.infer(
        slopes,
        g,
        y,
        method="laplace",
        seed=1,
        dims={"mu": ["coef"], "ab": ["group", "coef"]},
        coords={"coef": ["i", "s"], "group": list("abc")},
    )
    means = fit["ab"].mean(("chain", "draw"))
    for names in (None, ["mu", "ab"], "ab", "~mu"):
        table = fit.summary() if names is None else fit.summary(names)
        for group in "abc":
            for coef in "is":
                expected = float(means.sel(group=group, coef=coef))
                assert float(table.loc[f"ab[{group}, {coef}]", "mean"]) == pytest.approx(
                    expected, abs=0.02
                )
    part = fit.summary(coords={"group": ["b"], "coef": ["i"]})
    assert float(part.loc["ab[b, i]", "mean"]) == pytest.approx(10.0, abs=1.0)
    assert "ab[a, i]" not in part.index


def two_groups(g, h, y=None):
    with pyro.plate("G", int(g.max()) + 1):
        a = pyro.sample("a", dist.Normal(0.0, 3.0))
    with pyro.plate("H", int(h.max()) + 1):
        b = pyro.sample("b", dist.Normal(0.0, 3.0))
    with pyro.plate("row", len(g)):
        pyro.sample("y", dist.Normal(a[g] + b[h], 1.0), obs=y)


@pytest.mark.parametrize(
    ("h", "labels"),
    [(["p", "q", "q", "p"], ["p", "q"]), (["other", "x", "z", "x"], ["other", "x", "z"])],
    ids=["no label in common", "a label in common"],
)
def test_two_arguments_with_categories_of_separate_plates(h, labels):
    g = ["a", "b", "other", "a"]
    fit = probdl.infer(two_groups, g, h, np.arange(4.0), method="laplace", seed=1)
    assert fit.idata.posterior.coords["H"].values.tolist() == labels
    assert fit.draws["a"].shape[-1] == 3
    assert fit.predict(g, h)["y"].shape[-1] == 4


def test_other_forms_of_a_summary_keep_the_names_of_dimensions():
    if not containers.ARVIZ_1:
        pytest.skip("ArviZ 0.x has another interface")
    g = np.repeat([0, 1, 2], 3)
    dims = {"mu": ["coef"], "ab": ["group", "coef"]}
    fit = probdl.infer(slopes, g, np.zeros(9), method="laplace", seed=1, dims=dims)
    assert {"coef", "group"} <= {*fit.summary(fmt="xarray").dims}


@pytest.mark.parametrize("sorted_frame", [True, False], ids=["sorted", "filtered"])
def test_labels_that_are_a_series_are_taken_by_position(sorted_frame, tmp_path):
    """The index of a sorted or filtered frame is not that of the rows."""

    def model(x, y=None):
        a = pyro.sample("a", dist.Normal(0.0, 5.0))
        with pyro.plate("row", len(x)):
            pyro.sample("y", dist.Normal(a + x, 1.0), obs=y)

    frame = pd.DataFrame({"name": list("ABCDEF"), "x": 0.0, "y": [1, 2, np.nan, 4, 5, 6]})
    frame = frame.iloc[::-1] if sorted_frame else frame[frame["name"] != "A"]
    fit = probdl.infer(
        model,
        frame.x,
        frame.y,
        missing="mask",
        method="laplace",
        coords={"row": frame["name"]},
        seed=1,
    )
    known = frame.dropna().set_index("name")["y"]
    observed = fit.idata.observed_data["y"].to_series()
    assert observed.tolist() == known.tolist()
    assert [*observed.index] == [*known.index]
    assert fit.loo().n_data_points == len(known)
    fit.save(tmp_path / "fit")
    new = frame[frame["name"].isin(["B", "E"])]
    predicted = fit.predictions(new.x, coords={"row": new["name"]})
    assert predicted["row"].values.tolist() == new["name"].tolist()
    prior = probdl.prior_predictive(
        model, frame.x, frame.y, missing="mask", coords={"row": frame["name"]}, seed=1
    )
    assert [*prior.observed_data["y"].to_series().index] == [*known.index]


def normal_by_year(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    with pyro.plate("year", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def test_dates_that_no_file_holds_are_refused():
    remote = np.arange("1500", "1503", dtype="datetime64[Y]")
    with pytest.raises(probdl.SettingError, match="before 1678"):
        probdl.infer(normal_by_year, np.zeros(3), coords={"year": remote})


def test_dates_of_python_are_dates_in_predictions_too(tmp_path):
    days = [datetime.date(2020 + year, 1, 1) for year in range(3)]
    fit = probdl.infer(normal_by_year, np.zeros(3), method="laplace", coords={"year": days}, seed=1)
    found = fit.predictions(np.zeros(3), coords={"year": days})
    assert found.year.dtype == fit.idata.observed_data.year.dtype
    assert found["y"].sel(year="2021").shape[-1] == 1
    fit.to_idata(predictions=found).to_netcdf(tmp_path / "predictions.nc")


def test_counts_and_classes_are_integers_beside_the_data():
    def counts(n, y=None):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with pyro.plate("row", n):
            pyro.sample("y", dist.Poisson(rate), obs=y)

    y = np.random.default_rng(0).poisson(2.7, size=30)
    for data in (y, y.astype(float)):
        fit = probdl.infer(counts, 30, data, method="laplace", seed=1)
        container = fit.to_idata(prior=10)
        for group in ("observed_data", "posterior_predictive", "prior_predictive"):
            assert container[group]["y"].dtype.kind == "i"
        assert fit.predict(5)["y"].dtype.kind == "i"
        assert fit.predictions(5)["y"].dtype.kind == "i"
    np.testing.assert_array_equal(fit.idata.observed_data["y"], y)
