"""NUTS in C: what it samples, and its chains as values."""

import ctypes
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

import probdl
from probdl.compile.kernels import nuts
from probdl.compile.kernels.nuts import RECORD, NutsChain, NutsTask
from probdl.compile.runtime import library, toolchain
from probdl.compile.runtime.called_density import CalledDensity
from probdl.compile.runtime.toolchain import CompilerError
from probdl.methods.mcmc import native_nuts
from probdl.methods.mcmc.blocks import continued
from probdl.methods.mcmc.chains import Chains
from probdl.methods.mcmc.metric import low_rank
from probdl.methods.mcmc.watching import Watcher
from probdl.methods.training.checkpoint import Checkpoint
from probdl.models import eight_schools, normal_normal
from probdl.util.clock import TimeUp, clock

SIGMA = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
Y = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])


def native(**settings):
    return probdl.NUTS(sampler="native", **settings)


def scales():
    pyro.sample("x", dist.Normal(torch.zeros(10), torch.logspace(-3, 3, 10)).to_event(1))
    pyro.sample("g", dist.Gamma(3.0, 2.0))
    pyro.sample("t", dist.StudentT(5.0, 1.0, 2.0))


def correlated():
    index = torch.arange(30)
    covariance = 0.95 ** (index[:, None] - index).abs().double()
    pyro.sample("x", dist.MultivariateNormal(torch.zeros(30), covariance_matrix=covariance))


@pytest.mark.parametrize("mass_matrix", ["diag", "low_rank", "dense"])
def test_known_distributions_are_sampled(mass_matrix):
    fit = probdl.infer(scales, method=native(draws=4000, mass_matrix=mass_matrix), seed=1)
    scale = np.logspace(-3, 3, 10)
    x = fit.draws["x"] / scale
    for i in range(10):
        error = float(az.mcse(x[..., i]))
        assert abs(x[..., i].mean()) < 4.5 * error
        square = x[..., i] ** 2
        assert abs(square.mean() - 1) < 4.5 * float(az.mcse(square))
    for name, known in (("g", stats.gamma(3, scale=0.5)), ("t", stats.t(5, 1, 2))):
        uniform = known.cdf(fit.draws[name])
        for power in (1, 2):
            values = uniform**power
            error = float(az.mcse(values))
            assert abs(values.mean() - 1 / (power + 1)) < 4.5 * error
    assert not fit.stats["diverging"].any()


def test_a_low_rank_metric_saves_gradients():
    by_metric = {
        kind: probdl.infer(correlated, method=native(mass_matrix=kind), seed=1)
        for kind in ("diag", "low_rank")
    }
    x = by_metric["low_rank"].draws["x"]
    for i in (0, 15, 29):
        assert abs((x[..., i] ** 2).mean() - 1) < 4.5 * float(az.mcse(x[..., i] ** 2))
    product = x[..., 3] * x[..., 4]
    assert abs(product.mean() - 0.95) < 4.5 * float(az.mcse(product))
    steps = {kind: fit.stats["n_steps"].mean() for kind, fit in by_metric.items()}
    assert steps["low_rank"] < steps["diag"] / 3


def test_it_agrees_with_nutpie():
    fits = [
        probdl.infer(
            eight_schools, SIGMA, Y, method=probdl.NUTS(sampler=sampler, draws=4000), seed=2
        )
        for sampler in ("native", "nutpie")
    ]
    for name in ("mu", "tau"):
        a, b = (fit.draws[name] for fit in fits)
        error = np.hypot(float(az.mcse(a)), float(az.mcse(b)))
        assert abs(a.mean() - b.mean()) < 4.5 * error
        assert a.std() / b.std() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("rank", [0, 3])
def test_the_energy_is_kept(rank):
    """Trajectories with small steps keep the energy, up to the square of the step."""
    density = probdl.LogDensity.from_model(correlated, ())
    compiled, _ = probdl.compile.choose(density, "native", 0)
    rng = np.random.default_rng(0)
    start = rng.normal(size=30)
    directions = np.linalg.qr(rng.normal(size=(30, rank)))[0].T
    spread = []
    for step in (0.1, 0.05):
        chain = NutsChain(compiled, start, 7, 0.8, 6)
        chain.set_metric(np.linspace(0.5, 1.5, 30), directions, np.array([0.1, 2.0, 5.0])[:rank])
        chain.go_on(step, 0)
        records, z = np.zeros(200, RECORD), np.empty((200, 30))
        task = NutsTask(transitions=200, records=records.ctypes.data, draws=z.ctypes.data)
        chain.run(task)
        assert (records["n_steps"] >= 1).all()
        values = [float(density(torch.from_numpy(point))) for point in z]
        np.testing.assert_allclose(records["lp"], values, rtol=1e-10)
        spread.append(1 - records["acceptance_rate"].mean())
    # While the energy is kept, the first step is always drawn rather than the start.
    assert (np.diff(z, axis=0) != 0).all()
    assert spread[1] < spread[0] / 2.5


@pytest.mark.parametrize("rank", [0, 3])
def test_trajectories_do_not_depend_on_the_size_of_blocks(rank, monkeypatch):
    density = probdl.LogDensity.from_model(correlated, ())
    compiled, _ = probdl.compile.choose(density, "native", 0)
    rng = np.random.default_rng(0)
    start, directions = rng.normal(size=30), np.linalg.qr(rng.normal(size=(30, rank)))[0].T
    found = []
    for size in (1024, 4):

        def in_blocks(source, *names, size=size):
            assert "BLOCK = 1024" in source.text
            text = source.text.replace("BLOCK = 1024", f"BLOCK = {size}")
            return library.loaded(replace(source, text=text), *names)

        monkeypatch.setattr(nuts, "loaded", in_blocks)
        nuts._library.cache_clear()
        chain = NutsChain(compiled, start, 7, 0.8, 6)
        chain.set_metric(np.linspace(0.5, 1.5, 30), directions, np.array([0.1, 2.0, 5.0])[:rank])
        chain.go_on(0.1, 0)
        records, z = np.zeros(20, RECORD), np.empty((20, 30))
        chain.run(NutsTask(transitions=20, records=records.ctypes.data, draws=z.ctypes.data))
        found.append((records["n_steps"], z))
    nuts._library.cache_clear()
    np.testing.assert_array_equal(found[0][0], found[1][0])
    assert len(set(found[0][0])) > 2  # trajectories of several lengths
    np.testing.assert_array_equal(found[0][1], found[1][1])


@pytest.mark.parametrize("mass_matrix", ["diag", "low_rank"])
def test_extended_chains_equal_those_of_one_run(mass_matrix, tmp_path):
    settings = {"mass_matrix": mass_matrix, "warmup": 300, "chains": 3}
    whole = probdl.infer(eight_schools, SIGMA, Y, method=native(draws=300, **settings), seed=3)
    short = probdl.infer(eight_schools, SIGMA, Y, method=native(draws=100, **settings), seed=3)
    kept = {name: draws.copy() for name, draws in short.draws.items()}
    folder = short.save(tmp_path / "fit")
    extended = [
        short.extend(150).extend(50),
        probdl.load(folder, model=eight_schools).extend(200),
    ]
    for fit in extended:
        assert fit.method == whole.method
        for name, draws in whole.draws.items():
            np.testing.assert_array_equal(fit.draws[name], draws)
        for name in ("lp", "energy", "n_steps", "step_size", "diverging"):
            np.testing.assert_array_equal(fit.stats[name], whole.stats[name])
        assert fit.diagnose() == whole.diagnose()
        assert fit.idata.posterior.sizes["draw"] == 300
    for name, draws in kept.items():
        np.testing.assert_array_equal(short.draws[name], draws)


def test_chains_do_not_depend_on_the_number_of_threads(monkeypatch):
    method = native(draws=100, warmup=100, chains=3)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    one = probdl.infer(normal_normal, SIGMA, Y, method=method, seed=1)
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    three = probdl.infer(normal_normal, SIGMA, Y, method=method, seed=1)
    np.testing.assert_array_equal(one.draws["mu"], three.draws["mu"])


def test_an_interrupted_fit_can_go_on(interruptible, monkeypatch):
    monkeypatch.setattr("probdl.methods.mcmc.watching.INTERVAL_S", 0.0)

    def interrupt(chains):
        if chains.num_draws:
            signal.raise_signal(signal.SIGINT)

    def model():
        pyro.sample("x", dist.Normal(torch.zeros(20), 1.0).to_event(1))

    # Small steps, so that no machine makes all draws before the interrupt.
    method = native(draws=10**6, warmup=200, chains=2, callback=interrupt, target_accept=0.9999)
    with pytest.warns(probdl.FindingWarning, match="interrupt"):
        fit = probdl.infer(model, method=method, seed=5)
    count = fit.num_draws
    assert 0 < count < 10**6
    longer = fit.extend(50)
    assert longer.num_draws == count + 50
    state = fit.stats["chain_states"][0]
    np.testing.assert_array_equal(state["z"], fit.draws["x"][0, -1])


def test_fits_without_a_state_say_so():
    method = probdl.NUTS(draws=50, warmup=50, sampler="nutpie")
    fit = probdl.infer(normal_normal, SIGMA, Y, method=method, seed=1)
    with pytest.raises(probdl.SettingError, match="no state to go on from"):
        fit.extend(10)
    fit = probdl.infer(normal_normal, SIGMA, Y, method="laplace", seed=1)
    with pytest.raises(probdl.ModelError, match="has no Markov chain"):
        fit.extend(10)
    fit = probdl.infer(normal_normal, SIGMA, Y, method=native(draws=50, warmup=50), seed=1)
    with pytest.raises(probdl.SettingError, match="draws"):
        fit.extend(0)


def test_chains_without_warm_up_run():
    fit = probdl.infer(normal_normal, SIGMA, Y, method=native(draws=20, warmup=0), seed=1)
    assert fit.draws["mu"].shape == (4, 20)
    assert np.isfinite(fit.draws["mu"]).all()


def test_a_metric_from_few_draws_of_a_normal_density_is_exact():
    rng = np.random.default_rng(0)
    factor = np.tril(rng.normal(size=(40, 40))) + 3 * np.eye(40)
    draws = rng.normal(size=(60, 40)) @ factor.T
    grads = -np.linalg.solve(factor @ factor.T, draws.T).T
    scale, directions, variances = low_rank(draws, grads, 1 + 1e-9)
    inner = np.eye(40) + directions.T @ np.diag(variances - 1) @ directions
    found = scale[:, None] * inner * scale
    np.testing.assert_allclose(found, factor @ factor.T, rtol=0, atol=0.02 * np.abs(found).max())
    assert low_rank(np.zeros((20, 3)), np.ones((20, 3)), 4.0) is None


def test_the_metric_of_many_coordinates_is_small():
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(20, 300_000))  # the square of which fits into no memory
    scale, directions, variances = low_rank(draws, -draws, 4.0)
    assert scale.shape == (300_000,)
    assert directions.shape == (len(variances), 300_000)


def test_chains_of_separate_jobs_are_joined_to_one_run():
    settings = {"draws": 100, "warmup": 200, "chains": 3}
    whole = probdl.infer(eight_schools, SIGMA, Y, method=native(**settings), seed=3)
    parts = [
        probdl.infer(eight_schools, SIGMA, Y, method=native(chain_ids=[i], **settings), seed=3)
        for i in range(3)
    ]
    joined = probdl.concat(parts)
    assert joined.method == whole.method
    for name, draws in whole.draws.items():
        np.testing.assert_array_equal(joined.draws[name], draws)
        np.testing.assert_array_equal(parts[1].draws[name][0], draws[1])
    assert joined.diagnose() == whole.diagnose()
    np.testing.assert_array_equal(joined.extend(20).draws["mu"], whole.extend(20).draws["mu"])
    some = probdl.concat([parts[2], parts[0]])
    assert some.method.chain_ids == (2, 0)
    np.testing.assert_array_equal(some.draws["mu"], whole.draws["mu"][[2, 0]])


def test_fits_that_do_not_belong_together_are_not_joined():
    method = native(draws=50, warmup=50, chains=2, mass_matrix="diag")
    fit = probdl.infer(normal_normal, SIGMA, Y, method=method, seed=1)
    other_seed = probdl.infer(normal_normal, SIGMA, Y, method=method, seed=2)
    assert probdl.concat([fit, other_seed]).num_chains == 4
    longer = native(draws=60, warmup=50, chains=2, mass_matrix="diag")
    for other, error in (
        (fit, "same chains"),
        (probdl.infer(normal_normal, SIGMA, Y + 1, method=method, seed=2), "other data"),
        (probdl.infer(eight_schools, SIGMA, Y, method=method, seed=2), "other sites"),
        (probdl.infer(normal_normal, SIGMA, Y, method=longer, seed=2), "draws=60"),
        (probdl.infer(normal_normal, SIGMA, Y, method="laplace", seed=2), "fits by NUTS"),
    ):
        with pytest.raises((probdl.SettingError, probdl.DataError), match=error):
            probdl.concat([fit, other])


def with_prior(mean):
    def model(y):
        mu = pyro.sample("mu", dist.Normal(mean, 1.0))
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    return model


def test_chains_of_another_density_are_neither_joined_nor_continued(tmp_path):
    models, y = [with_prior(mean) for mean in (0.0, 3.0)], torch.tensor(1.0)
    fits = [
        probdl.infer(model, y, method=native(draws=50, warmup=50, chains=2), seed=seed)
        for seed, model in enumerate(models)
    ]
    with pytest.raises(probdl.DataError, match="fit 1 has another density"):
        probdl.concat(fits)
    fits[0].save(tmp_path / "fit")
    loaded = [probdl.load(tmp_path / "fit", model=model) for model in models]
    np.testing.assert_array_equal(loaded[0].extend(20).draws["mu"], fits[0].extend(20).draws["mu"])
    with pytest.raises(probdl.ModelError, match="another density at the last draws"):
        loaded[1].extend(20)


def test_draws_until_there_are_enough():
    until = probdl.Until(ess=1500, rhat=1.01)
    fit = probdl.infer(
        eight_schools, SIGMA, Y, method=native(draws=100, warmup=500, until=until), seed=3
    )
    assert fit.summary()[["ess_bulk", "ess_tail"]].min().min() > 0.9 * 1500
    assert fit.num_draws < 5000
    same = native(draws=fit.num_draws, warmup=500)
    whole = probdl.infer(eight_schools, SIGMA, Y, method=same, seed=3)
    np.testing.assert_array_equal(fit.draws["mu"], whole.draws["mu"])
    assert fit.method == whole.method
    assert not {"until", "ess"} & {f.check for f in fit.findings}


@pytest.mark.parametrize(("limit", "value"), [("draws", 250), ("time_limit", 1e-6)])
def test_draws_that_end_before_they_are_enough(limit, value):
    few = probdl.Until(**{"ess": 10**9, limit: value})
    method = native(draws=100, warmup=100, until=few)
    with pytest.warns(probdl.FindingWarning, match=f"Until\\({limit}={value}\\) ended the run"):
        fit = probdl.infer(normal_normal, SIGMA, Y, method=method, seed=3)
    assert fit.num_draws == (250 if limit == "draws" else 100)
    assert "until" in {f.check for f in fit.findings}
    assert f"after {fit.num_draws} draws per chain" in str(fit.findings)


def slow():
    """A density whose gradient takes some microseconds."""
    factor = torch.eye(40) + 0.01 * torch.ones(40, 40).tril()
    pyro.sample("x", dist.MultivariateNormal(torch.zeros(40), scale_tril=factor))


def test_a_callback_watches_the_chains_and_ends_them(monkeypatch):
    monkeypatch.setattr("probdl.methods.mcmc.watching.INTERVAL_S", 0.0)
    seen = []

    def watch(chains):
        seen.append(chains)  # its R-hat takes time, in which the chains would go on
        return chains.num_draws < 100

    method = native(draws=500_000, warmup=100, chains=2, callback=watch)
    fit = probdl.infer(slow, method=method, seed=3)
    assert 100 <= fit.num_draws < 500_000
    assert seen[-1].num_draws >= 100
    assert seen[-1].transitions >= 400
    assert seen[-1].ess > 0
    assert 1 < seen[-1].rhat < 2
    assert {finding.check for finding in fit.findings} >= {"callback"}
    assert fit.method.callback is None
    state = fit.stats["chain_states"][-1]  # a chain with far fewer draws is left out
    assert state["transition"] == 100 + fit.num_draws
    np.testing.assert_allclose(state["z"], fit.draws["x"][-1, -1])


@pytest.mark.parametrize(
    "settings",
    [
        {"chain_ids": [4]},
        {"chain_ids": [1, 1]},
        {"chain_ids": []},
        {"chain_ids": True},
        {"chain_ids": "01"},
        {"chain_ids": [True]},
        {"chain_ids": [0.5]},
        {"chain_ids": np.array([4])},
        {"chain_ids": {0: 1}},
        {"checkpoint": 3},
        {"until": 400},
        {"callback": 3},
        {"sampler": "stan"},
        {"sampler": "nutpie", "chain_ids": [1]},
        {"sampler": "nutpie", "until": probdl.Until()},
    ],
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(probdl.SettingError):
        probdl.NUTS(**{"sampler": "native", **settings})
    for wrong in ({"ess": 0}, {"rhat": 1.0}, {"draws": 0}, {"time_limit": -1}):
        with pytest.raises(probdl.SettingError):
            probdl.Until(**wrong)


def test_the_eager_engine_has_none_of_this():
    method = probdl.NUTS(sampler="native", engine="eager", draws=10, warmup=10, chain_ids=[0])
    with pytest.raises(probdl.ModelError, match="engine='eager'"):
        probdl.infer(normal_normal, SIGMA, Y, method=method, seed=1)


@pytest.mark.parametrize(
    "damage",
    [
        {"z": np.zeros(3)},
        {"z": np.zeros(1, np.float32)},
        {"scale": np.full(1, np.nan)},
        {"scale": -np.ones(1)},
        {"directions": np.zeros((5, 1))},
        {"variances": np.zeros(2)},
        {"step": -1.0},
        {"step": "1"},
        {"key": -1},
        {"transition": 2.5},
        {"more": 1},
    ],
)
def test_a_damaged_state_reaches_no_c_code(damage):
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    fit = probdl.infer(model, torch.tensor(1.0), method=native(draws=20, warmup=20), seed=1)
    states = [dict(state) for state in fit.stats["chain_states"]]
    states[1].update(damage)
    with pytest.raises(probdl.DataError, match="state of a chain is damaged"):
        replace(fit, stats=fit.stats | {"chain_states": states}).extend(5)


def test_a_density_without_any_slope_is_refused():
    def flat():
        pyro.sample("x", dist.ImproperUniform(dist.constraints.real, (), ()))

    with pytest.raises(probdl.ModelError, match="does not appear to depend on the sites"):
        probdl.infer(flat, method=native(draws=20, warmup=20), seed=1)


def regression(x, y, scale=1.0):
    a = pyro.sample("a", dist.Normal(0.0, scale))
    b = pyro.sample("b", dist.Normal(torch.zeros(3), scale).to_event(1))
    sigma = pyro.sample("sigma", dist.LogNormal(0.0, 1.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.Normal(a + x @ b, sigma), obs=y)


def rows(count, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 1)) + 0.1 * rng.normal(size=(count, 3))  # almost the same columns
    return x, 1.0 + x @ [1.0, -1.0, 2.0] + 0.5 * rng.normal(size=count)


@pytest.mark.parametrize("mass_matrix", ["auto", "diag", "low_rank", "dense"])
@pytest.mark.parametrize("earlier", [native(draws=500), probdl.SVI(), probdl.Laplace()])
def test_chains_start_from_another_fit(earlier, mass_matrix):
    """Warm-up is short, and the posterior is that of the new data and prior, not of the old."""
    first = probdl.infer(regression, *rows(40, 0), method=earlier, seed=1)
    new = rows(60, 5)
    method = native(start=first, mass_matrix=mass_matrix)
    fit = probdl.infer(regression, *new, 3.0, method=method, seed=2)
    whole = probdl.infer(regression, *new, 3.0, method=native(), seed=3)
    assert {f.check for f in fit.diagnose()} <= {"prior_conflict"}
    for name in ("a", "b", "sigma"):
        for index in np.ndindex(*fit.draws[name].shape[2:]):
            a, b = (of.draws[name][(..., *index)] for of in (fit, whole))
            error = np.hypot(float(az.mcse(a)), float(az.mcse(b)))
            assert abs(a.mean() - b.mean()) < 4.5 * error
            assert abs(a.std() / b.std() - 1) < 0.15
    assert fit.stats["chain_states"][0]["transition"] == 1200  # 200 of them to warm up
    if mass_matrix != "diag":  # as few gradients as after a whole warm-up
        assert fit.stats["n_steps"].mean() < 1.6 * whole.stats["n_steps"].mean()
    longer = probdl.infer(regression, *new, 3.0, method=replace(method, draws=1100), seed=2)
    np.testing.assert_array_equal(fit.extend(100).draws["b"], longer.draws["b"])


def test_a_start_from_another_model_is_refused():
    first = probdl.infer(normal_normal, SIGMA, Y, method="laplace", seed=1)
    with pytest.raises(probdl.ModelError, match="the fit does not have it"):
        probdl.infer(regression, *rows(40, 0), method=native(start=first), seed=1)
    for settings in ({"start": 3}, {"start": first, "init": "random"}):
        with pytest.raises(probdl.SettingError, match="start"):
            native(**settings)


def test_a_start_from_a_point_estimate_has_a_whole_warm_up():
    first = probdl.infer(regression, *rows(40, 0), method="map", seed=1)
    fit = probdl.infer(regression, *rows(40, 0), method=native(start=first, draws=100), seed=1)
    assert fit.stats["chain_states"][0]["transition"] == 1100


KILLED = """
import os, sys, probdl
import numpy as np
from probdl.methods.mcmc import blocks, native_nuts
from tests.methods.test_native_nuts import regression, rows

blocks.BLOCK_SECONDS = 0.0  # a block has FIRST_DRAWS
run, calls = native_nuts.run, []

def killed(*args, **kwargs):
    calls.append(1)
    if len(calls) > int(sys.argv[2]):
        os._exit(9)
    return run(*args, **kwargs)

import probdl.methods.mcmc.nuts as nuts
nuts.native_nuts.run = killed
method = probdl.NUTS(sampler="native", draws=450, chains=2, checkpoint=sys.argv[1])
probdl.infer(regression, *rows(40, 0), method=method, seed=1)
"""


@pytest.mark.parametrize("blocks_done", [0, 1, 3])
def test_a_killed_run_goes_on_from_its_checkpoint(tmp_path, blocks_done):
    settings = {"chains": 2, "warmup": 1000}
    whole = probdl.infer(regression, *rows(40, 0), method=native(draws=450, **settings), seed=1)
    folder = tmp_path / "run"
    words = [sys.executable, "-c", KILLED, str(folder), str(blocks_done)]
    assert subprocess.run(words, check=False, cwd=os.getcwd()).returncode == 9
    assert (folder / "checkpoint.pt").exists() is (blocks_done > 0)
    method = native(draws=450, checkpoint=folder, **settings)
    fit = probdl.infer(regression, *rows(40, 0), method=method, seed=1)
    for name in ("a", "b", "sigma"):
        np.testing.assert_array_equal(fit.draws[name], whole.draws[name])
    np.testing.assert_array_equal(fit.stats["n_steps"], whole.stats["n_steps"])
    assert [f.check for f in fit.findings] == [f.check for f in whole.findings]
    # Done: the same call returns the fit, and one with more draws adds to them.
    more = replace(method, draws=600)
    longer = probdl.infer(regression, *rows(40, 0), method=more, seed=1)
    np.testing.assert_array_equal(longer.draws["b"], whole.extend(150).draws["b"])
    with pytest.raises(probdl.SettingError, match="took 600"):
        probdl.infer(regression, *rows(40, 0), method=method, seed=1)


@pytest.mark.parametrize(
    ("seed", "changed"),
    [(2, {}), (1, {"target_accept": 0.9}), (1, {"chains": 3})],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, seed, changed):
    method = native(draws=20, warmup=50, chains=2, checkpoint=tmp_path)
    probdl.infer(regression, *rows(40, 0), method=method, seed=1)
    with pytest.raises(probdl.SettingError, match="is of another run"):
        probdl.infer(regression, *rows(40, 0), method=replace(method, **changed), seed=seed)
    with pytest.raises(probdl.SettingError, match=r"its (data|arguments) differed"):
        probdl.infer(regression, *rows(40, 3), method=method, seed=1)


def test_a_damaged_checkpoint_reaches_no_c_code(tmp_path):
    method = native(draws=20, warmup=50, chains=2, checkpoint=tmp_path)
    probdl.infer(regression, *rows(40, 0), method=method, seed=1)
    path = tmp_path / "checkpoint.pt"
    saved = torch.load(path, weights_only=True)
    saved["state"]["states"][0]["scale"][0] = -1.0
    torch.save(saved, path)
    with pytest.raises(probdl.ProbdlError, match="is damaged"):
        probdl.infer(regression, *rows(40, 0), method=replace(method, draws=40), seed=1)
    saved["state"]["z"] = saved["state"]["z"][:, :10].clone()
    torch.save(saved, path)
    with pytest.raises(probdl.SettingError, match="cannot be read"):
        probdl.infer(regression, *rows(40, 0), method=replace(method, draws=40), seed=1)


def test_the_callback_sees_the_draws_of_earlier_blocks(monkeypatch):
    monkeypatch.setattr("probdl.methods.mcmc.watching.INTERVAL_S", -1.0)
    running = SimpleNamespace(drawn=3, z=np.full((10, 2), 2.0), step=0.5, done=3, divergences=0)
    seen = []
    Watcher(seen.append, np.ones((1, 5, 2))).ends([running])
    np.testing.assert_array_equal(seen[0].z[0, :, 0], [1.0] * 5 + [2.0] * 3)


def test_a_metric_far_off_does_not_ruin_the_step_size():
    density = probdl.LogDensity.from_model(correlated, ())
    compiled, _ = probdl.compile.choose(density, "native", 0)
    chain = NutsChain(compiled, np.zeros(30), 7, 0.8, 6)
    chain.set_metric(np.full(30, 1e200), np.empty((0, 30)), np.empty(0))  # velocities overflow
    records = np.zeros(20, RECORD)
    chain.run(NutsTask(transitions=20, adapt_step=1, records=records.ctypes.data))
    assert records["diverging"].all()
    assert (records["acceptance_rate"] == 0).all()
    assert 0 < chain.step < 0.1
    chain.set_metric(np.ones(30), np.empty((0, 30)), np.empty(0))
    chain.find_step()
    chain.run(NutsTask(transitions=20, adapt_step=1, records=records.ctypes.data))
    assert records["acceptance_rate"].mean() > 0.3


@pytest.mark.filterwarnings("ignore::probdl.FindingWarning")
@pytest.mark.parametrize("sampler", ["native", "nutpie"])
def test_many_chains_share_few_threads(sampler):
    before, most = threading.active_count(), []

    def count():
        while not done.wait(0.001):
            most.append(threading.active_count())

    done = threading.Event()
    counter = threading.Thread(target=count)
    counter.start()
    method = probdl.NUTS(sampler=sampler, draws=20, warmup=50, chains=400)
    fit = probdl.infer(normal_normal, SIGMA, Y, method=method, seed=1)
    done.set()
    counter.join()
    assert fit.num_chains == 400
    assert max(most) < before + 1 + 2 * (os.cpu_count() or 1) + 8


class Called:
    """A standard normal density in Python, which counts its evaluations."""

    def __init__(self, at_call=None, action=None):
        self.count, self._at_call, self._action = 0, at_call, action

    def value_and_grad(self, z):
        self.count += 1
        if self.count == self._at_call:
            self._action()
        return -0.5 * (z @ z), -z


def test_a_chain_stops_within_a_trajectory():
    records = np.zeros(5, RECORD)
    task = NutsTask(transitions=5, records=records.ctypes.data)
    density = Called(at_call=50, action=lambda: setattr(task, "stop", 1))
    chain = NutsChain(CalledDensity(2, density), np.ones(2), 7, 0.8, 10)
    chain.go_on(1e-5, 0)  # trajectories of 1,023 steps
    chain.run(task)
    assert density.count == 50
    assert task.done == 0
    assert chain.z.tolist() == [1.0, 1.0]
    # The transition is made as if it had not been begun.
    draws = []
    for of in (chain, NutsChain(CalledDensity(2, Called()), np.ones(2), 7, 0.8, 10)):
        of.go_on(0.5, 0)
        of.run(NutsTask(transitions=5, records=records.ctypes.data))
        draws.append(of.z.tolist())
    assert draws[0] == draws[1] != [1.0, 1.0]


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyboardInterrupt()])
def test_an_error_of_a_density_in_python_reaches_the_caller(error):
    def fail():
        raise error

    density = Called(at_call=50, action=fail)
    chain = NutsChain(CalledDensity(2, density), np.ones(2), 7, 0.8, 10)
    records = np.zeros(20, RECORD)
    with pytest.raises(type(error)):
        chain.run(NutsTask(transitions=20, records=records.ctypes.data))
    assert density.count == 50  # it is not called again


def rounded(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    mean = mu + 0 * torch.round(mu, decimals=1)  # mu again, without a C form
    pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


@pytest.mark.filterwarnings("ignore::probdl.FindingWarning")
def test_a_graph_is_sampled_too():
    whole = probdl.infer(rounded, torch.tensor(3.0), method=native(draws=1500), seed=1)
    assert whole.stats["engine"] == "graph"
    mu = whole.draws["mu"]
    assert abs(mu.mean() - 1.5) < 4 * float(az.mcse(mu))  # N(3 / 2, 1 / 2)
    assert abs(mu.std() - 0.5**0.5) < 4 * float(az.mcse(mu, method="sd"))
    part = probdl.infer(rounded, torch.tensor(3.0), method=native(draws=1000), seed=1)
    np.testing.assert_array_equal(part.extend(500).draws["mu"], mu)


@pytest.mark.filterwarnings("ignore::probdl.FindingWarning")
def test_without_a_compiler_pyros_sampler_runs(monkeypatch):
    def none():
        raise CompilerError("there is no C compiler")

    monkeypatch.setattr(toolchain, "find_compiler", none)
    monkeypatch.setattr(library, "_loaded", {})
    monkeypatch.setattr(nuts, "_library", nuts._library.__wrapped__)
    few = native(draws=10, warmup=10, chains=2)
    fit = probdl.infer(normal_normal, SIGMA, Y, method=few, seed=1)
    assert fit.stats["engine"] in ("graph", "eager")
    assert "chain_states" not in fit.stats
    with pytest.raises(probdl.ModelError, match="no C compiler"):
        probdl.infer(normal_normal, SIGMA, Y, method=replace(few, chain_ids=[0]), seed=1)


def test_nutpie_is_not_needed():
    code = """if True:
        import sys
        for name in ("nutpie", "arro3", "arro3.core", "pyarrow", "zarr", "obstore"):
            sys.modules[name] = None  # as if it were not installed
        import numpy as np, probdl
        from probdl.models import normal_normal
        for sampler in ("native", "nutpie"):
            method = probdl.NUTS(draws=20, warmup=20, chains=2, sampler=sampler)
            fit = probdl.infer(normal_normal, np.ones(3), np.arange(3.0), method=method, seed=1)
            print("sampler" in {f.check for f in fit.findings}, fit.draws["mu"].shape)
        print(probdl.doctor().healthy)
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:2] == ["False (2, 20)", "True (2, 20)"]
    assert "not installed; only NUTS(sampler='nutpie') needs it" in done.stdout
    assert done.stdout.splitlines()[-1] == "True"


def test_the_first_trajectories_are_short():
    """Before the metric knows the correlations, long ones would only follow the narrow ridge."""

    def ridge():
        covariance = 0.9999 + 0.0001 * torch.eye(20, dtype=torch.float64)
        pyro.sample("x", dist.MultivariateNormal(torch.zeros(20), covariance_matrix=covariance))

    counter, calls = native_nuts.NutsChain.run, []

    def run(self, task):
        counter(self, task)
        kept = (RECORD.itemsize * task.transitions, task.records)
        steps = np.frombuffer(ctypes.string_at(kept[1], kept[0]), RECORD)["n_steps"]
        calls.append((self._state.transition, int(steps.sum()), int(steps.max(initial=0))))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native_nuts.NutsChain, "run", run)
        probdl.infer(ridge, method=native(draws=50, warmup=1000, chains=1), seed=1)
    early = [steps for transitions, _, steps in calls if transitions <= 100]
    assert max(early) == 63
    assert sum(steps for _, steps, _ in calls) < 20_000  # 60,000 without the limit


class Blocks:
    """Samples blocks of two chains; the one of a number ends early, as ``end`` says."""

    def __init__(self, last, end, chains=2):
        self.last, self.end, self.chains, self.called = last, end, chains, 0

    def __call__(self, draws, states):
        self.called += 1
        if self.called == self.last and isinstance(self.end, BaseException):
            raise self.end
        ends = self.called == self.last
        severity = "error" if self.end == "chain_failed" else "warning"
        findings = [probdl.Finding(severity, self.end, "why", "how")] if ends else []
        shape = (self.chains if ends else 2, draws)
        z = np.full((*shape, 1), self.called, float)
        return Chains(z, {"lp": np.zeros(shape)}, findings, [{"at": self.called}] * shape[0])


@pytest.mark.parametrize("end", ["time_limit", "interrupted", KeyboardInterrupt(), TimeUp(1.0)])
@pytest.mark.parametrize("chains", [1, 2])
def test_chains_that_go_on_keep_the_blocks_that_are_complete(end, chains):
    before = Chains(np.zeros((2, 5, 1)), {"lp": np.zeros((2, 5))}, [], [{}] * 2, [0, 2])
    with clock(60.0):
        found = continued(before, Blocks(3, end, chains), 1000, False)
    done = 700 if isinstance(end, str) and chains == 2 else 300  # 100, 200 and 400
    assert found.z.shape == (2, 5 + done, 1)
    assert found.kept == [0, 2]
    (finding,) = found.findings
    limited = end == "time_limit" or isinstance(end, TimeUp)
    assert finding.check == ("time_limit" if limited else "interrupted")
    assert f"{done} of 1000 further draws" in finding.message
    assert found.states == [{"at": 3 if done == 700 else 2}] * 2


def test_chains_without_a_further_draw_end_as_they_were_ended():
    before = Chains(np.zeros((2, 5, 1)), {"lp": np.zeros((2, 5))}, [], [{}] * 2)
    for end, kind in (("time_limit", TimeUp), ("interrupted", KeyboardInterrupt)):
        with clock(60.0), pytest.raises(kind):
            continued(before, Blocks(1, end, chains=1), 1000, False)
    with pytest.raises(probdl.ModelError, match="why"):
        continued(before, Blocks(1, "chain_failed", chains=1), 1000, False)
    found = continued(before, Blocks(2, "chain_failed", chains=1), 1000, False)
    assert (found.z.shape[1], [f.check for f in found.findings]) == (105, ["chain_failed"])


@pytest.mark.filterwarnings("ignore::probdl.FindingWarning")
def test_a_fit_knows_which_chains_it_lacks(monkeypatch):
    own = probdl.NUTS.run_chains

    def run_chains(self, program, seed, ids):
        if [*ids] == [1]:
            raise probdl.ModelError("All chains failed. The first error: chain 1, after 0 draws: x")
        return own(self, program, seed, ids)

    monkeypatch.setattr(probdl.NUTS, "run_chains", run_chains)
    with ThreadPoolExecutor(1) as executor:
        method = native(draws=200, executor=executor)
        fit = probdl.infer(normal_normal, SIGMA, Y, method=method, seed=1)
    monkeypatch.undo()
    assert fit.method.chain_ids == (0, 2, 3)
    longer = fit.extend(50)
    assert longer.method.chain_ids == (0, 2, 3)
    assert {f.check for f in longer.findings} == {"chain_failed"}

    def chain(i):
        method = native(draws=200, chain_ids=[i])
        return probdl.infer(normal_normal, SIGMA, Y, method=method, seed=1)

    with pytest.raises(probdl.SettingError, match="same chains"):
        probdl.concat([fit, chain(3)])
    whole = probdl.concat([fit, chain(1)])
    assert whole.method.chain_ids is None
    assert "chain_failed" not in {f.check for f in whole.findings}
    expected = probdl.infer(normal_normal, SIGMA, Y, method=native(draws=200), seed=1)
    np.testing.assert_array_equal(whole.draws["mu"], expected.draws["mu"][[0, 2, 3, 1]])
    with pytest.raises(probdl.SettingError, match="a list of fits"):
        probdl.concat(3)


@pytest.mark.filterwarnings("ignore::probdl.FindingWarning")
def test_chains_start_at_draws_inside_the_support():
    def model_of(prior):
        def model(y):
            a = pyro.sample("a", prior)
            pyro.sample("y", dist.Normal(a, 1.0).expand([3]).to_event(1), obs=y)

        return model

    y = np.full(3, 0.3)
    first = probdl.infer(model_of(dist.Normal(0.3, 1.0)), y, seed=1, method=native(draws=200))
    assert (first.draws["a"] < 0).any()
    fit = probdl.infer(model_of(dist.HalfNormal(1.0)), y, seed=1, method=native(start=first))
    expected = stats.truncnorm(-0.225 / 0.5, np.inf, 0.225, 0.5).mean()
    error = float(az.mcse(fit.draws["a"]))
    assert abs(fit.draws["a"].mean() - expected) < 4.5 * error
    low = probdl.infer(model_of(dist.Normal(-9.0, 0.1)), y, seed=1, method=native(draws=50))
    with pytest.raises(probdl.ModelError, match="outside the supports"):
        probdl.infer(model_of(dist.HalfNormal(1.0)), y, seed=1, method=native(start=low))


def test_a_chain_does_not_start_without_a_density():
    class Nowhere(CalledDensity):
        def __init__(self):
            super().__init__(1, SimpleNamespace(value_and_grad=lambda z: (z.sum() * 0 - 1e400, z)))

    running = native_nuts._Running(
        Nowhere(),
        lambda: torch.ones(1, dtype=torch.float64),
        1,
        native_nuts.Settings(5, 5, 0.8, 10, "diag"),
        np.empty((5, 1)),
    )
    running.run()
    assert "not finite where the chain starts" in str(running.failure)


def two_means(y):
    a, b = (pyro.sample(name, dist.Normal(0.0, 1.0)) for name in "ab")
    pyro.sample("y", dist.Normal(a + b, 1.0), obs=y)


def test_a_start_and_a_checkpoint_go_together(tmp_path):
    y = torch.tensor(1.0)
    first = probdl.infer(two_means, y, method=native(draws=300), seed=1)
    method = native(draws=300, start=first, checkpoint=tmp_path)
    fits = [probdl.infer(two_means, y, method=method, seed=1) for _ in range(2)]
    np.testing.assert_array_equal(fits[0].draws["a"], fits[1].draws["a"])
    with pytest.raises(probdl.SettingError, match=r"its start is .*, and now it is None"):
        probdl.infer(two_means, y, method=replace(method, start=None), seed=1)


def test_a_full_disk_does_not_cost_the_draws(tmp_path, monkeypatch):
    def full(self, state):
        raise probdl.SettingError("The checkpoint cannot be written: disk full.")

    method = native(draws=300, chains=2, checkpoint=tmp_path)
    monkeypatch.setattr(Checkpoint, "write", full)
    with pytest.warns(probdl.FindingWarning, match="disk full"):
        fit = probdl.infer(normal_normal, SIGMA, Y, method=method, seed=1)
    assert fit.num_draws == 300
    assert [f.check for f in fit.findings if f.check == "checkpoint"] == ["checkpoint"]


def test_a_checkpoint_with_changed_bytes_is_refused(tmp_path):
    method = native(draws=300, chains=2, checkpoint=tmp_path)
    fit = probdl.infer(normal_normal, SIGMA, Y, method=method, seed=1)
    path = tmp_path / "checkpoint.pt"
    saved = path.read_bytes()
    at = saved.index(fit.draws["mu"][0, 5].tobytes())
    path.write_bytes(saved[:at] + bytes([saved[at] ^ 1]) + saved[at + 1 :])
    with pytest.raises(probdl.SettingError, match="damaged"):
        probdl.infer(normal_normal, SIGMA, Y, method=method, seed=1)


def test_a_callback_may_return_a_boolean_of_numpy(monkeypatch):
    monkeypatch.setattr("probdl.methods.mcmc.watching.INTERVAL_S", 0.0)

    def watch(chains):
        return np.any(chains.num_draws < 100)

    method = native(draws=10**6, warmup=100, chains=2, callback=watch)
    assert probdl.infer(slow, method=method, seed=3).num_draws < 10**6


def test_a_single_draw_is_too_few():
    method = native(draws=1, chains=1)
    with pytest.warns(probdl.FindingWarning, match="too few"):
        probdl.infer(normal_normal, SIGMA, Y, method=method, seed=1)
