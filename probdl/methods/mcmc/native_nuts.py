"""NUTS on native code: warm-up, threads and progress of the chains of nuts.c."""

from __future__ import annotations

import functools
import math
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probdl.compile import Evaluator
from probdl.compile.kernels.nuts import RECORD, NutsChain, NutsTask, check_compiled
from probdl.compile.runtime.called_density import CalledDensity
from probdl.compile.runtime.native_density import NativeDensity
from probdl.compile.runtime.toolchain import CompilerError
from probdl.errors import DataError, ModelError
from probdl.findings import Finding
from probdl.io.arrays import mapped_array
from probdl.methods.mcmc.chains import Chain, Chains, Starts, gather
from probdl.methods.mcmc.continuation import EarlierDraws
from probdl.methods.mcmc.metric import Metric, low_rank
from probdl.methods.mcmc.watching import Watch, Watcher
from probdl.util.clock import check_time_limit
from probdl.util.isolation import lock_suspended
from probdl.util.progress import bar

__all__ = ["EndedError", "available", "check_density", "check_state", "run"]

Array = NDArray[np.float64]

# Shares of warm-up in which the metric changes fast, and in which only the step size is adapted.
EARLY, LATE = 0.3, 0.15
EARLY_WINDOW, WINDOW = 10, 80  # draws of which the metric is, up to twice as many
FIRST = 5  # transitions before the first metric from draws, which needs another step size
# Share of warm-up in which trajectories have few doublings: longer ones, as a metric without the
# correlations needs them, show no more of the correlations.
SHALLOW, SHALLOW_DEPTH = 0.1, 6
INTERVAL = 0.1  # transitions between updates of a low-rank metric, as a share of those so far
CONFIRMED = 0.75  # share of the cutoff that a direction must have in draws that did not show it
# Shares of warm-up after which draws are tested for correlations.
TESTS = (0.025, 0.05, 0.1, 0.2, 0.4)
CUTOFFS = {"low_rank": 4.0, "dense": 1.0 + 1e-6, "diag": math.inf}
# Of a warm-up that begins with a metric: transitions, at least, and its share of a whole one.
SHORT_WARMUP, SHORTER = 100, 5
SCALE_RANGE = (1e-5, 1e5)  # of the first metric, from the gradient at the start
POLL_SECONDS = 0.02
SAME_DENSITY = 1e-9  # relative, of log densities that are computed on other machines
SAME_NATS = 1e-6


class EndedError(ModelError):
    """The callback ended the run before each chain had a draw."""


@dataclass(frozen=True)
class Settings:
    """Settings of :class:`NUTS`."""

    draws: int
    warmup: int
    target_accept: float
    max_treedepth: int
    mass_matrix: str


@dataclass(frozen=True)
class ChainState:
    """All that the future of a chain depends on, apart from the density.

    Attributes:
        z: the position, (d,).
        scale: of the metric, (d,), see :class:`NutsChain`.
        directions: (r, d).
        variances: (r,).
        step: the step size.
        key: the key of the random numbers.
        transition: the number of transitions so far, warm-up included.
    """

    z: Array
    scale: Array
    directions: Array
    variances: Array
    step: float
    key: int
    transition: int

    def check(self, dim: int) -> None:
        """Check a state, which C code will read.

        Raises:
            DataError: it is none of a chain in ``dim`` dimensions.
        """
        rank = len(self.variances) if isinstance(self.variances, np.ndarray) else -1
        shapes = {"z": (dim,), "scale": (dim,), "directions": (rank, dim), "variances": (rank,)}
        for name, shape in shapes.items():
            array = getattr(self, name)
            right = isinstance(array, np.ndarray) and array.dtype == np.float64
            if not right or array.shape != shape or not np.isfinite(array).all():
                raise DataError(f"The state of a chain is damaged: its {name!r} is not of {shape}.")
        numbers = (self.scale > 0).all() and (self.variances > 0).all() and rank <= dim
        counts = all(type(x) is int and 0 <= x < 2**64 for x in (self.key, self.transition))
        if not (numbers and counts and isinstance(self.step, float) and 0 < self.step < math.inf):
            raise DataError("The state of a chain is damaged: its numbers are out of range.")


class _Recent:
    """The latest draws of a warm-up, and the gradients there, from which the metric is learned."""

    def __init__(self, dim: int) -> None:
        self._draws, self._grads = np.empty((0, dim)), np.empty((0, dim))

    def add(self, draws: Array, grads: Array, size: int) -> None:
        """Add draws, and keep the last ``size`` of all, but no more than two windows."""
        size = min(size, 2 * WINDOW)
        self._draws = np.concatenate([self._draws, draws])[-size:]
        self._grads = np.concatenate([self._grads, grads])[-size:]

    def _moved(self) -> tuple[Array, Array]:
        """Return draws and gradients without repetitions, of a chain that did not move."""
        moved = np.ones(len(self._draws), bool)
        moved[1:] = (np.diff(self._draws, axis=0) != 0).any(1)
        return self._draws[moved], self._grads[moved]

    def metric(self, cutoff: float) -> Metric | None:
        """Return the metric, see ``low_rank``."""
        return low_rank(*self._moved(), cutoff)

    def is_correlated(self, cutoff: float) -> bool:
        """Return whether directions that half of the draws show are there in the others."""
        draws, grads = self._moved()
        half = len(draws) // 2
        found = low_rank(draws[:half], grads[:half], cutoff)
        if found is None or not len(found[2]):
            return False
        scale, directions, variances = found
        with np.errstate(all="ignore"):
            spread = ((draws[half:] / scale) @ directions.T).std(0)
            seen = spread / ((grads[half:] * scale) @ directions.T).std(0)
        wide = (variances > 1) & (seen > CONFIRMED * cutoff)
        narrow = (variances < 1) & (seen < 1 / (CONFIRMED * cutoff))
        return bool((wide | narrow).any())


class _Running:
    """A chain on its way through warm-up and sampling.

    Args:
        density: the density.
        start: finds the starting point.
        key: the key of the random numbers.
        settings: the settings.
        z: where the draws are written, (draws, d).
        state: a state to go on from; then there is no warm-up.
        metric: a metric that is known before the warm-up, which is then short.
    """

    def __init__(
        self,
        density: NativeDensity | CalledDensity,
        start: Callable[[], Tensor],
        key: int,
        settings: Settings,
        z: Array,
        state: ChainState | None = None,
        metric: Metric | None = None,
    ) -> None:
        self.settings, self._metric = settings, metric
        self.density, self._start, self._key = density, start, key
        self._state = state
        self.chain: NutsChain | None = None
        self.z = z
        self.records = np.zeros(settings.draws, RECORD)
        self.before = 0  # transitions of tasks that are done
        self.task: NutsTask | None = None
        self.stopped = False
        self.failure: Exception | None = None
        self._diverged = 0

    @property
    def drawn(self) -> int:
        """The number of draws."""
        return max(0, self.done - self.settings.warmup)

    @property
    def divergences(self) -> int:
        """The number of divergent transitions."""
        task = self.task
        return self._diverged + (int(task.divergences) if task is not None else 0)

    @property
    def step(self) -> float:
        """The step size; NaN before the first transition."""
        return self.chain.step if self.chain is not None else float("nan")

    @property
    def done(self) -> int:
        """The number of transitions."""
        task = self.task
        return self.before + (int(task.done) if task is not None else 0)

    def stop(self) -> None:
        """End the chain after the current transition."""
        self.stopped = True
        if (task := self.task) is not None:
            task.stop = 1

    def run(self) -> None:
        """Run the chain to its end, or until it is stopped."""
        try:
            start = self._start().numpy() if self._state is None else self._state.z
            self.chain = chain = NutsChain(
                self.density,
                start,
                self._key,
                self.settings.target_accept,
                self.settings.max_treedepth,
            )
            if not (np.isfinite(chain.value) and np.isfinite(chain.grad).all()):
                raise ModelError("The log density is not finite where the chain starts.")
            if not chain.grad.any():
                raise ModelError(
                    "The density does not appear to depend on the sites, as for a flat prior "
                    "without data. Give the data to pyro.sample(..., obs=...), or use a prior that "
                    "is not flat."
                )
            if self._state is None:
                self._warm_up(chain)
            else:
                state = self._state
                chain.set_metric(state.scale, state.directions, state.variances)
                chain.go_on(state.step, state.transition)
            if not self.stopped:
                self._transitions(self.settings.draws, z=self.z, records=self.records)
        except Exception as error:
            self.failure = error

    def result(self) -> Chain:
        """Return the draws, complete or not."""
        count = self.drawn
        records = self.records[:count]
        stats: dict[str, Any] = {name: records[name].copy() for name in RECORD.names or ()}
        for name in ("diverging", "reached_max_treedepth"):
            stats[name] = stats[name].astype(bool)
        for name in ("n_steps", "tree_depth"):
            stats[name] = stats[name].astype(np.int64)
        return Chain(self.z[:count], stats, self.failure, self._state_after)

    def _state_after(self, count: int) -> dict[str, Any]:
        """Return the state after a number of draws."""
        chain = self.chain
        assert chain is not None
        before = self.settings.warmup if self._state is None else self._state.transition
        return asdict(
            ChainState(
                self.z[count - 1].copy(),
                chain.scale.copy(),
                chain.directions.copy(),
                chain.variances.copy(),
                chain.step,
                self._key,
                before + count,
            )
        )

    def _warm_up(self, chain: NutsChain) -> None:
        warmup, kind = self.settings.warmup, self.settings.mass_matrix
        if self._metric is not None:
            self._warm_up_from(chain, self._metric)
            return
        self._begin(chain)
        late = int(LATE * warmup)
        self._transitions(min(FIRST, warmup - late), step=True, window=EARLY_WINDOW)
        chain.find_step()
        self._arrive(chain, warmup - late)
        if kind == "diag" or (kind == "auto" and not self._is_correlated(chain, warmup - late)):
            self._learn_diagonal(warmup - late)
        else:
            self._learn_low_rank(chain, warmup - late, CUTOFFS.get(kind, CUTOFFS["low_rank"]))
        self._transitions(late, step=True)
        if warmup:
            chain.use_mean_step()

    def _arrive(self, chain: NutsChain, end: int) -> None:
        """Make transitions with a diagonal metric while the density rises much."""
        before = -math.inf
        while self.done < end and not self.stopped and chain.value > before + len(chain.z):
            before = chain.value
            count = min(EARLY_WINDOW, end - self.done)
            self._transitions(count, step=True, window=EARLY_WINDOW)

    def _begin(self, chain: NutsChain) -> None:
        """Set a first metric and step size, from the gradient where the chain is."""
        with np.errstate(divide="ignore"):
            scale = np.clip(1.0 / np.sqrt(np.abs(chain.grad)), *SCALE_RANGE)
        chain.set_metric(scale, np.empty((0, len(scale))), np.empty(0))
        chain.find_step()

    def _warm_up_from(self, chain: NutsChain, metric: Metric) -> None:
        """Find the step size for a known metric, and learn the metric again in one window."""
        warmup, kind = self.settings.warmup, self.settings.mass_matrix
        chain.set_metric(*metric)
        chain.find_step()
        self._transitions(warmup // 4, step=True)
        kept = _Recent(len(chain.z))
        self._transitions(warmup // 2, step=True, recent=kept)
        cutoff = CUTOFFS.get(kind, math.inf)
        if kind == "auto" and kept.is_correlated(CUTOFFS["low_rank"]):
            cutoff = CUTOFFS["low_rank"]
        found = kept.metric(cutoff) if warmup >= SHORT_WARMUP else None
        if found is not None and not self.stopped:
            chain.set_metric(*found)
        self._transitions(warmup - self.done, step=True)
        if warmup:
            chain.use_mean_step()

    def _is_correlated(self, chain: NutsChain, end: int) -> bool:
        """Make the first transitions, and return whether a low-rank metric pays."""
        kept = _Recent(len(chain.z))
        for test in TESTS:
            count = min(int(test * self.settings.warmup), end) - self.done
            self._transitions(count, step=True, window=EARLY_WINDOW, recent=kept)
            if self.stopped or not kept.is_correlated(CUTOFFS["low_rank"]):
                continue
            found = kept.metric(CUTOFFS["low_rank"])
            if found is not None:
                chain.set_metric(*found)
                chain.find_step()
                return True
        return False

    def _learn_diagonal(self, end: int) -> None:
        early = int(EARLY * self.settings.warmup)
        self._transitions(early - self.done, step=True, window=EARLY_WINDOW)
        left = end - self.done
        last = min(WINDOW, left)  # too few draws for a separate window
        self._transitions(left - last, step=True, window=WINDOW)
        self._transitions(last, step=True, window=self.settings.warmup)

    def _learn_low_rank(self, chain: NutsChain, end: int, cutoff: float) -> None:
        """Make transitions, and learn the metric from the later half of them, at most."""
        kept = _Recent(len(chain.z))
        while self.done < end and not self.stopped:
            interval = min(max(EARLY_WINDOW, int(INTERVAL * self.done)), end - self.done)
            before = chain.z.copy()
            self._transitions(interval, step=True, recent=kept)
            if (chain.z == before).all():  # the metric is that of another place
                kept = _Recent(len(chain.z))
                self._begin(chain)
                continue
            found = kept.metric(cutoff)
            if found is not None and not self.stopped:
                chain.set_metric(*found)

    def _transitions(
        self,
        count: int,
        *,
        step: bool = False,
        window: int = 0,
        z: Array | None = None,
        recent: _Recent | None = None,
        records: NDArray[Any] | None = None,
    ) -> None:
        """Make transitions.

        Args:
            count: the number of transitions.
            step: whether to adapt the step size.
            window: the draws that the diagonal metric is of; 0 leaves the metric as it is.
            z: where to write the draws, (count, d).
            recent: what keeps the draws with their gradients.
            records: where to write what is recorded of each.
        """
        assert self.chain is not None
        if self.stopped or count <= 0:
            return
        early = self.done < SHALLOW * self.settings.warmup
        self.chain.limit_depth(SHALLOW_DEPTH if early else None)
        kept = np.zeros(count, RECORD) if records is None else records
        grads = None
        if recent is not None:
            z, grads = (np.empty((count, len(self.chain.z))) for _ in range(2))
        task = NutsTask(
            transitions=count,
            adapt_step=step,
            adapt_scale=window > 0,
            window=window,
            draws=None if z is None else z.ctypes.data,
            grads=None if grads is None else grads.ctypes.data,
            records=kept.ctypes.data,
        )
        self.task = task
        if self.stopped:  # meanwhile
            task.stop = 1
        self.chain.run(task)
        self._diverged += int(task.divergences)
        self.before, self.task = self.before + int(task.done), None
        if recent is not None and z is not None and grads is not None and not self.stopped:
            recent.add(z, grads, max(EARLY_WINDOW, self.done // 2))


def available(evaluator: Any) -> bool:
    """Return whether the sampler, which needs a compiler, can sample a density."""
    if evaluator.engine == "eager":  # Pyro throughout
        return False
    try:
        check_compiled()
    except CompilerError:
        return False
    return True


def run(
    dim: int,
    evaluator: Any,
    find_start: Callable[[int], Tensor],
    *,
    draws: int,
    warmup: int,
    chains: int,
    target_accept: float,
    max_treedepth: int,
    mass_matrix: str,
    seed: int,
    progress: bool | None,
    chain_ids: Sequence[int] | None = None,
    callback: Callable[[Watch], Any] | None = None,
    states: Sequence[Mapping[str, Any]] = (),
    earlier: EarlierDraws | None = None,
    before: Array | None = None,
    out: str | os.PathLike[str] | None = None,
) -> Chains:
    """Draw from a density on R^d; on Ctrl-C return the draws so far.

    Args:
        dim: the dimension d.
        evaluator: the density.
        find_start: finds the starting point of a chain, given a seed.
        draws: as in :class:`NUTS`, like the arguments below.
        warmup: number of transitions for adaptation.
        chains: number of chains.
        target_accept: acceptance rate to which the step size is adapted.
        max_treedepth: limit of the length of trajectories.
        mass_matrix: ``"diag"``, ``"low_rank"`` or ``"dense"``; ``"auto"`` starts with a diagonal
            metric, and goes on with a low-rank one where the draws correlate.
        seed: all random numbers derive from it.
        progress: whether to show progress.
        chain_ids: the numbers of the chains to run; None means all.
        callback: a function of what is seen of the chains, which ends them if it returns False.
        states: states to go on from, one for each chain, without warm-up.
        earlier: draws of another fit, with whose metric the warm-up begins, and is short.
        before: the draws so far of chains that go on, (chain, draw, d), for the callback.
        out: the folder of a file that the draws are mapped to; None keeps them in memory.

    Raises:
        KeyboardInterrupt: interrupted before each chain had a draw.
        ModelError: no starting point has a finite density.
        CompilerError: there is no compiler, or it failed.
    """
    check_time_limit()  # a small model may finish before the wait below sees a limit of zero
    metric = None
    if earlier is not None:
        metric = earlier.metric(CUTOFFS.get(mass_matrix, CUTOFFS["low_rank"]))
        if metric is not None:
            warmup = min(warmup, max(SHORT_WARMUP, warmup // SHORTER))
    native = isinstance(evaluator, NativeDensity)
    density = evaluator if native else CalledDensity(dim, evaluator)
    settings = Settings(draws, 0 if states else warmup, target_accept, max_treedepth, mass_matrix)
    starts = None

    def array(count: int) -> Array:
        shape = (count, draws, dim)
        return np.empty(shape) if out is None else mapped_array(out, shape)

    if states:
        known = [check_state(state, dim) for state in states]
        z = array(len(known))
        running = [
            _Running(density, lambda: torch.empty(0), of.key, settings, z[i], of)
            for i, of in enumerate(known)
        ]
    else:
        starts = Starts(find_start, seed)
        seeds = [of for i, of in enumerate(_seeds(seed, chains)) if not chain_ids or i in chain_ids]
        z = array(len(seeds))
        running = [
            _Running(density, functools.partial(starts, s >> 1), key, settings, z[i], metric=metric)
            for i, (s, key) in enumerate(seeds)
        ]
    interruption, ended = None, False
    watcher = Watcher(callback, before, None if out is None else z)
    total = len(running) * (settings.warmup + draws)
    with (
        bar(total, "sampling", progress) as shown,
        lock_suspended(),
        ThreadPoolExecutor(min(len(running), os.cpu_count() or 1)) as pool,
    ):
        wake = threading.Event()
        futures = [pool.submit(chain.run) for chain in running]
        for future in futures:
            future.add_done_callback(lambda _: wake.set() if _all_done(futures) else None)
        try:
            while not (ended or _all_done(futures)):
                check_time_limit()
                wake.wait(POLL_SECONDS)
                shown.set_postfix(divergences=sum(c.divergences for c in running), refresh=False)
                shown.update(sum(chain.done for chain in running) - shown.n)
                ended = watcher.ends(running)
        except KeyboardInterrupt as error:
            interruption = error
        finally:
            for chain in running:
                chain.stop()
    if ended and not min(chain.drawn for chain in running):
        raise EndedError("The callback ended the run before each chain had a draw.")
    found = gather([chain.result() for chain in running], draws, interruption, z)
    if ended:
        kept, count = found.z.shape[:2]
        some = kept < len(running)
        had = f"; {kept} of the {len(running)} chains had as many" if some else ""
        found.findings.append(
            Finding(
                "warning" if some else "info",
                "callback",
                f"The callback ended the run after {count} of {draws} draws per chain{had}.",
                "fit.extend() goes on.",
            )
        )
    return replace(found, findings=[*found.findings, *(starts.findings() if starts else ())])


def check_density(chains: Chains, evaluator: Evaluator, error: Exception) -> None:
    """Check that chains are of a density: that it is at their last draws what was recorded.

    Args:
        chains: the chains, with their states.
        evaluator: evaluates the density.
        error: raised if it is not.

    Raises:
        DataError: a state is damaged.
    """
    for state, recorded in zip(chains.states, chains.stats["lp"][:, -1], strict=True):
        z = check_state(state, chains.z.shape[2]).z
        value = float(evaluator.value_and_grad(torch.from_numpy(z))[0])
        if not math.isclose(value, recorded, rel_tol=SAME_DENSITY, abs_tol=SAME_NATS):
            raise error


def check_state(saved: Any, dim: int) -> ChainState:
    """Return a state that was saved.

    Raises:
        DataError: it is none of a chain in ``dim`` dimensions.
    """
    try:
        state = ChainState(**saved)
    except TypeError:
        raise DataError("The state of a chain is damaged: it has other parts.") from None
    state.check(dim)
    return state


def _seeds(seed: int, chains: int) -> list[tuple[int, int]]:
    """Return the seed of each chain's start, and the key of its random numbers."""
    found = np.random.SeedSequence(seed).generate_state(2 * chains, np.uint64).tolist()
    return [*zip(found[:chains], found[chains:], strict=True)]


def _all_done(futures: Any) -> bool:
    """Return whether all futures have ended."""
    return all(future.done() for future in futures)
