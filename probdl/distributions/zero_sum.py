"""Vectors whose elements add up to zero."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import Transform, biject_to, constraints, transform_to

from probdl.errors import ModelError

__all__ = ["ZeroSumNormal", "ZeroSumTransform", "zero_sum"]

TOLERANCE = 1e-4  # of the sum, as a share of the sum of absolute values


class _ZeroSum(constraints.Constraint):
    """Vectors (..., n) whose sum is zero."""

    event_dim = 1

    def check(self, value: Tensor) -> Tensor:
        """Return which values are in the set."""
        return value.sum(-1).abs() <= TOLERANCE * (value.abs().sum(-1) + 1)


zero_sum = _ZeroSum()


class ZeroSumTransform(Transform):
    """The isometry from R^(n-1) to the vectors in R^n whose sum is zero.

    With s the sum of y, x is (y - c, -s / sqrt(n)) with c = s / (sqrt(n) + n).
    """

    domain = constraints.real_vector
    codomain = zero_sum
    bijective = True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ZeroSumTransform)

    __hash__ = Transform.__hash__

    def _call(self, x: Tensor) -> Tensor:
        n, total = x.shape[-1] + 1, x.sum(-1, keepdim=True)
        return torch.cat([x - total / (math.sqrt(n) + n), -total / math.sqrt(n)], -1)

    def _inverse(self, y: Tensor) -> Tensor:
        n = y.shape[-1]
        total = -math.sqrt(n) * y[..., -1:]
        return y[..., :-1] + total / (math.sqrt(n) + n)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the log of the Jacobian."""
        return torch.zeros(x.shape[:-1], dtype=x.dtype)

    def forward_shape(self, shape: Any) -> torch.Size:
        """Return the shape of the values."""
        return torch.Size((*shape[:-1], shape[-1] + 1))

    def inverse_shape(self, shape: Any) -> torch.Size:
        """Return the shape of the coordinates."""
        return torch.Size((*shape[:-1], shape[-1] - 1))


@biject_to.register(_ZeroSum)
@transform_to.register(_ZeroSum)
def _zero_sum_transform(_: _ZeroSum) -> ZeroSumTransform:
    return ZeroSumTransform()


class ZeroSumNormal(TorchDistribution):
    r"""Normal effects of a factor, as a vector whose elements add up to zero.

    .. math:: \log p(x) = -\frac{n - 1}{2} \log (2 \pi \sigma^2)
        - \frac{1}{2 \sigma^2} \sum_i x_i^2, \qquad \sum_i x_i = 0

    the density on the subspace of dimension n - 1. With it, an intercept is identified: it is the
    mean over the levels. Each element has the variance sigma^2 (1 - 1/n).

    Args:
        scale: the scale sigma, positive, of the batch shape.
        size: the number n of elements, at least 2.

    Raises:
        ModelError: there is only one element.

    Example:
        >>> import torch
        >>> from probdl.distributions import ZeroSumNormal
        >>> d = ZeroSumNormal(torch.tensor(1.0), size=3)
        >>> d.log_prob(torch.tensor([1.0, 0.0, -1.0]))               # -log(2 pi) - 1
        tensor(-2.8379)

    Source: the isometry of Egozcue et al., "Isometric logratio transformations for compositional
    data analysis", Mathematical Geology 35 (2003).
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"scale": constraints.positive}
    support = zero_sum
    has_rsample = True

    def __init__(self, scale: Any, size: int, validate_args: Any = None) -> None:
        if size < 2:
            raise ModelError(f"ZeroSumNormal: size={size}; it must be at least 2.")
        self.scale = torch.as_tensor(scale)
        self.size = size
        super().__init__(self.scale.shape, torch.Size([size]), validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """Return the mean."""
        return torch.zeros(self.batch_shape + self.event_shape, dtype=self.scale.dtype)

    @property
    def variance(self) -> Tensor:
        """Return the variance."""
        share = 1 - 1 / self.size
        return (self.scale**2 * share)[..., None].expand(self.batch_shape + self.event_shape)

    def expand(self, batch_shape: Any, _instance: Any = None) -> ZeroSumNormal:
        """Return the distribution with another batch shape."""
        return ZeroSumNormal(self.scale.expand(batch_shape), self.size, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Compute the log density on the subspace."""
        log_norm = (self.size - 1) * (self.scale.log() + 0.5 * math.log(2 * math.pi))
        return -0.5 * (value**2).sum(-1) / self.scale**2 - log_norm

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Draw as the deviations of normal numbers from their mean."""
        noise = torch.randn(self._extended_shape(sample_shape), dtype=self.scale.dtype)
        return self.scale[..., None] * (noise - noise.mean(-1, keepdim=True))
