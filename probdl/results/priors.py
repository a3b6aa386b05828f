r"""What the prior expected of the data, and what the data said of the prior.

Draws of the prior predictive distribution,

.. math:: p(y) = \int p(y | \theta) p(\theta) d\theta,

show whether the data are such as the prior expects (Box, "Sampling and Bayes' inference in
scientific modelling and robustness", 1980; Evans and Moshonov, "Checking for prior-data conflict",
2006), and draws of the prior whether the posterior of a site is anything else (Gelfand and Sahu,
"Identifiability, improper priors, and Gibbs sampling for generalized linear models", 1999).
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
from probdl.model.predictive import sample_prior
from probdl.model.program import Program
from probdl.model.sites import Structure
from probdl.util.isolation import isolated
from probdl.util.lazy import stats

__all__ = ["check_prior"]

# The thresholds are ours; the papers name none.
_NUMBERS = 2**23  # that the check may draw; beyond, the data are too many for one after each fit
_SCALARS = 500  # of a site that are compared with their prior

Array = NDArray[Any]


def check_prior(
    program: Program, structure: Structure, draws: Mapping[str, Array], seed: int
) -> list[Finding]:
    """Look for conflicts of prior and data, and for sites of which the data say nothing.

    There is no such check where a prior is flat, where the prior cannot be sampled, and where the
    data are too many (40,000 numbers and more).

    Args:
        program: the model with its data.
        structure: its sites.
        draws: of the posterior, (chain, draw, *shape) by site; only sites with several are
            compared with their prior.
        seed: of the draws of the prior.
    """
    latent, observed = structure.of("latent"), structure.of("observed")
    size = sum(math.prod(s.shape) for s in (*latent, *structure.of("discrete"), *observed))
    if not (latent and observed) or any(s.flat for s in latent) or size * PRIOR_DRAWS > _NUMBERS:
        return []
    try:
        with isolated(seed), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            prior = sample_prior(program, structure, PRIOR_DRAWS)
    except (ProbdlError, RuntimeError):  # such as a covariance that only the posterior makes valid
        return []
    values = {name: np.asarray(value) for name, value in prior.items()}
    findings = [
        finding
        for site in observed
        for finding in _conflict(site.name, np.asarray(site.value), values[site.name])
    ]
    told = {s.name for s in latent if _says_nothing(draws.get(s.name), values[s.name])}
    if told and len(told) < len(latent):
        names = tuple(s.name for s in latent if s.name in told)
        findings.append(
            Finding(
                "info",
                "identification",
                f"the data say next to nothing about {', '.join(map(repr, names))}: the posterior "
                "cannot be told from the prior.",
                "What depends on these sites rests on the prior alone; see whether it is meant so, "
                "or leave them out.",
                names,
            )
        )
    return findings


def _conflict(name: str, data: Array, drawn: Array) -> list[Finding]:
    """Compare the mean and the spread of data with those of draws of the prior predictive."""
    rows = drawn.reshape(len(drawn), -1).astype(np.float64)
    seen = np.broadcast_to(data, drawn.shape[1:]).ravel().astype(np.float64)
    statistics = {"mean": (seen.mean(), rows.mean(1))}
    if len(seen) > 1 and not np.isin(rows, (0.0, 1.0)).all():
        statistics["standard deviation"] = (seen.std(), rows.std(1))
    for what, (value, expected) in statistics.items():
        expected = expected[~np.isnan(expected)]
        above, below = value > expected.max(initial=-np.inf), value < expected.min(initial=np.inf)
        # Data that vary less than the prior expects are no conflict: priors are wide on purpose.
        if len(expected) < PRIOR_DRAWS or not (above or (below and what == "mean")):
            continue
        low, high = np.quantile(expected, [0.025, 0.975])
        return [
            Finding(
                "warning",
                "prior_conflict",
                f"prior and data conflict: the {what} of '{name}' is {value:.4g}, "
                f"{'above' if above else 'below'} that of all {PRIOR_DRAWS} data sets drawn from "
                f"the prior (95 % of them lie between {low:.4g} and {high:.4g}).",
                "Check the units of the data, and widen or move the priors; "
                "fit.to_idata(prior=True) has draws of them.",
                (name,),
            )
        ]
    return []


def _says_nothing(posterior: Array | None, prior: Array) -> bool:
    """Tell whether no scalar of a site has a posterior other than its prior."""
    if posterior is None or posterior.shape[0] * posterior.shape[1] < 2:
        return False
    after = posterior.reshape(-1, math.prod(posterior.shape[2:]))
    before = prior.reshape(len(prior), -1)
    if before.shape[1] != after.shape[1] or after.shape[1] > _SCALARS:
        return False
    # As many draws as the prior has: those of a chain are not independent.
    after = after[:: max(1, len(after) // PRIOR_DRAWS)]
    pairs = zip(before.T, after.T, strict=True)
    return all(stats.ks_2samp(a, b, method="asymp").pvalue > SAME_AS_PRIOR for a, b in pairs)
