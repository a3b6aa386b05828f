"""Read data files, and bind their contents to the arguments of a model."""

from __future__ import annotations

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
from probdl.model.callables import runnable, signature
from probdl.util.lazy import pandas as pd
from probdl.util.lazy import xarray as xr
from probdl.util.suggestions import did_you_mean

__all__ = ["bind", "read", "read_all"]

Values = dict[str, Any]

_NUMBERED_COLUMN = re.compile(r"(.+?)(?:\[(\d+)\]|_(\d+))")
_INTEGER = re.compile(r"\s*[+-]?\d{1,4000}\s*")  # int() refuses more than 4300 digits
_READ_ERRORS = (  # raised by the readers for damaged files and for files of another format
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
    r"""Read a data file, and return its contents by name.

    ============  ==============================================================================
    ``.csv``      a table with column names in the first line; each column becomes an array
    ``.json``     an object; lists of numbers become arrays, numbers and strings stay as they are
    ``.npz``      arrays written by ``numpy.savez``
    ``.nc``       the variables of a netCDF file
    ============  ==============================================================================

    Args:
        path: the file.
        drop: names to ignore.

    Raises:
        DataError: the file cannot be read, a cell is empty, a column contains text, or a name in
            ``drop`` does not exist.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "data.csv")
    >>> _ = path.write_text("x,y\n1.5,1\n2.5,0\n")
    >>> read(path)
    {'x': array([1.5, 2.5]), 'y': array([1, 0])}
    """
    return read_all([path], drop=drop)


def read_all(
    paths: Iterable[str | Path], *, drop: Collection[str] = (), coordinates: Collection[str] = ()
) -> Values:
    """Read several data files, and return their contents by name.

    Args:
        paths: the files.
        drop: names to ignore, in all files.
        coordinates: names to read from netCDF files even if they are coordinates.

    Raises:
        DataError: as in `read`, or two files contain the same name.
    """
    values: Values = {}
    files = [(Path(path), _read_file(Path(path), coordinates)) for path in paths]
    for path, contents in files:
        kept = {n: v for n, v in contents.items() if n not in drop}
        if duplicates := [name for name in kept if name in values]:
            raise DataError(
                f"{path} contains {duplicates[0]!r}, which another file contains too. Rename it "
                "in one of them."
            )
        values |= {n: _check_value(v, f"{path}: {n!r}") for n, v in kept.items()}
    names = list(dict.fromkeys(name for _, contents in files for name in contents))
    if files and (unknown := [name for name in drop if name not in names]):
        contain = "contains" if len(files) == 1 else "contain"
        raise DataError(
            f"--drop {unknown[0]}: {' and '.join(str(path) for path, _ in files)} {contain} no "
            f"{_quoted(unknown)}, only {', '.join(names) or 'nothing'}."
        )
    return values


def _read_file(path: Path, coordinates: Collection[str]) -> Values:
    """Return the contents of a file without checks."""
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"{path} has an unknown file type. Data files end in {', '.join(_READERS)}."
        )
    if not path.is_file():
        raise DataError(f"The data file {path} does not exist.")
    try:
        return reader(path, coordinates)
    except DataError:
        raise
    except _READ_ERRORS as error:
        raise DataError(f"{path} cannot be read as {path.suffix[1:]}: {error}") from error


def bind(
    model: Callable[..., Any], values: Mapping[str, Any], *, optional: Collection[str] = ()
) -> inspect.BoundArguments:
    """Bind values to the arguments of a model by name.

    Arguments with a default may be missing. Missing arguments in ``optional`` become None. If an
    argument ``x`` is missing but there are columns ``x[0]``, ``x[1]``, … or ``x_0``, ``x_1``, …
    (numbered from 0 without gaps), they are joined into a matrix.

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
    for name in wanted:
        if name in values:
            continue
        columns = {}
        for column in values:
            match = _NUMBERED_COLUMN.fullmatch(column)
            if match and match[1] == name and column not in wanted:
                columns[int(match[2] or match[3])] = column
        if columns and sorted(columns) == list(range(len(columns))):
            parts = [values.pop(columns[i]) for i in range(len(columns))]
            values[name] = np.column_stack(parts)
    return values


def _read_csv(path: Path, _coordinates: Collection[str]) -> Values:
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)
        try:
            # By default, pandas uses columns without a name as row labels.
            table = pd.read_csv(path, index_col=False)
        except pd.errors.ParserWarning:
            raise DataError(
                f"{path} has rows with more cells than its first line has names. Name every "
                "column in the first line, and write decimals with a point, not a comma."
            ) from None
    return {str(name): column for name, column in table.items()}


def _read_json(path: Path, _coordinates: Collection[str]) -> Values:
    values = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(values, dict):
        raise DataError(
            f"{path} contains a {type(values).__name__}; it must contain an object, such as "
            '{"x": [1.0, 2.0], "y": [0, 1]}.'
        )
    return values


def _read_npz(path: Path, _coordinates: Collection[str]) -> Values:
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def _read_netcdf(path: Path, coordinates: Collection[str]) -> Values:
    with xr.open_dataset(path) as dataset:
        names = [*dataset.data_vars, *(name for name in dataset.coords if name in coordinates)]
        return {str(name): dataset[name].to_numpy() for name in names}


_READERS: dict[str, Callable[[Path, Collection[str]], Values]] = {
    ".csv": _read_csv,
    ".json": _read_json,
    ".npz": _read_npz,
    ".nc": _read_netcdf,
}


def _check_value(value: Any, what: str) -> Any:
    """Return a value as a scalar, a string or an array of numbers.

    Raises:
        DataError: torch has no data type for it.
    """
    if isinstance(value, pd.Series):
        return _from_column(value, what)
    if isinstance(value, (list, dict)):
        value = _from_json(value, what)
    if not isinstance(value, np.ndarray):
        _check_integer_range([value], what)
        return value
    if value.dtype.kind not in "biuf":
        raise DataError(
            f"{what} has dtype {value.dtype}; models need numbers. Encode categories as integers, "
            "and drop text."
        )
    return value if value.ndim else value.item()


def _from_column(column: pd.Series, what: str) -> NDArray[Any]:
    if not len(column):
        raise DataError(f"{what} has no rows: the table has column names but no data.")
    empty = np.flatnonzero(column.isna())
    if len(empty):
        raise DataError(
            f"{what} is empty in {len(empty)} of {len(column)} rows, first in row {empty[0] + 1}. "
            "Fill in the values, or remove the rows."
        )
    if column.dtype.kind not in "biuf":
        _check_integer_range(column, what)
        text = np.flatnonzero(pd.to_numeric(column, errors="coerce").isna())
        row = text[0] if len(text) else 0
        raise DataError(
            f"{what} contains text (row {row + 1}: {column.iloc[row]!r}). Encode categories as "
            "integers, or drop the column."
        )
    return column.to_numpy()


def _from_json(value: Any, what: str) -> NDArray[Any]:
    if isinstance(value, dict):
        raise DataError(f"{what} is an object; it must be a number or a list of numbers.")
    try:
        array: NDArray[Any] = np.array(value)
    except ValueError:
        raise DataError(
            f"{what} contains lists of different lengths. Pad them to one length."
        ) from None
    if array.dtype.kind == "O":
        _check_integer_range(array.ravel(), what)
        for index, cell in np.ndenumerate(array):
            if cell is None:
                raise DataError(f"{what} has no value (null) at index {list(index)}.")
    return array


def _check_integer_range(cells: Iterable[Any], what: str) -> None:
    """Check that integers fit in 64 bits; larger ones would be read as text or objects."""
    for cell in cells:
        integer = isinstance(cell, int) or (isinstance(cell, str) and _INTEGER.fullmatch(cell))
        if integer and not -(2**63) <= int(cell) < 2**63:
            raise DataError(
                f"{what} contains {cell}; integers must be at least -2**63 and below 2**63. "
                "Write it as a floating-point number, with a decimal point or an exponent."
            )


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))
