"""What a site's distribution is under its wrappers."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution

__all__ = ["base_distribution", "distribution_name", "is_deterministic"]


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
