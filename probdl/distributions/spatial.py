"""Effects of areas, which are similar in neighbouring areas."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any, ClassVar

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from probdl.distributions.zero_sum import zero_sum
from probdl.errors import ModelError

__all__ = ["CAR", "ICAR", "Adjacency"]


class Adjacency:
    """Which areas are neighbours, for :class:`ICAR` and :class:`CAR`.

    These take the matrix itself as well. Make this object once, outside the model, if there are
    hundreds of areas: its eigenvalues are computed once, and not in every run of the model.

    Args:
        weights: a symmetric matrix (n, n), dense or sparse: 1, or a positive weight, for
            neighbours.

    Raises:
        ModelError: the matrix is not symmetric, or an area has no neighbours.

    Example:
        >>> import torch
        >>> from probdl.distributions import Adjacency
        >>> line = Adjacency(torch.tensor([[0.0, 1, 0], [1, 0, 1], [0, 1, 0]]))
        >>> line.size, line.first.tolist(), line.second.tolist()
        (3, [0, 1], [1, 2])
    """

    def __init__(self, weights: Any) -> None:
        weights = torch.as_tensor(weights).detach()
        dense = weights if weights.layout == torch.strided else weights.to_dense()
        self.matrix = dense.to(torch.float64)
        self._check()
        self.size = len(self.matrix)
        self.degrees = self.matrix.sum(1)
        self.first, self.second = self.matrix.triu().nonzero().unbind(1)
        self.weights = self.matrix[self.first, self.second]

    def _check(self) -> None:
        w = self.matrix
        if w.ndim != 2 or w.shape[0] != w.shape[1]:
            raise ModelError(f"adjacency must be a square matrix, not of shape {tuple(w.shape)}.")
        if bool((w != w.T).any()) or bool((w < 0).any()):
            raise ModelError("adjacency must be symmetric, with weights that are not negative.")
        if bool(w.diagonal().any()):
            raise ModelError("adjacency has a diagonal, but no area is its own neighbour.")
        if bool((w.sum(1) == 0).any()):
            alone = (w.sum(1) == 0).nonzero()[:, 0].tolist()
            raise ModelError(
                f"The areas {alone[:8]} have no neighbours in adjacency. Give them effects of "
                "their own, or a neighbour."
            )

    @classmethod
    def of(cls, adjacency: Any) -> Adjacency:
        """Return an adjacency, or make it of a matrix."""
        return adjacency if isinstance(adjacency, Adjacency) else cls(adjacency)

    @cached_property
    def normalised_eigenvalues(self) -> Tensor:
        """The eigenvalues (n,) of the matrix with rows that sum to 1."""
        root = self.degrees**-0.5
        return torch.linalg.eigvalsh(root[:, None] * self.matrix * root)

    @cached_property
    def intrinsic(self) -> tuple[Tensor, float]:
        """A root (n, n - 1) of the covariance of unit scale, and the log of the determinant.

        Raises:
            ModelError: the areas are not all connected.
        """
        values, vectors = torch.linalg.eigh(torch.diag(self.degrees) - self.matrix)
        if bool(values[1] < 1e-9 * values[-1]):
            raise ModelError(
                "ICAR: the areas are not all connected. Use one ICAR for each connected part."
            )
        return vectors[:, 1:] / values[1:].sqrt(), float(values[1:].log().sum())

    def differences(self, x: Tensor) -> Tensor:
        """Return the weighted sum of squared differences of neighbours of values (..., n)."""
        gaps = x[..., self.first] - x[..., self.second]
        return (self.weights.to(x.dtype) * gaps**2).sum(-1)


class ICAR(TorchDistribution):
    r"""The intrinsic conditional autoregression, with a sum of zero.

    .. math:: \log p(x) = \text{const} - (n - 1) \log \sigma
        - \frac{1}{2 \sigma^2} \sum_{i \sim j} w_{ij} (x_i - x_j)^2, \qquad \sum_i x_i = 0

    normalised on the subspace of dimension n - 1. Each area's value, given the others, has the mean
    of its neighbours. The sum over the pairs of neighbours takes time in proportion to their
    number.

    Args:
        adjacency: an :class:`Adjacency`, or its symmetric matrix (n, n).
        scale: the scale sigma, positive, of the batch shape.

    Raises:
        ModelError: the matrix is not symmetric, or the areas are not all connected.

    Example:
        >>> import torch
        >>> from probdl.distributions import ICAR
        >>> line = torch.tensor([[0.0, 1, 0], [1, 0, 1], [0, 1, 0]])
        >>> d = ICAR(line, torch.tensor(1.0))
        >>> d.log_prob(torch.tensor([1.0, 0.0, -1.0]))     # 1/2 log 3 - log(2 pi) - 1
        tensor(-2.2886)

    Source: Besag, York and Mollié, "Bayesian image restoration, with two applications in spatial
    statistics", Annals of the Institute of Statistical Mathematics 43 (1991); Morris et al.,
    "Bayesian hierarchical spatial models" (2019).
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"scale": constraints.positive}
    support = zero_sum
    has_rsample = True

    def __init__(self, adjacency: Any, scale: Any = 1.0, validate_args: Any = None) -> None:
        self.graph = Adjacency.of(adjacency)
        self.root, self.log_determinant = self.graph.intrinsic
        self.scale = torch.as_tensor(scale)
        event = torch.Size([self.graph.size])
        super().__init__(self.scale.shape, event, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> ICAR:
        """Return the distribution with another batch shape."""
        return ICAR(self.graph, self.scale.expand(batch_shape), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Compute the log density on the subspace."""
        rank = self.graph.size - 1
        log_norm = rank * (self.scale.log() + 0.5 * math.log(2 * math.pi))
        quadratic = self.graph.differences(value) / self.scale**2
        return 0.5 * self.log_determinant - log_norm - 0.5 * quadratic

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Draw by the eigenvectors of the graph."""
        shape = self._extended_shape(sample_shape)[:-1]
        noise = torch.randn((*shape, self.graph.size - 1), dtype=self.scale.dtype)
        return self.scale[..., None] * (noise @ self.root.T.to(noise.dtype))


class CAR(TorchDistribution):
    r"""The proper conditional autoregression.

    .. math:: x \sim N\left(\mu, \left[\tau (D - \alpha W)\right]^{-1}\right)

    with the weights W of the neighbours and their row sums on the diagonal of D. The determinant
    follows from the eigenvalues of the graph, which are computed once, and the quadratic form is a
    sum over pairs of neighbours.

    Args:
        loc: the mean mu, (..., n) or a number.
        adjacency: an :class:`Adjacency`, or its symmetric matrix (n, n).
        precision: the precision tau, positive.
        alpha: the strength of the dependence, in (-1, 1); 0 for independence.

    Raises:
        ModelError: the matrix is not symmetric, or an area has no neighbours.

    Example:
        >>> import torch
        >>> from probdl.distributions import CAR
        >>> pair = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
        >>> d = CAR(torch.zeros(2), pair, torch.tensor(1.0), torch.tensor(0.5))
        >>> d.log_prob(torch.zeros(2))                   # -log(2 pi) + 1/2 log(1 - 1/4)
        tensor(-1.9817)

    Source: Jin, Carlin and Banerjee, "Generalized hierarchical multivariate CAR models for areal
    data", Biometrics 61 (2005).
    """

    arg_constraints: ClassVar[dict[str, Any]] = {
        "precision": constraints.positive,
        "alpha": constraints.interval(-1.0, 1.0),
    }
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self, loc: Any, adjacency: Any, precision: Any, alpha: Any, validate_args: Any = None
    ) -> None:
        self.graph = Adjacency.of(adjacency)
        size = self.graph.size
        loc = torch.as_tensor(loc)
        loc = loc.expand(torch.broadcast_shapes(loc.shape, (size,)))
        precision, alpha = torch.as_tensor(precision), torch.as_tensor(alpha)
        shape = torch.broadcast_shapes(loc.shape[:-1], precision.shape, alpha.shape)
        self.loc = loc.expand((*shape, size))
        self.precision, self.alpha = precision.expand(shape), alpha.expand(shape)
        super().__init__(shape, torch.Size([size]), validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """Return the mean."""
        return self.loc

    def expand(self, batch_shape: Any, _instance: Any = None) -> CAR:
        """Return the distribution with another batch shape."""
        shape = torch.Size(batch_shape)
        return CAR(
            self.loc.expand(shape + self.event_shape),
            self.graph,
            self.precision.expand(shape),
            self.alpha.expand(shape),
            validate_args=False,
        )

    def log_prob(self, value: Tensor) -> Tensor:
        """Compute the log density."""
        x, graph, size = value - self.loc, self.graph, self.graph.size
        degrees = graph.degrees.to(x.dtype)
        # x' (D - a W) x = (1 - a) x' D x + a x' (D - W) x
        own = (degrees * x**2).sum(-1)
        quadratic = (1 - self.alpha) * own + self.alpha * graph.differences(x)
        eigenvalues = graph.normalised_eigenvalues.to(x.dtype)
        log_det = torch.log1p(-self.alpha[..., None] * eigenvalues).sum(-1) + degrees.log().sum()
        log_norm = size * (math.log(2 * math.pi) - self.precision.log()) - log_det
        return -0.5 * (log_norm + self.precision * quadratic)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Draw by a Cholesky factor of the precision matrix."""
        dtype = self.loc.dtype
        weights, degrees = self.graph.matrix.to(dtype), self.graph.degrees.to(dtype)
        matrix = torch.diag(degrees) - self.alpha[..., None, None] * weights
        root = torch.linalg.cholesky(self.precision[..., None, None] * matrix)
        noise = torch.randn(self._extended_shape(sample_shape), dtype=dtype)
        upper = root.mT.expand((*noise.shape[:-1], *root.shape[-2:]))
        return self.loc + torch.linalg.solve_triangular(upper, noise[..., None], upper=True)[..., 0]
