r"""The metric of a Hamiltonian sampler from draws and gradients: diagonal plus low rank.

The metric minimises the Fisher divergence between the posterior and a normal density with it as
covariance. For the diagonal part, that is the square root of the ratio of the variances of draws
and gradients; for the rest, the geometric mean of the covariance of the draws and the inverse of
that of the gradients, in the space that both span. For a normal posterior, it is exact as soon as
there are d draws.

Source: Seyboldt, Carlson and Carpenter, arXiv:2603.18845.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["Metric", "low_rank"]

Array = NDArray[np.float64]
Metric = tuple[Array, Array, Array]  # scale (d,), orthonormal rows (r, d), and their variances (r,)

REGULARISATION = 1e-5  # variance that is added, relative to that of the diagonal
SCALE_RANGE = (1e-10, 1e10)
VARIANCE_RANGE = (1e-10, 1e10)  # beside the diagonal


def low_rank(draws: Array, grads: Array, cutoff: float) -> Metric | None:
    """Return the metric, with the directions whose variance differs from that of the diagonal.

    Args:
        draws: positions of a chain, (n, d).
        grads: the gradients of the log density there.
        cutoff: the ratio, above or below 1, beyond which a direction is corrected.

    Returns:
        None if the draws do not vary, or are not finite.

    >>> rng = np.random.default_rng(0)
    >>> factor = np.array([[1.0, 0.0], [0.99, 0.02]])
    >>> draws = rng.normal(size=(50, 2)) @ factor.T
    >>> grads = -draws @ np.linalg.inv(factor @ factor.T)
    >>> scale, directions, variances = low_rank(draws, grads, 1.1)
    >>> root = np.eye(2) + directions.T @ np.diag(variances - 1) @ directions
    >>> bool(np.abs(scale[:, None] * root * scale - factor @ factor.T).max() < 2e-3)
    True
    """
    if len(draws) < 3 or not (np.isfinite(draws).all() and np.isfinite(grads).all()):
        return None
    x, g = draws - draws.mean(0), grads - grads.mean(0)
    with np.errstate(all="ignore"):
        scale = np.sqrt(np.sqrt((x**2).mean(0) / (g**2).mean(0)))
    if not np.isfinite(scale).all() or not (scale > 0).all():
        return None
    scale = np.clip(scale, *SCALE_RANGE)
    x, g = x / scale, g * scale
    dim = x.shape[1]
    few = 2 * len(x) < dim
    basis = np.linalg.qr(np.concatenate([x, g]).T)[0] if few else np.eye(dim)
    x, g = x @ basis, g @ basis
    added = REGULARISATION * np.eye(basis.shape[1])
    try:
        mean = _geometric_mean(x.T @ x / len(x) + added, g.T @ g / len(g) + added)
        variances, vectors = np.linalg.eigh(mean)
    except np.linalg.LinAlgError:
        return None
    if not np.isfinite(vectors).all() or not np.isfinite(variances).all():
        return None
    variances = np.clip(variances, *VARIANCE_RANGE)
    kept = (variances > cutoff) | (variances < 1 / cutoff)
    return scale, (basis @ vectors[:, kept]).T, variances[kept]


def _geometric_mean(of_draws: Array, of_grads: Array) -> Array:
    """Return A such that A G A = X, of the covariances X of draws and G of gradients."""
    values, vectors = np.linalg.eigh(of_grads)
    root = (vectors * np.sqrt(values)) @ vectors.T
    inverse = (vectors / np.sqrt(values)) @ vectors.T
    inner, rotation = np.linalg.eigh(root @ of_draws @ root)
    middle = (rotation * np.sqrt(np.maximum(inner, 0.0))) @ rotation.T
    mean: Array = inverse @ middle @ inverse
    return (mean + mean.T) / 2
