"""Methods made from words: their names and settings, as they are typed."""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from typing import Any

from probdl.command.catalogue import find, near
from probdl.command.locate import locate
from probdl.errors import SettingError

__all__ = ["parse"]


def parse(name: str, settings: Sequence[str]) -> dict[str, Any]:
    """Read the settings of a method, each of the form ``name=value``.

    Values are read as JSON or as Python writes them; ``file.py:name`` is that object, and
    anything else a word.

    Raises:
        SettingError: there is no such method or setting.

    >>> parse("nuts", ["draws=2000", "mass_matrix=dense"])
    {'draws': 2000, 'mass_matrix': 'dense'}
    """
    known = find(name).settings
    given = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise SettingError(f"--set {setting}: write NAME=VALUE, such as draws=2000.")
        if key not in known:
            raise SettingError(f"{name} has no setting {key!r}; {near(key, known)}")
        given[key] = text
    return {key: _value(text) for key, text in given.items()}


def _value(text: str) -> Any:
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError):
            continue
    return locate(text) if ".py:" in text else text
