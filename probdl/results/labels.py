"""The names of a fit's dimensions, and the labels along them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from probdl.errors import SettingError, warn
from probdl.io.idata import unclashed
from probdl.model.elements import check_labels
from probdl.model.encoding import Encoding
from probdl.model.preparing import grown_shapes
from probdl.model.program import Program
from probdl.model.sites import Site, Structure, discover
from probdl.results.masking import kept_labels
from probdl.util.cached import cached
from probdl.util.suggestions import did_you_mean

__all__ = ["Labels", "check_dims", "checked_labels", "labels_at"]

Dims = dict[str, list[str | None]]


class Labels:
    """The names of the dimensions of sites and data, and the labels along them.

    A plate names its dimension, unless a site has the name, and ``dims`` overrides it. Data with
    the length of a single plate are assumed to run along it.

    Args:
        structure: the sites.
        dims: the names that the user gave, by site or argument.
        coords: the labels that the user gave, by dimension.
    """

    def __init__(
        self,
        structure: Structure,
        dims: Mapping[str, Sequence[str | None]],
        coords: Mapping[str, Any],
    ) -> None:
        self.structure = structure
        self.own_dims = dims
        self.own_coords = coords

    @cached
    def sites(self) -> Dims:
        """The dimensions by site."""
        sites = self.structure.sites
        own = {name: list(of) for name, of in self.own_dims.items() if name in sites}
        return unclashed({s.name: s.dims for s in sites.values()}, [*sites]) | own

    def of_data(
        self, shapes: Mapping[str, Sequence[int]]
    ) -> dict[str, tuple[str, list[str | None]]]:
        """Return the names and dimensions of data by argument.

        A name yields to a dimension with this name. Dimensions of another size are left out.

        Args:
            shapes: the shapes of the data, by argument.
        """
        plates: dict[int, set[str]] = {}
        for site in self.structure.of("observed") or self.structure.terms():
            for dim, size in zip(self.sites[site.name], site.shape, strict=False):
                if dim is not None:
                    plates.setdefault(size, set()).add(dim)
        sizes = self.sizes
        found: Dims = {}
        for name, shape in shapes.items():
            along = plates.get(shape[0], set()) if shape else set()
            default: list[str | None] = [*along] if len(along) == 1 else []
            pairs = itertools.zip_longest(self.own_dims.get(name, ()), default)
            given = [own if own is not None else dim for own, dim in pairs]
            found[name] = [
                dim if dim is not None and sizes.get(dim, size) == size else None
                for dim, size in zip(given, shape, strict=False)
            ]
        taken = {dim for of in found.values() for dim in of} | {*self.coords}
        return {n: (f"{n}_data" if n in taken else n, of) for n, of in found.items()}

    @property
    def sizes(self) -> dict[str, int]:
        """The sizes of the named dimensions of sites, and of those with labels."""
        found = {dim: len(labels) for dim, labels in self.coords.items()}
        for name, of in self.sites.items():
            pairs = zip(of, self.structure.sites[name].shape, strict=False)
            found |= {dim: size for dim, size in pairs if dim is not None}
        return found

    @cached
    def plates(self) -> dict[str, str]:
        """The names of the dimensions along the plates, by name of the plate."""
        return {
            plate: dim
            for site in self.structure.sites.values()
            for plate, dim in zip(site.dims, self.sites[site.name], strict=False)
            if plate is not None and dim is not None
        }

    @property
    def coords(self) -> dict[str, Any]:
        """The labels by dimension; plates may have been renamed."""
        return {self.plates.get(name, name): of for name, of in self.own_coords.items()}

    def pooled(self, sites: Mapping[str, Site], coords: dict[str, Any]) -> Dims:
        """Return the dimensions of log likelihoods of several elements each.

        Args:
            sites: what the log likelihoods are of.
            coords: labels by dimension, to which those of the elements that count are added.
        """
        plates = unclashed({n: site.dims for n, site in sites.items()}, [*self.structure.sites])
        found = {}
        for name, site in sites.items():
            pairs = zip(site.dims, plates[name], strict=True)
            named = [self.plates.get(plate or "", own) for plate, own in pairs]
            kept = "_".join(f"{dim}" for dim in named) + "_observed"
            found[name] = self.without_masked(site, named, kept, coords)
        return found

    def without_masked(
        self, site: Site, dims: Sequence[str | None], kept: str, coords: dict[str, Any]
    ) -> list[str | None]:
        """Return the dimensions of a site after its masked observations were dropped.

        Args:
            site: an observed site.
            dims: its dimensions with the masked observations.
            kept: a name for the dimension of the others, whose labels are added to ``coords``.
            coords: labels by dimension.
        """
        if site.is_scored is None:
            return list(dims)
        batch = site.is_scored.ndim
        named = [*dims, *(None for _ in range(batch))][:batch]
        sizes = zip(named, site.is_scored.shape, strict=True)
        of_kept = kept_labels(site, [coords.get(dim or "", range(n)) for dim, n in sizes])
        while kept in self.structure.sites or (kept in coords and [*coords[kept]] != of_kept):
            kept += "_"
        coords[kept] = of_kept
        return [kept, *dims[batch:]]


def checked_labels(
    program: Program, dims: Mapping[str, Sequence[str]] | None, coords: Mapping[str, Any] | None
) -> tuple[dict[str, Sequence[str | None]], dict[str, Any]]:
    """Check the names and labels of dimensions, and add those that come with the data.

    Args:
        program: the model with its data.
        dims: the names that the user gave, by site or argument.
        coords: the labels that the user gave, by dimension.

    Returns:
        The names and the labels.

    Raises:
        SettingError: they do not fit the model.
    """
    if dims is None and coords is None and not program.encodings:
        return {}, {}
    structure = discover(program)
    data = {name: tuple(value.shape) for name, value in program.named_data()}
    dims, coords = {} if dims is None else dims, check_labels("infer", coords) or {}
    _check_names(structure, data, dims, coords)
    own_dims, own_coords = _labels_of_data(program, structure)
    _check_order(own_coords, coords)
    _warn_of_order(program, coords)
    return {**own_dims, **dims}, own_coords | coords


def _check_order(own: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Check that given labels are not others than those that come with categories.

    Raises:
        SettingError: they are, so that they would be at the wrong places.
    """
    for dim, labels in own.items():
        if dim in given and [*map(str, given[dim])] != [*map(str, labels)]:
            raise SettingError(
                f"coords[{dim!r}] = {[*given[dim]][:6]} are not the labels of the categories in "
                f"the data, which are {[*labels][:6]}, in this order. Leave them out; for another "
                "order, pass pd.Categorical(values, categories=[...])."
            )


def _warn_of_order(program: Program, given: Mapping[str, Any]) -> None:
    """Warn of labels that are categories of the data in another order than their codes."""
    for dim, labels in given.items():
        for name, encoding in program.encodings.items():
            listed = [*map(str, labels)]
            own = [*map(str, encoding.labels)]
            if listed != own and sorted(listed) == sorted(own):
                warn(
                    f"coords[{dim!r}] has the categories of '{name}' in another order than their "
                    f"codes, which are {own[:6]}. If the dimension is indexed by '{name}', its "
                    "labels are at the wrong places."
                )


def _labels_of_data(
    program: Program, structure: Structure
) -> tuple[dict[str, Sequence[str | None]], dict[str, Any]]:
    """Return the names of dimensions, and their labels, that come with categories and tables.

    The labels are those of the axes that grow if the data have one more category or column. If
    the model does not run with one more, they are those of a plate with the argument's name.
    """
    dims: dict[str, list[str | None]] = {}
    coords: dict[str, Any] = {}
    for name, encoding in program.encodings.items():
        size = len(encoding.labels)
        grown = grown_shapes(program, name, encoding)
        of_rows = _labels_of_rows(program, name, encoding)
        for site in structure.sites.values():
            more = grown.get(site.name, site.shape)
            for axis, (dim, now) in enumerate(zip(site.dims, site.shape, strict=True)):
                named = dim is not None and _is_named_after(dim, name) and now == size
                grew = now <= size and more[axis : axis + 1] == (size + 1,)
                if named and of_rows and not grew and dim is not None:
                    coords[dim] = of_rows
                    continue
                if not grew and not (named and not grown):
                    continue
                label = dim or (f"{name}_column" if encoding.kind == "columns" else name)
                if dim is None:
                    if label in structure.sites:
                        continue
                    dims.setdefault(site.name, [*site.dims])[axis] = label
                coords[label] = list(encoding.labels)[:now]
        if encoding.kind == "columns" and f"{name}_column" not in structure.sites:
            plates = [d for d, labels in coords.items() if labels == list(encoding.labels)]
            columns = plates[0] if plates else f"{name}_column"
            dims[name] = [None, columns]
            coords.setdefault(columns, list(encoding.labels))
    return {**dims}, coords


def labels_at(
    program: Program,
    fitted: Program,
    dims: Mapping[str, Any],
    coords: Mapping[str, Any],
    given: Mapping[str, Any],
) -> dict[str, Any]:
    """Return labels at other arguments that come with their categories, by dimension.

    Args:
        program: the model at the other arguments.
        fitted: the model with the data of the fit.
        dims: the names of dimensions of the fit, by site or argument.
        coords: the labels of the fit, by dimension.
        given: the labels that the user gave at these arguments.

    Raises:
        SettingError: these are others than those of the categories.
    """
    known = {n: e.labels for n, e in fitted.encodings.items() if e.kind == "categories"}
    found: dict[str, Any] = {}
    if not known.keys() & program.encodings.keys():
        return found
    sizes = Labels(discover(program), dims, {}).sizes
    for name, labels in known.items():
        now = program.encodings[name].labels if name in program.encodings else labels
        for dim, held in coords.items():
            size = sizes.get(dim, 0)
            if [*held] == [*labels][: len(held)] and 0 < size <= len(now):
                found[dim] = [*now][:size]
    _check_order(found, given)
    return found


def _labels_of_rows(program: Program, name: str, encoding: Encoding) -> list[Any]:
    """Return the categories in the order of the rows, if no two rows have the same."""
    codes = program.arguments.get(name)
    if encoding.kind != "categories" or codes is None or len(codes) != len(encoding.labels):
        return []
    labels = [encoding.labels[code] for code in codes.tolist()]
    return labels if len({*labels}) == len(labels) else []


def _is_named_after(plate: str, argument: str) -> bool:
    """Return whether a plate has the name of an argument, such as firms, firm and firm_idx.

    >>> _is_named_after("firms", "firm_idx"), _is_named_after("year", "firm")
    (True, False)
    """

    def stem(name: str) -> str:
        name = name.lower()
        for end in ("_index", "_idx", "_code", "_codes", "_id", "_ids", "_plate"):
            name = name.removesuffix(end)
        return name.removesuffix("s")

    return stem(plate) == stem(argument)


def check_dims(
    structure: Structure, shapes: Mapping[str, Sequence[int]], dims: Mapping[str, Sequence[str]]
) -> dict[str, dict[int, str]]:
    """Check that names of dimensions fit the model.

    Args:
        structure: the sites.
        shapes: the shapes of sites, and of data.
        dims: the names that the user gave, by site or argument.

    Returns:
        By name of each dimension, the sizes, with a site or argument that has it.

    Raises:
        SettingError: they do not fit.
    """
    if not isinstance(dims, Mapping):
        raise SettingError(
            f"dims= is a {type(dims).__name__}; it must be a dict, such as dims={{'y': ['time']}}."
        )
    for name, axes in dims.items():
        if name not in shapes:
            raise SettingError(
                f"dims= names {name!r}, which is not in the model. Its sites and data are "
                f"{', '.join(sorted(shapes))}."
            )
        listed = isinstance(axes, Sequence) and not isinstance(axes, str)
        if not listed or len(axes) > len(shapes[name]):
            raise SettingError(
                f"dims[{name!r}] = {axes!r} must be a list of at most {len(shapes[name])} names: "
                f"{name!r} has shape {shapes[name]}."
            )
        for dim in axes:
            _check_dim(name, dim, structure)
    named: dict[str, Sequence[str | None]] = {n: s.dims for n, s in structure.sites.items()}
    named.update(dims)
    sizes: dict[str, dict[int, str]] = {}
    for name, names in named.items():
        for axis, size in enumerate(shapes[name]):
            own = names[axis] if axis < len(names) else None
            sizes.setdefault(own or f"{name}_dim_{axis}", {}).setdefault(size, name)
    for dim, found in sizes.items():
        if len(found) > 1 and any(dim in of for of in dims.values()):
            lengths = " and ".join(f"{size} in {name!r}" for size, name in found.items())
            raise SettingError(
                f"dims= gives the name {dim!r} to axes of several lengths: {lengths}."
            )
    return sizes


def _check_names(
    structure: Structure,
    data: Mapping[str, Sequence[int]],
    dims: Mapping[str, Sequence[str]],
    coords: Mapping[str, Any],
) -> None:
    """Raise SettingError unless dims name sites or data, and coords fit the dimensions."""
    shapes = dict(data) | {name: site.shape for name, site in structure.sites.items()}
    sizes = check_dims(structure, shapes, dims)
    for dim, labels in coords.items():
        if dim not in sizes:
            raise SettingError(
                f"coords has labels of {dim!r}, which is no dimension of the model"
                f"{did_you_mean(dim, sizes, before='; ')}{'' if did_you_mean(dim, sizes) else '.'} "
                f"Its dimensions are {', '.join(sorted(sizes)) or 'none: all sites are scalars'}. "
                "Plates name dimensions; name others by dims={'site': ['dimension']}."
            )
        for size, name in sizes[dim].items():
            if len(labels) != size:
                raise SettingError(
                    f"coords[{dim!r}] has {len(labels)} labels, but {name!r} has length {size} "
                    "along that dimension."
                )


def _check_dim(name: str, dim: Any, structure: Structure) -> None:
    """Raise SettingError for the name of a dimension that ArviZ cannot use."""
    if dim is None:
        return
    if not isinstance(dim, str) or not dim:
        raise SettingError(f"dims[{name!r}] has the name {dim!r}; names are texts.")
    if dim in structure.sites or dim in ("chain", "draw"):
        what = "a site of the model" if dim in structure.sites else "a dimension of all draws"
        raise SettingError(
            f"dims[{name!r}] has the name {dim!r}, which is {what}. Choose another name."
        )
