"""Hamiltonian Monte Carlo: NUTS, and HMC with trajectories of fixed length."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probdl.compile import ENGINES, Evaluator, choose
from probdl.compile.kernels.nuts import RECORD
from probdl.errors import DataError, ModelError
from probdl.findings import Finding
from probdl.methods.angles import unwind
from probdl.methods.approach import TypicalStarts, find_modes
from probdl.methods.approximate.pathfinder import pathfinder_draw
from probdl.methods.base import Method
from probdl.methods.mcmc import native_nuts, nutpie_adapter, pyro_nuts
from probdl.methods.mcmc.blocks import Blocks, continued
from probdl.methods.mcmc.chains import Chains, constrained, posterior_fit, random_start
from probdl.methods.mcmc.continuation import EarlierDraws
from probdl.methods.mcmc.funnels import funnel_sites
from probdl.methods.mcmc.restarts import restarted
from probdl.methods.mcmc.watching import Until, Watch
from probdl.methods.mcmc.workers import on_workers
from probdl.methods.modes import Mode
from probdl.methods.training.checkpoint import Checkpoint, identity_of
from probdl.model.density import LogDensity
from probdl.model.fingerprint import fingerprint
from probdl.model.program import Program
from probdl.model.sites import centred_sites
from probdl.results.chain_fit import ChainFit
from probdl.results.diagnostics import check_energy, check_tree
from probdl.results.fit import Fit
from probdl.util.settings import check_path, check_workers, plain

__all__ = ["HMC", "NUTS"]

MASS_MATRICES = ("auto", "diag", "low_rank", "dense")
INITS = ("auto", "random", "pathfinder")
SAMPLERS = ("native", "nutpie")
# Settings that need the first.
OF_NATIVE = ("chain_ids", "until", "start", "checkpoint", "callback", "out", "executor")
OF_CHAINS = ("restarted_chain", "chain_failed")  # findings on chains that stay with them
OF_THIS_PROCESS = ("until", "start", "checkpoint", "callback", "out")
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
            all directions; or ``"auto"``, diagonal, and low-rank from where the first draws show
            such a direction. If sites are strongly correlated, low-rank and dense matrices give up
            to hundreds of times more effective draws. (By ``sampler="nutpie"`` and on the eager
            engine, ``"auto"`` is low-rank if d is at most 50 and diagonal otherwise; Pyro has no
            low-rank matrices and uses dense ones.) Default: ``"auto"``.
        init: starting points of the chains. ``"auto"``: from a random point, uniform(-2, 2) on R^d,
            a short ascent leads to where the density is typical of the posterior. ``"random"``:
            the random points themselves. ``"pathfinder"``: each chain starts at a draw of a
            separate path of :class:`Pathfinder`. A dict of values by site, such as
            ``{"mu": 3.0}``, starts these sites there, as far as the density is typical, and the
            others as ``"auto"``. Default: ``"auto"``.
        engine: ``"native"`` for compiled code, ``"eager"`` for Pyro's own evaluation and sampler,
            or ``"auto"`` for the first of them that works for the model on this machine.
            Default: ``"auto"``.
        sampler: ``"native"`` for the sampler in C of this package, whose chains can go on by
            ``fit.extend``, and which the settings below need; or ``"nutpie"``, for comparison, if
            that is installed (``pip install 'probdl[nutpie]'``). Default: ``"native"``.
        chain_ids: the numbers of the chains to run, from 0, such as ``[2]`` of 4: separate jobs,
            whose fits :func:`probdl.concat` joins to that of one run, unless that ran a chain
            again from where others were. None means all.
            Default: None.
        until: a :class:`probdl.Until`: after ``draws``, the chains go on until they have enough
            effective draws. Default: None.
        start: a fit of a model with the same latent sites, by any method, such as to earlier data
            or with another prior: each chain starts at one of its draws, with the metric that
            these draws and the gradients there give, and warm-up takes a fifth of ``warmup``, but
            at least 100 transitions. Default: None.
        checkpoint: a folder where the chains are saved every few seconds. After a kill, the same
            call goes on from there, and gives the same draws, bit for bit, as if it had not been
            killed; with more ``draws``, it adds to them. Default: None.
        callback: a function that is called about once a second with a ``Watch``: ``num_draws``,
            ``divergences``, ``step_sizes``, ``rhat`` and ``ess`` so far. If it returns False, the
            run ends with the draws so far. Default: None.
        out: a folder to which the draws are written, as ``<site>.npy``, and to which ``fit.draws``
            are memory-mapped: for more draws than the memory holds. The disk must hold them twice
            while the chains run. Excludes ``until`` and ``checkpoint``. Default: None.
        executor: runs the chains on its workers: a ``concurrent.futures.Executor``, or a Dask
            ``Client``. The draws are the same. Excludes ``until``, ``start``,
            ``checkpoint``, ``callback`` and ``out``. Default: None.

    Raises:
        SettingError: a setting is out of range, or ``out`` cannot be written.
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
    sampler: str = "native"
    chain_ids: Sequence[int] | None = None
    # They act during the run only.
    until: Until | None = field(default=None, repr=False, metadata={"saved": False})
    checkpoint: str | os.PathLike[str] | None = field(
        default=None, repr=False, metadata={"saved": False}
    )
    start: Fit | None = field(default=None, repr=False, metadata={"saved": False})
    callback: Callable[[Watch], Any] | None = field(
        default=None, repr=False, metadata={"saved": False}
    )
    out: str | os.PathLike[str] | None = field(default=None, repr=False, metadata={"saved": False})
    executor: Any = field(default=None, repr=False, metadata={"saved": False})

    def __post_init__(self) -> None:
        self._check_int(draws=1, warmup=0, chains=1)
        self._check_choice(sampler=SAMPLERS)
        self._check_watching()
        self._check_int(TREEDEPTH_MAX, max_treedepth=1)
        self._check_real(target_accept=(0, 1))
        self._check_choice(engine=ENGINES, mass_matrix=MASS_MATRICES)
        self._check_init(*INITS)

    def _check_watching(self) -> None:
        """Check the settings that need the sampler in C."""
        ids = self.chain_ids
        if ids is not None:
            listed = isinstance(ids, (Sequence, np.ndarray, range)) and not isinstance(ids, str)
            given = [plain(i) for i in ids] if listed else []
            right = all(type(i) is int and 0 <= i < self.chains for i in given)
            if not given or not right or len(set(given)) < len(given):
                self._refuse("chain_ids", f"must be different numbers from 0 to {self.chains - 1}")
            object.__setattr__(self, "chain_ids", tuple(given))
        if self.until is not None and not isinstance(self.until, Until):
            self._refuse("until", "must be a probdl.Until")
        if self.callback is not None and not callable(self.callback):
            self._refuse("callback", "must be a function")
        if self.start is not None and not isinstance(self.start, Fit):
            self._refuse("start", "must be a fit")
        if self.start is not None and self.init != "auto":
            self._refuse("start", "cannot be combined with init; chains start at draws of the fit")
        check_path(type(self).__name__, checkpoint=self.checkpoint, out=self.out)
        for name in ("until", "checkpoint"):  # which hold all draws in memory
            if self.out is not None and getattr(self, name) is not None:
                self._refuse("out", f"cannot be combined with {name}")
        check_workers(type(self).__name__, None, self.executor)
        for name in OF_THIS_PROCESS:
            if self.executor is not None and getattr(self, name) is not None:
                self._refuse("executor", f"cannot be combined with {name}")
        for name in OF_NATIVE:
            if getattr(self, name) is not None and self.sampler != "native":
                self._refuse(name, "needs sampler='native'")

    def run(self, program: Program, seed: int, progress: bool | None) -> Fit:
        """Fit the program by NUTS."""
        structure = self._discover(program)
        density = self._density(program, structure)
        if any(getattr(self, name) is not None for name in OF_NATIVE):
            evaluator, findings = self._compiled(density, seed)
        else:
            evaluator, findings = choose(density, self.engine, seed, threads=self.chains)
        own = self.sampler == "native" and native_nuts.available(evaluator)
        by_nutpie = self.sampler == "nutpie" and nutpie_adapter.available(evaluator)
        earlier = None if self.start is None else EarlierDraws(self.start, density, evaluator)
        start = _starts(self, density, evaluator, seed) if earlier is None else earlier
        mass_matrix = self.mass_matrix
        if mass_matrix == "auto" and not own:
            mass_matrix = "low_rank" if density.dim <= LOW_RANK_DIM_MAX else "diag"
        if not own and not by_nutpie:
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
            sampler = native_nuts.run if own else nutpie_adapter.run
            sample = self._sampler(sampler, density, evaluator, start, mass_matrix, seed, progress)
            if self.out is not None:
                sample = functools.partial(sample, out=self.out)

            def sample_first(draws: int, **options: Any) -> Chains:
                if self.executor is not None:
                    ids = range(self.chains) if self.chain_ids is None else self.chain_ids
                    found = on_workers(self, program, seed, ids, progress)
                else:
                    found = sample(draws=draws, **options)
                goes_on = "states" in options or self.chain_ids is not None
                return found if goes_on else restarted(found, sample, draws, seed)

            if own:
                blocks = Blocks(self.draws, self.until, self._checkpoint(seed, density))
                chains = blocks.sample(
                    functools.partial(sample_first, callback=self.callback),
                    {"chain_ids": self.chain_ids, "earlier": earlier},
                    density.dim,
                )
            else:
                chains = sample_first(self.draws)
        if self.sampler == "nutpie":
            findings += nutpie_adapter.findings(evaluator)
        if mass_matrix == "auto":
            learned = any(len(state["variances"]) for state in chains.states)
            mass_matrix = "low_rank" if learned else "diag"
        method = self
        if any(getattr(self, name) is not None for name in OF_NATIVE if name != "chain_ids"):
            count = chains.z.shape[1]  # as if it had been known before
            method = replace(
                self,
                draws=count,
                until=None,
                start=None,
                callback=None,
                checkpoint=None,
                out=None,
                executor=None,
            )
        if chains.kept and own:  # the others failed, or had not begun
            ids = range(self.chains) if self.chain_ids is None else self.chain_ids
            method = replace(method, chain_ids=[ids[i] for i in chains.kept])
        return method._fit(
            density, evaluator, chains, seed, findings, start, mass_matrix, out=self.out
        )

    def run_chains(self, program: Program, seed: int, ids: Sequence[int]) -> Chains:
        """Run some of the chains of ``run``, by the sampler in C."""
        density = self._density(program, self._discover(program))
        evaluator, _ = self._compiled(density, seed)
        start = _starts(self, density, evaluator, seed)
        kind, run = self.mass_matrix, native_nuts.run
        sample = self._sampler(run, density, evaluator, start, kind, seed, progress=False)
        return sample(draws=self.draws, chain_ids=ids)

    def _compiled(self, density: LogDensity, seed: int) -> tuple[Evaluator, list[Finding]]:
        """Choose the engine for a density, whose chains need the sampler in C."""
        evaluator, findings = choose(density, self.engine, seed, threads=self.chains)
        if not native_nuts.available(evaluator):
            why = next((f.message for f in findings if f.check == "engine"), "engine='eager'.")
            raise ModelError(f"The chains need compiled code. {why}")
        return evaluator, findings

    def _sampler(
        self,
        run: Callable[..., Chains],
        density: LogDensity,
        evaluator: Evaluator,
        start: Callable[[int], Tensor],
        mass_matrix: str,
        seed: int,
        progress: bool | None,
    ) -> Callable[..., Chains]:
        return functools.partial(
            run,
            density.dim,
            evaluator,
            find_start=start,
            warmup=self.warmup,
            chains=self.chains,
            target_accept=self.target_accept,
            max_treedepth=self.max_treedepth,
            mass_matrix=mass_matrix,
            seed=seed,
            progress=progress,
        )

    def _checkpoint(self, seed: int, density: LogDensity) -> Checkpoint | None:
        if self.checkpoint is None:
            return None
        exempt = ("checkpoint", "draws", "until", "callback", "start", "out", "executor")
        identity = identity_of(self, seed, density.labels, density.program, exempt)
        identity["start"] = "None"
        if self.start is not None:
            draws = [torch.from_numpy(np.asarray(of)) for of in self.start.draws.values()]
            identity["start"] = fingerprint(draws)
        return Checkpoint(self.checkpoint, 1, identity)

    def extend(self, fit: Fit, draws: int, progress: bool | None) -> Fit:
        """Return a fit with more draws of the same chains; see ``ChainFit.extend``."""
        density = self._density(fit.program, fit.structure)
        evaluator, findings = self._compiled(density, fit.seed)
        findings += [f for f in fit.findings if f.check in OF_CHAINS]
        start = _starts(self, density, evaluator, fit.seed)
        sample = functools.partial(
            native_nuts.run,
            density.dim,
            evaluator,
            start,
            warmup=0,
            chains=self.chains,
            target_accept=self.target_accept,
            max_treedepth=self.max_treedepth,
            mass_matrix=fit.stats["mass_matrix"],
            seed=fit.seed,
            progress=progress,
        )
        chains = _chains_of(density, fit)
        native_nuts.check_density(
            chains,
            evaluator,
            ModelError(
                f"The model '{fit.program.name}' has another density at the last draws than when "
                "they were drawn, so its chains cannot go on. Use the model that was fitted, with "
                "the values that it took from its surroundings."
            ),
        )
        chains = continued(chains, sample, draws, progress)
        longer = replace(self, draws=chains.z.shape[1])
        mass_matrix = fit.stats["mass_matrix"]
        unwind(density, evaluator, chains.z)
        draws_of = constrained(density, chains.z, fit.draws)
        return longer._fit(
            density, evaluator, chains, fit.seed, findings, start, mass_matrix, draws=draws_of
        )

    def join(self, fits: Sequence[Fit]) -> Fit:
        """Return a fit with the chains of several fits; see ``probdl.concat``."""
        first = fits[0]
        density = self._density(first.program, first.structure)
        evaluator, findings = choose(density, self.engine, first.seed, threads=self.chains)
        of_chains = OF_CHAINS if self.chain_ids is not None else OF_CHAINS[:1]  # none is missing
        findings += [f for fit in fits for f in fit.findings if f.check in of_chains]
        start = _starts(self, density, evaluator, first.seed)
        parts = [_chains_of(density, fit) for fit in fits]
        for i, part in enumerate(parts):
            native_nuts.check_density(
                part,
                evaluator,
                DataError(
                    f"The model of fit {i} has another density than that of the first. Join fits "
                    "of one model, with the same values from its surroundings."
                ),
            )
        chains = Chains(
            np.concatenate([part.z for part in parts]),
            {n: np.concatenate([part.stats[n] for part in parts]) for n in parts[0].stats},
            states=[state for part in parts for state in part.states],
        )
        draws = {n: np.concatenate([fit.draws[n] for fit in fits]) for n in first.draws}
        mass_matrix = first.stats["mass_matrix"]
        return self._fit(
            density, evaluator, chains, first.seed, findings, start, mass_matrix, draws=draws
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
        draws: Mapping[str, NDArray[Any]] | None = None,
        out: str | os.PathLike[str] | None = None,
    ) -> Fit:
        """Make the fit of chains, with the findings of the sampler."""
        findings = [
            *findings,
            *check_tree(chains.moving_stats, self.max_treedepth, low_rank=mass_matrix != "diag"),
            *_check_energy(density, chains, self.target_accept),
        ]
        modes = functools.partial(_modes, density, evaluator, seed, start)
        fit = posterior_fit(
            self, density, evaluator, chains, seed, findings, modes, draws=draws, out=out
        )
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
        executor: runs the chains on its workers: a ``concurrent.futures.Executor``, or a Dask
            ``Client``. The draws are the same. Default: None.

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
    executor: Any = field(default=None, repr=False, metadata={"saved": False})

    def __post_init__(self) -> None:
        self._check_int(draws=1, warmup=0, chains=1)
        check_workers(type(self).__name__, None, self.executor)
        self._check_real(target_accept=(0, 1), trajectory_length=(0, TRAJECTORY_MAX))
        self._check_choice(engine=ENGINES, mass_matrix=("diag", "dense"))
        self._check_init(*INITS)

    def run(self, program: Program, seed: int, progress: bool | None) -> Fit:
        """Fit the program by HMC."""
        structure = self._discover(program)
        density = self._density(program, structure)
        evaluator, findings = choose(density, self.engine, seed)
        start = _starts(self, density, evaluator, seed)
        ids = range(self.chains)
        if self.executor is not None:
            chains = on_workers(self, program, seed, ids, progress)
        else:
            chains = self._sample(density, evaluator, start, seed, ids, progress)
        del chains.stats["tree_depth"]
        findings += _check_energy(density, chains, self.target_accept)
        modes = functools.partial(_modes, density, evaluator, seed, start)
        method = replace(self, executor=None)
        return posterior_fit(method, density, evaluator, chains, seed, findings, modes)

    def run_chains(self, program: Program, seed: int, ids: Sequence[int]) -> Chains:
        """Run some of the chains of ``run``."""
        density = self._density(program, self._discover(program))
        evaluator, _ = choose(density, self.engine, seed)
        start = _starts(self, density, evaluator, seed)
        return self._sample(density, evaluator, start, seed, ids, progress=False)

    def _sample(
        self,
        density: LogDensity,
        evaluator: Evaluator,
        start: Callable[[int], Tensor],
        seed: int,
        ids: Sequence[int],
        progress: bool | None,
    ) -> Chains:
        kernel = {
            "target_accept_prob": self.target_accept,
            "trajectory_length": self.trajectory_length,
            "full_mass": self.mass_matrix == "dense",
        }
        of = pyro_nuts.HMCKernel
        return _run_pyro(self, of, kernel, density, evaluator, start, seed, progress, ids)


def _check_energy(density: LogDensity, chains: Chains, target_accept: float) -> list[Finding]:
    return check_energy(
        chains.moving_stats,
        funnel_sites(density, chains.z),
        target_accept,
        has_centred=bool(centred_sites(density.structure))
        or any(name.endswith("_decentered") for name in density.blocks),
    )


def _chains_of(density: LogDensity, fit: Fit) -> Chains:
    """Return the chains of a fit, with their states."""
    z = density.unconstrain(fit.tensors()).numpy()
    names = [name for name in RECORD.names or () if name in fit.stats]
    return Chains(
        z.reshape(fit.num_chains, fit.num_draws, density.dim),
        {name: fit.stats[name] for name in names},
        states=list(fit.stats.get("chain_states", ())),
    )


def _starts(
    method: NUTS | HMC, density: LogDensity, evaluator: Evaluator, seed: int
) -> Callable[[int], Tensor]:
    """Return the function that finds the starting point of a chain, given its seed."""
    if method.init == "pathfinder":
        return lambda chain_seed: torch.from_numpy(pathfinder_draw(density, evaluator, chain_seed))
    if method.init == "random":
        return functools.partial(random_start, density, evaluator)
    return TypicalStarts(density, evaluator, seed, method.warmup * method.chains)


def _modes(
    density: LogDensity, evaluator: Evaluator, seed: int, start: Callable[[int], Tensor]
) -> list[Mode]:
    """Return modes of the posterior, also where the chains start elsewhere."""
    if not density.given and isinstance(start, TypicalStarts) and start.modes is not None:
        return start.modes
    return find_modes(density, evaluator, seed)


def _run_pyro(
    method: Any,
    kernel: Any,
    options: dict[str, Any],
    density: LogDensity,
    evaluator: Evaluator,
    start: Callable[[int], Tensor],
    seed: int,
    progress: bool | None,
    ids: Sequence[int] | None = None,
) -> Chains:
    """Run Pyro's kernels, with the density evaluated by any engine; ``ids`` selects chains."""
    seeds = np.random.SeedSequence(seed).generate_state(method.chains, np.uint64)
    return pyro_nuts.run(
        [
            functools.partial(kernel, density.dim, evaluator, start, int(seeds[i]) >> 1, **options)
            for i in (range(method.chains) if ids is None else ids)
        ],
        warmup=method.warmup,
        draws=method.draws,
        progress=progress,
    )
