"""Random covariance and precision matrices."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import Transform, biject_to, constraints, transform_to

from probdl.errors import ModelError

__all__ = ["CovarianceTransform", "Wishart", "covariance"]


class _Covariance(constraints.Constraint):
    """Symmetric positive definite matrices (..., n, n)."""

    event_dim = 2

    def check(self, value: Tensor) -> Tensor:
        """Return which values are in the set."""
        return constraints.positive_definite.check(value)


covariance = _Covariance()


class CovarianceTransform(Transform):
    r"""The map from R^(n (n + 1) / 2) to positive definite matrices, by a Cholesky factor.

    The first n coordinates are the logarithms of the diagonal of L, the others what is below it;
    the matrix is L L'. The log of the Jacobian is

    .. math:: n \log 2 + \sum_{i=1}^n (n - i + 2) \log L_{ii}
    """

    domain = constraints.real_vector
    codomain = covariance
    bijective = True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CovarianceTransform)

    __hash__ = Transform.__hash__

    @staticmethod
    def _size(count: int) -> int:
        return (math.isqrt(8 * count + 1) - 1) // 2

    def _call(self, x: Tensor) -> Tensor:
        size = self._size(x.shape[-1])
        # One matrix of indices places the coordinates, and a zero, into the factor.
        index = torch.full((size, size), x.shape[-1])
        index.fill_diagonal_(0)
        index += torch.diag(torch.arange(size))
        row, column = torch.tril_indices(size, size, -1)
        index[row, column] = size + torch.arange(len(row))
        parts = [x[..., :size].exp(), x[..., size:], x.new_zeros((*x.shape[:-1], 1))]
        factor = torch.cat(parts, -1)[..., index.reshape(-1)].reshape((*x.shape[:-1], size, size))
        return factor @ factor.mT

    def _inverse(self, y: Tensor) -> Tensor:
        factor = torch.linalg.cholesky(y)
        size = y.shape[-1]
        row, column = torch.tril_indices(size, size, -1)
        diagonal = factor.diagonal(dim1=-2, dim2=-1)
        return torch.cat([diagonal.log(), factor[..., row, column]], -1)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the log of the Jacobian."""
        size = self._size(x.shape[-1])
        powers = torch.arange(size + 1, 1, -1, dtype=x.dtype)
        return size * math.log(2) + (powers * x[..., :size]).sum(-1)

    def forward_shape(self, shape: Any) -> torch.Size:
        """Return the shape of the values."""
        size = self._size(shape[-1])
        return torch.Size((*shape[:-1], size, size))

    def inverse_shape(self, shape: Any) -> torch.Size:
        """Return the shape of the coordinates."""
        return torch.Size((*shape[:-2], shape[-1] * (shape[-1] + 1) // 2))


@biject_to.register(_Covariance)
@transform_to.register(_Covariance)
def _covariance_transform(_: _Covariance) -> CovarianceTransform:
    return CovarianceTransform()


class Wishart(TorchDistribution):
    r"""The Wishart distribution of positive definite matrices, for latent sites, too.

    .. math:: \log p(X) = \frac{\nu - n - 1}{2} \log |X| - \frac12 \mathrm{tr}(V^{-1} X)
        - \frac{\nu n}{2} \log 2 - \frac{\nu}{2} \log |V| - \log \Gamma_n(\nu / 2)

    It is the conjugate prior of a precision matrix. torch's own Wishart has no map from R^d to its
    values, so that it cannot be a latent site.

    Args:
        df: the degrees of freedom nu, above n - 1.
        scale_tril: the Cholesky factor (..., n, n) of the scale matrix V.

    Raises:
        ModelError: ``df`` is too small.

    Example:
        >>> import torch
        >>> from probdl.distributions import Wishart
        >>> d = Wishart(torch.tensor(3.0), torch.eye(2))
        >>> d.log_prob(torch.eye(2)), d.mean[0, 0]
        (tensor(-3.5310), tensor(3.))

    Source: Gelman et al., "Bayesian data analysis" (2013), appendix A; Smith and Hocking,
    "Wishart variate generator", Applied Statistics 21 (1972).
    """

    arg_constraints: ClassVar[dict[str, Any]] = {
        "df": constraints.positive,
        "scale_tril": constraints.lower_cholesky,
    }
    support = covariance
    has_rsample = True

    def __init__(self, df: Any, scale_tril: Any, validate_args: Any = None) -> None:
        scale_tril = torch.as_tensor(scale_tril)
        df = torch.as_tensor(df, dtype=scale_tril.dtype)
        shape = torch.broadcast_shapes(df.shape, scale_tril.shape[:-2])
        size = scale_tril.shape[-1]
        self.df = df.expand(shape)
        self.scale_tril = scale_tril.expand(shape + (size, size))
        if validate_args is not False and bool((self.df <= size - 1).any()):
            raise ModelError(f"Wishart: df must be above {size - 1} for matrices of size {size}.")
        super().__init__(shape, torch.Size([size, size]), validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """Return the mean."""
        return self.df[..., None, None] * (self.scale_tril @ self.scale_tril.mT)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Wishart:
        """Return the distribution with another batch shape."""
        shape = torch.Size(batch_shape)
        scale = self.scale_tril.expand(shape + self.event_shape)
        return Wishart(self.df.expand(shape), scale, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Compute the log density."""
        size, df = self.event_shape[-1], self.df
        factor = torch.linalg.cholesky(value)
        log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        ratio = torch.linalg.solve_triangular(
            self.scale_tril.expand_as(factor)
            if factor.ndim > self.scale_tril.ndim
            else self.scale_tril,
            factor,
            upper=False,
        )
        log_scale = 2 * self.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        multigamma = 0.25 * size * (size - 1) * math.log(math.pi) + sum(
            torch.lgamma(0.5 * (df - i)) for i in range(size)
        )
        return (
            0.5 * (df - size - 1) * log_det
            - 0.5 * (ratio**2).sum((-2, -1))
            - 0.5 * df * (size * math.log(2) + log_scale)
            - multigamma
        )

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Draw by Bartlett's decomposition."""
        shape, size = self._extended_shape(sample_shape), self.event_shape[-1]
        dtype = self.scale_tril.dtype
        lower = torch.randn(shape, dtype=dtype).tril(-1)
        df = (self.df[..., None] - torch.arange(size, dtype=dtype)).expand(shape[:-1])
        squares = (
            2
            * torch.distributions.Gamma(
                0.5 * df, torch.ones_like(df), validate_args=False
            ).rsample()
        )
        factor = self.scale_tril @ (lower + torch.diag_embed(squares.sqrt()))
        return factor @ factor.mT
