r"""Simulation-based calibration: does an inference method draw from the posterior?

.. math:: \theta^* \sim p(\theta), \quad y \sim p(y | \theta^*), \quad
    \theta_1, \dots, \theta_L \sim p(\theta | y) \quad\Rightarrow\quad
    \#\{l : \theta_l < \theta^*\} \sim \mathrm{Uniform}\{0, \dots, L\}

for each scalar of every model. Ranks that are not uniform show an error of the method, or of the
model's implementation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probdl.errors import FindingWarning, ModelError, ProbdlError, SettingError, warn
from probdl.findings import CALIBRATION_LEVEL, Finding, Findings
from probdl.io import idata
from probdl.methods import Method
from probdl.methods.base import resolve
from probdl.model.sites import scalar_labels
from probdl.montecarlo.simulate import Simulator
from probdl.results.diagnostics import require_complete
from probdl.util.isolation import isolated
from probdl.util.lazy import pandas as pd
from probdl.util.lazy import stats
from probdl.util.lazy import xarray as xr
from probdl.util.parallel import parallel_map
from probdl.util.seeds import stream
from probdl.util.settings import (
    check_choice,
    check_int,
    check_progress,
    check_seed,
    check_workers,
    setting_error,
)

__all__ = ["Calibration", "calibrate"]

_BAND_PROB = 0.95
MIN_SIMULATIONS = 20
MIN_DRAWS = 9
# Normalised mean ranks outside of which the draws are called biased.
_UNBIASED_MEAN_RANK = (0.45, 0.55)
# Variances of normalised ranks, divided by that of a uniform distribution (1/12), outside of which
# unbiased draws are called overdispersed or underdispersed.
_UNIFORM_VARIANCE_RATIO = (0.9, 1.1)

Array = NDArray[Any]


@dataclass(frozen=True, repr=False)
class Calibration:
    """Ranks of true values among posterior draws, with tests of their uniformity.

    Attributes:
        ranks: (simulation, parameter), integers from 0 to ``num_draws``.
        num_draws: L, the number of draws per rank.
        table: one row per scalar: the p-value of the chi-square test, the largest distance between
            the empirical and the uniform CDF, whether the empirical CDF leaves the simultaneous
            95% band, and the mean rank divided by L (below 1/2: the draws are biased upwards).
        failed: the number of fits that raised an error.
        findings: the findings.
    """

    ranks: xr.DataArray
    num_draws: int
    table: pd.DataFrame
    failed: int
    findings: Findings = field(default_factory=Findings)

    def ecdf(self, parameter: str, points: Array) -> Array:
        """Return the empirical CDF of a scalar's normalised ranks at points of [0, 1].

        Args:
            parameter: the label of the scalar, such as ``theta[0]``.
            points: the points, shape (n,).

        Raises:
            SettingError: there is no such scalar, or the points are no numbers.
        """
        known = [str(label) for label in self.ranks["parameter"].values]
        check_choice("ecdf", parameter=(parameter, known))
        try:
            points = np.asarray(points, float).reshape(-1)
        except (TypeError, ValueError):
            raise setting_error("ecdf", "points", points, "must be numbers from 0 to 1") from None
        return _ecdf(self.ranks.sel(parameter=parameter).values, self.num_draws, points)

    @property
    def calibrated(self) -> bool:
        """Whether no test rejects at 1%, with Bonferroni's correction over all scalars."""
        return not any(f.check == "calibration" for f in self.findings)

    def diagnose(self) -> Findings:
        """Return the findings."""
        return self.findings

    def __repr__(self) -> str:
        simulations = self.ranks.sizes["simulation"]
        head = f"Calibration: {simulations} simulations, ranks among {self.num_draws} draws"
        return "\n".join([head, self.table.round(4).to_string(), str(self.findings)])


def calibrate(
    model: Callable[..., Any],
    method: str | Method | type[Method] = "nuts",
    arguments: Any = (),
    *,
    simulations: int = 200,
    num_draws: int = 99,
    seed: int = 0,
    workers: int | None = None,
    executor: Any = None,
    progress: bool | None = None,
) -> Calibration:
    r"""Test a method by simulation-based calibration.

    Draw parameters from the prior and a data set for each, fit all data sets, and rank the true
    parameters among the posterior draws.

    Args:
        model: a Pyro program with proper priors.
        method: the method to test, as in :func:`probdl.infer`; its fits must hold draws. They are
            thinned to ``num_draws``, after which they should be nearly independent.
        arguments: the model's arguments, with arbitrary data of the right shape in the place of
            the observed data: a tuple, or a dict by name.
        simulations: the number of data sets, at least 20.
        num_draws: L, at least 9.
        seed: the seed of prior draws, data and fits.
        workers: the number of processes; None uses one per core.
        executor: runs the fits in the place of processes of this machine: a
            ``concurrent.futures.Executor``, or a Dask ``Client``. The results are the same.
        progress: whether to show progress; None shows it on a terminal only.

    Returns:
        The ranks and their tests; ``probdl.plots.plot_calibration`` plots them. After Ctrl-C, the
        ranks so far.

    Raises:
        SettingError: the method returns fewer draws than ``num_draws``, or a setting is out of
            range.
        ModelError: a prior is improper, the model fails, or its data cannot be simulated.

    Example:
        >>> import torch, pyro, pyro.distributions as dist, probdl
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> method = probdl.Laplace(draws=99)   # exact for this model
        >>> found = calibrate(model, method, (torch.tensor(0.0),), simulations=40, seed=1)
        >>> found.calibrated
        True

    Source: Talts, Betancourt, Simpson, Vehtari and Gelman, arXiv:1804.06788 (2018); Säilynoja,
    Bürkner and Vehtari, "Graphical test for discrete uniformity" (2022).
    """
    chosen = resolve(method)
    check_int(
        "calibrate", simulations=(simulations, MIN_SIMULATIONS), num_draws=(num_draws, MIN_DRAWS)
    )
    check_seed("calibrate", seed)
    check_workers("calibrate", workers, executor)
    check_progress("calibrate", progress)
    simulator = Simulator(model, arguments)
    with isolated(stream(seed, "joint")):
        prior, sets = simulator.joint(simulations)
    names = [s.name for s in simulator.structure.of("latent")]
    if not names:
        raise ModelError(f"The model '{simulator.program.name}' has no latent sites to rank.")
    all_true = np.concatenate(
        [np.asarray(prior[n]).reshape(simulations, -1) for n in names], axis=1
    ).astype(np.float64)
    sites = simulator.structure.sites
    labels = [label for n in names for label in scalar_labels(n, sites[n].shape)]

    def work(index: int, item: tuple[Any, Array]) -> tuple[Array | str, list[str]]:
        data, true = item
        program = simulator.program.with_tensors(data)
        fit_seed = stream(seed, "fit", index)
        try:
            with isolated(fit_seed):
                fit = chosen.run(program, fit_seed, False)
                require_complete(fit.findings)
        except ProbdlError as error:
            return str(error), []
        count = fit.num_chains * fit.num_draws
        if count < num_draws:
            raise SettingError(
                f"{chosen!r} returns {count} draws, fewer than num_draws={num_draws}. Increase its "
                "draws; a point estimate cannot be calibrated."
            )
        kept = np.linspace(0, count - 1, num_draws).round().astype(int)
        draws = np.concatenate([fit.draws[n].reshape(count, -1)[kept] for n in names], axis=1)
        rng = np.random.default_rng(fit_seed)
        below, ties = (draws < true).sum(0), (draws == true).sum(0)
        checks = [f.check for f in fit.findings if f.severity == "error"]
        return below + rng.integers(0, ties + 1), checks

    found = parallel_map(
        work,
        list(zip(sets, all_true, strict=True)),
        workers=workers,
        executor=executor,
        lost=lambda why: (why, []),
        description="calibrating",
        progress=progress,
    )
    good = [r for r, _ in found if not isinstance(r, str)]
    errors = [r for r, _ in found if isinstance(r, str)]
    if len(good) < MIN_SIMULATIONS:
        cause = f"The first error: {errors[0]}" if errors else "The run was interrupted."
        raise SettingError(
            f"Only {len(good)} of {len(found)} fits succeeded, fewer than the minimum of "
            f"{MIN_SIMULATIONS}. {cause}"
        )
    ranks = xr.DataArray(
        np.stack(good), dims=("simulation", "parameter"), coords={"parameter": labels}
    )
    return _test_uniformity(ranks, num_draws, errors, simulations)


def _describe_error(normalised_ranks: Array) -> str:
    """Describe how draws differ from the posterior, given ranks in [0, 1]."""
    low, high = _UNBIASED_MEAN_RANK
    if normalised_ranks.mean() < low:
        return "the draws are biased upwards"
    if normalised_ranks.mean() > high:
        return "the draws are biased downwards"
    low, high = _UNIFORM_VARIANCE_RATIO
    ratio = 12 * np.var(normalised_ranks)
    if ratio < low:
        return "the draws are overdispersed"
    if ratio > high:
        return "the draws are underdispersed"
    return "the draws and the posterior differ in shape"


def _ecdf(ranks: Array, num_draws: int, points: Array) -> Array:
    shares = np.sort((ranks + 1) / (num_draws + 1))
    return np.searchsorted(shares, points, side="right") / len(ranks)


def _test_uniformity(
    ranks: xr.DataArray, num_draws: int, errors: Sequence[str], simulations: int
) -> Calibration:
    """Test the ranks of each scalar for uniformity."""
    count, scalars = ranks.shape
    bins = max(2, min(20, count // 10, num_draws + 1))
    edges = np.linspace(0, num_draws + 1, bins + 1)
    widths = np.diff(np.ceil(edges))
    rows = []
    points, low, high = idata.ecdf_band(count, num_draws, _BAND_PROB)
    for label in ranks.parameter.values:
        of_scalar = ranks.sel(parameter=label).values
        observed = np.histogram(of_scalar, edges)[0]
        test = stats.chisquare(observed, count * widths / widths.sum())
        ecdf = _ecdf(of_scalar, num_draws, points)
        rows.append(
            {
                "p_value": float(test.pvalue),
                "ecdf_distance": float(np.abs(ecdf - points).max()),
                "outside_band": bool(((ecdf < low) | (ecdf > high)).any()),
                "mean_rank": float(of_scalar.mean() / num_draws),
            }
        )
    table = pd.DataFrame(rows, index=list(ranks.parameter.values))
    findings = []
    wrong = table[table.p_value < CALIBRATION_LEVEL / scalars]
    if len(wrong):
        worst, others = wrong.p_value.idxmin(), len(wrong) - 1
        how = _describe_error(ranks.sel(parameter=worst).values / num_draws)
        findings.append(
            Finding(
                "error",
                "calibration",
                f"The ranks of '{worst}' are not uniform (p = {wrong.p_value[worst]:.2g})"
                + (f", nor those of {others} other scalar{'s' * (others > 1)}" if others else "")
                + f": {how}. The draws are probably not from the posterior of this model (or they "
                "are autocorrelated, or the simulator and the model differ).",
                "Inspect probdl.plots.plot_calibration, and compare with method='nuts'.",
                tuple(dict.fromkeys(str(p).split("[")[0] for p in wrong.index)),
            )
        )
    failed = len(errors)
    if failed:
        findings.append(
            Finding(
                "warning",
                "failed_fits",
                f"{failed} of {count + failed} fits failed; their data sets are excluded. The "
                f"first error: {errors[0]}",
            )
        )
    if count + failed < simulations:
        findings.append(
            Finding(
                "warning",
                "interrupted",
                f"Interrupted after {count} of {simulations} simulations.",
            )
        )
    if findings:
        warn("\n".join(map(str, findings)), FindingWarning)
    return Calibration(ranks, num_draws, table, failed, Findings(findings))
