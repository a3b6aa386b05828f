"""The summary of a point estimate: a row for each scalar, or for each layer of a network."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probdl.model.sites import Structure
from probdl.util.lazy import pandas as pd

__all__ = ["layer_rows", "layers", "point_rows", "random_layers", "scalar_names"]

Array = NDArray[Any]

MAX_WEIGHT_ROWS = 20  # more weights without standard errors are shown as layers
COLUMNS = ("estimate", "standard_error", "ci_low", "ci_high")
LAYER_COLUMNS = ("shape", "mean", "sd")


def scalar_names(
    name: str, shape: Sequence[int], dims: Sequence[str | None], coords: Mapping[str, Any]
) -> Iterator[str]:
    """Iterate over ArviZ's names of the scalars of a site: ``theta[Choate]``, ``beta[0, 1]``.

    Args:
        name: name of the site.
        shape: its shape.
        dims: names of its dimensions; the last ones may be missing.
        coords: the labels along the dimensions.
    """
    if not shape:
        yield name
        return
    axes = [
        list(coords.get(dims[i] or "", range(n)) if i < len(dims) else range(n))
        for i, n in enumerate(shape)
    ]
    for index in itertools.product(*axes):
        yield f"{name}[{', '.join(map(str, index))}]"


def layers(
    structure: Structure, draws: Mapping[str, Array], errors: Mapping[str, Array]
) -> dict[str, Array]:
    """Return the parameters of networks that are summarised as layers, by site name.

    Those with standard errors, which say more than a row for a layer, are not. Without its module,
    as after loading, a network's parameter is known by the dot in its name, and so are the weights
    of a Bayesian network.
    """
    found = {
        s.name: draws[s.name][0, 0]
        for s in structure.of("param", "latent")
        if (s.parameter is not None or "." in s.name)
        and s.name in draws
        and draws[s.name][0, 0].size > 1
        and not np.isfinite(errors.get(s.name, np.nan)).all()
    }
    return found if sum(x.size for x in found.values()) > MAX_WEIGHT_ROWS else {}


def random_layers(structure: Structure, draws: Mapping[str, Array]) -> dict[str, Array]:
    """Return the draws of a Bayesian network's weights, by site name, if there are many."""
    return {
        s.name: draws[s.name]
        for s in structure.of("latent")
        if "." in s.name and s.name in draws and draws[s.name][0, 0].size > MAX_WEIGHT_ROWS
    }


def layer_rows(networks: Mapping[str, Array], shapes: Mapping[str, Sequence[int]]) -> pd.DataFrame:
    """Return a table with the shape of each layer, and the mean and sd of its weights."""
    rows = [(str(tuple(shapes[n])), float(w.mean()), float(w.std())) for n, w in networks.items()]
    index = [_readable(name) for name in networks]
    return pd.DataFrame(rows, columns=list(LAYER_COLUMNS), index=index)


def point_rows(
    estimates: Mapping[str, Array],
    stats: Mapping[str, Any],
    labels: Mapping[str, Collection[str]],
    networks: Mapping[str, Array],
) -> pd.DataFrame:
    """Return the table of a point estimate.

    Args:
        estimates: the estimates by site, flat; those of networks are left out.
        stats: standard errors and interval bounds by site, under the names of the columns.
        labels: the names of the scalars by site, as many as are wanted.
        networks: the weights that are summarised as layers, by site.
    """
    parts = []
    if labels or not networks:
        columns: dict[str, list[Any]] = {column: [] for column in COLUMNS}
        for name, names in labels.items():
            for column in COLUMNS:
                source = estimates if column == "estimate" else stats.get(column, {})
                values = np.broadcast_to(source.get(name, np.nan), estimates[name].shape).ravel()
                columns[column].append(values[: len(names)])
        index = [_readable(label) for names in labels.values() for label in names]
        table = {c: np.concatenate(v) if v else np.zeros(0) for c, v in columns.items()}
        parts.append(pd.DataFrame(table, index=index))
    if networks:
        parts.append(layer_rows(networks, {name: w.shape for name, w in networks.items()}))
    return parts[0] if len(parts) == 1 else pd.concat(parts)


def _readable(label: str) -> str:
    """Replace the separator of ``pyro.module`` by a dot."""
    return label.replace("$$$", ".")
