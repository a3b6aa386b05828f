"""What a site's distribution is under its wrappers."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from torch import Tensor

__all__ = ["base_distribution", "combined_mask", "distribution_name", "is_deterministic"]


def base_distribution(fn: Any) -> Any:
    """Strip the wrappers that only reshape or mask: ``to_event``, ``expand`` and ``mask``."""
    while isinstance(fn, (dist.Independent, ExpandedDistribution, MaskedDistribution)):
        fn = fn.base_dist
    return fn


def distribution_name(fn: Any) -> str:
    """Return the class name of a distribution without its wrappers."""
    return type(base_distribution(fn)).__name__


def is_deterministic(msg: Any) -> bool:
    """Return whether a site only records a value: ``pyro.deterministic``, or a reparametrised site.

    Pyro's reparametrisations replace a site by an observed Delta that is masked out of the density.
    """
    if msg["infer"].get("_deterministic"):
        return True
    fn = msg["fn"]
    unscored = isinstance(fn, MaskedDistribution) and fn._mask is False
    return bool(msg["is_observed"]) and unscored and isinstance(base_distribution(fn), dist.Delta)


NAN_MASKED = (dist.NanMaskedNormal, dist.NanMaskedMultivariateNormal)
"""Distributions that leave out what is NaN."""


def combined_mask(node: Any) -> Tensor:
    """Return the mask of a site, from ``poutine.mask`` and from its distribution.

    It broadcasts with the value, event dimensions included: ``Normal(mu, 1).mask(m).to_event(1)``
    masks single elements of an event.
    """
    fn = node["fn"]
    masks = [(node["mask"], fn.event_dim)]
    while hasattr(fn, "base_dist"):
        masks.append((getattr(fn, "_mask", None), fn.event_dim))
        fn = fn.base_dist
    result = torch.tensor(True)
    for mask, event_dim in masks:
        if mask is not None:
            mask = torch.as_tensor(mask).detach()
            result = result & (mask.reshape(mask.shape + (1,) * event_dim) if mask.ndim else mask)
    return result
