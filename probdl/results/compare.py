"""Compare fits by predictive accuracy: leave-one-out cross-validation by ArviZ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from probdl.errors import FindingWarning, ProbdlError, SettingError, warn
from probdl.findings import PARETO_K_MAX
from probdl.io import idata
from probdl.model.sites import Site
from probdl.results.crossvalidation import score_held_out
from probdl.results.fit import Fit
from probdl.results.lagged import is_given_others
from probdl.results.loo import is_flexible, warn_of_flexible, warn_of_one_observation
from probdl.results.masking import without_masked
from probdl.util.lazy import pandas as pd
from probdl.util.settings import check_flag, check_progress, check_workers

__all__ = ["compare"]

MAX_REFIT_SHARE = 0.2  # of the rows; beyond, k-fold cross-validation takes less time


def compare(
    fits: Mapping[str, Fit],
    *,
    site: str | None = None,
    refit: bool = True,
    workers: int | None = None,
    executor: Any = None,
    progress: bool | None = None,
) -> pd.DataFrame:
    r"""Compare fits of the same data by how well they predict held-out rows.

    .. math:: \mathrm{elpd}_{loo} = \sum_i \log p(y_i | y_{-i})

    The terms are estimated by Pareto-smoothed importance sampling (PSIS-LOO). If the estimate for a
    row is unreliable (Pareto k-hat above 0.7, a limit that assumes more than about 2200 draws), the
    model is refitted without this row, and the estimate is replaced by the exact term, unless more
    than 20% of the rows are such: refitting for each takes longer than k-fold cross-validation.

    PSIS-LOO assumes draws from the exact posterior. With draws by Laplace, SVI or Pathfinder, the
    error of the approximation is ignored: it is neither corrected nor included in ``se``.

    The terms are those of the model. Those of an autoregression, :math:`p(y_t | y_{t-1}, \theta)`,
    are given earlier observations but not later ones, whereas a model of latent states also uses
    the later ones; such scores are not comparable, and a warning says so.

    Args:
        fits: fits by name, of one model by several methods or of several models.
        site: the observed site whose observations are held out, if there are several. The others
            stay, so that fits are not refitted.
        refit: whether to refit if k-hat is high for few rows; otherwise a warning reports their
            number.
        workers: number of processes for refitting; None means one per core.
        executor: runs the fits in the place of processes of this machine: a
            ``concurrent.futures.Executor``, or a Dask ``Client``.
        progress: whether to show progress; None means only on a terminal and in a notebook.

    Returns:
        ArviZ's table, the best fit first. Columns: ``elpd`` and its standard error ``se``; the
        difference from the best fit ``elpd_diff`` and its standard error ``dse``; the stacking
        ``weight``; ``refitted``, the number of rows with exact terms; and ``high_k``, the number
        of rows whose estimates are unreliable.

    Raises:
        SettingError: there are fewer than two fits, the data differ, a fit observes several sites
            and none is chosen, or a fit is a point estimate.

    Warns:
        FindingWarning: a fit has errors among its findings; k-hat is high; a model is too flexible
            for LOO; or the scores are of different quantities.

    Example:
        >>> import numpy as np, pyro, pyro.distributions as dist, probdl
        >>> def model(y, nu):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("obs", len(y)):
        ...         pyro.sample("y", dist.StudentT(nu, mu, 1.0), obs=y)
        >>> y = np.random.default_rng(1).standard_t(2.0, size=100)
        >>> method = probdl.NUTS(draws=300, warmup=300, chains=2)
        >>> fits = {
        ...     str(nu): probdl.infer(model, y, nu, method=method, seed=1) for nu in (2.0, 50.0)
        ... }
        >>> compare(fits).index[0]
        '2.0'

    Source: Vehtari, Gelman and Gabry, "Practical Bayesian model evaluation using leave-one-out
    cross-validation and WAIC" (2017).
    """
    if not isinstance(fits, Mapping):
        raise SettingError(
            f"compare() takes a dict of fits by name, such as {{'a': fit_a, 'b': fit_b}}, and got "
            f"a {type(fits).__name__}."
        )
    for name, fit in fits.items():
        if not isinstance(fit, Fit):
            raise SettingError(
                f"{name!r} is a {type(fit).__name__}; compare() takes fits, as infer() and load() "
                "return them. Pass the fit instead of fit.idata, or use az.compare() for "
                "containers of other packages."
            )
    check_flag("compare", refit=refit)
    check_workers("compare", workers, executor)
    check_progress("compare", progress)
    if len(fits) < 2:
        raise SettingError(f"compare() needs at least two fits by name, but got {len(fits)}.")
    _check_comparable(fits, site)
    _warn_of_lagged_terms(fits, site)
    _warn_of_findings(fits)
    results, refitted, high = {}, {}, {}
    too_many = False
    for name, fit in fits.items():
        scored = _scored(fit, site)
        result = idata.loo(fit.idata, scored.name)
        bad = np.flatnonzero(idata.pareto_k(result) > PARETO_K_MAX)
        refitted[name], high[name] = 0, len(bad)
        batch = len(scored.shape) - scored.event_dim
        few = len(bad) <= max(1, MAX_REFIT_SHARE * scored.count)
        is_row = batch == 1 and len(fit.observations) == 1
        too_many |= refit and is_row and not few
        if len(bad) and refit and few and is_row:
            row_of = np.arange(scored.shape[0])
            if scored.is_scored is not None:
                row_of = row_of[scored.is_scored.numpy()]
            held_out = [[int(row_of[i])] for i in bad]
            try:
                exact = score_held_out(
                    fit, held_out, workers=workers, executor=executor, progress=progress
                )
                result = idata.with_exact(
                    result, {int(i): float(s[0]) for i, s in zip(bad, exact, strict=False)}
                )
                refitted[name], high[name] = len(exact), len(bad) - len(exact)
            except ProbdlError as error:
                warn(f"Fit {name!r} could not be refitted for rows with a high k-hat: {error}")
        results[name] = result
    warn_of_one_observation(result)  # of the same data as the others
    table: pd.DataFrame = idata.compare(results)
    table["refitted"] = pd.Series(refitted)
    table["high_k"] = pd.Series(high)
    for name, result in results.items():
        if is_flexible(result) and not high[name] and refitted[name] < len(idata.pareto_k(result)):
            warn_of_flexible(f"The model of {name!r} has", result)
    if any(high.values()):
        rows = ", ".join(f"{c} row{'s' * (c > 1)} of {n!r}" for n, c in high.items() if c)
        warn(
            f"Pareto k-hat is above {PARETO_K_MAX} for {rows}, so the LOO estimates are "
            f"unreliable{'; they are too many to refit for each' if too_many else ''}. The model "
            "may be misspecified or very flexible. Use "
            "fit.cross_validate(k=10), which refits, or a model with heavier tails, which is less "
            "sensitive to single rows.",
            FindingWarning,
        )
    return table


def _warn_of_findings(fits: Mapping[str, Fit]) -> None:
    """Warn of scores of draws that are not those of the posterior, by their own findings."""
    serious = {
        name: [f.check for f in fit.diagnose() if f.severity == "error" or f.check == "pareto_k"]
        for name, fit in fits.items()
    }
    named = [f"{name!r} ({', '.join(checks)})" for name, checks in serious.items() if checks]
    if named:
        warn(
            f"The score of a fit is as good as its draws, and there are findings on those of "
            f"{', '.join(named)}; see fit.diagnose().",
            FindingWarning,
        )


def _warn_of_lagged_terms(fits: Mapping[str, Fit], site: str | None) -> None:
    """Warn if the terms of some fits are given other observations, and those of others are not."""
    lagged = {name: is_given_others(fit, _scored(fit, site).name) for name, fit in fits.items()}
    if len(set(lagged.values())) > 1:
        given, others = (
            ", ".join(repr(name) for name, is_lagged in lagged.items() if is_lagged is wanted)
            for wanted in (True, False)
        )
        warn(
            f"The terms of the likelihood of {given} are given earlier observations, as "
            f"p(y[t] | y[t-1]), and those of {others} are not. A held-out observation of {given} "
            "remains a predictor of the next one, which does not help to predict it, so its score "
            f"is lower than log p(y[t] | all others) and cannot be compared with that of {others}. "
            "Fit the models without the last part of the series, and compare the scores of that "
            "part: fit.log_predictive(...).joints.",
            FindingWarning,
        )


def _scored(fit: Fit, site: str | None) -> Site:
    """Return the observations that are held out, one by one."""
    if site is not None and site in fit.observations:
        return fit.observations[site]
    (only,) = fit.observations.values()
    return only


def _check_comparable(fits: Mapping[str, Fit], site: str | None) -> None:
    """Check that the fits have draws, and observe the same data at one site."""
    data, units = {}, {}
    for name, fit in fits.items():
        sites = fit.whole.terms()
        if site is not None:
            sites = [s for s in sites if s.name == site]
        if len(sites) != 1 or sites[0].kind != "observed":
            of = fit.whole.terms()
            what = ", ".join(f"{s.kind} site '{s.name}'" for s in of) or "no site"
            observed = [s.name for s in of if s.kind == "observed"]
            choose = f"Choose one, such as site={observed[0]!r}. " if observed else ""
            raise SettingError(
                f"The likelihood of fit {name!r} consists of {what}, and compare() needs exactly "
                f"one observed site. {choose}fit.cross_validate(k) adds up the scores of several "
                "sites in the same rows."
            )
        if fit.is_point:
            raise SettingError(
                f"Fit {name!r} is a point estimate by {fit.method.name}, but PSIS-LOO needs "
                "posterior draws. Use fit.cross_validate(k) or another method."
            )
        data[name] = without_masked(sites[0], np.asarray(sites[0].value), 0)
        if not fit.observations:
            fit.log_likelihood()  # raises an error that says why there is none
        held_out = _scored(fit, site)
        masked = held_out.is_scored is not None
        batch = held_out.shape[: len(held_out.shape) - held_out.event_dim]
        units[name] = (held_out.count,) if masked else batch
    first = next(iter(data))
    for name, value in data.items():
        if not np.array_equal(value, data[first], equal_nan=True):
            raise SettingError(
                f"Fits {first!r} and {name!r} are of different data, so their scores cannot be "
                "compared. Fit both to the same observations."
            )
        if units[name] != units[first]:
            raise SettingError(
                f"Fits {first!r} and {name!r} have other observations, since a discrete site ties "
                f"some together: {units[first]} and {units[name]}. Use "
                "fit.cross_validate(k), which holds out rows of the data."
            )
