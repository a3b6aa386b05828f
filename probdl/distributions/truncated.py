"""A distribution restricted to an interval."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
import torch.distributions as td
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all

from probdl.distributions.tails import check_has_cdf, log_interval, ndtr
from probdl.errors import ModelError
from probdl.model.distributions import base_distribution

__all__ = ["Truncated", "limits"]

Limit = Tensor | float | None
ASINH_MAX = 80.0  # numbers up to 1e34
HALVINGS = 70  # of an interval, which find a quantile to double precision


def limits(base: Any, low: Limit, high: Limit, of: str) -> tuple[Any, Tensor | None, Tensor | None]:
    """Broadcast a distribution and its limits; raise ModelError for limits in the wrong order."""
    check_has_cdf(base, of)
    if low is None and high is None:
        raise ModelError(f"{of} needs a limit: pass low=, high= or both.")
    if isinstance(low, (int, float)) and low == -math.inf:
        low = None
    if isinstance(high, (int, float)) and high == math.inf:
        high = None
    given = {n: torch.as_tensor(v) for n, v in (("low", low), ("high", high)) if v is not None}
    shape = torch.broadcast_shapes(base.batch_shape, *(x.shape for x in given.values()))
    given = {n: x.expand(shape) for n, x in given.items()}
    if base._validate_args is not False and len(given) == 2:
        wrong = ~(given["low"] < given["high"])
        if bool(wrong.any()):
            raise ModelError(f"{of}: low must be smaller than high in all elements.")
    return base.expand(shape), given.get("low"), given.get("high")


class Truncated(TorchDistribution):
    r"""A continuous distribution of numbers, restricted to an interval.

    .. math:: \log p(x) = \log f(x) - \log (F(b) - F(a)), \qquad a \le x \le b

    where f and F are the density and the cdf of the distribution. The probability of the interval
    is computed from the tail that is smaller, so that limits far out are no problem.

    Args:
        base_dist: a distribution of numbers with a cdf: Normal, Logistic, Laplace, Cauchy,
            Exponential, HalfNormal, LogNormal, Weibull, Gumbel, or Gamma with a fixed
            concentration.
        low: the lower limit a, of any shape that broadcasts; None for none.
        high: the upper limit b.

    Raises:
        ModelError: there is no cdf, no limit, or a lower limit that is not below the upper one.

    Example:
        >>> import pyro.distributions as dist, torch
        >>> from probdl.distributions import Truncated
        >>> d = Truncated(dist.Normal(0.0, 1.0), low=1.0)
        >>> d.log_prob(torch.tensor([0.0, 1.0, 2.0]))
        tensor([   -inf,  0.4221, -1.0779])
        >>> bool((d.sample([100]) >= 1).all())
        True

    Source: Johnson, Kotz and Balakrishnan, "Continuous univariate distributions" 1 (1994), 13.10.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(
        self, base_dist: Any, low: Limit = None, high: Limit = None, validate_args: Any = None
    ) -> None:
        self.base, self.low, self.high = limits(base_dist, low, high, "Truncated")
        super().__init__(self.base.batch_shape, validate_args=validate_args)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        """Whether draws have gradients."""
        return isinstance(base_distribution(self.base), (td.Normal, td.Exponential))

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> Any:
        """Return the set of possible values."""
        low, high = self._bounds()
        if low is None:
            return constraints.less_than(high)
        return constraints.greater_than_eq(low) if high is None else constraints.interval(low, high)

    def _bounds(self) -> tuple[Any, Any]:
        """Return the limits, together with those of the distribution's own support."""
        own = self.base.support
        low, high = getattr(own, "lower_bound", None), getattr(own, "upper_bound", None)
        if low is not None and self.low is not None:
            low = torch.maximum(*broadcast_all(low, self.low))
        if high is not None and self.high is not None:
            high = torch.minimum(*broadcast_all(high, self.high))
        return (self.low if low is None else low), (self.high if high is None else high)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Truncated:
        """Return the distribution with another batch shape."""
        shape = torch.Size(batch_shape)
        low, high = (None if x is None else x.expand(shape) for x in (self.low, self.high))
        return Truncated(self.base.expand(shape), low, high, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Compute the log density."""
        low, high = self._bounds()
        inside = torch.ones((), dtype=torch.bool)
        inside = inside if low is None else inside & (value >= low)
        inside = inside if high is None else inside & (value <= high)
        near = torch.where(inside, value, high if low is None else low)
        log_prob = self.base.log_prob(near) - log_interval(self.base, self.low, self.high)
        return torch.where(inside, log_prob, -math.inf)

    def cdf(self, value: Tensor) -> Tensor:
        """Compute P(X <= value)."""
        low, high = self._bounds()
        below = torch.zeros((), dtype=torch.bool) if low is None else value <= low
        beyond = torch.zeros((), dtype=torch.bool) if high is None else value >= high
        near = torch.where(below | beyond, self._inner(), value)
        part = log_interval(self.base, self.low, near)
        share = torch.exp(part - log_interval(self.base, self.low, self.high))
        return torch.where(below, 0.0, torch.where(beyond, 1.0, share))

    def icdf(self, value: Tensor) -> Tensor:
        """Compute the quantile of a probability."""
        fn = base_distribution(self.base)
        if isinstance(fn, td.Normal):
            return self._normal_quantile(fn, value)
        if isinstance(fn, td.Exponential):  # without memory
            start = 0.0 if self.low is None else self.low.clamp(min=0.0)
            lost = -1.0 if self.high is None else torch.expm1(-fn.rate * (self.high - start))
            return start - torch.log1p(value * lost) / fn.rate
        return self._bisect(value)

    def _normal_quantile(self, fn: Any, value: Tensor) -> Tensor:
        """Compute quantiles of a normal distribution from its smaller tail."""
        inf = torch.full((), math.inf, dtype=fn.loc.dtype)
        low = -inf if self.low is None else (self.low - fn.loc) / fn.scale
        high = inf if self.high is None else (self.high - fn.loc) / fn.scale
        flip = low > 0
        a, b = torch.where(flip, -high, low), torch.where(flip, -low, high)
        u = torch.where(flip, 1 - value, value)
        start, end = ndtr(a), ndtr(b)
        z = torch.special.ndtri(start + u * (end - start))
        z = torch.minimum(torch.maximum(z, a), b)
        return fn.loc + fn.scale * torch.where(flip, -z, z)

    def _inner(self) -> Tensor:
        """Return a point between the limits."""
        low, high = self._bounds()
        if low is None:
            return high - 1.0  # type: ignore[no-any-return]
        return low + 1.0 if high is None else 0.5 * (low + high)  # type: ignore[no-any-return]

    def _bisect(self, p: Tensor) -> Tensor:
        """Find quantiles by halving an interval, in proportion to its size far from 0."""
        low, high = self._bounds()
        with torch.no_grad():
            # On the scale of asinh(), all floating-point numbers are a short interval.
            end = torch.full_like(p, ASINH_MAX)
            a = -end if low is None else torch.asinh(low.to(p)).expand_as(p)
            b = end if high is None else torch.asinh(high.to(p)).expand_as(p)
            for _ in range(HALVINGS):
                middle = 0.5 * (a + b)
                above = self.cdf(torch.sinh(middle)) > p
                a, b = torch.where(above, a, middle), torch.where(above, middle, b)
            return torch.sinh(0.5 * (a + b))

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Draw by inversion, with gradients with respect to the parameters."""
        reference = self.low if self.low is not None else self.high
        assert reference is not None
        dtype = torch.promote_types(reference.dtype, self.base.sample().dtype)
        u = torch.rand(self._extended_shape(sample_shape), dtype=dtype)
        return self.icdf(u)
