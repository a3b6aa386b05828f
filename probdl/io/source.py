"""Where the source of a model is, and checksums of it and of the values that it captures."""

from __future__ import annotations

import dis
import functools
import hashlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probdl.model.fingerprint import fingerprint

__all__ = ["source_of"]

UNWRAP_MAX = 20
_PLAIN = (type(None), bool, int, float, complex, str, bytes)


def source_of(model: Any) -> dict[str, Any]:
    """Return the name and the file of a model, and a checksum of its source.

    Of a function in wrappers (``functools.partial``, Pyro's handlers, decorators) they are those of
    the innermost function; of an instance or its method, those of the class.

    Returns:
        ``qualname`` with the module, ``object`` without, ``file``, ``source_sha256``,
        ``captured_sha256`` of the numbers, texts, arrays and tensors that the function takes from
        its surroundings, and ``whole``: whether the object is the whole model.
    """
    *_, inner = _layers(model)
    owner = getattr(inner, "__self__", inner)
    is_own = inspect.isfunction(owner) or inspect.isclass(owner)
    what = owner if is_own else type(owner)
    try:
        file: str | None = inspect.getsourcefile(what)
        digest: str | None = hashlib.sha256(inspect.getsource(what).encode()).hexdigest()
    except (OSError, TypeError):  # defined in a shell, or generated
        file = digest = None
    return {
        "qualname": f"{what.__module__}.{what.__qualname__}",
        "object": what.__qualname__,
        "file": str(Path(file).resolve()) if file and Path(file).exists() else None,
        "source_sha256": digest,
        "captured_sha256": _digest_of_captured(model),
        "whole": model is inner and is_own and owner is inner,
    }


def _layers(model: Any) -> Iterator[Any]:
    """Yield a model in wrappers, from the outermost to the innermost."""
    for _ in range(UNWRAP_MAX):
        yield model
        inside = getattr(model, "__wrapped__", None)
        if inside is None and isinstance(model, functools.partial):
            inside = model.func
        if not callable(inside):
            return
        model = inside


def _digest_of_captured(model: Any) -> str:
    digest = hashlib.sha256()
    for layer in _layers(model):
        for name, value in sorted(_captured(layer).items()):
            digest.update(f"{name}={_text_of(value)};".encode())
    return digest.hexdigest()


def _captured(layer: Any) -> dict[str, Any]:
    if isinstance(layer, functools.partial):
        return {str(i): value for i, value in enumerate(layer.args)} | dict(layer.keywords)
    function = getattr(layer, "__func__", layer)  # of a method
    if not inspect.isfunction(function):
        return {}
    try:
        found = inspect.getclosurevars(function)
    except ValueError:  # a variable of the closure has no value yet
        return {}
    assigned = _assigned(function)
    outer = {**found.globals, **found.nonlocals}
    return {name: value for name, value in outer.items() if name not in assigned}


def _assigned(function: Any) -> set[str]:
    """Return the outer variables that a function changes itself, such as a counter of calls."""
    return {
        step.argval
        for step in dis.get_instructions(function)
        if step.opname in ("STORE_GLOBAL", "STORE_DEREF")
    }


def _text_of(value: Any) -> str:
    """Return a text of a value that determines it; '' for what may change from use to use."""
    if isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, (tuple, torch.Size)):
        return f"({','.join(map(_text_of, value))})"
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        return fingerprint([torch.from_numpy(np.ascontiguousarray(value))])
    if isinstance(value, Tensor) and not isinstance(value, torch.nn.Parameter):
        plain = value.layout == torch.strided and not value.is_meta and not value.is_nested
        return fingerprint([value]) if plain else ""
    return ""
