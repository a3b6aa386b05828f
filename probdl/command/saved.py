"""Saved fits: load them with their model, and write their predictions."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

import probdl
from probdl.command.locate import locate_model
from probdl.command.trusted import recorded_place, trusted_model
from probdl.errors import ModelError
from probdl.io.folders import read_index
from probdl.io.idata import escaped, unclashed
from probdl.results.fit import Fit
from probdl.util.lazy import xarray as xr

__all__ = ["load_with_model", "observed_arguments", "to_dataset", "write_npz"]


def load_with_model(folder: Path, model: str | None = None, *, trust: bool = False) -> Fit:
    """Load a fit with its model.

    Args:
        folder: the folder of the fit.
        model: the location of the model; None uses the one that the folder names, if it is trusted.
        trust: whether to import and run what the folder names.

    Raises:
        ModelError: the location is not given and the folder is not trusted, or the model there is
            not the one that was fitted.
    """
    if model is not None:
        return probdl.load(folder, model=locate_model(model))
    fit = probdl.load(folder)  # checks the folder
    recorded = read_index(folder)["model"]
    if trust:
        return probdl.load(folder, model=trusted_model(recorded))
    place = recorded_place(recorded)
    named = f" The folder names {place!r}: pass --trust to run it." if place else ""
    raise ModelError(
        f"Predictions run the model '{fit.program.name}', and no code is run because the folder "
        f"{folder} says so. Pass --model file.py:name.{named}"
    )


def observed_arguments(fit: Fit) -> list[str]:
    """Return the names of the arguments whose values are observed at a site."""
    values = [site.value for site in fit.structure.of("observed")]
    return [
        name
        for name, tensor in fit.program.named_data()
        if any(tensor.shape == v.shape and torch.equal(tensor, v) for v in values)
    ]


def to_dataset(fit: Fit, draws: dict[str, Any]) -> xr.Dataset:
    """Return predictions as a dataset with named dimensions and their labels."""
    sites = {n: [*fit.structure.sites[n].dims] for n in draws}
    named = unclashed(sites, [*draws]) | {n: [*d] for n, d in fit.dims.items() if n in draws}
    arrays = {}
    for name, array in draws.items():
        axes = range(array.ndim - 2)
        dims = [(*named[name], *[None] * array.ndim)[i] or f"{name}_dim_{i}" for i in axes]
        labels = {
            escaped(dim): list(fit.coords[dim])
            for dim, size in zip(dims, array.shape[2:], strict=True)
            if len(fit.coords.get(dim, ())) == size
        }
        dims = [escaped(dim) for dim in dims]  # netCDF has other uses for slashes
        arrays[escaped(name)] = xr.DataArray(array, dims=("chain", "draw", *dims), coords=labels)
    return xr.Dataset(arrays, attrs={"inference_library": f"probdl {probdl.__version__}"})


def write_npz(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write arrays in the format of ``numpy.savez``, which cannot store an array named ``file``."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asarray(array), allow_pickle=False)
