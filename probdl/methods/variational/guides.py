"""Guides: Pyro's automatic guides by name, functions, and guides that belong to a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import autoguide
from pyro.infer.autoguide import AutoGuide
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import biject_to

from probdl.errors import ModelError, SettingError
from probdl.model.distributions import base_distribution, is_deterministic
from probdl.model.program import Program
from probdl.model.sites import Site, Structure
from probdl.util.suggestions import did_you_mean

__all__ = [
    "GUIDES",
    "check_guide",
    "check_values",
    "compare_sites",
    "make_guide",
    "no_guide",
    "own_guide",
]

SUPPORT_CHECK_RADIUS = 10.0  # on R^n: values of a guide are checked from -10 to 10
SUPPORT_CHECK_POINTS = 20

GUIDES: dict[str, type[AutoGuide]] = {
    "normal": autoguide.AutoNormal,
    "diagonal_normal": autoguide.AutoDiagonalNormal,
    "multivariate_normal": autoguide.AutoMultivariateNormal,
    "lowrank": autoguide.AutoLowRankMultivariateNormal,
    "delta": autoguide.AutoDelta,
    "iaf": autoguide.AutoIAFNormal,
    "structured": autoguide.AutoStructured,
    "gaussian": autoguide.AutoGaussian,
}

Guide = str | Callable[..., Any] | None


def check_guide(guide: Guide) -> str:
    """Return what a guide must be if a setting is not one, or '' if it is valid."""
    if isinstance(guide, str) and guide not in GUIDES:
        hint = did_you_mean(guide, GUIDES, before="; ")
        return f"must be one of {', '.join(map(repr, GUIDES))}, or a function{hint}"
    if isinstance(guide, str) or guide is None or callable(guide):
        return ""
    return "must be a name, a function, a module, or one of Pyro's autoguide classes"


def own_guide(program: Program) -> Callable[..., Any] | None:
    """Return the guide that belongs to a model: the method `guide` of its object, or None."""
    owner = getattr(program.original, "__self__", program.original)
    guide = getattr(owner, "guide", None)
    return guide if callable(guide) else None


def make_guide(
    program: Program, structure: Structure, guide: Guide, start: Mapping[str, Tensor]
) -> Program:
    """Make the program of a guide.

    Args:
        program: the model.
        structure: its sites.
        guide: a name, an autoguide class, a function or a module. None means the guide of the
            model, or ``"normal"`` if it has none.
        start: values of the latent sites, from which an automatic guide is initialised.

    Raises:
        SettingError: the guide is an instance of an autoguide, which is bound to its own model.
    """
    if guide is None:
        guide = own_guide(program) or "normal"
    if not structure.of("latent", "discrete"):
        return program.companion(no_guide, copied=False)
    if isinstance(guide, str):
        guide = GUIDES[guide]
    if isinstance(guide, AutoGuide):  # it uses the caller's model, not the copy trained here
        raise SettingError(
            f"guide={type(guide).__name__}(model) is bound to the original model, but training "
            f"uses a copy. Pass the class, guide={type(guide).__name__}, or the class with "
            f"options, functools.partial({type(guide).__name__}, init_scale=0.1)."
        )
    factory = getattr(guide, "func", guide)  # the class in a functools.partial
    if not (isinstance(factory, type) and issubclass(factory, AutoGuide)):
        return program.companion(guide)
    discrete = [s.name for s in structure.of("discrete")]
    model = program.handled()
    if discrete:
        model = poutine.block(model, hide=discrete)
    options: dict[str, Any] = {}
    given = getattr(guide, "keywords", {})
    if "init_loc_fn" not in given and factory is not autoguide.AutoIAFNormal:
        options["init_loc_fn"] = autoguide.init_to_value(values=dict(start))
    return program.companion(guide(model, **options), copied=False)


def check_values(guide: Program, structure: Structure, of_guide: Trace) -> None:
    """Check that the values of a guide's sites are possible values of the model's sites.

    Raises:
        ModelError: a site has another shape or a wider support than in the model, or is observed.
    """
    nodes: dict[str, Any] = of_guide.nodes  # type: ignore[assignment]
    for name, node in nodes.items():
        if node["type"] != "sample" or site_is_subsample(node):
            continue
        if node["is_observed"]:
            unscored = isinstance(base_distribution(node["fn"]), dist.Unit)
            if unscored or is_deterministic(node):
                continue
            raise ModelError(
                f"The guide '{guide.name}' observes the site '{name}'. A guide samples only latent "
                "sites: remove the observed site from the guide."
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
            transform = biject_to(node["fn"].support)
        except NotImplementedError:
            return True
        shape = (SUPPORT_CHECK_POINTS, *transform.inverse_shape(node["fn"].shape()))
        generator = torch.Generator().manual_seed(0)
        bound = SUPPORT_CHECK_RADIUS
        points = torch.empty(shape, dtype=x.dtype).uniform_(-bound, bound, generator=generator)
        x = transform(points)
    # A value in the support survives the way to R^n and back.
    round_trip = site.transform(site.transform.inv(x))
    return bool(((round_trip - x).abs() <= 1e-3 * (1 + x.abs())).all())


def compare_sites(
    program: Program, guide: Program, structure: Structure, of_guide: Trace, of_model: Trace
) -> None:
    """Check that a guide samples exactly the latent sites of the model.

    Raises:
        ModelError: the sites differ; the message names both sets.
    """
    check_values(guide, structure, of_guide)
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
