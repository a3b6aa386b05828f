"""Checks of a fit's draws; each returns findings. The statistics are ArviZ's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probdl.findings import (
    BFMI_MIN,
    DIVERGING_ERROR,
    DRAWS_MIN,
    ESS_MIN_PER_CHAIN,
    MODE_DISTANCE,
    PARETO_K_MAX,
    RHAT_ERROR,
    RHAT_MAX,
    RHAT_WITHIN_CHAIN_MAX,
    TREE_SHARE_MAX,
    WEIGHT_SHARE_MIN,
    Finding,
)
from probdl.io import idata
from probdl.util.clock import TimeUp

__all__ = [
    "check_draws",
    "check_energy",
    "check_tree",
    "check_weights",
    "interrupted",
]

Array = NDArray[Any]


def check_draws(posterior: Any, chains: int) -> list[Finding]:
    """Check that the chains agree (R-hat) and that their draws are worth enough (ESS).

    Args:
        posterior: the ArviZ container.
        chains: how many chains it holds.
    """
    count = idata.num_draws(posterior)
    if count < DRAWS_MIN:
        return [
            Finding(
                "error",
                "too_few_draws",
                f"{count} draws a chain are too few to tell whether the chains agree, and how much "
                f"the draws are worth: R-hat and the effective sample size need {DRAWS_MIN}.",
                f"Draw at least {10 * ESS_MIN_PER_CHAIN} a chain (draws=).",
            )
        ]
    findings = []
    if chains > 1:
        rhat = idata.rhat(posterior)
        # A variable that never moves, such as a parameter that was held, has no R-hat.
        worst = {n: np.nanmax(r) for n, r in rhat.items() if np.isfinite(r).any()}
        bad = {n: r for n, r in worst.items() if r > RHAT_MAX}
        if bad:
            name = max(bad, key=lambda n: bad[n])
            if bad[name] > RHAT_ERROR and (apart := _apart(posterior, bad)):
                findings.append(
                    Finding(
                        "error",
                        "multimodal",
                        f"each chain settled, in another place than the others, for '{apart[0]}'"
                        f"{_others(dict.fromkeys(apart))}: the posterior has several modes, and "
                        "how many chains are at each says nothing of its weight.",
                        "Put interchangeable parameters in order, or give priors that tell them "
                        "apart; init='pathfinder' may find the larger mode.",
                        tuple(apart),
                    )
                )
            findings.append(
                Finding(
                    "error" if bad[name] > RHAT_ERROR else "warning",
                    "rhat",
                    f"the chains do not agree: R-hat is {bad[name]:.3g} for '{name}'"
                    f"{_others(bad)}, above {RHAT_MAX}. Means and intervals cannot be trusted.",
                    "Run longer (warmup=, draws=), or look for several modes and for sites that "
                    "the data cannot tell apart.",
                    tuple(bad),
                )
            )
    least = ESS_MIN_PER_CHAIN * chains
    sizes: dict[str, float] = {}
    for kind in ("bulk", "tail"):
        for name, size in idata.ess(posterior, kind).items():
            if np.isfinite(size).any():
                sizes[name] = min(sizes.get(name, np.inf), float(np.nanmin(size)))
    few = {n: s for n, s in sizes.items() if s < least}
    if few:
        name = min(few, key=lambda n: few[n])
        findings.append(
            Finding(
                "warning",
                "ess",
                f"'{name}' has an effective sample size of {few[name]:.0f}{_others(few)}; below "
                f"{least} ({ESS_MIN_PER_CHAIN} a chain) R-hat and quantiles are too noisy.",
                "Draw more; where sites are strongly correlated, another parameterisation helps "
                "more, or NUTS(mass_matrix='low_rank') if it was not that.",
                tuple(few),
            )
        )
    return [*findings, *_check_mcse(posterior, set(few), least**-0.5)]


def _check_mcse(posterior: Any, known: set[str], most: float) -> list[Finding]:
    """Check the Monte Carlo standard errors of means, as shares of the standard deviation.

    The limit is the error that as many independent draws have as the ESS should be at least. Means
    of heavy tails can exceed it where ranks mix well. Sites known for few draws are left out.
    """
    share: dict[str, float] = {}
    sds = {n: v.std((0, 1)) for n, v in idata.variables(posterior, "posterior").items()}
    for name, error in idata.mcse(posterior).items():
        with np.errstate(all="ignore"):
            ratio = error / sds[name]
        if name not in known and np.isfinite(ratio).any():
            share[name] = float(np.nanmax(ratio))
    bad = {n: s for n, s in share.items() if s > most}
    if not bad:
        return []
    name = max(bad, key=lambda n: bad[n])
    return [
        Finding(
            "warning",
            "mcse",
            f"the mean of '{name}' has a Monte Carlo standard error of {bad[name]:.2g} standard "
            f"deviations{_others(bad)}; more than {most:.2g} blurs it.",
            "Draw more. Where tails are so heavy that a mean hardly exists, look at the median.",
            tuple(bad),
        )
    ]


def _apart(posterior: Any, names: Mapping[str, Any]) -> list[str]:
    """List the variables that are steady in each chain, and far apart between some of them."""
    within, arrays = idata.chain_rhat(posterior), idata.variables(posterior, "posterior")
    found = []
    for name in names:
        draws = arrays[name]
        chains = draws.reshape(*draws.shape[:2], -1)
        means, sds = chains.mean(1), chains.std(1)  # (chain, scalar)
        gaps = (means.max(0) - means.min(0)) / np.maximum(sds.max(0), 1e-300)
        steady = within[name].reshape(len(chains), -1).max(0) < RHAT_WITHIN_CHAIN_MAX
        if (steady & (gaps > MODE_DISTANCE)).any():
            found.append(name)
    return found


def check_energy(stats: Mapping[str, Any]) -> list[Finding]:
    """Check for divergent transitions and a low Bayesian fraction of missing information."""
    findings = []
    diverging = np.asarray(stats["diverging"])
    count = int(diverging.sum())
    if count:
        findings.append(
            Finding(
                "error" if count > DIVERGING_ERROR * diverging.size else "warning",
                "divergences",
                f"{count} of {diverging.size} transitions diverged: the sampler could not follow "
                "the density there, and the draws may leave that region out.",
                "Raise target_accept (0.95, 0.99), or write the model without a funnel, for "
                "example non-centred (pyro.infer.reparam.LocScaleReparam).",
            )
        )
    if diverging.shape[1] > 1:
        low = idata.bfmi(stats["energy"]).min()
        if low < BFMI_MIN:
            findings.append(
                Finding(
                    "warning",
                    "bfmi",
                    f"the energy mixes slowly (E-BFMI {low:.2f}, below {BFMI_MIN}): the tails are "
                    "explored poorly.",
                    "Reparameterise heavy tails and funnels, or run longer.",
                )
            )
    return findings


def check_tree(stats: Mapping[str, Any], max_treedepth: int) -> list[Finding]:
    """Check how often NUTS ran into its limit on the length of a trajectory."""
    reached = np.asarray(stats["reached_max_treedepth"])
    share = reached.mean()
    if share <= TREE_SHARE_MAX:
        return []
    return [
        Finding(
            "warning",
            "tree_depth",
            f"{share:.0%} of the transitions reached max_treedepth={max_treedepth}: they stop "
            "short, and the chain mixes slowly. The draws stay valid.",
            "Bring the sites to a similar scale (standardise the data), use "
            "mass_matrix='low_rank' if it was not that, or raise max_treedepth.",
        )
    ]


def check_weights(log_weights: Array, k: float, what: str, first: str = "") -> list[Finding]:
    """Check draws of an approximation by their importance weights.

    Args:
        log_weights: the logs of the weights, normalised.
        k: the Pareto k-hat of the ratios they were made of: how heavy their tail is.
        what: the approximation, for the message.
        first: what to try before another method.
    """
    share = float(np.exp(-np.logaddexp.reduce(2 * log_weights))) / len(log_weights)
    if k > PARETO_K_MAX:
        seen = f"the Pareto k-hat of its importance ratios is {k:.2f}, above {PARETO_K_MAX}"
    elif share < WEIGHT_SHARE_MIN:
        seen = f"by its importance weights {len(log_weights)} draws of it are worth " + (
            f"{share * len(log_weights):.0f} of the posterior"
        )
    else:
        return []
    return [
        Finding(
            "warning",
            "pareto_k" if k > PARETO_K_MAX else "weights",
            f"{what} does not match the posterior: {seen}. Its draws, and what is computed of "
            "them, are those of another distribution.",
            f"{first} Fit by method='nuts', which makes no such approximation.".lstrip(),
        )
    ]


def interrupted(stop: KeyboardInterrupt, done: float, of: str, kept: str, again: str) -> Finding:
    """Tell that Ctrl-C or the time limit ended a run.

    Args:
        stop: what ended it.
        done: how much of it was done.
        of: how much there would have been, in words: ``"4 starts"``.
        kept: what becomes of what was done.
        again: what a run to the end has, and how to get it.
    """
    if isinstance(stop, TimeUp):
        seen = f"the time limit of {stop.limit:g} s ended the run after {done} of {of}; {kept}."
        remedy = f"Give it a longer time_limit, or none, for all {again}."
        return Finding("warning", "time_limit", seen, remedy)
    return Finding(
        "warning",
        "interrupted",
        f"interrupted after {done} of {of}; {kept}.",
        f"Run it again with the same seed for all {again}.",
    )


def _others(names: Mapping[str, Any]) -> str:
    return f" and worse than it should be for {len(names) - 1} more" if len(names) > 1 else ""
