r"""What an estimator does over repeated data: bias, variance, consistency, coverage.

.. math:: \mathrm{bias} = E[\hat\theta_n] - \theta, \qquad \mathrm{MSE} = \mathrm{bias}^2 +
    \mathrm{Var}(\hat\theta_n), \qquad \hat\theta_n \to \theta \text{ as } n \to \infty

Each is an expectation over data sets, so each is simulated, and has a Monte Carlo standard error.
"""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probdl.errors import FindingWarning, ProbdlError, SettingError, warn
from probdl.methods import MLE, Method
from probdl.methods.base import resolve
from probdl.model.sites import scalar_labels
from probdl.montecarlo.simulate import Simulator
from probdl.results.fit import Fit
from probdl.util.isolation import isolated
from probdl.util.lazy import special
from probdl.util.lazy import xarray as xr
from probdl.util.parallel import parallel_map
from probdl.util.seeds import stream

__all__ = ["study"]

_LARGE = 100_000  # rows of the sample whose estimate stands for the limit

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
    progress: bool | None = None,
) -> xr.Dataset:
    r"""Study an estimator: simulate data at known parameters, fit each data set, and compare.

    The estimate is that of a point estimator, or the posterior mean; the interval is Wald's, or
    the equal-tailed posterior one.

    Args:
        model: a Pyro program.
        method: the estimator, as in :func:`probdl.infer`.
        truth: the true values of the model's sites by name; those left out are drawn anew for
            each data set, and not judged.
        sizes: sample sizes n.
        replicates: how many data sets of each size, 2 at least.
        arguments: makes the model's arguments for a sample size, with any data in the place of
            what it observes (only the shape counts); a tuple, or a dict by name. None is for a
            model with one argument, its data, of shape (n,).
        generator: makes a data set, whole arguments, of a sample size and a seed. With it the
            data are of another distribution than the model's: the estimates are then compared
            with the parameters nearest to it in Kullback-Leibler divergence (the limit of maximum
            likelihood, estimated from 100,000 rows), and a warning says so.
        interval_prob: the probability that intervals should have.
        seed: of the data and of the fits.
        workers: how many processes; None is one for each core.
        progress: whether to show progress; None shows it on a terminal.

    Returns:
        A dataset over ``size`` and ``parameter``: ``bias``, ``variance``, ``mse`` and ``coverage``,
        each with its standard error ``…_se``; ``truth``; ``estimate``, ``low`` and ``high`` of each
        ``replicate``; ``failed`` (fits that raised an error, by size); and ``variance_rate`` and
        ``mse_rate``, the slopes of log variance and log MSE against log n, with theirs. The
        attribute ``findings`` counts what the fits found wrong. Ctrl-C returns what there is.

    Raises:
        SettingError: a setting is out of range, or all fits of a size fail.
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
    sizes = [int(n) for n in sizes]
    if replicates < 2 or not sizes or min(sizes) < 1 or len(set(sizes)) < len(sizes):
        raise SettingError(
            f"sizes={sizes} must be different numbers of at least 1, and replicates={replicates} "
            "at least 2."
        )
    if not 0 < interval_prob < 1:
        raise SettingError(f"interval_prob={interval_prob} must be between 0 and 1.")
    if truth is None and generator is None:
        raise SettingError(
            "give truth=, the values of the model's sites that data are simulated at, or "
            "generator=, which makes data of another distribution."
        )
    template = arguments or (lambda n: (np.zeros(n),))
    target = dict(truth or {})
    if generator is not None:
        target = _projection(model, generator, seed)
    rows, counts = [], Counter[str]()
    failed, seconds = [], []
    for n in sizes:
        made = functools.partial(generator, n) if generator is not None else None
        example = made(stream(seed, "template")) if made is not None else template(n)
        simulator = Simulator(model, example)
        if made is None:
            with isolated(stream(seed, "data", n)):
                sets = simulator.at(target, replicates)
        else:
            seeds = [stream(seed, "data", n, i) for i in range(replicates)]
            sets = simulator.made_by(made, seeds)
        work = _Work(chosen, simulator, sets, target, interval_prob, seed)
        begun = time.perf_counter()
        found = parallel_map(
            work, replicates, workers=workers, description=f"n = {n}", progress=progress
        )
        seconds.append(time.perf_counter() - begun)
        good = [r for r, _ in found if isinstance(r, np.ndarray)]
        if len(good) < 2:
            reason = next(r for r, _ in found if isinstance(r, str))
            raise SettingError(f"of {len(found)} fits at n = {n} {len(good)} worked: {reason}")
        for _, checks in found:
            counts.update(checks)
        failed.append(len(found) - len(good))
        rows.append(good)
        if len(found) < replicates:
            counts["interrupted"] += 1
            break
    labels = work.labels
    result = _aggregate(rows, sizes[: len(rows)], labels, work.truth, interval_prob)
    result["failed"], result["seconds"] = ("size", failed), ("size", seconds)
    result.attrs |= {"method": repr(chosen), "seed": seed, "findings": dict(counts)}
    result.attrs["interval_prob"] = interval_prob
    result.attrs["target"] = "truth" if generator is None else "kl_projection"
    _tell(result, counts, sum(map(len, rows)), generator is not None)
    return result


class _Work:
    """One fit of a study: from the number of a data set to estimates and intervals."""

    def __init__(
        self,
        method: Method,
        simulator: Simulator,
        sets: list[Any],
        truth: Mapping[str, Any],
        prob: float,
        seed: int,
    ) -> None:
        self.method, self.simulator, self.sets = method, simulator, sets
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

    def __call__(self, index: int) -> tuple[Array | str, list[str]]:
        """Return (3, parameters): estimates and intervals; or what went wrong."""
        program = self.simulator.program.with_tensors(self.sets[index])
        seed = stream(self.seed, "fit", index)
        try:
            with isolated(seed):
                if self.first is None:
                    fit = self.first = self.method.run(program, seed, False)
                else:
                    fit = self.method.refit(self.first, program, seed)
        except ProbdlError as error:
            return str(error), []
        checks = [f.check for f in fit.findings if f.severity != "info"]
        return estimates(fit, self.names, self.prob), checks


def estimates(fit: Fit, names: Sequence[str], prob: float) -> Array:
    """Return the estimates of a fit, and their intervals: (3, scalars)."""
    parts = []
    for name in names:
        draws = fit.draws[name]
        if fit.is_point:
            center = draws[0, 0]
            error = np.asarray(fit.stats.get("standard_error", {}).get(name, np.nan))
            width = special.ndtri(0.5 + prob / 2) * error
            low, high = center - width, center + width
        else:
            center = draws.mean((0, 1))
            low, high = np.quantile(draws, [(1 - prob) / 2, (1 + prob) / 2], axis=(0, 1))
        parts.append(np.stack([np.ravel(center), np.ravel(low), np.ravel(high)]))
    return np.concatenate(parts, 1)


def _projection(model: Callable[..., Any], generator: Any, seed: int) -> dict[str, Any]:
    """Estimate the parameters that the data's distribution is nearest to."""
    simulator = Simulator(model, generator(_LARGE, stream(seed, "projection")))
    with isolated(seed):
        fit = MLE().run(simulator.program, seed, False)
    return {s.name: fit.draws[s.name][0, 0] for s in fit.structure.of("latent", "param")}


def _aggregate(
    rows: Sequence[Sequence[Array]],
    sizes: Sequence[int],
    labels: list[str],
    truth: Array,
    prob: float,
) -> xr.Dataset:
    """Make the dataset of estimates, and what they say of the estimator."""
    most = max(map(len, rows))
    table = np.full((len(sizes), most, 3, len(labels)), np.nan)
    for i, of_size in enumerate(rows):
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
    # Of the nominal probability: that of a share of 0 or 1 would be 0.
    result["coverage_se"] = np.sqrt(prob * (1 - prob) / known)
    for name in ("variance", "mse") if len(sizes) > 1 else ():
        slope, slope_se = _rate(sizes, result[name].values, result[f"{name}_se"].values)
        result[f"{name}_rate"] = ("parameter", slope)
        result[f"{name}_rate_se"] = ("parameter", slope_se)
    return result


def _rate(sizes: Sequence[int], values: Array, errors: Array) -> tuple[Array, Array]:
    """Fit the slope of log values (sizes, parameters) against log n, weighted by their errors."""
    with np.errstate(all="ignore"):
        log, weight = np.log(values), (values / errors) ** 2
    x = np.log(np.asarray(sizes, float))[:, None]
    center = (weight * x).sum(0) / weight.sum(0)
    spread = (weight * (x - center) ** 2).sum(0)
    slope = (weight * (x - center) * log).sum(0) / spread
    return slope, np.sqrt(1 / spread)


def _tell(result: xr.Dataset, counts: Counter[str], fits: int, projected: bool) -> None:
    """Warn of what makes the study something else than it looks."""
    said = []
    if projected:
        where = ", ".join(
            f"{p} = {float(v):.4g}"
            for p, v in zip(result.parameter.values[:5], result.truth.values, strict=False)
        )
        said.append(
            "the data do not come from the model, so its estimates are compared with the "
            "parameters nearest to the data's distribution in Kullback-Leibler divergence: "
            f"{where}."
        )
    if counts["interrupted"]:
        said.append(
            f"interrupted at n = {int(result['size'][-1])}: larger samples are missing, and of "
            "this size only the data sets that were done are there."
        )
    if lost := int(result.failed.sum()):
        said.append(f"{lost} fits failed and are left out, which may bias what is reported.")
    for check in ("flat", "not_identified", "no_maximum", "multimodal"):
        if counts[check] > 0.05 * fits:
            said.append(
                f"{counts[check]} of {fits} fits report '{check}': the parameters cannot be told "
                "apart by such data, so there is nothing for the estimates to converge to."
                if check != "no_maximum"
                else f"{counts[check]} of {fits} fits found no maximum."
            )
    if said:
        warn("\n".join(said), FindingWarning)
