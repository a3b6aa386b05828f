"""The callables that serve as models: functions, modules, and methods of modules."""

from __future__ import annotations

import copy
import functools
import inspect
import types
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.reparam_messenger import ReparamHandler
from torch import nn

from probdl.errors import ModelError

__all__ = [
    "accepts_argument",
    "callable_name",
    "cast_modules",
    "inside_handler",
    "owner_module",
    "rehandled",
    "runnable",
    "signature",
]


def runnable(model: Any) -> Any:
    """Return the method ``model`` of a module that also has a ``guide``; else the model itself."""
    if isinstance(model, nn.Module) and callable(getattr(model, "guide", None)):
        return getattr(model, "model", model)
    return model


def signature(model: Any) -> inspect.Signature:
    """Return the signature of a model.

    Raises:
        ModelError: the model cannot be called, or Python cannot inspect it.
    """
    if not callable(model):
        raise ModelError(
            f"The model is a {type(model).__name__}, which cannot be called. Pass a function "
            "with pyro.sample statements or an nn.Module."
        )
    if (inside := inside_handler(model)) is not None:
        return signature(inside)
    try:
        called = model
        if isinstance(model, nn.Module):
            has_forward = type(model).forward is not nn.Module.forward
            called = model.forward if has_forward else model.__call__
        return inspect.signature(called)
    except (TypeError, ValueError):
        raise ModelError(
            f"The arguments of {model!r} cannot be inspected. Pass a Python function with "
            "pyro.sample statements or an nn.Module."
        ) from None


def inside_handler(model: Any) -> Any:
    """Return the callable inside one of Pyro's effect handlers; None if there is no handler.

    >>> import pyro
    >>> inside_handler(pyro.poutine.scale(scale=2.0)(print))
    <built-in function print>
    """
    if isinstance(model, ReparamHandler):
        return model.fn
    if not (isinstance(model, functools.partial) and len(model.args) > 1):
        return None
    handler, inside = model.args[:2]
    return inside if isinstance(handler, Messenger) else None


def rehandled(model: Any, inside: Any) -> Any:
    """Return another callable in a copy of the effect handler of a model."""
    if isinstance(model, ReparamHandler):
        return ReparamHandler(copy.copy(model.msngr), inside)
    return copy.copy(model.args[0])(inside)


def accepts_argument(model: Any, name: str) -> bool:
    """Return whether a model accepts a keyword argument of this name."""
    parameters = signature(model).parameters
    return name in parameters or any(p.kind == p.VAR_KEYWORD for p in parameters.values())


def owner_module(model: Any) -> nn.Module | None:
    """Return the module that a model is, or is a method of."""
    if (inside := inside_handler(model)) is not None:
        return owner_module(inside)
    owner = getattr(model, "__self__", model)
    return owner if isinstance(owner, nn.Module) else None


def callable_name(model: Any) -> str:
    """Return the name of a model for messages: of its module's class, or of the function."""
    owner = owner_module(model)
    if owner is not None:
        return type(owner).__name__
    if (inside := inside_handler(model)) is not None:
        return callable_name(inside)
    return getattr(model, "__name__", type(model).__name__)


def cast_modules(model: Any, dtype: torch.dtype, copies: dict[int, Any]) -> Any:
    """Return a model whose module is a copy on the CPU, in another dtype.

    Args:
        model: a callable; one that is no module and no method of one is returned as it is.
        dtype: the floating-point dtype of the copy.
        copies: the memo of ``copy.deepcopy``, by which several models share their copies.
    """
    inside = inside_handler(model)
    if inside is not None and owner_module(inside) is not None:
        return rehandled(model, cast_modules(inside, dtype, copies))
    owner = getattr(model, "__self__", None)
    if isinstance(model, nn.Module):
        return copy.deepcopy(model, copies).to("cpu", dtype)
    if isinstance(owner, nn.Module):  # a method of a module, such as `vae.model`
        return types.MethodType(model.__func__, cast_modules(owner, dtype, copies))
    return model
