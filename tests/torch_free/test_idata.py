"""The ArviZ container under either ArviZ generation; no torch, so that ArviZ 1.x is easily had."""

import importlib
import sys
import types
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import xarray as xr

mpl.use("Agg")

try:
    from probdl.io import idata
except ImportError:  # without torch, the one file by itself
    package = types.ModuleType("probdl")
    package.__path__ = [str(Path(__file__).parents[2] / "probdl")]
    sys.modules["probdl"] = package
    idata = importlib.import_module("probdl.io.idata")

az = idata.az
RNG = np.random.default_rng(0)
THETA = RNG.normal(size=(4, 250, 3))
LOG_LIKELIHOOD = -0.5 * RNG.normal(size=(4, 250, 3)) ** 2


@pytest.fixture(scope="module")
def container():
    return idata.to_idata(
        {
            "posterior": {"theta": THETA, "mu": THETA.mean(-1)},
            "sample_stats": {"energy": RNG.normal(size=(4, 250)), "lp": RNG.normal(size=(4, 250))},
            "log_likelihood": {"y": LOG_LIKELIHOOD},
            "posterior_predictive": {"y": RNG.normal(size=(4, 250, 3, 2))},
            "observed_data": {"y": np.zeros((3, 2))},
            "constant_data": {"sigma": np.ones(3)},
            "prior": {},
        },
        dims={"theta": ["school"], "y": ["school", None], "sigma": ["school"]},
        coords={"school": ["a", "b", "c"]},
    )


def test_it_is_the_container_of_this_arviz(container):
    expected = "DataTree" if idata.ARVIZ_1 else "InferenceData"
    assert type(container).__name__ == expected
    groups = container.children if idata.ARVIZ_1 else container.groups()
    assert set(groups) == {"posterior", "sample_stats", "log_likelihood", "posterior_predictive",
                           "observed_data", "constant_data"}  # fmt: skip


def test_dims_and_coords(container):
    assert container.posterior["theta"].dims == ("chain", "draw", "school")
    assert container.log_likelihood["y"].dims == ("chain", "draw", "school")
    assert container.posterior_predictive["y"].dims == ("chain", "draw", "school", "y_dim_1")
    assert container.observed_data["y"].dims == ("school", "y_dim_1")
    assert container.constant_data["sigma"].dims == ("school",)
    np.testing.assert_array_equal(container.posterior["theta"].sel(school="b"), THETA[..., 1])


def test_statistics_are_those_of_arviz(container):
    draws = idata.variables(container, "posterior")
    of = idata.mixing_by_variable(draws)
    assert of["theta"].rhat.shape == of["theta"].ess_tail.shape == (3,)
    assert (abs(of["theta"].rhat - 1) < 0.02).all()
    assert 700 < of["mu"].ess_bulk < 1400  # a thousand independent draws


def test_summary_has_a_row_for_each_scalar(container):
    table = idata.summary(container)
    assert list(table.index) == ["theta[a]", "theta[b]", "theta[c]", "mu"]
    assert {"mean", "sd", "r_hat", "ess_bulk"} <= set(table.columns)


def test_names_that_clash():
    assert idata.unclashed({"y": ["y", None]}, ["y"]) == {"y": ["y_dim", None]}


def test_arviz_reads_it(container, tmp_path):
    assert len(az.summary(container)) == 4
    loo = az.loo(container, var_name="y")
    assert np.isfinite(loo.elpd if idata.ARVIZ_1 else loo.elpd_loo)
    assert len(az.compare({"one": container, "other": container}, var_name="y")) == 2
    assert az.plot_trace(container) is not None
    assert idata.plot_ppc(container, num_pp_samples=20) is not None
    container.to_netcdf(str(tmp_path / "fit.nc"), engine="h5netcdf")
    read = az.from_netcdf(str(tmp_path / "fit.nc"), engine="h5netcdf")
    np.testing.assert_array_equal(read["posterior"]["theta"], THETA)


def _container(seed=0, scale=1.0, rows=40):
    """Draws of a normal mean, and the log likelihood of each row at them."""
    rng = np.random.default_rng(seed)
    y = np.random.default_rng(9).normal(size=rows)
    mu = y.mean() + rng.normal(size=(4, 250)) * scale / rows**0.5
    points = -0.5 * ((y - mu[..., None]) / scale) ** 2 - np.log(scale) - 0.5 * np.log(2 * np.pi)
    return idata.to_idata({"posterior": {"mu": mu}, "log_likelihood": {"y": points}})


def test_leave_one_out_with_exact_terms():
    result = idata.loo(_container(), "y")
    assert idata.pareto_k(result).shape == (40,)
    assert idata.pareto_k(result).max() < 0.7
    made = idata.with_exact(result, {3: -5.0})
    terms = np.asarray((result.elpd_i if idata.ARVIZ_1 else result.loo_i).values).copy()
    terms[3] = -5.0
    total = made.elpd if idata.ARVIZ_1 else made.elpd_loo
    assert float(total) == pytest.approx(terms.sum())
    assert float(made.se) == pytest.approx(np.sqrt(40 * terms.var()))


def test_a_comparison_puts_the_better_first():
    results = {
        "wide": idata.loo(_container(scale=3.0), "y"),
        "right": idata.loo(_container(scale=1.0), "y"),
    }
    assert list(idata.compare(results).index) == ["right", "wide"]


def test_a_band_is_simultaneous():
    points, low, high = idata.ecdf_band(100, 99, 0.9)
    rng = np.random.default_rng(0)
    outside = 0
    for _ in range(500):
        shares = np.sort(rng.integers(1, 101, size=100) / 100)
        ecdf = np.searchsorted(shares, points, side="right") / 100
        outside += bool(((ecdf < low) | (ecdf > high)).any())
    assert 15 < outside < 90  # a tenth; fewer, since counts are whole numbers


def test_r_hat_of_one_chain_looks_at_its_halves():
    rng = np.random.default_rng(0)
    steady = rng.normal(size=(2, 200))
    drifting = steady + np.linspace(0, 5, 200)
    found = idata.chain_rhat({"a": steady, "b": drifting})
    assert found["a"].shape == (2,)
    assert found["a"].max() < 1.1
    assert found["b"].min() > 1.5


def written_and_read(container, path):
    with path.open("wb") as file:
        idata.write(container, file)
    with path.open("rb") as file:
        return idata.read(file)


def test_a_container_is_written_and_read(container, tmp_path):
    path = tmp_path / "idata.nc"
    again = written_and_read(container, path)
    path.unlink()  # it is in memory, and the file is closed
    for group in ("posterior", "sample_stats", "log_likelihood", "observed_data"):
        before, after = idata.variables(container, group), idata.variables(again, group)
        assert set(before) == set(after)
        for name, array in before.items():
            np.testing.assert_array_equal(after[name], array)
    assert again.posterior["theta"].dims == container.posterior["theta"].dims
    assert list(idata.labels(again)["school"]) == list(idata.labels(container)["school"])
    assert idata.variables(again, "warmup_posterior") == {}


def test_names_with_a_slash_are_kept(tmp_path):
    made = idata.to_idata(
        {"posterior": {"outer/x": THETA}, "observed_data": {"outer/y": np.zeros(3)}},
        dims={"outer/x": ["outer/plate"]},
    )
    for each in (made, written_and_read(made, tmp_path / "idata.nc")):
        np.testing.assert_array_equal(idata.variables(each, "posterior")["outer/x"], THETA)
        assert "outer/plate" in idata.labels(each)
        of = idata.mixing_by_variable(idata.variables(each, "posterior"))
        assert list(of) == ["outer/x"]


def test_the_monte_carlo_error_of_independent_draws(container):
    error = idata.mixing_by_variable(idata.variables(container, "posterior"))["theta"].mcse_mean
    np.testing.assert_allclose(error, THETA.std((0, 1)) / 1000**0.5, rtol=0.2)


@pytest.mark.parametrize("kind", idata.PLOTS)
def test_every_plot_is_drawn(container, kind, tmp_path):
    figure = idata.plot(container, kind, ["mu", "theta"] if kind not in ("ppc", "energy") else None)
    figure.savefig(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 5000


@pytest.mark.parametrize(
    "labels",
    [
        ("a", "b"),
        ["a", "b"],
        np.array(["a", "b"]),
        pd.Index(["a", "b"]),
        pd.Series(["a", "b"], index=[7, 8]),
        pd.Categorical(["a", "b"]),
        pd.array(["a", "b"], dtype="string"),
        xr.DataArray(["a", "b"], dims="q", coords={"q": [3, 4]}),
        {"a": 1, "b": 2}.keys(),
    ],
    ids=lambda labels: type(labels).__name__,
)
def test_labels_of_many_types(labels):
    groups = {"posterior": {"x": np.zeros((2, 20, 2))}}
    container = idata.to_idata(groups, dims={"x": ["school"]}, coords={"school": labels})
    assert [str(label) for label in container.posterior["school"].values] == ["a", "b"]
    assert "x[a]" in idata.summary(container).index
