"""The Laplace approximation: a normal density at the mode on R^d."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from probdl.compile import ENGINES, choose
from probdl.errors import ModelError
from probdl.findings import TAIL_DRAWS_MIN
from probdl.io.pareto import psis
from probdl.methods.angles import unwound
from probdl.methods.approximate.comparison import compare_with_density
from probdl.methods.base import Method
from probdl.methods.fixed_params import held_params
from probdl.methods.modes import Mode
from probdl.methods.point.collapse import check_collapse
from probdl.methods.point.optimum import (
    DENSE_MAX,
    Optimum,
    curvature,
    largest,
    maximise,
    site_names,
)
from probdl.model.program import Program
from probdl.results.fit import Fit
from probdl.results.weights import check_approximation
from probdl.util.blas import one_torch_thread

__all__ = ["Laplace"]


@dataclass(frozen=True, repr=False)
class Laplace(Method, name="laplace"):
    r"""The Laplace approximation: a normal density on R^d at the mode of the posterior.

    .. math:: p(z | y) \approx N(\hat z, H^{-1}), \qquad
        \log p(y) \approx \log p(\hat z, y) + \tfrac d2 \log 2\pi - \tfrac12 \log |H|

    where z are the sites on R^d, with the Jacobians of their transforms in the density, and H is
    minus the Hessian of log p(z, y) at the mode, for d up to 1,000. It is exact if the posterior is
    normal on R^d.

    The fit has one chain of independent draws, and in ``stats``: ``log_evidence`` (nats),
    ``pareto_k`` (of the importance ratios of the draws, by ArviZ), ``log_weights`` (logarithms of
    the Pareto-smoothed and normalised weights, one per draw), ``mode`` and ``covariance`` on R^d
    with ``labels``, and ``lp``, the exact log density of each draw.

    Args:
        draws: number of draws, at least 25. Default: 1000.
        starts: number of starting points of L-BFGS; the highest mode found is used. Default: 4.
        steps: maximal number of iterations from each starting point. Default: 1000.
        init: values of sites at which to start, such as ``{"mu": 3.0}``; the other sites start at
            random points. The first start has the values, the others are near. Default: None.
        engine: how the density is evaluated, as in :class:`NUTS`. Default: ``"auto"``.

    Raises:
        SettingError: a setting is out of range.
        ModelError: the posterior has no curvature along some direction at its mode, so there is no
            normal approximation.

    Example:
        >>> import torch, pyro, pyro.distributions as dist, probdl
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> fit = probdl.infer(model, torch.tensor(1.0), method="laplace", seed=1)
        >>> exact = dist.Normal(0.0, 2**0.5).log_prob(torch.tensor(1.0)).item()
        >>> abs(fit.stats["log_evidence"] - exact) < 1e-6
        True

    Source: MacKay, *Information Theory, Inference, and Learning Algorithms* (2003), chapter 27.
    """

    draws_are_independent: ClassVar[bool] = True

    draws: int = 1000
    starts: int = 4
    steps: int = 1000
    init: Mapping[str, Any] | None = None
    engine: str = "auto"

    def __post_init__(self) -> None:
        self._check_int(draws=TAIL_DRAWS_MIN, starts=1, steps=1)
        self._check_choice(engine=ENGINES)
        self._check_init()

    def run(self, program: Program, seed: int, progress: bool | None) -> Fit:
        """Fit the program by a normal density at the mode."""
        structure = self._discover(program)
        density = self._density(program, structure)
        generator = torch.Generator().manual_seed(seed)
        if density.dim > DENSE_MAX:
            raise ModelError(
                f"The model '{program.name}' has {density.dim} dimensions. Laplace needs the "
                f"Hessian, which is computed for up to {DENSE_MAX} dimensions. Use method='nuts' "
                "or 'map'."
            )
        evaluator, findings = choose(density, self.engine, seed)
        optimum = maximise(density, evaluator, self.starts, self.steps, generator, progress)
        if optimum.ended is not None:
            raise optimum.ended
        if optimum.information is None:
            raise ModelError(
                f"The log posterior density of '{program.name}' has its maximum at the edge of a "
                "support, so there is no normal approximation. Use a prior whose density is zero "
                "at the edge, or method='nuts'."
            )
        parts = curvature(optimum.information, optimum.z)
        if parts.vectors.shape[1] < density.dim:
            not_concave = torch.cat([parts.flat, parts.rising], 1)
            labels = largest(density.labels, not_concave.norm(dim=1))
            remedy = "Give those sites a proper prior, or use method='nuts'."
            sites = [structure.sites.get(name) for name in site_names(labels)]
            proper = all(s is not None and s.kind == "latent" and not s.flat for s in sites)
            if optimum.kinked and not check_collapse(density, optimum.z):
                remedy = (
                    "It has kinks there, as with ReLU activations. Use a smooth activation, such "
                    "as torch.nn.Tanh or torch.nn.SiLU, or method='svi'."
                )
            elif proper:
                remedy = (
                    "Their priors do not prevent it: use method='nuts', or for a scale a prior "
                    "whose density is 0 at 0, such as LogNormal or InverseGamma."
                )
            raise ModelError(
                f"The log posterior density of '{program.name}' has no strict maximum at the point "
                f"found: it is flat or curves upwards along {', '.join(labels)}, so there is no "
                f"normal approximation. {remedy}"
            )
        # z = mode + root @ noise, with standard normal noise, has the covariance root @ root.T.
        root = parts.vectors / parts.values.sqrt()
        noise = torch.randn(self.draws, density.dim, generator=generator, dtype=torch.float64)
        z = optimum.z + noise @ root.T
        log_2pi = density.dim * math.log(2 * math.pi)
        with one_torch_thread():
            log_root = float(torch.linalg.slogdet(root)[1])
        log_normal = -0.5 * (log_2pi + noise.square().sum(1)) - log_root
        lp = density.batch(z)
        log_weights, pareto_k = psis((lp - log_normal).nan_to_num(nan=-math.inf).numpy())
        angles = torch.from_numpy(unwound(density, evaluator, z.numpy()))
        values = density.constrain(angles[None], deterministic=True)
        stats = {
            "lp": lp.numpy()[None],
            "log_evidence": optimum.value + 0.5 * log_2pi + log_root,
            "pareto_k": pareto_k,
            "log_weights": log_weights[None],
            "mode": optimum.z.numpy(),
            "covariance": parts.covariance.numpy(),
            "labels": density.labels,
            "engine": evaluator.engine,
        }
        compared = compare_with_density(
            density, evaluator, z.numpy(), seed, _modes(optimum, optimum.information)
        )
        findings += [
            *optimum.findings,
            *check_approximation(
                {name: values[name][0].numpy() for name in density.blocks},
                log_weights,
                pareto_k,
                "the normal approximation",
                reference=compared.reference,
            ),
            *compared.findings,
            *held_params(structure),
        ]
        draws = {name: value.numpy() for name, value in values.items()}
        return Fit(self, program, structure, draws, stats, seed, findings)


@one_torch_thread()
def _modes(optimum: Optimum, information: Tensor) -> list[Mode]:
    """Return the optima from all starts, as normal densities."""
    modes = []
    for z, value, curved in [(optimum.z, optimum.value, information), *optimum.others]:
        root, failed = torch.linalg.cholesky_ex(curved)
        if failed:  # no maximum
            continue
        sd = torch.cholesky_inverse(root).diagonal().sqrt()
        log_mass = value - float(root.diagonal().log().sum())
        modes.append(Mode(z.numpy(), sd.numpy(), log_mass))
    return modes
