"""Blocks of draws: what stays when a block is interrupted, or some of its chains fail."""

import os

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import probdl
from probdl.errors import ModelError
from probdl.findings import Finding
from probdl.methods.mcmc import blocks
from probdl.methods.mcmc.blocks import Blocks
from probdl.methods.mcmc.chains import Chains
from probdl.methods.mcmc.native_nuts import EndedError
from probdl.methods.mcmc.watching import Until

BLOCKS = Blocks(100, Until(ess=1e9, draws=1000))


def chains_of(chains, draws, *findings):
    rng = np.random.default_rng(draws)
    z = rng.normal(size=(chains, draws, 2))
    return Chains(z, {"lp": np.zeros((chains, draws))}, [*findings], [{} for _ in range(chains)])


def sampled(later):
    """Sample a first block of three chains, and then what ``later`` returns or raises."""

    def sample(draws, states=None, before=None):
        return chains_of(3, draws) if states is None else later(draws)

    return BLOCKS.sample(sample, {}, 2)


def interrupted(draws):
    raise KeyboardInterrupt


def test_an_interruption_between_blocks_keeps_what_there_is():
    chains = sampled(interrupted)
    assert chains.z.shape == (3, 100, 2)
    (finding,) = chains.findings
    assert finding.check == "interrupted"
    assert "after 100 of 1000 draws per chain; these draws are returned" in finding.message


def test_an_interruption_while_effective_draws_are_counted(monkeypatch):
    monkeypatch.setattr(Until, "further", lambda self, z: interrupted(z))
    chains = sampled(lambda draws: chains_of(3, draws))
    assert chains.z.shape == (3, 100, 2)
    assert [f.check for f in chains.findings] == ["interrupted"]


def test_an_interruption_of_the_first_block_has_nothing_to_return():
    with pytest.raises(KeyboardInterrupt):
        BLOCKS.sample(lambda draws: interrupted(draws), {}, 2)


@pytest.mark.parametrize(("chains", "kept"), [(2, 100), (3, 107)])
def test_an_interrupted_block_counts_all_draws_and_is_left_out_without_some_chains(chains, kept):
    of_block = Finding("warning", "interrupted", "after 7 of 50 draws; from 2 of the 3 chains.")
    found = sampled(lambda draws: chains_of(chains, 7, of_block))
    assert found.z.shape == (3, kept, 2)
    (finding,) = found.findings
    assert f"after {kept} of 1000 draws per chain" in finding.message
    assert "2 of the 3" not in finding.message


def test_a_failure_in_a_later_block_keeps_the_draws_of_all_chains():
    failed = Finding("error", "chain_failed", "1 of 3 chains failed.")
    chains = sampled(lambda draws: chains_of(2, draws, failed))
    assert chains.z.shape == (3, 100, 2)
    (finding,) = chains.findings
    assert finding.check == "chain_failed"
    assert finding.message.startswith("Only the first 100 draws per chain are returned.")


def failed(error):
    def later(draws):
        raise error

    return later


@pytest.mark.parametrize("seconds", [0.0, 1e9])
def test_the_number_of_draws_does_not_depend_on_the_size_of_blocks(seconds, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_SECONDS", seconds)
    whole = np.random.default_rng(0).normal(size=(2, 2000, 1))

    class Nowhere:
        def read(self, steps):
            return None

        def write(self, state):
            pass

    def sample(draws, states=None, before=None):
        done = 0 if before is None else before.shape[1]
        z = whole[:, done : done + draws]
        return Chains(z, {"lp": np.zeros(z.shape[:2])}, [], [{}, {}])

    of_blocks = Blocks(120, Until(ess=1500, rhat=1.1, draws=2000), Nowhere())
    alone = Blocks(120, Until(ess=1500, rhat=1.1, draws=2000))
    found, expected = (of.sample(sample, {}, 1) for of in (of_blocks, alone))
    assert found.z.shape == expected.z.shape
    assert 120 < found.z.shape[1] < 2000


def test_an_interruption_while_it_is_seen_whether_draws_are_enough(monkeypatch):
    monkeypatch.setattr(Until, "findings", lambda self, z: interrupted(z))
    chains = sampled(lambda draws: chains_of(3, draws))
    assert chains.z.shape == (3, 1000, 2)
    assert [f.check for f in chains.findings] == ["interrupted"]


def test_a_block_of_which_all_chains_fail_is_left_out():
    chains = sampled(failed(ModelError("All chains failed. The first error: …")))
    assert chains.z.shape == (3, 100, 2)
    (finding,) = chains.findings
    assert (finding.severity, finding.check) == ("error", "chain_failed")
    assert "the first 100 draws per chain are returned. All chains failed." in finding.message


def test_a_callback_that_ends_a_block_at_once_keeps_the_draws():
    chains = sampled(failed(EndedError("The callback ended the run.")))
    assert chains.z.shape == (3, 100, 2)
    assert [(f.severity, f.check) for f in chains.findings] == [("info", "callback")]


@pytest.mark.filterwarnings("ignore::probdl.FindingWarning")
def test_a_callback_that_leaves_out_a_chain_is_a_warning(monkeypatch):
    monkeypatch.setattr("probdl.methods.mcmc.watching.INTERVAL_S", -1.0)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)  # the second chain begins after the first

    def model():
        pyro.sample("x", dist.Normal(torch.zeros(2000), 1.0).to_event(1))

    method = probdl.NUTS(draws=20_000, warmup=20, chains=2, callback=lambda w: w.num_draws == 0)
    fit = probdl.infer(model, method=method, seed=0)
    (finding,) = [f for f in fit.findings if f.check == "callback"]
    left_out = fit.num_chains == 1  # unless both were as fast as the watcher
    assert finding.severity == ("warning" if left_out else "info")
    assert ("1 of the 2 chains had as many" in finding.message) == left_out
