"""Continuous distributions of single numbers."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all

from probdl.distributions.tails import log_difference, log_ndtr, ndtr

__all__ = ["GeneralizedPareto", "InverseGaussian", "SkewNormal"]

HALF_LOG_2_PI = 0.5 * math.log(2 * math.pi)
SERIES_BELOW = 1e-5  # of shape times z, where log1p(k z) / k is replaced by its series


class _Elementwise(TorchDistribution):
    """A distribution whose parameters broadcast with one another."""

    _names: ClassVar[tuple[str, ...]]

    def _set(self, values: tuple[Any, ...], validate_args: Any) -> None:
        for name, value in zip(self._names, broadcast_all(*values), strict=True):
            setattr(self, name, value)
        shape = getattr(self, self._names[0]).shape
        super().__init__(shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """Return the distribution with another batch shape."""
        values = [getattr(self, name).expand(batch_shape) for name in self._names]
        make: Any = type(self)
        return make(*values, validate_args=False)


class InverseGaussian(_Elementwise):
    r"""The inverse Gaussian (Wald) distribution, of first passage times of a Brownian motion.

    .. math:: p(x) = \sqrt{\frac{\lambda}{2 \pi x^3}}
        \exp\left(-\frac{\lambda (x - \mu)^2}{2 \mu^2 x}\right), \qquad x > 0

    with mean mu and variance mu^3 / lambda.

    Args:
        loc: the mean mu, positive.
        concentration: the shape lambda, positive.

    Example:
        >>> import torch
        >>> from probdl.distributions import InverseGaussian
        >>> d = InverseGaussian(torch.tensor(1.0), torch.tensor(2.0))
        >>> d.log_prob(torch.tensor(1.0)), d.variance        # log sqrt(1 / pi)
        (tensor(-0.5724), tensor(0.5000))

    Source: Michael, Schucany and Haas, "Generating random variates using transformations with
    multiple roots", The American Statistician 30 (1976).
    """

    arg_constraints: ClassVar[dict[str, Any]] = {
        "loc": constraints.positive,
        "concentration": constraints.positive,
    }
    support = constraints.positive
    _names = ("loc", "concentration")
    loc: Tensor
    concentration: Tensor

    def __init__(self, loc: Any, concentration: Any, validate_args: Any = None) -> None:
        self._set((loc, concentration), validate_args)

    @property
    def mean(self) -> Tensor:
        """Return the mean."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        """Return the variance."""
        return self.loc**3 / self.concentration

    def log_prob(self, value: Tensor) -> Tensor:
        """Compute the log density."""
        near = torch.where(value > 0, value, self.loc)
        deviation = (near - self.loc) / self.loc
        quadratic = self.concentration * deviation**2 / near
        log_prob = 0.5 * (self.concentration / near**3).log() - HALF_LOG_2_PI - 0.5 * quadratic
        return torch.where(value > 0, log_prob, -math.inf)

    def cdf(self, value: Tensor) -> Tensor:
        """Compute P(X <= value)."""
        root = (self.concentration / value).sqrt()
        ratio = value / self.loc
        first = ndtr(root * (ratio - 1))
        second = 2 * self.concentration / self.loc + log_ndtr(-root * (ratio + 1))
        return first + second.exp()

    def log_survival(self, value: Tensor) -> Tensor:
        """Compute log P(X > value)."""
        root, ratio = (self.concentration / value).sqrt(), value / self.loc
        far = 2 * self.concentration / self.loc + log_ndtr(-root * (ratio + 1))
        return log_difference(log_ndtr(-root * (ratio - 1)), far)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Draw by a transformation with two roots."""
        shape = self._extended_shape(sample_shape)
        with torch.no_grad():
            loc, ratio = self.loc.expand(shape), (self.loc / self.concentration).expand(shape)
            y = torch.randn(shape, dtype=loc.dtype) ** 2 * ratio
            # The smaller root; the product of both is 1, in units of the mean.
            root = 1 / (1 + 0.5 * y + (y + 0.25 * y**2).sqrt())
            first = torch.rand(shape, dtype=loc.dtype) * (1 + root) <= 1
            return loc * torch.where(first, root, 1 / root)


class SkewNormal(_Elementwise):
    r"""The skew normal distribution.

    .. math:: p(x) = \frac{2}{\sigma} \phi(z) \Phi(\alpha z), \qquad z = (x - \xi) / \sigma

    Args:
        loc: the location xi, which is not the mean.
        scale: the scale sigma, positive.
        skew: the shape alpha: the distribution is normal at 0, and skewed to the right above.

    Example:
        >>> import torch
        >>> from probdl.distributions import SkewNormal
        >>> d = SkewNormal(torch.tensor(0.0), torch.tensor(1.0), torch.tensor(2.0))
        >>> d.log_prob(torch.tensor(0.0)), d.mean              # that of a normal at 0
        (tensor(-0.9189), tensor(0.7136))

    Source: Azzalini, "A class of distributions which includes the normal ones", Scandinavian
    Journal of Statistics 12 (1985).
    """

    arg_constraints: ClassVar[dict[str, Any]] = {
        "loc": constraints.real,
        "scale": constraints.positive,
        "skew": constraints.real,
    }
    support = constraints.real
    has_rsample = True
    _names = ("loc", "scale", "skew")
    loc: Tensor
    scale: Tensor
    skew: Tensor

    def __init__(self, loc: Any, scale: Any, skew: Any, validate_args: Any = None) -> None:
        self._set((loc, scale, skew), validate_args)

    @property
    def _delta(self) -> Tensor:
        return self.skew / (1 + self.skew**2).sqrt()

    @property
    def mean(self) -> Tensor:
        """Return the mean."""
        return self.loc + self.scale * self._delta * math.sqrt(2 / math.pi)

    @property
    def variance(self) -> Tensor:
        """Return the variance."""
        return self.scale**2 * (1 - 2 * self._delta**2 / math.pi)

    def log_prob(self, value: Tensor) -> Tensor:
        """Compute the log density."""
        z = (value - self.loc) / self.scale
        normal = -0.5 * z**2 - HALF_LOG_2_PI - self.scale.log()
        return math.log(2) + normal + log_ndtr(self.skew * z)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Draw as a sum of a half-normal and a normal number."""
        shape = self._extended_shape(sample_shape)
        half, normal = torch.randn((2, *shape), dtype=self.loc.dtype)
        z = self._delta * half.abs() + normal / (1 + self.skew**2).sqrt()
        return self.loc + self.scale * z


class GeneralizedPareto(_Elementwise):
    r"""The generalised Pareto distribution, of what exceeds a high threshold.

    .. math:: p(x) = \frac{1}{\sigma} (1 + k z)^{-1 / k - 1}, \qquad z = (x - u) / \sigma \ge 0

    and exp(-z) / sigma at k = 0. For k < 0 the density is 0 above u - sigma / k.

    Args:
        loc: the threshold u.
        scale: the scale sigma, positive.
        concentration: the shape k. The mean exists for k < 1, the variance for k < 1/2.

    Example:
        >>> import torch
        >>> from probdl.distributions import GeneralizedPareto
        >>> d = GeneralizedPareto(torch.tensor(0.0), torch.tensor(2.0), torch.tensor(0.5))
        >>> d.log_prob(torch.tensor(4.0)), d.cdf(torch.tensor(4.0))      # log 1/16
        (tensor(-2.7726), tensor(0.7500))

    Source: Pickands, "Statistical inference using extreme order statistics", The Annals of
    Statistics 3 (1975).
    """

    arg_constraints: ClassVar[dict[str, Any]] = {
        "loc": constraints.real,
        "scale": constraints.positive,
        "concentration": constraints.real,
    }
    has_rsample = True
    _names = ("loc", "scale", "concentration")
    loc: Tensor
    scale: Tensor
    concentration: Tensor

    def __init__(self, loc: Any, scale: Any, concentration: Any, validate_args: Any = None) -> None:
        self._set((loc, scale, concentration), validate_args)

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> Any:
        """Return the set of possible values."""
        return constraints.greater_than_eq(self.loc)

    @property
    def mean(self) -> Tensor:
        """Return the mean."""
        k = self.concentration
        return torch.where(k < 1, self.loc + self.scale / (1 - k), math.inf)

    @property
    def variance(self) -> Tensor:
        """Return the variance."""
        k = self.concentration
        finite = self.scale**2 / ((1 - k) ** 2 * (1 - 2 * k))
        return torch.where(k < 0.5, finite, math.inf)

    def log_survival(self, value: Tensor) -> Tensor:
        """Compute log P(X > value) = -log(1 + k z) / k, for values inside of the support."""
        z, k = (value - self.loc) / self.scale, self.concentration
        small = (k * z).abs() < SERIES_BELOW
        series = z * (1 - 0.5 * k * z + (k * z) ** 2 / 3)
        safe = torch.where(small, torch.ones_like(k * z), k * z)
        divisor = torch.where(small, torch.ones_like(k * z), k.expand_as(k * z))
        exact = torch.log1p(safe.clamp(min=-1.0)) / divisor
        return -torch.where(small, series, exact)

    def log_prob(self, value: Tensor) -> Tensor:
        """Compute the log density; -inf beyond the upper end, if there is one."""
        k = self.concentration
        inside = (value >= self.loc) & (1 + k * (value - self.loc) / self.scale > 0)
        near = torch.where(inside, value, self.loc)
        log_prob = (1 + k) * self.log_survival(near) - self.scale.log()
        return torch.where(inside, log_prob, -math.inf)

    def cdf(self, value: Tensor) -> Tensor:
        """Compute P(X <= value)."""
        inside = (value >= self.loc) & (
            1 + self.concentration * (value - self.loc) / self.scale > 0
        )
        near = -torch.expm1(self.log_survival(torch.where(inside, value, self.loc)))
        return torch.where(inside, near, torch.where(value < self.loc, 0.0, 1.0))

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Draw by inversion."""
        k = self.concentration
        shape = self._extended_shape(sample_shape)
        e = -torch.log1p(-torch.rand(shape, dtype=self.loc.dtype))  # standard exponential
        small = (k * e).abs() < SERIES_BELOW
        series = e * (1 + 0.5 * k * e + (k * e) ** 2 / 6)
        divisor = torch.where(small, torch.ones_like(e), k.expand_as(e))
        z = torch.where(small, series, torch.expm1(k * e) / divisor)
        return self.loc + self.scale * z
