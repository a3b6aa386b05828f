r"""R-hat, effective sample sizes and standard errors of many scalars at once.

They are ArviZ's figures to rounding, which it computes scalar by scalar, a millisecond each.

Source: Vehtari, Gelman, Simpson, Carpenter and Bürkner, "Rank-normalization, folding, and
localization: an improved R-hat", Bayesian Analysis 16 (2021); Geyer, "Practical Markov chain Monte
Carlo", Statistical Science 7 (1992), for the sum of autocorrelations.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from importlib.metadata import version

import numpy as np
from numpy.typing import NDArray

from probdl.util.clock import check_time_limit
from probdl.util.columns import by_columns

__all__ = ["bfmi", "ess_bulk", "ess_tail", "mcse_mean", "mcse_sd", "rhat"]

Array = NDArray[np.float64]
Suspect = Callable[[Array, Array], NDArray[np.bool_]]

MAX_NUMBERS = 2**17  # of draws at a time, which fit into the cache
SCREENED_NUMBERS = 2**23  # of draws from which on most scalars are judged by a part of the draws
SCREENED_DRAWS = 5000  # per chain that such a part has at least
DRAWS_MIN = 4  # per chain
_SAME = np.finfo(float).resolution  # a smaller range is that of a constant, as in ArviZ
_ARVIZ_1 = not version("arviz").startswith("0.")


def rhat(draws: Array, limit: float | None = None) -> Array:
    """Return the rank-normalised split R-hat (*shape) of draws (chains, draws, *shape).

    Args:
        draws: the draws.
        limit: an R-hat that is clearly below may be that of a part of very many draws.
    """

    def of_part(x: Array) -> Array:
        halves = _halves(x)
        folded = np.abs(halves - np.median(_flat(halves), 1)[:, None, None])
        bulk, tail = _rhat(_normal_scores(halves)), _rhat(_normal_scores(folded))
        return np.where(tail > bulk, tail, bulk)  # of two values, all are as far from the median

    suspect = None if limit is None else lambda values, _: values > 1 + (limit - 1) / 2
    return _by_scalar(draws, of_part, suspect, chains=2)


def ess_bulk(draws: Array, limit: float | None = None) -> Array:
    """Return the effective sample size of the bulk (*shape) of draws (chains, draws, *shape).

    Args:
        draws: the draws.
        limit: a size that is clearly above may be that of a part of very many draws, a lower bound.
    """
    return _by_scalar(draws, lambda x: _ess(_normal_scores(_halves(x))), _is_small(limit))


def ess_tail(draws: Array, probs: tuple[float, float], limit: float | None = None) -> Array:
    """Return the smaller effective sample size of two quantiles (*shape)."""

    def of_part(x: Array) -> Array:
        low, high = (
            _ess(_halves((x <= q[:, None, None]).astype(float))) for q in _quantiles(x, probs)
        )
        return np.minimum(low, high)

    return _by_scalar(draws, of_part, _is_small(limit))


def mcse_mean(draws: Array, limit: float | None = None) -> Array:
    """Return the Monte Carlo standard errors of means (*shape) of draws (chains, draws, *shape).

    Args:
        draws: the draws.
        limit: an error that is clearly below this share of the standard deviation may be that of a
            part of very many draws, an upper bound.
    """

    def suspect(values: Array, x: Array) -> NDArray[np.bool_]:
        return values > np.std(x, (0, 1)) * (limit or 0.0) / 2

    return _by_scalar(
        draws,
        lambda x: np.std(_flat(x), 1, ddof=1) / np.sqrt(_ess(_halves(x))),
        None if limit is None else suspect,
    )


def mcse_sd(draws: Array) -> Array:
    """Return the Monte Carlo standard errors of standard deviations (*shape)."""

    def of_part(x: Array) -> Array:
        squares = (x - x.mean((1, 2), keepdims=True)) ** 2
        variance = squares.mean((1, 2))
        of_squares = (squares**2).mean((1, 2)) - variance**2
        return np.sqrt(of_squares / _ess(_halves(squares)) / variance / 4)

    return _by_scalar(draws, of_part)


def _is_small(limit: float | None) -> Suspect | None:
    return None if limit is None else lambda sizes, _: sizes < 4 * limit


def _by_scalar(
    draws: Array,
    statistic: Callable[[Array], Array],
    suspect: Suspect | None = None,
    chains: int = 1,
) -> Array:
    """Evaluate a statistic of draws (chains, draws, *shape), in parts of bounded size.

    Args:
        draws: the draws.
        statistic: evaluates it for a part of the scalars, from (scalars, chains, draws).
        suspect: selects the scalars whose figures a part of very many draws does not settle, given
            the figures and the draws of the part; None settles nothing.
        chains: the number of chains that the statistic needs.
    """
    shape, per_chain = draws.shape[2:], draws.shape[1]
    thin = min(-(-draws.size // SCREENED_NUMBERS), per_chain // SCREENED_DRAWS)
    if draws.shape[0] < chains or per_chain < DRAWS_MIN:
        return np.full(shape, np.nan)

    def of_part(x: Array) -> Array:
        if suspect is None or thin <= 1:
            return _exactly(x, statistic)
        some = x[:, ::thin]
        found = _exactly(some, statistic)
        with np.errstate(all="ignore"):
            exact = ~np.isfinite(x.sum((0, 1))) | ~np.isfinite(found) | suspect(found, some)
        found[exact] = _exactly(x[..., exact], statistic)
        return found

    flat = draws.reshape(*draws.shape[:2], math.prod(shape))
    return by_columns(of_part, flat).reshape(shape)


def _exactly(draws: Array, statistic: Callable[[Array], Array]) -> Array:
    """Evaluate a statistic of draws (chains, draws, scalars), in parts that fit into a cache."""
    found = np.empty(draws.shape[2])
    size = max(1, MAX_NUMBERS // (draws.shape[0] * draws.shape[1]))
    with np.errstate(all="ignore"):
        for start in range(0, len(found), size):
            check_time_limit()
            part = np.moveaxis(draws[..., start : start + size], 2, 0)
            part = np.ascontiguousarray(part, dtype=float)
            values = np.asarray(statistic(part), dtype=float)
            values[np.isnan(part).any((1, 2))] = np.nan
            found[start : start + size] = values
    return found


def bfmi(energy: Array) -> Array:
    """Return the estimated Bayesian fraction of missing information (chains,).

    The squared change of the energy (chains, draws) from draw to draw, in units of its variance.

    Source: Betancourt, "Diagnosing suboptimal cotangent disintegrations in Hamiltonian Monte
    Carlo", arXiv 1604.00695.
    """
    return np.asarray(np.square(np.diff(energy)).mean(-1) / np.var(energy, -1, ddof=1))


# In what follows, draws are (scalars, chains, draws), one scalar after another in memory.


def _flat(x: Array) -> Array:
    return x.reshape(len(x), -1)


def _halves(x: Array) -> Array:
    half = x.shape[2] // 2
    return np.concatenate([x[..., :half], x[..., -half:]], 1)


def _normal_scores(x: Array) -> Array:
    """Replace draws by normal quantiles of their ranks among all chains."""
    flat = _flat(x)
    count = flat.shape[1]
    order = np.argsort(flat)
    ordered = np.take_along_axis(flat, order, 1)
    ties = np.flatnonzero((ordered[:, 1:] == ordered[:, :-1]).any(1))
    scores = np.empty(flat.shape)
    np.put_along_axis(scores, order, _scores_of_ranks(count)[None, 2::2], 1)
    if ties.size:
        twice = _twice_mean_ranks(ordered[ties])
        tied = np.empty(twice.shape)
        np.put_along_axis(tied, order[ties], _scores_of_ranks(count)[twice], 1)
        scores[ties] = tied
    return scores.reshape(x.shape)


@functools.lru_cache(maxsize=4)
def _scores_of_ranks(count: int) -> Array:
    """Return the normal quantiles of the ranks 1, 1.5, 2, ... at twice the rank."""
    import torch  # which takes a second, when draws are judged

    offset = 3 / 8  # Blom (1958)
    ranks = np.arange(2 * count + 1) / 2
    shares = torch.from_numpy((ranks - offset) / (count - 2 * offset + 1))
    scores: Array = torch.special.ndtri(shares).numpy()
    return scores


def _twice_mean_ranks(ordered: Array) -> NDArray[np.intp]:
    """Return twice the ranks from 1 of sorted rows (m, n), where equal values have their mean.

    ``scipy.stats``, whose import takes as long as a small fit, has a function of the same result.
    """
    count = ordered.shape[1]
    same = ordered[:, 1:] == ordered[:, :-1]
    first = np.tile(np.arange(count), (len(ordered), 1))
    last = first.copy()
    first[:, 1:][same] = 0
    last[:, :-1][same] = count
    first = np.maximum.accumulate(first, 1)
    last = np.minimum.accumulate(last[:, ::-1], 1)[:, ::-1]
    return np.asarray(2 + first + last)


def _rhat(x: Array) -> Array:
    count = x.shape[2]
    between = count * np.var(x.mean(2), 1, ddof=1)
    within = np.var(x, 2, ddof=1).mean(1)
    return np.asarray(np.sqrt((between / within + count - 1) / count))


def _quantiles(x: Array, probs: Sequence[float]) -> list[Array]:
    """Return quantiles of each scalar by linear interpolation, rounded as ArviZ does.

    Ties are compared with them, so that the last digit matters.
    """
    flat = _flat(x)
    if _ARVIZ_1:
        return [*np.quantile(flat, probs, axis=1)]
    flat, count = np.sort(flat), flat.shape[1]
    found = []
    for p in probs:
        position = count * p + (1 - p)
        below = int(np.floor(np.clip(position, 1, count - 1)))
        share = np.clip(position - below, 0, 1)
        found.append((1.0 - share) * flat[:, below - 1] + share * flat[:, below])
    return found


def _ess(x: Array) -> Array:
    """Return the effective sample size of draws."""
    scalars, chains, draws = x.shape
    covariance = _autocovariance(x)
    within = covariance[:, :1] * draws / (draws - 1.0)
    total = within * (draws - 1.0) / draws
    if chains > 1:
        total = total + np.var(x.mean(2), 1, ddof=1)[:, None]
    rho = 1.0 - (within - covariance) / total
    rho[:, 0] = 1.0
    # Sums of pairs of neighbours are positive for a reversible chain, and decrease.
    count = max(1, (draws - 1) // 2)  # pair k is looked at if 2k < draws - 2
    pairs = rho[:, : 2 * count].reshape(scalars, count, 2).sum(2)
    ends = pairs <= 0.0
    # The last pair that is looked at: the first that is not positive, or the last of all.
    last = np.where(ends.any(1), ends.argmax(1), count - 1)
    sums = np.cumsum(np.minimum.accumulate(pairs, 1), 1)
    each = np.arange(scalars)
    before = np.where(last > 0, sums[each, last - 1], 0.0)
    even, pair = rho[each, 2 * last], pairs[each, last]
    rest = np.where((even > 0) | (pair >= 0), even, 0.0)
    tau = -1.0 + 2.0 * before + rest
    size = chains * draws
    found = size / np.maximum(tau, 1 / np.log10(size))
    found[np.isnan(tau)] = np.nan
    found[np.ptp(_flat(x), 1) < _SAME] = size
    return found


@functools.cache
def _fast_length(least: int) -> int:
    """Return the first product of 2, 3 and 5 from a number on, for fast Fourier transforms.

    >>> _fast_length(2002)
    2025
    """
    length = least
    while 2**30 * 3**20 * 5**13 % length:
        length += 1
    return length


def _autocovariance(x: Array) -> Array:
    """Return the autocovariance at each lag, averaged over the chains: (scalars, draws)."""
    draws = x.shape[2]
    length = _fast_length(2 * draws)
    transformed = np.fft.rfft(x - x.mean(2, keepdims=True), n=length)
    power = (transformed.real**2 + transformed.imag**2).mean(1)
    return np.asarray(np.fft.irfft(power, n=length)[:, :draws] / draws)
