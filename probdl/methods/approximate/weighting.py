"""Importance weights of draws from a proposal, and resampling by the weights."""

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
from probdl.results.diagnostics import weights_ess
from probdl.results.latent import Proposal, propose

__all__ = ["WeightedDraws", "draw_weighted", "resample"]

MULTINOMIAL_MAX = 2**24  # the largest number of weights that torch.multinomial accepts


@dataclass(frozen=True)
class WeightedDraws:
    """Draws from a proposal with their importance weights.

    Attributes:
        draws: by site name, latent and deterministic, (n, *shape).
        lp: log p(z, x) of each draw, (n,), in nats.
        log_ratios: log p(z, x) - log q(z), (n,).
        log_weights: logarithms of the Pareto-smoothed and normalised weights, (n,).
        pareto_k: Pareto k-hat of the ratios; NaN for too few draws.
    """

    draws: dict[str, Tensor]
    lp: NDArray[np.float64]
    log_ratios: NDArray[np.float64]
    log_weights: NDArray[np.float64]
    pareto_k: float

    @property
    def log_evidence(self) -> float:
        """The logarithm of the mean ratio, which estimates log p(x), in nats (Eqs. 16 to 19)."""
        return float(np.logaddexp.reduce(self.log_ratios) - math.log(len(self.log_ratios)))

    @property
    def ess(self) -> float:
        """The effective sample size of the weights."""
        return weights_ess(self.log_weights)


def draw_weighted(
    program: Program,
    structure: Structure,
    proposal: Proposal,
    count: int,
    findings: list[Finding] | None = None,
) -> WeightedDraws:
    """Draw from a proposal, and compute importance weights; discrete sites are summed out exactly.

    Args:
        program: the model with its data, in float64. All latent sites are shared by the data.
        structure: its sites.
        proposal: the distribution to draw from.
        count: number of draws.
        findings: receives a finding if the drawing is interrupted.
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
    return WeightedDraws(values, log_p.numpy(), ratios, log_weights, k)


def resample(log_weights: NDArray[Any], count: int, generator: torch.Generator) -> Tensor:
    """Return the indices of ``count`` draws, chosen with replacement in proportion to weights."""
    weights = torch.from_numpy(np.exp(log_weights - log_weights.max()))
    if len(weights) <= MULTINOMIAL_MAX:
        return torch.multinomial(weights, count, replacement=True, generator=generator)
    total = weights.cumsum(0)
    points = torch.rand(count, generator=generator, dtype=torch.float64) * total[-1]
    return torch.searchsorted(total, points, right=True).clamp_(max=len(weights) - 1)
