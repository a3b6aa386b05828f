r"""Starting points of chains in the typical set, by a short ascent from random points.

Far from the posterior, gradients are so large that the adaptation of a sampler takes steps that
are too small to ever leave (1e-10 and less). A chain therefore starts where L-BFGS (Liu and
Nocedal, 1989) first reaches densities that are typical of the posterior, and not at the mode: the
chains stay dispersed, and a start that is typical already is kept. A density that increases without
bound, such as that of a hierarchical model whose scale goes to zero, is no place to start either:
if the ascent does not settle, the first point from which little was to be gained is taken.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probdl.compile import Evaluator
from probdl.errors import ModelError
from probdl.methods.modes import Mode
from probdl.model.density import LogDensity
from probdl.util.clock import check_time_limit

__all__ = [
    "AT_MODE",
    "TypicalStarts",
    "approach",
    "evaluate_with",
    "find_modes",
    "information_by_differences",
]

Array = NDArray[np.float64]
Evaluate = Callable[[Array], tuple[float, Array]]  # returns the log density and its gradient

HISTORY = 10  # pairs that estimate the inverse Hessian
JUDGED_TRANSITIONS_MIN = 1000  # of warm-up; their gradients are several times those of the pilots
GRADIENTS_MAX = 100  # of one ascent: about what warm-up takes in ten transitions
SETTLED = 5  # iterations, in which an ascent that has arrived gains next to nothing
# Share of the posterior above the level at which a chain starts, as a quantile: 0.99.
NORMAL_QUANTILE = 2.3263
PILOTS = 12  # ascents that show where the posterior is
PILOTS_AT_MODES_MIN = 3  # with fewer, the posterior has no shape that Laplace's method can weigh
AT_MODE = 0.1  # nats that are left to gain at a mode
NUDGES = (1e-4, 1e-3, 1e-2)  # relative sizes of steps away from a mode
TRIES_MAX = 10  # random points per chain, until one leads to a mode that may matter
# Nats by which the density of one mode may be below that of another, plus one for each dimension,
# before its mass is compared; and the difference of log masses at which its share is below 1%.
LOWER_MAX = 20.0
NEGLIGIBLE = 5.0
JUDGED_DIM_MAX = 150  # the largest d where modes are compared, which takes 2 d gradients each
COSINE_MIN = 1e-10  # between a step and the change of the gradient, for a usable curvature
ARMIJO, WOLFE = 1e-4, 0.9  # conditions on a step, as usual for quasi-Newton methods


@dataclass(frozen=True)
class Approach:
    """The result of an ascent.

    Attributes:
        start: the point (d,) where the density is first typical of the posterior.
        end: the point (d,) where the ascent ended, or `start` if it did not settle.
        value: the log density at the end.
        unit: the length in which the density curves along the last step; 1 if it is not known.
    """

    start: Array
    end: Array
    value: float
    unit: float


@np.errstate(all="ignore")  # far from the posterior, products of gradients overflow
def approach(evaluate: Evaluate, start: Array, tolerance: float | None = None) -> Approach:
    """Climb from a point (d,) with a finite density to the typical set.

    Args:
        evaluate: evaluates the density.
        start: the point.
        tolerance: nats. The ascent ends when less is to be gained; None means d.
    """
    enough = len(start) if tolerance is None else tolerance
    dim = len(start)
    points, values, gains = [start], [], []
    value, grad = evaluate(points[0])
    values.append(value)
    pairs: deque[tuple[Array, Array]] = deque(maxlen=HISTORY)
    budget = GRADIENTS_MAX
    settled = False
    while budget > 0 and not settled:
        direction = _times_inverse_hessian(pairs, grad)
        gain = float(grad @ direction)
        gains.append(gain if pairs else math.inf)  # without curvature, it has no unit
        if not gain > 0 or not math.isfinite(gain):
            settled = not grad.any()
            break
        length = 1.0 if pairs else 1.0 / float(np.abs(grad).sum())
        found = _search(evaluate, points[-1], value, gain, direction, length, budget)
        budget -= found.evaluations
        if found.value <= value:  # nothing is left to gain but rounding
            settled = budget > 0 and gains[-1] <= dim
            break
        step, change = found.z - points[-1], grad - found.grad
        if step @ change > COSINE_MIN * np.linalg.norm(step) * np.linalg.norm(change):
            pairs.append((step, change))
        value, grad = found.value, found.grad
        points.append(found.z)
        values.append(value)
        settled = (
            len(values) > SETTLED
            and value - values[-1 - SETTLED] <= enough
            and max(gains[-SETTLED:]) <= enough
        )
    unit = 1.0
    if pairs:
        step, change = pairs[-1]
        unit = math.sqrt((step @ step) / (step @ change))
    if not settled:
        # Either the ascent is slow, or the density has no bound and each scale may fall forever.
        near = [i for i, g in enumerate(gains) if g <= dim and values[i] > value - 20 * dim]
        calm = near[0] if near else int(np.argmin(gains))
        return Approach(points[calm], points[calm], values[calm], unit)
    typical = value - _chi_square_quantile(dim) / 2
    first = next(i for i, v in enumerate(values) if v >= typical)
    return Approach(points[first], points[-1], value, unit)


def _chi_square_quantile(dim: int) -> float:
    """Approximate the 0.99 quantile of the chi-square distribution, by Wilson and Hilferty (1931).

    SciPy has it exactly, but takes a tenth of a second to be imported.

    >>> round(_chi_square_quantile(10), 1)  # 23.2 by tables
    23.2
    """
    part = 2 / (9 * dim)
    return float(dim * (1 - part + NORMAL_QUANTILE * math.sqrt(part)) ** 3)


def evaluate_with(evaluator: Evaluator, z: Array) -> tuple[float, Array]:
    """Return the log density at a point (d,) and its gradient (d,)."""
    check_time_limit()
    value, grad = evaluator.value_and_grad(torch.from_numpy(z))
    return float(value), grad.numpy().astype(float)


def information_by_differences(evaluator: Evaluator, z: Array) -> Array:
    """Return minus the second derivatives (d, d) at a point (d,), by differences of gradients.

    They have about ten digits, and take 2 d gradients.
    """
    sizes = np.finfo(float).eps ** (1 / 3) * (1 + np.abs(z))
    rows = [
        evaluate_with(evaluator, z - step)[1] - evaluate_with(evaluator, z + step)[1]
        for step in np.diag(sizes)
    ]
    information = np.stack(rows) / (2 * sizes[:, None])
    return (information + information.T) / 2  # type: ignore[no-any-return]


class TypicalStarts:
    """Finds starting points of chains, each by its own ascent from its own random point.

    A mode that has a negligible share of the posterior, next to what pilot ascents found elsewhere,
    may hold a chain forever. A chain that would start there takes another random point. Modes that
    may matter are kept, and chains at different modes stay apart.

    Args:
        density: the density.
        evaluator: evaluates it.
        seed: seed of the pilots.
        transitions: number of transitions of warm-up, of all chains. If there are few, the pilots
            are not worth their gradients.

    Attributes:
        modes: the modes that the pilots found; None without pilots.

    Raises:
        ModelError: no point with a finite density is found.
    """

    def __init__(
        self, density: LogDensity, evaluator: Evaluator, seed: int, transitions: int
    ) -> None:
        self._density = density
        self._evaluator = evaluator
        self.modes: list[Mode] | None = None
        self._heaviest: tuple[float, Approach] | None = None  # log mass of a mode, and its ascent
        if density.dim <= JUDGED_DIM_MAX and transitions >= JUDGED_TRANSITIONS_MIN:
            generator = torch.Generator().manual_seed(seed % 2**63)
            pilots = []
            for _ in range(PILOTS // 2):
                state = generator.get_state()
                pilots.append(self._ascend(generator))
                pilots.append(self._ascend(generator.set_state(state), mirror=True))
            found = [(m, p) for p in pilots if (m := self._mode(p.end)) is not None]
            self.modes = []
            if len(found) >= PILOTS_AT_MODES_MIN:
                self.modes = [mode for mode, _ in found]
                self._heaviest = max(((m.log_mass, p) for m, p in found), key=lambda each: each[0])

    def __call__(self, seed: int) -> Tensor:
        """Return the starting point (d,) of a chain, given its seed."""
        generator = torch.Generator().manual_seed(seed % 2**63)
        for _ in range(TRIES_MAX):
            if (found := self._judged(self._ascend(generator))) is not None:
                return self._beside(found.start, generator)
        assert self._heaviest is not None  # else the first ascent is taken
        return self._beside(self._heaviest[1].start, generator)

    def _beside(self, z: Array, generator: torch.Generator) -> Tensor:
        """Return a point (d,); one beside it if a derivative is zero, where nutpie refuses.

        An ascent reaches the mode of a normal density exactly.
        """
        for size in NUDGES:
            if self._evaluate(z)[1].all():
                break
            shift = torch.empty(len(z), dtype=torch.float64).uniform_(-1, 1, generator=generator)
            near = z + size * (1 + np.abs(z)) * shift.numpy()
            value, grad = self._evaluate(near)
            if math.isfinite(value) and np.isfinite(grad).all():
                z = near
        return torch.from_numpy(z.copy())

    def _judged(self, found: Approach) -> Approach | None:
        """Return an ascent, continued if it ended too low; None if its mode has no share."""
        if self._heaviest is None:
            return found
        mass, mode = self._heaviest
        if found.value > mode.value - LOWER_MAX - self._density.dim:
            return found
        found = approach(self._evaluate, found.end, AT_MODE)
        here = self._mode(found.end)
        return None if here is None or here.log_mass < mass - NEGLIGIBLE else found

    def _ascend(self, generator: torch.Generator, *, mirror: bool = False) -> Approach:
        evaluate = self._evaluator.value_and_grad
        start = self._density.initial(generator, mirror=mirror, value_and_grad=evaluate)
        return approach(self._evaluate, start.numpy())

    def _evaluate(self, z: Array) -> tuple[float, Array]:
        return evaluate_with(self._evaluator, z)

    def _mode(self, z: Array) -> Mode | None:
        """Approximate the density around a mode (d,) by Laplace's method.

        None if the density is not concave at the point, or the point is not near a mode.
        """
        value, grad = self._evaluate(z)
        try:
            root = np.linalg.cholesky(information_by_differences(self._evaluator, z))
            inverse = np.linalg.inv(root)
        except np.linalg.LinAlgError:  # not positive definite
            return None
        scaled = inverse @ grad
        if not scaled @ scaled <= self._density.dim:  # also if they are not finite
            return None
        sd = np.linalg.norm(inverse, axis=0)
        log_mass = float(value + scaled @ scaled / 2 - np.log(np.diag(root)).sum())
        return Mode(z, sd, log_mass)


def find_modes(density: LogDensity, evaluator: Evaluator, seed: int) -> list[Mode]:
    """Return modes of a density, found by ascents from pairs of mirrored points.

    There are none without native code, where the ascents would take long.
    """
    if evaluator.engine != "native":
        return []
    anywhere = density.starting_at({})
    with suppress(ModelError):
        return TypicalStarts(anywhere, evaluator, seed, JUDGED_TRANSITIONS_MIN).modes or []
    return []


@dataclass(frozen=True)
class _Found:
    z: Array
    value: float
    grad: Array
    evaluations: int


def _search(
    evaluate: Evaluate,
    z: Array,
    value: float,
    slope: float,
    direction: Array,
    length: float,
    budget: int,
) -> _Found:
    """Find a step along a direction that meets the weak Wolfe conditions.

    Source: Lewis and Overton, Mathematical Programming 141 (2013), Algorithm 2.6.
    """
    low, high = 0.0, math.inf
    factor = 2.0  # squared with each use, so that any scale is found in a few evaluations
    best = _Found(z, value, np.zeros_like(z), 0)
    count = 0
    while count < budget:
        count += 1
        ahead = z + length * direction
        ahead_value, ahead_grad = evaluate(ahead)
        finite = math.isfinite(ahead_value) and bool(np.isfinite(ahead_grad).all())
        if finite and ahead_value > best.value:
            best = _Found(ahead, ahead_value, ahead_grad, 0)
        if not finite or ahead_value < value + ARMIJO * length * slope:
            high = length
        elif ahead_grad @ direction > WOLFE * slope:
            low = length
        else:
            best = _Found(ahead, ahead_value, ahead_grad, 0)
            break
        if low == 0.0 or high == math.inf:
            length = length / factor if low == 0.0 else length * factor
            factor = min(factor**2, 1e40)
        else:
            length = math.sqrt(low) * math.sqrt(high) if high > 4 * low else (low + high) / 2
        if not (low < length < high) or (ahead == z).all():
            break
    return _Found(best.z, best.value, best.grad, count)


def _times_inverse_hessian(pairs: deque[tuple[Array, Array]], grad: Array) -> Array:
    """Multiply a gradient by the estimate of minus the inverse Hessian (two-loop recursion)."""
    q = grad.copy()
    weights = []
    for s, y in reversed(pairs):
        weight = (s @ q) / (s @ y)
        q -= weight * y
        weights.append(weight)
    if pairs:
        s, y = pairs[-1]
        q *= (s @ y) / (y @ y)
    for (s, y), weight in zip(pairs, reversed(weights), strict=True):
        q += s * (weight - (y @ q) / (s @ y))
    return q
