"""Whether the terms of a likelihood are given other observations, as in an autoregression."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from probdl.errors import ProbdlError
from probdl.model import predictive
from probdl.model.sites import discover
from probdl.util.isolation import isolated
from probdl.util.seeds import stream

__all__ = ["is_given_others", "sites_given_others"]


def is_given_others(fit: Any, name: str) -> bool:
    """Return whether another value of one observation of a site changes the terms of others."""
    return name in sites_given_others(fit, [name])


def sites_given_others(fit: Any, names: Sequence[str]) -> set[str]:
    """Return the sites of which another value of one observation changes the terms of others.

    Its term ``p(y[t] | y[t-1])`` is left out, but the observation stays a predictor of the next, so
    the score of ``y[t]`` does not use ``y[t+1]``, as that of a model of latent states does.

    Args:
        fit: the fit; its parameters keep their values.
        names: the observed sites to look at.
    """
    program, structure = fit.program, fit.structure
    known = {name: structure.sites[name].given_others for name in names}
    given = {name for name, is_given in known.items() if is_given}
    left = {name for name, is_given in known.items() if is_given is None}
    if not left:
        return given
    draws = {site: value[:1] for site, value in fit.tensors().items()}
    tensors = program.tensors()
    try:
        with isolated(stream(fit.seed, "lagged")):
            before = predictive.log_likelihood(program, structure, draws, quiet=True).points
            for i, tensor in enumerate(tensors):
                changed = _with_another_value(tensor)
                if changed is None:
                    continue
                other = program.with_tensors([*tensors[:i], changed, *tensors[i + 1 :]])
                found = discover(other)
                same = {
                    name: unchanged
                    for name in left & before.keys() & found.sites.keys()
                    if (unchanged := _unchanged(structure.sites[name], found.sites[name]))
                    is not None
                    and not unchanged.all()
                }
                if not same:
                    continue
                after = predictive.log_likelihood(other, found, draws, quiet=True).points
                for name in same.keys() & after.keys():
                    if _differ(before[name][0], after[name][0], same[name]):
                        given.add(name)
                left -= given
    except ProbdlError:  # there is no likelihood with other values
        pass
    return given


def _differ(a: Tensor, b: Tensor, where: Tensor) -> bool:
    """Return whether two arrays of terms differ where the observations are the same."""
    if not a.shape == b.shape == where.shape:
        return False
    return not torch.allclose(a[where], b[where], rtol=1e-9, atol=1e-9, equal_nan=True)


def _with_another_value(x: Tensor) -> Tensor | None:
    """Return a tensor with the value of another row in its middle; None if all are equal."""
    if not x.ndim or len(x) < 3:
        return None
    rows = x.reshape(len(x), -1)
    middle = len(x) // 2
    others = ((rows != rows[middle]) & torch.isfinite(rows)).all(1).nonzero()[:, 0]
    if not len(others) or not torch.isfinite(rows[middle]).all():
        return None
    changed = x.clone()
    changed[middle] = x[others[0]]
    return changed


def _unchanged(site: Any, other: Any) -> Tensor | None:
    """Return which observations are the same, (*batch shape); None if they are not of one shape."""
    a, b = site.value, other.value
    if a.shape != b.shape:
        return None
    same = (a == b) | (torch.isnan(a) & torch.isnan(b)) if a.is_floating_point() else a == b
    return same.flatten(same.ndim - site.event_dim).all(-1) if site.event_dim else same
