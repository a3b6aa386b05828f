"""Sites that make a funnel: effects of groups, written centred, whose scale goes towards 0."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from probdl.model.density import LogDensity
from probdl.model.sites import Site, centred_sites
from probdl.util.columns import slices

__all__ = ["funnel_sites"]

# The spread of n values around a fixed scale varies by 1 / sqrt(2 (n - 1)), relative to it.
MORE_THAN_FIXED = 1.5


def funnel_sites(density: LogDensity, z: NDArray[np.float64]) -> list[Site]:
    """List the sites whose scale is a latent site that varies much over the draws.

    A scale that the data determine, as that of many imputed values, makes no funnel.

    Args:
        density: the log density on R^d.
        z: draws (chains, draws, d).
    """
    draws = z.reshape(-1, density.dim)
    found = []
    for site in centred_sites(density.structure):
        block = density.blocks.get(site.name)
        if block is None:
            continue
        values = draws[:, block.start : block.start + block.size]
        batch = math.prod(site.shape[: len(site.shape) - site.event_dim])
        # Each coordinate of the effects of groups has its scale.
        values = values.reshape(len(draws), batch if batch > 1 else block.size, -1)
        if (count := values.shape[1]) > 1:
            with np.errstate(divide="ignore"):
                sds = [values[rows].std(1) for rows in slices(len(values), values.size)]
                spread = np.log(np.concatenate(sds)).std(0).max()
            if not spread > MORE_THAN_FIXED / math.sqrt(2 * (count - 1)):
                continue
        found.append(site)
    return found
