"""Starting points on R^d: values that the user gives, and a search where random points fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probdl.errors import SettingError
from probdl.model.sites import Site
from probdl.util.suggestions import did_you_mean

__all__ = ["as_settings", "checked_values", "search"]

# Shifts on R^d that the search tries, for sites on a log scale and for any units.
SHIFTS = tuple(sign * 2.0**k for k in (*range(7), *range(8, 60, 2)) for sign in (1, -1))
EVALUATIONS_MAX = 5000  # of one search
COORDINATES_MAX = 100  # up to which single coordinates are moved as well as whole sites


def as_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Convert starting values by site to numbers and nested lists, which can be saved.

    Raises:
        TypeError, ValueError: a name is not a string, or a value is not numeric.
    """
    converted = {}
    for name, value in values.items():
        if not isinstance(name, str):
            raise TypeError("names of sites are strings")
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
        converted[name] = np.asarray(array, float).tolist()
    return converted


def checked_values(sites: Mapping[str, Site], values: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return starting values as tensors of the sites' shapes, float64.

    Args:
        sites: the free sites by name.
        values: a number, array or tensor for any of them; a scalar stands for all elements.

    Raises:
        SettingError: there is no such site, or a value does not fit it.
    """
    checked = {}
    for name, value in values.items():
        if name not in sites:
            raise SettingError(
                f"init= names {name!r}, which is not a site that is inferred; "
                f"{did_you_mean(name, sites, similarity=0.0)} The sites are "
                f"{', '.join(map(repr, sites))}."
            )
        site = sites[name]
        tensor = torch.as_tensor(value, dtype=torch.float64).detach()
        if tensor.shape != site.shape:
            if tensor.ndim:
                raise SettingError(
                    f"init[{name!r}] has shape {tuple(tensor.shape)}, but the site has shape "
                    f"{tuple(site.shape)}."
                )
            tensor = tensor.expand(site.shape)
        if not _inside(site, tensor):
            raise SettingError(
                f"init[{name!r}] = {value!r} is not inside the support of {name!r} ~ "
                f"{site.distribution or 'param'}. Give finite values that are not at its edge."
            )
        checked[name] = tensor.clone()
    return checked


def _inside(site: Site, value: Tensor) -> bool:
    """Return whether a value is inside the support, which R^n maps to."""
    if not torch.isfinite(value).all():
        return False
    if site.transform is None:  # the support depends on other sites
        return True
    point = site.transform.inv(value)
    if not torch.isfinite(point).all():
        return False
    back = site.transform(point)
    return back.shape == value.shape and torch.allclose(back, value, rtol=1e-6, atol=1e-12)


def search(z: Tensor, blocks: Sequence[slice], score: Callable[[Tensor], float]) -> Tensor | None:
    """Move a point to where its score is zero, by a line search along each site and coordinate.

    Args:
        z: the point (d,).
        blocks: the coordinates of each site that may be moved.
        score: counts what is not finite at a point; inf if it cannot be evaluated.

    Returns:
        A point whose score is zero; None if the search finds none.
    """
    best, count = z, 0
    lowest = score(z)
    while lowest > 0:
        improved = False
        for part in _parts(blocks):
            origin = best
            for shift in SHIFTS:
                if (count := count + 1) > EVALUATIONS_MAX:
                    return None
                ahead = origin.clone()
                ahead[part] += shift
                if (value := score(ahead)) < lowest:
                    best, lowest, improved = ahead, value, True
            if lowest == 0:
                break
        if not improved:
            return None
    return best


def _parts(blocks: Sequence[slice]) -> Iterator[slice]:
    yield from blocks
    coordinates = [i for b in blocks if b.stop - b.start > 1 for i in range(b.start, b.stop)]
    if len(coordinates) <= COORDINATES_MAX:
        yield from (slice(i, i + 1) for i in coordinates)
