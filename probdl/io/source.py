"""Where the source of a model is, and a checksum of it."""

from __future__ import annotations

import functools
import hashlib
import inspect
from pathlib import Path
from typing import Any

__all__ = ["source_of"]

UNWRAP_MAX = 20


def source_of(model: Any) -> dict[str, Any]:
    """Return the name and the file of a model, and a checksum of its source.

    Of a function in wrappers (``functools.partial``, Pyro's handlers, decorators) they are those of
    the innermost function; of an instance or its method, those of the class.

    Returns:
        ``qualname`` with the module, ``object`` without, ``file``, ``source_sha256``, and
        ``whole``: whether the object is the whole model.
    """
    inner = _unwrapped(model)
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
        "whole": model is inner and is_own and owner is inner,
    }


def _unwrapped(model: Any) -> Any:
    for _ in range(UNWRAP_MAX):
        inside = getattr(model, "__wrapped__", None)
        if inside is None and isinstance(model, functools.partial):
            inside = model.func
        if not callable(inside):
            return model
        model = inside
    return model
