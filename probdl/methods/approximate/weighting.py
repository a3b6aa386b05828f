"""Importance weights of draws from a proposal, and resampling by the weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probdl.compile import Evaluator, choose
from probdl.findings import TAIL_DRAWS_MIN, Finding
from probdl.io.pareto import psis
from probdl.methods.angles import beyond_a_turn, unwound
from probdl.model.density import LogDensity
from probdl.model.program import Program
from probdl.model.sites import Structure
from probdl.model.streaming import shared
from probdl.results.latent import Proposal, Scorer, propose
from probdl.results.weights import log_evidence_of, weights_ess
from probdl.util.clock import check_overtime, check_time_limit
from probdl.util.progress import bar

__all__ = [
    "WeightedDraws",
    "compiled_scorer",
    "draw_weighted",
    "resample",
    "scorer_of",
]

MOVED_MAX = 1e-6  # relative, by rounding
KEPT_MIN = 100  # draws that are weighted also after the time limit
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
        return log_evidence_of(self.log_ratios)

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
    evaluator: Scorer | None = None,
) -> WeightedDraws:
    """Draw from a proposal, and compute importance weights; discrete sites are summed out exactly.

    Args:
        program: the model with its data, in float64. All latent sites are shared by the data.
        structure: its sites.
        proposal: the distribution to draw from.
        count: number of draws.
        findings: receives a finding if the drawing is interrupted.
        evaluator: a fast evaluation of log p(z, x), if there is one.
    """
    values, log_p, log_q = propose(program, structure, proposal, count, findings, evaluator)
    ratios = (log_p - log_q).to(torch.float64).numpy()
    computed = [s.name for s in structure.of("deterministic")]
    if structure.of("latent") and not set(computed) <= set(values):
        density = LogDensity(program, structure, jacobian=False)
        values = density.constrain(density.unconstrain(values), deterministic=True)
    if program.loader is None and any(s.distribution == "VonMises" for s in structure.of("latent")):
        density = LogDensity(program, structure, jacobian=False)
        z = density.unconstrain(values).numpy()
        ratios = np.where(beyond_a_turn(density, density, z), -np.inf, ratios)
        values = values | density.constrain(torch.from_numpy(unwound(density, density, z)))
    values = shared(program, structure, values, computed)
    values = {name: values[name].to(torch.float64) for name in structure.sites if name in values}
    ratios = np.where(np.isnan(ratios), -np.inf, ratios)
    if count < TAIL_DRAWS_MIN:
        log_weights, k = ratios - np.logaddexp.reduce(ratios), math.nan
    else:
        log_weights, k = psis(ratios)
    return WeightedDraws(values, log_p.numpy(), ratios, log_weights, k)


def compiled_scorer(
    program: Program, structure: Structure, engine: str, seed: int, progress: bool | None
) -> Scorer | None:
    """Compile log p(z, x) as a function of draws; return None if it cannot be compiled."""
    density = LogDensity(program, structure, jacobian=False)
    evaluator, _ = choose(density, engine, seed, gradient=False)
    return scorer_of(density, evaluator, progress) if evaluator.engine == "native" else None


def scorer_of(density: LogDensity, evaluator: Evaluator, progress: bool | None) -> Scorer:
    """Return log p(z, x) as a function of draws, by an evaluator of a density.

    After an interruption the function returns the values of fewer draws. It returns None for draws
    that rounding moves on the way to R^d and back, as at the edge of a simplex.
    """

    def score(values: Mapping[str, Tensor]) -> tuple[Tensor, KeyboardInterrupt | None] | None:
        points = density.unconstrain(values)
        for name, back in density.constrain(points).items():
            moved = (back - values[name]).abs() > MOVED_MAX * values[name].abs()
            if name in density.blocks and (moved | back.isnan()).any():
                return None
        found: list[Tensor] = []
        early = None
        with bar(len(points), "weighting draws", progress) as shown:
            try:
                for point in points:
                    check_time_limit()
                    found.append(evaluator.value_and_grad(point)[0])
                    shown.update()
                    if len(found) >= KEPT_MIN:
                        check_overtime()
            except KeyboardInterrupt as stop:
                if not found:
                    raise
                early = stop
        log_p = torch.stack(found)
        if density.jacobian:
            log_p = log_p - density.log_jacobian(points[: len(log_p)])
            log_p[log_p.isnan()] = -math.inf  # at an edge of the support
        return log_p, early

    return score


def resample(log_weights: NDArray[Any], count: int, generator: torch.Generator) -> Tensor:
    """Return the indices of ``count`` draws, chosen with replacement in proportion to weights."""
    weights = torch.from_numpy(np.exp(log_weights - log_weights.max()))
    if len(weights) <= MULTINOMIAL_MAX:
        return torch.multinomial(weights, count, replacement=True, generator=generator)
    total = weights.cumsum(0)
    points = torch.rand(count, generator=generator, dtype=torch.float64) * total[-1]
    return torch.searchsorted(total, points, right=True).clamp_(max=len(weights) - 1)
