"""Draws of a distribution or a program from points of the unit cube, by inverse CDFs."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import (
    LowRankMultivariateNormal,
    MultivariateNormal,
    TransformedDistribution,
)

from probdl.errors import ModelError
from probdl.model.distributions import distribution_name
from probdl.model.program import Program
from probdl.model.sites import Structure

__all__ = ["AtUniforms", "dimension", "from_uniforms", "sites_dimension"]


def dimension(fn: Any) -> int:
    """Return the number of uniforms that a draw of a distribution needs."""
    return math.prod(fn.shape())


def from_uniforms(fn: Any, u: Tensor) -> Tensor:
    """Map uniforms (n, *shape of the distribution) to draws of the same shape.

    Raises:
        ModelError: the distribution has no inverse CDF in torch.
    """
    if isinstance(fn, (dist.Independent, torch.distributions.Independent)):
        return from_uniforms(fn.base_dist, u)
    if type(fn).__name__ == "ExpandedDistribution" or isinstance(
        fn, dist.torch_distribution.MaskedDistribution
    ):
        return from_uniforms(fn.base_dist, u)
    if isinstance(fn, (MultivariateNormal, LowRankMultivariateNormal)):
        # Any square root of the covariance is valid; the Cholesky factor is the cheapest.
        normal = torch.special.ndtri(u).to(fn.loc.dtype)
        factor = torch.linalg.cholesky(fn.covariance_matrix)
        return fn.loc + (factor @ normal[..., None])[..., 0]
    if isinstance(fn, dist.Delta):
        return fn.v.expand(u.shape)
    if isinstance(fn, torch.distributions.Bernoulli):
        return (u > 1 - fn.probs).to(u.dtype)
    if isinstance(fn, TransformedDistribution) and (
        any(t.domain.event_dim for t in fn.transforms)
        or type(fn).icdf is TransformedDistribution.icdf
    ):
        x = from_uniforms(fn.base_dist, u)
        for transform in fn.transforms:
            x = transform(x)
        return x
    try:
        return fn.icdf(u)
    except NotImplementedError:
        raise ModelError(
            f"{distribution_name(fn)} has no inverse CDF in torch, which sampling='antithetic' and "
            "'sobol' need. Use sampling='random', or write it as a transform of a distribution "
            "that has one (normal, uniform, exponential, Cauchy, Laplace, Weibull …)."
        ) from None


class AtUniforms(Messenger):
    """Run a program with each site at the draw that corresponds to given uniforms."""

    def __init__(self, u: Tensor) -> None:
        super().__init__()
        self.u = u
        self.used = 0

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or msg["done"] or site_is_subsample(msg):
            return
        fn = msg["fn"]
        shape = fn.shape()
        size = math.prod(shape)
        part = self.u[self.used : self.used + size].reshape(shape)
        self.used += size
        msg["value"] = from_uniforms(fn, part)


def sites_dimension(program: Program, structure: Structure) -> int:
    """Return the number of uniforms that a run of a program needs."""
    return structure.count_values("latent", "discrete", "observed")
