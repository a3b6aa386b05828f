"""Check whether a posterior density is higher where the scale of a latent site is close to 0.

In a hierarchical model, n latent values whose scale is a site have a density of about scale**-n
where all of them are at their mean. The mode that an optimiser finds is then a local one.
"""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from pyro.poutine import Trace
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

from probdl.errors import ModelError
from probdl.findings import Finding
from probdl.model.density import Block, LogDensity
from probdl.model.distributions import base_distribution
from probdl.util.deadline import deadline

__all__ = ["check_collapse"]

FACTOR = 1e-4  # of the scale
POWERS = (1, 2, 4, 8, 16, 32)  # of that factor; the rise must make up for the data, once
SHRUNK = 0.02  # share of a standard deviation that is left after a step; precisions leave 0.01
HIGHER_MIN = 1.0  # nats above the estimate
SITES_MAX = 20
# A model may take very long at such values: what it takes is bounded by its time at the estimate.
SECONDS_MAX, EVALUATIONS_MAX = 5.0, 1000


def check_collapse(density: LogDensity, z: Tensor) -> list[Finding]:
    """Report a site that makes a scale almost 0 where the density exceeds that of an estimate.

    Args:
        density: the log density, without Jacobians.
        z: the maximum that was found (d,).
    """
    start = time.perf_counter()
    value = density(z).item()
    with deadline(max(SECONDS_MAX, EVALUATIONS_MAX * (time.perf_counter() - start))):
        return _check(density, z, value)
    return []


def _check(density: LogDensity, z: Tensor, value: float) -> list[Finding]:
    here = density.at(z, _moments)
    for block in [*density.blocks.values()][:SITES_MAX]:
        for shift in (math.log(FACTOR), -math.log(FACTOR)):
            try:
                names = _shrinking(density, _moved(z, block, shift), here, block)
                heights = [
                    density(_centred(density, _moved(z, block, k * shift), names)).item()
                    for k in POWERS
                    if names
                ]
            except (ModelError, LinAlgError, ValueError):  # the model has no such values
                continue
            higher = max((h for h in heights if math.isfinite(h)), default=-math.inf) - value
            if higher > HIGHER_MIN:
                return [_finding(block.site.name, names, higher)]
    return []


def _finding(name: str, names: list[str], higher: float) -> Finding:
    of = ", ".join(map(repr, names))
    return Finding(
        "warning",
        "no_maximum",
        f"The estimate is a local maximum at best: the density is higher by {higher:.3g} nats or "
        f"more where '{name}' makes the scale of {of} almost 0, with all values at their mean, and "
        "may have no bound there.",
        f"Use method='nuts', or a prior of '{name}' that falls faster than any power where that "
        "scale is 0, such as InverseGamma.",
        (name, *names),
    )


def _moved(z: Tensor, block: Block, shift: float) -> Tensor:
    z = z.clone()
    z[block.start : block.start + block.size] += shift
    return z


def _moments(trace: Trace) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the location and scale of each latent site that has them."""
    found = {}
    nodes: Any = trace.nodes
    for name, node in nodes.items():
        if node["type"] != "sample" or node["is_observed"] or not torch.is_tensor(node["value"]):
            continue
        fn = base_distribution(node["fn"])
        for location, scale in (("mean", "stddev"), ("loc", "scale")):  # Cauchy has no mean
            try:
                pair = getattr(fn, location).detach(), getattr(fn, scale).detach()
            except (NotImplementedError, AttributeError):
                continue
            if all(torch.isfinite(x).all() for x in pair):
                found[name] = pair
                break
    return found


def _shrinking(
    density: LogDensity, z: Tensor, here: dict[str, tuple[Tensor, Tensor]], block: Block
) -> list[str]:
    """Return the sites whose scale at z is a small share of the scale at the estimate."""
    there = density.at(z, _moments)
    names = []
    for name, (_, scale) in there.items():
        if name == block.site.name or name not in density.blocks or name not in here:
            continue
        before = here[name][1]
        if scale.shape == before.shape and bool((scale < SHRUNK * before).all()):
            names.append(name)
    return [name for name in names if density.blocks[name].site.transform is not None]


def _centred(density: LogDensity, z: Tensor, names: list[str]) -> Tensor:
    """Return a point (d,) with sites at their means."""
    z = z.clone()
    for name in names:  # in the order of the model, so that a mean may depend on sites before
        block = density.blocks[name]
        assert block.site.transform is not None
        mean, _ = density.at(z, _moments)[name]
        value = block.site.transform.inv(mean.expand(block.site.shape))
        z[block.start : block.start + block.size] = value.reshape(-1)
    return z
