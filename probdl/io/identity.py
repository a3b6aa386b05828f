"""Texts that identify values, by which a later run recognises the same values."""

from __future__ import annotations

import dis
import functools
import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from probdl.model.callables import inside_handler
from probdl.model.fingerprint import fingerprint

__all__ = ["array_text", "captured_values", "digest_of", "identify", "layers", "source_digest"]

MAX_DEPTH = 8  # of containers and objects in one another
UNWRAP_MAX = 20
_PLAIN = (type(None), bool, int, float, complex, str, bytes)


def identify(value: Any, depth: int = MAX_DEPTH) -> str:
    """Return a text that is the same for equal values, in any process.

    Arrays and tensors are identified by their values, functions by their source and what they
    capture, networks by their architecture, other objects by their attributes.

    >>> identify([1, 2.0]), identify([1, 2.0]) == identify([1, 3.0])
    ('list[1,2.0]', False)
    """
    if isinstance(value, _PLAIN):
        return repr(value)
    if depth == 0:
        return type(value).__name__
    inside = functools.partial(identify, depth=depth - 1)
    if (data := array_text(value)) is not None:
        return data
    name = type(value).__name__
    if isinstance(value, Mapping):
        return f"{name}{{{','.join(f'{inside(k)}:{inside(v)}' for k, v in value.items())}}}"
    if isinstance(value, (list, tuple)):
        return f"{name}[{','.join(map(inside, value))}]"
    if isinstance(value, (set, frozenset)):
        return f"{name}[{','.join(sorted(map(inside, value)))}]"
    if hasattr(value, "columns") and hasattr(value, "dtypes"):  # a table of pandas
        return f"{name}{{{','.join(f'{inside(k)}:{inside(value[k])}' for k in value.columns)}}}"
    if inspect.isroutine(value) or inspect.isclass(value) or isinstance(value, functools.partial):
        *_, inner = layers(value)
        source = source_digest(inner)
        called = getattr(inner, "__qualname__", "")
        if source is None:  # of a known source, the module's name depends on who imports it
            called = f"{getattr(inner, '__module__', '')}.{called}"
        of = ",".join(f"{k}={v}" for k, v in sorted(captured_values(value, depth - 1).items()))
        code = getattr(inner, "__code__", None)
        if code is not None and code.co_name == "<lambda>":  # one of several in its line
            called += hashlib.sha256(code.co_code + repr(code.co_consts).encode()).hexdigest()[:16]
        return f"{called}:{source}({of})"
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    shown = repr(value) if isinstance(value, nn.Module) else ""
    of = ",".join(f"{k}={inside(v)}" for k, v in sorted(_attributes(value).items()))
    return f"{kind}{shown}({of})"


def digest_of(value: Any) -> str:
    """Return a checksum that is the same for equal values, see `identify`."""
    return hashlib.sha256(identify(value).encode()).hexdigest()


def source_digest(what: Any) -> str | None:
    """Return a checksum of the source of a function or class; None without a source."""
    try:
        return hashlib.sha256(inspect.getsource(what).encode()).hexdigest()
    except (OSError, TypeError):  # defined in a shell, generated, or compiled
        return None


def layers(function: Any) -> Iterator[Any]:
    """Yield a function in wrappers, from the outermost to the innermost."""
    for _ in range(UNWRAP_MAX):
        yield function
        inside = getattr(function, "__wrapped__", None) or inside_handler(function)
        if inside is None and isinstance(function, functools.partial):
            inside = function.func
        if not callable(inside):
            return
        function = inside


def captured_values(function: Any, depth: int = MAX_DEPTH) -> dict[str, str]:
    """Identify what a function takes from its surroundings, by name.

    These are numbers, texts, arrays and tensors, tuples of them, and functions of the same module;
    what may change from call to call, such as lists, is left out.
    """
    found: dict[str, str] = {}
    for i, layer in enumerate(layers(function)):
        for name, value in _captured(layer).items():
            if _is_fixed(value, layer):
                found[f"{i}.{name}"] = identify(value, max(depth - 1, 0))
    return found


def _captured(layer: Any) -> dict[str, Any]:
    if isinstance(layer, functools.partial):
        return {str(i): value for i, value in enumerate(layer.args)} | dict(layer.keywords)
    owner = getattr(layer, "__self__", None)
    own: dict[str, Any] = {}
    if owner is not None and not inspect.isclass(owner) and not inspect.ismodule(owner):
        own = _attributes(owner)
    elif not inspect.isroutine(layer) and not inspect.isclass(layer):
        own = _attributes(layer)
    plain = getattr(layer, "__func__", layer)
    if not inspect.isfunction(plain):
        return own
    try:
        outer = inspect.getclosurevars(plain)
    except ValueError:  # a variable of the closure has no value yet
        return own
    assigned = _assigned(plain)
    both = {**outer.globals, **outer.nonlocals}
    return own | {name: value for name, value in both.items() if name not in assigned}


def _assigned(function: Callable[..., Any]) -> set[str]:
    """Return the outer variables that a function changes itself, such as a counter of calls."""
    return {
        step.argval
        for step in dis.get_instructions(function)
        if step.opname in ("STORE_GLOBAL", "STORE_DEREF")
    }


def _is_fixed(value: Any, layer: Any) -> bool:
    if isinstance(value, (tuple, torch.Size)):
        return all(_is_fixed(each, layer) for each in value)
    if inspect.isfunction(value):
        return value is not layer and value.__module__ == getattr(layer, "__module__", None)
    return isinstance(value, _PLAIN) or array_text(value) is not None


def _attributes(owner: Any) -> dict[str, Any]:
    """Return the public attributes of an object; of a network, those that it does not train."""
    try:
        own = vars(owner)
    except TypeError:
        return {}
    return {n: v for n, v in own.items() if not n.startswith("_") and n != "training"}


def array_text(value: Any) -> str | None:
    """Identify an array or tensor by its values; None for other objects, and parameters."""
    if isinstance(value, Tensor):
        usable = value.layout == torch.strided and not value.is_meta and not value.is_nested
        trained = isinstance(value, nn.Parameter)
        return fingerprint([value]) if usable and not trained else None
    if type(value).__name__ in ("Series", "Index", "DataArray"):  # of pandas and xarray
        value = np.asarray(value)
    if not isinstance(value, (np.ndarray, np.generic)):
        return None
    array = np.ascontiguousarray(value)
    kind = f"{array.dtype}{array.shape}"
    if array.dtype.hasobject:
        return f"{kind}{hashlib.sha256(repr(array.tolist()).encode()).hexdigest()[:16]}"
    return f"{kind}{hashlib.sha256(array.tobytes()).hexdigest()[:16]}"
