"""The methods with their settings and docstrings, parsed from their source files.

Parsing instead of importing keeps commands fast that only list or check names: importing the
methods would import torch.
"""

from __future__ import annotations

import ast
import functools
import inspect
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from probdl.errors import SettingError
from probdl.util.suggestions import suggest

__all__ = ["Entry", "catalogue", "find_method"]

_METHODS_FOLDER = Path(__file__).parent.parent / "methods"


@dataclass(frozen=True)
class Entry:
    """The docstring of a method, and its settings with their defaults."""

    doc: str
    settings: dict[str, Any]


@functools.cache
def catalogue() -> dict[str, Entry]:
    """Return the methods by name.

    >>> catalogue()["nuts"].settings["draws"]
    1000
    """
    return {
        name: Entry(inspect.cleandoc(ast.get_docstring(cls) or ""), dict(_settings(cls)))
        for path in sorted(_METHODS_FOLDER.rglob("*.py"))
        for cls in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(cls, ast.ClassDef) and (name := _method_name(cls))
    }


def _method_name(cls: ast.ClassDef) -> str:
    """Return the name under which a class is registered as a method, or '' if it is not."""
    names = [k.value for k in cls.keywords if k.arg == "name"]
    return str(ast.literal_eval(names[0])) if names else ""


def _settings(cls: ast.ClassDef) -> Iterator[tuple[str, Any]]:
    for field in cls.body:
        constant = isinstance(field, ast.AnnAssign) and "ClassVar" in ast.unparse(field.annotation)
        if isinstance(field, ast.AnnAssign) and field.value is not None and not constant:
            yield ast.unparse(field.target), _default(field.value)


def _default(node: ast.expr) -> Any:
    """Return a default value, or its source text if it is not a plain constant."""
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "field":
        node = next(k.value for k in node.keywords if k.arg == "default")
    text = ast.unparse(node)
    try:
        return eval(text, {"__builtins__": {}, "math": math})
    except NameError:
        return text


def find_method(name: str) -> Entry:
    """Return the entry of a method.

    Raises:
        SettingError: there is no method of this name.
    """
    known = catalogue()
    if name.lower() not in known:
        raise SettingError(f"There is no method {name!r}; {suggest(name.lower(), sorted(known))}")
    return known[name.lower()]
