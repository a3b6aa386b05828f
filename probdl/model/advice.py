"""Explanations of exceptions that a user's model raises: where, on which data, what to try."""

from __future__ import annotations

import dis
import os
import sysconfig
import textwrap
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from torch import Tensor

from probdl.errors import CheckError, ModelError, ProbdlError, SettingError

__all__ = ["explain_failure", "explained", "is_library", "where", "without_trace_shapes"]

_RAISE = dis.opmap["RAISE_VARARGS"]
_PACKAGE = os.path.dirname(os.path.dirname(__file__))
_LIBRARIES = (
    os.path.dirname(torch.__file__),
    os.path.dirname(pyro.__file__),
    sysconfig.get_path("stdlib"),
)
_INSTALLED = (sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))
_MAX_CHARACTERS = 300  # of the shapes and of the exception's text, each

_DEFAULT_ADVICE = (
    "Check that the model expects these shapes and types, and that the size of each plate matches "
    "the sites inside it."
)
_ADVICE = {  # by a part of the message from Pyro or torch
    "Multiple sample sites named": "Each site needs a unique name, which no plate has: f'y{i}' in "
    "a loop, or better one site in a pyro.plate of another name.",
    "size cannot be zero": "A plate needs at least one element. The data are empty, or the plate "
    "is of what is missing, and nothing is missing here: put such a plate under an `if`.",
    "Shape mismatch inside plate": "The size of the plate and the shape of the site inside it "
    "differ. If one observation is a vector, use .to_event(1).",
    "Can't call numpy() on Tensor that requires grad": "NumPy does not compute gradients: use the "
    "torch function of the same name on the values of sites.",
    "modified by an inplace operation": "The model writes to a tensor whose earlier values its "
    "gradient needs, as in x[t] = a * x[t - 1]: append the values to a list, and use "
    "torch.stack(values).",
}
# A matrix product of integers and other numbers.
_ADVICE |= dict.fromkeys(
    (
        *("Double, Long", "Long, Double", "Double and Long", "Long and Double", "Long, and Double"),
        *("Long but found Double", "Double but found Long", "long long != double"),
        *("double != long long", "int64_t != double", "double != int64_t"),
    ),
    "An integer tensor meets a floating-point one: convert it in the model, as in x.double() @ b.",
)
_UNCONVERTED_ADVICE = (
    " Mixed lists, objects and iterators are passed to the model unconverted: use np.asarray() or "
    ".to_numpy() to pass an array, which becomes a tensor."
)


def explain_failure(
    error: Exception,
    model_name: str,
    arguments: Mapping[str, Any],
    tensors: Sequence[tuple[str, Tensor]],
) -> ModelError:
    """Return an error that says where a model failed, on which arguments, and what to try.

    Args:
        error: the exception from inside the model.
        model_name: the name of the model.
        arguments: its arguments by name.
        tensors: the tensors among them, each with a name.
    """
    shapes = ", ".join(
        f"{name} {tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}" for name, t in tensors
    )
    unconverted = [
        f"{name} a {type(value).__name__}"
        for name, value in arguments.items()
        if not isinstance(value, (Tensor, type(None), bool, str, int, float, dict, tuple))
    ]
    inputs = ", ".join(filter(None, [textwrap.shorten(shapes, _MAX_CHARACTERS), *unconverted]))
    reason = textwrap.shorten(without_trace_shapes(error), _MAX_CHARACTERS)
    raised = _is_raised_by_user(error)
    default = "The model raises this error itself." if raised else _DEFAULT_ADVICE
    advice = next((text for sign, text in _ADVICE.items() if sign in reason), default)
    if unconverted:
        advice += _UNCONVERTED_ADVICE
    return (CheckError if raised else ModelError)(
        f"The model '{model_name}' failed{where(error)}: {type(error).__name__}: {reason}. "
        f"Its inputs were: {inputs or 'none'}. {advice}"
    )


def _is_raised_by_user(error: Exception) -> bool:
    """Return whether a statement of the user's code raised an error, and not what it calls."""
    at: Any = error.__traceback__
    if at is None:
        return False
    while at.tb_next is not None:
        at = at.tb_next
    code = at.tb_frame.f_code
    return not is_library(code.co_filename) and code.co_code[at.tb_lasti] == _RAISE


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Report any error as one of the arguments of a call, in a context or as a decorator.

    Args:
        what: what was called, such as ``"MLP()"`` or ``"fn"``.

    Raises:
        SettingError: an error of another type, with its message and the line of the user's code.

    >>> with explained("fn"):
    ...     1 / 0
    Traceback (most recent call last):
    probdl.errors.SettingError: fn failed at ...: ZeroDivisionError: division by zero.
    """
    try:
        yield
    except ProbdlError:
        raise
    except Exception as error:
        reason = textwrap.shorten(without_trace_shapes(error), _MAX_CHARACTERS).removesuffix(".")
        raise SettingError(
            f"{what} failed{where(error)}: {type(error).__name__}: {reason}."
        ) from error


def without_trace_shapes(error: Exception) -> str:
    """Return the message of an exception without the table of shapes that Pyro appends."""
    return str(error).split("Trace Shapes:")[0].strip()


def where(error: BaseException) -> str:
    """Return the line of the user's code that raised an exception, as part of a sentence."""
    frames = [
        frame
        for frame in reversed(traceback.extract_tb(error.__traceback__))
        if not is_library(frame.filename)
    ]
    # A user's model may be installed, too, but an error in pandas is not an error of pandas.
    frames.sort(key=lambda frame: frame.filename.startswith(_INSTALLED))
    if frames:
        frame = frames[0]
        if frame.filename.startswith("<") and not frame.line:  # a function sent to a worker
            return f" in {frame.name}(), line {frame.lineno} of its file"
        return f" at {os.path.basename(frame.filename)}:{frame.lineno}, `{frame.line}`"
    return ""


def is_library(filename: str) -> bool:
    """Return whether a file is of this package, of torch, Pyro or Python, and not a user's."""
    if filename.startswith(os.path.join(_PACKAGE, "models")):  # ready programs are users' code
        return False
    return filename.startswith((_PACKAGE, *_LIBRARIES))
