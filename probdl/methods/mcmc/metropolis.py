"""Random-walk Metropolis, the simplest Markov chain Monte Carlo method."""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probdl.compile import ENGINES, Evaluator, choose
from probdl.compile.kernels.random_walk import Walk
from probdl.errors import ModelError
from probdl.findings import ACCEPTANCE_MIN, Finding
from probdl.methods.angles import TURN, periodic
from probdl.methods.approach import find_modes
from probdl.methods.base import Method
from probdl.methods.mcmc.chains import Chain, Chains, Starts, gather, posterior_fit, random_start
from probdl.methods.mcmc.workers import on_workers
from probdl.methods.modes import Mode
from probdl.model.density import LogDensity
from probdl.model.program import Program
from probdl.results.fit import Fit
from probdl.util.clock import check_time_limit
from probdl.util.isolation import isolated, lock_suspended
from probdl.util.progress import bar
from probdl.util.settings import check_workers

__all__ = ["Metropolis"]

MOVES_PER_DIMENSION = 5  # between kept draws; one effective draw needs about 3
ADAPTATION_WINDOW = 25  # draws between updates of the covariance

Array = NDArray[np.float64]


@dataclass(frozen=True, repr=False)
class Metropolis(Method, name="metropolis"):
    r"""Adaptive random-walk Metropolis sampling.

    .. math:: z' \sim N(z, s^2 \Sigma), \qquad
        \alpha = \min\{1, p(z' | y) / p(z | y)\}

    A move is accepted with probability α; otherwise the chain stays at z. Only the ratio of
    densities enters, so neither the normalising constant of Eq. 1 nor a gradient is needed. During
    warm-up Σ is set to the covariance of the draws so far, and s is adapted until about a quarter
    of the moves are accepted. After warm-up both are fixed, so the posterior is the stationary
    distribution.

    A random walk needs about 3 d moves per independent draw, and more if the posterior is far from
    normal. Use NUTS for continuous models; use this method to check NUTS, or if the density has no
    useful gradient.

    ``stats`` holds, each (chain, draw): ``lp`` (log density on R^d, nats), ``acceptance_rate``
    (share of the moves since the previous draw that were accepted) and ``step_size`` (s).

    Args:
        draws: number of draws that each chain keeps. Default: 1000.
        warmup: number of draws for adaptation, which are discarded. Default: 1000.
        chains: number of chains. Default: 4.
        thin: number of moves per kept draw; None means 5 d. Default: None.
        target_accept: acceptance rate to which s is adapted; None means 0.44 in one dimension and
            0.234 otherwise, the optimal values for normal posteriors. Default: None.
        init: values of sites at which to start, such as ``{"mu": 3.0}``; the other sites start at
            random points. Each chain starts there. Default: None.
        engine: how the density is evaluated, as in :class:`NUTS`. Default: ``"auto"``.
        executor: runs the chains on its workers: a ``concurrent.futures.Executor``, or a Dask
            ``Client``. The draws are the same. Default: None.

    Raises:
        SettingError: a setting is out of range.

    Example:
        >>> import torch, pyro, pyro.distributions as dist, probdl
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> fit = probdl.infer(model, torch.tensor(1.0), method="metropolis", seed=1)
        >>> fit.draws["mu"].shape, bool(abs(fit.draws["mu"].mean() - 0.5) < 0.1)
        ((4, 1000), True)

    Source: Metropolis et al. (1953); Haario, Saksman and Tamminen, "An adaptive Metropolis
    algorithm" (2001); Roberts, Gelman and Gilks (1997).
    """

    draws: int = 1000
    warmup: int = 1000
    chains: int = 4
    thin: int | None = None
    target_accept: float | None = None
    init: Mapping[str, Any] | None = None
    engine: str = "auto"
    executor: Any = field(default=None, repr=False, metadata={"saved": False})

    def __post_init__(self) -> None:
        check_workers(type(self).__name__, None, self.executor)
        self._check_int(draws=1, warmup=0, chains=1)
        if self.thin is not None:
            self._check_int(thin=1)
        if self.target_accept is not None:
            self._check_real(target_accept=(0, 1))
        self._check_choice(engine=ENGINES)
        self._check_init()

    def run(self, program: Program, seed: int, progress: bool | None) -> Fit:
        """Fit the program by Metropolis."""
        structure = self._discover(program)
        density = self._density(program, structure)
        evaluator, findings = choose(
            density, self.engine, seed, threads=self.chains, gradient=False
        )
        ids = range(self.chains)
        if self.executor is not None:
            found = on_workers(self, program, seed, ids, progress)
        else:
            found = self._sample(density, evaluator, seed, ids, progress)
        findings += _check_acceptance(found, self.chains)
        ended = any(f.check in ("interrupted", "time_limit") for f in found.findings)
        modes = tuple if ended else functools.partial(self._modes, density, evaluator, seed)
        method = replace(self, executor=None)
        return posterior_fit(method, density, evaluator, found, seed, findings, modes)

    def run_chains(self, program: Program, seed: int, ids: Sequence[int]) -> Chains:
        """Run some of the chains of ``run``."""
        density = self._density(program, self._discover(program))
        evaluator, _ = choose(density, self.engine, seed, threads=self.chains, gradient=False)
        return self._sample(density, evaluator, seed, ids, progress=False)

    def _sample(
        self,
        density: LogDensity,
        evaluator: Evaluator,
        seed: int,
        ids: Sequence[int],
        progress: bool | None,
    ) -> Chains:
        seeds = np.random.SeedSequence(seed).generate_state(self.chains, np.uint64).tolist()
        starts = Starts(functools.partial(random_start, density, evaluator), seeds[0] >> 1)
        chains = [
            # Of two chains that start at mirror images of each other, one more often finds a mode
            # that the other does not.
            _Chain(self, evaluator, starts(seeds[i & ~1] >> 1, mirror=i % 2 == 1).numpy(), seeds[i])
            for i in ids
        ]
        angles = periodic(density, evaluator, np.stack([chain.walk.z for chain in chains]))
        for chain in chains:
            chain.angles = angles
        wake, interruption = threading.Event(), None
        # Native code runs in one thread per chain. Chains in Python take turns in one thread, so
        # that an interrupted run has draws of each chain.
        native = evaluator.engine == "native"
        groups = [[chain] for chain in chains] if native else [chains]
        total = len(chains) * (self.warmup + self.draws)
        advance = _advance if native else functools.partial(_advance_isolated, seed)
        with (
            bar(total, "sampling", progress) as shown,
            lock_suspended(),
            ThreadPoolExecutor(len(groups)) as pool,
        ):
            try:
                running = [pool.submit(advance, group, wake) for group in groups]
                try:
                    while not all(r.done() for r in running):
                        check_time_limit()
                        wake.wait(0.02)
                        shown.update(sum(c.done for c in chains) - shown.n)
                except KeyboardInterrupt as error:
                    interruption = error
                    wake.set()
                for r in running:
                    r.result()
            finally:
                wake.set()  # else the pool waits for chains that nothing stops
        found = gather([chain.result() for chain in chains], self.draws, interruption)
        further = starts.findings()
        if (failure := chains[0].walk.failure) is not None:
            further.append(
                Finding(
                    "warning",
                    "engine",
                    f"The moves run in Python, which is slower than native code: {failure}.",
                    "Run probdl.doctor() to see what is available and what is missing.",
                )
            )
        return replace(found, findings=[*further, *found.findings])

    def _modes(self, density: LogDensity, evaluator: Evaluator, seed: int) -> list[Mode]:
        """Find modes by gradients, which are fast only in native code."""
        if evaluator.engine != "native":
            return []
        with suppress(ModelError):  # the draws are there
            return find_modes(density, choose(density, self.engine, seed)[0], seed)
        return []


class _Chain:
    """One chain, with its draws and the scale and covariance that it adapts."""

    NAMES = ("lp", "acceptance_rate", "step_size")

    def __init__(self, method: Metropolis, evaluator: object, start: Array, seed: int) -> None:
        dim = len(start)
        self.method = method
        self.walk = Walk(evaluator, start)
        self.rng = np.random.default_rng(seed)
        self.thin = method.thin or MOVES_PER_DIMENSION * dim
        self.target = method.target_accept or (0.44 if dim == 1 else 0.234)
        self.log_scale = math.log(2.38 / math.sqrt(dim))
        self.factor = np.eye(dim)
        self.z = np.empty((method.draws, dim))
        self.stats = np.empty((method.draws, len(self.NAMES)))
        self.warmup_points: list[Array] = []
        self.done = 0
        self.failure: Exception | None = None
        self.angles: list[int] = []

    def result(self) -> Chain:
        """Return the chain, complete or not."""
        count = max(0, self.done - self.method.warmup)
        stats = {name: self.stats[:count, i] for i, name in enumerate(self.NAMES)}
        return Chain(self.z[:count], stats, self.failure)

    def step(self) -> None:
        """Make the moves up to the next draw; adapt during warm-up, and keep the draw after it."""
        t, method, dim = self.done, self.method, len(self.walk.z)
        scale = math.exp(self.log_scale)
        moves = scale * self.rng.standard_normal((self.thin, dim)) @ self.factor.T
        # A move by a turn changes nothing, so that the scale of moves would grow without bound.
        moves[:, self.angles] -= TURN * np.round(moves[:, self.angles] / TURN)
        log_u = np.log(self.rng.random(self.thin))
        rate = self.walk.steps(moves, log_u) / self.thin
        if t < method.warmup:
            self.adapt(t, rate)
        else:
            kept = t - method.warmup
            self.z[kept] = self.walk.z
            self.stats[kept] = (float(self.walk.value), rate, scale)
        self.done = t + 1

    def adapt(self, t: int, rate: float) -> None:
        """Adapt the scale to the acceptance rate, and the covariance to the draws so far."""
        self.log_scale += (rate - self.target) / (1 + t) ** 0.6
        self.warmup_points.append(self.walk.z.copy())
        if (t + 1) % ADAPTATION_WINDOW or t + 1 < 2 * ADAPTATION_WINDOW:
            return
        # The first half may still depend on the starting point. The covariance is shrunk slightly
        # towards a small multiple of the identity, as in Stan, so that it is never singular.
        recent = np.array(self.warmup_points[len(self.warmup_points) // 2 :])
        count, dim = recent.shape
        covariance = np.atleast_2d(np.cov(recent.T)) * count / (count + 5.0)
        covariance += 1e-3 * 5.0 / (count + 5.0) * np.eye(dim) * max(1e-6, covariance.trace() / dim)
        self.factor = np.linalg.cholesky(covariance)
        if t + 1 == 2 * ADAPTATION_WINDOW:  # the scale so far was relative to the identity
            self.log_scale = math.log(2.38 / math.sqrt(dim))


def _advance(chains: Sequence[_Chain], stop: threading.Event) -> None:
    """Run chains in turn until they are complete or the event is set; errors end single chains."""
    method = chains[0].method
    for _ in range(method.warmup + method.draws):
        for chain in chains:
            if stop.is_set():
                return
            if chain.failure is None:
                try:
                    chain.step()
                except Exception as error:
                    chain.failure = error


def _advance_isolated(seed: int, chains: Sequence[_Chain], stop: threading.Event) -> None:
    """Run chains in Python, with the global state of Pyro and torch isolated."""
    with isolated(seed):
        _advance(chains, stop)


def _check_acceptance(chains: Chains, count: int) -> list[Finding]:
    """Report chains that barely moved."""
    rates = chains.stats["acceptance_rate"].mean(1)
    if rates.min() >= ACCEPTANCE_MIN:
        return []
    return [
        Finding(
            "warning",
            "acceptance",
            f"{int((rates < ACCEPTANCE_MIN).sum())} of {count} chains accepted fewer than "
            f"{ACCEPTANCE_MIN:.0%} of their proposals, so they barely moved.",
            "Raise warmup, or use method='nuts', which uses gradients.",
        )
    ]
