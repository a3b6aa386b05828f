"""The callables that serve as models: functions, modules, and methods of modules."""

from __future__ import annotations

import copy
import inspect
import types
from typing import Any

import torch
from torch import nn

from probdl.errors import ModelError

__all__ = [
    "accepts_argument",
    "callable_name",
    "cast_modules",
    "owner_module",
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


def accepts_argument(model: Any, name: str) -> bool:
    """Return whether a model accepts a keyword argument of this name."""
    parameters = signature(model).parameters
    return name in parameters or any(p.kind == p.VAR_KEYWORD for p in parameters.values())


def owner_module(model: Any) -> nn.Module | None:
    """Return the module that a model is, or is a method of."""
    owner = getattr(model, "__self__", model)
    return owner if isinstance(owner, nn.Module) else None


def callable_name(model: Any) -> str:
    """Return the name of a model for messages: of its module's class, or of the function."""
    owner = owner_module(model)
    if owner is not None:
        return type(owner).__name__
    return getattr(model, "__name__", type(model).__name__)


def cast_modules(model: Any, dtype: torch.dtype, copies: dict[int, Any]) -> Any:
    """Return a model whose module is a copy on the CPU, in another dtype.

    Args:
        model: a callable; one that is no module and no method of one is returned as it is.
        dtype: the floating-point dtype of the copy.
        copies: the memo of ``copy.deepcopy``, by which several models share their copies.
    """
    owner = getattr(model, "__self__", None)
    if isinstance(model, nn.Module):
        return copy.deepcopy(model, copies).to("cpu", dtype)
    if isinstance(owner, nn.Module):  # a method of a module, such as `vae.model`
        return types.MethodType(model.__func__, cast_modules(owner, dtype, copies))
    return model
