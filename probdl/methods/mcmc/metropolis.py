"""Random-walk Metropolis: the plainest Markov chain Monte Carlo."""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from probdl.compile import ENGINES, choose
from probdl.compile.kernels.random_walk import Walk
from probdl.findings import ACCEPTANCE_MIN, Finding
from probdl.methods.base import Method
from probdl.methods.mcmc.chains import Chain, Chains, Starts, gather, posterior_fit, random_start
from probdl.model.density import LogDensity
from probdl.model.program import Program
from probdl.results.fit import Fit
from probdl.util.clock import look
from probdl.util.isolation import isolated, stepped_aside
from probdl.util.progress import bar

__all__ = ["Metropolis"]

_MOVES_A_DIMENSION = 5  # between kept draws; one effective draw takes about 3
_WINDOW = 25  # kept draws between looks at the covariance

Array = NDArray[np.float64]


@dataclass(frozen=True, repr=False)
class Metropolis(Method, name="metropolis"):
    r"""Draw from the posterior by an adaptive random walk.

    .. math:: z' \sim N(z, s^2 \Sigma), \qquad
        \alpha = \min\{1, p(z' | y) / p(z | y)\}

    A move is accepted with probability α; else the chain stays. Only the ratio of densities
    counts, so neither the normalising constant of Eq. 1 nor a gradient is needed. During warm-up Σ
    becomes the covariance of the draws so far, and s is set so that about a quarter of the moves
    are accepted; then both stay, which keeps the posterior the stationary distribution.

    A random walk needs some 3 d moves for one independent draw, and more where the posterior is
    far from normal: NUTS is the method for continuous models, and this one a check on it, and for
    densities whose gradient says nothing.

    ``stats`` holds, each (chain, draw): ``lp`` (log density on R^d, nats), ``acceptance_rate`` (the
    share accepted since the draw before) and ``step_size`` (s).

    Args:
        draws: how many draws each chain keeps.
        warmup: how many draws adapt first.
        chains: how many chains.
        thin: how many moves lie between kept draws; None means 5 d.
        target_accept: the acceptance rate that s is set by; None means 0.44 in one dimension and
            0.234 in more, which are the best for normal posteriors.
        engine: what evaluates the density, as in :class:`NUTS`.

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
    engine: str = "auto"

    def __post_init__(self) -> None:
        self._check_int(draws=1, warmup=0, chains=1)
        if self.thin is not None:
            self._check_int(thin=1)
        if self.target_accept is not None:
            self._check_real(target_accept=(0, 1))
        self._check_choice(engine=ENGINES)

    def run(self, program: Program, seed: int, progress: bool | None) -> Fit:
        """Fit the program by Metropolis."""
        structure = self._discover(program)
        density = LogDensity(program, structure)
        evaluator, findings = choose(
            density, self.engine, seed, threads=self.chains, gradient=False
        )
        seeds = np.random.SeedSequence(seed).generate_state(self.chains, np.uint64)
        starts = Starts(functools.partial(random_start, density, evaluator), int(seeds[0]) >> 1)
        chains = [_Chain(self, evaluator, starts(int(s) >> 1).numpy(), int(s)) for s in seeds]
        wake, interruption = threading.Event(), None
        # Native code runs in a thread for each chain; what runs in Python takes turns in one, so
        # that an interrupted run has draws of each.
        native = evaluator.engine == "native"
        together = [[chain] for chain in chains] if native else [chains]
        total = self.chains * (self.warmup + self.draws)
        advance = _advance if native else functools.partial(_advance_isolated, seed)
        with (
            bar(total, "sampling", progress) as shown,
            stepped_aside(),
            ThreadPoolExecutor(len(together)) as pool,
        ):
            running = [pool.submit(advance, group, wake) for group in together]
            try:
                while not all(r.done() for r in running):
                    look()
                    wake.wait(0.02)
                    shown.update(sum(c.done for c in chains) - shown.n)
            except KeyboardInterrupt as error:
                interruption = error
                wake.set()
            for r in running:
                r.result()
        found = gather([chain.result() for chain in chains], self.draws, interruption)
        if (failure := chains[0].walk.failure) is not None:
            findings.append(
                Finding(
                    "warning",
                    "engine",
                    f"the steps run in Python, which is slower than native code: {failure}.",
                    "probdl.doctor() shows what is available and what is missing.",
                )
            )
        findings += [*starts.findings(), *_stuck(found, self.chains)]
        return posterior_fit(self, density, evaluator, found, seed, findings)


class _Chain:
    """One chain with what it adapts."""

    NAMES = ("lp", "acceptance_rate", "step_size")

    def __init__(self, method: Metropolis, evaluator: object, start: Array, seed: int) -> None:
        dim = len(start)
        self.method = method
        self.walk = Walk(evaluator, start)
        self.rng = np.random.default_rng(seed)
        self.thin = method.thin or _MOVES_A_DIMENSION * dim
        self.target = method.target_accept or (0.44 if dim == 1 else 0.234)
        self.log_scale = math.log(2.38 / math.sqrt(dim))
        self.factor = np.eye(dim)
        self.z = np.empty((method.draws, dim))
        self.stats = np.empty((method.draws, len(self.NAMES)))
        self.seen: list[Array] = []
        self.done = 0
        self.failure: Exception | None = None

    def result(self) -> Chain:
        """Return the chain as far as it came."""
        count = max(0, self.done - self.method.warmup)
        stats = {name: self.stats[:count, i] for i, name in enumerate(self.NAMES)}
        return Chain(self.z[:count], stats, self.failure)

    def step(self) -> None:
        """Move on to the next draw, of the warm-up or to be kept."""
        t, method, dim = self.done, self.method, len(self.walk.z)
        scale = math.exp(self.log_scale)
        moves = scale * self.rng.standard_normal((self.thin, dim)) @ self.factor.T
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
        """Set the scale by the acceptance rate, and the shape by the draws so far."""
        self.log_scale += (rate - self.target) / (1 + t) ** 0.6
        self.seen.append(self.walk.z.copy())
        if (t + 1) % _WINDOW or t + 1 < 2 * _WINDOW:
            return
        # The first half, on the way from the start, is left out. The covariance is drawn a little
        # towards a small multiple of the identity, as in Stan, so that it is never singular.
        recent = np.array(self.seen[len(self.seen) // 2 :])
        count, dim = recent.shape
        covariance = np.atleast_2d(np.cov(recent.T)) * count / (count + 5.0)
        covariance += 1e-3 * 5.0 / (count + 5.0) * np.eye(dim) * max(1e-6, covariance.trace() / dim)
        self.factor = np.linalg.cholesky(covariance)
        if t + 1 == 2 * _WINDOW:  # the scale was of the identity
            self.log_scale = math.log(2.38 / math.sqrt(dim))


def _advance(chains: Sequence[_Chain], stop: threading.Event) -> None:
    """Run chains in turn, until all is done or the event is set; a failure ends one of them."""
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
    """Run chains whose density enters Pyro, in a thread of their own."""
    with isolated(seed):
        _advance(chains, stop)


def _stuck(chains: Chains, count: int) -> list[Finding]:
    """Tell of chains that hardly moved."""
    rates = chains.stats["acceptance_rate"].mean(1)
    if rates.min() >= ACCEPTANCE_MIN:
        return []
    return [
        Finding(
            "warning",
            "acceptance",
            f"{int((rates < ACCEPTANCE_MIN).sum())} of {count} chains accepted fewer than "
            f"{ACCEPTANCE_MIN:.0%} of their proposals, so they barely moved.",
            "Raise warmup, or use method='nuts', which adapts by the gradient.",
        )
    ]
