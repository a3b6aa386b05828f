"""Findings: the results of diagnostic checks, and the table of all checks.

Each check is named in ``TOPICS`` with its severity, meaning, threshold and source. The code takes
its thresholds from here, and the documentation its list of findings. A finding whose name is not in
the table cannot be made.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self

__all__ = ["CHECKS", "SEVERITIES", "TOPICS", "Check", "Finding", "Findings", "Severity"]

Severity = Literal["info", "warning", "error"]
# Readable on a light and on a dark background.
_COLOURS = {"error": "#e5484d", "warning": "#c77700", "info": "#3e8ed0"}
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")

# Thresholds. "Ours" marks those that are not from the literature.

RHAT_MAX = 1.01
# The limit of Gelman et al., "Bayesian Data Analysis", before Vehtari et al. (2021). Chains that
# fail even this limit need more than a somewhat longer run.
RHAT_ERROR = 1.1
# Ours: for the two halves of one chain; higher than RHAT_MAX since one chain is noisier.
RHAT_WITHIN_CHAIN_MAX = 1.05
# Ours: distance between chain means, in standard deviations of a chain. The sum of two normal
# densities of equal standard deviation has two modes only beyond this distance.
MODE_DISTANCE = 2.0
# Ours: nats between the log probabilities of two regions; exp(-20) is a share of 2e-9.
STUCK_GAP = 20.0
ESS_MIN_PER_CHAIN = 100  # 50 for each half of a chain
DRAWS_MIN = 4  # ArviZ needs at least this many draws
BFMI_MIN = 0.3
PARETO_K_MAX = 0.7
# For a plain mean: above 0.5 the variance is infinite, so a standard error is meaningless.
EXPECTATION_K_MAX = 0.5
# Ours: share of the draws. If nine in ten draws have no weight, the approximation is of little use
# even where k-hat passes.
WEIGHT_SHARE_MIN = 0.1
NEARLY_EQUAL_SHARE = 0.97  # ours: of so even weights, the tail changes no mean by 0.2 sd
UNEVEN_SHARE = 0.65  # ours: share of the draws; below it, draws can miss a tail unseen at k > 0.5
RESAMPLED_SHARE_MIN = 0.25  # ours: the weights of a normal density may miss the end of a funnel
SHIFT_MAX = 0.1  # ours: error of a mean, in posterior standard deviations
SCALE_RATIO_MAX = 1.15  # ours: error of a standard deviation, as a factor in either direction
EDGE_SHARE_MAX = 0.001  # ours: of draws; about as much of the posterior, or more, is beyond
TREE_SHARE_MAX = 0.01  # ours: draws stay valid, and a few short trajectories slow no chain
DIVERGING_ERROR = 0.01  # ours: every divergence is reported; a larger share is an error
ACCEPTANCE_MIN = 0.02  # ours: below this rate a random walk hardly moves
COLLAPSED_KL_MAX = 0.01  # ours: nats of a latent dimension, averaged over rows
TAIL_DRAWS_MIN = 25  # ours: a generalised Pareto distribution is fitted to a fifth of the draws
PRIOR_DRAWS = 200  # ours: data outside all of them have a probability of 2 / 201
MISFIT_MIN = 0.1  # ours: standard deviations of the data; fitted models are not exact
SAME_AS_PRIOR = 0.01  # ours: p-value below which prior and posterior differ
COVERED_MIN = 0.7  # ours: share of the data; 0.97 are expected of draws from their distribution
SATURATED_MIN = 0.95  # ours: D(x) - D(G(z)) above which the generator learns little
VALUE_DISTANCE = 0.3  # ours: nats from the value at equilibrium
RISING_ERRORS = 4.0  # ours: standard errors; successive losses are correlated
CALIBRATION_LEVEL = 0.01  # ours: of the tests of uniform ranks, over all scalars together


def pareto_k_max(draws: int) -> float:
    """Return the largest acceptable Pareto k-hat of importance ratios: min(1 - 1/log10(S), 0.7).

    With few draws S, the estimates are unreliable at a smaller k-hat than with many; the limit is
    0.7 from about 2200 draws.

    >>> round(pareto_k_max(100), 3), pareto_k_max(10_000)
    (0.5, 0.7)

    Source: Vehtari, Simpson, Gelman, Yao and Gabry (2024).
    """
    return min(1 - 1 / math.log10(draws), PARETO_K_MAX) if draws > 1 else PARETO_K_MAX


_VEHTARI = (
    'Vehtari, Gelman, Simpson, Carpenter, Bürkner, "Rank-normalization, folding, and localization: '
    'an improved R-hat", Bayesian Analysis 16(2), 2021'
)
_BETANCOURT = (
    'Betancourt, "A conceptual introduction to Hamiltonian Monte Carlo", arXiv:1701.02434, 2017'
)
_PARETO = (
    'Vehtari, Simpson, Gelman, Yao, Gabry, "Pareto smoothed importance sampling", JMLR 25(72), 2024'
)
_GAN = 'Goodfellow et al., "Generative adversarial networks", 2014'
_NAEEM = (
    'Naeem, Oh, Uh, Choi, Yoo, "Reliable fidelity and diversity metrics for generative models", '
    "2020"
)
_TALTS = (
    'Talts, Betancourt, Simpson, Vehtari, Gelman, "Validating Bayesian inference algorithms with '
    'simulation-based calibration", arXiv:1804.06788, 2018'
)


class Check(NamedTuple):
    """What a diagnostic check looks at.

    Attributes:
        severities: of its findings; the first is the usual one.
        meaning: what a finding says about the fit.
        threshold: what is compared with what; empty where something just happened.
        source: where the threshold or the statistic comes from; empty where it is ours.
    """

    severities: tuple[Severity, ...]
    meaning: str
    threshold: str = ""
    source: str = ""


_WARNING: tuple[Severity, ...] = ("warning",)
_ERROR: tuple[Severity, ...] = ("error",)
_INFO: tuple[Severity, ...] = ("info",)

TOPICS: dict[str, dict[str, Check]] = {
    "Markov chains": {
        "rhat": Check(
            ("warning", "error"),
            "The chains may not have converged, so estimates may be unreliable; do not use them "
            "if the severity is error.",
            f"R-hat above {RHAT_MAX}; an error above {RHAT_ERROR}",
            _VEHTARI,
        ),
        "multimodal": Check(
            _ERROR,
            "Each chain appears stationary, but in a different region, or searches from different "
            "starts ended in different regions: the posterior is probably multimodal. The fraction "
            "of chains at a mode does not estimate its probability, and a guide covers one mode.",
            f"R-hat above {RHAT_ERROR}, R-hat of the halves of each chain below "
            f"{RHAT_WITHIN_CHAIN_MAX}, chain means more than {MODE_DISTANCE:g} standard deviations "
            "apart; or a mode found by a search, as far from all draws, with more than 1% of the "
            "probability and a barrier of 3 nats between",
        ),
        "stuck_chain": Check(
            _ERROR,
            "Some chains stay near their starting points, or at a mode that has practically no "
            "share of the posterior.",
            "log density plus log size of the region (interquartile ranges) more than "
            f"{STUCK_GAP:g} nats below that of another chain, whose correlations reduce its size, "
            "with log densities that do not overlap; or most draws of a chain equal",
        ),
        "restarted_chain": Check(
            _WARNING,
            "Some chains waited where the posterior has practically no share, and were run again "
            "from draws of the others.",
            f"as of stuck_chain, in the first 100 draws, but by {STUCK_GAP:g} + 5 sqrt(d / 2) nats "
            "of the log density, with at least two chains, and no fewer than these, elsewhere, and "
            "with the region of each taken to be as wide as that of the best",
        ),
        "ess": Check(
            _WARNING,
            "The effective sample size, bulk or tail, is too small for reliable posterior "
            "summaries and diagnostics.",
            f"bulk or tail ESS of all chains together below {ESS_MIN_PER_CHAIN} × number of chains",
            _VEHTARI,
        ),
        "mcse": Check(
            _WARNING,
            "The Monte Carlo standard error of a posterior mean is large compared with the "
            "posterior standard deviation, usually because of heavy tails.",
            f"MCSE of the mean above 1 / sqrt({ESS_MIN_PER_CHAIN} × chains) posterior standard "
            "deviations: 0.05 for four chains",
        ),
        "edge": Check(
            _WARNING,
            "The posterior reaches closer to an edge of its support than numbers do, such as to "
            "the 1 of a probability, so that what is there is lost.",
            f"more than {EDGE_SHARE_MAX:.1%} of the draws at the last two numbers before the edge",
        ),
        "too_few_draws": Check(
            _ERROR,
            "There are too few draws to compute R-hat and the effective sample size.",
            f"fewer than {DRAWS_MIN} draws per chain",
        ),
        "divergences": Check(
            ("warning", "error"),
            "Hamiltonian trajectories diverged where the density curves strongly, so the draws may "
            "miss part of the posterior.",
            f"any divergent transition; an error if more than {DIVERGING_ERROR:.0%} of the "
            "transitions diverge *",
            _BETANCOURT,
        ),
        "bfmi": Check(
            _WARNING,
            "The energy changes slowly from draw to draw, so the tails are explored slowly.",
            f"energy Bayesian fraction of missing information below {BFMI_MIN}",
            _BETANCOURT,
        ),
        "tree_depth": Check(
            _WARNING,
            "Trajectories stop at the length limit, so the chains mix slowly. The draws stay "
            "valid.",
            f"more than {TREE_SHARE_MAX:.0%} of the transitions reach max_treedepth *",
            _BETANCOURT,
        ),
        "acceptance": Check(
            _WARNING,
            "Random-walk chains rejected almost all proposals and barely moved.",
            f"acceptance rate below {ACCEPTANCE_MIN:.0%}",
        ),
        "chain_failed": Check(
            _ERROR, "Some chains stopped with an error, and are left out of the fit."
        ),
        "starts": Check(
            _WARNING,
            "Some chains found no valid starting point and started where another chain did, so "
            "agreement between chains is weaker evidence of convergence.",
        ),
        "sampler": Check(
            _WARNING, "nutpie does not behave as expected; a slower sampler was used in its place."
        ),
    },
    "Approximations and weights": {
        "pareto_k": Check(
            _WARNING,
            "The importance ratios have a heavy tail: the approximation is too far from the "
            "posterior for its draws, or importance weighting, to be reliable.",
            f"Pareto k-hat above min(1 - 1/log10(S), {PARETO_K_MAX}) for S draws, unless the "
            f"effective sample size is above {NEARLY_EQUAL_SHARE:.0%} of the draws; above "
            f"{EXPECTATION_K_MAX} if it is below {UNEVEN_SHARE:.0%}. Not reported if moments can "
            "be compared with reliable weighted draws of a wider density",
            _PARETO,
        ),
        "evidence": Check(
            _INFO,
            "Weighted draws of a wider density confirm the moments of the draws, but not the "
            "evidence: the importance ratios of the approximation miss a part of the posterior.",
            "the two estimates of log_evidence differ by more than 0.1 nats",
        ),
        "weights": Check(
            _WARNING,
            "A small share of the draws carries almost all the importance weight.",
            f"effective sample size of the weights below {WEIGHT_SHARE_MIN:.0%} of the draws; "
            f"below {RESAMPLED_SHARE_MIN:.0%} for Pathfinder",
        ),
        "fewer_draws": Check(
            _INFO,
            "The fit holds fewer draws than requested, to bound the work after training.",
        ),
        "biased_moments": Check(
            _WARNING,
            "Means or standard deviations of the draws differ from those of weighted draws of the "
            "posterior, so the approximation differs from it: it is too wide, too narrow or off "
            "centre. The weighted draws are those of Student's t distribution, fitted by adaptive "
            "importance sampling, or if their weights are not reliable, the same draws.",
            f"a mean off by more than {SHIFT_MAX} standard deviations, or a standard deviation "
            f"off by a factor of more than {SCALE_RATIO_MAX}, and by more than noise explains",
        ),
    },
    "Point estimates": {
        "not_converged": Check(
            _WARNING,
            "The optimiser or the training stopped before it converged.",
            "all steps taken; in training, the ELBO of the last tenth of the steps above that of "
            f"the tenth before by {RISING_ERRORS:g} standard errors, 0.1 nats and 0.1% of the "
            "ELBO, or raised as much by a trial of 5% more steps that repeats the schedule",
        ),
        "several_optima": Check(
            _INFO,
            "The optimiser ended at different optima from different starts. The best is returned.",
        ),
        "not_identified": Check(
            _WARNING,
            "Different parameter values fit equally well, so the estimate is one of several.",
        ),
        "flat": Check(
            _WARNING,
            "The information matrix is singular: the data do not determine some combinations of "
            "parameters.",
        ),
        "saddle": Check(_WARNING, "The estimate is not a maximum of the density."),
        "boundary": Check(
            _WARNING,
            "The maximum lies at the edge of the support, where standard errors and intervals from "
            "normal theory do not hold.",
        ),
        "no_maximum": Check(
            _WARNING,
            "The density has no maximum at finite parameter values; or the maximum found is a "
            "local one, since the density is higher where the scale of latent values is almost 0.",
        ),
        "no_information": Check(
            _INFO,
            "The model has too many parameters to compute the information matrix, so there are no "
            "standard errors.",
        ),
    },
    "Training": {
        "loss_not_finite": Check(
            _ERROR,
            "The loss became infinite or NaN. The fit holds an earlier state, saved before the "
            "failure.",
        ),
        "zero_density": Check(
            _WARNING,
            "Draws of an approximation are where the posterior has no density, such as beyond a "
            "check of the model.",
        ),
        "point_guide": Check(
            ("warning", "info"),
            "The guide of SVI holds sites at a point, without uncertainty; a warning for "
            "`AutoLaplaceApproximation`, from which a distribution is expected.",
        ),
        "early_stopping": Check(
            _INFO,
            "Training ended early because the ELBO, in means of 100 steps or of held-out data, "
            "stopped improving (patience=).",
        ),
        "validation": Check(
            ("warning", "info"),
            "The fit holds an earlier state, where the ELBO of the held-out data was highest; a "
            "warning if that ELBO was never finite.",
        ),
        "kl_annealing": Check(
            _WARNING,
            "The weight of the KL term had not risen to 1 at the end of training, so the guide was "
            "fitted to another objective than the ELBO.",
            "fewer steps than kl_annealing",
        ),
        "posterior_collapse": Check(
            ("warning", "info"),
            "In some latent dimensions of the rows the guide equals the prior, so these carry no "
            "information about the data; a warning if it is all of them.",
            f"KL divergence below {COLLAPSED_KL_MAX:g} nats, averaged over rows *",
        ),
        "mode_collapse": Check(
            _WARNING,
            "The generator misses parts of the data, or its draws do not resemble the data.",
            f"less than {COVERED_MIN:.0%} of the data have a draw within the distance to their "
            "fifth nearest neighbour *",
            _NAEEM,
        ),
        "saturated": Check(
            _WARNING,
            "The discriminator separates draws from data almost perfectly, so its output gives the "
            "generator little useful information (with loss='minimax', almost no gradient).",
            f"D(x) - D(G(z)) above {SATURATED_MIN:g} *",
            _GAN,
        ),
        "value_function": Check(
            _WARNING,
            "The value function is far from its value at equilibrium, -2 log 2.",
            f"more than {VALUE_DISTANCE:g} nats away *",
            _GAN,
        ),
    },
    "The model and its data": {
        "no_data": Check(_WARNING, "No site is observed, so the result reflects only the prior."),
        "loader": Check(
            _WARNING,
            "A DataLoader's rows are not used equally often in training, or figures of all its "
            "rows could not be computed and are left out.",
        ),
        "missing": Check(
            ("info", "warning"),
            'Observations that are NaN were left out, as missing="mask" asks; or none were, '
            "although data are NaN.",
        ),
        "categories": Check(
            ("info", "warning"),
            "Texts among the data became codes, and the model has no group for each of them, so "
            "the codes may be used as numbers. Of two categories only a note. Or texts are the "
            "classes of an ordinal model, and their codes follow the alphabet.",
        ),
        "factor": Check(
            _INFO,
            "A pyro.factor outside all plates is computed from the data, so it is taken as a term "
            "of the likelihood.",
        ),
        "identification": Check(
            _INFO,
            "No difference was found between the marginal prior and posterior of some sites, so "
            "the data may be uninformative about them.",
            f"Kolmogorov-Smirnov test with {PRIOR_DRAWS} prior draws: p > {SAME_AS_PRIOR:g} for "
            "every scalar of the site",
        ),
        "prior_conflict": Check(
            _WARNING,
            "The mean of the data is outside, or their standard deviation above, the range of "
            "prior predictive data sets. Parameters have their fitted values, and masked data are "
            "left out.",
            f"{PRIOR_DRAWS} data sets; of several sites only those far outside; in a model with "
            f"fitted parameters by {MISFIT_MIN:g} standard deviations of the data",
        ),
        "params_held": Check(
            _WARNING,
            "pyro.param sites have no prior, so they were held fixed at their current values.",
        ),
        "undeclared": Check(
            _WARNING,
            "The model uses trainable tensors that are not sites, so they were held fixed.",
        ),
    },
    "Monte Carlo": {
        "no_variation": Check(
            _WARNING,
            "All sampled values are equal, so a standard error of 0 may only mean that the "
            "relevant region was never sampled.",
        ),
        "heavy_tail": Check(
            _WARNING,
            "The values or draws have such a heavy tail that their variance, or even their mean, "
            "may not exist, so the estimate or its standard error is unreliable.",
            f"Pareto k-hat above {EXPECTATION_K_MAX} for values of `expectation`, above "
            f"{PARETO_K_MAX} for draws of a posterior; a density that falls like the power -3 of a "
            "coordinate or more slowly",
            _PARETO,
        ),
        "tolerance": Check(
            _WARNING,
            "The standard error is still above the requested tolerance.",
            "tol= of expectation",
        ),
        "calibration": Check(
            _ERROR,
            "The ranks of simulation-based calibration are not uniform: the draws are probably not "
            "from the posterior, or they are autocorrelated, or simulator and model differ.",
            f"uniformity rejected at the level {CALIBRATION_LEVEL:g} *, Bonferroni-corrected over "
            "all scalars",
            _TALTS,
        ),
        "failed_fits": Check(
            _WARNING, "Some simulated data sets could not be fitted and are left out."
        ),
    },
    "The run and the machine": {
        "interrupted": Check(_WARNING, "The run was interrupted; the fit holds what was finished."),
        "callback": Check(
            ("warning", "info"), "The callback ended the run; the fit holds what was finished."
        ),
        "until": Check(
            _WARNING,
            "NUTS(until=) ended at its number of draws, or its time limit, with too few draws.",
        ),
        "time_limit": Check(
            _WARNING, "The time limit ended the run; the fit holds what was finished."
        ),
        "checkpoint": Check(
            _WARNING,
            "The state of training could not be saved, so a killed run cannot resume from there.",
        ),
        "engine": Check(
            _WARNING,
            "The fast engine could not be used, so a slower one was. Results are unaffected, up to "
            "rounding.",
        ),
        "cache": Check(
            _WARNING,
            "The folder for compiled code cannot be used; code is compiled again in each process.",
        ),
    },
}
"""All checks by topic and name."""

CHECKS = {name: check for checks in TOPICS.values() for name, check in checks.items()}


@dataclass(frozen=True)
class Finding:
    """One result of a diagnostic check.

    Attributes:
        severity: "info", "warning" or "error".
        check: the name of the check, a key of ``CHECKS``: rhat, ess, divergences …
        message: what was seen, and why it matters.
        remedy: what to try.
        sites: the sites that it is about.

    Raises:
        ValueError: no check has this name, or the check has no such severity.

    >>> print(Finding("warning", "ess", "'mu' has 12 effective draws.", "Draw more."))
    warning (ess): 'mu' has 12 effective draws. Draw more.
    """

    severity: Severity
    check: str
    message: str
    remedy: str = ""
    sites: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.check not in CHECKS:
            raise ValueError(f"no check is named {self.check!r}; add it to TOPICS")
        if self.severity not in CHECKS[self.check].severities:
            raise ValueError(f"the check {self.check!r} has no severity {self.severity!r}")

    @classmethod
    def saved(cls, values: Mapping[str, Any]) -> Self:
        """Return a finding of a saved fit; a later release may have other checks."""
        found = object.__new__(cls)
        vars(found).update(values, sites=tuple(values["sites"]))
        return found

    def __str__(self) -> str:
        return f"{self.severity} ({self.check}): {self.message} {self.remedy}".rstrip()


class Findings(tuple[Finding, ...]):
    """The findings of a fit, the most severe first; printed, one per line."""

    __slots__ = ()

    def __new__(cls, findings: Any = ()) -> Self:
        """Sort the findings by severity."""
        return super().__new__(cls, sorted(findings, key=lambda f: SEVERITIES.index(f.severity)))

    def __str__(self) -> str:
        return "\n".join(map(str, self)) or "no findings"

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        if not self:
            return f"<p>{html.escape(str(self))}</p>"
        rows = "".join(
            f"<tr><td style='color:{_COLOURS[f.severity]}'><b>{f.severity}</b></td>"
            f"<td>{html.escape(f.check)}</td>"
            f"<td style='text-align:left'>{html.escape(f.message)}<br>"
            f"<i>{html.escape(f.remedy)}</i></td></tr>"
            for f in self
        )
        return f"<table>{rows}</table>"
