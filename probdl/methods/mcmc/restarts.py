"""Chains that ended where the posterior has no share are run again, from where the others are."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probdl.errors import ModelError
from probdl.findings import STUCK_GAP, Finding
from probdl.methods.mcmc.blocks import ENDED
from probdl.methods.mcmc.chains import Chains
from probdl.results.diagnostics import away_from_posterior, log_correlation, ranges, unchecked
from probdl.util.seeds import stream

__all__ = ["restarted"]

Array = NDArray[np.float64]

# A later end of the run, or more draws, must not change the decision or the new starts.
FIRST_DRAWS = 100
MIN_OTHERS = 2  # chains, which do not depend on one another
NOT_AGAIN = "chains that did not reach the posterior were not run again to the end"
SPREAD = 5.0  # standard deviations of a log density in its typical set, which are sqrt(d / 2)


def restarted(chains: Chains, sample: Callable[..., Chains], draws: int, seed: int) -> Chains:
    """Return the chains, of which those that are misplaced were run again.

    Such a chain waits at a lesser mode, or in a tail that it does not leave. Its draws have no
    share of the posterior. The others decide where the posterior is: there must be at least two of
    them, and no fewer than misplaced ones.

    Args:
        chains: the chains after their first draws.
        sample: runs chains from new starts, given ``find_start=``, ``chains=``, ``draws=`` and
            ``seed=``.
        draws: the number of draws that each chain was meant to have.
        seed: the seed of the fit.
    """
    if chains.z.shape[1] < draws or draws < FIRST_DRAWS:
        return chains  # the run ended early, or it cannot be decided
    z, lp = chains.z[:, :FIRST_DRAWS], chains.stats["lp"][:, :FIRST_DRAWS]
    levels = np.median(lp, 1)
    misplaced = _misplaced(z, lp, levels)
    count, others = int(misplaced.sum()), z[~misplaced]
    if not count or len(others) < max(MIN_OTHERS, count):
        return chains

    def start(chain_seed: int, **_options: Any) -> Tensor:
        rng = np.random.default_rng(chain_seed)
        return torch.from_numpy(others[rng.integers(len(others)), rng.integers(z.shape[1])].copy())

    again = {"find_start": start, "chains": count, "seed": stream(seed, "restart")}
    try:
        new = sample(draws=draws, **again)
    except KeyboardInterrupt as stop:
        return _with(chains, unchecked(stop, NOT_AGAIN, "run them again"))
    except ModelError:  # no better
        return chains
    if new.z.shape != (count, *chains.z.shape[1:]):  # it ended early
        message = f"{NOT_AGAIN.capitalize()}."
        ended = [replace(f, message=message) for f in new.findings if f.check in ENDED]
        return _with(chains, *ended)
    found = Finding(
        "warning",
        "restarted_chain",
        f"{away_from_posterior(misplaced, levels)} The log density of the others is about "
        f"{levels[~misplaced].max():.4g}. They were run again, from draws of the "
        "others, so that their agreement is no evidence of convergence; that of the other "
        f"{len(others)} is.",
        "If the mode that was left matters, start there: init={'site': value}.",
    )
    return _with(_replaced(chains, misplaced, new), *new.findings, found)


def _misplaced(z: Array, lp: Array, levels: Array) -> NDArray[np.bool_]:
    """Return a mask (chain,) of chains whose region surely has no share of the posterior.

    It is stricter than ``stuck_chains``, and leaves out chains that only stand still: the place
    where they do, such as the neck of a funnel, may have a share. Their region is taken to be as
    wide along each coordinate as that of the best chain, and the latter no larger than its
    correlations allow.
    """
    gap = STUCK_GAP + SPREAD * math.sqrt(z.shape[2] / 2)
    if levels.min() > levels.max() - gap:
        return np.zeros(len(lp), bool)
    size = np.log(np.maximum(ranges(z), np.finfo(float).tiny))
    best = int(np.argmax(levels + size.sum(1)))
    around = z[levels > levels[best] - gap]
    within = (around - around.mean(1, keepdims=True)).reshape(-1, z.shape[2])
    largest = levels + np.maximum(size, size[best]).sum(1)
    least = levels[best] + size[best].sum() + log_correlation(within)
    apart = lp.max(1) < lp[best].min()
    found: NDArray[np.bool_] = apart & (levels < levels[best] - gap) & (largest < least - STUCK_GAP)
    return found


def _replaced(chains: Chains, which: NDArray[np.bool_], new: Chains) -> Chains:
    """Write the new chains in the places of some; a second array may not fit into memory."""
    stats = {name: of.copy() for name, of in chains.stats.items()}
    for i, of in zip(np.flatnonzero(which), new.z, strict=True):
        chains.z[i] = of
    for name, of in stats.items():
        of[which] = new.stats[name]
    given = iter(new.states)
    states = [
        next(given) if again else state for state, again in zip(chains.states, which, strict=False)
    ]
    return replace(chains, stats=stats, states=states)


def _with(chains: Chains, *findings: Finding) -> Chains:
    return replace(chains, findings=[*chains.findings, *findings])
