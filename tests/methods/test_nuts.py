"""NUTS and HMC: their statistics, their findings, and what an interrupt leaves."""

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import probdl
from probdl.models import normal_normal

DATA = (np.ones(4), np.arange(4.0))


def correlated():
    cov = torch.tensor([[1.0, 0.95], [0.95, 1.0]])
    pyro.sample("x", dist.MultivariateNormal(torch.tensor([1.0, -2.0]), cov))


@pytest.mark.filterwarnings("ignore::probdl.FindingWarning")
@pytest.mark.parametrize(
    "method",
    [
        probdl.NUTS(draws=600, warmup=300, chains=2),
        probdl.NUTS(draws=600, warmup=300, chains=2, mass_matrix="dense"),
        probdl.HMC(draws=1000, warmup=300, chains=2),
    ],
    ids=["nuts", "nuts-dense", "hmc"],
)
def test_a_correlated_normal(method):
    fit = probdl.infer(correlated, method=method, seed=5)
    x = fit.draws["x"]
    error = az.mcse(fit.idata)["x"].values
    assert (abs(x.mean((0, 1)) - [1.0, -2.0]) < 4 * error).all()
    error = az.mcse(fit.idata, method="sd")["x"].values
    assert (abs(x.std((0, 1)) - 1.0) < 4 * error).all()
    y = (x[..., 0] - 1) * (x[..., 1] + 2)
    product = probdl.idata.to_idata({"posterior": {"y": y}})
    assert abs(y.mean() - 0.95) < 4 * float(az.mcse(product)["y"])


def test_stats_bear_arviz_names_and_mean_what_they_say(schools_fit):
    stats, shape = schools_fit.stats, (2, 200)
    assert {name: stats[name].shape for name in stats} == dict.fromkeys(
        ("lp", "diverging", "energy", "acceptance_rate", "step_size", "n_steps", "tree_depth",
         "reached_max_treedepth"), shape,
    )  # fmt: skip
    assert stats["diverging"].dtype == bool
    assert ((stats["acceptance_rate"] >= 0) & (stats["acceptance_rate"] <= 1)).all()
    assert 0.6 < stats["acceptance_rate"].mean() < 0.97  # about target_accept
    assert (2 ** stats["tree_depth"] - 1 >= stats["n_steps"]).all()
    assert (2 ** (stats["tree_depth"] - 1) - 1 < stats["n_steps"]).all()
    assert (np.ptp(stats["step_size"], axis=1) == 0).all()  # adapted in warm-up, then fixed
    # Energy is minus the log density plus a kinetic energy of 10 dimensions, chi²(10) / 2.
    kinetic = stats["energy"][:, 1:] + stats["lp"][:, :-1]
    assert (kinetic > 0).all()
    assert abs(kinetic.mean() - 5.0) < 4 * (5.0 / kinetic.size) ** 0.5


def test_lp_is_the_log_density_at_the_draw(schools_fit):
    density = probdl.LogDensity(schools_fit.program, schools_fit.structure)
    z = density.unconstrain(schools_fit.draws)
    np.testing.assert_allclose(density.batch(z).numpy(), schools_fit.stats["lp"])


def funnel():
    v = pyro.sample("v", dist.Normal(0.0, 3.0))
    pyro.sample("x", dist.Normal(torch.zeros(5), (v / 2).exp()).to_event(1))


def test_a_funnel_diverges_and_the_finding_says_what_to_do():
    method = probdl.NUTS(draws=200, warmup=200, chains=2, max_treedepth=6)
    with pytest.warns(probdl.FindingWarning, match="transitions diverged"):
        fit = probdl.infer(funnel, method=method, seed=1)
    finding = next(f for f in fit.diagnose() if f.check == "divergences")
    assert str(int(fit.stats["diverging"].sum())) in finding.message
    assert "target_accept" in finding.remedy


def test_short_trajectories_are_told():
    def model():
        pyro.sample("x", dist.Normal(torch.zeros(2), torch.tensor([1.0, 300.0])).to_event(1))

    method = probdl.NUTS(draws=50, warmup=0, chains=1, max_treedepth=2)
    with pytest.warns(probdl.FindingWarning, match="reached max_treedepth=2"):
        fit = probdl.infer(model, method=method, seed=1)
    assert fit.stats["reached_max_treedepth"].mean() > 0.5


def test_chains_in_two_modes_do_not_agree():
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 10.0))
        pyro.factor("modes", -((x.abs() - 2) ** 2) * 200)

    with pytest.warns(probdl.FindingWarning, match="chains do not agree"):
        fit = probdl.infer(model, method=probdl.NUTS(draws=50, warmup=50, chains=4), seed=3)
    finding = next(f for f in fit.diagnose() if f.check == "rhat")
    assert finding.severity == "error"
    assert finding.sites == ("x",)
    assert fit.diagnose()[0].severity == "error"  # the gravest first


@pytest.mark.filterwarnings("ignore::probdl.FindingWarning")
def test_ctrl_c_returns_the_draws_so_far():
    gradients = 0

    def model(sigma, y):
        nonlocal gradients
        gradients += 1
        if gradients == 1500:
            raise KeyboardInterrupt
        normal_normal(sigma, y)

    method = probdl.NUTS(draws=10_000, warmup=50, chains=2)
    fit = probdl.infer(model, *DATA, method=method, seed=1)
    assert fit.diagnose()
    assert "interrupted" in [f.check for f in fit.diagnose()]
    assert 10 < fit.num_draws < 1000
    assert fit.draws["mu"].shape == fit.stats["lp"].shape == (2, fit.num_draws)
    whole = probdl.infer(
        normal_normal, *DATA, method=probdl.NUTS(draws=fit.num_draws, warmup=50, chains=2), seed=1
    )
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
def test_progress_is_shown_only_when_asked_or_on_a_terminal(capsys):
    method = probdl.NUTS(draws=30, warmup=30, chains=1)
    for progress in (False, None, True):
        probdl.infer(normal_normal, *DATA, method=method, seed=1, progress=progress)
        assert ("sampling" in capsys.readouterr().err) is (progress is True)


def test_the_native_engine_is_not_there_yet():
    with pytest.raises(probdl.SettingError, match="engine='native'"):
        probdl.NUTS(engine="native")
