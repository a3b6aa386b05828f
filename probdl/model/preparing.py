"""Make a program of a model and data as they come: lists, tables, texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from probdl.errors import DataError, ProbdlError
from probdl.model.encoding import Encoding
from probdl.model.program import Program
from probdl.model.sites import Structure, discover
from probdl.util.isolation import isolated

__all__ = ["grown_shapes", "prepared", "uses_codes_as_numbers"]

Shapes = dict[str, tuple[int, ...]]


def prepared(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    dtype: torch.dtype = torch.float64,
    masks_missing: bool = False,
) -> Program:
    """Return a model with its arguments, whose lists and tables are arrays where it needs arrays.

    A list may be data or a setting, such as the widths of layers, and a model may read a table by
    itself: lists and tables stay as they are if the model runs with them, unless they are observed
    data. Arguments whose categories index the same plate have the same codes.

    Raises:
        DataError: a DataLoader has texts.
    """
    options: dict[str, Any] = {"dtype": dtype, "masks_missing": masks_missing}
    program = Program(model, args, kwargs, **options)
    if program.loader is not None and program.encodings:
        raise DataError(
            f"The batches of the DataLoader have texts ({', '.join(program.encodings)}), whose "
            "codes would differ from batch to batch. Make codes of all rows before, as by "
            "pd.Categorical(texts).codes."
        )
    if program.has_raw():
        try:
            structure = discover(program)
        except ProbdlError as error:
            if "KeyError" in str(error):  # the model reads a table, but not a column that it has
                raise
            program = Program(model, args, kwargs, raw=True, **options)
        else:
            held = [v for v in program.arguments.values() if isinstance(v, list)]
            observed = [s.value for s in structure.of("observed")]
            lengths = [len(value) for value in observed if value.ndim]
            if any(_is_same(v, value) for v in held for value in observed):
                program = Program(model, args, kwargs, raw=_of_length(program, lengths), **options)
    return _with_shared_categories(program, args, kwargs)


def _is_same(given: list[Any], value: torch.Tensor) -> bool:
    array = np.asarray(given)
    return array.shape == tuple(value.shape) and np.array_equal(array, np.asarray(value))


def _of_length(program: Program, lengths: list[int]) -> frozenset[str]:
    """Return the arguments that are lists or tables with as many rows as observed data."""
    held = program.arguments.items()
    return frozenset(n for n, v in held if hasattr(v, "__len__") and len(v) in lengths)


def _with_shared_categories(
    program: Program, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Program:
    """Return a program in which categories that index the same plate share their codes."""
    names = [n for n, e in program.encodings.items() if e.kind == "categories"]
    if len(names) < 2:
        return program
    plates = {name: _plates_of(program, name) for name in names}
    groups: dict[str, str] = {}
    for i, name in enumerate(names):
        labels = {*program.encodings[name].labels}
        for earlier in names[:i]:
            overlap = labels & {*program.encodings[earlier].labels}
            unknown = not plates[name] and not plates[earlier]  # which plates they index
            if plates[name] & plates[earlier] or (unknown and overlap):
                groups[name] = groups[earlier]
                break
        else:
            groups[name] = name
    if len({*groups.values()}) == len(names):
        return program
    joined = {
        group: Encoding(
            "categories",
            tuple(
                dict.fromkeys(
                    label
                    for name in names
                    if groups[name] == group
                    for label in program.encodings[name].labels
                )
            ),
        )
        for group in groups.values()
    }
    other = program.with_arguments(program.args, program.kwargs)
    other.shared = groups
    other.encodings |= {name: joined[group] for name, group in groups.items()}
    return other.with_arguments(args, kwargs)


def _plates_of(program: Program, name: str) -> set[str]:
    """Return the plates that grow with the categories of an argument."""
    most = max(len(e.labels) for e in program.encodings.values() if e.kind == "categories")
    sites = discover(program).sites
    found = set()
    for site, shape in grown_shapes(program, name, program.encodings[name], most).items():
        if site in sites:
            dims = zip(sites[site].dims, sites[site].shape, shape, strict=False)
            found |= {dim for dim, now, more in dims if dim and now < more == most + 1}
    return found


def uses_codes_as_numbers(program: Program, name: str, structure: Structure) -> bool:
    """Return whether a model uses codes, and has no element for each category of the argument."""
    codes, encoding = program.arguments.get(name), program.encodings[name]
    if encoding.kind != "categories" or codes is None:
        return False
    grown, held = grown_shapes(program, name, encoding), structure.sites
    observed = structure.of("observed")
    if any(shape != held[site].shape for site, shape in grown.items() if site in held):
        return False  # such as contrasts, which are one fewer
    if _is_index(program, name, codes.double()) or _ignores(program, name, codes + 1):
        return False
    if any(s.value.shape == codes.shape and bool((s.value == codes).all()) for s in observed):
        return True
    # Classes, such as those of a one-hot code, are rounded, or checked to be whole.
    return not (_is_index(program, name, codes + 0.25) or _ignores(program, name, codes + 0.25))


def _ignores(program: Program, name: str, other_codes: torch.Tensor) -> bool:
    """Return whether the model gives the same for other codes of an argument."""
    other = program.with_values(program.arguments | {name: other_codes})
    results = []
    for each in (program, other):
        with isolated(0):
            try:
                results.append(each.run(lambda trace: trace.log_prob_sum()))
            except ProbdlError:
                return False
    return bool(torch.equal(*map(torch.as_tensor, results)))


def _is_index(program: Program, name: str, numbers: torch.Tensor) -> bool:
    """Return whether the model takes codes as an index: such numbers are an error."""
    try:
        discover(program.with_values(program.arguments | {name: numbers}))
    except ProbdlError:
        return True
    return False


def grown_shapes(
    program: Program, name: str, encoding: Encoding, code: int | None = None
) -> Shapes:
    """Return the shapes of the sites with one more category or column; empty if that fails.

    Args:
        program: the model with its data.
        name: an argument.
        encoding: how it became numbers.
        code: the code of the additional category; None means the next one.
    """
    values = dict(program.arguments)
    if name not in values:  # in *args or **kwargs
        return {}
    data, size = values[name].clone(), len(encoding.labels)
    code = size if code is None else code
    if encoding.kind == "columns":
        data = torch.cat([data, data[:, :1]], 1)
    else:
        data[0] = code
    counts = {n: code + 1 for n, v in values.items() if type(v) is int and v == size}
    for extra in ({}, counts) if counts else ({},):
        try:
            sites = discover(program.with_values(values | {name: data} | extra)).sites
        except ProbdlError:
            continue
        return {n: site.shape for n, site in sites.items()}
    return {}
