"""Hamiltonian Monte Carlo: NUTS, and the original with trajectories of fixed length."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from probdl.density import LogDensity
from probdl.diagnostics import Finding, check_energy, check_tree
from probdl.errors import SettingError
from probdl.fit import Fit
from probdl.methods import eager
from probdl.methods.base import Method
from probdl.methods.held import held_params
from probdl.program import Program
from probdl.sites import discover

__all__ = ["HMC", "NUTS"]

_ENGINES = ("auto", "native", "eager")
_MASS_MATRICES = ("diag", "dense")


@dataclass(frozen=True)
class NUTS(Method, name="nuts"):
    r"""Draw from the posterior by the No-U-Turn sampler.

    .. math:: p(\theta | y) \propto p(y | \theta) p(\theta) \qquad\text{(Eq. 1)}

    A Markov chain on R^d whose stationary distribution is the posterior: each transition follows
    Hamiltonian dynamics until the trajectory turns back, and picks a point of it. Step size and
    mass matrix are adapted during warm-up, whose draws are left out. Flat priors are fine.
    ``pyro.param`` sites have no prior; they are held at their present values, and a finding says
    so.

    ``stats`` holds, each (chain, draw): ``lp`` (log density on R^d, nats), ``diverging``,
    ``energy``, ``acceptance_rate``, ``step_size``, ``tree_depth``, ``n_steps`` (gradients) and
    ``reached_max_treedepth``.

    Args:
        draws: how many draws each chain keeps.
        warmup: how many transitions adapt first.
        chains: how many chains; R-hat needs at least two.
        target_accept: the acceptance rate that the step size is adapted to; higher means
            smaller steps, slower and safer.
        max_treedepth: a trajectory has at most 2**max_treedepth - 1 steps.
        mass_matrix: ``"diag"`` or ``"dense"``, for strongly correlated posteriors of moderate d.
        engine: ``"eager"`` is Pyro as it is; ``"auto"`` takes the fastest there is.

    Raises:
        SettingError: a setting is out of range.

    Example:
        >>> import torch, pyro, pyro.distributions as dist, probdl
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> method = probdl.NUTS(draws=250, warmup=150, chains=2)
        >>> fit = probdl.infer(model, torch.tensor(1.0), method=method, seed=1)
        >>> fit.draws["mu"].shape
        (2, 250)

    Source: Hoffman and Gelman, JMLR 15 (2014); Betancourt, arXiv:1701.02434 (2017).
    """

    draws: int = 1000
    warmup: int = 1000
    chains: int = 4
    target_accept: float = 0.8
    max_treedepth: int = 10
    mass_matrix: str = "diag"
    engine: str = "auto"

    def __post_init__(self) -> None:
        self._check_int(draws=1, warmup=0, chains=1, max_treedepth=1)
        self._check_real(target_accept=(0, 1))
        self._check_choice(engine=_ENGINES, mass_matrix=_MASS_MATRICES)
        _check_engine(self.engine)

    def run(self, program: Program, seed: int, progress: bool | None) -> Fit:
        """Fit the program by NUTS."""
        kernel = {
            "target_accept_prob": self.target_accept,
            "max_tree_depth": self.max_treedepth,
            "full_mass": self.mass_matrix == "dense",
        }
        fit = _sample(self, eager.NUTSKernel, kernel, program, seed, progress)
        fit.stats["reached_max_treedepth"] = fit.stats["tree_depth"] >= self.max_treedepth
        findings = [*fit.findings, *check_tree(fit.stats, self.max_treedepth)]
        return replace(fit, findings=findings)


@dataclass(frozen=True)
class HMC(Method, name="hmc"):
    r"""Draw from the posterior by Hamiltonian Monte Carlo with trajectories of fixed length.

    .. math:: \alpha = \min\{1, \exp(H(z, r) - H(z', r'))\}

    is the probability that the end (z', r') of a trajectory is accepted, where H is minus the
    log density plus the kinetic energy. NUTS finds the length by itself and is the better choice
    but for study. ``stats`` are those of :class:`NUTS`, without the tree.

    Args:
        draws: how many draws each chain keeps.
        warmup: how many transitions adapt first.
        chains: how many chains.
        target_accept: the acceptance rate that the step size is adapted to.
        trajectory_length: the time that a trajectory takes, in units in which the posterior has
            about unit scale. A quarter period, pi / 2, makes draws from a normal posterior
            independent; a whole one, 2 pi, would bring each back to where it started.
        mass_matrix: ``"diag"`` or ``"dense"``.
        engine: ``"eager"`` is Pyro as it is; ``"auto"`` takes the fastest there is.

    Raises:
        SettingError: a setting is out of range.

    Example:
        >>> import probdl
        >>> probdl.HMC(draws=500).chains
        4

    Source: Neal, "MCMC using Hamiltonian dynamics", *Handbook of Markov Chain Monte Carlo* (2011).
    """

    draws: int = 1000
    warmup: int = 1000
    chains: int = 4
    target_accept: float = 0.8
    trajectory_length: float = math.pi / 2
    mass_matrix: str = "diag"
    engine: str = "auto"

    def __post_init__(self) -> None:
        self._check_int(draws=1, warmup=0, chains=1)
        self._check_real(target_accept=(0, 1), trajectory_length=(0, math.inf))
        self._check_choice(engine=_ENGINES, mass_matrix=_MASS_MATRICES)
        _check_engine(self.engine)

    def run(self, program: Program, seed: int, progress: bool | None) -> Fit:
        """Fit the program by HMC."""
        kernel = {
            "target_accept_prob": self.target_accept,
            "trajectory_length": self.trajectory_length,
            "full_mass": self.mass_matrix == "dense",
        }
        fit = _sample(self, eager.HMCKernel, kernel, program, seed, progress)
        del fit.stats["tree_depth"]
        return fit


def _check_engine(engine: str) -> None:
    if engine == "native":
        raise SettingError("engine='native' is not built yet; use 'auto' or 'eager'.")


def _sample(
    method: Any,
    kernel: Any,
    options: dict[str, Any],
    program: Program,
    seed: int,
    progress: bool | None,
) -> Fit:
    structure = discover(program)
    density = LogDensity(program, structure)
    seeds = np.random.SeedSequence(seed).generate_state(method.chains, np.uint64)
    chains = eager.run(
        density,
        [kernel(density, int(s) >> 1, **options) for s in seeds],
        warmup=method.warmup,
        draws=method.draws,
        progress=progress,
    )
    values = density.constrain(torch.from_numpy(chains.z), deterministic=True)
    findings = [*held_params(structure), *check_energy(chains.stats)]
    if (count := chains.z.shape[1]) < method.draws:
        findings.append(
            Finding(
                "warning",
                "interrupted",
                f"interrupted after {count} of {method.draws} draws a chain; those are returned.",
                "Run it again with the same seed for all of them.",
            )
        )
    draws = {name: value.numpy() for name, value in values.items()}
    return Fit(method, program, structure, draws, chains.stats, seed, findings)
