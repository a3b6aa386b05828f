"""The names of a fit's dimensions, and the labels along them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from probdl.errors import SettingError
from probdl.io.idata import unclashed
from probdl.model.elements import check_labels
from probdl.model.sites import Site, Structure
from probdl.results.masking import kept_labels
from probdl.util.cached import cached
from probdl.util.suggestions import did_you_mean

__all__ = ["Labels", "check_names"]

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

    def of_data(self, shapes: Mapping[str, Sequence[int]]) -> dict[str, tuple[str, list[str | None]]]:
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
            given = [*self.own_dims.get(name, default)][: len(shape)]
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


def check_names(
    structure: Structure,
    data: Mapping[str, Sequence[int]],
    dims: Mapping[str, Sequence[str]],
    coords: Mapping[str, Any],
) -> None:
    """Check that dims name sites or data of the model, and that coords fit its dimensions.

    Args:
        structure: the sites of the model.
        data: the shapes of the data among its arguments, by name.
        dims: names of dimensions, by site or argument.
        coords: labels, by dimension.

    Raises:
        SettingError: they do not.
    """
    if not isinstance(dims, Mapping):
        raise SettingError(
            f"dims= is a {type(dims).__name__}; it must be a dict, such as dims={{'y': ['time']}}."
        )
    check_labels("infer", coords)
    shapes = dict(data) | {name: site.shape for name, site in structure.sites.items()}
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
            dim = names[axis] if axis < len(names) else None
            sizes.setdefault(dim or f"{name}_dim_{axis}", {}).setdefault(size, name)
    for dim, found in sizes.items():
        if len(found) > 1 and any(dim in of for of in dims.values()):
            lengths = " and ".join(f"{size} in {name!r}" for size, name in found.items())
            raise SettingError(f"dims= gives the name {dim!r} to axes of several lengths: {lengths}.")
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
