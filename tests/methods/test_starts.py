"""Starting points of chains: in the typical set, dispersed, and never at a negligible mode."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import probdl
from benchmarks.starts import HARD
from probdl.compile import choose
from probdl.methods.approach import TypicalStarts, approach
from probdl.methods.mcmc import nuts
from probdl.model.density import LogDensity
from probdl.results.diagnostics import check_stuck

pytestmark = pytest.mark.filterwarnings("ignore::probdl.FindingWarning")


def checks(fit):
    return {f.check for f in fit.diagnose()}


def starts_of(model, count=20, args=()):
    density = LogDensity.from_model(model, args)
    find = TypicalStarts(density, choose(density, "eager", 1)[0], 1, 4000)
    return density, torch.stack([find(seed) for seed in range(count)]).numpy()


def normal(mean, sd):
    def evaluate(z):
        return -0.5 * float((((z - mean) / sd) ** 2).sum()), (mean - z) / sd**2

    return evaluate


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6, 1e20])
def test_an_ascent_ends_in_the_typical_set_of_a_normal_density_of_any_scale(scale):
    mean, sd = scale * np.array([3.0, -100.0, 1e4]), scale * np.array([0.1, 1.0, 5.0])
    found = approach(normal(mean, sd), np.zeros(3))
    # Not the mode, but within the 99 % region; the ascent itself may end a little below the mode.
    assert (((found.start - mean) / sd) ** 2).sum() < 11.3 + 2 * 3


def test_a_start_in_the_typical_set_is_kept():
    start = np.array([1.0, -1.0])
    assert (approach(normal(np.zeros(2), np.ones(2)), start).start == start).all()


def test_an_ascent_backs_off_from_where_the_density_is_not_finite():
    def evaluate(z):  # a gamma density of scale 1e-8, on z > 0
        if z[0] <= 0:
            return math.nan, np.full(1, math.nan)
        return float(np.log(z[0]) - 1e8 * z[0]), 1 / z - 1e8

    assert 1e-10 < approach(evaluate, np.ones(1)).start[0] < 1e-7


def test_an_ascent_does_not_run_into_a_density_without_bound():
    # Ten effects given their scale: the density is unbounded as the scale goes to zero.
    def model():
        tau = pyro.sample("tau", dist.HalfNormal(1.0))
        pyro.sample("x", dist.Normal(torch.zeros(10), tau).to_event(1))

    _, z = starts_of(model, 10)
    # log tau of the prior is above -6 with a probability of 99.8 %.
    assert z[:, 0].min() > -6


def test_two_modes_that_matter_are_both_started_from():
    def model():
        side = pyro.sample("side", dist.Categorical(torch.tensor([0.5, 0.5])))
        pyro.sample(
            "x", dist.Normal(torch.tensor([-6.0, 6.0])[side], torch.tensor([1.0, 1.5])[side])
        )

    _, z = starts_of(model, 40)
    assert 5 <= (z > 0).sum() <= 35


def squared(y):
    x = pyro.sample("x", dist.Normal(0.0, 10.0))
    pyro.sample("y", dist.Normal(x**2, 1.0), obs=y)


@pytest.mark.parametrize(
    "method",
    [
        probdl.NUTS(draws=100, warmup=100, chains=1),
        probdl.NUTS(draws=300, warmup=300, init={"x": 5.0}),
        probdl.NUTS(draws=300, warmup=300, chains=1, init="pathfinder"),
        probdl.HMC(draws=100, warmup=100, chains=1),
        "start",
    ],
    ids=str,
)
def test_a_mode_that_no_chain_starts_from_is_reported(method):
    y = torch.tensor(25.0)
    if method == "start":
        at_one = probdl.infer(squared, y, method=probdl.MAP(init={"x": 5.0}), seed=0)
        method = probdl.NUTS(draws=300, warmup=300, start=at_one)
    fit = probdl.infer(squared, y, method=method, seed=0)
    assert len({*np.sign(fit.draws["x"].ravel())}) == 1
    assert "multimodal" in checks(fit)


def test_an_interrupted_search_for_modes_keeps_the_draws(monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(nuts, "find_modes", interrupt)
    method = probdl.NUTS(draws=100, warmup=100, chains=1)
    fit = probdl.infer(squared, torch.tensor(25.0), method=method, seed=0)
    assert fit.num_draws == 100
    (finding,) = [f for f in fit.findings if f.check == "interrupted"]
    assert "a missed mode may not be reported" in finding.message


def test_modes_in_a_hundred_dimensions_are_reported():
    def model(y):
        pyro.sample("b", dist.Normal(torch.zeros(100), 1.0).to_event(1))
        squared(y)

    method = probdl.NUTS(draws=100, warmup=100, chains=1)
    fit = probdl.infer(model, torch.tensor(25.0), method=method, seed=0)
    assert "multimodal" in checks(fit)


def test_a_mode_without_a_share_of_the_posterior_is_not_started_from():
    def model():
        side = pyro.sample("side", dist.Categorical(logits=torch.tensor([-60.0, 0.0])))
        pyro.sample("x", dist.Normal(torch.tensor([-10.0, 10.0])[side], 1.0))

    assert starts_of(model)[1].min() > 0


def test_random_starts_remain_available():
    model, data = HARD["arma"]
    # With all its chains named, a run does not run them again.
    method = probdl.NUTS(init="random", draws=100, warmup=100, chain_ids=range(4))
    fit = probdl.infer(model, *data(), method=method, seed=3)
    assert "stuck_chain" in checks(fit)
    finding = next(f for f in fit.diagnose() if f.check == "stuck_chain")
    assert finding.severity == "error"
    assert "init=" in finding.remedy


@pytest.mark.parametrize("sampler", ["nutpie", "native"])
@pytest.mark.parametrize("name", ["arma", "poisson_trend", "weibull_frailty"])
def test_no_chain_of_a_hard_model_stays_where_it_started(name, sampler):
    model, data = HARD[name]
    for seed in (1, 2, 3):
        method = probdl.NUTS(draws=200, warmup=600, sampler=sampler)
        fit = probdl.infer(model, *data(), method=method, seed=seed)
        assert "stuck_chain" not in checks(fit)
        lp = np.median(fit.stats["lp"], 1)
        # A chain far from the posterior is lower; one in the neck of a funnel is higher.
        assert np.median(lp) - lp.min() < 20 + lp.size


def test_chains_of_the_same_seed_repeat():
    model, data = HARD["arma"]
    fits = [probdl.infer(model, *data(), method=probdl.NUTS(draws=50), seed=5) for _ in range(2)]
    assert all((fits[0].draws[n] == fits[1].draws[n]).all() for n in fits[0].draws)


RNG = np.random.default_rng(3)
Z = RNG.normal(size=(4, 500, 3))


def lp_of(z):
    return -0.5 * (z**2).sum(-1)


def test_chains_that_agree_are_not_stuck():
    assert not check_stuck(Z, lp_of(Z))


@pytest.mark.parametrize("scales", [(1.0, 1.0, 1.0, 1e-2), (1.0, 1.0, 1.0, 1e4)])
def test_modes_of_equal_probability_are_not_stuck(scales):
    # The narrow mode has the higher density.
    z = Z * np.array(scales)[:, None, None]
    assert not check_stuck(z, lp_of(Z) - 3 * np.log(scales)[:, None])


def test_a_chain_of_far_lower_density_is_stuck():
    lp = lp_of(Z)
    lp[2] -= 40
    (finding,) = check_stuck(Z, lp)
    assert "1 of 4 chains" in finding.message
    assert "chain 2" in finding.message
    lp[2] = -1e109
    assert check_stuck(Z, lp)


def test_a_chain_that_never_moves_is_stuck_even_alone():
    z = np.repeat(Z[:1, :1], 500, 1)
    (finding,) = check_stuck(z, lp_of(z))
    assert "No chain moved" in finding.message


@pytest.mark.parametrize("method", [probdl.NUTS, probdl.HMC])
def test_a_start_at_the_exact_mode_is_left(method):
    def standard():  # an ascent reaches the mode exactly, where the gradient is zero
        pyro.sample("x", dist.Normal(torch.zeros(3), 1.0).to_event(1))

    for init in ("auto", {"x": 0.0}):
        chosen = method(init=init, chains=2, warmup=200, draws=200)
        fit = probdl.infer(standard, method=chosen, seed=1)
        assert abs(fit.draws["x"].std() - 1) < 0.2
