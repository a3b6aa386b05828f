"""What can be seen of chains while they run, and when they have enough draws."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probdl.errors import SettingError
from probdl.findings import Finding
from probdl.io.mixing import ess_bulk, ess_tail, rhat
from probdl.util.settings import check_limit, is_real

__all__ = ["Until", "Watch", "Watcher"]

Array = NDArray[np.float64]

DRAWS_MIN = 8  # of each chain, for R-hat and the effective sample size
TAIL = (0.05, 0.95)
GROWTH_MAX = 3.0  # by which the draws grow at once, since an effective sample size is uncertain
INTERVAL_S = 1.0


@dataclass(frozen=True)
class Until:
    """When NUTS has enough draws: ``NUTS(until=probdl.Until(ess=400, rhat=1.01))``.

    Args:
        ess: the least effective sample size, of bulk and tails, of every coordinate.
        rhat: the largest R-hat of every coordinate.
        draws: the number of draws of each chain at which it ends in any case. Default: 100,000.
        time_limit: seconds of sampling after which it ends in any case; None means no limit.

    Raises:
        SettingError: a value is out of range.

    Example:
        >>> import torch, pyro, pyro.distributions as dist, probdl
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> method = probdl.NUTS(draws=100, until=probdl.Until(ess=1000))
        >>> fit = probdl.infer(model, torch.tensor(1.0), method=method, seed=1)
        >>> bool(fit.summary()["ess_bulk"].iloc[0] > 1000)
        True
    """

    ess: float = 400.0
    rhat: float = 1.01
    draws: int = 100_000
    time_limit: float | None = None

    def __post_init__(self) -> None:
        if not (is_real(self.ess) and self.ess > 0 and is_real(self.rhat) and self.rhat > 1):
            raise SettingError("Until(ess=, rhat=): ess must be positive, and rhat above 1.")
        if type(self.draws) is not int or self.draws < 1:
            raise SettingError(f"Until(draws={self.draws!r}) must be a positive integer.")
        check_limit(self.time_limit)

    def further(self, z: Array) -> int:
        """Return the number of further draws of each chain that are likely to be enough; 0 if none.

        Args:
            z: the draws so far, (chain, draw, d).
        """
        seen = Watch(z, np.empty(0), 0, 0)
        count = z.shape[1]
        if self._is_met(seen):
            return 0
        wanted = (
            1.1 * count * self.ess / max(seen.ess, 1.0) if np.isfinite(seen.ess) else 2.0 * count
        )
        total = min(max(wanted, 1.5 * count), GROWTH_MAX * count, self.draws)
        return max(0, int(total) - count)

    def findings(self, z: Array) -> list[Finding]:
        """Return the finding that draws ended before they were enough, if they did."""
        seen = Watch(z, np.empty(0), 0, 0)
        if self._is_met(seen):
            return []
        limit = "draws" if z.shape[1] >= self.draws else "time_limit"
        return [
            Finding(
                "warning",
                "until",
                f"Until({limit}={getattr(self, limit)}) ended the run after {z.shape[1]} draws per "
                f"chain, with a least effective sample size of {seen.ess:.0f} of {self.ess:g} and "
                f"a largest R-hat of {seen.rhat:.3f} (limit {self.rhat:g}).",
                f"Use a larger {limit}, or none; fit.extend() goes on.",
            )
        ]

    def _is_met(self, seen: Watch) -> bool:
        return seen.ess >= self.ess and (len(seen.z) < 2 or seen.rhat <= self.rhat)


@dataclass(frozen=True)
class Watch:
    """Chains while they run, as ``NUTS(callback=)`` sees them about once a second.

    Attributes:
        z: the draws so far on R^d, as many of each chain, (chain, draw, d).
        step_sizes: the step size of each chain, (chain,).
        transitions: the number of transitions of all chains so far, warm-up included.
        divergences: the number of divergent ones.
    """

    z: Array
    step_sizes: Array
    transitions: int
    divergences: int

    @property
    def num_draws(self) -> int:
        """The number of draws of each chain so far; 0 in warm-up."""
        return int(self.z.shape[1])

    @cached_property
    def rhat(self) -> float:
        """The largest R-hat of a coordinate so far; NaN with one chain or few draws."""
        if len(self.z) < 2 or self.num_draws < DRAWS_MIN:
            return float("nan")
        return _worst(rhat(self.z), np.nanmax)

    @cached_property
    def ess(self) -> float:
        """The least effective sample size of a coordinate so far; NaN with few draws."""
        if self.num_draws < DRAWS_MIN:
            return float("nan")
        return _worst(np.minimum(ess_bulk(self.z), ess_tail(self.z, TAIL)), np.nanmin)


def _worst(values: Array, of: Callable[[Array], Any]) -> float:
    return float(of(values)) if np.isfinite(values).any() else float("nan")


class Watcher:
    """Calls a function about once a second, until it returns False.

    Args:
        callback: the function of a :class:`Watch`; None calls nothing.
        before: the draws of earlier blocks, (chain, draw, d); None if this is the first.
        whole: the array of the draws of all chains, if that is too large to be copied.
    """

    def __init__(
        self,
        callback: Callable[[Watch], Any] | None,
        before: Array | None,
        whole: Array | None = None,
    ) -> None:
        self._callback, self._before, self._whole = callback, before, whole
        self._last = time.perf_counter()

    def ends(self, running: Sequence[Any]) -> bool:
        """Return whether the function asks to end; ``running`` are the chains."""
        now = time.perf_counter()
        if self._callback is None or now - self._last < INTERVAL_S:
            return False
        self._last = now
        count = min(chain.drawn for chain in running)
        if self._whole is not None:
            z = self._whole[:, :count]
        else:
            z = np.stack([chain.z[:count] for chain in running])
        seen = Watch(
            z if self._before is None else np.concatenate([self._before, z], 1),
            np.array([chain.step for chain in running]),
            sum(chain.done for chain in running),
            sum(chain.divergences for chain in running),
        )
        answer = self._callback(seen)
        return isinstance(answer, (bool, np.bool_)) and not answer
