r"""Find the maximum of a log density on R^d, and describe the density around it.

L-BFGS (Liu and Nocedal, 1989, in SciPy) from several starts finds the neighbourhood; Newton
steps with the exact Hessian then take it to machine precision, which L-BFGS alone does not
reach on badly scaled problems. Where Newton's method does not converge quadratically there is
no regular maximum: the density rises without end, or towards a boundary.
"""

from __future__ import annotations

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
from probdl.model.density import LogDensity
from probdl.results.diagnostics import interrupted
from probdl.util.blas import one_blas_thread
from probdl.util.clock import look
from probdl.util.lazy import optimize
from probdl.util.progress import bar

__all__ = ["Curvature", "Optimum", "curvature", "largest", "maximise", "no_maximum", "site_names"]

DENSE_MAX = 1000  # beyond this d the Hessian, d² numbers and d gradients, is not formed
NEWTON_STEPS = 12  # quadratic convergence needs four or five
NEWTON_DONE = 1e-16  # nats that a further step would gain
FLAT = 1e-10  # of the largest eigenvalue of the scaled information
UNMOVED = 1e-9  # nats that a parameter changes the density by, if it does at all
_WALL = 1e30  # stands for minus the log density where it is not finite
SAME = 1e-3  # nats between optima that are one and the same
APART = 0.01  # of 1 + |x|, between points that are not


@dataclass(frozen=True)
class Optimum:
    """Where a log density is largest, as far as was found.

    Attributes:
        z: the point (d,).
        value: the log density there, in nats.
        information: minus the Hessian there (d, d); None where d is too large to form it.
        findings: what went wrong on the way.
    """

    z: Tensor
    value: float
    information: Tensor | None
    findings: list[Finding] = field(default_factory=list)


def maximise(
    density: LogDensity,
    evaluator: Evaluator,
    starts: int,
    steps: int,
    generator: torch.Generator,
    show: bool | None,
    *,
    quick: bool = False,
) -> Optimum:
    """Maximise a density from several starts, and keep the best.

    Args:
        density: what to maximise.
        evaluator: what evaluates it.
        starts: how many starts; the first has param sites at their present values.
        steps: how many L-BFGS iterations each start may take.
        generator: where the starts come from.
        show: whether to show progress.
        quick: whether the curvature may be that of one Newton step, of rounding's size, before.

    Raises:
        ModelError: no start has a finite density, or the model fails.
    """
    found: list[_End] = []
    findings: list[Finding] = []
    with bar(starts, "maximising", show) as progress, one_blas_thread():
        try:
            for i in range(starts):
                start = density.initial(
                    generator, jitter=i > 0, value_and_grad=evaluator.value_and_grad
                )
                end, stop = _climb(evaluator, start, steps)
                found.append(end)
                if stop is not None:
                    raise stop
                progress.update()
        except KeyboardInterrupt as stop:
            if not found:
                raise
            of, kept = f"{starts} starts", "the best point found is returned"
            findings.append(interrupted(stop, len(found), of, kept, "starts"))
    best = max(found, key=lambda end: end.value)
    if dense := density.dim <= DENSE_MAX:
        # Those that L-BFGS left lower may only have been slower to come to the same top.
        lower = [end for end in found if end.value < best.value - SAME]
        ends = [_polish(density, evaluator, end) for end in (best, *lower)]
        best = max(ends, key=lambda end: end.value)
    else:
        ends = found
    if best.gain >= NEWTON_DONE:
        labels = largest(density.labels, best.step / (1 + best.z.abs()))
        findings.append(no_maximum(labels))
    elif not best.done:
        findings.append(
            Finding(
                "warning",
                "not_converged",
                f"the optimiser had not converged after {steps} steps.",
                "Raise steps=, or bring the sites to a similar scale.",
            )
        )
    below = [end.value for end in ends if end.value < best.value - SAME]
    if below and best.gain < NEWTON_DONE:
        shown = ", ".join(f"{v:.4g}" for v in sorted(set(below), reverse=True)[:3])
        findings.append(
            Finding(
                "info",
                "several_optima",
                f"{len(below)} of {len(found)} starts ended lower, at {shown} against "
                f"{best.value:.4g}: the density has several optima. The best is returned.",
                "Raise starts= to be surer that it is the highest.",
            )
        )
    findings += _elsewhere(density, best, found)
    information = None
    if dense:
        reuse = quick and best.information is not None and best.gain < NEWTON_DONE
        information = best.information if reuse else -density.hessian(best.z)
    if information is None:
        findings.append(
            Finding(
                "info",
                "no_information",
                f"with {density.dim} parameters (more than {DENSE_MAX}) the information matrix "
                "was not formed, so there are no standard errors.",
            )
        )
    return Optimum(best.z, best.value, information, findings)


def _elsewhere(density: LogDensity, best: _End, ends: Sequence[_End]) -> list[Finding]:
    """Tell of other points that are as high as the best one."""
    if best.gain >= NEWTON_DONE:
        return []
    here = density.constrain(best.z)
    count = 0
    sites: dict[str, None] = {}
    for end in ends:
        if end is best or end.value < best.value - SAME:
            continue
        there = density.constrain(end.z)
        apart = [n for n, v in here.items() if (_gap(v, there[n]) > APART).any()]
        count += bool(apart)
        sites.update(dict.fromkeys(apart))
    if not count:
        return []
    return [
        Finding(
            "warning",
            "not_identified",
            f"{count} other start{'s' * (count > 1)} ended as high, at other values of "
            f"{', '.join(map(repr, sites))}: the data cannot tell these points apart, so the "
            "estimate is one of several.",
            "Put interchangeable parameters in order, or drop what is redundant.",
            tuple(sites),
        )
    ]


def _gap(x: Tensor, other: Tensor) -> Tensor:
    return (x - other).abs() / (1 + x.abs())


class _End(NamedTuple):
    """Where one start ended."""

    value: float
    z: Tensor
    done: bool
    step: Tensor  # the Newton step from there
    gain: float  # what that step promises, in nats
    information: Tensor | None = None  # where that step was computed


def _climb(
    evaluator: Evaluator, start: Tensor, steps: int
) -> tuple[_End, KeyboardInterrupt | None]:
    """Run L-BFGS from one start; the best point visited counts, whatever ends the run.

    Returns:
        That point, and the interruption if it was one that ended the run.
    """
    best: tuple[float, Tensor] = (-np.inf, start)
    stop = None

    def objective(x: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        nonlocal best
        look()
        z = torch.from_numpy(x.copy())
        value, grad = evaluator.value_and_grad(z)
        if not (torch.isfinite(value) and torch.isfinite(grad).all()):
            return _WALL, np.zeros_like(x)  # the line search turns back
        if float(value) > best[0]:
            best = (float(value), z)
        return -float(value), -grad.numpy()

    options = {"maxiter": steps, "maxfun": 20 * steps, "ftol": 1e-13, "gtol": 1e-8}
    done = False
    try:
        result = optimize.minimize(
            objective, start.numpy(), jac=True, method="L-BFGS-B", options=options
        )
        done = result.status == 0
    except KeyboardInterrupt as error:
        if best[0] == -np.inf:
            raise
        stop = error
    return _End(*best, done, torch.zeros_like(start), 0.0), stop


def _polish(density: LogDensity, evaluator: Evaluator, end: _End) -> _End:
    """Take Newton steps to the top."""
    z = end.z
    value, grad = evaluator.value_and_grad(z)
    for _ in range(NEWTON_STEPS):
        information = -density.hessian(z)
        step = curvature(information, z).solve(grad)
        gain = 0.5 * float(grad @ step)
        if gain <= NEWTON_DONE:
            break
        for halvings in range(30):
            ahead = z + step / 2**halvings
            ahead_value, ahead_grad = evaluator.value_and_grad(ahead)
            if ahead_value > value and torch.isfinite(ahead_grad).all():
                break
        else:  # a gain too small to see in double precision: this is the top
            gain = 0.0
            break
        z, value, grad = ahead, ahead_value, ahead_grad
    # Where the value can no longer tell, the gradient still can: one more step takes it to
    # rounding, and with it the noise that it puts on the curvature along flat directions.
    if gain <= NEWTON_DONE:
        ahead_value, ahead_grad = evaluator.value_and_grad(z + step)
        if ahead_grad.norm() < grad.norm():
            z, value = z + step, ahead_value
    return _End(float(value), z, end.done or gain <= NEWTON_DONE, step, gain, information)


@dataclass(frozen=True)
class Curvature:
    """An information matrix taken apart, its flat directions on one side.

    The matrix is scaled to unit diagonal first, so that the units of the parameters do not
    decide what counts as flat.

    Attributes:
        vectors: (d, m), the directions along which the density curves down.
        values: (m,), so that ``vectors @ diag(1 / values) @ vectors.T`` is the covariance.
        flat: (d, k), the directions along which it does not curve.
        rising: (d, j), the directions along which it curves up; there are none at a maximum.
        unmoved: (d,), true for the coordinates whose own curvature is nothing but rounding.
    """

    vectors: Tensor
    values: Tensor
    flat: Tensor
    rising: Tensor
    unmoved: Tensor

    @property
    def covariance(self) -> Tensor:
        """The inverse of the information, outside the flat directions."""
        return (self.vectors / self.values) @ self.vectors.T

    def solve(self, grad: Tensor) -> Tensor:
        """Return the Newton step, in the curved directions; uphill in all of them."""
        return self.vectors @ ((self.vectors.T @ grad) / self.values)


def curvature(information: Tensor, z: Tensor) -> Curvature:
    """Take the information matrix (d, d) at z (d,) apart."""
    if not torch.isfinite(information).all():
        raise ModelError(
            "the second derivatives of the log density are not finite at its maximum. A site on "
            "the boundary of its support is the usual cause; give it a prior that keeps it off."
        )
    diagonal = information.diagonal().abs()
    # Where even a change by 100 % makes no difference, what is left is rounding: not scaled up.
    unmoved = diagonal * (1 + z**2) <= UNMOVED
    scale = torch.where(unmoved, 1.0, diagonal).rsqrt()
    scaled = information * scale[:, None] * scale
    values, vectors = torch.linalg.eigh((scaled + scaled.T) / 2)
    threshold = FLAT * values.abs().max().clamp(min=1.0)
    vectors = scale[:, None] * vectors
    curved = values > threshold
    return Curvature(
        vectors[:, curved],
        values[curved],
        vectors[:, values.abs() <= threshold],
        vectors[:, values < -threshold],
        unmoved,
    )


def no_maximum(labels: Sequence[str]) -> Finding:
    """Tell that the density rises without end along some coordinates."""
    return Finding(
        "warning",
        "no_maximum",
        f"the density rises, ever more slowly, along {', '.join(labels[:5])}, and the optimiser "
        "followed until it could see no difference: there is no maximum at a finite value inside "
        "the support. Separated classes and a scale that goes to zero are the usual causes.",
        "Give those sites a prior and use method='map' or 'nuts'.",
        site_names(labels),
    )


def largest(labels: Sequence[str], direction: Tensor, limit: int = 5) -> list[str]:
    """Name the coordinates that make up most of a direction, the largest first."""
    weights = direction.abs()
    order = weights.argsort(descending=True).tolist()
    return [labels[i] for i in order if weights[i] > 0.1 * weights.max()][:limit]


def site_names(labels: Sequence[str]) -> tuple[str, ...]:
    """Name the sites that coordinates belong to, each once."""
    return tuple(dict.fromkeys(label.split("[")[0] for label in labels))
