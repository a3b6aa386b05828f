"""Guides: Pyro's automatic guides by name, functions, and guides that belong to a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pyro import poutine
from pyro.infer import autoguide
from pyro.infer.autoguide import AutoGuide
from torch import Tensor

from probdl.errors import SettingError
from probdl.methods.guide_sites import no_guide
from probdl.model.program import Program
from probdl.model.sites import Structure
from probdl.util.suggestions import did_you_mean

__all__ = [
    "GUIDES",
    "check_guide",
    "make_guide",
    "own_guide",
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
    return "must be a name, a function, a module, or one of Pyro's autoguide classes"


def own_guide(program: Program) -> Callable[..., Any] | None:
    """Return the guide that belongs to a model: the method `guide` of its object, or None."""
    owner = getattr(program.original, "__self__", program.original)
    guide = getattr(owner, "guide", None)
    return guide if callable(guide) else None


def _default_guide(program: Program, structure: Structure) -> str:
    scalars = structure.count_values("latent")
    full_rank = 1 < scalars <= FULL_RANK_MAX and not program.modules
    return "multivariate_normal" if full_rank else "normal"


def make_guide(
    program: Program, structure: Structure, guide: Guide, start: Mapping[str, Tensor]
) -> Program:
    """Make the program of a guide.

    Args:
        program: the model.
        structure: its sites.
        guide: a name, an autoguide class, a function or a module. None means the guide of the
            model; without one, ``"multivariate_normal"`` for 2 to 100 latent scalars, which
            has their correlations, and ``"normal"`` for other models.
        start: values of the latent sites, from which an automatic guide is initialised.

    Raises:
        SettingError: the guide is an instance of an autoguide, which is bound to its own model.
    """
    if guide is None:
        guide = own_guide(program) or _default_guide(program, structure)
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
    if start and "init_loc_fn" not in given and factory is not autoguide.AutoIAFNormal:
        options["init_loc_fn"] = autoguide.init_to_value(values=dict(start))
    return program.companion(guide(model, **options), copied=False)
