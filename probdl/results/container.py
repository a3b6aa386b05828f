"""The groups of a fit's ArviZ container, with the names and labels of their dimensions."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probdl.errors import SettingError
from probdl.io.idata import dataset, to_idata
from probdl.model import streaming
from probdl.model.program import Program
from probdl.model.sites import Site, Structure
from probdl.results.labels import Dims, Labels
from probdl.results.masking import without_masked
from probdl.util.lazy import xarray as xr
from probdl.util.suggestions import suggest

__all__ = [
    "as_numpy",
    "assemble",
    "data_groups",
    "of_observed",
    "predicted",
    "prior_groups",
    "with_integers",
]

Array = NDArray[Any]
Arrays = dict[str, Array]


def as_numpy(x: Tensor) -> Array:
    """Return a tensor as an array on the CPU, without its gradient."""
    return np.asarray(x.detach().resolve_conj().cpu().numpy())


def with_integers(sites: Mapping[str, Site], arrays: Mapping[str, Array]) -> Arrays:
    """Return counts and classes, which torch holds as floating-point numbers, as integers.

    ArviZ draws histograms of integers and densities of others.

    Args:
        sites: the sites.
        arrays: arrays by site; those with NaN stay as they are.
    """
    counted = {name for name in arrays if name in sites and sites[name].is_discrete}
    return {name: _as_integers(x) if name in counted else x for name, x in arrays.items()}


def _as_integers(array: Array) -> Array:
    if array.dtype.kind != "f":
        return array
    with np.errstate(invalid="ignore"):  # of NaN
        converted = array.astype(np.int32 if array.dtype.itemsize < 8 else np.int64)
    return converted if np.array_equal(converted, array) else array


def of_observed(sites: Mapping[str, Site], arrays: Mapping[str, Array], lead: int) -> Arrays:
    """Drop masked observations from the arrays of observed sites.

    Args:
        sites: the sites of all rows.
        arrays: (*lead shape, *shape) by site.
        lead: the number of leading dimensions.
    """
    return {
        name: without_masked(sites[name], array, lead) if name in sites else array
        for name, array in arrays.items()
    }


def prior_groups(
    program: Program, structure: Structure, whole: Structure, count: int
) -> dict[str, Arrays]:
    """Draw from the prior: the groups ``prior`` and ``prior_predictive``.

    Sites that an argument without a value would observe are in the second group too.

    Args:
        program: the model with its data.
        structure: its sites.
        whole: the sites with the data of all rows.
        count: number of draws.
    """
    values = streaming.sample_prior(program, structure, count)
    arrays = {name: as_numpy(value)[None] for name, value in values.items()}
    omitted = {name for name, value in program.all_arguments.items() if value is None}
    names = {s.name for s in structure.of("observed")} | omitted
    predictive = {name: array for name, array in arrays.items() if name in names}
    observed = {s.name: s for s in whole.of("observed")}
    return {
        "prior": {name: array for name, array in arrays.items() if name not in names},
        "prior_predictive": of_observed(observed, with_integers(observed, predictive), 2),
    }


def data_groups(program: Program, structure: Structure, whole: Structure) -> dict[str, Arrays]:
    """Return the groups ``observed_data`` and ``constant_data``, without what is in the first."""
    observed = whole.of("observed")
    data = with_integers(whole.sites, {s.name: as_numpy(s.value) for s in observed})
    return {
        "observed_data": of_observed(whole.sites, data, 0),
        "constant_data": {
            name: as_numpy(value)
            for name, value in streaming.data(program, structure)
            if not any(
                value.shape == s.value.shape and torch.equal(value, s.value) for s in observed
            )
        },
    }


def predicted(
    draws: Mapping[str, Array],
    labels: Labels,
    given: Mapping[str, Any],
    matched: Collection[str] = (),
) -> Any:
    """Return predictions as a labelled dataset.

    Args:
        draws: (chain, draw, *shape) by site.
        labels: the names of the dimensions at the arguments of the predictions, and their labels.
        given: the labels that the user gave, which must fit.
        matched: dimensions of the fit, by whose labels groups were matched; the predictions need
            not have them.

    Raises:
        SettingError: there are labels of no dimension, or not one for each index.
    """
    sizes: dict[str, int] = {}
    for name, array in draws.items():
        dims = [*labels.sites.get(name, ()), *itertools.repeat(None, array.ndim)]
        for axis, size in enumerate(array.shape[2:]):
            sizes[dims[axis] or f"{name}_dim_{axis}"] = size
    for dim, of in given.items():
        size = sizes.get(labels.plates.get(dim, dim))
        if size is None and dim in matched:
            continue
        if size is None:
            raise SettingError(
                f"coords has labels of {dim!r}, which is no dimension of the predictions; "
                f"{suggest(dim, sizes)}"
            )
        if len(of) != size:
            raise SettingError(
                f"coords[{dim!r}] has {len(of)} labels, but the predictions have length {size} "
                "along that dimension."
            )
    held = {dim: of for dim, of in labels.coords.items() if len(of) == sizes.get(dim)}
    if not draws:  # of a model without observed sites
        return xr.Dataset()
    container = to_idata({"predictions": draws}, dims=dict(labels.sites), coords=held)
    return dataset(container, "predictions")


def assemble(
    groups: Mapping[str, Mapping[str, Array]],
    labels: Labels,
    whole: Structure,
    *,
    scores: Mapping[str, Site] | None = None,
    pooled_dims: Callable[[Mapping[str, Site], dict[str, Any]], Dims] | None = None,
) -> Any:
    """Convert groups of arrays, without masked observations, to an ArviZ container.

    Args:
        groups: arrays by site or argument, by group.
        labels: the names of dimensions, and labels.
        whole: the sites with the data of all rows.
        scores: what the pointwise log likelihoods are of, by name.
        pooled_dims: returns the dimensions of those of several elements, and adds their labels;
            None means ``labels.pooled``.
    """
    coords = labels.coords
    dims: Dims = dict(labels.sites)
    terms = {s.name: s for s in whole.terms()} if {*groups} - {"posterior"} else {}
    for name, site in terms.items():
        dims[name] = labels.without_masked(site, dims[name], f"{name}_observed", coords)
    pooled = {name: site for name, site in (scores or {}).items() if site is not terms.get(name)}
    own = {}
    if pooled:
        own["log_likelihood"] = (pooled_dims or labels.pooled)(pooled, coords)
    if data := groups.get("constant_data"):
        named = Labels(whole, labels.own_dims, labels.own_coords).of_data(
            {name: array.shape for name, array in data.items()}
        )
        own["constant_data"] = dict(named.values())
        groups = {**groups, "constant_data": {named[n][0]: v for n, v in data.items()}}
    return to_idata(groups, dims=dims, coords=coords, group_dims=own)
