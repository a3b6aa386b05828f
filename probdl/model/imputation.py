"""Latent sites in the place of missing values."""

from __future__ import annotations

import torch

from probdl.model.program import Program
from probdl.model.sites import Site, Structure

__all__ = ["has_imputed", "imputed_plates"]


def has_imputed(program: Program, site: Site) -> bool:
    """Return whether a latent site has one element for each missing value of an argument."""
    return bool(_arguments(program, site))


def imputed_plates(fitted: Program, structure: Structure, now: Program) -> list[str]:
    """List the plates of missing values that other arguments do not share with those of a fit.

    The gaps of other rows are others, also where there are equally many. Rows that begin with
    those of the fit keep their gaps.
    """
    data = dict(now.named_data())
    found = []
    for site in structure.of("latent"):
        for name in _arguments(fitted, site):
            before = dict(fitted.named_data())[name]
            after = data.get(name)
            if after is None or not _begins_with(after, before):
                found += [dim for dim in site.dims if dim is not None]
    return found


def _arguments(program: Program, site: Site) -> list[str]:
    data = dict(program.named_data())
    return [
        name
        for name in program.not_finite()
        if int(torch.isnan(data[name]).sum()) == site.value.numel()
    ]


def _begins_with(data: torch.Tensor, first: torch.Tensor) -> bool:
    if data.ndim != first.ndim or not data.ndim or len(data) < len(first):
        return False
    start = data[: len(first)]
    return start.shape == first.shape and bool(torch.isclose(start, first, equal_nan=True).all())
