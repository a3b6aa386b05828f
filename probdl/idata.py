"""Draws and sites to an ArviZ container; the only file that knows two ArviZ versions.

ArviZ 0.x holds groups in an ``InferenceData``, ArviZ 1.x in an ``xarray.DataTree``. It needs
no torch: arrays go in.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

with warnings.catch_warnings():  # 0.23 announces 1.0 on every import
    warnings.simplefilter("ignore", FutureWarning)
    import arviz as az

__all__ = ["ARVIZ_1", "bfmi", "ess", "plot_ppc", "psis", "rhat", "summary", "to_idata", "unclashed"]

ARVIZ_1 = int(az.__version__.split(".")[0]) >= 1
if ARVIZ_1:
    from arviz_stats.base import array_stats

Arrays = Mapping[str, NDArray[Any]]
Dims = Mapping[str, Sequence[str | None]]


def to_idata(
    groups: Mapping[str, Arrays],
    *,
    dims: Dims | None = None,
    coords: Mapping[str, Any] | None = None,
) -> Any:
    """Put groups of arrays into an ArviZ container.

    Args:
        groups: by group name (``posterior``, ``log_likelihood``, ``observed_data`` …), arrays by
            variable name. Arrays are (chain, draw, *shape), and (*shape) in the data groups.
        dims: the names of the dimensions of ``shape`` by variable; None, or a missing name,
            takes ArviZ's default. Log likelihoods have no event dimensions, and fewer names.
        coords: the labels along a dimension, by its name.

    Returns:
        An ``InferenceData`` (ArviZ 0.x) or a ``DataTree`` (ArviZ 1.x).

    >>> idata = to_idata({"posterior": {"x": np.zeros((4, 10, 3))}}, dims={"x": ["school"]})
    >>> idata.posterior["x"].dims
    ('chain', 'draw', 'school')
    """
    filled = {group: dict(arrays) for group, arrays in groups.items() if arrays}
    variables: dict[str, int] = {}
    for group, arrays in filled.items():
        lead = 0 if "data" in group else 2
        for name, array in arrays.items():
            rank = np.ndim(array) - lead
            variables[name] = max(rank, variables.get(name, 0))
    named = {
        name: [_or_default(dim, name, axis) for axis, dim in enumerate((dims or {}).get(name, ()))][
            :rank
        ]
        for name, rank in variables.items()
    }
    if ARVIZ_1:
        return az.from_dict(filled, dims=named, coords=dict(coords or {}))
    container: Any = None
    for group, arrays in filled.items():
        # A group at a time, since 0.x wants the dims of each group to fit its arrays.
        lead = 0 if "data" in group else 2
        fitting = {n: named[n][: np.ndim(array) - lead] for n, array in arrays.items()}
        one: dict[str, Any] = {group: arrays}
        part = az.from_dict(**one, dims=fitting, coords=dict(coords or {}))
        if container is None:
            container = part
        else:
            container.extend(part)
    return container


def _or_default(dim: str | None, name: str, axis: int) -> str:
    return dim if dim is not None else f"{name}_dim_{axis}"


def unclashed(dims: Dims, variables: Sequence[str]) -> dict[str, list[str | None]]:
    """Rename dims that bear the name of a variable, which xarray would take for its labels.

    >>> unclashed({"y": ["y"], "x": ["school"]}, ["x", "y"])
    {'y': ['y_dim'], 'x': ['school']}
    """
    taken = {*variables, "chain", "draw"}
    return {
        name: [f"{dim}_dim" if dim in taken else dim for dim in of_name]
        for name, of_name in dims.items()
    }


def summary(idata: Any, **options: Any) -> Any:
    """Return ArviZ's summary table; ``options`` are those of ``arviz.summary``."""
    with _quiet():
        return az.summary(idata, **options)


def rhat(idata: Any) -> dict[str, NDArray[np.float64]]:
    """Return the rank-normalised split R-hat by variable, each of the variable's shape."""
    return _arrays(az.rhat, idata)


def ess(idata: Any, kind: str) -> dict[str, NDArray[np.float64]]:
    """Return the effective sample size by variable; ``kind`` is ``"bulk"`` or ``"tail"``."""
    return _arrays(az.ess, idata, method=kind)


def bfmi(energy: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the estimated Bayesian fraction of missing information of each chain."""
    if not ARVIZ_1:
        return np.asarray(az.bfmi(np.asarray(energy)))
    result = az.bfmi(az.from_dict({"sample_stats": {"energy": np.asarray(energy)}}))
    return np.asarray(result["energy"].values)


def psis(log_ratios: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """Smooth log importance ratios (n,) by Pareto smoothing; return log weights and k-hat.

    Ratios that are all the same have no tail: k-hat is then -inf.
    """
    if np.ptp(log_ratios) < 1e-9:
        return np.full(len(log_ratios), -np.log(len(log_ratios))), -np.inf
    with _quiet():  # of overflow in the fit of a very heavy tail
        if ARVIZ_1:  # takes log likelihoods, of which the ratios are the inverse
            log_weights, k = array_stats.psislw(-np.asarray(log_ratios))
        else:
            log_weights, k = az.psislw(np.asarray(log_ratios))
    return np.asarray(log_weights), float(k)


def plot_ppc(idata: Any, **options: Any) -> Any:
    """Plot data and posterior predictive; ``options`` are those of ArviZ's function."""
    if ARVIZ_1 and "num_pp_samples" in options:
        options["num_samples"] = options.pop("num_pp_samples")
    plot: Any = getattr(az, "plot_ppc_dist" if ARVIZ_1 else "plot_ppc")
    return plot(idata, **options)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence ArviZ where a NaN says it: with a single chain, at a site that is constant."""
    # 0.x logs through an object that no getLogger() call finds; 1.x says "arviz_stats".
    logger = logging.getLogger("arviz_stats") if ARVIZ_1 else az._log
    disabled, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = disabled


def _arrays(statistic: Any, idata: Any, **options: Any) -> dict[str, NDArray[np.float64]]:
    with _quiet():
        result = statistic(idata, **options)
    dataset = result.dataset if ARVIZ_1 else result
    return {str(name): np.asarray(array.values) for name, array in dataset.data_vars.items()}
