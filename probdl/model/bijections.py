"""The bijections from R^n to the supports of distributions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Transform, biject_to
from torch.distributions.transforms import (
    ComposeTransform,
    CorrCholeskyTransform,
    IndependentTransform,
    StackTransform,
    StickBreakingTransform,
)
from torch.distributions.utils import vec_to_tril_matrix
from torch.nn.functional import logsigmoid, softplus

from probdl.errors import ModelError
from probdl.model.distributions import distribution_name

__all__ = ["bijection", "bijection_to", "unconstrained_shape"]


class _CorrCholeskyTransform(CorrCholeskyTransform):
    r"""torch's map to Cholesky factors of correlation matrices, with logarithms that do not cancel.

    Row i of the factor is :math:`y_{ij} = \tanh x_{ij} \prod_{k<j} \mathrm{sech}\, x_{ik}`, so that

    .. math:: \log |J| = \sum_{j<i} (i - j + 1) \log \mathrm{sech}\, x_{ij}

    torch takes the logarithm of :math:`1 - \sum_{k \le j} y_{ik}^2`, all of whose digits cancel
    in the long rows of a large matrix, and its inverse takes the square root. Its tanh ends at
    1 - 2e-16, so a diagonal does not reach below 1e-8.
    """

    def _call(self, x: Tensor) -> Tensor:
        logs = vec_to_tril_matrix(_log_sech(x), diag=-1)
        before = logs.cumsum(-1) - logs  # of the elements to the left
        tanh = vec_to_tril_matrix(torch.tanh(x), diag=-1)
        return before.exp() * (tanh + torch.eye(tanh.shape[-1], dtype=x.dtype, device=x.device))

    def _inverse(self, y: Tensor) -> Tensor:
        # tanh x = y / sqrt(what is left of the row from y on), so sinh x = y / sqrt(what follows).
        follows = _following(y * y)
        row, column = torch.tril_indices(y.shape[-1], y.shape[-1], -1)
        return torch.asinh(y[..., row, column] / follows[..., row, column].sqrt())

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor, intermediates: Any = None) -> Tensor:
        """Return the log of the Jacobian."""
        row, column = torch.tril_indices(y.shape[-1], y.shape[-1], -1)
        return ((row - column + 1) * _log_sech(x)).sum(-1)


def _log_sech(x: Tensor) -> Tensor:
    return math.log(2) - x - softplus(-2 * x)


class _StickBreakingTransform(StickBreakingTransform):
    r"""torch's map to the simplex, with logarithms that do not cancel.

    Of what is left of a stick, each step takes a share :math:`z_k = \sigma(x_k - \log(K - k))`:

    .. math:: y_k = z_k \prod_{j<k} (1 - z_j), \qquad
        \log |J| = \sum_k \log(1 - z_k) + \log y_k

    torch takes the difference of 1 and a share, which leaves at least 2e-16 for the rest.
    """

    def _call(self, x: Tensor) -> Tensor:
        share, rest = self._log_shares(x)
        return torch.cat([share + rest[..., :-1], rest[..., -1:]], -1).exp()

    def _inverse(self, y: Tensor) -> Tensor:
        return y[..., :-1].log() - _following(y).log() + _log_steps_left(y[..., :-1])

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor, intermediates: Any = None) -> Tensor:
        """Return the log of the Jacobian."""
        share, rest = self._log_shares(x)
        return (share + rest[..., 1:]).sum(-1)

    @staticmethod
    def _log_shares(x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logs of the shares (..., K - 1), and of what is left at each step (..., K)."""
        x = x - _log_steps_left(x)
        rest = logsigmoid(-x).cumsum(-1)
        return logsigmoid(x), torch.cat([rest.new_zeros((*rest.shape[:-1], 1)), rest], -1)


def _following(x: Tensor) -> Tensor:
    """Return the sums of what follows each element but the last, in rows of numbers >= 0."""
    sums = x.flip(-1).cumsum(-1).flip(-1)[..., 1:]
    return sums.clamp(min=torch.finfo(x.dtype).tiny)


def _log_steps_left(x: Tensor) -> Tensor:
    return torch.arange(x.shape[-1], 0, -1, dtype=x.dtype, device=x.device).log()


def bijection_to(support: Any) -> Transform:
    """Return the bijection from R^n to a support.

    Raises:
        NotImplementedError: torch has no bijection to it.
    """
    return _accurate(biject_to(support))


def _accurate(transform: Transform) -> Transform:
    """Return the same map, computed without cancellation."""
    if type(transform) is CorrCholeskyTransform:
        return _CorrCholeskyTransform(cache_size=transform._cache_size)
    if type(transform) is StickBreakingTransform:
        return _StickBreakingTransform(cache_size=transform._cache_size)
    if type(transform) is IndependentTransform:
        base, dims = transform.base_transform, transform.reinterpreted_batch_ndims
        return IndependentTransform(_accurate(base), dims, cache_size=transform._cache_size)
    if type(transform) is ComposeTransform:
        parts = [_accurate(part) for part in transform.parts]
        return ComposeTransform(parts, cache_size=transform._cache_size)
    if type(transform) is StackTransform:
        parts = [_accurate(part) for part in transform.transforms]
        return StackTransform(parts, transform.dim, transform._cache_size)
    return transform


def bijection(fn: Any, name: str) -> Transform:
    """Return the bijection from R^n to the support of a latent site's distribution.

    Args:
        fn: the distribution.
        name: the name of the site.

    Raises:
        ModelError: torch has no bijection to this support.
    """
    try:
        return bijection_to(fn.support)
    except NotImplementedError:
        raise ModelError(
            f"Site '{name}': torch has no bijection from R^n to the support of "
            f"{distribution_name(fn)} ({fn.support}). Build the value from other "
            "sites: a covariance from LKJCholesky and scales, or a point on a sphere from a normal "
            "vector divided by its length."
        ) from None


def unconstrained_shape(transform: Transform, shape: Sequence[int]) -> torch.Size:
    """Return the shape of the unconstrained point that a transform maps to a value of a shape."""
    if transform.domain.event_dim == 0 == transform.codomain.event_dim:
        return torch.Size(shape)  # inverse_shape() would import SymPy, 0.5 s
    return transform.inverse_shape(torch.Size(shape))
