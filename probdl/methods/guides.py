"""Guides: Pyro's automatic ones by name, a function, or the one that a model brings along."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any

from pyro import poutine
from pyro.infer import autoguide
from pyro.infer.autoguide import AutoGuide
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from probdl.errors import ModelError, SettingError
from probdl.program import Program
from probdl.sites import Structure

__all__ = ["GUIDES", "check_guide", "compare_sites", "make_guide", "no_guide", "own_guide"]

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


def compare_sites(
    program: Program, guide: Program, structure: Structure, of_guide: Trace, of_model: Trace
) -> None:
    """Check that a guide samples what the model leaves latent, and nothing else.

    Raises:
        ModelError: it does not; the message names both sets.
    """
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
