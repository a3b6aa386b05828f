"""Hamiltonian Monte Carlo: NUTS, and HMC with trajectories of fixed length."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probdl.compile import ENGINES, Evaluator, choose
from probdl.findings import Finding
from probdl.methods.approach import TypicalStarts
from probdl.methods.approximate.pathfinder import pathfinder_draw
from probdl.methods.base import Method
from probdl.methods.mcmc import native_nuts, nutpie_adapter, pyro_nuts
from probdl.methods.mcmc.chains import Chains, posterior_fit, random_start
from probdl.methods.mcmc.funnels import funnel_sites
from probdl.model.density import LogDensity
from probdl.model.program import Program
from probdl.results.chain_fit import ChainFit
from probdl.results.diagnostics import check_energy, check_tree
from probdl.results.fit import Fit

__all__ = ["HMC", "NUTS"]

MASS_MATRICES = ("auto", "diag", "low_rank", "dense")
INITS = ("auto", "random", "pathfinder")
SAMPLERS = ("nutpie", "native")
TRAJECTORY_MAX = 1e3  # 160 periods of a normal posterior
TREEDEPTH_MAX = 30  # a billion gradients for one draw
# Up to this d, learning the correlations takes less than half a second (`make bench-mass`).
LOW_RANK_DIM_MAX = 50


@dataclass(frozen=True, repr=False)
class NUTS(Method, name="nuts"):
    r"""The No-U-Turn sampler.

    .. math:: p(\theta | y) \propto p(y | \theta) p(\theta) \qquad\text{(Eq. 1)}

    A Markov chain on R^d whose stationary distribution is the posterior. Each transition follows
    Hamiltonian dynamics until the trajectory turns back, and selects one of its points. Step size
    and mass matrix are adapted during warm-up, whose draws are discarded. Flat priors are allowed.
    ``pyro.param`` sites have no prior; they are held at their current values, and a finding
    reports them.

    ``stats`` holds, each (chain, draw): ``lp`` (log density on R^d, nats), ``diverging``,
    ``energy``, ``acceptance_rate``, ``step_size``, ``tree_depth``, ``n_steps`` (gradients) and
    ``reached_max_treedepth``.

    Args:
        draws: number of draws that each chain keeps. Default: 1000.
        warmup: number of transitions for adaptation, which are discarded. Default: 1000.
        chains: number of chains; R-hat needs at least two. Default: 4.
        target_accept: acceptance rate to which the step size is adapted. A higher rate means
            smaller steps, which are slower and follow strong curvature better. Default: 0.8.
        max_treedepth: a trajectory has at most 2**max_treedepth - 1 steps. Default: 10.
        mass_matrix: ``"diag"``; ``"low_rank"``, which adds the directions along which the variance
            differs from that of the diagonal by a factor of four or more; ``"dense"``, which has
            all directions; or ``"auto"``, low-rank if d is at most 50 and diagonal otherwise. If
            sites are strongly correlated, low-rank and dense matrices give up to hundreds of times
            more effective draws, but warm-up takes longer, by seconds if d is in the hundreds.
            (With nutpie, a dense matrix is a low-rank one with all directions; Pyro has no
            low-rank matrices and uses dense ones.) Default: ``"auto"``.
        init: starting points of the chains. ``"auto"``: from a random point, uniform(-2, 2) on R^d,
            a short ascent leads to where the density is typical of the posterior. ``"random"``:
            the random points themselves. ``"pathfinder"``: each chain starts at a draw of a
            separate path of :class:`Pathfinder`. A dict of values by site, such as
            ``{"mu": 3.0}``, starts these sites there, as far as the density is typical, and the
            others as ``"auto"``. Default: ``"auto"``.
        engine: ``"native"`` for compiled code and nutpie, ``"eager"`` for Pyro's own evaluation,
            or ``"auto"`` for the first of them that works for the model on this machine.
            Default: ``"auto"``.
        sampler: on the native engine, ``"nutpie"``, or ``"native"`` for the sampler in C of this
            package, whose chains can go on by ``fit.extend``. Default: ``"nutpie"``.

    Raises:
        SettingError: a setting is out of range.
        ModelError: ``engine="native"``, but the model cannot be compiled.

    Example:
        >>> import torch, pyro, pyro.distributions as dist, probdl
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> method = probdl.NUTS(draws=500, chains=2)
        >>> fit = probdl.infer(model, torch.tensor(1.0), method=method, seed=1)
        >>> fit.draws["mu"].shape
        (2, 500)

    Source: Hoffman and Gelman, JMLR 15 (2014); Betancourt, arXiv:1701.02434 (2017).
    """

    fit_type: ClassVar[type[Fit]] = ChainFit

    draws: int = 1000
    warmup: int = 1000
    chains: int = 4
    target_accept: float = 0.8
    max_treedepth: int = 10
    mass_matrix: str = "auto"
    init: str | Mapping[str, Any] = "auto"
    engine: str = "auto"
    sampler: str = "nutpie"

    def __post_init__(self) -> None:
        self._check_int(draws=1, warmup=0, chains=1)
        self._check_choice(sampler=SAMPLERS)
        self._check_int(TREEDEPTH_MAX, max_treedepth=1)
        self._check_real(target_accept=(0, 1))
        self._check_choice(engine=ENGINES, mass_matrix=MASS_MATRICES)
        self._check_init(*INITS)

    def run(self, program: Program, seed: int, progress: bool | None) -> Fit:
        """Fit the program by NUTS."""
        structure = self._discover(program)
        density = self._density(program, structure)
        evaluator, findings = choose(density, self.engine, seed, threads=self.chains)
        mass_matrix = self.mass_matrix
        if mass_matrix == "auto":
            mass_matrix = "low_rank" if density.dim <= LOW_RANK_DIM_MAX else "diag"

        start = _starts(self, density, evaluator, seed)
        own = self.sampler == "native" and evaluator.engine == "native"
        if not own and (evaluator.engine == "eager" or not nutpie_adapter.available(evaluator)):
            kernel = {
                "target_accept_prob": self.target_accept,
                "max_tree_depth": self.max_treedepth,
                "full_mass": mass_matrix != "diag",
            }
            chains = _run_pyro(
                self, pyro_nuts.NUTSKernel, kernel, density, evaluator, start, seed, progress
            )
            reached = chains.stats["tree_depth"] >= self.max_treedepth
            chains.stats["reached_max_treedepth"] = reached
        else:
            chains = (native_nuts if own else nutpie_adapter).run(
                density.dim,
                evaluator,
                start,
                draws=self.draws,
                warmup=self.warmup,
                chains=self.chains,
                target_accept=self.target_accept,
                max_treedepth=self.max_treedepth,
                mass_matrix=mass_matrix,
                seed=seed,
                progress=progress,
            )
        if not own:
            findings += nutpie_adapter.findings(evaluator)
        return self._fit(density, evaluator, chains, seed, findings, start, mass_matrix)

    def extend(self, fit: Fit, draws: int, progress: bool | None) -> Fit:
        """Return a fit with more draws of the same chains; see ``ChainFit.extend``."""
        density = self._density(fit.program, fit.structure)
        evaluator, findings = choose(density, "native", fit.seed, threads=self.chains)
        start = _starts(self, density, evaluator, fit.seed)
        new = native_nuts.run(
            density.dim,
            evaluator,
            start,
            draws=draws,
            warmup=0,
            chains=self.chains,
            target_accept=self.target_accept,
            max_treedepth=self.max_treedepth,
            mass_matrix=fit.stats["mass_matrix"],
            seed=fit.seed,
            progress=progress,
            states=fit.stats["chain_states"],
        )
        z = density.unconstrain(fit.tensors()).numpy()
        chains = replace(
            new,
            z=np.concatenate([z.reshape(fit.num_chains, fit.num_draws, -1), new.z], 1),
            stats={n: np.concatenate([fit.stats[n], of], 1) for n, of in new.stats.items()},
        )
        longer = replace(self, draws=fit.num_draws + new.z.shape[1])
        mass_matrix = fit.stats["mass_matrix"]
        return longer._fit(
            density, evaluator, chains, fit.seed, findings, start, mass_matrix, before=fit.draws
        )

    def _fit(
        self,
        density: LogDensity,
        evaluator: Evaluator,
        chains: Chains,
        seed: int,
        findings: list[Finding],
        start: Callable[[int], Tensor],
        mass_matrix: str,
        *,
        before: Mapping[str, NDArray[Any]] | None = None,
    ) -> Fit:
        """Make the fit of chains, with the findings of the sampler."""
        findings = [
            *findings,
            *check_tree(chains.moving_stats, self.max_treedepth, low_rank=mass_matrix != "diag"),
            *check_energy(chains.moving_stats, funnel_sites(density, chains.z), self.target_accept),
        ]
        modes = start.modes if isinstance(start, TypicalStarts) else []
        fit = posterior_fit(self, density, evaluator, chains, seed, findings, modes, before=before)
        fit.stats["mass_matrix"] = mass_matrix
        return fit


@dataclass(frozen=True, repr=False)
class HMC(Method, name="hmc"):
    r"""Hamiltonian Monte Carlo with trajectories of fixed length.

    .. math:: \alpha = \min\{1, \exp(H(z, r) - H(z', r'))\}

    is the probability that the end (z', r') of a trajectory is accepted, where H is the kinetic
    energy minus the log density. NUTS adapts the length of its trajectories and is the better
    choice in practice. ``stats`` are those of :class:`NUTS`, without the statistics of the tree.

    Args:
        draws: number of draws that each chain keeps. Default: 1000.
        warmup: number of transitions for adaptation, which are discarded. Default: 1000.
        chains: number of chains. Default: 4.
        target_accept: acceptance rate to which the step size is adapted. Default: 0.8.
        trajectory_length: integration time of a trajectory, in units in which the posterior has
            about unit scale. For a normal posterior, a quarter of a period (pi / 2) gives
            independent draws, and a whole period (2 pi) returns to the starting point.
            Default: pi / 2.
        mass_matrix: ``"diag"`` or ``"dense"``. Default: ``"diag"``.
        init: starting points of the chains, as in :class:`NUTS`. Default: ``"auto"``.
        engine: how the density is evaluated, as in :class:`NUTS`; the sampler is always Pyro's.
            Default: ``"auto"``.

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
    init: str | Mapping[str, Any] = "auto"
    engine: str = "auto"

    def __post_init__(self) -> None:
        self._check_int(draws=1, warmup=0, chains=1)
        self._check_real(target_accept=(0, 1), trajectory_length=(0, TRAJECTORY_MAX))
        self._check_choice(engine=ENGINES, mass_matrix=("diag", "dense"))
        self._check_init(*INITS)

    def run(self, program: Program, seed: int, progress: bool | None) -> Fit:
        """Fit the program by HMC."""
        structure = self._discover(program)
        density = self._density(program, structure)
        evaluator, findings = choose(density, self.engine, seed)
        kernel = {
            "target_accept_prob": self.target_accept,
            "trajectory_length": self.trajectory_length,
            "full_mass": self.mass_matrix == "dense",
        }
        start = _starts(self, density, evaluator, seed)
        chains = _run_pyro(
            self, pyro_nuts.HMCKernel, kernel, density, evaluator, start, seed, progress
        )
        del chains.stats["tree_depth"]
        centred = funnel_sites(density, chains.z)
        findings += check_energy(chains.moving_stats, centred, self.target_accept)
        modes = start.modes if isinstance(start, TypicalStarts) else []
        return posterior_fit(self, density, evaluator, chains, seed, findings, modes)


def _starts(
    method: NUTS | HMC, density: LogDensity, evaluator: Evaluator, seed: int
) -> Callable[[int], Tensor]:
    """Return the function that finds the starting point of a chain, given its seed."""
    if method.init == "pathfinder":
        return lambda chain_seed: torch.from_numpy(pathfinder_draw(density, evaluator, chain_seed))
    if method.init == "random":
        return functools.partial(random_start, density, evaluator)
    return TypicalStarts(density, evaluator, seed, method.warmup * method.chains)


def _run_pyro(
    method: Any,
    kernel: Any,
    options: dict[str, Any],
    density: LogDensity,
    evaluator: Evaluator,
    start: Callable[[int], Tensor],
    seed: int,
    progress: bool | None,
) -> Chains:
    """Run Pyro's kernels, with the density evaluated by any engine."""
    seeds = np.random.SeedSequence(seed).generate_state(method.chains, np.uint64)
    return pyro_nuts.run(
        [
            functools.partial(kernel, density.dim, evaluator, start, int(s) >> 1, **options)
            for s in seeds
        ],
        warmup=method.warmup,
        draws=method.draws,
        progress=progress,
    )
