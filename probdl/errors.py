"""The errors that probdl raises: what is wrong, where, and what to try, in one message."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings

__all__ = [
    "DataError",
    "FindingWarning",
    "ModelError",
    "ProbdlError",
    "SettingError",
    "TimeLimitError",
    "warn",
]

# The files that stand between the user's call and what warns of it: ours, and our decorators'.
_BETWEEN = (os.path.dirname(__file__), contextlib.__file__)


class ProbdlError(Exception):
    """The base of every error that probdl raises on purpose.

    Each subclass derives from the built-in type that fits as well, so that
    ``except ValueError`` keeps working.

    >>> issubclass(SettingError, ProbdlError) and issubclass(SettingError, ValueError)
    True
    """


class ModelError(ProbdlError, ValueError):
    """The model cannot be run on these arguments, or not fitted by this method."""


class DataError(ProbdlError, ValueError):
    """The data cannot be what the model describes: not finite, or outside the support."""


class SettingError(ProbdlError, ValueError):
    """A method or one of its settings does not exist or is out of range."""


class TimeLimitError(ProbdlError, TimeoutError):
    """The time limit of a fit passed before there was anything to return."""


class FindingWarning(UserWarning):
    """The warning in which ``infer`` reports findings; ``fit.diagnose()`` has them in full."""


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line of the user's code that called into the package."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_back.f_code.co_filename.startswith(_BETWEEN):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level + 1)
