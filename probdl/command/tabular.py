"""Data in files, and which of a model's arguments they are."""

from __future__ import annotations

import difflib
import inspect
import json
import re
import warnings
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probdl.errors import DataError
from probdl.model.program import runnable, signature
from probdl.util.lazy import pandas as pd
from probdl.util.lazy import xarray as xr

__all__ = ["bind", "read", "read_all"]

Values = dict[str, Any]

_NUMBERED = re.compile(r"(.+?)(?:\[(\d+)\]|_(\d+))")
_WHOLE = re.compile(r"\s*[+-]?\d{1,4000}\s*")  # Python converts no more digits than 4300
_ERRORS = (  # of readers, on a file that is none of theirs or that is damaged
    OSError,
    ValueError,
    KeyError,
    TypeError,
    EOFError,
    RecursionError,
    zipfile.BadZipFile,
    zlib.error,
)


def read(path: str | Path, *, drop: Collection[str] = ()) -> Values:
    r"""Read a file of data: what it holds, by name.

    ============  ==============================================================================
    ``.csv``      a table: the first line names the columns, each an array
    ``.json``     an object: lists of numbers become arrays, single numbers and words stay so
    ``.npz``      arrays, as ``numpy.savez`` writes them
    ``.nc``       the variables of a netCDF file
    ============  ==============================================================================

    Args:
        path: the file.
        drop: what to leave out of it.

    Raises:
        DataError: the file cannot be read, a cell is empty, a column holds text, or there is
            nothing of that name to leave out.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "data.csv")
    >>> _ = path.write_text("x,y\n1.5,1\n2.5,0\n")
    >>> read(path)
    {'x': array([1.5, 2.5]), 'y': array([1, 0])}
    """
    return read_all([path], drop=drop)


def read_all(
    paths: Iterable[str | Path], *, drop: Collection[str] = (), also: Collection[str] = ()
) -> Values:
    """Read several files of data into one.

    Args:
        paths: the files.
        drop: what to leave out; it may be in any of them.
        also: what to read of a netCDF file though it is a coordinate, and no variable.

    Raises:
        DataError: as in `read`; or two files hold something of one name.
    """
    values: Values = {}
    files = [(Path(path), _raw(Path(path), also)) for path in paths]
    for path, held in files:
        kept = {n: v for n, v in held.items() if n not in drop}
        if twice := [name for name in kept if name in values]:
            raise DataError(f"{path} holds {twice[0]!r}, which another file has already.")
        values |= {n: _checked(v, f"{path}: {n!r}") for n, v in kept.items()}
    names = list(dict.fromkeys(name for _, held in files for name in held))
    if files and (unknown := [name for name in drop if name not in names]):
        have = "has" if len(files) == 1 else "have"
        raise DataError(
            f"{' and '.join(str(path) for path, _ in files)} {have} no "
            f"{_quoted(unknown)} to drop, only {', '.join(names) or 'nothing'}."
        )
    return values


def _raw(path: Path, also: Collection[str]) -> Values:
    """Read what a file holds, as it is."""
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: data are read from files that end in {', '.join(_READERS)}.")
    if not path.is_file():
        raise DataError(f"{path}: there is no such file.")
    try:
        return reader(path, also)
    except DataError:
        raise
    except _ERRORS as error:
        raise DataError(f"{path} cannot be read as {path.suffix[1:]}: {error}") from error


def bind(
    model: Callable[..., Any], values: Mapping[str, Any], *, optional: Collection[str] = ()
) -> inspect.BoundArguments:
    """Give values to the arguments of a model by name.

    Arguments with defaults may be left out, and so may those in ``optional``, which become None.
    Where a model has an argument ``x``, and there are columns ``x[0]``, ``x[1]``, … or ``x_0``,
    ``x_1``, … (numbered from 0, none missing) and no ``x``, they are its columns.

    Args:
        model: a callable or an ``nn.Module``.
        values: by name.
        optional: arguments without a default that may be left out all the same.

    Raises:
        DataError: an argument is left without a value, or a value without an argument.

    >>> def model(x, y=None): ...
    >>> bind(model, {"x_0": np.zeros(3), "x_1": np.ones(3)}).kwargs
    {}
    >>> bind(model, {"x_0": np.zeros(3), "x_1": np.ones(3)}).args[0].shape
    (3, 2)
    """
    taken = signature(runnable(model))
    parameters = taken.parameters
    kinds = inspect.Parameter
    names = {n: p for n, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    given = _with_matrices(dict(values), names)
    missing = [
        n for n, p in names.items() if n not in given and p.default is p.empty and n not in optional
    ]
    takes_any = any(p.kind is kinds.VAR_KEYWORD for p in parameters.values())
    extra = [] if takes_any else [n for n in given if n not in names]
    if missing or extra:
        said = []
        if missing:
            said.append(f"nothing in the data is called {_quoted(missing)}")
        if extra:
            near = difflib.get_close_matches(extra[0], missing or names, 1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            said.append(f"the model has no argument {_quoted(extra)}{hint}")
        raise DataError(
            f"{'; '.join(said)}. The model's arguments: {', '.join(names) or 'none'}. "
            f"In the data: {', '.join(values) or 'nothing'}."
        )
    for name in optional:
        if name in names and name not in given and names[name].default is kinds.empty:
            given[name] = None
    named = {n: v for n, v in given.items() if n in names}
    bound = taken.bind_partial()
    bound.arguments.update({n: named[n] for n in names if n in named})
    rest = {n: v for n, v in given.items() if n not in names}
    if rest:
        bound.arguments[next(n for n, p in parameters.items() if p.kind is kinds.VAR_KEYWORD)] = (
            rest
        )
    return bound


def _with_matrices(values: Values, wanted: Iterable[str]) -> Values:
    """Put numbered columns together, for arguments that have no column of their own."""
    for name in wanted:
        if name in values:
            continue
        columns = {}
        for column in values:
            match = _NUMBERED.fullmatch(column)
            if match and match[1] == name and column not in wanted:
                columns[int(match[2] or match[3])] = column
        if columns and sorted(columns) == list(range(len(columns))):
            parts = [values.pop(columns[i]) for i in range(len(columns))]
            values[name] = np.column_stack(parts)
    return values


def _read_csv(path: Path, _also: Collection[str]) -> Values:
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)
        try:
            # False, since pandas takes what the header does not name for labels of the rows.
            table = pd.read_csv(path, index_col=False)
        except pd.errors.ParserWarning:
            raise DataError(
                f"{path} has rows with more cells than its first line has names. Name every "
                "column there; a number with a comma in it needs quotes or a point."
            ) from None
    return {str(name): column for name, column in table.items()}


def _read_json(path: Path, _also: Collection[str]) -> Values:
    values = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise DataError(
            f"{path} holds a {type(values).__name__}; it should be an object of values by name, "
            'such as {"x": [1.0, 2.0], "y": [0, 1]}.'
        )
    return values


def _read_npz(path: Path, _also: Collection[str]) -> Values:
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def _read_netcdf(path: Path, also: Collection[str]) -> Values:
    with xr.open_dataset(path) as dataset:
        names = [*dataset.data_vars, *(name for name in dataset.coords if name in also)]
        return {str(name): dataset[name].to_numpy() for name in names}


_READERS: dict[str, Callable[[Path, Collection[str]], Values]] = {
    ".csv": _read_csv,
    ".json": _read_json,
    ".npz": _read_npz,
    ".nc": _read_netcdf,
}


def _checked(value: Any, what: str) -> Any:
    """Take what torch can hold; a number by itself is a number, not an array."""
    if isinstance(value, pd.Series):
        return _from_column(value, what)
    if isinstance(value, (list, dict)):
        value = _from_json(value, what)
    if not isinstance(value, np.ndarray):
        _refuse_large([value], what)
        return value
    if value.dtype.kind not in "biuf":
        raise DataError(
            f"{what} is of dtype {value.dtype}, and models take numbers. Encode categories as "
            "integers, and leave out text."
        )
    return value if value.ndim else value.item()


def _from_column(column: pd.Series, what: str) -> NDArray[Any]:
    if not len(column):
        raise DataError(f"{what} has no rows: the table has a first line of names and no more.")
    empty = np.flatnonzero(column.isna())
    if len(empty):
        raise DataError(
            f"{what} is empty in row {empty[0] + 1} ({len(empty)} of {len(column)} rows). Fill in "
            "the value, or leave the row out."
        )
    if column.dtype.kind not in "biuf":
        _refuse_large(column, what)
        text = np.flatnonzero(pd.to_numeric(column, errors="coerce").isna())
        row = text[0] if len(text) else 0
        raise DataError(
            f"{what} holds text (row {row + 1}: {column.iloc[row]!r}). Encode categories as "
            "integers, or leave the column out."
        )
    return column.to_numpy()


def _from_json(value: Any, what: str) -> NDArray[Any]:
    if isinstance(value, dict):
        raise DataError(f"{what} is an object; it should be a number or a list of numbers.")
    try:
        array: NDArray[Any] = np.array(value)
    except ValueError:
        raise DataError(f"{what} holds lists of different lengths, which make no array.") from None
    if array.dtype.kind == "O":
        _refuse_large(array.ravel(), what)
        for index, cell in np.ndenumerate(array):
            if cell is None:
                raise DataError(f"{what} has no value (null) at index {list(index)}.")
    return array


def _refuse_large(cells: Iterable[Any], what: str) -> None:
    """Refuse whole numbers that no 64 bits hold, which would come as text or objects."""
    for cell in cells:
        whole = isinstance(cell, int) or (isinstance(cell, str) and _WHOLE.fullmatch(cell))
        if whole and not -(2**63) <= int(cell) < 2**63:
            raise DataError(
                f"{what} holds {cell}, and whole numbers must be at least -2**63 and below 2**63. "
                "With a decimal point or an exponent it is a floating-point number."
            )


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))
