"""Check whether a posterior density rises without bound where the scale of a latent site goes to 0.

In a hierarchical model, n latent values whose scale is a site have a density of about scale**-n
where all of them are at their mean. The mode that an optimiser finds is then a local one.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.poutine import Trace
from torch import Tensor

from probdl.findings import Finding
from probdl.model.density import LogDensity

__all__ = ["check_collapse"]

FACTOR = 1e-4  # of the scale, at each of two steps
SITES_MAX = 20


def check_collapse(density: LogDensity, z: Tensor) -> list[Finding]:
    """Report a site whose way to 0 has no bound.

    Args:
        density: the log density, without Jacobians.
        z: the maximum that was found (d,).
    """
    scales = [b for b in density.blocks.values() if b.size == 1 and b.coordinates == "log"]
    here = density.at(z, _moments)
    for block in scales[:SITES_MAX]:
        small = z.clone()
        small[block.start] += math.log(FACTOR)
        there = density.at(small, _moments)
        scaled = [name for name, (_, sd) in there.items() if _shrinks(sd, here[name][1])]
        scaled = [name for name in scaled if density.blocks[name].coordinates == "plain"]
        if not scaled:
            continue
        smaller = small.clone()
        smaller[block.start] += math.log(FACTOR)
        count = sum(density.blocks[name].size for name in scaled)
        rise = density(_centred(density, smaller, scaled)) - density(
            _centred(density, small, scaled)
        )
        if float(rise) > -0.5 * count * math.log(FACTOR):
            name, of = block.site.name, ", ".join(map(repr, scaled))
            return [
                Finding(
                    "warning",
                    "no_maximum",
                    f"The density rises without bound as '{name}' goes to 0 while {of} "
                    f"go{'es' * (len(scaled) == 1)} to the mean, so it has no maximum: the "
                    "estimate is a local one.",
                    f"Use method='nuts', or a prior of '{name}' that falls faster than any power "
                    "at 0, such as LogNormal or InverseGamma.",
                    (name, *scaled),
                )
            ]
    return []


def _moments(trace: Trace) -> dict[str, tuple[Tensor, Tensor]]:
    """Return means and standard deviations of the latent sites that have them."""
    found = {}
    nodes: Any = trace.nodes
    for name, node in nodes.items():
        if node["type"] != "sample" or node["is_observed"] or not torch.is_tensor(node["value"]):
            continue
        try:
            found[name] = node["fn"].mean.detach(), node["fn"].stddev.detach()
        except (NotImplementedError, AttributeError):
            continue
    return found


def _shrinks(sd: Tensor, before: Tensor) -> bool:
    return sd.shape == before.shape and bool((sd < 2 * FACTOR * before).all())


def _centred(density: LogDensity, z: Tensor, names: list[str]) -> Tensor:
    """Return a point (d,) with sites at their means."""
    z = z.clone()
    for name in names:  # in the order of the model, so that a mean may depend on sites before
        block = density.blocks[name]
        mean, _ = density.at(z, _moments)[name]
        z[block.start : block.start + block.size] = mean.expand(block.shape).reshape(-1)
    return z
