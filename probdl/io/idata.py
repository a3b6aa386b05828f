"""Draws and sites to an ArviZ container; the only file that knows two ArviZ versions.

ArviZ 0.x holds groups in an ``InferenceData``, ArviZ 1.x in an ``xarray.DataTree``. It needs
no torch: arrays go in.
"""

from __future__ import annotations

import copy
import importlib.metadata
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probdl.findings import PARETO_K_MAX
from probdl.util.lazy import arviz as az
from probdl.util.lazy import arviz_stats_base, ecdf_utils, h5netcdf, stats
from probdl.util.lazy import xarray as xr
from probdl.util.lock import TURN

__all__ = [
    "ARVIZ_1",
    "PLOTS",
    "bfmi",
    "chain_rhat",
    "compare",
    "ecdf_band",
    "ess",
    "groups",
    "labels",
    "loo",
    "mcse",
    "num_draws",
    "pareto_k",
    "plot",
    "plot_ppc",
    "psis",
    "read",
    "rhat",
    "summary",
    "to_idata",
    "unclashed",
    "variables",
    "with_exact",
    "write",
]

ARVIZ_1 = int(importlib.metadata.version("arviz").split(".")[0]) >= 1

_SLASH = "∕"  # U+2215: netCDF and DataTree keep the other for themselves
# From which on importance sampling cannot be trusted: Vehtari, Simpson, Gelman, Yao and Gabry,
# "Pareto smoothed importance sampling", JMLR 25(72) (2024).

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
    # xarray reads a tuple as dimensions and data, and what has labels itself it wants to align.
    labels = {
        dim: np.asarray(of) if hasattr(of, "__array__") else list(of)
        for dim, of in (coords or {}).items()
    }
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
        safe = {g: {_safe(n): a for n, a in arrays.items()} for g, arrays in filled.items()}
        names = {_safe(n): [_safe(dim) for dim in of] for n, of in named.items()}
        labelled = {_safe(dim): values for dim, values in labels.items()}
        with _quiet():  # of more chains than draws
            return az.from_dict(safe, dims=names, coords=labelled)
    container: Any = None
    for group, arrays in filled.items():
        # A group at a time, since 0.x wants the dims of each group to fit its arrays.
        lead = 0 if "data" in group else 2
        fitting = {n: named[n][: np.ndim(array) - lead] for n, array in arrays.items()}
        one: dict[str, Any] = {group: arrays}
        with _quiet():
            part = az.from_dict(**one, dims=fitting, coords=labels)
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


def num_draws(idata: Any) -> int:
    """Return how many draws a chain has."""
    return int(idata.posterior.sizes["draw"])


def chain_rhat(idata: Any) -> dict[str, NDArray[np.float64]]:
    """Return the split R-hat of each chain by itself, (chain, *shape) by variable."""
    posterior = idata.posterior.dataset if ARVIZ_1 else idata.posterior
    half = posterior.sizes["draw"] // 2

    def halves(array: NDArray[Any]) -> NDArray[Any]:
        return array[: 2 * half].reshape(2, half, *array.shape[1:])

    found = [
        rhat(to_idata({"posterior": {n: halves(v.values[i]) for n, v in posterior.items()}}))
        for i in range(posterior.sizes["chain"])
    ]
    return {name: np.stack([of[name] for of in found]) for name in found[0]}


def ess(idata: Any, kind: str) -> dict[str, NDArray[np.float64]]:
    """Return the effective sample size by variable; ``kind`` is ``"bulk"`` or ``"tail"``."""
    return _arrays(az.ess, idata, method=kind)


def mcse(idata: Any) -> dict[str, NDArray[np.float64]]:
    """Return the Monte Carlo standard error of the mean by variable."""
    return _arrays(az.mcse, idata, method="mean")


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
            try:
                log_weights, k = arviz_stats_base.array_stats.psislw(-np.asarray(log_ratios))
            except ValueError:  # no tail can be fitted to values that are all the same
                return np.asarray(log_ratios - np.logaddexp.reduce(log_ratios)), np.inf
        else:
            log_weights, k = az.psislw(np.asarray(log_ratios))
    return np.asarray(log_weights), float(k)


def ecdf_band(
    count: int, num_draws: int, prob: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return the band that the empirical CDF of uniform ranks stays in, at all points at once.

    Args:
        count: how many ranks there are.
        num_draws: they are of 0 to this.
        prob: the probability of staying in the band.

    Returns:
        The points of [0, 1], and the band's lower and upper bound there.
    """
    points = np.arange(1, num_draws + 1) / (num_draws + 1)
    if ARVIZ_1:
        rng = np.random.default_rng(0)
        pointwise = ecdf_utils.simulate_confidence_bands(count, 1, points, prob, 1000, rng)
        low, high = ecdf_utils.get_pointwise_confidence_band(pointwise, count, points)
    else:
        low, high = ecdf_utils.ecdf_confidence_band(
            count,
            points,
            points,
            prob,
            method="simulated",
            num_trials=1000,
            rvs=stats.uniform(0, 1).rvs,
            random_state=np.random.default_rng(0),
        )
    return points, np.asarray(low), np.asarray(high)


def loo(idata: Any, name: str) -> Any:
    """Return ArviZ's leave-one-out cross-validation of a variable, with its pointwise values."""
    with _quiet():
        return az.loo(idata, pointwise=True, var_name=name)


def pareto_k(elpd: Any) -> NDArray[np.float64]:
    """Return the k-hat of each row, flat."""
    return np.asarray(elpd.pareto_k.values).ravel()


def with_exact(elpd: Any, exact: Mapping[int, float]) -> Any:
    """Return the result with the exact terms of some rows, by their number in flat order."""
    result = copy.deepcopy(elpd)
    terms = result.elpd_i if ARVIZ_1 else result.loo_i
    values = np.array(terms.values, dtype=np.float64).ravel()
    shapes = np.array(result.pareto_k.values, dtype=np.float64).ravel()
    for row, value in exact.items():
        values[row], shapes[row] = value, 0.0
    terms = terms.copy(data=values.reshape(terms.shape))
    shape = result.pareto_k.copy(data=shapes.reshape(terms.shape))
    total, error = float(values.sum()), float(np.sqrt(len(values) * values.var()))
    warning = bool((shapes > PARETO_K_MAX).any())
    if ARVIZ_1:
        difference = total - float(result.elpd)
        result.elpd, result.se, result.elpd_i, result.pareto_k = total, error, terms, shape
        result.p, result.warning = result.p - difference, warning
    else:
        difference = total - float(result["elpd_loo"])
        result["elpd_loo"], result["se"], result["loo_i"] = total, error, terms
        result["pareto_k"], result["warning"] = shape, warning
        result["p_loo"] = result["p_loo"] - difference
    return result


def compare(elpds: Mapping[str, Any]) -> Any:
    """Return ArviZ's table of comparison of such results, with the column names of ArviZ 1.

    There ``elpd_diff`` is the difference to the best, which is negative.
    """
    with _quiet():
        options: dict[str, Any] = {"round_to": "none"} if ARVIZ_1 else {}
        table = az.compare(dict(elpds), **options)
    if ARVIZ_1:
        return table
    table["elpd_diff"] = -table["elpd_diff"] + 0.0  # no -0.0
    return table.rename(columns={"elpd_loo": "elpd", "p_loo": "p"})


def plot_ppc(idata: Any, **options: Any) -> Any:
    """Plot data and posterior predictive; ``options`` are those of ArviZ's function."""
    if ARVIZ_1 and "num_pp_samples" in options:
        options["num_samples"] = options.pop("num_pp_samples")
    plot: Any = getattr(az, "plot_ppc_dist" if ARVIZ_1 else "plot_ppc")
    return plot(idata, **options)


def _safe(name: str) -> str:
    """Write a slash, as in the names of Pyro's scopes, as one that separates no groups."""
    return name.replace("/", _SLASH)


def _plain(name: Any) -> str:
    return str(name).replace(_SLASH, "/")


def write(idata: Any, path: Path) -> None:
    """Write a container as netCDF, which ArviZ and xarray read; slashes in names look-alikes."""
    # In memory first: where a disk is full HDF5 itself does not raise, it ends the process.
    buffer = io.BytesIO()
    with h5netcdf.File(buffer, "w") as file:
        for group in groups(idata):
            named = _dataset(idata, group).rename(_slashes(idata, group))
            named.dump_to_store(xr.backends.H5NetCDFStore(file, group=group, mode="a"))
    path.write_bytes(buffer.getbuffer())


def _slashes(idata: Any, group: str) -> dict[Any, str]:
    names = [*_dataset(idata, group).variables, *_dataset(idata, group).dims]
    return {name: _safe(name) for name in names if "/" in str(name)}


def read(path: Path) -> Any:
    """Read a container from netCDF into memory; the file is closed."""
    if ARVIZ_1:
        with xr.open_datatree(path, engine="h5netcdf") as tree:
            return tree.load()
    with az.rcparams.rc_context({"data.load": "eager"}):
        return az.from_netcdf(str(path), engine="h5netcdf")


def variables(idata: Any, group: str) -> dict[str, NDArray[Any]]:
    """Return the arrays of a group by name; none where there is no such group."""
    found = _dataset(idata, group)
    return {} if found is None else {_plain(n): np.asarray(v.values) for n, v in found.items()}


def labels(idata: Any) -> dict[str, NDArray[Any]]:
    """Return the labels along each dimension, by its name."""
    datasets = [_dataset(idata, group) for group in groups(idata)]
    return {_plain(n): v.values for d in datasets if d is not None for n, v in d.coords.items()}


def groups(idata: Any) -> list[str]:
    """Return the names of the groups of a container."""
    return list(idata.children) if ARVIZ_1 else list(idata.groups())


def _dataset(idata: Any, group: str) -> Any:
    if group not in groups(idata):
        return None
    return idata[group].dataset if ARVIZ_1 else idata[group]


PLOTS = {  # by kind, the group that it draws
    "trace": "posterior",
    "forest": "posterior",
    "ppc": "posterior_predictive",
    "rank": "posterior",
    "energy": "sample_stats",
    "pair": "posterior",
}


def plot(idata: Any, kind: str, names: Sequence[str] | None = None) -> Any:
    """Plot a container by one of ArviZ's functions, and return the matplotlib figure.

    Args:
        idata: the container, with the group that ``PLOTS`` names.
        kind: one of ``PLOTS``.
        names: the variables; None is all.
    """
    options: dict[str, Any] = {}
    if names is not None and kind != "energy":
        held = _dataset(idata, PLOTS[kind])
        options["var_names"] = [name if name in held else _safe(name) for name in names]
    if kind == "ppc":
        made = plot_ppc(idata, num_pp_samples=100, **options)
    else:
        name = "trace_dist" if ARVIZ_1 and kind == "trace" else kind
        if kind == "forest":
            options["combined"] = True
        if kind == "pair" and not ARVIZ_1:
            options["divergences"] = "diverging" in variables(idata, "sample_stats")
        function: Any = getattr(az, f"plot_{name}")
        made = function(idata, **options)
    figure = made.viz["figure"].item() if ARVIZ_1 else np.ravel(made)[0].figure
    if not ARVIZ_1 and kind != "forest":  # 0.x leaves labels of one row on the titles of the next
        figure.set_layout_engine("constrained")
    return figure


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence ArviZ where a NaN says it: with a single chain, at a site that is constant."""
    with TURN:  # warning filters and loggers belong to the process
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
    return {_plain(name): np.asarray(array.values) for name, array in dataset.data_vars.items()}
