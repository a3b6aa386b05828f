r"""Simulation studies of estimators: bias, variance, consistency, coverage.

.. math:: \mathrm{bias} = E[\hat\theta_n] - \theta, \qquad \mathrm{MSE} = \mathrm{bias}^2 +
    \mathrm{Var}(\hat\theta_n), \qquad \hat\theta_n \to \theta \text{ as } n \to \infty

Each is an expectation over data sets, so it is estimated by simulation and has a Monte Carlo
standard error.
"""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probdl.errors import FindingWarning, ProbdlError, SettingError, warn
from probdl.methods import MLE, Method
from probdl.methods.base import resolve
from probdl.model.advice import explained
from probdl.model.sites import scalar_labels
from probdl.montecarlo.simulate import Simulator
from probdl.results.diagnostics import require_complete
from probdl.results.fit import Fit
from probdl.util.isolation import isolated
from probdl.util.lazy import xarray as xr
from probdl.util.parallel import parallel_map
from probdl.util.seeds import stream
from probdl.util.settings import (
    INT_MAX,
    check_function,
    check_int,
    check_progress,
    check_real,
    check_seed,
    check_workers,
    is_int,
    setting_error,
)

__all__ = ["study"]

PROJECTION_ROWS = 100_000  # of the sample that approximates the Kullback-Leibler projection
MIN_REPLICATES = 2
MAX_UNIDENTIFIED_SHARE = 0.05  # of the fits, before the study warns

Array = NDArray[np.float64]


def study(
    model: Callable[..., Any],
    method: str | Method | type[Method] = "mle",
    truth: Mapping[str, Any] | None = None,
    *,
    sizes: Sequence[int] = (10, 30, 100, 300, 1000),
    replicates: int = 200,
    arguments: Callable[[int], Any] | None = None,
    generator: Callable[[int, int], Any] | None = None,
    interval_prob: float = 0.9,
    seed: int = 0,
    workers: int | None = None,
    executor: Any = None,
    progress: bool | None = None,
) -> xr.Dataset:
    r"""Study an estimator: simulate data at known parameters, fit each data set, and compare.

    The estimate is the point estimate or the posterior mean. The interval is the Wald interval or
    the equal-tailed posterior interval.

    Args:
        model: a Pyro program.
        method: the estimator, as in :func:`probdl.infer`.
        truth: the true values of the model's sites by name; other sites are sampled anew for each
            data set, and not evaluated.
        sizes: the sample sizes n, distinct integers.
        replicates: the number of data sets per size, at least 2.
        arguments: a function from a sample size to the model's arguments, a tuple or a dict by
            name, with arbitrary data of the right shape in the place of the observed data. None is
            for a model with one argument, the data of shape (n,).
        generator: a function from a sample size and a seed to a data set, all arguments of the
            model. The data then have another distribution than the model: the estimates are
            compared with the parameters closest to it in Kullback-Leibler divergence (the limit of
            maximum likelihood, estimated from 100,000 rows), with a warning.
        interval_prob: the nominal probability of the intervals.
        seed: the seed of data and fits.
        workers: the number of processes; None uses one per core.
        executor: runs the fits in the place of processes of this machine: a
            ``concurrent.futures.Executor``, or a Dask ``Client``. The results are the same.
        progress: whether to show progress; None shows it on a terminal only.

    Returns:
        A dataset over ``size`` and ``parameter``: ``bias``, ``variance``, ``mse`` and ``coverage``,
        each with its standard error ``…_se``; ``truth``; ``estimate``, ``low`` and ``high`` for
        each ``replicate``; ``failed``, the number of failed fits by size; and ``variance_rate``
        and ``mse_rate``, the slopes of log variance and log MSE against log n, with standard
        errors. The attribute ``findings`` counts the findings of the fits by name. After Ctrl-C,
        the results so far.

    Raises:
        SettingError: a setting is out of range, or fewer than two fits of a size succeed.
        ModelError: the model fails, or its data cannot be simulated.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("obs", len(y)):
        ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> found = study(model, "mle", {"mu": 2.0}, sizes=[4, 16], replicates=50, seed=1)
        >>> bool(abs(found.variance.sel(size=16, parameter="mu") - 1 / 16) < 0.05)
        True

    Source: Morris, White and Crowther, "Using simulation studies to evaluate statistical methods"
    (2019); White, "Maximum likelihood estimation of misspecified models" (1982).
    """
    chosen = resolve(method)
    sizes = _checked_sizes(sizes)
    check_int("study", replicates=(replicates, MIN_REPLICATES))
    check_real("study", interval_prob=(interval_prob, 0, 1))
    check_seed("study", seed)
    check_workers("study", workers, executor)
    check_progress("study", progress)
    for setting, value in (("arguments", arguments), ("generator", generator)):
        if value is not None:
            check_function("study", **{setting: value})
    if truth is not None and not isinstance(truth, Mapping):
        raise setting_error("study", "truth", truth, "must be a dict of values by site")
    if truth is None and generator is None:
        raise SettingError(
            "study() needs true parameters or other data. Pass truth=, the values of the model's "
            "sites at which to simulate data, or generator=, a function that simulates data from "
            "another distribution."
        )
    template = arguments or (lambda n: (np.zeros(n),))
    target = dict(truth or {})
    if generator is not None:
        target = _projection(model, generator, seed)
    estimates_by_size, finding_counts = [], Counter[str]()
    failed, seconds = [], []
    for n in sizes:
        generate = functools.partial(generator, n) if generator is not None else None
        with explained("arguments" if generate is None else "generator"):
            example = template(n) if generate is None else generate(stream(seed, "template"))
        simulator = Simulator(model, example)
        if generate is None:
            with isolated(stream(seed, "data", n)):
                data_sets = simulator.at(target, replicates)
        else:
            seeds = [stream(seed, "data", n, i) for i in range(replicates)]
            data_sets = simulator.generated_by(generate, seeds)
        fit_one = _FitOne(chosen, simulator, target, interval_prob, seed)
        start = time.perf_counter()
        results = parallel_map(
            fit_one,
            data_sets,
            workers=workers,
            executor=executor,
            lost=lambda why: (why, []),
            description=f"n = {n}",
            progress=progress,
        )
        seconds.append(time.perf_counter() - start)
        succeeded = [r for r, _ in results if isinstance(r, np.ndarray)]
        if len(succeeded) < MIN_REPLICATES:
            error = next((r for r, _ in results if isinstance(r, str)), None)
            cause = "The run was interrupted." if error is None else f"The first error: {error}"
            raise SettingError(
                f"Only {len(succeeded)} of {len(results)} fits at n = {n} succeeded, fewer than "
                f"the minimum of {MIN_REPLICATES}. {cause}"
            )
        for _, checks in results:
            finding_counts.update(checks)
        failed.append(len(results) - len(succeeded))
        estimates_by_size.append(succeeded)
        if len(results) < replicates:
            finding_counts["interrupted"] += 1
            break
    done = sizes[: len(estimates_by_size)]
    result = _aggregate(estimates_by_size, done, fit_one.labels, fit_one.truth, interval_prob)
    result["failed"], result["seconds"] = ("size", failed), ("size", seconds)
    result.attrs |= {"method": repr(chosen), "seed": seed, "findings": dict(finding_counts)}
    result.attrs["interval_prob"] = interval_prob
    result.attrs["target"] = "truth" if generator is None else "kl_projection"
    fits = sum(map(len, estimates_by_size))
    _warn_of_limits(result, finding_counts, fits, generator is not None)
    return result


def _checked_sizes(sizes: Any) -> list[int]:
    try:
        listed = list(sizes)
    except TypeError:
        listed = []
    numbers = [int(n) for n in listed if is_int(n) and 1 <= n <= INT_MAX]
    if not listed or len(set(numbers)) < len(listed):
        raise setting_error("study", "sizes", sizes, "must be distinct integers of at least 1")
    return numbers


class _FitOne:
    """Fits one data set of a study: a function of its index and the data."""

    def __init__(
        self,
        method: Method,
        simulator: Simulator,
        truth: Mapping[str, Any],
        prob: float,
        seed: int,
    ) -> None:
        self.method, self.simulator = method, simulator
        self.prob, self.seed = prob, seed
        self.first: Fit | None = None
        sites = simulator.structure.sites
        self.names = [n for n in sites if n in truth]
        self.labels: list[str] = []
        values = []
        for name in self.names:
            shape = sites[name].shape
            values.append(np.broadcast_to(np.asarray(truth[name], np.float64), shape).ravel())
            self.labels += scalar_labels(name, shape)
        self.truth = np.concatenate(values) if values else np.zeros(0)

    def __call__(self, index: int, data: Any) -> tuple[Array | str, list[str]]:
        """Return estimates and intervals, (3, parameters), or the error; and the findings."""
        program = self.simulator.program.with_tensors(data)
        seed = stream(self.seed, "fit", index)
        try:
            with isolated(seed):
                if self.first is None:
                    fit = self.first = self.method.run(program, seed, False)
                else:
                    fit = self.method.refit(self.first, program, seed)
                require_complete(fit.findings)
        except ProbdlError as error:
            return str(error), []
        checks = [f.check for f in fit.findings if f.severity != "info"]
        return estimates(fit, self.names, self.prob), checks


def estimates(fit: Fit, names: Sequence[str], prob: float) -> Array:
    """Return the estimates of a fit and the ends of their intervals, (3, scalars)."""
    parts = []
    for name in names:
        draws = fit.draws[name]
        if fit.is_point:
            center = draws[0, 0]
            error = np.asarray(fit.stats.get("standard_error", {}).get(name, np.nan))
            width = NormalDist().inv_cdf(0.5 + prob / 2) * error
            low, high = center - width, center + width
        else:
            center = draws.mean((0, 1))
            low, high = np.quantile(draws, [(1 - prob) / 2, (1 + prob) / 2], axis=(0, 1))
        parts.append(np.stack([np.ravel(center), np.ravel(low), np.ravel(high)]))
    return np.concatenate(parts, 1)


def _projection(model: Callable[..., Any], generator: Any, seed: int) -> dict[str, Any]:
    """Estimate the parameters closest to the distribution of the data in KL divergence."""
    with explained("generator"):
        data = generator(PROJECTION_ROWS, stream(seed, "projection"))
    simulator = Simulator(model, data)
    with isolated(seed):
        fit = MLE().run(simulator.program, seed, False)
        require_complete(fit.findings)
    return {s.name: fit.draws[s.name][0, 0] for s in fit.structure.of("latent", "param")}


def _aggregate(
    estimates_by_size: Sequence[Sequence[Array]],
    sizes: Sequence[int],
    labels: list[str],
    truth: Array,
    prob: float,
) -> xr.Dataset:
    """Return the dataset of the estimates and of the properties of the estimator."""
    replicates = max(map(len, estimates_by_size))
    table = np.full((len(sizes), replicates, 3, len(labels)), np.nan)
    for i, of_size in enumerate(estimates_by_size):
        table[i, : len(of_size)] = np.stack(of_size)
    dims = ("size", "replicate", "parameter")
    result = xr.Dataset(
        {name: (dims, table[:, :, j]) for j, name in enumerate(("estimate", "low", "high"))}
        | {"truth": ("parameter", truth)},
        coords={"size": list(sizes), "parameter": labels},
    )
    count = result.estimate.notnull().sum("replicate")
    error = result.estimate - result.truth
    mean = result.estimate.mean("replicate")
    result["bias"] = mean - result.truth
    result["variance"] = result.estimate.var("replicate", ddof=1)
    result["bias_se"] = np.sqrt(result.variance / count)
    fourth = ((result.estimate - mean) ** 4).mean("replicate")
    result["variance_se"] = np.sqrt(
        np.maximum(fourth - result.variance**2 * (count - 3) / (count - 1), 0) / count
    )
    result["mse"] = (error**2).mean("replicate")
    result["mse_se"] = (error**2).std("replicate", ddof=1) / np.sqrt(count)
    inside = (result.low <= result.truth) & (result.truth <= result.high)
    known = result.low.notnull().sum("replicate")
    result["coverage"] = inside.where(result.low.notnull()).mean("replicate")
    # From the nominal probability, since an observed share of 0 or 1 would give 0.
    result["coverage_se"] = np.sqrt(prob * (1 - prob) / known)
    for name in ("variance", "mse") if len(sizes) > 1 else ():
        slope, slope_se = _rate(sizes, result[name].values, result[f"{name}_se"].values)
        result[f"{name}_rate"] = ("parameter", slope)
        result[f"{name}_rate_se"] = ("parameter", slope_se)
    return result


def _rate(sizes: Sequence[int], values: Array, errors: Array) -> tuple[Array, Array]:
    """Return the slope of log values (sizes, parameters) against log n, weighted, and its error."""
    with np.errstate(all="ignore"):
        log, weight = np.log(values), (values / errors) ** 2
    x = np.log(np.asarray(sizes, float))[:, None]
    center = (weight * x).sum(0) / weight.sum(0)
    spread = (weight * (x - center) ** 2).sum(0)
    slope = (weight * (x - center) * log).sum(0) / spread
    return slope, np.sqrt(1 / spread)


def _warn_of_limits(
    result: xr.Dataset, finding_counts: Counter[str], fits: int, projected: bool
) -> None:
    """Warn of conditions that limit the conclusions from a study."""
    warnings = []
    if projected:
        where = ", ".join(
            f"{p} = {float(v):.4g}"
            for p, v in zip(result.parameter.values[:5], result.truth.values, strict=False)
        )
        warnings.append(
            "The data do not come from the model, so the estimates are compared with the "
            "parameters closest to the distribution of the data in Kullback-Leibler divergence: "
            f"{where}."
        )
    if finding_counts["interrupted"]:
        warnings.append(
            f"Interrupted at n = {int(result['size'][-1])}: larger sizes are missing, and this "
            "size includes only the data sets fitted so far."
        )
    if failed := int(result.failed.sum()):
        warnings.append(f"{failed} fits failed and are excluded, which may bias the results.")
    for check in ("flat", "not_identified", "no_maximum", "multimodal"):
        if finding_counts[check] > MAX_UNIDENTIFIED_SHARE * fits:
            warnings.append(
                f"{finding_counts[check]} of {fits} fits report '{check}': the parameters are not "
                "identified by such data, so the estimates do not converge."
                if check != "no_maximum"
                else f"{finding_counts[check]} of {fits} fits found no maximum."
            )
    if warnings:
        warn("\n".join(warnings), FindingWarning)
