"""Guides: Pyro's automatic ones by name, a function, or the one that a model brings along."""

from __future__ import annotations

import difflib
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
from probdl.model.program import Program, base_distribution, is_deterministic
from probdl.model.sites import Site, Structure

__all__ = [
    "GUIDES",
    "check_guide",
    "check_values",
    "compare_sites",
    "make_guide",
    "no_guide",
    "own_guide",
]

_FAR = 10.0  # how far out on R^n the support of a guide's site is tried
_POINTS = 20

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
    """Tell what is wrong with a guide as a setting; nothing is ''."""
    if isinstance(guide, str) and guide not in GUIDES:
        near = difflib.get_close_matches(guide, GUIDES, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return f"must be one of {', '.join(map(repr, GUIDES))}, or a function{hint}"
    if isinstance(guide, str) or guide is None or callable(guide):
        return ""
    return "must be a name, a function, a module, or one of Pyro's autoguide classes"


def own_guide(program: Program) -> Callable[..., Any] | None:
    """Return the guide that a model brings along: the method `guide` beside its `model`."""
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
        guide: a name, an autoguide's class or instance, a function or module; None takes the
            model's own, or else ``"normal"``.
        start: values of the latent sites, where an automatic guide starts.
    """
    if guide is None:
        guide = own_guide(program) or "normal"
    if not structure.of("latent", "discrete"):
        return program.companion(no_guide, copied=False)
    if isinstance(guide, str):
        guide = GUIDES[guide]
    if isinstance(guide, AutoGuide):  # of the caller's model, which is not the copy trained here
        raise SettingError(
            f"guide={type(guide).__name__}(model) is tied to a model of its own. Pass the class, "
            f"guide={type(guide).__name__}, or a function that makes it of a model with settings: "
            f"functools.partial({type(guide).__name__}, init_scale=0.1)."
        )
    factory = getattr(guide, "func", guide)  # of a functools.partial
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
    """Check that a guide's values are such as the model's sites can have.

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
                f"the guide '{guide.name}' observes the site '{name}'. A guide samples the latent "
                "sites and nothing else: leave out obs=, and the site, there."
            )
        site = structure.sites.get(name)
        if site is None or site.kind != "latent":
            continue
        if tuple(node["value"].shape) != site.shape:
            raise ModelError(
                f"site '{name}' has the shape {tuple(node['value'].shape)} in the guide "
                f"'{guide.name}' and {site.shape} in the model. Give the guide's parameters the "
                "shape of the site, and put it into the same plates."
            )
        if not _within(node, site):
            raise ModelError(
                f"site '{name}' ~ {type(base_distribution(node['fn'])).__name__} in the guide "
                f"'{guide.name}' takes values outside the support of {site.distribution} in the "
                "model. Take a distribution with the model's support: LogNormal or Gamma for what "
                "is positive, Beta for what is between 0 and 1."
            )


def _within(node: Any, site: Site) -> bool:
    """Tell whether a guide's values of a site lie in the model's support of it."""
    if site.transform is None:  # a support that moves with other sites
        return True
    x = node["value"].detach()
    if not isinstance(base_distribution(node["fn"]), dist.Delta):
        try:
            transform = biject_to(node["fn"].support)
        except NotImplementedError:
            return True
        shape = (_POINTS, *transform.inverse_shape(node["fn"].shape()))
        generator = torch.Generator().manual_seed(0)
        far = torch.empty(shape, dtype=x.dtype).uniform_(-_FAR, _FAR, generator=generator)
        x = transform(far)
    again = site.transform(site.transform.inv(x))  # the way back and forth ends in the support
    return bool(((again - x).abs() <= 1e-3 * (1 + x.abs())).all())


def compare_sites(
    program: Program, guide: Program, structure: Structure, of_guide: Trace, of_model: Trace
) -> None:
    """Check that a guide samples what the model leaves latent, and nothing else.

    Raises:
        ModelError: it does not; the message names both sets.
    """
    check_values(guide, structure, of_guide)
    in_model, in_guide = _latent(of_model), _latent(of_guide)
    summed = {s.name for s in structure.of("discrete")} - in_guide
    if in_model - summed == in_guide:
        return
    raise ModelError(
        f"the guide '{guide.name}' and the model '{program.name}' differ in their latent sites. "
        f"The model has {_names(in_model - summed)}; the guide has {_names(in_guide)}. A guide "
        "samples each latent site of the model under the same name (or marks one of its own by "
        "infer={'is_auxiliary': True})."
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
    """Stand in as the guide of a model without latent sites."""
