"""Observed sites without their masked elements, as ArviZ's statistics expect them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probdl.model.sites import Site

__all__ = ["kept_labels", "nan_masked", "put_back", "without_masked", "zero_masked"]

Array = NDArray[Any]


def without_masked(site: Site, array: Array, lead: int, *, event: bool = True) -> Array:
    """Drop the masked observations of a site, and set masked elements of the others to NaN.

    Args:
        site: an observed site.
        array: (*lead shape, *batch shape, *event shape).
        lead: the number of leading dimensions.
        event: whether the array has the site's event dimensions; a log likelihood has not.

    Returns:
        The array itself if nothing is masked, and (*lead shape, observations, *event shape)
        otherwise.
    """
    if site.mask is None or site.is_scored is None:
        return array
    kept = site.is_scored.numpy()
    elements = site.mask.numpy()
    own = elements if event else kept
    full = np.broadcast_to(array, array.shape[:lead] + own.shape)
    rows = full[(slice(None),) * lead + (kept,)]
    inside = elements[kept]
    if event and not inside.all():
        rows = np.where(inside, rows, np.nan)
    return rows


def put_back(site: Site, array: Array, lead: int, fill: float, *, event: bool = True) -> Array:
    """Undo ``without_masked``, with a number in the place of the masked observations."""
    if site.mask is None or site.is_scored is None:
        return array
    kept = site.is_scored.numpy()
    shape = site.mask.shape if event else kept.shape
    full = np.full(array.shape[:lead] + tuple(shape), fill)
    full[(slice(None),) * lead + (kept,)] = array
    return full


def zero_masked(site: Site, array: Array) -> Array:
    """Set the scores of masked observations to 0, which sums over discrete sites round.

    Args:
        site: the observations.
        array: their scores, (*lead shape, *batch shape).
    """
    return array if site.is_scored is None else np.where(site.is_scored.numpy(), array, 0.0)


def nan_masked(site: Site, array: Array) -> Array:
    """Set the scores of masked observations to NaN, so that means over all of them show it."""
    return array if site.is_scored is None else np.where(site.is_scored.numpy(), array, np.nan)


def kept_labels(site: Site, labels: Sequence[Sequence[Any]]) -> list[Any]:
    """Return the labels of the observations that are not masked.

    Args:
        site: an observed site with masked observations.
        labels: the labels along each batch dimension.

    Returns:
        Labels of the dimension if there is one, else ``"label, label"`` of each observation.
    """
    assert site.is_scored is not None
    index = site.is_scored.nonzero().tolist()
    if len(labels) == 1:
        return [labels[0][i] for (i,) in index]
    return [", ".join(str(of[i]) for of, i in zip(labels, at, strict=True)) for at in index]
