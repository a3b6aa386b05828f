r"""Checks of the prior against the data and against the posterior.

The data are compared with draws from the prior predictive distribution,

.. math:: p(y) = \int p(y | \theta) p(\theta) d\theta,

(Box, "Sampling and Bayes' inference in scientific modelling and robustness", 1980; Evans and
Moshonov, "Checking for prior-data conflict", 2006), and the posterior of each site with draws from
its prior (Gelfand and Sahu, "Identifiability, improper priors, and Gibbs sampling for generalized
linear models", 1999).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probdl.errors import ProbdlError
from probdl.findings import MISFIT_MIN, PRIOR_DRAWS, SAME_AS_PRIOR, Finding
from probdl.model.program import Program
from probdl.model.sites import Structure
from probdl.model.streaming import sample_prior, whole
from probdl.results.masking import without_masked
from probdl.util.isolation import isolated

__all__ = ["check_prior"]

# Larger checks would take too long after each fit.
MAX_DRAWN_NUMBERS = 2**23
MAX_COMPARED_SCALARS = 500  # per site
MAX_NAMED_SITES = 4  # in one message

Array = NDArray[Any]


def check_prior(
    program: Program, structure: Structure, draws: Mapping[str, Array], seed: int
) -> list[Finding]:
    """Check for conflicts of prior and data, and for sites about which the data are uninformative.

    The parameters of the model, such as the weights of a network, have their fitted values. Nothing
    is checked if a prior is flat, if the prior cannot be sampled, or if the model has more than
    about 40,000 numbers in its sites.

    Args:
        program: the fitted model with its data.
        structure: its sites.
        draws: posterior draws by site, (chain, draw, *shape). A site without draws, or with a
            single one, is not compared with its prior.
        seed: the seed for the draws from the prior.
    """
    latent, observed = structure.of("latent"), structure.of("observed")
    size = structure.count_values("latent", "discrete", "observed")
    if program.loader is not None and observed:
        size *= max(1, (program.loader.size or 0) // max(1, observed[0].shape[0]))
    if (
        not (latent and observed)
        or any(s.flat for s in latent)
        or size * PRIOR_DRAWS > MAX_DRAWN_NUMBERS
    ):
        return []
    structure = structure.with_values(
        {s.name: _mean_draw(draws[s.name]) for s in structure.of("param") if s.name in draws}
    )
    try:
        with isolated(seed), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            prior = sample_prior(program, structure, PRIOR_DRAWS)
            observed = [s for s in whole(program, structure).of("observed") if not s.computed]
    except (ProbdlError, RuntimeError):  # e.g. an invalid covariance at a draw
        return []
    values = {name: np.asarray(value) for name, value in prior.items()}
    findings = _check_conflicts(
        [
            conflict
            for site in observed
            for conflict in _conflicts(
                site.name,
                without_masked(site, np.asarray(site.value), 0),
                without_masked(site, values[site.name], 1),
            )
        ],
        len(observed),
        fitted=bool(structure.of("param")),
    )
    names = tuple(s.name for s in latent if _same_as_prior(draws.get(s.name), values.get(s.name)))
    if names and len(names) < len(latent):
        them = "it" if len(names) == 1 else "them"
        findings.append(
            Finding(
                "info",
                "identification",
                "No difference was found between the marginal posterior and prior of "
                f"{', '.join(map(repr, names))}, so the data may be uninformative about {them}.",
                "Results for these sites may mainly reflect the prior; check that this is "
                "intended.",
                names,
            )
        )
    return findings


def _mean_draw(draws: Array) -> Tensor:
    return torch.as_tensor(draws.mean((0, 1)))


@dataclass(frozen=True)
class _Conflict:
    """A statistic of the data of a site that lies outside those of all prior predictive draws."""

    site: str
    statistic: str
    value: float
    expected: Array
    spread: float  # the standard deviation of the data

    @property
    def distance(self) -> float:
        """The distance from the mean of the draws, in their standard deviations."""
        spread = float(self.expected.std())
        return self.gap / spread if spread > 0 else math.inf

    @property
    def gap(self) -> float:
        """The distance from the mean of the draws."""
        return abs(self.value - float(self.expected.mean()))


def _conflicts(name: str, data: Array, drawn: Array) -> list[_Conflict]:
    """Compare the mean and standard deviation of data with those of prior predictive draws.

    Args:
        name: name of the site.
        data: its data; NaN where an element is masked.
        drawn: draws of the data, (draws, *shape).
    """
    rows = drawn.reshape(len(drawn), -1).astype(np.float64)
    try:
        observed = np.broadcast_to(data, drawn.shape[1:]).ravel().astype(np.float64)
    except ValueError:  # a series whose draws have another length
        return []
    rows, observed = rows[:, ~np.isnan(observed)], observed[~np.isnan(observed)]
    if not len(observed):
        return []
    statistics = {"mean": (observed.mean(), rows.mean(1))}
    if len(observed) > 1 and not np.isin(rows, (0.0, 1.0)).all():
        statistics["standard deviation"] = (observed.std(), rows.std(1))
    for statistic, (value, expected) in statistics.items():
        expected = expected[~np.isnan(expected)]
        above, below = value > expected.max(initial=-np.inf), value < expected.min(initial=np.inf)
        # Priors are often wide on purpose, so a small standard deviation is not a conflict.
        if len(expected) == PRIOR_DRAWS and (above or (below and statistic == "mean")):
            return [_Conflict(name, statistic, float(value), expected, observed.std())]
    return []


def _check_conflicts(conflicts: list[_Conflict], count: int, *, fitted: bool) -> list[Finding]:
    """Return one finding for all conflicts of ``count`` sites, which may come from a loop.

    Args:
        conflicts: the conflicts.
        count: number of sites that were checked.
        fitted: whether the model has parameters that were fitted to the data.
    """
    # Of many sites some are outside all draws by chance, but none is far outside.
    least = -NormalDist().inv_cdf(1 / (PRIOR_DRAWS + 1) / count) if count > 1 else 0.0
    found = sorted((c for c in conflicts if c.distance > least), key=lambda c: -c.distance)
    if fitted:  # such data sets hardly vary, so that any misfit of the model is outside all draws
        found = [c for c in found if c.gap > MISFIT_MIN * c.spread]
    if not found:
        return []
    worst = found[0]
    low, high = np.quantile(worst.expected, [0.025, 0.975])
    also = ""
    if len(found) > 1:
        names = [repr(c.site) for c in found[1 : 1 + MAX_NAMED_SITES]]
        more = f" and {len(found) - 1 - len(names)} more" if len(found) - 1 > len(names) else ""
        also = f" The data of {', '.join(names)}{more} conflict with it as well."
    seen = (
        f"the {worst.statistic} of '{worst.site}' is {worst.value:.4g}, "
        f"{'above' if worst.value > high else 'below'} that of all {PRIOR_DRAWS} prior predictive "
        f"data sets (95% of their {worst.statistic}s lie between {low:.4g} and {high:.4g})"
    )
    sites = tuple(c.site for c in found)
    if fitted:
        message = f"The data conflict with the prior at the fitted parameters: {seen}.{also}"
        remedy = (
            "Check that the parameters were fitted, and for long enough; then check the priors of "
            "the latent sites and the likelihood."
        )
    else:
        message = f"The data conflict with the prior: {seen}.{also}"
        remedy = (
            "Check the units of the data and the likelihood. If they are right, use wider or "
            "shifted priors; fit.to_idata(prior=True) returns draws from the prior."
        )
    return [Finding("warning", "prior_conflict", message, remedy, sites)]


def _same_as_prior(posterior: Array | None, prior: Array | None) -> bool:
    """Return whether the posterior of each scalar of a site is indistinguishable from its prior."""
    if posterior is None or prior is None or posterior.shape[0] * posterior.shape[1] < 2:
        return False
    after = posterior.reshape(-1, math.prod(posterior.shape[2:]))
    before = prior.reshape(len(prior), -1)
    if before.shape[1] != after.shape[1] or after.shape[1] > MAX_COMPARED_SCALARS:
        return False
    # Draws of a chain are not independent, so it is thinned to the number of draws from the prior.
    after = after[:: max(1, len(after) // PRIOR_DRAWS)]
    pairs = zip(before.T, after.T, strict=True)
    return all(_same_distribution_p(a, b) > SAME_AS_PRIOR for a, b in pairs)


def _same_distribution_p(a: Array, b: Array) -> float:
    """Return the p-value of the test of Kolmogorov and Smirnov, by its limit for large samples.

    SciPy, whose import takes as long as a small fit, has others. As there, it is NaN if a draw is.
    """
    places = np.concatenate([a, b])
    if np.isnan(places).any():
        return math.nan
    of_a, of_b = (np.searchsorted(np.sort(x), places, "right") / len(x) for x in (a, b))
    effective = len(a) * len(b) / (len(a) + len(b))
    return _kolmogorov(effective**0.5 * float(np.abs(of_a - of_b).max()))


def _kolmogorov(x: float) -> float:
    r"""Return the probability that a variable of Kolmogorov's distribution is above x.

    .. math:: 2 \sum_k (-1)^{k-1} e^{-2 k^2 x^2}
        = 1 - \frac{\sqrt{2 \pi}}{x} \sum_k e^{-(2 k - 1)^2 \pi^2 / (8 x^2)}

    >>> [round(_kolmogorov(x), 6) for x in (0.0, 0.5, 1.0, 1.5)]
    [1.0, 0.963945, 0.27, 0.022218]
    """
    if x <= 0:
        return 1.0
    terms = range(1, 10)
    if x < 1:
        each = (math.exp(-(((2 * k - 1) * math.pi / x) ** 2) / 8) for k in terms)
        return 1 - math.sqrt(2 * math.pi) / x * sum(each)
    return 2 * sum((-1) ** (k - 1) * math.exp(-2 * (k * x) ** 2) for k in terms)
