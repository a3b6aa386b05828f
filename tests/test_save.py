"""A saved fit comes back as it was, with its model and without, from any method."""

import json

import arviz as az
import numpy as np
import pytest
from pyro.infer.autoguide import AutoNormal

import probdl
from probdl.models import linear_regression

RNG = np.random.default_rng(3)
X = RNG.normal(size=(25, 2))
Y = 1.0 + X @ [2.0, -1.0] + RNG.normal(size=25)
NEW = RNG.normal(size=(4, 2))

METHODS = {
    "nuts": probdl.NUTS(draws=50, warmup=50, chains=2),
    "mle": probdl.MLE(),
    "map": probdl.MAP(starts=2),
    "laplace": probdl.Laplace(draws=50),
    "pathfinder": probdl.Pathfinder(draws=50),
    "svi": probdl.SVI(steps=50, draws=50),
    "lowrank": probdl.SVI(guide="lowrank", steps=50, draws=50),
    "class": probdl.SVI(guide=AutoNormal, steps=50, draws=50),
    "importance": probdl.Importance(num_samples=500, draws=50),
    "metropolis": probdl.Metropolis(draws=50, warmup=50, chains=2, thin=2),
}
pytestmark = pytest.mark.filterwarnings("ignore::probdl.FindingWarning")


@pytest.fixture(scope="module", params=METHODS)
def fit(request):
    return probdl.infer(linear_regression, X, Y, method=METHODS[request.param], seed=1)


@pytest.fixture(scope="module")
def folder(fit, tmp_path_factory):
    return fit.save(tmp_path_factory.mktemp("fits") / "run")


def same(a, b):
    """Compare trees of stats."""
    if isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            same(a[key], b[key])
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    else:
        np.testing.assert_equal(a, b)


def test_without_the_model_all_but_prediction_works(fit, folder):
    loaded = probdl.load(folder)
    assert list(loaded.draws) == list(fit.draws)
    same(fit.draws, loaded.draws)
    same(fit.stats, loaded.stats)
    assert loaded.summary().equals(fit.summary())
    assert loaded.diagnose() == fit.diagnose()
    assert repr(loaded) == repr(fit)
    assert (loaded.seed, loaded.timings) == (fit.seed, fit.timings)
    same(fit.log_likelihood(), loaded.log_likelihood())
    np.testing.assert_array_equal(
        loaded.posterior_predictive()["y"], fit.posterior_predictive()["y"]
    )
    assert loaded.idata.posterior["beta"].dims == fit.idata.posterior["beta"].dims
    with pytest.raises(probdl.ModelError, match=r"without its model.*probdl.load\(folder, model="):
        loaded.predict(NEW)


def test_with_the_model_it_predicts_the_same(fit, folder):
    loaded = probdl.load(folder, model=linear_regression)
    np.testing.assert_array_equal(loaded.predict(NEW)["y"], fit.predict(NEW)["y"])
    assert loaded.log_predictive(X, Y).joint == fit.log_predictive(X, Y).joint
    if fit.is_point:
        assert loaded.method == fit.method


def test_plain_arviz_opens_the_container(fit, folder):
    opened = az.from_netcdf(folder / "idata.nc")
    np.testing.assert_array_equal(opened.posterior["sigma"], fit.draws["sigma"])
    np.testing.assert_array_equal(opened.observed_data["y"], Y)


def test_the_index_tells_where_the_fit_comes_from(fit, folder):
    told = json.loads((folder / "fit.json").read_text())
    assert told["method"]["name"] == fit.method.name
    assert told["model"]["qualname"] == "probdl.models.regression.linear_regression"
    assert told["model"]["file"].endswith("regression.py")
    assert len(told["model"]["source_sha256"]) == 64
    assert told["versions"]["probdl"] == probdl.__version__
    assert told["timings"]["total"] > 0
    other = probdl.infer(linear_regression, X + 1, Y, method="mle", seed=1)
    other.save(folder.parent / "other")
    again = json.loads((folder.parent / "other" / "fit.json").read_text())
    assert again["data"]["fingerprint"] != told["data"]["fingerprint"]
    assert again["model"] == told["model"]


def test_a_loaded_fit_can_be_saved_again(folder, tmp_path):
    once = probdl.load(folder)
    twice = probdl.load(once.save(tmp_path / "again"), model=linear_regression)
    same(once.draws, twice.draws)
    same(once.stats, twice.stats)
    assert twice.predict(NEW)["y"].shape[-1] == 4
