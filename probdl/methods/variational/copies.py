"""Copies of Pyro's automatic guides that belong to the copy of the model that is trained.

This is the only file that knows how Pyro's guides hold their model.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

from pyro import poutine
from pyro.infer import autoguide
from pyro.infer.autoguide import AutoGuide, AutoGuideList
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.poutine.guide import GuideMessenger
from torch import Tensor, nn

from probdl.model.callables import inside_handler, rehandled
from probdl.model.program import Program

__all__ = ["AUTOMATIC", "copied_guide", "has_own_start", "takes_start"]

AUTOMATIC = (AutoGuide, GuideMessenger)
"""The base classes of guides that Pyro makes of a model."""

_MODELS = ("_model", "_original_model")  # tuples of one model
# Guides without a continuous distribution: containers, functions, and guides of discrete sites.
_WITHOUT_START = (AutoGuideList, autoguide.AutoCallable, autoguide.AutoDiscreteParallel)


def copied_guide(
    guide: Any, program: Program, hidden: Collection[str], start: Mapping[str, Tensor]
) -> nn.Module:
    """Return a copy of a guide for the program's copy of the model.

    The caller's guide is not changed. Its copy keeps what the guide has learned.

    Args:
        guide: the guide.
        program: the model.
        hidden: the sites that the guide must not see, since they are summed out.
        start: values of the latent sites, from which a guide starts that has not run and was given
            no start.
    """
    parts = _parts(guide)
    held = [{n: vars(p)[n] for n in (*_MODELS, "master") if n in vars(p)} for p in parts]
    try:
        for part, state in zip(parts, held, strict=True):
            vars(part).update(dict.fromkeys(state))
        copied: nn.Module = program.own(guide)
    finally:  # copying an AutoGuide removes its model
        for part, state in zip(parts, held, strict=True):
            vars(part).update(state)
    for part, own, state in zip(parts, _parts(copied), held, strict=True):
        init = None
        if start and not has_own_start(part):
            init = autoguide.init_to_value(values=dict(start))
            if hasattr(own, "init_loc_fn"):
                own.init_loc_fn = init
        for name in _MODELS:
            if (model := state.get(name)) is not None:
                invisible = () if isinstance(own, _WITHOUT_START) else hidden
                vars(own)[name] = (_rebound(model[0], program, invisible, init),)
    return copied


def _parts(guide: nn.Module) -> list[nn.Module]:
    return [module for module in guide.modules() if isinstance(module, AUTOMATIC)]


def _rebound(
    model: Any, program: Program, hidden: Collection[str], init: Callable[..., Any] | None
) -> Any:
    """Return a model in Pyro's effect handlers, with its modules replaced by the program's."""
    if (inside := inside_handler(model)) is None:
        own = program.reduced(program.own(model)) if program.used else program.own(model)
        return poutine.block(own, hide=list(hidden)) if hidden else own
    own = _rebound(inside, program, hidden, init)
    if init is not None and isinstance(_handler(model), InitMessenger):
        return InitMessenger(init)(own)
    return rehandled(model, own)


def _handler(model: Any) -> Any:
    return model.args[0] if isinstance(model, functools.partial) and model.args else None


def has_own_start(guide: Any) -> bool:
    """Return whether a guide has run, or was given its start."""
    if isinstance(guide, _WITHOUT_START):
        return all(map(has_own_start, _parts(guide)[1:]))
    if getattr(guide, "prototype_trace", None) is not None or dict(guide.named_parameters()):
        return True
    given = getattr(guide, "init_loc_fn", None)
    if given is None:
        given = getattr(_handler(guide.model), "init_fn", None)
    return given is not None and given is not _default_start(type(guide))


def _default_start(factory: Any) -> Any:
    parameter = inspect.signature(factory).parameters.get("init_loc_fn")
    return None if parameter is None else parameter.default


def takes_start(factory: Any) -> bool:
    """Return whether a class of guides has a setting for its start, and uses it."""
    return _default_start(factory) is not None
