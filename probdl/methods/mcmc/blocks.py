"""Draws in blocks: until there are enough, with a checkpoint after each."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from probdl.compile.kernels.nuts import RECORD
from probdl.findings import Finding
from probdl.methods.mcmc.chains import Chains
from probdl.methods.mcmc.native_nuts import check_state
from probdl.methods.mcmc.watching import Until
from probdl.methods.training.checkpoint import Checkpoint

__all__ = ["Blocks"]

ENDED = {"interrupted", "time_limit", "callback"}  # findings on a run that ended early
FIRST_DRAWS, BLOCK_SECONDS = 100, 5.0  # of a block that a checkpoint follows


@dataclass(frozen=True)
class Blocks:
    """How chains are sampled block by block.

    Attributes:
        draws: the number of draws of each chain.
        until: when there are enough; None means after ``draws``.
        checkpoint: where the chains are saved; None saves none.
    """

    draws: int
    until: Until | None = None
    checkpoint: Checkpoint | None = None

    def sample(self, sample: Callable[..., Chains], first: Mapping[str, Any], dim: int) -> Chains:
        """Sample all blocks, or those that a checkpoint does not have.

        Args:
            sample: samples a number of draws, ``draws=``, from ``states=``.
            first: further arguments for the first block.
            dim: the dimension.
        """
        began = time.perf_counter()
        chains = self._restored(dim)
        if chains is None:
            few = self.draws if self.checkpoint is None else min(FIRST_DRAWS, self.draws)
            chains = sample(draws=few, **first)
            self._save(chains)
        each = 0.0  # seconds a draw
        limit = self.until.time_limit if self.until is not None else None
        while not ENDED & {f.check for f in chains.findings}:
            count = self._further(chains, each)
            late = limit is not None and time.perf_counter() - began > limit
            if not count or (late and chains.z.shape[1] >= self.draws):
                break
            started = time.perf_counter()
            more = sample(draws=count, states=chains.states, before=chains.z)
            if len(more.z) < len(chains.z):  # an interruption left some chains out
                return replace(chains, findings=[*chains.findings, *more.findings])
            each = (time.perf_counter() - started) / more.z.shape[1]
            before = chains.findings
            chains = chains.followed_by(more)
            chains = replace(chains, findings=[*before, *chains.findings])
            self._save(chains)
        return chains

    def _further(self, chains: Chains, each: float) -> int:
        """Return the number of draws of the next block."""
        done = chains.z.shape[1]
        left = self.draws - done
        if left <= 0:
            left = self.until.further(chains.z) if self.until is not None else 0
        if self.checkpoint is None:
            return max(0, left)
        block = max(FIRST_DRAWS, int(BLOCK_SECONDS / each)) if each else FIRST_DRAWS
        return max(0, min(left, block))

    def _save(self, chains: Chains) -> None:
        if self.checkpoint is None:
            return
        ended = [f for f in chains.findings if f.check not in ENDED]
        self.checkpoint.write(
            {
                "done": chains.z.shape[1],
                "z": torch.from_numpy(chains.z),
                "stats": {name: torch.from_numpy(of) for name, of in chains.stats.items()},
                "states": [
                    {
                        n: torch.from_numpy(x) if isinstance(x, np.ndarray) else x
                        for n, x in state.items()
                    }
                    for state in chains.states
                ],
                "findings": [{**asdict(f), "sites": [*f.sites]} for f in ended],
            }
        )

    def _restored(self, dim: int) -> Chains | None:
        """Return the chains of the checkpoint, after checks of all that C code will read."""
        if self.checkpoint is None:
            return None
        most = self.draws if self.until is None else max(self.draws, self.until.draws)
        saved = self.checkpoint.read(most)
        if saved is None:
            return None
        with self.checkpoint.readable():
            z = saved["z"].numpy()
            states = [
                {n: x.numpy() if isinstance(x, torch.Tensor) else x for n, x in state.items()}
                for state in saved["states"]
            ]
            shape = (len(states), saved["done"])
            if not states or z.shape != (*shape, dim) or z.dtype != np.float64:
                raise ValueError(f"its draws have the shape {z.shape}")
            for state in states:
                check_state(state, dim)
            stats = {name: of.numpy() for name, of in saved["stats"].items()}
            if set(stats) != {*(RECORD.names or ())} or any(
                of.shape != shape for of in stats.values()
            ):
                raise ValueError("its statistics are not those of its draws")
            return Chains(z, stats, [Finding.saved(f) for f in saved["findings"]], states)
