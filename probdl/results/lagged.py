"""Whether the terms of a likelihood are given other observations, as in an autoregression."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from probdl.errors import ProbdlError
from probdl.model import predictive
from probdl.model.sites import discover
from probdl.util.isolation import isolated
from probdl.util.seeds import stream

__all__ = ["is_given_others"]


def is_given_others(fit: Any, name: str) -> bool:
    """Return whether another value of one observation changes the terms of others.

    Its term ``p(y[t] | y[t-1])`` is left out, but the observation stays a predictor of the next, so
    the score of ``y[t]`` does not use ``y[t+1]``, as that of a model of latent states does.

    Args:
        fit: the fit; its parameters keep their values.
        name: the observed site.
    """
    program, structure = fit.program, fit.structure
    if (known := structure.sites[name].given_others) is not None:
        return known
    draws = {site: value[:1] for site, value in fit.tensors().items()}
    tensors = program.tensors()
    try:
        with isolated(stream(fit.seed, "lagged")):
            before = predictive.log_likelihood(program, structure, draws, quiet=True).points[name]
            for i, tensor in enumerate(tensors):
                changed = _with_another_value(tensor)
                if changed is None:
                    continue
                other = program.with_tensors([*tensors[:i], changed, *tensors[i + 1 :]])
                found = discover(other)
                same = _unchanged(structure.sites[name], found.sites[name])
                if same is None or same.all():
                    continue
                after = predictive.log_likelihood(other, found, draws, quiet=True).points[name]
                a, b = before[0], after[0]
                if a.shape == b.shape == same.shape and not torch.allclose(
                    a[same], b[same], rtol=1e-9, atol=1e-9, equal_nan=True
                ):
                    return True
    except (ProbdlError, KeyError):  # there are no single terms
        return False
    return False


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
