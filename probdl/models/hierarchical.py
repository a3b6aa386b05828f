"""Hierarchical models."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
from torch import Tensor

__all__ = ["eight_schools"]


def eight_schools(sigma: Tensor, y: Tensor | None = None) -> None:
    r"""Partially pooled effects of coaching in eight schools, in non-centred parametrisation.

    .. math:: \mu \sim N(0, 5), \quad \tau \sim \mathrm{HalfCauchy}(5), \quad
        \theta_j = \mu + \tau \tilde\theta_j, \quad \tilde\theta_j \sim N(0, 1), \quad
        y_j \sim N(\theta_j, \sigma_j)

    Args:
        sigma: the standard error of each school's estimate, in points, shape (J,).
        y: each school's estimated effect, in points, shape (J,).

    Source: Rubin, "Estimation in parallel randomized experiments" (1981); *BDA3*, section 5.5.

    >>> import torch, pyro
    >>> pyro.poutine.trace(eight_schools).get_trace(torch.ones(8)).nodes["theta"]["value"].shape
    torch.Size([8])
    """
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(sigma)):
        theta_trans = pyro.sample("theta_trans", dist.Normal(0.0, 1.0))
        theta = pyro.deterministic("theta", mu + tau * theta_trans)
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)
