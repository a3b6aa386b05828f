"""NUTS and HMC: statistics, findings, and interruptions."""

import os
import signal
import sys
import threading
import types
import warnings
from dataclasses import replace

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import probdl
from probdl.methods.mcmc import nutpie_adapter
from probdl.models import normal_normal
from probdl.results.diagnostics import check_energy

DATA = (np.ones(4), np.arange(4.0))


def correlated():
    cov = torch.tensor([[1.0, 0.95], [0.95, 1.0]])
    pyro.sample("x", dist.MultivariateNormal(torch.tensor([1.0, -2.0]), cov))


@pytest.mark.filterwarnings("ignore::probdl.FindingWarning")
@pytest.mark.parametrize(
    "method",
    [
        probdl.NUTS(draws=600, warmup=300, chains=2),
        probdl.NUTS(draws=600, warmup=300, chains=2, mass_matrix="diag"),
        probdl.NUTS(draws=600, warmup=300, chains=2, mass_matrix="low_rank"),
        probdl.NUTS(draws=600, warmup=300, chains=2, mass_matrix="dense"),
        probdl.NUTS(draws=600, warmup=300, chains=2, mass_matrix="dense", engine="eager"),
        probdl.HMC(draws=1000, warmup=300, chains=2),
        probdl.HMC(draws=1000, warmup=300, chains=2, engine="eager"),
    ],
    ids=[
        "nuts",
        "nuts-diag",
        "nuts-low-rank",
        "nuts-dense",
        "nuts-dense-eager",
        "hmc",
        "hmc-eager",
    ],
)
def test_a_correlated_normal(method):
    fit = probdl.infer(correlated, method=method, seed=5)
    x = fit.draws["x"]
    error = az.mcse(fit.idata)["x"].values
    assert (abs(x.mean((0, 1)) - [1.0, -2.0]) < 4 * error).all()
    error = az.mcse(fit.idata, method="sd")["x"].values
    assert (abs(x.std((0, 1)) - 1.0) < 4 * error).all()
    y = (x[..., 0] - 1) * (x[..., 1] + 2)
    product = probdl.io.idata.to_idata({"posterior": {"y": y}})
    assert abs(y.mean() - 0.95) < 4 * float(az.mcse(product)["y"])


@pytest.fixture(scope="module", params=["native", "nutpie", "eager"])
def fit(request):
    """A fit of a two-dimensional normal by each sampler: ours, nutpie's and Pyro's."""
    of = {"engine": "eager"} if request.param == "eager" else {"sampler": request.param}
    method = probdl.NUTS(draws=400, warmup=200, chains=2, **of)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", probdl.FindingWarning)
        return probdl.infer(correlated, method=method, seed=6)


def test_stats_have_arvizs_names_and_meanings(fit):
    stats, shape = dict(fit.stats), (2, 400)
    eager, by_nutpie = fit.method.engine == "eager", fit.method.sampler == "nutpie"
    assert stats.pop("engine") == ("eager" if eager else "native")
    assert len(stats.pop("chain_states", ())) == (0 if eager or by_nutpie else 2)
    assert stats.pop("mass_matrix") in ("diag", "low_rank")
    assert {name: stats[name].shape for name in stats} == dict.fromkeys(
        ("lp", "diverging", "energy", "acceptance_rate", "step_size", "n_steps", "tree_depth",
         "reached_max_treedepth"), shape,
    )  # fmt: skip
    assert stats["diverging"].dtype == bool
    assert ((stats["acceptance_rate"] >= 0) & (stats["acceptance_rate"] <= 1)).all()
    assert 0.6 < stats["acceptance_rate"].mean() < 0.97  # target_accept is 0.8
    depth, steps = stats["tree_depth"].astype(int), stats["n_steps"].astype(int)
    # A tree of depth k has 2^k - 1 steps. The last doubling may end early, and except by Pyro, its
    # steps count, but not its depth.
    assert (2 ** (depth + (not eager)) - 1 >= steps).all()
    assert (2 ** (depth - 1) - 1 < steps).all()
    # nutpie jitters the step size by 10 %; nobody adapts it after warm-up.
    assert (np.ptp(stats["step_size"], axis=1) <= 0.25 * stats["step_size"].mean(1)).all()
    # Energy is minus the log density plus a kinetic energy of 2 dimensions, chi²(2) / 2: at the
    # draw itself, and at the draw before it in Pyro.
    if not eager:
        kinetic = stats["energy"] + stats["lp"]
    else:
        kinetic = stats["energy"][:, 1:] + stats["lp"][:, :-1]
    # Newer releases of nutpie add a constant, whose estimate has the standard error of a mean.
    estimated = by_nutpie and nutpie_adapter._private()[0].extra_arguments
    assert (kinetic > (-4 / np.sqrt(400) if estimated else 0)).all()
    error = float(az.mcse(probdl.io.idata.to_idata({"posterior": {"k": kinetic}}))["k"])
    assert abs(kinetic.mean() - 1.0) < 4 * error


def test_lp_is_the_log_density_at_the_draw(fit):
    density = probdl.LogDensity(fit.program, fit.structure)
    z = density.unconstrain(fit.draws)
    np.testing.assert_allclose(density.batch(z).numpy(), fit.stats["lp"])


def funnel():
    v = pyro.sample("v", dist.Normal(0.0, 3.0))
    pyro.sample("x", dist.Normal(torch.zeros(5), (v / 2).exp()).to_event(1))


def test_a_funnel_diverges_and_the_finding_has_a_remedy():
    settings = {"draws": 1000, "warmup": 200, "target_accept": 0.6}  # many divergences
    method = probdl.NUTS(chains=2, max_treedepth=6, **settings)
    with pytest.warns(probdl.FindingWarning, match="transitions diverged"):
        fit = probdl.infer(funnel, method=method, seed=1)
    finding = next(f for f in fit.diagnose() if f.check == "divergences")
    assert str(int(fit.stats["diverging"].sum())) in finding.message
    assert "target_accept" in finding.remedy


@pytest.mark.parametrize("engine", ["native", "eager"])
def test_short_trajectories_are_reported(engine):
    def model():
        cov = torch.tensor([[1.0, 0.9999], [0.9999, 1.0]])
        pyro.sample("x", dist.MultivariateNormal(torch.zeros(2), cov))

    settings = {"max_treedepth": 2, "mass_matrix": "diag", "init": "random", "engine": engine}
    method = probdl.NUTS(draws=100, warmup=100, chains=1, **settings)
    with pytest.warns(probdl.FindingWarning, match="reached max_treedepth=2"):
        fit = probdl.infer(model, method=method, seed=1)
    assert fit.stats["reached_max_treedepth"].mean() > 0.5


@pytest.mark.parametrize("engine", ["native", "eager"])
def test_correlations_are_learnt_in_low_dimensions(engine):
    def model():
        cov = torch.tensor([[1.0, 0.999], [0.999, 1.0]])
        pyro.sample("x", dist.MultivariateNormal(torch.zeros(2), cov))

    steps = {}
    for matrix in ("auto", "diag"):
        method = probdl.NUTS(draws=200, warmup=200, chains=1, mass_matrix=matrix, engine=engine)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", probdl.FindingWarning)
            steps[matrix] = probdl.infer(model, method=method, seed=1).stats["n_steps"].mean()
    assert steps["auto"] < 8 < 20 < steps["diag"]


def test_chains_in_two_modes_do_not_agree():
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 10.0))
        pyro.factor("modes", -((x.abs() - 2) ** 2) * 200)

    with pytest.warns(probdl.FindingWarning, match="chains do not agree"):
        fit = probdl.infer(model, method=probdl.NUTS(draws=50, warmup=50, chains=4), seed=3)
    finding = next(f for f in fit.diagnose() if f.check == "rhat")
    assert finding.severity == "error"
    assert finding.sites == ("x",)
    assert fit.diagnose()[0].severity == "error"  # the most severe first


@pytest.mark.filterwarnings("ignore::probdl.FindingWarning")
def test_ctrl_c_returns_the_draws_of_nutpie(interruptible, monkeypatch):
    method = probdl.NUTS(draws=50_000_000, warmup=50, chains=2, sampler="nutpie")
    wait = nutpie_adapter._wait

    def interrupted(sampling):  # called once sampling has begun
        threading.Timer(2.0, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        return wait(sampling)

    monkeypatch.setattr(nutpie_adapter, "_wait", interrupted)
    fit = probdl.infer(normal_normal, *DATA, method=method, seed=1)
    assert fit.stats["engine"] == "native"
    assert "interrupted" in [f.check for f in fit.diagnose()]
    assert 100 < fit.num_draws < 50_000_000
    assert fit.draws["mu"].shape == fit.stats["lp"].shape == (2, fit.num_draws)
    error = float(az.mcse(fit.idata.sel(draw=slice(0, 2000)), var_names="mu")["mu"])
    assert abs(fit.draws["mu"][:, :2000].mean() - 1.2) < 4 * error  # N(6 / 5, 1 / 5)


@pytest.mark.filterwarnings("ignore::probdl.FindingWarning")
def test_ctrl_c_returns_the_draws_so_far():
    gradients = 0

    def model(sigma, y):
        nonlocal gradients
        gradients += 1
        if gradients == 1500:
            raise KeyboardInterrupt
        normal_normal(sigma, y)

    method = probdl.NUTS(draws=10_000, warmup=50, chains=2, engine="eager")
    fit = probdl.infer(model, *DATA, method=method, seed=1)
    assert fit.diagnose()
    assert "interrupted" in [f.check for f in fit.diagnose()]
    assert 10 < fit.num_draws < 1000
    assert fit.draws["mu"].shape == fit.stats["lp"].shape == (2, fit.num_draws)
    whole = probdl.infer(normal_normal, *DATA, method=replace(method, draws=fit.num_draws), seed=1)
    np.testing.assert_array_equal(whole.draws["mu"], fit.draws["mu"])


def test_ctrl_c_before_the_first_draw_is_an_interrupt():
    def model():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        probdl.infer(model, method="nuts")


@pytest.mark.filterwarnings("ignore::probdl.FindingWarning")
def test_flat_priors_where_pyros_own_nuts_cannot_start():
    def model(y):
        mu = pyro.sample("mu", dist.ImproperUniform(dist.constraints.real, (), ()))
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    fit = probdl.infer(
        model, np.arange(5.0), method=probdl.NUTS(draws=500, warmup=200, chains=2), seed=1
    )
    error = float(az.mcse(fit.idata)["mu"])
    assert abs(fit.draws["mu"].mean() - 2.0) < 4 * error  # N(mean(y), 1 / 5)


@pytest.mark.filterwarnings("ignore::probdl.FindingWarning")
@pytest.mark.parametrize("engine", ["native", "eager"])
def test_progress_is_shown_only_when_asked_or_on_a_terminal(capsys, monkeypatch, engine):
    monkeypatch.setitem(sys.modules, "ipykernel", None)  # a library may have imported it
    method = probdl.NUTS(draws=30, warmup=30, chains=1, engine=engine)
    for progress in (False, None, True):
        probdl.infer(normal_normal, *DATA, method=method, seed=1, progress=progress)
        assert ("sampling" in capsys.readouterr().err) is (progress is True)
    shell = types.SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    probdl.infer(normal_normal, *DATA, method=method, seed=1)
    assert "sampling" in capsys.readouterr().err  # a notebook


def test_centred_effects_of_several_coordinates_are_named():
    sigma = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
    y = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])

    def centred(sigma, y):
        mu = pyro.sample("mu", dist.Normal(torch.zeros(2), 5.0).to_event(1))
        tau = pyro.sample("tau", dist.HalfNormal(5 * torch.ones(2)).to_event(1))
        with pyro.plate("school", len(sigma)):
            effects = dist.MultivariateNormal(torch.zeros(2), scale_tril=tau.diag_embed())
            u = pyro.sample("u", effects)
            pyro.sample("y", dist.Normal(mu + u, sigma[:, None]).to_event(1), obs=y)

    fit = probdl.infer(centred, sigma, np.c_[y, y[::-1]], seed=1)
    finding = next(f for f in fit.diagnose() if f.check == "divergences")
    assert "write 'u' non-centred ('u' as loc + scale_tril @ z" in finding.remedy


def test_one_small_scale_of_effects_of_several_coordinates_makes_a_funnel():
    rng = np.random.default_rng(0)
    group, x = np.repeat(np.arange(12), 10), rng.normal(size=120)
    slopes = 0.5 + 0.1 * rng.normal(size=12)
    y = rng.normal(size=12)[group] + slopes[group] * x + rng.normal(size=120)

    def correlated(group, x, y):
        mean = pyro.sample("mean", dist.Normal(torch.zeros(2), 10.0).to_event(1))
        scale = pyro.sample("scale", dist.HalfNormal(torch.full((2,), 5.0)).to_event(1))
        root = scale[:, None] * pyro.sample("corr", dist.LKJCholesky(2, 2.0))
        with pyro.plate("groups", 12):
            b = pyro.sample("b", dist.MultivariateNormal(mean, scale_tril=root))
        with pyro.plate("row", len(x)):
            pyro.sample("y", dist.Normal(b[group, 0] + b[group, 1] * x, 1.0), obs=y)

    fit = probdl.infer(correlated, group, x, y, seed=1)
    finding = next(f for f in fit.diagnose() if f.check == "divergences")
    assert "write 'b' non-centred" in finding.remedy
    assert "data centred" not in finding.remedy


@pytest.mark.parametrize(
    ("target_accept", "remedy"),
    [(0.6, "target_accept (0.95, 0.99)"), (0.99, "target_accept (0.999)"), (0.9995, "Draw more")],
)
def test_the_remedy_of_divergences_goes_beyond_the_settings(target_accept, remedy):
    stats = {
        "diverging": np.ones((2, 50), bool),
        "energy": np.random.default_rng(0).normal(size=(2, 50)),
    }
    finding = check_energy(stats, [], target_accept)[0]
    assert remedy in finding.remedy


@pytest.mark.filterwarnings("ignore::probdl.FindingWarning")
def test_trajectories_of_hmc_are_bounded_where_step_sizes_shrink_without_end():
    def model(y):
        x = pyro.sample("x", dist.Normal(0.0, 10.0))
        pyro.factor("edge", torch.where(x > 0.9, -torch.inf, 0.0))
        pyro.sample("y", dist.Normal(x, 1.0).expand([20]).to_event(1), obs=y)

    method = probdl.HMC(draws=20, warmup=20, chains=1)
    fit = probdl.infer(model, torch.full((20,), 2.0), method=method, seed=0)
    assert fit.draws["x"].max() <= 0.9
    assert "divergences" in {f.check for f in fit.findings}
