"""Guides: Pyro's automatic guides, functions, and guides that belong to a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pyro import poutine
from pyro.infer import autoguide
from pyro.infer.autoguide import AutoGuide
from torch import Tensor, nn

from probdl.methods.guide_sites import no_guide
from probdl.methods.variational.copies import (
    AUTOMATIC,
    copied_guide,
    has_own_start,
    takes_start,
)
from probdl.model.callables import signature
from probdl.model.program import Program
from probdl.model.sites import Structure
from probdl.util.isolation import isolated
from probdl.util.suggestions import did_you_mean

__all__ = [
    "GUIDES",
    "check_guide",
    "default_guide",
    "make_guide",
    "own_guide",
    "starts_itself",
]

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

FULL_RANK_MAX = 100  # latent scalars of a model whose default guide has a full covariance

Guide = str | Callable[..., Any] | None


def check_guide(guide: Guide) -> str:
    """Return what a guide must be if a setting is not one, or '' if it is valid."""
    if isinstance(guide, str) and guide not in GUIDES:
        hint = did_you_mean(guide, GUIDES, before="; ")
        return f"must be one of {', '.join(map(repr, GUIDES))}, or a function{hint}"
    if isinstance(guide, str) or guide is None or callable(guide):
        return ""
    return "must be a name, a function, a module, or an automatic guide of Pyro or its class"


def own_guide(program: Program) -> Callable[..., Any] | None:
    """Return the guide that belongs to a model: the method `guide` of its object, or None."""
    owner = getattr(program.original, "__self__", program.original)
    guide = getattr(owner, "guide", None)
    return guide if callable(guide) else None


def default_guide(program: Program, structure: Structure) -> str:
    """Return the name of the automatic guide that SVI uses if a user gives no guide."""
    scalars = structure.count_values("latent")
    local = any({*site.dims} & {*program.subsampled} for site in structure.of("latent"))
    full_rank = 1 < scalars <= FULL_RANK_MAX and not program.modules and not local
    return "multivariate_normal" if full_rank else "normal"


def make_guide(
    program: Program, structure: Structure, guide: Guide, start: Mapping[str, Tensor]
) -> Program:
    """Make the program of a guide.

    Args:
        program: the model.
        structure: its sites.
        guide: a name, one of Pyro's automatic guides or their classes, a function that makes one
            of a model, or a guide as a function or module. None means the guide of the model;
            without one, ``"multivariate_normal"`` for 2 to 100 latent scalars, which has their
            correlations, and ``"normal"`` for other models.
        start: values of the latent sites, from which an automatic guide is initialised.
    """
    if guide is None:
        guide = own_guide(program) or default_guide(program, structure)
    if not structure.of("latent", "discrete"):
        return program.companion(no_guide, copied=False)
    if isinstance(guide, str):
        guide = GUIDES[guide]
    # The first run of a guide holds a part of the rows of a plate with `subsample_size`.
    partial = {s.name for s in structure.of("latent") if {*s.dims} & {*program.subsampled}}
    start = {name: value for name, value in start.items() if name not in partial}
    discrete = [s.name for s in structure.of("discrete")]
    if isinstance(guide, AUTOMATIC):
        return program.companion(copied_guide(guide, program, discrete, start), copied=False)
    factory = _factory(guide)
    if factory is None and not _makes_guides(guide, program):
        return program.companion(guide)
    model = program.handled()
    options: dict[str, Any] = {}
    if factory is not None:
        if discrete and factory is not autoguide.AutoDiscreteParallel:
            model = poutine.block(model, hide=discrete)
        if start and takes_start(factory):
            options["init_loc_fn"] = autoguide.init_to_value(values=dict(start))
    made: Any = guide(model, **options)
    if isinstance(made, nn.Module):
        made = made.to("cpu", program.dtype)
    return program.companion(made, copied=False)


def starts_itself(guide: Guide, program: Program) -> bool:
    """Return whether a guide sets where it starts: no automatic guide, or one with a start."""
    if guide is None:
        return own_guide(program) is not None
    if isinstance(guide, AUTOMATIC):
        return has_own_start(guide)
    if "init_loc_fn" in getattr(guide, "keywords", {}):
        return True
    return not isinstance(guide, str) and _factory(guide) is None


def _factory(guide: Any) -> type | None:
    """Return the class of automatic guides that makes a guide, also in a functools.partial."""
    factory = getattr(guide, "func", guide)
    return factory if isinstance(factory, type) and issubclass(factory, AUTOMATIC) else None


def _makes_guides(guide: Callable[..., Any], program: Program) -> bool:
    """Return whether a function makes a guide of a model, instead of being one.

    It takes a single argument, of another name than the first one of the model.
    """
    if isinstance(guide, nn.Module) or isinstance(getattr(guide, "__self__", None), nn.Module):
        return False
    required = [
        p.name
        for p in signature(guide).parameters.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    of_model = list(program.signature.parameters)
    if len(required) != 1 or required == of_model[:1]:
        return False
    with isolated(0):  # a guide that runs by mistake leaves no parameters
        try:
            made = guide(program.handled())
        except Exception:
            return False
    return callable(made)
