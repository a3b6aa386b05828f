"""Checks whether SVI has converged: the end of the training, and a trial of more steps."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from probdl.findings import RISING_ERRORS, Finding
from probdl.results.diagnostics import interrupted

__all__ = ["RISE_MIN", "check_convergence"]

# Ours: the steps of a trial, as a share of all steps, and at least (if half of them are as many).
TRIAL_SHARE = 0.05
TRIAL_STEPS_MIN = 50
EVALUATIONS_SHARE = 0.01
EVALUATIONS_MIN = 25

RISE_MIN = 1e-3  # of the ELBO, relative to its size; less does not matter

REMEDY = "Train for more steps, or raise learning_rate."
IF_VALIDATED = ", as long as that raises the held-out ELBO, too: it need not."


def check_convergence(
    losses: NDArray[np.float64],
    try_more: Callable[[int, int], NDArray[np.float64]] | None,
    *,
    validated: bool = False,
) -> list[Finding]:
    """Check whether the ELBO was still rising at the end of the training.

    The last two tenths of the steps are compared. With a schedule that ends at zero, little noise
    is left in them to average out. But then the ELBO is flat at the end in any case, so that a
    trial repeats the schedule in a few more steps.

    Args:
        losses: minus the ELBO of each step, in nats.
        try_more: takes a number of more steps, and returns a number of differences: by how much
            they lowered the loss. None if the learning rate had not decreased.
        validated: whether held-out data choose the state, so that more steps may overfit.
    """
    which = "ELBO of the training data" if validated else "ELBO"
    remedy = REMEDY[:-1] + IF_VALIDATED if validated else REMEDY
    steps = len(losses)
    tenth = steps // 10
    if tenth < 2:
        return []
    before, after = losses[-2 * tenth : -tenth], losses[-tenth:]
    elbo = -float(after.mean())
    gain = float(before.mean() - after.mean())
    if _is_rise(gain, math.hypot(before.std(), after.std()) / math.sqrt(tenth), elbo):
        return [
            Finding(
                "warning",
                "not_converged",
                f"The {which} was still rising at the end of training: it rose by {gain:.4g} nats "
                f"between the last two 10% blocks of steps, to {elbo:.6g}.",
                remedy,
            )
        ]
    if try_more is None:
        return []
    count = max(min(TRIAL_STEPS_MIN, steps // 2), int(TRIAL_SHARE * steps))
    try:
        gains = try_more(count, max(EVALUATIONS_MIN, int(EVALUATIONS_SHARE * steps)))
    except KeyboardInterrupt as stop:
        kept = "whether the training had converged was not checked"
        return [interrupted(stop, steps, f"{steps} steps", kept, "check it")]
    if not len(gains):
        return []
    gain = float(gains.mean())
    if not _is_rise(gain, float(gains.std()) / math.sqrt(len(gains)), elbo):
        return []
    return [
        Finding(
            "warning",
            "not_converged",
            "The learning rate decreased to zero before the guide had converged: a trial of "
            f"{count} more steps, which the fit does not use, raised the {which} by {gain:.4g} "
            f"nats, from {elbo:.6g}.",
            remedy,
        )
    ]


def _is_rise(gain: float, error: float, elbo: float) -> bool:
    return gain >= max(RISING_ERRORS * error, 0.1, RISE_MIN * abs(elbo))
