"""Saved fits: load them with their model, and write their predictions."""

from __future__ import annotations

import itertools
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import probdl
from probdl.command.locate import locate_model
from probdl.command.trusted import recorded_place, trusted_model
from probdl.errors import ModelError, warn
from probdl.io.folders import read_index
from probdl.io.idata import label_texts, to_container, write
from probdl.results.fit import Fit
from probdl.util.lazy import pandas as pd
from probdl.util.lazy import xarray as xr

__all__ = [
    "load_with_model",
    "observed_arguments",
    "prediction_table",
    "predictions_of",
    "with_classes",
    "write_npz",
    "write_predictions",
]

QUANTILES = (0.055, 0.5, 0.945)
POINT_DRAWS, POINT_NUMBERS_MAX = 1000, 2**26  # of a point estimate: draws, and numbers in them


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
        f"This runs the model '{fit.program.name}', and no code is run because the folder "
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


def predictions_of(
    fit: probdl.Fit,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    coords: Mapping[str, Any],
) -> xr.Dataset:
    """Return predictions; of a point estimate many draws, so that they have a distribution."""
    found = fit.predictions(*args, coords=coords or None, **kwargs)
    size = sum(array.size for array in found.data_vars.values())
    count = min(POINT_DRAWS, POINT_NUMBERS_MAX // max(size, 1))
    if not fit.is_point or count < 2:
        return found
    draws = {name: np.repeat(array, count, axis=1) for name, array in fit.draws.items()}
    return replace(fit, draws=draws).predictions(*args, coords=coords or None, **kwargs)


def prediction_table(predictions: xr.Dataset) -> pd.DataFrame:
    """Return a table with a row for each predicted value: its mean, sd and quantiles."""
    parts = []
    for name, array in predictions.items():
        values = _flat(array)
        columns = {"site": name, "index": _indices(array)}
        columns |= {"mean": values.mean(0), "sd": values.std(0)}
        for level in QUANTILES:
            columns[f"q{100 * level:g}"] = np.quantile(values, level, axis=0)
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)


def with_classes(
    table: pd.DataFrame,
    fit: probdl.Fit,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    coords: Mapping[str, Any],
) -> pd.DataFrame:
    """Add the probabilities of the classes of categorical sites to a table of predictions."""
    if not fit.classes:
        return table
    try:
        matched = {dim: labels for dim, labels in coords.items() if dim in fit.coords}
        found = fit.predict_proba(*args, coords=matched or None, **kwargs)
    except ModelError as error:
        warn(f"The probabilities of classes are left out: {error}")
        return table
    for name, probabilities in found.items():
        rows = table["site"] == name
        shares = probabilities.reshape(-1, probabilities.shape[-1])
        for label, share in zip(fit.classes[name], shares.T, strict=True):
            table.loc[rows, f"p[{label}]"] = share
    return table


def _draws_table(predictions: xr.Dataset) -> pd.DataFrame:
    """Return a table with a row for each draw of each predicted value."""
    parts = []
    for name, array in predictions.items():
        values, indices = _flat(array), _indices(array)
        chains, draws = array.shape[:2]
        columns = {
            "chain": np.repeat(np.arange(chains), draws * len(indices)),
            "draw": np.tile(np.repeat(np.arange(draws), len(indices)), chains),
            "site": name,
            "index": np.tile(indices, chains * draws),
            "value": values.ravel(),
        }
        parts.append(pd.DataFrame(columns))
    return pd.concat(parts, ignore_index=True)


def _flat(array: xr.DataArray) -> NDArray[Any]:
    return np.asarray(array).reshape(array.shape[0] * array.shape[1], -1)


def _indices(array: xr.DataArray) -> list[str]:
    """Return the labels of each value of a draw, joined by commas."""
    labels = [label_texts(array[dim]) for dim in array.dims[2:]]
    return [", ".join(key) for key in itertools.product(*labels)]


def write_predictions(
    path: Path, predictions: xr.Dataset, table: pd.DataFrame, *, draws: bool
) -> None:
    """Write predictions to a file of the type that its name ends with.

    Args:
        path: a .csv, .nc or .npz file.
        predictions: the draws.
        table: their summary, for .csv.
        draws: whether a .csv has the draws, one row for each chain, draw and value.
    """
    if path.suffix == ".nc":
        with path.open("wb") as file:
            write(to_container(predictions), file)
    elif path.suffix == ".npz":
        write_npz(path, {str(name): array.values for name, array in predictions.items()})
    else:
        (_draws_table(predictions) if draws else table).to_csv(path, index=False)


def write_npz(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write arrays in the format of ``numpy.savez``, which cannot store an array named ``file``."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asarray(array), allow_pickle=False)
