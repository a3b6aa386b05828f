"""Logarithms of the probabilities of half-lines and intervals, precise in the tails."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
import torch.distributions as td
from torch import Tensor

from probdl.errors import ModelError
from probdl.model.distributions import base_distribution

__all__ = [
    "check_has_cdf",
    "log_cdf",
    "log_difference",
    "log_interval",
    "log_ndtr",
    "log_survival",
    "ndtr",
]

FAR = -5.0  # below, the continued fraction of Mills' ratio
FRACTIONS = 16
HALF_LOG_2_PI = 0.5 * math.log(2 * math.pi)


def check_has_cdf(base: Any, of: str) -> None:
    """Raise ModelError for a distribution without a cumulative distribution function."""
    inner = base_distribution(base)
    while isinstance(inner, td.TransformedDistribution):
        inner = base_distribution(inner.base_dist)
    name = type(inner).__name__
    if base.event_shape:
        raise ModelError(
            f"{of} needs a distribution of single numbers, not {type(base).__name__} with events "
            f"of shape {tuple(base.event_shape)}. Apply to_event() to the {of} instead."
        )
    if base.support.is_discrete:
        raise ModelError(f"{of} needs a continuous distribution, and {name} is discrete.")
    if type(inner).cdf is td.Distribution.cdf:
        raise ModelError(
            f"{of} needs the cdf of {name}, which torch does not have. Use a Normal, Logistic, "
            "Laplace, Cauchy, Exponential, HalfNormal, LogNormal, Weibull or Gumbel."
        )
    if isinstance(inner, td.Gamma) and inner.concentration.requires_grad:
        raise ModelError(
            f"{of}: torch has no gradient of the cdf of {name} with respect to its concentration. "
            "Fix the concentration, or use a LogNormal or Weibull."
        )


def ndtr(x: Tensor) -> Tensor:
    """Compute the standard normal cdf; torch's own is 0 below -8.3."""
    return 0.5 * torch.erfc(-x / math.sqrt(2))


def log_ndtr(x: Tensor) -> Tensor:
    r"""Compute the log of the standard normal cdf.

    By ``erfc``, and below -5 by the continued fraction of Mills' ratio,

    .. math:: \Phi(-t) / \phi(t) = 1 / (t + 1 / (t + 2 / (t + 3 / (t + \cdots))))

    >>> log_ndtr(torch.tensor([-40.0, 0.0, 9.0], dtype=torch.float64))
    tensor([-8.0461e+02, -6.9315e-01, -1.1286e-19], dtype=torch.float64)
    """
    # Not by clamp(), whose gradient at the limit differs between releases of torch.
    is_upper, is_far = x > 0, x <= FAR
    upper = torch.log1p(-0.5 * torch.erfc(torch.where(is_upper, x, 0.0) / math.sqrt(2)))
    lower = torch.log(0.5 * torch.erfc(torch.where(is_upper | is_far, 0.0, -x) / math.sqrt(2)))
    t = torch.where(is_far, -x, -FAR)
    ratio = t
    for k in range(FRACTIONS, 0, -1):
        ratio = t + k / ratio
    far = -0.5 * t**2 - HALF_LOG_2_PI - ratio.log()
    return torch.where(is_upper, upper, torch.where(is_far, far, lower))


def log_cdf(base: Any, x: Tensor) -> Tensor:
    """Compute log P(X <= x)."""
    return _log_tail(base, x, above=False)


def log_survival(base: Any, x: Tensor) -> Tensor:
    """Compute log P(X > x)."""
    return _log_tail(base, x, above=True)


def log_interval(base: Any, low: Tensor | None, high: Tensor | None) -> Tensor:
    """Compute log P(low < X < high); None stands for no limit."""
    if low is None and high is None:
        return torch.zeros(base.batch_shape)
    if low is None:
        assert high is not None
        return log_cdf(base, high)
    if high is None:
        return log_survival(base, low)
    below, above = log_cdf(base, low), log_survival(base, low)
    from_below = log_difference(log_cdf(base, high), below)
    from_above = log_difference(above, log_survival(base, high))
    return torch.where(below > -math.log(2), from_above, from_below)


def log_difference(a: Tensor, b: Tensor) -> Tensor:
    """Compute log(exp(a) - exp(b)) for a > b; b may be -inf, and a as well."""
    empty = b == -math.inf
    gap = torch.where(empty, -1.0, b) - torch.where(empty, 0.0, a)
    gap = torch.where(gap < 0, gap, -torch.finfo(a.dtype).tiny)
    return torch.where(empty, a, torch.where(empty, 0.0, a) + torch.log(-torch.expm1(gap)))


def _log_tail(base: Any, x: Tensor, *, above: bool) -> Tensor:
    """Compute the log of a tail; a limit at or beyond the end of the support gives 0 or -inf.

    There, formulas for the inside have no gradient.
    """
    x = x + torch.zeros(base.batch_shape, dtype=x.dtype)
    low, high = (getattr(base.support, n, None) for n in ("lower_bound", "upper_bound"))
    below, beyond = x == -math.inf, x == math.inf
    if low is not None:
        below = below | (x <= low)
    if high is not None:
        beyond = beyond | (x >= high)
    inner = 0.0 if low is None else low + 1.0
    if high is not None:
        inner = high - 1.0 if low is None else 0.5 * (low + high)
    inner = torch.as_tensor(inner).detach().to(x.dtype)
    value = _inside(base, torch.where(below | beyond, inner, x), above=above)
    return torch.where(
        below, 0.0 if above else -math.inf, torch.where(beyond, -math.inf if above else 0.0, value)
    )


def _inside(base: Any, x: Tensor, *, above: bool) -> Tensor:
    fn = base_distribution(base)
    if hasattr(fn, "log_survival"):  # of this package
        survival: Tensor = fn.log_survival(x)
        return survival if above else torch.log(-torch.expm1(survival))
    if isinstance(fn, (td.HalfNormal, td.HalfCauchy)):
        survival = math.log(2) + _inside(fn.base_dist, x, above=True)
        return survival if above else torch.log(-torch.expm1(survival))
    if isinstance(fn, td.Gumbel):
        hazard = torch.exp(-(x - fn.loc) / fn.scale)
        return torch.log(-torch.expm1(-hazard)) if above else -hazard
    if isinstance(fn, td.TransformedDistribution):
        sign = 1
        for transform in reversed(fn.transforms):
            x = transform.inv(x)
            sign = sign * transform.sign
        if isinstance(sign, Tensor):
            both = [_inside(fn.base_dist, x, above=side) for side in (above, not above)]
            return torch.where(sign > 0, *both)
        return _inside(fn.base_dist, x, above=above if sign > 0 else not above)
    if isinstance(fn, td.Uniform):
        part = (fn.high - x) if above else (x - fn.low)
        return torch.log(part / (fn.high - fn.low))
    if isinstance(fn, td.Normal):
        z = (x - fn.loc) / fn.scale
        return log_ndtr(-z if above else z)
    if isinstance(fn, dist.Logistic):
        z = (x - fn.loc) / fn.scale
        return torch.nn.functional.logsigmoid(-z if above else z)
    if isinstance(fn, td.Exponential):
        return -fn.rate * x if above else torch.log(-torch.expm1(-fn.rate * x))
    if isinstance(fn, td.Laplace):
        z = (x - fn.loc) / fn.scale
        z = -z if above else z
        near = torch.log1p(-0.5 * torch.exp(-torch.where(z < 0, 0.0, z)))
        return torch.where(z < 0, z - math.log(2), near)
    if isinstance(fn, td.Cauchy):
        z = (x - fn.loc) / fn.scale
        return torch.log(torch.atan2(torch.ones_like(z), z if above else -z) / math.pi)
    if isinstance(fn, td.Gamma):
        tail = torch.special.gammaincc if above else torch.special.gammainc
        return torch.log(tail(fn.concentration, fn.rate * x))
    cdf = fn.cdf(x)
    return torch.log1p(-cdf) if above else torch.log(cdf)
