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
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from probdl.util.clock import check_time_limit
from probdl.util.columns import by_columns

__all__ = ["Mixing", "bfmi", "ess_bulk", "ess_tail", "mcse_mean", "mcse_sd", "mixing", "rhat"]

Array = NDArray[np.float64]
Bools = NDArray[np.bool_]

MAX_NUMBERS = 2**17  # of draws at a time, which fit into the cache
SCREENED_NUMBERS = 2**23  # of draws from which on most scalars are judged by a part of the draws
SCREENED_DRAWS = 5000  # per chain that such a part has at least
DRAWS_MIN = 4  # per chain
_SAME = np.finfo(float).resolution  # a smaller range is that of a constant, as in ArviZ
_ARVIZ_1 = not version("arviz").startswith("0.")


class Mixing(NamedTuple):
    """Diagnostics by scalar, each of the shape of a variable."""

    rhat: Array  # rank-normalised and split; NaN with one chain
    ess_bulk: Array
    ess_tail: Array  # the smaller one of two quantiles
    mcse_mean: Array
    sd: Array


def mixing(
    draws: Array, probs: tuple[float, float], limits: tuple[float, float] | None = None
) -> Mixing:
    """Return all diagnostics of draws (chains, draws, *shape), which share their parts.

    Args:
        draws: the draws.
        probs: the probabilities of the quantiles whose effective sample sizes are computed.
        limits: an R-hat and an effective sample size. Diagnostics that are clearly better may be
            those of a part of very many draws: bounds on the worse side. The error of the mean is
            compared with the standard deviation by the root of that size.
    """

    def of_part(x: Array) -> Array:
        halves = _halves(x)
        order = _Order.of(halves)
        scores, sd = order.normal_scores, _sd(x)
        return np.stack(
            [
                _split_rhat(order, scores) if len(draws) > 1 else np.full(len(x), np.nan),
                _ess(scores),
                _tail(x, probs),
                sd / np.sqrt(_ess(halves)),
                sd,
            ]
        )

    def suspect(found: Array) -> Bools:
        assert limits is not None
        rhat_max, ess_min = limits
        of = Mixing(*found)
        unclear = np.minimum(of.ess_bulk, of.ess_tail) < 4 * ess_min
        unclear |= of.mcse_mean > of.sd * ess_min**-0.5 / 2
        return unclear | ~np.isfinite(found[1:]).all(0) | (of.rhat > 1 + (rhat_max - 1) / 2)

    count = len(Mixing._fields)
    return Mixing(*_by_scalar(draws, of_part, count, suspect if limits else None))


def rhat(draws: Array) -> Array:
    """Return the rank-normalised split R-hat (*shape) of draws (chains, draws, *shape)."""
    if len(draws) < 2:
        return np.full(draws.shape[2:], np.nan)

    def of_part(x: Array) -> Array:
        order = _Order.of(_halves(x))
        return _split_rhat(order, order.normal_scores)[None]

    return _by_scalar(draws, of_part)[0]


def ess_bulk(draws: Array) -> Array:
    """Return the effective sample size of the bulk (*shape) of draws (chains, draws, *shape)."""
    return _by_scalar(draws, lambda x: _ess(_Order.of(_halves(x)).normal_scores)[None])[0]


def ess_tail(draws: Array, probs: tuple[float, float]) -> Array:
    """Return the smaller effective sample size of two quantiles (*shape)."""
    return _by_scalar(draws, lambda x: _tail(x, probs)[None])[0]


def mcse_mean(draws: Array) -> Array:
    """Return the Monte Carlo standard errors of means (*shape) of draws (chains, draws, *shape)."""
    return _by_scalar(draws, lambda x: (_sd(x) / np.sqrt(_ess(_halves(x))))[None])[0]


def mcse_sd(draws: Array) -> Array:
    """Return the Monte Carlo standard errors of standard deviations (*shape)."""

    def of_part(x: Array) -> Array:
        squares = (x - x.mean((1, 2), keepdims=True)) ** 2
        variance = squares.mean((1, 2))
        of_squares = (squares**2).mean((1, 2)) - variance**2
        return np.sqrt(of_squares / _ess(_halves(squares)) / variance / 4)[None]

    return _by_scalar(draws, of_part)[0]


def _by_scalar(
    draws: Array,
    statistics: Callable[[Array], Array],
    count: int = 1,
    suspect: Callable[[Array], Bools] | None = None,
) -> Array:
    """Evaluate statistics of draws (chains, draws, *shape), in parts of bounded size.

    Args:
        draws: the draws.
        statistics: evaluates them for a part of the scalars, from (scalars, chains, draws) to
            (statistics, scalars).
        count: the number of statistics.
        suspect: selects the scalars that a part of very many draws does not settle, given their
            statistics for that part; None settles nothing.
    """
    shape, per_chain = draws.shape[2:], draws.shape[1]
    thin = min(-(-draws.size // SCREENED_NUMBERS), per_chain // SCREENED_DRAWS)
    if per_chain < DRAWS_MIN:
        return np.full((count, *shape), np.nan)

    def of_part(x: Array) -> Array:
        if suspect is None or thin <= 1:
            return _exactly(x, statistics, count)
        found = _exactly(x[:, ::thin], statistics, count)
        with np.errstate(all="ignore"):
            exact = ~np.isfinite(x.sum((0, 1))) | suspect(found)
        found[:, exact] = _exactly(x[..., exact], statistics, count)
        return found

    flat = draws.reshape(*draws.shape[:2], math.prod(shape))
    return by_columns(of_part, flat).reshape(count, *shape)


def _exactly(draws: Array, statistics: Callable[[Array], Array], count: int) -> Array:
    """Evaluate statistics of draws (chains, draws, scalars), in parts that fit into a cache."""
    found = np.empty((count, draws.shape[2]))
    size = max(1, MAX_NUMBERS // (draws.shape[0] * draws.shape[1]))
    with np.errstate(all="ignore"):
        for start in range(0, draws.shape[2], size):
            check_time_limit()
            part = np.moveaxis(draws[..., start : start + size], 2, 0)
            part = np.ascontiguousarray(part, dtype=float)
            values = np.asarray(statistics(part), dtype=float)
            values[:, np.isnan(part).any((1, 2))] = np.nan
            found[:, start : start + size] = values
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


class _Order(NamedTuple):
    """Draws, and all of each scalar in order."""

    draws: Array
    order: NDArray[np.intp]  # (scalars, draws of all chains)
    ordered: Array

    @classmethod
    def of(cls, draws: Array) -> _Order:
        flat = _flat(draws)
        order = np.argsort(flat)
        return cls(draws, order, np.take_along_axis(flat, order, 1))

    @property
    def normal_scores(self) -> Array:
        """The normal quantiles of the ranks of draws among all chains."""
        order, ordered = self.order, self.ordered
        count = order.shape[1]
        ties = np.flatnonzero((ordered[:, 1:] == ordered[:, :-1]).any(1))
        scores = np.empty(order.shape)
        np.put_along_axis(scores, order, _scores_of_ranks(count)[None, 2::2], 1)
        if ties.size:
            twice = _twice_mean_ranks(ordered[ties])
            tied = np.empty(twice.shape)
            np.put_along_axis(tied, order[ties], _scores_of_ranks(count)[twice], 1)
            scores[ties] = tied
        return scores.reshape(self.draws.shape)

    @property
    def folded(self) -> Array:
        """The distances of the draws, of which there is an even number, from the median."""
        middle = self.ordered.shape[1] // 2
        median = (self.ordered[:, middle - 1] + self.ordered[:, middle]) / 2
        return np.abs(self.draws - median[:, None, None])


def _split_rhat(halves: _Order, scores: Array) -> Array:
    """Return the larger R-hat of the bulk and of the tails, given the normal scores."""
    bulk, tail = _rhat(scores), _rhat(_Order.of(halves.folded).normal_scores)
    return np.where(tail > bulk, tail, bulk)  # of two values, all are as far from the median


def _tail(x: Array, probs: tuple[float, float]) -> Array:
    low, high = (_ess(_halves((x <= q[:, None, None]).astype(float))) for q in _quantiles(x, probs))
    return np.minimum(low, high)


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


def _sd(x: Array) -> Array:
    return np.asarray(np.std(_flat(x), 1, ddof=1))


def _rhat(x: Array) -> Array:
    count = x.shape[2]
    between = count * np.var(x.mean(2), 1, ddof=1)
    within = np.var(x, 2, ddof=1).mean(1)
    return np.asarray(np.sqrt((between / within + count - 1) / count))


def _quantiles(x: Array, probs: Sequence[float]) -> list[Array]:
    """Return quantiles of each scalar by linear interpolation, rounded as ArviZ does.

    Ties are compared with them, so that the last digit matters.
    """
    flat = np.sort(_flat(x))
    count = flat.shape[1]
    found = []
    for p in probs:
        position = (count - 1) * p if _ARVIZ_1 else count * p + (1 - p)
        first = 0 if _ARVIZ_1 else 1  # the position of the least draw
        at = int(np.clip(np.floor(position), first, count - 2 + first))
        share = np.clip(position - at, 0, 1)
        low, high = flat[:, at - first], flat[:, at - first + 1]
        if not _ARVIZ_1:
            found.append((1.0 - share) * low + share * high)
        elif share < 0.5:  # as NumPy
            found.append(low + (high - low) * share)
        else:
            found.append(high - (high - low) * (1 - share))
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
