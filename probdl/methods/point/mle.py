r"""Maximum likelihood estimation.

.. math:: \hat\theta = \arg\max_\theta \frac1N \sum_i \log p(y_i | \theta)
        = \arg\min_\theta \mathrm{KL}(\hat p_{\text{data}} \| p_\theta)

The right side holds because the mean cross-entropy :math:`-\frac1N \sum_i \log p(y_i|\theta)` is
that divergence plus the entropy of the data, which does not depend on the parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from probdl.compile import ENGINES
from probdl.errors import ModelError
from probdl.methods.base import Method
from probdl.methods.point.estimate import point_fit
from probdl.model.program import Program
from probdl.model.sites import discover
from probdl.results.fit import Fit

__all__ = ["MLE"]


@dataclass(frozen=True, repr=False)
class MLE(Method, name="mle"):
    r"""Maximum likelihood estimation.

    .. math:: \hat\theta = \arg\max_\theta \log p(y | \theta), \qquad
        \mathrm{Cov}(\hat\theta) \approx J I(\hat\theta)^{-1} J^\top

    Latent sites are parameters: their priors and Jacobians are ignored. ``pyro.param`` sites and
    the parameters of an ``nn.Module`` are optimised as well. Discrete latent sites are summed out.
    I is the observed information on R^d, J the Jacobian of the transforms (delta method).

    The fit has one draw, the estimate, and in ``stats``: ``log_likelihood`` (nats),
    ``cross_entropy`` (nats per observation), ``information`` (d, d) with ``labels``, and
    by site ``standard_error``, ``ci_low`` and ``ci_high`` (Wald intervals). Findings report
    if the likelihood is flat or has no maximum.

    Args:
        starts: number of starting points of L-BFGS; the highest maximum found is used. Default: 4.
        steps: maximal number of iterations from each starting point. Default: 1000.
        ci_prob: probability of the Wald intervals. Default: 0.95.
        init: values of sites at which to start, such as ``{"mu": 3.0}``; the other sites start at
            random points. The first start has the values, the others are near. Default: None.
        engine: how the density is evaluated, as in :class:`NUTS`. Default: ``"auto"``.

    Raises:
        SettingError: a setting is out of range.

    Example:
        >>> import numpy as np, pyro, pyro.distributions as dist, probdl
        >>> def model(y):
        ...     rate = pyro.sample("rate", dist.HalfNormal(1.0))
        ...     pyro.sample("y", dist.Exponential(rate), obs=y)
        >>> fit = probdl.infer(model, np.array([1.0, 2.0, 3.0]), method="mle", seed=1)
        >>> round(fit.draws["rate"].item(), 6)
        0.5

    Source: Casella and Berger, *Statistical Inference*, 2nd ed. (2002), chapters 7 and 10.
    """

    uses_prior: ClassVar[bool] = False

    starts: int = 4
    steps: int = 1000
    ci_prob: float = 0.95
    init: Mapping[str, Any] | None = None
    engine: str = "auto"

    def __post_init__(self) -> None:
        self._check_int(starts=1, steps=1)
        self._check_real(ci_prob=(0, 1))
        self._check_choice(engine=ENGINES)
        self._check_init()

    def run(self, program: Program, seed: int, progress: bool | None) -> Fit:
        """Fit the program by maximum likelihood."""
        structure = discover(program)
        if not structure.of("observed", "factor"):
            raise ModelError(
                f"The model '{program.name}' has no observed site on these arguments, so there is "
                "no likelihood to maximise. Give the data to pyro.sample(..., obs=...), and pass "
                "them to infer()."
            )
        density = self._density(program, structure, prior=False, jacobian=False, params=True)
        return point_fit(self, program, structure, density, seed, progress)

    def refit(self, fit: Fit, program: Program, seed: int) -> Fit:
        """Fit one of many data sets of the same shapes."""
        structure = fit.structure
        density = self._density(program, structure, prior=False, jacobian=False, params=True)
        return point_fit(self, program, structure, density, seed, False, again=True)
