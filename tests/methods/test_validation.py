"""Held-out data along the training of SVI."""

import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import probdl
from probdl.methods.variational.convergence import check_convergence
from probdl.plots import plot_elbo


def regression(x, y=None):
    w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([x.shape[1]]).to_event(1))
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)


def rows(count, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    return x, x.sum(1) + torch.randn(count, generator=generator, dtype=torch.float64)


class Coder(nn.Module):
    """A VAE with batch normalisation and many units for few rows, so that it overfits."""

    def __init__(self, width=100):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(20, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 8)
        )
        self.decoder = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 20))

    def forward(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 4), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        loc, scale = self.encoder(x).chunk(2, -1)
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(loc, torch.nn.functional.softplus(scale)).to_event(1))


def binary_rows(count, seed):
    generator = torch.Generator().manual_seed(seed)
    common = torch.rand(count, 1, generator=generator) < 0.5
    flips = torch.rand(count, 20, generator=generator) < 0.3
    return (common ^ flips).float()


@pytest.fixture(scope="module")
def overfitted():
    torch.manual_seed(0)
    method = probdl.SVI(steps=3000, learning_rate=1e-3, validation=(binary_rows(200, 2),))
    return probdl.infer(Coder(), binary_rows(40, 1), method=method, seed=1)


def test_the_held_out_elbo_is_that_of_the_fit_at_the_held_out_data():
    x, y = rows(100, 1)
    held_out = rows(50, 2)
    fit = probdl.infer(regression, x, y, method=probdl.SVI(steps=3000, validation=held_out), seed=1)
    exact = fit.elbo(*held_out, num_samples=1000).pointwise
    # The same for 100 draws, whose standard error is about 0.01 per row.
    assert fit.stats["validation_elbo"][-1] == pytest.approx(exact.mean(), abs=0.05)
    assert fit.stats["validation_steps"][-1] == 3000
    parts = sum(seconds for part, seconds in fit.timings.items() if part != "total")
    assert parts == pytest.approx(fit.timings["total"])
    assert fit.timings["other"] >= 0  # an evaluation is not part of the training twice
    assert len(fit.stats["validation_elbo"]) == len(fit.stats["validation_steps"]) > 20


def test_a_converged_posterior_is_not_moved_by_the_noise_of_held_out_data():
    x, y = rows(100, 1)
    plain, validated = (
        probdl.infer(regression, x, y, method=probdl.SVI(steps=4000, validation=v), seed=1)
        for v in (None, rows(50, 2))
    )
    assert validated.stats["best_step"] == 4000
    np.testing.assert_array_equal(validated.stats["elbo"], plain.stats["elbo"])


@pytest.mark.parametrize("form", ["dict", "arrays", "loader", "minibatches"])
def test_forms_of_held_out_data(form):
    x, y = rows(60, 1)
    xt, yt = rows(30, 2)
    forms = {
        "dict": {"x": xt, "y": yt},
        "arrays": (xt.numpy(), yt.numpy()),
        "loader": DataLoader(TensorDataset(xt, yt), batch_size=7),
        "minibatches": (xt, yt),
    }
    settings = {"batch_size": 20} if form == "minibatches" else {}
    fit = probdl.infer(
        regression,
        x,
        y,
        method=probdl.SVI(steps=1000, learning_rate=0.05, validation=forms[form], **settings),
        seed=1,
    )
    exact = fit.elbo(xt, yt, num_samples=1000).pointwise.mean()
    assert fit.stats["validation_elbo"][-1] == pytest.approx(exact, abs=0.1)


def test_a_loader_with_a_declared_size_is_scaled_once():
    def model(x, y=None, size=60):
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        with pyro.plate("rows", size, subsample_size=len(x)):
            pyro.sample("y", dist.Normal(x @ w, 1.0), obs=y)

    loader = DataLoader(TensorDataset(*rows(60, 1)), batch_size=20)
    method = probdl.SVI(steps=1000, learning_rate=0.05, validation=rows(30, 2))
    fit = probdl.infer(model, loader, method=method, seed=1)
    assert -2.5 < fit.stats["validation_elbo"][-1] < -1.0  # -log N(y; mean, 1) is about 1.5


def test_the_state_with_the_best_held_out_elbo_is_kept(overfitted):
    best = overfitted.stats["best_step"]
    steps, values = overfitted.stats["validation_steps"], overfitted.stats["validation_elbo"]
    assert best == steps[np.argmax(values)] < 3000
    held_out = overfitted.elbo(binary_rows(200, 2), num_samples=1000).pointwise.mean()
    # With the running statistics of that step, too.
    assert held_out == pytest.approx(values.max(), abs=0.3)
    assert values[-1] < values.max() - 1.0
    (finding,) = [f for f in overfitted.diagnose() if f.check == "validation"]
    assert finding.severity == "info"
    assert f"step {best} of 3000" in finding.message
    assert "held-out ELBO" in str(overfitted)


def test_patience_is_that_of_the_held_out_elbo():
    torch.manual_seed(0)
    settings = {"steps": 3000, "learning_rate": 1e-3, "schedule": "constant"}
    method = probdl.SVI(**settings, patience=500, validation=(binary_rows(200, 2),))
    fit = probdl.infer(Coder(), binary_rows(40, 1), method=method, seed=1)
    assert 500 < len(fit.stats["elbo"]) < 3000
    (finding,) = [f for f in fit.diagnose() if f.check == "early_stopping"]
    assert "held-out ELBO" in finding.message


def test_held_out_data_do_not_change_the_training(overfitted):
    torch.manual_seed(0)
    plain = probdl.infer(
        Coder(),
        binary_rows(40, 1),
        method=probdl.SVI(steps=500, learning_rate=1e-3, schedule="constant"),
        seed=1,
    )
    torch.manual_seed(0)
    validated = probdl.infer(
        Coder(),
        binary_rows(40, 1),
        method=probdl.SVI(
            steps=500,
            learning_rate=1e-3,
            schedule="constant",
            validation=(binary_rows(20, 3),),
        ),
        seed=1,
    )
    np.testing.assert_array_equal(validated.stats["elbo"], plain.stats["elbo"])


def test_a_killed_run_resumes_with_the_same_best_state(tmp_path):
    x, y = rows(40, 1)

    def fit(steps, folder, held_out):
        method = probdl.SVI(
            steps=steps,
            schedule="constant",
            learning_rate=0.05,
            validation=held_out,
            checkpoint=folder,
            every=100,
        )
        return probdl.infer(regression, x, y, method=method, seed=1)

    fit(500, tmp_path / "a", rows(20, 2))
    resumed, whole = (fit(1000, tmp_path / name, rows(20, 2)) for name in ("a", "b"))
    for stat in ("elbo", "validation_elbo", "validation_steps", "best_step"):
        np.testing.assert_array_equal(resumed.stats[stat], whole.stats[stat])
    with pytest.raises(probdl.SettingError, match="its validation differed"):
        fit(1000, tmp_path / "a", rows(20, 3))


def test_a_saved_fit_keeps_the_curve(tmp_path):
    method = probdl.SVI(steps=300, validation=rows(20, 2))
    fit = probdl.infer(regression, *rows(40, 1), method=method, seed=1)
    assert "Tensor of shape (20, 3)" in repr(method)
    loaded = probdl.load(fit.save(tmp_path / "fit"), model=regression, method=method)
    np.testing.assert_array_equal(loaded.stats["validation_elbo"], fit.stats["validation_elbo"])
    other = probdl.SVI(steps=300, validation=rows(20, 3))
    with pytest.raises(probdl.SettingError, match="validation"):
        probdl.load(tmp_path / "fit", model=regression, method=other)


def test_the_plot_shows_both_curves_per_row(overfitted):
    ax = plot_elbo(overfitted)
    labels = [line.get_label() for line in ax.get_lines()]
    assert "held-out data" in labels
    assert ax.get_ylabel() == "ELBO (nats per row)"
    low, high = ax.get_ylim()
    late = overfitted.stats["validation_elbo"][-5:]
    assert low < late.min()
    assert late.max() < high
    plt.close("all")


def local(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


@pytest.mark.parametrize(
    ("model", "data", "held_out", "message"),
    [
        (regression, rows(20, 1), rows(10, 2)[0], "no observed site"),
        (regression, rows(20, 1), (rows(10, 2)[0][:, :2], rows(10, 2)[1]), "size mismatch"),
        (regression, rows(20, 1), {"z": 1}, "validation="),
        (regression, rows(20, 1), "x", "validation="),
        (local, (torch.zeros(20),), (torch.zeros(5),), "parameters for each row"),
    ],
    ids=["no observation", "columns", "names", "a text", "latent sites of rows"],
)
def test_unusable_held_out_data_are_refused_before_the_training(model, data, held_out, message):
    method = probdl.SVI(steps=10**9, validation=held_out)
    with pytest.raises(probdl.SettingError, match=message) as caught:
        probdl.infer(model, *data, method=method, seed=1)
    assert "SVI(validation=" in str(caught.value)


def test_an_elbo_that_is_never_finite_is_reported():
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    method = probdl.SVI(steps=300, validation=(torch.tensor([1e200], dtype=torch.float64),))
    with pytest.warns(probdl.FindingWarning, match="held-out ELBO"):
        fit = probdl.infer(model, torch.tensor([1.0, 2.0]), method=method, seed=1)
    assert fit.stats["best_step"] == 300


def test_missing_held_out_rows_are_left_out_of_the_mean():
    x, y = rows(40, 1)
    y[0] = torch.nan
    xt, yt = rows(30, 2)
    values = []
    for held_out in ((xt, torch.where(torch.arange(30) < 5, torch.nan, yt)), (xt[5:], yt[5:])):
        method = probdl.SVI(steps=200, validation=held_out)
        fit = probdl.infer(regression, x, y, method=method, missing="mask", seed=1)
        values.append(fit.stats["validation_elbo"][-1])
    assert values[0] == pytest.approx(values[1], rel=1e-6)


def test_held_out_data_are_evaluated_at_the_end_of_a_long_annealing():
    method = probdl.SVI(steps=300, kl_annealing=290, patience=100, validation=rows(20, 2))
    fit = probdl.infer(regression, *rows(40, 1), method=method, seed=1)
    assert fit.stats["validation_steps"].tolist() == [300]


def test_held_out_data_without_an_observation_are_refused():
    x, y = rows(40, 1)
    y[0] = torch.nan
    xt, yt = rows(5, 2)
    method = probdl.SVI(steps=10**9, validation=(xt, yt * torch.nan))
    with pytest.raises(probdl.SettingError, match="held-out ELBO cannot be computed"):
        probdl.infer(regression, x, y, method=method, missing="mask", seed=1)


@pytest.mark.filterwarnings("ignore::probdl.FindingWarning")
def test_held_out_data_do_not_narrow_the_posterior_of_a_bayesian_network():
    """Without the KL terms, the best state would be an early one at the mode of the likelihood."""
    x = torch.linspace(-2, 2, 60)[:, None]
    y = torch.sin(2 * x[:, 0]) + 0.3 * torch.randn(60, generator=torch.Generator().manual_seed(1))
    network = probdl.nn.bayesian(probdl.nn.MLP([1, 8, 1]), prior=1.0)

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, x, y=None):
            mean = self.network(x)[:, 0]
            with pyro.plate("data", len(x)):
                pyro.sample("y", dist.Normal(mean, 0.3), obs=y)

    def fit(validation):
        method = probdl.SVI(steps=1500, draws=200, validation=validation)
        return probdl.infer(Model(), x[::2], y[::2], method=method, seed=1)

    plain, validated = fit(None), fit((x[1::2], y[1::2]))
    assert len(validated.stats["validation_elbo"]) >= 10
    assert validated.stats["best_step"] == plain.stats["best_step"]
    for name, values in plain.draws.items():
        np.testing.assert_array_equal(validated.draws[name], values)


def test_held_out_data_of_another_length_are_scored_in_a_refit():
    """Rows that stay in their places are masked, which must not reach the held-out data."""

    def sized(x, n, y=None):
        slope = pyro.sample("slope", dist.Normal(0.0, 5.0))
        with pyro.plate("row", n):
            pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)

    rng = np.random.default_rng(0)
    x = rng.normal(size=60)
    y = 2 * x + rng.normal(size=60)
    method = probdl.SVI(steps=500, validation=(x[40:], 20, y[40:]))
    fit = probdl.infer(sized, x[:40], 40, y[:40], method=method, seed=1)
    plain = probdl.infer(sized, x[:40], 40, y[:40], method=probdl.SVI(steps=500), seed=1)
    assert fit.cross_validate(4).elpd == pytest.approx(plain.cross_validate(4).elpd, abs=0.5)


@pytest.mark.parametrize("seed", [5, 6, 7])
def test_a_training_that_has_not_converged_is_reported_with_validation_too(seed):
    """Also where the best held-out ELBO is by chance not the last, as with seed 6."""
    torch.manual_seed(0)
    coder = Coder(20)
    settings = {"epochs": 60, "batch_size": 50, "learning_rate": 1e-4}
    method = probdl.SVI(guide=coder.guide, validation=(binary_rows(100, 1),), **settings)
    fit = probdl.infer(coder, binary_rows(500, 0), method=method, seed=seed)
    assert "not_converged" in {finding.check for finding in fit.findings}


def test_a_fit_shows_its_method_on_one_line_and_returns_the_module():
    torch.manual_seed(0)
    coder = Coder(20)
    method = probdl.SVI(guide=coder.guide, steps=20)
    fit = probdl.infer(coder, binary_rows(50, 0), method=method, seed=1)
    assert "\n" not in fit.title
    assert "guide=Coder" in fit.title
    assert isinstance(fit.model, Coder)
    assert fit.model is not coder


def test_the_time_of_validation_has_its_own_name():
    x, held_out = binary_rows(200, 0), binary_rows(50, 1)
    torch.manual_seed(0)
    coder = Coder(20)
    method = probdl.SVI(guide=coder.guide, epochs=3, batch_size=50, validation=(held_out,))
    fit = probdl.infer(coder, x, method=method, seed=1)
    assert fit.timings["validation"] > 0
    assert "importance sampling" not in fit.timings


def test_an_elbo_that_rises_is_that_of_the_training_data_if_held_out_data_choose_the_state():
    losses = np.linspace(2000.0, 1000.0, 1000)
    (plain,) = check_convergence(losses, None)
    (validated,) = check_convergence(losses, None, validated=True)
    assert plain.message.startswith("The ELBO was still rising")
    assert validated.message.startswith("The ELBO of the training data was still rising")
    assert validated.remedy.endswith("as long as that raises the held-out ELBO, too: it need not.")
