"""Adversarial training: known targets, findings, interruptions and checkpoints, bad input."""

import functools

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import probdl
from benchmarks.gan import modes, play_ring
from probdl.methods.adversarial.checks import returns_probabilities
from probdl.methods.adversarial.training import AdversarialTraining
from probdl.nn import MLP, lipschitz_bound


def program(net, dim=1):
    def model(x=None, size=1):
        pyro.module("net", net)
        with pyro.plate("data", len(x) if x is not None else size):
            z = pyro.sample("z", dist.Normal(torch.zeros(dim), 1.0).to_event(1))
            pyro.deterministic("x", net(z), event_dim=1)

    return model


@pytest.fixture(scope="module")
def x():
    generator = torch.Generator().manual_seed(1)
    return 1 + 0.7 * torch.randn(4000, 1, generator=generator)


def critic():
    torch.manual_seed(2)
    return MLP([1, 32, 32, 1], activation=lambda: nn.LeakyReLU(0.2))


def line():
    torch.manual_seed(3)
    return nn.Linear(1, 1)


SETTINGS = {"batch_size": 256, "learning_rate": 5e-3, "schedule": "cosine", "ema": 0.99}
CRITIC = {
    "discriminator_steps": 2,
    "learning_rate": 2e-3,
    "discriminator_learning_rate": 1e-2,
    "optimizer": functools.partial(torch.optim.Adam, betas=(0.0, 0.9)),
    "ema": 0.998,
}
OF_LOSS = {
    "minimax": {},
    "non_saturating": {"discriminator_learning_rate": 1e-2},
    "hinge": CRITIC,
    "wasserstein": CRITIC,
}


@pytest.mark.parametrize("loss", OF_LOSS)
def test_a_normal_is_learned(loss, x):
    net = line()
    before = net.weight.clone()
    settings = {"steps": 2500, **SETTINGS, **OF_LOSS[loss]}
    method = probdl.GAN(discriminator=critic(), loss=loss, **settings)
    fit = probdl.infer(program(net), x[:2000], method=method, seed=2)
    draws = fit.predict(20_000)["x"]
    assert draws.shape == (1, 1, 20_000, 1)
    assert draws.mean() == pytest.approx(float(x[:2000].mean()), rel=0.05)
    assert draws.std() == pytest.approx(float(x[:2000].std()), rel=0.05)
    assert fit.divergence(x[2000:]).value <= 0.02
    if loss == "minimax":
        assert fit.stats["value"][-250:].mean() == pytest.approx(-2 * np.log(2), abs=0.05)
    assert fit.stats["engine"] == "graph"
    assert not fit.diagnose()
    assert torch.equal(net.weight, before)  # the caller's network is unchanged
    assert {"d_real", "d_fake", "generator_loss", "discriminator_loss"} <= set(fit.stats)


def test_traced_steps_equal_eager_steps(x):
    for loss in ("minimax", "wasserstein", "hinge"):
        stats = []
        for engine in ("auto", "eager"):
            method = probdl.GAN(discriminator=critic(), loss=loss, steps=30, engine=engine)
            fit = probdl.infer(program(line()), x[:200], method=method, seed=1)
            assert fit.stats["engine"] == ("graph" if engine == "auto" else "eager")
            stats.append(fit.stats)
        for name in ("discriminator_loss", "generator_loss", "d_real", "value"):
            np.testing.assert_allclose(stats[0][name], stats[1][name], rtol=1e-3, atol=1e-4)
        assert len(set(stats[0]["discriminator_loss"])) == 30  # new draws at each step


def test_spectral_normalisation_limits_the_slope_of_the_critic_to_one(x):
    method = probdl.GAN(discriminator=critic(), loss="hinge", steps=300)
    fit = probdl.infer(program(line()), x[:500], method=method, seed=1)
    assert lipschitz_bound(fit.stats["discriminator"]) < 1.1


@pytest.mark.filterwarnings("ignore::probdl.FindingWarning")
def test_a_gradient_penalty_limits_the_slope(x):
    slope = {}
    for penalty in (1e-6, 10.0):
        settings = {"steps": 500, "batch_size": 128, "gradient_penalty": penalty}
        method = probdl.GAN(discriminator=critic(), loss="wasserstein", **settings)
        fit = probdl.infer(program(line()), x[:500], method=method, seed=1)
        slope[penalty] = probdl.nn.lipschitz_estimate(fit.stats["discriminator"], x[:200])
    assert slope[10.0] < 2.0
    assert slope[1e-6] > 2 * slope[10.0]


def test_a_generator_that_misses_data_is_reported():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.at = nn.Parameter(torch.zeros(2))

        def forward(self, z):
            return self.at + 1e-3 * z

    angle = torch.arange(1000) % 8 * 2 * np.pi / 8
    ring = 2 * torch.stack([angle.cos(), angle.sin()], 1)
    ring = ring + 0.1 * torch.randn(1000, 2, generator=torch.Generator().manual_seed(0))
    method = probdl.GAN(discriminator=MLP([2, 16, 1]), steps=100)
    with pytest.warns(probdl.FindingWarning, match="of the data have a draw in their"):
        fit = probdl.infer(program(Constant(), 2), ring, method=method, seed=1)
    assert "mode_collapse" in [f.check for f in fit.diagnose()]


def test_a_saturated_discriminator_is_reported():
    far = 100 + torch.randn(500, 1, generator=torch.Generator().manual_seed(0))
    method = probdl.GAN(discriminator=critic(), loss="minimax", steps=600, learning_rate=1e-3)
    with pytest.warns(
        probdl.FindingWarning, match=r"\(saturated\): The discriminator is saturated"
    ):
        probdl.infer(program(line()), far, method=method, seed=1)


@pytest.mark.filterwarnings("ignore::probdl.FindingWarning")
def test_a_loss_that_is_not_finite_keeps_the_last_good_state(x):
    method = probdl.GAN(
        discriminator=critic(), loss="wasserstein", steps=200, optimizer="SGD", learning_rate=1e6
    )
    fit = probdl.infer(program(line()), x[:500], method=method, seed=1)
    finding = next(f for f in fit.diagnose() if f.check == "loss_not_finite")
    assert finding.severity == "error"
    assert "at step" in finding.message
    assert all(np.isfinite(v).all() for v in fit.stats["params"].values())
    assert np.isfinite(fit.stats["value"]).all()


@pytest.mark.filterwarnings("ignore::probdl.FindingWarning")
def test_an_interrupted_run_resumes_to_the_same_result(x, tmp_path, monkeypatch):
    def fit(folder):
        settings = {"steps": 500, "checkpoint": folder, "every": 100, "ema": 0.9}
        method = probdl.GAN(discriminator=critic(), loss="hinge", **settings)
        return probdl.infer(program(line()), x[:300], method=method, seed=1)

    whole = fit(None)
    advance = AdversarialTraining.advance

    def stop(run, *args):
        if run.done == 250:
            raise KeyboardInterrupt
        return advance(run, *args)

    monkeypatch.setattr(AdversarialTraining, "advance", stop)
    part = fit(tmp_path)
    assert len(part.stats["value"]) == 250
    assert "interrupted" in [f.check for f in part.diagnose()]
    monkeypatch.undo()
    resumed = fit(tmp_path)
    np.testing.assert_array_equal(resumed.stats["value"], whole.stats["value"])
    for name, value in whole.stats["params"].items():
        np.testing.assert_array_equal(resumed.stats["params"][name], value)


@pytest.mark.filterwarnings("ignore::probdl.FindingWarning")
def test_a_finished_run_continues_to_more_steps(x, tmp_path):
    def fit(steps, folder):
        method = probdl.GAN(discriminator=critic(), steps=steps, checkpoint=folder, ema=0.9)
        return probdl.infer(program(line()), x[:300], method=method, seed=1)

    whole = fit(500, None)
    assert len(fit(200, tmp_path).stats["value"]) == 200
    np.testing.assert_array_equal(fit(500, tmp_path).stats["value"], whole.stats["value"])


class Normalised(nn.Module):
    """A model that is a module, whose network has running statistics."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))

    def forward(self, x=None):
        with pyro.plate("data", len(x) if x is not None else 1):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.deterministic("x", self.net(z), event_dim=1)


@pytest.mark.filterwarnings("ignore::probdl.FindingWarning")
def test_running_statistics_are_trained_in_a_module_and_reported_in_a_closure(x):
    torch.manual_seed(0)
    model = Normalised()
    method = probdl.GAN(discriminator=critic(), steps=200)
    fit = probdl.infer(model, x[:300], method=method, seed=1)
    assert fit.stats["engine"] == "graph"
    assert not torch.equal(fit.model.net[1].running_var, torch.ones(8))
    assert torch.equal(model.net[1].running_var, torch.ones(8))  # the caller's network is unchanged
    closed = probdl.infer(program(model.net), x[:300], method=method, seed=1)
    finding = next(f for f in closed.diagnose() if f.check == "engine")
    assert "running statistics" in finding.message
    assert "torch.nn.Module that holds the network" in finding.remedy


@pytest.mark.parametrize("loss", ["wasserstein", "hinge"])
def test_eight_normals_on_a_ring_are_all_covered(loss):
    """The benchmark of adversarial training has longer runs with five seeds."""
    fit = play_ring(loss, 0, steps=3000)
    covered, near = modes(fit.predict(4000)["x"])
    assert covered == 8
    assert near >= 0.9
    assert not fit.diagnose()


def test_a_collapsed_generator_is_reported():
    with pytest.warns(probdl.FindingWarning, match="the generator misses parts of the data"):
        fit = play_ring("minimax", 0, steps=1000)
    assert modes(fit.predict(4000)["x"])[0] < 8


def test_bad_input_is_refused(x):
    def named(x=None):
        pyro.module("net", LINE)
        with pyro.plate("data", 10):
            pyro.deterministic(
                "y", LINE(pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1)))
            )

    method = probdl.GAN(discriminator=critic(), steps=1, batch_size=5)
    with pytest.raises(probdl.ModelError, match="draws 'y' and has the arguments 'x'"):
        probdl.infer(named, x[:10], method=method, seed=1)
    with pytest.raises(probdl.ModelError, match=r"of the shape \(50, 2\), and the data have"):
        probdl.infer(program(nn.Linear(1, 2)), x[:50], method=method, seed=1)
    with pytest.raises(probdl.SettingError, match="the data have 4 rows"):
        probdl.infer(program(line()), x[:4], method=method, seed=1)
    with pytest.raises(probdl.SettingError, match="must be a module"):
        probdl.GAN()
    for settings, message in (
        ({"loss": "wasserstien"}, "did you mean 'wasserstein'"),
        ({"ema": 1.0}, "below 1"),
        ({"steps": 1, "epochs": 1}, "pass one of them"),
        ({"discriminator_steps": 0}, "at least 1"),
    ):
        with pytest.raises(probdl.SettingError, match=message):
            probdl.GAN(discriminator=critic(), **settings)


LINE = line()


class Probability(nn.Module):
    """A discriminator of probabilities, in one of several ways."""

    def __init__(self, kind):
        super().__init__()
        self.net, self.kind = critic(), kind

    def forward(self, x):
        logits = self.net(x)
        return {
            "sigmoid": lambda: torch.sigmoid(logits)[:, 0],
            "clamped": lambda: torch.sigmoid(logits).clamp(1e-6, 1 - 1e-6).squeeze(-1),
            "tanh": lambda: 0.5 * (torch.tanh(logits) + 1),
            "exp": lambda: 1 / (1 + torch.exp(-logits)),
            "softmax": lambda: torch.cat([logits, -logits], 1).softmax(1)[:, 0],
        }[self.kind]()


@pytest.mark.parametrize("loss", OF_LOSS)
def test_a_discriminator_of_probabilities_is_refused(loss, x):
    kinds = ("sigmoid", "clamped", "tanh", "exp", "softmax")
    layers = [nn.Sequential(critic(), nn.Sigmoid()), nn.Sequential(critic(), nn.Hardsigmoid())]
    for discriminator in [*layers, *map(Probability, kinds)]:
        method = probdl.GAN(discriminator=discriminator, loss=loss, steps=2)
        with pytest.raises(probdl.SettingError, match="remove the sigmoid at its end"):
            probdl.infer(program(line()), x, method=method, seed=1)


def test_discriminators_of_logits_are_not_taken_for_probabilities(x):
    zero = critic()
    nn.init.zeros_(zero[-1].weight)
    nn.init.zeros_(zero[-1].bias)
    positive = nn.Sequential(critic(), nn.Softplus())
    inside = nn.Sequential(nn.Sigmoid(), nn.Linear(1, 8), nn.Sigmoid(), nn.Linear(8, 1))
    normed = nn.Sequential(nn.Linear(1, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 1))
    batch = nn.Sequential(nn.Linear(1, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
    for discriminator in (critic(), zero, positive, inside, normed, batch):
        assert not returns_probabilities(discriminator, x)
    assert batch[1].num_batches_tracked == 0


def test_a_data_loader_is_read_in_minibatches(x):
    loader = DataLoader(TensorDataset(x[:2000]), batch_size=256, shuffle=True)  # the last has 208
    settings = {k: v for k, v in SETTINGS.items() if k != "batch_size"} | {"epochs": 310}
    settings |= {"discriminator": critic(), "discriminator_learning_rate": 1e-2}
    fit = probdl.infer(program(line()), loader, method=probdl.GAN(**settings), seed=2)
    assert len(fit.stats["value"]) == 310 * 8
    draws = fit.predict(20_000)["x"]
    assert draws.mean() == pytest.approx(float(x[:2000].mean()), rel=0.05)
    assert draws.std() == pytest.approx(float(x[:2000].std()), rel=0.05)
    assert not fit.diagnose()
    other = probdl.GAN(discriminator=critic(), batch_size=64, steps=1)
    with pytest.raises(probdl.SettingError, match="is the DataLoader's"):
        probdl.infer(program(line()), loader, method=other, seed=1)


@pytest.mark.filterwarnings("ignore::probdl.FindingWarning")
@pytest.mark.parametrize("engine", ["auto", "eager"])
def test_all_rows_of_a_data_loader_are_read_in_the_same_order_again(x, engine):
    seen = []

    class Rows(Dataset):
        def __len__(self):
            return 100

        def __getitem__(self, i):
            seen.append(i)
            return x[i]

    loader = DataLoader(Rows(), batch_size=30, shuffle=True)
    settings = {"discriminator_steps": 3, "loss": "wasserstein", "engine": engine}
    method = probdl.GAN(discriminator=critic(), epochs=6, **settings)
    fit = probdl.infer(program(line()), loader, method=method, seed=2)
    assert len(fit.stats["value"]) == 6 * 4 // 3
    assert set(seen) == set(range(100))
    again = probdl.infer(program(line()), loader, method=method, seed=2)
    np.testing.assert_array_equal(again.stats["value"], fit.stats["value"])


def test_coverage_of_a_data_loader_is_of_all_rows(x):
    """Rows of two places, one after the other: a generator of the first covers half of them."""
    places = torch.cat([x[:500], x[:500] + 50.0])
    loader = DataLoader(TensorDataset(places), batch_size=100)
    method = probdl.GAN(discriminator=critic(), steps=1)
    with pytest.warns(probdl.FindingWarning, match="mode_collapse"):
        probdl.infer(program(line()), loader, method=method, seed=1)
