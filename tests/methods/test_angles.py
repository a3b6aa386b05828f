"""Latent angles: draws of all chains are on one turn, whatever turn the chains are at."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import probdl

pytestmark = pytest.mark.filterwarnings("ignore::probdl.FindingWarning")
Y = np.random.default_rng(0).vonmises(np.pi, 2.0, 30)


def direction(y):
    mu = pyro.sample("mu", dist.VonMises(0.0, 0.1))
    with pyro.plate("obs", len(y)):
        pyro.sample("y", dist.VonMises(mu, 2.0), obs=y)


def exact():
    """The posterior is VonMises as well; return its mean direction and circular spread."""
    vector = 0.1 + 2.0 * np.exp(1j * Y).sum()
    kappa = torch.tensor(abs(vector))
    length = (torch.special.i1e(kappa) / torch.special.i0e(kappa)).item()
    return np.angle(vector), (-2 * np.log(length)) ** 0.5


def turned(angle, centre):
    return centre + np.angle(np.exp(1j * (angle - centre)))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_chains_near_pi_agree(seed):
    fit = probdl.infer(direction, Y, seed=seed)
    mean, spread = exact()
    mu = fit.draws["mu"]
    assert not fit.diagnose()
    assert mu.max() - mu.min() < 2 * np.pi
    assert turned(mu.mean(), mean) == pytest.approx(mean, abs=0.02)
    assert mu.std() == pytest.approx(spread, rel=0.1)


@pytest.mark.parametrize("method", ["laplace", "pathfinder", "metropolis", "map"])
def test_other_methods_are_on_one_turn(method):
    fit = probdl.infer(direction, Y, method=method, seed=1)
    mean, spread = exact()
    mu = fit.draws["mu"]
    assert turned(mu.mean(), mean) == pytest.approx(mean, abs=0.03)
    assert abs(mu.mean()) <= np.pi + 0.03
    if method != "map":
        assert mu.std() == pytest.approx(spread, rel=0.15)


@pytest.mark.parametrize("event", [False, True])
def test_vectors_of_angles(event):
    def model(y):
        prior = dist.VonMises(torch.zeros(3), 0.5)
        if event:
            mu = pyro.sample("mu", prior.to_event(1))
        else:
            with pyro.plate("place", 3):
                mu = pyro.sample("mu", prior)
        pyro.sample("y", dist.VonMises(mu.expand(20, 3), 5.0).to_event(2), obs=y)

    centres = np.array([0.0, np.pi, 3.0])
    y = np.random.default_rng(1).vonmises(centres, 5.0, (20, 3))
    fit = probdl.infer(model, y, seed=4)
    assert np.ptp(fit.draws["mu"], axis=(0, 1)).max() < 2 * np.pi
    assert not {f.check for f in fit.diagnose()} & {"rhat", "multimodal", "ess"}


def test_a_uniform_angle_has_no_finding():
    fit = probdl.infer(lambda: pyro.sample("mu", dist.VonMises(0.0, 1e-3)), seed=1)
    assert not {f.check for f in fit.diagnose()} & {"rhat", "multimodal"}
    assert np.abs(fit.draws["mu"]).max() < 2 * np.pi


def test_an_angle_in_a_linear_predictor_is_left_alone():
    def model(y):
        mu = pyro.sample("mu", dist.VonMises(0.0, 0.1))
        with pyro.plate("obs", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    y = np.random.default_rng(2).normal(9.0, 1.0, 50)
    fit = probdl.infer(model, y, seed=1)
    assert fit.draws["mu"].mean() == pytest.approx(y.mean(), abs=0.05)


@pytest.mark.parametrize("method", [probdl.SVI(steps=1500), "pathfinder"])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_evidence_counts_each_angle_once(method, seed):
    """A wide normal density has draws on several turns, each of which has all of the posterior."""

    def model(y):
        m = pyro.sample("m", dist.VonMises(0.0, 0.6))
        pyro.sample("y", dist.Normal(torch.sin(m), 1.0), obs=y)

    angles = torch.linspace(-np.pi, np.pi, 10_001)[:-1].double()
    joint = dist.VonMises(0.0, 0.6).log_prob(angles) + dist.Normal(angles.sin(), 1.0).log_prob(
        torch.tensor(0.3)
    )
    exact = joint.exp().mean().item() * 2 * np.pi
    fit = probdl.infer(model, torch.tensor(0.3), method=method, seed=seed)
    assert fit.stats["log_evidence"] == pytest.approx(np.log(exact), abs=0.3)
