"""Methods made from words: their names and settings, as they are typed."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import json
from collections.abc import Collection, Sequence
from typing import Any

from probdl.command.locate import locate
from probdl.errors import SettingError
from probdl.methods import METHODS, Method

__all__ = ["defaults", "make_method", "method_class", "near"]


def method_class(name: str) -> type[Method]:
    """Return the method of that name, or raise SettingError with the names there are."""
    if name.lower() not in METHODS:
        raise SettingError(f"there is no method {name!r}; {near(name.lower(), sorted(METHODS))}")
    return METHODS[name.lower()]


def make_method(name: str, settings: Sequence[str]) -> Method:
    """Make a method with settings of the form ``name=value``.

    Values are read as JSON or as Python writes them; ``file.py:name`` is that object, and
    anything else a word.

    Raises:
        SettingError: there is no such method or setting, or the method refuses a value.

    >>> make_method("nuts", ["draws=2000", "mass_matrix=dense"])
    NUTS(draws=2000, mass_matrix='dense')
    """
    cls = method_class(name)
    known = defaults(cls)
    given = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise SettingError(f"--set {setting}: write NAME=VALUE, such as draws=2000.")
        if key not in known:
            raise SettingError(f"{name} has no setting {key!r}; {near(key, known)}")
        given[key] = _value(text)
    return cls(**given)


def _value(text: str) -> Any:
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(text)
        except (ValueError, SyntaxError):
            continue
    return locate(text) if ".py:" in text else text


def defaults(cls: type[Method]) -> dict[str, Any]:
    """Return the settings of a method with their defaults."""
    return {
        f.name: None if f.default is dataclasses.MISSING else f.default
        for f in dataclasses.fields(cls)
    }


def near(word: str, words: Collection[str]) -> str:
    """Name the nearest of some words, if one is near, and all of them."""
    close = difflib.get_close_matches(word, words, 1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}({', '.join(words)})"
