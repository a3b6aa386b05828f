"""Latent sites in the place of missing values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from probdl.errors import ProbdlError
from probdl.model.program import Program
from probdl.model.sites import Site, Structure, random_traces

__all__ = ["imputed_arguments", "imputed_plates"]

PROBES = (0.25, 0.75)  # values in the place of a missing one


def imputed_arguments(program: Program, structure: Structure) -> dict[str, list[str]]:
    """Return the latent sites that take the place of missing values, by argument."""
    found: dict[str, list[str]] = {}
    for name in program.not_finite():
        sites = [
            s.name for s in structure.of("latent") if _takes_place(program, structure, name, s)
        ]
        if sites:
            found[name] = sites
    return found


def imputed_plates(fitted: Program, structure: Structure, now: Program) -> list[str]:
    """List the plates of missing values that other arguments do not share with those of a fit.

    The gaps of other rows are others, also where there are equally many. Rows that begin with
    those of the fit keep their gaps.
    """
    data, before = dict(now.named_data()), dict(fitted.named_data())
    found: list[str] = []
    for name, sites in imputed_arguments(fitted, structure).items():
        after = data.get(name)
        if after is None or not _begins_with(after, before[name]):
            for site in sites:
                found += [dim for dim in structure.sites[site].dims if dim is not None]
    return found


def _takes_place(program: Program, structure: Structure, name: str, site: Site) -> bool:
    """Return whether the elements of a latent site take the place of the NaN in an argument.

    Their number alone may be that of the NaN by chance. The site has fewer elements if one value
    is no longer missing, or the value makes no difference, or the model needs its NaN.
    """
    data = program.named_data()
    index = [of for of, _ in data].index(name)
    missing = torch.isnan(data[index][1])
    if int(missing.sum()) != site.value.numel():
        return False
    densities = []
    for probe in PROBES:
        value = data[index][1].clone()
        value[tuple(missing.nonzero()[0].tolist())] = probe
        tensors = program.tensors()
        tensors[index] = value
        try:
            trace = next(random_traces(program.with_tensors(tensors)))
        except ProbdlError:
            return True
        nodes: Any = trace.nodes
        node = nodes.get(site.name)
        if node is None or node["value"].numel() != site.value.numel():
            return True
        with torch.no_grad():
            densities.append(float(trace.log_prob_sum()))
    if densities[0] == densities[1]:
        return True
    return not _leaves_out(structure.of("observed"))


def _leaves_out(observed: Sequence[Site]) -> bool:
    """Return whether missing observations are left out of the likelihood, without a substitute."""
    return any(s.mask is not None and not s.imputed and not s.mask.all() for s in observed)


def _begins_with(data: Tensor, first: Tensor) -> bool:
    if data.ndim != first.ndim or not data.ndim or len(data) < len(first):
        return False
    start = data[: len(first)]
    return start.shape == first.shape and bool(torch.isclose(start, first, equal_nan=True).all())
