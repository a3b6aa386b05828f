"""Bind the contents of data files to the arguments of a model, by name."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from probdl.errors import DataError
from probdl.model.callables import runnable, signature
from probdl.util.suggestions import did_you_mean, nearest

__all__ = ["bind", "misnamed", "unused_names"]

Values = dict[str, Any]

TYPO_SIMILARITY = 0.75  # of a column and an argument with the same first letter
_NUMBERED_COLUMN = re.compile(r"(.+?)(?:\[(\d{1,9})\]|_(\d{1,9}))")


def unused_names(model: Callable[..., Any], names: Collection[str]) -> list[str]:
    """Return the names of data that a model has no argument for.

    A name that is almost that of an argument without data is no such name: it is a mistake, which
    `bind` reports.

    >>> def model(x, y=None): ...
    >>> unused_names(model, ["x_1", "x_2", "id", "Y"])
    ['id']
    """
    return [name for name, is_almost in _without_argument(model, names) if not is_almost]


def misnamed(model: Callable[..., Any], names: Collection[str]) -> list[str]:
    """Return the names of data that are almost those of arguments without data.

    >>> def model(x, y=None): ...
    >>> misnamed(model, ["x_1", "x_2", "id", "Y"])
    ['Y']
    """
    return [name for name, is_almost in _without_argument(model, names) if is_almost]


def _without_argument(
    model: Callable[..., Any], names: Collection[str]
) -> Iterator[tuple[str, bool]]:
    """Yield each name that no argument has, and whether it is almost that of one without data."""
    parameters = signature(runnable(model)).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    wanted = [n for n, p in parameters.items() if p.kind is not p.VAR_POSITIONAL]
    numbered = _numbered(names, wanted)
    used = {*wanted, *(column for columns in numbered.values() for column in columns)}
    free = [n for n in wanted if n not in names and n not in numbered]
    for name in names:
        if name not in used:
            yield name, any(_is_almost(name, argument) for argument in free)


def _is_almost(name: str, argument: str) -> bool:
    """Return whether a column may be meant for an argument: ``Y``, ``y_obs``, ``y.1`` or ``y2``."""
    words = re.split(r"[\W_]+", name.lower())
    numbered = re.fullmatch(re.escape(argument.lower()) + r"\W*\d+.*", name.lower())
    alike = name.lower()[:1] == argument.lower()[:1] and nearest(
        name.lower(), [argument.lower()], similarity=TYPO_SIMILARITY
    )
    typo = len(name) > 2 and alike
    return argument.lower() in words or numbered is not None or bool(typo)


def bind(
    model: Callable[..., Any], values: Mapping[str, Any], *, optional: Collection[str] = ()
) -> inspect.BoundArguments:
    """Bind values to the arguments of a model by name.

    Arguments with a default may be missing. Missing arguments in ``optional`` become None. If an
    argument ``x`` is missing but there are columns ``x[0]``, ``x[1]``, … or ``x_0``, ``x_1``, …
    (numbered from 0 or 1 without gaps), they are joined into a matrix.

    Args:
        model: a callable or an ``nn.Module``.
        values: the values by name.
        optional: arguments without a default that may be missing too.

    Raises:
        DataError: an argument has no value, or a value matches no argument.

    >>> def model(x, y=None): ...
    >>> bind(model, {"x_0": np.zeros(3), "x_1": np.ones(3)}).kwargs
    {}
    >>> bind(model, {"x_0": np.zeros(3), "x_1": np.ones(3)}).args[0].shape
    (3, 2)
    """
    model_signature = signature(runnable(model))
    parameters = model_signature.parameters
    kinds = inspect.Parameter
    names = {n: p for n, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    given = _with_matrices(dict(values), names)
    missing = [
        n for n, p in names.items() if n not in given and p.default is p.empty and n not in optional
    ]
    takes_any = any(p.kind is kinds.VAR_KEYWORD for p in parameters.values())
    extra = [] if takes_any else [n for n in given if n not in names]
    if missing or extra:
        problems = []
        if missing:
            problems.append(f"The data do not contain {_quoted(missing)}.")
        if extra:
            hint = did_you_mean(extra[0], missing or names, before=" (", after=")")
            problems.append(f"The model has no argument {_quoted(extra)}{hint}.")
            if hint:
                problems.append(f"Rename it, or leave it out (in the shell: --drop {extra[0]}).")
        raise DataError(
            f"{' '.join(problems)} The model's arguments: {', '.join(names) or 'none'}. "
            f"Names in the data: {', '.join(values) or 'none'}."
        )
    for name in optional:
        if name in names and name not in given and names[name].default is kinds.empty:
            given[name] = None
    named = {n: v for n, v in given.items() if n in names}
    bound = model_signature.bind_partial()
    bound.arguments.update({n: named[n] for n in names if n in named})
    rest = {n: v for n, v in given.items() if n not in names}
    if rest:
        bound.arguments[next(n for n, p in parameters.items() if p.kind is kinds.VAR_KEYWORD)] = (
            rest
        )
    return bound


def _with_matrices(values: Values, wanted: Iterable[str]) -> Values:
    """Join numbered columns into matrices, for arguments without a column of the same name."""
    for name, columns in _numbered(values, wanted).items():
        shapes = {np.shape(values[column]) for column in columns}
        if len(shapes) > 1 or len(next(iter(shapes))) != 1:
            raise DataError(
                f"The columns {', '.join(columns)} cannot be joined into {name!r}: each must be a "
                "list of numbers, all of the same length."
            )
        values[name] = np.column_stack([values.pop(column) for column in columns])
    return values


def _numbered(names: Collection[str], wanted: Iterable[str]) -> dict[str, list[str]]:
    """Return the columns ``x_0``, ``x_1``, … of arguments ``x``, in the order of their numbers."""
    found = {}
    wanted = list(wanted)
    for name in wanted:
        if name in names:
            continue
        columns: dict[int, str] = {}
        count = 0
        for column in names:
            match = _NUMBERED_COLUMN.fullmatch(column)
            if match and match[1] == name and column not in wanted:
                columns[int(match[2] or match[3])] = column
                count += 1
        if len(columns) < count:  # x_1 and x[1], for example
            continue
        first = min(columns, default=0)
        if columns and first in (0, 1) and sorted(columns) == [*range(first, first + len(columns))]:
            found[name] = [columns[i] for i in sorted(columns)]
    return found


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))
