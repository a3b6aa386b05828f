"""SVI: known posteriors, minibatches, interruptions and checkpoints, findings and errors."""

import _thread
import functools
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoLaplaceApproximation, AutoNormal, init_to_median
from torch import nn
from torch.distributions import constraints
from torch.utils.data import DataLoader, TensorDataset

import probdl
from probdl.compile.step import Parameters
from probdl.io.idata import groups
from probdl.methods.training.optimizers import FlatAdam, ScheduledOptimizer
from probdl.methods.variational.training import VariationalTraining
from probdl.models import eight_schools, linear_regression


def location(y, scale=1.0):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("obs", len(y)):
        pyro.sample("y", dist.Normal(mu, scale), obs=y)


@pytest.fixture(scope="module")
def regression():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 3)) @ np.array([[1.0, 0.8, 0.0], [0.0, 1.0, 0.5], [0.0, 0.0, 1.0]])
    return x, x @ [1.0, -2.0, 0.5] + rng.normal(size=300)


def exact(x, noise=1.0, scale=10.0, y=None):
    """Return mean and covariance of intercept and slopes under known noise."""
    design = np.c_[np.ones(len(x)), x]
    covariance = np.linalg.inv(design.T @ design / noise**2 + np.eye(design.shape[1]) / scale**2)
    return covariance @ design.T @ y / noise**2, covariance


def coefficients(fit):
    return np.c_[fit.draws["intercept"].reshape(-1, 1), fit.draws["beta"][0]]


def test_a_full_rank_guide_finds_a_normal_posterior(regression):
    x, y = regression
    mean, covariance = exact(x, y=y)
    method = probdl.SVI(guide="multivariate_normal", steps=20_000, draws=4000)
    fit = probdl.infer(linear_regression, x, y, noise=1.0, method=method, seed=1)
    found = coefficients(fit)
    sd = np.sqrt(np.diag(covariance))
    # The tolerance allows for the error of 4000 draws, and for the noise of stochastic gradients.
    np.testing.assert_array_less(np.abs(found.mean(0) - mean) / sd, 0.1)
    np.testing.assert_allclose(found.std(0) / sd, 1.0, atol=0.1)
    np.testing.assert_allclose(np.corrcoef(found.T), covariance / np.outer(sd, sd), atol=0.1)
    assert fit.stats["engine"] == "native"
    assert fit.stats["pareto_k"] < 0.7
    evidence = fit.stats["log_evidence"]
    assert fit.stats["elbo"][-1000:].mean() == pytest.approx(evidence, abs=0.1)


@pytest.mark.parametrize("guide", ["normal", "diagonal_normal", "lowrank", "iaf", "structured"])
def test_the_automatic_guides_fit(regression, guide):
    x, y = regression
    method = probdl.SVI(guide=guide, steps=3000, learning_rate=0.02)
    fit = probdl.infer(linear_regression, x, y, noise=1.0, method=method, seed=1)
    mean, covariance = exact(x, y=y)
    sd = np.sqrt(np.diag(covariance))
    np.testing.assert_array_less(np.abs(coefficients(fit).mean(0) - mean) / sd, 0.5)
    assert {"mean", "sd"} <= set(fit.summary().columns)
    assert {"posterior", "log_likelihood", "posterior_predictive"} <= set(groups(fit.idata))


def test_the_delta_guide_is_map(regression):
    x, y = regression
    method = probdl.SVI(guide="delta", steps=3000, learning_rate=0.05)
    fit = probdl.infer(linear_regression, x, y, noise=1.0, method=method, seed=1)
    assert fit.is_point
    np.testing.assert_allclose(coefficients(fit)[0], exact(x, y=y)[0], atol=1e-3)
    assert "pareto_k" not in fit.stats


@pytest.mark.parametrize("guide", [AutoNormal, functools.partial(AutoNormal, init_scale=0.5)])
def test_pyros_guide_classes_are_accepted(guide):
    fit = probdl.infer(location, np.ones(8), method=probdl.SVI(guide=guide, steps=2000), seed=1)
    assert fit.draws["mu"].mean() == pytest.approx(8 / 9, abs=4 * (1 / 3) / np.sqrt(1000) + 0.02)


def two_points(y):
    pyro.sample("mu", dist.Delta(pyro.param("at", torch.tensor(0.0))))
    place = pyro.param("sd_at", torch.tensor(1.0), constraint=constraints.positive)
    pyro.sample("sd", dist.Delta(place))


def one_point(y):
    width = pyro.param("width", torch.tensor(1.0), constraint=constraints.positive)
    pyro.sample("mu", dist.Normal(pyro.param("at", torch.tensor(0.0)), width))
    place = pyro.param("sd_at", torch.tensor(1.0), constraint=constraints.positive)
    pyro.sample("sd", dist.Delta(place))


@pytest.mark.filterwarnings("ignore::probdl.FindingWarning")
@pytest.mark.parametrize(
    ("guide", "draws", "findings"),
    [
        (two_points, 1, []),
        (AutoLaplaceApproximation, 1, [("warning", "point_guide")]),
        (one_point, 100, [("info", "point_guide")]),
    ],
)
def test_a_guide_that_is_a_point_has_neither_weights_nor_evidence(guide, draws, findings):
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        sd = pyro.sample("sd", dist.HalfNormal(1.0))
        pyro.sample("y", dist.Normal(mu, sd).expand([9]).to_event(1), obs=y)

    method = probdl.SVI(guide=guide, steps=1000, draws=100)
    fit = probdl.infer(model, np.arange(9) / 4, method=method, seed=0)
    assert fit.draws["sd"].shape == (1, draws)
    assert not {"pareto_k", "log_evidence", "log_weights"} & {*fit.stats}
    found = [(f.severity, f.check) for f in fit.findings if f.check != "not_converged"]
    assert found == findings


@pytest.mark.parametrize("guide", ["multivariate_normal", AutoLaplaceApproximation])
def test_rows_of_random_parts_have_no_joint_guide(guide):
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 3.0))
        with pyro.plate("n", len(y), subsample_size=5) as rows:
            z = pyro.sample("z", dist.Normal(mu, 1.0))
            pyro.sample("y", dist.Normal(z, 0.3), obs=y[rows])

    with pytest.raises(probdl.ModelError, match=r"'z' are in a plate with subsample_size="):
        probdl.infer(model, torch.ones(20), method=probdl.SVI(guide=guide, steps=10), seed=0)


def test_minibatches_estimate_the_same_posterior(regression):
    x, y = regression
    mean, covariance = exact(x, y=y)
    sd = np.sqrt(np.diag(covariance))
    method = probdl.SVI(guide="multivariate_normal", epochs=600, batch_size=64)
    fit = probdl.infer(linear_regression, x, y, noise=1.0, method=method, seed=1)
    assert len(fit.stats["elbo"]) == 600 * 5  # 300 rows in batches of 64, the last of 44
    np.testing.assert_array_less(np.abs(coefficients(fit).mean(0) - mean) / sd, 0.35)
    np.testing.assert_allclose(coefficients(fit).std(0) / sd, 1.0, atol=0.25)


def test_the_loss_of_minibatches_is_scaled_to_all_rows():
    # If all rows are equal, the scaled loss of each batch must equal the loss of all data, also for
    # the short batch. A delta guide has no noise.
    y = torch.full((50,), 0.7)
    settings = {"guide": "delta", "steps": 60, "learning_rate": 1e-12}
    whole = probdl.infer(location, y, method=probdl.SVI(**settings), seed=1)
    parts = probdl.infer(location, y, method=probdl.SVI(batch_size=15, **settings), seed=1)
    np.testing.assert_allclose(whole.stats["elbo"], parts.stats["elbo"], rtol=1e-6)


def test_one_epoch_uses_each_row_once():
    seen = []

    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return 10

        def __getitem__(self, i):
            seen.append(i)
            return torch.tensor(float(i))

    loader = DataLoader(Rows(), batch_size=4, shuffle=True)
    with pytest.warns(probdl.FindingWarning):  # it has not converged
        fit = probdl.infer(location, loader, method=probdl.SVI(epochs=3, draws=30), seed=1)
    assert len(fit.stats["elbo"]) == 9
    epochs = np.array(seen[4:34]).reshape(
        3, 10
    )  # before them, the first batch is used to trace the model
    assert all(sorted(e) == list(range(10)) for e in epochs)
    assert not np.array_equal(epochs[0], epochs[1])


def test_a_data_loader_works_like_batch_size():
    y = torch.from_numpy(np.random.default_rng(0).normal(0.5, 1.0, 200))
    loader = DataLoader(TensorDataset(y), batch_size=50, shuffle=True)
    fit = probdl.infer(location, loader, method=probdl.SVI(epochs=500), seed=1)
    sd = 1 / np.sqrt(201)
    assert fit.draws["mu"].mean() == pytest.approx(float(y.sum()) / 201, abs=0.3 * sd)
    with pytest.raises(probdl.SettingError, match="is the DataLoader's"):
        probdl.infer(location, loader, method=probdl.SVI(batch_size=5), seed=1)
    with pytest.raises(probdl.SettingError, match="needs all the data at once"):
        probdl.infer(location, loader, method="nuts", seed=1)


def test_discrete_sites_are_summed_out():
    def mixture(y):
        low = pyro.sample("low", dist.Normal(-2.0, 1.0))
        gap = pyro.sample("gap", dist.LogNormal(1.0, 0.5))  # positive, so the modes are ordered
        mu = torch.stack([low, low + gap])
        with pyro.plate("obs", len(y)):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.4, 0.6])))
            pyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)

    rng = np.random.default_rng(1)
    y = np.where(rng.random(100) < 0.4, -2.0, 2.0) + rng.normal(size=100)
    fit = probdl.infer(mixture, y, method=probdl.SVI(guide="multivariate_normal"), seed=1)
    nuts = probdl.infer(mixture, y, method="nuts", seed=1)
    for name in ("low", "gap"):
        difference = fit.draws[name].mean() - nuts.draws[name].mean()
        assert abs(difference) < 0.15 * nuts.draws[name].std()


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": torch.optim.SGD, "learning_rate": 1e-3},
        {"optimizer": "RMSprop"},
        {"optimizer": functools.partial(torch.optim.AdamW, weight_decay=0.0, lr=0.02)},
        {"optimizer": pyro.optim.Adam({"lr": 0.02})},
        {"optimizer": pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.999})},
        {"schedule": lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.999)},
        {"kl_annealing": 500},
        {"elbo": "renyi", "num_particles": 2},
        {"elbo": Trace_ELBO(num_particles=3)},
        {"num_particles": 4},
        {"clip_norm": 20.0},
    ],
    ids=lambda settings: " ".join(settings),
)
def test_the_settings_lead_to_the_posterior(settings):
    y = np.full(8, 0.5)
    fit = probdl.infer(location, y, method=probdl.SVI(steps=4000, **settings), seed=2)
    params = fit.stats["params"]
    assert params["AutoNormal.locs.mu"] == pytest.approx(4 / 9, abs=0.1)
    assert params["AutoNormal.scales.mu"] == pytest.approx(1 / 3, abs=0.08)


def test_annealing_raises_the_weight_of_the_kl_term():
    # Without parameter updates, the loss at temperature b is E[-log p(y|z)] + b KL.
    y = np.ones(4)
    settings = {"steps": 2000, "learning_rate": 1e-12, "num_particles": 10, "draws": 30}
    plain = probdl.infer(location, y, method=probdl.SVI(**settings), seed=1)
    annealed = probdl.infer(location, y, method=probdl.SVI(kl_annealing=2000, **settings), seed=1)
    kl = annealed.stats["elbo"][:100].mean() - plain.stats["elbo"].mean()
    half = annealed.stats["elbo"][950:1050].mean() - plain.stats["elbo"].mean()
    assert half / kl == pytest.approx(0.5, abs=0.1)
    assert annealed.stats["elbo"][-100:].mean() == pytest.approx(
        plain.stats["elbo"].mean(), abs=0.2
    )


def test_patience_ends_a_run_that_no_longer_improves():
    method = probdl.SVI(steps=100_000, patience=1000, learning_rate=0.05, schedule="constant")
    fit = probdl.infer(location, np.ones(5), method=method, seed=1)
    assert 1000 < len(fit.stats["elbo"]) < 50_000
    # A constant learning rate leaves noise in the scale of the guide, which may be reported, too.
    assert {f.check for f in fit.diagnose()} - {"biased_moments"} == {"early_stopping"}


def test_a_run_that_is_too_short_is_reported():
    def guide(y):  # starts far away, unlike automatic guides
        mu = pyro.param("loc", torch.tensor(0.0))
        sd = pyro.param("sd", torch.tensor(0.1), constraint=constraints.positive)
        pyro.sample("mu", dist.Normal(mu, sd))

    method = probdl.SVI(guide=guide, steps=200, schedule="constant")
    with pytest.warns(probdl.FindingWarning, match="The ELBO was still rising"):
        probdl.infer(location, np.full(50, 30.0), method=method, seed=1)


def test_the_same_seed_gives_the_same_fit():
    method = probdl.SVI(steps=300, batch_size=4)
    first, second, third = (
        probdl.infer(location, np.arange(10.0) / 10, method=method, seed=s) for s in (1, 1, 2)
    )
    np.testing.assert_array_equal(first.draws["mu"], second.draws["mu"])
    np.testing.assert_array_equal(first.stats["elbo"], second.stats["elbo"])
    assert not np.array_equal(first.draws["mu"], third.draws["mu"])


# -- parameters of the model -----------------------------------------------------------------


class Regression(nn.Module):
    """A network in the style of Pyro's older tutorials."""

    def __init__(self):
        super().__init__()
        self.line = nn.Linear(2, 1)

    def forward(self, x, y=None):
        pyro.module("line", self.line)
        sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
        with pyro.plate("obs", len(x)):
            pyro.sample("y", dist.Normal(self.line(x)[:, 0], sigma), obs=y)


@pytest.fixture(scope="module")
def line():
    rng = np.random.default_rng(3)
    x = rng.normal(size=(400, 2)).astype(np.float32)
    y = (x @ [1.0, -0.5] + 0.3 + 0.2 * rng.normal(size=400)).astype(np.float32)
    return torch.from_numpy(x), torch.from_numpy(y)


def test_weights_of_a_network_are_fitted_in_a_copy(line):
    pyro.clear_param_store()  # a network of probdl.nn that is called on its own registers there
    torch.manual_seed(0)
    module = Regression()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    fit = probdl.infer(module, *line, method=probdl.SVI(steps=3000), seed=1)
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert dict(pyro.get_param_store()) == {}
    assert fit.program.dtype == torch.float32
    least_squares = np.linalg.lstsq(np.c_[line[0], np.ones(400)], line[1], rcond=None)[0]
    weight = fit.model.line.weight.detach().numpy()[0]
    np.testing.assert_allclose(weight, least_squares[:2], atol=0.01)
    assert fit.draws["sigma"].mean() == pytest.approx(0.2, abs=0.03)
    # The fit predicts and scores with the fitted weights, not with the initial ones.
    predicted = fit.predict(line[0])["y"].mean((0, 1))
    assert np.mean((predicted - line[1].numpy()) ** 2) < 0.06
    assert fit.log_predictive(*line).total / 400 > -0.2


def test_a_network_in_a_closure_is_unchanged(line):
    torch.manual_seed(0)
    net = nn.Linear(2, 1)
    before = net.weight.clone()

    def model(x, y=None):
        pyro.module("net", net)
        with pyro.plate("obs", len(x)):
            pyro.sample("y", dist.Normal(net(x)[:, 0], 0.2), obs=y)

    method = probdl.SVI(steps=3000, batch_size=100)  # no latent site: maximum likelihood
    fit = probdl.infer(model, *line, method=method, seed=1)
    assert torch.equal(net.weight, before)
    least_squares = np.linalg.lstsq(np.c_[line[0], np.ones(400)], line[1], rcond=None)[0]
    name = next(n for n in fit.draws if n.endswith("weight"))
    np.testing.assert_allclose(fit.draws[name][0, 0, 0], least_squares[:2], atol=0.02)
    predicted = fit.predict(line[0])["y"][0, 0]
    assert np.mean((predicted - line[1].numpy()) ** 2) < 0.12


# -- findings ------------------------------------------------------------------------------


def test_k_hat_is_high_for_centred_schools_and_low_for_a_regression(schools, regression):
    sigma, effect = schools

    def centred(sigma, y):
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = pyro.sample("tau", dist.HalfCauchy(5.0))
        with pyro.plate("school", len(sigma)):
            theta = pyro.sample("theta", dist.Normal(mu, tau))
            pyro.sample("y", dist.Normal(theta, sigma), obs=y)

    with pytest.warns(probdl.FindingWarning, match="Pareto k-hat"):
        fit = probdl.infer(centred, sigma, effect, method=probdl.SVI(draws=10_000), seed=1)
    assert fit.stats["pareto_k"] > 0.7
    (finding,) = [f for f in fit.diagnose() if f.check == "pareto_k"]
    converged = "not_converged" not in [f.check for f in fit.diagnose()]
    assert finding.remedy.startswith("Train for more steps, if these still raise") is converged
    few = probdl.SVI(steps=100, init={"mu": -30.0})
    fit = probdl.infer(centred, sigma, effect, method=few, seed=1)
    found = {f.check: f for f in fit.diagnose()}
    assert "not_converged" in found
    assert found["pareto_k"].remedy.startswith("Train for more steps. Use method='nuts'")
    with pytest.warns(probdl.FindingWarning, match="a more flexible guide"):
        probdl.infer(centred, sigma, effect, method=probdl.SVI(guide="normal"), seed=1)
    method = probdl.SVI(guide="multivariate_normal")
    fit = probdl.infer(linear_regression, *regression, method=method, seed=1)
    assert fit.stats["pareto_k"] < 0.7
    assert not fit.diagnose()


def falling(y):
    """A model whose scale becomes negative if the learning rate is too high."""
    scale = pyro.param("scale", torch.tensor(0.5))
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("obs", len(y)):
        pyro.sample("y", dist.Normal(mu, scale), obs=y)


@pytest.mark.parametrize("engine", ["native", "eager"])
def test_a_loss_that_is_not_finite_keeps_the_last_good_state(engine):
    guide = functools.partial(AutoNormal, init_loc_fn=init_to_median)
    settings = {"guide": guide, "schedule": "constant", "learning_rate": 0.3}
    method = probdl.SVI(steps=2000, engine=engine, **settings)
    with pytest.warns(probdl.FindingWarning, match=r"The loss became nan at step \d+"):
        fit = probdl.infer(falling, torch.zeros(20), method=method, seed=1)
    finding = next(f for f in fit.diagnose() if f.check == "loss_not_finite")
    assert "site 'y'" in finding.message
    assert finding.severity == "error"
    assert fit.stats["params"]["scale"] > 0
    assert np.isfinite(fit.draws["mu"]).all()
    assert np.isfinite(fit.stats["elbo"]).all()


def test_a_loss_that_is_not_finite_from_the_start_is_an_error():
    def never(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.factor("f", torch.log(-1 - mu**2))

    def guide(y):
        pyro.sample("mu", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))

    with pytest.raises(probdl.ModelError, match="at step 0: the log probability of site 'f'"):
        probdl.infer(never, torch.ones(1), method=probdl.SVI(guide=guide), seed=1)


def test_ctrl_c_returns_the_state_reached(interruptible, monkeypatch):
    method, end = probdl.SVI(steps=5_000_000, draws=50), VariationalTraining.end_block

    def ended(self):
        end(self)
        if self.done == 3000:
            _thread.interrupt_main()

    monkeypatch.setattr(VariationalTraining, "end_block", ended)
    with pytest.warns(probdl.FindingWarning, match="interrupted after"):
        fit = probdl.infer(location, np.ones(5), method=method, seed=1)
    assert fit.draws["mu"].mean() == pytest.approx(5 / 6, abs=0.3)


# -- checkpoints -----------------------------------------------------------------------------

SCRIPT = textwrap.dedent(
    """
    import sys, numpy as np, pyro, pyro.distributions as dist, torch, probdl, warnings
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    kind, folder, out = sys.argv[1:]

    def location(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("obs", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    folder = folder or None
    if kind == "native":
        data = (np.arange(20.0) / 20,)
        model = location
        method = probdl.SVI(steps=200_000, checkpoint=folder, every=20_000, draws=50)
    elif kind == "minibatch":
        def guide(y):
            pyro.sample("mu", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 0.2))

        data = (np.arange(20.0) / 20,)
        model = location
        settings = {"batch_size": 7, "checkpoint": folder, "every": 1000, "draws": 50}
        method = probdl.SVI(guide=guide, steps=9000, **settings)
    else:
        torch.manual_seed(0)
        data = ((torch.rand(200, 4, 4) < 0.5).float(),)
        model = probdl.models.VAE.mlp((4, 4), latent_dim=2, hidden=8)
        method = probdl.SVI(epochs=400, batch_size=64, checkpoint=folder, every=200)
    fit = probdl.infer(model, *data, method=method, seed=5)
    values = np.concatenate([v.ravel() for v in fit.stats["params"].values()])
    np.savez(out, elbo=fit.stats["elbo"], values=values)
    """
)


@pytest.mark.parametrize("kind", ["native", "minibatch", "network"])
def test_a_killed_run_resumes_to_the_same_result(kind, tmp_path):
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)

    def start(folder, out):
        command = [sys.executable, str(script), kind, str(folder), str(out)]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    folder = tmp_path / "checkpoint"
    whole = start("", tmp_path / "whole.npz")
    process = start(folder, tmp_path / "killed.npz")
    deadline = time.monotonic() + 120
    while not (folder / "checkpoint.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed.npz").exists()
    done = torch.load(folder / "checkpoint.pt", weights_only=True)["state"]["done"]
    assert done > 0
    assert start(folder, tmp_path / "resumed.npz").wait() == 0
    assert whole.wait() == 0
    expected, found = np.load(tmp_path / "whole.npz"), np.load(tmp_path / "resumed.npz")
    assert len(expected["elbo"]) > done
    np.testing.assert_array_equal(found["elbo"], expected["elbo"])
    np.testing.assert_array_equal(found["values"], expected["values"])
    assert os.listdir(folder) == ["checkpoint.pt"] or len(os.listdir(folder)) <= 2


@pytest.mark.filterwarnings("ignore::probdl.FindingWarning")
@pytest.mark.parametrize("batch_size", [None, 5, 4])
def test_a_finished_run_continues_to_more_steps(batch_size, tmp_path):
    def fit(steps, folder, schedule="constant"):
        settings = {"schedule": schedule, "batch_size": batch_size, "draws": 20}
        method = probdl.SVI(steps=steps, checkpoint=folder, **settings)
        return probdl.infer(location, np.arange(10.0), method=method, seed=1)

    whole = fit(700, None)
    assert len(fit(300, tmp_path / "a").stats["elbo"]) == 300
    longer = fit(700, tmp_path / "a")
    np.testing.assert_array_equal(longer.stats["elbo"], whole.stats["elbo"])
    with pytest.raises(probdl.SettingError, match="took 700 steps, more than the 400 of this"):
        fit(400, tmp_path / "a")
    fit(300, tmp_path / "b", "cosine")  # its learning rate ends at zero
    with pytest.raises(probdl.SettingError, match="its steps is 300, and now it is 700"):
        fit(700, tmp_path / "b", "cosine")


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    method = probdl.SVI(steps=200, checkpoint=tmp_path, draws=30)
    probdl.infer(location, np.ones(5), method=method, seed=1)
    again = probdl.infer(location, np.ones(5), method=method, seed=1)  # already complete
    assert len(again.stats["elbo"]) == 200
    with pytest.raises(probdl.SettingError, match="its seed is 1, and now it is 2"):
        probdl.infer(location, np.ones(5), method=method, seed=2)
    with pytest.raises(probdl.SettingError, match="another run: its data"):
        probdl.infer(location, np.zeros(5), method=method, seed=1)
    (tmp_path / "checkpoint.pt").write_bytes(b"cut short")
    with pytest.raises(probdl.SettingError, match="cannot be read"):
        probdl.infer(location, np.ones(5), method=method, seed=1)


# -- guides of the user's own -----------------------------------------------------------------


def schools_guide(shape):
    """Return a guide of the eight schools with parameters of this shape for the schools."""

    def guide(sigma, y):
        size = shape or (len(y),)
        positive = {"constraint": constraints.positive}
        loc = pyro.param("loc", torch.zeros(size))
        scale = pyro.param("scale", torch.full(size, 0.5), **positive)
        mu = (
            pyro.param("mu_loc", torch.tensor(4.0)),
            pyro.param("mu_scale", torch.tensor(2.0), **positive),
        )
        tau = (
            pyro.param("tau_loc", torch.tensor(1.0)),
            pyro.param("tau_scale", torch.tensor(0.5), **positive),
        )
        pyro.sample("mu", dist.Normal(*mu))
        pyro.sample("tau", dist.LogNormal(*tau))
        with pyro.plate("schools", len(y)):
            pyro.sample("eta", dist.Normal(loc, scale))

    return guide


def schools(sigma, y=None):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("schools", len(sigma)):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * eta)
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


SIGMA = np.array([15.0, 10, 16, 11, 9, 11, 10, 18])
EFFECTS = np.array([28.0, 8, -3, 7, -1, 1, 18, 12])


@pytest.mark.parametrize("shape", [(8,), None])
@pytest.mark.filterwarnings("ignore::probdl.FindingWarning")
def test_a_guide_with_parameters_for_each_row_has_draws_of_all_sites(shape):
    method = probdl.SVI(guide=schools_guide(shape), steps=1500, learning_rate=0.02, draws=500)
    fit = probdl.infer(schools, SIGMA, EFFECTS, method=method, seed=1)
    assert {name: draws.shape for name, draws in fit.draws.items()} == {
        "mu": (1, 500), "tau": (1, 500), "eta": (1, 500, 8), "theta": (1, 500, 8)
    }  # fmt: skip
    params = fit.stats["params"]
    error = params["scale"] / np.sqrt(500)
    assert (abs(fit.draws["eta"][0].mean(0) - params["loc"]) < 4 * error).all()
    assert fit.draws["mu"].mean() == pytest.approx(4.4, abs=1.0)  # Vehtari et al. (2021)
    assert "theta" in fit.idata.posterior
    assert len(fit.summary()) == 18
    assert fit.log_likelihood()["y"].shape == (1, 500, 8)


class Encoder(torch.nn.Module):
    """A model with a site for each row, a site that rows share, and a guide that reads the data."""

    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(1, 2).double()

    def model(self, y):
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        with pyro.plate("rows", len(y)):
            z = pyro.sample("z", dist.Normal(mu, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    forward = model

    def guide(self, y):
        loc = pyro.param("loc", torch.tensor(0.0))
        scale = pyro.param("scale", torch.tensor(0.5), constraint=constraints.positive)
        pyro.module("net", self.net)
        pyro.sample("mu", dist.Normal(loc, scale))
        with pyro.plate("rows", len(y)):
            z_loc, z_scale = self.net(y[:, None]).unbind(-1)
            pyro.sample("z", dist.Normal(z_loc, z_scale.exp()))


@pytest.mark.filterwarnings("ignore::probdl.FindingWarning")
def test_a_guide_that_computes_the_sites_of_rows_has_draws_of_the_shared_ones():
    y = 3.0 + np.sqrt(2) * np.random.default_rng(0).normal(size=40)
    encoder = Encoder()
    method = probdl.SVI(guide=encoder.guide, steps=2000, learning_rate=0.02, draws=400)
    fit = probdl.infer(encoder, y, method=method, seed=1)
    assert {name: draws.shape for name, draws in fit.draws.items()} == {"mu": (1, 400)}
    loc, scale = fit.stats["params"]["loc"], fit.stats["params"]["scale"]
    assert fit.draws["mu"].mean() == pytest.approx(loc, abs=4 * scale / np.sqrt(400))
    assert fit.draws["mu"].mean() == pytest.approx(y.mean(), abs=0.2)
    assert fit.encode(y[:3])["z"].shape == (3,)
    # Predictions use them: drawn from its prior, mu would have a standard deviation of 10.
    assert fit.predict(y[:1])["y"].std() < 2


# -- bad input -------------------------------------------------------------------------------


def test_guide_and_model_with_different_sites_are_refused():
    def guide(y):
        pyro.sample("nu", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))

    with pytest.raises(probdl.ModelError, match=r"The model has 'mu'; the guide has 'nu'"):
        probdl.infer(location, np.ones(3), method=probdl.SVI(guide=guide), seed=1)


def test_impossible_minibatches_are_refused():
    with pytest.raises(probdl.SettingError, match="the data have 3 rows along plate 'obs'"):
        probdl.infer(location, np.ones(3), method=probdl.SVI(batch_size=4), seed=1)

    def no_plate(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu, 1.0).expand([len(y)]).to_event(1), obs=y)

    with pytest.raises(probdl.ModelError, match="has no data plate"):
        probdl.infer(no_plate, np.ones(3), method=probdl.SVI(batch_size=2), seed=1)

    with pytest.raises(probdl.ModelError, match="automatic guide has parameters for each row"):
        probdl.infer(eight_schools, np.ones(8), np.ones(8), method=probdl.SVI(batch_size=2), seed=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"guide": "normall"}, "did you mean 'normal'"),
        ({"guide": 3}, "must be a name, a function"),
        ({"steps": 0}, "at least 1"),
        ({"steps": 10, "epochs": 1}, "pass one of them"),
        ({"learning_rate": -1}, "above 0"),
        ({"optimizer": "Adamm"}, "a class of torch.optim"),
        ({"optimizer": torch.optim.SGD([torch.zeros(1, requires_grad=True)])}, "the class"),
        ({"schedule": "cosin"}, "'cosine'"),
        ({"elbo": "tracee"}, "did you mean 'trace'"),
        ({"elbo": "renyi"}, "at least 2"),
        ({"engine": "gpu"}, "'native'"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(probdl.SettingError, match=message):
        probdl.SVI(**settings)


def test_an_estimator_that_would_be_biased_is_refused():
    with pytest.raises(probdl.SettingError, match="Jacobian"):
        probdl.infer(location, np.ones(3), method=probdl.SVI(elbo="mean_field"), seed=1)


def test_a_guide_without_parameters_is_refused():
    def fixed(y):
        pyro.sample("mu", dist.Normal(0.0, 1.0))

    with pytest.raises(probdl.ModelError, match="nothing to fit"):
        probdl.infer(location, np.ones(3), method=probdl.SVI(guide=fixed), seed=1)


def test_constrained_parameters_of_a_guide_function_are_fitted():
    def guide(y):
        loc = pyro.param("loc", torch.tensor(0.0))
        scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
        pyro.sample("mu", dist.Normal(loc, scale))

    fit = probdl.infer(location, np.ones(8), method=probdl.SVI(guide=guide, steps=5000), seed=1)
    assert fit.stats["params"]["loc"] == pytest.approx(8 / 9, abs=0.03)
    assert fit.stats["params"]["scale"] == pytest.approx(1 / 3, abs=0.03)
    assert fit.draws["mu"].std() == pytest.approx(1 / 3, abs=0.05)


# -- where automatic guides start ---------------------------------------------------------


def line_with_noise(x, y):
    b = pyro.sample("b", dist.Normal(0.0, 10.0))
    s = pyro.sample("s", dist.HalfNormal(5.0))
    with pyro.plate("n", len(x)):
        pyro.sample("y", dist.Normal(b * x, s), obs=y)


def line_posterior(x, y):
    """Return means and standard deviations of b and s, by quadrature over s."""
    s = np.exp(np.linspace(-3, 3, 40_001))
    precision = (x**2).sum() / s**2 + 1 / 100
    mean = (x * y).sum() / s**2 / precision
    log_p = -len(x) * np.log(s) - (y**2).sum() / (2 * s**2) + mean**2 * precision / 2
    log_p += -np.log(precision) / 2 - s**2 / 50 + np.log(s)  # the grid is even in log(s)
    p = np.exp(log_p - log_p.max())
    p /= p.sum()
    moments = {"b": (p @ mean, p @ (1 / precision + mean**2)), "s": (p @ s, p @ s**2)}
    return {name: (m, (square - m**2) ** 0.5) for name, (m, square) in moments.items()}


@pytest.mark.parametrize("guide", [None, "normal", "lowrank", "multivariate_normal"])
@pytest.mark.parametrize("settings", [{"steps": 4000, "learning_rate": 0.02}, {"steps": 3000}])
def test_a_regression_is_right_at_any_size(settings, guide):
    for seed, (size, unit) in enumerate([(50, 1.0), (200, 1e-4), (1037, 1.0), (1037, 1e4)]):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=size) * unit
        y = 2 * x / unit + 0.7 * rng.normal(size=size)
        method = probdl.SVI(guide=guide, **settings)
        fit = probdl.infer(line_with_noise, x, y, method=method, seed=seed)
        for name, (mean, sd) in line_posterior(x, y).items():
            draws = fit.draws[name]
            # 0.1 for the approximation, and 4 standard errors of 1000 draws
            assert abs(draws.mean() - mean) < (0.1 + 4 / 1000**0.5) * sd, (name, size, unit)
            assert draws.std() / sd == pytest.approx(1.0, abs=0.2), (name, size, unit)


def test_the_first_step_is_near_the_posterior():
    def model(x, y):
        a = pyro.sample("a", dist.Normal(0.0, 5.0))
        s = pyro.sample("s", dist.HalfNormal(1.0))
        with pyro.plate("n", len(x)):
            pyro.sample("y", dist.Normal(a * x, s), obs=y)

    torch.manual_seed(0)
    x = torch.randn(40)
    y = 1.5 * x + 0.3 * torch.randn(40)
    method = probdl.SVI(steps=500, learning_rate=0.02)
    for seed in range(3):
        fit = probdl.infer(model, x, y, method=method, seed=seed)
        assert fit.stats["elbo"][:10].mean() > fit.stats["elbo"][-100:].mean() - 3
        assert fit.draws["a"].mean() == pytest.approx(1.5, abs=0.15)
        assert fit.draws["s"].mean() == pytest.approx(0.3, abs=0.1)
        assert "not_converged" not in [f.check for f in fit.diagnose()]


@pytest.mark.parametrize("scale", [0.05, 3.0])
def test_a_guide_of_another_width_than_the_posterior_is_reported(scale):
    def guide(y):
        pyro.sample("mu", dist.Normal(pyro.param("loc", torch.tensor(0.6)), scale))

    y = np.full(8, 0.675)  # posterior N(0.6, 1/9)
    method = probdl.SVI(guide=guide, steps=500)
    with pytest.warns(probdl.FindingWarning, match="does not match the posterior"):
        fit = probdl.infer(location, y, method=method, seed=1)
    assert {f.check for f in fit.diagnose()} & {"biased_moments", "pareto_k", "weights"}


def test_slight_differences_of_the_weights_are_no_finding():
    # With nearly equal weights, their tail can have any shape.
    rng = np.random.default_rng(0)
    x = rng.normal(size=1037)
    y = 2 * x + 0.7 * rng.normal(size=1037)
    for seed in range(5):
        method = probdl.SVI(steps=10_000, learning_rate=0.02)
        fit = probdl.infer(line_with_noise, x, y, method=method, seed=seed)
        assert not fit.diagnose(), fit.stats["pareto_k"]


@pytest.mark.parametrize("optimizer", ["Adam", "RMSprop", pyro.optim.Adam({"lr": 0.02})])
def test_optimizers_work_in_units_of_the_posterior(optimizer):
    y = np.full(8, 4.0e6)  # posterior: mean 4e6, standard deviation 1e3 / sqrt(8)

    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1e8))
        with pyro.plate("obs", len(y)):
            pyro.sample("y", dist.Normal(mu, 1e3), obs=y)

    method = probdl.SVI(optimizer=optimizer, steps=2000, learning_rate=0.02)
    fit = probdl.infer(model, y, method=method, seed=1)
    sd = 1e3 / 8**0.5
    assert abs(fit.draws["mu"].mean() - 4e6) < 0.2 * sd
    assert fit.draws["mu"].std() / sd == pytest.approx(1.0, abs=0.15)


def test_several_modes_are_reported():
    def mixture(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0).expand([2]).to_event(1))
        with pyro.plate("obs", len(y)):
            z = pyro.sample("z", dist.Categorical(torch.ones(2) / 2))
            pyro.sample("y", dist.Normal(mu[z], 1.0), obs=y)

    rng = np.random.default_rng(0)
    y = np.r_[rng.normal(size=30) - 2, rng.normal(size=25) + 2]
    with pytest.warns(probdl.FindingWarning, match="has several modes"):
        fit = probdl.infer(mixture, y, method=probdl.SVI(steps=1000), seed=1)
    assert [f.severity for f in fit.diagnose() if f.check == "multimodal"] == ["error"]


def test_work_after_training_is_bounded(monkeypatch):
    import probdl.methods.variational.svi as module

    monkeypatch.setattr(module, "WORK_MAX", 5e4)
    y = np.full(250, 0.5)
    method = probdl.SVI(steps=200, engine="eager")
    fit = probdl.infer(location, y, method=method, seed=1)
    assert fit.draws["mu"].shape == fit.stats["log_weights"].shape == (1, 200)
    assert "fewer_draws" in [f.check for f in fit.diagnose()]


def test_compiled_code_weights_draws_of_many_rows(monkeypatch):
    import probdl.methods.variational.svi as module

    y = np.linspace(-1.0, 2.0, 500)
    method = probdl.SVI(steps=500)
    monkeypatch.setattr(module, "COMPILE_WORK_MIN", 0)
    fit = probdl.infer(location, y, method=method, seed=1)
    assert "weighting draws" in fit.timings
    mu = torch.from_numpy(fit.draws["mu"][0])
    likelihood = dist.Normal(mu[:, None], 1.0).log_prob(torch.from_numpy(y)).sum(1)
    lp = dist.Normal(0.0, 1.0).log_prob(mu) + likelihood
    np.testing.assert_allclose(fit.stats["lp"][0], lp, rtol=1e-10)
    precision = 1 + len(y)
    exact = dist.MultivariateNormal(
        torch.zeros(len(y)).double(), torch.eye(len(y)).double() + 1
    ).log_prob(torch.from_numpy(y))
    assert fit.stats["log_evidence"] == pytest.approx(exact.item(), abs=0.05)
    assert fit.draws["mu"].std() == pytest.approx(precision**-0.5, rel=0.15)


@pytest.mark.parametrize("batch_size", [None, 50])
def test_the_native_density_of_the_start_weights_the_draws(batch_size):
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        sigma = pyro.sample("sigma", dist.LogNormal(0.0, 1.0))
        with pyro.plate("obs", len(y)):
            pyro.sample("y", dist.Normal(mu, sigma), obs=y)

    y = np.linspace(-1.0, 2.0, 500)
    method = probdl.SVI(steps=500, batch_size=batch_size)
    fit = probdl.infer(model, y, method=method, seed=1)
    assert "weighting draws" in fit.timings
    mu, sigma = (torch.from_numpy(fit.draws[name][0]) for name in ("mu", "sigma"))
    likelihood = dist.Normal(mu[:, None], sigma[:, None]).log_prob(torch.from_numpy(y)).sum(1)
    prior = dist.Normal(0.0, 1.0).log_prob(mu) + dist.LogNormal(0.0, 1.0).log_prob(sigma)
    np.testing.assert_allclose(fit.stats["lp"][0], prior + likelihood, rtol=1e-9)


def test_draws_of_a_model_with_parameters_are_weighted_at_their_trained_values():
    def model(y):
        scale = pyro.param("scale", torch.tensor(3.0), constraint=constraints.positive)
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("obs", len(y)):
            pyro.sample("y", dist.Normal(mu, scale), obs=y)

    y = np.linspace(-1.0, 2.0, 500)
    fit = probdl.infer(model, y, method=probdl.SVI(steps=2000), seed=1)
    scale, mu = fit.stats["params"]["scale"], torch.from_numpy(fit.draws["mu"][0])
    assert scale == pytest.approx(y.std(), rel=0.05)
    likelihood = dist.Normal(mu[:, None], float(scale)).log_prob(torch.from_numpy(y)).sum(1)
    lp = dist.Normal(0.0, 1.0).log_prob(mu) + likelihood
    np.testing.assert_allclose(fit.stats["lp"][0], lp, rtol=1e-9)


@pytest.mark.parametrize("engine", ["auto", "eager"])
@pytest.mark.parametrize(
    "prior",
    [
        dist.Dirichlet(torch.full((4,), 0.02).double()),
        dist.Dirichlet(torch.full((4,), 2.0).double()),
        dist.LKJCholesky(6, torch.tensor(0.05).double()),
    ],
)
def test_draws_at_an_edge_of_the_support_are_weighted_where_they_are(prior, engine):
    def model(y):
        x = pyro.sample("x", prior)
        with pyro.plate("obs", len(y)):
            pyro.sample("y", dist.Normal(x.reshape(-1)[-2], 50.0), obs=y)

    y = np.linspace(-1.0, 2.0, 5)
    method = probdl.SVI(steps=600, draws=300, engine=engine)
    fit = probdl.infer(model, y, method=method, seed=1)
    x = torch.from_numpy(fit.draws["x"][0])
    mean = x.reshape(len(x), -1)[:, -2]
    lp = prior.log_prob(x) + dist.Normal(mean[:, None], 50.0).log_prob(torch.from_numpy(y)).sum(1)
    np.testing.assert_allclose(fit.stats["lp"][0], lp, rtol=1e-6, atol=1e-6)
    flat = dist.Normal(0.0, 50.0).log_prob(torch.from_numpy(y)).sum().item()
    assert fit.stats["log_evidence"] == pytest.approx(flat, abs=1.5)


def test_enumerated_sites_beside_draws_at_an_edge():
    def model(y):
        p = pyro.sample("p", dist.Dirichlet(torch.full((3,), 0.05).double()))
        with pyro.plate("obs", len(y)):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7])))
            pyro.sample("y", dist.Normal(p[..., 0] + z, 50.0), obs=y)

    y = np.linspace(-1.0, 2.0, 5)
    fit = probdl.infer(model, y, method=probdl.SVI(steps=600, draws=300), seed=1)
    p = torch.from_numpy(fit.draws["p"][0])
    means = p[:, :1, None] + torch.tensor([0.0, 1.0])
    each = dist.Normal(means, 50.0).log_prob(torch.from_numpy(y)[:, None])
    likelihood = (each + torch.tensor([0.3, 0.7]).double().log()).logsumexp(-1).sum(1)
    lp = dist.Dirichlet(torch.full((3,), 0.05).double()).log_prob(p) + likelihood
    np.testing.assert_allclose(fit.stats["lp"][0], lp, rtol=1e-6, atol=1e-6)


def test_a_constant_element_is_not_compared_with_its_rounding():
    def model(y):
        factor = pyro.sample("factor", dist.LKJCholesky(3, 2.0))
        with pyro.plate("obs", len(y)):
            pyro.sample("y", dist.MultivariateNormal(torch.zeros(3), scale_tril=factor), obs=y)

    y = np.random.default_rng(0).normal(size=(30, 3))
    fit = probdl.infer(model, y, method=probdl.SVI(steps=4000), seed=1)
    assert not any("factor[0, 0]" in finding.message for finding in fit.findings)


@pytest.mark.parametrize("guide", ["iaf", "structured", "gaussian"])
def test_guides_that_draw_their_start_take_nested_plates(guide):
    def model(y):
        with pyro.plate("rows", 3, dim=-2):
            scale = pyro.sample("scale", dist.HalfCauchy(1.0))
            with pyro.plate("columns", 4, dim=-1):
                pyro.sample("y", dist.Normal(0.0, scale), obs=y)

    method = probdl.SVI(guide=guide, steps=100, draws=30)
    fit = probdl.infer(model, np.ones((3, 4)), method=method, seed=1)
    assert fit.draws["scale"].shape == (1, 30, 3, 1)


@pytest.mark.parametrize("clip_norm", [None, 0.5])
@pytest.mark.parametrize("units", [None, torch.tensor([4.0, 0.5, 1.0]).double()])
def test_flat_adam_takes_the_steps_of_torch(clip_norm, units):
    def parameters():
        made = Parameters([torch.tensor([1.0, -2.0]).double(), torch.tensor([0.5]).double()])
        made.units = units
        return made

    rates = lambda done: 0.1 * (1 - done)  # noqa: E731
    ours, theirs = parameters(), parameters()
    flat = FlatAdam(ours, rates, clip_norm)
    reference = ScheduledOptimizer(theirs, ["a", "b"], "Adam", 0.1, "linear", clip_norm, True)
    rng = np.random.default_rng(0)
    for step in range(20):
        if step == 10:  # as from a checkpoint
            saved = flat.state()
            flat = FlatAdam(ours, rates, clip_norm)
            flat.load(saved)
        grad = torch.from_numpy(rng.normal(size=3))
        for optimizer, of in ((flat, ours), (reference, theirs)):
            of.flat_grad = grad.clone()
            optimizer.step(step / 20)
        torch.testing.assert_close(ours.flat, theirs.flat, rtol=1e-12, atol=1e-12)


def test_the_user_chooses_where_the_search_begins():
    def two_modes(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        with pyro.plate("obs", len(y)):
            pyro.sample("y", dist.Normal(mu.abs(), 1.0), obs=y)

    y = np.full(20, 3.0)
    for side in (-2.0, 2.0):
        fit = probdl.infer(two_modes, y, method=probdl.SVI(init={"mu": side}), seed=1)
        assert fit.draws["mu"].mean() == pytest.approx(1.5 * side, abs=0.2)
    with pytest.raises(probdl.SettingError, match="init= names 'nu'"):
        probdl.infer(two_modes, y, method=probdl.SVI(init={"nu": 1.0}), seed=1)

    def guide(y):
        pyro.sample("mu", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0))

    method = probdl.SVI(guide=guide, init={"mu": 1.0})
    with pytest.raises(probdl.SettingError, match="set the start in your guide"):
        probdl.infer(two_modes, y, method=method, seed=1)


def test_compiled_code_leaves_the_guides_discrete_sites_out_of_the_weights(monkeypatch):
    import probdl.methods.variational.svi as module

    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7])))
        with pyro.plate("obs", len(y)):
            pyro.sample("y", dist.Normal(mu + z, 1.0), obs=y)

    def guide(y):
        sd = pyro.param("sd", torch.tensor(0.3), constraint=constraints.positive)
        pyro.sample("mu", dist.Normal(pyro.param("loc", torch.tensor(0.5)), sd))
        pyro.sample("z", dist.Categorical(torch.ones(2) / 2), infer={"enumerate": "parallel"})

    y = np.linspace(0.0, 2.0, 20)
    covariance = torch.eye(20).double() + 1
    parts = [
        dist.MultivariateNormal(torch.full((20,), float(z)).double(), covariance)
        .log_prob(torch.from_numpy(y))
        .item()
        + np.log(share)
        for z, share in ((0, 0.3), (1, 0.7))
    ]
    for limit in (module.COMPILE_WORK_MIN, 0):
        monkeypatch.setattr(module, "COMPILE_WORK_MIN", limit)
        method = probdl.SVI(guide=guide, steps=3000, draws=30_000)
        fit = probdl.infer(model, y, method=method, seed=2)
        assert ("weighting draws" in fit.timings) == (limit == 0)
        # The guide is only an approximation, so the estimate has some noise.
        assert fit.stats["log_evidence"] == pytest.approx(np.logaddexp(*parts), abs=0.2)


def test_an_automatic_guide_of_a_support_that_moves_is_an_error():
    def model(y):
        a = pyro.sample("a", dist.LogNormal(0.0, 1.0))
        x = pyro.sample("x", dist.Pareto(a, 3.0))
        pyro.sample("y", dist.Normal(x, 1.0), obs=y)

    with pytest.raises(probdl.ModelError, match="support of 'x' depends on other sites"):
        probdl.infer(model, torch.tensor(1.5), method=probdl.SVI(steps=100), seed=1)


def test_data_computed_from_latent_sites_are_no_prior_conflict():
    def model(x):
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        pyro.sample("residual", dist.Normal(0.0, 0.2).expand([15]).to_event(1), obs=x - b)

    x = 1 + 0.2 * torch.randn(15, generator=torch.Generator().manual_seed(0))
    fit = probdl.infer(model, x, method="laplace", seed=1)
    assert not [f for f in fit.diagnose() if f.check == "prior_conflict"]


def test_the_search_for_a_start_leaves_time_for_the_training(monkeypatch):
    from probdl.methods.variational import starting

    def endless(*args, **kwargs):
        while True:
            torch.zeros(1).add(1)

    monkeypatch.setattr(starting, "best_normal", endless)
    monkeypatch.setattr(starting, "TIME_SHARE", 0.005)
    x = np.random.default_rng(0).normal(size=(30, 2))
    method = probdl.SVI(steps=20, engine="eager", draws=10)
    fit = probdl.infer(
        linear_regression, x, x @ [1.0, 2.0], method=method, seed=1, time_limit=200.0
    )
    assert len(fit.stats["elbo"]) == 20
    assert fit.timings["start"] >= 0.9


def test_a_mean_field_guide_of_correlated_sites_gets_as_far_as_pyro_does():
    rng = np.random.default_rng(0)
    group = torch.arange(300).repeat_interleave(10)
    y = 3 + 2 * rng.normal(size=300)[group] + rng.normal(size=3000)

    def non_centred(y):
        mu, tau = pyro.sample("mu", dist.Normal(0.0, 5.0)), pyro.sample("tau", dist.HalfNormal(3.0))
        sd = pyro.sample("sd", dist.HalfNormal(3.0))
        with pyro.plate("group", 300):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal((mu + tau * z)[group], sd), obs=y)

    plain = functools.partial(AutoNormal, init_loc_fn=init_to_median, init_scale=0.1)
    ours, pyros = (
        probdl.infer(
            non_centred, y, method=probdl.SVI(guide=guide, steps=5000, draws=2), seed=1
        ).stats["elbo"][-500:]
        for guide in ("normal", plain)
    )
    error = (ours.var() + pyros.var()) ** 0.5 / 500**0.5
    assert ours.mean() > pyros.mean() - 5 * error - 10  # it was 75 nats lower
