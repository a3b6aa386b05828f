"""NUTS on native code: warm-up, threads and progress of the chains of nuts.c."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from probdl.compile.kernels.nuts import RECORD, NutsChain, NutsTask
from probdl.compile.runtime.native_density import NativeDensity
from probdl.methods.mcmc.chains import Chain, Chains, Starts, gather
from probdl.methods.mcmc.metric import low_rank
from probdl.util.clock import check_time_limit
from probdl.util.isolation import lock_suspended
from probdl.util.progress import bar

__all__ = ["run"]

Array = NDArray[np.float64]

# Shares of warm-up in which the metric changes fast, and in which only the step size is adapted.
EARLY, LATE = 0.3, 0.15
EARLY_WINDOW, WINDOW = 10, 80  # draws of which the metric is, up to twice as many
FIRST = 5  # transitions to the first metric from draws, for which a step size is found anew
LOW_RANK_INTERVAL = 20  # transitions between updates of a low-rank metric
CUTOFFS = {"low_rank": 4.0, "dense": 1.0 + 1e-6}
SCALE_RANGE = (1e-5, 1e5)  # of the first metric, from the gradient at the start
POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Settings:
    """Settings of :class:`NUTS`."""

    draws: int
    warmup: int
    target_accept: float
    max_treedepth: int
    mass_matrix: str


class _Running:
    """A chain on its way through warm-up and sampling."""

    def __init__(
        self, density: NativeDensity, start: Callable[[], Tensor], key: int, settings: Settings
    ) -> None:
        self.settings = settings
        self.density, self._start, self._key = density, start, key
        self.chain: NutsChain | None = None
        self.z = np.empty((settings.draws, density.dim))
        self.records = np.zeros(settings.draws, RECORD)
        self.before = 0  # transitions of tasks that are done
        self.task: NutsTask | None = None
        self.stopped = False
        self.failure: Exception | None = None

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
            self.chain = chain = NutsChain(
                self.density,
                self._start().numpy(),
                self._key,
                self.settings.target_accept,
                self.settings.max_treedepth,
            )
            self._warm_up(chain)
            if not self.stopped:
                self._transitions(self.settings.draws, z=self.z, records=self.records)
        except Exception as error:
            self.failure = error

    def result(self) -> Chain:
        """Return the draws, complete or not."""
        count = max(0, self.done - self.settings.warmup)
        records = self.records[:count]
        stats: dict[str, Any] = {name: records[name].copy() for name in RECORD.names or ()}
        for name in ("diverging", "reached_max_treedepth"):
            stats[name] = stats[name].astype(bool)
        for name in ("n_steps", "tree_depth"):
            stats[name] = stats[name].astype(np.int64)
        return Chain(self.z[:count], stats, self.failure)

    def _warm_up(self, chain: NutsChain) -> None:
        warmup, kind = self.settings.warmup, self.settings.mass_matrix
        with np.errstate(divide="ignore"):
            first = np.clip(1.0 / np.sqrt(np.abs(chain.grad)), *SCALE_RANGE)
        chain.set_metric(first, chain.directions, chain.variances)
        chain.find_step()
        late = int(LATE * warmup)
        if kind == "diag":
            early = int(EARLY * warmup)
            self._transitions(min(FIRST, early), step=True, window=EARLY_WINDOW)
            chain.find_step()
            self._transitions(early - FIRST, step=True, window=EARLY_WINDOW)
            middle = warmup - early - late
            last = min(WINDOW, middle)  # whose draws would be too few for a window of their own
            self._transitions(middle - last, step=True, window=WINDOW)
            self._transitions(last, step=True, window=warmup)
        else:
            self._learn_low_rank(chain, warmup - late, CUTOFFS[kind])
        self._transitions(late, step=True)
        if warmup:
            chain.use_mean_step()

    def _learn_low_rank(self, chain: NutsChain, count: int, cutoff: float) -> None:
        """Make transitions, and learn the metric from the later half of them, at most."""
        first = min(FIRST, count)
        self._transitions(first, step=True, window=EARLY_WINDOW)
        chain.find_step()
        recent = [np.empty((0, len(chain.z))) for _ in range(2)]  # draws, and their gradients
        done = first
        while done < count and not self.stopped:
            interval = min(
                EARLY_WINDOW if done < EARLY * count else LOW_RANK_INTERVAL, count - done
            )
            new = [np.empty((interval, len(chain.z))) for _ in range(2)]
            self._transitions(interval, step=True, z=new[0], grads=new[1])
            done += interval
            size = min(max(EARLY_WINDOW, done // 2), 2 * WINDOW)
            recent = [np.concatenate(pair)[-size:] for pair in zip(recent, new, strict=True)]
            moved = np.ones(len(recent[0]), bool)
            moved[1:] = (np.diff(recent[0], axis=0) != 0).any(1)
            found = low_rank(recent[0][moved], recent[1][moved], cutoff)
            if found is not None and not self.stopped:
                chain.set_metric(*found)

    def _transitions(
        self,
        count: int,
        *,
        step: bool = False,
        window: int = 0,
        z: Array | None = None,
        grads: Array | None = None,
        records: NDArray[Any] | None = None,
    ) -> None:
        """Make transitions.

        Args:
            count: how many.
            step: whether to adapt the step size.
            window: the draws that the diagonal metric is of; 0 leaves the metric as it is.
            z: where to write the draws, (count, d).
            grads: where to write their gradients.
            records: where to write what is recorded of each.
        """
        assert self.chain is not None
        if self.stopped or count <= 0:
            return
        kept = np.zeros(count, RECORD) if records is None else records
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
        self.before, self.task = self.before + int(task.done), None


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
) -> Chains:
    """Draw from a native density on R^d; on Ctrl-C return the draws so far.

    The arguments are those of :func:`probdl.methods.mcmc.nutpie_adapter.run`.

    Raises:
        KeyboardInterrupt: interrupted before each chain had a draw.
        ModelError: no starting point has a finite density.
        CompilerError: there is no compiler, or it failed.
    """
    settings = Settings(draws, warmup, target_accept, max_treedepth, mass_matrix)
    starts = Starts(find_start, seed)
    keys = np.random.SeedSequence(seed).generate_state(2 * chains, np.uint64).tolist()
    running = [
        _Running(evaluator, lambda s=s: starts(s >> 1), key, settings)  # type: ignore[misc]
        for s, key in zip(keys[:chains], keys[chains:], strict=True)
    ]
    interruption = None
    total = chains * (warmup + draws)
    with (
        bar(total, "sampling", progress) as shown,
        lock_suspended(),
        ThreadPoolExecutor(min(chains, os.cpu_count() or 1)) as pool,
    ):
        wake = threading.Event()
        futures = [pool.submit(chain.run) for chain in running]
        for future in futures:
            future.add_done_callback(lambda _: wake.set() if all_done(futures) else None)
        try:
            while not all_done(futures):
                check_time_limit()
                wake.wait(POLL_SECONDS)
                shown.update(sum(chain.done for chain in running) - shown.n)
        except KeyboardInterrupt as error:
            interruption = error
        finally:
            for chain in running:
                chain.stop()
    found = gather([chain.result() for chain in running], draws, interruption)
    return replace(found, findings=[*found.findings, *starts.findings()])


def all_done(futures: Any) -> bool:
    """Return whether all futures have ended."""
    return all(future.done() for future in futures)
