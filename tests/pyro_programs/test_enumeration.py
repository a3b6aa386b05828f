"""Discrete sites that are summed out."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoDiagonalNormal

import probdl

Y = torch.tensor([1.0, 0.2, -0.5])


def markov(y):
    z = torch.ones(())
    for t in pyro.markov(range(3)):
        a = pyro.sample(f"a{t}", dist.Normal(0.0, 1.0))
        p = torch.sigmoid(2 * z - 1)
        z = pyro.sample(f"z{t}", dist.Bernoulli(p), infer={"enumerate": "parallel"})
        pyro.sample(f"y{t}", dist.Normal(a + z, 1.0), obs=y[t])


def exact_means():
    """Return E[a_t | y]: given the states, y_t is N(z_t, 2) and a_t has mean (y_t - z_t) / 2."""
    weights, means = [], []
    for states in itertools.product((0.0, 1.0), repeat=3):
        log_weight, before = 0.0, 1.0
        for state, y in zip(states, Y.tolist(), strict=True):
            p = 1 / (1 + math.exp(1 - 2 * before))
            log_weight += math.log(p if state else 1 - p) - (y - state) ** 2 / 4
            before = state
        weights.append(math.exp(log_weight))
        means.append([(y - state) / 2 for state, y in zip(states, Y.tolist(), strict=True)])
    weight = torch.tensor(weights) / sum(weights)
    return weight @ torch.tensor(means)


@pytest.mark.parametrize(
    "guide",
    [
        "normal",
        "multivariate_normal",
        AutoDiagonalNormal(poutine.block(markov, expose=["a0", "a1", "a2"])),
    ],
)
def test_latent_sites_beside_enumerated_ones_in_a_loop(guide):
    method = probdl.SVI(guide=guide, steps=1500, learning_rate=0.02)
    fit = probdl.infer(markov, Y, method=method, seed=1)
    for t, mean in enumerate(exact_means().tolist()):
        assert abs(fit.draws[f"a{t}"].mean() - mean) < 0.15
    assert fit.stats["engine"] == "native"


@pytest.mark.parametrize("how", ["sequential", "parallel", None])
@pytest.mark.parametrize("method", ["nuts", "svi", "map"])
def test_the_kind_of_enumeration(how, method):
    def model(y):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        z = pyro.sample("z", dist.Bernoulli(0.3), infer={"enumerate": how} if how else None)
        pyro.sample("y", dist.Normal(a + 2 * z, 1.0), obs=y)

    fit = probdl.infer(model, torch.tensor(1.0), method=method, seed=1)
    # Given z, y ~ N(2 z, 2): both values of z are 1 away, so its probability stays 0.3.
    if method != "map":
        assert abs(fit.draws["a"].mean() - (0.7 * 0.5 - 0.3 * 0.5)) < 0.1
    assert fit.stats["engine"] == "native"


def test_an_if_on_an_enumerated_site():
    def model(y):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        z = pyro.sample("z", dist.Bernoulli(0.3), infer={"enumerate": "sequential"})
        pyro.sample("y", dist.Normal(a + 3 if z else a, 1.0), obs=y)

    with pytest.raises(probdl.ModelError, match="parallel enumeration"):
        probdl.infer(model, torch.tensor(1.0), seed=1)


def test_a_sum_that_does_not_broadcast():
    def model(x, y):
        with pyro.plate("k", 3):
            z = pyro.sample("z", dist.Bernoulli(0.3))
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(a + torch.dot(z, x), 1.0), obs=y)

    with pytest.raises(probdl.ModelError, match=r"parallel enumeration.*\(x \* z\).sum\(-1\)"):
        probdl.infer(model, torch.ones(3), torch.tensor(1.0), seed=1)
