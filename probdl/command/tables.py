"""Read tables of text as people have them: any usual separator, decimal mark and encoding."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import lzma
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from probdl.errors import DataError
from probdl.io.files import open_plain
from probdl.util.lazy import pandas as pd
from probdl.util.memory import machine_memory

__all__ = ["COMPRESSED", "Table", "read_table", "without_index"]

COMPRESSED: dict[str, Callable[..., IO[bytes]]] = {
    ".gz": gzip.open,  # type: ignore[dict-item]
    ".bz2": bz2.open,  # type: ignore[dict-item]
    ".xz": lzma.open,  # type: ignore[dict-item]
}
BLANKS = r"\s+"
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars", BLANKS: "blanks"}
SNIFFED_LINES = 20
BYTE_ORDER_MARKS = {
    b"\xef\xbb\xbf": "utf-8-sig",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
_DECIMAL_COMMA = re.compile(r"\s*[+-]?\d*,\d+([eE][+-]?\d+)?\s*")
_NUMBER = re.compile(r"\s*[+-]?(\d+[.,]?\d*|[.,]\d+)([eE][+-]?\d+)?\s*")
_THOUSANDS = re.compile(r"\s*[+-]?\d{1,3}(,\d{3})+\s*")
_STATED = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)  # the first line, as Excel writes it
_INTEGER = re.compile(r"\s*[+-]?\d+\s*")
_POINTED_THOUSANDS = re.compile(r"\s*[+-]?\d{1,3}(\.\d{3})+\s*")
_WORD = re.compile(r'"[^"]*"(?=\s|$)|\S+')  # of a line whose cells are separated by blanks


@dataclass
class Table:
    """The columns of a file, and what was noticed while they were read."""

    columns: Any  # a pandas.DataFrame
    notes: list[str] = field(default_factory=list)


def read_table(path: Path, *, as_text: bool = False) -> Table:
    """Read a table of text with column names in its first line.

    Columns may be separated by commas, semicolons, tabs, bars or blanks. Comment lines (``#``) at
    the top are skipped; the last one holds the names where the first row is numbers, as
    ``numpy.savetxt`` writes them. Decimal commas are read unless commas separate the columns. The
    text is UTF-8, UTF-16 with a byte order mark, or else Windows-1252, which contains Latin-1. An
    index that pandas or R wrote as a first column without a name is dropped.

    Args:
        path: the file.
        as_text: whether to leave all cells as texts, where an empty cell is ''.

    Raises:
        DataError: rows have more cells than there are names, there are no names, or the text is no
            table.
    """
    notes: list[str] = []
    text = _text(path, notes)
    lines = text.splitlines()
    first = 0
    while first < len(lines) and (not lines[first].strip() or lines[first].lstrip()[0] == "#"):
        first += 1
    stated = _STATED.fullmatch(lines[first]) if first < len(lines) else None
    if stated is not None:  # as Excel writes it
        first += 1
    skipped = [line for line in lines[:first] if line.lstrip().startswith("#")]
    if first == len(lines):
        raise DataError(f"{path} cannot be read as csv: it is empty.")
    separator = stated[1] if stated is not None else _separator(lines[first:], path)
    if separator != ",":
        notes.append(f"separated by {SEPARATORS.get(separator, repr(separator))}")
    rows = lines[first:]
    if all(_NUMBER.fullmatch(cell) for cell in _cells(rows[0], separator)):
        rows = [_commented_names(skipped, rows[0], separator, path), *rows]
        skipped.pop()
    if skipped:
        notes.append(f"{len(skipped)} comment line{'s' * (len(skipped) > 1)} skipped")
    _check_header(rows[0], separator, path)
    if has_labels := _have_row_names(rows, separator):
        rows[0] = f'""{" " if separator == BLANKS else separator}{rows[0]}'
        notes.append("the row names dropped")
    while rows and not rows[-1].strip():
        rows.pop()
    columns = _parse("\n".join(rows), separator, path, as_text=as_text)
    columns.columns = [str(name).strip() for name in columns.columns]
    if has_labels:
        columns = columns.iloc[:, 1:].copy()
    if separator != "," and not as_text:
        commas = [
            name for name in columns if _has_decimal_commas(columns[name], f"{path}: {name!r}")
        ]
        for name in commas:
            columns[name] = pd.to_numeric(columns[name].astype(str).str.replace(",", "."))
        if commas:
            _check_points(rows, separator, path)
            notes.append(f"decimal commas in {', '.join(commas)}")
    return without_index(Table(columns, notes))


def without_index(table: Table) -> Table:
    """Return a table without a first column that counts its rows and has no name."""
    columns = table.columns
    if len(columns.columns) and str(columns.columns[0]) in ("Unnamed: 0", "__index_level_0__", ""):
        first = columns.iloc[:, 0]
        counts = np.arange(len(columns))
        values = first.to_numpy()
        if values.dtype.kind in "iu" and any((values == counts + i).all() for i in (0, 1)):
            notes = [*table.notes, "the column of row numbers dropped"]
            return Table(columns.iloc[:, 1:], notes)
    return table


def _text(path: Path, notes: list[str]) -> str:
    limit = machine_memory(unknown=2**36) / 8  # text takes several times its size as a table
    with open_plain(path.resolve()) as file:  # a link is the user's own here
        opener = COMPRESSED.get(path.suffix.lower())
        source: IO[bytes] = file if opener is None else opener(file)
        data = source.read(int(limit) + 1)
    if len(data) > limit:
        raise DataError(
            f"{path} holds more than {limit / 2**30:.3g} GiB of text. Convert it to .npz or "
            ".parquet."
        )
    encoding = next((e for mark, e in BYTE_ORDER_MARKS.items() if data.startswith(mark)), "utf-8")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        if encoding != "utf-8":
            raise DataError(f"{path} begins as {encoding}, but is no such text.") from None
    notes.append("not UTF-8, read as Windows-1252")
    return data.decode("cp1252", errors="replace")


def _separator(lines: list[str], path: Path) -> str:
    """Return the separator that splits the first lines into the same number of cells, the most."""
    sample = [line for line in lines[:SNIFFED_LINES] if line.strip()]
    best, most = ",", 1
    preferred = "\t" if ".tsv" in path.suffixes else ","
    for separator in sorted(SEPARATORS, key=lambda each: each != preferred):
        counts = [len(_cells(line, separator)) for line in sample]
        if counts[0] > most and all(count == counts[0] for count in counts):
            best, most = separator, counts[0]
    if most > 1:
        return best
    if labelled := [each for each in SEPARATORS if _have_row_names(sample, each)]:
        return max(labelled, key=lambda each: len(_cells(sample[0], each)))
    # Rows of different lengths, or a single column: the header decides.
    candidates = [each for each in SEPARATORS if each != BLANKS]
    found = max(candidates, key=lambda each: (len(_cells(sample[0], each)), each == preferred))
    return found if len(_cells(sample[0], found)) > 1 else ","


def _cells(line: str, separator: str) -> list[str]:
    if separator == BLANKS:
        return [word.strip('"') for word in _WORD.findall(line)]
    if len(line) > csv.field_size_limit():
        return [cell.strip().strip('"') for cell in line.split(separator)]
    return next(csv.reader([line], delimiter=separator, skipinitialspace=True), [])


def _check_header(line: str, separator: str, path: Path) -> None:
    names = [name.strip() for name in _cells(line, separator)]
    if twice := [name for name in names if name and names.count(name) > 1]:
        raise DataError(f"{path} has two columns named {twice[0]!r}. Rename one of them.")


def _commented_names(comments: list[str], first_row: str, separator: str, path: Path) -> str:
    """Return the names of the columns from the last comment above a first row of numbers."""
    line = comments[-1].strip().lstrip("#").strip() if comments else ""
    if len(_cells(line, separator)) != len(_cells(first_row, separator)):
        raise DataError(
            f"{path} has no column names: its first line is {first_row.strip()[:60]!r}. Write the "
            "names of the columns, separated like the numbers, into a first line."
        )
    return line


def _have_row_names(lines: list[str], separator: str) -> bool:
    """Return whether rows begin with a label that has no name above it, as R writes tables."""
    names, *rows = [_cells(line, separator) for line in lines[:SNIFFED_LINES] if line.strip()]
    if not rows or any(len(row) != len(names) + 1 for row in rows):
        return False
    quoted = all(line.lstrip().startswith('"') for line in lines[1:SNIFFED_LINES] if line.strip())
    counted = [row[0] for row in rows] == [str(i + 1) for i in range(len(rows))]
    text = not any(_NUMBER.fullmatch(row[0]) for row in rows)
    return quoted or text or (counted and separator in ("\t", BLANKS))


def _check_points(lines: list[str], separator: str, path: Path) -> None:
    """Raise DataError if points may separate thousands in a table with decimal commas."""
    for name, *column in zip(*(_cells(line, separator) for line in lines if line), strict=False):
        pointed = [cell for cell in column if "." in cell]
        if pointed and all(_POINTED_THOUSANDS.fullmatch(cell) for cell in pointed):
            raise DataError(
                f"{path}: {name.strip()!r} contains {pointed[0].strip()}, whose point may be a "
                "decimal point or separate thousands, since other columns have decimal commas. "
                "Write numbers with a decimal point, without separators."
            )


def _parse(body: str, separator: str, path: Path, *, as_text: bool) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)
        try:
            # By default, pandas uses columns without a name as row labels.
            return pd.read_csv(
                io.StringIO(body),
                sep=separator,
                index_col=False,
                skipinitialspace=True,
                **({"dtype": str, "keep_default_na": False} if as_text else {}),
                # In a single column, an empty line is a missing value.
                skip_blank_lines=len(_cells(body.partition("\n")[0], separator)) > 1,
            )
        except pd.errors.ParserWarning:
            raise DataError(
                f"{path} has rows with more cells than its first line has names. Name every "
                "column in the first line; where columns are separated by commas, write decimals "
                "with a point."
            ) from None


def _has_decimal_commas(column: Any, what: str) -> bool:
    """Return whether a column holds numbers with decimal commas.

    Raises:
        DataError: the commas may as well separate thousands.
    """
    if column.dtype.kind in "biuf":
        return False
    cells = [str(cell) for cell in column.dropna()]
    commas = [cell for cell in cells if _DECIMAL_COMMA.fullmatch(cell)]
    if not commas or not all("," in cell or _INTEGER.fullmatch(cell) for cell in cells):
        return False
    if all(_THOUSANDS.fullmatch(cell) for cell in cells if "," in cell):
        raise DataError(
            f"{what} contains {commas[0].strip()}, whose comma may be a decimal comma or separate "
            "thousands. Write numbers with a decimal point, without separators."
        )
    return len(commas) == sum("," in cell for cell in cells)
