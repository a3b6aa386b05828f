"""Observations of which only a side of a limit, or an interval, is known."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, ClassVar

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from probdl.distributions.tails import check_has_cdf, log_cdf, log_interval, log_survival
from probdl.distributions.truncated import Limit, limits
from probdl.errors import ModelError

__all__ = ["Censored", "IntervalCensored"]


class Censored(TorchDistribution):
    r"""A continuous distribution of numbers, of which values beyond a limit are seen at the limit.

    .. math:: P(X = a) = F(a), \qquad p(x) = f(x) \text{ for } a < x < b, \qquad
        P(X = b) = 1 - F(b)

    An observation that is equal to a limit (or beyond it) stands for all values on the other side.

    Args:
        base_dist: a distribution of numbers with a cdf, as for :class:`Truncated`.
        low: the limit a of left-censored observations; None for none.
        high: the limit b of right-censored observations, such as the end of a study, of any shape
            that broadcasts. It may differ between observations.

    Raises:
        ModelError: there is no cdf, no limit, or a lower limit that is not below the upper one.

    Example:
        >>> import pyro.distributions as dist, torch
        >>> from probdl.distributions import Censored
        >>> d = Censored(dist.Exponential(torch.tensor(0.5)), high=3.0)
        >>> d.log_prob(torch.tensor([1.0, 3.0]))           # log 0.5 - 0.5, and -0.5 x 3
        tensor([-1.1931, -1.5000])

    Source: Klein and Moeschberger, "Survival analysis" (2003), section 3.5.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(
        self, base_dist: Any, low: Limit = None, high: Limit = None, validate_args: Any = None
    ) -> None:
        self.base, self.low, self.high = limits(base_dist, low, high, "Censored")
        super().__init__(self.base.batch_shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> Any:
        """Return the set of possible values."""
        return self.base.support

    def expand(self, batch_shape: Any, _instance: Any = None) -> Censored:
        """Return the distribution with another batch shape."""
        shape = torch.Size(batch_shape)
        low, high = (None if x is None else x.expand(shape) for x in (self.low, self.high))
        return Censored(self.base.expand(shape), low, high, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Compute the log density, or the log probability at a limit."""
        log_prob = self.base.log_prob(value)
        if self.low is not None:
            log_prob = torch.where(value <= self.low, log_cdf(self.base, self.low), log_prob)
        if self.high is not None:
            above = log_survival(self.base, self.high)
            log_prob = torch.where(value >= self.high, above, log_prob)
        return log_prob

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Draw, and move values beyond a limit to it."""
        value = self.base.sample(sample_shape)
        value = value if self.low is None else torch.maximum(value, self.low.to(value))
        return value if self.high is None else torch.minimum(value, self.high.to(value))


class IntervalCensored(TorchDistribution):
    r"""The interval into which a number falls, of intervals between given edges.

    .. math:: P(i) = F(e_i) - F(e_{i-1}), \qquad e_{-1} = -\infty, \quad e_k = \infty

    The value is the number of edges below the number: 0 is below the first edge, and k, the number
    of edges, above the last one. If each observation has another interval, pass edges (n, 2),
    and observe the value 1.

    Args:
        base_dist: a distribution of numbers with a cdf, as for :class:`Truncated`.
        edges: increasing edges, (..., k).

    Raises:
        ModelError: there is no cdf, or the edges do not increase.

    Example:
        >>> import pyro.distributions as dist, torch
        >>> from probdl.distributions import IntervalCensored
        >>> d = IntervalCensored(dist.Normal(0.0, 1.0), edges=torch.tensor([-1.0, 0.0, 1.0]))
        >>> d.log_prob(torch.tensor([0.0, 1.0, 2.0, 3.0])).exp()
        tensor([0.1587, 0.3413, 0.3413, 0.1587])

    Source: Heitjan, "Inference from grouped continuous data", Statistical Science 4 (1989).
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, base_dist: Any, edges: Tensor, validate_args: Any = None) -> None:
        check_has_cdf(base_dist, "IntervalCensored")
        edges = torch.as_tensor(edges)
        if edges.ndim == 0 or edges.shape[-1] == 0:
            raise ModelError("IntervalCensored: edges must be a vector of at least one edge.")
        if base_dist._validate_args is not False and bool((edges.diff() <= 0).any()):
            raise ModelError("IntervalCensored: edges must increase.")
        shape = torch.broadcast_shapes(base_dist.batch_shape, edges.shape[:-1])
        self.base, self.edges = base_dist.expand(shape), edges.expand(shape + edges.shape[-1:])
        super().__init__(shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> Any:
        """Return the set of possible values."""
        return constraints.integer_interval(0, self.edges.shape[-1])

    def expand(self, batch_shape: Any, _instance: Any = None) -> IntervalCensored:
        """Return the distribution with another batch shape."""
        shape = torch.Size(batch_shape)
        edges = self.edges.expand(shape + self.edges.shape[-1:])
        return IntervalCensored(self.base.expand(shape), edges, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Compute the log probability of an interval."""
        edges = self.edges.unbind(-1)
        terms = [
            log_interval(self.base, None, edges[0]),
            *(log_interval(self.base, low, high) for low, high in pairwise(edges)),
            log_interval(self.base, edges[-1], None),
        ]
        result = terms[0]
        for i, term in enumerate(terms[1:], 1):
            result = torch.where(value >= i, term, result)
        return result

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Draw a number, and find its interval."""
        value = self.base.sample(sample_shape)
        return (value[..., None] > self.edges).sum(-1).to(value.dtype)
