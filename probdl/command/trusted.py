"""Find the model that a fit's folder names, for a user who trusts the folder.

A folder can name any file and any function. So its file is imported only if it contains, at the
recorded name, a function or class with the recorded source; and only what this file defines is
used.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from probdl.command.locate import locate_model
from probdl.errors import ModelError
from probdl.io.files import open_plain

__all__ = ["recorded_place", "trusted_model"]

SOURCE_MAX_BYTES = 2**24


def recorded_place(recorded: Mapping[str, Any]) -> str | None:
    """Return the location of a model that an index records, as ``file.py:name``; None if none is.

    Args:
        recorded: the entry ``model`` of the index.
    """
    file, name = recorded.get("file"), recorded.get("qualname")
    if not file or not name or not file.endswith(".py"):
        return None
    parts = name.split(".")
    stem = Path(file).stem
    # The qualified name is module.name, or package.module.name.
    at = parts.index(stem) if stem in parts[:-1] else 0
    names = parts[at + 1 :]
    if not names or not all(part.isidentifier() for part in names):
        return None
    return f"{file}:{'.'.join(names)}"


def trusted_model(recorded: Mapping[str, Any]) -> Callable[..., Any]:
    """Import and return the model that an index records.

    Args:
        recorded: the entry ``model`` of the index.

    Raises:
        ModelError: the location is not recorded, its file is missing, or the file does not contain
            the recorded source.
    """
    place = recorded_place(recorded)
    remedy = "Pass --model file.py:name."
    if place is None:
        raise ModelError(f"The folder does not name a file and a function in it. {remedy}")
    file, _, name = place.rpartition(":")
    wanted = recorded.get("source_sha256")
    try:
        with open_plain(Path(file).resolve(), SOURCE_MAX_BYTES) as opened:
            source = opened.read().decode()
    except FileNotFoundError:
        raise ModelError(f"The model was in {file!r}, which does not exist. {remedy}") from None
    except UnicodeDecodeError:
        raise ModelError(f"{file!r} is not a Python file. {remedy}") from None
    if wanted is None or _digest_in(source, name.split(".")) != wanted:
        raise ModelError(
            f"{file!r} has no {name!r} with the source that was fitted: the model was changed "
            f"since, or the folder is not what it seems. {remedy}"
        )
    model = locate_model(place)
    defined = getattr(model, "__func__", model)
    if Path(inspect.getsourcefile(defined) or "").resolve() != Path(file).resolve():
        raise ModelError(f"{name!r} is not defined in {file!r}, only imported there. {remedy}")
    return model


def _digest_in(source: str, names: list[str]) -> str | None:
    """Return the checksum of the source of a definition, found without running anything."""
    try:
        node: Any = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    for name in names:
        found = [
            child
            for child in getattr(node, "body", ())
            if isinstance(child, (ast.FunctionDef, ast.ClassDef)) and child.name == name
        ]
        if not found:
            return None
        node = found[-1]
    lines = source.splitlines(keepends=True)
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    text = "".join(lines[first - 1 : node.end_lineno])
    return hashlib.sha256((text if text.endswith("\n") else text + "\n").encode()).hexdigest()
