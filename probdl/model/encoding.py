"""Categories as codes and tables as matrices, with the labels that come with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from probdl.errors import DataError, warn
from probdl.util.suggestions import did_you_mean

__all__ = [
    "Encoding",
    "check_index",
    "check_new",
    "check_order",
    "encode",
    "is_array",
    "is_raw",
    "shared_key",
]


# Of pandas and xarray, which are not imported here, and NumPy.
_ARRAY_TYPES = ("Series", "Index", "StringArray", "DataArray", "ndarray", "list")


@dataclass(frozen=True)
class Encoding:
    """How the values of an argument became numbers.

    Attributes:
        kind: ``"categories"``, whose codes are positions in ``labels``, or the ``"columns"`` of a
            table.
        labels: the categories or the names of the columns.
        ordered: whether their order is one that the user gave.
        given: the categories in the order of pandas' categorical, which ``labels`` has only if it
            begins with those of the fit.
    """

    kind: Literal["categories", "columns"]
    labels: tuple[Any, ...]
    ordered: bool = field(default=False, compare=False, repr=False)
    given: tuple[Any, ...] = field(default=(), compare=False, repr=False)

    def explained(self, name: str) -> str:
        """Explain the codes of the categories of an argument, in a sentence for messages.

        >>> Encoding("categories", ("a", "b")).explained("town")
        "The texts in 'town' became codes from 0, in this order: 'a', 'b' (2)."
        """
        order = f"in this order: {_listed(self.labels, 20)} ({len(self.labels)})"
        return f"The texts in '{name}' became codes from 0, {order}."


def is_raw(value: Any) -> bool:
    """Return whether a value is a list of numbers or texts, or a table: data, or a setting."""
    if not isinstance(value, list):
        return _is_table(value)
    return bool(value) and (_is_text(value) or _is_numeric(value))


def encode(
    value: Any, known: Encoding | None, what: str, *, raw: bool = True
) -> tuple[Any, Encoding | None]:
    """Encode one argument of a model, if its values are categories, a table or a list.

    Args:
        value: texts (an array, a Series or a list) and pandas' categoricals become codes, unless
            all are numbers written as text, which are an error for arrays; a table
            with numeric columns becomes a matrix in float64, and a list of numbers an array. All
            else is returned as it is.
        known: the encoding of the same argument in a fit. Its categories keep their codes, and new
            ones follow; a table has its columns.
        what: the name of the argument in messages.
        raw: whether to convert lists and tables as well.

    Returns:
        The value, and how it was encoded; None if it was not.

    Raises:
        DataError: a category is missing, or a table has no such column or one that is not numeric.

    >>> encode(np.array(["b", "a", "b"]), None, "town")
    (array([1, 0, 1]), Encoding(kind='categories', labels=('a', 'b')))
    """
    if is_raw(value) and not raw:
        return value, None
    if _is_table(value):
        columns = known.labels if known is not None and known.kind == "columns" else None
        return _matrix(value, columns, what)
    labels = known.labels if known is not None and known.kind == "categories" else ()
    if labels and isinstance(value, str):
        raise DataError(
            f"{what} is the single text {value!r}, and in the fit it has one for each row. Pass a "
            f"list, also of the other arguments with a value for each row: [{value!r}]."
        )
    if (found := _categories(value, labels)) is not None:
        of = getattr(value, "cat", value)
        declared = hasattr(of, "codes") and hasattr(of, "categories")
        codes, encoding = _codes(*found, labels, what, declared=declared)
        ordered = bool(getattr(of, "ordered", False)) or (known is not None and known.ordered)
        given = tuple(found[1]) if declared else ()
        return codes, replace(encoding, ordered=ordered, given=given)
    if labels and isinstance(labels[0], str) and _is_numbers(value):
        warn(
            f"{what} has the categories {_listed(labels)} in the fit, but is numbers here. They "
            f"are taken as codes, 0 for {labels[0]!r}. Pass the categories."
        )
    return (np.array(value) if is_raw(value) else value), None


def _is_numbers(value: Any) -> bool:
    dtype = getattr(value, "dtype", None)
    return is_array(value) and getattr(dtype, "kind", "O") in "iuf"


def _listed(labels: Sequence[Any], most: int = 3) -> str:
    return ", ".join(map(repr, labels[:most])) + ", …" * (len(labels) > most)


def check_new(
    fitted: Mapping[str, Encoding], now: Mapping[str, Encoding], is_number: Callable[[str], bool]
) -> None:
    """Check categories that a fit did not have.

    Args:
        fitted: how the arguments of the fit were encoded, by name.
        now: the same at other arguments.
        is_number: returns whether the model uses the codes of an argument as numbers.

    Raises:
        DataError: the code of a new category would be used as a number.
    """
    for name, encoding in now.items():
        known = fitted.get(name)
        if known is None or encoding.kind != "categories":
            continue
        new = [label for label in encoding.labels if label not in known.labels]
        if new and is_number(name):
            raise DataError(
                f"Argument '{name}' has the new category {new[0]!r}, but the model uses the codes "
                f"of its categories ({_listed(known.labels)}) as numbers, and the next one has no "
                "meaning. Predict for categories of the fit, or fit with an effect of each "
                "category, in a plate."
            )


def check_order(
    fitted: Mapping[str, Any],
    now: Mapping[str, Any],
    encodings: Mapping[str, Encoding],
    held: Mapping[str, Encoding],
) -> None:
    """Check that arguments with a value of each category can follow the order of their codes.

    Args:
        fitted: the arguments of the fit, by name.
        now: other arguments.
        encodings: how these were encoded.
        held: how those of the fit were encoded.

    Raises:
        DataError: categories were given in an order that their codes do not have, and another
            argument has a value for each of them.
    """
    for name, encoding in encodings.items():
        if encoding.kind != "categories":
            continue
        known = held[name].labels if name in held else ()
        if not known or encoding.given == encoding.labels:
            continue
        if not encoding.given:
            _warn_of_new(name, now, encoding.labels, len(known), fitted)
            continue
        in_order = [label for label in encoding.labels if label in encoding.given] == [
            *encoding.given
        ]
        for other, value in now.items():
            size, before = _length(value), _length(fitted.get(other))
            each = size in (len(encoding.given), len(encoding.labels)) and before == len(known)
            if in_order and size == len(encoding.labels):  # it has values of the others as well
                continue
            if other != name and each and size != _length(now.get(name)):
                raise DataError(
                    f"Argument '{other}' has a value for each category of '{name}', whose codes "
                    f"have the order {_listed(encoding.labels, 6)}: those of the fit, and then new "
                    f"ones. Its categories were given in another order "
                    f"({_listed(encoding.given, 6)}). Pass both in the order of the codes, such as "
                    "pd.Categorical(values, categories=[*those of the fit, *new ones])."
                )


def _warn_of_new(
    name: str, now: Mapping[str, Any], labels: Sequence[Any], known: int, fitted: Mapping[str, Any]
) -> None:
    """Warn of an argument by category if new categories have another order than they appear in."""
    codes = now[name].tolist()
    appeared = [code for code in dict.fromkeys(codes) if code >= known]
    if appeared == sorted(appeared):
        return
    for other, value in now.items():
        if other != name and _length(value) == len(labels) and _length(fitted.get(other)) == known:
            warn(
                f"Argument '{other}' has a value for each category of '{name}'. Those of the new "
                f"categories were taken in the order of their codes, {_listed(labels[known:], 6)}, "
                "which is not that of the rows. To choose the order, pass "
                "pd.Categorical(values, categories=[*those of the fit, *new ones])."
            )


def _length(value: Any) -> int:
    shape: Sequence[int] = getattr(value, "shape", ())
    return int(shape[0]) if len(shape) else -1


def check_index(name: str, value: Any, encodings: Mapping[str, Encoding]) -> None:
    """Check that a Series by category is in the order of the codes of the categories.

    Raises:
        DataError: it is not; its values would be taken by position.
    """
    index = getattr(value, "index", None)
    if type(value).__name__ != "Series" or index is None:
        return
    for other, encoding in encodings.items():
        if len(index) != len(encoding.labels):
            continue
        by, labels = [*map(str, index)], [*map(str, encoding.labels)]
        if by != labels and {*by} == {*labels}:
            i = next(i for i in range(len(by)) if by[i] != labels[i])
            raise DataError(
                f"Argument '{name}' is a Series by the categories of '{other}', in another order "
                f"than their codes: at position {i} it has {by[i]!r}, and the category is "
                f"{labels[i]!r}. Values are taken by position, so pass them in the order of the "
                f"codes: {name}.loc[[{_listed(encoding.labels, 20)}]]."
            )


def shared_key(value: Any, known: Mapping[str, Encoding], what: str) -> str | None:
    """Return the name of the known categories that an argument without known ones has, too.

    An argument that a fit did not have, such as the groups of a forecast, has the codes of the
    argument whose categories it shares.

    Returns:
        The name; None if the argument has no categories, or none are known.

    Raises:
        DataError: no known categories are among its own, or those of several arguments are.
    """
    by_name = {n: e.labels for n, e in known.items() if e.kind == "categories"}
    found = _categories(value) if by_name else None
    if found is None:
        return None
    labels = {*found[1]}
    names = [name for name, of in by_name.items() if labels & {*of}]
    if len(names) == 1:
        return names[0]
    if not names and isinstance(value, list):  # perhaps a setting
        return None
    listed = ", ".join(map(repr, names or by_name))
    which = "those of several arguments" if names else "new, and may be of any plate"
    raise DataError(
        f"{what} has categories, but had none in the fit, and they are {which} ({listed}). Pass "
        "their codes, as integers."
    )


def _is_table(value: Any) -> bool:
    return type(value).__name__ == "DataFrame" and hasattr(value, "columns")


def _is_text(values: Sequence[Any]) -> bool:
    return all(isinstance(x, str) for x in values)


def _is_numeric(values: Any) -> bool:
    """Return whether a nested list holds numbers only, in rows of equal lengths."""
    if all(isinstance(x, list) for x in values):
        return len({len(x) for x in values}) == 1 and all(map(_is_numeric, values))
    return all(isinstance(x, (bool, int, float, np.number)) for x in values)


def is_array(value: Any) -> bool:
    """Return whether a value is an array of NumPy, pandas or xarray, or a list."""
    return type(value).__name__ in _ARRAY_TYPES


def _categories(
    value: Any, known: tuple[Any, ...] = ()
) -> tuple[NDArray[np.int64], list[Any]] | None:
    """Return codes, -1 where missing, and their labels; None if the values are no categories.

    Numbers are categories if the known ones are numbers, and texts that are numbers if the known
    ones are texts.
    """
    of = getattr(value, "cat", value)  # of a Series
    if hasattr(of, "codes") and hasattr(of, "categories"):
        return np.asarray(of.codes, np.int64), _plain(of.categories)
    if known and is_array(value) and not any(isinstance(label, str) for label in known):
        numbers = np.asarray(value)
        if numbers.ndim == 1 and numbers.dtype.kind in "biuf":
            labels, codes = np.unique(numbers, return_inverse=True)
            return codes.astype(np.int64), labels.tolist()
    if isinstance(value, list) and not (_is_text(value) or known):
        return None
    if (
        type(value).__name__ not in _ARRAY_TYPES
        or getattr(getattr(value, "dtype", None), "kind", "O") not in "OUST"
    ):
        return None
    array = np.asarray(value, object)
    if array.ndim != 1 or not array.size:
        return None
    is_text = np.array([isinstance(x, str) for x in array])
    if not is_text.any() or any(not _is_missing(x) for x in array[~is_text]):
        return None
    labels, codes = np.unique(array[is_text].astype(str), return_inverse=True)
    if not known and all(map(_is_number, labels)):
        return None
    every = np.full(len(array), -1, np.int64)
    every[is_text] = codes
    return every, labels.tolist()


def _plain(categories: Any) -> list[Any]:
    """Return categories as texts or numbers; days as in 2020-01-31."""
    array = np.asarray(categories)
    if array.dtype.kind == "M":
        days = array.astype("datetime64[D]")
        return [str(x) for x in (days if (days == array).all() else array)]
    return [x if isinstance(x, (str, int, float)) else str(x) for x in array.tolist()]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _is_missing(x: Any) -> bool:
    return x is None or type(x).__name__ == "NAType" or (isinstance(x, float) and x != x)


def _codes(
    codes: NDArray[np.int64],
    labels: list[Any],
    known: tuple[Any, ...],
    what: str,
    *,
    declared: bool,
) -> tuple[NDArray[np.int64], Encoding]:
    missing = np.flatnonzero(codes < 0)
    if len(missing):
        raise DataError(
            f"{what}: {len(missing)} of {len(codes)} categories are missing (first: index "
            f"{missing[0]}). Drop these rows, or give them a separate category."
        )
    if known:
        used = {labels[i] for i in np.unique(codes)}
        _warn_of_misspelt({x for x in used if isinstance(x, str)} - {*known}, known, what)
        if declared and {*known} <= {*labels}:  # all groups there are, some perhaps without rows
            used = {*labels}
        every = [*known, *(label for label in labels if label in used and label not in known)]
        position = {label: i for i, label in enumerate(every)}
        codes = np.array([position.get(label, -1) for label in labels], np.int64)[codes]
        labels = every
    return codes, Encoding("categories", tuple(labels))


def _warn_of_misspelt(new: set[str], known: tuple[Any, ...], what: str) -> None:
    """Warn of new categories that differ from known ones in case and spaces only."""
    plain = {" ".join(x.lower().split()): x for x in known if isinstance(x, str)}
    for label in sorted(new):
        if (meant := plain.get(" ".join(label.lower().split()))) is not None:
            warn(
                f"{what}: {label!r} is a new category beside {meant!r}. If they are one, correct "
                "the text."
            )


def _matrix(
    table: Any, columns: tuple[Any, ...] | None, what: str
) -> tuple[NDArray[np.float64], Encoding]:
    named = {str(column): column for column in table.columns}  # names may be numbers
    if len(named) < len(table.columns):
        raise DataError(f"{what} is a table with two columns of one name. Rename one of them.")
    for column in columns or ():
        if column not in named:
            similar = did_you_mean(column, named, before="; ")
            raise DataError(
                f"{what} is a table without the column {column!r} of the fit{similar or '.'} Its "
                f"columns are {', '.join(named)}."
            )
    chosen = list(columns or named)
    for column in chosen:
        dtype = np.asarray(table[named[column]]).dtype
        if dtype.kind not in "biuf":
            raise DataError(
                f"{what} is a table whose column {column!r} has dtype {dtype}, but a matrix has "
                "numbers only. Leave it out, or pass it as a separate argument: texts become "
                "codes there."
            )
    parts = [np.asarray(table[named[column]], np.float64) for column in chosen]
    matrix = np.stack(parts, 1) if parts else np.zeros((len(table), 0))
    return matrix, Encoding("columns", tuple(chosen))
