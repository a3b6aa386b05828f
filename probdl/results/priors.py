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
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probdl.errors import ProbdlError
from probdl.findings import PRIOR_DRAWS, SAME_AS_PRIOR, Finding
from probdl.model.program import Program
from probdl.model.sites import Structure
from probdl.model.streaming import sample_prior, whole
from probdl.results.masking import without_masked
from probdl.util.isolation import isolated
from probdl.util.lazy import stats

__all__ = ["check_prior"]

# Larger checks would take too long after each fit.
MAX_DRAWN_NUMBERS = 2**23
MAX_COMPARED_SCALARS = 500  # per site

Array = NDArray[Any]


def check_prior(
    program: Program, structure: Structure, draws: Mapping[str, Array], seed: int
) -> list[Finding]:
    """Check for conflicts of prior and data, and for sites about which the data are uninformative.

    Nothing is checked if a prior is flat, if the prior cannot be sampled, or if the model has more
    than about 40,000 numbers in its sites.

    Args:
        program: the model with its data.
        structure: its sites.
        draws: posterior draws by site, (chain, draw, *shape). A site without draws, or with a
            single one, is not compared with its prior.
        seed: the seed for the draws from the prior.
    """
    latent, observed = structure.of("latent"), structure.of("observed")
    size = sum(math.prod(s.shape) for s in (*latent, *structure.of("discrete"), *observed))
    if program.loader is not None and observed:
        size *= max(1, (program.loader.size or 0) // max(1, observed[0].shape[0]))
    if (
        not (latent and observed)
        or any(s.flat for s in latent)
        or size * PRIOR_DRAWS > MAX_DRAWN_NUMBERS
    ):
        return []
    try:
        with isolated(seed), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            prior = sample_prior(program, structure, PRIOR_DRAWS)
            observed = whole(program, structure).of("observed")
    except (ProbdlError, RuntimeError):  # e.g. an invalid covariance at a draw
        return []
    values = {name: np.asarray(value) for name, value in prior.items()}
    findings = [
        finding
        for site in observed
        for finding in _check_conflict(
            site.name,
            without_masked(site, np.asarray(site.value), 0),
            without_masked(site, values[site.name], 1),
        )
    ]
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


def _check_conflict(name: str, data: Array, drawn: Array) -> list[Finding]:
    """Compare the mean and standard deviation of data with those of prior predictive draws."""
    rows = drawn.reshape(len(drawn), -1).astype(np.float64)
    observed = np.broadcast_to(data, drawn.shape[1:]).ravel().astype(np.float64)
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
        if len(expected) < PRIOR_DRAWS or not (above or (below and statistic == "mean")):
            continue
        low, high = np.quantile(expected, [0.025, 0.975])
        return [
            Finding(
                "warning",
                "prior_conflict",
                f"The data conflict with the prior: the {statistic} of '{name}' is {value:.4g}, "
                f"{'above' if above else 'below'} that of all {PRIOR_DRAWS} prior predictive data "
                f"sets (95% of their {statistic}s lie between {low:.4g} and {high:.4g}).",
                "Check the units of the data and the likelihood. If they are right, use wider or "
                "shifted priors; fit.to_idata(prior=True) returns draws from the prior.",
                (name,),
            )
        ]
    return []


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
    return all(stats.ks_2samp(a, b, method="asymp").pvalue > SAME_AS_PRIOR for a, b in pairs)
