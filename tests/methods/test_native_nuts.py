"""NUTS in C: what it samples, and its chains as values."""

import os
import signal
import threading
import time

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

import probdl
from probdl.compile.kernels.nuts import RECORD, NutsChain, NutsTask
from probdl.methods.mcmc.metric import low_rank
from probdl.models import eight_schools, normal_normal

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


def test_the_energy_is_kept_and_time_can_be_reversed():
    """Trajectories with small steps keep the energy, up to the square of the step."""
    density = probdl.LogDensity.from_model(correlated, ())
    compiled, _ = probdl.compile.choose(density, "native", 0)
    start = np.random.default_rng(0).normal(size=30)
    spread = []
    for step in (0.1, 0.05):
        chain = NutsChain(compiled, start, 7, 0.8, 6)
        chain.go_on(step, 0)
        records = np.zeros(200, RECORD)
        chain.run(NutsTask(transitions=200, records=records.ctypes.data))
        assert (records["n_steps"] >= 1).all()
        spread.append(1 - records["acceptance_rate"].mean())
    assert spread[1] < spread[0] / 2.5


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


def test_an_interrupted_fit_can_go_on():
    method = native(draws=10**7, warmup=200, chains=2)
    main = threading.main_thread().ident

    def interrupt():
        time.sleep(0.5)
        signal.pthread_kill(main, signal.SIGINT)

    def model():
        pyro.sample("x", dist.Normal(torch.zeros(20), 1.0).to_event(1))

    probdl.infer(model, method=native(draws=10), seed=1)  # so that the time below is for draws
    threading.Thread(target=interrupt).start()
    with pytest.warns(probdl.FindingWarning, match="interrupt"):
        fit = probdl.infer(model, method=method, seed=5)
    count = fit.num_draws
    assert 0 < count < 10**7
    longer = fit.extend(50)
    assert longer.num_draws == count + 50
    state = fit.stats["chain_states"][0]
    np.testing.assert_array_equal(state["z"], fit.draws["x"][0, -1])


def test_fits_without_a_state_say_so():
    fit = probdl.infer(normal_normal, SIGMA, Y, method=probdl.NUTS(draws=50, warmup=50), seed=1)
    with pytest.raises(probdl.SettingError, match="sampler='native'"):
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
