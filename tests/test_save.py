"""Saving and loading: a loaded fit equals the saved one, with and without its model."""

import contextlib
import json
import subprocess
import sys
import textwrap
import warnings
from concurrent.futures import ThreadPoolExecutor

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import nn
from torch.distributions import constraints

import probdl
from probdl.model import predictive
from probdl.models import VAE, eight_schools, linear_regression, normal_normal

RNG = np.random.default_rng(3)
X = RNG.normal(size=(25, 2))
Y = 1.0 + X @ [2.0, -1.0] + RNG.normal(size=25)
NEW = RNG.normal(size=(4, 2))

METHODS = {
    "nuts": probdl.NUTS(draws=50, warmup=50, chains=2),
    "hmc": probdl.HMC(draws=50, warmup=50, chains=2),
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
    """Assert that two trees of stats are equal."""
    if isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            same(a[key], b[key])
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    else:
        np.testing.assert_equal(a, b)


def test_without_the_model_everything_except_prediction_works(fit, folder):
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


def test_with_the_model_predictions_are_the_same(fit, folder):
    loaded = probdl.load(folder, model=linear_regression)
    np.testing.assert_array_equal(loaded.predict(NEW)["y"], fit.predict(NEW)["y"])
    assert loaded.log_predictive(X, Y).joint == fit.log_predictive(X, Y).joint
    if fit.is_point:
        assert loaded.method == fit.method


def test_plain_arviz_opens_the_container(fit, folder):
    opened = az.from_netcdf(folder / "idata.nc")
    np.testing.assert_array_equal(opened.posterior["sigma"], fit.draws["sigma"])
    np.testing.assert_array_equal(opened.observed_data["y"], Y)


def test_the_index_records_the_origin_of_the_fit(fit, folder):
    index = json.loads((folder / "fit.json").read_text())
    assert index["method"]["name"] == fit.method.name
    assert index["model"]["qualname"] == "probdl.models.regression.linear_regression"
    assert index["model"]["file"].endswith("regression.py")
    assert len(index["model"]["source_sha256"]) == 64
    assert index["versions"]["probdl"] == probdl.__version__
    assert index["timings"]["total"] > 0
    other = probdl.infer(linear_regression, X + 1, Y, method="mle", seed=1)
    other.save(folder.parent / "other")
    again = json.loads((folder.parent / "other" / "fit.json").read_text())
    assert again["data"]["fingerprint"] != index["data"]["fingerprint"]
    assert again["model"] == index["model"]


def test_a_loaded_fit_can_be_saved_again(folder, tmp_path):
    once = probdl.load(folder)
    twice = probdl.load(once.save(tmp_path / "again"), model=linear_regression)
    same(once.draws, twice.draws)
    same(once.stats, twice.stats)
    assert twice.predict(NEW)["y"].shape[-1] == 4


# -- objects that cannot be saved -----------------------------------------------------------


def network_model(x, net, y=None):
    scale = pyro.sample("scale", dist.HalfNormal(1.0))
    with pyro.plate("obs", len(x)):
        pyro.sample("y", dist.Normal(net(x).squeeze(-1), scale), obs=y)


def test_arguments_that_cannot_be_saved_must_be_passed(tmp_path):
    net = nn.Linear(2, 1)
    fit = probdl.infer(network_model, X, net, Y, method="map", seed=1)
    folder = fit.save(tmp_path / "fit")
    with pytest.raises(probdl.ModelError, match=r"\['net'\] is <torch.nn.*Linear, not saved>"):
        probdl.load(folder, model=network_model)
    loaded = probdl.load(folder, X, net, Y, model=network_model)
    np.testing.assert_array_equal(loaded.predict(NEW, net)["y"], fit.predict(NEW, net)["y"])
    with pytest.raises(probdl.DataError, match="The arguments differ from those of the fit"):
        probdl.load(folder, X + 1, net, Y, model=network_model)


def regression(x, y=None):
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("obs", len(x)):
        pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)


def guide(x, y=None):
    loc = pyro.param("loc", torch.tensor(0.0))
    scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
    pyro.sample("slope", dist.Normal(loc, scale))


def test_a_custom_guide_must_be_passed_again(tmp_path):
    method = probdl.SVI(guide=guide, steps=100, draws=30)
    fit = probdl.infer(regression, X[:, 0], Y, method=method, seed=1)
    folder = fit.save(tmp_path / "fit")
    without = probdl.load(folder, model=regression)
    np.testing.assert_array_equal(without.predict(NEW[:, 0])["y"], fit.predict(NEW[:, 0])["y"])
    assert repr(without.method).startswith("SVI(guide=")
    with pytest.raises(probdl.ModelError, match=r"probdl.load\(folder, model=..., method=...\)"):
        without.elbo()
    again = probdl.load(folder, model=regression, method=method)
    assert again.elbo().total == fit.elbo().total
    with pytest.raises(probdl.SettingError, match="is by 'svi', not 'nuts'"):
        probdl.load(folder, method=probdl.NUTS())
    with pytest.raises(probdl.SettingError, match="has steps=7"):
        probdl.load(folder, method=probdl.SVI(guide=guide, steps=7, draws=30))


def test_networks_are_loaded_with_their_weights(tmp_path):
    x = (torch.rand(60, 6, generator=torch.Generator().manual_seed(0)) < 0.3).float()
    vae = VAE.mlp((6,), latent_dim=2, hidden=[8])
    fit = probdl.infer(vae, x, method=probdl.SVI(steps=50, batch_size=20), seed=1)
    loaded = probdl.load(fit.save(tmp_path / "vae"), model=VAE.mlp((6,), latent_dim=2, hidden=[8]))
    np.testing.assert_array_equal(loaded.encode()["z"], fit.encode()["z"])
    np.testing.assert_array_equal(loaded.reconstruct(x)["x"], fit.reconstruct(x)["x"])
    assert loaded.elbo().total == fit.elbo().total
    with pytest.raises(probdl.ModelError, match="does not match the fit"):
        probdl.load(tmp_path / "vae", model=VAE.mlp((6,), latent_dim=3, hidden=[8]))


def test_running_statistics_and_the_training_mode_are_restored(tmp_path):
    class Generator(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))

        def forward(self, x):
            with pyro.plate("rows", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
                return pyro.deterministic("x", self.net(z), event_dim=1)

    torch.manual_seed(0)
    make = Generator()
    method = probdl.GAN(discriminator=probdl.nn.MLP([1, 8, 1]), steps=30, batch_size=16)
    fit = probdl.infer(make, torch.randn(64, 1), method=method, seed=1)
    loaded = probdl.load(fit.save(tmp_path / "gan"), model=Generator())
    np.testing.assert_array_equal(loaded.predict(20)["x"], fit.predict(20)["x"])
    weights = fit.stats["discriminator"].state_dict()
    assert all(torch.equal(loaded.stats["discriminator"][n], w) for n, w in weights.items())


def test_differing_sites_are_named(tmp_path, schools):
    folder = probdl.infer(eight_schools, *schools, method="map", seed=1).save(tmp_path / "fit")

    def other(sigma, y=None):
        mu = pyro.sample("mu", dist.Normal(torch.zeros(2), 5.0).to_event(1))
        with pyro.plate("school", len(sigma)):
            pyro.sample("y", dist.Normal(mu.sum(), sigma), obs=y)

    with pytest.raises(probdl.ModelError) as error:
        probdl.load(folder, model=other)
    assert "'mu' is latent of shape () in the fit, and latent of shape (2,)" in str(error.value)
    assert "'tau' is only in the fit" in str(error.value)

    def third(a, b=None):
        other(a, b)

    with pytest.raises(probdl.ModelError, match="has no argument sigma, y"):
        probdl.load(folder, model=third)


def test_a_changed_source_leads_to_a_warning(tmp_path):
    fit = probdl.infer(regression, X[:, 0], Y, method="map", seed=1)
    folder = fit.save(tmp_path / "fit")

    def changed(x, y=None):
        slope = pyro.sample("slope", dist.Normal(0.0, 2.0))
        with pyro.plate("obs", len(x)):
            pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)

    with pytest.warns(UserWarning, match="The source of the model 'changed' has changed since"):
        probdl.load(folder, model=changed)


def scaled_by(scale, values=None):
    def model(x, y=None):
        slope = pyro.sample("slope", dist.Normal(0.0, scale))
        pyro.sample(
            "y", dist.Normal(slope * x, 1.0).to_event(1), obs=y if values is None else values
        )

    return model


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (scaled_by(1.0), scaled_by(2.0)),
        (scaled_by(torch.ones(())), scaled_by(torch.ones(()) * 2)),
        (scaled_by(1.0, torch.zeros(20)), scaled_by(1.0, torch.ones(20))),
    ],
)
def test_a_changed_value_in_a_closure_leads_to_a_warning(tmp_path, before, after):
    x = torch.linspace(0.0, 1.0, 20)
    fit = probdl.infer(before, x, x, method="map", seed=1)
    folder = fit.save(tmp_path / "fit")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        probdl.load(folder, model=before)
    with pytest.warns(UserWarning, match="A value captured by the model 'model' has changed since"):
        probdl.load(folder, model=after)


def test_names_with_a_slash_and_nested_data(tmp_path):
    def model(data, power, label="a"):
        rate = pyro.sample("a/rate", dist.HalfNormal(1.0))
        with pyro.plate("obs", len(data["y"])):
            pyro.sample("a/y", dist.Exponential(rate * power[1]), obs=data["y"])

    args = {"y": np.array([1.0, 2.0, 3.0])}, [np.array([1, 2]), 3.0]
    fit = probdl.infer(model, *args, method="laplace", seed=1)
    loaded = probdl.load(fit.save(tmp_path / "fit"), model=model)
    same(fit.draws, loaded.draws)
    assert loaded.program.arguments["power"][1] == 3.0
    np.testing.assert_array_equal(loaded.predict(*args)["a/y"], fit.predict(*args)["a/y"])


# -- files ----------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    fit = probdl.infer(normal_normal, np.ones(3), np.zeros(3), method="map", seed=1)
    return fit.save(tmp_path / "fit")


@pytest.mark.parametrize("name", ["fit.json", "idata.nc", "arrays.safetensors"])
def test_missing_truncated_and_damaged_files_are_reported(saved, name):
    path = saved / name
    whole = path.read_bytes()
    for damaged in (
        whole[: len(whole) // 2],
        b"",
        whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:],
    ):
        path.write_bytes(damaged)
        with pytest.raises(probdl.DataError, match=name) as error:
            probdl.load(saved)
        assert "save the fit again" in str(error.value)
    path.unlink()
    with pytest.raises(probdl.DataError, match=name):
        probdl.load(saved)


def test_a_later_format_is_refused(saved):
    index = json.loads((saved / "fit.json").read_text())
    (saved / "fit.json").write_text(json.dumps(index | {"format": 99}))
    with pytest.raises(probdl.DataError, match="has format 99, written by a later version"):
        probdl.load(saved)


def test_a_path_without_a_fit_is_refused(tmp_path, saved):
    with pytest.raises(probdl.DataError, match="does not exist"):
        probdl.load(tmp_path / "nothing")
    with pytest.raises(probdl.DataError, match=r"contains no fit\.json"):
        probdl.load(tmp_path)
    fit = probdl.load(saved)
    (tmp_path / "file").write_text("x")
    with pytest.raises(probdl.SettingError, match="is a file; a fit is saved as a folder"):
        fit.save(tmp_path / "file")


@pytest.mark.parametrize("name", [None, 5, "", "a\0b", b"fit"])
def test_an_invalid_path_is_refused(saved, name):
    fit = probdl.load(saved)
    for call in (fit.save, probdl.load):
        with pytest.raises(probdl.SettingError, match="is not a path"):
            call(name)


def test_a_file_is_not_a_folder(saved):
    with pytest.raises(probdl.DataError, match="is not a folder"):
        probdl.load(saved / "fit.json")


def test_the_method_must_be_passed_with_its_settings(saved):
    for method in ("map", probdl.MAP):
        with pytest.raises(probdl.SettingError, match="pass the method with the settings"):
            probdl.load(saved, method=method)


@pytest.mark.parametrize("text", ["garbage", "[]", "{}", '{"files": 3}'])
def test_a_damaged_commit_is_reported_and_can_be_replaced(saved, text):
    fit = probdl.load(saved)
    (saved / "fit.json.commit").write_text(text)
    with pytest.raises(probdl.DataError):
        probdl.load(saved)
    fit.save(saved)
    assert probdl.load(saved).draws["mu"] == fit.draws["mu"]


@pytest.mark.parametrize("key", ["files", "data", "sites", "model", "proposal", "modules", "draws"])
@pytest.mark.parametrize("value", [3, [1], {"a": 1}, None, "x"])
def test_an_index_with_invalid_contents_is_reported(saved, key, value):
    index = json.loads((saved / "fit.json").read_text())
    if index[key] == value:
        return
    del index["sha256"]
    index |= {key: value}
    whole = index | {"sha256": probdl.io.folders._digest(index)}
    (saved / "fit.json").write_text(json.dumps(whole))
    with contextlib.suppress(probdl.DataError):  # entries that this fit does not use are ignored
        fit = probdl.load(saved, model=normal_normal)
        assert key in ("proposal", "modules", "model")
        assert fit.predict()["y"].shape == (1, 1, 3)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot lock folders")
def test_concurrent_saves_into_one_folder_wait_for_each_other(tmp_path):
    fits = [
        probdl.infer(normal_normal, np.ones(3), np.full(3, v), method="map", seed=1)
        for v in (0.0, 1.0)
    ]
    for fit in fits:
        fit.save(tmp_path / "first")
    with ThreadPoolExecutor(4) as pool:
        for saving in [pool.submit(fits[i % 2].save, tmp_path / "fit") for i in range(40)]:
            saving.result()
    assert probdl.load(tmp_path / "fit").draws["mu"] in [fit.draws["mu"] for fit in fits]
    assert len([*(tmp_path / "fit").iterdir()]) == 3


FULL_DISK = """
    import resource, signal, sys, numpy as np, probdl
    from probdl.models import normal_normal
    fit = probdl.infer(normal_normal, np.ones(9000), np.ones(9000), method="map", seed=1)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writing beyond the limit raises an error
    limit = int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        fit.save(sys.argv[1])
    except probdl.SettingError as error:
        print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
@pytest.mark.parametrize("limit", [100, 20_000, 100_000])
def test_a_full_disk_keeps_the_previous_fit(saved, limit):
    before = {p.name: p.read_bytes() for p in saved.iterdir()}
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(FULL_DISK)]
    done = subprocess.run(
        [*command, str(saved), str(limit)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "could not be saved" in done.stdout
    assert "The previous fit is unchanged." in done.stdout
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before


def test_files_have_the_permissions_of_other_new_files(saved):
    (saved / "other").write_text("")
    modes = {path.name: path.stat().st_mode for path in saved.iterdir()}
    assert len(set(modes.values())) == 1, modes


def scoped(y):
    mu = pyro.sample("part/mu", dist.Normal(0.0, 10.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("part/y", dist.Normal(mu, 1.0), obs=y)


def test_saved_fits_with_slashes_in_names_are_compared(tmp_path):
    y = torch.tensor([1.0, 2.0, 4.0])
    fits = {str(seed): probdl.infer(scoped, y, method="laplace", seed=seed) for seed in (1, 2)}
    saved = {name: probdl.load(fit.save(tmp_path / name)) for name, fit in fits.items()}
    expected, found = (probdl.compare(each, refit=False) for each in (fits, saved))
    assert found["elpd"].tolist() == pytest.approx(expected["elpd"].tolist())


@pytest.mark.parametrize("name", ["fit.json", "idata.nc", "arrays.safetensors"])
def test_a_folder_in_the_place_of_a_file_is_refused_before_the_save(saved, name):
    (saved / name).unlink()
    (saved / name).mkdir()
    fit = probdl.infer(normal_normal, np.ones(2), np.ones(2), method="map", seed=1)
    with pytest.raises(probdl.SettingError, match=f"{name} in it is a folder"):
        fit.save(saved)
    assert not list(saved.glob("*.new"))


@pytest.mark.parametrize("name", ["a\ud800", "q" * 300])
def test_a_path_that_the_system_does_not_take_is_refused(tmp_path, name):
    fit = probdl.infer(normal_normal, np.ones(2), np.ones(2), method="map", seed=1)
    with pytest.raises(probdl.SettingError):
        fit.save(f"{tmp_path}/{name}")
    with pytest.raises(probdl.ProbdlError):
        probdl.load(f"{tmp_path}/{name}")


def test_text_that_is_no_unicode_is_saved(tmp_path):
    def model(y, label):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    fit = probdl.infer(model, np.ones(2), "\ud800", method="map", seed=1)
    assert probdl.load(fit.save(tmp_path)).program.arguments["label"] == "\ud800"


def test_a_vae_is_saved_without_warnings(tmp_path):
    x = (torch.rand(40, 4, 4, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", probdl.FindingWarning)
        fit = probdl.infer(VAE.mlp((4, 4), 2, hidden=8), x, method=probdl.SVI(steps=50), seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit.save(tmp_path / "fit")


def test_a_method_that_is_passed_for_its_guide_has_the_other_settings_of_the_fit(tmp_path):
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("n", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    def guide(y):
        loc = pyro.param("loc", torch.tensor(0.0))
        pyro.sample("mu", dist.Normal(loc, 0.3))

    y, held_out = torch.arange(10.0), torch.arange(4.0)
    method = probdl.SVI(
        guide=guide, steps=200, draws=50, validation=(held_out,), checkpoint=str(tmp_path / "c")
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", probdl.FindingWarning)
        probdl.infer(model, y, method=method, seed=1).save(tmp_path / "fit")
    loaded = probdl.load(tmp_path / "fit", model=model, method=probdl.SVI(guide=guide))
    assert (loaded.method.steps, loaded.method.draws, loaded.method.checkpoint) == (200, 50, None)
    assert loaded.elbo(y).pointwise is not None
    with pytest.raises(probdl.SettingError, match="method= has steps=300"):
        probdl.load(tmp_path / "fit", model=model, method=probdl.SVI(guide=guide, steps=300))


def test_saving_does_not_run_the_model_for_each_observed_site(tmp_path, monkeypatch):
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        for i in range(len(y)):
            before = y[i - 1] if i == 5 else 0.0
            pyro.sample(f"y{i}", dist.Normal(mu + before, 1.0), obs=y[i])

    fit = probdl.infer(model, np.arange(20.0), method="laplace", seed=1)
    calls = []
    own = predictive.log_likelihood
    monkeypatch.setattr(
        predictive, "log_likelihood", lambda *a, **k: calls.append(1) or own(*a, **k)
    )
    fit.save(tmp_path / "fit")
    assert len(calls) <= 4
