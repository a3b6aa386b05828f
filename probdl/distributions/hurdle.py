"""Counts or amounts with an extra process for zero."""

from __future__ import annotations

from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from probdl.errors import ModelError
from probdl.model.distributions import base_distribution

__all__ = ["Hurdle"]

TRIES = 10_000  # draws until a value is positive, for distributions without a direct way


class Hurdle(TorchDistribution):
    r"""Zero with a separate probability, and positive values from another distribution.

    .. math:: P(0) = g, \qquad p(x) = (1 - g) \frac{f(x)}{1 - f(0)} \text{ for } x > 0

    where f is a distribution of counts, without its own zeros, or of positive amounts, where f(0)
    counts as 0.

    Args:
        base_dist: a distribution of counts (Poisson, NegativeBinomial, GammaPoisson, Geometric …),
            or of positive numbers (Gamma, LogNormal, Exponential …).
        gate: the probability g of zero.

    Raises:
        ModelError: the distribution has negative values, or values that are no single numbers.

    Example:
        >>> import pyro.distributions as dist, torch
        >>> from probdl.distributions import Hurdle
        >>> d = Hurdle(dist.Poisson(torch.tensor(2.0)), gate=torch.tensor(0.25))
        >>> d.log_prob(torch.tensor([0.0, 1.0])).exp()     # 0.75 x 2 exp(-2) / (1 - exp(-2))
        tensor([0.2500, 0.2348])

    Source: Mullahy, "Specification and testing of some modified count data models", Journal of
    Econometrics 33 (1986).
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"gate": constraints.unit_interval}

    def __init__(self, base_dist: Any, gate: Any, validate_args: Any = None) -> None:
        lower = getattr(base_dist.support, "lower_bound", None)
        positive = lower is not None and bool((torch.as_tensor(lower) >= 0).all())
        if base_dist.event_shape or not positive:
            raise ModelError(
                f"Hurdle needs a distribution of counts or positive numbers, not "
                f"{type(base_dist).__name__}. Use a Poisson, NegativeBinomial, Gamma or LogNormal."
            )
        gate = torch.as_tensor(gate)
        shape = torch.broadcast_shapes(base_dist.batch_shape, gate.shape)
        self.base, self.gate = base_dist.expand(shape), gate.expand(shape)
        super().__init__(shape, validate_args=validate_args)

    @property
    def _counts(self) -> bool:
        return bool(self.base.support.is_discrete)

    @constraints.dependent_property(event_dim=0)
    def support(self) -> Any:
        """Return the set of possible values."""
        return constraints.nonnegative_integer if self._counts else constraints.nonnegative

    def expand(self, batch_shape: Any, _instance: Any = None) -> Hurdle:
        """Return the distribution with another batch shape."""
        shape = torch.Size(batch_shape)
        return Hurdle(self.base.expand(shape), self.gate.expand(shape), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Compute the log probability, or the log density of a positive number."""
        zero = value == 0
        log_prob = self.base.log_prob(torch.where(zero, torch.ones_like(value), value))
        if self._counts:
            at_zero = self.base.log_prob(torch.zeros_like(value))
            log_prob = log_prob - torch.log(-torch.expm1(at_zero))
        return torch.where(zero, self.gate.log(), torch.log1p(-self.gate) + log_prob)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Draw zero, or a positive value."""
        shape = self._extended_shape(sample_shape)
        with torch.no_grad():
            positive = self._positive(torch.Size(sample_shape), shape)
            zero = torch.rand(shape, dtype=self.gate.dtype) < self.gate
            return torch.where(zero, torch.zeros_like(positive), positive)

    def _positive(self, sample_shape: torch.Size, shape: torch.Size) -> Tensor:
        fn = base_distribution(self.base)
        if not self._counts:
            return self.base.sample(sample_shape)
        if isinstance(fn, dist.Poisson):
            return _positive_poisson(fn.rate.expand(shape))
        if isinstance(fn, dist.NegativeBinomial):
            return _positive_gamma_poisson(fn.total_count, (-fn.logits).exp(), shape)
        if isinstance(fn, dist.GammaPoisson):
            return _positive_gamma_poisson(fn.concentration, fn.rate, shape)
        value = self.base.sample(sample_shape)
        for _ in range(TRIES):
            missing = value <= 0
            if not bool(missing.any()):
                return value
            value = torch.where(missing, self.base.sample(sample_shape), value)
        raise ModelError(
            f"Hurdle: {type(fn).__name__} was 0 in {TRIES} draws, so its positive values cannot be "
            "drawn."
        )


def _positive_poisson(rate: Tensor) -> Tensor:
    """Draw positive Poisson counts: a first event in the unit of time, and those after it."""
    u = torch.rand_like(rate)
    first = -torch.log1p(u * torch.expm1(-rate)) / rate
    return 1 + torch.poisson(rate * (1 - first).clamp(0.0, 1.0))


def _positive_gamma_poisson(concentration: Tensor, rate: Tensor, shape: torch.Size) -> Tensor:
    """Draw positive counts whose rate has a gamma distribution, by the time of the first event.

    P(T > t) = (b / (b + t))^a. Given T = t, the rate is Gamma(a + 1, b + t).
    """
    a, b = torch.broadcast_tensors(concentration, rate)
    a, b = a.expand(shape), b.expand(shape)
    u = torch.rand_like(b)
    log_none = -a * torch.log1p(1 / b)  # of no event
    first = b * torch.expm1(-torch.log1p(u * torch.expm1(log_none)) / a)
    rates = torch.distributions.Gamma(a + 1, b + first, validate_args=False).sample()
    return 1 + torch.poisson(rates * (1 - first).clamp(0.0, 1.0))
