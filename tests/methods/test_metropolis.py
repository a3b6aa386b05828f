"""Metropolis: closed forms, reference posteriors, adaptation and findings."""

import _thread
import os
import threading
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import probdl
from probdl.io.mixing import ess_bulk
from probdl.methods.mcmc import metropolis
from probdl.models import normal_normal
from tests.attack.hostile import no_hang
from tests.reference.files import read, scalars
from tests.reference.posteriors import POSTERIORS

NAMES = [
    "eight_schools-eight_schools_noncentered",
    "sblrc-blr",
    "kidiq-kidscore_interaction",
    "arK-arK",
    "garch-garch11",
]


def assert_agrees(draws, mean, sd):
    """Check means to about four Monte Carlo standard errors, by their effective sample sizes."""
    sizes = {n: ess_bulk(x) for n, x in draws.items()}
    for name, array in draws.items():
        error = sd[name] / np.sqrt(sizes[name])
        assert abs(array.mean() - mean[name]) < 4 * error, name
        assert array.std() == pytest.approx(sd[name], rel=5 / np.sqrt(sizes[name])), name


def test_a_conjugate_posterior():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("obs", len(y)):
            pyro.sample("y", dist.Normal(mu, 2.0), obs=y)

    y = np.array([1.0, 2.0, 4.0])
    fit = probdl.infer(model, y, method="metropolis", seed=1)
    variance = 1 / (1 + 3 / 4)
    assert_agrees(fit.draws, {"mu": variance * y.sum() / 4}, {"mu": variance**0.5})
    assert fit.stats["engine"] == "native"
    assert set(fit.stats) >= {"lp", "acceptance_rate", "step_size"}
    assert 0.3 < fit.stats["acceptance_rate"].mean() < 0.6
    assert not fit.diagnose()
    assert fit.idata.sample_stats["lp"].shape == (4, 1000)


def test_a_density_without_a_gradient():
    """A step function of a site enters the model, so the log density is piecewise flat."""

    def model(y):
        x = pyro.sample("x", dist.Uniform(0.0, 10.0))
        with pyro.plate("obs", len(y)):
            pyro.sample("y", dist.Poisson(1.0 + torch.floor(x)), obs=y)

    y = np.array([4.0, 3.0, 5.0])
    fit = probdl.infer(model, y, method=probdl.Metropolis(draws=2000, thin=20), seed=1)
    rates = 1.0 + np.arange(10)
    log = (y[:, None] * np.log(rates) - rates).sum(0)
    weights = np.exp(log - log.max())
    weights /= weights.sum()
    found = np.array([(np.floor(fit.draws["x"]) == k).mean() for k in range(10)])
    size = float(ess_bulk(fit.draws["x"]))
    np.testing.assert_array_less(
        np.abs(found - weights), 4 * np.sqrt(weights * (1 - weights) / size) + 1e-3
    )


@pytest.mark.skipif("PROBDL_SHARED" not in os.environ, reason="PROBDL_SHARED is not set")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore::probdl.FindingWarning")
def test_reference_posteriors(name):
    """The means agree with the reference, as those of NUTS do in another test."""
    posterior = POSTERIORS[name]
    data, reference, _ = read(Path(os.environ["PROBDL_SHARED"]) / "posteriordb", name)
    method = probdl.Metropolis(draws=2000, warmup=2000, thin=60)
    fit = probdl.infer(posterior.model, *posterior.arguments(data), method=method, seed=1)
    draws = scalars(posterior.parameters(fit.draws, data))
    sizes = {n: ess_bulk(x) for n, x in draws.items()}
    for parameter, known in reference.items():
        error = known["sd"] * np.hypot(1 / np.sqrt(sizes[parameter]), 0.01)
        assert sizes[parameter] > 200, parameter
        assert abs(draws[parameter].mean() - known["mean"]) < 4 * error, parameter


def model_2d(y):
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(w.sum(), 0.1), obs=y)


def test_it_repeats_and_engines_agree():
    y = torch.tensor(1.0)
    method = probdl.Metropolis(draws=50, warmup=50, chains=2)
    one, two = (probdl.infer(model_2d, y, method=method, seed=3) for _ in range(2))
    np.testing.assert_array_equal(one.draws["w"], two.draws["w"])
    eager = probdl.infer(
        model_2d,
        y,
        method=probdl.Metropolis(draws=50, warmup=50, chains=2, engine="eager"),
        seed=3,
    )
    np.testing.assert_allclose(eager.draws["w"], one.draws["w"], rtol=1e-6)


def test_it_adapts_to_correlation():
    fit = probdl.infer(model_2d, torch.tensor(1.0), method="metropolis", seed=1)
    assert 0.15 < fit.stats["acceptance_rate"].mean() < 0.35
    assert not fit.diagnose()


def test_rejected_moves_are_reported():
    method = probdl.Metropolis(draws=200, warmup=0, chains=2)

    def narrow(y):
        w = pyro.sample("w", dist.Normal(torch.zeros(20), 1e-3).to_event(1))
        pyro.sample("y", dist.Normal(w.sum(), 1.0), obs=y)

    with pytest.warns(probdl.FindingWarning, match=r"\(acceptance\).*barely moved"):
        probdl.infer(narrow, torch.tensor(0.0), method=method, seed=1)


def test_ctrl_c_while_the_chains_start_ends_them(monkeypatch):
    class Interrupted(metropolis.ThreadPoolExecutor):
        def submit(self, *args):
            super().submit(*args)
            raise KeyboardInterrupt

    monkeypatch.setattr(metropolis, "ThreadPoolExecutor", Interrupted)
    with no_hang(), pytest.raises(KeyboardInterrupt):
        probdl.infer(
            normal_normal, np.ones(3), np.zeros(3), method=probdl.Metropolis(warmup=10**8), seed=1
        )


@pytest.mark.filterwarnings("ignore::probdl.FindingWarning")
def test_ctrl_c_returns_the_draws_so_far(interruptible):
    method = probdl.Metropolis(draws=10, warmup=10)
    probdl.infer(model_2d, torch.tensor(1.0), method=method, seed=1)  # compiles
    method = probdl.Metropolis(draws=100_000, warmup=10, thin=2000)
    timer = threading.Timer(1.5, _thread.interrupt_main)
    timer.start()
    fit = probdl.infer(model_2d, torch.tensor(1.0), method=method, seed=1)
    assert 0 < fit.num_draws < 100_000
    assert "interrupted" in [f.check for f in fit.diagnose()]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"draws": 0}, "at least 1"),
        ({"thin": 0}, "at least 1"),
        ({"target_accept": 1.0}, "below 1"),
        ({"engine": "nativ"}, "did you mean 'native'"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(probdl.SettingError, match=message):
        probdl.Metropolis(**settings)
