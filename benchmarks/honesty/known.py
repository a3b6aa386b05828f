"""Known answers in NumPy: moments by quadrature, and maxima with their curvature.

A target is given as functions of parameters by label, written without probdl and Pyro. They take
arrays of shape (points, 1), so that data broadcast along the last dimension, and return the log
densities (points,).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import optimize, special

from benchmarks.honesty.case import Answer, Array, Known

LogDensity = Callable[[Mapping[str, Array]], Array]
Box = Mapping[str, tuple[float, float]]

NODES = {1: 600, 2: 200}  # nodes of the quadrature in each dimension, by dimensions
DEPTH = 32.0  # nats below the maximum beyond which the density is left out
BLOCK = 20_000  # points that are evaluated together


def solve(
    log_likelihood: LogDensity, log_prior: LogDensity, box: Box, **left_out: Answer | None
) -> dict[str, Any]:
    """Return ``mle``, ``map``, ``posterior`` and ``log_evidence`` of a case.

    Args:
        log_likelihood: log p(y | theta), normalised.
        log_prior: log p(theta), normalised.
        box: by label a range that holds all of the posterior; up to two labels.
        left_out: answers that replace those computed here, such as ``mle=UNDEFINED``.
    """

    def joint(at: Mapping[str, Array]) -> Array:
        return log_likelihood(at) + log_prior(at)

    posterior, log_evidence = moments(joint, box)
    found: dict[str, Any] = {"posterior": posterior, "log_evidence": log_evidence}
    for name, density in (("mle", log_likelihood), ("map", joint)):
        if name not in left_out:
            found[name] = maximum(density, box)
    return found | left_out


def moments(log_density: LogDensity, box: Box) -> tuple[Answer, float]:
    """Return means and standard deviations under a density, and its log normalising constant.

    Gauss-Legendre quadrature on a grid, over the part of the box where the density is not
    negligible.
    """
    labels = [*box]
    whole, box = box, _shrink(log_density, box)
    axes, weights = _nodes(box)
    values = _on_grid(log_density, labels, axes)
    top = values.max()
    for axis, label in enumerate(labels):
        for end, at in enumerate((0, -1)):
            cut = box[label][end] != whole[label][end]
            assert not cut or values.take(at, axis).max() < top - 20, f"{label} is cut off"
    mass = np.exp(values - top)
    for axis, weight in enumerate(weights):
        mass *= weight.reshape([-1 if i == axis else 1 for i in range(len(labels))])
    total = mass.sum()
    answer = {}
    for axis, label in enumerate(labels):
        marginal = mass.sum(tuple(i for i in range(len(labels)) if i != axis)) / total
        mean = float(marginal @ axes[axis])
        answer[label] = Known(mean, float(marginal @ (axes[axis] - mean) ** 2) ** 0.5)
    return answer, float(top + math.log(total))


def _nodes(box: Box) -> tuple[list[Array], list[Array]]:
    nodes, weights = special.roots_legendre(NODES[len(box)])
    spans = [(low, high - low) for low, high in box.values()]
    return [low + span * (nodes + 1) / 2 for low, span in spans], [
        weights * span / 2 for _, span in spans
    ]


def _on_grid(log_density: LogDensity, labels: list[str], axes: list[Array]) -> Array:
    points = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(labels))
    blocks = [_at(log_density, labels, points[i : i + BLOCK]) for i in range(0, len(points), BLOCK)]
    return np.concatenate(blocks).reshape([len(axis) for axis in axes])


def _at(log_density: LogDensity, labels: list[str], points: Array) -> Array:
    """Evaluate a log density at points (n, d)."""
    with np.errstate(all="ignore"):
        values = log_density({label: points[:, [i]] for i, label in enumerate(labels)})
    return np.nan_to_num(values.reshape(len(points)), nan=-np.inf)


def _shrink(log_density: LogDensity, box: Box) -> Box:
    """Return the part of the box in which the density is above a negligible share of its top."""
    labels = [*box]
    for _ in range(12):
        axes, _ = _nodes(box)
        values = _on_grid(log_density, labels, axes)
        inside = values > values.max() - DEPTH
        smaller = {}
        for axis, label in enumerate(labels):
            others = tuple(i for i in range(len(labels)) if i != axis)
            kept = np.flatnonzero(inside.any(others))
            low, high = box[label]
            ends = np.concatenate([[low], axes[axis], [high]])
            smaller[label] = (float(ends[kept[0]]), float(ends[kept[-1] + 2]))
        shares = [(smaller[k][1] - smaller[k][0]) / (box[k][1] - box[k][0]) for k in labels]
        box = smaller
        if min(shares) > 0.8:
            break
    return box


def maximum(log_density: LogDensity, box: Box) -> Answer:
    """Return where a log density is highest, with standard errors by its curvature there."""
    labels = [*box]
    box = _shrink(log_density, box)
    axes, _ = _nodes(box)
    values = _on_grid(log_density, labels, axes)
    best = np.unravel_index(values.argmax(), values.shape)
    start = np.array([axis[i] for axis, i in zip(axes, best, strict=True)])
    unit = np.array([axis.std() / 5 for axis in axes])

    def loss(z: Array) -> float:
        value = -_at(log_density, labels, (start + unit * z)[None])[0]
        return float(value) if np.isfinite(value) else 1e300

    z = np.zeros(len(labels))
    for _ in range(3):
        z = optimize.minimize(
            loss,
            z,
            method="Nelder-Mead",
            options={"xatol": 1e-9, "fatol": 1e-13, "maxiter": 10_000, "maxfev": 10_000},
        ).x
    point = start + unit * z
    errors = np.sqrt(np.diag(np.linalg.inv(_information(log_density, labels, point, unit))))
    return {
        label: Known(float(value), float(error))
        for label, value, error in zip(labels, point, errors, strict=True)
    }


def _information(log_density: LogDensity, labels: list[str], point: Array, unit: Array) -> Array:
    """Return minus the Hessian by central differences of fourth order."""
    offsets, weights = (-2, -1, 1, 2), (1 / 12, -8 / 12, 8 / 12, -1 / 12)
    count = len(labels)
    step = 1e-2 * unit
    # First once with a rough step, then with a hundredth of the standard errors.
    for _ in range(2):
        hessian = np.empty((count, count))
        for i, j in itertools.product(range(count), repeat=2):
            points, factors = [], []
            for (a, wa), (b, wb) in itertools.product(zip(offsets, weights, strict=True), repeat=2):
                shift = np.zeros(count)
                shift[i] += a * step[i]
                shift[j] += b * step[j]
                points.append(point + shift)
                factors.append(wa * wb)
            values = _at(log_density, labels, np.stack(points))
            centre = _at(log_density, labels, point[None])
            hessian[i, j] = np.array(factors) @ (values - centre) / (step[i] * step[j])
        step = 3e-2 / np.sqrt(-np.diag(hessian))
    return -hessian


def gaussian(labels: Sequence[str], precision: Array, shift: Array) -> Answer:
    """Return the moments of a normal density: mean precision^-1 shift, covariance precision^-1."""
    covariance = np.linalg.inv(precision)
    mean, sd = covariance @ shift, np.sqrt(np.diag(covariance))
    return {k: Known(float(m), float(s)) for k, m, s in zip(labels, mean, sd, strict=True)}
