"""The exceptions and warnings of probdl. A message says what is wrong, where, and what to do."""

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

# Files of frames between the user's call and a warning: this package and its decorators.
_INTERNAL_FILES = (os.path.dirname(__file__), contextlib.__file__)


class ProbdlError(Exception):
    """The base class of all exceptions that probdl raises.

    Each subclass also derives from a built-in exception, so that ``except ValueError`` works too.

    >>> issubclass(SettingError, ProbdlError) and issubclass(SettingError, ValueError)
    True
    """


class ModelError(ProbdlError, ValueError):
    """The model does not run on these arguments, or the method cannot fit it."""


class CheckError(ModelError):
    """A statement of the model raised an error, as for values that it does not allow."""


class CapabilityError(ModelError, AttributeError):
    """The fit is by a method whose fits cannot do this."""


class DataError(ProbdlError, ValueError):
    """The data are invalid for the model: not finite, or outside the support."""


class SettingError(ProbdlError, ValueError):
    """A method or a setting does not exist, or a setting is out of range."""


class TimeLimitError(ProbdlError, TimeoutError):
    """The time limit passed before there was any result to return."""


class FindingWarning(UserWarning):
    """The warning by which ``infer`` reports findings; ``fit.diagnose()`` returns them."""


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Issue a warning that points to the line of the user's code that called the package."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_back.f_code.co_filename.startswith(_INTERNAL_FILES):
        frame, level = frame.f_back, level + 1
    user = frame.f_back
    if not issubclass(category, FindingWarning) or user is None:
        warnings.warn(message, category, stacklevel=level + 1)
        return
    # Python shows the line of code below a warning, but finds none for a file in brackets.
    file = f"<{os.path.basename(user.f_code.co_filename)}>"
    registry = user.f_globals.setdefault("__warningregistry__", {})
    module = user.f_globals.get("__name__")
    warnings.warn_explicit(message, category, file, user.f_lineno, module, registry)
