"""Checks of settings, for methods and functions alike, with one form of message. It needs no torch.

>>> check_int("NUTS", draws=(0, 1))
Traceback (most recent call last):
probdl.errors.SettingError: NUTS(draws=0): draws must be an integer of at least 1.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Collection
from typing import Any

from probdl.errors import SettingError
from probdl.util.suggestions import did_you_mean

__all__ = ["check_choice", "check_int", "check_real", "is_int", "is_real", "setting_error"]


def setting_error(owner: str, setting: str, value: Any, rule: str) -> SettingError:
    """Return a SettingError with the message ``owner(setting=value): setting rule``.

    Args:
        owner: the method or function that the setting belongs to.
        setting: its name.
        value: its value.
        rule: what it must be, as in "must be positive".
    """
    end = "" if rule.endswith("?") else "."
    return SettingError(f"{owner}({setting}={value!r}): {setting} {rule}{end}")


def is_int(value: Any) -> bool:
    """Return whether a value is an integer, from Python or NumPy, and not a boolean."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_real(value: Any) -> bool:
    """Return whether a value is a real number, from Python or NumPy, and not a boolean."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def check_int(owner: str, **settings: tuple[Any, int]) -> None:
    """Check that settings are integers, given each with its smallest allowed value."""
    for setting, (value, low) in settings.items():
        if not is_int(value) or value < low:
            raise setting_error(owner, setting, value, f"must be an integer of at least {low}")


def check_real(owner: str, **settings: tuple[Any, float, float]) -> None:
    """Check that settings are numbers, given each with its two bounds, both excluded."""
    for setting, (value, low, high) in settings.items():
        if not is_real(value) or not low < float(value) < high:
            bounds = f"above {low}" + (f" and below {high}" if math.isfinite(high) else "")
            raise setting_error(owner, setting, value, f"must be a number {bounds}")


def check_choice(owner: str, **settings: tuple[Any, Collection[str]]) -> None:
    """Check that settings are one of some words, given each with these words."""
    for setting, (value, words) in settings.items():
        if value not in tuple(words):
            rule = f"must be one of {', '.join(map(repr, words))}"
            hint = did_you_mean(str(value), words, before="; ")
            raise setting_error(owner, setting, value, rule + hint)
