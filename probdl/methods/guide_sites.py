"""Guides of all kinds: checks of their sites against those of the model, and the empty guide."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn
from torch.distributions import TransformedDistribution

from probdl.errors import ModelError
from probdl.model.bijections import bijection_to
from probdl.model.distributions import base_distribution, is_deterministic
from probdl.model.program import Program
from probdl.model.sites import Site, Structure

__all__ = ["check_values", "compare_sites", "is_scored", "no_guide", "sampled_by"]

SUPPORT_CHECK_RADIUS = 10.0  # on R^n: values of a guide are checked from -10 to 10
SUPPORT_CHECK_POINTS = 20


def is_scored(node: Any) -> bool:
    """Return whether an observed site of a guide has a log likelihood."""
    return not (isinstance(base_distribution(node["fn"]), dist.Unit) or is_deterministic(node))


def check_values(
    guide: Program, structure: Structure, of_guide: Trace, *, observing: bool = False
) -> None:
    """Check that the values of a guide's sites are possible values of the model's sites.

    Args:
        guide: the guide.
        structure: the sites of the model.
        of_guide: the trace of a run of the guide.
        observing: whether the guide may have observed sites.

    Raises:
        ModelError: a site has another shape or a wider support than in the model, or is observed.
    """
    nodes: dict[str, Any] = of_guide.nodes  # type: ignore[assignment]
    for name, node in nodes.items():
        if node["type"] != "sample" or site_is_subsample(node):
            continue
        if node["is_observed"]:
            own = name not in structure.sites or node["infer"].get("is_auxiliary")
            if not is_scored(node) or (observing and own):
                continue
            if observing:
                raise ModelError(
                    f"The guide '{guide.name}' observes the site '{name}', as the model does. "
                    "Remove the site from the guide; if the guide is to learn to predict it, mark "
                    "it with infer={'is_auxiliary': True}."
                )
            raise ModelError(
                f"The guide '{guide.name}' observes the site '{name}', and this ELBO would train "
                "it to predict the site badly. Remove the observed site from the guide, or use "
                "elbo='auto', which adds its log likelihood."
            )
        site = structure.sites.get(name)
        if site is None or site.kind != "latent":
            continue
        if tuple(node["value"].shape) != site.shape:
            raise ModelError(
                f"Site '{name}' has the shape {tuple(node['value'].shape)} in the guide "
                f"'{guide.name}' and {site.shape} in the model. Give the guide's parameters the "
                "shape of the site, and sample it in the same plates."
            )
        if not _in_support(node, site):
            raise ModelError(
                f"Site '{name}' ~ {type(base_distribution(node['fn'])).__name__} in the guide "
                f"'{guide.name}' takes values outside the support of {site.distribution} in the "
                "model. Use a distribution with the same support, such as LogNormal or Gamma for "
                "positive values, or Beta for values between 0 and 1."
            )


def _in_support(node: Any, site: Site) -> bool:
    """Return whether a guide's values of a site lie in its support in the model."""
    if site.transform is None:  # the support depends on other sites
        return True
    x = node["value"].detach()
    if not isinstance(base_distribution(node["fn"]), dist.Delta):
        try:
            x = _possible_values(node["fn"], x.dtype)
        except NotImplementedError:
            return True
    # A value in the support survives the way to R^n and back.
    round_trip = site.transform(site.transform.inv(x))
    return bool(((round_trip - x).abs() <= 1e-3 * (1 + x.abs())).all())


def _possible_values(fn: Any, dtype: torch.dtype) -> Tensor:
    """Return values all over the support of a distribution.

    Raises:
        NotImplementedError: torch has no bijection to the support.
    """
    inner = base_distribution(fn)
    if isinstance(inner, TransformedDistribution) and not any(
        isinstance(t, nn.Module) for t in inner.transforms
    ):
        # Its `support` is that of the last transform, which may be wider: a positive value times 2.
        x = _possible_values(inner.base_dist, dtype)
        for transform in inner.transforms:
            x = transform(x)
        return x
    transform = bijection_to(fn.support)
    shape = transform.inverse_shape(fn.batch_shape + fn.event_shape)
    generator = torch.Generator().manual_seed(0)
    bound = SUPPORT_CHECK_RADIUS
    points = torch.empty((SUPPORT_CHECK_POINTS, *shape), dtype=dtype)
    return transform(points.uniform_(-bound, bound, generator=generator))


def sampled_by(guide: Program, structure: Structure) -> set[str]:
    """Return the discrete sites without a finite support that a guide samples."""
    wanted = {s.name for s in structure.of("discrete") if s.unsummable}
    if not wanted:
        return set()
    nodes: dict[str, Any] = guide.run(lambda trace: trace).nodes  # type: ignore[assignment]
    return {
        name
        for name in wanted & nodes.keys()
        if nodes[name]["type"] == "sample" and not nodes[name]["is_observed"]
    }


def compare_sites(
    program: Program,
    guide: Program,
    structure: Structure,
    of_guide: Trace,
    of_model: Trace,
    *,
    observing: bool = False,
) -> None:
    """Check that a guide samples exactly the latent sites of the model.

    Raises:
        ModelError: the sites differ; the message names both sets.
    """
    check_values(guide, structure, of_guide, observing=observing)
    in_model, in_guide = _latent(of_model), _latent(of_guide)
    summed = {s.name for s in structure.of("discrete")} - in_guide
    if in_model - summed == in_guide:
        return
    raise ModelError(
        f"The guide '{guide.name}' and the model '{program.name}' differ in their latent sites. "
        f"The model has {_names(in_model - summed)}; the guide has {_names(in_guide)}. A guide "
        "must sample each latent site of the model under the same name. Mark sites that only the "
        "guide has with infer={'is_auxiliary': True}."
    )


def _latent(trace: Trace) -> set[str]:
    nodes: dict[str, Any] = trace.nodes  # type: ignore[assignment]
    return {
        name
        for name, node in nodes.items()
        if node["type"] == "sample"
        and not node["is_observed"]
        and not site_is_subsample(node)
        and not node["infer"].get("is_auxiliary")
    }


def _names(sites: set[str]) -> str:
    return ", ".join(map(repr, sorted(sites))) or "none"


def no_guide(*args: Any, **kwargs: Any) -> None:
    """Do nothing, as the guide of a model without latent sites."""
