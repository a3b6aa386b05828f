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
)
from torch.nn.functional import softplus

from probdl.errors import ModelError
from probdl.model.distributions import distribution_name

__all__ = ["bijection", "bijection_to", "unconstrained_shape"]


class _CorrCholeskyTransform(CorrCholeskyTransform):
    r"""torch's map to Cholesky factors of correlation matrices, with logarithms that do not cancel.

    Row i of the factor is :math:`y_{ij} = \tanh x_{ij} \prod_{k<j} \mathrm{sech}\, x_{ik}`, so that

    .. math:: \log |J| = \sum_{j<i} (i - j + 1) \log \mathrm{sech}\, x_{ij}

    torch takes the logarithm of :math:`1 - \sum_{k \le j} y_{ik}^2`, all of whose digits cancel
    in the long rows of a large matrix, and its inverse takes the square root.
    """

    def _inverse(self, y: Tensor) -> Tensor:
        # tanh x = y / sqrt(what is left of the row from y on), so sinh x = y / sqrt(what follows).
        follows = (y * y).flip(-1).cumsum(-1).flip(-1)[..., 1:]
        row, column = torch.tril_indices(y.shape[-1], y.shape[-1], -1)
        return torch.asinh(y[..., row, column] / follows[..., row, column].sqrt())

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor, intermediates: Any = None) -> Tensor:
        """Return the log of the Jacobian."""
        row, column = torch.tril_indices(y.shape[-1], y.shape[-1], -1)
        log_sech = math.log(2) - x - softplus(-2 * x)
        return ((row - column + 1) * log_sech).sum(-1)


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
