r"""Angles on the real line: one turn more or less is the same angle.

The support of ``VonMises`` is all of R in torch, where its density has the period 2 pi. Chains on R
settle at any number of turns, so that they disagree although all their angles are the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from probdl.compile import Evaluator
from probdl.model.density import LogDensity

__all__ = ["TURN", "beyond_a_turn", "periodic", "unwind", "unwound"]

TURN = 2 * math.pi
POINTS = 3  # at which a period is verified
TOLERANCE = 1e-6  # relative: sine and cosine of large angles have rounding errors


def unwound(
    density: LogDensity, evaluator: Evaluator, z: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return points (..., d) of R^d with each angle within pi of its circular mean.

    Only coordinates in which the log density has the period 2 pi are changed. A model that uses an
    angle in another way, such as in a linear predictor, is left as it is.
    """
    if not (angles := periodic(density, evaluator, z)):
        return z
    found = z.copy()
    _unwind(found, angles)
    return found


def unwind(density: LogDensity, evaluator: Evaluator, z: NDArray[np.float64]) -> None:
    """Write what ``unwound`` returns into its argument."""
    _unwind(z, periodic(density, evaluator, z))


def _unwind(z: NDArray[np.float64], angles: Sequence[int]) -> None:
    for i in angles:
        angle = z[..., i]
        centre = math.atan2(np.sin(angle).mean(), np.cos(angle).mean())
        z[..., i] = centre + np.remainder(angle - centre + math.pi, TURN) - math.pi


def beyond_a_turn(
    density: LogDensity, evaluator: Evaluator, *parts: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Return which of the points, in arrays (n, d), have an angle more than pi from its median.

    Importance weights of all turns would count each angle several times. Draws on one turn, such as
    those of a VonMises distribution, all count.
    """
    beyond = np.zeros(sum(map(len, parts)), bool)
    for i in periodic(density, evaluator, parts[0]):
        angle = np.concatenate([z[:, i] for z in parts])
        if np.ptp(angle) > TURN:
            beyond |= np.abs(angle - np.median(angle)) > math.pi
    return beyond


def periodic(density: LogDensity, evaluator: Evaluator, z: NDArray[np.float64]) -> list[int]:
    """Return the coordinates of angles in which the log density has the period 2 pi.

    Args:
        density: the log density.
        evaluator: evaluates it.
        z: points (..., d), at some of which the period is verified.
    """
    rows = z.reshape(-1, z.shape[-1])
    points = rows[np.linspace(0, len(rows) - 1, POINTS).astype(int)]
    return [
        i
        for block in density.blocks.values()
        if block.site.distribution == "VonMises"
        for i in range(block.start, block.start + block.size)
        if all(_same_after_a_turn(evaluator, point, i) for point in points)
    ]


def _same_after_a_turn(evaluator: Evaluator, point: NDArray[np.float64], i: int) -> bool:
    turned = point.copy()
    turned[i] += TURN
    here, there = (
        float(evaluator.value_and_grad(torch.from_numpy(p))[0]) for p in (point.copy(), turned)
    )
    return abs(here - there) <= TOLERANCE * (1 + abs(here))
