"""Checks of settings, for methods and functions alike, with one form of message. It needs no torch.

>>> check_int("NUTS", draws=(0, 1))
Traceback (most recent call last):
probdl.errors.SettingError: NUTS(draws=0): draws must be an integer of at least 1.
"""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Collection
from typing import Any

from probdl.errors import SettingError
from probdl.util.suggestions import did_you_mean

__all__ = [
    "INT_MAX",
    "check_choice",
    "check_flag",
    "check_function",
    "check_int",
    "check_limit",
    "check_path",
    "check_progress",
    "check_real",
    "check_seed",
    "check_workers",
    "is_int",
    "is_path",
    "is_real",
    "plain",
    "setting_error",
]

SHOWN_MAX = 100  # characters of a value in a message
INT_MAX = 10**9  # more steps, draws or starts than this are a mistake, and take years
SEED_MAX = 2**63 - 1  # of torch's generators


def setting_error(owner: str, setting: str, value: Any, rule: str) -> SettingError:
    """Return a SettingError with the message ``owner(setting=value): setting rule``.

    Args:
        owner: the method or function that the setting belongs to.
        setting: its name.
        value: its value.
        rule: what it must be, as in "must be positive".
    """
    end = "" if rule.endswith("?") else "."
    return SettingError(f"{owner}({setting}={_shown(value)}): {setting} {rule}{end}")


def _shown(value: Any) -> str:
    """Return a value as text, in one short line."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # objects of the user, and integers of more than 4300 digits
        text = f"<{type(value).__name__}>"
    return text if len(text) <= SHOWN_MAX else f"{text[:SHOWN_MAX]}…"


def is_int(value: Any) -> bool:
    """Return whether a value is an integer, from Python or NumPy, and not a boolean."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_real(value: Any) -> bool:
    """Return whether a value is a real number, from Python or NumPy, and not a boolean."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def is_path(value: Any) -> bool:
    """Return whether a value is a text that the file system takes as a path."""
    if not isinstance(value, str) or not value or "\0" in value:
        return False
    try:
        os.fsencode(value)
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True


def plain(value: Any) -> Any:
    """Return an integer or a real number of any type, such as NumPy's, as Python's own."""
    if is_int(value):
        return int(value)
    return float(value) if is_real(value) else value


def check_int(owner: str, high: int = INT_MAX, **settings: tuple[Any, int]) -> None:
    """Check that settings are integers, given each with its smallest allowed value.

    Args:
        owner: the method or function.
        high: the largest allowed value of all of them.
        settings: values and smallest values by name.
    """
    for setting, (value, low) in settings.items():
        if not is_int(value) or value < low:
            raise setting_error(owner, setting, value, f"must be an integer of at least {low}")
        if value > high:
            raise setting_error(owner, setting, value, f"must be at most {high:,}")


def check_real(owner: str, **settings: tuple[Any, float, float]) -> None:
    """Check that settings are numbers, given each with its two bounds, both excluded."""
    for setting, (value, low, high) in settings.items():
        try:
            inside = is_real(value) and low < float(value) < high
        except OverflowError:  # an integer that no float can hold
            inside = False
        if not inside:
            bounds = f"above {low}" + (f" and below {high}" if math.isfinite(high) else "")
            raise setting_error(owner, setting, value, f"must be a number {bounds}")


def check_seed(owner: str, seed: Any) -> None:
    """Check that a seed is an integer from 0 to 2**63 - 1."""
    if not is_int(seed) or not 0 <= seed <= SEED_MAX:
        rule = "must be an integer of at least 0 and below 2**63"
        raise setting_error(owner, "seed", seed, rule)


def check_workers(owner: str, workers: Any, executor: Any = None) -> None:
    """Check that a number of processes is an integer from 1 to 10,000, or None, or an executor."""
    if workers is not None:
        check_int(owner, high=10_000, workers=(workers, 1))
    if executor is None:
        return
    if isinstance(executor, type) or not callable(getattr(executor, "submit", None)):
        raise setting_error(
            owner, "executor", executor, "must be a concurrent.futures.Executor or a Dask Client"
        )
    if workers is not None:
        raise setting_error(owner, "workers", workers, "cannot be combined with executor=")


def check_progress(owner: str, progress: Any) -> None:
    """Check that progress is True, False or None."""
    if not (progress is None or progress is True or progress is False):
        raise setting_error(owner, "progress", progress, "must be True, False or None")


def check_limit(time_limit: Any) -> None:
    """Check that a time limit is a positive number of seconds, or None."""
    if time_limit is not None and not (is_real(time_limit) and time_limit > 0):
        raise SettingError(
            f"time_limit={time_limit!r}: time_limit must be a number of seconds above 0, or None."
        )


def check_path(owner: str, **settings: Any) -> None:
    """Check that settings are paths, or None."""
    for setting, value in settings.items():
        if value is None:
            continue
        if not is_path(os.fspath(value) if isinstance(value, (str, os.PathLike)) else None):
            raise setting_error(owner, setting, value, "must be a path, such as 'runs/first'")


def check_flag(owner: str, **settings: Any) -> None:
    """Check that settings are True or False."""
    for setting, value in settings.items():
        if not (value is True or value is False):
            raise setting_error(owner, setting, value, "must be True or False")


def check_function(owner: str, **settings: Any) -> None:
    """Check that settings can be called."""
    for setting, value in settings.items():
        if not callable(value):
            raise setting_error(owner, setting, value, "must be a function")


def check_choice(owner: str, **settings: tuple[Any, Collection[str]]) -> None:
    """Check that settings are one of some words, given each with these words."""
    for setting, (value, words) in settings.items():
        if not isinstance(value, str) or value not in words:
            rule = f"must be one of {', '.join(map(repr, words))}"
            hint = did_you_mean(str(value), words, before="; ")
            raise setting_error(owner, setting, value, rule + hint)
