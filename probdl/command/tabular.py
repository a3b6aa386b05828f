"""Read data files."""

from __future__ import annotations

import csv
import json
import lzma
import re
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probdl.command.tables import COMPRESSED, Table, read_table, without_index
from probdl.errors import DataError
from probdl.io.files import open_plain
from probdl.io.netcdf import check_netcdf
from probdl.util.lazy import pandas as pd
from probdl.util.lazy import xarray as xr
from probdl.util.memory import machine_memory

__all__ = ["Contents", "checked", "read", "read_all", "read_raw"]

Values = dict[str, Any]

MAX_SHOWN = 60  # characters of a cell in a message
_INTEGER = re.compile(r"\s*[+-]?\d{1,4000}\s*")  # int() refuses more than 4300 digits
_READ_ERRORS = (  # raised by the readers for damaged files and for files of another format
    OSError,
    ValueError,
    KeyError,
    TypeError,
    EOFError,
    OverflowError,
    csv.Error,
    MemoryError,
    RecursionError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
)


@dataclass
class Contents:
    """The contents of data files, not yet checked, and a line about each file."""

    values: Values = field(default_factory=dict)
    sources: dict[str, Path] = field(default_factory=dict)  # by name
    lines: list[str] = field(default_factory=list)
    twice: dict[str, Path] = field(default_factory=dict)  # names that an earlier file contains too


def read(path: str | Path, *, drop: Collection[str] = ()) -> Values:
    r"""Read a data file, and return its contents by name.

    =====================  ===================================================================
    ``.csv .tsv .txt``     a table with column names in the first line, see `read_table`; also
                           compressed, as ``.csv.gz``
    ``.json .jsonl``       an object of lists and numbers; or one object for each row
    ``.parquet``           a table, if pyarrow is installed
    ``.npz .npy``          arrays written by NumPy; the single one has the name of its file
    ``.nc``                the variables of a netCDF file
    =====================  ===================================================================

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
    contents = read_raw(paths, drop=drop, coordinates=coordinates)
    return checked(contents, contents.values)


def checked(
    contents: Contents,
    names: Iterable[str],
    *,
    categories: Collection[str] = (),
    orders: Mapping[str, Sequence[str]] | None = None,
    missing: bool = False,
) -> Values:
    """Return the contents of some names as scalars, strings, arrays of numbers or categoricals.

    Args:
        contents: what was read.
        names: the names.
        categories: those of columns that are categories.
        orders: the order of their categories, by name, where it is given.
        missing: whether cells may be empty, which become NaN.

    Raises:
        DataError: a cell is empty, or a value is no number.
    """
    names = list(names)
    for name in names:
        if name in contents.twice:
            raise DataError(
                f"{contents.twice[name]} contains {name!r}, which another file contains too. "
                "Rename it in one of them."
            )
    if unknown := [name for name in categories if name not in contents.values]:
        raise DataError(
            f"--category {unknown[0]}: the data contain no {unknown[0]!r}, only "
            f"{', '.join(contents.values) or 'nothing'}."
        )
    found = {}
    for name in names:
        what, value = f"{contents.sources[name]}: {name!r}", contents.values[name]
        if name in categories:
            written = _as_written(value, name, contents.sources[name])
            found[name] = _from_categories(written, what, (orders or {}).get(name))
        elif missing and isinstance(value, pd.Series) and value.dtype.kind == "f":
            found[name] = value.to_numpy()
        elif missing and isinstance(value, list) and (numbers := _with_nan(value)) is not None:
            found[name] = numbers
        else:
            found[name] = _check_value(value, what)
    return found


def _with_nan(value: list[Any]) -> NDArray[np.float64] | None:
    """Return numbers of a JSON file with NaN for null; None if they are no such numbers."""
    try:
        array = np.array(value)
        if array.dtype.kind != "O" or any(isinstance(cell, str) for cell in array.ravel()):
            return None
        return array.astype(float)
    except (TypeError, ValueError):  # lists of different lengths, or of other things
        return None


def _as_written(value: Any, name: str, path: Path) -> Any:
    """Return a column with its cells as they are written in a table of text: 007 is not 7."""
    kinds = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in COMPRESSED]
    if not kinds or kinds[-1] not in (".csv", ".tsv", ".txt"):
        return value
    column = read_table(path, as_text=True).columns[name].str.strip()
    return column.where(column != "", None)


def _from_categories(value: Any, what: str, order: Sequence[str] | None) -> Any:
    column = pd.Series(value)
    empty = np.flatnonzero(column.isna())
    if len(empty):
        raise DataError(
            f"{what} is empty in {len(empty)} of {len(column)} rows, first in row {empty[0] + 1}. "
            "Fill in the categories, or remove the rows."
        )
    if order is None:
        if pd.to_numeric(column, errors="coerce").isna().any():
            return column.astype(str).to_numpy(object)  # without an order, which nobody gave
        return pd.Categorical(column)
    if others := [x for x in column.astype(str).unique() if x not in order]:
        raise DataError(
            f"{what} has the category {others[0]!r}, which --category does not list: "
            f"{', '.join(order)}."
        )
    return pd.Categorical(column.astype(str), categories=[*order], ordered=True)


def read_raw(
    paths: Iterable[str | Path], *, drop: Collection[str] = (), coordinates: Collection[str] = ()
) -> Contents:
    """Read several data files, and check nothing but their format.

    Raises:
        DataError: a file cannot be read, a name in ``drop`` does not exist, or two files contain
            the same name.
    """
    whole = Contents()
    listed = [Path(path) for path in paths]
    names: list[str] = []
    for path in listed:
        values, notes = _read_file(path, coordinates)
        names += [name for name in values if name not in names]
        kept = {n: v for n, v in values.items() if n not in drop}
        whole.twice |= {name: path for name in kept if name in whole.values}
        whole.values |= kept
        whole.sources |= dict.fromkeys(kept, path)
        whole.lines.append(_line(path, kept, notes, [n for n in values if n in drop]))
    if listed and (unknown := [name for name in drop if name not in names]):
        contain = "contains" if len(listed) == 1 else "contain"
        raise DataError(
            f"--drop {unknown[0]}: {' and '.join(map(str, listed))} {contain} no "
            f"{', '.join(map(repr, unknown))}, only {', '.join(names) or 'nothing'}."
        )
    return whole


def _line(path: Path, values: Values, notes: Iterable[str], dropped: Collection[str]) -> str:
    """Describe what was read from a file."""
    arrays = [v for v in values.values() if isinstance(v, (list, np.ndarray, pd.Series))]
    lengths = {len(array) for array in arrays if isinstance(array, list) or array.ndim}
    rows = f"{lengths.pop()} rows, " if len(lengths) == 1 else ""
    count = f"{rows}{len(values)} column{'s' * (len(values) != 1)}"
    parts = [count, *notes, *([f"{', '.join(dropped)} dropped"] if dropped else ())]
    return f"read {path}: {'; '.join(parts)}"


def _read_file(path: Path, coordinates: Collection[str]) -> tuple[Values, list[str]]:
    """Return the contents of a file without checks, and notes."""
    endings = [suffix.lower() for suffix in path.suffixes]
    kind = endings[-1] if endings else ""
    if kind in COMPRESSED and len(endings) > 1:
        kind = endings[-2] if endings[-2] in _TABLES else kind
    reader = _READERS.get(kind)
    if reader is None:
        advice = " Save the sheet as .csv." if kind in (".xls", ".xlsx", ".ods") else ""
        raise DataError(
            f"{path} has an unknown file type. Data files end in {', '.join(_READERS)}.{advice}"
        )
    if not path.exists():
        raise DataError(f"The data file {path} does not exist.")
    if not path.is_file():
        raise DataError(f"{path} is not a plain file.")
    try:
        return reader(path, coordinates)
    except DataError:
        raise
    except _READ_ERRORS as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise DataError(f"{path} cannot be read as {kind[1:]}: {reason}") from error


def _columns(table: Table) -> tuple[Values, list[str]]:
    return {str(name): column for name, column in table.columns.items()}, table.notes


def _read_table(path: Path, _coordinates: Collection[str]) -> tuple[Values, list[str]]:
    return _columns(read_table(path))


def _read_json(path: Path, _coordinates: Collection[str]) -> tuple[Values, list[str]]:
    with open_plain(path.resolve()) as file:
        values = json.loads(file.read().decode("utf-8-sig"), object_pairs_hook=_once)
    if isinstance(values, list) and values and all(isinstance(row, dict) for row in values):
        return _columns(Table(pd.DataFrame.from_records(values)))
    if not isinstance(values, dict):
        raise DataError(
            f"{path} contains a {type(values).__name__}; it must contain an object, such as "
            '{"x": [1.0, 2.0], "y": [0, 1]}, or a list of objects, one for each row.'
        )
    return values, []


def _read_json_lines(path: Path, _coordinates: Collection[str]) -> tuple[Values, list[str]]:
    with open_plain(path.resolve()) as file:
        lines = file.read().decode("utf-8-sig").split("\n")
    rows = [json.loads(line, object_pairs_hook=_once) for line in lines if line.strip()]
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise DataError(f'{path} must contain an object in each line, such as {{"x": 1.0}}.')
    return _columns(Table(pd.DataFrame.from_records(rows)))


def _read_parquet(path: Path, _coordinates: Collection[str]) -> tuple[Values, list[str]]:
    try:
        table = pd.read_parquet(path)
    except ImportError:
        raise DataError(
            f"{path} needs pyarrow, which is not installed: pip install pyarrow. Or save the table "
            "as .csv."
        ) from None
    except _READ_ERRORS:
        raise
    except Exception as error:  # pyarrow has its own
        raise DataError(f"{path} cannot be read as parquet: {error}") from None
    return _columns(without_index(Table(table)))


def _once(pairs: list[tuple[str, Any]]) -> Values:
    """Return an object of JSON, none of whose names may occur twice."""
    found: Values = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"it contains {name!r} twice")
        found[name] = value
    return found


def _read_npz(path: Path, _coordinates: Collection[str]) -> tuple[Values, list[str]]:
    with open_plain(path.resolve()) as file:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
        size = sum(member.file_size for member in members)
        _once([(member.filename.removesuffix(".npy"), None) for member in members])
        if size > machine_memory(unknown=2**36):
            raise DataError(f"{path} needs {size / 2**30:.4g} GiB of memory.")
        file.seek(0)
        with np.load(file, allow_pickle=False) as arrays:
            return dict(arrays), []


def _read_npy(path: Path, _coordinates: Collection[str]) -> tuple[Values, list[str]]:
    with open_plain(path.resolve()) as file:
        array = np.load(file, allow_pickle=False)
    if not isinstance(array, np.ndarray):
        raise DataError(f"{path} holds several arrays. Rename it to .npz.")
    if array.dtype.names:
        return {name: array[name] for name in array.dtype.names}, []
    return {path.stem: array}, []


def _read_netcdf(path: Path, coordinates: Collection[str]) -> tuple[Values, list[str]]:
    with open_plain(path.resolve()) as file:
        start = file.read(4)
        file.seek(0)
        if start == b"\x89HDF":  # not the classic format
            check_netcdf(file)
        try:
            with xr.open_dataset(file) as dataset:
                read = [name for name in dataset.coords if name in coordinates]
                return {str(n): dataset[n].to_numpy() for n in (*dataset.data_vars, *read)}, []
        except _READ_ERRORS:
            raise
        except Exception as error:  # the netCDF libraries define further errors
            raise DataError(f"{path} cannot be read as netCDF: {error}") from None


_TABLES = (".csv", ".tsv", ".txt")
_READERS: dict[str, Callable[[Path, Collection[str]], tuple[Values, list[str]]]] = {
    **dict.fromkeys(_TABLES, _read_table),
    ".json": _read_json,
    ".jsonl": _read_json_lines,
    ".parquet": _read_parquet,
    ".npz": _read_npz,
    ".npy": _read_npy,
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
    if isinstance(value, bytes):
        raise DataError(f"{what} is no array.")
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
            "Fill in the values, remove the rows, or fit with --missing mask, which leaves out "
            "missing observations and leaves others to a model that imputes them."
        )
    if column.dtype.kind not in "biuf":
        _check_integer_range(column, what)
        text = np.flatnonzero(pd.to_numeric(column, errors="coerce").isna())
        row = text[0] if len(text) else 0
        raise DataError(
            f"{what} contains text (row {row + 1}: {_shortened(column.iloc[row])}). Name "
            "categories by --category, leave cells without a value empty, or drop the column."
        )
    return column.to_numpy()


def _shortened(cell: Any) -> str:
    shown = repr(cell)
    return shown if len(shown) <= MAX_SHOWN else f"{shown[:MAX_SHOWN]}…"


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
                raise DataError(
                    f"{what} has no value (null) at index {list(index)}. Fill in the values, "
                    "remove them, or fit with --missing mask, which leaves out missing "
                    "observations."
                )
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
