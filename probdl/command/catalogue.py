"""The methods, their settings and what they say of themselves, read off their source.

A command that only lists or checks names thereby answers at once: to import the methods would
import torch.
"""

from __future__ import annotations

import ast
import difflib
import functools
import inspect
import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from probdl.errors import SettingError

__all__ = ["Entry", "catalogue", "find", "near"]

_METHODS = Path(__file__).parent.parent / "methods"


@dataclass(frozen=True)
class Entry:
    """A method: its documentation, and its settings with their defaults."""

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
        for path in sorted(_METHODS.rglob("*.py"))
        for cls in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(cls, ast.ClassDef) and (name := _name(cls))
    }


def _name(cls: ast.ClassDef) -> str:
    """Return the name under which a class is a method; none is ''."""
    names = [k.value for k in cls.keywords if k.arg == "name"]
    return str(ast.literal_eval(names[0])) if names else ""


def _settings(cls: ast.ClassDef) -> Iterator[tuple[str, Any]]:
    for field in cls.body:
        constant = isinstance(field, ast.AnnAssign) and "ClassVar" in ast.unparse(field.annotation)
        if isinstance(field, ast.AnnAssign) and field.value is not None and not constant:
            yield ast.unparse(field.target), _value(field.value)


def _value(node: ast.expr) -> Any:
    """Return the value of a default: a number or a word; of anything else, how it is written."""
    text = ast.unparse(node)
    try:
        return eval(text, {"__builtins__": {}, "math": math})
    except NameError:
        return text


def find(name: str) -> Entry:
    """Return the method of that name.

    Raises:
        SettingError: there is none.
    """
    known = catalogue()
    if name.lower() not in known:
        raise SettingError(f"there is no method {name!r}; {near(name.lower(), sorted(known))}")
    return known[name.lower()]


def near(word: str, words: Collection[str]) -> str:
    """Name the nearest of some words, if one is near, and all of them."""
    close = difflib.get_close_matches(word, words, 1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}({', '.join(words)})"
