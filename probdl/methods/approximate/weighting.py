"""Draws of a proposal as draws of the posterior: their importance weights, and resampling."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probdl.findings import TAIL_DRAWS_MIN, Finding
from probdl.io.idata import psis
from probdl.model.density import LogDensity
from probdl.model.program import Program
from probdl.model.sites import Structure
from probdl.results.latent import Proposal, propose

__all__ = ["Weighed", "resample", "weigh"]

_MOST = 2**24  # weights that torch.multinomial takes


@dataclass(frozen=True)
class Weighed:
    """Draws with what they weigh.

    Attributes:
        draws: by site name, latent and deterministic, (n, *shape).
        lp: log p(z, x) of each, in nats.
        log_ratios: log p(z, x) - log q(z).
        log_weights: their Pareto-smoothed logs, normalised.
        pareto_k: how heavy their tail is; NaN for too few draws.
    """

    draws: dict[str, Tensor]
    lp: NDArray[np.float64]
    log_ratios: NDArray[np.float64]
    log_weights: NDArray[np.float64]
    pareto_k: float

    @property
    def log_evidence(self) -> float:
        """The log of the mean ratio: log p(x), in nats (Eqs. 16 to 19)."""
        return float(np.logaddexp.reduce(self.log_ratios) - math.log(len(self.log_ratios)))

    @property
    def ess(self) -> float:
        """How many draws of the posterior the weighed draws are worth."""
        return float(np.exp(-np.logaddexp.reduce(2 * self.log_weights)))


def weigh(
    program: Program,
    structure: Structure,
    proposal: Proposal,
    count: int,
    findings: list[Finding] | None = None,
) -> Weighed:
    """Draw from a proposal and weigh the draws; discrete sites are summed out exactly.

    The program is one in float64, and all its latent sites are shared by the data.
    """
    values, log_p, log_q = propose(program, structure, proposal, count, findings)
    if structure.of("latent"):
        density = LogDensity(program, structure, jacobian=False)
        values = density.constrain(density.unconstrain(values), deterministic=True)
    ratios = (log_p - log_q).to(torch.float64).numpy()
    ratios = np.where(np.isnan(ratios), -np.inf, ratios)
    if count < TAIL_DRAWS_MIN:
        log_weights, k = ratios - np.logaddexp.reduce(ratios), math.nan
    else:
        log_weights, k = psis(ratios)
    return Weighed(values, log_p.numpy(), ratios, log_weights, k)


def resample(log_weights: NDArray[Any], count: int, generator: torch.Generator) -> Tensor:
    """Choose ``count`` draws with replacement, each as often as its weight tells."""
    weights = torch.from_numpy(np.exp(log_weights - log_weights.max()))
    if len(weights) <= _MOST:
        return torch.multinomial(weights, count, replacement=True, generator=generator)
    total = weights.cumsum(0)
    points = torch.rand(count, generator=generator, dtype=torch.float64) * total[-1]
    return torch.searchsorted(total, points, right=True).clamp_(max=len(weights) - 1)
