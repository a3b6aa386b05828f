"""Where the source of a model is, and checksums of it and of the values that it captures."""

from __future__ import annotations

import hashlib
import inspect
from pathlib import Path
from typing import Any

from probdl.io.identity import captured_values, layers, source_digest

__all__ = ["source_of"]


def source_of(model: Any) -> dict[str, Any]:
    """Return the name and the file of a model, and a checksum of its source.

    Of a function in wrappers (``functools.partial``, Pyro's handlers, decorators) they are those of
    the innermost function; of an instance or its method, those of the class.

    Returns:
        ``qualname`` with the module, ``object`` without, ``file``, ``source_sha256``,
        ``captured_sha256`` of what the model takes from its surroundings, see `captured_values`,
        and ``whole``: whether the object is the whole model.
    """
    *_, inner = layers(model)
    owner = getattr(inner, "__self__", inner)
    is_own = inspect.isfunction(owner) or inspect.isclass(owner)
    what = owner if is_own else type(owner)
    try:
        file = inspect.getsourcefile(what)
    except (OSError, TypeError):  # defined in a shell, or generated
        file = None
    captured = ";".join(f"{k}={v}" for k, v in sorted(captured_values(model).items()))
    return {
        "qualname": f"{what.__module__}.{what.__qualname__}",
        "object": what.__qualname__,
        "file": str(Path(file).resolve()) if file and Path(file).exists() else None,
        "source_sha256": source_digest(what),
        "captured_sha256": hashlib.sha256(captured.encode()).hexdigest(),
        "whole": model is inner and is_own and owner is inner,
    }
