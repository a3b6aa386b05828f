"""Maximum a posteriori estimation: the mode of the posterior density of the sites."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from probdl.compile import ENGINES
from probdl.methods.base import Method
from probdl.methods.point.estimate import point_fit
from probdl.model.program import Program
from probdl.model.sites import discover
from probdl.results.fit import Fit

__all__ = ["MAP"]


@dataclass(frozen=True, repr=False)
class MAP(Method, name="map"):
    r"""Maximum a posteriori estimation, in the constrained space of the sites.

    .. math:: \hat\theta = \arg\max_\theta \log p(y | \theta) + \log p(\theta)
        \qquad\text{(the mode of Eq. 1)}

    The density has no Jacobians: the mode is that of the sites as they appear in the model, as in
    Stan's ``optimize``. With flat priors it is the maximum likelihood estimate. ``pyro.param``
    sites and the parameters of an ``nn.Module`` have no prior, and are optimised as well.

    The fit has one draw, and the same ``stats`` as :class:`MLE`, but with the curvature of the
    posterior density instead of the likelihood.

    Args:
        starts: number of starting points of L-BFGS; the highest maximum found is used. Default: 4.
        steps: maximal number of iterations from each starting point. Default: 1000.
        ci_prob: probability of the intervals. Default: 0.95.
        init: values of sites at which to start, such as ``{"mu": 3.0}``; the other sites start at
            random points. The first start has the values, the others are near. Default: None.
        engine: how the density is evaluated, as in :class:`NUTS`. Default: ``"auto"``.

    Raises:
        SettingError: a setting is out of range.

    Example:
        >>> import numpy as np, pyro, pyro.distributions as dist, probdl
        >>> def model(y):
        ...     p = pyro.sample("p", dist.Beta(2.0, 2.0))
        ...     pyro.sample("y", dist.Bernoulli(p), obs=y)
        >>> fit = probdl.infer(model, np.array([1, 1, 0]), method="map", seed=1)
        >>> round(fit.draws["p"].item(), 6)        # (2 + 2 - 1) / (3 + 4 - 2)
        0.6

    Source: Gelman et al., *Bayesian Data Analysis*, 3rd ed. (2013), chapter 13.
    """

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
        """Fit the program by the posterior mode."""
        structure = discover(program)
        density = self._density(program, structure, jacobian=False, params=True)
        return point_fit(self, program, structure, density, seed, progress)

    def refit(self, fit: Fit, program: Program, seed: int) -> Fit:
        """Fit one of many data sets of the same shapes."""
        density = self._density(program, fit.structure, jacobian=False, params=True)
        return point_fit(self, program, fit.structure, density, seed, False, again=True)
