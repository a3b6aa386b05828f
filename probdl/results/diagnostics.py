"""Checks of a fit's draws; each returns findings. The statistics are ArviZ's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
    STUCK_GAP,
    TREE_SHARE_MAX,
    Finding,
)
from probdl.io import idata, mixing
from probdl.io.pareto import psis
from probdl.model.sites import Site
from probdl.util.clock import TimeUp
from probdl.util.columns import by_columns

TARGETS = (0.95, 0.99, 0.999)  # rates of acceptance that are suggested

__all__ = [
    "away_from_posterior",
    "check_draws",
    "check_energy",
    "check_stuck",
    "check_tree",
    "interrupted",
    "log_correlation",
    "ranges",
    "require_complete",
    "stuck_chains",
    "unchecked",
]

Array = NDArray[Any]
Draws = Mapping[str, Array]  # by site, (chain, draw, *shape)

HEAVY_DRAWS_MIN = 400  # from which on a heavy tail can be told from a light one
OF_NETWORKS = (
    " The hidden units of a network are exchangeable in any case: compare the log likelihood and "
    "the predictions of the chains instead."
)
DRAWS_OF_QUARTILES = 2000  # per chain, which is enough for the size of a region
CORRELATION_MIN = -10.0  # nats a coordinate: known to a part in 20,000 from the others
FIRST_COORDINATES = 8  # that show whether a chain moves
TAIL_NUMBERS = 2**20  # of draws that are searched for long tails at a time
LONG_TAIL_MIN = 2.0  # of the 99% quantile, that the most extreme draw of a heavy tail exceeds
MANY_SCALARS = 100  # of one site, whose worst diagnostic is mostly noise
_RHAT_CLEAR = 1.05
ROUNDING = 1e-14  # relative size of deviations that are rounding errors


def check_draws(
    draws: Draws, chains: int, *, independent: bool = False, low_rank: bool = False
) -> list[Finding]:
    """Check R-hat, the effective sample size and the Monte Carlo standard errors of draws.

    Args:
        draws: by site, (chain, draw, *shape).
        chains: the number of chains in it.
        independent: whether the draws are independent, so that only their tails are checked.
        low_rank: whether the mass matrix had correlations already.
    """
    if independent:
        return _check_tails(draws, set())
    count = next((array.shape[1] for array in draws.values()), 0)
    if count < DRAWS_MIN:
        return [
            Finding(
                "error",
                "too_few_draws",
                f"{count} draws per chain are too few to compute R-hat and the effective sample "
                f"size, which need at least {DRAWS_MIN}.",
                f"Use at least {10 * ESS_MIN_PER_CHAIN} draws per chain (draws=).",
            )
        ]
    findings = []
    least = ESS_MIN_PER_CHAIN * chains
    figures = idata.mixing_by_variable(draws, (RHAT_MAX, least))
    if chains > 1:
        # A variable that does not vary, such as a parameter that was held fixed, has no R-hat.
        worst = {
            n: _worst(of.rhat, RHAT_MAX, _RHAT_CLEAR)
            for n, of in figures.items()
            if np.isfinite(of.rhat).any()
        }
        bad = {n: r for n, r in worst.items() if r > RHAT_MAX}
        if bad:
            name = max(bad, key=lambda n: bad[n])
            if bad[name] > RHAT_ERROR and (apart := _at_different_modes(draws, bad)):
                findings.append(
                    Finding(
                        "error",
                        "multimodal",
                        "The posterior appears to have several modes: each chain is stationary, "
                        f"but the chains are at different modes of {', '.join(map(repr, apart))}. "
                        "The number of chains at a mode does not estimate its posterior "
                        "probability.",
                        "Impose an ordering on exchangeable parameters, or use priors that "
                        "distinguish them." + (OF_NETWORKS if "." in apart[0] else ""),
                        tuple(apart),
                    )
                )
            if bad[name] > RHAT_ERROR:
                limit, state = RHAT_ERROR, "do not agree"
                advice = (
                    "Do not use these draws, or quantities computed from them, as posterior "
                    "estimates."
                )
            else:
                limit, state = RHAT_MAX, "may not have converged"
                advice = "Estimates may be unreliable."
            findings.append(
                Finding(
                    "error" if bad[name] > RHAT_ERROR else "warning",
                    "rhat",
                    f"The chains {state}: R-hat is {bad[name]:.4g} for '{name}'{_worst_of(bad)}, "
                    f"above {limit}. {advice}",
                    "Run longer chains (warmup=, draws=). If that does not help, look for several "
                    "modes and for sites that the data do not identify.",
                    tuple(bad),
                )
            )
    sizes: dict[str, tuple[float, str]] = {}
    for name, of in figures.items():
        for kind, size in (("bulk", of.ess_bulk), ("tail", of.ess_tail)):
            if np.isfinite(size).any():
                fewest = -_worst(-size, -least, -least / 2)
                sizes[name] = min(sizes.get(name, (np.inf, "")), (fewest, kind))
    few = {n: s for n, s in sizes.items() if s[0] < least}
    if few:
        name = min(few, key=lambda n: few[n])
        fewest, kind = few[name]
        findings.append(
            Finding(
                "warning",
                "ess",
                f"The {kind} effective sample size of '{name}'{_worst_of(few)} is {fewest:.0f}, "
                f"below {least} ({ESS_MIN_PER_CHAIN} per chain). Estimates of R-hat and quantiles "
                "are unstable.",
                "Draw more (draws=). If sites are strongly correlated, reparameterise the model"
                + ("." if low_rank else " or use NUTS(mass_matrix='low_rank')."),
                tuple(few),
            )
        )
    return [
        *findings,
        *_check_mcse(draws, figures, set(few), least**-0.5),
        *_check_tails(draws, set(few)),
    ]


def _worst(values: Array, limit: float, clear: float) -> float:
    """Return the largest value of a site; of many, which are noisy, one that 1% of them exceed.

    Args:
        values: a diagnostic of each scalar, the larger the worse.
        limit: what a value may not exceed.
        clear: a value beyond which a single scalar of many is reported, noise or not.
    """
    finite = values[np.isfinite(values)]
    largest = float(finite.max())
    if len(finite) < MANY_SCALARS or not limit < largest <= clear:
        return largest
    return float(np.quantile(finite, 0.99))


def _check_tails(draws: Draws, low_ess: set[str]) -> list[Finding]:
    """Check whether the tails of the draws are so heavy that means may not exist.

    The draws beyond the median have a generalised Pareto tail, whose shape k is above 1 if there is
    no mean, and above 0.5 if there is no variance. Above 0.7, a mean of draws is of no use (Vehtari
    et al., "Pareto smoothed importance sampling", JMLR 25, 2024).

    Args:
        draws: by site, (chain, draw, *shape).
        low_ess: sites to skip, since a low ESS is already reported for them.
    """
    heavy: dict[str, float] = {}
    for name, array in draws.items():
        flat = array.reshape(array.shape[0] * array.shape[1], -1)
        if name in low_ess or array.dtype.kind != "f" or len(flat) < HEAVY_DRAWS_MIN:
            continue
        for tail in _long_tails(flat):
            k = psis(np.log(tail))[1]
            if k > PARETO_K_MAX:
                heavy[name] = max(k, heavy.get(name, k))
    if not heavy:
        return []
    name = max(heavy, key=lambda n: heavy[n])
    return [
        Finding(
            "warning",
            "heavy_tail",
            f"The posterior of '{name}'{_worst_of(heavy)} has such a heavy tail (Pareto k-hat "
            f"{heavy[name]:.2f}, above {PARETO_K_MAX}) that the mean and standard deviation of its "
            "draws depend on a few extreme draws. Those of the posterior may not even exist, "
            "unless its prior has light tails.",
            "Report the median and quantiles, or use priors with lighter tails, also of the sites "
            "that it depends on.",
            tuple(heavy),
        )
    ]


def _long_tails(draws: Array) -> list[Array]:
    """Return the distances from the median of the tails that are long, of draws (n, scalars)."""
    found = []
    n = len(draws)
    ranks = [(n - 1) // 100, n // 2, n - 1 - (n - 1) // 100]  # an order statistic will do
    step = max(1, TAIL_NUMBERS // n)
    for start in range(0, draws.shape[1], step):
        part = draws[:, start : start + step]
        with np.errstate(all="ignore"):
            low, median, high = np.partition(part, ranks, axis=0)[ranks]
            for sign, end, near in (
                (1, part.max(0), high - median),
                (-1, part.min(0), median - low),
            ):
                far = sign * (end - median)
                long = np.isfinite(far) & (far > LONG_TAIL_MIN * near) & (near > 0)
                for i in np.flatnonzero(long):
                    side = sign * (part[:, i] - median[i])
                    found.append(side[side > 0])
    return found


def _check_mcse(
    draws: Draws, figures: Mapping[str, mixing.Mixing], low_ess: set[str], limit: float
) -> list[Finding]:
    """Check the Monte Carlo standard errors of means, as shares of the standard deviation.

    With heavy tails, the mean can have a large error although the ranks, and so the ESS, are good.

    Args:
        draws: by site, (chain, draw, *shape).
        figures: their diagnostics.
        low_ess: sites to skip, since a low ESS is already reported for them.
        limit: the largest acceptable share: 1 / sqrt(n), where n is the least acceptable ESS.
    """
    bad: dict[str, float] = {}
    for name, of in figures.items():
        with np.errstate(all="ignore"):
            large = of.mcse_mean > limit * of.sd
        if name in low_ess or not large.any():
            continue
        error, sd, size = (
            of.mcse_mean[large],
            of.sd[large],
            abs(draws[name][..., large]).max((0, 1)),
        )
        varies = sd > ROUNDING * size  # a constant has an error and a deviation by rounding only
        if varies.any():
            bad[name] = float((error[varies] / sd[varies]).max())
    if not bad:
        return []
    name = max(bad, key=lambda n: bad[n])
    return [
        Finding(
            "warning",
            "mcse",
            f"The Monte Carlo standard error of the mean of '{name}'{_worst_of(bad)} is "
            f"{bad[name]:.2g} posterior standard deviations, above {limit:.2g}. The estimate of "
            "the mean is imprecise.",
            "Draw more (draws=). If the tails are so heavy that the mean may not exist, report the "
            "median.",
            tuple(bad),
        )
    ]


def _at_different_modes(draws: Draws, names: Mapping[str, Any]) -> list[str]:
    """List the variables that are stationary in each chain, with chain means far apart."""
    apart: dict[str, Array] = {}
    for name in names:
        chains = draws[name].reshape(*draws[name].shape[:2], -1)
        means, sds = chains.mean(1), by_columns(lambda x: x.std(1), chains)  # (chain, scalar)
        gaps = (means.max(0) - means.min(0)) / np.maximum(sds.max(0), 1e-300)
        if (gaps > MODE_DISTANCE).any():
            apart[name] = chains[..., gaps > MODE_DISTANCE]
    within = idata.chain_rhat(apart)
    return [n for n, r in within.items() if (r.max(0) < RHAT_WITHIN_CHAIN_MAX).any()]


def log_correlation(z: Array) -> float:
    r"""Return half the log determinant of the correlations of draws (n, d), at most 0.

    A region of normal draws has the size :math:`|\Sigma|^{1/2} = \prod_i s_i |R|^{1/2}`, with the
    standard deviations :math:`s_i` and the correlations :math:`R`. With few draws the determinant
    is underestimated. With no more draws than dimensions, and at least, it is
    ``CORRELATION_MIN`` for each dimension.
    """
    least = CORRELATION_MIN * z.shape[1]
    if len(z) <= z.shape[1] + 1:
        return least
    spread = z.std(0)
    moving = spread > 0
    scaled = (z[:, moving] - z[:, moving].mean(0)) / spread[moving]
    sign, log_det = np.linalg.slogdet(scaled.T @ scaled / len(z))
    return max(0.5 * min(float(log_det), 0.0), least) if sign > 0 else least


def _log_shares(size: Array, lp: Array) -> Array:
    r"""Return the log probability of the region of each chain, (chain,), but for a constant.

    It is about its log density plus the logarithm of the region's size, :math:`\log p + \sum_i
    \log s_i`, with :math:`s_i` the interquartile ranges, but for correlations.
    """
    with np.errstate(all="ignore"):
        share = np.median(lp, 1) + np.log(np.maximum(size, np.finfo(float).tiny)).sum(1)
    return np.where(np.isfinite(share), share, -np.inf)


def ranges(z: Array) -> Array:
    """Return the interquartile ranges, (chain, d)."""
    thin = max(1, z.shape[1] // DRAWS_OF_QUARTILES)

    def range_of(part: Array) -> Array:
        by_scalar = np.ascontiguousarray(np.swapaxes(part, 1, 2))
        low, high = np.quantile(by_scalar, (0.25, 0.75), axis=2)
        return np.asarray(high - low)

    return by_columns(range_of, z[:, ::thin])


def stuck_chains(z: Array, lp: Array) -> Array:
    """Return a mask (chain,) of the chains that are where the posterior has no share.

    A chain is stuck if the log probability of the region of another is larger by ``STUCK_GAP`` and
    their log densities do not overlap, or if it hardly moves: most of its draws are equal. Since a
    region whose coordinates are correlated is smaller than it seems, its log density must be larger
    by that much more.

    Args:
        z: draws on R^d, (chain, draw, d).
        lp: their log densities, (chain, draw), in nats.
    """
    low, high = np.quantile(lp, (0.05, 0.95), axis=1)
    some = ranges(z[..., :FIRST_COORDINATES])
    if low.max() <= high.min() and (some > 0).any(1).all():  # whatever the other coordinates are
        return np.zeros(len(z), bool)
    size = ranges(z)
    still = (size <= 0).all(1)
    share = _log_shares(size, lp)
    best = int(np.argmax(share))
    apart = high < low[best]
    away = apart & (share < share[best] - STUCK_GAP)
    if (away & ~still).any():
        away &= share < share[best] - STUCK_GAP + log_correlation(z[best])
    return still | away


def away_from_posterior(chains: Array, levels: Array) -> str:
    """Return the sentence that chains, a mask, did not reach the posterior.

    Args:
        chains: the mask, (chain,).
        levels: the log density of each chain, (chain,).
    """
    listed = [f"chain {c} (log density {levels[c]:.4g})" for c in np.flatnonzero(chains)]
    shown = ", ".join(listed[:4]) + (f" and {len(listed) - 4} more" if len(listed) > 4 else "")
    return f"{len(listed)} of {len(chains)} chains did not reach the posterior: {shown}."


def check_stuck(z: Array, lp: Array) -> list[Finding]:
    """Check for chains that stay where they started; arguments as of ``stuck_chains``."""
    stuck = stuck_chains(z, lp)
    if not stuck.any() or lp.shape[1] < DRAWS_MIN:
        return []
    levels = np.median(lp, 1)
    elsewhere = "No chain moved."
    if not stuck.all():
        best = int(np.argmax(np.where(stuck, -np.inf, levels)))
        elsewhere = (
            f"The log density of chain {best} is {levels[best]:.4g}, so the posterior has "
            "practically no mass there."
        )
    return [
        Finding(
            "error",
            "stuck_chain",
            f"{away_from_posterior(stuck, levels)} {elsewhere} Do not use these draws.",
            "Give a starting point, such as init={'site': value} or NUTS(init='pathfinder'), run "
            "more chains, or use priors that rule out implausible values. A higher target_accept "
            "does not help.",
        )
    ]


def check_energy(
    stats: Mapping[str, Any],
    funnels: Sequence[Site],
    target_accept: float = 0.8,
    *,
    has_centred: bool = False,
) -> list[Finding]:
    """Check for divergent transitions and a low Bayesian fraction of missing information.

    Args:
        stats: the sample stats.
        funnels: sites whose scale is another latent site that varies much.
        target_accept: the acceptance rate to which the step size was adapted.
        has_centred: whether there are sites whose scale is another latent site at all, or that a
            reparameterisation moved.
    """
    higher = ", ".join([str(rate) for rate in TARGETS if rate > target_accept][:2])
    steps = f"Raise target_accept ({higher})" if higher else "Draw more (draws=, warmup=)"
    several = [site for site in funnels if site.distribution == "MultivariateNormal"]
    how = "pyro.infer.reparam.LocScaleReparam(0.0)"
    if several:
        how = f"'{several[0].name}' as loc + scale_tril @ z, with z ~ Normal(0, 1)"
    if funnels:
        names = ", ".join(repr(site.name) for site in funnels[:3])
        advice = f"write {names} non-centred ({how}), or use priors that keep scales away from 0"
    else:
        advice = "use priors that keep scales away from 0 and hold what the data do not identify"
        if not has_centred:
            advice += ", and write effects of groups with many data centred"
    findings = []
    diverging = np.asarray(stats["diverging"])
    count = int(diverging.sum())
    if count:
        findings.append(
            Finding(
                "error" if count > DIVERGING_ERROR * diverging.size else "warning",
                "divergences",
                f"{count} of {diverging.size} transitions diverged: numerical integration of the "
                "trajectory failed there, so the draws may miss part of the posterior.",
                f"{steps}, or {advice}.",
            )
        )
    if diverging.shape[1] > 1:
        low = mixing.bfmi(stats["energy"]).min()
        if low < BFMI_MIN:
            findings.append(
                Finding(
                    "warning",
                    "bfmi",
                    f"The energy changes slowly from draw to draw (E-BFMI is {low:.2f}, below "
                    f"{BFMI_MIN}), so the tails are explored slowly.",
                    f"Run longer chains (draws=), or {advice}.",
                )
            )
    return findings


def check_tree(
    stats: Mapping[str, Any], max_treedepth: int, *, low_rank: bool = False
) -> list[Finding]:
    """Check how often NUTS trajectories reached the limit on their length."""
    reached = np.asarray(stats["reached_max_treedepth"])
    share = reached.mean()
    if share <= TREE_SHARE_MAX:
        return []
    return [
        Finding(
            "warning",
            "tree_depth",
            f"{share:.0%} of the transitions reached max_treedepth={max_treedepth}, where "
            "trajectories stop, so the chains mix slowly. The draws stay valid.",
            "Bring the sites to a similar scale (standardise the data), "
            + ("" if low_rank else "use mass_matrix='low_rank', ")
            + "or raise max_treedepth.",
        )
    ]


def interrupted(stop: KeyboardInterrupt, done: float, of: str, kept: str, again: str) -> Finding:
    """Return the finding that Ctrl-C or the time limit ended a run.

    Args:
        stop: the exception that ended it.
        done: the amount of work that was done.
        of: the whole amount, in words: ``"4 starts"``.
        kept: what happens with the work that was done: ``"the best point found is returned"``.
        again: what a complete run would do: ``"run all starts"``.
    """
    return _stopped(stop, "The run was", "the run", f"after {done} of {of}; {kept}", again)


def require_complete(findings: Iterable[Finding]) -> None:
    """Raise KeyboardInterrupt if Ctrl-C ended the run that has these findings.

    A fit that is returned early is right where a user sees its finding, but not as one of many.
    """
    if any(finding.check == "interrupted" for finding in findings):
        raise KeyboardInterrupt


def unchecked(stop: KeyboardInterrupt, kept: str, again: str) -> Finding:
    """Return the finding that Ctrl-C or the time limit ended the checks of finished draws.

    Args:
        stop: the exception that ended them.
        kept: what the fit has, and what it lacks.
        again: what a complete run would do.
    """
    what = "the checks of the draws"
    return _stopped(stop, "The checks of the draws were", what, f"before their end; {kept}", again)


def _stopped(stop: KeyboardInterrupt, subject: str, what: str, after: str, again: str) -> Finding:
    if isinstance(stop, TimeUp):
        return Finding(
            "warning",
            "time_limit",
            f"The time limit of {stop.limit:g} s ended {what} {after}.",
            f"Use a longer time_limit=, or none, to {again}.",
        )
    return Finding(
        "warning",
        "interrupted",
        f"{subject} interrupted {after}.",
        f"Rerun with the same seed to {again}.",
    )


def _worst_of(values: Mapping[str, Any]) -> str:
    """Return the note that a reported value is the worst of several."""
    return f" (the worst of {len(values)} such sites)" if len(values) > 1 else ""
