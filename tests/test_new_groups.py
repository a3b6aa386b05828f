"""Predictions at new groups: known groups keep their posterior draws, new ones are drawn."""

import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.reparam import LocScaleReparam

import probdl

MEANS = np.array([0.0, 10.0, 20.0, 30.0, 40.0])
GROUP = np.repeat(np.arange(5), 20)
Y = MEANS[GROUP] + np.random.default_rng(0).normal(size=100)
AVERAGE = Y.reshape(5, 20).mean(1)


def centred(group, count, y=None):
    mu = pyro.sample("mu", dist.Normal(20.0, 20.0))
    tau = pyro.sample("tau", dist.HalfNormal(20.0))
    with pyro.plate("group", count):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
    with pyro.plate("obs", len(group)):
        pyro.sample("y", dist.Normal(theta[group], 1.0), obs=y)


def non_centred(group, count, y=None):
    mu = pyro.sample("mu", dist.Normal(20.0, 20.0))
    tau = pyro.sample("tau", dist.HalfNormal(20.0))
    with pyro.plate("group", count):
        raw = pyro.sample("raw", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * raw)
    with pyro.plate("obs", len(group)):
        pyro.sample("y", dist.Normal(theta[group], 1.0), obs=y)


def to_event(group, count, y=None):
    mu = pyro.sample("mu", dist.Normal(20.0, 20.0))
    tau = pyro.sample("tau", dist.HalfNormal(20.0))
    theta = pyro.sample("theta", dist.Normal(mu, tau).expand([count]).to_event(1))
    with pyro.plate("obs", len(group)):
        pyro.sample("y", dist.Normal(theta[group], 1.0), obs=y)


def vectors(group, count, y=None):
    mu = pyro.sample("mu", dist.Normal(20.0, 20.0))
    tau = pyro.sample("tau", dist.HalfNormal(20.0))
    scale = torch.stack([tau, torch.ones(())])
    with pyro.plate("group", count):
        b = pyro.sample(
            "b",
            dist.MultivariateNormal(
                torch.stack([mu, torch.zeros(())]), scale_tril=torch.diag(scale)
            ),
        )
    with pyro.plate("obs", len(group)):
        pyro.sample("y", dist.Normal(b[group, 0], 1.0), obs=y)


MODELS = {
    "centred": centred,
    "non_centred": non_centred,
    "reparam": poutine.reparam(centred, config={"theta": LocScaleReparam(0.0)}),
    "to_event": to_event,
    "vectors": vectors,
}
METHOD = probdl.NUTS(draws=500, warmup=500, chains=2)


@pytest.fixture(scope="module", params=MODELS)
def fit(request):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # findings on the sampler are not the subject
        return probdl.infer(
            MODELS[request.param], GROUP, 5, Y, method=METHOD, seed=1,
            coords={"group": list("abcde")},
            dims={"theta": ["group"]} if request.param == "to_event" else None,
        )  # fmt: skip


def check(y, expected):
    """Check predictions against the posterior means of groups; NaN for a new group."""
    for column, mean in zip(np.moveaxis(y, -1, 0), expected, strict=True):
        if np.isnan(mean):  # population: mean 20 ± 7, sd 16 or so
            assert column.std() > 8
            assert abs(column.mean() - 20) < 6
        else:
            assert column.mean() == pytest.approx(mean, abs=4 * 1.03 / np.sqrt(column.size) + 0.1)
            assert column.std() == pytest.approx((1 + 1 / 20) ** 0.5, rel=0.15)


def test_known_groups_keep_their_draws_by_position(fit):
    with pytest.warns(UserWarning, match="has 7 elements at these arguments and 5 in the fit"):
        y = fit.predict(np.array([0, 4, 5, 6]), 7)["y"]
    check(y, [AVERAGE[0], AVERAGE[4], np.nan, np.nan])
    assert abs(np.corrcoef(y[..., 2].ravel(), y[..., 3].ravel())[0, 1]) < 0.5


def test_known_groups_keep_their_draws_by_label(fit):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y = fit.predict(np.arange(3), 3, coords={"group": ["d", "new", "a"]})["y"]
    check(y, [AVERAGE[3], np.nan, AVERAGE[0]])


def test_permuted_groups_are_matched_by_label(fit):
    y = fit.predict(np.arange(5), 5, coords={"group": np.array(list("edcba"))})["y"]
    check(y, AVERAGE[::-1])


def test_fewer_groups_are_the_first_ones(fit):
    with pytest.warns(UserWarning, match="has 2 elements at these arguments and 5 in the fit"):
        y = fit.predict(np.array([1, 0]), 2)["y"]
    check(y, [AVERAGE[1], AVERAGE[0]])


def test_the_density_of_new_data_uses_known_groups(fit):
    labels = {"group": ["e", "z"]}
    scores = [
        fit.log_predictive(np.array([0]), 2, np.array([y]), coords=labels).total
        for y in (AVERAGE[4], AVERAGE[0])
    ]
    assert scores[0] == pytest.approx(-0.5 * np.log(2 * np.pi * 1.05), abs=0.05)
    assert scores[1] < -100


def test_a_loaded_fit_matches_labels(fit, tmp_path):
    loaded = probdl.load(fit.save(tmp_path / "fit"), model=fit.program.original)
    coords = {"group": ["d", "new", "a"]}
    expected, found = (f.predict(np.arange(3), 3, coords=coords)["y"] for f in (fit, loaded))
    np.testing.assert_array_equal(found, expected)


def test_labels_that_do_not_match_are_an_error(fit):
    with pytest.raises(probdl.SettingError, match=r"3 labels of 'group'.*2 elements"):
        fit.predict(np.arange(2), 2, coords={"group": ["a", "b", "c"]})
    with pytest.raises(probdl.SettingError, match="labels of 'town', which the fit has not"):
        fit.predict(np.arange(2), 2, coords={"town": ["a", "b"]})


def test_nested_and_crossed_plates():
    def model(row, column, rows, columns, y=None):
        with pyro.plate("column", columns, dim=-1):
            a = pyro.sample("a", dist.Normal(0.0, 10.0))
            with pyro.plate("row", rows, dim=-2):
                b = pyro.sample("b", dist.Normal(0.0, 10.0))
        with pyro.plate("obs", len(row)):
            pyro.sample("y", dist.Normal(a[column] + b[row, column], 0.1), obs=y)

    row, column = (x.repeat(5) for x in np.divmod(np.arange(6), 3))
    y = 100.0 * row + 10.0 * column
    coords = {"row": ["r0", "r1"], "column": ["c0", "c1", "c2"]}
    fit = probdl.infer(model, row, column, 2, 3, y, method="laplace", seed=1, coords=coords)
    new = {"row": ["r2", "r1"], "column": ["c2", "c3", "c0"]}
    r, c = np.divmod(np.arange(6), 3)
    drawn = fit.predict(r, c, 2, 3, coords=new)["y"].reshape(-1, 2, 3)
    same = fit.predict(np.array([1]), np.array([2]), 2, 3)["y"]
    assert drawn[:, 1, 0].mean() == pytest.approx(same.mean(), abs=0.05)
    assert drawn[:, 1, [0, 2]].std(0) == pytest.approx(0.11, abs=0.03)
    assert (drawn[:, 0].std(0) > 8).all()  # a new row has new elements in known columns
    assert drawn[:, 1, 1].std() > 11


def test_rows_of_the_data_with_their_own_sites_are_new_if_they_are_fewer():
    def model(x, y=None):
        with pyro.plate("obs", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 10.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    y = np.arange(10.0)
    fit = probdl.infer(model, y, y, method="laplace", seed=1, coords={"obs": np.arange(10)})
    with pytest.warns(UserWarning, match="sampled from its prior"):
        assert (fit.predict(np.zeros(3))["y"].std((0, 1)) > 8).all()
    labelled = fit.predict(np.zeros(3), coords={"obs": [7, 2, 11]})["y"]
    assert labelled.mean((0, 1))[:2] == pytest.approx([7, 2], abs=0.3)
    assert labelled.std((0, 1))[2] > 8
    # Held-out rows are new, also if there are as many as rows that are kept.
    scores = fit.cross_validate(2, workers=1).pointwise
    exact = -0.5 * np.log(2 * np.pi * 101) - y**2 / 202
    np.testing.assert_allclose(scores, exact, atol=0.5)


def test_a_correlated_vector_of_another_length_is_drawn_from_its_prior():
    def model(n, y=None):
        f = pyro.sample("f", dist.MultivariateNormal(torch.zeros(n), torch.eye(n)))
        pyro.sample("y", dist.Normal(f, 0.1).to_event(1), obs=y)

    fit = probdl.infer(model, 2, np.array([3.0, 3.0]), method="laplace", seed=1)
    with pytest.warns(UserWarning, match="The shape of site 'f'"):
        y = fit.predict(3)["y"]
    assert abs(y.mean()) < 0.2


def test_group_labels_that_are_summed_out_belong_to_their_groups():
    def model(rows, count, y=None):
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        with pyro.plate("group", count, dim=-2):
            kind = pyro.sample("kind", dist.Bernoulli(0.5))
            with pyro.plate("item", rows, dim=-1):
                pyro.sample("y", dist.Normal(mu + 20 * kind, 1.0), obs=y)

    y = np.array([0.0, 20.0, 0.0])[:, None] + np.random.default_rng(0).normal(size=(3, 10))
    fit = probdl.infer(model, 10, 3, y, method="laplace", seed=1)
    for count in (3, 4):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            drawn = fit.predict(2, count)["y"][0]
        assert len(caught) == count - 3
        assert drawn[:, :3].std(0) == pytest.approx(1.0, abs=0.1)
        assert drawn[:, :3].mean((0, 2)) == pytest.approx([0, 20, 0], abs=0.7)
        assert (drawn[:, 3:].std(0) > 8).all()


def test_a_new_element_that_a_factor_restricts_is_reported():
    """The new levels are drawn from Normal(0, 10); the random walk is in a factor."""

    def walk(n, y=None):
        with pyro.plate("time", n):
            level = pyro.sample("level", dist.Normal(0.0, 10.0))
        steps = dist.Normal(0.0, 0.3).log_prob(level[1:] - level[:-1])
        pyro.factor("walk", steps.sum())
        with pyro.plate("row", n):
            pyro.sample("y", dist.Normal(level, 0.5), obs=y)

    y = np.cumsum(np.random.default_rng(0).normal(size=12) * 0.3)
    fit = probdl.infer(walk, 12, y, method="laplace", seed=1)
    with pytest.warns(UserWarning, match="drawn from the distribution of 'level', although 'walk'"):
        fit.predict(14)


def test_a_new_gap_in_the_observations_is_reported():
    """The new gaps would be drawn from Normal(0, 10), without the observations before them."""

    def series(y):
        missing = torch.isnan(y)
        with pyro.plate("gaps", int(missing.sum())):
            gap = pyro.sample("gap", dist.Normal(0.0, 10.0))
        full = torch.where(missing, 0.0, y).masked_scatter(missing, gap)
        with pyro.plate("time", len(y) - 1):
            pyro.sample("y", dist.Normal(0.9 * full[:-1], 0.5), obs=full[1:])

    y = np.random.default_rng(0).normal(size=20)
    y[5:7] = np.nan
    fit = probdl.infer(series, y, method="laplace", missing="mask", seed=1)
    with pytest.warns(UserWarning, match="drawn from the distribution of 'gap', although 'y'"):
        fit.predict(np.append(y, [np.nan, np.nan]))
    with warnings.catch_warnings():  # known gaps are matched
        warnings.simplefilter("error")
        fit.predict(np.append(y, 1.0))
