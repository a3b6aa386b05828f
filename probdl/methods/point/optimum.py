r"""The maximum of a log density on R^d, and the curvature there.

L-BFGS (Liu and Nocedal, 1989, in SciPy) from several starting points finds the neighbourhood of the
maximum. Newton steps with the exact Hessian then reach machine precision, which L-BFGS alone does
not on badly scaled problems. If Newton's method does not converge quadratically, there is no
regular maximum: the density increases without bound, or towards a boundary.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probdl.compile import Evaluator
from probdl.errors import ModelError
from probdl.findings import Finding
from probdl.methods.angles import unwound
from probdl.methods.approach import (
    AT_MODE,
    approach,
    evaluate_with,
    information_by_differences,
)
from probdl.model.density import LogDensity
from probdl.results.diagnostics import interrupted
from probdl.util.blas import one_blas_thread, one_torch_thread
from probdl.util.clock import check_time_limit, timed
from probdl.util.lazy import optimize
from probdl.util.progress import bar

__all__ = ["Curvature", "Optimum", "curvature", "largest", "maximise", "no_maximum", "site_names"]

DENSE_MAX = 1000  # the largest d with a Hessian, which takes d gradients and d² numbers
NEWTON_STEPS_MAX = 100  # quadratic convergence needs four or five, after the way to its region
# A step takes as many gradients as there are coordinates: at least so many steps, and gradients.
NEWTON_STEPS_MIN, HESSIAN_ROWS_MAX = 10, 10_000
# On the way there, differences of gradients are enough, and much faster in native code.
ROUGH_GAIN_MIN, ROUGH_DIM_MIN = 1e-8, 20  # nats that a step gains, and coordinates
DRIFT_MAX = 8  # full Newton steps of the same length and direction: the maximum is at infinity
RESOLVED_MIN = 1e-6  # nats that a step to a finite density would gain beyond doubt
SAME_HESSIAN_MAX = 1e-8  # nats: after a step that gains less, the Hessian is the same
NEWTON_GAIN_MIN = 1e-16  # nats: Newton's method has converged if a step gains less
KINK_GAIN_MAX, KINK_STEPS = 0.1, 5  # share of the promised gain, and steps in a row below it
FLAT_SHARE_MAX = 1e-10  # flat eigenvalues, as a share of the largest one of the scaled information
UNMOVED_MAX = 1e-9  # nats by which a parameter changes the density, if only by rounding
SAME_VALUE_MAX = 1e-3  # nats between values of the same optimum
FAR_BELOW = 20.0  # nats by which an optimum counts for nothing beside another
SAME_POINT_MAX = 0.01  # distance between points of the same optimum, relative to 1 + |x|
NOT_FINITE = 1e30  # replaces minus the log density if it is not finite


@dataclass(frozen=True)
class Optimum:
    """The highest maximum of a log density that was found.

    Attributes:
        z: the point (d,).
        value: the log density there, in nats.
        information: minus the Hessian there (d, d); None if d is too large to compute it.
        findings: findings of the optimisation.
        others: lower optima, as points, values and minus Hessians.
        kinked: whether the search ended at kinks of the density.
        ended: what ended the search before the curvature was known; None if nothing did.
    """

    z: Tensor
    value: float
    information: Tensor | None
    findings: list[Finding] = field(default_factory=list)
    others: tuple[tuple[Tensor, float, Tensor], ...] = ()
    kinked: bool = False
    ended: KeyboardInterrupt | None = None


def maximise(
    density: LogDensity,
    evaluator: Evaluator,
    starts: int,
    steps: int,
    generator: torch.Generator,
    show: bool | None,
    *,
    quick: bool = False,
    newton_steps: int | None = None,
) -> Optimum:
    """Maximise a density from several starting points, and return the highest maximum.

    Args:
        density: the density.
        evaluator: evaluates it and its gradient.
        starts: number of starting points; the first has param sites at their current values.
        steps: maximal number of L-BFGS iterations from each starting point.
        generator: random numbers for the starting points.
        show: whether to show progress.
        quick: whether to use a Hessian again after a small step, also if there are few data.
        newton_steps: maximal number of Newton steps after them; None chooses it by the model.

    Raises:
        ModelError: no starting point has a finite density, or the model fails.
    """
    found: list[_End] = []
    findings: list[Finding] = []
    pair = generator.get_state()  # of two starts that are mirror images of each other
    with bar(starts, "maximising", show) as progress, one_blas_thread():
        try:
            for i in range(starts):
                mirror = i % 2 == 1
                if not mirror:
                    pair = generator.get_state()
                start = density.initial(
                    generator.set_state(pair),
                    jitter=i > 0,
                    mirror=mirror,
                    value_and_grad=evaluator.value_and_grad,
                )
                end, stop = _climb(evaluator, start, steps)
                if stop is None and (further := _further(evaluator, end)) is not None:
                    end, stop = _climb(evaluator, further, steps)
                found.append(end)
                if stop is not None:
                    raise stop
                progress.update()
        except KeyboardInterrupt as stop:
            if not found:
                raise
            of, kept = f"{starts} starts", "the best point found is returned"
            findings.append(interrupted(stop, len(found), of, kept, "run all starts"))
    best = max(found, key=lambda end: end.value)
    ended: KeyboardInterrupt | None = None
    if dense := density.dim <= DENSE_MAX:
        # L-BFGS may have stopped lower, but on the way to the same maximum.
        lower = [end for end in found if end.value < best.value - SAME_VALUE_MAX]
        wanted = min(NEWTON_STEPS_MAX, steps)
        limit = min(wanted, max(NEWTON_STEPS_MIN, HESSIAN_ROWS_MAX // density.dim))
        limit = limit if newton_steps is None else newton_steps
        quick |= density.program.is_large
        ends = [best, *lower]
        try:
            with bar(len(ends), "curvature", show) as progress:
                floor = -math.inf
                for i, end in enumerate(ends):
                    ends[i] = _polish(density, evaluator, end, limit, quick, floor)
                    floor = max(floor, ends[i].value)
                    progress.update()
        except KeyboardInterrupt as interruption:
            ended = interruption
        best = max(ends, key=lambda end: end.value)
    else:
        ends = found
    at_edge = best.blocked or not _has_curvature(best)
    if at_edge:
        findings.append(_at_edge(density, best))
    # Out of steps, a point far from the maximum has a large gain as well.
    elif best.kinked:
        findings.append(_at_kink(density, best))
    elif best.exhausted and limit < wanted:
        findings.append(_out_of_steps(density, limit))
    elif best.drifts or (best.gain >= NEWTON_GAIN_MIN and best.converged):
        labels = largest(density.labels, best.step / (1 + best.z.abs()))
        findings.append(no_maximum(labels))
    elif not best.converged:
        findings.append(
            Finding(
                "warning",
                "not_converged",
                f"The optimiser did not converge within {steps} steps.",
                "Raise steps=, or rescale the sites to similar scales.",
            )
        )
    below = [end.value for end in ends if end.value < best.value - SAME_VALUE_MAX]
    if below and best.gain < NEWTON_GAIN_MIN:
        gaps = [best.value - value for value in sorted(set(below), reverse=True)[:3]]
        shown = ", ".join(f"{gap:.2g}" for gap in gaps)
        findings.append(
            Finding(
                "info",
                "several_optima",
                f"{len(below)} of {len(found)} starts ended at lower values, by {shown} nats, than "
                f"{best.value:.6g}: the density has several optima. The best is returned.",
                "Raise starts= to search for higher optima.",
            )
        )
    findings += _check_other_optima(density, evaluator, best, found)
    information = None
    if dense and ended is None:
        reuse = quick and best.information is not None and best.gain < NEWTON_GAIN_MIN
        try:
            with timed("curvature"):
                information = best.information if reuse else -density.hessian(best.z)
        except KeyboardInterrupt as interruption:
            ended = interruption
    if ended is not None:
        of, kept = f"{starts} starts", "the best point found is returned, without standard errors"
        findings.append(interrupted(ended, len(found), of, kept, "compute the curvature"))
    if at_edge and information is not None and not torch.isfinite(information).all():
        information = None
    if not (dense or at_edge):
        findings.append(
            Finding(
                "info",
                "no_information",
                f"The model has {density.dim} parameters, more than {DENSE_MAX}, so the "
                "information matrix was not computed and there are no standard errors.",
            )
        )
    others = [e for e in ends if e is not best and e.value < best.value - SAME_VALUE_MAX]
    lower_optima = [(e.z, e.value, e.information) for e in others if e.information is not None]
    lower_modes = tuple(lower_optima)
    return Optimum(best.z, best.value, information, findings, lower_modes, best.kinked, ended)


def _has_curvature(end: _End) -> bool:
    return end.information is None or bool(torch.isfinite(end.information).all())


def _at_edge(density: LogDensity, end: _End) -> Finding:
    """Report a maximum where the density ends, or where it has no second derivatives."""
    labels = density.labels
    if end.blocked:
        labels = largest(labels, end.step)
        where = f"The density rises along {', '.join(labels)} up to a point where it drops to zero"
    else:
        assert end.information is not None
        diagonal = ~torch.isfinite(end.information.diagonal())
        chosen = [n for n, bad in zip(labels, diagonal.tolist(), strict=True) if bad] or labels
        labels = chosen[:5]
        where = (
            f"The density has no finite second derivatives by {', '.join(labels)} at the point "
            "found, as at the edge of a support"
        )
    return Finding(
        "warning",
        "boundary",
        f"{where}. The estimate is at that edge, and normal theory (standard errors, intervals) "
        "does not hold there.",
        "Use method='nuts', which samples the posterior inside the support, or a prior whose "
        "density is zero at the edge.",
        site_names(labels),
    )


def _out_of_steps(density: LogDensity, steps: int) -> Finding:
    """Report that Newton's method, which takes few steps to a regular maximum, took too many."""
    return Finding(
        "warning",
        "not_converged",
        f"Newton's method did not reach the maximum in {steps} steps, the limit for "
        f"{density.dim} coordinates. The density may have kinks, as that of a network with ReLU "
        "activations. The estimate is close to a maximum; standard errors may not hold.",
        "Use a smooth activation, such as torch.nn.Tanh or torch.nn.SiLU, or method='svi'.",
    )


def _at_kink(density: LogDensity, end: _End) -> Finding:
    """Report a point where no step gains what the first two derivatives promise."""
    labels = largest(density.labels, end.step)
    return Finding(
        "warning",
        "not_converged",
        f"The optimiser stopped where the density has kinks along {', '.join(labels)}, as that of "
        "a network with ReLU activations: no step gains what the derivatives promise. Standard "
        "errors do not hold there.",
        "Use a smooth activation, such as torch.nn.Tanh or torch.nn.SiLU, or method='svi'.",
        site_names(labels),
    )


def _check_other_optima(
    density: LogDensity, evaluator: Evaluator, best: _End, ends: Sequence[_End]
) -> list[Finding]:
    """Report other points at which the density is as high as at the best one."""
    if best.gain >= NEWTON_GAIN_MIN:
        return []
    count = 0
    sites: dict[str, None] = {}
    for end in ends:
        if end is best or end.value < best.value - SAME_VALUE_MAX:
            continue
        points = np.stack([best.z.numpy(), end.z.numpy()])
        here, there = map(density.constrain, torch.from_numpy(unwound(density, evaluator, points)))
        different = [n for n, v in here.items() if (_gap(v, there[n]) > SAME_POINT_MAX).any()]
        count += bool(different)
        sites.update(dict.fromkeys(different))
    if not count:
        return []
    return [
        Finding(
            "warning",
            "not_identified",
            f"{count} other start{'s' * (count > 1)} ended at an equally high density with other "
            f"values of {', '.join(map(repr, sites))}: the data do not distinguish between these "
            "points, so the estimate is one of several.",
            "Order interchangeable parameters, or remove redundant ones.",
            tuple(sites),
        )
    ]


def _gap(x: Tensor, other: Tensor) -> Tensor:
    return (x - other).abs() / (1 + x.abs())


class _End(NamedTuple):
    """The end of the optimisation from one starting point."""

    value: float
    z: Tensor
    converged: bool
    step: Tensor  # the next Newton step
    gain: float  # nats that this step would gain
    information: Tensor | None = None  # where this step was computed
    drifts: bool = False  # whether Newton's method goes on and on in one direction
    blocked: bool = False  # whether the density is not finite just ahead
    kinked: bool = False  # whether the last steps gained far less than the curvature promised
    exhausted: bool = False  # whether Newton's method took all of its steps


def _climb(
    evaluator: Evaluator, start: Tensor, steps: int
) -> tuple[_End, KeyboardInterrupt | None]:
    """Run L-BFGS from one starting point, and keep the best point that it visits.

    Returns:
        The best point, and the interruption if one ended the run.
    """
    best: tuple[float, Tensor] = (-np.inf, start)
    stop = None

    def objective(x: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        nonlocal best
        check_time_limit()
        z = torch.from_numpy(x.copy())
        try:
            value, grad = evaluator.value_and_grad(z)
        except ModelError:  # far from here, a solver within the model may fail
            if best[0] == -np.inf:
                raise
            return NOT_FINITE, np.zeros_like(x)
        if not (torch.isfinite(value) and torch.isfinite(grad).all()):
            return NOT_FINITE, np.zeros_like(x)  # the line search then steps back
        if float(value) > best[0]:
            best = (float(value), z)
        return -float(value), -grad.numpy()

    options = {"maxiter": steps, "maxfun": 20 * steps, "ftol": 1e-13, "gtol": 1e-8}
    converged = False
    try:
        result = optimize.minimize(
            objective, start.numpy(), jac=True, method="L-BFGS-B", options=options
        )
        converged = result.status == 0
    except KeyboardInterrupt as error:
        if best[0] == -np.inf:
            raise
        stop = error
    return _End(*best, converged, torch.zeros_like(start), 0.0), stop


def _further(evaluator: Evaluator, end: _End) -> Tensor | None:
    """Return a higher point if L-BFGS stopped only because gradients are small in these units."""
    if not end.converged:
        return None
    evaluate = functools.partial(evaluate_with, evaluator)
    found = approach(evaluate, end.z.numpy(), AT_MODE)
    return torch.from_numpy(found.end) if found.value > end.value + SAME_VALUE_MAX else None


def _polish(
    density: LogDensity,
    evaluator: Evaluator,
    end: _End,
    steps: int,
    quick: bool,
    best: float = -math.inf,
) -> _End:
    """Take up to ``steps`` Newton steps to the maximum, or fewer if it is clearly below ``best``.

    Where the density is convex along some direction, the step follows its gradient there. If full
    steps keep their length and direction while they gain less and less, the maximum is at infinity.
    """
    z = end.z
    value, grad = evaluator.value_and_grad(z)
    step, gain, information, drift, blocked = torch.zeros_like(z), math.inf, None, 0, False
    short = 0  # steps in a row that gained little of what they promised
    exhausted = False
    rough = evaluator.engine == "native" and len(z) >= ROUGH_DIM_MIN
    for _ in range(steps):
        check_time_limit()
        next_step = _rough_step(evaluator, z, grad) if rough else None
        if next_step is None:
            rough = False
            if information is None or not quick or gain > SAME_HESSIAN_MAX:
                information = -density.hessian(z)
            if not torch.isfinite(information).all():
                return end._replace(value=float(value), z=z, information=information)
            next_step = curvature(information, z).ascend(grad)
        before, step = step, next_step
        gain = 0.5 * float(grad @ step)
        if gain <= NEWTON_GAIN_MIN:
            break
        below = best - float(value)
        if below > FAR_BELOW + 10 * gain or (gain < SAME_VALUE_MAX and below > 2 * SAME_VALUE_MAX):
            break
        for halvings in range(30):
            ahead = z + step / 2**halvings
            ahead_value, ahead_grad = evaluator.value_and_grad(ahead)
            if ahead_value > value and torch.isfinite(ahead_grad).all():
                break
        else:  # the gain is below the resolution of double precision, or the step ends at an edge
            if rough:
                rough = False
                continue
            blocked = not bool(torch.isfinite(ahead_value)) and gain > RESOLVED_MIN
            gain = gain if blocked else 0.0
            break
        repeats = halvings == 0 and float(before @ step) > 0.5 * max(
            float(before @ before), float(step @ step)
        )
        drift = drift + 1 if repeats else 0
        is_short = gain > RESOLVED_MIN and float(ahead_value - value) < KINK_GAIN_MAX * gain
        short = short + 1 if is_short else 0
        z, value, grad = ahead, ahead_value, ahead_grad
        if drift == DRIFT_MAX:
            break
    else:
        exhausted = True
    if rough:
        information = -density.hessian(z)
    # The gradient is still resolved when the value no longer is: one more step reduces it to
    # rounding, and so the noise in the curvature along flat directions.
    if gain <= NEWTON_GAIN_MIN:
        ahead_value, ahead_grad = evaluator.value_and_grad(z + step)
        if ahead_grad.norm() < grad.norm():
            z, value = z + step, ahead_value
    converged = end.converged or gain <= NEWTON_GAIN_MIN
    drifts = drift == DRIFT_MAX
    kinked = short >= KINK_STEPS
    return _End(
        float(value), z, converged, step, gain, information, drifts, blocked, kinked, exhausted
    )


def _rough_step(evaluator: Evaluator, z: Tensor, grad: Tensor) -> Tensor | None:
    """Return a Newton step by differences of gradients; None if it is too short for these."""
    information = torch.from_numpy(information_by_differences(evaluator, z.numpy()))
    if not torch.isfinite(information).all():
        return None
    step = curvature(information, z).ascend(grad)
    return step if 0.5 * float(grad @ step) > ROUGH_GAIN_MIN else None


@dataclass(frozen=True)
class Curvature:
    """The decomposition of an information matrix, with flat directions separated.

    The matrix is scaled to unit diagonal first, so that flatness does not depend on the units of
    the parameters.

    Attributes:
        vectors: (d, m), the directions along which the density is concave.
        values: (m,), such that ``vectors @ diag(1 / values) @ vectors.T`` is the covariance.
        flat: (d, k), the directions without curvature.
        rising: (d, j), the directions along which it is convex; there are none at a maximum.
        rising_values: (j,), the sizes of their curvature.
        unmoved: (d,), whether the curvature of a coordinate is only rounding.
        information_diagonal: (d,), minus the second derivatives by each coordinate.
    """

    vectors: Tensor
    values: Tensor
    flat: Tensor
    rising: Tensor
    rising_values: Tensor
    unmoved: Tensor
    information_diagonal: Tensor

    @property
    def covariance(self) -> Tensor:
        """The inverse of the information, without the flat directions."""
        return (self.vectors / self.values) @ self.vectors.T

    def solve(self, grad: Tensor) -> Tensor:
        """Return the Newton step for a gradient, in the concave directions."""
        return self.vectors @ ((self.vectors.T @ grad) / self.values)

    def ascend(self, grad: Tensor) -> Tensor:
        """Return the Newton step, with the sign of the curvature changed where it is convex."""
        return self.solve(grad) + self.rising @ ((self.rising.T @ grad) / self.rising_values)


def curvature(information: Tensor, z: Tensor) -> Curvature:
    """Decompose the information matrix (d, d) at z (d,).

    Raises:
        ModelError: the matrix is not finite.
    """
    if not torch.isfinite(information).all():
        raise ModelError(
            "The second derivatives of the log density are not finite at its maximum. The usual "
            "cause is a site on the boundary of its support; give it a prior whose density is zero "
            "there."
        )
    diagonal = information.diagonal().abs()
    # If a change of a coordinate by 100% makes no difference, its curvature is rounding, which
    # scaling must not magnify.
    unmoved = diagonal * (1 + z**2) <= UNMOVED_MAX
    scale = torch.where(unmoved, 1.0, diagonal).rsqrt()
    scaled = information * scale[:, None] * scale
    with one_torch_thread():  # 0.1 s at d = 700, and on busy cores 6 s by two threads
        values, vectors = torch.linalg.eigh((scaled + scaled.T) / 2)
    threshold = FLAT_SHARE_MAX * values.abs().max().clamp(min=1.0)
    vectors = scale[:, None] * vectors
    curved = values > threshold
    return Curvature(
        vectors[:, curved],
        values[curved],
        vectors[:, values.abs() <= threshold],
        vectors[:, values < -threshold],
        -values[values < -threshold],
        unmoved,
        information.diagonal(),
    )


def no_maximum(labels: Sequence[str]) -> Finding:
    """Report that the density increases without bound along some coordinates."""
    return Finding(
        "warning",
        "no_maximum",
        f"The density increases ever more slowly along {', '.join(labels[:5])}, until double "
        "precision no longer resolves the difference: there is no maximum at finite values inside "
        "the support. The usual causes are separated classes and a scale that goes to zero.",
        "Give those sites a prior and use method='map' or 'nuts'.",
        site_names(labels),
    )


def largest(labels: Sequence[str], direction: Tensor, limit: int = 5) -> list[str]:
    """Return the labels of the main coordinates of a direction, the largest first."""
    weights = direction.abs()
    order = weights.argsort(descending=True).tolist()
    return [labels[i] for i in order if weights[i] > 0.1 * weights.max()][:limit]


def site_names(labels: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the sites of coordinates, each once."""
    return tuple(dict.fromkeys(label.split("[")[0] for label in labels))
