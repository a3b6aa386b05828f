r"""Maximum likelihood.

.. math:: \hat\theta = \arg\max_\theta \frac1N \sum_i \log p(y_i | \theta)
        = \arg\min_\theta \mathrm{KL}(\hat p_{\text{data}} \| p_\theta)

The right side is the reading as a divergence: the mean cross-entropy
:math:`-\frac1N \sum_i \log p(y_i|\theta)` is that divergence plus the entropy of the data, which
no parameter changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from probdl.compile import ENGINES
from probdl.errors import ModelError
from probdl.methods.base import Method
from probdl.methods.point.estimate import point_fit
from probdl.model.density import LogDensity
from probdl.model.program import Program
from probdl.model.sites import discover
from probdl.results.fit import Fit

__all__ = ["MLE"]


@dataclass(frozen=True, repr=False)
class MLE(Method, name="mle"):
    r"""Maximise the likelihood alone.

    .. math:: \hat\theta = \arg\max_\theta \log p(y | \theta), \qquad
        \mathrm{Cov}(\hat\theta) \approx J I(\hat\theta)^{-1} J^\top

    Latent sites are parameters: their priors and Jacobians do not count. ``pyro.param`` sites
    and the parameters of an ``nn.Module`` are optimised too. Discrete latent sites are summed
    out. I is the observed information on R^d, J the Jacobian of the transforms (delta method).

    The fit has one draw, the estimate, and in ``stats``: ``log_likelihood`` (nats),
    ``cross_entropy`` (nats for each observation), ``information`` (d, d) with ``labels``, and
    by site ``standard_error``, ``ci_low`` and ``ci_high`` (Wald intervals). A finding tells
    where the likelihood is flat or has no maximum.

    Args:
        starts: how many starts L-BFGS takes; the best end counts.
        steps: how many iterations each start may take.
        ci_prob: the probability of the Wald intervals.
        engine: what evaluates the density, as in :class:`NUTS`.

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
    engine: str = "auto"

    def __post_init__(self) -> None:
        self._check_int(starts=1, steps=1)
        self._check_real(ci_prob=(0, 1))
        self._check_choice(engine=ENGINES)

    def run(self, program: Program, seed: int, progress: bool | None) -> Fit:
        """Fit the program by maximum likelihood."""
        structure = discover(program)
        if not structure.of("observed", "factor"):
            raise ModelError(
                f"the model '{program.name}' has no observed site on these arguments, so there is "
                "no likelihood to maximise. Give the data to pyro.sample(..., obs=...), and pass "
                "them to infer()."
            )
        density = LogDensity(program, structure, prior=False, jacobian=False, params=True)
        return point_fit(self, program, structure, density, seed, progress)

    def refit(self, fit: Fit, program: Program, seed: int) -> Fit:
        """Fit one of many data sets of the same shapes."""
        structure = fit.structure
        density = LogDensity(program, structure, prior=False, jacobian=False, params=True)
        return point_fit(self, program, structure, density, seed, False, again=True)
