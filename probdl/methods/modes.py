"""Check whether an approximation or the chains of a sampler leave out a mode of the posterior."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from probdl.compile import Evaluator
from probdl.findings import MODE_DISTANCE, Finding
from probdl.methods.angles import unwound
from probdl.model.density import LogDensity
from probdl.util.columns import by_columns

__all__ = ["Mode", "check_covered", "check_modes"]

MASS_GAP_MAX = 5.0  # nats; a mode whose log mass is lower has a probability below 1%
BARRIER_MIN = 3.0  # nats by which the log density falls between two modes
POINTS = 11  # on the line between two modes


class Mode(NamedTuple):
    """A region of high density on R^d, approximated by a normal density."""

    mean: NDArray[np.float64]  # (d,)
    sd: NDArray[np.float64]  # (d,)
    log_mass: float  # estimate of the log integral of the density over the region, in nats


def check_modes(
    density: LogDensity, evaluator: Evaluator, modes: Sequence[Mode], effect: str
) -> list[Finding]:
    """Report a mode apart from the heaviest one that has a share of the posterior.

    Args:
        density: the density.
        evaluator: evaluates it.
        modes: what searches from several starting points found, in any order.
        effect: what follows for the fit.
    """
    best = max(modes, key=lambda mode: mode.log_mass)
    for rival in modes:
        if rival.log_mass < best.log_mass - MASS_GAP_MAX:
            continue
        here, there = unwound(density, evaluator, np.stack([best.mean, rival.mean]))
        with np.errstate(all="ignore"):  # a single draw has no spread
            apart = np.abs(there - here) / (best.sd + rival.sd)
        i = int(apart.argmax())
        if apart[i] < MODE_DISTANCE or not _has_barrier(evaluator, here, there):
            continue
        label = density.labels[i]
        return [
            Finding(
                "error",
                "multimodal",
                "The posterior has several modes: searches from different starts ended in "
                f"regions that differ in '{label}' (unconstrained values near {here[i]:.3g} "
                f"and {there[i]:.3g}), with similar probabilities. {effect}",
                "If the modes are permutations of the same solution, order the sites or break the "
                "symmetry with a prior. Otherwise compare fits from several seeds.",
                (label.partition("[")[0],),
            )
        ]
    return []


def check_covered(
    density: LogDensity, evaluator: Evaluator, z: NDArray[np.float64], modes: Sequence[Mode]
) -> list[Finding]:
    """Report a mode with a share of the posterior that is far from all draws.

    Args:
        density: the density.
        evaluator: evaluates it.
        z: the draws (chain, draw, d).
        modes: modes that were found without them.
    """
    if not modes:
        return []
    flat = z.reshape(-1, z.shape[-1])
    heaviest = max(mode.log_mass for mode in modes)
    covered = Mode(flat.mean(0), by_columns(lambda x: x.std(0), flat), heaviest)
    return check_modes(density, evaluator, [covered, *modes], "The draws cover one.")


def _has_barrier(evaluator: Evaluator, a: NDArray[np.float64], b: NDArray[np.float64]) -> bool:
    """Return whether the density is low somewhere on the line between two points."""
    line = [a + t * (b - a) for t in np.linspace(0, 1, POINTS)]
    heights = [float(evaluator.value_and_grad(torch.from_numpy(z))[0]) for z in line]
    return not min(heights) > min(heights[0], heights[-1]) - BARRIER_MIN
