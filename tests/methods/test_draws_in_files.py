"""Draws that are written to files, and statistics of arrays in parts."""

import resource
import subprocess
import sys

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import probdl
from benchmarks.starts import HARD
from probdl.io import mixing
from probdl.io.arrays import mapped_array
from probdl.methods.mcmc.chains import Chain, gather
from probdl.util import columns
from probdl.util.clock import TimeUp, clock
from probdl.util.columns import by_columns, slices

Y = np.linspace(-1.0, 2.0, 7)


def model(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    sigma = pyro.sample("site/sigma", dist.HalfNormal(1.0))
    angle = pyro.sample("angle", dist.VonMises(3.0, 2.0))
    pyro.sample("simplex", dist.Dirichlet(torch.ones(3)))
    pyro.deterministic("twice", 2 * mu)
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mu + angle.cos(), sigma), obs=y)


def fit_of(out=None, **settings):
    method = probdl.NUTS(draws=300, warmup=300, chains=2, out=out, **settings)
    return probdl.infer(model, Y, method=method, seed=3)


def test_draws_in_files_equal_those_in_memory(tmp_path):
    fit, expected = fit_of(tmp_path / "draws"), fit_of()
    assert [*fit.draws] == [*expected.draws]
    for name, draws in expected.draws.items():
        assert isinstance(fit.draws[name], np.memmap)
        np.testing.assert_array_equal(fit.draws[name], draws)
    assert fit.draws["angle"].max() > np.pi  # of one turn, around its mean
    files = {"mu", "site%2Fsigma", "angle", "simplex", "twice"}
    assert {path.name for path in (tmp_path / "draws").iterdir()} == {f"{n}.npy" for n in files}
    np.testing.assert_array_equal(np.load(tmp_path / "draws" / "mu.npy"), expected.draws["mu"])
    assert fit.findings == expected.findings
    assert fit.summary().equals(expected.summary())
    assert repr(fit.method) == repr(expected.method)
    np.testing.assert_array_equal(fit.predict()["y"], expected.predict()["y"])


def test_a_fit_with_draws_in_files_is_saved_and_extended(tmp_path):
    fit = fit_of(tmp_path / "draws")
    fit.save(tmp_path / "fit")
    loaded = probdl.load(tmp_path / "fit", model=model)
    expected = fit_of().extend(100)
    for longer in (fit.extend(100), loaded.extend(100)):
        np.testing.assert_array_equal(longer.draws["simplex"], expected.draws["simplex"])


@pytest.mark.filterwarnings("ignore::probdl.FindingWarning")
def test_chains_that_are_run_again_are_written_too(tmp_path):
    arma, data = HARD["arma"]
    settings = {"init": "random", "draws": 150, "warmup": 300}
    fits = [
        probdl.infer(arma, *data(), method=probdl.NUTS(out=out, **settings), seed=3)
        for out in (None, tmp_path)
    ]
    assert "restarted_chain" in {f.check for f in fits[0].findings}
    for name, draws in fits[0].draws.items():
        np.testing.assert_array_equal(fits[1].draws[name], draws)


def test_a_run_that_ends_early_keeps_its_draws(tmp_path, monkeypatch):
    monkeypatch.setattr("probdl.methods.mcmc.watching.INTERVAL_S", 0.0)

    def slow():
        factor = torch.eye(40) + 0.01 * torch.ones(40, 40).tril()
        pyro.sample("x", dist.MultivariateNormal(torch.zeros(40), scale_tril=factor))

    def enough(chains):
        assert chains.z.shape == (2, chains.num_draws, 40)
        return chains.num_draws < 100

    method = probdl.NUTS(draws=100_000, warmup=100, chains=2, callback=enough, out=tmp_path)
    fit = probdl.infer(slow, method=method, seed=3)
    count = fit.num_draws
    assert 100 <= count < 100_000
    assert np.load(tmp_path / "x.npy").shape == (fit.num_chains, count, 40)
    whole = probdl.NUTS(draws=count, warmup=100, chains=2)
    expected = probdl.infer(slow, method=whole, seed=3).draws["x"]
    chains = range(2) if fit.method.chain_ids is None else fit.method.chain_ids
    np.testing.assert_array_equal(fit.draws["x"], expected[[*chains]])


@pytest.mark.parametrize("numbers", [6, 10**6])
def test_chains_of_which_some_are_left_out_move_together(numbers, monkeypatch):
    monkeypatch.setattr(columns, "NUMBERS", numbers)
    whole = np.random.default_rng(0).normal(size=(4, 9, 3))
    before = whole.copy()
    lengths = [2, 8, 9, 7]
    chains = [
        Chain(z[:n], {"lp": z[:n, 0]}, None, lambda count, z=z: {"z": z[count - 1].copy()})
        for z, n in zip(whole, lengths, strict=True)
    ]
    found = gather(chains, 9, None, whole)
    np.testing.assert_array_equal(found.z, before[1:, :7])
    assert np.shares_memory(found.z, whole)
    for state, z in zip(found.states, before[1:], strict=True):
        np.testing.assert_array_equal(state["z"], z[6])


@pytest.mark.parametrize(
    "settings",
    [
        {"out": 3},
        {"until": probdl.Until()},
        {"checkpoint": "folder"},
        {"executor": "threads"},
        {"sampler": "nutpie"},
    ],
)
def test_settings_that_hold_all_draws_in_memory_are_refused(settings):
    with pytest.raises(probdl.SettingError):
        probdl.NUTS(**{"out": "draws", **settings})


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(probdl.SettingError, match=r"could not be written to .*file"):
        fit_of(tmp_path / "file")


def test_a_full_disk_is_an_error_before_the_first_draw(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, before[1]))
    try:
        with pytest.raises(probdl.SettingError, match=r"0\.00373 GiB could not be written"):
            mapped_array(tmp_path, (1000, 500))
        assert mapped_array(tmp_path, (10, 500)).shape == (10, 500)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


MEMORY = """
import sys, threading, time
import pyro, pyro.distributions as dist, torch, probdl
from probdl.util import columns

columns.NUMBERS = 2**18

def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) / 2**10

def model(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("x", dist.LogNormal(mu, 0.1))

def fit(draws, **settings):
    method = probdl.NUTS(draws=draws, warmup=20, chains=2, max_treedepth=3, **settings)
    return probdl.infer(model, torch.zeros(2000), method=method, seed=1)

fit(10)
before, peak, done = anonymous(), 0.0, False

def watch():
    global peak
    while not done:
        peak = max(peak, anonymous())
        time.sleep(0.005)

watcher = threading.Thread(target=watch)
watcher.start()
found = fit(3000, out=sys.argv[1])
done = True
watcher.join()
size = sum(draws.nbytes for draws in found.draws.values()) / 2**20
print(size, peak - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_draws(tmp_path):
    command = [sys.executable, "-W", "ignore", "-c", MEMORY, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    size, added = map(float, done.stdout.split())
    assert size > 90  # MiB; in memory, with the points of R^d, it is three times as much
    assert added < 0.8 * size  # 30 MiB, and more at times, as parts on two threads meet


def test_statistics_in_parts_are_those_of_the_whole(monkeypatch):
    x = np.random.default_rng(1).normal(size=(2, 50, 7, 3)).cumsum(1)
    flat = x.reshape(100, 21)
    figures = mixing.mixing(x, (0.05, 0.95), (1.01, 100.0))
    monkeypatch.setattr(columns, "NUMBERS", 500)
    in_parts = mixing.mixing(x, (0.05, 0.95), (1.01, 100.0))
    np.testing.assert_allclose(in_parts, figures, rtol=1e-14)  # sums in another order
    np.testing.assert_allclose(by_columns(lambda x: x.std(0), flat), flat.std(0), rtol=1e-14)
    assert [len(flat[rows]) for rows in slices(100, flat.size)] == [23, 23, 23, 23, 8]
    assert by_columns(lambda part: part.std(0), np.empty((4, 0))).shape == (0,)
    with clock(0.0), pytest.raises(TimeUp):
        mixing.ess_bulk(x)
