"""Checks of draws of an approximation by their importance weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from probdl.findings import (
    EXPECTATION_K_MAX,
    NEARLY_EQUAL_SHARE,
    RESAMPLED_SHARE_MIN,
    SCALE_RATIO_MAX,
    SHIFT_MAX,
    UNEVEN_SHARE,
    WEIGHT_SHARE_MIN,
    Finding,
    pareto_k_max,
)
from probdl.model.sites import scalar_labels

__all__ = [
    "Reference",
    "check_approximation",
    "check_weights",
    "log_evidence_of",
    "weights_ess",
]

Array = NDArray[np.float64]

ZERO_DENSITY_MAX = 0.005  # share of draws
CONSTANT_SD = 1e-12  # relative to the mean: as of the first element of a Cholesky factor
NOISE = 4.0  # standard errors of draws that are not the approximation's fault
EVIDENCE_MAX = 0.1  # nats, of the difference between two estimates; each has a few hundredths
UNSURE = 2.0  # standard errors of the reference
PART_NUMBERS = 2**20  # of draws that are compared at a time


@dataclass(frozen=True)
class Reference:
    """Draws whose importance weights are known to be reliable.

    Attributes:
        draws: by latent site, (n, *shape).
        log_weights: logarithms of the normalised weights (n,).
        log_evidence: nats; NaN if it is not known.
    """

    draws: Mapping[str, NDArray[Any]]
    log_weights: Array
    log_evidence: float = math.nan


def weights_ess(log_weights: Array) -> float:
    r"""Return the effective sample size of normalised weights, :math:`1 / \sum_i w_i^2`."""
    return float(np.exp(-np.logaddexp.reduce(2 * log_weights)))


def log_evidence_of(log_ratios: Array) -> float:
    """Return the logarithm of the mean of ratios p(z, x) / q(z), which estimates log p(x)."""
    return float(np.logaddexp.reduce(log_ratios) - math.log(len(log_ratios)))


def check_weights(
    log_weights: Array,
    pareto_k: float,
    approximation: str,
    remedy: str = "",
    *,
    resampled: bool = False,
    share_min: float = WEIGHT_SHARE_MIN,
) -> list[Finding]:
    """Check draws of an approximation by their importance weights.

    Args:
        log_weights: normalised log weights, (draws,).
        pareto_k: the Pareto k-hat of the importance ratios.
        approximation: its name, for the message: ``"the guide"``.
        remedy: what to try before another method.
        resampled: whether the draws of the fit are resampled by these weights. If not, uneven
            weights mean that the draws differ from the posterior.
        share_min: the least acceptable effective sample size, as a share of the draws.
    """
    count = len(log_weights)
    ess = weights_ess(log_weights)
    limit = pareto_k_max(count)
    another = _another(remedy)
    if ess / count < UNEVEN_SHARE:
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
    if ess / count >= share_min:
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
    reference: Reference | None = None,
    *,
    resampled: bool = False,
    log_evidence: float = math.nan,
) -> list[Finding]:
    """Check draws of an approximation: their weights, and if those are reliable, their moments.

    Args:
        draws: draws of the approximation by site, each (n, *shape).
        log_weights: their normalised log weights, (n,).
        pareto_k: the Pareto k-hat of the importance ratios.
        approximation: its name, for the message: ``"the guide"``.
        remedy: what to try before another method.
        reference: weighted draws of the posterior; if there are any, the moments are compared with
            theirs.
        resampled: whether the draws are resampled by the weights.
        log_evidence: the evidence by the weights, in nats; NaN if it was not estimated.
    """
    # Smoothing makes the logs of zero weights the least number.
    impossible = 0.0 if resampled else float((log_weights < np.finfo(float).min / 2).mean())
    if impossible > ZERO_DENSITY_MAX:
        return [_zero_density(impossible, approximation)]
    if reference is not None:
        found = _check_moments(draws, reference, approximation, remedy)
        return found or _check_evidence(log_evidence, reference.log_evidence)
    share_min = RESAMPLED_SHARE_MIN if resampled else WEIGHT_SHARE_MIN
    uneven = check_weights(
        log_weights, pareto_k, approximation, remedy, resampled=resampled, share_min=share_min
    )
    if uneven or resampled:
        return uneven
    return _check_moments(draws, Reference(draws, log_weights), approximation, remedy)


def _zero_density(share: float, approximation: str) -> Finding:
    return Finding(
        "warning",
        "zero_density",
        f"{share:.2g} of the draws of {approximation} are where the posterior has no density, such "
        "as where a check of the model or a factorisation fails. Predictions there may fail, too.",
        "Use method='nuts', whose draws are inside, or a site whose support has this edge.",
    )


def _check_evidence(found: float, of_reference: float) -> list[Finding]:
    """Report an evidence that is off, although the moments are right."""
    if not abs(found - of_reference) > EVIDENCE_MAX:
        return []
    return [
        Finding(
            "info",
            "evidence",
            "Means and standard deviations of the draws are those of the posterior, but "
            f"log_evidence is {found:.2f} nats, and {of_reference:.2f} by weighted draws of a "
            "wider density, which are reliable.",
            "For the evidence, use method='importance' with a proposal of heavy tails.",
        )
    ]


class _Deviations(NamedTuple):
    """How far the moments of each scalar of a site are off."""

    shift: Array  # of the mean, in posterior standard deviations
    shift_max: Array
    ratio: Array  # of the standard deviation to that of the posterior
    log_ratio_max: Array


@np.errstate(all="ignore")  # a scalar that does not vary has no deviations
def _check_moments(
    draws: Mapping[str, NDArray[Any]], reference: Reference, approximation: str, remedy: str
) -> list[Finding]:
    r"""Compare means and standard deviations of draws with those of weighted draws.

    .. math:: m_w = \sum_i w_i z_i, \qquad s_w^2 = \sum_i w_i (z_i - m_w)^2

    estimate the moments of the posterior, if the weights are reliable. Differences that noise can
    explain are not reported. A finding concerns all sites, which are approximated together.
    """
    worst: tuple[float, str] = (1.0, "")
    sites: set[str] = set()
    for name, x in draws.items():
        found = _deviations(x, reference, name)
        shifts = np.abs(found.shift) / found.shift_max
        scales = np.abs(np.log(found.ratio)) / found.log_ratio_max
        of_mean = [f"is {s:+.2g} posterior standard deviations off" for s in found.shift]
        of_sd = [f"is {r:.2g} times the posterior's" for r in found.ratio]
        for excess, quantity, values in (
            (shifts, "mean", of_mean),
            (scales, "standard deviation", of_sd),
        ):
            excess = np.nan_to_num(excess, nan=0.0, posinf=0.0)
            i = int(excess.argmax())
            if excess[i] > 1.0:
                sites.add(name)
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
        )
    ]


def _deviations(x: NDArray[Any], reference: Reference, name: str) -> _Deviations:
    """Compare the moments of draws with those of the posterior.

    The limits allow for the noise of the draws themselves, and are lower by the noise of the
    reference: what is beyond them with a probability of 2% is reported.
    """
    w, of_posterior = np.exp(reference.log_weights), reference.draws[name]
    flat, weighted = x.reshape(len(x), -1), of_posterior.reshape(len(w), -1)
    same = of_posterior is x
    step = max(1, PART_NUMBERS // (len(flat) + len(weighted)))
    parts = [
        _compare(flat[:, i : i + step], weighted[:, i : i + step], w, same=same)
        for i in range(0, flat.shape[1], step)
    ]
    return _Deviations(*map(np.concatenate, zip(*parts, strict=True)))


def _compare(flat: Array, weighted: Array, w: Array, *, same: bool) -> _Deviations:
    """Compare draws (n, scalars) with weighted draws of the posterior, which may be the same."""
    mean = w @ weighted
    sd = np.sqrt(w @ (weighted - mean) ** 2)
    sd[sd < CONSTANT_SD * np.abs(mean)] = 0.0  # a constant, but for rounding
    z = (flat - mean) / sd
    shift = z.mean(0)
    ratio = z.std(0)
    n = len(z)
    unsure: Array | float = 0.0
    square_unsure: Array | float = 0.0
    if same:  # errors of sums of (w_i - 1/n) times the same draws
        change = (w - 1 / n) ** 2
        squares = z * z
        noise, square_noise = np.sqrt(change @ squares), np.sqrt(change @ (squares * squares))
    else:
        squares = ((weighted - mean) / sd) ** 2
        noise, unsure = np.full_like(mean, 1 / math.sqrt(n)), np.sqrt(w**2 @ squares)
        # Of as many draws of the posterior: draws that are too wide must not excuse themselves.
        excess = (squares - 1) ** 2
        square_noise, square_unsure = np.sqrt(w @ excess / n), np.sqrt(w**2 @ excess)
    # The error of a logarithm of a standard deviation is half that of its square, relatively.
    log_noise, log_unsure = square_noise / 2, square_unsure / 2
    return _Deviations(
        shift,
        np.maximum(SHIFT_MAX, NOISE * noise) - UNSURE * unsure,
        ratio,
        np.maximum(math.log(SCALE_RATIO_MAX), NOISE * log_noise) - UNSURE * log_unsure,
    )


def _another(remedy: str) -> str:
    return f"{remedy} Use method='nuts', which makes no such approximation.".lstrip()
