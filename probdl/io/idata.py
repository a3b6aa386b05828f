"""ArviZ containers and statistics; the only file that depends on the version of ArviZ.

ArviZ 0.x stores groups in an ``InferenceData``, ArviZ 1.x in an ``xarray.DataTree``. This module
works on NumPy arrays and does not import torch.
"""

from __future__ import annotations

import copy
import importlib.metadata
import io
import logging
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BufferedReader
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from probdl.errors import DataError, FindingWarning, warn
from probdl.findings import PARETO_K_MAX
from probdl.io import mixing
from probdl.io.digits import with_digits
from probdl.io.netcdf import check_netcdf
from probdl.util.columns import by_columns
from probdl.util.lazy import arviz as az
from probdl.util.lazy import ecdf_utils, h5netcdf, stats
from probdl.util.lazy import pandas as pd
from probdl.util.lazy import xarray as xr
from probdl.util.lock import GLOBAL_LOCK
from probdl.util.text import has_controls

__all__ = [
    "ARVIZ_1",
    "KINDS",
    "PLOTS",
    "chain_rhat",
    "compare",
    "dataset",
    "ecdf_band",
    "effective_parameters",
    "escaped",
    "good_k",
    "groups",
    "has_default_interval",
    "has_moment_matching",
    "label_texts",
    "labels",
    "loo",
    "mixing_by_variable",
    "moment_match",
    "num_chains",
    "num_draws",
    "pareto_k",
    "plot",
    "plot_ppc",
    "read",
    "summary",
    "summary_of_many",
    "tail_probs",
    "to_container",
    "to_idata",
    "unclashed",
    "unescaped",
    "variables",
    "with_exact",
    "with_group",
    "write",
]

ARVIZ_1 = int(importlib.metadata.version("arviz").split(".")[0]) >= 1

RANKED_DRAWS_MIN = 20  # of each chain, in a plot of ranks
_CI_PROB = 0.89  # the default of ArviZ 1
# Its columns before and after those of the interval.
_MOMENTS = ("mean", "sd", "median", "mad")
_DIAGNOSTICS = (
    *("ess_bulk", "ess_median", "ess_tail", "r_hat"),
    *("mcse_mean", "mcse_sd", "mcse_median"),
)

# U+2215 replaces "/" in names, which netCDF and DataTree use to separate groups.
_SLASH_IN_NAMES = "∕"

Arrays = Mapping[str, NDArray[Any]]
Dims = Mapping[str, Sequence[str | None]]


def to_idata(
    groups: Mapping[str, Arrays],
    *,
    dims: Dims | None = None,
    coords: Mapping[str, Any] | None = None,
    group_dims: Mapping[str, Dims] | None = None,
) -> Any:
    """Convert groups of arrays to an ArviZ container.

    Args:
        groups: for each group (``posterior``, ``log_likelihood``, ``observed_data`` …), arrays by
            variable. Arrays have shape (chain, draw, *shape), and (*shape) in data groups.
        dims: the names of the dimensions of ``shape`` by variable; None or a missing name gives
            ArviZ's default name. Log likelihoods have no event dimensions and use fewer names.
        coords: the labels along each dimension, by its name.
        group_dims: by group, the names of dimensions where they differ from ``dims``.

    Returns:
        An ``InferenceData`` (ArviZ 0.x) or a ``DataTree`` (ArviZ 1.x).

    Warns:
        FindingWarning: ArviZ cannot store the labels, so they are left out.

    >>> idata = to_idata({"posterior": {"x": np.zeros((4, 10, 3))}}, dims={"x": ["school"]})
    >>> idata.posterior["x"].dims
    ('chain', 'draw', 'school')
    """
    try:
        return _converted(groups, dims, coords, group_dims or {})
    except MemoryError:
        raise
    except Exception as error:  # of xarray's many kinds; a fit is not lost for its labels
        warn(
            "The names and labels of dimensions are left out, because ArviZ cannot store them: "
            f"{type(error).__name__}: {str(error).partition(chr(10))[0]}",
            FindingWarning,
        )
        return _converted(groups, None, None, {})


def _converted(
    groups: Mapping[str, Arrays],
    dims: Dims | None,
    coords: Mapping[str, Any] | None,
    group_dims: Mapping[str, Dims],
) -> Any:
    for group, own in group_dims.items():
        others = {name: arrays for name, arrays in groups.items() if name != group}
        left = {name: of for name, of in group_dims.items() if name != group}
        whole = _converted(others, dims, coords, left)
        part = _converted({group: groups[group]}, {**(dims or {}), **own}, coords, {})
        if ARVIZ_1:
            whole[group] = part[group]
        else:
            whole.extend(part)
        return whole
    # xarray would read a tuple as (dims, data), and align objects that have labels themselves.
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
        by_group = {g: {escaped(n): a for n, a in arrays.items()} for g, arrays in filled.items()}
        names = {escaped(n): [escaped(dim) for dim in of] for n, of in named.items()}
        labelled = {escaped(dim): values for dim, values in labels.items()}
        # from_dict accepts arrays without event dimensions in log_likelihood only, and takes the
        # dims of predictions from other arguments.
        others = {g: by_group.pop(g) for g in ("log_prior", "predictions") if g in by_group}
        with _silent():  # ArviZ warns if there are more chains than draws
            tree = az.from_dict(by_group, dims=names, coords=labelled)
            for group, held in others.items():
                short = {n: names[n][: np.ndim(array) - 2] for n, array in held.items()}
                part = az.from_dict({"posterior": held}, dims=short, coords=labelled)
                tree[group] = part["posterior"]
        return tree
    container: Any = None
    for group, arrays in filled.items():
        # One group at a time: 0.x requires that the dims of a call fit the arrays of each group.
        lead = 0 if "data" in group else 2
        fitting = {n: named[n][: np.ndim(array) - lead] for n, array in arrays.items()}
        # Groups that 0.x does not know, or whose dims it takes from other arguments.
        other = group in ("log_prior", "predictions")
        one: dict[str, Any] = {"posterior" if other else group: arrays}
        with _silent():
            part = az.from_dict(**one, dims=fitting, coords=labels)
            if other:
                part = az.InferenceData(**{group: part.posterior})
        if container is None:
            container = part
        else:
            container.extend(part)
    return container


def _or_default(dim: str | None, name: str, axis: int) -> str:
    return dim if dim is not None else f"{name}_dim_{axis}"


def unclashed(dims: Dims, variables: Sequence[str]) -> dict[str, list[str | None]]:
    """Rename dims that have the name of a variable, which xarray would use as their labels.

    >>> unclashed({"y": ["y"], "x": ["school"]}, ["x", "y"])
    {'y': ['y_dim'], 'x': ['school']}
    """
    taken = {*variables, "chain", "draw"}
    return {
        name: [f"{dim}_dim" if dim in taken else dim for dim in of_name]
        for name, of_name in dims.items()
    }


def summary(
    idata: Any,
    *,
    kind: str = "all",
    ci_prob: float | None = None,
    ci_kind: str | None = None,
    **options: Any,
) -> Any:
    """Return ArviZ's summary table, with ArviZ 1's arguments and columns under both versions.

    Args:
        idata: the container.
        kind: ``"all"``, ``"stats"`` or ``"diagnostics"``, and each with ``_median`` at the end.
        ci_prob: the probability of the interval; None means 0.89.
        ci_kind: ``"eti"`` (equal tails) or ``"hdi"`` (highest density); None means ``"eti"``.
        options: further arguments of ``arviz.summary``. Of ArviZ 0.x, ``hdi_prob=p`` stands for
            ``ci_prob=p, ci_kind="hdi"``, and ``stat_focus="median"`` for the kind.
    """
    if (hdi_prob := options.pop("hdi_prob", None)) is not None:
        ci_prob, ci_kind = hdi_prob, "hdi"
    if options.pop("stat_focus", "mean") == "median" and not kind.endswith("_median"):
        kind += "_median"
    options = {name: value for name, value in options.items() if value is not None}
    shown = "round_to" not in options and options.get("fmt", "wide") != "xarray"
    if shown:
        options["round_to"] = "none"
    if ARVIZ_1:
        by_1: Any = az.summary
        with _silent():
            options["data"] = idata
            options = _with_separate_dims(**options)
            table = by_1(kind=kind, ci_prob=ci_prob, ci_kind=ci_kind, **options)
    else:
        table = _summary_by_0(idata, kind, ci_prob or _CI_PROB, ci_kind or "eti", options)
    if options.get("fmt", "wide") == "wide":
        table.index = _with_short_days(table.index)
    return with_digits(table) if shown else table


def summary_of_many(draws: Arrays, labels: Mapping[str, Sequence[str]], kind: str) -> Any:
    """Return the table of ``summary`` for many scalars, for which ArviZ takes long.

    Args:
        draws: by variable, (chain, draw, *shape).
        labels: the labels of the scalars of each variable.
        kind: ``"all"`` or ``"stats"``.
    """
    tail = (1 - _CI_PROB) / 2
    bounds = [f"eti{int(100 * _CI_PROB)}_{end}" for end in ("lb", "ub")]

    def columns_of(x: NDArray[Any]) -> NDArray[np.float64]:
        flat = x.reshape(x.shape[0] * x.shape[1], -1).astype(float)
        with np.errstate(all="ignore"):
            moments = np.array([flat.mean(0), flat.std(0, ddof=1)])
            return np.concatenate([moments, np.quantile(flat, (tail, 1 - tail), axis=0)])

    parts = []
    for array in draws.values():
        flat = array.reshape(*array.shape[:2], math.prod(array.shape[2:]))
        rows = by_columns(columns_of, flat)
        if kind == "all":
            found = mixing.mixing(flat, tail_probs())
            by_column = found.ess_bulk, found.ess_tail, found.rhat, found.mcse_mean
            rows = np.concatenate([rows, [*by_column, mixing.mcse_sd(flat)]])
        parts.append(rows)
    named = ("mean", "sd", *bounds, "ess_bulk", "ess_tail", "r_hat", "mcse_mean", "mcse_sd")
    shown = {name: escaped(name) if ARVIZ_1 else name for name in draws}
    index = [shown[name] + label[len(name) :] for name in draws for label in labels[name]]
    values = np.concatenate(parts, 1).T
    table = pd.DataFrame(values, index=index, columns=named[: values.shape[1]])
    table.index = _with_short_days(table.index)
    return with_digits(table)


def has_default_interval() -> bool:
    """Return whether ArviZ's settings are those of ``summary_of_many``."""
    if not ARVIZ_1:
        return True
    rc_params: Any = az.rcParams  # type: ignore[attr-defined]
    return rc_params["stats.ci_kind"] == "eti" and float(rc_params["stats.ci_prob"]) == _CI_PROB


def _with_short_days(index: Any) -> Any:
    """Write days as they are written elsewhere."""
    index = index.str.replace(r"T00:00:00(\.0+)?", "", regex=True)
    return index.str.replace(r"(T\d\d:\d\d:\d\d)\.0+", r"\1", regex=True)


def _with_separate_dims(
    *,
    data: Any,
    var_names: Any = None,
    filter_vars: str | None = None,
    group: str = "posterior",
    coords: Any = None,
    sample_dims: Any = None,
    **options: Any,
) -> dict[str, Any]:
    """Return arguments of ``az.summary`` by which each row has the label of its values.

    ArviZ 1 stacks the elements of all variables by the order in which dimensions appear in the
    dataset, and labels them by the order in each variable: with ``mu (coef)`` before
    ``effect (group, coef)`` the rows of ``effect`` have one another's labels. Where the orders
    differ, dimensions get separate names for each variable; labels do not have them.
    """
    extract: Any = az.extract
    selected = {"var_names": var_names, "filter_vars": filter_vars, "group": group}
    sampled: list[Any] = ["chain", "draw"] if sample_dims is None else [*np.atleast_1d(sample_dims)]
    dataset = extract(data, **selected, sample_dims=sample_dims, combined=False, keep_dataset=True)
    dims = {name: [d for d in x.dims if d not in sampled] for name, x in dataset.data_vars.items()}
    order = [*dict.fromkeys(d for of in dims.values() for d in of)]
    own = {"coords": coords, "sample_dims": sample_dims, **options}
    if options.get("fmt", "wide") != "wide" or all(
        sorted(of, key=order.index) == of for of in dims.values()
    ):
        return {"data": data, **selected, **own}
    if coords is not None:
        dataset = dataset.sel(coords)
    separate = {
        name: x.rename({d: f"{d} of {name}" for d in x.dims if d not in sampled})
        for name, x in dataset.data_vars.items()
    }
    tree = xr.DataTree.from_dict({group: xr.Dataset(separate)})
    return {"data": tree, "group": group, "sample_dims": sample_dims, **options}


def _summary_by_0(
    idata: Any, kind: str, ci_prob: float, ci_kind: str, options: dict[str, Any]
) -> Any:
    kinds = [each + of for of in ("", "_median") for each in ("all", "stats", "diagnostics")]
    if kind not in kinds or ci_kind not in ("eti", "hdi"):
        raise ValueError(f"kind is one of {', '.join(kinds)}, and ci_kind 'eti' or 'hdi'")
    plain = kind.removesuffix("_median")
    tail = (1 - ci_prob) / 2
    bounds = [f"{ci_kind}{int(100 * ci_prob)}_{end}" for end in ("lb", "ub")]
    options = {"hdi_prob": ci_prob, "kind": plain, **options}
    found = [f"hdi_{100 * tail:g}%", f"hdi_{100 * (1 - tail):g}%"]
    if kind != plain:
        bounds = [bound.replace("hdi", "eti") for bound in bounds]
        options["stat_focus"] = "median"
        found = [name.replace("hdi", "eti") for name in found]
    elif ci_kind == "eti" and plain != "diagnostics":
        found = bounds
        options["stat_funcs"] = dict(options.get("stat_funcs") or {}) | {
            bounds[0]: lambda x: np.quantile(x, tail),
            bounds[1]: lambda x: np.quantile(x, 1 - tail),
        }
    with _silent():
        table: Any = az.summary(idata, **options)
    if options.get("fmt", "wide") != "wide":
        return table
    table = table.rename(columns=dict(zip(found, bounds, strict=True)))
    first = [c for c in (*_MOMENTS, *bounds, *_DIAGNOSTICS) if c in table]
    others = [c for c in table if c not in first and not c.startswith("hdi_")]
    return table[[*first, *others]]


def mixing_by_variable(
    draws: Arrays, limits: tuple[float, float] | None = None
) -> dict[str, mixing.Mixing]:
    """Return R-hat, effective sample sizes and standard errors of means by variable.

    Args:
        draws: by variable, (chain, draw, *shape).
        limits: an R-hat and an effective sample size that they are compared with; see ``mixing``.
    """
    return {name: mixing.mixing(x, tail_probs(), limits) for name, x in draws.items()}


def num_draws(idata: Any) -> int:
    """Return the number of draws per chain."""
    return int(idata.posterior.sizes["draw"])


def num_chains(idata: Any) -> int:
    """Return the number of chains."""
    return int(idata.posterior.sizes["chain"])


def chain_rhat(draws: Arrays) -> dict[str, NDArray[np.float64]]:
    """Return the split R-hat of each single chain by variable, of shape (chain, *shape)."""

    def of_halves(chain: NDArray[Any]) -> NDArray[np.float64]:
        half = len(chain) // 2
        return mixing.rhat(chain[: 2 * half].reshape(2, half, *chain.shape[1:]))

    return {name: np.stack([*map(of_halves, array)]) for name, array in draws.items()}


def tail_probs() -> tuple[float, float]:
    """Return the probabilities of the quantiles that ArviZ calls the tails."""
    if not ARVIZ_1:
        return 0.05, 0.95
    inside = _CI_PROB
    if "arviz" in sys.modules:  # its import takes longer than a small fit
        rc_params: Any = az.rcParams  # type: ignore[attr-defined]
        inside = float(rc_params["stats.ci_prob"])
    return min(inside, 1 - inside), max(inside, 1 - inside)


def ecdf_band(
    count: int, num_draws: int, prob: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return a simultaneous confidence band for the empirical CDF of uniform ranks.

    Args:
        count: the number of ranks.
        num_draws: the largest possible rank.
        prob: the probability that the whole CDF stays in the band.

    Returns:
        The points in [0, 1], and the lower and upper bounds of the band at these points.
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


def check_texts(container: Any, path: Any) -> None:
    """Check the names and labels of a container that was read.

    Raises:
        DataError: one has control characters, which command terminals.
    """
    for group in groups(container):
        held = dataset(container, group)
        names = [group, *held.variables, *held.dims]
        texts = [v for v in held.coords.values() if v.dtype.kind in "OUT"]
        labels = [label for v in texts for label in v.to_numpy().ravel().tolist()]
        if any(isinstance(text, str) and has_controls(text) for text in (*names, *labels)):
            raise DataError(
                f"{path} is refused, because its group '{group}' contains control characters."
            )


def _check_log_likelihood(idata: Any, name: str) -> None:
    """Check that a container holds log likelihoods, for each draw of its posterior.

    Raises:
        DataError: it does not.
    """
    held, posterior = (dataset(idata, group) for group in ("log_likelihood", "posterior"))
    found = None if held is None else held.get(name)
    if posterior is None or found is None:
        raise DataError(f"The container of the fit has no log likelihood of '{name}'.")
    draws = [posterior.sizes.get(dim) for dim in ("chain", "draw")]
    if (
        found.dtype.kind != "f"
        or found.dims[:2] != ("chain", "draw")
        or [*found.shape[:2]] != draws
        or found.size == 0
    ):
        raise DataError(
            f"The log likelihood of '{name}' in the container of the fit is damaged: it has dtype "
            f"{found.dtype} and dimensions {dict(found.sizes)}. Save the fit again."
        )


def loo(idata: Any, name: str) -> Any:
    """Return ArviZ's leave-one-out cross-validation of a variable, with pointwise values.

    Raises:
        DataError: the container, which may be of any origin, does not hold its log likelihoods.
    """
    held = dataset(idata, "log_likelihood")
    if held is not None and name not in held:  # a container that was saved
        name = escaped(name)
    _check_log_likelihood(idata, name)
    with _silent():
        return az.loo(idata, pointwise=True, var_name=name)


def has_moment_matching() -> bool:
    """Return whether this version of ArviZ has ``loo_moment_match``; 0.x has not."""
    return hasattr(az, "loo_moment_match")


def moment_match(
    idata: Any,
    name: str,
    elpd: Any,
    points: NDArray[np.float64],
    log_density: Callable[[NDArray[np.float64]], NDArray[np.float64]],
    log_likelihood: Callable[[NDArray[np.float64], int], NDArray[np.float64]],
) -> Any:
    """Improve a cross-validation result by ArviZ's moment matching where k-hat is high.

    Args:
        idata: the container with the posterior and the log likelihood.
        name: the variable of the log likelihood.
        elpd: the result of `loo`.
        points: the draws on R^d, (chain, draw, d).
        log_density: the log posterior density on R^d up to a constant: (chain, draw, d) to
            (chain, draw).
        log_likelihood: that of one observation, by its index in flat order.

    Source: Paananen, Piironen, Bürkner and Vehtari, "Implicitly adaptive importance sampling"
    (2021).
    """
    sample_dims = ("chain", "draw")

    def array(values: NDArray[np.float64]) -> Any:
        return xr.DataArray(values, dims=sample_dims, coords=upars.coords)

    def in_order(at: Any) -> NDArray[np.float64]:
        return np.asarray(at.transpose(*sample_dims, "coordinate").values)

    chains, draws, _ = points.shape
    coords = {"chain": np.arange(chains), "draw": np.arange(draws)}
    upars = xr.DataArray(points, dims=(*sample_dims, "coordinate"), coords=coords)
    match: Any = getattr(az, "loo_moment_match")  # noqa: B009 (missing in 0.x)
    with _silent():
        return match(
            idata,
            elpd,
            log_prob_upars_fn=lambda at: array(log_density(in_order(at))),
            log_lik_i_upars_fn=lambda at, i: array(log_likelihood(in_order(at), int(i))),
            upars=upars,
            var_name=name,
            pointwise=True,
        )


def good_k(elpd: Any) -> float:
    """Return the largest k-hat with which ArviZ regards an estimate as reliable."""
    return float(getattr(elpd, "good_k", PARETO_K_MAX) or PARETO_K_MAX)


def pareto_k(elpd: Any) -> NDArray[np.float64]:
    """Return the k-hat of each observation, in flat order."""
    return np.asarray(elpd.pareto_k.values).ravel()


def effective_parameters(elpd: Any) -> float:
    """Return the effective number of parameters of a cross-validation result."""
    return float(elpd.p if ARVIZ_1 else elpd["p_loo"])


def with_exact(elpd: Any, exact: Mapping[int, float]) -> Any:
    """Return a cross-validation result in which exact values replace some pointwise estimates.

    Args:
        elpd: the result of `loo`.
        exact: exact log predictive densities by the index of the observation in flat order.
    """
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
    """Return ArviZ's table that compares cross-validation results, with ArviZ 1's column names.

    ``elpd_diff`` is the difference to the best model, which is zero or negative.
    """
    with _silent():
        options: dict[str, Any] = {"round_to": "none"} if ARVIZ_1 else {}
        table = az.compare(dict(elpds), **options)
    if ARVIZ_1:
        return table
    table["elpd_diff"] = -table["elpd_diff"] + 0.0  # avoids -0.0
    return table.rename(columns={"elpd_loo": "elpd", "p_loo": "p"})


def plot_ppc(idata: Any, **options: Any) -> Any:
    """Plot the data and posterior predictive draws; ``options`` are those of ArviZ's function."""
    if ARVIZ_1 and "num_pp_samples" in options:
        options["num_samples"] = options.pop("num_pp_samples")
    functions: Any = az
    if not ARVIZ_1:
        return functions.plot_ppc(idata, **options)
    held = dataset(idata, "posterior_predictive")
    names = options.get("var_names") or list(held.data_vars)
    if all(held[name].dtype.kind in "iu" for name in names):  # bins between integers are empty
        options.pop("num_samples", None)
        return functions.plot_ppc_rootogram(idata, **options)
    return functions.plot_ppc_dist(idata, **options)


def escaped(name: str) -> str:
    """Replace slashes, as in the names of Pyro's scopes."""
    return name.replace("/", _SLASH_IN_NAMES)


def unescaped(name: Any) -> str:
    """Undo ``escaped``."""
    return str(name).replace(_SLASH_IN_NAMES, "/")


def write(idata: Any, file: IO[bytes]) -> None:
    """Write a container as netCDF for ArviZ and xarray, with slashes in names replaced."""
    # In memory first: if the disk is full, HDF5 ends the process instead of raising an error.
    buffer = io.BytesIO()
    with h5netcdf.File(buffer, "w") as opened:
        for group in groups(idata):
            named = dataset(idata, group).rename(_escaped_names(idata, group))
            named.dump_to_store(xr.backends.H5NetCDFStore(opened, group=group, mode="a"))
    file.write(buffer.getbuffer())


def _escaped_names(idata: Any, group: str) -> dict[Any, str]:
    names = [*dataset(idata, group).variables, *dataset(idata, group).dims]
    return {name: escaped(name) for name in names if "/" in str(name)}


def read(file: BufferedReader) -> Any:
    """Read a container from netCDF into memory.

    Raises:
        DataError: the file refers to other files, or holds more than fits into memory.
    """
    check_netcdf(file)
    if ARVIZ_1:
        with xr.open_datatree(file, engine="h5netcdf") as tree:
            return tree.load()
    with az.rcparams.rc_context({"data.load": "eager"}):
        return az.from_netcdf(file, engine="h5netcdf")


def variables(idata: Any, group: str) -> dict[str, NDArray[Any]]:
    """Return the arrays of a group by name; empty if there is no such group."""
    found = dataset(idata, group)
    return {} if found is None else {unescaped(n): np.asarray(v.values) for n, v in found.items()}


def dimensions(idata: Any, group: str) -> dict[str, list[str]]:
    """Return the names of the dimensions of the arrays of a group, by name of the array."""
    found = dataset(idata, group)
    variables = {} if found is None else found.items()
    return {unescaped(n): [unescaped(d) for d in v.dims] for n, v in dict(variables).items()}


def labels(idata: Any) -> dict[str, NDArray[Any]]:
    """Return the labels along each dimension, by its name."""
    datasets = [dataset(idata, group) for group in groups(idata)]
    return {unescaped(n): v.values for d in datasets if d is not None for n, v in d.coords.items()}


def to_container(predictions: Any) -> Any:
    """Return a container with a dataset as its group ``predictions``."""
    if ARVIZ_1:
        return xr.DataTree.from_dict({"predictions": predictions})
    return az.InferenceData(predictions=predictions)


def with_group(idata: Any, name: str, group: Any) -> Any:
    """Return a container with one more group, an ``xarray.Dataset``; without, if it is None."""
    if group is None:
        return idata
    if ARVIZ_1:
        idata[name] = xr.DataTree(group)
    else:
        with _silent():
            idata.add_groups({name: group})
    return idata


def groups(idata: Any) -> list[str]:
    """Return the names of the groups of a container."""
    return list(idata.children) if ARVIZ_1 else list(idata.groups())


def dataset(idata: Any, group: str) -> Any:
    """Return a group of a container as an ``xarray.Dataset``; None if there is no such group."""
    if group not in groups(idata):
        return None
    return idata[group].to_dataset() if ARVIZ_1 else idata[group]


INCHES_PER_ROW = 0.25  # of a forest plot

PLOTS = {  # the group that each kind of plot shows
    "trace": "posterior",
    "forest": "posterior",
    "ppc": "posterior_predictive",
    "rank": "posterior",
    "energy": "sample_stats",
    "pair": "posterior",
}
KINDS = (*PLOTS, "elbo")  # the ELBO of training is in no container


def plot(idata: Any, kind: str, names: Sequence[str] | None = None) -> Any:
    """Plot a container with one of ArviZ's functions, and return the matplotlib figure.

    Args:
        idata: a container with the group that ``PLOTS`` names.
        kind: a key of ``PLOTS``.
        names: the variables to plot; None plots all.
    """
    options: dict[str, Any] = {}
    idata = _with_short_dates(idata)
    if names is not None and kind != "energy":
        held = dataset(idata, PLOTS[kind])
        options["var_names"] = [name if name in held else escaped(name) for name in names]
    if kind == "ppc":
        sizes = dataset(idata, "posterior_predictive").sizes
        count = min(100, sizes["chain"] * sizes["draw"])
        result = plot_ppc(idata, num_pp_samples=count, **options)
    else:
        name = "trace_dist" if ARVIZ_1 and kind == "trace" else kind
        if kind == "rank":
            idata = _independent(dataset(idata, "posterior"), options.get("var_names"))
        if kind == "forest":
            options["combined"] = True
            if not ARVIZ_1:  # whose rows are too close to read their labels
                shown = dataset(idata, "posterior")
                of = options.get("var_names") or list(shown.data_vars)
                rows = sum(shown[name][0, 0].size for name in of)
                options["figsize"] = (6, max(2.0, INCHES_PER_ROW * rows + 1))
        if kind == "pair" and not ARVIZ_1:
            options["divergences"] = "diverging" in variables(idata, "sample_stats")
        function: Any = getattr(az, f"plot_{name}")
        with az.rc_context({"plot.max_subplots": None}):  # type: ignore[attr-defined]
            result = function(idata, **options)
    figure = result.viz["figure"].item() if ARVIZ_1 else np.ravel(result)[0].figure
    # Axis labels overlap the titles of the next row in 0.x, and those of ranks in 1.x; labels of
    # forests in 0.x would be cut.
    if kind == "rank" if ARVIZ_1 else True:
        figure.set_layout_engine("tight" if kind == "forest" else "constrained")
    return figure


def label_texts(labels: Any) -> list[str]:
    """Return labels as texts; dates without a time of day as in 2020-01-31.

    >>> label_texts(np.array(["2020-01-31", "2020-02-29"], "datetime64[ns]"))
    ['2020-01-31', '2020-02-29']
    """
    values = np.asarray(labels)
    if values.dtype.kind != "M":
        return [*map(str, values.tolist())]
    days = values.astype("datetime64[D]")
    return [*map(str, days if (days == values).all() else values.astype("datetime64[s]"))]


def _with_short_dates(idata: Any) -> Any:
    """Return a container whose labels that are days are written as in 2020-01-31."""
    held = dataset(idata, "posterior")
    dates = {
        name: label_texts(labels)
        for name, labels in (held.coords.items() if held is not None else ())
        if labels.dtype.kind == "M" and labels.ndim == 1
    }
    days = {name: texts for name, texts in dates.items() if not any("T" in t for t in texts)}
    if not days:
        return idata
    posterior = held.assign_coords(days)
    if ARVIZ_1:
        shown = idata.copy()
        shown["posterior"] = xr.DataTree(posterior)
        return shown
    rest = {name: idata[name] for name in groups(idata) if name != "posterior"}
    return az.InferenceData(posterior=posterior, **rest)


def _independent(posterior: Any, names: Sequence[str] | None) -> Any:
    """Return every k-th draw of a group, as what ArviZ plots, so that they are about independent.

    Ranks of correlated draws are uneven even if the chains agree; ArviZ 1 also tests that.
    """
    shown = posterior if names is None else posterior[list(names)]
    with _silent():
        ess = az.ess(shown)
    finite = [values[np.isfinite(values)] for values in (each.values for each in ess.values())]
    least = min((float(values.min()) for values in finite if values.size), default=1.0)
    draws = posterior.sizes["draw"]
    step = math.ceil(posterior.sizes["chain"] * draws / max(least, 1.0))
    step = min(max(step, 1), max(1, draws // RANKED_DRAWS_MIN))
    thinned = posterior.isel(draw=slice(None, None, step))
    return xr.DataTree.from_dict({"posterior": thinned}) if ARVIZ_1 else thinned


@contextmanager
def _silent() -> Iterator[None]:
    """Silence ArviZ's warnings; its NaN results (one chain, a constant site) are enough."""
    with GLOBAL_LOCK:  # warning filters and loggers are shared by all threads
        # 0.x logs through an object that getLogger() does not return.
        logger = logging.getLogger("arviz_stats") if ARVIZ_1 else az._log
        disabled, logger.disabled = logger.disabled, True
        try:
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                yield
        finally:
            logger.disabled = disabled
