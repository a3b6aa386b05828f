r"""Simulation-based calibration: is an inference method right?

.. math:: \theta^* \sim p(\theta), \quad y \sim p(y | \theta^*), \quad
    \theta_1, \dots, \theta_L \sim p(\theta | y) \quad\Rightarrow\quad
    \#\{l : \theta_l < \theta^*\} \sim \mathrm{Uniform}\{0, \dots, L\}

for each scalar, whatever the model. Ranks that are not uniform show an error of the method, or of
the program that it was given.
"""

from __future__ import annotations

from collections.abc import Callable
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
from probdl.util.isolation import isolated
from probdl.util.lazy import pandas as pd
from probdl.util.lazy import stats
from probdl.util.lazy import xarray as xr
from probdl.util.parallel import parallel_map
from probdl.util.seeds import stream

__all__ = ["Calibration", "calibrate"]

_PROB = 0.95  # of the bands

Array = NDArray[Any]


@dataclass(frozen=True, repr=False)
class Calibration:
    """Ranks of true values among posterior draws, and whether they are uniform.

    Attributes:
        ranks: (simulation, parameter), of 0 to ``num_draws``.
        num_draws: L, how many draws each rank is among.
        table: a row for each scalar: the p-value of the chi-square test, the largest distance of
            the empirical CDF from uniform, whether it leaves the simultaneous band, and the mean
            rank as a share (below 1/2: the draws are too large).
        failed: how many fits raised an error.
        findings: what was seen.
    """

    ranks: xr.DataArray
    num_draws: int
    table: pd.DataFrame
    failed: int
    findings: Findings = field(default_factory=Findings)

    def ecdf(self, parameter: str, points: Array) -> Array:
        """Return the empirical CDF of a scalar's ranks, as shares, at points of [0, 1]."""
        return _ecdf(self.ranks.sel(parameter=parameter).values, self.num_draws, points)

    @property
    def calibrated(self) -> bool:
        """Whether no test rejects at 1 %, over all scalars together."""
        return not any(f.check == "calibration" for f in self.findings)

    def diagnose(self) -> Findings:
        """Return what was seen."""
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
    progress: bool | None = None,
) -> Calibration:
    r"""Calibrate a method by simulation: prior draws, data at them, a fit of each, ranks.

    Args:
        model: a Pyro program with proper priors.
        method: what to judge, as in :func:`probdl.infer`; any method whose fits hold draws. Its
            draws are thinned to ``num_draws``, which should leave them about independent.
        arguments: the model's arguments, with any data of the right shape in the place of what
            it observes: a tuple, or a dict by name.
        simulations: how many data sets.
        num_draws: L.
        seed: of prior draws, data and fits.
        workers: how many processes; None is one for each core.
        progress: whether to show progress; None shows it on a terminal.

    Returns:
        The ranks with their tests; ``probdl.plots.plot_calibration`` draws them. Ctrl-C returns
        what there is of them.

    Raises:
        SettingError: the method gives fewer draws than ``num_draws``, or a setting is out of range.
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
    if simulations < 20 or num_draws < 9:
        raise SettingError(
            f"simulations={simulations} must be at least 20, and num_draws={num_draws} at least 9."
        )
    simulator = Simulator(model, arguments)
    with isolated(stream(seed, "joint")):
        prior, sets = simulator.joint(simulations)
    names = [s.name for s in simulator.structure.of("latent")]
    if not names:
        raise ModelError(f"the model '{simulator.program.name}' has no latent sites to judge.")
    true = np.concatenate(
        [np.asarray(prior[n]).reshape(simulations, -1) for n in names], axis=1
    ).astype(np.float64)
    sites = simulator.structure.sites
    labels = [label for n in names for label in scalar_labels(n, sites[n].shape)]

    def work(index: int) -> tuple[Array | str, list[str]]:
        program = simulator.program.with_tensors(sets[index])
        fit_seed = stream(seed, "fit", index)
        try:
            with isolated(fit_seed):
                fit = chosen.run(program, fit_seed, False)
        except ProbdlError as error:
            return str(error), []
        count = fit.num_chains * fit.num_draws
        if count < num_draws:
            raise SettingError(
                f"{chosen!r} gives {count} draws, and ranks are among num_draws={num_draws}. Let "
                "it draw more; a point estimate cannot be calibrated."
            )
        kept = np.linspace(0, count - 1, num_draws).round().astype(int)
        draws = np.concatenate([fit.draws[n].reshape(count, -1)[kept] for n in names], axis=1)
        rng = np.random.default_rng(fit_seed)
        below, same = (draws < true[index]).sum(0), (draws == true[index]).sum(0)
        checks = [f.check for f in fit.findings if f.severity == "error"]
        return below + rng.integers(0, same + 1), checks

    found = parallel_map(
        work, simulations, workers=workers, description="calibrating", progress=progress
    )
    good = [r for r, _ in found if not isinstance(r, str)]
    if len(good) < 20:
        reason = next((r for r, _ in found if isinstance(r, str)), "interrupted")
        raise SettingError(f"only {len(good)} of {len(found)} fits worked: {reason}")
    ranks = xr.DataArray(
        np.stack(good), dims=("simulation", "parameter"), coords={"parameter": labels}
    )
    return _judge(ranks, num_draws, len(found) - len(good), simulations)


def _ecdf(ranks: Array, num_draws: int, points: Array) -> Array:
    shares = np.sort((ranks + 1) / (num_draws + 1))
    return np.searchsorted(shares, points, side="right") / len(ranks)


def _judge(ranks: xr.DataArray, num_draws: int, failed: int, asked: int) -> Calibration:
    """Test the ranks for uniformity, each scalar by itself."""
    count, scalars = ranks.shape
    bins = max(2, min(20, count // 10, num_draws + 1))
    edges = np.linspace(0, num_draws + 1, bins + 1)
    widths = np.diff(np.ceil(edges))
    rows = []
    points, low, high = idata.ecdf_band(count, num_draws, _PROB)
    for label in ranks.parameter.values:
        of = ranks.sel(parameter=label).values
        observed = np.histogram(of, edges)[0]
        test = stats.chisquare(observed, count * widths / widths.sum())
        ecdf = _ecdf(of, num_draws, points)
        rows.append(
            {
                "p_value": float(test.pvalue),
                "ecdf_distance": float(np.abs(ecdf - points).max()),
                "outside_band": bool(((ecdf < low) | (ecdf > high)).any()),
                "mean_rank": float(of.mean() / num_draws),
            }
        )
    table = pd.DataFrame(rows, index=list(ranks.parameter.values))
    findings = []
    wrong = table[table.p_value < CALIBRATION_LEVEL / scalars]
    if len(wrong):
        worst = wrong.p_value.idxmin()
        share = wrong.mean_rank[worst]
        spread = float(np.var(ranks.sel(parameter=worst) / num_draws)) * 12
        how = (
            "the draws are too large"
            if share < 0.45
            else "the draws are too small"
            if share > 0.55
            else "the draws are too narrow"
            if spread > 1
            else "the draws are too wide"
        )
        findings.append(
            Finding(
                "error",
                "calibration",
                f"the ranks of '{worst}' are not uniform (p = {wrong.p_value[worst]:.2g})"
                + (f", nor are those of {len(wrong) - 1} more" if len(wrong) > 1 else "")
                + f": {how}. The method does not draw from the posterior of this model.",
                "Look at probdl.plots.plot_calibration, and compare with method='nuts'.",
                tuple(dict.fromkeys(str(p).split("[")[0] for p in wrong.index)),
            )
        )
    if failed:
        findings.append(
            Finding(
                "warning",
                "failed_fits",
                f"{failed} of {count + failed} fits failed; the ranks leave those data sets out.",
            )
        )
    if count + failed < asked:
        findings.append(
            Finding("warning", "interrupted", f"interrupted after {count} of {asked} simulations.")
        )
    if findings:
        warn("\n".join(map(str, findings)), FindingWarning)
    return Calibration(ranks, num_draws, table, failed, Findings(findings))
