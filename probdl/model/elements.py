"""Match the elements of plates at new arguments with those of a fit.

A group that the fit has seen keeps its posterior draws at new arguments; a new group is drawn from
the population, which is the distribution of its site given the draws of the other sites.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probdl.errors import SettingError, warn
from probdl.model.dates import as_dates, comparable, in_nanoseconds
from probdl.model.distributions import base_distribution
from probdl.model.sites import Site, Structure
from probdl.util.text import has_controls

__all__ = ["Elements", "check_labels"]

Labels = Mapping[str, Any]  # by dimension


def check_labels(owner: str, coords: Any) -> dict[str, Any] | None:
    """Check that ``coords`` is None, or has lists of labels by dimension.

    Returns:
        The labels by position: a Series, whose ``[i]`` is that of its index, becomes an array, and
        dates of any type become those of NumPy.

    Raises:
        SettingError: they are something else.
    """
    if coords is None:
        return None
    if not isinstance(coords, Mapping):
        raise SettingError(
            f"{owner}(coords=…): coords is a {type(coords).__name__}; it must be a dict, such as "
            "coords={'school': ['A', 'B']}."
        )
    for dim, labels in coords.items():
        if not isinstance(dim, str):
            raise SettingError(f"{owner}(coords=…): a dimension has the name {dim!r}, no text.")
        listed = hasattr(labels, "__len__") and not isinstance(labels, (set, frozenset, Mapping))
        listed = listed and getattr(labels, "ndim", 1) == 1 and not isinstance(labels, type)
        if not listed or any(isinstance(one, (tuple, list, np.ndarray)) for one in labels):
            raise SettingError(
                f"coords[{dim!r}] = {labels!r} must be a list of labels, one for each index."
            )
        _check_storable(dim, labels)
        values, counts = np.unique(np.asarray(labels), return_counts=True)
        if (counts > 1).any():
            raise SettingError(
                f"coords[{dim!r}] has the label {values[counts > 1][0].item()!r} more than once. "
                "Labels must be unique; number those of the same name."
            )
    return {dim: _by_position(labels) for dim, labels in coords.items()}


def _by_position(labels: Any) -> Any:
    if (dates := as_dates(labels)) is not None:
        return dates
    return np.asarray(labels) if hasattr(labels, "__array__") else labels


def _check_storable(dim: str, labels: Any) -> None:
    """Check that a file can hold labels, so that a fit with them can be saved."""
    array = np.asarray(labels)
    dates = as_dates(array)
    if dates is not None and not in_nanoseconds(dates):
        raise SettingError(
            f"coords[{dim!r}] has dates before 1678 or after 2262, such as {dates.min()}, which "
            "files cannot hold. Use numbers, such as years, or texts."
        )
    if array.dtype.kind in "bif" or dates is not None:
        return
    if array.dtype.kind == "u" and (array <= np.iinfo(np.int64).max).all():
        return
    for label in array.tolist():
        if not isinstance(label, str):
            raise SettingError(
                f"coords[{dim!r}] has the label {label!r} of type {type(label).__name__}. Labels "
                "are texts, numbers below 2**63 or dates without a time zone; convert others, for "
                "example by [str(label) for label in labels]."
            )
        if has_controls(label):
            raise SettingError(
                f"coords[{dim!r}] has the label {label!r}. Use labels of printable characters."
            )


class Elements:
    """The elements of the latent sites of a fit, matched with those at new arguments.

    Elements are matched by label along dimensions with labels, and by position along others. A
    plate that the observed data run along and that is shorter than in the fit has other rows,
    which are all new unless it has labels.

    Args:
        structure: the sites of the model as it was fitted.
        dims: the names of the dimensions by site, under which labels are found; None means the
            names of the plates.
        labels: the labels of the fit.
        new_labels: the labels at the new arguments.
        fresh: plates whose elements are all new.

    Raises:
        SettingError: a dimension has labels here, but none in the fit.
    """

    def __init__(
        self,
        structure: Structure,
        *,
        dims: Mapping[str, Sequence[str | None]] | None = None,
        labels: Labels | None = None,
        new_labels: Labels | None = None,
        fresh: Collection[str] = (),
    ) -> None:
        self.structure = structure
        self.dims = dims or {}
        self.fresh = frozenset(fresh)
        self.rows = {dim for s in structure.of("observed") for dim in s.dims if dim is not None}
        # Dimensions may have another name than their plate.
        plates = {
            dim: plate
            for s in structure.sites.values()
            for plate, dim in zip(s.dims, self.dims.get(s.name, ()), strict=False)
            if plate is not None and dim is not None
        }
        old, new = (
            {plates.get(dim, dim): of for dim, of in (given or {}).items()}
            for given in (labels, new_labels)
        )
        self.matches = {dim: _match(dim, old.get(dim), of, old) for dim, of in new.items()}
        self.by_position: dict[
            str, tuple[int, int]
        ] = {}  # what has which sizes, in the fit and now
        self.unmatched: set[str] = set()  # sites whose draws cannot be used
        self.drawn: set[str] = set()  # sites with elements that are not in the fit
        self.undirected: dict[str, str] = {}  # those of them that another term depends on, and it

    def _without_enumerated(self, fn: Any, ndim: int) -> torch.Size:
        """Return the shape of a distribution without the dimensions of discrete sites."""
        shape = fn.shape()
        if len(shape) > ndim and len(fn.batch_shape) > self.structure.plate_depth:
            shape = shape[len(fn.batch_shape) - self.structure.plate_depth :]
            while len(shape) > ndim and shape[0] == 1:
                shape = shape[1:]
        return shape

    def draw(self, name: str, value: Tensor, fn: Any) -> Tensor | None:
        """Return a draw of a site at the new arguments, or None if the fit's cannot be used.

        Args:
            name: the site.
            value: a draw of the fit.
            fn: the distribution of the site at the new arguments, given the other sites.
        """
        shape = self._without_enumerated(fn, value.ndim)
        separate = value.ndim - base_distribution(fn).event_dim  # axes of independent elements
        known = torch.ones((), dtype=torch.bool)
        if value.ndim != len(shape):
            self.unmatched.add(name)
            return None
        for axis, (old, new) in enumerate(zip(value.shape, shape, strict=True)):
            plate = self.structure.sites[name].dims[axis]
            if (source := self._labelled(name, axis, new)) is None:
                if plate in self.fresh:
                    source = [-1] * new
                elif old == new:
                    continue
                elif plate in self.rows and new < old:
                    self.unmatched.add(name)
                    return None
                else:
                    source = [row if row < old else -1 for row in range(new)]
            if axis >= separate:
                self.unmatched.add(name)
                return None
            if plate not in self.fresh and not self._key(name, axis):
                what = f"'{plate}'" if plate is not None else f"Axis {axis} of site '{name}'"
                self.by_position[what] = (old, new)
            rows = torch.tensor(source)
            value = value.index_select(axis, rows.clamp(min=0))
            known = known & (rows >= 0).reshape([-1 if i == axis else 1 for i in range(len(shape))])
        if known.all():
            return value
        self.drawn.add(name)
        return torch.where(known, value, fn())

    def is_shared(self, site: Site) -> bool:
        """Return whether several rows of the observed data may share an element of a site."""
        plates = set(site.dims) - {None}
        observed = [set(s.dims) - {None} for s in self.structure.of("observed")]
        return not plates or any(rows - plates for rows in observed)

    def _labelled(self, name: str, axis: int, new: int) -> Sequence[int] | None:
        """Return the element of the fit for each new one, -1 for none; None without labels."""
        key = self._key(name, axis)
        if key is None:
            return None
        source = self.matches[key]
        if len(source) != new:
            raise SettingError(
                f"coords has {len(source)} labels of '{key}', but site '{name}' has {new} "
                "elements there at these arguments."
            )
        return source

    def _key(self, name: str, axis: int) -> str | None:
        """Return the name under which there are labels along an axis of a site."""
        plates = self.structure.sites[name].dims
        names = (plates[axis], *self.dims.get(name, ())[axis : axis + 1])
        return next((dim for dim in names if dim is not None and dim in self.matches), None)

    def warn(self) -> None:
        """Warn of elements that were matched by position, and of draws that were not used."""
        for what, (old, new) in sorted(self.by_position.items()):
            both = min(old, new)
            drawn = (
                f", and the other {new - old} were drawn from the population" if new > old else ""
            )
            warn(
                f"{what} has {new} elements at these arguments and {old} in the fit. The first "
                f"{both} were taken to be the same as in the fit{drawn}. To match elements by "
                "label, pass their labels: infer(..., coords=...) and predict(..., coords=...)."
            )
        for name in sorted(self.unmatched):
            warn(
                f"The shape of site '{name}' at these arguments differs from that in the fit, so "
                "its posterior draws cannot be used. It was sampled from its prior, conditional on "
                "the other sites. If some elements of its plate are in the fit, match them by "
                "label: infer(..., coords=...) and predict(..., coords=...)."
            )
        for name, term in sorted(self.undirected.items()):
            warn(
                f"Site '{name}' has elements at these arguments that are not in the fit. They were "
                f"drawn from the distribution of '{name}', although '{term}' depends on them, too. "
                "Fit the model at these arguments to take it into account."
            )


def _match(dim: str, old: Any, new: Any, known: Labels) -> list[int]:
    """Return the position in the fit of each new label, -1 if it is new."""
    if old is None:
        raise SettingError(
            f"coords has labels of '{dim}', which the fit has not: it has labels of "
            f"{', '.join(map(repr, known)) or 'no dimension'}. Pass the labels to infer() as well."
        )
    try:
        labels, new = comparable(old, new)
    except ValueError as error:
        raise SettingError(
            f"Some labels of '{dim}' are dates, and others cannot be read as dates ({error}). Pass "
            "labels of the same kind to infer() and here."
        ) from None
    position = {label: i for i, label in enumerate(labels)}
    if len(position) < len(labels):
        raise SettingError(
            f"The labels of '{dim}' in the fit are not unique, so elements cannot be matched."
        )
    found = [position.get(label, -1) for label in new]
    if found and max(found) < 0 and isinstance(new[0], str) != isinstance(labels[0], str):
        warn(
            f"No label of '{dim}' at these arguments is one of the fit, so that all elements are "
            f"new: the labels are of another type, such as {new[0]!r} where the fit has "
            f"{labels[0]!r}."
        )
    return found
