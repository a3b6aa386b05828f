"""Checks of draws of an approximation by their importance weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probdl.findings import (
    EXPECTATION_K_MAX,
    NEARLY_EQUAL_SHARE,
    SCALE_RATIO_MAX,
    SHIFT_MAX,
    UNEVEN_SHARE,
    WEIGHT_SHARE_MIN,
    Finding,
    pareto_k_max,
)
from probdl.model.sites import scalar_labels
from probdl.util.lazy import special

__all__ = ["check_approximation", "check_weights", "weights_ess"]

Array = NDArray[np.float64]

FALSE_ALARM_RATE = 0.01  # of all scalars together, if the moments agree


def weights_ess(log_weights: Array) -> float:
    r"""Return the effective sample size of normalised weights, :math:`1 / \sum_i w_i^2`."""
    return float(np.exp(-np.logaddexp.reduce(2 * log_weights)))


def check_weights(
    log_weights: Array,
    pareto_k: float,
    approximation: str,
    remedy: str = "",
    *,
    resampled: bool = False,
) -> list[Finding]:
    """Check draws of an approximation by their importance weights.

    Args:
        log_weights: normalised log weights, (draws,).
        pareto_k: the Pareto k-hat of the importance ratios.
        approximation: its name, for the message: ``"the guide"``.
        remedy: what to try before another method.
        resampled: whether the draws of the fit are resampled by these weights. If not, uneven
            weights mean that the draws differ from the posterior.
    """
    count = len(log_weights)
    ess = weights_ess(log_weights)
    limit = pareto_k_max(count)
    another = _another(remedy)
    if not resampled and ess / count < UNEVEN_SHARE:
        limit = min(limit, EXPECTATION_K_MAX)
    if pareto_k > limit and ess / count < NEARLY_EQUAL_SHARE:
        return [
            Finding(
                "warning",
                "pareto_k",
                f"Importance weights show that {approximation} does not match the posterior: the "
                f"Pareto k-hat of its importance ratios is {pareto_k:.2f}, above {limit:.2g}. Do "
                "not base posterior estimates on these draws.",
                another,
            )
        ]
    if ess / count >= WEIGHT_SHARE_MIN:
        return []
    effect = (
        "estimates are imprecise."
        if resampled
        else f"{approximation} does not match the posterior. Do not base posterior estimates on "
        "these draws."
    )
    return [
        Finding(
            "warning",
            "weights",
            f"The importance weights of {approximation} are uneven (effective sample size "
            f"{ess:.0f} of {count} draws), so {effect}",
            another,
        )
    ]


def check_approximation(
    draws: Mapping[str, NDArray[Any]],
    log_weights: Array,
    pareto_k: float,
    approximation: str,
    remedy: str = "",
) -> list[Finding]:
    """Check draws of an approximation: their weights, and if those are reliable, their moments.

    Args:
        draws: draws of the approximation by site, each (n, *shape).
        log_weights: their normalised log weights, (n,).
        pareto_k: the Pareto k-hat of the importance ratios.
        approximation: its name, for the message: ``"the guide"``.
        remedy: what to try before another method.
    """
    return check_weights(log_weights, pareto_k, approximation, remedy) or _check_moments(
        draws, log_weights, approximation, remedy
    )


def _check_moments(
    draws: Mapping[str, NDArray[Any]], log_weights: Array, approximation: str, remedy: str
) -> list[Finding]:
    r"""Compare means and standard deviations of draws with their importance-weighted values.

    .. math:: m_w = \sum_i w_i z_i, \qquad s_w^2 = \sum_i w_i (z_i - m_w)^2

    estimate the moments of the posterior, if the weights are reliable. Differences that noise can
    explain are not reported; their standard errors are those of sums of (w_i - 1/n) times the
    same draws.
    """
    w = np.exp(log_weights)
    change = w - 1 / len(w)
    worst: tuple[float, str] = (1.0, "")
    sites: dict[str, None] = {}
    scalars = sum(math.prod(x.shape[1:]) for x in draws.values())
    errors = float(special.ndtri(1 - FALSE_ALARM_RATE / (4 * max(scalars, 1))))
    for name, x in draws.items():
        flat = x.reshape(len(w), -1)
        mean = w @ flat
        with np.errstate(all="ignore"):
            sd = np.sqrt(w @ (flat - mean) ** 2)
            z = (flat - mean) / sd
            shift, shift_error = z.mean(0), np.sqrt((change**2) @ z**2)
            square, square_error = (z**2).mean(0), np.sqrt((change**2) @ z**4)
            ratio = np.sqrt(square - shift**2)
            scale = np.abs(np.log(ratio)) / math.log(SCALE_RATIO_MAX)
            shifts = np.where(np.abs(shift) > errors * shift_error, np.abs(shift) / SHIFT_MAX, 0)
            scales = np.where(np.abs(square - 1) > errors * square_error, scale, 0)
        for excess, quantity, values in (
            (shifts, "mean", [f"is {s:+.2g} posterior standard deviations off" for s in shift]),
            (scales, "standard deviation", [f"is {r:.2g} times the posterior's" for r in ratio]),
        ):
            excess = np.nan_to_num(excess, nan=0.0, posinf=0.0)
            i = int(excess.argmax())
            if excess[i] > 1.0:
                sites[name] = None
            if excess[i] > worst[0]:
                label = scalar_labels(name, x.shape[1:])[i]
                worst = (float(excess[i]), f"{quantity} of '{label}' {values[i]}")
    if not sites:
        return []
    also = f" (the worst of {len(sites)} such sites)" if len(sites) > 1 else ""
    return [
        Finding(
            "warning",
            "biased_moments",
            f"Importance weights show that {approximation} does not match the posterior: by "
            f"them, the {worst[1]}{also}.",
            _another(remedy),
            tuple(sites),
        )
    ]


def _another(remedy: str) -> str:
    return f"{remedy} Use method='nuts', which makes no such approximation.".lstrip()
