"""Which of several fits predicts new data best: leave-one-out cross-validation by ArviZ."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from probdl.errors import FindingWarning, ProbdlError, SettingError, warn
from probdl.findings import PARETO_K_MAX
from probdl.io import idata
from probdl.results.crossvalidation import held_out
from probdl.results.fit import Fit
from probdl.util.lazy import pandas as pd

__all__ = ["compare"]

_MANY = 0.2  # of the rows; from there on k-fold cross-validation costs less than fitting again


def compare(
    fits: Mapping[str, Fit],
    *,
    refit: bool = True,
    workers: int | None = None,
    progress: bool | None = None,
) -> pd.DataFrame:
    r"""Compare fits of the same data by how well they predict data left out.

    .. math:: \mathrm{elpd}_{loo} = \sum_i \log p(y_i | y_{-i})

    by Pareto-smoothed importance sampling. Where the smoothing cannot be trusted (k-hat above 0.7)
    the fit is done again without that row, and the exact term takes the place of the estimate.

    Args:
        fits: by name, fits of one model by several methods, or of several models.
        refit: whether to fit again where k-hat is high; else a warning counts the rows.
        workers: how many processes fit; None is one for each core.
        progress: whether to show progress; None shows it on a terminal.

    Returns:
        ArviZ's table, the best first: ``elpd`` with its standard error ``se``, the difference to
        the best ``elpd_diff`` with its own ``dse``, the stacking ``weight``; and ``refitted`` and
        ``high_k``, how many rows were fitted again, and how many estimates are left that cannot be
        trusted.

    Raises:
        SettingError: there are fewer than two fits, they are of different data, or one has a single
            draw.

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
    if len(fits) < 2:
        raise SettingError(f"compare() takes at least two fits by name, and got {len(fits)}.")
    _check_same(fits)
    results, refitted, high = {}, {}, {}
    for name, fit in fits.items():
        (site,) = fit.structure.of("observed")
        result = idata.loo(fit.idata, site.name)
        bad = np.flatnonzero(idata.pareto_k(result) > PARETO_K_MAX)
        refitted[name], high[name] = 0, len(bad)
        if len(bad) and refit and len(bad) <= max(1, _MANY * site.count):
            try:
                exact = held_out(fit, [[i] for i in bad], workers=workers, progress=progress)
                result = idata.with_exact(
                    result, {int(i): float(s[0]) for i, s in zip(bad, exact, strict=False)}
                )
                refitted[name], high[name] = len(exact), len(bad) - len(exact)
            except ProbdlError as error:
                warn(f"fit {name!r} could not be refitted where k-hat is high: {error}")
        results[name] = result
    table: pd.DataFrame = idata.compare(results)
    table["refitted"] = pd.Series(refitted)
    table["high_k"] = pd.Series(high)
    if any(high.values()):
        worst = ", ".join(f"{n!r} ({c})" for n, c in high.items() if c)
        warn(
            f"k-hat is above {PARETO_K_MAX} for some rows of {worst}: their estimates cannot be "
            "trusted. fit.cross_validate(k=10) fits again instead, or a model with heavier tails "
            "leans less on single rows.",
            FindingWarning,
        )
    return table


def _check_same(fits: Mapping[str, Fit]) -> None:
    """Check that the fits can be compared."""
    data = {}
    for name, fit in fits.items():
        sites = fit.structure.of("observed")
        if len(sites) != 1:
            raise SettingError(
                f"fit {name!r} observes {len(sites)} sites, and a comparison is of one. "
                "fit.cross_validate(k) adds several up."
            )
        if fit.is_point:
            raise SettingError(
                f"fit {name!r} is a point estimate by {fit.method.name}, and leave-one-out "
                "cross-validation needs draws. Use fit.cross_validate(k), or another method."
            )
        data[name] = np.asarray(sites[0].value)
    first = next(iter(data))
    for name, value in data.items():
        if not np.array_equal(value, data[first]):
            raise SettingError(
                f"fits {first!r} and {name!r} are of different data, and their scores cannot be "
                "compared."
            )
