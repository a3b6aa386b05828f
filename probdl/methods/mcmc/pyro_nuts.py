"""NUTS and HMC by Pyro's kernels, with the statistics of each transition.

Pyro's ``MCMC`` class discards statistics that ArviZ uses (energy, divergences, the step size of
each draw), loses all draws on Ctrl-C, and needs ``fork`` for several chains. So this module runs
the kernels itself. The chains take turns, one transition each, so that all chains of an interrupted
run have the same length. Each chain has its own random generator.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyro
import torch
from numpy.typing import NDArray
from pyro.infer.mcmc import HMC, NUTS
from torch import Tensor

from probdl.compile import Evaluator
from probdl.methods.mcmc.chains import Chain, Chains, gather
from probdl.util.clock import check_time_limit
from probdl.util.progress import bar

__all__ = ["HMCKernel", "NUTSKernel", "run"]

STEPS_MAX = 1023  # of a trajectory of HMC, as many as NUTS takes by default


class _Recording:
    """A mixin for Pyro's kernels: single transitions with their statistics."""

    def __init__(
        self,
        dim: int,
        evaluator: Evaluator,
        start: Callable[[int], Tensor],
        seed: int,
        **options: Any,
    ) -> None:
        self.gradients = 0
        self.energy = math.nan

        def potential(params: dict[str, Tensor]) -> Tensor:
            self.gradients += 1
            return -evaluator(params["z"])

        super().__init__(potential_fn=potential, **options)  # type: ignore[call-arg]
        self.dim = dim
        self.initial_params = {"z": start(seed)}
        self.random_state = torch.Generator().manual_seed(seed).get_state()

    @contextmanager
    def own_randomness(self) -> Iterator[None]:
        """Use the chain's generator in the context; Pyro's kernels use only the global one."""
        torch.set_rng_state(self.random_state)
        yield
        self.random_state = torch.get_rng_state()

    def _sample_r(self, name: str) -> Any:
        r, unscaled = super()._sample_r(name)  # type: ignore[misc]
        this: Any = self
        energy = this._kinetic_energy(unscaled) + this._potential_energy_last
        self.energy = float(energy)
        return r, unscaled

    def transition(self, warm: bool) -> tuple[NDArray[np.float64], dict[str, float]]:
        """Make one transition; return the point and, after warm-up, its statistics."""
        this: Any = self
        before, diverged = self.gradients, len(this._divergences)
        kept, mean = max(0, this._t - this._warmup_steps), this._mean_accept_prob
        z = this.sample(this._z_last or this.initial_params)["z"]
        if warm:
            return z.numpy(), {}
        steps = self.gradients - before
        change = this._mean_accept_prob - mean if kept else 0.0
        return z.numpy(), {
            "lp": -float(this._potential_energy_last),
            "diverging": len(this._divergences) > diverged,
            "energy": self.energy,
            # Pyro keeps the running mean over all draws; this draw's value follows from its change.
            "acceptance_rate": min(max(this._mean_accept_prob + kept * change, 0.0), 1.0),
            "step_size": float(this.step_size),
            "n_steps": steps,
            # A tree of depth k has between 2^(k-1) and 2^k - 1 steps.
            "tree_depth": math.ceil(math.log2(steps + 1)),
        }


class NUTSKernel(_Recording, NUTS):
    """Pyro's NUTS on a log density."""


class HMCKernel(_Recording, HMC):
    """Pyro's HMC on a log density."""

    @property
    def num_steps(self) -> int:
        """The number of steps of a trajectory, bounded where step sizes shrink without end."""
        return min(STEPS_MAX, super().num_steps)  # type: ignore[no-any-return]


def run(
    kernels: Sequence[Callable[[], Any]],
    *,
    warmup: int,
    draws: int,
    progress: bool | None,
) -> Chains:
    """Run kernels through warm-up and draws; on Ctrl-C return the draws so far.

    Args:
        kernels: functions that make the kernels, one per chain.
        warmup: number of transitions for adaptation.
        draws: number of draws to keep.
        progress: whether to show progress.

    Raises:
        KeyboardInterrupt: interrupted before the first draw.
        ModelError: every chain failed.
    """
    stop = None
    chains = [_Chain(make) for make in kernels]
    total = (warmup + draws) * len(kernels)
    with bar(total, "sampling", progress) as progress_bar, pyro.validation_enabled(False):
        try:
            for chain in chains:
                chain.attempt("setup", warmup)
            for t in range(warmup + draws):
                check_time_limit()
                for chain in chains:
                    chain.attempt("transition", t < warmup)
                    progress_bar.update()
                if not t % 50 and (count := sum(chain.divergences for chain in chains)):
                    progress_bar.set_postfix(divergences=count)
                if all(chain.failure for chain in chains):
                    break
        except KeyboardInterrupt as error:
            stop = error
    return gather([chain.result() for chain in chains], draws, stop)


class _Chain:
    """A kernel with its draws; an error of the kernel ends only this chain."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.kernel: Any = None
        self.failure: Exception | None = None
        self.points: list[NDArray[np.float64]] = []
        self.records: list[dict[str, float]] = []
        try:
            self.kernel = make()
        except Exception as error:
            self.failure = error

    @property
    def divergences(self) -> int:
        return 0 if self.kernel is None else len(self.kernel._divergences)

    def attempt(self, method: str, *args: Any) -> None:
        """Call a method of the kernel and keep the draw it returns, unless the chain has failed."""
        if self.failure is not None:
            return
        try:
            with self.kernel.own_randomness():
                result = getattr(self.kernel, method)(*args)
        except Exception as error:
            self.failure = error
            return
        if result is not None and result[1]:
            self.points.append(result[0])
            self.records.append(result[1])

    def result(self) -> Chain:
        """Return the chain, complete or not."""
        names = self.records[0] if self.records else ()
        stats = {name: np.array([record[name] for record in self.records]) for name in names}
        return Chain(np.array(self.points), stats, self.failure)
