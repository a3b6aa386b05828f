"""Chains that ended where the posterior has no share, and are run again."""

import math
import signal

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import probdl
from benchmarks.starts import HARD
from probdl.methods.mcmc.chains import Chains
from probdl.methods.mcmc.restarts import restarted

pytestmark = pytest.mark.filterwarnings("ignore::probdl.FindingWarning")
RNG = np.random.default_rng(0)


def arma(seed=3, **settings):
    model, data = HARD["arma"]
    settings = {"sampler": "native", "init": "random", "draws": 150, "warmup": 300, **settings}
    return probdl.infer(model, *data(), method=probdl.NUTS(**settings), seed=seed)


def finding(fit, check):
    return next(f for f in fit.diagnose() if f.check == check)


def chains_at(*levels, draws=100, dim=3):
    """Return chains whose log densities are about these levels."""
    z = RNG.normal(size=(len(levels), draws, dim))
    lp = np.asarray(levels)[:, None] - 0.5 * (z**2).sum(-1)
    return Chains(z, {"lp": lp})


class Sampler:
    """Runs chains that are 1 at all draws, and remembers how it was called."""

    def __init__(self, error=None, draws=None):
        self.called, self.error, self.draws = [], error, draws

    def __call__(self, **settings):
        self.called.append(settings)
        if self.error is not None:
            raise self.error
        shape = (settings["chains"], self.draws or settings["draws"])
        found = probdl.Finding("warning", "time_limit", "ended", "more")
        return Chains(np.ones((*shape, 3)), {"lp": np.zeros(shape)}, [found] if self.draws else [])


def test_misplaced_chains_are_run_again_from_draws_of_others():
    sampler = Sampler()
    before = chains_at(0, -900, 0, -1e60)
    after = restarted(before, sampler, 100, 1)
    np.testing.assert_array_equal(after.z[[1, 3]], 1.0)
    np.testing.assert_array_equal(after.z[[0, 2]], before.z[[0, 2]])
    assert [f.check for f in after.findings] == ["restarted_chain"]
    assert "chain 1 (log density -90" in after.findings[0].message
    start = sampler.called[0]["find_start"]
    assert all((before.z[[0, 2]] == start(seed).numpy()).all(-1).any() for seed in range(20))


@pytest.mark.parametrize(
    ("levels", "draws"),
    [
        ((0, -900), 100),  # one chain is no evidence
        ((0, -900, -901, -902), 100),  # most chains are elsewhere
        ((0, 0, 0, -20), 100),  # it may be chance
        ((0, 0, 0, -900), 200),  # the run ended early
        ((0, 0, 0, math.nan), 100),
    ],
)
def test_chains_stay_where_it_is_not_sure(levels, draws):
    sampler = Sampler()
    before = chains_at(*levels)
    assert restarted(before, sampler, draws, 1) is before
    assert not sampler.called


@pytest.mark.parametrize(
    ("sampler", "checks"),
    [
        (Sampler(KeyboardInterrupt()), ["interrupted"]),
        (Sampler(probdl.ModelError("All chains failed.")), []),
        (Sampler(draws=30), ["time_limit"]),
    ],
)
def test_chains_that_cannot_be_run_again_stay(sampler, checks):
    before = chains_at(0, 0, 0, -900)
    after = restarted(before, sampler, 100, 1)
    np.testing.assert_array_equal(after.z, before.z)
    assert [f.check for f in after.findings] == checks
    assert "not run again" in "".join(f.message for f in after.findings) or not checks


@pytest.mark.parametrize("sampler", ["native", "nutpie"])
@pytest.mark.parametrize("seed", [1, 3])
def test_a_fit_with_random_starts_reaches_the_posterior(sampler, seed):
    fit = arma(seed, sampler=sampler)
    checks = {f.check for f in fit.diagnose()}
    if "restarted_chain" in checks:
        assert finding(fit, "restarted_chain").severity == "warning"
        assert np.ptp(np.median(fit.stats["lp"], 1)) < 10
    else:  # most chains wait elsewhere
        assert "stuck_chain" in checks


def test_a_fit_that_goes_on_equals_a_long_one_also_with_chains_run_again():
    long, short = arma(draws=300), arma(draws=150)
    assert "restarted_chain" in {f.check for f in long.diagnose()}
    longer = short.extend(150)
    assert finding(longer, "restarted_chain") == finding(long, "restarted_chain")
    for name, draws in long.draws.items():
        np.testing.assert_array_equal(longer.draws[name], draws)


def test_an_interrupt_of_the_second_run_returns_the_first(interruptible, monkeypatch):
    def interrupt(*_args, **_options):
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("probdl.methods.mcmc.nuts.restarted", _interrupted(interrupt))
    fit = arma()
    assert {"stuck_chain", "interrupted"} <= {f.check for f in fit.diagnose()}


def _interrupted(interrupt):
    return lambda chains, _sample, draws, seed: restarted(chains, interrupt, draws, seed)


def test_two_modes_that_matter_are_kept():
    def model():
        side = pyro.sample("side", dist.Categorical(torch.tensor([0.5, 0.5])))
        pyro.sample("x", dist.Normal(torch.tensor([-60.0, 60.0])[side], 1.0))

    for seed in range(6):
        fit = probdl.infer(model, method=probdl.NUTS(draws=100, warmup=100), seed=seed)
        assert "restarted_chain" not in {f.check for f in fit.diagnose()}


def regimes(dim, correlation, share):
    """Return a model with two far regimes, one of them with correlated coordinates.

    Args:
        dim: the number of coordinates.
        correlation: their correlation in the first regime; they are independent in the second.
        share: the probability of the first.
    """
    covariance = (1 - correlation) * torch.eye(dim, dtype=torch.float64) + correlation
    plain = dist.Normal(torch.zeros(dim, dtype=torch.float64), 1.0).to_event(1)
    correlated = dist.MultivariateNormal(torch.zeros(dim, dtype=torch.float64), covariance)

    def model():
        u = pyro.sample("u", dist.Normal(0.0, 10.0))
        first, second = (dist.Normal(m, 0.2).log_prob(u) for m in (3.0, -3.0))
        weighted = torch.logaddexp(first + math.log(share), second + math.log(1 - share))
        pyro.factor("side", weighted - dist.Normal(0.0, 10.0).log_prob(u))
        x = pyro.sample("x", plain)
        given = torch.where(u > 0, correlated.log_prob(x), plain.log_prob(x))
        pyro.factor("x of side", given - plain.log_prob(x))

    return model


@pytest.mark.parametrize(
    ("dim", "correlation", "share"),
    [(20, 0.999, 0.5), (20, 0.999, 0.01), (60, 0.95, 0.5), (100, 0.85, 0.5), (100, 0.85, 0.01)],
)
def test_a_mode_with_a_share_is_kept_although_another_is_denser(dim, correlation, share):
    model = regimes(dim, correlation, share)
    for seed in range(3):
        method = probdl.NUTS(draws=200, warmup=300, sampler="native", init="random", chains=4)
        fit = probdl.infer(model, method=method, seed=seed)
        checks = {f.check for f in fit.diagnose()}
        assert not {"restarted_chain", "stuck_chain"} & checks
        if len(np.unique(fit.draws["u"] > 0)) == 2:
            assert {"rhat", "multimodal"} & checks
