"""Parse the settings of a method from the command line."""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from typing import Any

from probdl.command.catalogue import find_method
from probdl.command.locate import locate
from probdl.errors import SettingError
from probdl.util.suggestions import suggest

__all__ = ["parse", "parse_labels"]


def parse(name: str, settings: Sequence[str]) -> dict[str, Any]:
    """Parse the settings of a method, each of the form ``name=value``.

    A value is a JSON value or a Python literal; ``file.py:name`` is imported, and anything else is
    a string.

    Raises:
        SettingError: the method or the setting does not exist.

    >>> parse("nuts", ["draws=2000", "mass_matrix=dense"])
    {'draws': 2000, 'mass_matrix': 'dense'}
    """
    known = find_method(name).settings
    given = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise SettingError(f"--set {setting}: write NAME=VALUE, such as draws=2000.")
        if key not in known:
            raise SettingError(f"{name} has no setting {key!r}; {suggest(key, known)}")
        given[key] = text
    return {key: _value(text) for key, text in given.items()}


def parse_labels(option: str, given: Sequence[str]) -> dict[str, list[Any]]:
    """Parse options of the form ``name=a,b,c``; integers become integers.

    Raises:
        SettingError: there is no name, or no label.

    >>> parse_labels("coords", ["year=2001,2002"])
    {'year': [2001, 2002]}
    """
    found: dict[str, list[Any]] = {}
    for text in given:
        name, equals, labels = text.partition("=")
        if not (name and equals and labels):
            raise SettingError(f"--{option} {text}: write NAME=A,B, such as firm=acme,apex.")
        parts = [label.strip() for label in labels.split(",")]
        whole = option == "coords" and all(p.lstrip("-").isdecimal() for p in parts)
        found[name] = [int(p) for p in parts] if whole else parts
    return found


def _value(text: str) -> Any:
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
    return locate(text) if ".py:" in text else text
