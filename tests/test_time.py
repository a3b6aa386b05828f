"""A time limit, Ctrl-C and a failing chain: partial results are returned and reported."""

import itertools
import threading
import time

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import probdl
from probdl import inference
from probdl.methods import METHODS
from probdl.methods.mcmc.chains import Chain, gather
from probdl.model.preparing import prepared
from probdl.models import normal_normal
from probdl.util.clock import Clock, TimeUp

pytestmark = pytest.mark.filterwarnings("ignore::probdl.FindingWarning")
SIGMA, Y = np.ones(3), np.array([1.0, 2.0, 3.0])
MANY = 10_000_000
ENDLESS = {
    "nuts": probdl.NUTS(draws=MANY, warmup=50, chains=3),
    "eager": probdl.NUTS(draws=100_000, warmup=5, chains=2, engine="eager"),
    "hmc": probdl.HMC(draws=100_000, warmup=5, chains=2),
    "metropolis": probdl.Metropolis(draws=1_000_000, warmup=50, chains=2, thin=1),
    "svi": probdl.SVI(steps=MANY, draws=50),
    "svi_eager": probdl.SVI(steps=MANY, draws=50, engine="eager"),
    "map": probdl.MAP(starts=MANY),
    "mle": probdl.MLE(starts=MANY),
    "laplace": probdl.Laplace(starts=MANY, draws=50),
    "pathfinder": probdl.Pathfinder(paths=1_000_000, draws=50),
    "importance": probdl.Importance(num_samples=MANY * 30, draws=50),
}

# Many per path, with which SVI starts as well; few per large number of draws.
CHECKS = {"pathfinder": 300, "importance": 4, "svi": 5000, "svi_eager": 1500}


@pytest.fixture
def time_passes(monkeypatch):
    """Make the time limit pass after a number of readings of the clock, on every machine."""

    def passes(after):
        left = [after]

        def elapsed(_):
            left[0] -= 1
            return 0.0 if left[0] > 0 else 1e9

        monkeypatch.setattr(Clock, "elapsed", property(elapsed))

    return passes


@pytest.mark.parametrize("name", ENDLESS)
def test_a_time_limit_returns_partial_results(name, time_passes):
    method = ENDLESS[name]
    time_passes(after=CHECKS.get(name, 60))
    with pytest.warns(probdl.FindingWarning, match=r"The time limit of 1\.5 s ended the run after"):
        fit = probdl.infer(normal_normal, SIGMA, Y, method=method, seed=1, time_limit=1.5)
    assert "time_limit" in [f.check for f in fit.diagnose()]
    assert fit.draws["mu"].size < MANY * method.__dict__.get("chains", 1)
    if name not in ("eager", "hmc", "svi", "svi_eager"):  # which may have made little progress
        assert fit.draws["mu"].mean() == pytest.approx(1.5, abs=0.5)


@pytest.mark.parametrize("paths", [1, 3])
def test_drawing_from_a_path_stops_at_the_time_limit(paths, time_passes):
    method = probdl.Pathfinder(paths=paths, draws=5_000_000)
    time_passes(after=200)
    with pytest.warns(
        probdl.FindingWarning, match=r"after 1 of \d paths; their \d+ draws are used"
    ):
        fit = probdl.infer(normal_normal, SIGMA, Y, method=method, seed=1, time_limit=1)
    assert 25 <= fit.num_draws < 5_000_000
    assert fit.draws["mu"].mean() == pytest.approx(1.5, abs=0.5)


def test_draws_after_the_time_limit_take_a_tenth_of_it(monkeypatch):
    readings = itertools.count()
    monkeypatch.setattr(Clock, "elapsed", property(lambda _: float(next(readings))))
    monkeypatch.setattr("probdl.model.vectorize.MAX_NUMBERS_PER_CHUNK", 1)  # one draw at a time
    limit = 10_000.0  # readings of the clock
    fit = probdl.infer(
        normal_normal, Y, method=probdl.SVI(steps=MANY, draws=2000), seed=1, time_limit=limit
    )
    assert 2 <= len(fit.draws["mu"][0]) <= 0.1 * limit + 2
    messages = [f.message for f in fit.findings if f.check == "time_limit"]
    assert any("of 4000 draws; these draws are used" in message for message in messages)


def test_a_gan_stops_at_the_time_limit(time_passes):
    def generator(x):
        net = pyro.module("net", probdl.nn.MLP([1, 4, 1]).double())
        with pyro.plate("rows", len(x)):
            pyro.deterministic(
                "x",
                net(pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))),
                event_dim=1,
            )

    method = probdl.GAN(discriminator=probdl.nn.MLP([1, 4, 1]).double(), steps=MANY)
    time_passes(after=60)
    with pytest.warns(probdl.FindingWarning, match="The time limit of 2 s ended the run"):
        fit = probdl.infer(generator, np.zeros((64, 1)), method=method, seed=1, time_limit=2)
    assert 0 < len(fit.stats["value"]) < MANY


def test_a_limit_that_is_not_reached_changes_nothing():
    method = probdl.NUTS(draws=50, warmup=50, chains=2)
    one = probdl.infer(normal_normal, SIGMA, Y, method=method, seed=1)
    two = probdl.infer(normal_normal, SIGMA, Y, method=method, seed=1, time_limit=1000.0)
    np.testing.assert_array_equal(one.draws["mu"], two.draws["mu"])
    assert two.diagnose() == one.diagnose()
    assert {"compile", "sampling", "total"} <= set(two.timings)
    assert sum(two.timings[part] for part in ("compile", "sampling")) <= two.timings["total"]


def test_a_time_limit_before_any_result_is_an_error():
    with pytest.raises(probdl.TimeLimitError, match="passed before there were results") as error:
        probdl.infer(normal_normal, SIGMA, Y, method="nuts", seed=1, time_limit=1e-9)
    assert isinstance(error.value, TimeoutError)
    assert isinstance(error.value, probdl.ProbdlError)


@pytest.mark.parametrize("limit", [0, -1.0, "long", True, float("nan")])
def test_invalid_time_limits(limit):
    with pytest.raises(probdl.SettingError, match="time_limit"):
        probdl.infer(normal_normal, SIGMA, Y, seed=1, time_limit=limit)


def test_an_interrupt_after_the_last_draw_is_reported():
    chains = [chain(10), chain(10)]
    found = gather(chains, 10, KeyboardInterrupt())
    assert [f.check for f in found.findings] == ["interrupted"]
    assert found.z.shape == (2, 10, 1)
    assert not gather(chains, 10, TimeUp(1.0)).findings
    assert not gather(chains, 10, None).findings


def chain(length, failure=None):
    return Chain(np.arange(float(length))[:, None], {"lp": np.arange(float(length))}, failure)


@pytest.mark.parametrize(
    ("lengths", "shape"),
    [
        ([100, 100, 0, 0], (2, 100)),  # on two cores the other chains have not started
        ([100, 100, 60, 55], (4, 55)),
        ([100, 100, 60, 45], (2, 100)),
        ([7, 9, 8], (3, 7)),
    ],
)
def test_unequal_chains_are_cut_to_keep_the_most_draws(lengths, shape):
    found = gather([chain(n) for n in lengths], 100, TimeUp(1.0))
    assert found.z.shape == (*shape, 1)
    assert found.stats["lp"].shape == shape
    assert [f.check for f in found.findings] == ["time_limit"]


def test_a_failed_chain_is_excluded_and_reported():
    found = gather([chain(9), chain(4, ValueError("overflow")), chain(9)], 9, None)
    assert found.z.shape == (2, 9, 1)
    assert [(f.severity, f.check) for f in found.findings] == [("error", "chain_failed")]
    assert "1 of 3 chains failed" in found.findings[0].message
    assert "chain 1 failed after 4 draws: overflow" in found.findings[0].message
    with pytest.raises(
        probdl.ModelError, match=r"All chains failed\. The first error: chain 0, after 0"
    ):
        gather([chain(0, ValueError("overflow"))], 9, None)


@pytest.mark.parametrize("kind", [probdl.HMC, probdl.Metropolis])
def test_a_model_that_fails_once_loses_only_that_chain(kind):
    calls = []

    def fragile(y):
        calls.append(1)
        if len(calls) == 800:
            float("a rare case")
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    method = kind(draws=300, warmup=50, chains=4, engine="eager")
    with pytest.warns(probdl.FindingWarning, match=r"1 of 4 chains failed.*a rare case"):
        fit = probdl.infer(fragile, torch.tensor(1.0), method=method, seed=2)
    assert (fit.num_chains, fit.num_draws) == (3, 300)
    assert fit.draws["mu"].mean() == pytest.approx(0.5, abs=0.3)


def test_a_chain_without_start_uses_the_start_of_another(monkeypatch):
    original = probdl.LogDensity.initial
    failed = []

    def initial(self, *args, **kwargs):
        if threading.current_thread() is not threading.main_thread() and not failed:
            failed.append(1)  # in one of nutpie's threads
            raise probdl.ModelError("the model 'normal_normal' has no finite log density")
        return original(self, *args, **kwargs)

    monkeypatch.setattr(probdl.LogDensity, "initial", initial)
    method = probdl.NUTS(draws=100, warmup=100, chains=4)
    fit = probdl.infer(normal_normal, SIGMA, Y, method=method, seed=1)
    assert fit.num_chains == 4
    assert "1 chain found no start" in str(fit.diagnose())


@pytest.mark.parametrize("name", sorted(METHODS))
def test_the_total_is_what_the_call_took(name, monkeypatch):
    def slow_program(*args, **kwargs):
        time.sleep(0.2)
        return prepared(*args, **kwargs)

    def slow_check(*args):
        time.sleep(0.3)
        return []

    monkeypatch.setattr(inference, "prepared", slow_program)  # before the method
    monkeypatch.setattr(inference, "model_findings", slow_check)  # after it
    settings, model, data = {}, normal_normal, (SIGMA, Y)
    if name == "gan":

        def model(x=None):
            scale = pyro.param("scale", torch.tensor(1.0))
            with pyro.plate("data", 1 if x is None else len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
                pyro.deterministic("x", scale * z, event_dim=1)

        data = (np.zeros((64, 1)),)
        settings = {"discriminator": probdl.nn.MLP([1, 4, 1]).double(), "steps": 20}
    elif name == "svi":
        settings = {"steps": 20}
    start = time.perf_counter()
    fit = probdl.infer(model, *data, method=METHODS[name](**settings), seed=1)
    took = time.perf_counter() - start
    parts = sum(seconds for part, seconds in fit.timings.items() if part != "total")
    assert parts == pytest.approx(fit.timings["total"])
    assert fit.timings["other"] >= 0.2
    assert fit.timings["checks"] >= 0.3
    assert fit.timings["total"] <= took
